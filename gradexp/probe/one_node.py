"""The probe on an MLP that is one node of autograd's graph: what GradientProbe records, without hooks."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from gradexp.history.history import History
from gradexp.history.probe_steps import LOSS, Row, Subject
from gradexp.history.step import QUANTITIES
from gradexp.networks.one_node import OneNode
from gradexp.probe.readings import PendingStep, TensorSize, loss_value, measure_all, tensor_size
from gradexp.probe.record import Record
from gradexp.probe.stepping import rate_findings
from gradexp.probe.weights import add_joint


class OneNodeProbe:
    """Record all five quantities of an MLP's layers while it trains, as ``GradientProbe(mlp, optimizer=...)`` does.

    Args:
        network: The MLP.
        every: The interval N: collects number 0, N, 2N, ... are recorded.
        optimizer: The optimizer of the network's parameter.
        seeds: The networks' seeds.

    Examples:
        >>> from gradexp import MLP
        >>> network = OneNode(MLP([3, 5, 1]))
        >>> optimizer = torch.optim.SGD([network.parameter], lr=0.1)
        >>> with OneNodeProbe(network, 1, optimizer, [0]) as probe:
        ...     network(torch.ones(1, 2, 3)).sum().backward()
        ...     probe.collect(0)
        >>> probe.history.names
        ['layers.0', 'layers.1']
    """

    def __init__(self, network: OneNode, every: int, optimizer: torch.optim.Optimizer, seeds: Sequence[int]) -> None:
        self._network = network
        self._every = every
        self._optimizer = optimizer
        self._record = Record(Subject([*network.names], [*QUANTITIES], network.networks, [*seeds]))
        rows: list[Row] = [(name, 0) for name in network.names]
        self._record.keep_order(rows)
        self._record.rows_of(network.names)
        self._record.feeds |= set(zip(rows, [*rows[1:], LOSS], strict=True))
        shapes = ("x".join(map(str, weight.shape)) for weight in network.values.weights)
        self._record.kinds = {
            name: f"StackedLinear({shape})" for name, shape in zip(network.names, shapes, strict=True)
        }
        self._outputs: list[TensorSize] = []
        self._gradients: list[TensorSize] = []  # from the last layer down
        self._before = network.like(torch.empty_like(network.values.buffer))  # the optimizer's step
        self._is_stepping = False  # the next step is to be measured
        self._updates: list[TensorSize] = []
        self._collects = 0
        self._handle: Any = None

    def __enter__(self) -> Self:
        """Start recording."""
        self._handle = self._optimizer.register_step_post_hook(self._see_step)
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop recording."""
        self._handle.remove()
        self._network.watcher = None
        self._is_stepping = False
        self._fetch_updates()

    def see_output(self, z: Tensor) -> None:
        """Measure what a layer returned."""
        self._outputs.append(tensor_size(z, self._network.networks))

    def see_gradient(self, gradient: Tensor) -> None:
        """Measure the gradient of that."""
        self._gradients.append(tensor_size(gradient, self._network.networks))

    def collect(self, step: int, loss: Tensor | float | None = None) -> None:
        """Record a step, after ``backward()`` and before the optimizer's step.

        Args:
            step: Its label.
            loss: The loss, one number for each network.
        """
        if self._network.watcher is not None:
            self._take(step, None if loss is None else loss_value(loss, self._network.networks))
        self._collects += 1
        self._open()

    @property
    def history(self) -> History:
        """The steps recorded so far."""
        self._fetch_updates()
        return self._record.history()

    def _open(self) -> None:
        self._network.watcher = self if self._collects % self._every == 0 else None
        self._outputs, self._gradients = [], []

    @torch.no_grad()
    def _take(self, step: int, loss: Tensor | float | None) -> None:
        network, networks = self._network, self._network.networks
        pending = PendingStep(networks)
        pending.loss = loss
        gradients = measure_all(network.gradients.weights, networks)
        pending.add_rows("output", self._outputs)
        pending.add_rows("output_grad", self._gradients[::-1])
        pending.add_rows("weight_grad", gradients)
        add_joint(pending, gradients, network.gradients.biases, networks)
        pending.add_rows("weight", measure_all(network.values.weights, networks))
        self._before.buffer.copy_(network.values.buffer)
        self._is_stepping = True
        self._record.add(step, self._read(pending))

    @torch.no_grad()
    def _see_step(self, *_: Any) -> None:
        if self._is_stepping:
            self._is_stepping = False
            self._before.buffer.sub_(self._network.values.buffer)  # with the sign turned, which no norm sees
            self._updates = measure_all(self._before.weights, self._network.networks)

    def _read(self, pending: PendingStep) -> Any:
        """Read a pending step, with the updates that belong to the last one."""
        pending.add_rows("update", self._updates)
        self._updates = []
        reading = pending.read(len(self._record))
        if self._record.take_updates(reading) and self._record.is_unmoved(self._network.names):
            self._record.add_findings(rate_findings(self._optimizer, self._network.names))
        return reading

    def _fetch_updates(self) -> None:
        if self._updates:
            self._read(PendingStep(self._network.networks))
