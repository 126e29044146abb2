"""The files in examples/ run as they are, and show what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ASKED_FOR, ROOT

pytestmark = ASKED_FOR


def printed(name: str, folder: Path) -> str:
    """Return what an example prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_transformer_does_not_train_until_it_is_cured_as_it_is_told(tmp_path: Path) -> None:
    text = printed("plain_loop.py", tmp_path)
    assert re.search(r"^saturated: the softmax in blocks\.layers\.0\.self_attn", text, re.MULTILINE)
    assert "try: gradexp.initialize(model, 'xavier')" in text
    before, after = map(float, re.search(r"as it was and cured: ([\d.]+) ([\d.]+)$", text, re.MULTILINE).groups())
    assert before > 2  # guessing costs 2.30
    assert after < 1
    assert (tmp_path / "cured.html").is_file()


def test_lightning_shows_what_vanishes(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    text = printed("lightning_module.py", tmp_path)
    assert re.search(r"^vanishing: .* by 10\^-3\d\.\d in all", text, re.MULTILINE)
    assert (tmp_path / "lightning.html").is_file()


def test_transformers_trainer_shows_a_calm_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    text = printed("transformers_trainer.py", tmp_path)
    assert re.search(r"^stable: ", text, re.MULTILINE)
    assert (tmp_path / "trainer.html").is_file()
