"""What an import must not load: start-up is part of what users feel."""

import subprocess
import sys

import pytest


def loaded_after(code: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(shown.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import gradexp", ("torch", "hydra", "numpy", "tensorboard")),
        ("import gradexp.config", ("torch", "hydra", "numpy")),
        ("import gradexp.cli", ("torch", "numpy", "sklearn", "matplotlib")),
        ("import gradexp.run", ("torch", "numpy", "rich")),
        ("import gradexp.predict, gradexp.phase", ("torch", "numpy", "rich", "scipy", "matplotlib")),
        (
            "from gradexp.forecast import forecast; from gradexp import Config\nstr(forecast(Config(depth=3)))",
            ("hydra", "sklearn", "matplotlib", "tensorboard", "gradexp.propagate", "gradexp.probe"),
        ),
        ("import gradexp.plane", ("hydra", "sklearn", "matplotlib", "tensorboard")),
        ("import gradexp.experiment, gradexp.sinks", ("torch", "hydra", "sklearn", "matplotlib", "tensorboard")),
        (
            "from gradexp import MLP, GradientProbe, History, exact_profile, initialize, Config",
            ("hydra", "sklearn", "matplotlib", "tensorboard", "scipy"),
        ),
        (
            "from gradexp.experiment import run; from gradexp import Config\n"
            "from gradexp.config import DataConfig\n"
            "run(Config(depth=3, width=4, steps=1, data=DataConfig('gaussian', samples=100)))",
            ("sklearn", "matplotlib", "tensorboard", "hydra"),
        ),
    ],
)
def test_import_stays_light(code: str, absent: tuple[str, ...]) -> None:
    assert not loaded_after(code) & set(absent)


@pytest.mark.parametrize(
    ("command", "option"), [("run", "init=xavier"), ("predict", "init=xavier"), ("phase", "rows=29")]
)
def test_help_does_not_load_torch(command: str, option: str) -> None:
    code = "import sys; sys.argv = ['gradexp', '--help']\n"
    code += f"from gradexp.{command} import main\ntry: main()\nexcept SystemExit: pass"
    shown = loaded_after(code)
    assert not shown & {"torch", "numpy"}
    assert option in shown  # the help itself was printed


def test_a_prediction_on_the_command_line_loads_no_data_and_draws_nothing() -> None:
    code = "import sys; sys.argv = ['gradexp', 'depth=3']\nfrom gradexp.predict import main\nmain()"
    assert not loaded_after(code) & {"sklearn", "matplotlib", "tensorboard", "mlxtend", "gradexp.experiment"}


def test_public_names_are_listed_and_load() -> None:
    import gradexp

    for name in gradexp.__all__:
        assert getattr(gradexp, name) is not None
        assert name in dir(gradexp)
    with pytest.raises(AttributeError, match="module 'gradexp' has no attribute 'nope'"):
        gradexp.nope  # noqa: B018
