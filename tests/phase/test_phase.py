"""The phase diagram and the critical region hold what theory and real networks say."""

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
from cases import few

from gradexp import plotting, theory
from gradexp.phase.__main__ import main
from gradexp.phase.plane import QUANTITIES, WeightScalePoint, measure_dots, phase_plane, weight_scales, write_plane

SMALL = ["columns=4", "rows=3", "depth=6", "width=5", "seeds=2", "hydra.run.dir=here"]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "on_one_thread")

call = partial(command_line.call, main)


def table(name: str) -> list[dict[str, str]]:
    with Path("here", name).open() as file:
        return list(csv.DictReader(file))


def test_plane_of_relu_is_that_of_the_closed_forms() -> None:
    w2, b2 = np.array([0.5, 1.0, 2.0, 3.0]), np.array([0.0, 0.3])
    plane = phase_plane("relu", w2, b2)
    np.testing.assert_allclose(plane.values["chi_1"], np.tile(w2 / 2, (2, 1)), rtol=1e-12)
    np.testing.assert_allclose(plane.values["q_star"][1], [0.3 / 0.75, 0.3 / 0.5, np.inf, np.inf], rtol=1e-9)
    np.testing.assert_allclose(plane.values["xi_grad"][0, :2], [1 / math.log(4), 1 / math.log(2)], rtol=1e-9)
    np.testing.assert_array_equal(plane.edge, [[2, 0], [2, 0.3]])


@pytest.mark.slow
def test_rate_is_negative_in_chaos_and_small_on_both_sides_of_the_edge() -> None:
    critical = theory.critical_sigma_w2("tanh", 0.05)
    rate = phase_plane("tanh", [critical - 0.02, critical, critical + 0.02], [0.05]).rate[0]
    assert rate[0] > 0 > rate[2]
    assert rate[1] == pytest.approx(0, abs=1e-8)
    # It runs through the edge straight: xi_c is the same on both sides, to first order.
    assert rate[0] == pytest.approx(-rate[2], rel=0.05)


@pytest.mark.slow
def test_edge_is_where_chi_1_is_1() -> None:
    edge = phase_plane("tanh", [1.0], [0.0, 0.5]).edge
    inside = edge[(edge[:, 1] > 1e-3) & (edge[:, 1] < 1)]
    assert len(inside) > 20
    for w2, b2 in inside[::10]:
        assert theory.MeanField("tanh", w2, b2).chi_1 == pytest.approx(1, abs=1e-9)
    # The edge of tanh at sigma_b2 = 0.05.
    assert np.interp(0.05, inside[:, 1], inside[:, 0]) == pytest.approx(1.7610, abs=2e-3)


@pytest.mark.slow
def test_edge_is_broken_where_lengths_do_not_converge_to_it() -> None:
    edge = phase_plane("gelu", [1.0], [0.5]).edge
    assert np.isnan(edge).any()
    w2, b2 = edge[np.isfinite(edge[:, 0])][0]
    assert theory.MeanField("gelu", w2, b2).chi_1 == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_dots_lie_within_their_standard_error_of_theory() -> None:
    dots = measure_dots("tanh", [(1.0, 0.1), (2.5, 0.05)], width=64, depth=50, seeds=range(16))
    for dot in dots:
        assert dot.log_chi is not None
        assert dot.log_chi_se is not None
        assert dot.log_chi_theory is not None
        assert abs(dot.log_chi - dot.log_chi_theory) < 4 * dot.log_chi_se
        # Coloured by this, a dot is told from its neighbours.
        assert math.exp(dot.log_chi) == pytest.approx(theory.MeanField("tanh", *dot[1:3]).chi_1, rel=0.1)


