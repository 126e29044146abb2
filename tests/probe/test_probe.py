import copy
import gc
import math
import warnings
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradexp import MLP, GradientProbe, initialize
from gradexp.choices import NORMALIZATIONS, RESIDUALS
from gradexp.config import DataConfig
from gradexp.history.step import STATUSES
from gradexp.networks.normalization import normalize
from gradexp.runs.data import load

QUANTITIES = ("output", "output_grad", "weight_grad", "weight", "update")
RMS = ("output",)


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def dense(inplace):
    return nn.Sequential(
        nn.Linear(7, 11), nn.ReLU(inplace), nn.Linear(11, 9), nn.ReLU(inplace), nn.Linear(9, 4, bias=False)
    )


def convolutional(inplace):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(inplace), nn.Conv2d(3, 4, 2), nn.ReLU(inplace), nn.Flatten(), nn.Linear(36, 4)
    )


def multilayer(_inplace):
    return MLP([7, 11, 9, 4], "tanh")


NETS = {"dense": (dense, (7,)), "mlp": (multilayer, (7,)), "conv": (convolutional, (2, 6, 6))}


def build(kind, device="cpu", inplace=True, seed=0):
    make, _ = NETS[kind]
    torch.manual_seed(seed)
    return make(inplace).to(device)


def inputs(kind, device="cpu", samples=5, seed=1):
    x = torch.randn(samples, *NETS[kind][1], generator=torch.Generator().manual_seed(seed))
    y = torch.randint(4, (samples,), generator=torch.Generator().manual_seed(seed))
    return x.to(device), y.to(device)


