"""Tensors that a model trains with and does not know as its parameters: layers in a plain list, for instance."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import leaves, node_of, nodes_below
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.probe.calls import tensors_in
from gradexp.probe.names import named_modules

_MOST = 10_000  # items that are looked at in a module's containers


class Unregistered(Observer):
    """Leaves of the graph that take a gradient and are no parameters of the model."""

    def see_loss(self, examination: Examination) -> None:
        """Find such leaves, and where the model keeps them."""
        model = examination.model
        known = {id(parameter) for parameter in model.parameters()}
        if isinstance(examination.loss_fn, nn.Module):
            known |= {id(parameter) for parameter in examination.loss_fn.parameters()}
        known |= {id(tensor) for tensor in tensors_in((examination.inputs, examination.targets))}
        assert examination.loss is not None
        of_loss = _strangers([examination.loss], known)
        of_output = _strangers(tensors_in(examination.output), known)  # other models may be in the loss
        kept = dict(_kept(model)) if of_loss else {}
        self._groups: dict[tuple[str, str, str], list[Tensor]] = {}
        for key, leaf in of_loss.items():
            if key in kept:
                self._groups.setdefault(kept[key], []).append(leaf)
            elif key in of_output and isinstance(leaf, nn.Parameter):
                self._groups.setdefault(("", "", "new"), []).append(leaf)

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for each place where there are such tensors."""
        for (module, attribute, kind), tensors in self._groups.items():
            shapes = listed(dict.fromkeys(str(tuple(tensor.shape)) for tensor in tensors))
            several = len(tensors) > 1
            what = f"{len(tensors)} tensor{'s' if several else ''} of shape{'s' if several else ''} {shapes}"
            place = f"{module}.{attribute}" if module else attribute
            verb = "are no parameters" if several else "is no parameter"
            text, cure = _TEXTS[kind]
            what = f"{what} {text.format(place=place)}"
            yield Finding(
                "cut",
                f"{what} {verb} of the model, so that model.parameters() gives "
                f"{'them' if several else 'it'} to no optimizer",
                (module,),
                cure.format(name=f"self.{attribute}"),
                3,
            )


_TEXTS = {
    "list": ("in the plain list {place}", "{name} = nn.ModuleList({name})"),
    "dict": ("in the plain dict {place}", "{name} = nn.ModuleDict({name})"),
    "tensors": ("in {place}, outside of any nn.ParameterList,", "{name} = nn.ParameterList({name})"),
    "tensor": ("in {place}, a plain tensor,", "{name} = nn.Parameter({name})"),
    "new": (
        "made in the forward pass or kept outside of the model,",
        "make them once in __init__, as attributes of the model that are nn.Parameter or nn.Module",
    ),
}


def hidden_layers(model: nn.Module) -> str:
    """Return where a model without any parameter keeps its layers, and what to do; empty if there are none."""
    for module, attribute, kind in dict(_kept(model)).values():
        text, cure = _TEXTS[kind]
        place = f"{module}.{attribute}" if module else attribute
        return f"those {text.format(place=place)} are not registered; {cure.format(name=f'self.{attribute}')}"
    return ""


def _strangers(tensors: Any, known: set[int]) -> dict[int, Tensor]:
    nodes = nodes_below([node_of(tensor) for tensor in tensors])
    return {id(leaf): leaf for leaf in leaves(nodes) if id(leaf) not in known}


def _kept(model: nn.Module) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yield the id of each tensor in plain attributes of the modules, and module, attribute and kind of the place."""
    for name, module in named_modules(model).items():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, Tensor):
                yield id(value), (name, attribute, "tensor")
            elif isinstance(value, (list, tuple, set, Mapping)):
                for tensor, is_of_module in _inside(value):
                    kind = "dict" if isinstance(value, Mapping) else "list"
                    yield id(tensor), (name, attribute, kind if is_of_module else "tensors")


def _inside(container: Any) -> Iterator[tuple[Tensor, bool]]:
    """Yield each tensor in nested containers, and whether it is a parameter of a module there."""
    waiting = [container]
    for count, item in enumerate(waiting):  # which grows
        if count > _MOST:
            return
        if isinstance(item, Tensor):
            yield item, False
        elif isinstance(item, nn.Module):
            yield from ((parameter, True) for parameter in item.parameters())
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set)):
            waiting += item
