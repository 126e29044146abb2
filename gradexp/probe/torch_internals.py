"""Every private name of torch that is used."""

from typing import Any

import torch
from torch import Tensor

# The key of tensors inside autograd.grad(..., is_grads_batched=True) and vectorised Jacobians.
_BATCHED: Any = torch._C._parse_dispatch_key("Batched")


def is_recomputing() -> bool:
    """Say whether a backward pass is running, in which a checkpointed part may be run again."""
    return torch._C._current_graph_task_id() != -1


def in_transform() -> bool:
    """Say whether a functional transform such as vmap or grad is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_transformed(gradient: Tensor) -> bool:
    """Say whether a gradient is a batch of gradients, as vectorised Jacobians have."""
    return torch._C._dispatch_keys(gradient).has(_BATCHED) or in_transform()
