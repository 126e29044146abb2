"""The transformers callback in real trainings, against float64 gradients of plain autograd. Nothing is downloaded."""

import copy
import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from histories import assert_same
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed, which the Trainer needs")
from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from gradexp import GradientProbe  # noqa: E402
from gradexp.history.history import History  # noqa: E402
from gradexp.history.step import STATUSES  # noqa: E402
from gradexp.integrations.transformers import GradientProbeCallback  # noqa: E402

pytestmark = pytest.mark.usefixtures("on_one_thread")


def gpt2(dropout=0.0):
    sizes = {"vocab_size": 31, "n_positions": 8, "n_embd": 12, "n_layer": 3, "n_head": 2}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout))


def bert():
    sizes = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**sizes, **none, intermediate_size=20, max_position_embeddings=8))


def data_for(model):
    """Return samples as the Trainer wants them: the next token, or one of two classes, is to be predicted."""
    ids = torch.randint(31, (16, 7), generator=torch.Generator().manual_seed(1))
    if isinstance(model, GPT2LMHeadModel):
        labels = ids.clone()
        labels[:, 0] = -100  # nothing predicts the first token, but the Trainer would count it in its mean
    else:
        labels = ids.sum(1) % 2
    return [{"input_ids": own, "labels": label} for own, label in zip(ids, labels, strict=True)]


class Collator:
    """Makes batches, and keeps them in their order."""

    def __init__(self):
        self.batches = []

    def __call__(self, samples):
        self.batches.append(samples)
        return transformers.default_data_collator(samples)


def loss_of(model, samples):
    ids, labels = (torch.stack([sample[key] for sample in samples]) for key in ("input_ids", "labels"))
    logits = model(ids).logits
    if isinstance(model, GPT2LMHeadModel):
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels)


def train(model, folder, *callbacks, **options):
    """Return the batches of a training."""
    options = {"max_steps": 3, "max_grad_norm": 0.0, "seed": 3, "learning_rate": 1e-2, **options}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    arguments = TrainingArguments(str(folder), use_cpu=True, per_device_train_batch_size=4, **quiet, **options)
    data, collator = data_for(model), Collator()
    Trainer(model, arguments, collator, data, data, callbacks=list(callbacks)).train()
    return collator.batches


def reference(model, batches):
    """Return log10 of what float64 autograd gives for the mean loss of some batches, by quantity and module."""
    twin = copy.deepcopy(model).double()
    layers = {name: part for name, part in twin.named_modules() if any(p.dim() > 1 for p in own_parameters(part))}
    outputs = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, output, name=name: outputs[name].append(output))
    loss = sum(loss_of(twin, batch) for batch in batches) / len(batches)
    gradients = {name: torch.autograd.grad(loss, own, retain_graph=True) for name, own in outputs.items()}
    weights = {name: next(p for p in own_parameters(layer) if p.dim() > 1) for name, layer in layers.items()}
    of_weights = torch.autograd.grad(loss, list(weights.values()))
    return {
        "output": {name: size(own) - 0.5 * np.log10(sum(t.numel() for t in own)) for name, own in outputs.items()},
        "output_grad": {name: size(own) for name, own in gradients.items()},
        "weight_grad": {name: size([own]) for name, own in zip(weights, of_weights, strict=True)},
    }


def own_parameters(module):
    return module.parameters(recurse=False)


def size(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).norm().log10().item()


def assert_matches(history, expected, quantities=("output", "output_grad", "weight_grad"), step=0):
    for quantity in quantities:
        assert set(history.names) == expected[quantity].keys()
        numbers = dict(zip(history.names, history.log10[quantity][step, 0], strict=True))
        assert numbers == pytest.approx(expected[quantity], abs=2e-5), quantity


def hooks_of(model):
    return [hook for part in model.modules() for hook in (*part._forward_hooks, *part._forward_pre_hooks)]


# The Trainer does not divide the loss of a BERT classifier by the number of accumulated batches.
@pytest.mark.parametrize(("make", "batches"), [(gpt2, 2), (bert, 1)])
def test_every_layer_matches_autograd(make, batches, tmp_path):
    model, callback = make(), GradientProbeCallback(every=1)
    untrained = copy.deepcopy(model)
    seen = train(model, tmp_path, callback, gradient_accumulation_steps=batches)
    history = callback.history
    assert history.steps == [0, 1, 2]
    assert_matches(history, reference(untrained, seen[:batches]))
    for quantity, codes in history.status.items():
        assert (codes == STATUSES.index("ok")).all(), quantity
    assert hooks_of(model) == []


