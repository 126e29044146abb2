"""``initialize``: fill the weights and biases of every layer of a model by a scheme."""

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradexp.choices import ACTIVATIONS, asked_for, check_choice, check_init_options
from gradexp.networks.inits import (
    INITS,
    Source,
    draw,
    fans,
    lsuv_,
    orthogonal_,
    scheme_name,
    torch_default_,
)
from gradexp.networks.lsuv import scale_to_unit_variance
from gradexp.numerics import seeds

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def initialize(
    model: Model,
    init: str | Callable[..., Any],
    *,
    seed: int | None = None,
    sigma_b2: float | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    inputs: Tensor | tuple[Any, ...] | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Model:
    """Initialise every linear and convolutional layer of ``model``, in the order of ``model.modules()``.

    These are ``nn.Linear``, ``nn.Conv1d`` to ``nn.Conv3d`` and stacked layers: modules with an integer
    ``networks`` and a weight of shape ``(networks, fan_out, fan_in)``. Other modules keep what they hold; a warning
    names their weights.

    Numbers are drawn on the CPU in float64 and then cast: the same seed gives the same network on any device, in
    any dtype and at any place of a stack, where network e has seed ``seed + e``. Biases have a generator of their
    own, so that they do not change the weights.

    Args:
        model: Any module, changed in place.
        init: A key of ``INITS``, ``"glorot"`` (xavier), ``"kaiming"`` (he), or a function that changes a weight of
            shape ``(out, in, *kernel)`` in place, such as ``torch.nn.init.xavier_normal_``. A function without
            an argument ``generator`` draws from torch's global generator, whatever ``seed`` is.
        seed: The seed of the (first) network; None takes torch's global generator.
        sigma_b2: The variance of normal biases. None leaves them to the scheme: U(±1 / sqrt(fan_in)) with
            ``torch_default``, as torch has them, 0 with any other.
        activation: The activation between the layers, for schemes with a keyword-only parameter of this name:
            ``lyapunov``.
        negative_slope: The slope of ``leaky_relu`` below 0, for the same schemes.
        inputs: A batch, or a tuple of the model's arguments; only ``lsuv`` needs it. It passes through a float64
            copy of the model, so that nothing but weights and biases changes.
        progress: A function of (layers done, layers in all), called after each layer.
        **options: Options of the scheme, such as ``gain``.

    Returns:
        ``model``.

    Raises:
        ValueError: For an unknown scheme, an option it does not have, or a value that cannot work; for a layer
            that has no weight yet (lazy) or computes it (parametrised); for a model without layers; for ``lsuv``
            without inputs, or with a layer whose outputs on them do not vary or are not finite.

    Example:
        >>> layer = initialize(nn.Linear(2, 2), "identity", gain=1.5)
        >>> layer.weight.tolist(), layer.bias.tolist()
        ([[1.5, 0.0], [0.0, 1.5]], [0.0, 0.0])
    """
    scheme = init if not isinstance(init, str) and callable(init) else INITS[scheme_name(init, options)].fill
    if isinstance(init, str):
        check_init_options(options)
    options |= asked_for(scheme, activation=activation, negative_slope=negative_slope)
    if sigma_b2 is not None and not 0 <= sigma_b2 < math.inf:
        raise ValueError(f"sigma_b2 must be at least 0, got {sigma_b2}")
    if activation is not None:
        check_choice("activation", activation, ACTIVATIONS)
    if scheme is lsuv_:
        if inputs is None:
            raise ValueError("lsuv needs data: pass a batch as inputs")
        exact = copy.deepcopy(model).double()
        initialize(exact, orthogonal_, seed=seed, sigma_b2=sigma_b2, progress=progress, gain=options.get("gain", 1.0))
        scale_to_unit_variance(exact, _layers(exact), inputs, **options)
        for (module, _), (twin, _) in zip(_layers(model).values(), _layers(exact).values(), strict=True):
            for old, new in ((module.weight, twin.weight), (module.bias, twin.bias)):
                if old is not None:
                    old.copy_(new)
        return model
    takes_generator = _takes_generator(scheme)

    @functools.cache
    def source(purpose: str, network: int) -> Source:
        return None if seed is None else seeds.generator(seed + network, purpose)

    layers = _layers(model)
    _warn_of_others(model, layers)
    for done, (module, stacked) in enumerate(layers.values(), 1):
        with _drawn_on_cpu(module.weight, stacked) as weights:
            for network, weight in enumerate(weights):
                generator = {"generator": source("weights", network)} if takes_generator else {}
                scheme(weight, **generator, **options)
                fan_in, _ = fans(weight)
        with _drawn_on_cpu(module.bias, stacked) as biases:
            for network, bias in enumerate(biases):
                if sigma_b2 is not None:
                    draw(bias, math.sqrt(sigma_b2), "normal", source("biases", network))
                elif scheme is torch_default_:
                    draw(bias, 1 / math.sqrt(3 * fan_in), "uniform", source("biases", network))
                else:
                    bias.zero_()
        if progress is not None:
            progress(done, len(layers))
    return model


def _takes_generator(scheme: Callable[..., Any]) -> bool:
    try:
        return "generator" in inspect.signature(scheme).parameters
    except ValueError:  # written in C without a signature, such as torch.Tensor.zero_
        return False


def _warn_of_others(model: nn.Module, layers: dict[str, tuple[Any, bool]]) -> None:
    """Warn of weights that are left as they are, by name."""
    filled = {id(module.weight) for module, _ in layers.values()}
    others = [
        f"{module_name}.{name}".lstrip(".")
        for module_name, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        # Of a stack a vector has two dimensions.
        if id(parameter) not in filled
        and (
            nn.parameter.is_lazy(parameter)
            or parameter.dim() > 1 + isinstance(getattr(module, "networks", None), int)
        )
    ]
    if others:
        shown = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        warnings.warn(
            f"initialize fills linear and convolutional layers, and leaves {len(others)} other weights as they are: "
            f"{shown}",
            stacklevel=4,
        )


def _layers(model: nn.Module) -> dict[str, tuple[Any, bool]]:
    """Return name -> module, and whether it is a stack, of every layer to fill."""
    layers = {}
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        bias: Any = getattr(module, "bias", None)
        stacked = isinstance(getattr(module, "networks", None), int) and getattr(weight, "ndim", 0) == 3
        if not (stacked or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)):
            continue
        label = f"layer '{name}'" if name else "the layer"
        if nn.parameter.is_lazy(weight) or nn.parameter.is_lazy(bias):
            raise ValueError(f"{label} is lazy and has no shape yet; run the model once on a batch first")
        if not all(isinstance(tensor, nn.Parameter | None) for tensor in (weight, bias)):
            raise ValueError(f"{label} computes its weight or bias (parametrised); initialise it before that")
        layers[name] = module, stacked
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear, convolutional or stacked layer")
    return layers


@contextmanager
def _drawn_on_cpu(parameter: Tensor | None, stacked: bool) -> Iterator[Iterable[Tensor]]:
    """Yield each network's slice of a float64 copy on the CPU to be filled, and copy it back at the end."""
    if parameter is None:
        yield ()
        return
    if parameter.is_cpu and parameter.dtype == torch.float64 and parameter.is_contiguous():
        values = parameter.detach()  # a copy of a large stack would take longer than to fill it
        yield values if stacked else (values,)
        return
    # Contiguous, since a generator fills a tensor in the order of its strides.
    values = parameter.to("cpu", torch.float64, copy=True, memory_format=torch.contiguous_format)
    yield values if stacked else (values,)
    parameter.copy_(values)
