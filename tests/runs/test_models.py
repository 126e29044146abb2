"""Runs of other networks than the MLP: every family of MODELS, models of one's own, and their mistakes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import MUON, few
from command_line import call
from torch import nn

from gradexp import measure
from gradexp.choices import MODEL_TAKES, ConfigError
from gradexp.config import Config, DataConfig, InitConfig, ModelConfig, OptimizerConfig
from gradexp.exact.samples import unit_cotangents
from gradexp.networks.chain import Chain
from gradexp.run import main
from gradexp.runs import verdict
from gradexp.runs.data import load
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.layers_file import read_layers
from gradexp.runs.models import MODELS, build
from gradexp.runs.profiles import profile
from gradexp.runs.stacks import stackable_groups
from gradexp.runs.trials import working_options

FAMILIES = [name for name in MODELS if name != "mlp"]
SMALL = {
    "cnn": {"depth": 4, "width": 3},
    "resnet": {"depth": 4, "width": 3},
    "transformer": {"depth": 2, "width": 8},
    "rnn": {"depth": 10, "width": 6},
}


def small(name, **options):
    return Config(**{"model": name, "steps": 3, "batch_size": 16, **SMALL[name], **options})


def mine(features, outputs, hidden=6, slope=0.2):
    """A network with a skip connection, whose weights are its own."""

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(features, hidden), nn.Linear(hidden, hidden)
            self.last = nn.Linear(hidden, outputs)

        def forward(self, x):
            a = nn.functional.leaky_relu(self.first(x), slope)
            return self.last(a + self.second(a))

    return Mine()


@pytest.mark.parametrize("name", few(FAMILIES))
def test_a_family_leaves_everything_that_a_run_leaves(name, tmp_path, monkeypatch):
    sizes = [f"{key}={value}" for key, value in SMALL[name].items()]
    folder = tmp_path / "run"
    typed = [f"model={name}", *sizes, "steps=3", "batch_size=16", "record.histograms=true"]
    assert call(main, monkeypatch, *typed, f"hydra.run.dir={folder}") == 0
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["status"] == "complete"
    assert summary["config"]["model"]["name"] == name
    assert math.isfinite(summary["initial"]["log_chi"])
    assert summary["training"]["steps"] == 3
    initial, trained = read_layers(folder / "layers.csv")
    assert initial is not None
    assert trained is not None
    assert trained.steps == [0, 1, 2]
    assert "None" not in (folder / "report.html").read_text("utf-8").partition("<script")[0]
    assert {path.name for path in folder.iterdir()} >= {"report.html", "summary.json", "layers.csv"}
    assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_profile_of_a_family_is_that_of_autograd(name):
    config = small(name, dtype="float64")
    data = load(config.data, config.width)
    x = data.x_train[:4]
    model = build(config, x, data.output_width, seed=0)
    assert isinstance(model, Chain)
    model.eval()
    cotangents = unit_cotangents(0, 4, data.output_width)
    parts = x.split(len(x) if model.mixes_samples else 1)
    logs = []
    for sample, cotangent in zip(parts, cotangents.split(len(parts[0])), strict=True):
        h, steps = model.unrolled(sample)
        states = [h := step.run(h) for step in steps]
        gradients = torch.autograd.grad((h * cotangent).sum(), states)
        logs.append(torch.stack([gradient.flatten(1).norm(dim=1).log10() for gradient in gradients]))
    expected = torch.cat(logs, dim=1).mean(dim=1)
    found = profile(model, x, seed=0)
    torch.testing.assert_close(torch.from_numpy(found.profile("output_grad")), expected, rtol=0, atol=1e-9)
    assert found.names == [step.name for step in steps]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "rnn"])  # whose rows are calls of one module
def test_measure_gives_the_numbers_of_the_profile(name):
    config = small(name, dtype="float64")
    data = load(config.data, config.width)
    x = data.x_train[:6]
    model = build(config, x, data.output_width, seed=0)
    expected, cotangents = profile(model, x, seed=0), unit_cotangents(0, 6, data.output_width)
    history = measure(model, lambda y, c: (y * c).sum(), (x, cotangents), per_sample=True, select=expected.names)
    found = history.samples[0, 0].mean(axis=1)
    np.testing.assert_allclose(found, expected.profile("output_grad"), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", few(FAMILIES))
def test_a_family_learns_with_every_optimizer_of_one_network(name):
    losses = [run(small(name, optimizer=rule)).training.losses for rule in ("sgd", "adamw", MUON)]
    assert all(math.isfinite(loss) for log in losses for loss in log)
    assert losses[0][0] == losses[1][0] == losses[2][0]
    assert len({log[2] for log in losses}) == 3


@pytest.mark.parametrize("name", few(FAMILIES))
def test_seeds_measures_the_networks_that_runs_alone_have(name):
    both = run(small(name, seeds=2, steps=0)).initial
    alone = [run(small(name, seed=seed, steps=0)).initial for seed in (0, 1)]
    assert both.seeds == [0, 1]
    for index, one in enumerate(alone):
        np.testing.assert_array_equal(both.log10["output_grad"][:, index], one.log10["output_grad"][:, 0])


def test_a_run_is_the_same_each_time_and_leaves_the_generator_of_torch():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again = run(small("cnn")), run(small("cnn"))
    assert first.training.losses == again.training.losses
    assert torch.equal(torch.rand(1), expected)


def test_networks_without_a_stacked_form_run_one_after_the_other():
    configs = [small("cnn", seed=seed) for seed in (0, 1)]
    assert stackable_groups(configs) == [[0], [1]]
    with pytest.raises(ConfigError):
        run_stack(configs)


def test_defaults_are_those_of_the_family():
    assert (Config().depth, Config().width, Config().residual) == (150, 128, "none")
    assert Config(model="cnn").depth == MODEL_TAKES["cnn"]["depth"] != 150
    assert Config(model="cnn", depth=7).depth == 7
    assert replace(Config(model="cnn"), seed=1).depth == Config(model="cnn").depth


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "cn"}, "model must be one of mlp, cnn.*, got 'cn'"),
        ({"model": "cnn", "residual": "plain"}, "model 'cnn' takes no residual; it takes depth, width, .*"),
        ({"residual": "fixup"}, "residual must be one of none, plain, depth, zero, got 'fixup'"),
        ({"model": ModelConfig("cnn", padding="same")}, "model.padding must be one of circular, zeros, got 'same'"),
        ({"model": "cnn", "widths": [4]}, "model 'cnn' takes no widths; it takes depth, width, .*"),
        ({"model": ModelConfig(kernel=3)}, "model 'mlp' has no option 'kernel'; it takes none"),
        ({"model": ModelConfig("cnn", kernel=0)}, "model.kernel must be at least 1, got 0"),
        ({"model": mine, "depth": 4}, "model '.*mine' takes no depth; write model.depth=VALUE if yours .*"),
        ({"model": mine, "init": InitConfig(gain=2.0)}, "init 'auto' has no option 'gain'; it takes none"),
        ({"model": lambda features: None}, r"model '.*' must take \(features, outputs, \*\*options\), .*"),
    ],
)
def test_options_that_a_family_does_not_take_are_refused(options, text):
    with pytest.raises(ConfigError, match=f"^{text}$"):
        Config(**options)


@pytest.mark.parametrize(
    ("model", "options", "text"),
    few(
        [
            ("resnet", {"depth": 151}, "model 'resnet': depth must be even, .*: 150 or 152, got 151"),
            (ModelConfig("transformer", heads=3), {"width": 32}, "model 'transformer': width .* of heads=3, got 32"),
            (ModelConfig("transformer", norm="mid"), {}, "model.norm must be one of pre, post, none, got 'mid'"),
            (ModelConfig("transformer", queries="one"), {}, "model.queries must be one of zero, init, got 'one'"),
            (ModelConfig("cnn", kernel=4), {}, "model 'cnn': kernel must be odd, got 4"),
            (ModelConfig("rnn", cell="elman"), {}, "model.cell must be one of rnn, gru, lstm, got 'elman'"),
            ("rnn", {"depth": 1}, "model 'rnn': depth must be at least 2, a time step and the readout, got 1"),
        ]
    ),
)
def test_sizes_that_do_not_suit_a_family_are_refused_before_anything_is_built(model, options, text):
    with pytest.raises(ConfigError, match=f"^{text}$"):
        Config(model=model, **options)


@pytest.mark.slow
def test_a_recurrent_network_is_orthogonal_if_nothing_is_said_and_then_has_theory_beside_it():
    result = run(Config(model="rnn", steps=0))
    assert (result.config.init.name, result.verdict.theory) == ("orthogonal", "agrees")
    assert Config(model="rnn", init="he").init.name == Config(model="cnn").init.name == "he"


def test_batch_norm_of_an_own_model_needs_two_samples_to_train():
    def normalised(features, outputs):
        return nn.Sequential(nn.Linear(features, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))

    with pytest.raises(ConfigError, match=r"^model '.*normalised' has batch norm, .*: batch_size must be .* 2$"):
        run(Config(model=normalised, batch_size=1))
    assert run(Config(model=normalised, batch_size=1, steps=0)).status == "complete"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "cnn", "data": DataConfig("gaussian", features=10)}, "model 'cnn': images are .* got 10 features"),
        ({"model": ModelConfig("cnn", kernel=9)}, "model 'cnn': kernel must be odd and at most 8, .* got 9"),
        ({"model": ModelConfig("resnet", kernel=9)}, "model 'resnet': kernel must be odd and at most 8, .* got 9"),
        (
            {"model": ModelConfig("transformer", context=65)},
            "model 'transformer': context must be smaller, .* got 65",
        ),
        ({"model": ModelConfig("rnn", context=65)}, "model 'rnn': context must be smaller, .* got 65"),
        ({"batch_size": 1438}, "batch_size=1438 is larger than the 1437 training samples of data 'digits'"),
    ],
)
def test_what_is_too_large_for_the_data_is_refused_before_a_network_is_announced(options, text):
    class Stages(list):
        def write(self, stage, result):
            self.append(stage)

        def close(self):
            pass

    stages = Stages()
    with pytest.raises(ConfigError, match=f"^{text}$"):
        run(Config(steps=0, **options), [stages])
    assert set(stages) == {"start", "progress", "end"}


def test_an_own_model_keeps_the_weights_that_it_comes_with_unless_an_init_is_named():
    def halves(features, outputs):
        model = mine(features, outputs)
        for name, parameter in model.named_parameters():
            nn.init.constant_(parameter, 0.5 if name.endswith("weight") else 0.0)
        return model

    x = torch.ones(2, 5)
    kept = build(Config(model=halves), x, 3, seed=0)
    assert all((layer.weight == 0.5).all() for layer in kept.children())
    drawn = build(Config(model=halves, init="orthogonal"), x, 3, seed=0)
    weight = drawn.second.weight.double()
    torch.testing.assert_close(weight @ weight.mT, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)


def test_an_own_model_is_measured_by_the_probe_as_autograd_measures_it():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = build(Config(model=mine, init="he", dtype="float64"), x, 3, seed=0)
    found = profile(model, x, seed=0)
    assert found.names == ["first", "second", "last"]
    cotangents = unit_cotangents(0, 8, 3)
    first = model.first(x)
    a = nn.functional.leaky_relu(first, 0.2)
    second = model.second(a)
    y = model.last(a + second)
    gradients = torch.autograd.grad((y * cotangents).sum(), [first, second, y])
    expected = torch.stack([gradient.norm(dim=1).log10().mean() for gradient in gradients])
    torch.testing.assert_close(torch.from_numpy(found.profile("output_grad")), expected, rtol=0, atol=1e-9)
    rms = torch.stack([z.detach().square().mean().sqrt().log10() for z in (first, second, y)])
    torch.testing.assert_close(torch.from_numpy(found.profile("output")), rms, rtol=0, atol=1e-9)


class Reader(nn.Module):
    """Reads 12 features as 4 tokens in a recurrent layer or two, with the batch first or the time first."""

    def __init__(self, layers, batch_first):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.cells = nn.LSTM(6, 6, layers, batch_first=batch_first)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        tokens = x.unflatten(1, (4, 3))
        state = self.cells(self.first(tokens if self.cells.batch_first else tokens.transpose(0, 1)))[0]
        return self.last(state[:, -1] if self.cells.batch_first else state[-1])


class Flat(nn.Module):
    """Reads its tokens as samples."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.first(x.reshape(-1, 3)).tanh().unflatten(0, (-1, 4)).mean(1))


