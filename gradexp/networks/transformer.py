"""The transformer: an encoder whose blocks read from a stream of tokens and add to it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradexp.architecture import check_sizes, token_size
from gradexp.choices import NORMS, QUERIES, check_choice
from gradexp.networks.activations import Activation, as_activation
from gradexp.networks.chain import Chain, Step
from gradexp.networks.normalization import normalize
from gradexp.networks.tokens import tokens


class _Branch(nn.Module):
    """One half of a block: s + f(N(s)) (pre), N(s + f(s)) (post) or s + f(s), N the layer norm of each token."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream behind the branch, shape ``(batch, tokens, width)`` as before."""
        read = normalize(stream, "layer") if self.norm == "pre" else stream
        stream = stream + self.branch(read)
        return normalize(stream, "layer") if self.norm == "post" else stream

    def branch(self, s: Tensor) -> Tensor:
        raise NotImplementedError


class Attention(_Branch):
    """Multi-head attention: each token adds a mean of all values, weighted by softmax(q · k / √(width / heads)).

    Args:
        width: Units of the stream.
        heads: Number of heads, a divisor of the width.
        norm: ``pre``, ``post`` or ``none``.
        queries: ``zero``: those weights are 0 at initialisation, and all tokens weigh the same; ``init``: drawn.
        bias: Whether the four linear layers have a bias.
    """

    def __init__(self, width: int, heads: int, norm: str, queries: str, bias: bool) -> None:
        super().__init__(norm)
        self.heads = heads
        self.queries: nn.Linear = nn.Linear(width, width, bias)
        self.keys: nn.Linear = nn.Linear(width, width, bias)
        self.values: nn.Linear = nn.Linear(width, width, bias)
        self.output: nn.Linear = nn.Linear(width, width, bias)
        if queries == "zero":
            nn.init.zeros_(self.queries.weight)

    def branch(self, s: Tensor) -> Tensor:
        """Return what is added, shape ``(batch, tokens, width)``."""
        q, k, v = (
            layer(s).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return cast(Tensor, self.output((weights @ v).transpose(1, 2).flatten(2)))


class Feedforward(_Branch):
    """Two linear layers with φ between them, 4 · width units inside, for each token alone.

    Args:
        width: Units of the stream.
        norm: ``pre``, ``post`` or ``none``.
        activation: φ.
        bias: Whether the layers have a bias.
    """

    def __init__(self, width: int, norm: str, activation: Activation, bias: bool) -> None:
        super().__init__(norm)
        self.activation = activation
        self.inner: nn.Linear = nn.Linear(width, 4 * width, bias)
        self.output: nn.Linear = nn.Linear(4 * width, width, bias)

    def branch(self, s: Tensor) -> Tensor:
        """Return what is added, shape ``(batch, tokens, width)``."""
        return cast(Tensor, self.output(self.activation(self.inner(s))))


class Block(nn.Module):
    """Attention, and then the feedforward half."""

    def __init__(self, attention: Attention, mlp: Feedforward) -> None:
        super().__init__()
        self.attention: Attention = attention
        self.mlp: Feedforward = mlp


class Transformer(Chain):
    """An encoder (Vaswani et al., 2017, arXiv:1706.03762), with the norm where one likes to have it.

    s_0 = E x + p for tokens x and positions p, which start at 0; every half of a block adds to the stream s; and

        y = V mean over tokens of N(s) + c

    ``post`` is the norm of 2017, N(s + f(s)), and ``pre`` that of GPT-2, s + f(N(s)), with the N before V that goes
    with it (Xiong et al., 2020, arXiv:2002.04745); ``post`` and ``none`` read s itself. N has no parameters. Rows of
    the profile are the embedding, both halves of every block, and y.

    Args:
        features: Number of inputs, which are cut into tokens.
        outputs: Number of outputs.
        depth: Number of blocks.
        width: Units of the stream.
        heads: Number of heads, a divisor of the width.
        context: Number of tokens.
        norm: ``pre``, ``post`` or ``none``.
        queries: ``zero`` lets all tokens weigh the same at initialisation, as Xiong et al. assume and as Yang et al.
            (2022, arXiv:2203.03466) recommend; ``init`` draws query weights like all others.
        depth_scaled: Whether the last weights of each branch are divided by √(2 depth), as in GPT-2.
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        bias: Whether linear layers have a bias.
        negative_slope: The slope below 0 of ``leaky_relu``.

    Raises:
        ValueError: If an option is unknown, the width is no multiple of ``heads``, or the inputs are fewer than the
            tokens.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        depth: int,
        width: int,
        heads: int = 4,
        context: int = 8,
        norm: str = "pre",
        queries: str = "zero",
        depth_scaled: bool = False,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        bias: bool = True,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        check_choice("queries", queries, QUERIES)
        check_sizes("transformer", depth=depth, width=width, features=features, heads=heads, context=context)
        self.context: int = context
        self.norm: str = norm
        self.embedding: nn.Linear = nn.Linear(token_size(features, context), width, bias)
        self.positions: nn.Parameter = nn.Parameter(torch.zeros(context, width))
        phi = as_activation(activation, negative_slope)
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(Attention(width, heads, norm, queries, bias), Feedforward(width, norm, phi, bias))
            for _ in range(depth)
        )
        self.readout: nn.Linear = nn.Linear(width, outputs, bias)
        self.rules: Mapping[str, Any] = {
            "skip": ["positions"] + ["blocks.*.attention.queries.weight"] * (queries == "zero"),
            "branch_ends": ["blocks.*.*.output"] * depth_scaled,
        }

    def unrolled(self, x: Tensor) -> tuple[Tensor, list[Step]]:
        """Return the tokens, and a step for the embedding, every half of a block, and the readout."""
        halves = [
            Step(f"blocks.{index}.{name}", half)
            for index, block in enumerate(self.blocks)
            for name, half in block.named_children()
        ]
        return tokens(x, self.context), [Step("embedding", self._embed), *halves, Step("readout", self._read)]

    def _embed(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.embedding(x)) + self.positions

    def _read(self, stream: Tensor) -> Tensor:
        read = normalize(stream, "layer") if self.norm == "pre" else stream
        return cast(Tensor, self.readout(read.mean(1)))
