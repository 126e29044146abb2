"""Powers of λ: their true values, and what is left of them in the number formats of a computer."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import torch

LAYERS = (1, 2, 3, 10, 50, 150)
DEPTH = 150
FORMATS = ("float32", "float16", "bfloat16")


def written(value: Fraction | float) -> str:
    """Return a number in four to five digits, in HTML; 0 and inf stay words of their own.

    Examples:
        >>> written(Fraction("1.5") ** 150), written(Fraction("3.375")), written(0.0)
        ('2.592 · 10<sup>26</sup>', '3.375', '0')
    """
    if isinstance(value, float):
        if value in (0.0, float("inf")):
            return "inf" if value else "0"
        value = Fraction(value)
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    if Decimal("0.001") < exact < 10_000:
        return format(exact, ".5g")
    head, _, exponent = format(exact, ".3e").partition("e")
    return f"{head} · 10<sup>{int(exponent)}</sup>".replace("-", "−")


def in_format(factor: str, layers: Sequence[int], name: str) -> list[float]:
    """Return the outputs of layers that each multiply by λ in a number format, which rounds every product.

    Args:
        factor: λ, as a decimal number.
        layers: The layers that are looked at.
        name: The format, a dtype of torch.
    """
    dtype = getattr(torch, name)
    output, scale, outputs = torch.ones((), dtype=dtype), torch.tensor(float(factor), dtype=dtype), []
    for _ in range(max(layers)):
        output = output * scale
        outputs.append(output.item())
    return [outputs[layer - 1] for layer in layers]


def power_table(factor: str) -> str:
    """Return the table of a network of 150 layers of λ times the identity: true values, and those in each format."""
    true = Fraction(factor)
    printed = {name: in_format(factor, LAYERS, name) for name in FORMATS}
    rows = []
    for index, layer in enumerate(LAYERS):
        cells = [f'<th scope="row">{layer}</th>', f"<td>{written(true**layer)}</td>"]
        cells += [_cell(printed[name][index]) for name in FORMATS]
        cells.append(f"<td>{written(true ** (DEPTH - layer))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["layer <var>l</var>", f"output {factor}<sup><var>l</var></sup>", *(f"… in {name}" for name in FORMATS)]
    heads.append(f"gradient {factor}<sup>{DEPTH}−<var>l</var></sup>")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="numbers for λ = {factor}">'
        f'<table class="powers" data-factor="{factor}"><caption>λ = {factor}, {DEPTH} layers</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: float) -> str:
    lost = ' class="lost"' if value in (0.0, float("inf")) else ""
    return f"<td{lost}>{written(value)}</td>"
