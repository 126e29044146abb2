"""One function and one entry make a choice: what is read from the sources, and the recipe of CONTRIBUTING.md."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradexp import choices
from gradexp.choice_options import check_fields
from gradexp.choices import ConfigError, read_choices
from gradexp.config import InitConfig
from gradexp.networks.activations import ACTIVATIONS
from gradexp.networks.inits import INITS
from gradexp.runs.data import LOADERS
from gradexp.runs.losses import LOSSES
from gradexp.runs.optimizers import OPTIMIZERS

ROOT = Path(__file__).parents[1]


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    shared = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return {parameter.name: parameter.default for parameter in shared if parameter.default is not parameter.empty}


def test_what_is_read_from_the_sources_is_what_the_functions_take() -> None:
    assert {name: options_of(scheme.fill) for name, scheme in INITS.items()} == choices.INIT_OPTIONS
    assert {name: options_of(source.load) for name, source in LOADERS.items()} == choices.DATA_OPTIONS
    built = {name: options_of(build) | choices.OF_EVERY_OPTIMIZER for name, build in OPTIMIZERS.items()}
    assert built == choices.OPTIMIZER_OPTIONS
    assert tuple(ACTIVATIONS) == choices.ACTIVATIONS
    assert ("auto", *LOSSES) == choices.LOSSES


def test_every_choice_is_in_the_order_of_its_entry() -> None:
    source = "def b_(w): ...\ndef a_(w, z=1, y=None, *, x=2): ...\nALL: dict = {'b': b_, 'a': One(a_, x=3), 'c': 4}"
    assert [(name, list(options)) for name, options in read_choices(source, "ALL").items()] == [
        ("b", []),
        ("a", ["z", "y"]),
        ("c", []),
    ]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("ALL = {'half': Scheme(half_)}", "ALL['half'] names half_, which is no function of its file"),
        ("def half_(w, gain=GAIN): ...\nALL = {'half': half_}", "the defaults of ALL['half'] must be plain values"),
        ("NONE = {}", "there is no dict ALL"),
    ],
)
def test_an_entry_without_its_partner_is_named_in_one_line(source: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}.*$"):
        read_choices(source, "ALL")


def test_an_option_that_the_schema_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choices.INIT_OPTIONS, "half", {"gain": 1.0, "share": 0.5})
    with pytest.raises(ConfigError, match=r"^init 'half' has an option 'share', which InitConfig in config.py lacks"):
        check_fields("init", InitConfig)


def copy_of_the_package(folder: Path) -> Path:
    for name in ("gradexp", "hydra_plugins", "configs"):
        shutil.copytree(ROOT / name, folder / name)  # with its bytecode, which saves a second
    return folder


def add(file: Path, registry: str, function: str, entry: str) -> None:
    """Write a function above a dict of choices, and an entry at its end."""
    before, head, after = re.split(rf"^({registry}: .*\n)", file.read_text("utf-8"), flags=re.MULTILINE)
    entries, end, rest = after.partition("\n}\n")
    file.write_text(f"{before}{function}\n\n{head}{entries}\n{entry.rstrip()}{end}{rest}", "utf-8")


def results_in(folder: Path, *overrides: str) -> tuple[str, dict[str, Any]]:
    """Return what help, forecast and run of a copy print, and the summary of the run."""
    code = (
        "import gc; gc.disable()\n"  # its walks over all of torch take a tenth of the time
        "import sys, gradexp.run, gradexp.predict.__main__ as predict\n"
        "for command, options in ((gradexp.run, ['--help']), (predict, sys.argv[1:]), (gradexp.run, sys.argv[1:])):\n"
        "    sys.argv = ['gradexp', *options, *['hydra.run.dir=out'] * (command is gradexp.run)]\n"
        "    try: command.main()\n"
        "    except SystemExit as end: assert not end.code\n"
    )
    given = ["depth=10", "width=8", "steps=2", "record.figures=false", *overrides]
    called = subprocess.run(
        [sys.executable, "-c", code, *given], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert not called.returncode, called.stderr
    summary: dict[str, Any] = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["status"] == "complete"
    return called.stdout, summary


def recipe() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (section,) = re.findall(r"^## Add an initialisation\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(?:python|text)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


NEW_CHOICES = {
    "networks/activations.py": ("ACTIVATIONS", "", '    "bent": Activation(F.tanhshrink, (0, 0), (1, 1)),'),
    "runs/data.py": (
        "LOADERS",
        "def _noise(samples: int = 100, *, width: int) -> Dataset:\n"
        "    x = torch.randn(samples, width, generator=generator(0, 'noise')).numpy()\n"
        "    return _split(x, x[:, :3])\n",
        '    "noise": Source(_noise),',
    ),
    "runs/optimizers.py": (
        "OPTIMIZERS",
        "def _signs(weights: Weights, lr: float = 0.125) -> torch.optim.Optimizer:\n"
        "    return torch.optim.Rprop(weights, lr=lr)\n",
        '    "signs": _signs,',
    ),
    "runs/losses.py": (
        "LOSSES",
        "def _l1(output: Tensor, y: Tensor) -> Tensor:\n    return (output - y).abs().flatten(1).mean(1)\n",
        '    "l1": Loss(_l1),',
    ),
}


@pytest.mark.slow
def test_a_scheme_without_a_law_and_every_other_choice_need_one_function_and_one_entry(tmp_path: Path) -> None:
    function, entry, _ = recipe()
    folder = copy_of_the_package(tmp_path)
    add(folder / "gradexp/networks/inits.py", "INITS", function, entry)
    for file, new in NEW_CHOICES.items():
        add(folder / "gradexp" / file, *new)
    chosen = ("activation=bent", "data=noise", "optimizer=signs", "loss=l1")
    text, summary = results_in(folder, "init=half", "init.gain=2", *chosen)
    assert re.search("^  init=half +init.gain=1.0$", text, flags=re.MULTILINE)
    assert re.search("^  data=noise +data.samples=100$", text, flags=re.MULTILINE)
    assert re.search("^  optimizer=signs +optimizer.lr=0.125 ", text, flags=re.MULTILINE)
    assert re.search("^Activations: .*, bent$", text, flags=re.MULTILINE | re.DOTALL)
    assert "verdict   unknown: no law is known for init 'half'\n" in text  # of the forecast
    assert re.search("^theory +unavailable: no law is known for init 'half'$", text, flags=re.MULTILINE)  # of the run
    assert summary["theory"]["reason"] == "no law is known for init 'half'"
    assert summary["verdict"]["theory"] == "unavailable"
    assert summary["config"]["init"] == {"name": "half", "gain": 2.0}
    assert {"name": "signs", "lr": 0.125}.items() <= summary["config"]["optimizer"].items()
    assert {f"{key}={summary['config'][key]}" for key in ("activation", "loss")} < set(chosen)


@pytest.mark.slow
def test_a_scheme_with_a_law_is_predicted(tmp_path: Path) -> None:
    function, _, entry = recipe()
    folder = copy_of_the_package(tmp_path)
    add(folder / "gradexp/networks/inits.py", "INITS", function, entry)
    text, summary = results_in(folder, "init=half", "activation=linear", "data=gaussian")
    assert re.search(r"^sigma_w2  0\.5 ", text, flags=re.MULTILINE)
    assert summary["theory"]["sigma_w2"] == 0.5
    assert summary["verdict"]["theory"] == "agrees"
