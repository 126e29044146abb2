"""Remedies for a gradient that vanishes or explodes, each tried on a copy of the model before it is named."""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from gradexp.history.history import History
from gradexp.history.remedies import REMEDIES, STRUCTURE
from gradexp.history.roles import places
from gradexp.networks.initialize import initialize

_SCHEMES = ("he", "orthogonal", "xavier")
# He's weights make logits of attention large at once, and a softmax that has saturated learns slowly.
_SCHEMES_WITH_ATTENTION = ("xavier", "orthogonal", "he")
_SCHEMES_OVER_TIME = ("orthogonal", "xavier")
_LARGEST = 20_000_000  # parameters; copies of larger models would take long
_SEED = 0


def cures(model: nn.Module, history: History, record: Callable[[nn.Module], History]) -> dict[str, str]:
    """Return kind of finding -> the first remedy after which the copy's gradient is stable.

    If none is among them, no initialisation is named against a gradient that explodes.

    Args:
        model: The model, which is left as it is.
        history: What was measured of it.
        record: A function that measures a copy.
    """
    wanted = {finding.kind for finding in history.verdict().findings if finding.kind in REMEDIES}
    if not wanted or sum(parameter.numel() for parameter in model.parameters()) > _LARGEST:
        return {}
    over_time = any(kind.endswith("over time") for kind in wanted)
    ends = () if over_time else _branch_ends(history)
    for remedy, change in _candidates(model, _SCHEMES_OVER_TIME if over_time else schemes(model), ends):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what initialize leaves
                other = copy.deepcopy(model)
                change(other)
                verdict = record(other).verdict()
        except Exception:  # noqa: S112  # of whatever kind: then it is no remedy for this model
            continue
        if verdict.gradient == "stable" and wanted.isdisjoint(finding.kind for finding in verdict.findings):
            return dict.fromkeys(wanted, remedy)
    return dict.fromkeys(wanted & {"exploding", "exploding activations"}, STRUCTURE)


def schemes(model: nn.Module) -> tuple[str, ...]:
    """Return the initialisations to try, those that suit the model best first."""
    has_attention = any("attention" in type(module).__name__.lower() for module in model.modules())
    return _SCHEMES_WITH_ATTENTION if has_attention else _SCHEMES


def _branch_ends(history: History) -> tuple[str, ...]:
    """Return, of each stack of blocks, the pattern of what would be the last layers of residual branches."""
    last: dict[str, dict[int, str]] = {}
    for place in places(history.names, history.calls):
        if place.block is not None and place.role and not place.is_call:
            last.setdefault(place.stack, {})[place.block] = place.role
    found = ((stack, set(roles.values())) for stack, roles in last.items() if len(roles) > 1)
    return tuple(f"{stack}.*.{roles.pop()}" for stack, roles in found if stack and len(roles) == 1)


def _candidates(
    model: nn.Module, schemes: tuple[str, ...], branch_ends: tuple[str, ...]
) -> Iterator[tuple[str, Callable[[nn.Module], object]]]:
    """Yield remedies as they are typed, each with a function that applies it."""
    for scheme in schemes:
        yield f"gradexp.initialize(model, '{scheme}')", partial(initialize, init=scheme, seed=_SEED)
        yield (  # with biases that were set on purpose, or grew
            f"gradexp.initialize(model, '{scheme}', sigma_b2=0)",
            partial(initialize, init=scheme, seed=_SEED, sigma_b2=0),
        )
    for pattern in branch_ends:
        yield (
            f"gradexp.initialize(model, '{schemes[0]}', branch_ends='{pattern}')",
            partial(initialize, init=schemes[0], seed=_SEED, branch_ends=pattern),
        )
    squashing = sorted({type(module).__name__ for module in model.modules() if isinstance(module, _SQUASHING)})
    if squashing:
        names = " and ".join(f"nn.{name}()" for name in squashing)
        yield f"nn.ReLU() in place of {names}, and gradexp.initialize(model, 'he')", _unsquash


_SQUASHING = (nn.Sigmoid, nn.Tanh, nn.Softsign, nn.LogSigmoid)


def _unsquash(model: nn.Module) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _SQUASHING):
                setattr(module, name, nn.ReLU())
    initialize(model, "he", seed=_SEED)
