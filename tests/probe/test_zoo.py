"""Whatever the module, the probe raises nothing, changes nothing, and every number that it reports is right.

The reference is ``torch.autograd.grad`` with respect to all outputs of all modules, in a run of its own without the
probe, on a twin of the model that works nowhere in place. Models are float64, so that it is tight.
"""

import copy
import dataclasses
import gc
import io
import math
import pickle
import threading
import warnings
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils import checkpoint as checkpoints
from torch.utils.flop_counter import FlopCounterMode

from gradexp import GradientProbe
from gradexp.history.step import STATUSES

SELECTIONS = {"by default": None, "all": lambda *_: True}
NUMBERS = ("ok", "subnormal")
# torch's own derivative rules use it.
OF_TORCH_JIT = [f"ignore:`torch.jit:{kind}" for kind in ("DeprecationWarning", "FutureWarning")]


def rows(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FLAT, DEEP, IMAGES, TOKENS = rows(6, 4), rows(2, 5, 4), rows(2, 3, 8, 8), torch.tensor([[1, 2, 2], [0, 5, 1]])


# --- The reference ---


def leaves(value, seen=None):
    """Return the floating tensors in a nested value, each once."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            seen[id(value)] = value
    elif isinstance(value, Mapping):
        for item in value.values():
            leaves(item, seen)
    elif isinstance(value, (tuple, list, set, deque)):
        for item in value:
            leaves(item, seen)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            leaves(getattr(value, field.name), seen)
    return list(seen.values())


def flat(tensor):
    tensor = tensor.detach()
    if tensor.is_nested:
        return np.concatenate([flat(part) for part in tensor.unbind()])
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().double().numpy().ravel()


def log10_size(tensors, rms=False):
    """Return log10 of the norm or rms of some tensors as one, or the status of a size that has none."""
    elements = np.concatenate([flat(tensor) for tensor in tensors])
    if not np.isfinite(elements).all():
        return "nonfinite"
    norm = np.linalg.norm(elements)
    return math.log10(norm / math.sqrt(sum(t.numel() for t in tensors)) if rms else norm) if norm else "zero"


def total(output):
    """Return a loss to which every element of every output contributes in its own way."""
    loss = torch.zeros((), dtype=torch.float64, device="cpu")
    for index, tensor in enumerate(leaves(output)):
        if tensor.requires_grad:
            angles = torch.arange(tensor.numel(), dtype=torch.float64, device="cpu") + index
            dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
            part = (dense * angles.cos().to(tensor.dtype).reshape(tensor.shape)).sum()
            loss = loss + (part.real + part.imag if part.is_complex() else part)
    return loss


def reference(make, run, loss=total, by_default=False):
    """Return what each cell should be, a number or a status: ``(name, call, quantity) -> expected``."""
    torch.manual_seed(0)
    model = make()
    seen, handles = [], []

    def keep(name, numbers):
        def hook(_module, _args, output):
            tensors = leaves(output)
            seen.append((name, next(numbers), tensors, [tensor.detach().clone() for tensor in tensors]))

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(keep(name, iter(range(99)))))
    torch.manual_seed(1)
    output = run(model)
    for handle in handles:
        handle.remove()
    wanted = {id(t): t for _, _, tensors, _ in seen for t in tensors if t.requires_grad}
    wanted |= {id(p): p for p in model.parameters() if p.requires_grad}
    if loss(output).requires_grad:
        found = torch.autograd.grad(loss(output), list(wanted.values()), allow_unused=True, retain_graph=True)
    else:
        found = [None] * len(wanted)
    gradients = {key: gradient for key, gradient in zip(wanted, found, strict=True) if gradient is not None}
    cells = {}
    for name, call, tensors, values in seen:
        cells[name, call, "output"] = log10_size(values, rms=True) if values else "hook_missed"
        direct = direct_gradients(tensors, gradients)
        cells[name, call, "output_grad"] = _gradient_of(tensors, direct) if values else "hook_missed"
    for name, module in model.named_modules():
        is_container = type(module).forward is nn.Module.forward
        own = list(module.parameters(recurse=False)) or ([] if is_container else list(module.parameters()))
        is_used = any(id(p) in gradients for p in own)  # by another module, as attention uses its out_proj
        for quantity in ("output", "output_grad"):
            cells.setdefault((name, 0, quantity), "hook_missed" if is_used else "not_called")
        weights = [p for p in module._parameters.values() if p is not None and p.dim() > 1]
        if parametrize.is_parametrized(module):
            weights += list(module.parametrizations.parameters())
        if weights:
            cells[name, 0, "weight_grad"] = _gradient_of(weights, gradients)
    return _cells_of_layers(model, cells, gradients) if by_default else cells


def _cells_of_layers(model, cells, gradients):
    """Return what is expected without a selection, for parametrized layers and for layers of recurrent modules.

    What the layers of a recurrent module output is a matter of its own tests, so it is None here.
    """
    computing = {n for n, m in model.named_modules() if isinstance(m, parametrize.ParametrizationList)}
    found = {key: value for key, value in cells.items() if key[0] not in computing}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.num_layers * (1 + module.bidirectional) > 1:
            calls = [key[1] for key in found if key[0] == name and key[2] == "output"]
            found = {key: value for key, value in found.items() if key[0] != name}
            for layer in (f"l{k}{d}" for k in range(module.num_layers) for d in ("", "_reverse")):
                weights = [
                    p for n, p in module.named_parameters() if n.startswith("weight") and n.endswith(f"_{layer}")
                ]
                if weights:
                    found.update(dict.fromkeys((f"{name}.{layer}", call, "output") for call in calls))
                    found[f"{name}.{layer}", 0, "weight_grad"] = _gradient_of(weights, gradients)
    return found


def direct_gradients(tensors, gradients):
    """Return the gradients of a call's outputs without what comes through other outputs of the call."""
    gradients = dict(gradients)
    taken = [tensor for tensor in tensors if tensor.requires_grad]
    through = {}  # (which output, through which other) -> part of the gradient
    waiting = list(taken)
    while waiting:
        # One that no other depends on any more.
        for tensor in waiting:
            others = [other for other in waiting if other is not tensor and _part(other, tensor) is not None]
            if not others:
                break
        waiting = [other for other in waiting if other is not tensor]
        for other in taken if id(tensor) in gradients else []:
            if other is not tensor and (part := _part(tensor, other, gradients)) is not None:
                through[id(other), id(tensor)] = part
        for other in waiting:
            if (id(other), id(tensor)) in through:
                gradients[id(other)] = gradients[id(other)] - through[id(other), id(tensor)]
                if not gradients[id(other)].any():
                    del gradients[id(other)]
    return gradients


def _part(tensor, other, gradients=None):
    """Return the gradient of another output through a tensor, None if that does not depend on it."""
    if tensor.grad_fn is None:
        return None
    weights = torch.ones_like(tensor) if gradients is None else gradients[id(tensor)]
    return torch.autograd.grad(tensor, other, weights, retain_graph=True, allow_unused=True)[0]


def _gradient_of(tensors, gradients):
    found = [gradients[id(tensor)] for tensor in tensors if id(tensor) in gradients]
    if found:
        return log10_size(found)
    return "unused" if any(tensor.requires_grad for tensor in tensors) else "frozen"


# --- The comparison ---


def observed(make, run, select=None, watched=True, loss=total):
    """Return the output, gradients and state of the random numbers after a step, and what a probe recorded."""
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(1)
    probe = GradientProbe(model, select) if watched else None
    if watched:
        probe.attach()
    output = run(model)
    value = loss(output)
    if value.requires_grad:
        value.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    if watched:
        probe.collect()
        probe.remove()
    return [*leaves(output), *gradients, torch.get_rng_state()], hooks_on(model), probe


def hooks_on(model):
    on_modules = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return on_modules, [len(p._backward_hooks or ()) for p in model.parameters()]


def is_same(a, b):
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and np.array_equal(flat(a), flat(b), equal_nan=True)


def recorded(probe, step=0):
    """Return ``(name, call, quantity) -> number or status``."""
    history = probe.history
    cells = {}
    for column, (name, call) in enumerate(zip(history.names, history.calls, strict=True)):
        for quantity in history.status:
            status = STATUSES[history.status[quantity][step, 0, column]]
            number = history.log10[quantity][step, 0, column]
            cells[name, call, quantity] = float(number) if status in NUMBERS else status
    return cells


def differences(got, expected, missed=(), tolerance=1e-9):
    """Return the cells that are wrong. Those in ``missed`` may have no number."""
    wrong = []
    for key, value in expected.items():
        found = got.get(key, "no row")
        if found == value or value is None or (found == "hook_missed" and key[:2] in missed):
            continue
        if not (isinstance(found, float) and isinstance(value, float) and abs(found - value) <= tolerance):
            wrong.append((key, found, value))
    return wrong


def check(make, run, twin=None, run_twin=None, select=None, missed=(), tolerance=1e-9):
    plain, hooks, _ = observed(make, run, watched=False)
    watched, hooks_left, probe = observed(make, run, select)
    assert hooks_left == hooks
    assert len(plain) == len(watched)
    assert all(is_same(a, b) for a, b in zip(plain, watched, strict=True)), "the probe changed something"
    expected, got = reference(twin or make, run_twin or run, by_default=select is None), recorded(probe)
    of_weights = {name for name, _, quantity in expected if quantity == "weight_grad"}
    expected = {key: value for key, value in expected.items() if select or key[0] in of_weights}
    assert differences(got, expected, missed, tolerance) == []
    rows_of_calls = {key[:2] for key in expected}
    assert [key for key in got if key[:2] not in rows_of_calls] == []


class Net(nn.Module):
    """A module whose forward is a function of itself and the input."""

    def __init__(self, function, inplace=False, **modules):
        super().__init__()
        self.function = function
        self.inplace = inplace
        for name, module in modules.items():
            setattr(self, name, module)
        self.double()

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)

    def act(self, x):
        return x.relu_() if self.inplace else x.relu()


