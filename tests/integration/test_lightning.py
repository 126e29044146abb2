"""The Lightning callback in real trainings, against float64 gradients of plain autograd."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from histories import assert_same
from sweep_processes import LIMIT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from gradexp.history.history import History  # noqa: E402
from gradexp.history.step import STATUSES  # noqa: E402
from gradexp.integrations.lightning import GradientProbeCallback  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("on_one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Said wherever Slurm is installed, as it is for the launcher's tests.
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),
]

LAYERS = ["net.0", "net.3", "net.5"]


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 9), nn.Tanh(), nn.Dropout(dropout), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)
    )


class Training:
    """A small network that keeps the weights and the batch of each training pass; to be mixed into a module."""

    dropout = 0.0
    fused = False

    def __init__(self):
        super().__init__()
        self.net = network(self.dropout)
        self.seen = []

    def loss(self, batch):
        self.seen.append(({key: value.clone() for key, value in self.net.state_dict().items()}, batch))
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def training_step(self, batch, _):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9, fused=self.fused)


class Module(Training, pl.LightningModule):
    pass


class WithDropout(Module):
    dropout = 0.3


class WithValidation(Module):
    def validation_step(self, batch, _):
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            torch.autograd.grad(1e6 * self.net(x).sum(), [x, *self.net.parameters()])


class WithFailure(Module):
    def training_step(self, batch, index):
        if index == 3:
            raise OSError("the disk is gone")
        return self.loss(batch)


class WithSkippedBatches(Module):
    def training_step(self, batch, index):
        return None if index in (0, 3) else self.loss(batch)


class WithFusedOptimizer(Module):
    fused = True


class ByHand(Module):
    automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch) / 2)
        if index % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


def loader():
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(24, 6), torch.randint(3, (24,))), batch_size=4)


def fit(module, *callbacks, lib=pl, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 1, "logger": False, **quiet, **options}
    trainer = lib.Trainer(accelerator="cpu", callbacks=list(callbacks), **options)
    trainer.fit(module, loader(), loader() if isinstance(module, WithValidation) else None)
    return module


def reference(passes):
    """Return log10 of what float64 autograd gives for the mean loss of some passes with the same weights."""
    twin = network().double()
    twin.load_state_dict(passes[0][0])
    layers = [layer for layer in twin if isinstance(layer, nn.Linear)]
    outputs = {layer: [] for layer in layers}
    for layer in layers:
        layer.register_forward_hook(lambda layer, _, output: outputs[layer].append(output))
    loss = sum(F.cross_entropy(twin(x.double()), y) for _, (x, y) in passes) / len(passes)
    gradients = [torch.autograd.grad(loss, own, retain_graph=True) for own in outputs.values()]
    return {
        "output": [torch.cat(own).square().mean().sqrt().log10().item() for own in outputs.values()],
        "output_grad": [torch.cat(own).norm().log10().item() for own in gradients],
        "weight_grad": [g.norm().log10().item() for g in torch.autograd.grad(loss, [own.weight for own in layers])],
    }


def assert_matches(history, steps, atol=1e-5, quantities=("output", "output_grad", "weight_grad")):
    """Check every recorded step against the passes that led to it."""
    assert history.names == LAYERS
    assert len(history.steps) == len(steps)
    for index, passes in enumerate(steps):
        for quantity, expected in reference(passes).items():
            if quantity not in quantities:
                continue
            assert np.allclose(history.log10[quantity][index, 0], expected, rtol=0, atol=atol), (index, quantity)
            assert (history.status[quantity][index] == STATUSES.index("ok")).all()


def in_pairs(module):
    return [module.seen[i : i + 2] for i in range(0, len(module.seen), 2)]


def hooks_of(module):
    tensor_hooks = [p for p in module.parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]
    return tensor_hooks + [h for m in module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


@pytest.mark.parametrize("library", ["lightning.pytorch", "pytorch_lightning"])
def test_gradients_are_accumulated_and_not_yet_clipped(library):
    lib = pytest.importorskip(library)
    module = type("ModuleOfThatLibrary", (Training, lib.LightningModule), {})()
    callback = GradientProbeCallback(every=1)
    fit(module, callback, lib=lib, accumulate_grad_batches=2, gradient_clip_val=1e-3)
    assert callback.history.steps == [0, 1, 2]
    assert_matches(callback.history, in_pairs(module))
    assert hooks_of(module) == []


def test_every_second_optimizer_step_is_recorded_over_epochs():
    callback = GradientProbeCallback(every=2)
    module = fit(Module(), callback, accumulate_grad_batches=4, max_epochs=2)
    # Six batches in an epoch: four make the first step, two the second.
    assert callback.history.steps == [0, 2]
    assert_matches(callback.history, [module.seen[:4], module.seen[6:10]])


def test_training_is_bit_identical():
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 3}
    alone = fit(WithDropout(), **options)
    observed = fit(WithDropout(), GradientProbeCallback(every=2, per_sample=True), **options)
    assert not any(torch.equal(a, b) for a, b in zip(alone.parameters(), Module().parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), observed.parameters(), strict=True))


def test_validation_with_gradients_does_not_count():
    alone, watched = GradientProbeCallback(every=1), GradientProbeCallback(every=1)
    fit(Module(), alone, accumulate_grad_batches=2)
    fit(WithValidation(), watched, accumulate_grad_batches=2, val_check_interval=2, inference_mode=False)
    for quantity, numbers in alone.history.log10.items():
        assert np.array_equal(numbers, watched.history.log10[quantity])


def test_validation_while_batches_are_accumulated_does_not_count():
    class Plain(WithValidation):
        def validation_step(self, batch, _):
            assert not self.net(batch[0]).requires_grad

    callback = GradientProbeCallback(every=1)
    module = fit(Plain(), callback, accumulate_grad_batches=2, val_check_interval=1)
    assert_matches(callback.history, in_pairs(module))


def test_an_exception_leaves_no_hooks():
    module, callback = WithFailure(), GradientProbeCallback(every=1)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, callback, accumulate_grad_batches=2)
    assert hooks_of(module) == []
    assert_matches(callback.history, [module.seen[:2]])
    fit(module := Module(), callback, accumulate_grad_batches=2)  # the callback can be used again
    assert_matches(callback.history, in_pairs(module))


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_skipped_batch_is_not_recorded():
    callback = GradientProbeCallback(every=1)
    module = fit(WithSkippedBatches(), callback)
    assert callback.history.steps == [1, 2, 4, 5]
    assert_matches(callback.history, [[own] for own in module.seen])


@pytest.mark.parametrize("kind", [Module, WithFusedOptimizer])
def test_gradients_are_unscaled(kind):
    # A fused optimizer unscales inside its step, others are unscaled before.
    callback = GradientProbeCallback(every=1)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    module = fit(kind(), callback, accumulate_grad_batches=2, plugins=[plugin])
    assert set(callback.history.dtypes.values()) == {"float16", "float32"}
    assert_matches(callback.history, in_pairs(module), atol=5e-3)  # float16 has three digits


def test_manual_optimization_with_one_optimizer():
    callback = GradientProbeCallback(every=1)
    module = fit(ByHand(), callback)
    assert callback.history.steps == [0, 1, 2]
    assert_matches(callback.history, in_pairs(module))


class Adversarial(Training, pl.LightningModule):
    """Two parts whose optimizers step in turn, each after a backward pass of its own."""

    automatic_optimization = False

    def training_step(self, batch, _):
        for optimizer in self.optimizers():
            self.manual_backward(self.loss(batch))
            optimizer.step()
            self.zero_grad()

    def configure_optimizers(self):
        parts = [self.net[0]], [self.net[3], self.net[5]]
        return [torch.optim.SGD([p for m in own for p in m.parameters()], lr=0.1) for own in parts]


class Shared(Adversarial):
    """Both optimizers step after one backward pass, as Muon and AdamW do."""

    def training_step(self, batch, _):
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
        self.zero_grad()


def changes(module, first, second):
    return [
        (module.seen[second][0][f"{i}.weight"].double() - module.seen[first][0][f"{i}.weight"].double())
        .norm()
        .log10()
        for i in (0, 3, 5)
    ]


def test_optimizers_that_step_in_turn_have_a_recorded_step_each():
    callback = GradientProbeCallback(every=2, quantities=["output", "output_grad", "weight_grad", "update"])
    module = fit(Adversarial(), callback)
    # Twelve steps in six batches, of which the first, third and fifth are recorded.
    assert callback.history.steps == [0, 1, 4, 5, 8, 9]
    recorded = [0, 1, 4, 5, 8, 9]
    assert_matches(callback.history, [[module.seen[i]] for i in recorded], quantities=("output_grad", "weight_grad"))
    updates, status = callback.history.log10["update"][:, 0], callback.history.status["update"][:, 0]
    for index, step in enumerate(recorded[:-1]):
        expected = changes(module, step, step + 1)
        own = [0] if index % 2 == 0 else [1, 2]
        assert np.allclose(updates[index, own], [expected[i] for i in own], rtol=0, atol=1e-4)
        others = [row for row in range(3) if row not in own]
        assert (status[index, others] == STATUSES.index("not_called")).all()
    assert hooks_of(module) == []


def test_optimizers_that_share_a_backward_pass_share_a_recorded_step():
    callback = GradientProbeCallback(every=1, quantities=["output", "output_grad", "weight_grad", "update"])
    module = fit(Shared(), callback)
    assert callback.history.steps == [0, 2, 4, 6, 8, 10]
    assert_matches(callback.history, [[own] for own in module.seen], quantities=("output_grad", "weight_grad"))
    assert np.allclose(callback.history.log10["update"][0, 0], changes(module, 0, 1), rtol=0, atol=1e-4)


def test_the_loss_and_the_total_gradient_are_recorded():
    for plugin in ([], [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))]):
        callback = GradientProbeCallback(every=1)
        module = fit(Module(), callback, accumulate_grad_batches=2, plugins=plugin)
        for index, passes in enumerate(in_pairs(module)):
            twin = network().double()
            twin.load_state_dict(passes[0][0])
            loss = sum(F.cross_entropy(twin(x.double()), y) for _, (x, y) in passes) / 2
            total = (
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(twin.parameters()))]).norm().log10()
            )
            tolerance = 5e-3 if plugin else 1e-5
            assert callback.history.loss[index, 0] == pytest.approx(loss.item(), rel=tolerance)
            assert callback.history.total_grad[index, 0] == pytest.approx(total.item(), abs=tolerance)


class Diverging(Module):
    def loss(self, batch):
        return (self.net(batch[0]) ** 4).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e4)


def test_a_training_that_diverges_says_why():
    callback = GradientProbeCallback(every=1)
    fit(Diverging(), callback, max_epochs=6)
    verdict = callback.history.verdict()
    assert verdict.gradient == "nonfinite"
    assert "the learning rate is too large" in verdict.text


def test_a_training_in_another_process_leaves_its_history(tmp_path):
    callback = GradientProbeCallback(every=1)
    fit(Module(), callback)
    there, here = callback, GradientProbeCallback(every=1)
    there._process, there._file = -1, here._file  # as it would be after the copy into a spawned process
    there._leave_history()
    assert here.history.steps == callback.history.steps
    assert np.array_equal(here.history.log10["output_grad"], callback.history.log10["output_grad"])
    assert not here._file.exists()


def test_select_and_quantities():
    callback = GradientProbeCallback(every=1, select="net.[03]", quantities=["weight_grad", "weight"])
    module = fit(Module(), callback)
    assert callback.history.names == LAYERS[:2]
    assert list(callback.history.log10) == ["weight_grad", "weight"]
    norms = [module.seen[0][0][name].double().norm().log10().item() for name in ("0.weight", "3.weight")]
    assert np.allclose(callback.history.log10["weight"][0, 0], norms, rtol=0, atol=1e-6)


def test_update_of_an_optimizer_that_runs_the_passes_itself():
    # Lightning gives forward and backward pass to optimizer.step() as a closure.
    callback = GradientProbeCallback(every=1, quantities=["update"])
    module = fit(Module(), callback)
    for step, name in ((0, "0.weight"), (1, "3.weight")):
        before, after = (module.seen[i][0][name].double() for i in (step, step + 1))
        layer = LAYERS.index(f"net.{name.removesuffix('.weight')}")
        expected = (after - before).norm().log10().item()
        assert callback.history.log10["update"][step, 0, layer] == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_tensorboard_gets_profile_and_course(tmp_path):
    callback = GradientProbeCallback(every=1)
    fit(Module(), callback, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    profile = events.Scalars("profile/log10_output_grad")
    assert [event.step for event in profile] == [1, 2, 3]
    assert np.allclose([event.value for event in profile], callback.history.profile("output_grad"), atol=1e-6)
    assert [event.step for event in events.Scalars("gradient/log10_first_over_last")] == list(range(6))


def test_history_before_training_says_so():
    with pytest.raises(RuntimeError, match="nothing is recorded yet: no training has started"):
        _ = GradientProbeCallback().history


def test_missing_library_names_the_extra(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "gradexp.integrations.lightning")
    with pytest.raises(ImportError, match=r"^the callback needs lightning; get it with pip install light"):
        importlib.import_module("gradexp.integrations.lightning")


def test_gradexp_itself_imports_no_trainer():
    code = (
        "import gradexp.integrations, sys; print({'lightning', 'pytorch_lightning', 'transformers'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT)
    assert shown.stdout == "set()\n"


class WithPowerCut(Module):
    def training_step(self, batch, _):
        if self.global_step == 10:
            raise OSError("the power is gone")
        return self.loss(batch)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("batches", [1, 2])
def test_a_training_resumed_from_its_checkpoint_has_the_record_of_an_undisturbed_one(tmp_path, batches):
    """Epochs have 6 batches, so that the checkpoint is not at a recorded step, and step 8 is recorded again."""

    def run(name, module, checkpoint=None):
        quantities = ("output", "output_grad", "weight_grad", "weight", "update")
        own = GradientProbeCallback(4, quantities=quantities, save=tmp_path / name)
        twin = GradientProbeCallback(3, stats={"mean": torch.mean})  # a second one, with a state of its own
        saver = pl.callbacks.ModelCheckpoint(tmp_path / f"{name}-checkpoints", "{epoch}", save_top_k=-1)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=4,
            accumulate_grad_batches=batches,
            callbacks=[own, twin, saver],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader(), ckpt_path=checkpoint)
        return own.history, twin.history

    whole, of_twin = run("whole", Module())
    with pytest.raises(OSError, match="the power is gone"):
        run("record", WithPowerCut())
    assert History.load(tmp_path / "record").steps == [0, 4, 8]
    resumed, of_resumed_twin = run("record", Module(), tmp_path / "record-checkpoints" / f"epoch={batches - 1}.ckpt")
    assert_same(resumed, whole)
    assert_same(History.load(tmp_path / "record"), whole)
    assert of_resumed_twin.steps == [step for step in of_twin.steps if step >= 6]
