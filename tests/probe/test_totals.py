"""What is recorded of a step as a whole, and of parameters with too few dimensions for a weight."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import MLP, GradientProbe, initialize, measure
from gradexp.history.history import History
from gradexp.history.step import STATUSES


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3))


def batch():
    torch.manual_seed(1)
    return torch.randn(6, 5), torch.randint(3, (6,))


def log10_norm(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).norm().log10().item()


def test_the_total_gradient_is_that_which_clipping_sees():
    model, (x, y) = network(), batch()
    for select in (None, "3"):
        with GradientProbe(model, select) as probe:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            probe.collect(loss=loss)
        seen = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).log10().item()
        assert probe.history.total_grad.item() == pytest.approx(seen, abs=1e-6)
        assert probe.history.loss.item() == pytest.approx(loss.item(), rel=1e-6)
        model.zero_grad()


def test_the_total_gradient_is_right_where_clipping_sees_nothing():
    model, (x, y) = network(), batch()
    with GradientProbe(model) as probe:
        (F.cross_entropy(model(x), y) * 1e-30).backward()
        probe.collect()
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) == 0
    expected = log10_norm([p.grad.double() for p in model.parameters()])
    assert probe.history.total_grad.item() == pytest.approx(expected, abs=1e-6)


def test_a_total_without_a_number_says_why():
    model, (x, y) = network(), batch()
    totals = []
    for factor in (0.0, math.inf):
        with GradientProbe(model) as probe:
            (F.cross_entropy(model(x), y) * factor).backward()
            probe.collect()
        totals.append(probe.history.total_grad.item())
        model.zero_grad()
    assert totals[0] == -math.inf
    assert math.isnan(totals[1])
    model[3].bias.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with GradientProbe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect()
    assert probe.history.total_grad is None  # the bias's gradient is gone


def test_measure_and_a_scaler_have_the_total_and_the_loss_too():
    model, (x, y) = network(), batch()
    history = measure(model, F.cross_entropy, (x, y))
    loss = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert history.total_grad.item() == pytest.approx(log10_norm(gradients), abs=1e-6)
    assert history.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with GradientProbe(model, scaler=scaler, quantities=["weight_grad", "vector_grad"]) as probe:
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        probe.collect(0, loss.item())
    assert probe.history.total_grad.item() == pytest.approx(log10_norm(gradients), abs=1e-6)
    vectors = [g for g, (n, p) in zip(gradients, model.named_parameters(), strict=True) if n.startswith("1.")]
    row = probe.history.names.index("1")
    assert probe.history.profile("vector_grad")[row] == pytest.approx(log10_norm(vectors), abs=1e-6)


def test_each_network_of_a_stack_has_its_total_and_its_loss():
    model = initialize(MLP([4, 5, 3], "tanh", networks=3), "xavier", seed=0)
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    history = measure(model, loss, (x, y))
    assert history.total_grad.shape == (1, 3)
    assert history.seeds == [0, 1, 2]
    for network in range(3):
        gradients = torch.autograd.grad(F.mse_loss(model(x), y.expand(3, 6, 3)), list(model.parameters()))
        expected = log10_norm([gradient[network] for gradient in gradients])
        assert history.total_grad[0, network] == pytest.approx(expected, abs=1e-6)
        assert history.log10["weight_grad"][0, network, 0] == pytest.approx(
            log10_norm([gradients[0][network]]), abs=1e-6
        )


def loss(outputs, target):
    return F.mse_loss(outputs, target.expand_as(outputs))


@pytest.mark.parametrize("networks", [1, 3])
def test_each_sample_of_a_stack_has_its_norm(networks):
    model = initialize(MLP([20] * 5 + [10], "tanh", networks=networks), "xavier", seed=0)
    x, y = torch.randn(32, 20), torch.randn(32, 10)
    history = measure(model, loss, (x, y), per_sample=True)
    output = model(x)
    (gradient,) = torch.autograd.grad(loss(output, y), output)
    assert history.samples.shape == (1, networks, 5, 32)
    assert np.allclose(history.samples[0, :, -1], gradient.double().norm(dim=-1).log10(), atol=1e-6)


def test_vectors_are_recorded_if_asked_for():
    model, (x, y) = network(), batch()
    quantities = ["output_grad", "weight_grad", "vector_grad", "vector"]
    with GradientProbe(model, quantities=quantities) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect()
    history = probe.history
    assert history.names == ["0", "1", "3"]
    assert [STATUSES[code] for code in history.status["weight_grad"][0, 0]] == ["ok", "frozen", "ok"]
    for row, layer in enumerate((model[0], model[1], model[3])):
        vectors = [parameter for parameter in layer.parameters() if parameter.dim() < 2]
        assert history.profile("vector_grad")[row] == pytest.approx(log10_norm([v.grad for v in vectors]), abs=1e-6)
        assert history.profile("vector")[row] == pytest.approx(log10_norm(vectors), abs=1e-6)
    assert "log10_vector_grad" in history.to_dataframe().columns
    assert next(history.rows()).keys() == next(History("train", ["a"], [0], [0], {}, {}).rows()).keys()


def test_a_nan_in_a_scale_is_seen():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.logit_scale = nn.Linear(5, 3), nn.Parameter(torch.tensor(math.nan))

        def forward(self, x):
            return self.layer(x) * self.logit_scale.exp()

    x, y = batch()
    history = measure(Scaled(), F.cross_entropy, (x, y), quantities=["vector", "vector_grad"])
    row = history.names.index("")
    assert STATUSES[history.status["vector"][0, 0, row]] == "nonfinite"
    assert STATUSES[history.status["vector_grad"][0, 0, row]] == "nonfinite"


def test_totals_survive_saving_and_old_files_load(tmp_path):
    model, (x, y) = network(), batch()
    history = measure(model, F.cross_entropy, (x, y))
    history.save(tmp_path / "history.npz")
    again = History.load(tmp_path / "history.npz")
    assert np.array_equal(again.total_grad, history.total_grad)
    assert np.array_equal(again.loss, history.loss)
    with np.load(tmp_path / "history.npz") as file:  # as it was before there were totals
        np.savez(tmp_path / "old.npz", **{key: file[key] for key in file if key not in ("total_grad", "loss")})
    old = History.load(tmp_path / "old.npz")
    assert old.total_grad is None
    assert np.array_equal(old.log10["output"], history.log10["output"])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("1", TypeError, "loss must be a number or a tensor, got '1'"),
        (torch.ones(3), ValueError, "of shape \\(3,\\)"),
    ],
)
def test_a_loss_that_is_no_number_is_refused_and_loses_nothing(loss, error, message):
    model, (x, y) = network(), batch()
    with GradientProbe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(error, match=message):
            probe.collect(0, loss)
        probe.collect(0, 1)
    assert probe.history.loss.item() == 1
