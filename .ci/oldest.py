"""Print the oldest versions that pyproject.toml allows, one requirement a line, as constraints for pip.

Torch is left out: constraints.txt names the build that is tested.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *(each for name in sys.argv[1:] for each in extras[name])]:
    bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":
        print(f"{bound[1]}=={bound[2]}")  # noqa: T201
