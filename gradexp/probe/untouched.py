"""A model that is run and left as it was found: parameters, buffers, and what modules note of themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from gradexp.numerics.torch_internals import buffers_of

# Such as a counter, the flag of a module that sets its weights by the first batch, or the state of the last sequence.
_NOTES = (bool, int, float, str, type(None), Tensor, tuple)
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Put back what a pass changes in some modules and those inside.

    These are the values of parameters (as of a momentum encoder, or an embedding with ``max_norm``) and of buffers,
    and attributes that are numbers, words, None, tensors or tuples. Parameters wait on the host, so that no device
    holds them twice. What lazy modules become stays, as do lists and the like.
    """
    inside = list(dict.fromkeys(inner for module in modules for inner in module.modules()))
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in inside
        for name, buffer in buffers_of(module).items()
        if not isinstance(buffer, UninitializedBuffer)
    ]
    own = dict.fromkeys(p for module in modules for p in module.parameters() if _is_plain(p))
    parameters = [(p, p.detach(), p.detach().to("cpu", copy=True)) for p in own]
    notes = [(module, _notes_of(module)) for module in inside if _takes_notes(module)]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffers_of(module)[name] = buffer
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)
            for parameter, before, value in parameters:
                if parameter.data_ptr() != before.data_ptr():
                    parameter.data = before
                if not torch.equal(before.cpu(), value):
                    parameter.copy_(value)
        for module, noted in notes:
            for name, note in noted.items():
                if name not in vars(module) or vars(module)[name] is not note:
                    vars(module)[name] = note


def _is_plain(parameter: Tensor) -> bool:
    is_whole = type(parameter) in (nn.Parameter, Tensor) and not is_lazy(parameter) and not parameter.is_meta
    return is_whole and parameter.layout is torch.strided


def _takes_notes(module: nn.Module) -> bool:
    """Return whether a module's attributes are the user's; torch's wrappers keep theirs in step with other things."""
    is_of_torch = type(module).__module__.startswith("torch.") or isinstance(module, torch.jit.ScriptModule)
    return not is_of_torch and not any(map(is_lazy, module.parameters(recurse=False)))


def _notes_of(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _NOTES) and name not in _OF_EVERY_MODULE
    }
