"""What an import must not load: start-up is part of what users feel."""

import subprocess
import sys

import pytest
from sweep_processes import LIMIT


def loaded_after(*steps: str) -> list[set[str]]:
    """Take some steps in one new process, and return what each has printed and which modules are loaded after it."""
    report = "import sys; print(*sys.modules, sep='\\n', end='\\n\\f')"
    code = "".join(f"{step}\n{report}\n" for step in steps)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT)
    return [set(part.split()) for part in shown.stdout.split("\f")[:-1]]


# Each list is of one process, since loading torch takes a second. What a step must not load, none before it may.
@pytest.mark.parametrize(
    "steps",
    [
        [("import gradexp", ("torch", "hydra", "numpy", "tensorboard"))],
        [("import gradexp.config", ("torch", "hydra", "numpy"))],
        [("import gradexp.cli.command", ("torch", "numpy", "sklearn", "matplotlib"))],
        [("import gradexp.run", ("torch", "numpy", "rich"))],
        [
            (
                "import gradexp.predict.__main__, gradexp.phase.__main__",
                ("torch", "numpy", "rich", "scipy", "matplotlib"),
            )
        ],
        [
            (
                "import gradexp.runs.experiment, gradexp.sinks.tensorboard, gradexp.sinks.files",
                ("torch", "hydra", "sklearn", "matplotlib", "tensorboard"),
            )
        ],
        [
            ("import gradexp.runs.data", ("sklearn", "mlxtend")),
            (
                "from gradexp import MLP, GradientProbe, History, exact_profile, initialize, Config",
                ("hydra", "sklearn", "matplotlib", "tensorboard", "scipy"),
            ),
            (
                "from gradexp.runs import run; from gradexp import Config\n"
                "from gradexp.config import DataConfig\n"
                "run(Config(depth=3, width=4, steps=1, data=DataConfig('gaussian', samples=100)))",
                ("sklearn", "matplotlib", "tensorboard", "hydra"),
            ),
        ],
        [
            (
                "from gradexp import Config; from gradexp.predict.forecast import forecast\n"
                "forecast(Config(depth=3))",
                ("hydra", "sklearn", "matplotlib", "tensorboard", "gradexp.exact.profile", "gradexp.probe.probe"),
            ),
            ("import gradexp.phase.plane", ("hydra", "sklearn", "matplotlib", "tensorboard")),
            (
                "sys.argv = ['gradexp', 'depth=3']\nfrom gradexp.predict.__main__ import main\nmain()",
                ("sklearn", "matplotlib", "tensorboard", "mlxtend", "gradexp.runs.stages"),
            ),
        ],
    ],
    ids=lambda steps: steps[0][0].splitlines()[0],
)
def test_import_stays_light(steps: list[tuple[str, tuple[str, ...]]]) -> None:
    shown = loaded_after(*(code for code, _ in steps))
    for loaded, (code, absent) in zip(shown, steps, strict=True):
        assert not loaded & set(absent), code


@pytest.mark.parametrize(
    ("module", "option"), [("run", "init=xavier"), ("predict.__main__", "init=xavier"), ("phase.__main__", "rows=29")]
)
def test_help_does_not_load_torch(module: str, option: str) -> None:
    code = "import sys; sys.argv = ['gradexp', '--help']\n"
    code += f"from gradexp.{module} import main\ntry: main()\nexcept SystemExit: pass"
    (shown,) = loaded_after(code)
    assert not shown & {"torch", "numpy"}
    assert option in shown  # the help itself was printed


def test_public_names_are_listed_and_load() -> None:
    import gradexp

    for name in gradexp.__all__:
        assert getattr(gradexp, name) is not None
        assert name in dir(gradexp)
    with pytest.raises(AttributeError, match="module 'gradexp' has no attribute 'nope'"):
        gradexp.nope  # noqa: B018
