"""Where nan and inf are born, by name; and that healthy models raise no alarm."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradexp import measure

X, Y = torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 3


class Apply(nn.Module):
    """A module without weights."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def linear(inputs=4, outputs=3):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def found(model, loss_fn, batch):
    return [f for f in measure(model, loss_fn, batch).findings[0] if f.kind == "nonfinite"]


def only(model, loss_fn, batch):
    (finding,) = found(model, loss_fn, batch)
    assert finding.severity == 3
    assert finding.remedy
    return finding


# Forward


def test_nan_and_inf_of_the_inputs_are_counted_by_sample():
    x = X.clone()
    x[3, 1] = torch.nan
    x[5] = torch.inf
    assert only(linear(), F.cross_entropy, (x, Y)).text == "nan in the input: 5 of 32 elements, in samples 3, 5 of 8"


def test_the_input_that_holds_inf_is_named_by_its_key():
    model = Apply(lambda a, b: a @ torch.ones(4, 3, requires_grad=True) + b.sum())
    b = X.clone()
    b[0, 0] = torch.inf
    assert only(model_of(model, "a", "b"), lambda o: o.sum(), {"a": X, "b": b}).text.startswith(
        "inf in the input['b']: 1 of"
    )


def model_of(inner, *names):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.inner = linear(4, 4), inner

        def forward(self, **inputs):
            first, *others = (inputs[name] for name in names)
            return self.inner(self.a(first), *others)

    return Model()


@pytest.mark.parametrize(
    ("place", "value"), [("1.weight", torch.nan), ("1.bias", torch.inf), ("2.weight", torch.nan)]
)
def test_a_parameter_of_any_dimension_is_named(place, value):
    model = nn.Sequential(linear(4, 4), nn.LayerNorm(4), linear())
    model.get_parameter(place).data.view(-1)[0] = value
    text = only(model, F.cross_entropy, (X, Y)).text
    assert text.startswith(f"{'nan' if value != value else 'inf'} in the parameter {place} before the pass: 1 of ")


def test_a_scale_without_dimensions_is_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.logit_scale = linear(), nn.Parameter(torch.tensor(torch.nan))

        def forward(self, x):
            return self.inner(x) * self.logit_scale.exp()

    finding = only(nn.ModuleDict({"clip": Model()})["clip"], F.cross_entropy, (X, Y))
    assert finding.text == "nan in the parameter logit_scale before the pass: 1 of 1 elements"
    assert only(nn.Sequential(Model()), F.cross_entropy, (X, Y)).modules == ("0",)


def test_running_statistics_are_named():
    model = nn.Sequential(linear(4, 4), nn.BatchNorm1d(4), linear()).eval()
    model[1].running_var[0] = torch.nan
    finding = only(model, F.cross_entropy, (X, Y))
    assert finding.text.startswith("nan in the buffer 1.running_var before the pass: 1 of 4")
    model[1].reset_running_stats()  # the remedy
    assert "reset_running_stats" in finding.remedy
    assert not found(model, F.cross_entropy, (X, Y))


def test_weights_that_an_attention_uses_without_calling_their_module_are_named():
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model.self_attn.out_proj.weight.data[0, 0] = torch.nan
    text = only(model, lambda o: o.sum(), X.reshape(2, 4, 4)).text
    assert text.startswith("nan in the parameter self_attn.out_proj.weight")


def test_weights_that_are_all_nan_are_counted():
    model = nn.Sequential(linear(4, 4), nn.ReLU(), linear())
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    text = only(model, F.cross_entropy, (X, Y)).text
    assert (
        text == "nan in the parameter 0.weight before the pass: 16 of 16 elements; 4 of 4 parameters are not finite"
    )


