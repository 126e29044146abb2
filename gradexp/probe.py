"""GradientProbe: forward hooks that record per-layer sizes and gradients of any model while it trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.history import QUANTITIES, STATUSES, Array, History
from gradexp.norms import joint_log10_norm, log10_norm


@dataclass(frozen=True)
class _Size:
    """One network-wise log10 norm, still on the device, of tensors with ``count`` elements per network."""

    log10: Tensor
    count: int
    dtype: torch.dtype


_Key = tuple[str, str]  # name of the module, quantity
_Cell = tuple[Array, Array]  # log10 and status code of each network


class GradientProbe:
    """Record what autograd produces in each layer: outputs, their gradients, weights and their gradients.

    Observing changes nothing: the probe adds no graph node, draws no random number, keeps no tensor of the
    model alive and replaces no gradient. Only forward hooks are used, with a gradient hook on each output
    tensor, which also see the right gradient where the next operation works in place.

    Recorded per layer and step are the rms of ``output`` and the L2 norms of ``output_grad``, ``weight_grad``,
    ``weight`` and, if the optimizer is given, ``update``, all in log10, from squares taken in float64. Passes
    under ``torch.no_grad()``, such as an evaluation between two steps, are not recorded.

    Args:
        model: Any module.
        select: Which modules to record, given name and module; None: those that directly own a parameter of
            two or more dimensions.
        every: Record every so many collects, the first included. Between other collects no hook is attached.
        optimizer: Its steps are watched for ``update``.
        networks: Independent networks along the first dimension of outputs and weights (a stacked MLP).
        seeds: Their seeds, for the History; None: 0, 1, ...

    Raises:
        ValueError: If nothing is selected, or ``every`` is below 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 1))
        >>> with GradientProbe(model) as probe:
        ...     model(torch.ones(2, 3)).sum().backward()
        ...     probe.collect(0)
        >>> probe.history.names
        ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        select: Callable[[str, nn.Module], bool] | None = None,
        every: int = 1,
        optimizer: torch.optim.Optimizer | None = None,
        networks: int = 1,
        seeds: list[int] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        wanted = select or (lambda _, module: bool(_weights(module)))
        self._modules = {name: module for name, module in model.named_modules() if wanted(name, module)}
        if not self._modules:
            raise ValueError(
                "nothing to record: no module is selected, or none owns a parameter of two or more dimensions"
            )
        self._every = every
        self._optimizer = optimizer
        self._networks = networks
        self._seeds = list(range(networks)) if seeds is None else list(seeds)
        self._order: dict[str, bool] = {}  # names in the order of their first call
        self._steps: list[int] = []
        self._cells: list[dict[_Key, _Cell]] = []  # by step
        self._collects = 0
        self._attached = False
        self._window: _Window | None = None  # open only while the coming collect will be recorded
        self._handles: list[Any] = []
        self._before: dict[str, list[Tensor]] = {}  # weights before the optimizer's step
        self._updates: dict[_Key, _Size] = {}  # measured after it, copied to the host with the next collect
        self._update_due = False

    def __enter__(self) -> Self:
        """Attach the hooks."""
        return self.attach()

    def __exit__(self, *_: object) -> None:
        """Remove every hook."""
        self.remove()

    def attach(self) -> Self:
        """Start recording; returns the probe.

        Raises:
            RuntimeError: If it is attached already.
        """
        if self._attached:
            raise RuntimeError("the probe is attached already")
        self._attached = True
        if self._optimizer is not None:
            self._handles += [
                self._optimizer.register_step_pre_hook(self._before_update),
                self._optimizer.register_step_post_hook(self._after_update),
            ]
        self._open()
        return self

    def remove(self) -> None:
        """Stop recording and remove every hook; the history stays."""
        self._attached = self._update_due = False
        self._before = {}
        self._close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._fetch_updates()

    def collect(self, step: int) -> None:
        """Record what the hooks saw since the last collect, and the parameters' gradients.

        Call it after ``backward()`` and before the gradients are clipped, used or set to zero. Several
        forward and backward passes before one collect count as one larger batch.

        Args:
            step: A label for the recorded step.

        Raises:
            RuntimeError: If the probe is not attached.
        """
        if not self._attached:
            raise RuntimeError("the probe is not attached; use it in a with statement or call attach()")
        window = self._window
        self._close()
        if window is not None:
            self._record(step, window)
            self._update_due = self._optimizer is not None
        self._collects += 1
        self._open()

    @property
    def history(self) -> History:
        """What was recorded so far."""
        self._fetch_updates()
        names = [*self._order, *(name for name in self._modules if name not in self._order)]
        quantities = [q for q in QUANTITIES if q != "update" or self._optimizer is not None]
        shape = (len(self._steps), self._networks, len(names))
        log10 = {q: np.full(shape, np.nan) for q in quantities}
        status = {q: np.full(shape, STATUSES.index("not_called"), np.int8) for q in quantities}
        for s, cells in enumerate(self._cells):
            for layer, name in enumerate(names):
                for q in quantities:
                    if (name, q) in cells:
                        log10[q][s, :, layer], status[q][s, :, layer] = cells[name, q]
        return History("train", names, list(self._steps), list(self._seeds), log10, status)

    def _open(self) -> None:
        if self._collects % self._every == 0:
            self._window = _Window(self._networks)
            for name, module in self._modules.items():
                self._window.handles.append(module.register_forward_hook(_ForwardHook(self._window, name)))

    def _close(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    def _record(self, step: int, window: "_Window") -> None:
        sizes = {key: _combine(parts) for key, parts in window.parts.items()}
        codes: dict[_Key, str] = {}
        self._order.update(window.called)
        for name, module in self._modules.items():
            weights = _weights(module)
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            for quantity, tensors in (("weight", weights), ("weight_grad", gradients)):
                if tensors:
                    sizes[name, quantity] = _combine([_size(tensor, self._networks) for tensor in tensors])
            unused = not gradients and any(weight.requires_grad for weight in weights)
            if not gradients:
                codes[name, "weight_grad"] = "unused" if unused else "frozen"
            if name in window.called and (name, "output") not in sizes:
                codes[name, "output"] = "hook_missed"
            if name in window.called and (name, "output_grad") not in sizes:
                expected = "unused" if unused else "hook_missed"
                codes[name, "output_grad"] = expected if window.called[name] else "frozen"
        arrived = _to_host(self._updates | sizes)
        if self._updates:
            self._cells[-1].update({key: arrived.pop(key) for key in self._updates})
            self._updates = {}
        none = np.full(self._networks, np.nan)
        absent = {key: (none, np.full(none.shape, STATUSES.index(code))) for key, code in codes.items()}
        self._steps.append(step)
        self._cells.append(arrived | absent)

    def _before_update(self, *_: object) -> None:
        if self._update_due:
            self._before = {
                name: [weight.detach().clone() for weight in _weights(module)]
                for name, module in self._modules.items()
            }

    def _after_update(self, *_: object) -> None:
        if self._update_due:
            self._update_due = False
            for name, before in self._before.items():
                pairs = zip(_weights(self._modules[name]), before, strict=True)
                self._updates[name, "update"] = _combine(
                    [_size(after.detach() - old, self._networks) for after, old in pairs]
                )
            self._before = {}

    def _fetch_updates(self) -> None:
        if self._updates:
            self._cells[-1].update(_to_host(self._updates))
            self._updates = {}


class _Window:
    """What is seen between two collects. Closing it also removes the hooks from tensors that are still alive."""

    def __init__(self, networks: int) -> None:
        self.networks = networks
        self.handles: list[Any] = []  # they hold no tensor
        self.called: dict[str, bool] = {}  # name -> whether a gradient of its output is to be expected
        self.parts: dict[_Key, list[_Size]] = {}

    def add(self, name: str, quantity: str, tensor: Tensor) -> None:
        self.parts.setdefault((name, quantity), []).append(_size(tensor, self.networks))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class _ForwardHook:
    """Measure a module's output at once, since the next operation may overwrite it, and hook its gradient."""

    def __init__(self, window: _Window, name: str) -> None:
        self.window = window
        self.name = name

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        window, name = self.window, self.name
        if not torch.is_grad_enabled():
            return
        if not isinstance(output, Tensor) or not (output.is_floating_point() or output.is_complex()):
            window.called.setdefault(name, True)
            return
        window.called[name] = window.called.get(name, False) or output.requires_grad
        window.add(name, "output", output)
        if output.requires_grad:
            # The hook must not hold the tensor itself: that cycle is never freed.
            window.handles.append(output.register_hook(_GradientHook(window, name)))


class _GradientHook:
    """Measure the gradient of one output tensor. It returns None, which leaves the gradient as it is."""

    def __init__(self, window: _Window, name: str) -> None:
        self.window = window
        self.name = name

    def __call__(self, gradient: Tensor) -> None:
        self.window.add(self.name, "output_grad", gradient)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    # In a stacked layer the networks' dimension comes first, and a bias has two dimensions.
    least = 3 if isinstance(getattr(module, "networks", None), int) else 2
    return [
        parameter for parameter in module._parameters.values() if parameter is not None and parameter.dim() >= least
    ]


def _size(tensor: Tensor, networks: int) -> _Size:
    return _Size(log10_norm(tensor, networks), tensor.numel() // networks, tensor.dtype)


def _combine(parts: list[_Size]) -> _Size:
    """Return the size of all parts together, as if their tensors were one."""
    if len(parts) == 1:
        return parts[0]
    log10 = joint_log10_norm(torch.stack([part.log10 for part in parts]))
    return _Size(log10, sum(part.count for part in parts), parts[0].dtype)


def _to_host(sizes: dict[_Key, _Size]) -> dict[_Key, _Cell]:
    """Copy all sizes to the host in one transfer, turn outputs into rms, and judge each."""
    if not sizes:
        return {}
    networks = next(iter(sizes.values())).log10.numel()
    norms = torch.cat([size.log10 for size in sizes.values()]).cpu().numpy().reshape(-1, networks)
    counts = np.array([[max(size.count, 1)] for size in sizes.values()])
    smallest = np.array([[torch.finfo(size.dtype).smallest_normal] for size in sizes.values()])
    rms = norms - 0.5 * np.log10(counts)
    # An element below the smallest normal number has lost digits; the rms stands for the elements.
    codes = np.where(rms < np.log10(smallest), STATUSES.index("subnormal"), STATUSES.index("ok"))
    codes[norms == -np.inf] = STATUSES.index("zero")
    codes[np.isnan(norms) | (norms == np.inf)] = STATUSES.index("nonfinite")
    is_output = np.array([[quantity == "output"] for _, quantity in sizes])
    values = np.where(np.isfinite(norms), np.where(is_output, rms, norms), np.nan)
    return dict(zip(sizes, zip(values, codes, strict=True), strict=True))
