"""The command that reproduces: its list, its tables, its exit codes, and what it keeps."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cases import few
from matplotlib.figure import Figure

from experiments import EXPERIMENTS, About
from experiments.__main__ import HERE, main
from experiments.lab.claims import Claim, Findings, above, below, between, near, same
from experiments.lab.lab import Lab
from experiments.lab.measures import grouped, lowest_loss, mean_log_chi, mean_profile, ratio, smoothed, steps_to
from experiments.lab.results import Record, publish, section
from gradexp.choices import CONFIG_DIR
from gradexp.config import Config
from gradexp.runs.experiment import run
from gradexp.runs.result import Result
from gradexp.runs.training import Training

ABOUT = About("Does a test pass?", "This file.", minutes=0, quick=0)
SMALL = ("depth=3", "width=4", "steps=2", "init=he,xavier", "seed=1", "sigma_b2=null")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """An experiment without networks, whose outcome a test can set, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("experiments.fake")
    module.QUICK = ["depth=3"]
    module.reproduce = lambda lab: Findings([near("one is one", 1.0, 1, 0.1)], {"fake": Figure()})
    monkeypatch.setitem(sys.modules, "experiments.fake", module)
    monkeypatch.setitem(EXPERIMENTS, "fake", ABOUT)
    return module


@pytest.mark.parametrize(
    ("claim", "measured", "expected", "holds"),
    [
        (near("", 1.25, 1, 0.25), "1.25", "1 ± 0.25", True),
        (near("", 1.26, 1, 0.25), "1.26", "1 ± 0.25", False),
        (near("", float("nan"), 1, 9), "nan", "1 ± 9", False),
        (near("", None, 1, 9), "none", "1 ± 9", False),
        (above("", 2, 1), "2", "> 1", True),
        (above("", 1, 1), "1", "> 1", False),
        (above("", float("nan"), 1), "nan", "> 1", False),
        (above("", None, 1), "none", "> 1", False),
        (below("", 1e-30, 1), "1e-30", "< 1", True),
        (below("", float("inf"), 1), "inf", "< 1", False),
        (below("", None, 1), "none", "< 1", False),
        (between("", 2, 1, 2), "2", "1 to 2", True),
        (between("", 2.001, 1, 2), "2.001", "1 to 2", False),
        (same("", "stuck", "stuck"), "stuck", "stuck", True),
        (same("", None, 3), "None", "3", False),
    ],
)
def test_a_claim_holds_or_fails(claim: Claim, measured: str, expected: str, holds: bool) -> None:
    assert claim == Claim("", measured, expected, holds)


def test_the_list_names_every_experiment_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for name, about in EXPERIMENTS.items():
        assert name in shown
        assert about.source.split()[0] in shown


