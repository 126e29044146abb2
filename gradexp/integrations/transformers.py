"""Record gradients while transformers' Trainer trains: a callback."""

import copy
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor

from gradexp.history.clipped import clipped
from gradexp.history.finding import Finding
from gradexp.history.loggers import PICTURE, TAG, MlflowLogger, TensorBoardLogger, dots_of, finite, lines
from gradexp.integrations import CallbackOptions, ProbeOfTraining

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:
    from accelerate import Accelerator
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from transformers.integrations.integration_utils import MLflowCallback, WandbCallback
    from transformers.trainer_callback import CallbackHandler
except ImportError as _error:
    raise ImportError("the callback needs transformers; get it with pip install transformers accelerate") from _error


class GradientProbeCallback(ProbeOfTraining, TrainerCallback):
    """Record each layer before an optimizer step, with gradients accumulated, unscaled and not yet clipped.

    The Trainer clips, and runs the backward pass, through its Accelerator, whose methods are watched during a
    recorded step. Each recorded step goes to what the Trainer reports to at once, such as TensorBoard or wandb, but
    not to the console. Steps are labelled with ``state.global_step``, the number of steps made so far. The probe is
    attached during a step, so that evaluation is not seen. The Trainer reports no exceptions to its callbacks: after
    one, ``remove()`` removes the hooks, and so does the next training. A training that goes on from a checkpoint
    records the same steps as one that was not stopped. Arguments as in ``ProbeOfTraining``.

    Example::

        callback = GradientProbeCallback(every=10)
        Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
        print(callback.history)
    """

    def __init__(self, every: int = 50, log: Any = True, **options: Unpack[CallbackOptions]) -> None:
        super().__init__(every, log, **options)
        self._handler: Any = None
        self._at_start: tuple[Any, Any, Any] | None = None
        self._watched: list[_Watched] = []
        self._label = 0
        self._parameters: set[int] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Make a new probe; ValueError for several GPUs in one process, on which the model is copied."""
        if args.n_gpu > 1:
            raise ValueError(f"GradientProbeCallback takes one GPU per process, got {args.n_gpu}; use torchrun")
        optimizer = objects["optimizer"]  # accelerate's, which wraps torch's and knows the scaler
        self._start(objects["model"], optimizer, getattr(optimizer, "scaler", None), self, state.global_step)
        self._at_start = args, state, control
        if self._log is True:
            self._watched = [_Watched(CallbackHandler, "call_event", self._see_handler)]
        self._parameters = {id(parameter) for parameter in objects["model"].parameters()}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Attach the probe, and watch the accelerator."""
        self._attach()
        if self._is_attached and not self._watched:
            self._label = state.global_step
            self._watched = [
                _Watched(Accelerator, "clip_grad_norm_", self._before_clipping),
                _Watched(Accelerator, "backward", self._before_backward),
            ]

    def _see_handler(self, handler: Any, _event: str) -> None:
        """Keep the Trainer's handler of callbacks, which no event hands over, and look no further."""
        if self in handler.callbacks:
            self._handler = handler
            self._unwatch()

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step to what the Trainer reports to, as its ``log`` does, but for the console."""
        text = lines(findings)
        for reporter, arguments in self._reporters(step):
            is_mlflow = isinstance(reporter, MLflowCallback)
            logs = finite(numbers) | ({TAG: text} if text and not is_mlflow else {})
            reporter.on_log(*arguments, logs=logs, model=self._handler.model)
            if text and is_mlflow and arguments[1].is_world_process_zero:
                sys.modules["mlflow"].set_tag(f"gradexp.step_{step}", text)

    def draw(self, step: int, figure: "Figure") -> None:
        """Hand a picture to what the Trainer reports to, where it takes one."""
        for reporter, _ in self._reporters(step):
            if isinstance(reporter, MLflowCallback):
                MlflowLogger(sys.modules["mlflow"]).draw(step, figure)
            elif isinstance(reporter, WandbCallback):
                wandb: Any = sys.modules["wandb"]
                wandb.log({PICTURE: wandb.Image(dots_of(figure)), "train/global_step": step})
            elif getattr(reporter, "tb_writer", None) is not None:
                TensorBoardLogger(reporter.tb_writer).draw(step, figure)

    def _reporters(self, step: int) -> Iterator[tuple[Any, tuple[Any, Any, Any]]]:
        """Yield each with what its events are given at a step; none for events that no Trainer has sent."""
        if self._handler is not None and self._at_start is not None:
            args, state, control = self._at_start
            state = copy.copy(state)
            state.global_step = step  # which is counted up before an event tells that the update is known
            for reporter in self._handler.callbacks:
                if reporter is not self and not isinstance(reporter, (PrinterCallback, ProgressCallback)):
                    yield reporter, (args, state, control)

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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Remove the hooks after the optimizer's step."""
        self._finish()
        if getattr(
            control, "should_training_stop", False
        ):  # at the end of the training reporters close before this is told
            self._end()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the hooks, and let the loggers end their work."""
        self._end()
        self._handler = self._at_start = None

    def remove(self) -> None:
        """Remove every hook; the history stays."""
        self._unwatch()
        super().remove()

    def _unwatch(self) -> None:
        for watched in self._watched:
            watched.remove()
        self._watched = []


class _Watched:
    """A method of all objects of a class that calls a function first.

    Args:
        owner: The class.
        name: The method.
        before: A function of the object and the method's first argument; an iterator comes as a list.
    """

    def __init__(self, owner: type, name: str, before: Callable[[Any, Any], None]) -> None:
        self.owner = owner
        self.name = name
        self.original = original = getattr(owner, name)
        self.is_active = True

        @functools.wraps(original)
        def watching(self_: Any, subject: Any, *args: Any, **kwargs: Any) -> Any:
            subject = subject if isinstance(subject, (Tensor, list, str)) else list(subject)
            if self.is_active:
                before(self_, subject)
            return original(self_, subject, *args, **kwargs)

        self.watching = watching
        setattr(owner, name, watching)

    def remove(self) -> None:
        """Put the method back, or, if another has been put over it, do nothing in it."""
        self.is_active = False
        if getattr(self.owner, self.name) is self.watching:
            setattr(self.owner, self.name, self.original)
