"""The sum of squares of float32 numbers in C, which takes a fraction of the time that torch needs for it.

It is for those who ask for it by ``GRADEXP_COMPILED_NORMS=1`` in the environment (also true, yes or on), and have a C
compiler. Each process compiles it anew, in a few tenths of a second: a library kept on a disk might be of another
processor.
"""

import ctypes
import os
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

SquareSum = Callable[[int, int], float]
"""From the address of the first number, and how many there are, to the sum of their squares in float64."""


def square_sum_if_asked() -> SquareSum | None:
    """Return the compiled function if the environment asks for it; warn, and return None, where that fails."""
    if not _is_asked_for():
        return None
    try:
        return compiled_square_sum()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).splitlines()[0]
        warnings.warn(
            f"GRADEXP_COMPILED_NORMS needs a C compiler, $CC or cc ({reason}); norms are taken by torch", stacklevel=2
        )
        return None


_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def _is_asked_for() -> bool:
    given = os.environ.get("GRADEXP_COMPILED_NORMS", "")
    word = given.strip().lower()
    if word not in _YES + _NO:
        allowed = f"{', '.join(_YES)} or {', '.join(_NO[1:])}"
        text = f"GRADEXP_COMPILED_NORMS must be {allowed}, got {given!r}; norms are taken by torch"
        warnings.warn(text, stacklevel=4)
    return word in _YES


def compiled_square_sum() -> SquareSum:
    """Compile the function by ``$CC``, or else ``cc``.

    Raises:
        OSError: If there is no such compiler, or what it made cannot be loaded.
        ValueError: If ``$CC`` has a quotation mark without its other one.
        subprocess.CalledProcessError: If it fails; its ``stderr`` says why.
    """
    source = Path(__file__).with_name("compiled.c")
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = Path(folder) / "compiled.so"
        command = [*compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        function = ctypes.CDLL(str(library)).square_sum
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.c_double
    return function
