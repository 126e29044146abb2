"""The number that a run hands to an optimising sweeper."""

import math

import pytest

from gradexp.choices import ConfigError
from gradexp.cli.objective import check_objective, handed_over, objective
from gradexp.config import Config
from gradexp.runs.experiment import run
from gradexp.runs.summary import config_hash, summary


def test_any_number_of_the_summary_can_be_the_objective() -> None:
    result = run(Config(depth=5, width=8, steps=2, batch_size=16))
    content = summary(result)
    assert result.training is not None
    assert objective("loss_last", content) == result.training.losses[-1]
    assert objective("training.test_loss", content) == result.training.tests[-1][1]
    log_chi = content["initial"]["log_chi"]
    assert log_chi < 0
    assert objective("log_chi", content) == log_chi
    assert objective("abs_initial.log_chi", content) == -log_chi
    assert handed_over(None, content, {}) is None


def test_a_run_without_the_number_is_the_worst_whichever_way_is_better() -> None:
    content = summary(run(Config(depth=2, width=4, steps=0)))
    assert handed_over("loss_last", content, {}) == math.inf
    assert handed_over("loss_last", content, {"direction": "maximize"}) == -math.inf


@pytest.mark.parametrize("key", ["loss", "gradient.nope", "training.loss_last.x", "abs_"])
def test_a_key_that_is_not_there_is_refused_before_the_run(key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^objective must be a number of summary\.json: log_chi, .*, got '{key}'$"
    ):
        check_objective(key)
    for known in ("loss_last", "abs_log_chi", "initial.dead_fraction"):
        check_objective(known)


def test_a_word_is_no_objective() -> None:
    with pytest.raises(ConfigError, match=r"^objective=verdict\.text must be a number"):
        objective("verdict.text", summary(run(Config(depth=2, width=4, steps=0))))


def test_the_objective_changes_no_number() -> None:
    assert config_hash(Config(objective="loss_last")) == config_hash(Config())
