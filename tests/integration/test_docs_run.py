"""Every example and every command of README and docs runs as it is written there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ASKED_FOR, PAGES, ROOT, Block, blocks

pytestmark = ASKED_FOR

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # threads that wait for each other on a busy machine take many times as long
}


def is_run(block: Block) -> bool:
    """Return whether a block is code that runs where the documentation is tested."""
    return block.language in {"python", "bash"} and block.reason is None


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks(page)))])
def test_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    script: list[str] = []
    commands: list[str] = []
    for block in filter(is_run, blocks(page)):
        if block.title:
            (tmp_path / block.title).write_text(block.body, encoding="utf-8")
        elif block.language == "bash":
            commands.append(block.body)
        else:  # each block keeps its line of the page, so that an error names it
            script += [""] * (block.line - len(script)) + block.body.splitlines()
    (tmp_path / "examples.py").write_text("\n".join(script) + "\n", encoding="utf-8")
    for command in ([sys.executable, "-W", "ignore", "examples.py"], ["bash", "-e", "-c", "".join(commands)]):
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
