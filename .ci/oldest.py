"""Print the oldest versions that pyproject.toml allows, as constraints for pip, and torch as constraints.txt has it.

The build of torch that is tested stays: older ones come with gigabytes of CUDA packages.
"""

import re
import sys
import tomllib
from pathlib import Path

root = Path(__file__).parents[1]
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *(each for name in sys.argv[1:] for each in extras[name])]:
    bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":
        print(f"{bound[1]}=={bound[2]}")  # noqa: T201
(torch,) = re.findall(r"^torch==.*$", (root / "constraints.txt").read_text(), re.MULTILINE)
print(torch)  # noqa: T201