def test_what_holds_is_shown_kept_and_exits_with_0(fake: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake"]) == 0
    assert re.search(r"one is one +1 +1 ± 0.1 +pass\n1 of 1 claims hold", capsys.readouterr().out)
    folder = Path("outputs/experiments/fake")
    assert (folder / "fake.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "fake.svg").read_text(encoding="utf-8")
    assert "| one is one | 1 | 1 ± 0.1 | pass |" in (folder / "results.md").read_text()


def test_what_fails_is_shown_and_exits_with_1(fake: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fake.reproduce = lambda lab: Findings([near("one is two", 1.0, 2, 0.1)], {})
    assert main(["fake"]) == 1
    assert re.search(r"one is two +1 +2 ± 0.1 +FAIL\n0 of 1 claims hold", capsys.readouterr().out)


def test_of_many_claims_groups_are_counted_and_failures_are_shown_in_full(
    fake: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = [near(f"1.5 I, output of layer {layer}", 1.0, 1, 0.1) for layer in range(9)]
    claims += [near("vanishing: loss", 1.0, 1, 0.1), near("vanishing: a [red]step[/red]", 1.0, 2, 0.1)]
    claims += [near(text, 1.0, 1, 0.1) for text in ("alone", "alone too")]
    fake.reproduce = lambda lab: Findings(claims, {})
    assert main(["fake"]) == 1
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    at = rows.index(["claims", "about", "hold"])
    assert rows[at + 1 : at + 4] == [
        ["1.5", "I", "9", "of", "9"],
        ["vanishing", "1", "of", "2"],
        ["others", "2", "of", "2"],
    ]
    assert re.search(r"vanishing: a \[red\]step\[/red\] +1 +2 ± 0.1 +FAIL\n12 of 13 claims hold", shown)
    assert "vanishing: loss" not in shown  # it is in results.md
    assert "| vanishing: loss |" in Path("outputs/experiments/fake/results.md").read_text()


def test_all_goes_on_after_an_error(
    fake: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ModuleType("experiments.broken")
    broken.QUICK = []
    broken.reproduce = lambda lab: Lab("lesson").runs("dpeth=3")
    monkeypatch.setitem(sys.modules, "experiments.broken", broken)
    monkeypatch.setattr("experiments.__main__.EXPERIMENTS", {"broken": ABOUT, "fake": ABOUT})
    assert main(["--all"]) == 1
    shown = capsys.readouterr().out
    assert "failed  unknown option 'dpeth'; did you mean 'depth'?" in shown
    assert "1 of 1 claims hold" in shown
    assert shown.endswith("2 experiments in 0.0 minutes: these failed: broken\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["he2015", "--out", ""], "argument --out: it must name a folder"),
        (["he2015", "hydra.run.dir=x"], "hydra.run.dir=x is of a single run; an experiment takes --out FOLDER"),
        (["he2014"], "unknown experiment 'he2014'; choose one of lesson, "),
        (["--all", "lesson"], "--all runs every experiment, so leave out lesson"),
        (["init.gain=2"], "init.gain=2 changes how an experiment is run, and none is named"),
        (["--quick"], "--quick changes how an experiment is run, and none is named"),
        (["lesson", "--quick", "--publish"], "--publish is for the experiments as they are: leave out --quick"),
        (["lesson", "init.gain=2", "--publish"], "--publish is for the experiments as they are: leave out --quick"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(text)


@pytest.mark.parametrize(
    ("given", "text"),
    few(
        [
            ("init.gian=2", "unknown option 'init.gian'; did you mean 'init.gain'?"),
            ("depth=0", "depth must be at least 1"),
        ]
    ),
)
def test_a_mistake_in_an_option_is_told_in_one_line(
    given: str, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["he2015", given, "--out", str(tmp_path)]) == 1
    assert f"failed  {text}" in capsys.readouterr().out


def test_ctrl_c_is_told_in_one_line(fake: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(lab: Lab) -> Findings:
        raise KeyboardInterrupt

    fake.reproduce = interrupted
    assert main(["fake"]) == 130
    assert capsys.readouterr().out.endswith("interrupted; nothing was finished\n")


def test_a_file_in_the_way_is_told_in_one_line_before_anything_is_run(
    fake: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").touch()
    fake.reproduce = lambda lab: pytest.fail("ran")
    for out in ("taken", "taken/below"):
        assert main(["fake", "--out", out]) == 1
        assert capsys.readouterr().out.startswith(f"cannot write to {out}: ")


def test_networks_that_options_leave_out_are_told_in_one_line(
    fake: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.reproduce = lambda lab: Findings([near("", {}["he"], 1, 1)], {})
    assert main(["fake", "init=xavier"]) == 1
    assert "failed  init=xavier leaves out what its claims are about\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_missing_device_is_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["he2015", "--device", "cuda:77", "--out", str(tmp_path)]) == 1
    assert "failed  device=cuda:77 is not there: PyTorch finds" in capsys.readouterr().out


def test_options_reach_the_lab(fake: ModuleType) -> None:
    seen: list[Lab] = []

    def look(lab: Lab) -> Findings:
        seen.append(lab)
        return Findings([], {})

    fake.reproduce = look
    main(["fake", "init.gain=2", "--quick", "--device", "cpu"])
    main(["fake"])
    assert [(lab.preset, lab.quick, lab.overrides, lab.device) for lab in seen] == [
        ("fake", ["depth=3"], ["init.gain=2"], "cpu"),
        ("fake", [], [], "auto"),
    ]


@pytest.mark.slow
def test_the_lab_gives_what_run_gives(on_one_thread: None) -> None:
    results = Lab("he2015").runs(*SMALL)
    assert [(r.config.init.name, r.config.seed) for r in results] == [
        ("he", 1), ("xavier", 1)
    ]  # fmt: skip
    for result in results:
        alone = run(result.config)
        assert result.training is not None
        assert alone.training is not None
        assert result.training.losses == alone.training.losses
        assert result.initial is not None
        assert alone.initial is not None
        assert result.initial.log_chi() == alone.initial.log_chi()


@pytest.mark.slow
def test_the_users_options_have_the_last_word_in_the_lab() -> None:
    lab = Lab("he2015", quick=["seed=7", "width=5", "depth=4"], overrides=["depth=9"])
    [he, xavier] = lab.configs("depth=6", "width=6")
    assert (he.seed, he.width, he.depth, he.optimizer.name) == (7, 6, 9, "momentum")
    assert (he.init.name, xavier.init.name) == ("he", "xavier")


def with_losses(losses: list[float], steps: int) -> Result:
    return Result(Config(steps=steps), training=Training(losses=losses))


def test_steps_to_a_loss_count_the_mean_over_ten_steps() -> None:
    falling = with_losses([2.0] * 10 + [1.0] * 10, 20)
    assert steps_to(falling, 1.55) == 15  # five of the last ten are 1: 1.5
    assert steps_to(falling, 0.5) == float("inf")
    assert smoothed(falling)[0] == pytest.approx(2)


def test_fewer_steps_than_a_mean_takes_reach_nothing() -> None:
    short = with_losses([0.1] * 9, 9)
    assert steps_to(short, 0.5) == float("inf")
    assert lowest_loss([short]) == float("inf")


def test_a_share_of_never_is_no_number() -> None:
    assert ratio(3, 6) == 0.5
    assert not ratio(3, float("inf")) <= 1


def test_steps_to_a_loss_is_never_for_a_network_that_has_diverged() -> None:
    diverged = with_losses([2.0, float("nan")], 20)
    assert steps_to(diverged, 3) == float("inf")


@pytest.mark.slow
def test_means_are_over_all_networks_of_all_runs() -> None:
    one, two = Lab("lesson", overrides=["depth=5"]).run("init.gain=2"), Lab("lesson").run("init.gain=4", "depth=5")
    assert mean_log_chi([one, two]) == pytest.approx((2 * torch.log(torch.tensor([2.0, 4.0]))).mean().item())
    assert 10 ** mean_profile([one, two], "output")[-1] == pytest.approx(8**2.5)
    assert grouped([one, two, one], lambda config: config.init.gain) == {2: [one, one], 4: [two]}


def test_publishing_renews_one_section_and_keeps_the_others(tmp_path: Path) -> None:
    findings = Findings([same("a | b", "x", "y")], {"first": Figure(), "second": Figure()})
    for name in ("beta", "alpha", "gamma"):
        publish(Record(name, ABOUT, findings, 61.2, "a CPU", options=[]), tmp_path)
    before = (tmp_path / "RESULTS.md").read_text()
    renewed = Findings([same("c", 1, 1)], {})
    publish(Record("beta", ABOUT, renewed, 3, "a GPU", options=[]), tmp_path)
    after = (tmp_path / "RESULTS.md").read_text()
    assert re.findall(r"^## (\w+)$", after, re.MULTILINE) == ["alpha", "beta", "gamma"]
    assert "| a \\| b | x | y | **fail** |" in before
    alpha = re.compile(r"^## alpha.*(?=^## beta)", re.DOTALL | re.MULTILINE)
    assert alpha.findall(before) == alpha.findall(after) != []
    assert before.partition("## gamma")[2] == after.partition("## gamma")[2]
    assert "3 s on a GPU" in after
    assert "| [beta](#beta) | 1 of 1 | 3 |\n" in after
    assert "| [alpha](#alpha) | 0 of 1 | 61 |\n" in after
    assert "| all | 1 of 3 | 125 |\n" in after
    assert "1 of 1 claims hold" in after
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"first.png", "second.png"}


def test_a_section_names_the_command_and_the_versions() -> None:
    text = section(Record("fake", ABOUT, Findings([], {}), 61.2, "a CPU", ["--quick", "init.gain=2"]), [])
    assert "`python -m experiments fake --quick init.gain=2`" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "61 s on a CPU" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_preset_module_results_and_picture(name: str) -> None:
    assert (CONFIG_DIR / "experiment" / f"{name}.yaml").is_file()
    assert (HERE / f"{name}.py").is_file()
    assert (HERE / "figures" / f"{name}.png").stat().st_size < 250_000
    page = (HERE.parent / "docs" / "papers.md").read_text(encoding="utf-8")
    assert f"`python -m experiments {name}`" in page
    assert f"experiments/figures/{name}.png" in page


def test_the_published_results_are_of_all_experiments_and_hold() -> None:
    text = (HERE / "RESULTS.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == sorted(EXPERIMENTS)
    assert "**fail**" not in text
    assert "--quick" not in text
