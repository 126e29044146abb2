"""The matrices in a model: which parameters act as matrices, of which shape, and which are none or unknown.

A scheme of ``gradexp.networks.inits`` fills one matrix of shape ``(out, in, *kernel)``. Modules keep several in one
parameter, transposed, or in groups; ``find_layers`` says how to cut them out, so that every matrix has its own fans.
"""

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.numerics.torch_internals import parameters_by_name

Cut = Callable[[Tensor], Sequence[Tensor]]
"""Cut views of shape ``(out, in, *kernel)`` out of a parameter's values."""


@dataclass(frozen=True)
class Weight:
    """A parameter that is one matrix or several.

    Args:
        name: Name of the attribute.
        cut: What cuts out its matrices.
        kind: ``matrix``, filled by the scheme; ``recurrent``, between time steps; ``embedding``, looked up.
        remark: How it is cut, in words; empty if it is one matrix.
    """

    name: str
    cut: Cut
    kind: str = "matrix"
    remark: str = ""


@dataclass(frozen=True)
class Layer:
    """A module with weights to fill.

    Args:
        module: The module.
        weights: Its weights, in order.
        biases: Names of its biases. Of several that are added up only the first is drawn.
        forget: The part of the first bias that opens an LSTM's forget gates; None if there are none.
        networks: Whether it is a stack, each network a matrix of its own.
    """

    module: nn.Module
    weights: tuple[Weight, ...]
    biases: tuple[tuple[str, ...], ...] = ()
    forget: slice | None = None
    networks: bool = False


def find_layers(
    model: nn.Module, layouts: Mapping[str, str], matches: Callable[[str, str], bool]
) -> dict[str, Layer]:
    """Return name -> layer of every module whose weights are understood, in the order of ``model.modules()``.

    Args:
        model: Any module.
        layouts: Pattern of a parameter's name -> ``"out in"`` or ``"in out"``, what its last two dimensions are.
        matches: The function of name and pattern that says whether they fit.
    """
    layers = {}
    for name, module in model.named_modules():
        layer = _named(name, module, layouts, matches) or _of_torch(module) or _of_others(module)
        if layer is not None:
            layers[name] = layer
    return layers


def _of_torch(module: nn.Module) -> Layer | None:
    weight = parameters_by_name(module).get("weight")  # a computed one would be computed by asking for it
    if isinstance(getattr(module, "networks", None), int) and weight is not None and weight.dim() == 3:
        return Layer(module, (Weight("weight", list),), (("bias",),), networks=True)
    if isinstance(module, nn.Linear):
        return Layer(module, (Weight("weight", _whole),), (("bias",),))
    if isinstance(module, nn.Bilinear):
        remark = "each output a form of both inputs: fan_in is their product"
        return Layer(module, (Weight("weight", lambda v: [v.flatten(1)], remark=remark),), (("bias",),))
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return Layer(module, (_transposed(module),), (("bias",),))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        groups = module.groups
        remark = f"{groups} groups" if groups > 1 else ""
        return Layer(module, (Weight("weight", _blocks(groups), remark=remark),), (("bias",),))
    if isinstance(module, nn.MultiheadAttention):
        joint = Weight("in_proj_weight", _blocks(3), remark="queries, keys and values")
        apart = [Weight(f"{part}_proj_weight", _whole) for part in "qkv"]
        return Layer(module, (joint, *apart), (("in_proj_bias",),))
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent(module)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Layer(module, (Weight("weight", _whole, "embedding"),))
    return None


def _whole(values: Tensor) -> list[Tensor]:
    return [values]


def _blocks(count: int) -> Cut:
    return lambda values: values.chunk(count)


def _turned(values: Tensor) -> list[Tensor]:
    return [matrix.mT for matrix in values.flatten(0, -3)] if values.dim() > 2 else [values.mT]


def _slices(values: Tensor) -> list[Tensor]:
    return list(values.flatten(0, -3)) if values.dim() > 2 else [values]


