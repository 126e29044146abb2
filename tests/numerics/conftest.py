import subprocess

import pytest

from gradexp.numerics.compiled import compiled_square_sum


@pytest.fixture(scope="session")
def in_c():
    """The sum of squares as the compiler makes it."""
    try:
        return compiled_square_sum()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a C compiler: {error}")
