import pytest
import torch
import torch.nn.functional as F
from findings import findings
from torch import nn

from gradexp import measure

torch.manual_seed(0)
X, Y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])


class Holder(nn.Module):
    """A model that keeps something, and what it does with it."""

    def __init__(self, kept, use):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.kept = kept
        self.use = use

    def forward(self, x):
        return self.head(self.use(self.kept, self.stem(x)))


def chain(layers, x):
    for layer in layers:
        x = layer(x).tanh()
    return x


def layers():
    return [nn.Linear(8, 8) for _ in range(3)]


@pytest.mark.parametrize(
    ("kept", "use", "text", "remedy"),
    [
        (layers(), chain, "6 tensors of shapes (8,), (8, 8) in the plain list kept", "nn.ModuleList(self.kept)"),
        (
            {"a": layers()[0]},
            lambda kept, x: kept["a"](x),
            "2 tensors of shapes (8,), (8, 8) in the plain dict kept",
            "nn.ModuleDict(self.kept)",
        ),
        (
            [nn.Parameter(torch.randn(8, 8))],
            lambda kept, x: x @ kept[0],
            "1 tensor of shape (8, 8) in kept, outside of any nn.ParameterList,",
            "nn.ParameterList(self.kept)",
        ),
        (
            torch.ones(8, requires_grad=True),
            lambda kept, x: x * kept,
            "1 tensor of shape (8,) in kept, a plain tensor,",
            "nn.Parameter(self.kept)",
        ),
        (
            None,
            lambda kept, x: nn.Linear(8, 8, bias=False)(x),
            "1 tensor of shape (8, 8) made in the forward pass or kept outside of the model",
            "make them once in __init__",
        ),
    ],
)
def test_tensors_that_the_model_does_not_know_are_named(kept, use, text, remedy):
    (finding,) = findings(Holder(kept, use), F.cross_entropy, (X, Y), "cut")
    assert finding.text.startswith(text)
    assert remedy in finding.remedy
    assert finding.severity == 3


def test_the_remedies_mend_it():
    for kept, use in (
        (nn.ModuleList(layers()), chain),
        (nn.ParameterList([torch.randn(8, 8)]), lambda kept, x: x @ kept[0]),
        (nn.Parameter(torch.ones(8)), lambda kept, x: x * kept),
    ):
        assert not findings(Holder(kept, use), F.cross_entropy, (X, Y), "cut")


def test_a_model_that_knows_none_of_its_layers_is_told_so():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(6, 3)]

        def forward(self, x):
            return chain(self.layers, x)

    message = (
        r"^the model has no parameters: those in the plain list layers are not registered; self.layers = nn.Modu"
    )
    with pytest.raises(ValueError, match=message):
        measure(Model(), F.cross_entropy, (X, Y))


def test_a_second_model_in_the_loss_and_inputs_with_a_gradient_are_no_strangers():
    critic = nn.Linear(6, 1)
    generator = nn.Linear(6, 6)
    assert not findings(generator, lambda fake: F.softplus(-critic(fake)).mean(), X)
    assert not findings(generator, lambda fake: F.softplus(-critic(fake)).mean(), X.clone().requires_grad_())
    assert not findings(critic, lambda score: F.softplus(score).mean(), generator(X).detach())


def test_registered_layers_that_are_kept_in_a_list_too_are_no_strangers():
    model = Holder(layers(), chain)
    model.registered = nn.ModuleList(model.kept)
    assert not findings(model, F.cross_entropy, (X, Y), "cut")