def _transposed(module: Any) -> Weight:
    """Cut a transposed convolution, whose weight is ``(in, out / groups, *kernel)``, into plain convolutions.

    With a stride s an output sees every s-th element of the kernel only; each of the s sets is the kernel of a plain
    convolution, and has its fans.
    """
    steps = [s // math.gcd(s, d) for s, d in zip(module.stride, module.dilation, strict=True)]
    sets = list(itertools.product(*(range(min(s, k)) for s, k in zip(steps, module.kernel_size, strict=True))))

    def cut(values: Tensor) -> list[Tensor]:
        found = []
        for group in values.chunk(module.groups):
            for start in sets:
                places = tuple(slice(first, None, step) for first, step in zip(start, steps, strict=True))
                found.append(group.transpose(0, 1)[(slice(None), slice(None), *places)])
        return found

    remarks = [f"{module.groups} groups"] * (module.groups > 1)
    remarks += [f"stride {math.prod(steps)}: {len(sets)} kernels"] * (len(sets) > 1)
    return Weight("weight", cut, remark=", ".join(remarks))


_GATES = {"RNN": 1, "RNNCell": 1, "LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}


def _recurrent(module: Any) -> Layer:
    """Return each gate's matrices; those from one time step to the next are recurrent."""
    gates = next((count for base in type(module).__mro__ if (count := _GATES.get(base.__name__))), 1)
    names = [name for name, _ in module.named_parameters(recurse=False)]
    names += list(getattr(module, "parametrizations", ()))
    remark = {4: "input, forget, cell and output gate", 3: "reset, update and new gate"}.get(gates, "")
    order = sorted(
        (name for name in names if name.startswith("weight_")), key=lambda name: (name[12:], name[7:9] == "hh")
    )
    weights = [
        Weight(
            name,
            _whole if name.startswith("weight_hr") else _blocks(gates),  # hr: projects the state
            "matrix" if name.startswith("weight_ih") else "recurrent",
            "" if name.startswith("weight_hr") else remark,
        )
        for name in order
    ]
    ends = sorted(name.removeprefix("bias_ih") for name in names if name.startswith("bias_ih"))
    h = module.hidden_size
    return Layer(
        module,
        tuple(weights),
        tuple((f"bias_ih{end}", f"bias_hh{end}") for end in ends),
        forget=slice(h, 2 * h) if gates == 4 else None,
    )


def _named(
    name: str, module: nn.Module, layouts: Mapping[str, str], matches: Callable[[str, str], bool]
) -> Layer | None:
    """Return the weights whose layout the caller has named."""
    weights = []
    for attribute, parameter in module.named_parameters(recurse=False):
        full = f"{name}.{attribute}".lstrip(".")
        for pattern, layout in layouts.items():
            if matches(full, pattern) and parameter.dim() > 1:
                weights.append(_laid_out(attribute, layout, parameter))
                break
    return Layer(module, tuple(weights), _biases(module)) if weights else None


def _laid_out(attribute: str, layout: str, parameter: Tensor) -> Weight:
    remark = f"{math.prod(parameter.shape[:-2])} matrices" if parameter.dim() > 2 else ""
    stored = "" if layout == "out in" else "stored as (in, out)"
    return Weight(
        attribute, _slices if layout == "out in" else _turned, remark=", ".join(filter(None, [remark, stored]))
    )


def _of_others(module: nn.Module) -> Layer | None:
    """Return the weights of a layer that another library, or the user, has written."""
    own = dict(module.named_parameters(recurse=False))
    weights = []
    for attribute, parameter in own.items():
        if parameter.dim() not in (2, 3) or nn.parameter.is_lazy(parameter) or "bias" in attribute:
            continue
        layout = None
        if parameter.dim() == 2 and not list(module.children()):
            layout = _tried_layout(module, attribute)
        layout = layout or _declared_layout(module, attribute, parameter)
        if layout:
            weights.append(_laid_out(attribute, layout, parameter))
    return Layer(module, tuple(weights), _biases(module)) if weights else None


def _biases(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    return tuple((name,) for name, _ in module.named_parameters(recurse=False) if "bias" in name)


def _tried_layout(module: nn.Module, attribute: str) -> str | None:
    """Return the layout with which a module's own forward pass is that of a linear layer; None if it is none.

    The pass runs on a copy with random weights, so that the answer is a measurement and no guess.
    """
    weight: Any = getattr(module, attribute)
    if weight.is_meta or not weight.is_floating_point():
        return None
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad(), torch.random.fork_rng([weight.device] if weight.is_cuda else []):
            twin = copy.deepcopy(module).double().eval()
            for parameter in twin.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            matrix: Any = getattr(twin, attribute)
            for layout, turned in (("out in", matrix.mT), ("in out", matrix)):
                x = torch.randn(3, turned.shape[0], generator=generator, dtype=torch.float64).to(weight.device)
                y = _forward(twin, x)
                if isinstance(y, Tensor) and y.shape == (3, turned.shape[1]):
                    rest = y - x @ turned  # a bias is the same for all samples
                    if torch.allclose(rest, rest[:1].expand_as(rest), rtol=1e-9, atol=1e-9):
                        return layout
    except Exception:  # a forward pass of any kind
        return None
    return None


def _forward(module: nn.Module, x: Tensor) -> Any:
    """Return the output for an input, None where there is none; hooks do not run."""
    try:
        return type(module).forward(module, x)
    except Exception:  # of the wrong width, for one
        return None


# Attributes that tell the widths of a layer's input and output.
_SIZES = (
    ("in_features", "out_features"),
    ("in_channels", "out_channels"),
    ("_in_feats", "_out_feats"),
    ("in_feats", "out_feats"),
    ("in_dim", "out_dim"),
    ("input_dim", "output_dim"),
    ("input_size", "output_size"),
)
# Of mixtures of experts: the width of the residual stream, and the parts that read from it or write to it.
_STREAM = ("hidden_size", "hidden_dim", "d_model", "embed_dim", "dim")
_READS, _WRITES = re.compile(r"gate|up|w1|w3|wi|fc1|router"), re.compile(r"down|w2|wo|fc2")
_IS_WEIGHT = re.compile(r"weight|kernel|proj|root|^w\d?$|^wi|^wo")


def _declared_layout(module: nn.Module, attribute: str, parameter: Tensor) -> str | None:
    """Return the layout that follows from the widths that a module tells of itself; None if none does."""
    if not _IS_WEIGHT.search(attribute) or "att" in attribute:
        return None
    rows, columns = parameter.shape[-2:]
    for into, out in _SIZES:
        sizes = getattr(module, into, None), getattr(module, out, None)
        if sizes == (rows, columns):
            return "in out"
        if sizes == (columns, rows):
            return "out in"
    stream = next((size for key in _STREAM if isinstance(size := getattr(module, key, None), int)), None)
    experts = getattr(module, "num_experts", None)
    if parameter.dim() == 2:  # a router
        return (
            "out in"
            if (rows, columns) == (experts, stream)
            else "in out"
            if (columns, rows) == (experts, stream)
            else None
        )
    if experts is None or stream is None:
        return None
    for pattern, last, first in ((_WRITES, "in out", "out in"), (_READS, "out in", "in out")):
        if pattern.search(attribute):
            return last if columns == stream else first if rows == stream else None
    return None


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalises."""
    return any("norm" in base.__name__.lower() for base in type(module).__mro__)


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield full name, module, attribute and parameter of every place that holds a parameter."""
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            yield f"{name}.{attribute}".lstrip("."), module, attribute, parameter