def net(function, **makers):
    """Return a function that builds it, in place or not."""
    return lambda inplace: Net(function, inplace, **{name: make(inplace) for name, make in makers.items()})


def linear(*sizes, **options):
    return lambda _: nn.Linear(*(sizes or (4, 4)), **options)


def sequence(*makers):
    return lambda inplace: nn.Sequential(*(make(inplace) for make in makers)).double()


def relu(inplace):
    return nn.ReLU(inplace)


def always(make, *args, **options):
    return lambda _: make(*args, **options).double()


def of(*values, **named):
    """Return a run of the model with copies of some inputs."""
    return lambda model: model(
        *(value.clone() for value in values), **{name: value.clone() for name, value in named.items()}
    )


def compare(make, run, selection, **options):
    check(partial(make, True), run, twin=partial(make, False), select=SELECTIONS[selection], **options)


# --- Modules of torch.nn ---

CATALOGUE = {
    "Linear": (lambda: nn.Linear(4, 3), (FLAT,)),
    "Linear of one sample": (lambda: nn.Linear(4, 3), (FLAT[0],)),
    "Linear of three dimensions": (lambda: nn.Linear(4, 3), (DEEP,)),
    "Bilinear": (lambda: nn.Bilinear(4, 4, 2), (FLAT, FLAT)),
    "Conv1d": (lambda: nn.Conv1d(5, 3, 2), (DEEP,)),
    "Conv2d": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, padding_mode="reflect"), (IMAGES,)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), (IMAGES[None],)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(5, 3, 2), (DEEP,)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2), (IMAGES,)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(5), (DEEP,)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3, affine=False), (IMAGES,)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (IMAGES,)),
    "LayerNorm": (lambda: nn.LayerNorm((5, 4)), (DEEP,)),
    "RMSNorm": (lambda: nn.RMSNorm((5, 4)), (DEEP,)),
    "GroupNorm": (lambda: nn.GroupNorm(3, 3), (IMAGES,)),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), (IMAGES,)),
    "Embedding": (lambda: nn.Embedding(7, 4, padding_idx=2), (TOKENS,)),
    "Embedding that renorms its weight": (lambda: nn.Embedding(7, 4, max_norm=1.0), (TOKENS,)),
    "Embedding, sparse": (lambda: nn.Embedding(7, 4, sparse=True), (TOKENS,)),
    "EmbeddingBag, sum": (lambda: nn.EmbeddingBag(7, 4, mode="sum"), (TOKENS,)),
    "EmbeddingBag, mean, sparse": (lambda: nn.EmbeddingBag(7, 4, sparse=True), (TOKENS,)),
    "EmbeddingBag, max": (lambda: nn.EmbeddingBag(7, 4, mode="max"), (TOKENS,)),
    "RNN": (lambda: nn.RNN(4, 3, 2, batch_first=True, bidirectional=True), (DEEP,)),
    "GRU": (lambda: nn.GRU(4, 3, 2, dropout=0.2), (DEEP,)),
    "LSTM": (lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True, dropout=0.2), (DEEP,)),
    "LSTM with a projection": (lambda: nn.LSTM(4, 3, proj_size=2), (DEEP,)),
    "RNNCell": (lambda: nn.RNNCell(4, 3), (FLAT,)),
    "GRUCell": (lambda: nn.GRUCell(4, 3), (FLAT,)),
    "LSTMCell": (lambda: nn.LSTMCell(4, 3), (FLAT,)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), (DEEP, DEEP, DEEP)),
    "MultiheadAttention of other widths": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=2),
        (DEEP, DEEP[..., :3], DEEP[..., :2]),
    ),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (DEEP,)),
    "TransformerEncoderLayer, norm first": (lambda: nn.TransformerEncoderLayer(4, 2, 8, norm_first=True), (DEEP,)),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), (DEEP, DEEP)),
    "Transformer": (lambda: nn.Transformer(4, 2, 1, 2, 8, batch_first=True), (DEEP, DEEP[:, :3])),
    "PReLU": (lambda: nn.PReLU(5), (DEEP,)),
    "GLU": (nn.GLU, (DEEP,)),
    "Softmax": (lambda: nn.Softmax(1), (DEEP,)),
    "RReLU": (nn.RReLU, (DEEP,)),
    "Dropout": (nn.Dropout, (DEEP,)),
    "Identity": (nn.Identity, (DEEP,)),
    "Flatten": (nn.Flatten, (DEEP,)),
    "Unflatten": (lambda: nn.Unflatten(1, (5, 1)), (DEEP,)),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (rows(1, 4, 2, 2),)),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), (IMAGES,)),
    "Fold": (lambda: nn.Fold((3, 3), 2), (rows(1, 8, 4),)),
    "Unfold": (lambda: nn.Unfold(2), (IMAGES,)),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), (IMAGES,)),
    "MaxPool2d with indices": (lambda: nn.MaxPool2d(2, return_indices=True), (IMAGES,)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(1), (IMAGES,)),
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, output_size=3), (IMAGES,)),
    "CosineSimilarity": (nn.CosineSimilarity, (FLAT, FLAT.flip(0))),
    "CrossEntropyLoss": (nn.CrossEntropyLoss, (FLAT, torch.tensor([0, 1, 2, 3, 0, 1]))),
    "MSELoss": (nn.MSELoss, (FLAT, FLAT.flip(0))),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], div_value=1.0),
        (FLAT, torch.tensor([0, 1, 2, 3, 4, 5])),
    ),
}


