"""The probe in the training loops that people have, each number checked against a float64 autograd reference."""

import copy
import gc
import io
import math
import os
import pickle
import sys
import threading
import warnings
import weakref
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradexp import GradientProbe, measure
from gradexp.history.step import STATUSES
from gradexp.probe.processes import await_other_probes


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


class Net(nn.Module):
    """Three layers with in-place activations; the middle part may be checkpointed."""

    def __init__(self, reentrant=None, dropout=0.0):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(8, 8))
        self.last = nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = F.relu_(self.first(x))
        x = self.middle(x) if self.reentrant is None else checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.last(torch.tanh(x))


NAMES = ["first", "middle.0", "middle.3", "last"]
QUANTITIES = ("output", "output_grad", "weight_grad")


def batch(samples=5, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (samples,), generator=generator)


def reference(model, batches, loss=F.cross_entropy):
    """Return log10 sizes per layer, by torch.autograd.grad on a float64 copy written without in-place operations."""
    model = copy.deepcopy(model).double()
    weights = [model.get_submodule(name).weight for name in NAMES]
    outputs, output_grads, weight_grads = [], [], []
    for x, y in batches:
        z1 = model.first(x.double())
        z2 = model.middle[0](F.relu(z1))
        z3 = model.middle[3](F.relu(z2))
        z4 = model.last(torch.tanh(z3))
        found = torch.autograd.grad(loss(z4, y), [z1, z2, z3, z4, *weights])
        outputs.append([z1, z2, z3, z4])
        output_grads.append(found[:4])
        weight_grads.append(found[4:])
    rms = [
        math.log10(math.sqrt(sum(z.detach().square().sum() for z in layer) / sum(z.numel() for z in layer)))
        for layer in zip(*outputs, strict=True)
    ]
    joint = [math.log10(math.sqrt(sum(g.square().sum() for g in layer))) for layer in zip(*output_grads, strict=True)]
    summed = [math.log10(sum(layer).norm()) for layer in zip(*weight_grads, strict=True)]
    return {"output": rms, "output_grad": joint, "weight_grad": summed}


def status(history, quantity, step=-1):
    return [STATUSES[code] for code in history.status[quantity][step, 0]]


def assert_right(history, expected, tolerance=1e-6, step=-1, names=NAMES):
    assert history.names == names
    for quantity, values in expected.items():
        assert status(history, quantity, step) == ["ok"] * len(names), quantity
        assert history.profile(quantity, step) == pytest.approx(values, abs=tolerance), quantity


def test_the_reference_itself_is_met_in_plain_training():
    model = Net().double()
    data = batch(dtype=torch.float64)
    with GradientProbe(model) as probe:
        F.cross_entropy(model(data[0]), data[1]).backward()
        probe.collect()
    assert_right(probe.history, reference(model, [data]), 1e-12)
    assert probe.history.dtypes == dict.fromkeys(QUANTITIES, "float64")


def test_gradient_accumulation_is_one_concatenated_batch():
    model, batches = Net(), [batch(3, 1), batch(4, 2), batch(5, 3)]
    with GradientProbe(model) as probe:
        for x, y in batches:
            F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    assert_right(probe.history, reference(model, batches))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")
def test_a_checkpoint_changes_no_number(reentrant):
    model, batches = Net(reentrant), [batch(3, 1), batch(4, 2)]
    with GradientProbe(model) as probe:
        for step in range(2):
            for x, y in batches:
                F.cross_entropy(model(x.requires_grad_()), y).backward()
            probe.collect(step)
            model.zero_grad()
    expected = reference(model, [(x.detach(), y) for x, y in batches])
    for step in range(2):
        assert_right(probe.history, expected, step=step)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_outside_of_the_models_own_forward_changes_no_number(reentrant):
    model, (x, y) = Net(), batch()

    def middle(x):
        return model.middle(F.relu(model.first(x)))

    with GradientProbe(model) as probe:
        z = checkpoint(middle, x.clone().requires_grad_(), use_reentrant=reentrant)
        F.cross_entropy(model.last(torch.tanh(z)), y).backward()
        probe.collect(0)
    expected = reference(model, [(x, y)])
    for quantity in QUANTITIES:
        found = dict(zip(probe.history.names, probe.history.profile(quantity), strict=True))
        assert [found[name] for name in NAMES] == pytest.approx(expected[quantity], abs=1e-6)