def test_the_layers_are_those_with_weights(tmp_path):
    callback = GradientProbeCallback()
    train(gpt2(), tmp_path, callback, max_steps=1)
    blocks = [f"transformer.h.{i}.{part}" for i in range(3) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
    assert {"transformer.wte", "transformer.wpe", "lm_head", *blocks} <= set(callback.history.names)
    assert len(callback.history.names) == 3 * 4 + 3


def test_gradients_are_recorded_before_they_are_clipped(tmp_path):
    methods = accelerate.Accelerator.clip_grad_norm_, accelerate.Accelerator.backward
    model, callback = gpt2(), GradientProbeCallback(every=2)
    untrained = copy.deepcopy(model)
    seen = train(model, tmp_path, callback, max_grad_norm=1e-2, gradient_accumulation_steps=2, max_steps=3)
    assert callback.history.steps == [0, 2]
    assert_matches(callback.history, reference(untrained, seen[:2]))
    twin = copy.deepcopy(untrained).double()
    loss = sum(loss_of(twin, batch) for batch in seen[:2]) / 2
    total = size(torch.autograd.grad(loss, list(twin.parameters())))
    assert callback.history.loss[0, 0] == pytest.approx(loss.item(), rel=1e-5)
    assert callback.history.total_grad[0, 0] == pytest.approx(total, abs=2e-5)
    assert (accelerate.Accelerator.clip_grad_norm_, accelerate.Accelerator.backward) == methods


def test_clipping_that_goes_unseen_is_warned_of(tmp_path):
    class ByHand(Trainer):
        def _clip_grad_norm(self, model):
            return torch.nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)

    model, callback = gpt2(), GradientProbeCallback(every=1)
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, max_grad_norm=1.0, **quiet)
    if not hasattr(Trainer, "_clip_grad_norm"):
        pytest.skip("this Trainer clips nowhere but through its Accelerator")
    with pytest.warns(UserWarning, match="the Trainer has clipped unseen"):
        ByHand(model, arguments, Collator(), data_for(model), callbacks=[callback]).train()
    (finding,) = (finding for finding in callback.history.at().findings if finding.kind == "clipped")
    assert (finding.severity, "norm of 1" in finding.text) == (1, True)
    total = callback.history.total_grad[0, 0]
    assert total == pytest.approx(0, abs=1e-5)  # log10 of the norm that was clipped to


def test_clipping_that_is_seen_leaves_no_finding(tmp_path):
    callback = GradientProbeCallback(every=1)
    train(gpt2(), tmp_path, callback, max_steps=1, max_grad_norm=0.1)
    assert [finding for finding in callback.history.at().findings if finding.kind == "clipped"] == []


def test_training_is_bit_identical(tmp_path):
    def weights(*callbacks):
        model = gpt2(dropout=0.3)
        train(model, tmp_path, *callbacks, max_steps=5, gradient_accumulation_steps=2, max_grad_norm=0.1)
        return list(model.parameters())

    alone = weights()
    assert not any(torch.equal(a, b) for a, b in zip(alone, gpt2().parameters(), strict=True) if a.dim() > 1)
    observed = weights(GradientProbeCallback(every=2, quantities=["output", "output_grad", "weight_grad", "update"]))
    assert all(torch.equal(a, b) for a, b in zip(alone, observed, strict=True))


def test_evaluation_with_gradients_does_not_count(tmp_path):
    class Evaluating(transformers.TrainerCallback):
        def on_evaluate(self, *_, model, **__):
            self.model = model
            torch.autograd.grad(1e6 * loss_of(model, data_for(model)), list(model.parameters()))

    alone, watched = GradientProbeCallback(every=1), GradientProbeCallback(every=1)
    train(gpt2(), tmp_path, alone)
    train(gpt2(), tmp_path, watched, Evaluating(), eval_strategy="steps", eval_steps=1, eval_on_start=True)
    for quantity, numbers in alone.history.log10.items():
        assert np.array_equal(numbers, watched.history.log10[quantity])


def test_hooks_are_removed_by_hand_or_by_the_next_training_after_an_exception(tmp_path):
    class Failing(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, _, state, *__, **___):
            if state.global_step == 1:
                raise OSError("the disk is gone")

    model, callback = gpt2(), GradientProbeCallback(every=1)
    for remove in (callback.remove, lambda: train(model, tmp_path, callback)):
        with pytest.raises(OSError, match="the disk is gone"):
            train(model, tmp_path, callback, Failing())
        assert callback.history.steps == [0, 1]
        assert hooks_of(model) != []
        remove()
        assert hooks_of(model) == []