def called_twice(self, *values):
    outputs = []
    for factor in (1.0, 0.5):
        output = self.m(*(value * self.scale * factor if value.is_floating_point() else value for value in values))
        outputs.append([self.act(t + 0) for t in leaves(output)])
    return outputs


BY_DEFAULT = ["Linear", "Conv2d", "BatchNorm1d", "Embedding, sparse", "LSTM", "MultiheadAttention", "Transformer"]
OTHERWISE_IN_EVAL = [
    "BatchNorm2d",
    "InstanceNorm2d",
    "GRU",
    "MultiheadAttention",
    "TransformerEncoderLayer",
    "RReLU",
    "Dropout",
]


@pytest.mark.parametrize(
    ("name", "training", "selection"),
    [
        *((name, True, "all") for name in BY_DEFAULT),
        *few([(name, True, "all") for name in CATALOGUE if name not in BY_DEFAULT][::-1], 10),
        *few([(name, True, "by default") for name in BY_DEFAULT], 4),
        *few([(name, False, "all") for name in OTHERWISE_IN_EVAL], 3),
    ],
)
def test_a_module_of_torch_nn_is_recorded_right_in_each_of_two_calls(name, training, selection):
    module, inputs = CATALOGUE[name]

    def make(inplace):
        scale = nn.Parameter(torch.ones(1, 1))
        return Net(called_twice, inplace, m=module(), scale=scale).train(training)

    compare(make, lambda model: model(*(v.squeeze(0) if v.dim() > 5 else v.clone() for v in inputs)), selection)


# --- Models ---


def residual(self, x):
    y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    if self.inplace:
        y += x
    else:
        y = y + x
    return self.relu(y)


def convolution(_):
    return nn.Conv2d(3, 3, 3, padding=1, bias=False)


def normalization(_):
    return nn.BatchNorm2d(3)


block = net(residual, conv1=convolution, bn1=normalization, conv2=convolution, bn2=normalization, relu=relu)
resnet = sequence(
    convolution,
    normalization,
    relu,
    block,
    block,
    always(nn.AdaptiveAvgPool2d, 1),
    always(nn.Flatten),
    linear(3, 5),
)


def encoder(norm_first, activation="relu"):
    layer = {"dropout": 0.1, "batch_first": True, "norm_first": norm_first, "activation": activation}
    return lambda _: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, **layer), 2, enable_nested_tensor=False
    ).double()


def unrolled(self, x):
    state = None
    for step in x.unbind(1):
        state = self.cell(step, state)
    return state


def packed(self, x):
    packed = pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
    return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


def tied(_):
    embedding, decoder = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    decoder.weight = embedding.weight
    return Net(
        lambda self, i: self.decoder(self.middle(self.e(i)).relu()),
        e=embedding,
        middle=nn.Linear(4, 4),
        decoder=decoder,
    )


def in_three_places(_):
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer)).double()


def partly_frozen(inplace):
    model = sequence(linear(), relu, linear(), linear())(inplace)
    model[0].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    return model


def frozen_backbone(self, x):
    with torch.no_grad():
        x = self.backbone(x)
    return self.head(x)


def inference_backbone(self, x):
    with torch.inference_mode():
        x = self.backbone(x)
    return self.head(x.clone())


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4).double()

    def forward(self, x, depth=3):
        y = self.layer(x).tanh()
        return y + self(y, depth - 1) if depth else y


class ModifiesInput(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(2).add_(1) if self.inplace else x * 2 + 1


def pruned(_):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def with_users_hooks(inplace):
    model = sequence(linear(), relu, linear(), linear())(inplace)
    model[0].register_forward_hook(lambda _module, _args, output: output * 2)
    model[2].register_forward_pre_hook(lambda _module, args: (args[0] * 3,))
    model[3].register_forward_hook(lambda _module, _args, output: {"logits": output})
    return model


def scaled_gradients(_):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[0].register_full_backward_hook(lambda _module, grads, _outputs: (2 * grads[0],))
    model[2].register_full_backward_pre_hook(lambda _module, grads: (grads[0] * 3,))
    return model


def weight_normed(inplace):
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(inplace), nn.Linear(4, 2)).double()


def spectral_normed(_):
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)).double()


def orthogonal(_):
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4).double()), nn.Linear(4, 2).double())


def weight_normed_by_hooks(_):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)).double()


def lazy(inplace):
    return nn.Sequential(
        nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.ReLU(inplace), nn.Flatten(), nn.LazyLinear(2)
    ).double()


def lists_of_parameters(_):
    matrices = nn.ParameterList([torch.randn(4, 4), torch.randn(3, 3)])
    named = nn.ParameterDict({"a": nn.Parameter(torch.randn(4, 4))})
    return Net(lambda self, x: x @ self.matrices[0] @ self.named["a"], matrices=matrices, named=named)


def one_call_unused(self, x):
    self.layer(3 * x)
    first = self.layer(x)
    return first + self.layer(first.tanh())


def skip_before_in_place_activation(self, x):
    y = self.layer(x)
    skip = 2 * y
    return skip + self.act(y)


def in_place_sum(self, x):
    y = self.b(self.a(x).tanh())
    if self.inplace:
        y += x
        y *= 2
    else:
        y = (y + x) * 2
    return self.act(y)


