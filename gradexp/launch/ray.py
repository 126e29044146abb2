"""Ray: the tasks of a sweep on the nodes of a cluster that is running."""

import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradexp.choices import ConfigError
from gradexp.launch.cluster import Task

# Seconds between two looks at what has ended.
_PAUSE = 0.5


class Ray:
    """Tasks as remote functions.

    Args:
        address: Address of the cluster: ``auto`` for the one of this machine or of the environment variable
            RAY_ADDRESS, ``HOST:PORT``, or ``local`` to start one here for the time of the sweep.
        cpus_per_task: Cores of a task; None: one.
        gpus_per_task: GPUs of a task; a fraction shares one.
        max_retries: How often a task begins anew whose node or process was lost.
        init: Any other argument of ``ray.init``.
        remote: Any other option of a remote function, such as ``memory`` in bytes.
    """

    def __init__(
        self,
        address: str,
        cpus_per_task: int | None,
        gpus_per_task: float,
        max_retries: int,
        init: Mapping[str, Any],
        remote: Mapping[str, Any],
    ) -> None:
        self.address = address
        self.init: dict[str, Any] = dict(init)
        self.remote: dict[str, Any] = {
            "num_cpus": 1 if cpus_per_task is None else cpus_per_task,  # none is no CPU to Ray
            "num_gpus": gpus_per_task,
            "max_retries": max_retries,
            **remote,
        }
        self._waiting: dict[Any, int] = {}
        self._ray: Any = None  # the package, once it was there to be imported

    def submit(self, run: Callable[[Task], None], tasks: Sequence[Task], folder: Path) -> str:  # noqa: ARG002
        """Connect to the cluster and send the tasks off.

        Raises:
            ConfigError: If there is no cluster, or it refuses.
        """
        try:
            import ray  # an extra
        except ImportError:
            raise ConfigError("hydra/launcher=ray_cluster needs ray; install it with pip install ray") from None
        self._ray = ray
        self._knock()
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            context = ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **self.init)
            remote = ray.remote(run).options(**self.remote)
            self._waiting = {remote.remote(task): index for index, task in enumerate(tasks)}
        except ConnectionError as error:
            raise self._nothing_there(str(error)) from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: {error}".partition("\n")[0]) from error
        finally:
            signal.signal(signal.SIGTERM, on_term)  # which ray has replaced
        nodes = [node for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.remote["num_cpus"], "GPU": self.remote["num_gpus"]}
        if not any(all(node["Resources"].get(key, 0) >= most for key, most in wanted.items()) for node in nodes):
            what = " and ".join(f"{most:g} {key}" for key, most in wanted.items() if most)
            print(f"no node of the Ray cluster has {what}; waiting for one", file=sys.stderr)  # noqa: T201
        return f"ray       {len(tasks)} tasks on {len(nodes)} nodes of {context.address_info['gcs_address']}"

    def _knock(self) -> None:
        """Check that somebody listens at the address, which Ray itself tells only after more than a minute."""
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or "/" in host:
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise self._nothing_there(error.strerror or str(error)) from error

    def _nothing_there(self, reason: str) -> ConfigError:
        reason = reason.partition("\n")[0].partition(". ")[0]
        return ConfigError(
            f"no Ray cluster at '{self.address}' ({reason}); start one with ray start --head, name another with "
            "hydra.launcher.address=HOST:PORT, or start one for the sweep with hydra.launcher.address=local"
        )

    def poll(self) -> Iterator[tuple[int, str | None]]:
        """Wait for a moment; then yield each task that has ended, and why if not by itself."""
        ray = self._ray
        ended, _ = ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=_PAUSE)
        for reference in ended:
            reason = None
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = f"ended by Ray ({type(error).__name__})"
            yield self._waiting.pop(reference), reason

    def cancel(self) -> None:
        """Interrupt every task."""
        for reference in self._waiting:
            self._ray.cancel(reference)

    def close(self) -> None:
        """Leave the cluster, or end the local one."""
        if self._ray is not None:
            self._ray.shutdown()
