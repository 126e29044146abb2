"""measure: one forward and backward pass of anybody's model as a History, leaving the model as it was."""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradexp.diagnosis.cures import cures
from gradexp.diagnosis.cut import may_reach_parameters, why_without_gradient
from gradexp.diagnosis.examination import Examination, output_of
from gradexp.diagnosis.guard import Guarded
from gradexp.diagnosis.observers import OBSERVERS, ended, found, watched
from gradexp.diagnosis.unregistered import hidden_layers
from gradexp.history.history import History
from gradexp.networks.normalization import is_lack_of_samples
from gradexp.numerics.torch_internals import creation_number, without_accumulate_hooks
from gradexp.probe.calls import has_node, tensors_in
from gradexp.probe.optimizers import unwrapped
from gradexp.probe.passes import is_known_to_others
from gradexp.probe.probe import GradientProbe, ProbeOptions
from gradexp.probe.untouched import untouched

NO_BATCH: Any = object()


def measure(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: Any = NO_BATCH,
    optimizer: Any = None,
    **options: Unpack[ProbeOptions],
) -> History:
    """Run one forward and one backward pass and return what happens in each layer.

    ``print(measure(model, loss_fn, (x, y)))`` shows a table and a verdict. The model is left as it was found:
    parameters, ``.grad``, buffers (such as the statistics of batch norm), training mode, and the random number
    generators of torch, numpy and Python; of a module's other attributes those that are numbers, words, None,
    tensors or tuples. Only a lazy module is initialised by it, and what a module keeps in lists and the like is its
    own affair. Several threads may measure models of their own at a time, apart from what they draw at random:
    torch has one generator for all of them.

    Args:
        model: Any module, measured in the mode (training or evaluation) it is in.
        loss_fn: A function or module that returns a scalar.
        batch: ``(inputs, target)``: the loss is ``loss_fn(model(inputs), target)``. A tensor alone, or a
            mapping: ``loss_fn(model(inputs))``. Inputs that are a mapping go in as keyword arguments, a tuple
            as positional ones. Without a batch the loss is ``loss_fn()``, for losses that call the model in their
            own way: ``measure(model, lambda: model.evaluate(actions).mean())``.
        optimizer: The optimizer of the training, or several; it is said which trained parameters none of them holds.
        **options: Options of ``GradientProbe``: ``select``, ``quantities``, ``stats``, ``per_sample``, and ``time``,
            which is on for a model with recurrent modules.

    Returns:
        A History of one step, with what was found. Its ``stats`` hold, for each row, the share of units after it that
        fire for no sample (``output.dead``), the share of elements of a bounded activation with a slope below 0.001
        (``output.saturated``), and the mean cosine between the outputs of two samples (``output.cosine``); nan where
        there is none.

    Raises:
        TypeError: If the batch is none of these, ``loss_fn`` is not callable or needs a batch that is not given, or
            the loss is no tensor.
        ValueError: If the inputs are empty, the loss is not one number or does not depend on any parameter, or the
            model is on the meta device, or batch norm in training mode gets a single sample.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        >>> history = measure(model, nn.functional.mse_loss, (torch.ones(2, 3), torch.zeros(2, 1)))
        >>> history.verdict().gradient
        'stable'
    """
    inputs, targets = (None, ()) if batch is NO_BATCH else _split(batch)
    shapes = [
        tuple(tensor.shape) for tensor in tensors_in(inputs) if not tensor.is_nested
    ]  # whose parts have one each
    if shapes and all(0 in shape for shape in shapes):
        raise ValueError(f"the batch holds no sample: its inputs have shape {', '.join(map(str, shapes))}")
    if not callable(loss_fn) or isinstance(loss_fn, type):
        kind = f"the class {loss_fn.__name__}; call it first" if isinstance(loss_fn, type) else repr(loss_fn)
        raise TypeError(f"loss_fn must be a function or module that returns a loss, got {kind}")
    if batch is NO_BATCH and not _takes_nothing(loss_fn):
        raise TypeError("loss_fn needs arguments; give a batch, or a function without any: lambda: loss")
    unwrapped(optimizer)  # raises if that is none
    if isinstance(model, nn.Module) and not any(True for _ in model.parameters()) and (hint := hidden_layers(model)):
        raise ValueError(f"the model has no parameters: {hint}")
    if isinstance(model, nn.Module):
        options.setdefault("time", any(isinstance(module, nn.RNNBase) for module in model.modules()))
    probe = GradientProbe(model, **options)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("the model is on the meta device, where there are no numbers to measure")
    modules = [model, *([loss_fn] if isinstance(loss_fn, nn.Module) else [])]
    examination = Examination(model, loss_fn, inputs, targets, optimizer=optimizer)
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():  # others would not come along
        examination.again = lambda factor: _again(examination, batch, modules, factor, options)
    observers = [Guarded(kind()) for kind in OBSERVERS]
    with (
        _restored(modules, batch),
        torch.inference_mode(False),
        torch.enable_grad(),
        probe,
        probe.alone(),
        ended(observers),
    ):
        is_hooked = _may_be_hooked(modules)  # the graph of the forward pass would hide it
        with watched(examination, observers):
            try:
                loss = _loss(examination, batch)
            except ValueError as error:
                if not is_lack_of_samples(error):
                    raise
                remedy = "give a batch of two or more, or measure in evaluation mode: model.eval()"
                raise ValueError(f"batch norm cannot train on a single sample; {remedy}") from error
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(f"loss_fn must return one number, got a tensor of shape {tuple(loss.shape)}")
        if not may_reach_parameters(loss, model):
            reason = why_without_gradient(examination)
            raise ValueError(f"the loss does not depend on any parameter that requires a gradient{reason}")
        examination.loss = loss
        for observer in observers:
            observer.see_loss(examination)
        _run_backward(loss, modules, probe, is_hooked)
        probe.collect(0, loss)
        history = examination.history = probe.history
        history.findings = [found(examination, observers)]
        if batch is not NO_BATCH and examination.again is not None and "output_grad" in history.log10:
            history.remedies = cures(model, history, partial(_record_copy, examination, batch, options))
    return history


