"""A history on a page shows its own numbers, and says what was measured."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import Parsed, unpacked
from torch import nn

from gradexp import MLP, GradientProbe, exact_profile, initialize, measure
from gradexp.history.finding import Finding
from gradexp.history.history import History


def sigmoids(depth: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(8, 8), nn.Sigmoid())], nn.Linear(8, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def test_measure_is_shown_with_its_gradient(tmp_path: Path) -> None:
    model, (x, y) = sigmoids(8), batch()
    history = measure(model, nn.functional.cross_entropy, (x, y))
    path = history.to_html(tmp_path / "report.html", "eight sigmoid layers")
    assert path == tmp_path / "report.html"
    page = Parsed(path.read_text(encoding="utf-8"))
    # The gradient of the first layer's output, by autograd in float64.
    model, outputs = model.double(), []
    model[0].register_forward_hook(lambda *call: outputs.append(call[2]))
    loss = nn.functional.cross_entropy(model(x.double()), y)
    (expected,) = torch.autograd.grad(loss, outputs[0])
    shown = page.data["lines"][0]["initial"]["output_grad"][0]
    assert shown == pytest.approx(torch.linalg.vector_norm(expected).log10().item(), abs=1e-3)
    assert "eight sigmoid layers" in page.words
    assert history.verdict().gradient in page.words
    assert page.data["names"][0] == "0"
    assert page.data["first"] == "measured"


def test_a_recorded_training_is_shown_step_by_step(tmp_path: Path) -> None:
    model, (x, y) = sigmoids(3), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model) as probe:
        for step in range(5):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            probe.collect(10 * step, loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    history = probe.history
    page = Parsed(history.to_html(tmp_path / "report.html").read_text(encoding="utf-8"))
    (line,) = page.data["lines"]
    assert line["steps"] == line["lossSteps"] == [0, 10, 20, 30, 40]
    assert unpacked(line, "output_grad") == pytest.approx(history.log10["output_grad"][:, 0], abs=0.0051)
    assert line["losses"] == pytest.approx(history.loss[:, 0], rel=1e-4)
    assert "initial" not in line


def test_theory_and_the_range_over_networks_are_there() -> None:
    from gradexp.history.page import history_page

    model = MLP([4, 8, 8, 3], "tanh", networks=3)
    initialize(model, "xavier", seed=0)
    history = exact_profile(model, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), seeds=[0, 1, 2])
    history.theory = {"log10_output_grad": np.zeros(3), "sd_output_grad": np.ones(3)}
    (line,) = history_page(history).lines
    assert line.low["output_grad"] == pytest.approx(history.log10["output_grad"][0].min(axis=0))
    assert line.high["output_grad"] == pytest.approx(history.log10["output_grad"][0].max(axis=0))
    assert line.initial["output_grad"] == pytest.approx(history.profile("output_grad"))
    assert line.theory["output_grad"] == pytest.approx(np.zeros(3))


def test_findings_and_their_remedies_are_shown(tmp_path: Path) -> None:
    finding = Finding("dead units", "half of layers.1 is 0", ("layers.1",), "initialize(model, 'he')", 3)
    history = measure(sigmoids(2), nn.functional.cross_entropy, batch())
    history = replace(history, findings=[(finding,)])
    words = Parsed(history.to_html(tmp_path / "report.html").read_text(encoding="utf-8")).words
    for text in ("dead units", "half of layers.1 is 0", "initialize(model, 'he')", "stops training"):
        assert text in words


def test_an_empty_history_has_nothing_to_show(tmp_path: Path) -> None:
    history = History("train", ["a"], [], [0], {"output_grad": np.empty((0, 1, 1))}, {})
    with pytest.raises(ValueError, match="nothing is recorded yet"):
        history.to_html(tmp_path / "report.html")


def test_outputs_alone_are_shown_without_a_verdict(tmp_path: Path) -> None:
    model, (x, y) = sigmoids(2), batch()
    with GradientProbe(model, quantities=["output"]) as probe:
        nn.functional.cross_entropy(model(x), y).backward()
        probe.collect(0)
    page = Parsed(probe.history.to_html(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert list(page.data["lines"][0]["initial"]) == ["output"]


def test_many_layers_are_a_line_for_each_role(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.tanh(self.up(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(*[Block() for _ in range(20)]), nn.Linear(8, 3))
    history = measure(model, nn.functional.cross_entropy, batch())
    page = Parsed(history.to_html(tmp_path / "report.html").read_text(encoding="utf-8"))
    shown = page.data["lines"]
    assert sorted(len(line["layers"]) for line in shown) == [2, 20, 20]
    assert sorted(layer for line in shown for layer in line["layers"]) == list(range(1, 43))
    assert {line["depth"] for line in shown} == {42}
    profile = history.profile("output_grad")
    for line in shown:
        assert len({page.data["names"][layer - 1].rpartition(".")[2] for layer in line["layers"]}) <= 2
        expected = [profile[layer - 1] for layer in line["layers"]]
        assert line["initial"]["output_grad"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_many_layers_of_one_role_are_one_line() -> None:
    from gradexp.history.page import history_page

    history = measure(sigmoids(35), nn.functional.cross_entropy, batch())
    assert [line.name for line in history_page(history).lines] == ["measured"]


@pytest.mark.parametrize("name", ["folder", "no/report.html"])
def test_a_page_that_cannot_be_written_says_which(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    history = measure(nn.Linear(3, 2), lambda y: y.sum(), torch.ones(2, 3))
    with pytest.raises(OSError, match=f": '{re.escape(str(tmp_path / name))}'$"):
        history.to_html(tmp_path / name)
