"""Which parameters a row stands for: its weights, and the biases, gains and scales beside them."""

import weakref
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradexp.networks.normalization import StackedNorm
from gradexp.numerics.torch_internals import is_parametrized, parameters_of
from gradexp.probe.parametrized import Computing, computed_weights, computes_weights, kept_weight, trained_tensors
from gradexp.probe.recurrent import layer_weights


class RowParameters:
    """The parameters of a module, or of one of its layers, as they are at the moment.

    A parameter with fewer dimensions than a weight has is a vector: a bias, a gain or a scale.

    Args:
        module: Held weakly.
        layer: Which layer and direction of a recurrent module; empty: the whole module.
        inside: Which weights of modules inside count too: ``"none"``; ``"all"``; or all ``"in place of none"``, where
            the module itself has no weight. If there is no weight in either, its vectors stand in, unless ``"none"``.
    """

    def __init__(self, module: nn.Module, layer: str = "", inside: str = "none") -> None:
        self._module = weakref.ref(module)
        self._layer = layer
        self._inside = inside
        # A lazy module's parameters have no shape before its first call; a copy of it may stay lazy.
        parts = (module,) if inside == "none" else module.modules()
        self._was_lazy = any(hasattr(part, "has_uninitialized_params") for part in parts)

    @property
    def is_gone(self) -> bool:
        """Whether the module is no longer there."""
        return self._module() is None

    def weights(self) -> list[nn.Parameter]:
        """Return the parameters that make up the row's weight, each once."""
        module = self._module()
        if module is None:
            return []
        if self._layer:
            return layer_weights(module, self._layer)
        if self._inside == "none":
            return self._weights_of(module)
        weights = [weight for part in self._parts(module) for weight in self._weights_of(part)]
        if not weights:
            return [parameter for parameter in module.parameters() if not is_lazy(parameter)]
        return list({id(weight): weight for weight in weights}.values())

    def vectors(self) -> list[nn.Parameter]:
        """Return the parameters of the row with too few dimensions for a weight, each once."""
        module = self._module()
        if module is None:
            return []
        if self._layer:
            own = [getattr(module, f"bias_{kind}_{self._layer}", None) for kind in ("ih", "hh")]
            return [bias for bias in own if isinstance(bias, nn.Parameter)]
        vectors = {}
        for part in self._parts(module):
            least = least_dimensions(part)
            vectors.update({id(p): p for p in parameters_of(part) if not is_lazy(p) and p.dim() < least})
        return list(vectors.values())

    def computed(self) -> list[Tensor | Computing]:
        """Return the weights that the row's modules compute with, or what computes them."""
        module = self._module()
        if module is None:
            return []
        weights: dict[int, Tensor | Computing] = {}
        for part in self._parts(module):
            least = least_dimensions(part)
            for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
                kept = kept_weight(part, name)
                if kept is not None:
                    weights[id(kept)] = kept
                elif not is_lazy(parameter) and parameter.dim() >= least:
                    weights[id(parameter)] = parameter
            weights.update({id(computing): computing for computing in computed_weights(part).values()})
        return list(weights.values())

    def computes(self) -> bool:
        """Return whether a module of the row may compute its weight."""
        module = self._module()
        if module is None or self._layer:
            return False
        if self._inside == "none":
            return computes_weights(module)
        return any(computes_weights(part) for part in self._parts(module))

    def _parts(self, module: nn.Module) -> Iterator[nn.Module]:
        if self._inside == "none" or (self._inside == "in place of none" and self._weights_of(module)):
            return iter((module,))
        return module.modules()

    def _weights_of(self, module: nn.Module) -> list[nn.Parameter]:
        parameters = parameters_of(module)
        if self._was_lazy:
            parameters = [parameter for parameter in parameters if not is_lazy(parameter)]
        least = least_dimensions(module) if "networks" in module.__dict__ else 2
        weights = [parameter for parameter in parameters if parameter.dim() >= least]
        return weights + trained_tensors(module) if is_parametrized(module) else weights


def least_dimensions(module: nn.Module) -> int:
    """Return how many dimensions a parameter needs to be a weight.

    In a stacked layer the networks' dimension comes first, and a bias has two.
    """
    if isinstance(module, StackedNorm):
        return 3
    networks = module.__dict__.get("networks")
    own = [p for p in parameters_of(module) if not is_lazy(p)]
    return 3 if any(parameter.dim() == 3 and parameter.shape[0] == networks for parameter in own) else 2
