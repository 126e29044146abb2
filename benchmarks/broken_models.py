"""Small networks and data for the examples of findings, with the mistakes that people make."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def classes(samples: int = 64, features: int = 20) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of four classes, one around each of four points."""
    label = torch.randint(4, (samples,))
    return torch.randn(4, features)[label] + 0.5 * torch.randn(samples, features), label


def network(
    activation: type[nn.Module], depth: int, outputs: int = 4, norm: type[nn.Module] | None = None
) -> nn.Sequential:
    """Return a plain network: ``fc1``, ``norm1`` if there are norms, ``act1``, ``fc2``, … and ``head``."""
    named: dict[str, nn.Module] = {}
    for layer in range(1, depth):
        named[f"fc{layer}"] = nn.Linear(20 if layer == 1 else 64, 64)
        if norm is not None:
            named[f"norm{layer}"] = norm(64)
        named[f"act{layer}"] = activation()
    return nn.Sequential(OrderedDict(named | {"head": nn.Linear(64, outputs)}))


class Block(nn.Module):
    """A residual block whose branch is multiplied by a scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.up, self.down, self.scale = nn.Linear(64, 64), nn.Linear(64, 64), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.relu(self.up(x)))


class Blocks(nn.Module):
    """A residual network."""

    def __init__(self, scale: float, depth: int = 12) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(20, 64), nn.Linear(64, 4)
        self.blocks = nn.Sequential(*(Block(scale) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Last(nn.Module):
    """A recurrent net of which the last step is used."""

    def __init__(self, net: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(net.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0][:, -1])


class EncoderAndHead(nn.Module):
    """An encoder whose result is cut from the graph, or not."""

    def __init__(self, is_cut: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.is_cut = nn.Sequential(nn.Linear(20, 64), nn.ReLU()), nn.Linear(64, 4), is_cut

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        if self.is_cut:
            features = features.detach()
        return self.head(features)


class Mixture(nn.Module):
    """Experts of which each sample takes one."""

    def __init__(self, used: int) -> None:
        super().__init__()
        self.experts, self.used = nn.Parameter(torch.randn(8, 20, 4) / 20**0.5), used

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("sf,sfc->sc", x, self.experts[torch.arange(len(x)) % self.used])


class Tied(nn.Module):
    """A language model whose output layer has the weight of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(30, 16), nn.Linear(16, 16), nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens))))


class PastHooks(nn.Module):
    """A model that calls the method of a layer in place of the layer, or not."""

    def __init__(self, is_past: bool) -> None:
        super().__init__()
        self.first, self.second, self.is_past = nn.Linear(20, 64), nn.Linear(64, 4), is_past

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first.forward(x) if self.is_past else self.first(x)))


class Distance(nn.Module):
    """The distance between two vectors, with the root that has an infinite slope at 0."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().sum(1).sqrt()


class Siamese(nn.Module):
    """A network that learns how far two samples are apart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.distance = network(nn.ReLU, 3), Distance()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(self.encoder(a), self.encoder(b))


class Loop(nn.Module):
    """A loop over the time steps of a cell, whose state is detached each few steps."""

    def __init__(self, detached_each: int) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 32), nn.Linear(32, 4)
        self.detached_each = detached_each

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 32)
        for step in range(x.shape[1]):
            if step % self.detached_each == 0:
                state = state.detach()
            state = self.cell(x[:, step], state)
        output: Tensor = self.head(state)
        return output
