"""A probe hands each step on at once: all of them, each once, in order, with what the record has."""

import math
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from gradexp import GradientProbe
from gradexp.history.finding import Finding
from gradexp.history.history import History
from gradexp.history.live import MOST, LiveCurves
from gradexp.history.verdict import Verdict


class Deep(nn.Module):
    """Blocks of two roles."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 4), "down": nn.Linear(4, 4)}) for _ in range(blocks)
        )
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return self.head(x)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def train(model, log, steps=4, every=1, optimizer=True, scale=(), **options):
    """Return the probe, and the steps that were known after each step of the optimizer."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = next(p for p in model.parameters()).shape[1]
    with GradientProbe(model, every=every, optimizer=sgd if optimizer else None, log=log, **options) as probe:
        for step in range(steps):
            sgd.zero_grad()
            loss = model(torch.ones(2, inputs)).square().mean()
            loss = loss * dict(scale).get(step, 1.0)
            loss.backward()
            probe.collect(step, loss)
            sgd.step()
    return probe


def test_each_step_is_handed_on_once_with_the_numbers_of_the_record():
    seen = []
    probe = train(network(), lambda step, numbers: seen.append((step, numbers)))
    history = probe.history
    assert [step for step, _ in seen] == history.steps == [0, 1, 2, 3]
    for index, (_, numbers) in enumerate(seen):
        for row, name in enumerate(history.names):
            log10 = {quantity: values[index, 0, row] for quantity, values in history.log10.items()}
            assert numbers[f"log10_output_grad/{name}"] == log10["output_grad"]
            assert numbers[f"log10_weight_grad/{name}"] == log10["weight_grad"]
            assert numbers[f"log10_update_ratio/{name}"] == log10["update"] - log10["weight"]
        assert numbers["gradient/log10_total"] == history.total_grad[index, 0]
        assert numbers["gradient/loss"] == history.loss[index, 0]
        own = history.log10["output_grad"][index, 0]
        assert numbers["gradient/log10_first_over_last"] == own[0] - own[-1]


@pytest.mark.parametrize("optimizer", [True, False])
def test_a_step_is_known_to_the_log_as_soon_as_the_optimizer_has_made_it(optimizer):
    model, seen, known = network(), [], []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model, optimizer=sgd if optimizer else None, log=lambda step, _: seen.append(step)) as probe:
        for step in range(3):
            model(torch.ones(2, 3)).square().mean().backward()
            probe.collect(step)
            known.append([*seen])
            sgd.step()
            known.append([*seen])
    at_collect = [[], [0], [0, 1]] if optimizer else [[0], [0, 1], [0, 1, 2]]
    assert known[::2] == at_collect
    assert known[1::2] == [[0], [0, 1], [0, 1, 2]]


def test_a_step_that_no_optimizer_makes_follows_at_the_next_collect_or_the_end():
    model, seen = network(), []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model, optimizer=sgd, log=lambda step, numbers: seen.append((step, len(numbers)))) as probe:
        for step in range(2):
            model(torch.ones(2, 3)).square().mean().backward()
            probe.collect(step)
            assert [label for label, _ in seen] == [*range(step)]
    assert seen == [(0, 8), (1, 8)]  # without the relative updates of two layers


def test_two_optimizers_make_one_row_with_the_updates_of_both():
    model, seen = network(), []
    both = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[2].parameters(), lr=0.1)]
    with GradientProbe(model, optimizer=both, log=lambda *own: seen.append(own)) as probe:
        for step in range(2):
            model(torch.ones(2, 3)).square().mean().backward()
            probe.collect(step)
            for optimizer in both:
                optimizer.step()
    assert [step for step, _ in seen] == [0, 1]
    assert all(f"log10_update_ratio/{name}" in numbers for _, numbers in seen for name in ("0", "2"))


def test_steps_that_are_not_recorded_are_not_handed_on():
    seen = []
    train(network(), lambda step, _: seen.append(step), steps=7, every=3)
    assert seen == [0, 3, 6]


@pytest.mark.parametrize("stats", [{}, {"dead": lambda x: (x == 0).float().mean(), "top": lambda x: x.max()}])
def test_a_deep_model_has_few_curves_unless_patterns_ask_for_more(stats):
    few, many = [], []
    train(Deep(40), lambda _, numbers: few.append(numbers), steps=1, stats=stats)
    train(Deep(40), lambda _, numbers: many.append(numbers), steps=1, stats=stats, log_layers="blocks.**")
    assert len(few[0]) <= MOST
    expected = ("blocks.up", "blocks.0.up", "head")  # a mean over blocks, and the layers of some
    assert {f"log10_output_grad/{name}" for name in expected} <= few[0].keys()
    assert {f"log10_output_grad/blocks.{block}.up" for block in range(40)} <= many[0].keys()


def test_a_wide_model_without_roles_has_few_curves_too():
    seen = []
    train(nn.Sequential(*(nn.Linear(3, 3) for _ in range(29))), lambda _, numbers: seen.append(numbers), steps=1)
    assert 40 <= len(seen[0]) <= MOST


def test_a_pattern_that_matches_nothing_is_told_before_the_training():
    with pytest.raises(ValueError, match="layers: 'nothing' matches none"):
        GradientProbe(network(), log=lambda step, numbers: None, log_layers="nothing")


def test_a_finding_is_told_at_the_step_at_which_it_appears_and_once():
    found = {}

    def log(step, numbers, *, findings):
        found[step] = findings

    scale = {9: math.nan}
    train(network(), log, steps=14, scale=scale)
    kinds = {step: [text.partition(":")[0] for text in texts] for step, texts in found.items()}
    assert "nonfinite" in kinds[9]
    assert not any("nonfinite" in own for step, own in kinds.items() if step != 9)


