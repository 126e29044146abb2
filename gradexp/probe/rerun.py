"""Run a model's last forward passes once more, and their backward passes, to see where nan or inf was born."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.numerics.extremes import extremes, nonfinite, read
from gradexp.numerics.torch_internals import foreach_norm
from gradexp.probe.birth import Birth
from gradexp.probe.births import Births
from gradexp.probe.calls import tensors_in
from gradexp.probe.hooks import unwatched
from gradexp.probe.names import named_modules
from gradexp.probe.untouched import untouched


class Run:
    """A forward pass of a model: what it needs to be run again, and the gradients that came to what it returned.

    Args:
        args: What the model got.
        kwargs: What it got by name.
    """

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs
        first = next((x for x in tensors_in((args, kwargs))), None)
        self.device: torch.device = torch.device("cpu") if first is None else first.device
        self.state: Tensor = torch.get_rng_state()
        is_cuda = self.device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        self.device_state: Tensor | None = torch.cuda.get_rng_state(self.device) if is_cuda else None
        kind = self.device.type
        self.autocast: tuple[bool, torch.dtype] | None = (
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            if torch.amp.is_autocast_available(kind)
            else None
        )
        self.gradients: dict[int, Tensor] = {}
        self.outputs: list[Tensor] = []  # norms, where the pass may have to be judged when it is long over

    def see(self, output: Any) -> None:
        """Hook the gradients of what the model returned."""
        for position, tensor in enumerate(tensors_in(output)):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._keep, position))
                if tensor.is_cuda:
                    self.outputs += foreach_norm([tensor.detach()])

    def _keep(self, position: int, gradient: Tensor) -> None:
        before = self.gradients.get(position)
        self.gradients[position] = gradient if before is None else before + gradient


def birth_in(model: nn.Module, runs: Sequence[Run], loss: float | None) -> Birth | None:
    """Return the first birth in some forward passes and their backward passes, run once more.

    Gradients, buffers and random number generators stay as they are, and no probe sees it.

    Args:
        model: The model, whose weights are those of the passes.
        runs: The passes.
        loss: The value of the loss, if it is known.

    Returns:
        The birth, or None if there is none in these passes, or the model's processes would have to come along.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return None
    parameters = [p for p in model.parameters() if p.requires_grad]
    for run in runs:
        with unwatched(), _restored(model, run), torch.enable_grad():
            birth = _birth_in(model, run, parameters, loss)
        if birth is not None:
            return birth
    return None


def _birth_in(model: nn.Module, run: Run, parameters: list[nn.Parameter], loss: float | None) -> Birth | None:
    births = Births(model, (run.args, run.kwargs))
    handles = [
        module.register_forward_hook(partial(_see, births, name), with_kwargs=True)
        for name, module in named_modules(model).items()
    ]
    try:
        output = model(*run.args, **run.kwargs)
    except Exception:  # of a model that cannot be run twice
        return None
    finally:
        for handle in handles:
            handle.remove()
    returned = dict(enumerate(tensors_in(output)))
    births.see_loss(*returned.values())
    birth = births.forward()
    if birth is not None:
        return birth
    if loss is not None and (word := nonfinite((loss, loss))):
        return Birth(word, "loss")
    chosen = [position for position in run.gradients if position in returned and returned[position].requires_grad]
    gradients = {position: run.gradients[position] for position in chosen}
    for gradient in gradients.values():
        pair = extremes(gradient)
        if pair is not None and (word := nonfinite(read([pair])[0])):
            return Birth(word, "loss gradient", dtype=gradient.dtype)
    ends = [returned[position] for position in gradients]
    births.watch(ends)
    try:
        if ends and parameters:
            torch.autograd.grad(ends, parameters, list(gradients.values()), allow_unused=True)
    except RuntimeError:  # such as of a reentrant checkpoint, which allows no pass of this kind
        return None
    finally:
        births.stop()
    return births.backward()


def _see(births: Births, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    births.see_call(name, module, (args, kwargs), output)


@contextmanager
def _restored(model: nn.Module, run: Run) -> Iterator[None]:
    """Begin with the random numbers and the autocast of a run, and put back random numbers and the model."""
    devices = [run.device.index or 0] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices), untouched(model), _autocast(run):
        torch.set_rng_state(run.state)
        if run.device_state is not None:
            torch.cuda.set_rng_state(run.device_state, run.device)
        yield


def _autocast(run: Run) -> Any:
    if run.autocast is None:
        return nullcontext()
    enabled, dtype = run.autocast
    return torch.autocast(run.device.type, dtype, enabled)
