"""Small healthy models of many kinds, each with its loss and a source of batches, to be measured and trained."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = tuple[nn.Module, Callable[..., Tensor], Callable[[], Any]]


class Residual(nn.Module):
    def __init__(self, width, stride=1):
        super().__init__()
        inside = width // stride
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.skip = nn.Conv2d(inside, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def resnet():
    stem = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
    blocks = Residual(16), Residual(32, 2), Residual(64, 2)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.norm1, self.norm2 = nn.GroupNorm(4, 16), nn.GroupNorm(4, 32)
        self.up, self.join, self.out = (
            nn.ConvTranspose2d(32, 16, 2, 2),
            nn.Conv2d(32, 16, 3, 1, 1),
            nn.Conv2d(16, 1, 1),
        )

    def forward(self, x):
        fine = F.silu(self.norm1(self.down1(x)))
        coarse = F.silu(self.norm2(self.down2(fine)))
        return self.out(F.relu(self.join(torch.cat([self.up(coarse), fine], 1))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(20, 32), nn.Parameter(torch.randn(12, 32) / 10)
        block = nn.TransformerEncoderLayer(32, 4, 64, norm_first=True, batch_first=True, dropout=0.0)
        self.blocks = nn.TransformerEncoder(block, 3, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 20)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens) + self.position))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 32, 2, batch_first=True), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Adapted(nn.Module):
    """A frozen layer with a branch of low rank that begins at 0."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 16) / 4), nn.Parameter(torch.zeros(16, 2))

    def forward(self, x):
        return self.frozen(x) + x @ self.down.T @ self.up.T


class Flow(nn.Module):
    """An ordinary differential equation by Euler's method."""

    def __init__(self):
        super().__init__()
        self.slope, self.head = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)), nn.Linear(16, 3)

    def forward(self, x):
        for _ in range(10):
            x = x + 0.1 * self.slope(x)
        return self.head(x)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.head = nn.Linear(16, 8), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(8))

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        total = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            row, place = (chosen == index).nonzero(as_tuple=True)
            total = total.index_add(0, row, expert(x[row]) * weights[row, place, None])
        return self.head(x + total)


def classes(count=64, width=16):
    x = torch.randn(count, width)
    return x, x[:, :3].argmax(1)


def pictures():
    x = torch.randn(32, 3, 1, 1) + torch.randn(32, 3, 8, 8)
    return x, x.mean((2, 3)).argmax(1)


def masks():
    x = F.interpolate(torch.randn(16, 1, 4, 4), size=8)
    return x, (x > 0).float()


def tokens():
    x = torch.randint(20, (16, 12))
    return x, x.flip(1)


def sequences():
    x = torch.randn(32, 10, 6)
    return x, x[:, -1, :3].argmax(1)


def next_token_loss(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def plain(activation):
    return nn.Sequential(
        *(nn.Linear(16, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation()),
        nn.Linear(64, 3),
    )


MODELS: dict[str, Callable[[], Case]] = {
    "lora": lambda: (
        nn.Sequential(Adapted(), nn.ReLU(), Adapted(), nn.ReLU(), nn.Linear(16, 3)),
        F.cross_entropy,
        classes,
    ),
    "tanh": lambda: (plain(nn.Tanh), F.cross_entropy, classes),
    "lstm": lambda: (Recurrent(), F.cross_entropy, sequences),
    "mixture": lambda: (Mixture(), F.cross_entropy, classes),
    "ode": lambda: (Flow(), F.cross_entropy, classes),
    "relu": lambda: (plain(nn.ReLU), F.cross_entropy, classes),
    "gelu": lambda: (plain(nn.GELU), F.cross_entropy, classes),
    "transformer": lambda: (Transformer(), next_token_loss, tokens),
    "unet": lambda: (UNet(), F.binary_cross_entropy_with_logits, masks),
    "resnet": lambda: (resnet(), F.cross_entropy, pictures),
}


def trained(model: nn.Module, loss_fn: Callable[..., Tensor], batches: Callable[[], Any], steps: int) -> None:
    """Train a model with Adam for some steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        x, target = batches()
        optimizer.zero_grad()
        loss_fn(model(x), target).backward()
        optimizer.step()


def adversaries(steps: int) -> Iterator[Case]:
    """Yield a generator below its discriminator, and the discriminator alone, after some steps against each other."""
    generator = nn.Sequential(
        *(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh())
    )
    discriminator = nn.Sequential(
        *(nn.Linear(16, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    )
    loss_fn = F.binary_cross_entropy_with_logits
    real, noise = (lambda: torch.tanh(torch.randn(64, 16) / 2 + 0.5)), (lambda: torch.randn(64, 8))
    ones, labels = torch.ones(64, 1), torch.cat([torch.ones(64, 1), torch.zeros(64, 1)])

    def both():
        return torch.cat([real(), generator(noise()).detach()]), labels

    optimizers = [torch.optim.Adam(m.parameters(), 5e-4, (0.5, 0.999)) for m in (generator, discriminator)]
    for _ in range(steps):
        for optimizer, loss in zip(
            reversed(optimizers),
            (
                lambda: loss_fn(*(lambda x, y: (discriminator(x), y))(*both())),
                lambda: loss_fn(discriminator(generator(noise())), ones),
            ),
            strict=True,
        ):
            generator.zero_grad()
            discriminator.zero_grad()
            loss().backward()
            optimizer.step()
    yield nn.Sequential(generator, discriminator), loss_fn, lambda: (noise(), ones)
    yield discriminator, loss_fn, both
