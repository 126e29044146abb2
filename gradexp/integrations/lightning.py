"""Record gradients while Lightning's Trainer trains: a callback."""

from typing import Any

from gradexp.integrations import ProbeOfTraining

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl
    except ImportError as error:
        raise ImportError("the callback needs lightning; get it with pip install 'gradexp[lightning]'") from error


class GradientProbeCallback(ProbeOfTraining, pl.Callback):
    """Record each layer before an optimizer step, with gradients accumulated, unscaled and not yet clipped.

    Steps are labelled with ``trainer.global_step``. The probe is attached during the batches of a step, so that
    validation is not seen. At the end a TensorBoard logger gets the gradient's profile and its ratio over steps.
    In manual optimization clipping before ``step()`` shows in the weight gradients. Arguments: see
    ``ProbeOfTraining``.

    Example::

        callback = GradientProbeCallback(every=10)
        Trainer(callbacks=[callback]).fit(module, loader)
        print(callback.history)
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a new probe; ValueError for several optimizers, whose passes cannot be told apart here."""
        if (count := len(trainer.optimizers)) != 1:
            raise ValueError(f"GradientProbeCallback takes one optimizer, got {count}; use GradientProbe by hand")
        self._start(pl_module, trainer.optimizers[0], getattr(trainer.precision_plugin, "scaler", None))

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
        self.remove()
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_scalar"):
                self.history.to_tensorboard(writer)

    def on_exception(self, *_: Any) -> None:
        """Remove the hooks."""
        self.remove()
