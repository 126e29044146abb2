"""Which modules a selection means, under which names, and which parameters a row of it stands for."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import GradientProbe, measure
from gradexp.history.step import STATUSES
from gradexp.patterns import is_match
from gradexp.probe.names import named_modules


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        y = self.norm(x)
        return x + self.scale * self.mlp(x + self.attn(y, y, y)[0])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 5, 4), torch.randint(2, (3,))


def names(model, select):
    return list(GradientProbe(model, select).history.names)


def log10_norm(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).norm().log10().item()


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("h.*", ["h.0", "h.attn"], ["h.0.attn", "h", "xh.0"]),
        ("h.*.attn", ["h.0.attn"], ["h.0.attn.proj", "h.0.x.attn"]),
        ("**.attn", ["attn", "h.0.attn"], ["h.attn.proj", "h.xattn"]),
        ("h.**", ["h.0", "h.0.attn"], ["h"]),
        ("**", ["h", "h.0.attn"], []),
        ("h.[02]", ["h.0", "h.2"], ["h.1"]),
        ("h.[!0-3]", ["h.4"], ["h.0", "h.2"]),
        ("h.?", ["h.0"], ["h.10", "h."]),
        ("a+b", ["a+b"], ["aab"]),
    ],
)
def test_patterns_stay_between_dots_unless_told_otherwise(pattern, matches, others):
    assert all(is_match(name, pattern) for name in matches)
    assert not any(is_match(name, pattern) for name in others)


def test_a_pattern_selects_modules_that_can_be_called(model):
    assert names(model, "blocks.*") == ["blocks.0", "blocks.1", "blocks.2"]
    assert names(model, ["**.mlp", "head"]) == ["blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp", "head"]
    assert "blocks" not in names(model, "**")
    message = "that are called; 'blocks' is a container, choose what is in it by 'blocks.*'"
    with pytest.raises(ValueError, match=re.escape(message)):
        GradientProbe(model, "blocks")
    with pytest.raises(ValueError, match=re.escape("'*' stays inside a part of a name, '**attn' crosses dots")):
        GradientProbe(model, ["head", "*attn"])


def test_a_block_has_the_joint_gradient_of_all_weights_inside(model, batch):
    x, y = batch
    with GradientProbe(model, "blocks.*", quantities=["weight_grad", "weight"]) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect()
    for row, block in enumerate(model.blocks):
        weights = [parameter for parameter in block.parameters() if parameter.dim() > 1]
        assert len(weights) == 4
        assert probe.history.profile("weight_grad")[row] == pytest.approx(
            log10_norm([w.grad for w in weights]), abs=1e-6
        )
        assert probe.history.profile("weight")[row] == pytest.approx(log10_norm(weights), abs=1e-6)


def test_a_weight_that_occurs_twice_in_a_block_counts_once(batch):
    x, y = batch
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"block": nn.Sequential(layer, nn.Tanh(), layer), "head": nn.Linear(4, 2)})
    with GradientProbe(model, "block") as probe:
        F.cross_entropy(model["head"](model["block"](x[:, 0])), y).backward()
        probe.collect()
    assert probe.history.profile("weight_grad")[0] == pytest.approx(log10_norm([layer.weight.grad]), abs=1e-6)


def test_a_selected_norm_is_trained_and_not_frozen(model, batch):
    x, y = batch
    for select in ("blocks.*.norm", lambda _, module: isinstance(module, nn.LayerNorm)):
        with GradientProbe(model, select) as probe:
            F.cross_entropy(model(x), y).backward()
            probe.collect()
        for row, block in enumerate(model.blocks):
            expected = log10_norm([block.norm.weight.grad, block.norm.bias.grad])
            assert probe.history.profile("weight_grad")[row] == pytest.approx(expected, abs=1e-6)
        model.zero_grad()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    with GradientProbe(model, "blocks.*.norm") as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect()
    assert (probe.history.status["weight_grad"] == STATUSES.index("frozen")).all()


def wrapped(module, kind, name):
    wrapper = type(kind, (nn.Module,), {"forward": lambda self, *args: getattr(self, name)(*args)})()
    setattr(wrapper, name, module)
    return wrapper


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("GradSampleModule", "_module"),
        ("_FabricModule", "_forward_module"),
        ("CheckpointWrapper", "_checkpoint_wrapped_module"),
        ("FSDPStub", "_fsdp_wrapped_module"),
        ("AveragedModel", "module"),
        ("DistributedDataParallel", "module"),
        ("OptimizedModule", "_orig_mod"),
    ],
)
def test_names_are_without_those_of_wrappers(kind, name, batch, model):
    plain = names(model, None)
    model.blocks[1] = wrapped(model.blocks[1], kind, name)
    model.blocks[2].mlp = wrapped(model.blocks[2].mlp, kind, name)
    model = wrapped(model, kind, name)
    assert names(model, None) == plain
    x, y = batch
    history = measure(model, F.cross_entropy, (x, y))
    assert set(history.names) == set(plain)
    trained = [
        code for n, code in zip(history.names, history.status["output_grad"][0, 0], strict=True) if "out_" not in n
    ]
    assert set(trained) == {STATUSES.index("ok")}


def test_a_users_own_module_called_module_keeps_its_name():
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "_module": nn.Linear(2, 2)})
    assert list(named_modules(model)) == ["", "module", "_module"]


def test_a_checkpoint_wrapper_of_torch_is_taken_off(batch, model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    x, y = batch
    expected = measure(model, F.cross_entropy, (x, y))
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    history = measure(model, F.cross_entropy, (x, y))
    assert set(history.names) == set(expected.names)
    for quantity in ("output", "output_grad", "weight_grad"):
        got = dict(zip(history.names, history.profile(quantity), strict=True))
        wanted = dict(zip(expected.names, expected.profile(quantity), strict=True))
        assert got == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_the_first_kind_of_fully_sharded_model_is_refused_by_its_name(model):
    model.blocks[0] = wrapped(model.blocks[0], "FullyShardedDataParallel", "_fsdp_wrapped_module")
    with pytest.raises(
        ValueError, match=r"^FullyShardedDataParallel is not supported, .* use torch\.distributed\.fsdp"
    ):
        GradientProbe(model)


class LayerDrop(nn.Module):
    """Residual layers of which each is left out of a training step at random, as in transformers' LayerDrop."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True) for _ in range(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x, keep):
        for layer, is_kept in zip(self.layers, keep, strict=True):
            if is_kept:
                x = layer(x)
        return self.head(x[:, 0])


def test_dropped_layers_are_not_called_in_the_steps_that_drop_them(batch):
    torch.manual_seed(0)
    model, (x, y) = LayerDrop(), batch
    plans = [(True, False, True, True), (False, True, True, False)]
    with GradientProbe(model, ["layers.*", "head"]) as probe:
        for keep in plans:
            F.cross_entropy(model(x, keep), y).backward()
            probe.collect()
            model.zero_grad()
    history = probe.history
    for step, keep in enumerate(plans):
        for index, is_kept in enumerate(keep):
            row = history.names.index(f"layers.{index}")
            cells = [STATUSES[history.status[q][step, 0, row]] for q in ("output", "output_grad", "weight_grad")]
            assert cells == (["ok"] * 3 if is_kept else ["not_called", "not_called", "unused"])
