"""Units that are all alike, and stay so."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.wording import verb
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed, named
from gradexp.numerics.norms import has_values
from gradexp.numerics.torch_internals import parameter_of
from gradexp.probe.names import named_modules

_TOLERANCE = 1e-5  # of the largest element: what rounding may make of equal gradients

REMEDY = "draw random weights: gradexp.initialize(model, 'he', sigma_b2=0)"


# Rows of weights are sorted to find equal ones, up to this many elements.
_MOST = 4_000_000


class EqualUnits(Observer):
    """Layers whose units have equal weights and get equal gradients, and so can never differ."""

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for all layers of one unit in effect, and one for those with copies of units."""
        kinds = {name: _kinds_that_stay(module) for name, module in named_modules(examination.model).items()}
        single = [name for name, (kinds_of, _) in kinds.items() if kinds_of == 1]
        if single:
            text = f"all units of {listed(single)} are alike and get the same gradient, so that "
            text += f"{verb(single, 'it', 'they')} can learn no more than a single unit"
            yield Finding("equal units", text, tuple(single), REMEDY, 3)
        copied = {name: counts for name, counts in kinds.items() if 1 < counts[0] <= counts[1] / 2}
        if copied:
            each = listed(
                f"{named(name)} ({units} units of {distinct} kinds)" for name, (distinct, units) in copied.items()
            )
            text = f"units of {each} are copies that get the same gradient, and stay alike"
            yield Finding("equal units", text, tuple(copied), REMEDY, 2)


def has_equal_units(module: nn.Module) -> bool:
    """Return whether all units of a layer have the same weights and bias, not all of them 0."""
    rows = _units(module)
    return rows is not None and bool(rows.eq(rows[:1]).all())


def _kinds_that_stay(module: nn.Module) -> tuple[int, int]:
    """Return how many kinds of units a layer has and keeps, and how many units; zeros for no such layer."""
    rows, weight = _units(module), parameter_of(module, "weight")
    gradient = None if weight is None else weight.grad
    if rows is None or gradient is None or rows.numel() > _MOST or not bool(gradient.isfinite().all()):
        return 0, 0
    if 2 * len(rows[:, 0].unique()) > len(rows):  # which is quick to see
        return 0, 0
    distinct, kind = torch.unique(rows, dim=0, return_inverse=True)
    if 2 * len(distinct) > len(rows):
        return len(distinct), len(rows)
    of_first = torch.stack([(kind == k).nonzero()[0, 0] for k in range(len(distinct))])[kind]
    gradient = gradient.flatten(1)
    differs = (gradient - gradient[of_first]).abs().max() > _TOLERANCE * gradient.abs().max()
    return (0, 0) if bool(differs) else (len(distinct), len(rows))


def _units(module: nn.Module) -> Tensor | None:
    """Return weights and bias of each unit of a layer with several, None if there are none or one is all 0."""
    weight, bias = parameter_of(module, "weight"), parameter_of(module, "bias")
    if weight is None or is_lazy(weight) or weight.dim() < 2 or len(weight) < 2 or not has_values(weight):
        return None
    # Units of embeddings and of grouped convolutions have other inputs each; those of transposed ones come second.
    if isinstance(module, _OTHERS) or getattr(module, "groups", 1) > 1 or getattr(module, "transposed", False):
        return None
    rows = _real(weight)
    if not bool(rows.ne(0).any(dim=1).all()):
        return None
    if bias is not None and bias.shape == rows.shape[:1]:
        return torch.cat([rows, _real(bias).to(rows.dtype)], dim=1)
    return rows


def _real(parameter: Tensor) -> Tensor:
    """Return one row of real numbers for each unit, of complex ones both parts, which can be sorted."""
    values = parameter.detach()
    return (torch.view_as_real(values.resolve_conj()) if values.is_complex() else values).reshape(len(values), -1)


_OTHERS = (nn.Embedding, nn.EmbeddingBag)