def in_place_on_a_part(self, x):
    y = self.layer(x)
    if self.inplace:
        y[..., :2].relu_()
        return y
    return torch.cat([y[..., :2].relu(), y[..., 2:]], -1)


def view_before_in_place(self, x):
    y = self.layer(x)
    if not self.inplace:
        return (2 * y).view(-1)
    view = y.view(-1)
    y.mul_(2)
    return view


def overwritten_in_parts(self, x):
    y = self.layer(x)
    if not self.inplace:
        return torch.cat([2 * y[..., :2], y[..., 2:3], torch.zeros_like(y[..., 3:])], -1)
    y[..., 3] = 0
    y[..., :2].mul_(2)
    return y


def two_branches(self, x):
    self.unreached(x)
    return self.layer(x)


PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
MODELS = {
    "ResNet": (resnet, of(IMAGES)),
    "ResNet whose input takes part in autograd": (resnet, lambda model: model(IMAGES.clone().requires_grad_())),
    "ResNet in eval mode": (lambda inplace: resnet(inplace).eval(), of(IMAGES)),
    "TransformerEncoder": (encoder(False), of(DEEP)),
    "TransformerEncoder, norm first": (encoder(True, "gelu"), of(DEEP)),
    "TransformerEncoder, padded": (encoder(False), of(DEEP, src_key_padding_mask=PADDING)),
    "TransformerEncoder, eval": (lambda i: encoder(False)(i).eval(), of(DEEP, src_key_padding_mask=PADDING)),
    "LSTM of packed sequences": (net(packed, rnn=lambda _: nn.LSTM(4, 3, 2, batch_first=True)), of(DEEP)),
    "GRU of packed sequences": (
        net(packed, rnn=lambda _: nn.GRU(4, 3, bidirectional=True, batch_first=True)),
        of(DEEP),
    ),
    "LSTM whose state nobody uses": (net(lambda self, x: self.rnn(x)[0][-1], rnn=lambda _: nn.LSTM(4, 3)), of(DEEP)),
    "LSTMCell, unrolled": (net(unrolled, cell=lambda _: nn.LSTMCell(4, 3)), of(DEEP)),
    "tied weights": (tied, of(TOKENS)),
    "one module in three places": (in_three_places, of(FLAT)),
    "one call of three unused": (net(one_call_unused, layer=linear()), of(FLAT)),
    "unused branch": (net(two_branches, layer=linear(), unreached=linear(), uncalled=linear()), of(FLAT)),
    "keyword arguments only": (net(lambda self, x: self.layer(input=x), layer=linear()), of(x=FLAT)),
    "partly frozen": (partly_frozen, of(FLAT)),
    "frozen backbone": (net(frozen_backbone, backbone=sequence(linear(), relu, linear()), head=linear()), of(FLAT)),
    "inference backbone": (net(inference_backbone, backbone=linear(), head=linear()), of(FLAT)),
    "recursive": (always(Recursive), of(FLAT)),
    "weight norm": (weight_normed, of(FLAT)),
    "weight norm by hooks": (weight_normed_by_hooks, of(FLAT)),
    "spectral norm": (spectral_normed, of(FLAT)),
    "orthogonal": (orthogonal, of(FLAT)),
    "pruned": (pruned, of(FLAT)),
    "user's hooks": (with_users_hooks, of(FLAT)),
    "user's backward hooks": (scaled_gradients, lambda model: model(FLAT.clone().requires_grad_())),
    "lists of parameters": (lists_of_parameters, of(FLAT)),
    "complex": (
        lambda _: nn.Sequential(nn.Linear(4, 3, dtype=torch.cdouble), nn.Linear(3, 2, dtype=torch.cdouble)),
        of(torch.complex(FLAT, 2 * FLAT)),
    ),
    "GLU by hand": (net(lambda self, x: torch.mul(*self.layer(x).chunk(2, -1)), layer=linear()), of(DEEP)),
    "skip before an in-place activation, 2-D": (net(skip_before_in_place_activation, layer=linear()), of(FLAT)),
    "skip before an in-place activation, 3-D": (net(skip_before_in_place_activation, layer=linear()), of(DEEP)),
    "in-place sum, 2-D": (net(in_place_sum, a=linear(), b=linear()), of(FLAT)),
    "in-place sum, 3-D": (net(in_place_sum, a=linear(), b=linear()), of(DEEP)),
    "module that modifies its input": (sequence(linear(), ModifiesInput, linear()), of(DEEP)),
    "lazy": (lazy, of(IMAGES)),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize(
    ("name", "selection"),
    [
        *few([(name, "all") for name in MODELS], 24),
        *((name, "by default") for name in ("ResNet", "LSTM of packed sequences", "tied weights", "weight norm")),
        *few((name, "by default") for name in ("lazy", "lists of parameters", "unused branch", "partly frozen")),
    ],
)
def test_a_model_is_recorded_right_and_left_as_it_is(name, selection):
    make, run = MODELS[name]
    compare(make, run, selection)


ACTIVATIONS = [
    "ReLU",
    "ELU",
    "SELU",
    "CELU",
    "SiLU",
    "Mish",
    "Hardswish",
    "Hardsigmoid",
    "LeakyReLU",
    "ReLU6",
    "Hardtanh",
    "RReLU",
    "Threshold",
    "Dropout",
    "AlphaDropout",
    "FeatureAlphaDropout",
]


@pytest.mark.parametrize(
    ("name", "x"),
    [*few([(name, DEEP) for name in ACTIVATIONS], 8), ("ReLU", FLAT)],
    ids=lambda v: v if isinstance(v, str) else f"{v.dim()}-D",
)
def test_an_activation_in_place_leaves_the_gradient_before_it_right(name, x):
    def layer(inplace):
        options = {"inplace": inplace} | ({"threshold": 0.1, "value": 0.2} if name == "Threshold" else {})
        return getattr(nn, name)(**options)

    compare(sequence(linear(), layer, linear(), layer), of(x), "by default")


@pytest.mark.parametrize("x", [FLAT, DEEP], ids=["2-D", "3-D"])
@pytest.mark.parametrize("forward", [in_place_on_a_part, overwritten_in_parts, view_before_in_place])
def test_overwriting_a_part_of_an_output_leaves_its_gradient_right_or_missed(forward, x):
    # The model itself returns a view that was overwritten before the probe sees it.
    compare(net(forward, layer=linear()), of(x), "all", missed={("", 0)})


# --- What modules return ---

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Record:
    a: object
    b: object = None
    c: object = 3


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    a: object


RETURNS = {
    "tuple": lambda _, a, b: (a, b),
    "list": lambda _, a, b: [a, b],
    "dict": lambda _, a, b: {"a": a, "b": [b, None, 3]},
    "ordered dict": lambda _, a, b: OrderedDict(a=a, b=b),
    "user dict": lambda _, a, b: UserDict(a=a, b=b),
    "nested": lambda _, a, b: ((a, [{"b": b}]), None),
    "named tuple": lambda _, a, b: Pair(a, b),
    "dataclass": lambda _, a, b: Record(a, {"b": b}),
    "dataclass with slots": lambda _, a, b: Slotted((a, b)),
    "deque": lambda _, a, b: deque([a, b]),
    "one tensor twice": lambda _, a, b: (a, a, {"again": a}),
    "integers too": lambda _, a, b: (a, torch.arange(3), torch.tensor(True)),
    "a constant too": lambda _, a, b: (a, b.detach()),
    "an empty tensor too": lambda _, a, b: (a, a.new_zeros(0)),
    "scalars": lambda _, a, b: (a.sum(), b.sum()),
    "complex": lambda _, a, b: torch.complex(a, b),
    "conjugate": lambda _, a, b: torch.complex(a, b).conj(),
    "real part": lambda _, a, b: torch.complex(a, b).real,
    "negated view": lambda _, a, b: torch.complex(a, b).conj().imag,
    "expanded": lambda _, a, b: a.sum().expand(3, 4),
    "transposed": lambda _, a, b: a.T,
    "sparse": lambda _, a, b: a.to_sparse(),
    "its parameter": lambda module, a, b: module.weight,
    "a view of its parameter": lambda module, a, b: module.weight.t(),
    "its input": lambda module, a, b: module.x,
    "a view of its input": lambda module, a, b: module.x.view(-1),
    "zeros": lambda _, a, b: a * 0,
    "not finite": lambda _, a, b: a / 0,
    "float32": lambda _, a, b: (a, b.float()),
    "float16": lambda _, a, b: (a, b.half()),
    "bfloat16": lambda _, a, b: b.bfloat16(),
    "nothing": lambda _, a, b: None,
    "a number": lambda _, a, b: 3,
    "text": lambda _, a, b: "text",
    "only integers": lambda _, a, b: torch.arange(3),
}


class Returns(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        self.x = x
        a = x @ self.weight
        return RETURNS[self.kind](self, a, (a / 4).exp())


def inner(self, x):
    y = self.layer(x)
    result = self.module(y)
    self.module.x = None
    return result, 2 * y, 2 * self.module.weight


@pytest.mark.parametrize(
    ("kind", "selection"),
    [*few([(kind, "all") for kind in RETURNS], 18), ("tuple", "by default"), ("text", "by default")],
)
def test_whatever_a_module_returns_its_tensors_count_together(kind, selection):
    tolerance = 1e-3 if kind in ("float32", "float16", "bfloat16") else 1e-9  # the twin's sums are rounded otherwise
    make = net(inner, layer=linear(), module=lambda _: Returns(kind))
    compare(make, of(FLAT), selection, tolerance=tolerance)


class Splits(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        y = x @ self.weight
        return {"chunk": y.chunk(2, -1), "split": y.split([1, 3], -1), "unbind": y.unbind(0)}[self.how]


@pytest.mark.parametrize("how", ["chunk", "split", "unbind"])
def test_parts_of_one_tensor_count_together(how):
    def run(self, x):
        parts = self.module(x)
        return parts[0].sum(), parts[1].exp()

    compare(net(run, module=lambda _: Splits(how)), of(DEEP), "all")


# --- Views of tensors that somebody else may use ---


class Leaky(nn.Module):
    """Returns a view of a tensor that it shows to others as well."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        self.shown = x @ self.weight + 0
        return self.shown.flatten(1)


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrized_leaky():
    module = Leaky()
    parametrize.register_parametrization(module, "weight", Double())
    return module


def linear_with_a_leaky_hook():
    module = nn.Linear(4, 4)

    def hook(module, _args, output):
        module.__dict__["shown"] = output + 0
        return module.shown.flatten(1)

    module.register_forward_hook(hook)
    return module


def linear_with_a_leaky_forward():
    module = nn.Linear(4, 4)

    def forward(x):
        module.__dict__["shown"] = F.linear(x, module.weight, module.bias) + 0
        return module.shown.flatten(1)

    module.forward = forward
    return module


def leaky_use(self, x):
    y = self.module(x)
    leaky = self.module[0] if isinstance(self.module, nn.Sequential) else self.module
    return leaky.__dict__.pop("shown").sum(), self.act(y)


def flatten_by_keyword(self, x):
    z = self.layer(x)
    loss = z.sum()
    return loss, self.act(self.module(input=z))


def flatten_used_before(self, x):
    y = self.module(self.layer(x))
    return y.sum(), self.act(y)


def unbatched_cell(self, x):
    state, cell = self.module(x[0, 0], (x[0, 1], x[0, 2]))
    return state, (F.hardtanh_ if self.inplace else F.hardtanh)(cell, -0.1, 0.1)


def unbatched_softmax(self, x):
    output = self.module(x[0, 0], torch.tensor(1))
    return output.loss, self.act(output.output)


VIEWS = {
    "own module": net(leaky_use, module=lambda _: Leaky()),
    "Sequential of an own module": net(leaky_use, module=lambda _: nn.Sequential(Leaky())),
    "parametrized own module": net(leaky_use, module=lambda _: parametrized_leaky()),
    "module with a user's hook": net(leaky_use, module=lambda _: linear_with_a_leaky_hook()),
    "module with another forward": net(leaky_use, module=lambda _: linear_with_a_leaky_forward()),
    "Flatten called by keyword": net(flatten_by_keyword, layer=linear(), module=lambda _: nn.Flatten()),
    "Flatten whose output is used before": net(flatten_used_before, layer=linear(), module=lambda _: nn.Flatten()),
    "unbatched LSTMCell": net(unbatched_cell, module=lambda _: nn.LSTMCell(4, 4)),
    "unbatched AdaptiveLogSoftmaxWithLoss": net(
        unbatched_softmax, module=lambda _: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], div_value=1.0)
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_gradient_of_a_view_that_is_overwritten_in_place_is_right_or_missed(name):
    missed = {("module", 0), ("module.0", 0), ("layer", 0)}
    compare(VIEWS[name], of(DEEP), "all", missed=missed)


# --- Checkpoints ---


def checkpointed(reentrant, **options):
    return partial(checkpoints.checkpoint, use_reentrant=reentrant, **options)


def plainly(function, *args):
    return function(*args)


def segment(self, x, run):
    return self.c(run(lambda t: self.b(self.drop(self.a(t).relu())), self.z(x)))


def nested_segments(self, x, run):
    return self.c(run(lambda t: run(self.b, self.a(t).relu()), self.z(x)))


def blocks(self, x, run):
    for layer in (self.z, self.a, self.b):
        x = x + run(layer, x)
    return self.c(x)


def shared_inside_and_outside(self, x, run):
    return self.a(run(lambda t: self.a(t).relu(), self.a(x)))


def shared_in_each_segment(self, x, run):
    x = self.z(x)
    for _ in range(3):
        x = run(lambda t: self.a(t).relu(), x)
    return x


SEGMENTS = [segment, nested_segments, blocks, shared_inside_and_outside, shared_in_each_segment]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("selection", few(SELECTIONS))
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("forward", SEGMENTS)
def test_a_checkpoint_is_recorded_as_if_there_were_none(forward, reentrant, selection):
    def make(run):
        layers = {name: nn.Linear(4, 4) for name in "zabc"}
        return Net(lambda self, x: forward(self, x, run), drop=nn.Dropout(0.4), **layers)

    missed = set()
    if reentrant and forward in (shared_inside_and_outside, shared_in_each_segment):
        missed = {("a", call) for call in range(3)}  # nobody can tell in which order they are run again
    select, run = SELECTIONS[selection], lambda model: model(FLAT.clone().requires_grad_())
    check(partial(make, checkpointed(reentrant)), run, twin=partial(make, plainly), select=select, missed=missed)


class Normalizes(nn.Module):
    """Takes norms itself, as the probe does."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        z = 2 * self.b(y * torch.linalg.vector_norm(y))
        return z / torch.linalg.vector_norm(z) * torch.dot(y.flatten(), y.flatten()) * y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_checkpoint_that_keeps_some_results_computes_the_same_gradients(dtype):
    def keep(*_args, **_kwargs):
        return checkpoints.CheckpointPolicy.MUST_SAVE

    contexts = partial(checkpoints.create_selective_checkpoint_contexts, keep)

    def make(run):
        return Net(lambda self, x: run(self.inner, x), inner=Normalizes()).to(dtype)

    run = of(FLAT.to(dtype))
    selective = checkpointed(False, context_fn=contexts)
    check(partial(make, selective), run, twin=partial(make, plainly), tolerance=1e-9 if dtype.itemsize == 8 else 1e-5)


def test_a_reentrant_checkpoint_is_right_in_each_of_several_windows():
    def run(self, x):
        return checkpoints.checkpoint(self.inner, x, use_reentrant=True)

    model, x = make_seeded(net(run, inner=sequence(linear(), relu, linear()))), FLAT.clone().requires_grad_()
    expected = reference(lambda: make_seeded(sequence(linear(), relu, linear()), inplace=False), of(FLAT))
    with GradientProbe(model) as probe:
        for step in range(3):
            model.zero_grad()
            total(model(x)).backward()
            probe.collect(step)
    got = {(name.removeprefix("inner."), call, q): v for (name, call, q), v in recorded(probe, 2).items()}
    assert differences(got, only_weights(expected)) == []


# --- Situations ---


def make_seeded(make, inplace=True):
    torch.manual_seed(0)
    return make(inplace)


small = sequence(linear(4, 5), relu, linear(5, 5), always(nn.Tanh), linear(5, 3))


def only_weights(cells):
    names = {name for name, _, quantity in cells if quantity == "weight_grad"}
    return {key: value for key, value in cells.items() if key[0] in names}


@pytest.fixture
def expected():
    """What one step of the small model on ``FLAT`` gives."""
    return only_weights(reference(lambda: small(False), of(FLAT)))


def without(cells, status, *quantities):
    return {key: status if key[2] in quantities else value for key, value in cells.items()}


@pytest.fixture
def model():
    return make_seeded(small)


def step(model, x=FLAT):
    total(model(x)).backward()


def assert_right(probe, expected, step=0, tolerance=1e-9):
    assert differences(recorded(probe, step), expected, tolerance=tolerance) == []


def nothing_around(_model):
    return torch.enable_grad()


def other_dtype(_model):
    class Default(torch.overrides.TorchFunctionMode):
        def __enter__(self):
            torch.set_default_dtype(torch.float16)
            return super().__enter__()

        def __exit__(self, *args):
            torch.set_default_dtype(torch.float32)
            return super().__exit__(*args)

        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    return Default()


AROUND = {
    "nothing": nothing_around,
    "another default dtype": other_dtype,
    "another default device": lambda _: torch.device("meta"),
    "counted flops": lambda _: FlopCounterMode(display=False),
    "saved tensors on the CPU": lambda _: torch.autograd.graph.save_on_cpu(),
    "mutations of saved tensors": lambda _: torch.autograd.graph.allow_mutation_on_saved_tensors(),
    "one thread": lambda _: torch.autograd.set_multithreading_enabled(False),
}


@pytest.mark.parametrize("name", AROUND)
def test_modes_of_torch_around_a_step_change_no_number(name, model, expected):
    with GradientProbe(model) as probe:
        with AROUND[name](model):
            step(model)
        probe.collect()
    assert_right(probe, expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_detection_changes_no_number(model, expected):
    with torch.autograd.set_detect_anomaly(True), GradientProbe(model) as probe:
        step(model)
        probe.collect()
    assert_right(probe, expected)


def test_deterministic_algorithms_change_no_number(model, expected):
    torch.use_deterministic_algorithms(True)
    try:
        with GradientProbe(model) as probe:
            step(model)
            probe.collect()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_right(probe, expected)


def test_a_probe_attached_and_read_in_inference_mode_is_right(model, expected):
    with torch.inference_mode():
        probe = GradientProbe(model).attach()
        model(FLAT)
    step(model)
    with torch.inference_mode():
        probe.collect()
        probe.remove()
    assert_right(probe, expected)


def test_evaluations_in_between_leave_no_trace(model, expected):
    with GradientProbe(model) as probe:
        model(7 * FLAT)
        output = model(FLAT)
        for context in (torch.inference_mode(), torch.no_grad()):
            with context:
                model(7 * FLAT)
        total(output).backward()
        model(7 * FLAT)
        probe.collect()
    assert_right(probe, expected)


@pytest.mark.parametrize("forward_too", [False, True])
def test_a_backward_pass_in_another_thread_is_seen(forward_too, model, expected):
    with GradientProbe(model) as probe:
        loss = None if forward_too else total(model(FLAT))
        thread = threading.Thread(target=partial(step, model) if forward_too else loss.backward)
        thread.start()
        thread.join()
        probe.collect()
    assert_right(probe, expected)


class Fails(torch.autograd.Function):
    there = True

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if Fails.there:
            raise ArithmeticError
        return gradient


class FailsBackward(nn.Module):
    def forward(self, x):
        return Fails.apply(x)


@pytest.mark.parametrize("graph", ["another", "the same"])
def test_a_backward_pass_that_failed_and_is_tried_again_counts_once(graph, monkeypatch, model, expected):
    monkeypatch.setattr(Fails, "there", True)
    model[1] = nn.Sequential(nn.ReLU(), FailsBackward())
    with GradientProbe(model) as probe:
        loss = total(model(FLAT))
        with pytest.raises(ArithmeticError):
            loss.backward(retain_graph=True)
        model.zero_grad()
        monkeypatch.setattr(Fails, "there", False)
        if graph == "another":
            step(model)
        else:
            loss.backward()
        probe.collect()
    assert_right(probe, expected)


def test_gradients_that_autograd_grad_returns_are_no_number(model, expected):
    with GradientProbe(model) as probe:
        torch.autograd.grad(total(model(FLAT)), list(model.parameters()))
        probe.collect()
    expected = without(expected, "unused", "weight_grad")
    assert_right(probe, without(expected, "hook_missed", "output_grad"))


def test_a_call_with_other_parameters_is_seen_at_the_outputs(model, expected):
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with GradientProbe(model) as probe:
        total(torch.func.functional_call(model, parameters, (FLAT,))).backward()
        probe.collect()
    assert_right(probe, without(expected, "unused", "weight_grad"))


def gradient_of(transform):
    def run(model):
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def loss(parameters, x):
            return total(torch.func.functional_call(model, parameters, (x,)))

        return transform(model, loss, parameters)

    return run


TRANSFORMS = {
    "grad": gradient_of(lambda _, loss, parameters: torch.func.grad(loss)(parameters, FLAT)),
    "per-sample grad": gradient_of(
        lambda _, loss, parameters: torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, FLAT[:, None])
    ),
    "jacrev": gradient_of(lambda model, *_: torch.func.jacrev(model)(FLAT)),
    "jacfwd": gradient_of(lambda model, *_: torch.func.jacfwd(model)(FLAT)),
    "hessian": gradient_of(lambda model, *_: torch.func.hessian(lambda x: total(model(x)))(FLAT[:2])),
    "jvp": gradient_of(lambda model, *_: torch.func.jvp(model, (FLAT,), (FLAT,))),
    "linearize": gradient_of(lambda model, *_: torch.func.linearize(model, FLAT)),
}


@pytest.mark.filterwarnings(*OF_TORCH_JIT)
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("name", few(TRANSFORMS, 5))
def test_a_functional_transform_gives_the_same_and_is_no_number(name, model, expected):
    model[1].inplace = False
    plain = TRANSFORMS[name](model)
    with GradientProbe(model) as probe:
        watched = TRANSFORMS[name](model)
        step(model)
        probe.collect()
        step(model)
        probe.collect()
    if name != "linearize":
        pairs = zip(_tensors(plain), _tensors(watched), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    seen = {key: value for key, value in recorded(probe).items() if value != "hook_missed"}
    assert differences(seen, {key: expected[key] for key in seen}) == []
    doubled = {key: value + math.log10(2) for key, value in expected.items() if key[2] == "weight_grad"}
    assert differences(recorded(probe, 1), expected | doubled) == []


def _tensors(value):
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.filterwarnings(*OF_TORCH_JIT)
def test_forward_mode_derivatives_are_the_same(model):
    def tangent(model):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(FLAT.clone(), FLAT)
            return torch.autograd.forward_ad.unpack_dual(model(dual)).tangent

    with GradientProbe(model):
        watched = tangent(model)
    assert torch.equal(watched, tangent(model))


def test_a_batch_of_gradients_at_once_is_no_number(model, expected):
    with GradientProbe(model) as probe:
        jacobian = torch.autograd.functional.jacobian(model, FLAT, vectorize=True)
        several = torch.stack([FLAT[:, :3]] * 2)
        torch.autograd.grad(model(FLAT), model[0].weight, several, is_grads_batched=True)
        probe.collect()
        step(model)
        probe.collect()
    assert torch.equal(jacobian, torch.autograd.functional.jacobian(model, FLAT, vectorize=True))
    got = recorded(probe)
    assert {value for (_, _, quantity), value in got.items() if quantity == "output_grad"} == {"hook_missed"}
    assert_right(probe, expected, 1)


def test_numerical_checks_of_gradients_pass(model):
    model[1].inplace = False
    x = FLAT[:2].clone().requires_grad_()
    with GradientProbe(model):
        assert torch.autograd.gradcheck(model, (x,))
        assert torch.autograd.gradgradcheck(model, (x,))


def gradient_penalty(model, x):
    x = x.clone().requires_grad_()
    output = model(x)
    (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    return output.sum() + (slope.norm() - 1) ** 2


def inner_steps(model, x):
    parameters = dict(model.named_parameters())
    for _ in range(2):
        loss = torch.func.functional_call(model, parameters, (x,)).square().mean()
        slopes = torch.autograd.grad(loss, parameters.values(), create_graph=True)
        parameters = {name: p - 0.1 * slope for (name, p), slope in zip(parameters.items(), slopes, strict=True)}
    return torch.func.functional_call(model, parameters, (x,)).square().mean()


@pytest.mark.parametrize("loss", [gradient_penalty, inner_steps])
def test_second_derivatives_are_the_same(loss):
    def gradients(watched):
        model = make_seeded(small)
        with GradientProbe(model) if watched else torch.enable_grad():
            loss(model, FLAT).backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def force(self, x):
    x = x.clone().requires_grad_()
    energy = self.layer(x).tanh()
    (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return energy + self.layer(slope)


def test_a_gradient_inside_the_forward_pass_leaves_the_calls_apart():
    model = make_seeded(net(force, layer=linear()))
    with GradientProbe(model) as probe:
        step(model)
        probe.collect()
    assert probe.history.calls == [0, 1]


def test_a_model_and_its_copies_stay_apart(model, expected):
    with GradientProbe(model) as probe:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for copied in (copy.deepcopy(model), torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model))):
            step(copied, 7 * FLAT)
        step(model)
        probe.collect()
    assert_right(probe, expected)


def test_a_probe_on_a_part_of_a_model_numbers_its_calls(model, expected):
    with GradientProbe(model[2]) as probe:
        step(model)
        probe.collect()
    assert_right(probe, {("", call, quantity): v for (name, call, quantity), v in expected.items() if name == "2"})


def test_modules_that_are_called_without_their_container_are_seen():
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]).double()
    with GradientProbe(layers) as probe:
        for _ in range(2):
            total(layers[1](layers[0](layers[0](FLAT)).tanh())).backward()
            probe.collect()
    assert probe.history.names == ["0", "0", "1"]
    assert all(isinstance(value, float) for value in recorded(probe, 1).values())


def test_freezing_and_unfreezing_between_steps_is_seen(model, expected):
    with GradientProbe(model) as probe:
        for frozen in (0, None, 2):
            model.zero_grad()
            for index in (0, 2):
                model[index].requires_grad_(index != frozen)
            step(model)
            probe.collect()
    first = expected | dict.fromkeys([("0", 0, "output_grad"), ("0", 0, "weight_grad")], "frozen")
    assert_right(probe, first, 0)
    assert_right(probe, expected, 1)
    assert_right(probe, expected | {("2", 0, "weight_grad"): "frozen"}, 2)


def replaced_parameter(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def loaded_state(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def other_format_and_back(model):
    model.half().double()
    model.load_state_dict(make_seeded(small).state_dict())


def swapped_tensors(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        other_format_and_back(model)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("change", [replaced_parameter, loaded_state, other_format_and_back, swapped_tensors])
def test_other_parameters_between_steps_are_followed(change, model, expected):
    with GradientProbe(model) as probe:
        step(model)
        probe.collect()
        model.zero_grad()
        change(model)
        step(model)
        probe.collect()
    assert_right(probe, expected, 1)


def test_a_module_that_was_replaced_is_not_called_and_the_others_are_right(model, expected):
    with GradientProbe(model) as probe:
        step(model)
        probe.collect()
        model.zero_grad()
        model[4] = nn.Linear(5, 3).double()
        gc.collect()
        step(model)
        probe.collect()
    assert_right(probe, expected, 0)
    got = recorded(probe, 1)
    assert got["4", 0, "output"] == got["4", 0, "output_grad"] == "not_called"
    assert isinstance(got["0", 0, "weight_grad"], float)


def test_frozen_integer_weights_beside_trained_ones_are_no_obstacle():
    class Quantized(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return x @ self.weight.to(x.dtype)

    model = nn.Sequential(Quantized(), nn.Linear(4, 2).double())
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with GradientProbe(model, optimizer=optimizer) as probe:
        for _ in range(2):
            step(model)
            probe.collect()
            optimizer.step()
    got = recorded(probe)
    assert got["0", 0, "weight_grad"] == "frozen"
    assert isinstance(got["1", 0, "update"], float)


def test_an_attribute_called_networks_hides_no_weight(expected, model):
    model[2].networks = 3
    with GradientProbe(model) as probe:
        step(model)
        probe.collect()
    assert_right(probe, expected)


# --- Tracing and compilation ---


@pytest.mark.slow
@pytest.mark.filterwarnings(*OF_TORCH_JIT)
def test_a_traced_or_exported_model_has_no_trace_of_the_probe(model, expected):
    model[1].inplace = False
    tracers = [
        lambda: torch.jit.trace(model, FLAT).graph,
        lambda: torch.fx.symbolic_trace(model).graph,
        lambda: torch.export.export(model, (FLAT,)).graph,
        lambda: torch.fx.experimental.proxy_tensor.make_fx(lambda x: model(x))(FLAT).graph,
    ]

    if torch.__version__ < "2.7":  # whose export uses dynamo, and fails under the stance "force_eager"
        del tracers[2]

    def nodes(graph):
        return len(list(graph.nodes() if callable(graph.nodes) else graph.nodes))

    plain = [nodes(trace()) for trace in tracers]
    with GradientProbe(model) as probe:
        assert [nodes(trace()) for trace in tracers] == plain
        step(model)
        probe.collect()
    assert_right(probe, expected)


@pytest.mark.filterwarnings(*OF_TORCH_JIT)
def test_a_scripted_module_inside_a_model_is_recorded_or_refused():
    scripted = torch.jit.script(nn.Linear(4, 4).double())
    model = nn.Sequential(nn.Linear(4, 4).double(), scripted, nn.Linear(4, 2).double())
    try:
        with GradientProbe(model) as probe:
            step(model)
            probe.collect()
        got = recorded(probe)
        assert isinstance(got["0", 0, "output_grad"], float)
        assert isinstance(got["1", 0, "weight_grad"], float)
    except (RuntimeError, ValueError) as error:
        assert "script" in str(error).lower()  # noqa: PT017
    assert hooks_on(nn.ModuleList([model[0], model[2]])) == ([(0, 0, 0)] * 3, [0] * 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "backend"), few([("while attached", "eager"), ("by its step", "eager"), ("before", "aot_eager")], 2)
)
def test_a_compiled_model_is_right_in_every_recorded_step(when, backend, model, expected):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    if when == "before":
        compiled(FLAT)
    elif when == "by its step":
        compiled = torch.compile(lambda x: model(x), backend=backend)
    with GradientProbe(model, every=2) as probe:
        for label in range(3):
            model.zero_grad()
            step(compiled)
            probe.collect(label)
    assert_right(probe, expected, 0)
    assert_right(probe, expected, 1)


def test_a_module_that_is_compiled_inside_a_model_keeps_its_name(model, expected):
    torch._dynamo.reset()
    model[2] = torch.compile(model[2], backend="eager")
    with GradientProbe(model) as probe:
        step(model)
        probe.collect()
    assert_right(probe, expected)


# --- Other tensors ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_narrow_formats_are_measured_as_they_are(dtype):
    make = sequence(linear(4, 5), relu, linear(5, 3))
    compare(lambda inplace: make(inplace).to(dtype), of(FLAT.to(dtype)), "all", tolerance=1e-5)


def test_a_model_without_values_is_missed(model):
    model = model.to("meta")
    with GradientProbe(model) as probe:
        model(FLAT.to("meta")).sum().backward()
        probe.collect()
    assert set(recorded(probe).values()) == {"hook_missed"}


def test_fake_tensors_are_missed():
    with torch._subclasses.FakeTensorMode():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(True), nn.Linear(4, 4))
        with GradientProbe(model) as probe:
            model(torch.randn(3, 4)).sum().backward()
            probe.collect()
    assert set(recorded(probe).values()) == {"hook_missed"}


class Tagged(torch.Tensor):
    """A subclass of plain tensors."""


def test_subclasses_that_are_plain_tensors_are_measured():
    make = sequence(linear(4, 5), always(nn.Tanh), linear(5, 3))
    check(partial(make, False), lambda model: model(FLAT.clone().as_subclass(Tagged)).as_subclass(torch.Tensor))


def test_subclasses_that_wrap_other_tensors_are_missed(model):
    model[1].inplace = False
    with GradientProbe(model) as probe:
        model(TwoTensor(FLAT, 2 * FLAT)).sum().backward()
        probe.collect()
    assert set(recorded(probe).values()) == {"hook_missed"}


@pytest.mark.filterwarnings("ignore:.*prototype stage:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_measured(layout):
    layer = nn.Linear(4, 3).double()
    expected = reference(lambda: layer, of(FLAT), loss=lambda output: output.square().sum())
    with GradientProbe(layer) as probe:
        nested = torch.nested.nested_tensor([FLAT[:2], FLAT[2:]], layout=layout)
        sum(part.square().sum() for part in layer(nested).unbind()).backward()
        probe.collect()
    assert_right(probe, expected)


@pytest.mark.slow
@pytest.mark.parametrize("how", few([copy.copy, copy.deepcopy]))
def test_a_copy_of_a_probe_is_refused_or_harmless(how, model, expected):
    for _ in range(2):
        with GradientProbe(model) as probe:
            model.zero_grad()
            try:
                copied = how(probe)
            except TypeError:
                copied = None
            del copied
            gc.collect()
            compiled = torch.compile(model, backend="eager")
            step(compiled)
            probe.collect()
        assert_right(probe, expected)
