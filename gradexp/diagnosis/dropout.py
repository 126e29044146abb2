"""Dropout that leaves next to nothing, mostly since the share to keep was given for the share to drop."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import node_of, nodes_below
from gradexp.diagnosis.origins import Origins
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.numerics.torch_internals import keeps_elsewhere, saved_of

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_INSIDE = (nn.RNNBase, nn.MultiheadAttention)  # which drop within, at the rate ``dropout``
_MOST = 0.9  # the rates in use, up to those of papers, are far below


class Dropout(Observer):
    """Finds modules in training mode, and functions, that drop more than nine of ten units."""

    def begin(self, examination: Examination) -> None:
        """Begin with none."""
        self._origins = Origins()
        self._is_hidden = False
        self._functions: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._settings: dict[str, str] = {}

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Read the rate of a module that drops."""
        self._origins.see_call(name, module, args, output)
        self._is_hidden |= keeps_elsewhere()
        if not module.training or not isinstance(module, _DROPOUTS + _INSIDE):
            return
        if isinstance(module, nn.RNNBase) and module.num_layers < 2:  # it drops between layers
            return
        setting = "p" if isinstance(module, _DROPOUTS) else "dropout"
        rate = float(getattr(module, setting))
        if rate > _MOST:
            self._rates[name], self._settings[name] = rate, setting

    def see_loss(self, examination: Examination) -> None:
        """Look for functions that drop, before the backward pass frees what they keep."""
        assert examination.loss is not None
        if self._is_hidden:
            return
        for node, rate in _rates_of_functions(nodes_below([node_of(examination.loss)])).items():
            if self._origins.around(node) not in self._rates:
                place = " and ".join(self._origins.weighted_before(node)) or "the inputs"
                self._functions[place] = max(rate, self._functions.get(place, 0))

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding over all modules, and one over all functions."""
        if self._functions:
            rates = list(self._functions.values())
            rate, places = max(rates), listed(reversed(self._functions))
            text = f"F.dropout after {places} {_dropped(rate, rates)}"
            yield Finding("dropout", text, (), f"F.dropout(x, p={1 - rate:.2g}): the share that is dropped", 2)
        if self._rates:
            names = sorted(self._rates, key=lambda name: -self._rates[name])
            highest = self._rates[names[0]]
            verb = "drops" if len(names) == 1 else "drop"
            text = f"{listed(names)} {_dropped(highest, list(self._rates.values()), verb)}"
            value = f"{1 - highest:.2g}" if highest < 1 else "0.1"
            remedy = (
                f"model.get_submodule({names[0]!r}).{self._settings[names[0]]} = {value}: the share that is dropped"
            )
            yield Finding("dropout", text, tuple(names), remedy + (", and so on" if len(names) > 1 else ""), 2)


def _dropped(highest: float, rates: Sequence[float], verb: str = "drops") -> str:
    return (
        f"{verb} {'' if len(set(rates)) == 1 else 'up to '}{100 * highest:.4g} % of units: {_what_is_left(highest)}"
    )


def _what_is_left(rate: float) -> str:
    return "nothing comes through" if rate == 1 else f"what is left of each sample is scaled by {1 / (1 - rate):.3g}"


def _rates_of_functions(nodes: Iterable[Node]) -> dict[Node, float]:
    """Return the rates of nodes that multiply with 0 or 1 / (1 - rate), as dropout does, if they are very high."""
    rates: dict[Node, float] = {}
    masks: dict[Node, Tensor] = {}
    for node in nodes:
        if node.name().startswith("NativeDropout"):
            rate = saved_of(node, "p")
            if rate is not None and _MOST < rate < 1:
                rates[node] = float(rate)
        elif node.name().startswith("Mul") and len(node.next_functions) == 2 and node.next_functions[1][0] is None:
            mask = saved_of(node, "other")
            if type(mask) is Tensor and mask.is_floating_point() and mask.numel() > 1:
                masks[node] = mask.detach()
    if not masks:
        return rates
    device = next(iter(masks.values())).device
    scales = torch.stack([mask.amax().float().to(device) for mask in masks.values()]).tolist()
    for (node, mask), scale in zip(masks.items(), scales, strict=True):
        if not 1 / (1 - _MOST) * 1.001 < scale < math.inf:
            continue
        share = (mask == 0).double().mean()
        is_one_of_two = ((mask == 0) | (mask == scale)).all().double()
        share_of_zeros, is_mask = torch.stack([share, is_one_of_two]).tolist()
        kept = 1 / scale
        if is_mask and abs(1 - share_of_zeros - kept) <= 5 * math.sqrt(kept / mask.numel()):
            rates[node] = 1 - kept
    return rates