@pytest.mark.parametrize("name", few(["tanh", "linear", "relu"]))
def test_weight_scales_of_an_identity_are_exact(name: str) -> None:
    found = weight_scales([name], [], [0.7, 1.3], width=3, depth=40, seeds=[0])
    for one in (scale for scale in found if scale.weights == "identity"):
        assert one.measured == pytest.approx(one.predicted, rel=1e-9)
        z, slope = 1.0, 1.0  # one unit, by hand
        function = {"linear": lambda z: z, "tanh": math.tanh, "relu": lambda z: max(z, 0.0)}[name]
        for _ in range(39):
            z = one.weight_scale * (z if slope == 1.0 and z == 1.0 else function(z))
            slope *= one.weight_scale * (1 - math.tanh(z) ** 2 if name == "tanh" else 1.0)
        assert one.predicted == pytest.approx(math.log10(slope), rel=1e-9)


def test_tanh_behind_a_large_identity_vanishes() -> None:
    # x* = tanh(1.5 x*) gives 0.3943130255 per layer, whatever the lesson says of lambda > 1.
    deep, shallow = (weight_scales(["tanh"], [1.5], [], 4, depth, [0])[0].predicted for depth in (150, 50))
    assert deep is not None
    assert shallow is not None
    assert (deep - shallow) / 100 == pytest.approx(math.log10(0.3943130255), rel=1e-8)


@pytest.mark.slow
def test_a_weight_scale_is_measured_alike_alone_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = [0.7, 1.1, 1.9]
    together = weight_scales(["tanh"], [], scales, 6, 20, seeds=[3, 4])
    monkeypatch.setattr("gradexp.phase.plane._STACKED", 1)
    for one, other in zip(weight_scales(["tanh"], [], scales, 6, 20, seeds=[3, 4]), together, strict=True):
        assert one[:5] == other[:5]
        np.testing.assert_allclose(
            np.array(one[6:], float), np.array(other[6:], float), rtol=1e-12
        )  # nan is None here


@pytest.mark.slow
def test_weight_scales_of_gaussian_weights_agree_with_networks() -> None:
    found = weight_scales(["linear", "tanh"], [], [0.8, 1.4], width=64, depth=60, seeds=range(16))
    gaussian = [scale for scale in found if scale.weights == "gaussian"]
    assert len(gaussian) == 4
    for one in gaussian:
        assert one.measured is not None
        assert one.predicted is not None
        assert one.measured_se is not None
        assert abs(one.measured - one.predicted) < 4 * one.measured_se


def test_progress_reaches_its_total() -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    phase_plane("relu", [1.0, 2.0], [0.0, 0.1], progress=progress)
    weight_scales(["linear"], [1.0], [1.0], 2, 3, [0], progress=progress)
    measure_dots("relu", [(2.0, 0.0)], 4, 3, [0], progress=progress)
    assert calls == [*((k, 4) for k in range(1, 5)), *((k, 4) for k in range(1, 5)), (1, 1)]


