"""The library's own code, parsed once for all tests that read it."""

import ast
from functools import cache
from pathlib import Path

import gradexp

ROOT = Path(gradexp.__file__).parents[1]


@cache
def trees() -> dict[str, ast.AST]:
    """Return the syntax tree of each file of the library and of its plug-ins."""
    files = [*ROOT.glob("gradexp/**/*.py"), *ROOT.glob("hydra_plugins/gradexp_*/*.py")]
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}
