"""Record gradients while transformers' Trainer trains: a callback."""

from typing import Any

from gradexp.integrations import ProbeOfTraining

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("the callback needs transformers; get it with pip install 'gradexp[transformers]'") from error


class GradientProbeCallback(ProbeOfTraining, TrainerCallback):
    """Record each layer before an optimizer step, with gradients accumulated and unscaled.

    Weight gradients are those after the Trainer's clipping, which ``max_grad_norm=0`` turns off; output gradients
    are from before it. Steps are labelled with ``state.global_step``, the number of steps made so far. The probe is
    attached during a step, so that evaluation is not seen. The Trainer reports no exceptions to its callbacks: after
    one, ``remove()`` removes the hooks, and so does the next training. Arguments as in ``ProbeOfTraining``.

    Example::

        callback = GradientProbeCallback(every=10)
        Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
        print(callback.history)
    """

    def on_train_begin(self, args: Any, *_: Any, **objects: Any) -> None:
        """Make a new probe; ValueError for several GPUs in one process, on which the model is copied."""
        if args.n_gpu > 1:
            raise ValueError(f"GradientProbeCallback takes one GPU per process, got {args.n_gpu}; use torchrun")
        optimizer = objects["optimizer"]  # accelerate's, which wraps torch's and knows the scaler
        self._start(objects["model"], getattr(optimizer, "optimizer", optimizer), getattr(optimizer, "scaler", None))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Attach the probe."""
        self._attach()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Collect."""
        self._collect(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Remove the hooks after the optimizer's step."""
        self.remove()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the hooks."""
        self.remove()