def test_a_module_without_weights_is_named_and_not_the_next_one():
    model = nn.Sequential(linear(4, 4), Apply(lambda x: (1e4 * x).exp()), linear())
    finding = only(model, F.cross_entropy, (X, Y))
    assert finding.text.startswith(
        "inf is born in the forward pass, in 1 (Apply), by exp, which got finite numbers up to"
    )
    assert finding.modules == ("1",)
    assert "clamp(max=50)" in finding.remedy
    cured = nn.Sequential(model[0], Apply(lambda x: (1e4 * x).clamp(max=50).exp()), model[2])
    assert not found(cured, F.cross_entropy, (X, Y))


class Inside(nn.Module):
    def __init__(self, between=lambda x: x, after=lambda x: x):
        super().__init__()
        self.a, self.b, self.between, self.after = linear(4, 4), linear(4, 3), between, after

    def forward(self, x):
        return self.after(self.b(self.between(self.a(x))))


def test_a_containers_own_operations_are_placed_between_its_children():
    finding = only(nn.Sequential(linear(4, 4), Inside(torch.log)), F.cross_entropy, (X, Y))
    assert "nan is born in the forward pass, in 1 (Inside), between 1.a and 1.b, by log, which got" in finding.text
    assert finding.modules == ("1",)


def test_a_containers_own_operations_after_its_last_child_are_placed_there():
    text = only(
        nn.Sequential(linear(4, 4), Inside(after=lambda x: (-x.abs() - 1).sqrt())), F.cross_entropy, (X, Y)
    ).text
    assert "in 1 (Inside), after 1.b" in text


def test_modules_in_a_list_are_inside_the_module_that_runs_the_list():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([linear(4, 4), linear(4, 3)])

        def forward(self, x):
            return self.layers[1](self.layers[0](x) / 0)

    text = only(Model(), F.cross_entropy, (X, Y)).text
    assert "in the model itself (Model), between layers.0 and layers.1" in text


def test_an_operation_in_place_is_born_in_the_module_that_runs_it():
    model = nn.Sequential(linear(4, 4), Apply(lambda x: x.mul_(1e30).mul_(1e30)), linear())
    assert only(model, F.cross_entropy, (X, Y)).modules == ("1",)


def test_a_signal_that_grows_is_told_by_its_size():
    layers = [nn.Linear(4, 4, bias=False) for _ in range(12)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e4)
    finding = only(nn.Sequential(*layers), lambda o: o.sum(), torch.ones(2, 4))
    # The output of layer k, counted from 0, is (4e4)^(k+1), and float32 ends at 3.4e38: 8.4e36 · 4e4 is too large.
    assert finding.modules == ("8",)
    assert "up to 6.55e+36" in finding.text
    assert "initialize(model, 'he')" in finding.remedy


def test_rows_that_are_masked_throughout_are_told_from_ordinary_masks():
    class Attention(nn.Module):
        def __init__(self, fill=-torch.inf):
            super().__init__()
            self.q, self.v, self.fill = linear(4, 4), linear(4, 3), fill

        def forward(self, x, mask):
            return self.v((self.q(x) @ x.T).masked_fill(mask, self.fill).softmax(-1) @ x)

    mask = torch.ones(8, 8, dtype=torch.bool).triu(1)
    assert not found(Attention(), lambda o: o.sum(), {"x": X, "mask": mask})
    mask[2] = True
    finding = only(Attention(), lambda o: o.sum(), {"x": X, "mask": mask})
    assert "between q and v" in finding.text
    assert "softmax" in finding.remedy
    assert not found(Attention(-1e4), lambda o: o.sum(), {"x": X, "mask": mask})


# Target and loss


def test_the_target_is_named():
    target = torch.zeros(8, 3)
    target[2] = torch.nan
    assert only(linear(), F.mse_loss, (X, target)).text == "nan in the target: 3 of 24 elements, in sample 2 of 8"


def test_a_loss_that_makes_inf_of_finite_numbers_is_named():
    def loss(output, y):
        return -(1e3 * output).softmax(1).log().gather(1, y[:, None]).mean()

    finding = only(linear(), loss, (X, Y))
    assert finding.text.startswith(
        "inf is born in the forward pass, in the loss, by log, which got finite numbers up to"
    )
    assert "F.log_softmax" in finding.remedy
    assert finding.modules == ()
    assert not found(linear(), lambda o, y: F.nll_loss((1e3 * o).log_softmax(1), y), (X, Y))