def test_a_finding_of_the_alarm_is_told_with_its_step():
    found = []

    def log(step, numbers, *, findings):
        found.extend((step, text.partition(":")[0]) for text in findings)

    with pytest.warns(RuntimeWarning, match="step 5"):
        train(network(), log, steps=7, scale={5: math.inf}, alarm="warn")
    assert (5, "nonfinite") in found


@pytest.mark.parametrize("kind", ["csv", "function"])
def test_a_training_is_the_same_with_a_log_bit_for_bit(kind, tmp_path):
    log = tmp_path / "curves.csv" if kind == "csv" else lambda step, numbers: None
    results = []
    for target in (None, log):
        random.seed(1)
        np.random.seed(1)
        model = network()
        train(model, target, steps=6)
        states = (torch.random.get_rng_state().tolist(), random.random(), np.random.random())
        results.append(([p.tolist() for p in model.parameters()], states))
    assert results[0] == results[1]


def test_a_log_that_fails_is_told_once_and_the_record_goes_on():
    seen = []

    def log(step, numbers):
        if step in (1, 2):
            raise OSError("the disk is full")
        seen.append(step)

    with pytest.warns(RuntimeWarning, match=r"^step 1 is in the record, but not in the log: .*disk is full$") as told:
        probe = train(network(), log)
    assert len(told) == 1
    assert seen == [0, 3]
    assert probe.history.steps == [0, 1, 2, 3]


@pytest.mark.slow
def test_judging_is_bounded_however_wild_the_numbers_are(monkeypatch):
    judged = []
    monkeypatch.setattr(History, "verdict", lambda self: judged.append(len(self.steps)) or Verdict("stable"))
    wild = {step: 10.0 ** (step % 5) for step in range(200)}
    train(network(), lambda step, numbers: None, steps=200, scale=wild)
    assert 8 <= len(judged) <= 8 + 4 + 200 // 40
    assert max(judged) <= 130


def test_a_log_that_fails_in_the_optimizers_step_leaves_the_training_as_it_is():
    def log(step, numbers):
        raise RuntimeError("gone\nfor good")

    models = network(), network()
    with pytest.warns(RuntimeWarning, match="FunctionLogger: RuntimeError: gone for good$"):
        train(models[0], log)
    train(models[1], None)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_what_is_found_of_a_step_that_was_handed_on_follows():
    seen = []

    def log(step, numbers, *, findings):
        seen.append((step, findings))

    model = network()
    with GradientProbe(model, log=log) as probe:
        model(torch.ones(2, 3)).square().mean().backward()
        probe.collect(7)
        probe.add_finding(Finding("clipped", "by hand", severity=1))
        probe.add_finding(Finding("clipped", "by hand", severity=1))
    assert [(step, findings) for step, findings in seen if findings] == [(7, ["clipped: by hand"])]


def test_a_probe_with_a_log_is_not_kept_alive_by_it():
    model, seen = network(), []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = GradientProbe(model, optimizer=sgd, log=lambda step, _: seen.append(step)).attach()
    gone = weakref.ref(probe)
    del probe
    assert gone() is None


def test_no_number_is_made_for_no_logger(monkeypatch):
    monkeypatch.setattr(LiveCurves, "numbers", lambda *_: pytest.fail("made"))
    assert train(network(), []).history.steps == [0, 1, 2, 3]


class Painter:
    """A logger that takes pictures."""

    def __init__(self):
        self.steps, self.drawn = [], []

    def write(self, step, _numbers, _findings):
        self.steps.append(step)

    def draw(self, step, figure):
        self.drawn.append((step, figure.axes[0].images[0].get_array().shape[:2]))


@pytest.mark.parametrize(
    ("steps", "share", "expected"),
    [
        (9, math.inf, []),
        (12, math.inf, [9]),
        (13, math.inf, [9, 12]),
        (50, math.inf, [9, 19, 39, 49]),
        (50, 0.0, [49]),  # a training too short to pay for any has the one at its end
    ],
)
def test_pictures_come_ever_less_often_and_one_at_the_end(steps, share, expected, monkeypatch):
    monkeypatch.setattr("gradexp.probe.log._SHARE", share or 1e-99)
    painter = Painter()
    train(network(), painter, steps=steps, optimizer=False)
    assert painter.steps == [*range(steps)]
    assert [step for step, _ in painter.drawn] == expected
    assert [shape for _, shape in painter.drawn] == [(2, step + 1) for step in expected]


def test_a_probe_that_is_closed_again_and_again_draws_a_bounded_number_of_pictures():
    painter, model = Painter(), network()
    probe = GradientProbe(model, log=painter)
    for step in range(100):
        with probe:
            model(torch.ones(2, 3)).sum().backward()
            probe.collect(step)
    assert 5 < len(painter.drawn) <= 1 + math.log(100 / 10) / math.log(1.25)


def test_a_logger_that_takes_no_picture_costs_none(monkeypatch):
    monkeypatch.setattr("gradexp.probe.log.heat_map", None)  # a call would be a warning
    train(network(), lambda step, numbers: None, steps=12)
    train(network(), Painter(), steps=12, quantities=("weight_grad",))


def test_a_picture_that_fails_is_a_warning():
    class Broken(Painter):
        def draw(self, step, figure):
            raise OSError("no room")

    with pytest.warns(RuntimeWarning, match=r"^step 11 is in the record, but not in the log: picture: OSError: no "):
        probe = train(network(), Broken(), steps=12)
    assert len(probe.history.steps) == 12


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 1, 2, 3]), (1, [])])
def test_of_several_processes_the_first_one_logs(rank, expected, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    train(network(), [lambda step, _: seen.append(step), tmp_path / "curves.csv"])
    assert seen == expected
    assert (tmp_path / "curves.csv").exists() == (rank == 0)
