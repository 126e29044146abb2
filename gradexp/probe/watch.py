"""Watch every step of a training for nan and inf, at the cost of one number per step."""

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.history.finding import Finding
from gradexp.numerics.norms import has_values, scaled_norms
from gradexp.numerics.torch_internals import all_parameters_of, backward_number, foreach_norm, in_transform, is_traced
from gradexp.probe.hooks import Hooks
from gradexp.probe.optimizers import held_by
from gradexp.probe.rerun import Run, birth_in

_KEPT = 5  # steps whose norms are told with an alarm
_DOTS = (torch.float32, torch.float64)
_RUNS = 8  # forward passes that are kept for another look


class Watch:
    """The gradients of a model, looked at after each backward pass: is the norm of all of them finite?

    On a CUDA device the answer is read without waiting, so that it may come a step late.

    Args:
        model: The model. It is held weakly.
        optimizers: Before whose steps to look, if nobody has.
        scaler: The GradScaler in use: infinite gradients of a loss that it has scaled too high are ordinary.
        seen: Called before an optimizer steps with gradients that nobody has looked at: all, or some parameters'.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None,
        seen: Callable[[Iterable[Tensor] | None], None],
    ) -> None:
        self._model = weakref.ref(model)
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._optimizers = optimizers
        self._seen = weakref.WeakMethod(seen)
        self._runs: deque[Run] = deque(maxlen=_RUNS)
        self._norms: deque[float] = deque(maxlen=_KEPT)
        self._waiting: deque[_Sent] = deque()
        self._is_due = False
        self._handles: list[Any] = []

    @property
    def recent(self) -> list[float]:
        """The norms of all gradients in the steps before the one that was looked at last."""
        return list(self._norms)

    def attach(self) -> None:
        """Hook the model's own calls, and the optimizers' steps."""
        model = self._model()
        if model is not None and not isinstance(model, torch.jit.ScriptModule):
            before, after = _Hook(self, Watch._begin), _Hook(self, Watch._end)
            self._handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(model.register_forward_hook(after, with_kwargs=True))
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(_Hook(self, Watch._before_step)))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._runs.clear()
        self._waiting.clear()

    def look(
        self, label: int, loss: float | None = None, parameters: Iterable[Tensor] | None = None
    ) -> Finding | None:
        """Look at the gradients, and return where they stopped being finite, if they did.

        Args:
            label: The step's.
            loss: Its value, if it is known.
            parameters: Those to look at; None: all of the model's.
        """
        model = self._model()
        self._is_due = False
        if model is None:
            return None
        chosen = all_parameters_of(model) if parameters is None else parameters
        trained, gradients = [], []
        for parameter in chosen:
            gradient = parameter.grad
            if gradient is not None and (type(gradient) is Tensor or has_values(gradient)):
                trained.append(parameter)
                gradients.append(gradient)
        try:
            if not gradients:
                return None
            if can_be_read_later(gradients):
                self._waiting.append(_Sent(label, trained, gradients, self._runs))
                return self._read(model)
            if self._is_finite(gradients):
                return None
            return self._found(model, [p for p in trained if p.grad is not None and not _all_finite(p.grad)], loss)
        finally:
            if parameters is None:
                self._runs.clear()

    def _is_finite(self, gradients: list[Tensor]) -> bool:
        norm = _norm(gradients)
        if not math.isfinite(norm):
            if not all(map(_all_finite, gradients)):
                return False
            norm = math.hypot(*_exact_norms(gradients))
        self._norms.append(norm)
        return True

    def _read(self, model: nn.Module) -> Finding | None:
        """Look at the norms that have come to the host."""
        while self._waiting and self._waiting[0].has_come():
            sent = self._waiting.popleft()
            norm, output = sent.values.tolist()
            if math.isfinite(norm):
                self._norms.append(norm)
            elif not self._waiting:
                return self._found(model, sent.bad(model), None)
            elif self._scaler is None or self._scaler.get_scale() < 1:  # too late to run the pass again
                return _of_parameters(model, sent.bad(model), f"since step {sent.label} ", math.isfinite(output))
        return None

    def _found(self, model: nn.Module, bad: list[Tensor], loss: float | None) -> Finding | None:
        birth = birth_in(model, self._runs, loss)
        is_overflow = birth is None or (birth.is_backward and birth.dtype is torch.float16)
        if self._scaler is not None and is_overflow and self._scaler.get_scale() >= 1:
            return None  # the scaler skips the step, and tries a smaller scale
        if birth is not None:
            return birth.finding()
        return _of_parameters(model, bad)

    def _begin(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            self._is_due = True
            self._runs.append(Run(args, kwargs))

    def _end(self, _model: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        if torch.is_grad_enabled() and self._runs:
            self._runs[-1].see(output)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        is_inside = backward_number() != -1  # the optimizer steps as soon as it has its gradients
        model = self._model()
        if model is None or not (self._is_due or is_inside):
            return
        held = held_by(optimizer)
        own = [p for p in all_parameters_of(model) if id(p) in held] if is_inside else None
        seen = self._seen()
        if seen is not None:
            seen(own)


class _Sent:
    """The norm of all gradients on its way from a device to the host.

    Args:
        label: The step's.
        parameters: Whose gradients they are.
        gradients: The gradients.
        runs: The forward passes, of which the norm of what they returned comes along.
    """

    def __init__(self, label: int, parameters: list[Tensor], gradients: list[Tensor], runs: Iterable[Run]) -> None:
        self.label = label
        self._parameters = [weakref.ref(parameter) for parameter in parameters]
        with torch.no_grad():
            self._norms = torch.stack(foreach_norm(gradients))
            outputs = [norm for run in runs for norm in run.outputs if norm.device == self._norms.device]
            output = torch.stack(outputs).sum() if outputs else torch.zeros_like(self._norms[0])
            self.values, self.has_come = to_host(torch.stack([torch.linalg.vector_norm(self._norms), output]))

    def bad(self, model: nn.Module) -> list[Tensor]:
        """Return the parameters whose gradients are not finite."""
        pairs = zip(self._parameters, self._norms.tolist(), strict=True)
        bad = {id(reference()) for reference, norm in pairs if not math.isfinite(norm)}
        return [parameter for parameter in model.parameters() if id(parameter) in bad]


def can_be_read_later(gradients: Sequence[Tensor]) -> bool:
    """Return whether the host need not wait for the device: all are plain tensors on one CUDA device."""
    if not gradients[0].is_cuda:
        return False
    devices = {x.device for x in gradients if x.is_cuda and type(x) is Tensor and x.layout is torch.strided}
    return len(devices) == 1 and all(x.device in devices and type(x) is Tensor for x in gradients)


def to_host(values: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """Copy values to the host; return them, and what says whether they have come."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))
    return host, event.query


