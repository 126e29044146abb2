import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradexp import GradientProbe, measure
from gradexp.history.history import History


def pairs(history):
    """Return who feeds whom as ``"a>b c>loss"``."""
    rows = [name + (f"#{call}" if call else "") for name, call in zip(history.names, history.calls, strict=True)]
    rows.append("loss")
    return " ".join(sorted(f"{rows[a]}>{rows[b]}" for a, b in history.feeds))


def measured(model, x=None, loss=lambda y: y.square().sum()):
    return measure(model, loss, torch.randn(2, 3) if x is None else x)


class Calls(nn.Module):
    """A model with three layers whose forward pass is a function."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name in "abc":
            setattr(self, name, nn.Linear(3, 3))
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.c(m.b(m.a(x))), "a>b b>c c>loss"),
        (lambda m, x: m.a(x) + m.b(x) + m.c(x), "a>loss b>loss c>loss"),
        (lambda m, x: m.c(m.b(F.relu(m.a(x), inplace=True)).relu_()), "a>b b>c c>loss"),
        (lambda m, x: m.c((h := m.a(x)) + m.b(h)), "a>b a>c b>c c>loss"),
        (lambda m, x: m.b(m.a(x)[:, :1].expand(-1, 3)) + 0 * m.c(x), "a>b b>loss c>loss"),
        (lambda m, x: m.b(m.a(x).detach()) + m.c(x), "a>loss b>loss c>loss"),
        (lambda m, x: m.a(m.a(m.a(x))), "a#1>a#2 a#2>loss a>a#1"),
        (lambda m, x: m.b(m.a(x)) + m.a(m.b(x)), "a#1>loss a>b b#1>a#1 b>loss"),
        (lambda m, x: m.b(m.a(x)[None] * torch.ones(4, 1, 1)).mul_(2), "a>b b>loss"),
    ],
)
def test_each_row_knows_which_rows_read_its_output(forward, expected):
    got = pairs(measured(Calls(forward)))
    unused = {"b>loss", "c>loss", "a>loss"} - set(expected.split())
    assert set(got.split()) - unused == set(expected.split())


def test_a_loss_that_reads_an_inner_layer_is_known_if_it_is_given():
    model = Calls(lambda m, x: (h := m.a(x), m.c(m.b(h))))
    assert pairs(measured(model, loss=lambda y: y[0].sum() + y[1].sum())) == "a>b a>loss b>c c>loss"


def test_views_that_are_changed_in_place_lead_back_to_their_layer():
    def forward(m, x):
        h = m.a(x[:, None].expand(-1, 4, -1))  # a view of a matrix of its own
        h += 1
        return m.b(h)

    assert "a>b" in pairs(measured(Calls(forward)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_looked_into(reentrant):
    def forward(m, x):
        return m.c(checkpoint(lambda y: m.b(torch.tanh(m.b1(y))), m.a(x), use_reentrant=reentrant))

    assert pairs(measured(Calls(forward, b1=nn.Linear(3, 3)))) == "a>b1 b1>b b>c c>loss"


def test_a_branch_inside_of_a_checkpoint_reads_what_the_checkpoint_was_given():
    def forward(m, x):
        return m.c(checkpoint(lambda y: y + m.b(y + m.b1(y)), m.a(x), use_reentrant=True))

    assert pairs(measured(Calls(forward, b1=nn.Linear(3, 3)))) == "a>b a>b1 b1>b b>c c>loss"


def test_segments_that_are_run_again_in_reverse_stay_in_their_order():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)])
    with GradientProbe(model) as probe:
        loss = checkpoint_sequential(model, 3, torch.randn(2, 3, requires_grad=True), use_reentrant=True).sum()
        loss.backward()
        probe.collect(0, loss)
    assert pairs(probe.history) == "0>1 1>2 2>3 3>4 4>5 5>loss"


def test_layers_of_a_recurrent_module_feed_each_other():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(3, 3), nn.Linear(8, 1)
            self.lstm = nn.LSTM(3, 4, 2, bidirectional=True)

        def forward(self, x):
            return self.head(self.lstm(self.first(x))[0])

    expected = (
        "first>lstm.l0 first>lstm.l0_reverse head>loss lstm.l0>lstm.l1 lstm.l0>lstm.l1_reverse "
        "lstm.l0_reverse>lstm.l1 lstm.l0_reverse>lstm.l1_reverse lstm.l1>head lstm.l1_reverse>head"
    )
    assert pairs(measured(Classifier(), torch.randn(5, 2, 3))) == expected


def test_states_of_a_cell_depend_on_each_other_and_are_one_row():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(3, 3)

        def forward(self, x):
            state = self.cell(x)
            return self.cell(x, state)[0]

    assert pairs(measured(Loop())) == "cell#1>loss cell>cell#1"


def test_a_parametrized_layer_is_a_row_like_others():
    model = nn.Sequential(*[nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)) for _ in range(3)])
    assert pairs(measured(model)) == "0>1 1>2 2>loss"


def test_a_gradient_in_the_forward_pass_leads_back_to_the_layers():
    def forward(m, x):
        x = x.requires_grad_()
        slope = torch.autograd.grad(m.b(torch.tanh(m.a(x))).sum(), x, create_graph=True)[0]
        return m.c(slope)

    assert {"a>c", "c>loss"} <= set(pairs(measured(Calls(forward))).split())


def test_rows_that_come_later_are_put_in_line():
    model = Calls(lambda m, x: m.c(m.b(m.a(x)) if m.late else m.a(x)))
    with GradientProbe(model) as probe:
        for step in range(4):
            model.late = step > 1
            model(torch.randn(2, 3)).sum().backward()
            probe.collect(step)
            model.zero_grad()
    assert set(pairs(probe.history).split()) == {"a>c", "c>loss", "a>b", "b>c"}


def test_a_graph_that_is_known_is_not_walked_again(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    seen = []
    monkeypatch.setattr("gradexp.probe.graph.creation_number", lambda node: seen.append(node) or node._sequence_nr())
    with GradientProbe(model) as probe:
        for step in range(3):
            model(torch.randn(2, 3)).sum().backward()
            probe.collect(step)
            if not step:
                walked = len(seen)
    assert walked == len(seen) > 0


def test_a_graph_is_not_kept_by_the_probe():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    with GradientProbe(model):
        output = model(torch.randn(2, 3))
        kept = output.grad_fn.next_functions[1][0]
        kept = kept.metadata.setdefault("mark", Mark())
        mark = weakref.ref(kept)
        del kept, output
        gc.collect()
        assert mark() is None


class Mark:
    """Something that goes with the node that holds it."""


def test_feeds_and_kinds_are_saved(tmp_path):
    history = measured(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    history.save(tmp_path / "history.npz")
    loaded = History.load(tmp_path / "history.npz")
    assert (loaded.feeds, loaded.kinds) == ([(0, 1), (1, 2)], ["Linear(4x3)", "Linear(2x4)"])
