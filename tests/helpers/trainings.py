"""Small trainings under a probe, whose histories are judged."""

import torch
import torch.nn.functional as F
from torch import nn

from gradexp import GradientProbe


def mlp(out=3, width=64, **options):
    return nn.Sequential(
        *(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out)), **options
    )


def classes(count=64):
    x = torch.randn(count, 16)
    return x, x[:, :3].argmax(1)


def recorded(model, optimizer, loss_fn=F.cross_entropy, batch=None, steps=10, after_step=None, **options):
    """Train on one batch, or on what a function returns, and return the history of all steps."""
    batch = batch or classes()
    with GradientProbe(model, optimizer=optimizer, **options) as probe:
        for step in range(steps):
            x, target = batch() if callable(batch) else batch
            optimizer.zero_grad()
            loss = loss_fn(model(x), target)
            loss.backward()
            probe.collect(step, loss)
            optimizer.step()
            if after_step is not None:
                after_step()
    return probe.history


def losses(model, optimizer, loss_fn, batch, steps, clip=None):
    """Train without a probe and return the losses."""
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(batch[0]), batch[1])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        seen.append(loss.item())
    return seen


def kinds(history, step=-1, least=1):
    """Return the kinds of findings of at least some severity."""
    return [finding.kind for finding in history.at(step).findings if finding.severity >= least]