def test_calls_whose_order_a_reentrant_checkpoint_hides_are_missed_and_not_mixed_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(4, 4)

        def forward(self, x):
            x = checkpoint(self.shared, x, use_reentrant=True)
            return checkpoint(self.shared, x.tanh(), use_reentrant=True)

    model = Twice()
    with GradientProbe(model) as probe:
        model(torch.randn(2, 4, requires_grad=True)).square().sum().backward()
        probe.collect(0)
    history = probe.history
    assert history.calls == [0, 1]
    assert status(history, "output") == ["ok", "ok"]
    assert status(history, "output_grad") == ["hook_missed", "hook_missed"]
    assert status(history, "weight_grad") == ["ok", "ok"]


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_leaves_no_trace_in_the_numbers(unscale, fused):
    model, (x, y) = Net(), batch()
    expected = reference(model, [(x, y)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in NAMES}
    with GradientProbe(model, optimizer=optimizer, scaler=scaler, per_sample=True) as probe:
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        probe.collect(0)
        scaler.step(optimizer)
        scaler.update()
        history = probe.history
    assert_right(history, expected)
    samples = history.samples[0, 0]
    assert 0.5 * np.log10((10 ** (2 * samples)).sum(axis=1)) == pytest.approx(expected["output_grad"], abs=1e-6)
    change = [math.log10((model.get_submodule(name).weight - before[name]).detach().norm()) for name in NAMES]
    assert history.profile("update") == pytest.approx(change, abs=1e-5)


def test_a_step_that_a_grad_scaler_skips_is_no_update():
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with GradientProbe(model, optimizer=optimizer, scaler=scaler) as probe:
        scaler.scale(F.cross_entropy(model(x), y) * math.inf).backward()
        probe.collect(0)
        scaler.step(optimizer)
        scaler.update()
    assert status(probe.history, "weight_grad") == ["nonfinite"] * 4
    assert status(probe.history, "update") == ["not_called"] * 4


def test_a_disabled_grad_scaler_changes_nothing():
    model, (x, y) = Net(), batch()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with GradientProbe(model, scaler=scaler, stats={"max": lambda t: t.max()}) as probe:
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        probe.collect(0)
    assert_right(probe.history, reference(model, [(x, y)]))


def test_collecting_after_the_scalers_step_is_refused_and_an_open_question_too():
    model, (x, y) = Net(), batch()
    first = torch.optim.SGD(model.first.parameters(), lr=0.1)
    last = torch.optim.SGD(model.last.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    with GradientProbe(model, scaler=scaler) as probe:
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.unscale_(first)
        scaler.step(last)
        with pytest.raises(RuntimeError, match="the gradients of some optimizers are unscaled and of others not"):
            probe.collect(0)
        scaler.step(first)
        with pytest.raises(RuntimeError, match=r"^collect must be called before scaler.step\(optimizer\)$"):
            probe.collect(0)
    assert probe.history.steps == []


def test_statistics_of_scaled_gradients_are_refused():
    with pytest.raises(ValueError, match="stats would be of scaled gradients"):
        GradientProbe(Net(), stats={"max": torch.max}, scaler=torch.amp.GradScaler("cpu"))


def test_autocast_is_recorded_in_its_own_formats():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        probe.collect(0)
    assert_right(probe.history, reference(model, [(x, y)]), 0.02)  # bfloat16 has 8 bits
    assert probe.history.dtypes == {"output": "bfloat16", "output_grad": "bfloat16", "weight_grad": "float32"}


def test_weight_gradients_are_as_clipped_if_collected_after_clipping():
    model, (x, y) = Net(), batch()
    expected = reference(model, [(x, y)])
    with GradientProbe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        before = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        probe.collect(0)
    expected["weight_grad"] = [value + math.log10(1e-3 / before) for value in expected["weight_grad"]]
    assert_right(probe.history, expected, 1e-5)


def test_gradients_that_autograd_grad_returns_are_nobodys():
    # What becomes of them, such as a step by hand, is not to be seen.
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        probe.collect(0)
    assert probe.history.profile("output") == pytest.approx(reference(model, [(x, y)])["output"], abs=1e-6)
    assert status(probe.history, "output_grad") == ["hook_missed"] * 4
    assert status(probe.history, "weight_grad") == ["unused"] * 4


def step_in_backward(model, lr=0.1):
    def use_up(parameter):
        parameter.data.sub_(lr * parameter.grad)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(use_up)


@pytest.mark.parametrize("registered", ["before", "while attached"])
def test_an_optimizer_inside_the_backward_pass(registered):
    model, (x, y) = Net().double(), batch(dtype=torch.float64)
    if registered == "before":
        step_in_backward(model)
    with GradientProbe(model) as probe:
        if registered == "while attached":
            step_in_backward(model)
        for step in range(2):
            expected = reference(model, [(x, y)])
            F.cross_entropy(model(x), y).backward()
            probe.collect(step)
    if registered == "while attached":  # nobody looked at the first step's
        assert status(probe.history, "weight_grad", step=0) == ["hook_missed"] * 4
    assert_right(probe.history, expected, 1e-12)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_several_steps_inside_one_collect_are_no_one_gradient():
    model, (x, y) = Net(), batch()
    step_in_backward(model)
    with GradientProbe(model) as probe:
        for _ in range(2):
            F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    assert status(probe.history, "weight_grad") == ["hook_missed"] * 4


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacobian"])
def test_functional_transforms_are_skipped_and_said_so(transform):
    model, (x, y) = Net(), batch()
    parameters = dict(model.named_parameters())

    def loss(parameters, x, y):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    model.first.forward(x)
    with GradientProbe(model, select=lambda name, _: name in NAMES) as probe:
        if transform == "grad":
            torch.func.grad(loss)(parameters, x, y)
        elif transform == "vmap":
            torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x[:, None], y[:, None])
        else:
            torch.autograd.functional.jacobian(lambda x: model.last(torch.tanh(x)), torch.randn(2, 8), vectorize=True)
        F.mse_loss(model.middle[3].weight, torch.zeros(8, 8)).backward()
        probe.collect(0)
    found = dict(zip(probe.history.names, status(probe.history, "output_grad"), strict=True))
    hidden = ["last"] if transform == "jacobian" else NAMES
    assert all(found[name] == "hook_missed" for name in hidden)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "when"),
    [
        ("wrapped", "before"),
        *few(
            [
                ("wrapper", "after"),
                ("wrapper", "before"),
                ("wrapper", "between"),
                ("method", "before"),
                ("method", "between"),
                ("method", "after"),
                ("wrapped", "between"),
                ("wrapped", "after"),
            ],
            0,
        ),
    ],
)
def test_a_compiled_model_is_never_an_empty_record(when, how):
    torch.compiler.reset()
    plain, (x, y) = Net(), batch()
    expected = reference(plain, [(x, y)])

    def compiled():
        if how == "method":
            plain.compile(backend="aot_eager")
            return plain
        return torch.compile(plain, backend="aot_eager")

    model = compiled() if when != "after" else plain
    if when == "before":
        model(x)
    with GradientProbe(model if how == "wrapped" else plain, every=2) as probe:
        if when == "after":
            model = compiled()
        for step in range(4):
            F.cross_entropy(model(x), y).backward()
            probe.collect(step)
            plain.zero_grad()
    for step in range(2):
        assert_right(probe.history, expected, step=step)
    assert probe.history.names == NAMES