@pytest.mark.parametrize("model", [Reader(1, True), Reader(1, False), Reader(2, False), Flat()])
def test_rows_whose_first_dimension_counts_no_samples_have_the_gradient_of_a_sample_too(model):
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = model.double()
    found = profile(model, x, seed=0)
    tokens = []
    model.first.register_forward_hook(lambda module, args, output: tokens.append(output))
    y = model(x)
    of_sample = torch.autograd.grad((y * unit_cotangents(0, 8, 3)).sum(), tokens)[0]
    is_late = isinstance(model, Reader) and not model.cells.batch_first
    of_sample = (of_sample.transpose(0, 1) if is_late else of_sample).reshape(8, -1).norm(dim=1)
    # The mean of logs where samples are apart, else the log of the root of the mean square.
    low, high = of_sample.log10().mean().item(), of_sample.square().mean().sqrt().log10().item()
    assert low - 1e-9 <= found.profile("output_grad")[0] <= high + 1e-9
    assert np.isfinite(found.profile("output_grad")).all()
    assert found.verdict().gradient == "stable"
    assert found.total_grad is None


def test_an_own_model_runs_by_its_path_with_its_options(tmp_path, monkeypatch, capsys):
    (tmp_path / "owned.py").write_text(
        "from torch import nn\n"
        "def net(features, outputs, hidden=4):\n"
        "    return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, outputs))\n"
        "def flat(features, outputs): return nn.Linear(features, 3)\n"
        "def none(features, outputs): return None\n"
        "def raises(features, outputs): raise RuntimeError('no')\n"
        "class Cast(nn.Linear):\n"
        "    def forward(self, x): return super().forward(x.float())\n"
        "def cast(features, outputs): return Cast(features, outputs)\n"
        "def frozen(features, outputs): return nn.Linear(features, outputs).requires_grad_(False)\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert call(main, monkeypatch, "model=owned:net", "model.hidden=7", "steps=2", "hydra.run.dir=run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["config"]["model"] == {"hidden": 7, "name": "owned:net"}
    assert summary["config"]["depth"] is None
    assert summary["config"]["own_parts"]["owned:net"]
    for name, text in (
        ("flat", "model 'owned:flat' maps inputs of shape (2, 64) to (2, 3), not to (samples, outputs) (2, 10)"),
        ("none", "model 'owned:none' returns NoneType, not a torch.nn.Module"),
        ("raises", "model 'owned:raises' raises RuntimeError: no (owned.py:6)"),
        ("frozen", "model 'owned:frozen' gives outputs through which no parameter can be trained: all are frozen"),
        ("cast", "model 'owned:cast' raises RuntimeError: mat1 and mat2 must have the same dtype, "),
        ("gone", "model 'owned:gone': module owned "),
    ):
        with pytest.raises(ConfigError) as raised:
            run(Config(model=f"owned:{name}", steps=0))
        assert str(raised.value).startswith(text)


def test_a_remedy_is_one_that_a_measurement_has_confirmed():
    measured = []

    def measure(config):
        measured.append(config.init.name)
        return run(replace(config, steps=0)).initial

    faint = small("cnn", depth=30, width=8, steps=0, init=InitConfig("normal", std=0.01))
    judged = run(faint).verdict
    assert judged.gradient == "vanishing"
    text = working_options(faint, measure, alike=1.1)
    assert text == f"init={measured[-1]}"
    cured = run(replace(faint, init=InitConfig(measured[-1])))
    assert cured.verdict.gradient == "stable"
    assert text in judged.text


def test_what_theory_names_is_tried_first_and_once():
    asked = []

    def measure(config):
        asked.append(config.init.name)
        raise ConfigError("it helps nothing")

    faint = Config(model="rnn", init=InitConfig("normal"))
    foretold = [({"init": "orthogonal"}, replace(faint, init=InitConfig("orthogonal")))]
    assert working_options(faint, measure, 1.1, foretold) is None
    assert asked == ["orthogonal", "he", "xavier", "lecun"]


@pytest.mark.slow
def test_a_remedy_is_looked_for_once_in_a_run(monkeypatch):
    asked = []
    monkeypatch.setattr(verdict, "working_options", lambda config, *_: asked.append(config) or "init=he")
    assert run(small("cnn", depth=12, width=8, init=InitConfig("normal", std=0.01))).verdict.remedy == "init=he"
    assert len(asked) == 1


def broken(features, outputs):
    """A network with a weight that is no number."""
    model = mine(features, outputs)
    nn.init.constant_(model.second.bias, math.nan)
    return model


def test_weights_that_are_no_numbers_are_not_blamed_on_the_rate():
    verdict = run(Config(model=broken, steps=2)).verdict
    assert verdict.training == "diverged"
    assert verdict.text.endswith("layer 2 outputs inf or nan before any step: look at its weights and inputs")
    assert not verdict.remedy


def test_steps_that_are_rounded_away_are_blamed_on_the_format():
    verdict = run(small("rnn", dtype="bfloat16", optimizer=OptimizerConfig("sgd", lr=1e-3))).verdict
    assert "rounded away in bfloat16" in verdict.text
    assert verdict.remedy == "dtype=float32 precision=amp_bfloat16"


def test_remedies_are_tried_without_a_word(recwarn):
    def drowned(features, outputs):
        model = mine(features, outputs, slope=0.0)
        nn.init.constant_(model.first.bias, -1e3)
        return model

    assert run(Config(model=drowned, steps=0)).verdict.gradient == "dead"
    assert not recwarn


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_measured_and_trained_on_cuda(name):
    there, here = (run(small(name, device=device, dtype="float64")) for device in ("cuda", "cpu"))
    for quantity, values in here.initial.log10.items():
        np.testing.assert_allclose(there.initial.log10[quantity], values, rtol=0, atol=1e-9)
    np.testing.assert_allclose(there.training.losses, here.training.losses, rtol=1e-9)
