"""Units that are all alike, and stay so."""

from collections.abc import Iterator

from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.wording import listed, verb
from gradexp.history.finding import Finding
from gradexp.numerics.norms import has_values
from gradexp.probe.names import named_modules

_TOLERANCE = 1e-5  # of the largest element: what rounding may make of equal gradients

REMEDY = 'draw different weights: gradexp.initialize(model, "he")'


class EqualUnits(Observer):
    """Layers whose units have equal weights and get equal gradients, and so can never differ."""

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for all such layers."""
        modules = named_modules(examination.model)
        names = [name for name, module in modules.items() if _stays_alike(module)]
        if names:
            yield Finding(
                "equal units",
                f"all units of {listed(names)} are alike and get the same gradient, so that "
                f"{verb(names, 'it', 'they')} can learn no more than one unit would",
                tuple(names),
                REMEDY,
                3,
            )


def has_equal_units(module: nn.Module) -> bool:
    """Return whether a layer of several units has the same weights and bias for each, not all of them 0."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() < 2 or len(weight) < 2 or not has_values(weight):
        return False
    if isinstance(module, nn.Embedding) or getattr(module, "groups", 1) > 1:  # whose units have other inputs
        return False
    return _is_same(weight, 0) and bool(weight[0].ne(0).any()) and (bias is None or _is_same(bias, 0))


def _stays_alike(module: nn.Module) -> bool:
    if not has_equal_units(module):
        return False
    gradient = getattr(module.weight, "grad", None)
    return isinstance(gradient, Tensor) and bool(gradient.isfinite().all()) and _is_same(gradient, _TOLERANCE)


def _is_same(rows: Tensor, tolerance: float) -> bool:
    rows = rows.detach()
    if not tolerance:
        return bool(rows.eq(rows[:1]).all())
    return bool(((rows - rows[:1]).abs() <= tolerance * rows.abs().max()).all())
