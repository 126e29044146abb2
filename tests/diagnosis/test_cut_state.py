"""States that are detached in a loop over time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

X = torch.randn(8, 12, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0, 0] > 0).long()


class OwnCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.rec = nn.Linear(3, 8), nn.Linear(8, 8)

    def forward(self, x, h):
        return torch.tanh(self.inp(x) + self.rec(h))


class Lstm(nn.Module):
    """An LSTMCell whose state is one pair, in a cell of its own."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTMCell(3, 8)

    def forward(self, x, state):
        return self.lstm(x, (state, torch.zeros_like(state)))[0]


class Loop(nn.Module):
    def __init__(self, cell, between, every=1):
        super().__init__()
        self.cell, self.fc = cell, nn.Linear(8, 2)
        self.between, self.every = between, every

    def forward(self, x):
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            if (t + 1) % self.every == 0 and t + 1 < x.shape[1]:
                h = self.between(h)
        return self.fc(h)


def told(model, x=X):
    return [f for f in measure(model, F.cross_entropy, (x, Y)).findings[0] if f.kind == "cut over time"]


@pytest.mark.parametrize(
    "cell", [nn.GRUCell(3, 8), nn.RNNCell(3, 8), OwnCell(), Lstm()], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize(
    "between", [lambda h: h.detach(), lambda h: h.data, lambda h: torch.from_numpy(h.detach().numpy()).clone()]
)
def test_a_state_that_is_detached_at_each_step_is_told(cell, between):
    model = Loop(cell, between)
    (found,) = told(model)
    assert found.severity == 2
    assert found.modules == ("cell",)
    assert "at each of 11 steps" in found.text
    x = X.clone().requires_grad_()
    F.cross_entropy(model(x), Y).backward()
    assert x.grad[:, :-1].abs().max() == 0


@pytest.mark.parametrize("cell", [nn.GRUCell(3, 8), OwnCell(), Lstm()], ids=lambda c: type(c).__name__)
def test_a_state_with_its_graph_is_no_fault(cell):
    assert told(Loop(cell, lambda h: h)) == []


def test_truncated_backpropagation_is_not_an_alarm():
    (found,) = told(Loop(nn.GRUCell(3, 8), lambda h: h.detach(), every=4))
    assert "at 2 of 11 steps" in found.text
    assert found.severity < 2


def test_chunks_of_a_recurrent_module_are_at_most_worth_knowing():
    class Chunks(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.fc = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            h = x.new_zeros(1, len(x), 8)
            for chunk in x.split(3, 1):
                out, h = self.gru(chunk, h.detach())
            return self.fc(out[:, -1])

    (found,) = told(Chunks())
    assert found.severity == 1


def test_a_prediction_that_comes_back_without_a_gradient_is_no_fault_if_the_state_has_one():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.GRUCell(8, 8), nn.Linear(8, 8)

        def forward(self, y, h):
            h = self.cell(y, h)
            return self.out(h), h

    class Decoding(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.decoder, self.fc = nn.Linear(3, 8), Decoder(), nn.Linear(8, 2)

        def forward(self, x):
            y, h = x.new_zeros(len(x), 8), self.start(x[:, 0])
            for _ in range(9):
                y, h = self.decoder(y.detach(), h)
            return self.fc(y)

    assert told(Decoding()) == []


def test_feedback_without_a_gradient_beside_a_state_with_one_is_no_fault():
    class Decoding(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.embed, self.cell = nn.Linear(3, 8), nn.Linear(2, 8), nn.GRUCell(8, 8)
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            y, h = x.new_zeros(len(x), 2), self.start(x[:, 0])
            for _ in range(9):
                h = self.cell(self.embed(y.detach()), h)
                y = self.fc(h)
            return y

    assert told(Decoding()) == []


def test_a_module_that_is_called_twice_is_no_loop_over_time():
    assert told(Loop(nn.GRUCell(3, 8), lambda h: h.detach()), X[:, :2]) == []


class ByHand(nn.Module):
    """A recurrent network of plain layers in one loop."""

    def __init__(self, between, form="two layers"):
        super().__init__()
        self.between, self.form = between, form
        self.inp, self.rec = nn.Linear(3, 8), nn.Linear(8, 8)
        self.both, self.fc = nn.Linear(11, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            z = x[:, t] / (1 + x[:, t].norm())
            if self.form == "two layers":
                h = torch.tanh(self.inp(z) + self.rec(self.between(h)))
            else:
                h = torch.tanh(self.both(torch.cat([z, self.between(h)], 1)))
        return self.fc(h)


@pytest.mark.parametrize(("form", "name"), [("two layers", "rec"), ("one layer", "both")])
def test_a_loop_of_plain_layers_that_is_detached_at_each_step_is_told_with_the_line(form, name):
    (found,) = told(ByHand(lambda h: h.detach(), form))
    assert found.severity == 2
    assert found.modules == (name,)
    assert "passes detach (test_cut_state.py:" in found.text
    assert told(ByHand(lambda h: h, form)) == []


def test_a_model_that_is_called_in_a_loop_of_the_loss_is_told_as_the_model():
    model = OwnCell()

    def loss():
        h = torch.zeros(8, 8)
        for t in range(12):
            h = model(X[:, t], h.detach())
        return h.square().mean()

    (found,) = [f for f in measure(model, loss).findings[0] if f.kind == "cut over time"]
    assert "what the model returns is detached" in found.text


def test_layers_that_are_shared_between_parts_of_the_input_are_no_loop():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = x / x.norm()
            return self.fc(sum(torch.relu(self.embed(part + 1)) for part in x.unbind(1)))

    assert told(Shared()) == []
