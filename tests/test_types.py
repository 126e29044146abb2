"""What type checkers say of code that uses the library."""

import subprocess
import sys
from pathlib import Path

import pytest
from sources import ROOT

MISTAKES = """
from gradexp import measure
from gradexp import mesure
"""


@pytest.mark.slow
def test_mypy_refuses_a_name_that_the_library_does_not_have(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(MISTAKES, encoding="utf-8")
    # Only these two files are read, since what the first one imports does not matter here.
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--config-file=", "--no-error-summary"]
    command += ["--cache-dir", str(tmp_path / "cache"), str(ROOT / "gradexp" / "__init__.py"), str(code)]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (line,) = shown.stdout.splitlines()
    assert 'code.py:3: error: Module "gradexp" has no attribute "mesure"' in line