@pytest.mark.slow
def test_compiled_code_stays_valid_and_the_stance_is_put_back():
    torch.compiler.reset()
    model, (x, y) = Net(), batch()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    compiled(x)
    compiled_once = len(graphs)
    with GradientProbe(model) as first, GradientProbe(model, every=3) as second:
        for step in range(6):
            F.cross_entropy(compiled(x), y).backward()
            first.collect(step)
            second.collect(step)
    F.cross_entropy(compiled(x), y).backward()
    assert len(graphs) == compiled_once
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_model_that_dynamo_compiles_unseen_is_reported_as_missed(monkeypatch):
    model = Net()
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with GradientProbe(model) as probe:
        monkeypatch.undo()
        sys.modules.setdefault("torch._dynamo", object())
        for parameter in model.parameters():  # as if the compiled model had run
            parameter.grad = torch.ones_like(parameter)
        with pytest.warns(UserWarning, match=r"^no module was called"):
            probe.collect(0)
    assert status(probe.history, "output") == ["hook_missed"] * 4
    assert status(probe.history, "weight_grad") == ["ok"] * 4


def run_processes(function, folder, processes=2):
    """Run ``function(rank, processes, folder)`` in gloo processes on the loopback interface."""
    torch.multiprocessing.start_processes(function, (processes, str(folder)), nprocs=processes, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def begin_process(rank, processes, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=processes)
    torch.manual_seed(0)


def train_distributed(rank, processes, folder):
    begin_process(rank, processes, folder)
    model = Net().double()
    x, y = batch(8, dtype=torch.float64)
    own = slice(rank * 4, rank * 4 + 4)
    parallel = nn.parallel.DistributedDataParallel(model)
    with GradientProbe(parallel) as probe:
        for step in range(2):
            F.cross_entropy(parallel(x[own]), y[own]).backward()
            probe.collect(step)
            parallel.zero_grad()
    local = reference(model, [(x[own], y[own])])
    local["weight_grad"] = reference(model, [(x, y)])["weight_grad"]
    torch.save((probe.history.names, {q: probe.history.log10[q] for q in QUANTITIES}, local), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_distributed_data_parallel_has_reduced_weight_gradients_and_the_process_own_output_gradients(tmp_path):
    for names, found, expected in run_processes(train_distributed, tmp_path):
        assert names == NAMES
        for quantity in QUANTITIES:
            for step in range(2):
                assert found[quantity][step, 0] == pytest.approx(expected[quantity], abs=1e-12)


def attach_alone(rank, processes, folder):
    begin_process(rank, processes, folder)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(Net().double(), mesh=init_device_mesh("cpu", (processes,)))
    message = ""
    if rank == 0:
        try:
            await_other_probes(model, timedelta(seconds=0.5), timedelta(seconds=0.1))
        except RuntimeError as error:
            message = str(error)
    torch.distributed.barrier()
    torch.save(message, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
@pytest.mark.skipif(torch.__version__ < "2.7", reason="FSDP2 does not run on the CPU in torch 2.6")
@pytest.mark.filterwarnings("ignore:the probe waits for one:UserWarning")
def test_a_probe_on_one_of_several_processes_with_sharded_weights_is_told_so(tmp_path):
    first, second = run_processes(attach_alone, tmp_path)
    assert first.startswith(
        "no probe is attached on the processes [1]: the model's weights are sharded, so that every"
    )
    assert second == ""


def train_sharded(rank, processes, folder):
    begin_process(rank, processes, folder)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Net().double()
    whole = copy.deepcopy(model)
    x, y = batch(8, dtype=torch.float64)
    own = slice(rank * 4, rank * 4 + 4)
    mesh = init_device_mesh("cpu", (processes,))
    for part in (model.first, model.middle, model.last, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model, optimizer=optimizer) as probe:
        F.cross_entropy(model(x[own]), y[own]).backward()
        probe.collect(0)
        optimizer.step()
    local = reference(whole, [(x[own], y[own])])
    local["weight_grad"] = reference(whole, [(x, y)])["weight_grad"]
    local["update"] = [value - 1 for value in local["weight_grad"]]  # lr 0.1
    local["weight"] = [math.log10(whole.get_submodule(name).weight.detach().norm()) for name in NAMES]
    torch.save((probe.history.names, probe.history.log10, local), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
@pytest.mark.skipif(torch.__version__ < "2.7", reason="FSDP2 does not run on the CPU in torch 2.6")
def test_fully_sharded_weights_have_the_norm_of_the_whole(tmp_path):
    for names, found, expected in run_processes(train_sharded, tmp_path):
        assert names == NAMES
        for quantity, values in expected.items():
            assert found[quantity][0, 0] == pytest.approx(values, abs=1e-12), quantity


def test_a_copied_or_pickled_model_carries_no_working_hook():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        copied = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        pickled = pickle.loads(pickle.dumps(model))
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (copied, pickled, loaded):
            F.cross_entropy(other(100 * x), y).backward()
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    assert_right(probe.history, reference(model, [(x, y)]))


def test_a_pickled_model_needs_no_gradexp_to_be_loaded():
    model = nn.Linear(2, 2)
    with GradientProbe(model):
        assert b"gradexp" not in pickle.dumps(model)


def test_a_pass_that_raised_is_left_out():
    model, (x, y) = Net(), batch()

    def broken(*_):
        raise ZeroDivisionError

    with GradientProbe(model) as probe:
        handle = model.last.register_forward_pre_hook(broken)
        with pytest.raises(ZeroDivisionError):
            model(100 * x)
        handle.remove()
        z = model(10 * x)
        z.register_hook(broken)
        with pytest.raises(ZeroDivisionError):
            F.cross_entropy(z, y).backward()
        first = model.first.weight.register_hook(broken)  # after other layers had theirs
        with pytest.raises(ZeroDivisionError):
            F.cross_entropy(model(10 * x), y).backward()
        first.remove()
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    assert_right(probe.history, reference(model, [(x, y)]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_forward_pass_that_nothing_came_back_through_is_left_out():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        model(100 * x)  # a validation that forgot torch.no_grad()
        probe.collect(0)
    assert_right(probe.history, reference(model, [(x, y)]))


def test_two_probes_at_once_see_the_same():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as first, GradientProbe(model, every=2) as second:
        for step in range(3):
            F.cross_entropy(model(x), y).backward()
            first.collect(step)
            second.collect(step)
            model.zero_grad()
    for quantity in QUANTITIES:
        assert np.array_equal(first.history.log10[quantity][::2], second.history.log10[quantity])


def test_a_forgotten_probe_takes_its_hooks_with_it():
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.disable()
    try:
        for step in range(3):  # a notebook's cell, run again and again
            probe = GradientProbe(model, optimizer=optimizer)
            probe.attach()
            F.cross_entropy(model(x), y).backward()
            probe.collect(step)
            optimizer.step()
        del probe
        assert not any(module._forward_hooks for module in model.modules())
        assert not optimizer._optimizer_step_pre_hooks
    finally:
        gc.enable()


def test_a_probe_that_is_kept_for_its_history_keeps_no_model():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    gc.disable()
    try:
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()
    assert probe.history.names == NAMES
    with pytest.raises(RuntimeError, match=r"^the model that the probe watches is gone$"):
        probe.attach()


@pytest.mark.usefixtures("few_objects")
def test_a_recorded_step_leaves_nothing_to_the_garbage_collector():
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(probe):
        for step in range(3):
            F.cross_entropy(model(x), y).backward()
            probe.collect(step)
            optimizer.step()
            optimizer.zero_grad()

    with GradientProbe(model, optimizer=optimizer) as probe:  # whatever torch loads at first use
        train(probe)
    del probe
    gc.collect()
    gc.freeze()  # garbage of earlier tests, some of it freed only by freeing other things
    gc.disable()
    try:
        with GradientProbe(model, optimizer=optimizer) as probe:
            train(probe)
        del probe
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.usefixtures("few_objects")
def test_memory_stays_constant_over_fifty_steps():
    model, (x, y) = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), batch()
    optimizer = torch.optim.Adam(model.parameters())

    def objects_after(steps):
        for step in range(steps):
            F.cross_entropy(model(x), y).backward()
            probe.collect(step)
            optimizer.step()
            optimizer.zero_grad()
        gc.collect()
        return len(gc.get_objects())

    with GradientProbe(model, optimizer=optimizer) as probe:
        before = objects_after(10)
        after = objects_after(50)
        # Each recorded step is one Reading with its dictionaries and arrays, whatever the number of layers.
        assert (after - before) / 50 < 30
        history = probe.history
    per_step = sum(array.nbytes for kind in (history.log10, history.status) for array in kind.values()) / 60
    assert per_step == 9 * 5 * 2  # bytes, quantities, layers


def test_models_that_threads_train_at_the_same_time_keep_their_numbers():
    found = {}

    def train(seed):
        model, (x, y) = Net(), batch(seed=seed)
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * seed + index)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        with GradientProbe(model) as probe:
            for step in range(10):
                F.cross_entropy(model(x), y).backward()
                probe.collect(step)
                model.zero_grad()
        found[seed] = probe.history, reference(model, [(x, y)])

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for history, expected in found.values():
        for step in range(10):
            assert_right(history, expected, step=step)


def test_an_optimizer_that_runs_the_passes_itself_has_an_update():
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in NAMES}

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        probe.collect()
        return loss

    with GradientProbe(model, optimizer=optimizer) as probe:
        optimizer.step(closure)
    change = [math.log10((model.get_submodule(name).weight - before[name]).detach().norm()) for name in NAMES]
    assert probe.history.profile("update") == pytest.approx(change, abs=1e-5)


def test_statistics_of_ones_own_are_recorded_beside_the_sizes():
    model, (x, y) = Net().double(), batch(dtype=torch.float64)
    with GradientProbe(model, stats={"largest": lambda t: t.abs().max()}) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    history = probe.history
    assert set(history.stats) == {f"{quantity}.largest" for quantity in QUANTITIES}
    expected = [model.get_submodule(name).weight.grad.abs().max().item() for name in NAMES]
    assert history.stats["weight_grad.largest"][0, 0] == pytest.approx(expected)
    assert history.stats["output.largest"][0, 0, 0] == pytest.approx(model.first(x).abs().max().item())


def test_a_statistic_that_is_no_number_is_refused():
    model, (x, _) = Net(), batch()
    message = r"^stats\['all'\] must return one number, got a tensor of shape \(5, 8\)$"
    with GradientProbe(model, stats={"all": lambda t: t}), pytest.raises(ValueError, match=message):
        model(x)


def test_each_sample_has_its_own_norm():
    model, batches = Net().double(), [batch(3, 1, torch.float64), batch(5, 2, torch.float64)]
    with GradientProbe(model, per_sample=True) as probe:
        for x, y in batches:
            F.cross_entropy(model(x), y, reduction="sum").backward()
        probe.collect(0)
    single = [
        reference(model, [(x[i : i + 1], y[i : i + 1])])["output_grad"] for x, y in batches for i in range(len(x))
    ]
    assert probe.history.samples.shape == (1, 1, 4, 8)
    assert pytest.approx(np.array(single), abs=1e-12) == probe.history.samples[0, 0].T


def test_only_weight_gradients_need_no_hook_after_the_first_step():
    model, (x, y) = Net(), batch()
    hooks = []
    with GradientProbe(model, quantities="weight_grad") as probe:
        for step in range(3):
            hooks.append(sum(len(module._forward_hooks) for module in model.modules()))
            F.cross_entropy(model(x), y).backward()
            probe.collect(step)
            model.zero_grad()
    assert hooks == [5, 0, 0]
    for step in range(3):
        assert_right(probe.history, {"weight_grad": reference(model, [(x, y)])["weight_grad"]}, step=step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantities": ["weights"]}, r"unknown quantity 'weights'; choose from output, output_grad, weight_grad, "),
        ({"quantities": []}, r"quantities is empty; choose from output, "),
        ({"quantities": ["update"]}, r"the quantity 'update' needs optimizer=, whose steps are watched"),
        ({"quantities": "output", "per_sample": True}, r"per_sample=True needs the quantity 'output_grad'"),
    ],
)
def test_quantities_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        GradientProbe(Net(), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.Linear}, r"model must be an nn.Module, got the class Linear"),
        ({"model": len}, r"model must be an nn.Module, got a builtin_function_or_method"),
        ({"every": 2.5}, r"every must be a whole number, got 2.5"),
        ({"every": True}, r"every must be a whole number, got True"),
        ({"networks": "2"}, r"networks must be a whole number, got '2'"),
        ({"optimizer": torch.optim.SGD}, r"optimizer must be a torch.optim.Optimizer, got the class SGD"),
        ({"optimizer": "sgd"}, r"optimizer must be a torch.optim.Optimizer, got a str"),
        ({"stats": torch.max}, r"stats must map names to functions, got a builtin_function_or_method"),
        ({"select": 3.0}, r"select must be patterns of names or a function of name and module, got a float"),
        ({"select": [nn.Linear]}, r"select must be patterns of .*, got the class Linear"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(arguments, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        GradientProbe(**{"model": Net(), **arguments})


def test_a_pattern_that_matches_nothing_is_named():
    message = r"^select: 'lats' matches none of the 8 modules$"
    with pytest.raises(ValueError, match=message):
        GradientProbe(Net(), select=["first", "lats"])


def test_a_label_that_is_no_number_is_refused_and_loses_nothing():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(TypeError, match=r"^step must be a whole number, got 'one'$"):
            probe.collect("one")
        probe.collect(np.int64(3))
    assert probe.history.steps == [3]
    assert type(probe.history.steps[0]) is int


def test_a_collect_after_the_optimizers_step_is_refused():
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientProbe(model, optimizer=optimizer) as probe:
        for _ in range(2):
            F.cross_entropy(model(x), y).backward()
            probe.collect()
            optimizer.step()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"^collect was called after optimizer.step\(\)"):
            probe.collect()


def test_passes_that_do_not_belong_to_a_step_can_be_discarded():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        F.cross_entropy(model(100 * x), y).backward()
        model.zero_grad()
        probe.discard()
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    assert_right(probe.history, reference(model, [(x, y)]))


def test_measure_is_not_seen_by_a_probe_that_is_attached():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        inner = measure(model, F.cross_entropy, (x, y))
        F.cross_entropy(model(x), y).backward()
        probe.collect(0)
    for history in (inner, probe.history):
        assert_right(history, reference(model, [(x, y)]))


def test_a_frozen_part_that_runs_twice_without_a_graph_is_frozen_and_measured():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.backbone(self.backbone(x))
            return self.head(x)

    model = Frozen()
    with GradientProbe(model) as probe:
        model(torch.randn(3, 4)).sum().backward()
        probe.collect(0)
    assert probe.history.names == ["backbone", "backbone", "head"]
    assert status(probe.history, "output") == ["ok"] * 3
    assert status(probe.history, "output_grad") == ["frozen", "frozen", "ok"]


def test_an_optimizer_of_another_model_is_refused():
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(
        ValueError,
        match=r"^the optimizer has none of this model's parameters; create it from model.parameters\(\) once",
    ):
        GradientProbe(Net(), optimizer=optimizer)


def test_a_collect_before_the_backward_pass_is_refused_and_loses_nothing():
    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        loss = F.cross_entropy(model(x), y)
        with pytest.raises(RuntimeError, match=r"^no gradient was seen: call collect after loss.backward\(\)"):
            probe.collect(0)
        loss.backward()
        probe.collect(0)
    assert_right(probe.history, reference(model, [(x, y)]))


def test_a_step_without_a_label_is_numbered():
    model, (x, y) = Net(), batch()
    with GradientProbe(model, every=2) as probe:
        for _ in range(5):
            F.cross_entropy(model(x), y).backward()
            probe.collect()
    assert probe.history.steps == [0, 2, 4]
    assert repr(probe) == "GradientProbe(4 modules, 3 steps recorded, not attached)"
    counts, verdict = repr(probe.history).splitlines()
    assert counts == "History(3 steps, 1 network, 4 layers: output, output_grad, weight_grad)"
    assert verdict == probe.history.verdict().text


def test_parallel_copies_on_other_devices_are_refused():
    parallel = nn.DataParallel(Net())
    assert [name for name, _ in zip(GradientProbe(parallel).history.names, NAMES, strict=True)] == NAMES
    parallel.device_ids = [0, 1]
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        GradientProbe(parallel)


def test_no_random_number_is_drawn_and_training_is_bit_identical_with_dropout_and_checkpoints():
    def train(watched, reentrant):
        torch.manual_seed(3)
        model = Net(reentrant, dropout=0.3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        probe = GradientProbe(model, optimizer=optimizer, every=2, per_sample=True)
        with probe if watched else torch.enable_grad():
            for step in range(6):
                x, y = batch(seed=step)
                F.cross_entropy(model(x.requires_grad_()), y).backward()
                if watched:
                    probe.collect(step)
                optimizer.step()
                optimizer.zero_grad()
        return [*model.parameters(), torch.get_rng_state()]

    for reentrant in (None, True, False):
        plain, watched = train(False, reentrant), train(True, reentrant)
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_the_profile_can_be_written_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model, (x, y) = Net(), batch()
    with GradientProbe(model) as probe:
        for step in (5, 7):
            F.cross_entropy(model(x), y).backward()
            probe.collect(step)
            model.zero_grad()
    writer = SummaryWriter(str(tmp_path))
    with warnings.catch_warnings():
        probe.history.to_tensorboard(writer)
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for quantity in QUANTITIES:
        scalars = events.Scalars(f"profile/log10_{quantity}")
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4]
        assert [scalar.value for scalar in scalars] == pytest.approx(list(probe.history.profile(quantity)), abs=1e-6)
    assert [scalar.step for scalar in events.Scalars("gradient/log10_first_over_last")] == [5, 7]
    assert [scalar.value for scalar in events.Scalars("gradient/zero_layers")] == [0, 0]


def test_what_a_probe_recorded_survives_saving(tmp_path):
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(inplace=True), shared)
    with GradientProbe(model, per_sample=True, stats={"sum": torch.sum}) as probe:
        model(torch.randn(2, 3)).sum().backward()
        probe.collect(0)
    history = probe.history
    history.save(tmp_path / "history.npz")
    loaded = type(history).load(tmp_path / "history.npz")
    assert (loaded.names, loaded.calls, loaded.dtypes) == (history.names, [0, 1], history.dtypes)
    for kind in ("log10", "status", "stats"):
        for key, array in getattr(history, kind).items():
            assert np.array_equal(getattr(loaded, kind)[key], array, equal_nan=True)
    assert np.array_equal(loaded.samples, history.samples)
    assert [row["call"] for row in loaded.rows()] == [0, 1]
