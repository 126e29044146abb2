"""Gradients too small to change a weight: tried with torch's own SGD."""

import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure


def adversaries(bias):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
    discriminator = nn.Sequential(nn.Linear(16, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    with torch.no_grad():
        discriminator[2].bias += bias
    return nn.Sequential(generator, discriminator)


Z = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def saturating(logits):
    return torch.log(1 - torch.sigmoid(logits)).mean()


def found(model, loss_fn):
    return next((f for f in measure(model, loss_fn, Z).findings[0] if f.kind == "tiny gradients"), None)


def test_a_discriminator_that_is_sure_changes_no_weight_by_a_bit():
    model = adversaries(bias=-35)
    finding = found(model, saturating)
    assert finding.severity == 3
    assert finding.modules == ("0.0", "0.2", "1.0", "1.2")
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    before = [weight.detach().clone() for weight in weights]
    saturating(model(Z)).backward()
    torch.optim.SGD(model.parameters(), lr=1).step()
    assert all(torch.equal(now, then) for now, then in zip(weights, before, strict=True))


def test_a_loss_of_logits_that_does_not_saturate_cures_it():
    model = adversaries(bias=-35)
    ones = torch.ones(64, 1)
    assert "nn.BCEWithLogitsLoss()" in found(model, saturating).remedy
    assert found(model, lambda logits: nn.BCEWithLogitsLoss()(logits, ones)) is None


def test_a_tiny_loss_is_cured_by_a_factor():
    model = adversaries(bias=0)
    tiny = lambda output: 1e-14 * output.square().mean()  # noqa: E731
    remedy = found(model, tiny).remedy
    factor = float(remedy.removeprefix("the loss times ").split()[0])
    assert found(model, lambda output: factor * tiny(output)) is None


def test_an_ordinary_discriminator_and_a_frozen_or_learned_model_raise_no_alarm():
    assert found(adversaries(bias=0), saturating) is None
    model = nn.Linear(8, 1)
    target = model(Z).detach() + 1e-6
    assert not [finding for finding in measure(model, F.mse_loss, (Z, target)).findings[0] if finding.severity]
