"""Layers and time steps of nn.RNN, nn.LSTM and nn.GRU, against loops of torch's cells under autograd in float64."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradexp import GradientProbe, measure
from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.probe.recurrent import layer_names

KINDS = {"tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k), "lstm": nn.LSTM, "gru": nn.GRU}
LENGTHS = [4, 7, 2, 7, 5]


def make(kind, layers=3, both=False, **options):
    torch.manual_seed(0)
    return KINDS[kind](4, 3, num_layers=layers, bidirectional=both, **options)


def sequences(dtype=torch.float64):
    return torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def loss_of(tensors):
    """Return a loss in which every element of every output counts in its own way."""
    return sum((t.double() * torch.arange(t.numel()).reshape(t.shape).double().cos()).sum() for t in tensors)


class Loop:
    """A recurrent module as a loop of torch's cells in float64, which keeps each step's output of each layer."""

    def __init__(self, module):
        self.module = module
        self.outputs = {name: {} for name in layer_names(module) or ["l0"]}  # layer -> (sample, time) -> output

    def cell(self, layer):
        module, kind = self.module, self.module.mode
        weights = {n.removesuffix(f"_{layer}"): p.detach().double() for n, p in module.named_parameters()}
        weights = {n: w for n, w in weights.items() if n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        maker = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}.get(kind, nn.RNNCell)
        options = {"nonlinearity": "relu"} if kind == "RNN_RELU" else {}
        cell = maker(weights["weight_ih"].shape[1], module.hidden_size, module.bias, **options).double()
        cell.load_state_dict(weights)
        return cell

    def run(self, x, length, sample, first):
        """Return outputs (time, width) and last states of one sequence; first: (layer, width) of each state."""
        names = list(self.outputs)
        directions = 1 + self.module.bidirectional
        read, last = list(x[:length].double()), []
        for layer in range(self.module.num_layers):
            sides = []
            for direction in range(directions):
                index = layer * directions + direction
                cell, steps = self.cell(names[index]), {}
                state = tuple(part[index] for part in first)
                order = range(length - 1, -1, -1) if direction else range(length)
                for time in order:
                    state = cell(read[time], state if len(state) > 1 else state[0])
                    state = state if isinstance(state, tuple) else (state,)
                    steps[time] = self.outputs[names[index]][sample, time] = state[0]
                sides.append(steps)
                last.append(state)
            read = [torch.cat([steps[time] for steps in sides]) for time in range(length)]
        return torch.stack(read), [torch.stack(states) for states in zip(*last, strict=True)]

    def gradients(self, loss):
        """Return layer -> (sample, time) -> gradient of the output."""
        steps = [(name, key, output) for name, own in self.outputs.items() for key, output in own.items()]
        found = {name: {} for name in self.outputs}
        for (name, key, _), gradient in zip(steps, torch.autograd.grad(loss, [s[2] for s in steps]), strict=True):
            found[name][key] = gradient
        return found


def log10_norm(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).norm().log10().item()


def at_each_time(tensors):
    """Return log10 of the norm over all samples, at each time step, of ``(sample, time) -> tensor``."""
    times = range(1 + max(time for _, time in tensors))
    return [log10_norm([tensor for (_, t), tensor in tensors.items() if t == time]) for time in times]


def record(module, run, **options):
    with GradientProbe(module, time=True, **options) as probe:
        run().backward()
        probe.collect()
    return probe.history


def states_of(module, samples=5):
    shape = (module.num_layers * (1 + module.bidirectional), samples, module.hidden_size)
    generator = torch.Generator().manual_seed(2)
    count = 2 if module.mode == "LSTM" else 1
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count))


@pytest.mark.parametrize("kind", few(["lstm", "tanh", "gru", "relu"], 2))
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both directions"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_every_layer_and_time_step_is_that_of_a_loop_of_cells(kind, both, packed):
    module, x = make(kind, both=both, batch_first=True, bias=not both).double(), sequences()
    first = states_of(module)
    lengths = LENGTHS if packed else [7] * 5
    given = first if len(first) > 1 else first[0]
    inputs = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False) if packed else x

    def run():
        output, states = module(inputs, hx=given)
        output = pad_packed_sequence(output, batch_first=True)[0] if packed else output
        return loss_of([output, *(states if isinstance(states, tuple) else (states,))])

    history = record(module, run)
    loop = Loop(module)
    runs = [loop.run(x[i], length, i, [part[:, i] for part in first]) for i, length in enumerate(lengths)]
    outputs = torch.stack([F.pad(output, (0, 0, 0, 7 - len(output))) for output, _ in runs])
    states = [torch.stack([last[kind] for _, last in runs], dim=1) for kind in range(len(first))]
    loss = loss_of([outputs, *states])
    names = layer_names(module)
    assert history.names == names
    all_gradients = loop.gradients(loss)
    for name in names:
        steps, gradients = loop.outputs[name], all_gradients[name]
        over_time = history.over_time(name)
        sizes = [n - 0.5 * math.log10(3 * sum(i < m for m in lengths)) for i, n in enumerate(at_each_time(steps))]
        assert over_time.profile("output") == pytest.approx(sizes, abs=1e-9)
        assert over_time.profile("output_grad") == pytest.approx(at_each_time(gradients), abs=1e-9)


@pytest.mark.slow
def test_each_layer_has_the_numbers_of_a_stack_of_modules():
    for kind, both, proj in itertools.product(("tanh", "lstm", "gru"), (False, True), (0, 2)):
        if proj and kind != "lstm":
            continue
        module = make(kind, both=both, **({"proj_size": proj} if proj else {})).double()
        x, width = sequences().transpose(0, 1), (1 + both) * (proj or 3)
        history = record(module, lambda module=module, x=x: loss_of([module(x)[0]]))
        read, returned, weights = x, [], []
        for layer in range(3):
            options = {"proj_size": proj} if proj else {}
            single = KINDS[kind](width if layer else 4, 3, bidirectional=both, **options).double()
            single.load_state_dict({n: getattr(module, n.replace("l0", f"l{layer}")) for n in single.state_dict()})
            read, states = single(read)
            returned.append([read, *(states if isinstance(states, tuple) else (states,))])
            weights.append(dict(single.named_parameters()))
        loss = loss_of([read])
        outputs = [tensors[0] for tensors in returned]
        gradients = torch.autograd.grad(loss, outputs, retain_graph=True)
        for row, (layer, side) in enumerate(itertools.product(range(3), range(1 + both))):
            names = [n for n in weights[layer] if "weight" in n and n.endswith("_reverse") == bool(side)]
            expected = log10_norm(torch.autograd.grad(loss, [weights[layer][n] for n in names], retain_graph=True))
            assert history.profile("weight_grad")[row] == pytest.approx(expected, abs=1e-9)
            half = gradients[layer].chunk(1 + both, -1)[side]
            assert history.profile("output_grad")[row] == pytest.approx(log10_norm([half]), abs=1e-9)
            tensors = [outputs[layer].chunk(1 + both, -1)[side], *(state[side] for state in returned[layer][1:])]
            rms = log10_norm(tensors) - 0.5 * math.log10(sum(t.numel() for t in tensors))
            assert history.profile("output")[row] == pytest.approx(rms, abs=1e-9)


@pytest.mark.slow
def test_300_time_steps_of_torchs_own_weights_vanish_far_beyond_float32():
    torch.manual_seed(0)
    module = nn.RNN(2, 16)
    x = torch.randn(300, 2, 2)
    history = measure(module, lambda output: output[0][-1].sum(), x, time=True)
    twin, steps = copy.deepcopy(module).double(), []
    cell = nn.RNNCell(2, 16).double()
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in twin.named_parameters()})
    hidden = torch.zeros(2, 16, dtype=torch.float64)
    for time in range(300):
        hidden = cell(x[time].double(), hidden)
        steps.append(hidden)
    gradients = torch.autograd.grad(hidden.sum(), steps)
    expected = (gradients[0].norm() / gradients[-1].norm()).log10().item()
    assert history.names == [""]
    over_time = history.over_time("")
    assert expected < -60
    assert over_time.first_over_last("output_grad") == pytest.approx(expected, abs=1e-5)
    assert over_time.profile("output_grad") == pytest.approx([g.norm().log10().item() for g in gradients], abs=1e-5)
    assert {STATUSES[code] for code in over_time.status["output_grad"].ravel()} == {"ok"}


class Classifier(nn.Module):
    """A 4-layer LSTM whose last output is classified."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=4, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens):
        output, _ = self.lstm(self.embedding(tokens))
        return self.head(output[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize("steps", few([40, 300]))
def test_a_classifier_of_many_tokens_by_a_4_layer_lstm(steps):
    torch.manual_seed(0)
    model, tokens, y = Classifier(), torch.randint(11, (2, steps)), torch.tensor([0, 1])
    history = measure(model, F.cross_entropy, (tokens, y), time=True)
    assert history.names == ["embedding", "lstm.l0", "lstm.l1", "lstm.l2", "lstm.l3", "head"]
    twin = copy.deepcopy(model).double()
    x = twin.embedding(tokens)
    loop = Loop(twin.lstm)
    first = torch.zeros(4, 8, dtype=torch.float64)
    outputs = [loop.run(x[i], steps, i, (first, first))[0][-1] for i in range(2)]
    for name, gradients in loop.gradients(F.cross_entropy(twin.head(torch.stack(outputs)), y)).items():
        expected = at_each_time(gradients)
        assert history.over_time(f"lstm.{name}").profile("output_grad") == pytest.approx(expected, abs=1e-5)
    assert (history.status["output_grad"] == STATUSES.index("ok")).all()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dropout_between_layers_leaves_the_top_layer_and_all_weight_gradients(kind):
    module, x = make(kind, both=True, dropout=0.3).double(), sequences()

    def run():
        torch.manual_seed(3)
        return module(x)

    plain = run()[0]
    gradient = torch.autograd.grad(loss_of([plain]), plain)[0].chunk(2, -1)
    history = record(module, lambda: loss_of([run()[0]]))
    statuses = [STATUSES[code] for code in history.status["output_grad"][0, 0]]
    assert statuses == ["hook_missed"] * 4 + ["ok"] * 2
    assert [STATUSES[code] for code in history.status["output"][0, 0]] == statuses
    assert (history.status["weight_grad"] == STATUSES.index("ok")).all()
    assert history.profile("output_grad")[4:] == pytest.approx([log10_norm([half]) for half in gradient], abs=1e-9)
    with pytest.raises(ValueError, match=r"^nothing is recorded over time for 'l0'; record with time=True$"):
        history.over_time("l0")
    module.eval()
    assert (record(module, lambda: loss_of([module(x)[0]])).status["output_grad"] == STATUSES.index("ok")).all()


class Changed(nn.LSTM):
    def forward(self, x, hx=None):
        output, states = super().forward(x, hx)
        return 2 * output, states


def test_lower_layers_are_missed_where_a_second_run_is_not_the_first():
    torch.manual_seed(0)
    for module, spoil in ((Changed(4, 3, 2), None), (nn.LSTM(4, 3, 2), "input"), (nn.LSTM(4, 3, 2), "weight")):
        x = sequences(torch.float32)

        def run(module=module, x=x, spoil=spoil):
            loss = loss_of([module(x)[0]])
            if spoil == "input":
                loss.backward()
                x.mul_(2)
            return loss if spoil != "input" else sum(p.sum() for p in module.parameters())

        with GradientProbe(module) as probe:
            run().backward()
            if spoil == "weight":
                with torch.no_grad():
                    module.weight_hh_l0.mul_(2)
            probe.collect()
        statuses = [STATUSES[code] for code in probe.history.status["output_grad"][0, 0]]
        assert statuses == ["hook_missed", "ok"], spoil


def test_a_batch_in_two_parts_counts_as_one():
    module, x = make("lstm", 2).double(), sequences().transpose(0, 1)

    def run(parts):
        with GradientProbe(module, time=True) as probe:
            for part in parts:
                loss_of([module(part)[0][-1].square()]).backward()
            probe.collect()
        module.zero_grad()
        return probe.history

    def joint(histories, quantity, name):
        sizes = [10 ** (2 * history.over_time(name).profile(quantity)) for history in histories]
        return 0.5 * np.log10(np.sum(sizes, axis=0))

    alone = [run([x[:, :2]]), run([x[:, 2:]])]
    together = run([x[:, :2], x[:, 2:]])
    for name in ("l0", "l1"):
        assert together.over_time(name).profile("output_grad") == pytest.approx(
            joint(alone, "output_grad", name), abs=1e-9
        )
    sizes = [10 ** (2 * history.profile("output_grad")) for history in alone]
    assert together.profile("output_grad") == pytest.approx(0.5 * np.log10(np.sum(sizes, axis=0)), abs=1e-9)


def test_frozen_and_unused_layers_say_so():
    module, x = make("gru", 2).double().requires_grad_(False), sequences()
    head = nn.Linear(3, 1).double()
    model = nn.ModuleDict({"gru": module, "head": head})
    with GradientProbe(model) as probe:
        head(module(x)[0]).sum().backward()
        probe.collect()
    assert [STATUSES[c] for c in probe.history.status["output_grad"][0, 0]] == ["frozen", "frozen", "ok"]
    module.requires_grad_()
    with GradientProbe(model) as probe:
        output = module(x)[0]
        head(output.detach()).sum().backward()
        probe.collect()
    assert [STATUSES[c] for c in probe.history.status["output_grad"][0, 0]] == ["unused", "unused", "ok"]
    assert [STATUSES[c] for c in probe.history.status["weight_grad"][0, 0]] == ["unused", "unused", "ok"]


@pytest.mark.slow
def test_observing_recurrent_modules_changes_nothing():
    def trained(watched):
        torch.manual_seed(0)
        model, x = nn.LSTM(4, 3, 2, dropout=0.2, bidirectional=True), sequences(torch.float32)
        optimizer = torch.optim.Adam(model.parameters())
        probe = GradientProbe(model, optimizer=optimizer, time=True)
        if watched:
            probe.attach()
        for _ in range(3):
            model(x)[0].square().mean().backward()
            if watched:
                probe.collect()
            optimizer.step()
            optimizer.zero_grad()
        probe.remove()
        return [*model.parameters(), torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


def test_a_selected_module_has_a_row_of_its_own_and_so_has_a_selected_layer():
    module, x = nn.ModuleDict({"lstm": make("lstm").double()}), sequences()
    with GradientProbe(module, select=["lstm", "lstm.l[02]"]) as probe:
        output, states = module["lstm"](x)
        loss_of([output, *states]).backward()
        probe.collect()
    weights = [p.grad for n, p in module.named_parameters() if "weight" in n]
    assert sorted(probe.history.names) == ["lstm", "lstm.l0", "lstm.l2"]
    row = probe.history.names.index("lstm")
    assert probe.history.profile("weight_grad")[row] == pytest.approx(log10_norm(weights), abs=1e-9)


def test_calls_of_a_cell_are_its_time_steps():
    torch.manual_seed(0)
    cell, x, hidden = nn.RNNCell(4, 3).double(), sequences(), torch.zeros(5, 3, dtype=torch.float64)

    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            state = hidden
            for time in range(7):
                state = self.cell(x[:, time], state)
            return state

    history = measure(Unrolled(), lambda state: state.sum(), x)
    over_time = history.over_time("cell")
    assert over_time.depth == 7
    assert np.array_equal(over_time.profile("output_grad"), history.profile("output_grad"))


def test_what_was_recorded_over_time_survives_saving(tmp_path):
    module, x = make("gru", 2).double(), sequences()
    history = record(module, lambda: loss_of([module(x)[0]]))
    history.save(tmp_path / "history.npz")
    again = History.load(tmp_path / "history.npz")
    for name in ("l0", "l1"):
        profile = history.over_time(name).profile("output_grad")
        assert np.array_equal(again.over_time(name).profile("output_grad"), profile)
    with pytest.raises(ValueError, match=r"^nothing is recorded over time for 'l7'; choose one of l0, l1$"):
        again.over_time("l7")