def test_table_is_empty_where_there_is_no_number() -> None:
    Path("here").mkdir()
    write_plane(Path("here/phase.csv"), phase_plane("relu", [2.0], [0.0, 0.1]))
    kept, growing = table("phase.csv")
    assert tuple(kept) == ("activation", "sigma_w2", "sigma_b2", *QUANTITIES)
    assert (kept["q_star"], kept["chi_1"], kept["xi_c"]) == ("1.0", "1.0", "")
    assert growing["q_star"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("is_drawn", few([False, True]))  # drawing takes most of the time
def test_command_writes_pictures_and_numbers(
    is_drawn: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def touch(_figure: object, path: Path, _dpi: int) -> Path:
        for ending in (".png", ".svg"):
            path.with_name(path.name + ending).write_bytes(b"\x89PNG")
        return path.with_name(f"{path.name}.png")

    if not is_drawn:
        monkeypatch.setattr(plotting, "save", touch)

    def of_few(names: list[str], lines: np.ndarray, markers: np.ndarray, *further: Any) -> list[WeightScalePoint]:
        return weight_scales(names, lines[::12], markers[::8], *further)

    monkeypatch.setattr("gradexp.phase.plane.weight_scales", of_few)
    assert call(monkeypatch, *SMALL, "measure=true", "dots=[2,1]", "activation=erf") == 0
    names = {path.name for path in Path("here").iterdir()}
    pictures = {f"{name}.{ending}" for name in ("phase", "critical_region") for ending in ("png", "svg", "csv")}
    assert names == {".hydra", "dots.csv", *pictures}
    assert Path("here/phase.png").read_bytes().startswith(b"\x89PNG")
    edge, *lines = capsys.readouterr().out.splitlines()
    # Of erf chi_1 = 1 at sigma_w2 = 1 / erf'(0)² = π / 4 without biases; with them where its formula is known.
    assert edge.startswith(f"edge      of chaos: sigma_w2 = {math.pi / 4:.2f}, ")
    assert lines[:2] == ["picture   here/phase.png", "picture   here/critical_region.png"]
    rows = table("phase.csv")
    assert len(rows) == 12
    row = rows[-1]
    point = theory.MeanField("erf", float(row["sigma_w2"]), float(row["sigma_b2"]))
    for quantity in QUANTITIES:
        assert float(row[quantity]) == pytest.approx(getattr(point, quantity), rel=1e-11)
    assert [(float(dot["sigma_w2"]), float(dot["sigma_b2"])) for dot in table("dots.csv")] == [
        (pytest.approx(1.4), 0.25),
        (pytest.approx(3.8), 0.25),
    ]
    region = table("critical_region.csv")
    assert {(row["activation"], row["weights"]) for row in region} == {
        (name, weights) for name in ("linear", "erf") for weights in ("identity", "gaussian")
    }
    assert {row["depth"] for row in region} == {"6"}
    assert any(row["measured"] for row in region)


@pytest.mark.parametrize(
    ("arguments", "text"),
    few(
        [
            (
                ["actvation=tanh"],
                "unknown option 'actvation'; did you mean 'activation'? (python -m gradexp.phase --help",
            ),
            (["hydra.run.dir=/dev/null/x"], "cannot write to /dev/null"),
            (["activation=sine"], "activation must be one of linear, tanh,"),
            (["sigma_w2=[3,1]"], "sigma_w2 must be [from, to] with 0 <= from < to <= 1e6, got [3.0, 1.0]"),
            (["sigma_w2=3"], "sigma_w2 must be a list such as sigma_w2=[1,2], got one value"),
            (["weight_scale=[0,1]"], "weight_scale must be [from, to] with 1e-06 <= from"),
            (["dots=[0,1]"], "dots must be two numbers of at least 1, got [0, 1]"),
            (["columns=1"], "columns must be at least 2, got 1"),
            (["depth=1"], "depth must be at least 2, got 1"),
            (["seeds=0"], "seeds must be at least 1, got 0"),
            (["negative_slope=nan"], "negative_slope must be at most 1e6 in size, got nan"),
        ],
    ),
)
def test_a_mistake_gets_one_or_two_lines(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in command_line.mistake(main, monkeypatch, capsys, arguments)


@pytest.mark.slow
def test_help_lists_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert "python -m gradexp.phase activation=tanh" in text
    assert "sigma_w2=[0.2, 5.0]" in text
    assert "init=" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_sweep_draws_one_plane_for_each_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(plotting, "save", lambda _figure, path, _dpi: drawn.append(path) or path)
    assert call(monkeypatch, "-m", *SMALL, "activation=linear,relu") == 0
    assert [path.name for path in drawn] == ["phase", "critical_region"] * 2
    assert len({path.parent for path in drawn}) == 2
    # Networks in the plane are measured only when asked for.
    assert not list(Path("multirun").glob("*/*/*/dots.csv"))
    for path in Path("multirun").glob("*/*/*/critical_region.csv"):
        names = {row["activation"] for row in csv.DictReader(path.read_text().splitlines())}
        assert names == ({"linear"} if "linear" in path.parent.name else {"linear", "relu"})
