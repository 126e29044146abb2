import pytest
import torch
import torch.nn.functional as F
from findings import findings
from torch import nn

from gradexp import GradientProbe, measure
from gradexp.history.step import STATUSES

torch.manual_seed(0)
X, Y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])


def statuses(history, quantity):
    return {name: STATUSES[history.status[quantity][-1, 0, row]] for row, name in enumerate(history.names)}


class Model(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 8), torch.randn(8, 3)])

    def forward(self, x):
        return (x @ self.weights[0]).tanh() @ self.weights[1]


class Adjoint(torch.autograd.Function):
    """Steps without a graph, whose backward pass runs them again."""

    @staticmethod
    def forward(ctx, z, f, *_):
        ctx.f = f
        ctx.save_for_backward(z)
        return z + 0.1 * f(z)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            z = ctx.saved_tensors[0].detach().requires_grad_()
            found = torch.autograd.grad(z + 0.1 * ctx.f(z), (z, *ctx.f.parameters()), gradient)
        return found[0], None, *found[1:]


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(Adjoint.apply(x, self.f, *self.f.parameters()))


BY_FORWARD = Model(lambda m, x: m.b.forward(m.a.forward(x).tanh()))
BY_FUNCTION = Model(lambda m, x: F.linear(F.linear(x, m.a.weight, m.a.bias).tanh(), m.b.weight, m.b.bias))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (BY_FORWARD, "a, b are called by .forward(), which skips the hooks of the modules"),
        (BY_FUNCTION, "other modules compute with the weights of a, b and do not call them"),
        (Listed(), "other modules compute with the weights of weights and do not call it"),
    ],
)
def test_a_model_of_which_nothing_is_seen_is_unknown_and_says_why(model, why):
    history = measure(model, F.cross_entropy, (X, Y))
    for quantity in ("output", "output_grad"):
        assert set(statuses(history, quantity).values()) == {"hook_missed"}
    assert set(statuses(history, "weight_grad").values()) == {"ok"}
    (finding,) = history.findings[0]
    assert finding.kind == "unknown"
    assert finding.severity == 2
    assert finding.text == f"nothing of the gradient's flow is known: {why}"
    assert "forward" not in vars(model).get("a", {})


@pytest.mark.slow
def test_an_exported_program_is_unknown():
    program = torch.export.export(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (X,)).module()
    (finding,) = findings(program, F.cross_entropy, (X, Y), "unknown")
    assert "'0', '2' run as part of a compiled program" in finding.text


@pytest.mark.slow
def test_a_part_that_is_unseen_is_worth_knowing():
    (finding,) = findings(Model(lambda m, x: m.b(m.a.forward(x).tanh())), F.cross_entropy, (X, Y))
    assert (finding.kind, finding.severity, finding.modules) == ("unseen", 1, ("a",))
    (finding,) = findings(Flow(), F.cross_entropy, (X, Y))
    assert (finding.kind, finding.severity, finding.modules) == ("unseen", 0, ("f",))
    assert "a backward pass of its own" in finding.text


def test_attention_stands_for_its_output_projection():
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0), nn.Linear(8, 3))
    history = measure(model, F.cross_entropy, (X, Y))
    assert statuses(history, "output_grad")["1.self_attn.out_proj"] == "hook_missed"
    (finding,) = history.findings[0]
    assert finding.severity == 0
    assert finding.modules == ("1.self_attn.out_proj",)
    assert finding.text == "1.self_attn.out_proj is computed inside the module around it, whose row shows its output"


def test_layers_that_share_a_called_layers_weight_and_dropped_layers_are_not_called():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.used, self.dropped = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 4)
            self.used.weight = self.shared.weight

        def forward(self, tokens):
            return self.used(tokens)

    history = measure(Tied(), lambda y: y.square().sum(), torch.arange(5))
    assert statuses(history, "output") == {"shared": "not_called", "used": "ok", "dropped": "not_called"}


@pytest.mark.parametrize("model", [BY_FORWARD, BY_FUNCTION])
def test_a_probe_tells_in_each_step_what_was_bypassed(model):
    with GradientProbe(model) as probe:
        for step in range(4):
            if step != 2:
                F.cross_entropy(model(X), Y).backward()
            probe.collect(step)
            if step != 1:
                model.zero_grad()
            for parameter in model.parameters():
                if step == 0:
                    parameter.grad = None
    codes = probe.history.status["output"][:, 0]
    assert [[STATUSES[code] for code in step] for step in codes] == [
        [word] * 2 for word in ("hook_missed", "hook_missed", "not_called", "hook_missed")
    ]


class Masked(nn.Module):
    """A residual transformer whose causal mask hides the diagonal as well, or does not."""

    def __init__(self, diagonal):
        super().__init__()
        self.diagonal = diagonal
        self.lift, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.values, self.branches = (nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for _ in range(2))

    def forward(self, x):
        x = self.lift(x)
        mask = torch.triu(torch.ones(len(x), len(x)), diagonal=self.diagonal).bool()
        for value, branch in zip(self.values, self.branches, strict=True):
            x = x + (x @ x.T).masked_fill(mask, -torch.inf).softmax(-1) @ value(x)
            x = x + branch(x).relu()
        return self.head(x)


def test_what_nan_hides_is_not_told_as_unseen_nor_its_units_as_alive():
    history = measure(Masked(0), F.cross_entropy, (X, Y))
    assert {finding.kind for finding in history.verdict().findings} == {"nonfinite"}
    dead = history.stats.get("output.dead")
    bad = history.status["output"] == STATUSES.index("nonfinite")
    assert bad.any()
    assert dead is None or not torch.tensor(dead[bad]).isfinite().any()
    healthy = measure(Masked(1), F.cross_entropy, (X, Y))
    assert torch.tensor(healthy.stats["output.dead"]).isfinite().any()


def test_a_module_whose_hooks_are_skipped_is_told_beside_nan():
    def run(model, x):
        return model.b(model.a.forward(x).tanh()).sub(9).log()

    kinds = {finding.kind for finding in findings(Model(run), F.cross_entropy, (X, Y))}
    assert kinds >= {"nonfinite", "unseen"}
