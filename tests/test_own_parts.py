"""Somebody's own init, activation, data, optimizer and loss: by import path, as functions, and their mistakes."""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import call, mistake
from sweep_processes import assert_a_stack_is_equal_up_to_rounding, summaries
from torch import Tensor, nn

from gradexp import report
from gradexp.choices import OF_EVERY_OPTIMIZER, ConfigError
from gradexp.cli.composing import compose
from gradexp.config import Config, DataConfig, InitConfig, OptimizerConfig, as_dict
from gradexp.networks.activations import activation
from gradexp.networks.initialize import initialize
from gradexp.own_parts import OwnPart, check_typed, hint, own_part
from gradexp.predict.__main__ import main as predict
from gradexp.run import main
from gradexp.runs.data import load
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.losses import batch_losses, chance_loss, resolve_loss
from gradexp.runs.optimizers import build_optimizer
from gradexp.runs.summary import config_hash, summary
from gradexp.sweeps import report as _report

SMALL: dict[str, Any] = {"depth": 4, "width": 8, "steps": 3, "batch_size": 16}
TYPED = [f"{key}={value}" for key, value in SMALL.items()]

SOURCE = """
import torch
import torch.nn.functional as F

def init_(weight, alpha=2.0, *, generator=None):
    weight.normal_(generator=generator).mul_((alpha / weight.shape[1]) ** 0.5)
init_.law = lambda fan_in, fan_out, alpha: {"sigma_w2": alpha}

def lawless_(weight, scale=0.1):
    weight.copy_(scale * torch.randn(weight.shape))

def phi(z):
    return torch.relu(z)
phi.kinks = (0.0,)

def data(samples=40, *, width):
    x = torch.randn(samples, width)
    return x, x[:, :2].sin()

def build(parameters, lr=0.01, beta=0.9):
    return torch.optim.SGD(parameters, lr=lr, momentum=beta)

def loss(output, target):
    return F.mse_loss(output, target)
"""
OWN = ["init={}:init_", "init.alpha=1.5", "activation={}:phi", "data={}:data", "optimizer={}:build", "loss={}:loss"]
numbers = itertools.count()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the current folder that nobody has imported, with a part of each kind."""
    name = f"mine{next(numbers)}"
    (tmp_path / f"{name}.py").write_text(SOURCE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(_report, "write_figures", lambda _: {})
    yield name
    sys.modules.pop(name, None)


def typed(name: str) -> list[str]:
    return [*TYPED, *(option.format(name) for option in OWN)]


def he_twin_(weight: Tensor, *, generator: torch.Generator | None) -> Tensor:
    return nn.init.kaiming_normal_(weight, generator=generator)


def test_own_parts_that_do_what_built_in_ones_do_give_the_same_numbers_bit_for_bit() -> None:
    he_twin_.law = lambda fan_in, fan_out: {"sigma_w2": 2.0}  # type: ignore[attr-defined]

    def relu(z: Tensor) -> Tensor:
        return z.relu_()  # in place

    relu.kinks = (0.0,)  # type: ignore[attr-defined]
    gaussian = load(DataConfig("gaussian"), width=8)
    parts = (gaussian.x_train, gaussian.y_train, gaussian.x_test, gaussian.y_test)
    ours = run(
        Config(
            **SMALL,
            init=he_twin_,
            activation=relu,
            data=lambda: parts,
            optimizer=InitlessAdam,
            loss=F.mse_loss,
        )
    )
    theirs = run(Config(**SMALL, data="gaussian", optimizer="adam"))
    assert ours.training is not None
    assert theirs.training is not None
    assert ours.training.losses == theirs.training.losses
    assert ours.training.tests == theirs.training.tests
    assert ours.prediction is not None
    assert ours.prediction.log_chi == theirs.prediction.log_chi
    assert ours.guessing == pytest.approx(theirs.guessing, rel=1e-9)
    assert ours.verdict == theirs.verdict


class InitlessAdam(torch.optim.Adam):
    """An optimizer is given as its class, too."""


def whole_matrices(parameters: list[nn.Parameter], lr: float = 0.01) -> torch.optim.Optimizer:
    """An optimizer whose step of a weight depends on all of its elements, and on the other parameters."""

    class Normed(torch.optim.Optimizer):
        def step(self) -> None:  # type: ignore[override]
            held = self.param_groups[0]["params"]
            assert sorted({one.dim() for one in held}) == [1, 2]
            total = sum(one.grad.square().sum() for one in held)
            for one in held:
                one.data = one.data - self.defaults["lr"] * one.grad / total.sqrt()  # replaced, not changed in place

    return Normed(parameters, {"lr": lr})


def test_a_stack_is_trained_as_each_network_alone() -> None:
    configs = [Config(**SMALL, seed=seed, optimizer=whole_matrices, activation=F.mish) for seed in (0, 1)]
    alone = [run(config).training for config in configs]
    stacked = [result.training for result in run_stack(configs)]
    for one, other in zip(alone, stacked, strict=True):
        assert one is not None
        assert other is not None
        assert one.losses == other.losses
        assert len(set(one.losses)) == 3


@pytest.mark.slow
def test_the_probe_sees_the_updates_of_an_own_optimizer() -> None:
    ours = run(Config(**SMALL, optimizer=whole_matrices))
    assert ours.gradients is not None
    update = ours.gradients.log10["update"]
    assert update.shape[-1] == 4
    assert (10 ** (2 * update)).sum(-1) == pytest.approx(1e-4, rel=0.2)  # lr², less the biases' share


def test_an_own_init_without_a_generator_depends_on_the_seed_alone() -> None:
    def fill(weight: Tensor) -> None:
        weight.copy_(torch.randn(weight.shape))

    part = own_part("init", fill)
    layers = [nn.Linear(5, 4) for _ in range(3)]
    before = torch.get_rng_state()
    one, same, other = (
        initialize(layer, part, seed=seed).weight for layer, seed in zip(layers, (0, 0, 1), strict=True)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_own_data_are_the_same_at_every_call() -> None:
    config = DataConfig(lambda: (torch.randn(10, 3), torch.randn(10)))  # type: ignore[arg-type]
    first, second = (load(config, width=8) for _ in range(2))
    assert torch.equal(first.x_train, second.x_train)
    assert first.x_train.shape == (8, 3)
    assert first.classes is None


def test_own_data_with_integers_are_classes_also_where_only_the_test_part_has_the_last() -> None:
    x = torch.ones(3, 2)
    data = load(DataConfig(lambda: (x, [0, 1, 1], x, [0, 1, 2])), width=8)  # type: ignore[arg-type]
    assert data.classes == 3
    assert data.y_test.tolist() == [0, 1, 2]


@pytest.mark.slow
def test_theory_of_an_own_activation_is_that_of_the_same_built_in() -> None:
    def tanh(z: Tensor) -> Tensor:
        return 1 - 2 / (torch.exp(2 * z) + 1)

    options = {"width": 400, "depth": 8, "steps": 0, "init": InitConfig("mean_field", sigma_w2=2.0), "sigma_b2": 0.1}
    ours, theirs = (run(Config(activation=phi, **options)).prediction for phi in (tanh, "tanh"))
    assert ours is not None
    assert theirs is not None
    assert ours.valid
    assert ours.log_chi == pytest.approx(theirs.log_chi, rel=1e-9)


def test_theory_says_that_the_law_of_an_own_init_is_not_known() -> None:
    result = run(Config(depth=3, width=8, steps=0, init=nn.init.kaiming_normal_))
    assert result.prediction is not None
    assert result.prediction.reason == "no law is known for init 'torch.nn.init:kaiming_normal_'"
    assert result.verdict.theory == "unavailable"


def test_guessing_with_an_own_loss_is_the_best_constant() -> None:
    data = load(DataConfig("gaussian"), width=8)
    part = own_part("loss", F.l1_loss)
    median = data.y_train.median()
    assert chance_loss(data, part) == pytest.approx((data.y_train - median).abs().mean().item(), rel=1e-3)

    def correlation(output: Tensor, target: Tensor) -> Tensor:
        return 1 - torch.corrcoef(torch.cat([output, target], 1).T)[0, 1]

    assert chance_loss(data, own_part("loss", correlation)) is None


def test_options_are_read_from_the_signature(mine: str) -> None:
    config = Config(init=InitConfig(f"{mine}:init_", own={"alpha": 0.3}), optimizer=f"{mine}:build")
    options = as_dict(config)
    assert options["init"] == {"name": f"{mine}:init_", "alpha": 0.3}
    assert options["optimizer"] == {"name": f"{mine}:build", "lr": 0.01, "beta": 0.9, **OF_EVERY_OPTIMIZER}
    with pytest.raises(ConfigError, match=r"^init '\w+:init_' has no option 'beta'; it takes alpha$"):
        Config(init=InitConfig(f"{mine}:init_", own={"beta": 1}))
    with pytest.raises(ConfigError, match=r"^init\.alpha must be like its default, 2\.0, got 'x'$"):
        Config(init=InitConfig(f"{mine}:init_", own={"alpha": "x"}))
    with pytest.raises(ConfigError, match=r"^init\.alpha must be a finite number, .*, got nan$"):
        Config(init=InitConfig(f"{mine}:init_", own={"alpha": float("nan")}))
    with pytest.raises(ConfigError, match=r"^init 'he' has no option 'alpha'; it takes gain, mode, distribution$"):
        Config(init=InitConfig("he", own={"alpha": 1}))


def test_a_change_of_the_source_makes_another_run(mine: str, tmp_path: Path) -> None:
    config = Config(activation=f"{mine}:phi")
    content = summary(run(Config(**SMALL | {"steps": 0}, activation=f"{mine}:phi")))
    assert set(content["config"]["own_parts"]) == {f"{mine}:phi"}
    assert json.dumps(content)
    source = tmp_path / f"{mine}.py"
    source.write_text(source.read_text("utf-8") + "\n# another\n", "utf-8")
    assert config_hash(Config(activation=f"{mine}:phi")) == config_hash(config)  # what was imported counts
    del sys.modules[mine]
    assert config_hash(Config(activation=f"{mine}:phi")) != config_hash(config)


def test_two_functions_of_one_name_are_two_parts() -> None:
    def power(n: float) -> Callable[[Tensor], Tensor]:
        return lambda z: z.abs() ** n

    one, other = (Config(activation=power(n)) for n in (1.5, 2.5))
    assert str(one.activation) == str(other.activation)
    assert one != other
    assert config_hash(one) != config_hash(other)


def broken(name: str, body: str) -> Callable[..., Any]:
    """Return a function of the given source."""
    namespace: dict[str, Any] = {"torch": torch, "F": F}
    exec(body, namespace)
    function: Callable[..., Any] = namespace[name]
    function.__module__ = "bad"
    return function


def use(role: str, function: Callable[..., Any]) -> None:
    """Do with a part what a run does first."""
    part = own_part(role, function)
    if role == "activation":
        activation(part)
    elif role == "init":
        initialize(nn.Linear(3, 2), part, seed=0)
    elif role == "data":
        load(DataConfig(part), width=8)
    elif role == "optimizer":
        weights = [nn.Parameter(torch.ones(1, 2, 2)), nn.Parameter(torch.ones(1, 2))]
        optimizer = build_optimizer(OptimizerConfig(part), weights)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    else:
        data = load(DataConfig("gaussian"), width=8)
        batch_losses(torch.zeros(1, 5, 1), torch.zeros(1, 5, 1), resolve_loss(part, data, "gaussian"))


@pytest.mark.parametrize(
    ("role", "source", "text"),
    [
        ("activation", "def f(z): return None", "returns NoneType, not a tensor"),
        ("activation", "def f(z): return z.sum()", r"returns shape \(\) for \(13,\), and must act on each element"),
        ("activation", "def f(z): return torch.softmax(z, -1)", "must act on each element alone, and always alike"),
        (
            "activation",
            "def f(z): return z + torch.randn_like(z)",
            "must act on each element alone, and always alike",
        ),
        ("activation", "def f(z): return z.sqrt()", "returns nan at z = -3, and must be finite"),
        ("activation", "def f(z): return torch.tanh(z.detach())", "has no derivative that autograd knows"),
        ("activation", "def f(z): raise KeyError('a')", "raises KeyError: 'a'"),
        ("activation", "def f(): pass", r"must take \(z\), its signature is \(\)"),
        ("activation", "def f(z, alpha): pass", r"must take \(z\), but needs alpha too"),
        (
            "init",
            "def f(weight): return 2 * weight",
            r"leaves a weight of shape \(2, 3\) unset: it must fill it in place",
        ),
        ("init", "def f(weight): weight.fill_(1e400)", r"puts nan or inf into a weight of shape \(2, 3\)"),
        ("init", "def f(weight): weight.nope()", "raises AttributeError: 'Tensor' object has no attribute 'nope'"),
        ("init", "def f(): pass", r"must take \(weight, \*\*options\), its signature is \(\)"),
        ("data", "def f(): return None", "returns NoneType, not x and y, or x_train, y_train, x_test and y_test"),
        ("data", "def f(): return 1, 2, 3", "returns tuple of 3, not x and y"),
        ("data", "def f(): return ['a', 'b'], [1.0, 2.0]", "x must hold real numbers"),
        (
            "data",
            "def f(): return torch.full((9, 2), torch.nan), torch.ones(9)",
            "x holds values that are not finite",
        ),
        ("data", "def f(): return torch.ones(9, 2), torch.ones(8)", "x has 9 samples, but y has 8"),
        (
            "data",
            "def f(): return [torch.ones(4, 2), [0, 1, 1, 0], torch.ones(4, 3), [0, 1, 0, 0]]",
            "returns a test part",
        ),
        ("data", "def f(): 1 / 0", "raises ZeroDivisionError: division by zero"),
        ("data", "def f(path): pass", "needs data.path, which has no default"),
        ("optimizer", "def f(weights): return None", r"returns NoneType, not a torch\.optim\.Optimizer"),
        (
            "optimizer",
            "def f(w): return torch.optim.SGD(w[:1], lr=1)",
            "returns an optimizer without 1 of the 2 parameters",
        ),
        ("optimizer", "def f(w): return torch.optim.SGD(w, lr=-1)", "raises ValueError: Invalid learning rate: -1"),
        ("optimizer", "def f(w): return torch.optim.LBFGS(w)", "raises TypeError: LBFGS.step"),
        ("optimizer", "def f(): pass", r"must take \(parameters, \*\*options\), its signature is \(\)"),
        ("loss", "def f(output, y): return 1.0", "returns float, not a tensor with one number"),
        ("loss", "def f(output, y): return (output - y)", r"returns shape \(16, 1\), not one number: take the mean"),
        ("loss", "def f(output, y): return output.mean() * torch.nan", r"is nan for outputs drawn from N\(0, 1\)"),
        ("loss", "def f(output, y): return output.detach().mean()", "does not depend on the outputs"),
        ("loss", "def f(output, y): return output @ y", "raises RuntimeError: "),
        ("loss", "def f(output): pass", r"must take \(output, target\), its signature is \(output\)"),
    ],
)
def test_a_mistake_in_an_own_part_is_one_line_that_names_it(role: str, source: str, text: str) -> None:
    function = broken("f", source)
    with pytest.raises(ConfigError, match=rf"^{role} 'bad:f'(:|) {text}") as caught:
        use(role, function)
    assert "\n" not in str(caught.value)


def test_a_part_that_cannot_be_imported_is_one_line_that_names_it(mine: str, tmp_path: Path) -> None:
    (tmp_path / f"{mine}_typo.py").write_text("import torhc\n", "utf-8")
    (tmp_path / f"{mine}_syntax.py").write_text("x = = 3\n", "utf-8")
    (tmp_path / f"{mine}_exit.py").write_text("raise SystemExit(3)\n", "utf-8")
    for path, text in {
        "no_such_module:phi": r"there is no module 'no_such_module', neither no_such_module\.py in .* nor installed$",
        f"{mine}:phj": rf"module {mine} \(.*{mine}\.py\) has no 'phj'; did you mean 'phi'\?$",
        f"{mine}_typo:phi": rf"importing {mine}_typo raises ModuleNotFoundError: .*'torhc' \({mine}_typo\.py:1\)$",
        f"{mine}_syntax:phi": rf"importing {mine}_syntax raises SyntaxError: invalid syntax",
        f"{mine}_exit:phi": rf"importing {mine}_exit raises SystemExit: 3",
        "math:pi": r"^activation 'math:pi' is a float, not a function \(z\)$",
    }.items():
        with pytest.raises(ConfigError, match=text) as caught:
            Config(activation=path)
        assert str(caught.value).startswith(f"activation '{path}'")


def test_a_name_that_nearly_is_a_path_is_put_right() -> None:
    assert hint("init", "mine.my_init_") == "; your own is init=mine:my_init_"
    assert hint("loss", "./pkg/mine.py:loss") == "; your own is loss=pkg.mine:loss"
    assert hint("init", "xaviar") == hint("data", "mine.py") == ""
    with pytest.raises(ConfigError, match=r"got 'mine\.phi'; your own is activation=mine:phi$"):
        Config(activation="mine.phi")


def test_modules_with_parameters_are_refused_and_others_taken_as_class_or_object() -> None:
    assert activation(own_part("activation", nn.Mish))(torch.ones(1)) == F.mish(torch.ones(1))
    assert isinstance(Config(activation=nn.GELU("tanh")).activation, OwnPart)
    with pytest.raises(ConfigError, match="has parameters of its own, which a run would not train"):
        activation(own_part("activation", nn.PReLU()))


@pytest.mark.slow
def test_a_command_takes_parts_from_the_current_folder(
    mine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.remove(str(Path.cwd()))
    assert call(main, monkeypatch, *typed(mine), "hydra.run.dir=one", "record.figures=false") == 0
    content = json.loads(Path("one/summary.json").read_text("utf-8"))
    assert content["config"]["init"] == {"name": f"{mine}:init_", "alpha": 1.5}
    assert content["config"]["data"] == {"name": f"{mine}:data", "samples": 40}
    assert len(set(content["config"]["own_parts"].values())) == 1
    assert content["verdict"]["training"] in ("trained", "stuck")
    assert f"init      {mine}:init_ (alpha=1.5)" in capsys.readouterr().out
    line = mistake(main, monkeypatch, capsys, [f"init={mine}:init_", "init.alhpa=1"])
    assert line == f"init '{mine}:init_' has no option 'alhpa'; it takes alpha"
    line = mistake(main, monkeypatch, capsys, [f"init={mine}.init_"])
    assert line.endswith(f"; your own is init={mine}:init_")


@pytest.mark.slow
def test_launchers_agree_on_a_sweep_with_own_parts(
    mine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *typed(mine), "threads=1", f"activation={mine}:phi,tanh", "seed=0,1"]
    assert call(main, monkeypatch, *sweep, "hydra.sweep.dir=basic") == 0
    assert call(main, monkeypatch, *sweep, "hydra.sweep.dir=stacks", "hydra/launcher=ensemble") == 0
    assert_a_stack_is_equal_up_to_rounding(Path("stacks"), Path("basic"))
    assert f"0_activation={mine}-phi,seed=0" in summaries(Path("basic"))
    capsys.readouterr()
    assert call(main, monkeypatch, *sweep, "hydra.sweep.dir=basic") == 0
    assert "4 complete" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_that_a_file_names_is_imported(
    mine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = typed(mine)
    assert call(main, monkeypatch, "-m", *own, "steps=0", "hydra.sweep.dir=sweep", "init.alpha=1,2") == 0
    folder = Path("sweep/0_init.alpha=1").absolute()
    del sys.modules[mine]
    monkeypatch.setattr("gradexp.own_parts._allowed", {})
    assert call(report.main, monkeypatch, "sweep") == 0
    for command in (main, predict):
        line = mistake(command, monkeypatch, capsys, ["--config-path", str(folder / ".hydra"), "hydra.run.dir=again"])
        assert re.search(r"^(\w+) '\w+:\w+' is named by a file and would run code; if you trust it, type ", line)
    assert mine not in sys.modules
    names = [option.replace("=", ".name=", 1) for option in own if re.match(r"(init|data|optimizer)=", option)]
    others = [option for option in own if option.startswith(("activation", "loss"))]
    again = ["--config-path", str(folder / ".hydra"), "hydra.run.dir=again", *names, *others]
    assert call(main, monkeypatch, *again) == 0
    hashes = {
        json.loads((place / "summary.json").read_text("utf-8"))["config_hash"] for place in (folder, Path("again"))
    }
    assert len(hashes) == 1


def test_what_was_not_typed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradexp.own_parts._allowed", {"mine:a": "."})
    check_typed({"init": {"name": "mine:a"}, "activation": "mine:a", "loss": "mse"})
    with pytest.raises(ConfigError, match=r"^init 'mine:b' is named by a file .*, type init\.name=mine:b too$"):
        check_typed({"init": {"name": "mine:b"}})
    with pytest.raises(ConfigError, match=r"^loss 'mine:b' is named by a file .*, type loss=mine:b too$"):
        check_typed({"loss": "mine:b"})


@pytest.mark.slow
def test_compose_takes_what_it_is_given(mine: str) -> None:
    configs = compose([f"init=he,{mine}:init_", "depth=3"])
    assert [config.init.name for config in configs] == ["he", f"{mine}:init_"]
    assert configs[1].init.own == {"alpha": 2.0}
