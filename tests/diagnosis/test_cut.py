import pytest
import torch
import torch.nn.functional as F
from findings import findings
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradexp import measure

torch.manual_seed(0)
X, Y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])


class Two(nn.Module):
    """Two parts and what is done between them."""

    def __init__(self, between):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.b = nn.Linear(8, 3)
        self.between = between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


CUTS = {
    "detach()": lambda h: h.detach(),
    ".data": lambda h: h.data * 2,
    "argmax()": lambda h: F.one_hot(h.argmax(1), 8).float(),
    "topk()": lambda h: torch.zeros_like(h).scatter(1, h.topk(2, 1).indices, 1.0),
    "item()": lambda h: torch.full((5, 8), h.square().sum().item()),
    "tolist()": lambda h: torch.tensor(h.tolist()),
    "a comparison": lambda h: (h > 0).float(),
    "long()": lambda h: h.long().float(),
}


@pytest.mark.parametrize("operation", CUTS)
def test_the_operation_that_cuts_the_graph_is_named_with_its_line_and_both_sides(operation):
    (cut,) = findings(Two(CUTS[operation]), F.cross_entropy, (X, Y), "cut")
    assert cut.kind == "cut"
    assert cut.severity == 3
    assert cut.modules == ("a",)
    assert cut.text.startswith(f"a gets no gradient: its output is cut off by {operation} (test_cut.py:")
    assert cut.text.endswith(" before b")


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (torch.round, "round(), a step"),
        (torch.sign, "sign(), a step"),
        (lambda h: torch.bernoulli(h.sigmoid()), "bernoulli(), which draws"),
    ],
)
def test_operations_without_a_slope_are_named(between, why):
    (cut,) = findings(Two(between), F.cross_entropy, (X, Y), "cut")
    assert cut.severity == 3
    assert cut.text.startswith(f"a gets a gradient of exactly 0: what comes of it goes through {why}")


def test_what_the_remedies_say_mends_the_cut():
    for between in (lambda h: h + (h.round() - h).detach(), lambda h: h.softmax(1), lambda h: F.gumbel_softmax(h)):
        assert not findings(Two(between), F.cross_entropy, (X, Y))
    frozen = Two(lambda h: h.detach())
    frozen.a.requires_grad_(False)
    (finding,) = findings(frozen, F.cross_entropy, (X, Y))
    assert (finding.kind, finding.severity, finding.modules) == ("frozen", 0, ("a",))


class NoGrad(Two):
    def forward(self, x):
        with torch.no_grad():
            h = self.a(x)
        return self.b(h)


def test_parts_that_run_without_a_graph_are_named():
    (cut,) = findings(NoGrad(None), F.cross_entropy, (X, Y))
    assert cut.text == "a gets no gradient: it runs under torch.no_grad() before b"
    assert cut.severity == 3
    frozen = NoGrad(None)
    frozen.a.requires_grad_(False)
    assert [finding.severity for finding in findings(frozen, F.cross_entropy, (X, Y))] == [0]


class Drawn(nn.Module):
    """A value that is drawn from a distribution of what the model computes."""

    def __init__(self, draw):
        super().__init__()
        self.mean, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.draw = draw

    def forward(self, x):
        return self.head(self.draw(torch.distributions.Normal(self.mean(x), 1.0)))


def test_a_sample_of_a_distribution_is_a_cut_and_rsample_is_none():
    (cut,) = findings(Drawn(lambda d: d.sample()), F.cross_entropy, (X, Y))
    assert cut.text.startswith("mean gets no gradient: its output is cut off by torch.no_grad() (test_cut.py:")
    assert "rsample() in place of sample()" in cut.remedy
    assert not findings(Drawn(lambda d: d.rsample()), F.cross_entropy, (X, Y))


def test_a_parameter_that_is_read_past_the_graph_is_named_itself():
    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.w = nn.Parameter(torch.randn(8))

        def forward(self, x):
            return self.b(F.linear(x, self.a.weight.data, self.a.bias) * torch.tensor(self.w.tolist()))

    texts = {finding.text.split(" (")[0] for finding in findings(Copied(), F.cross_entropy, (X, Y), "cut")}
    assert texts == {
        "a.weight gets no gradient: it is cut off by .data",
        "w gets no gradient: it is cut off by tolist()",
    }


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.forgotten, self.idle = nn.Linear(3, 3), nn.Linear(8, 8)

    def forward(self, x):
        h = self.trunk(x).tanh()
        self.idle(h)
        return self.left(h), self.right(h)


def test_what_no_loss_comes_from_is_worth_knowing_and_no_alarm():
    found = findings(Heads(), lambda outputs, y: F.cross_entropy(outputs[0], y), (X, Y))
    assert {finding.text for finding in found} == {
        "right gets no gradient: the loss does not use its output",
        "forgotten gets no gradient: it is not called in this pass",
        "idle gets no gradient: nothing in the loss uses its output",
    }
    assert {finding.severity for finding in found} == {1}


def test_of_two_cuts_each_names_what_it_cuts_off():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.c(self.b(self.a(x).detach()).argmax(1, keepdim=True).float().expand(-1, 8))

    found = findings(Three(), F.cross_entropy, (X, Y), "cut")
    assert [finding.modules for finding in found] == [("a",), ("b",)]
    assert "detach()" in found[0].text
    assert "argmax()" in found[1].text


