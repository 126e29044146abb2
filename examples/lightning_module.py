"""A Lightning module with the probe as a callback: python examples/lightning_module.py.

Forty sigmoid layers. The table shows that the first ones get nothing, and the page how it was at every step.
"""

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradexp.integrations.lightning import GradientProbeCallback


class Classifier(LightningModule):
    """Forty layers of 64 units."""

    def __init__(self) -> None:
        super().__init__()
        layers = [module for _ in range(40) for module in (nn.Linear(64, 64), nn.Sigmoid())]
        self.net = nn.Sequential(*layers, nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(640, 64), torch.randint(10, (640,)))
    probe = GradientProbeCallback(every=5)
    Trainer(max_epochs=2, callbacks=[probe], enable_progress_bar=False, logger=False).fit(
        Classifier(), DataLoader(data, batch_size=32)
    )
    print(probe.history)
    probe.history.to_html("lightning.html")