def test_update_and_weight(tmp_path):
    model, callback = bert(), GradientProbeCallback(every=1, select="classifier", quantities=["weight", "update"])
    before = model.classifier.weight.detach().double()
    train(model, tmp_path, callback, max_steps=1)
    change = size([model.classifier.weight.detach().double() - before])
    assert callback.history.log10["weight"].item() == pytest.approx(size([before]), abs=1e-6)
    assert callback.history.log10["update"].item() == pytest.approx(change, abs=1e-5)


def test_gradients_are_unscaled():
    # The Trainer uses a scaler on GPUs only, so its calls of the callback are made here.
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x = torch.randn(4, 5)
    accelerate.Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = AcceleratedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
    callback, state = GradientProbeCallback(every=1), SimpleNamespace(global_step=0)
    callback.on_train_begin(SimpleNamespace(n_gpu=1), state, None, model=model, optimizer=optimizer)
    callback.on_step_begin(None, state, None)
    output = model(x)
    loss = output.square().mean()
    expected = torch.autograd.grad(loss, [output, model.weight], retain_graph=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer.optimizer)
    callback.on_pre_optimizer_step(None, state, None)
    optimizer.step()
    callback.on_step_end(None, state, None)
    for quantity, gradient in zip(("output_grad", "weight_grad"), expected, strict=True):
        assert callback.history.log10[quantity].item() == pytest.approx(size([gradient]), abs=1e-6)


def test_several_gpus_in_one_process_are_refused():
    with pytest.raises(ValueError, match="takes one GPU per process, got 2; use torchrun"):
        GradientProbeCallback().on_train_begin(SimpleNamespace(n_gpu=2), None, None)


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "gradexp.integrations.transformers")
    with pytest.raises(ImportError, match=r"callback needs transformers; get it with pip install tran"):
        importlib.import_module("gradexp.integrations.transformers")


class LowRank(nn.Module):
    """A frozen linear layer and a trained product of two thin matrices beside it, of which one begins at 0."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def test_adapters_under_accelerate_have_their_updates_and_the_frozen_base_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(LowRank(nn.Linear(5, 5)), nn.Tanh(), LowRank(nn.Linear(5, 2)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, lr=0.01))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 0, 1, 1, 0])
    with GradientProbe(model, optimizer=optimizer) as probe:
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        probe.collect(0, loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    history = probe.history
    words = {
        quantity: dict(zip(history.names, (STATUSES[code] for code in history.status[quantity][0, 0]), strict=True))
        for quantity in ("weight_grad", "update")
    }
    for index in (0, 2):
        assert words["weight_grad"][f"{index}.base"] == words["update"][f"{index}.base"] == "frozen"
        assert words["weight_grad"][f"{index}.a"] == "zero"  # while the matrix after it is 0
        assert words["weight_grad"][f"{index}.b"] == words["update"][f"{index}.b"] == "ok"
    row = history.names.index("0.b")
    change = size([model[0].b.weight.detach() - before["0.b.weight"]])
    assert history.profile("update")[row] == pytest.approx(change, abs=1e-5)


class PowerCut(Collator):
    """Fails at a batch."""

    def __call__(self, samples):
        if len(self.batches) == 10:
            raise OSError("the power is gone")
        return super().__call__(samples)


def test_a_training_resumed_from_its_checkpoint_has_the_record_of_an_undisturbed_one(tmp_path):
    def run(name, collator, **options):
        callback, model = GradientProbeCallback(4, save=tmp_path / name), gpt2()
        arguments = TrainingArguments(
            str(tmp_path / f"out_{name}"), use_cpu=True, per_device_train_batch_size=4, max_steps=14, save_steps=5,
            report_to="none", disable_tqdm=True, logging_strategy="no", seed=3, learning_rate=1e-2,
        )  # fmt: skip
        trainer = Trainer(model, arguments, collator, data_for(model), callbacks=[callback])
        try:
            trainer.train(**options)
        finally:
            callback.remove()
        return callback.history

    whole = run("whole", Collator())
    assert whole.steps == [0, 4, 8, 12]
    with pytest.raises(OSError, match="the power is gone"):
        run("record", PowerCut())
    assert History.load(tmp_path / "record").steps == [0, 4, 8]
    resumed = run("record", Collator(), resume_from_checkpoint=str(tmp_path / "out_record" / "checkpoint-5"))
    assert_same(resumed, whole)
    assert_same(History.load(tmp_path / "record"), whole)
