"""python -m gradexp.predict says what theory says, in words that hold, and leaves nothing behind."""

import math
import re
import shlex
import tempfile
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import command_line
import numpy as np
import pytest
import torch
from cases import few
from pages import Parsed

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.choices import INIT_OPTIONS, ConfigError
from gradexp.config import Config, DataConfig, InitConfig, ModelConfig, OptimizerConfig
from gradexp.networks.inits import INITS, Scheme, xavier_
from gradexp.predict.__main__ import main
from gradexp.predict.forecast import Forecast, forecast
from gradexp.predict.text import describe
from gradexp.runs import run
from gradexp.runs.data import load

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "on_one_thread")

call = partial(command_line.call, main)


def rows(text: str) -> dict[str, str]:
    """Read name and value of every row; what is wrapped or continued belongs to the row above."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, rest = line[:10].strip(), line[10:].strip()
        if name:
            found[name] = rest
        elif found:
            found[list(found)[-1]] += " " + rest
    return found


def shown(config: Config) -> dict[str, str]:
    return rows(describe(forecast(config)))


def number(row: str) -> float:
    return float(row.split()[0])


def tanh(sigma_w2: float, sigma_b2: float | None = None, **options: int) -> Config:
    return Config(activation="tanh", init=InitConfig("mean_field", sigma_w2=sigma_w2), sigma_b2=sigma_b2, **options)


@cache
def chaotic() -> Forecast:
    return forecast(tanh(2.5, 0.05))


@pytest.mark.slow
def test_numbers_of_a_chaotic_tanh_network_are_those_of_gauss_hermite_quadrature() -> None:
    found = rows(describe(chaotic()))
    at, weight = np.polynomial.hermite_e.hermegauss(120)
    weight = weight / weight.sum()
    q = 1.0
    for _ in range(200):
        q = 2.5 * (weight @ np.tanh(math.sqrt(q) * at) ** 2) + 0.05
    chi = 2.5 * (weight @ np.cosh(math.sqrt(q) * at) ** -4.0)
    digits = {"rel": 5.1e-4}
    assert number(found["q*"]) == pytest.approx(q, **digits)
    assert number(found["chi_1"]) == pytest.approx(chi, **digits)
    assert number(found["xi_grad"]) == pytest.approx(-1 / math.log(chi), **digits)
    assert "above 1 is chaos" in found["chi_1"]
    assert number(found["xi_c"]) == pytest.approx(theory.MeanField("tanh", 2.5, 0.05).xi_c, **digits)
    assert number(found["L/6xi_c"]) == pytest.approx(150 / 6 / number(found["xi_c"]), rel=1e-3)
    assert number(found["sigma_w2"]) == 2.5
    assert number(found["sigma_b2"]) == 0.05


@pytest.mark.slow
def test_relu_with_he_is_critical_and_drifts_by_5_over_2n() -> None:
    found = shown(Config(activation="relu", width=100, depth=101))
    assert number(found["chi_1"]) == 1
    assert found["xi_c"].startswith("inf")
    # The next order is about 1 / n of it.
    assert number(found["log_chi"]) == pytest.approx(-5 / 200, rel=0.05)
    wide = describe(forecast(Config(activation="relu", width=100, depth=101))).partition("At this width")[0]
    assert number(rows(wide)["log_chi"]) == 0
    assert number(found["L/n"]) == 1
    sd = re.match(r"\S+ ± (\S+)", found["log_chi"])
    assert sd is not None
    assert float(sd[1]) == pytest.approx(math.sqrt(5 / 100 / 100), rel=0.05)


@pytest.mark.slow
def test_sigmoid_with_xavier_loses_a_factor_18_per_layer() -> None:
    found = shown(Config(activation="sigmoid", init=InitConfig("xavier"), width=100))
    assert number(found["chi_1"]) == pytest.approx(0.0557207, rel=1e-3)
    assert number(found["q*"]) == pytest.approx(0.264687, rel=1e-3)
    assert found["verdict"].startswith("vanishing")
    assert found["ratio"].startswith("10^-9")
    assert found["try"].startswith("python -m gradexp.run init=orthogonal activation=tanh ")
    assert "underflow to 0" in found["float32"]


@pytest.mark.slow
def test_the_lessons_own_network_is_followed_exactly() -> None:
    config = Config(
        activation="linear", width=2, init=InitConfig("identity", gain=1.5), data=DataConfig("ones"), depth=150
    )
    assert forecast(config).prediction.first_over_last == pytest.approx(149 * math.log10(1.5), rel=1e-12)
    found = shown(config)
    assert found["ratio"].startswith("10^+26.2 ± 0.0")
    assert found["q*"].startswith("none")


def test_float_formats_end_where_the_profile_leaves_them() -> None:
    # |δ| of layer l is 4^-(20 - l), its largest element between a quarter of it and itself, and 2^-25 rounds to 0.
    config = Config(
        activation="linear", width=16, depth=20, init=InitConfig("identity", gain=0.25), data=DataConfig("ones")
    )
    found = shown(config)
    layer = re.search(r"underflow to 0 from layer (\d+) down", found["float16"])
    assert layer is not None
    assert int(layer[1]) in (7, 8)
    assert "stay in range" in found["float32"]


@pytest.mark.slow
def test_probability_of_a_dead_input_is_shown_where_a_relu_can_die() -> None:
    found = shown(Config(width=3, depth=12))
    assert number(found["dead"]) == pytest.approx(1 - (1 - 0.5**3) ** 11, rel=1e-2)
    assert shown(Config())["dead"].startswith("<1e-9 ")
    assert "dead" not in shown(Config(width=3, depth=12, normalization="layer"))
    assert "dead" not in shown(Config(width=30, depth=12, activation="tanh"))


@pytest.mark.slow
def test_odds_are_those_of_a_normal_law() -> None:
    prediction = chaotic().prediction
    law = NormalDist(prediction.first_over_last or 0.0, float(prediction.sd_output_grad[0]))
    assert (
        f"{law.cdf(-3):.0%} of such networks vanish, {1 - law.cdf(3):.0%} explode"
        in rows(describe(chaotic()))["odds"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", few([tanh(2.5, 0.05, depth=30, width=64), Config(depth=30, width=64, init=InitConfig("lyapunov"))])
)
def test_ratio_is_that_of_networks_built_by_the_same_options(config: Config) -> None:
    x = load(config.data, config.width).x_train[:8]
    stack = MLP([64, *config.hidden_widths, 10], config.activation, networks=24, dtype=torch.float64)
    options = {"activation": config.activation, **config.init.options}
    initialize(stack, config.init.name, seed=0, sigma_b2=config.sigma_b2, **options)
    measured = exact_profile(stack, x)
    per_network = measured.log10["output_grad"][0, :, 0] - measured.log10["output_grad"][0, :, -1]
    error = per_network.std(ddof=1) / math.sqrt(24)
    assert abs(per_network.mean() - (forecast(config).prediction.first_over_last or 0.0)) < 4 * error


def test_without_a_law_the_reason_is_the_verdict_and_only_what_has_numbers_is_advised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(INITS, "xavier", Scheme(xavier_))
    forecasts = [forecast(Config(depth=30, init=InitConfig("xavier"), residual=kind)) for kind in ("none", "plain")]
    for found in forecasts:
        assert found.verdict.text == "unknown: no law is known for init 'xavier'"
        assert found.verdict.text in describe(found)
        assert "nan" not in describe(found)
    cure = "init=orthogonal activation=tanh"
    assert forecasts[0].remedies[0].text == cure
    assert "residual=depth" not in [remedy.text for found in forecasts for remedy in found.remedies]  # with xavier
    assert forecasts[1].remedies[-1].text == f"residual=none {cure}"


@pytest.mark.slow
def test_data_that_say_not_enough_are_loaded() -> None:
    assert "not loaded" in shown(Config())["inputs"]
    raw = shown(Config(data=DataConfig("digits", standardize=False)))["inputs"]
    x = load(DataConfig("digits", standardize=False), 1).x_train[:64]
    assert raw.strip() == f"the first 64 of digits, mean square {x.square().mean():.3g}"
    np.savez("mine.npz", x=np.ones((10, 7)) + np.arange(10)[:, None], y=np.zeros((10, 3)))
    prediction = forecast(Config(data=DataConfig("file", path="mine.npz"), batch_size=8)).prediction
    assert (prediction.widths[0], prediction.widths[-1]) == (7, 3)


WANTING = few(
    [
        tanh(2.5, 0.05),
        tanh(0.5),
        Config(init=InitConfig("xavier")),
        Config(init=InitConfig("he", gain=2), sigma_b2=0.1),
        Config(init=InitConfig("torch_default"), activation="tanh"),
        Config(init=InitConfig("identity", gain=0.5), activation="tanh"),
        Config(activation="sigmoid"),
        Config(activation="gelu", init=InitConfig("xavier")),
        Config(activation="leaky_relu", negative_slope=0.3, init=InitConfig("normal")),
        Config(normalization="batch"),
        Config(residual="plain"),
    ]
)


@pytest.mark.slow
@pytest.mark.parametrize("config", WANTING)
def test_what_to_change_can_be_typed_and_keeps_the_gradient(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = forecast(config)
    assert found.verdict.gradient in ("vanishing", "exploding")
    change = found.remedies[0]
    given = [f"activation={config.activation}", f"negative_slope={config.negative_slope}"]
    given += [f"normalization={config.normalization}", f"residual={config.residual}"]
    given += [f"sigma_b2={config.sigma_b2}"] if config.sigma_b2 is not None else []
    given += [f"init.gain={config.init.gain}"]
    # What is typed last wins.
    typed = {option.partition("=")[0]: option for option in [*given, *shlex.split(change.text)]}
    assert call(monkeypatch, *typed.values()) == 0
    after = rows(capsys.readouterr().out)
    assert after["verdict"].startswith("stable")
    assert "try" not in after
    if change.reason.startswith("critical"):
        assert number(after["chi_1"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_the_first_remedy_keeps_the_activation_where_its_weights_can_be_mended() -> None:
    assert chaotic().remedies[0].text == "init=orthogonal sigma_b2=0"
    assert forecast(tanh(2.5)).remedies[0].text == "init=orthogonal"
    assert forecast(Config(init=InitConfig("xavier"), depth=10)).remedies[0].text == "init=he"
    erf = forecast(Config(activation="erf")).remedies[0]
    # Critical at sigma_w2 = 1 / erf'(0)² = π / 4.
    assert erf.text == f"init=orthogonal init.gain={math.sqrt(math.pi) / 2:.5g}"


@pytest.mark.slow
def test_no_remedy_leaves_all_inputs_alike() -> None:
    # He's weights keep the gradient of 150 relu layers, and lyapunov's too; the cosine at their end is 0.998.
    texts = [remedy.text for remedy in forecast(Config(init=InitConfig("xavier"))).remedies]
    assert texts[0] == "init=orthogonal activation=tanh"
    assert not {"init=he", "init=lyapunov"} & set(texts)


@pytest.mark.slow
def test_the_run_with_the_first_remedy_is_a_line_to_paste_with_all_other_options() -> None:
    given = ["init=xavier", "init.gain=0.9", "depth=150", "optimizer=adam"]
    config = Config(init=InitConfig("xavier", gain=0.9), optimizer=OptimizerConfig("adam"))
    lines = describe(forecast(config), given).splitlines()
    assert lines[0].startswith("verdict   vanishing: ")  # what people ask for
    tried = [line for line in lines if line[:10].strip() in ("try", "or")]
    assert tried[0] == (
        "try       python -m gradexp.run depth=150 optimizer=adam init=orthogonal activation=tanh init.gain=1"
    )
    assert all(" depth=150 optimizer=adam " in line for line in tried)
    assert lines.index("In infinite width") > lines.index(tried[-1])


@pytest.mark.parametrize("width", [60, 80])
def test_a_forecast_is_as_wide_as_it_is_told(width: int) -> None:
    lines = describe(forecast(Config(depth=150, init=InitConfig("xavier"))), width=width).splitlines()
    assert max(len(line) for line in lines if "python -m" not in line) <= width


def test_where_nothing_is_known_to_help_that_is_said() -> None:
    text = " ".join(describe(forecast(Config(width=1, depth=20))).split())
    assert "try nothing known helps at this depth and width: fewer or wider layers" in text
    assert "python -m" not in text


def test_nothing_is_to_change_at_the_critical_point_of_one_setting() -> None:
    found = forecast(tanh(1.76095, 0.05))
    assert found.verdict.gradient == "stable"
    assert not found.remedies
    assert not found.problem


@pytest.mark.slow
def test_a_normalised_network_that_explodes_is_offered_skip_connections() -> None:
    found = forecast(Config(normalization="batch"))
    assert found.prediction.chi_1 == pytest.approx(math.pi / (math.pi - 1), rel=1.5 / 64)  # of 64 samples
    assert found.remedies[0].text == "residual=depth"
    assert forecast(Config(residual="plain")).remedies[0].text == "residual=depth"


@pytest.mark.parametrize(
    "config",
    few(
        [
            Config(depth=1),
            Config(residual="zero", depth=4),
            Config(normalization="batch", depth=4),
            *(Config(activation=name, depth=5, width=32) for name in ("linear", "tanh", "sigmoid", "gelu", "elu")),
            *(Config(init=InitConfig(name), depth=5, width=16) for name in INIT_OPTIONS),
            Config(normalization="layer", depth=4),
            Config(depth=2),
            Config(widths=[10, 20]),
            Config(width=1, depth=5),
            Config(init=InitConfig("normal", std=0.0)),
            Config(init=InitConfig("normal", std=1e38), depth=400),
            Config(init=InitConfig("normal", std=1e-200)),
            Config(bias=False, init=InitConfig("torch_default")),
            tanh(1.0),
            tanh(1.0, width=4),
        ],
        3,
    ),
)
def test_every_line_is_words_and_numbers_in_80_columns(config: Config) -> None:
    text = describe(forecast(config))
    assert "nan" not in text.split()
    assert "None" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith(("try ", "or ")))
    assert {"sigma_w2", "chi_1", "ratio", "formula", "verdict"} <= set(rows(text))


@pytest.mark.slow
def test_a_relu_network_that_keeps_gradients_but_no_differences_is_told_so() -> None:
    # c' = (√(1 - c²) + (π - acos c) c) / π, again and again from 0.
    c = 0.0
    for _ in range(149):
        c = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    found = forecast(Config())
    assert found.verdict.gradient == "stable"
    assert found.cosine == pytest.approx(c, abs=1e-8)
    assert f"all inputs look alike at the output (cosine {found.cosine:.4f}): hard to train" in describe(found)
    assert "look alike" not in describe(forecast(Config(depth=10)))


def test_weights_of_0_are_called_dead() -> None:
    found = forecast(Config(init=InitConfig("normal", std=0.0)))
    assert found.verdict.gradient == "dead"
    assert found.verdict.text == "dead: sigma_w2 is 0: nothing gets through"


def test_where_no_formula_holds_the_infinite_width_is_judged() -> None:
    found = forecast(Config(activation="gelu", width=32, depth=20))
    assert not found.prediction.valid
    assert found.verdict.text.endswith("if the layers were infinitely wide")
    assert "too small for an expansion in 1 / width" in shown(found.config)["formula"]


@pytest.mark.slow
def test_a_recurrent_network_gets_the_advice_that_its_run_gives() -> None:
    exploding = Config(model="rnn", init=InitConfig("he", gain=2.0), steps=0)
    advice = forecast(exploding).remedies[0].text
    assert advice == "init=orthogonal init.gain=1"
    verdict = run(exploding).verdict
    assert verdict is not None
    assert verdict.remedy == advice


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"model": ModelConfig("rnn", cell="gru")}, {"init": InitConfig("sparse")}])
def test_where_theory_knows_too_little_a_run_measures(options: dict[str, Any]) -> None:
    text = describe(forecast(Config(activation="tanh", width=32, **options)), ["seed=3"])
    command = "python -m gradexp.run seed=3\n          measures what theory does not know, and tries what helps"
    assert text.count("python -m gradexp.run seed=3\n") == 1
    assert command in text


def test_what_theory_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="negative_slope must be 0, or 1e-100 to 1e100 in size, got 1e-200"):
        forecast(Config(activation="leaky_relu", negative_slope=1e-200, init=InitConfig("lyapunov")))


@pytest.mark.parametrize(
    ("arguments", "text"),
    few(
        [
            (["dpeth=3"], "unknown option 'dpeth'; did you mean 'depth'? (python -m gradexp.predict --help"),
            (["init=hee"], "unknown init 'hee'; choose one of delta_orthogonal, he,"),
            (["depth=0"], "depth must be at least 1, got 0"),
            (["init=he", "init.std=1"], "init 'he' has no option 'std'; it takes gain"),
            (["data=file"], "data=file needs data.path"),
            (["depth=5,6"], "depth=5,6 is several values: add -m"),
            (["batch_size=5000"], "batch_size=5000 is larger than the 1437 training samples of data 'digits'"),
            (["batch_size=90", "data=gaussian", "data.samples=100"], "larger than the 80 training samples of data"),
            (["model=cnn", "model.kernel=9"], "kernel must be odd and at most 8, the side of the images, got 9"),
        ],
        2,
    ),
)
def test_a_mistake_gets_one_or_two_lines(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in command_line.mistake(main, monkeypatch, capsys, arguments, is_early=True)
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("inits", [["he"], ["he", "xavier"]], ids=",".join)
def test_several_jobs_print_one_block_each_and_leave_nothing(
    inits: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "-m", f"init={','.join(inits)}", "depth=5,6") == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^network +(\d) .*$|^init +(\w+)", shown, re.MULTILINE) == [
        block for init in inits for block in (("5", ""), ("", init), ("6", ""), ("", init))
    ]
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_the_command_prints_plain_text_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert call(monkeypatch, "init=he", "activation=tanh", "depth=12") == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert "\x1b" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if not line.startswith(("try ", "or ")))
    assert number(rows(shown)["sigma_w2"]) == 2
    assert not list(work.iterdir())
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_options_that_matter_in_training_only_change_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "depth=5")
    plain = capsys.readouterr().out
    call(monkeypatch, "depth=5", "steps=7", "optimizer=adam", "seed=3")
    assert capsys.readouterr().out == plain


def test_help_is_about_this_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert "python -m gradexp.predict init=he activation=tanh" in text
    assert "init=lyapunov" in text
    assert "residual=none" in text
    assert "optimizer" not in text
    assert "steps=" not in text


def test_networks_that_die_are_called_dead_and_not_vanishing() -> None:
    found = forecast(Config(width=1, depth=20))
    # Each of 19 units is off with probability 1/2.
    assert found.prediction.dead_probability == pytest.approx(1 - 2.0**-19)
    assert found.verdict.gradient == "dead"
    assert forecast(Config(width=128, depth=20)).verdict.gradient == "stable"


def test_a_forecast_is_shown_in_words_and_beside_its_cures() -> None:
    shown = forecast(Config(depth=30, activation="sigmoid"))
    title, verdict, *cures = repr(shown).splitlines()
    assert title == "Forecast(he: 30 sigmoid layers)"
    assert verdict == shown.verdict.text
    assert cures[0] == f"try {shown.remedies[0].text}: {shown.remedies[0].reason}"
    assert len(repr(shown)) < 1000
    page = Parsed(shown._repr_html_())
    for text in ("↘ vanishing", "he: 30 sigmoid layers", shown.remedies[0].text, "All 30 layers"):
        assert text in page.words
    assert shown._repr_html_().count('class="label-name') == 1 + len(shown.remedies)


def test_a_family_is_named_with_its_width_and_options() -> None:
    found = shown(Config(model="rnn", depth=5, width=8, init=InitConfig("identity")))
    assert found["network"] == "tanh rnn of depth 5, width 8, context=8, cell=rnn, 64 inputs, 10 outputs"
