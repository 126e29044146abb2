"""Where an initialisation writes: the parameters to fill, and those to leave, with the reason."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradexp.kinds import texts
from gradexp.networks.account import Account
from gradexp.networks.matrices import Layer, find_layers, is_norm, own_parameters
from gradexp.numerics.torch_internals import parameters_by_name
from gradexp.patterns import is_match


@dataclass
class Place:
    """One parameter to fill, or one that is computed from others.

    Args:
        name: Full name.
        module: The module that uses it.
        attribute: Its name there.
        factor: A factor of what the scheme draws.
        tied: Full names of other places that hold the same parameter.
    """

    name: str
    module: nn.Module
    attribute: str
    factor: float = 1.0
    tied: tuple[str, ...] = ()

    @property
    def computed(self) -> bool:
        """Whether a parametrization computes it."""
        return parametrize.is_parametrized(self.module, self.attribute)

    @property
    def value(self) -> Tensor:
        """What the module uses now."""
        value: Tensor
        if not self.computed:
            value = getattr(self.module, self.attribute)
            return value
        with _in_eval_mode(self.module):
            value = getattr(self.module, self.attribute)
        return value

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What is trained: the parameter itself, or those it is computed from."""
        if self.computed:
            computing: Any = self.module.parametrizations
            return tuple(computing[self.attribute].parameters())
        return (getattr(self.module, self.attribute),)

    def set(self, values: Tensor) -> bool:
        """Write values; return whether the module then uses them."""
        if not self.computed:
            self.value.copy_(values)
            return True
        before = [parameter.detach().clone() for parameter in self.parameters]
        held_by: Any = self.module.parametrizations
        computing = held_by[self.attribute]
        wanted = values.to(self.value)
        try:
            held: Any = wanted
            for step in reversed(list(computing)):
                held = step.right_inverse(held)
            originals = [held] if isinstance(held, Tensor) else list(held)
            for parameter, original in zip(_originals(computing), originals, strict=True):
                parameter.copy_(original)
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            kept = False
        else:
            size = float(wanted.abs().max())
            kept = bool(((self.value - wanted).abs() <= 1e-3 * size).all())
        if not kept:
            for parameter, old in zip(self.parameters, before, strict=True):
                parameter.copy_(old)
        return kept