def _split(batch: Any) -> tuple[Any, tuple[Any, ...]]:
    if isinstance(batch, (Tensor, Mapping)):
        return batch, ()
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], (batch[1],)
    kind = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise TypeError(
        f"batch must be (inputs, target), a tensor or a mapping, got {kind}; for anything else give a function of "
        "nothing: measure(model, lambda: loss)"
    )


def _loss(examination: Examination, batch: Any) -> Any:
    """Run the forward pass and return what the loss function returns."""
    if batch is NO_BATCH:
        return _returned(examination.loss_fn, examination.model)
    examination.output = output_of(examination.model, examination.inputs)
    return examination.loss_fn(examination.output, *examination.targets)


def _again(
    examination: Examination, batch: Any, modules: list[nn.Module], factor: float, options: ProbeOptions
) -> History:
    """Record another pass, of the loss times a factor."""
    probe = GradientProbe(examination.model, **options)
    with _restored(modules, batch), probe, probe.alone():
        is_hooked = _may_be_hooked(modules)
        loss = factor * _loss(replace(examination), batch)
        _run_backward(loss, modules, probe, is_hooked)
        probe.collect(0)
    return probe.history


def _record_copy(examination: Examination, batch: Any, options: ProbeOptions, other: nn.Module) -> History:
    """Record a pass of a copy of the model."""
    modules = [other, *([examination.loss_fn] if isinstance(examination.loss_fn, nn.Module) else [])]
    return _again(replace(examination, model=other), batch, modules, 1.0, options)


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # it is written in C and tells nothing
        pass
    return True


def _returned(closure: Callable[[], Tensor], model: nn.Module) -> Tensor:
    """Return the loss of a closure, which is made now and has its graph still."""
    mark = (torch.ones(1, requires_grad=True) * 1).grad_fn
    assert mark is not None
    loss = closure()
    node = loss.grad_fn if isinstance(loss, Tensor) else None
    if node is not None and creation_number(node) < creation_number(mark):
        raise ValueError("the loss was computed before; compute it in the function: lambda: loss_fn(model(x), y)")
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise ValueError("loss_fn must return the loss without calling backward()")
    return loss


def _may_be_hooked(modules: list[nn.Module]) -> bool:
    """Return whether hooks may take gradients away as they come, for a training that would then have them twice."""
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in modules):
        return False  # which waits for the gradients that it has hooked
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad and not is_lazy(p)]
    return any(is_known_to_others(p) for p in parameters if not hasattr(p, "full_tensor"))


def _run_backward(loss: Tensor, modules: list[nn.Module], probe: GradientProbe, is_hooked: bool) -> None:
    """Run the backward pass, without what steps or takes gradients away at its end."""
    with without_accumulate_hooks(p for module in modules for p in module.parameters()):
        if is_hooked:
            _backward_without_hooks(loss, modules, probe)
        else:
            loss.backward()


def _backward_without_hooks(loss: Tensor, modules: list[nn.Module], probe: GradientProbe) -> None:
    """Run a backward pass that puts gradients into ``.grad`` past the hooks of whoever waits for them there."""
    if loss.grad_fn is None or has_node(loss, "CheckpointFunctionBackward"):
        loss.backward()  # reentrant checkpoints allow nothing else
        return
    leaves = list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))
    handle = probe.count(loss)
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
        if gradient is not None:  # a function that runs a pass of its own may have brought some already
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    handle.remove()


@contextmanager
def _restored(modules: list[nn.Module], batch: Any) -> Iterator[None]:
    """Put back gradients and random number generators, and what else a pass changes in modules."""
    leaves: list[Tensor] = [p for module in modules for p in module.parameters()]
    leaves += [tensor for tensor in tensors_in(batch) if tensor.requires_grad and tensor.is_leaf]
    gradients = [leaf.grad for leaf in leaves]
    # Such as the gradients of a larger format that hooks add to.
    attached = [(x, x.detach().clone()) for leaf in leaves for x in vars(leaf).values() if isinstance(x, Tensor)]
    devices = sorted({tensor.device.index or 0 for tensor in [*leaves, *tensors_in(batch)] if tensor.is_cuda})
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        for leaf in leaves:
            leaf.grad = None
        with torch.random.fork_rng(devices), untouched(*modules):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        with torch.no_grad():
            for extra, content in attached:
                extra.copy_(content)