def not_inplace(model):
    """Return a copy whose ReLUs leave their inputs as they are, so that outputs can be kept."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return twin


def layers_of(model):
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.dim() > 1
    }


def log10_size(tensors, rms=False):
    """Take norm or rms of some tensors, as if they were one, in float64 on the CPU."""
    flat = np.concatenate([tensor.detach().double().cpu().numpy().ravel() for tensor in tensors])
    # Scaled first: squares of the tests' smallest float64 values would underflow.
    largest = np.abs(flat).max()
    return math.log10(largest) + 0.5 * math.log10(np.square(flat / largest).sum() / (flat.size if rms else 1))


def reference(model, batches, loss=F.cross_entropy):
    """Return log10 of every size that plain autograd gives, per layer, on a copy without in-place operations."""
    twin = not_inplace(model)
    layers = layers_of(twin)
    outputs = {name: [] for name in layers}

    def keep(name):
        def hook(_module, _args, output):
            output.retain_grad()
            outputs[name].append(output)

        return hook

    for name, layer in layers.items():
        layer.register_forward_hook(keep(name))
    for x, y in batches:
        loss(twin(x), y).backward()
    return {
        "output": [log10_size(seen, rms=True) for seen in outputs.values()],
        "output_grad": [log10_size([output.grad for output in seen]) for seen in outputs.values()],
        "weight_grad": [log10_size([layer.weight.grad]) for layer in layers.values()],
        "weight": [log10_size([layer.weight]) for layer in layers.values()],
    }


def step(model, batch, optimizer=None):
    x, y = batch
    F.cross_entropy(model(x), y).backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def status(history, quantity, step=0, network=0):
    return [STATUSES[code] for code in history.status[quantity][step, network]]


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules())


# Only the order of summation differs: 1e-12 on the CPU. On CUDA other kernels may be chosen from run to run.
def close_to(values, device):
    return pytest.approx(values, rel=0, abs=1e-12 if device == "cpu" else 1e-6)


@pytest.mark.parametrize("kind", NETS)
def test_every_size_equals_that_of_plain_autograd(kind, device):
    model, batch = build(kind, device), inputs(kind, device)
    expected = reference(model, [batch])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    before = {name: layer.weight.detach().clone() for name, layer in layers_of(model).items()}
    with GradientProbe(model, optimizer=optimizer) as probe:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        probe.collect(0)
        optimizer.step()
    history = probe.history
    expected["update"] = [
        log10_size([layer.weight.detach() - before[name]]) for name, layer in layers_of(model).items()
    ]
    assert history.phase == "train"
    assert history.names == list(before)
    assert set(history.log10) == set(QUANTITIES)
    for quantity, values in expected.items():
        assert history.log10[quantity].shape == (1, 1, len(before))
        assert history.log10[quantity][0, 0] == close_to(values, device), quantity
        assert status(history, quantity) == ["ok"] * len(before)


def test_output_grad_is_the_one_that_autograd_grad_returns():
    model, (x, y) = build("dense"), inputs("dense")
    z1 = model[0](x)
    z2 = model[2](z1.clamp(min=0))
    z3 = model[4](z2.clamp(min=0))
    gradients = torch.autograd.grad(F.cross_entropy(z3, y), [z1, z2, z3])
    with GradientProbe(model) as probe:
        step(model, (x, y))
        probe.collect(0)
    assert probe.history.profile("output_grad") == close_to([log10_size([g]) for g in gradients], "cpu")


@pytest.mark.parametrize("kind", NETS)
def test_several_passes_before_one_collect_are_one_batch(kind):
    model, batches = build(kind), [inputs(kind, samples=3, seed=3), inputs(kind, samples=8, seed=4)]
    expected = reference(model, batches)
    with GradientProbe(model, quantities=(*expected,)) as probe:
        for batch in batches:
            step(model, batch)
        probe.collect(0)
    for quantity, values in expected.items():
        assert probe.history.profile(quantity) == close_to(values, "cpu"), quantity


def test_a_layer_that_is_called_twice_in_one_pass_counts_with_both_outputs():
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    first = layer(x)
    second = layer(first.tanh())
    gradients = torch.autograd.grad(second.square().sum(), [first, second])
    with GradientProbe(layer) as probe:
        layer(layer(x).tanh()).square().sum().backward()
        probe.collect(0)
    assert probe.history.profile("output_grad") == close_to([log10_size(gradients)], "cpu")
    assert probe.history.profile("output") == close_to([log10_size([first, second], rms=True)], "cpu")


def test_passes_without_gradients_are_not_recorded():
    model, batch = build("dense"), inputs("dense")
    expected = reference(model, [batch])
    with GradientProbe(model) as probe:
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                model(1e6 * batch[0])
        step(model, batch)
        with torch.no_grad():
            model(1e6 * batch[0])
        probe.collect(0)
        with torch.no_grad():
            model(batch[0])
        probe.collect(1)
    assert probe.history.profile("output", step=0) == close_to(expected["output"], "cpu")
    assert status(probe.history, "output", step=1) == ["not_called"] * 3


def test_every_third_collect_is_recorded_and_no_hook_is_attached_in_between():
    model, batch = build("dense"), inputs("dense")
    labels = [2 * index for index in range(8)]
    attached = []
    with GradientProbe(model, every=3) as probe:
        for label in labels:
            attached.append(hooks_on(model))
            step(model, batch)
            probe.collect(label)
    assert probe.history.steps == [labels[0], labels[3], labels[6]]
    assert attached == [4, 0, 0, 4, 0, 0, 4, 0]  # one on each layer, and one that marks the end of a pass
    assert probe.history.log10["output"].shape == (3, 1, 3)


def test_recording_every_third_step_gives_the_numbers_of_recording_every_step():
    histories = []
    for every in (1, 3):
        model = build("mlp")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        with GradientProbe(model, every=every, optimizer=optimizer) as probe:
            for index in range(7):
                x, y = inputs("mlp", seed=index)
                F.cross_entropy(model(x), y).backward()
                probe.collect(index)
                optimizer.step()
                optimizer.zero_grad()
        histories.append(probe.history)
    always, seldom = histories
    assert seldom.steps == [0, 3, 6]
    for quantity in QUANTITIES:
        assert np.array_equal(seldom.log10[quantity], always.log10[quantity][[0, 3, 6]]), quantity


def test_an_update_is_there_once_the_optimizer_has_stepped():
    model, batch = build("dense"), inputs("dense")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    changes = []
    with GradientProbe(model, optimizer=optimizer) as probe:
        for index in range(3):
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            probe.collect(index)
            assert status(probe.history, "update", step=index) == ["not_called"] * 3
            before = [model[index].weight.detach().clone() for index in (0, 2, 4)]
            optimizer.step()
            optimizer.zero_grad()
            after = [model[index].weight.detach() for index in (0, 2, 4)]
            changes.append([log10_size([new - old]) for new, old in zip(after, before, strict=True)])
            if index == 1:  # also while the probe is attached
                assert probe.history.profile("update", step=1) == close_to(changes[1], "cpu")
    for index in range(3):
        assert probe.history.profile("update", step=index) == close_to(changes[index], "cpu")


def test_a_step_after_a_second_attach_is_not_taken_for_the_update_of_an_earlier_one():
    model, batch = build("dense"), inputs("dense")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = GradientProbe(model, optimizer=optimizer)
    with probe:
        step(model, batch)
        probe.collect(0)
    with probe:
        optimizer.step()
        step(model, batch)
        probe.collect(1)
    assert probe.history.steps == [0, 1]
    assert status(probe.history, "update", step=0) == ["not_called"] * 3


def test_without_an_optimizer_no_update_is_recorded():
    assert set(GradientProbe(build("dense")).history.log10) == {"output", "output_grad", "weight_grad"}


def train_from_seed(watched, optimizer, dropout, device, every=2):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(7, 11), dropout, nn.ReLU(True), nn.Linear(11, 11), nn.ReLU(True), nn.Linear(11, 4)
    ).to(device)
    options = {"lr": 0.05} | ({"momentum": 0.9} if optimizer is torch.optim.SGD else {})
    optimizer = optimizer(model.parameters(), **options)
    probe = GradientProbe(model, every=every, optimizer=optimizer)
    if watched:
        probe.attach()
    for index in range(6):
        F.cross_entropy(model(inputs("dense", device, seed=index)[0]), inputs("dense", device)[1]).backward()
        if watched:
            probe.collect(index)
        optimizer.step()
        optimizer.zero_grad()
    probe.remove()
    state = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    return list(model.parameters()), state


@pytest.mark.parametrize("dropout", [nn.Dropout(0.3), nn.Dropout(0.3, inplace=True), nn.Identity()], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_bit_identical_with_the_probe_on_and_off(optimizer, dropout, device):
    plain, plain_state = train_from_seed(False, optimizer, dropout, device)
    watched, watched_state = train_from_seed(True, optimizer, dropout, device)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(plain_state, watched_state)


def test_gradients_are_bit_identical_where_operations_work_in_place_on_views():
    def gradients(watched):
        model, batch = build("conv"), inputs("conv")
        model.add_module("6", nn.ReLU(inplace=True))
        with GradientProbe(model, select=lambda name, _: name != "") if watched else torch.enable_grad():
            step(model, batch)
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_outputs_keep_no_gradient_and_no_graph_node_is_added():
    model, (x, y) = build("dense"), inputs("dense")
    node = type(model(x).grad_fn)
    with GradientProbe(model):
        output = model(x)
        F.cross_entropy(output, y).backward()
    assert not output.retains_grad
    assert type(output.grad_fn) is node


def test_no_hook_is_left_after_the_with_block():
    model, batch = build("dense"), inputs("dense")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model, optimizer=optimizer) as probe:
        assert hooks_on(model) == 4
        step(model, batch)
        probe.collect(0)
        optimizer.step()
    assert hooks_on(model) == 0
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_no_hook_is_left_after_an_exception():
    model = build("dense")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), GradientProbe(model, optimizer=optimizer):
        model(torch.ones(2, 3))
    assert hooks_on(model) == 0
    assert not optimizer._optimizer_step_pre_hooks


def test_no_hook_is_left_on_a_parameter_that_is_its_modules_output():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.ones(2, 3))

        def forward(self):
            return self.value

    model = Constant()
    with GradientProbe(model) as probe:
        for index in range(3):
            model().sum().backward()
            probe.collect(index)
            assert len(model.value._backward_hooks) == 0
            model.zero_grad()
        model()
    assert len(model.value._backward_hooks) == 0
    assert probe.history.log10["output_grad"][:, 0, 0] == pytest.approx([math.log10(math.sqrt(6))] * 3)


def test_a_backward_after_the_with_block_records_nothing():
    model, (x, y) = build("dense"), inputs("dense")
    with GradientProbe(model) as probe:
        output = model(x)
        F.cross_entropy(output, y).backward(retain_graph=True)
        probe.collect(0)
        late = model(x)
    before = probe.history
    F.cross_entropy(output, y).backward()
    F.cross_entropy(late, y).backward()
    after = probe.history
    assert after.steps == [0]
    for quantity in before.log10:
        assert np.array_equal(before.log10[quantity], after.log10[quantity])


def test_a_backward_of_an_earlier_window_is_not_counted_in_the_next():
    model, (x, y) = build("dense"), inputs("dense")
    expected = reference(model, [(x, y)])["output_grad"]
    with GradientProbe(model) as probe:
        earlier = F.cross_entropy(model(3 * x), y)
        earlier.backward(retain_graph=True)
        probe.collect(0)
        earlier.backward()
        step(model, (x, y))
        probe.collect(1)
    assert probe.history.profile("output_grad", step=1) == close_to(expected, "cpu")


@pytest.fixture
def no_garbage_collection(few_objects):
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tensors_alive():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("backward", [True, False])
def test_outputs_are_freed_at_once_without_the_garbage_collector(no_garbage_collection, backward):
    model, (x, y) = build("dense"), inputs("dense")
    alive = []

    def remember(_module, _args, output):
        alive.append(weakref.ref(output))

    model[4].register_forward_hook(remember)
    with GradientProbe(model) as probe:
        for index in range(3):
            loss = F.cross_entropy(model(x), y)
            if backward:
                loss.backward()
            del loss
            assert alive[-1]() is None
            if backward:
                probe.collect(index)
    assert len(alive) == 3


def test_the_probe_keeps_neither_model_outputs_nor_weight_copies_after_removal(no_garbage_collection):
    model, batch = build("dense"), inputs("dense")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(steps):
        with GradientProbe(model, optimizer=optimizer) as probe:
            for index in range(steps):
                F.cross_entropy(model(batch[0]), batch[1]).backward()
                probe.collect(index)
                optimizer.step()
                optimizer.zero_grad()

    train(1)  # the norms' own buffers stay
    before = tensors_alive()
    train(3)
    assert tensors_alive() == before


@pytest.mark.parametrize("bias", [False, True])
def test_150_relu_layers_have_numbers_where_torchs_own_norm_is_zero(bias):
    digits = load(DataConfig("digits"), 128)
    model = MLP([64, *[128] * 149, 10], "relu", bias=bias)
    initialize(model, "xavier", seed=0)
    with GradientProbe(model) as probe:
        F.cross_entropy(model(digits.x_train[:64].float()), digits.y_train[:64]).backward()
        probe.collect(0)
    for quantity, values in probe.history.log10.items():
        assert np.isfinite(values).all()
        assert set(status(probe.history, quantity)) <= {"ok", "subnormal"}
    gradients = [layer.weight.grad for layer in model.layers]
    assert [torch.linalg.vector_norm(gradient).item() for gradient in gradients] == [0.0] * 150
    exact = [log10_size([gradient]) for gradient in gradients]
    assert probe.history.profile("weight_grad") == pytest.approx(exact, rel=0, abs=1e-12)
    assert max(exact) < -20


def test_a_layer_that_outputs_only_zeros_is_zero_and_so_is_what_follows():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(True), nn.Linear(4, 2, bias=False))
    nn.init.constant_(model[0].bias, -100.0)
    with GradientProbe(model) as probe:
        model(torch.randn(5, 3)).sum().backward()
        probe.collect(0)
    history = probe.history
    assert status(history, "output") == ["ok", "zero"]
    assert status(history, "output_grad") == ["zero", "ok"]
    assert status(history, "weight_grad") == ["zero", "zero"]
    assert np.isnan(history.profile("weight_grad")).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_infinite_or_undefined_element_is_nonfinite(bad):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.ones(5, 3)
    x[0, 0] = bad
    with GradientProbe(model) as probe:
        model(x).sum().backward()
        probe.collect(0)
    assert status(probe.history, "output") == ["nonfinite", "nonfinite"]
    assert status(probe.history, "weight_grad") == ["nonfinite", "nonfinite"]
    assert status(probe.history, "output_grad") == ["ok", "ok"]
    assert np.isnan(probe.history.profile("output")).all()


def test_a_layer_that_no_loss_reached_is_unused():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "beside": nn.Linear(3, 2), "never": nn.Linear(3, 2)})
    x = torch.ones(4, 3)
    with GradientProbe(model) as probe:
        model["beside"](x)
        model["used"](x).sum().backward()
        probe.collect(0)
    history = probe.history
    assert set(history.log10) == {"output", "output_grad", "weight_grad"}
    assert history.names == ["beside", "used", "never"]  # in the order of their calls
    assert status(history, "weight_grad") == ["unused", "ok", "unused"]
    assert status(history, "output_grad") == ["unused", "ok", "not_called"]
    assert status(history, "output") == ["ok", "ok", "not_called"]


def test_a_frozen_layer_is_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    with GradientProbe(model) as probe:
        model(torch.ones(2, 3)).sum().backward()
        probe.collect(0)
    assert status(probe.history, "weight_grad") == ["frozen", "ok", "frozen"]
    assert status(probe.history, "output_grad") == ["frozen", "ok", "ok"]
    assert status(probe.history, "output") == ["ok", "ok", "ok"]


def test_a_module_that_does_not_run_is_not_called():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model[0](torch.ones(1, 3)).sum().backward()
    for select in (None, "1"):
        with GradientProbe(model, select) as probe:
            probe.collect(0)
        assert status(probe.history, "output") == ["not_called"]
        assert status(probe.history, "output_grad") == ["not_called"]
        assert status(probe.history, "weight_grad") == ["ok" if select is None else "frozen"]


def test_a_view_that_is_overwritten_in_place_is_hook_missed_and_its_base_is_right():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(8, 2))
    batch = (torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 0]))
    expected = reference(model, [batch])
    with GradientProbe(model, lambda name, _: name in ("0", "1", "3")) as probe:
        step(model, batch)
        probe.collect(0)
    history = probe.history
    assert status(history, "output_grad") == ["ok", "hook_missed", "ok"]
    assert math.isnan(history.profile("output_grad")[1])
    for quantity in history.log10:
        assert history.profile(quantity)[[0, 2]] == close_to(expected[quantity], "cpu"), quantity
    # The view itself was measured before it was overwritten.
    assert history.profile("output")[1] == history.profile("output")[0]


def test_elements_below_the_smallest_normal_number_are_subnormal_but_have_a_number():
    x = torch.full((2, 3), 1e-40)
    model = nn.Linear(3, 4, bias=False)
    nn.init.ones_(model.weight)
    with GradientProbe(model) as probe:
        model(x).sum().backward()
        probe.collect(0)
    history = probe.history
    assert status(history, "output") == ["subnormal"]
    assert status(history, "weight_grad") == ["subnormal"]
    assert status(history, "output_grad") == ["ok"]
    assert history.profile("output") == pytest.approx([math.log10(3e-40)], abs=1e-4)
    assert history.profile("weight_grad") == pytest.approx([math.log10(2e-40 * math.sqrt(12))], abs=1e-4)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e-300), (torch.float64, 1e300), (torch.bfloat16, 1e30)])
def test_sizes_are_right_near_the_ends_of_a_number_format(dtype, size):
    x = torch.full((2, 3), size, dtype=dtype)
    model = nn.Linear(3, 4, bias=False, dtype=dtype)
    with GradientProbe(model) as probe:
        output = model(x)
        output.sum().backward()
        probe.collect(0)
    assert probe.history.profile("output") == pytest.approx([log10_size([output], rms=True)], rel=0, abs=1e-12)
    assert probe.history.profile("weight_grad") == pytest.approx([log10_size([model.weight.grad])], abs=1e-12)
    assert status(probe.history, "weight_grad") == ["ok"]


class TransfersCounted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_recorded_step_of_tensors_that_stay_on_their_device_takes_one_copy(monkeypatch):
    """On the CPU a norm is read at once; those of a stack take the way that all norms take on other devices."""
    copies = Counter()
    for name in ("cpu", "item", "tolist", "__bool__", "__float__"):
        own = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, own=own):
            copies[name] += 1
            return own(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    model = MLP([7, 11, 9, 4], networks=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TransfersCounted() as mode, GradientProbe(model, every=2, optimizer=optimizer, networks=2) as probe:
        for index in range(5):
            model(inputs("dense", seed=index)[0]).square().mean().backward()
            probe.collect(index)
            optimizer.step()
            optimizer.zero_grad()
        copied_while_training = copies.copy()
    assert len(probe.history.steps) == 3
    assert copied_while_training == {"cpu": 3}
    assert mode.counts["linalg_vector_norm"] > 0  # the counter sees what a collect does
    assert mode.counts["_local_scalar_dense"] == 0
    assert mode.counts["is_nonzero"] == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_a_recorded_step_waits_for_a_cuda_device_once():
    model, (x, y) = build("conv", "cuda"), inputs("conv", "cuda")
    with GradientProbe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                F.cross_entropy(model(x), y).backward()
                before = len(caught)
                probe.collect(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert before == 0
    assert sum("synchroniz" in str(warning.message) for warning in caught) == 1


def test_each_network_of_a_stack_has_the_numbers_that_it_has_alone():
    widths, networks = [5, 8, 6, 3], 3
    torch.manual_seed(0)
    stack = MLP(widths, "tanh", networks=networks)
    with torch.no_grad():  # three clearly different networks
        for layer in stack.layers:
            layer.weight *= torch.tensor([0.5, 1.0, 4.0])[:, None, None]
    x, y = torch.randn(7, 5), torch.randint(3, (7,))
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    with GradientProbe(stack, optimizer=optimizer, networks=networks, seeds=[4, 5, 6]) as probe:
        sum(F.cross_entropy(output, y) for output in stack(x)).backward()
        alone = [stack.network(index) for index in range(networks)]
        probe.collect(0)
        optimizer.step()
    assert probe.history.seeds == [4, 5, 6]
    for index, model in enumerate(alone):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with GradientProbe(model, optimizer=optimizer) as single:
            F.cross_entropy(model(x), y).backward()
            single.collect(0)
            optimizer.step()
        for quantity in QUANTITIES:
            # float32: a stack may sum in another order
            expected = pytest.approx(single.history.log10[quantity][0, 0], abs=1e-6 if quantity != "update" else 1e-4)
            assert probe.history.log10[quantity][0, index] == expected, quantity


def test_one_broken_network_of_a_stack_leaves_the_others_their_numbers():
    torch.manual_seed(0)
    stack = MLP([4, 6, 2], "relu", networks=3)
    with torch.no_grad():
        stack.layers[0].weight[1] = math.nan
        stack.layers[1].weight[2] = 0
    with GradientProbe(stack, networks=3, quantities=QUANTITIES[:4]) as probe:
        stack(torch.randn(5, 4)).sum().backward()
        probe.collect(0)
    assert [status(probe.history, "weight", network=n) for n in range(3)] == [
        ["ok", "ok"],
        ["nonfinite", "ok"],
        ["ok", "zero"],
    ]
    assert [status(probe.history, "output", network=n) for n in range(3)] == [
        ["ok", "ok"],
        ["nonfinite", "nonfinite"],
        ["ok", "ok"],  # the bias of the last layer
    ]
    assert [status(probe.history, "output_grad", network=n) for n in (0, 2)] == [["ok", "ok"], ["zero", "ok"]]


def test_a_stacked_bias_is_not_counted_as_a_weight():
    stack = MLP([4, 6, 2], networks=2)
    with torch.no_grad():
        for layer in stack.layers:
            layer.bias.fill_(1e6)
    with GradientProbe(stack, networks=2, quantities=QUANTITIES[:4]) as probe:
        stack(torch.randn(5, 4)).sum().backward()
        probe.collect(0)
    for index, layer in enumerate(stack.layers):
        for network in range(2):
            got = [probe.history.log10[q][0, network, index] for q in ("weight", "weight_grad")]
            weight = layer.weight[network], layer.weight.grad[network]
            assert got == pytest.approx([log10_size([tensor]) for tensor in weight], abs=1e-12)


def test_a_module_of_one_network_with_an_attribute_networks_keeps_its_weight():
    model = nn.Linear(3, 2)
    model.networks = nn.ModuleList()
    assert GradientProbe(model).history.names == [""]


def test_several_weights_of_one_module_count_together():
    layer = nn.Bilinear(2, 3, 4)
    layer.second = nn.Parameter(torch.randn(5, 5))
    with GradientProbe(layer, quantities=QUANTITIES[:4]) as probe:
        (layer(torch.randn(6, 2), torch.randn(6, 3)).sum() + layer.second.square().sum()).backward()
        probe.collect(0)
    both = [layer.weight.grad, layer.second.grad]
    assert probe.history.profile("weight_grad") == close_to([log10_size(both)], "cpu")
    assert probe.history.profile("weight") == close_to([log10_size([layer.weight, layer.second])], "cpu")


def test_select_chooses_modules_by_name_and_by_kind():
    model = build("dense")
    assert GradientProbe(model).history.names == ["0", "2", "4"]
    assert GradientProbe(model, lambda name, _: name == "2").history.names == ["2"]
    assert GradientProbe(model, lambda _, module: isinstance(module, nn.ReLU)).history.names == ["1", "3"]


def test_numbers_are_right_under_autocast():
    model, (x, y) = build("dense"), inputs("dense")
    seen = []
    handles = [model[index].register_forward_hook(lambda _m, _a, z: seen.append(z.clone())) for index in (0, 2, 4)]
    with GradientProbe(model) as probe, torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    for handle in handles:
        handle.remove()
    assert seen[0].dtype == torch.bfloat16
    assert probe.history.profile("output") == close_to([log10_size([z], rms=True) for z in seen], "cpu")
    assert status(probe.history, "output_grad") == ["ok"] * 3


def test_history_before_the_first_collect_is_empty_and_keeps_the_layers():
    history = GradientProbe(build("dense"), networks=2).history
    assert history.steps == []
    assert history.seeds == [0, 1]
    assert history.log10["output"].shape == (0, 2, 3)


@pytest.mark.parametrize("every", [0, -1])
def test_every_below_one_is_refused(every):
    with pytest.raises(ValueError, match=rf"^every must be at least 1, got {every}$"):
        GradientProbe(nn.Linear(2, 2), every=every)


def test_a_model_with_nothing_to_record_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    message = r"^nothing to record: no module owns a parameter of two or more dimensions; use select=$"
    with pytest.raises(ValueError, match=message):
        GradientProbe(model)
    for select in (lambda *_: False, "layers.*", ["2", "3"]):
        message = r"^nothing to record: select matches none of the 3 modules \('', '0', '1'\)$"
        with pytest.raises(ValueError, match=message):
            GradientProbe(model, select)


def test_attaching_twice_is_refused_and_changes_nothing():
    model = build("dense")
    with GradientProbe(model) as probe:
        with pytest.raises(RuntimeError, match=r"^the probe is attached already$"):
            probe.attach()
        assert hooks_on(model) == 4
    assert hooks_on(model) == 0


def test_collect_is_refused_unless_attached():
    model = build("dense")
    probe = GradientProbe(model)
    message = r"^the probe is not attached; use it in a with statement or call attach\(\)$"
    with pytest.raises(RuntimeError, match=message):
        probe.collect(0)
    with probe:
        pass
    with pytest.raises(RuntimeError, match=message):
        probe.collect(0)
    assert probe.history.steps == []


def test_sparse_gradients_are_measured() -> None:
    model = nn.Embedding(10, 3, sparse=True)
    with GradientProbe(model) as probe:
        model(torch.tensor([1, 4, 4])).sum().backward()
        probe.collect(0)
    # One row of ones and one of twos.
    assert probe.history.log10["weight_grad"][0, 0, 0] == pytest.approx(math.log10(math.sqrt(3 + 12)), abs=1e-15)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_with_skip_connections_and_normalisation_the_probe_sees_the_streams(normalization, residual):
    model = MLP([4, 6, 6, 6, 3], "tanh", normalization=normalization, residual=residual, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    if residual == "zero":
        for layer in model.layers[1:-1]:
            torch.nn.init.constant_(layer.branch, 0.7)
    streams = [layer.register_forward_hook(lambda _module, _args, z: kept.append(z)) for layer in model.layers]
    kept: list[torch.Tensor] = []
    weights = [layer.weight for layer in model.layers]
    gradients = torch.autograd.grad(model(x).square().sum(), [*kept, *weights])
    outputs = list(kept)
    for handle in streams:
        handle.remove()
    for index in (1, 2):
        assert model.has_skip(index) == (residual != "none")
        if residual != "none":  # the stream holds the one before
            branch = model.layers[index].branch * model.layers[index](
                torch.tanh(normalize(outputs[index - 1], normalization))
            )
            torch.testing.assert_close(outputs[index], outputs[index - 1] + branch, rtol=1e-12, atol=1e-13)
    with GradientProbe(model) as probe:
        model(x).square().sum().backward()
        probe.collect(0)
    history = probe.history
    assert history.names == [f"layers.{index}" for index in range(4)]
    for quantity, tensors in (
        ("output", outputs),
        ("output_grad", gradients[:4]),
        ("weight_grad", gradients[4:]),
    ):
        expected = [log10_size([tensor], rms=quantity in RMS) for tensor in tensors]
        assert history.profile(quantity).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_learnable_branch_shows_weights_that_get_no_gradient_yet():
    model = MLP([4, 6, 6, 6, 3], "tanh", residual="zero")
    with GradientProbe(model) as probe:
        model(torch.ones(5, 4)).sum().backward()
        probe.collect(0)
    codes = probe.history.status["weight_grad"][0, 0]
    assert [STATUSES[code] for code in codes] == ["ok", "zero", "zero", "ok"]
    assert all(layer.branch.grad.abs().min() > 0 for layer in model.layers[1:-1])