class _Hook:
    """A hook of a watch; a copied or pickled model gets one that does nothing in its place."""

    __torch_unserializable__ = True

    def __init__(self, watch: Watch, method: Callable[..., None]) -> None:
        self.watch = watch
        self.method = method

    def __call__(self, *args: Any) -> None:
        if is_traced() or in_transform() or Hooks.alone.recorder is not None:
            return
        self.method(self.watch, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def _norm(gradients: list[Tensor]) -> float:
    """Return the norm of all gradients, which may be inf for finite ones."""
    plain = [x for x in gradients if type(x) is Tensor and x.is_cpu and x.layout is torch.strided]
    with torch.no_grad():
        norms = []
        if len(plain) < len(gradients):
            others = {id(x): x for x in gradients}
            for gradient in plain:
                del others[id(gradient)]
            norms += _exact_norms(others.values())
        dense = {id(x): x for x in plain if x.dtype in _DOTS and x.is_contiguous()}
        # A product takes a third of a norm's time.
        norms += [math.sqrt(torch.dot(flat, flat).item()) for flat in (x.view(-1) for x in dense.values())]
        scattered = [x for x in plain if id(x) not in dense]
        if scattered:
            norms.append(float(torch.linalg.vector_norm(torch.stack(foreach_norm(scattered, wide=False)))))
    return math.hypot(*norms)


def _exact_norms(gradients: Iterable[Tensor]) -> list[float]:
    """Return the norm of each gradient, inf where float64 does not hold it."""
    sizes = scaled_norms(list(map(_local, gradients)))
    return [
        float(torch.ldexp(*torch.tensor([float(m), float(e)], dtype=torch.float64, device="cpu"))) for m, e in sizes
    ]


def _local(gradient: Tensor) -> Tensor:
    """Return this process's part of a sharded gradient."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _all_finite(gradient: Tensor) -> bool:
    gradient = _local(gradient).detach()
    if gradient.layout is not torch.strided:
        gradient = gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient.to_dense()
    return bool(torch.isfinite(gradient).all())


def _of_parameters(model: nn.Module, bad: list[Tensor], since: str = "", is_output_finite: bool = True) -> Finding:
    """Return a finding of which no more is known than whose gradients are not finite."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    chosen = {id(p) for p in bad}
    last = next((name for name, p in reversed(named) if id(p) in chosen), "")
    which = f"all {len(named)}" if len(bad) == len(named) else f"{len(bad)} of {len(named)}"
    place = f"in the backward pass, from {last} down" if is_output_finite else "in the forward pass"
    text = f"{since}the gradients of {which} parameters are inf or nan; it begins {place}"
    modules = (last.rpartition(".")[0],) if last and is_output_finite else ()
    return Finding("nonfinite", text, modules, "gradexp.measure(model, loss_fn, batch), which says where", 3)
