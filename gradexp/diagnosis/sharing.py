"""Weights that stand for more or for less than one layer: tied ones, and stacks of experts."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.history.finding import Finding
from gradexp.history.sentences import first_few, listed

# Their weights of three dimensions are one map.
_NO_STACKS = (nn.Conv1d, nn.ConvTranspose1d, nn.Bilinear)
_NAMED = 4  # slices and modules that a line names


class TiedWeights(Observer):
    """Modules that share a weight, whose gradient is that of all its uses together."""

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding for each weight that several modules hold."""
        holders: dict[int, list[str]] = {}
        for name, parameter in examination.model.named_parameters(remove_duplicate=False):
            if parameter.dim() > 1:
                holders.setdefault(id(parameter), []).append(name)
        for names in holders.values():
            if len(names) > 1:
                modules = tuple(name.rpartition(".")[0] for name in names)
                yield Finding(
                    "tied weights",
                    f"{_together(names)} are the same tensor: its gradient and its update are those of all uses "
                    "together",
                    modules,
                    severity=0,
                )


class Experts(Observer):
    """Weights of three dimensions, a matrix for each expert, of which some got no gradient at all."""

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding for each such weight."""
        for name, weight in _stacks(examination.model):
            if weight.grad is None:
                continue
            is_idle = weight.grad.flatten(1).eq(0).all(dim=1).tolist()
            idle = [index for index, is_zero in enumerate(is_idle) if is_zero]
            if 0 < len(idle) < len(is_idle):
                verb, numbers = ("gets", "number") if len(idle) == 1 else ("get", "numbers")
                yield Finding(
                    "idle experts",
                    f"{len(idle)} of the {len(is_idle)} matrices in {name} {verb} a gradient of 0 ({numbers} "
                    f"{first_few([*map(str, idle)], _NAMED)})",
                    (name.rpartition(".")[0],),
                    "a larger batch; if they stay idle over many steps, a loss that balances their load",
                    severity=1,
                )


def _stacks(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights that are a stack of matrices, unlike those of convolutions and bilinear forms."""
    for prefix, module in model.named_modules():
        if isinstance(module, _NO_STACKS):
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.dim() == 3 and parameter.requires_grad:
                yield name, parameter


def _together(names: list[str]) -> str:
    if len(names) > _NAMED:
        return listed(names, _NAMED)
    return f"{', '.join(names[:-1])} and {names[-1]}"
