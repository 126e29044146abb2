"""What an import must not load: start-up is part of what users feel."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
from sweep_processes import LIMIT

_REPORT = "print(*sys.modules, sep='\\n', end='\\n\\f')"


def loaded_after(*chains: Sequence[str], before: str = "import sys") -> list[list[set[str]]]:
    """Take the steps of each chain in a process of its own, all forked from one that has taken the step ``before``.

    Returns what each step has printed together with the modules that are loaded after it.
    """
    code = ["import os, sys", before]
    for steps in chains:
        child = "".join(f"{step}\n{_REPORT}\n" for step in steps) + "print(end='\\v', flush=True)\nos._exit(0)"
        code += ["sys.stdout.flush()", f"if not os.fork(): exec({child!r}, {{'sys': sys, 'os': os}})"]
        code.append("if os.wait()[1]: sys.exit('a step failed')")
    command = [sys.executable, "-c", "\n".join(code)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT).stdout
    return [[set(part.split()) for part in chain.split("\f")[:-1]] for chain in shown.split("\v")[:-1]]


# Each list is of one process. What a step must not load, none before it may.
WITHOUT_TORCH = [
    [("import gradexp", ("torch", "hydra", "numpy", "tensorboard"))],
    [("import gradexp.config", ("torch", "hydra", "numpy"))],
    [("import gradexp.cli.command", ("torch", "numpy", "sklearn", "matplotlib"))],
    [("import gradexp.run", ("torch", "numpy", "rich"))],
    [("import gradexp.sinks.console, gradexp.sinks.page", ("torch", "hydra", "matplotlib"))],  # the first line
    [("import gradexp.report", ("torch", "hydra"))],
    [("import gradexp.lesson.__main__", ("torch", "numpy", "rich", "hydra"))],
    [("import gradexp.predict.__main__, gradexp.phase.__main__", ("torch", "numpy", "rich", "scipy", "matplotlib"))],
    [
        (
            "import gradexp.runs.experiment, gradexp.sinks.tensorboard, gradexp.sinks.files",
            ("torch", "hydra", "sklearn", "matplotlib", "tensorboard"),
        )
    ],
]
WITH_TORCH = [
    [
        ("import gradexp.runs.data", ("sklearn", "mlxtend")),
        (
            "from gradexp import MLP, GradientProbe, History, exact_profile, initialize, Config",
            ("hydra", "sklearn", "matplotlib", "tensorboard", "scipy"),
        ),
        (
            "from gradexp.runs import run; from gradexp import Config\n"
            "from gradexp.config import DataConfig\n"
            "import gradexp.probe.probe, gradexp.runs.live_results, gradexp.runs.training\n"
            "run(Config(depth=3, width=4, steps=0, data=DataConfig('gaussian', samples=100)))",
            ("sklearn", "matplotlib", "tensorboard", "hydra"),
        ),
        (
            "run(Config(depth=3, width=4, steps=1))",
            ("sklearn", "matplotlib", "tensorboard", "hydra", "torch._dynamo", "pandas"),
        ),
    ],
    [
        (
            "from gradexp import Config; from gradexp.predict.forecast import forecast\nforecast(Config(depth=3))",
            ("hydra", "sklearn", "matplotlib", "tensorboard", "gradexp.exact.profile", "gradexp.probe.probe"),
        ),
        ("import gradexp.phase.plane", ("hydra", "sklearn", "matplotlib", "tensorboard")),
        (
            "sys.argv = ['gradexp', 'depth=3']\nfrom gradexp.predict.__main__ import main\nmain()",
            ("sklearn", "matplotlib", "tensorboard", "mlxtend", "gradexp.runs.stages"),
        ),
    ],
]


@pytest.mark.parametrize(
    ("before", "chains"),
    [
        pytest.param("import sys", WITHOUT_TORCH, id="light"),
        pytest.param("import torch", WITH_TORCH, id="with torch", marks=pytest.mark.slow),
    ],
)
def test_import_stays_light(before: str, chains: list[list[tuple[str, tuple[str, ...]]]]) -> None:
    shown = loaded_after(*([code for code, _ in steps] for steps in chains), before=before)
    assert len(shown) == len(chains)
    for steps, sets in zip(chains, shown, strict=True):
        for loaded, (code, absent) in zip(sets, steps, strict=True):
            assert not loaded & set(absent), code


def test_help_does_not_load_torch() -> None:
    code = "sys.argv = ['gradexp', '--help']\n"
    code += "from gradexp.{module} import main\ntry: main()\nexcept SystemExit: pass"
    options = {"run": "init=xavier", "predict.__main__": "init=xavier", "phase.__main__": "rows=29"}
    (shown,) = loaded_after([code.format(module=module) for module in options])
    for loaded, option in zip(shown, options.values(), strict=True):
        assert not loaded & {"torch", "numpy"}
        assert option in loaded  # the help itself was printed


def test_public_names_are_listed_and_load() -> None:
    import gradexp

    for name in gradexp.__all__:
        assert getattr(gradexp, name) is not None
        assert name in dir(gradexp)
    with pytest.raises(AttributeError, match="module 'gradexp' has no attribute 'nope'"):
        gradexp.nope  # noqa: B018
