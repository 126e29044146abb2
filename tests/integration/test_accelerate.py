"""A probe in a loop of accelerate: its state is part of the checkpoints."""

import pytest
import torch
from histories import assert_same
from torch import nn

from gradexp import GradientProbe, History

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

STEPS, SAVED_AFTER, CUT_AFTER = 14, 5, 9


def train(folder, name, begin=0, end=STEPS):
    """Train from a step on, of which the batch depends on the step alone, and return the history."""
    torch.manual_seed(begin)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    probe = GradientProbe(model, optimizer=optimizer, every=4, save=folder / name)
    accelerator.register_for_checkpointing(probe)
    if begin:
        accelerator.load_state(str(folder / "checkpoint"))
    with probe:
        for step in range(begin, end):
            loss = model(torch.rand(2, 3, generator=torch.Generator().manual_seed(step))).square().mean()
            accelerator.backward(loss)
            probe.collect(step, loss)
            optimizer.step()
            optimizer.zero_grad()
            if name == "record" and step == SAVED_AFTER:
                accelerator.save_state(str(folder / "checkpoint"))
    return probe.history


def test_a_training_resumed_from_its_checkpoint_has_the_record_of_an_undisturbed_one(tmp_path):
    """Step 8 was recorded before the end, and is again."""
    whole = train(tmp_path, "whole")
    assert whole.steps == [0, 4, 8, 12]
    train(tmp_path, "record", end=CUT_AFTER)
    assert History.load(tmp_path / "record").steps == [0, 4, 8]
    resumed = train(tmp_path, "record", begin=SAVED_AFTER + 1)
    assert_same(resumed, whole)
    assert_same(History.load(tmp_path / "record"), whole)