@pytest.mark.parametrize(
    ("loss", "operation", "remedy"),
    [
        (lambda o: F.cross_entropy(o / 0.0, Y), "div", "1e-8"),
        (lambda o: (o * torch.rsqrt((0 * o).square().mean())).mean(), "rsqrt", "torch.rsqrt(x + 1e-8)"),
        (lambda o: (o.exp() / o.exp().sum() - 9).log().mean(), "log", "clamp"),
        (lambda o: (1e3 * o.abs()).exp().square().mean().sqrt(), "exp", "clamp(max=50)"),
        (lambda o: torch.acos(o * 1e3).mean(), "acos", "clamp"),
        (lambda o: ((o - 1e3) ** 0.5).mean(), "pow", "clamp(min=1e-6) ** p"),
    ],
)
def test_of_several_operations_the_one_that_did_it_is_named(loss, operation, remedy):
    finding = only(linear(), loss, X)
    assert f"in the loss, by {operation}, which got" in finding.text
    assert remedy in finding.remedy


def test_a_checkpoint_is_looked_into():
    class Model(Inside):
        def forward(self, x):
            return self.b(checkpoint(lambda h: (self.a(h) - 9).log(), x, use_reentrant=False))

    history = measure(nn.Sequential(linear(4, 4), Model()), F.cross_entropy, (X, Y))
    (finding,) = history.findings[0]
    assert "in 1 (Model), between 1.a and 1.b, by log" in finding.text
    assert history.names == ["0", "1.a", "1.b"]


def test_weights_of_the_loss_are_named():
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, torch.inf, 1.0]))
    assert only(linear(), loss, (X, Y)).text == "inf in the buffer loss_fn.weight before the pass"


@pytest.mark.parametrize("loss", [lambda o: o[o > 1e9].mean(), lambda o: F.cross_entropy(o, torch.full((8,), -100))])
def test_a_mean_over_nothing_is_told(loss):
    finding = only(linear(), loss, X)
    assert "in the loss" in finding.text
    assert "at least one element" in finding.remedy


def test_the_mean_of_a_logarithm_is_about_the_logarithm():
    assert "clamp" in only(linear(), lambda o: (-o.abs()).log().mean(), X).remedy


@pytest.mark.parametrize("model", [linear(), nn.Sequential(linear(4, 4), linear())])
def test_the_inputs_of_a_closure_are_named_too(model):
    x = torch.full((8, 4), torch.nan)
    (finding,) = measure(model, lambda: model(x).sum()).findings[0]
    assert finding.text == "nan in the input"


# Backward


def test_the_root_of_zero_is_named_with_the_operation_that_makes_nan_of_it():
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    finding = only(model, lambda o: o.square().sum().sqrt(), torch.ones(1, 1))
    assert finding.text == (
        "inf is born in the backward pass, in SqrtBackward of the loss, which got finite gradients up to 1; "
        "PowBackward makes it nan"
    )
    assert "1e-8" in finding.remedy
    assert not found(model, lambda o: (o.square().sum() + 1e-8).sqrt(), torch.ones(1, 1))


def test_a_distance_of_equal_samples_is_named():
    text = only(linear(), lambda o: (o[0] - o[1]).pow(2).sum().sqrt() + o.sum(), torch.ones(2, 4)).text
    assert "in SqrtBackward of the loss" in text


