"""``initialize``: fill the weights and biases of every layer of a model by a scheme."""

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradexp.choices import ACTIVATION_ALIASES, ACTIVATIONS, asked_for, check_choice, check_init_options
from gradexp.networks.account import Account
from gradexp.networks.inits import (
    INITS,
    Source,
    draw,
    fans,
    find_scheme,
    lsuv_,
    orthogonal_,
    scheme_name,
    torch_default_,
)
from gradexp.networks.lsuv import scale_to_unit_variance
from gradexp.networks.matrices import Layer, Weight
from gradexp.networks.places import Place, Plan, plan
from gradexp.numerics import seeds
from gradexp.own_parts import OwnPart

Model = TypeVar("Model", bound=nn.Module)
Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


@torch.no_grad()
def initialize(
    model: Model,
    init: str | Callable[..., Any],
    *,
    seed: int | None = None,
    sigma_b2: float | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    inputs: Inputs | None = None,
    skip: str | Iterable[str] = (),
    branch_ends: str | Iterable[str] = (),
    scale: Mapping[str, float] | None = None,
    layouts: Mapping[str, str] | None = None,
    report: Callable[[Account], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Model:
    """Initialise every layer of ``model``, in the order of ``model.modules()``.

    The scheme fills matrices, each by its own fans: of linear layers, of convolutions (by group; transposed ones as
    the plain convolutions that they consist of, one for each step of the stride), of attention (queries, keys and
    values), of recurrent layers (from the input, by gate), of ``nn.Bilinear``, of stacks of networks, and of layers
    that other libraries have written: of those whose forward pass on a test input is that of a linear layer, and of
    those that tell the widths of their input and output. What else is drawn follows rules of its own:

    - Between time steps each gate is orthogonal, and an LSTM's forget gates get a bias of 1, so that a state lasts
      (Jozefowicz et al., 2015).
    - Embeddings have variance 1, as the inputs that schemes are made for. In a model that ties one to the output
      head they have 1 / features, so that logits have variance 1. Row ``padding_idx`` is 0.
    - Tied weights are filled once, as what comes first.

    Left as they are: what is frozen, quantised, or exactly 0 in a model that is not all 0 (LoRA's B, modulation that
    starts at 0); biases that were set on purpose (all beyond what torch draws, and of one sign, or all the same);
    gains of normalisations, and other vectors; weights that are not understood. ``report=print`` lists what was
    filled and what was left, and why; a warning names what one may have expected to be filled.

    Numbers are drawn on the CPU in float64 and then cast: the same seed gives the same network on any device, in
    any dtype and at any place of a stack, where network e has seed ``seed + e``. Biases, embeddings and recurrent
    matrices have generators of their own, so that they do not change the weights.

    Args:
        model: Any module, changed in place.
        init: A key of ``INITS``, ``"glorot"`` (xavier), ``"kaiming"`` (he), or a function that changes a weight of
            shape ``(out, in, *kernel)`` in place, such as ``torch.nn.init.xavier_normal_``. A function without
            an argument ``generator`` draws from torch's global generator, whatever ``seed`` is.
        seed: The seed of the (first) network; None takes torch's global generator.
        sigma_b2: The variance of normal biases. None leaves them to the scheme: U(±1 / sqrt(fan_in)) with
            ``torch_default``, as torch has them, 0 with any other. Above 0 it is an error where there are none.
        activation: The activation between the layers, for schemes with a keyword-only parameter of this name:
            ``lyapunov``.
        negative_slope: The slope of ``leaky_relu`` below 0, for the same schemes.
        inputs: A batch, a tuple of the model's arguments or a mapping of its keywords; only ``lsuv`` needs it. It
            passes through a float64 copy of the model, so that nothing but weights and biases changes.
        skip: Names of modules or parameters to leave, with all that is inside. ``*`` stays between two dots, ``**``
            crosses them.
        branch_ends: Names of the last layers of residual branches, in the same patterns. Those of one pattern are
            divided by the square root of their number, as in GPT-2, so that all branches together add variance 1:
            ``"transformer.h.*.*.c_proj"``.
        scale: Name of modules or parameters, in the same patterns -> a factor of their weights. Fixup takes L^(-1/2)
            for the first layer of L branches of two, and 0 for the last.
        layouts: Name of parameters, in the same patterns -> ``"out in"`` or ``"in out"``, what the last two
            dimensions are of weights that are not understood otherwise. Leading dimensions count matrices.
        report: A function of what was filled and left, such as ``print``.
        progress: A function of (layers done, layers in all), called after each layer.
        **options: Options of the scheme, such as ``gain``.

    Returns:
        ``model``.

    Raises:
        TypeError: If the model is none.
        ValueError: For an unknown scheme, an option it does not have, or a value that cannot work; for a pattern that
            matches nothing; for a layer that has no weight yet (lazy); for a model in which nothing can be filled;
            for ``lsuv`` without inputs, or with a layer whose outputs on them do not vary or are not finite.

    Examples:
        >>> layer = initialize(nn.Linear(2, 2), "identity", gain=1.5)
        >>> layer.weight.tolist(), layer.bias.tolist()
        ([[1.5, 0.0], [0.0, 1.5]], [0.0, 0.0])
        >>> _ = initialize(nn.LSTM(3, 4), "he", report=print)
        filled    1  by he, input, forget, cell and output gate: weight_ih_l0
        filled    1  orthogonal, input, forget, cell and output gate: weight_hh_l0
        filled    1  biases, 1 in the forget gate: bias_ih_l0
        filled    1  biases: bias_hh_l0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got a {type(model).__name__}")
    facts: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}
    if isinstance(init, OwnPart):
        scheme: Callable[..., Any] = find_scheme(init, options)[0].fill
        options |= init.facts(**facts)
    else:
        scheme = init if not isinstance(init, str) and callable(init) else INITS[scheme_name(init, options)].fill
        if isinstance(init, str):
            check_init_options(options)
        options |= asked_for(scheme, **facts)
    if sigma_b2 is not None and not 0 <= sigma_b2 < math.inf:
        raise ValueError(f"sigma_b2 must be at least 0, got {sigma_b2}")
    if activation is not None and not isinstance(activation, OwnPart):
        check_choice("activation", activation, (*ACTIVATIONS, *ACTIVATION_ALIASES))
    patterns: dict[str, Any] = {
        "skip": skip,
        "branch_ends": branch_ends,
        "scale": scale or {},
        "layouts": layouts or {},
    }
    if scheme is lsuv_:
        if inputs is None:
            raise ValueError("lsuv needs data: pass a batch as inputs")
        return _by_data(model, inputs, options, report, seed=seed, sigma_b2=sigma_b2, progress=progress, **patterns)
    label = f"by {init}" if isinstance(init, str) else f"by {getattr(init, '__name__', 'a function')}"
    found = plan(model, all_biases=sigma_b2 is not None, **patterns)
    if sigma_b2 and not _has_biases(found):
        raise ValueError(f"sigma_b2={sigma_b2} needs biases, and no layer of the model has one to fill")
    _Filling(scheme, options, label, seed, sigma_b2).fill(found, progress)
    _tell(found.account, report)
    return model


class _Filling:
    """One call of ``initialize``: a scheme with its options and its random numbers."""

    def __init__(
        self,
        scheme: Callable[..., Any],
        options: dict[str, Any],
        label: str,
        seed: int | None,
        sigma_b2: float | None,
    ) -> None:
        self.scheme, self.options, self.label = scheme, options, label
        self.seed, self.sigma_b2 = seed, sigma_b2
        self.takes_generator = _takes_generator(scheme)
        self.is_default = scheme is torch_default_
        self.source = functools.cache(self._source)

    def _source(self, purpose: str, network: int) -> Source:
        return None if self.seed is None else seeds.generator(self.seed + network, purpose)

    def fill(self, found: Plan, progress: Callable[[int, int], object] | None) -> None:
        """Fill all layers of a plan, and account for it."""
        for done, (name, layer) in enumerate(found.layers.items(), 1):
            fan_in = 1
            for weight in layer.weights:
                place = found.places.get((name, weight.name))
                if place is not None:
                    fan_in = self._weight(layer, weight, place, found)
            if isinstance(layer.module, nn.RNNBase | nn.RNNCellBase):
                fan_in = layer.module.hidden_size  # of which torch's own biases are
            for group in layer.biases:
                self._biases(name, layer, group, fan_in, found)
            if progress is not None:
                progress(done, len(found.layers))

    def _weight(self, layer: Layer, weight: Weight, place: Place, found: Plan) -> int:
        with drawn_on_cpu(place, found.account) as values:
            for index, matrix in enumerate(weight.cut(values)):
                network = index if layer.networks else 0
                # A scheme may need a tensor that it can view in another shape.
                whole = matrix if matrix.is_contiguous() else matrix.contiguous()
                how, fan_in = self._matrix(layer, weight, whole, network, found)
                if whole is not matrix:
                    matrix.copy_(whole)
            if place.factor != 1:
                values.mul_(place.factor)
        if place.name not in found.account.left:
            details = [weight.remark] * bool(weight.remark) + [f"times {place.factor:.4g}"] * (place.factor != 1)
            details += [f"tied to {', '.join(place.tied)}"] * bool(place.tied)
            found.account.filled[place.name] = ", ".join([how, *details])
        return fan_in

    def _matrix(self, layer: Layer, weight: Weight, matrix: Tensor, network: int, found: Plan) -> tuple[str, int]:
        if weight.kind == "embedding":
            std = 1 / math.sqrt(matrix.shape[1]) if found.ties_embedding else 1.0
            draw(matrix, std, "normal", self.source("embeddings", network))
            row = getattr(layer.module, "padding_idx", None)
            if row is not None:
                matrix[row] = 0
            return f"normal, variance {'1 / features' if found.ties_embedding else '1'}", 1
        fan_in, _ = fans(matrix)
        if weight.kind == "recurrent" and not self.is_default:
            orthogonal_(matrix, generator=self.source("recurrent", network))
            return "orthogonal", fan_in
        if isinstance(layer.module, nn.RNNBase | nn.RNNCellBase) and self.is_default:
            bound = self.options.get("gain", 1.0) / math.sqrt(3 * layer.module.hidden_size)
            draw(matrix, bound, "uniform", self.source("weights", network))
            return self.label, fan_in
        generator = {"generator": self.source("weights", network)} if self.takes_generator else {}
        self.scheme(matrix, **generator, **self.options)
        return self.label, fan_in

    def _biases(self, name: str, layer: Layer, group: tuple[str, ...], fan_in: int, found: Plan) -> None:
        """Draw biases that are added up."""
        for order, attribute in enumerate(group):
            place = found.places.get((name, attribute))
            if place is None:
                continue
            forget = layer.forget if order == 0 and not self.is_default else None
            with drawn_on_cpu(place, found.account) as values:
                for network, bias in enumerate(values if layer.networks else (values,)):
                    if self.sigma_b2 is not None and order == 0:
                        draw(bias, math.sqrt(self.sigma_b2), "normal", self.source("biases", network))
                    elif self.is_default and self.sigma_b2 is None:
                        draw(bias, 1 / math.sqrt(3 * fan_in), "uniform", self.source("biases", network))
                    else:
                        bias.zero_()
                    if forget is not None:
                        bias[forget] += 1
            found.account.filled[place.name] = "biases" + (", 1 in the forget gate" if forget else "")


def _has_biases(found: Plan) -> bool:
    """Return whether there is a bias to draw."""
    return any((name, bias) in found.places for name, layer in found.layers.items() for bias in sum(layer.biases, ()))


def _by_data(
    model: Model,
    inputs: Inputs,
    options: dict[str, Any],
    report: Callable[[Account], object] | None,
    branch_ends: Any,
    scale: Any,
    **given: Any,
) -> Model:
    """Draw orthogonal weights and scale them by data, on a float64 copy."""
    accounts: list[Account] = []
    try:
        exact = copy.deepcopy(model).double()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"lsuv works on a copy of the model, which cannot be made: {_line(error)}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        initialize(exact, orthogonal_, gain=options.get("gain", 1.0), report=accounts.append, **given)
    (account,) = accounts
    patterns = {key: given[key] for key in ("skip", "layouts")}
    found = plan(model, all_biases=given["sigma_b2"] is not None, branch_ends=branch_ends, scale=scale, **patterns)
    scaled = {
        name: (exact.get_submodule(name), layer.networks)
        for name, layer in found.layers.items()
        if _has_one_output(layer) and (place := found.places.get((name, "weight"))) is not None and not place.computed
    }
    scale_to_unit_variance(exact, scaled, inputs, **options)
    for (name, attribute), place in found.places.items():
        if place.factor != 1:
            twin = Place(place.name, exact.get_submodule(name), attribute)
            twin.set(twin.value * place.factor)
    twins = dict(exact.named_parameters())
    changed = {id(parameter) for place in found.places.values() for parameter in place.parameters}
    for name, parameter in model.named_parameters():
        if id(parameter) in changed:
            parameter.copy_(twins[name])
    for name, how in account.filled.items():
        account.filled[name] = how.replace("by orthogonal_", "by lsuv")
    _tell(account, report)
    return model


def _has_one_output(layer: Layer) -> bool:
    """Return whether a layer's output is its one weight times its input, and can be scaled."""
    return len(layer.weights) == 1 and layer.weights[0].name == "weight" and layer.weights[0].kind == "matrix"


def _tell(account: Account, report: Callable[[Account], object] | None) -> None:
    if report is not None:
        report(account)
    elif account.warning:
        warnings.warn(account.warning, stacklevel=4)  # past torch's no_grad


def _takes_generator(scheme: Callable[..., Any]) -> bool:
    try:
        return "generator" in inspect.signature(scheme).parameters
    except ValueError:  # written in C without a signature, such as torch.Tensor.zero_
        return False


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def drawn_on_cpu(place: Place, account: Account) -> Iterator[Tensor]:
    """Yield a float64 copy on the CPU to be filled, and set the parameter to it at the end."""
    tensor = place.value
    if (
        isinstance(tensor, nn.Parameter)
        and tensor.is_cpu
        and tensor.dtype == torch.float64
        and tensor.is_contiguous()
    ):
        yield tensor.detach()  # a copy of a large stack would take longer than to fill it
        return
    # Contiguous, since a generator fills a tensor in the order of its strides.
    values = tensor.detach().to("cpu", torch.float64, copy=True, memory_format=torch.contiguous_format)
    yield values
    if not place.set(values):
        account.left[place.name] = "computed by a parametrization, which does not keep what is set"
