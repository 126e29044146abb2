"""Record gradients while Lightning trains: a callback for its Trainer."""

from collections.abc import Iterable
from typing import Any

from gradexp.history import QUANTITIES, History
from gradexp.probe import GradientProbe

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl
    except ImportError as error:
        raise ImportError(
            "this callback needs lightning; install it with pip install 'gradexp[lightning]'"
        ) from error


class GradientProbeCallback(pl.Callback):
    """Record each layer's gradients before optimizer steps, accumulated, unscaled and not yet clipped.

    A recorded step is labelled with ``trainer.global_step``. Validation is not seen, since the probe is attached
    during training batches only. At the end a TensorBoard logger gets the last profile and the gradient's course.
    With one optimizer it works in manual optimization too, where clipping is up to the module.

    Args:
        every: Record every n-th optimizer step.
        quantities: As in ``GradientProbe``; ``weight`` and ``update`` are possible.
        options: Further options of ``GradientProbe``, such as ``select``, ``stats`` or ``per_sample``.

    Example::

        callback = GradientProbeCallback(every=50)
        Trainer(callbacks=callback).fit(module)
        print(callback.history.verdict().text)
    """

    def __init__(self, every: int = 50, quantities: Iterable[str] = QUANTITIES[:3], **options: Any) -> None:
        self._options = {"every": every, "quantities": quantities, **options}
        self._probe: GradientProbe | None = None

    @property
    def history(self) -> History:
        """What was recorded so far in the last training.

        Raises:
            RuntimeError: If there was none.
        """
        if self._probe is None:
            raise RuntimeError("nothing is recorded before the training has started")
        return self._probe.history

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a new probe.

        Raises:
            ValueError: If there are several optimizers: the passes before a step of one may belong to another.
        """
        if len(trainer.optimizers) != 1:
            count = len(trainer.optimizers)
            raise ValueError(f"GradientProbeCallback needs one optimizer, got {count}; use GradientProbe by hand")