def test_a_branch_that_where_does_not_take_is_named():
    model = nn.Sequential(linear(4, 4), nn.ReLU())
    finding = only(model, lambda o: torch.where(o > 0, o.sqrt(), 0.0).sum(), X)
    assert "nan is born in the backward pass, in SqrtBackward of the loss" in finding.text
    assert "torch.where(mask, sqrt(torch.where(mask, x, 1.0)), 0.0)" in finding.remedy
    cured = lambda o: torch.where(o > 0, torch.where(o > 0, o, 1.0).sqrt(), 0.0).sum()  # noqa: E731
    assert not found(model, cured, X)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: (0 * x).pow(0.5), "PowBackward"),
        (lambda x: torch.where(x == 9, (0 * x) / (0 * x), 1.0), "DivBackward"),
        (lambda x: torch.where(x == 9, (0 * x).log(), x), "LogBackward"),
        (lambda x: (x.new_full(x.shape, -torch.inf) + 0 * x).softmax(-1).nan_to_num() + x, "SoftmaxBackward"),
    ],
)
def test_an_operation_of_a_module_is_named_with_the_module(function, operation):
    model = nn.Sequential(linear(4, 4), Apply(function), linear())
    finding = only(model, lambda o: o.sum(), X)
    assert f"in {operation} of 1 (Apply)" in finding.text
    assert finding.modules == ("1",)


def test_an_operation_between_modules_is_placed_between_them_in_the_backward_pass_too():
    model = nn.Sequential(linear(4, 4), Inside(lambda x: x * (0 * x).square().sum().sqrt()))
    text = only(model, lambda o: o.sum(), X).text
    assert "in SqrtBackward of 1 (Inside), between 1.a and 1.b" in text


def test_forward_comes_before_backward():
    model = nn.Sequential(linear(4, 4), Apply(lambda x: (0 * x).sqrt()), Apply(lambda x: x + torch.inf), linear())
    assert only(model, lambda o: o.sum(), X).modules == ("2",)


def test_a_function_of_ones_own_is_named():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient / 0

    model = nn.Sequential(linear(4, 4), Apply(Broken.apply), linear())
    assert "in BrokenBackward of 1 (Apply)" in only(model, lambda o: o.sum(), X).text


def test_finite_gradients_whose_sum_does_not_fit_are_told():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((2, 2), 1e-4, dtype=torch.float16))

        def forward(self, x):
            return (4e4 * self.weight * x).float().sum() + (4e4 * self.weight.t() * x).float().sum()

    finding = only(Sum(), lambda o: o, torch.ones(2, 2, dtype=torch.float16))
    assert finding.text == "the gradient of weight is the sum of finite ones and does not fit into its number format"


def test_a_logarithm_in_float16_is_about_the_logarithm():
    model = nn.Sequential(linear(4, 4), Apply(lambda x: (0 * x).log())).half()
    assert "clamp" in only(model, lambda o: o.float().sum(), X.half()).remedy


# What is no fault


def test_nan_that_nothing_depends_on_is_worth_knowing_only():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.side = linear(), Apply(lambda x: (-x.abs() - 1).sqrt())

        def forward(self, x):
            self.side(x)
            return self.a(x)

    (finding,) = found(Model(), F.cross_entropy, (X, Y))
    assert finding.severity == 1
    assert finding.modules == ("side",)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            {"src": torch.ones(2, 5, 8), "mask": nn.Transformer.generate_square_subsequent_mask(5)},
        ),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), torch.ones(2, 1, 5, 5)),
        (nn.LSTM(4, 4, 2), X[None]),
        (nn.Sequential(linear(4, 4), Apply(lambda x: x + torch.tensor(-torch.inf)), nn.Sigmoid(), linear()), X),
        (nn.Sequential(linear(4, 4), Apply(lambda x: x + 1 / (1 + (1e4 * x.detach()).exp())), linear()), X),
    ],
    ids=["causal mask", "convolution", "lstm", "sigmoid of -inf", "inf below a fraction"],
)  # fmt: skip
def test_infinite_masks_and_what_is_made_finite_again_are_no_fault(model, inputs):
    def loss(output):
        return (output[0] if isinstance(output, tuple) else output).square().sum()

    assert not [f for f in found(model, loss, inputs) if f.severity]


