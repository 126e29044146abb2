"""The package index has another package called gradexp; the plug-ins say so where they meet it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sources import ROOT

PROGRAM = """
import hydra

@hydra.main(version_base=None)
def main(config):
    pass

main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("option", ["hydra/launcher=ensemble", "hydra/sweeper=resumable"])
def test_a_program_is_told_that_gradexp_is_somebody_elses(option: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "gradexp.py").write_text("def connect(): ...\n", encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, "program.py", "-m", option, "+x=1,2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    line, *rest = shown.stderr.strip().splitlines()
    assert line == (
        f"{tmp_path / 'gradexp.py'} is somebody else's package gradexp, and not that of gradexp-torch; "
        "pip uninstall gradexp, then install gradexp-torch from its clone again"
    )
    assert len(rest) <= 2  # Hydra's own hint
