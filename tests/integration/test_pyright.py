"""What pyright says of the library's types, and of code that uses it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright")

# Each line but the second one is wrong.
MISTAKES = """
from gradexp import mesure
import gradexp; from torch import nn; model = nn.Linear(1, 1); history = gradexp.measure(model, model, (1, 2))
gradexp.measure(model, model, (1, 2), quantity=("output",))
gradexp.measure(model, model, (1, 2), quantities=("outputs",))
history.profile("output_gradient")
probe = gradexp.GradientProbe(model, alarm="stop")
"""
# Right only if words are no mere texts.
RIGHT = """
import gradexp; from torch import nn; model = nn.Linear(1, 1)
history = gradexp.measure(model, model, (1, 2), quantities=("output", "update"), per_sample=True)
for quantity in history.log10:
    history.profile(quantity)
from typing import Literal; verdict = history.verdict()
gradient: Literal["stable", "vanishing", "exploding", "dead", "nonfinite", "unknown"] = verdict.gradient
phase: Literal["init", "train"] = history.phase
probe = gradexp.GradientProbe(model, alarm=print, quantities=["output"], alarm_on=("dead",))
"""


def pyright(*arguments: str, folder: Path) -> dict[str, Any]:
    """Return what pyright reports; the package of that name holds the program, and downloads no other one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT": "1"}
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    shown = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(shown.stdout)
    return report


def test_every_public_type_is_known(tmp_path: Path) -> None:
    report = pyright("--verifytypes", "gradexp", "--ignoreexternal", folder=tmp_path)["typeCompleteness"]
    unknown = [symbol["name"] for symbol in report["symbols"] if symbol["isExported"] and not symbol["isTypeKnown"]]
    assert unknown == []
    assert report["completenessScore"] == 1


def test_mistakes_in_names_and_words_are_found(tmp_path: Path) -> None:
    for name, code in (("mistakes.py", MISTAKES), ("right.py", RIGHT)):
        (tmp_path / name).write_text(code, encoding="utf-8")
    report = pyright("mistakes.py", "right.py", folder=tmp_path)
    found = [
        (Path(each["file"]).name, each["range"]["start"]["line"])
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    lines = range(1, len(MISTAKES.splitlines()))
    assert sorted(set(found)) == [("mistakes.py", line) for line in lines if line != 2]
