"""How much main memory programs can still have: of the machine, the container and the Slurm job.

A container's limit is that of its control group (cgroup) and of all above it. What it uses counts without files that
it has read and can forget, as Kubernetes counts it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

# Bytes that a system may be taken to have which does not say.
_UNKNOWN = 4 << 30
# A limit of about 2^63 is version 1's way to say that there is none.
_NO_LIMIT = 1 << 60


def free_memory(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Return the bytes of main memory that programs can still have.

    Args:
        root: Folder that holds ``proc`` and ``sys``.
        environment: Environment variables, among which Slurm's.
    """
    limits = [_of_machine(root), *_of_groups(root), *_of_slurm(environment)]
    return max(0, min(limits))


def _of_machine(root: Path) -> int:
    """Return what the machine has free; where that is not known, half of all there is."""
    with suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        return next(iter(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")))
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return _UNKNOWN


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what each control group of this process has left."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "sys/fs/cgroup/memory", path, *names)


def _left(mount: Path, path: str, limit: str, usage: str, forgettable: str) -> Iterator[int]:
    """Yield what a group and those above it have left; inside a container the mount is its own group."""
    inside = Path(path.strip("/"))
    for folder in (mount / inside, *(mount / above for above in inside.parents)):
        with suppress(OSError, ValueError):  # "max" is no limit
            most = int((folder / limit).read_text("ascii"))
            if most >= _NO_LIMIT:
                continue
            used = int((folder / usage).read_text("ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
            yield most - max(0, used - int(stat.get(forgettable, 0)))


def _of_slurm(environment: Mapping[str, str]) -> Iterator[int]:
    """Yield what Slurm gave the job on this node, in MiB; 0 is all of the node."""
    with suppress(KeyError, ValueError):
        if whole := int(environment["SLURM_MEM_PER_NODE"]):
            yield whole << 20
    with suppress(KeyError, ValueError):
        each = int(environment["SLURM_MEM_PER_CPU"])
        if each:
            yield (each << 20) * int(environment["SLURM_CPUS_ON_NODE"])
