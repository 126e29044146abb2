"""A transformer of 12 blocks that does not train, what is wrong with it, and the cure: python examples/plain_loop.py.

The task is to copy a sequence of digits. All weights have standard deviation 1, which is right for embeddings and far
too large for the rest: attention saturates, and the loss stays where guessing is.
"""

import torch
from torch import Tensor, nn

from gradexp import GradientProbe, History, initialize, measure

SYMBOLS, LENGTH, WIDTH = 10, 8, 32


class Copier(nn.Module):
    """A transformer that gives back its input."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        block = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, num_layers=12, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, digits: Tensor) -> Tensor:
        """Return logits of shape (batch, symbols, length) for digits of shape (batch, length)."""
        hidden = self.symbols(digits) + self.places(torch.arange(LENGTH))
        return self.head(self.blocks(hidden)).transpose(1, 2)


def careless(model: nn.Module) -> nn.Module:
    """Draw all weights from N(0, 1)."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter)
    return model


def train(model: nn.Module, steps: int) -> History:
    """Train, record every twentieth step, and return what was recorded."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with GradientProbe(model, every=20, optimizer=optimizer) as probe:
        for step in range(steps):
            digits = torch.randint(SYMBOLS, (32, LENGTH))
            loss = nn.functional.cross_entropy(model(digits), digits)
            loss.backward()
            probe.collect(step, loss)
            optimizer.step()
            optimizer.zero_grad()
    return probe.history


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = torch.randint(SYMBOLS, (32, LENGTH))
    model = careless(Copier())
    print("As it is\n\n", measure(model, nn.functional.cross_entropy, (digits, digits)), sep="")
    broken = train(model, steps=200)
    initialize(model, "xavier", seed=0)  # as it says
    print("\nWith the weights it names\n\n", measure(model, nn.functional.cross_entropy, (digits, digits)), sep="")
    cured = train(model, steps=200)
    print(
        "\nloss after 200 steps, as it was and cured:", *(f"{each.loss[-1].item():.3f}" for each in (broken, cured))
    )
    broken.to_html("broken.html")
    cured.to_html("cured.html")
