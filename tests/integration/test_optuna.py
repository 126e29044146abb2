"""``hydra/sweeper=optuna``, the real plug-in: it finds what theory says, and leaves folders like any sweep.

It needs the package hydra-optuna-sweeper.
"""

import math
from pathlib import Path

import pytest
import yaml
from command_line import call, mistake
from sweep_processes import summaries

from gradexp.run import main
from gradexp.theory import critical_sigma_w2

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")

pytestmark = [
    # Of alembic, SQLAlchemy and optuna 2, which the plug-in asks for.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("in_a_folder_of_its_own"),
]

OPTUNA = [
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweeper.sampler.seed=1",
    "hydra.sweep.dir=sweep",
    "record.figures=false",
]
SMALL = ["depth=4", "width=8", "steps=3", "batch_size=16"]


def best(folder: Path) -> tuple[dict[str, float], float]:
    found = yaml.safe_load((folder / "optimization_results.yaml").read_text("utf-8"))
    return found["best_params"], found["best_value"]


def test_it_finds_the_critical_gain_of_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where biases keep the fixed length above 0 layers forget the length of the input within a few layers, so that
    # the gain at which gradients keep their size hardly depends on depth. Orthogonal layers of 200 units differ by
    # less than 1 % from infinitely wide ones there.
    network = ["activation=tanh", "sigma_b2=0.05", "init=orthogonal", "depth=40", "width=200", "steps=0"]
    asked = ["init.gain=interval(0.7,2.5)", "objective=abs_log_chi", "hydra.sweeper.n_trials=25"]
    assert call(main, monkeypatch, *OPTUNA, *network, *asked) == 0
    params, value = best(Path("sweep"))
    assert params["init.gain"] == pytest.approx(math.sqrt(critical_sigma_w2("tanh", 0.05)), rel=0.02)
    jobs = summaries(Path("sweep"))
    assert len(jobs) == 25
    assert value == min(abs(job["initial"]["log_chi"]) for job in jobs.values())


def test_the_direction_says_which_number_is_best_and_a_run_without_one_is_the_worst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ["optimizer.lr=choice(1e-2,1e30)", "objective=loss_last", "hydra.sweeper.direction=maximize"]
    assert call(main, monkeypatch, *OPTUNA, *SMALL, *asked, "hydra.sweeper.n_trials=6") == 0
    params, value = best(Path("sweep"))
    assert float(params["optimizer.lr"]) == 0.01  # the other diverges
    losses = [job["training"]["loss_last"] for job in summaries(Path("sweep")).values()]
    assert value == max(loss for loss in losses if loss is not None)
    assert None in losses


def test_it_works_with_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["seed=range(0,8)", "objective=abs_log_chi", "hydra/launcher=ensemble", "hydra.sweeper.n_jobs=4"]
    assert call(main, monkeypatch, *OPTUNA, *SMALL, *asked, "hydra.sweeper.n_trials=8") == 0
    assert best(Path("sweep"))[1] == min(abs(job["initial"]["log_chi"]) for job in summaries(Path("sweep")).values())


def test_code_of_a_config_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["hydra.sweeper.custom_search_space=os.system", "seed=range(0,2)"]
    assert "custom_search_space is refused" in mistake(main, monkeypatch, capsys, [*OPTUNA, *SMALL, *asked])
    asked = ["hydra.sweeper.sampler._target_=os.system", "seed=range(0,2)"]
    assert "_target_ must be the class of a plug-in" in mistake(main, monkeypatch, capsys, [*OPTUNA, *SMALL, *asked])