def _originals(computing: Any) -> list[nn.Parameter]:
    if computing.is_tensor:
        return [computing.original]
    return [getattr(computing, f"original{index}") for index in range(computing.ntensors)]


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Let a weight be computed without the update that some parametrizations make of their state in training mode."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@dataclass
class Plan:
    """What to fill.

    Args:
        layers: Name -> layer with at least one place to fill.
        places: (name of the layer, name of the attribute) -> place to fill.
        account: What is left, and why.
        ties_embedding: Whether an embedding is the output head too.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    ties_embedding: bool = False


def plan(
    model: nn.Module,
    *,
    skip: str | Iterable[str] = (),
    branch_ends: str | Iterable[str] = (),
    scale: Mapping[str, float] | None = None,
    layouts: Mapping[str, str] | None = None,
    all_biases: bool = False,
) -> Plan:
    """Return what to fill in a model, and what to leave.

    Args:
        model: Any module.
        skip: The argument of that name of ``initialize``, as all others.
        branch_ends: As there.
        scale: As there.
        layouts: As there.
        all_biases: Whether biases that were set on purpose are filled too.

    Raises:
        ValueError: As there.
    """
    scale, layouts = scale or {}, layouts or {}
    names = _Names(model)
    named = names.inside("skip", texts("skip", skip, "names or patterns"))
    skipped = {id(parameter) for name, _, _, parameter in own_parameters(model) if name in named}
    factors = _factors(names, texts("branch_ends", branch_ends, "names or patterns"), scale)
    for pattern, layout in layouts.items():
        if layout not in ("out in", "in out"):
            raise ValueError(f"layouts must be 'out in' or 'in out', got {layout!r} for '{pattern}'")
        names.inside("layouts", [pattern])
    layers = find_layers(model, layouts, is_match)
    found = Plan()
    used: dict[int, str] = {}
    weights_of = {layer.module: layer.weights for layer in layers.values()}
    everything = _all_zero(layers)
    for name, layer in layers.items():
        biases = [attribute for group in layer.biases for attribute in group]
        for attribute in [*(weight.name for weight in layer.weights), *biases]:
            place = Place(f"{name}.{attribute}".lstrip("."), layer.module, attribute)
            if not place.computed and getattr(layer.module, attribute, None) is None:
                continue
            _check(name, layer, attribute)
            parameters = place.parameters if _holds_parameter(place) else ()
            if parameters and id(parameters[0]) in used:
                first = found.places.get(_key(found, used[id(parameters[0])]))
                if first is not None:
                    first.tied = (*first.tied, place.name)
                    kinds = {weight.kind for module in (layer.module, first.module) for weight in weights_of[module]}
                    found.ties_embedding |= {"embedding", "matrix"} <= kinds
                continue
            reason = _why_left(place, layer, attribute in biases, skipped, everything, all_biases)
            used.update({id(parameter): place.name for parameter in parameters})
            if reason:
                found.account.left[place.name] = reason
                if reason == _SKIPPED or (attribute in biases and reason != _PURPOSE):
                    found.account.silent.add(place.name)
                continue
            place.factor = factors.get(place.name, 1.0) if attribute not in biases else 1.0
            found.places[name, attribute] = place
            found.layers[name] = layer
    _account_for_others(model, found, skipped, set(used))
    if not any(attribute == weight.name for (name, attribute) in found.places for weight in layers[name].weights):
        _refuse(model, found)
    return found


_SKIPPED = "named in skip"
_PURPOSE = "a bias that was set on purpose"
_ZERO = "exactly 0, as on purpose"


class _Names:
    """Names of the modules and parameters of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [name for name, _, _, _ in own_parameters(model)]
        self.modules = [name for name, _ in model.named_modules()]

    def inside(self, key: str, patterns: Iterable[str]) -> set[str]:
        """Return the parameters that patterns name, themselves or by a module around them."""
        found: set[str] = set()
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"{key} must be names or patterns of them, got a {type(pattern).__name__}")
            roots = [name for name in self.modules if is_match(name, pattern)]
            chosen = {
                name
                for name in self.parameters
                if is_match(name, pattern) or any(name.startswith(f"{root}." if root else "") for root in roots)
            }
            if not chosen:
                raise ValueError(f"{key}: '{pattern}' matches no module or parameter with weights")
            found |= chosen
        return found


def _factors(names: _Names, branch_ends: list[str], scale: Mapping[str, float]) -> dict[str, float]:
    factors: dict[str, float] = {}
    for pattern in branch_ends:
        ends = [name for name in (*names.modules, *names.parameters) if name and is_match(name, pattern)]
        for parameter in names.inside("branch_ends", [pattern]):
            factors[parameter] = factors.get(parameter, 1.0) / math.sqrt(len(ends))
    for pattern, factor in scale.items():
        if not isinstance(factor, int | float) or not math.isfinite(factor):
            raise ValueError(f"scale must be finite numbers, got {factor!r} for '{pattern}'")
        for parameter in names.inside("scale", [pattern]):
            factors[parameter] = factors.get(parameter, 1.0) * factor
    return factors


def _check(name: str, layer: Layer, attribute: str) -> None:
    value = parameters_by_name(layer.module).get(attribute)
    label = f"layer '{name}'" if name else "the layer"
    if value is not None and nn.parameter.is_lazy(value):
        raise ValueError(f"{label} is lazy and has no shape yet; run the model once on a batch first")
    if value is not None and value.is_meta:
        raise ValueError(
            f"{label} is on the meta device and has no numbers; model.to_empty(device=...) gives it some"
        )


def _holds_parameter(place: Place) -> bool:
    """Return whether what is filled are parameters, and not a tensor that a hook computes."""
    return place.computed or isinstance(getattr(place.module, place.attribute), nn.Parameter)


def _all_zero(layers: Mapping[str, Layer]) -> bool:
    """Return whether all weights are 0: then none of them is on purpose."""
    for layer in layers.values():
        for weight in layer.weights:
            value = parameters_by_name(layer.module).get(weight.name)
            if value is not None and not nn.parameter.is_lazy(value) and not value.is_meta and bool(value.any()):
                return False
    return True


