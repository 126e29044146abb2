"""Layer-sequential unit-variance: scale each layer's weights until its outputs on a batch have variance 1."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.networks.rnn import Recurrence


@torch.no_grad()
def scale_to_unit_variance(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, bool]],
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    gain: float = 1.0,
    tolerance: float = 0.1,
    iterations: int = 10,
) -> None:
    """Divide weights, layer by layer in the order of their first call, by the standard deviation of the outputs.

    Each layer is scaled while the batch passes, and passes on what it outputs then, so that one pass is enough
    (Mishkin & Matas, 2015, arXiv:1511.06422). The variance is over samples and units; a stack of networks has one
    for each. Biases stay as they are, which is why one division may not be enough. A stacked layer beside a skip
    connection gets variance 1 by itself; the sum does not. Nor does what a recurrence adds of the input: its weights
    are scaled at the first state that is not all 0, so that their own share of the next has variance 1.

    Args:
        model: Any module, changed in place; it draws from a copy of torch's random state. A layer that it does not
            call, or whose weight was scaled before, stays as it is.
        layers: Name -> a module with a weight, and whether it is a stack.
        inputs: A batch, a tuple of arguments or a mapping of keywords; floating ones are moved to the model's format.
        gain: The standard deviation of the outputs, or minus it, which turns the weights' signs.
        tolerance: The relative error of the variance that is small enough.
        iterations: The most divisions of a layer's weights.

    Raises:
        ValueError: If a layer's outputs do not vary, or one is not finite; or if the model fails in float64.
    """
    scaled: set[int] = set()  # ids of weights

    def scale(name: str, stacked: bool, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        weight: Any = module.weight
        if id(weight) in scaled:
            return output
        is_recurrent = isinstance(module, Recurrence)
        if is_recurrent and not args[0].any():  # the first state, of which no weights make anything
            return output
        scaled.add(id(weight))
        for _ in range(iterations):
            # The second argument of a stacked layer or a recurrence is added to what its weights make.
            branch = module.forward(args[0]) if stacked or is_recurrent else module.forward(*args, **kwargs)
            branch = branch if stacked else branch.unsqueeze(0)
            variance = branch.flatten(1).var(dim=1, correction=0)
            for value in variance.tolist():
                if not 0 < value < float("inf"):
                    raise ValueError(f"lsuv cannot scale layer '{name}', whose outputs have variance {value:g}")
            ratio = variance / gain**2
            is_off = (ratio - 1).abs() >= tolerance
            if not is_off.any():
                break
            factor = torch.where(is_off, ratio.rsqrt(), 1)
            weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))
        scaled_output: Tensor = module.forward(*args, **kwargs)
        return scaled_output

    # First of all hooks, so that the others see what the layer outputs from now on.
    handles = [
        module.register_forward_hook(partial(scale, name, stacked), prepend=True, with_kwargs=True)
        for name, (module, stacked) in layers.items()
    ]
    # A model may cast to its own format between two layers.
    handles += [
        module.register_forward_pre_hook(_in_format_of_weights, with_kwargs=True)
        for module in model.modules()
        if any(parameter.is_floating_point() for parameter in module.parameters(recurse=False))
    ]
    like = next(model.parameters())
    devices = [like.device] if like.is_cuda else []
    try:
        with torch.random.fork_rng(devices):
            if isinstance(inputs, Mapping):
                model(**{key: _moved(value, like) for key, value in inputs.items()})
            else:
                model(*(_moved(value, like) for value in (inputs if isinstance(inputs, tuple) else (inputs,))))
    except (RuntimeError, TypeError) as error:
        line = str(error).strip().partition("\n")[0]
        raise ValueError(f"lsuv runs a float64 copy of the model on inputs, which fails: {line}") from error
    finally:
        for handle in handles:
            handle.remove()


def _in_format_of_weights(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Cast what a module gets to the format of its parameters."""
    dtype = next(p.dtype for p in module.parameters(recurse=False) if p.is_floating_point())

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        return type(value)(map(cast, value)) if type(value) in (tuple, list) else value

    return cast(args), {key: cast(value) for key, value in kwargs.items()}


def _moved(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(like) if value.is_floating_point() else value.to(like.device)
