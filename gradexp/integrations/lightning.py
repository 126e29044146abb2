"""Record gradients while Lightning's Trainer trains: a callback."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradexp.integrations import ProbeOfTraining
from gradexp.probe.weights import scale_of_loss

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    try:
        import lightning.pytorch as pl
    except ImportError:
        try:
            import pytorch_lightning as pl
        except ImportError as error:
            raise ImportError("the callback needs lightning; get it with pip install lightning") from error


class GradientProbeCallback(ProbeOfTraining, pl.Callback):
    """Record each layer before an optimizer step, with gradients accumulated, unscaled and not yet clipped.

    Steps are labelled with ``trainer.global_step``. The probe is attached during the batches of a step, so that
    validation is not seen. Optimizers that step in turn, each after a backward pass of its own, have a recorded step
    each; those that share a backward pass share it. In spawned processes rank 0 records. Each recorded step goes to
    the trainer's loggers at once, and at the end the profile over layers to TensorBoard. In manual optimization
    clipping before ``step()`` shows in the weight gradients. What a training that goes on must know is in the
    Trainer's checkpoints, so that it records the same steps as one that was not stopped. Arguments: see
    ``ProbeOfTraining``.

    Example::

        callback = GradientProbeCallback(every=10)
        Trainer(callbacks=[callback]).fit(module, loader)
        print(callback.history)
    """

    _made = 0  # steps before the checkpoint from which a training is about to go on

    @property
    def state_key(self) -> str:
        """The callback's name in a checkpoint, which tells several apart, and is the same in another process."""
        options = {name: _plain(value) for name, value in sorted(self._options.items()) if name != "keep"}
        if (save := self._options.get("save")) is not None:  # a folder may be another when a training goes on
            options["save"] = Path(save).name
        key: str = self._generate_state_key(every=self._every, log=_plain(self._log), **options)
        return key

    def state_dict(self) -> dict[str, Any]:
        """Return what the Trainer puts into its checkpoints."""
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._made = state_dict["steps"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a new probe."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._start(pl_module, trainer.optimizers, scaler, [*trainer.loggers], self._made)
        self._made = 0

    def on_before_backward(self, trainer: pl.Trainer, _module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss's value, which a scaler has multiplied by then."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.is_enabled():
            loss = loss.detach() / scale_of_loss(scaler, loss)
        self._add_loss(loss)

    def on_train_batch_start(self, *_: Any) -> None:
        """Attach the probe at the first batch of a step."""
        self._attach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Collect, unless ``training_step`` has skipped its batch and there is no gradient."""
        if any(parameter.grad is not None for parameter in pl_module.parameters()):
            self._collect(trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        """Remove the hooks after the optimizer's step."""
        self._finish()

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Remove the hooks and write to TensorBoard."""
        self._end()
        if trainer.is_global_zero:
            self._leave_history()
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_scalar"):
                self.history.to_tensorboard(writer)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Remove the hooks."""
        self._end()
        if trainer.is_global_zero:
            self._leave_history()


def _plain(value: Any) -> Any:
    """Return an option without what is another in each process, such as the address of a function."""
    if isinstance(value, Mapping):
        return [str(name) for name in value]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return value if isinstance(value, (str, int, float, type(None))) else getattr(value, "__qualname__", "")