class Quantised(nn.Module):
    """A codebook with straight-through gradients, as VQ-VAEs have."""

    def __init__(self):
        super().__init__()
        self.encoder, self.codes, self.decoder = nn.Linear(6, 4), nn.Embedding(16, 4), nn.Linear(4, 6)

    def forward(self, x):
        z = self.encoder(x)
        q = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
        return self.decoder(z + (q - z).detach()), z, q


def quantised_loss(outputs, x):
    decoded, z, q = outputs
    return F.mse_loss(decoded, x) + F.mse_loss(z, q.detach()) + F.mse_loss(z.detach(), q)


class Twins(nn.Module):
    """Two views of which one is detached, as in SimSiam."""

    def __init__(self):
        super().__init__()
        self.f, self.p = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.p(self.f(x)), self.f(x + 0.1).detach()


class Checkpointed(Two):
    def forward(self, x):
        return self.b(checkpoint(self.a, x.requires_grad_(), use_reentrant=True))


class Equilibrium(nn.Module):
    """Steps without a graph, and one with it."""

    def __init__(self):
        super().__init__()
        self.f, self.start, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        u = self.start(x)
        z = torch.zeros_like(u)
        with torch.no_grad():
            for _ in range(3):
                z = torch.tanh(0.5 * self.f(z) + u)
        return self.head(torch.tanh(0.5 * self.f(z) + u))


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")
@pytest.mark.parametrize(
    ("model", "loss_fn", "batch"),
    [
        (Quantised(), quantised_loss, (X, X)),
        (Twins(), lambda outputs: -F.cosine_similarity(*outputs).mean(), X),
        (Checkpointed(None), F.cross_entropy, (X.clone(), Y)),
        (Equilibrium(), F.cross_entropy, (X, Y)),
        (Two(lambda h: h * (h > 0)), F.cross_entropy, (X, Y)),
    ],
)
def test_models_that_detach_by_design_raise_no_alarm(model, loss_fn, batch):
    assert not findings(model, loss_fn, batch, "cut")


class Slopes(nn.Module):
    """The loss is made of derivatives, as in physics-informed networks, so that the last bias drops out."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.u(x).sum(), x, create_graph=True)[0]


def test_a_bias_that_the_loss_does_not_depend_on_is_harmless():
    (finding,) = findings(Slopes(), lambda slopes: slopes.square().mean(), torch.randn(7, 2), "cut")
    assert finding.text == "u.2.bias gets no gradient: the loss does not depend on it"
    assert finding.severity == 0


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 3) for _ in range(4))

    def forward(self, x):
        share, which = self.router(x).softmax(1).max(1)
        outputs = torch.zeros(len(x), 3)
        for index in which.unique().tolist():
            mine = which == index
            outputs[mine] = self.experts[index](x[mine]) * share[mine, None]
        return outputs


def test_experts_without_a_sample_raise_no_alarm():
    found = findings(Routed(), F.cross_entropy, (X[:2], Y[:2]), "cut")
    assert [finding.severity for finding in found] == [1]
    assert "not called in this pass" in found[0].text


def test_looking_for_a_cut_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(6), Two(lambda h: h.detach()), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure(model, F.cross_entropy, (X, Y))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "loss_fn", "why"),
    [
        (nn.Linear(6, 3), lambda o, y: (o.argmax(1) == y).float().mean(), r"argmax\(\) cuts them off \(test_cut.py"),
        (nn.Linear(6, 3), lambda o, y: torch.tensor(o.sum().item()), r"item\(\) cuts them off \(test_cut.py"),
        (
            nn.Linear(6, 3),
            lambda o, y: F.cross_entropy(o, y).detach().requires_grad_(),
            r"detach\(\) cuts them off \(test_cut.py",
        ),
        (
            nn.Linear(6, 3),
            lambda o, y: F.cross_entropy(o.detach().requires_grad_(), y),
            r"detach\(\) cuts them off \(test_cut.py",
        ),
        (nn.Linear(6, 3).requires_grad_(False), F.cross_entropy, r"all are frozen \(requires_grad=False\)"),
    ],
)
def test_a_loss_that_no_parameter_reaches_says_why(model, loss_fn, why):
    with pytest.raises(
        ValueError, match=f"the loss does not depend on any parameter that requires a gradient: {why}"
    ):
        measure(model, loss_fn, (X, Y))


def body_and_head():
    return nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU()), nn.Linear(8, 3))


def frozen(model, x):
    findings = measure(model, F.cross_entropy, (x, torch.arange(len(x)) % 3)).findings[0]
    return [finding for finding in findings if finding.kind == "frozen"]


def test_a_model_of_which_only_a_bias_is_trained_is_an_alarm_whose_remedy_works():
    model, x = body_and_head(), torch.randn(6, 8)
    model.requires_grad_(False)[1].bias.requires_grad_(True)
    (found,) = frozen(model, x)
    assert found.severity == 2
    assert "no weight of the whole model is trained, only 1.bias" in found.text
    exec(found.remedy, {"model": model})
    assert model[1].weight.requires_grad
    assert [finding.severity for finding in frozen(model, x)] == [0]


@pytest.mark.parametrize(
    ("trained", "severity"),
    [
        ("1.weight", 0),  # a head
        ("0.1", 0),  # the scale and shift of the norms alone, as for test-time adaptation
        ("", 1),  # all biases and norms, and no weight
    ],
)
def test_a_freezing_that_is_a_choice_is_at_most_worth_knowing(trained, severity):
    model = body_and_head()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained) and (bool(trained) or parameter.dim() == 1))
    (found,) = frozen(model, torch.randn(6, 8))
    assert found.severity == severity
