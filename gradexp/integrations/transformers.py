"""Record gradients while transformers' Trainer trains: a callback."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from gradexp.history.clipped import clipped
from gradexp.integrations import ProbeOfTraining

try:
    from accelerate import Accelerator
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("the callback needs transformers; get it with pip install transformers accelerate") from error


class GradientProbeCallback(ProbeOfTraining, TrainerCallback):
    """Record each layer before an optimizer step, with gradients accumulated, unscaled and not yet clipped.

    The Trainer clips, and runs the backward pass, through its Accelerator, whose methods are watched during a
    recorded step. Steps are labelled with ``state.global_step``, the number of steps made so far. The probe is
    attached during a step, so that evaluation is not seen. The Trainer reports no exceptions to its callbacks: after
    one, ``remove()`` removes the hooks, and so does the next training. Arguments as in ``ProbeOfTraining``.

    Example::

        callback = GradientProbeCallback(every=10)
        Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
        print(callback.history)
    """

    def __init__(self, every: int = 50, **options: Any) -> None:
        super().__init__(every, **options)
        self._watched: list[_Watched] = []
        self._label = 0
        self._parameters: set[int] = set()

    def on_train_begin(self, args: Any, *_: Any, **objects: Any) -> None:
        """Make a new probe; ValueError for several GPUs in one process, on which the model is copied."""
        if args.n_gpu > 1:
            raise ValueError(f"GradientProbeCallback takes one GPU per process, got {args.n_gpu}; use torchrun")
        optimizer = objects["optimizer"]  # accelerate's, which wraps torch's and knows the scaler
        self._start(objects["model"], optimizer, getattr(optimizer, "scaler", None))
        self._parameters = {id(parameter) for parameter in objects["model"].parameters()}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Attach the probe, and watch the accelerator."""
        self._attach()
        if self._is_attached and not self._watched:
            self._label = state.global_step
            self._watched = [
                _Watched("clip_grad_norm_", self._before_clipping),
                _Watched("backward", self._before_backward),
            ]

    def _before_clipping(self, _accelerator: Any, parameters: list[Any]) -> None:
        if not self._is_collected and any(id(parameter) in self._parameters for parameter in parameters):
            self._collect(self._label)

    def _before_backward(self, accelerator: Any, loss: Tensor) -> None:
        # accelerate divides it, unless the Trainer has done so already.
        self._add_loss(loss.detach() / accelerator.gradient_accumulation_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Collect, unless clipping has come before."""
        clips = self._is_attached and not self._is_collected and (getattr(args, "max_grad_norm", None) or 0) > 0
        if clips:
            warnings.warn("the Trainer has clipped unseen, so that weight gradients are as clipped", stacklevel=2)
        if not self._is_collected:
            self._collect(state.global_step)
        if clips and self._probe is not None:
            self._probe.add_finding(clipped("the Trainer", args.max_grad_norm))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Remove the hooks after the optimizer's step."""
        self._finish()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the hooks."""
        self.remove()

    def remove(self) -> None:
        """Remove every hook; the history stays."""
        for watched in self._watched:
            watched.remove()
        self._watched = []
        super().remove()


class _Watched:
    """A method of all Accelerators that calls a function first.

    Args:
        name: The method.
        before: A function of the accelerator and the method's first argument; an iterator comes as a list.
    """

    def __init__(self, name: str, before: Callable[[Any, Any], None]) -> None:
        self.name = name
        self.original = original = getattr(Accelerator, name)
        self.is_active = True

        @functools.wraps(original)
        def watching(accelerator: Any, subject: Any, *args: Any, **kwargs: Any) -> Any:
            subject = subject if isinstance(subject, (Tensor, list)) else list(subject)
            if self.is_active:
                before(accelerator, subject)
            return original(accelerator, subject, *args, **kwargs)

        self.watching = watching
        setattr(Accelerator, name, watching)

    def remove(self) -> None:
        """Put the method back, or, if another has been put over it, do nothing in it."""
        self.is_active = False
        if getattr(Accelerator, self.name) is self.watching:
            setattr(Accelerator, self.name, self.original)