def _why_left(
    place: Place, layer: Layer, is_bias: bool, skipped: set[int], everything: bool, all_biases: bool
) -> str:
    """Return why a parameter stays as it is; empty if it is filled."""
    if not _holds_parameter(place):
        return "computed by a hook before the forward pass"
    parameters = place.parameters
    if any(id(parameter) in skipped for parameter in parameters):
        return _SKIPPED
    if not all(parameter.requires_grad for parameter in parameters):
        return "frozen: requires_grad is False"
    value = parameters[0]
    if not value.is_floating_point() or value.element_size() < 2:
        return f"quantised or of another kind of number: {str(value.dtype).removeprefix('torch.')}"
    if layer.networks:
        return ""
    if is_bias:
        if not everything and not bool(_first_weight(layer).any()):
            return "a bias of weights that are left"
        return "" if all_biases or not _was_set(value, layer) else _PURPOSE
    if value.numel() == 0:
        return "empty"
    return _ZERO if not everything and not place.computed and not bool(value.any()) else ""


def _first_weight(layer: Layer) -> Tensor:
    for weight in layer.weights:
        place = Place("", layer.module, weight.name)
        if place.computed or isinstance(getattr(layer.module, weight.name, None), Tensor):
            return place.value
    return torch.ones(1, 1)


def _was_set(bias: Tensor, layer: Layer) -> bool:
    """Return whether somebody has given biases a value, such as -4.6 for rare classes, or steps of a state space.

    Torch draws them from U(±1 / sqrt(fan_in)) or leaves them 0; training moves them, but not all to one side.
    """
    if getattr(bias, "_no_reinit", False):
        return True
    if bias.numel() < 2 or isinstance(layer.module, nn.RNNBase | nn.RNNCellBase):
        return False
    low, high = (float(end) for end in torch.aminmax(bias.detach().double()))
    if low == high:
        return low != 0
    if not low * high > 0:
        return False
    fan_in = max(1, math.prod(_first_weight(layer).shape[1:]))
    return bias.numel() >= _ENOUGH and min(abs(low), abs(high)) > 1.01 / math.sqrt(fan_in)


# By chance so many biases are on one side with a probability of 1 to 2000.
_ENOUGH = 12


def _key(found: Plan, name: str) -> tuple[str, str]:
    return next((key for key, place in found.places.items() if place.name == name), ("", ""))


def _account_for_others(model: nn.Module, found: Plan, skipped: set[int], known: set[int]) -> None:
    """Say of every other parameter why it stays as it is."""
    for full, module, attribute, parameter in own_parameters(model):
        if id(parameter) in known or full in found.account.left:
            continue
        known.add(id(parameter))
        account, kind = found.account, type(module).__name__
        if id(parameter) in skipped:
            account.left[full] = _SKIPPED
        elif nn.parameter.is_lazy(parameter):
            account.left[full] = "lazy: it has no shape yet"
            continue
        elif attribute.endswith(("_g", "_v", "_orig")) and hasattr(module, attribute.rpartition("_")[0]):
            account.left[full] = "a hook computes the weight from it"
            if parameter.dim() > 1:
                continue
        elif is_norm(module):
            account.left[full] = "of a normalisation"
        elif parameter.dim() < 2 or max(parameter.shape, default=0) == parameter.numel():
            account.left[full] = "a vector, and no matrix"
        elif isinstance(module, parametrize.ParametrizationList):
            account.left[full] = "a weight is computed from it"
        elif not parameter.requires_grad:
            account.left[full] = "frozen: requires_grad is False"
            continue
        else:
            account.left[full] = f"what {kind} does with it is not known: name it in layouts, if it is a matrix"
            continue
        account.silent.add(full)


def _refuse(model: nn.Module, found: Plan) -> None:
    """Say why nothing can be filled."""
    reasons = {reason for name, reason in found.account.left.items() if name not in found.account.silent}
    why = f": {'; '.join(sorted(reasons))}" if reasons else ""
    raise ValueError(f"{type(model).__name__} has no weight to fill{why}")
