"""The mean over seeds, and one standard deviation around it."""

import statistics

import pytest

from gradexp.board.seeds import mean_and_band, settings


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["0_init=he,seed=0", "1_init=he,seed=1", "2_init=xavier,seed=0"], {"init=he/2 seeds": [0, 1]}),
        (["0_seed=0", "1_seed=1", "2_seed=2"], {"3 seeds": [0, 1, 2]}),
        (["0_seed=0,x=1", "1_seed=1,x=1"], {"x=1/2 seeds": [0, 1]}),
        (["0_depth=1,seed=0,x=1", "1_depth=1,seed=10,x=1"], {"depth=1,x=1/2 seeds": [0, 1]}),
        (["a/0_seed=0", "a/1_seed=1", "b/0_seed=0"], {"a/2 seeds": [0, 1]}),
        (["21-16-01-015112_init=he,seed=0", "21-16-02-015112_init=he,seed=1"], {"init=he/2 seeds": [0, 1]}),
        (["21-16-01-015112_seed=0", "21-16-02-015112_seed=0"], {}),  # the same run twice
        (["21-16-01-015112_seed=0", "2_seed=0", "3_seed=1"], {"2 seeds": [1, 2]}),  # the later one
        (["0_my_seed=0", "1_my_seed=1"], {}),
        (["he", "xavier"], {}),
    ],
)
def test_runs_that_differ_in_their_seed_only_belong_together(names: list[str], found: dict[str, list[int]]) -> None:
    assert settings(names) == {name: [names[index] for index in runs] for name, runs in found.items()}


def test_the_band_is_one_standard_deviation_and_has_only_what_every_run_has() -> None:
    runs = [
        {"train/loss": {0: 1.0, 1: 4.0, 2: 2.0}, "profile/x": {1: 0.5}},
        {"train/loss": {0: 2.0, 1: 9.0}},  # diverged at step 2
        {"train/loss": {0: 6.0, 1: 2.0, 2: 2.0}, "profile/x": {1: 0.5}},
    ]
    lines = mean_and_band(runs)
    for step, values in ((0, [1.0, 2.0, 6.0]), (1, [4.0, 9.0, 2.0])):
        mean, sd = statistics.mean(values), statistics.stdev(values)
        for name, value in (("mean", mean), ("mean-sd", mean - sd), ("mean+sd", mean + sd)):
            assert lines[name]["train/loss"][step] == pytest.approx(value)
    assert all(line == {"train/loss": line["train/loss"], "profile/x": {}} for line in lines.values())
    assert all(line["train/loss"].keys() == {0, 1} for line in lines.values())
