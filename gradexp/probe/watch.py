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
_RUNS = 8  # forward passes that are kept for another look


class Watch:
    """The gradients of a model, looked at after each backward pass: is the norm of all of them finite?

    On a CUDA device the answer is read without waiting, so that it may come a step late.

    Args:
        model: The model. It is held weakly.
        optimizers: Before whose steps to look, if nobody has.
        scaler: The GradScaler in use: infinite gradients of a loss that it has scaled too high are ordinary.
        seen: Called with what an optimizer would have stepped with.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None,
        seen: Callable[[Finding | None], None],
    ) -> None:
        self._model = weakref.ref(model)
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._optimizers = optimizers
        self._seen = weakref.WeakMethod(seen)
        self._runs: deque[Run] = deque(maxlen=_RUNS)
        self._norms: deque[float] = deque(maxlen=_KEPT)
        self._waiting: deque[tuple[Tensor, Any, list[str], Tensor]] = deque()
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

    def look(self, loss: float | None = None, parameters: Iterable[Tensor] | None = None) -> Finding | None:
        """Look at the gradients, and return where they stopped being finite, if they did.

        Args:
            loss: Its value, if it is known.
            parameters: Those to look at; None: all of the model's.
        """
        model = self._model()
        self._is_due = False
        if model is None:
            return None
        chosen = all_parameters_of(model) if parameters is None else list(parameters)
        gradients = [(p, p.grad) for p in chosen if p.grad is not None and has_values(p.grad)]
        try:
            if gradients and all(gradient.is_cuda for _, gradient in gradients):
                return self._look_later(model, [p for p, _ in gradients], [gradient for _, gradient in gradients])
            if gradients and not self._is_finite([gradient for _, gradient in gradients]):
                bad = [p for p, gradient in gradients if not _all_finite(gradient)]
                return self._found(model, bad, loss)
            return None
        finally:
            if parameters is None:
                self._runs.clear()

    def _is_finite(self, gradients: list[Tensor]) -> bool:
        norm = _norm(gradients)
        if not math.isfinite(norm):
            if not all(map(_all_finite, gradients)):
                return False
            norm = math.hypot(*(float(m) * 2 ** float(e) for m, e in scaled_norms(gradients)))
        self._norms.append(norm)
        return True

    def _look_later(self, model: nn.Module, parameters: list[Tensor], gradients: list[Tensor]) -> Finding | None:
        """Send the norm on its way to the host, and look at those that have come."""
        names = {id(p): name for name, p in model.named_parameters()}
        with torch.no_grad():
            norms = torch.stack([x.to(gradients[0].device) for x in foreach_norm(list(map(_local, gradients)))])
            total = torch.linalg.vector_norm(norms)
            host = torch.empty((), dtype=total.dtype, pin_memory=True)
            host.copy_(total, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(total.device))
        self._waiting.append((host, event, [names.get(id(p), "") for p in parameters], norms))
        while self._waiting and self._waiting[0][1].query():
            value, _, own, of_each = self._waiting.popleft()
            if math.isfinite(float(value)):
                self._norms.append(float(value))
                continue
            is_late = bool(self._waiting)  # the weights have been changed with it since
            bad = [name for name, norm in zip(own, of_each.tolist(), strict=True) if not math.isfinite(norm)]
            chosen = dict(model.named_parameters())
            if is_late and self._scaler is not None and self._scaler.get_scale() >= 1:
                continue
            if is_late:
                return _of_parameters(bad, len(own), "a step before this one, ")
            return self._found(model, [chosen[name] for name in bad if name in chosen], None)
        return None

    def _found(self, model: nn.Module, bad: list[Tensor], loss: float | None) -> Finding | None:
        birth = birth_in(model, self._runs, loss)
        is_overflow = birth is None or (birth.is_backward and birth.dtype is torch.float16)
        if self._scaler is not None and is_overflow and self._scaler.get_scale() >= 1:
            return None  # the scaler skips the step, and tries a smaller scale
        if birth is not None:
            return birth.finding()
        names = {id(p): name for name, p in model.named_parameters()}
        return _of_parameters([names.get(id(p), "") for p in bad], len(names), "")

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
        finding = self.look(parameters=own)
        seen = self._seen()
        if seen is not None:
            seen(finding)


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
    plain = [x for x in gradients if type(x) is Tensor and x.layout is torch.strided and not x.is_complex()]
    others = [] if len(plain) == len(gradients) else [_local(x) for x in gradients if not any(x is y for y in plain)]
    with torch.no_grad():
        norms = [float(norm) for norm, _ in scaled_norms(others)]
        if plain:
            of_each = foreach_norm(plain, wide=False)
            if len({(norm.device, norm.dtype) for norm in of_each}) == 1:
                norms.append(float(torch.linalg.vector_norm(torch.stack(of_each))))
            else:
                norms += map(float, of_each)
    return math.hypot(*norms)


def _local(gradient: Tensor) -> Tensor:
    """Return this process's part of a sharded gradient."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _all_finite(gradient: Tensor) -> bool:
    gradient = _local(gradient).detach()
    if gradient.layout is not torch.strided:
        gradient = gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient.to_dense()
    return bool(torch.isfinite(gradient).all())


def _of_parameters(bad: list[str], count: int, when: str) -> Finding:
    """Return a finding of which no more is known than whose gradients are not finite."""
    last = bad[-1] if bad else ""
    which = f"all {count} parameters" if len(bad) == count else f"{len(bad)} of {count} parameters"
    text = f"{when}inf or nan in the gradients of {which}, in the backward pass from {last} down"
    return Finding(
        "nonfinite", text, (last.rpartition(".")[0],), "gradexp.measure(model, loss_fn, batch), which says where", 3
    )
