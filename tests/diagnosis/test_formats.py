"""Where a number format gives out, told from what is truly 0."""

import math

import pytest
import torch
from cases import few
from torch import nn

from gradexp import measure

X = torch.linspace(-1, 1, 64).reshape(8, 8)


class Autocast(nn.Module):
    def __init__(self, model, dtype=torch.float16):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x):
        with torch.autocast("cpu", self.dtype):
            return self.model(x)


def chain(depth, gain, activation=nn.Identity):
    """Layers of orthogonal matrices: each multiplies a gradient's norm by the gain."""
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(8, 8), activation()]
        nn.init.orthogonal_(layers[-2].weight, gain)
    return nn.Sequential(*layers[:-1])


def mean_square(factor):
    return lambda output: factor * output.float().square().mean()


def found(model, loss_fn, batch):
    return [finding for finding in measure(model, loss_fn, batch).findings[0] if finding.kind == "number format"]


def float64_ratio(model, loss_fn):
    """Return log10 of the gradient's norm at the first layer over that at the last, by autograd in float64."""
    model, x = model.double(), X.double()
    outputs = []
    for module in model:
        x = module(x)
        if isinstance(module, nn.Linear):
            outputs.append(x)
    gradients = torch.autograd.grad(loss_fn(x), outputs)
    return math.log10(gradients[0].norm() / gradients[-1].norm())


def test_float16_without_a_scale_is_told_from_a_dead_layer():
    model = chain(11, 0.45)
    (finding,) = found(Autocast(model), mean_square(1e-3), X)
    statuses = measure(Autocast(model), mean_square(1e-3), X).at()
    zero = [n for n, code in zip(statuses.names, statuses.status["output_grad"][0], strict=True) if code == 1]
    assert zero  # some are 0, the last ones are not
    assert finding.severity == 3
    assert finding.text.startswith(
        f"float16 underflows: the gradients of {len(zero)} modules, {zero[-1]} down to model.0, are exactly 0. With"
    )
    assert (
        f"they are not, and fall by 10^{float64_ratio(model, mean_square(1.0)):+.1f} from model.20 to model.0"
        in finding.text
    )
    assert "GradScaler" in finding.remedy


def test_the_remedies_for_float16_help():
    model = chain(11, 0.45)
    assert not found(Autocast(model, torch.bfloat16), mean_square(1e-3), X)
    assert not found(Autocast(model), lambda o: 2**22 * mean_square(1e-3)(o), X)


def test_a_model_in_half_is_the_same():
    (finding,) = found(chain(11, 0.45).half(), lambda o: 1e-3 * o.square().mean(), X.half())
    assert finding.text.startswith("float16 underflows")
    assert finding.severity == 3


def test_digits_that_float16_loses_are_worth_knowing():
    (finding,) = found(Autocast(chain(3, 1.0)), mean_square(1e-3), X)
    assert finding.severity == 1
    assert "below 6.1e-05, where digits get lost" in finding.text


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "name"), few([(torch.bfloat16, "bfloat16"), (torch.float32, "float32")]))
def test_wide_formats_give_out_where_a_gradient_vanishes_far_enough(dtype, name):
    (finding,) = found(chain(60, 0.1).to(dtype), lambda o: o.square().mean() + o.sum(), X.to(dtype))
    assert finding.text.startswith(f"{name} underflows")
    assert "initialize(model, 'he')" in finding.remedy


def test_the_remedy_for_wide_formats_helps():
    assert not found(chain(60, math.sqrt(2), nn.ReLU), mean_square(1.0), X)


def dead():
    model = chain(6, 1.0, nn.ReLU)
    model[4].bias.data.fill_(-100)
    return model


def closed():
    model = chain(6, 1.0)
    nn.init.zeros_(model[-1].weight)
    return model


@pytest.mark.parametrize("build", [dead, closed])
@pytest.mark.parametrize("wrap", [nn.Sequential, Autocast])
def test_what_is_truly_zero_is_not_blamed_on_the_format(build, wrap):
    assert not [finding for finding in found(wrap(build()), mean_square(1.0), X) if finding.severity > 1]


def test_time_steps_of_a_layer_that_learns_from_others_are_worth_knowing_only():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.cell = nn.RNNCell(1, 4)
            nn.init.orthogonal_(self.cell.weight_hh, 0.1)

        def forward(self, x):
            state = torch.zeros(1, 4)
            for time in range(60):
                state = self.cell(x[time : time + 1], state)
            return state

    (finding,) = found(Recurrent(), mean_square(1.0), torch.ones(60, 1))
    assert finding.severity == 1
    assert " of 60 calls of cell are exactly 0" in finding.text


def test_outputs_too_large_for_float16_are_named_by_their_module():
    finding, *_ = found(chain(8, 10.0, nn.ReLU).half(), lambda o: o.float().mean(), X.half())
    history = measure(chain(8, 10.0, nn.ReLU), lambda o: o.mean(), X)
    assert "returns more than 65504" in finding.text
    first = next(n for n, log10 in zip(history.names, history.profile("output"), strict=True) if log10 > 4.5)
    assert finding.modules == (first,)
    assert not found(chain(8, 10.0, nn.ReLU).bfloat16(), lambda o: o.float().mean(), X.bfloat16())


def test_gradients_too_large_for_float16_are_told_from_others():
    (finding,) = found(Autocast(chain(6, 1.0)), lambda o: 1e7 * o.float().mean(), X)
    assert "gradients are above 65504" in finding.text
    assert not found(chain(6, 1.0), lambda o: 1e7 * o.mean(), X)
    assert not found(Autocast(chain(6, 1.0)), lambda o: (o.float() * 0).square().sum().sqrt(), X)


def test_a_logarithm_of_zero_in_float16_is_no_overflow():
    class Log(nn.Module):
        def forward(self, x):
            return (0 * x).log()

    assert not found(nn.Sequential(nn.Linear(8, 8), Log()).half(), lambda o: o.float().mean(), X.half())


@pytest.mark.parametrize("model", [chain(8, 1.0), chain(4, 1.0, nn.Tanh), Autocast(chain(4, 1.0))])
def test_healthy_models_raise_no_alarm(model):
    assert not found(model, mean_square(10.0), X)


def test_looking_again_leaves_the_model_as_it_was():
    model = nn.Sequential(*chain(11, 0.45)[:2], nn.BatchNorm1d(8), nn.Dropout(0.5), *chain(11, 0.1)).half()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].weight.grad = torch.ones(8, 8, dtype=torch.float16)
    state = torch.get_rng_state()
    assert found(model, lambda o: o.square().mean(), X.half())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(8, 8, dtype=torch.float16))
    assert model[4].weight.grad is None
