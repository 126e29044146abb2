"""Names of modules as the user wrote them."""

from torch import nn

from gradexp.patterns import is_match as is_match

# Under these names wrappers keep the module that they wrap; no user's module is called so.
_INSIDE = ("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Under these too, but users may have modules of that name.
_INSIDE_OF = {
    "module": ("DistributedDataParallel", "DataParallel", "AveragedModel", "DeepSpeedEngine"),
    "_module": ("GradSampleModule", "DPDDP", "DifferentiallyPrivateDistributedDataParallel"),
}


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return each module by its name without those of wrappers: of compiled, sharded, checkpointed and other modules.

    A wrapper has the name of the module inside, which comes later, is the one that is called, and wins.
    """
    wrapped: set[str] = set()
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for child, _ in module.named_children():
            classes = _INSIDE_OF.get(child, ())
            if child in _INSIDE or any(base.__name__ in classes for base in type(module).__mro__):
                wrapped.add(f"{prefix}{child}")
        modules[_without(name, wrapped)] = module
    return modules


def _without(name: str, wrapped: set[str]) -> str:
    if not wrapped:
        return name
    parts = name.split(".")
    return ".".join(part for end, part in enumerate(parts, 1) if ".".join(parts[:end]) not in wrapped)


def is_callable(module: nn.Module) -> bool:
    """Return whether a module can be called, unlike ``nn.ModuleList`` and other containers."""
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__