def test_buffers_of_inf_are_no_fault_and_none_is_blamed_for_what_others_do():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = linear(4, 4)
            self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

        def forward(self, x, scale=1.0):
            return scale * ((self.a(x) @ x.T + self.mask).softmax(-1) @ x)

    assert not found(Model(), lambda o: o.sum(), X)
    assert "in the loss" in only(Model(), lambda o: (o - o).sum().log(), X).text


def test_watching_for_nan_changes_no_gradient():
    model = nn.Sequential(linear(4, 8), nn.Tanh(), linear(8, 3))
    history = measure(model, F.cross_entropy, (X, Y))
    weights = [model[0].weight, model[2].weight]
    gradients = torch.autograd.grad(F.cross_entropy(model(X), Y), weights)
    expected = [gradient.double().norm().log10().item() for gradient in gradients]
    assert history.profile("weight_grad").tolist() == pytest.approx(expected, abs=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_stays_finite_by_a_mask_from_a_module_is_not_taken_for_the_first_fault():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask, self.a, self.root = Apply(lambda x: torch.full((8, 8), -torch.inf).triu(1)), linear(), None
            self.root = Apply(lambda x: (-x.abs() - 1).sqrt())

        def forward(self, x: Tensor) -> Tensor:
            return self.root(self.a((x @ x.T + self.mask(x)).softmax(-1) @ x))

    assert only(Model(), lambda o: o.sum(), X).modules == ("root",)


# What the operation got


class Scaled(nn.Module):
    """Outputs of a layer that are combined with a function of a parameter."""

    def __init__(self, value, function):
        super().__init__()
        self.fc, self.function = linear(), function
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.function(self.fc(x), self.scale)


@pytest.mark.parametrize(
    ("value", "function", "text"),
    [
        (100.0, lambda z, s: s.exp() * z, "by exp, which got the parameter scale = 100"),
        (200.0, lambda z, s: z * (0.5 * s).exp(), "by exp, which got the parameter scale = 200"),
        (-1.0, lambda z, s: z * s.log(), "by log, which got the parameter scale = -1"),
        (0.0, lambda z, s: z / s, "by div, which got the parameter scale = 0"),
        ([50.0, 100.0, 60.0], lambda z, s: z * s.exp(), "by exp, which got the parameter scale, 50 to 100"),
    ],
)
def test_the_parameter_that_an_operation_could_not_take_is_named(value, function, text):
    assert text in only(Scaled(value, function), F.cross_entropy, (X, Y)).text


def test_a_scale_that_is_too_large_to_be_exponentiated_is_cured_by_the_call_that_is_told():
    model = Scaled(100.0, lambda z, s: s.exp() * z)
    remedy = only(model, F.cross_entropy, (X, Y)).remedy
    exec(remedy.partition(", after")[0], {"model": model})
    assert found(model, F.cross_entropy, (X, Y)) == []


@pytest.mark.parametrize("is_in_loss", [False, True])
def test_the_module_whose_output_was_too_large_is_named_with_its_largest(is_in_loss):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.log_variance = linear(), linear()
            self.log_variance.weight.data *= 1000

        def forward(self, x):
            mean, log_variance = self.mean(x), self.log_variance(x)
            return (mean, log_variance) if is_in_loss else mean + (0.5 * log_variance).exp()

    def loss_fn(output, target):
        if is_in_loss:
            return output[0].square().mean() + (0.5 * output[1]).exp().mean()
        return F.cross_entropy(output, target)

    model = TwoHeads()
    largest = model.log_variance(X).abs().max().item()
    finding = only(model, loss_fn, (X, Y))
    assert f"by exp, which got finite numbers up to {largest:.3g} from log_variance" in finding.text
    exec(finding.remedy.partition("weights: ")[2], {"model": model})
    assert found(model, loss_fn, (X, Y)) == []


def test_of_several_sources_none_is_named():
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(), linear()

        def forward(self, x):
            return (1000 * (self.a(x) - 2 * self.b(x))).exp()

    assert "from" not in only(Difference(), F.cross_entropy, (X, Y)).text
