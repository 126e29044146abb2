"""Softmax that puts everything on one entry, mostly of attention: its gradient is next to 0.

The derivative of softmax is ``diag(p) - p pᵀ``, which vanishes where p is one-hot. Whatever made the logits then gets
next to no gradient, however much reaches the result.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import node_of, nodes_below
from gradexp.diagnosis.loss_terms import has_learned, loss_terms
from gradexp.diagnosis.origins import Origins
from gradexp.diagnosis.repetition import Repetition
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed, number
from gradexp.numerics.torch_internals import creation_number, keeps_elsewhere, logits_of_softmax, saved_of

_ONE_HOT = 0.999
# Share of rows: heads of trained transformers have a good part on one token, all heads of a layer never nearly all.
_MANY, _NEARLY_ALL = 0.6, 0.9
_MASKED = 9000.0  # so far below 0 and below the largest a logit may be masked: by -1e4, -1e9 or -inf
_ENOUGH_ROWS = 8
_QUERIES, _SAMPLES = 64, 2  # as much of fused attention is computed again
_NAMED = 6  # modules that a remedy has room for
_NEAR = 20  # nodes between queries and softmax
_PLAIN = ("Softmax", "SafeSoftmax")
_FUSED = "ScaledDotProduct"
_PRODUCTS = ("Bmm", "Mm", "Mv", "Dot", "Addmm", "Addbmm", "Baddbmm", "Convolution", _FUSED)


@dataclass(frozen=True)
class _Rows:
    """What some rows of logits, with more than one entry that is not masked, become.

    Args:
        share: How many of them are one-hot.
        count: How many there are.
        spread: The largest difference of logits.
        deviation: Their standard deviation within a row.
        is_cut: Whether some that are not -inf are left out, as masked.
    """

    share: float
    count: int
    spread: float
    deviation: float
    is_cut: bool


class SaturatedSoftmax(Observer):
    """Finds softmax that is one-hot in nearly all rows, inside of a model that has not learned yet."""

    def begin(self, examination: Examination) -> None:
        """Prepare to name modules, and note where the random number generators stand, for another pass."""
        self._model = examination.model
        self._origins = Origins()
        self._repetition = Repetition()
        self._is_hidden = False

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Remember which node ends the call."""
        self._origins.see_call(name, module, args, output)
        self._is_hidden |= keeps_elsewhere()

    def see_loss(self, examination: Examination) -> None:
        """Look for results that are one-hot, before the backward pass frees them."""
        self._fused: list[tuple[Node, _Rows]] = []
        self._plain: list[Node | None] = []
        if self._is_hidden or has_learned(loss_terms(examination)):
            return
        nodes = _softmaxes(examination.loss)
        with torch.no_grad():
            self._plain = _suspicious(nodes)
            for node in nodes:
                if node.name().startswith(_FUSED) and (logits := _logits(node)) is not None:
                    rows = _read(logits, -1)
                    self._fused += [(node, rows)] if rows is not None else []

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for each softmax."""
        seen = list(self._fused)
        if any(self._plain):
            seen += self._look_again(examination)
        seen.sort(key=lambda each: creation_number(each[0]))
        found = [(node, rows) for node, rows in seen if rows.share >= _MANY and rows.count >= _ENOUGH_ROWS]
        if found:
            yield self._finding(found)

    def _look_again(self, examination: Examination) -> list[tuple[Node, _Rows]]:
        """Return what the logits of another pass show: the graph keeps none."""
        rows: dict[int, _Rows | None] = {}  # place in memory of a result -> its rows

        def see(logits: Tensor, dimension: int, result: Tensor) -> None:
            rows[result.data_ptr()] = _read(logits, dimension)

        try:
            with logits_of_softmax(see):
                loss = self._repetition.run(examination)
            nodes = [node for node in _softmaxes(loss) if node.name().startswith(_PLAIN)]
            if len(nodes) != len(self._plain):
                return []
            results = [saved_of(node, "result") for node in nodes]
        except Exception:  # what a model does in a second pass is beyond us
            return []
        return [
            (node, read)
            for node, result in zip(self._plain, results, strict=True)
            if node is not None and isinstance(result, Tensor) and (read := rows.get(result.data_ptr())) is not None
        ]

    def _finding(self, found: list[tuple[Node, _Rows]]) -> Finding:
        places = list(dict.fromkeys(self._origins.around(node) for node, _ in found))
        # The first two inputs of fused attention are queries and keys, the third is values.
        products = [self._origins.weighted_before(node, 2) for node, _ in found]
        before = list(dict.fromkeys(name for names in products for name in names))
        share = min(rows.share for _, rows in found)
        widest = max((rows for _, rows in found), key=lambda rows: rows.spread)
        spread = f"{number(widest.spread)} and more" if widest.is_cut else f"up to {number(widest.spread)}"
        text = (
            f"the softmax in {listed(places, 2)} is one-hot for {100 * share:.0f} % of rows, as logits differ by "
            f"{spread}, so {listed(before, 2) if before else 'what is before it'} "
            f"{'get' if len(before) > 1 else 'gets'} next to no gradient from them"
        )
        is_product = any(self._is_of_product(node) for node, _ in found)
        remedy = (
            "logits divided by sqrt(d), or a norm of queries and keys (torch.nn.LayerNorm)"
            if is_product
            else "a norm before the softmax, such as torch.nn.LayerNorm"
        )
        factor = max(rows.deviation for _, rows in found) ** (-0.5 if is_product else -1)
        remedy += self._smaller(before, factor)
        is_all = max(rows.share for _, rows in found) >= _NEARLY_ALL
        return Finding("saturated", text, tuple(before or places), remedy, 2 if is_all else 1)

    def _is_of_product(self, node: Node) -> bool:
        """Return whether logits are products of two things that the model computes, such as queries and keys."""
        if node.name().startswith(_FUSED):
            return True
        below = [source for source, _ in node.next_functions]
        for each in below:  # which grows
            if each is None or self._origins.has_weights(each) or len(below) > _NEAR:
                continue
            if _is_product(each) and sum(source is not None for source, _ in each.next_functions) > 1:
                return True
            below += [source for source, _ in each.next_functions]
        return False

    def _smaller(self, names: list[str], factor: float) -> str:
        """Return how to draw weights smaller, so that logits have a standard deviation of about 1."""
        modules = [self._model.get_submodule(name) for name in names]
        if not names or len(names) > _NAMED:
            return f"; or weights before it that are {factor:.2g} times as large"
        weights = ["weight.data" if isinstance(getattr(module, "weight", None), Tensor) else "" for module in modules]
        for place, module in enumerate(modules):
            if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                weights[place] = f"in_proj_weight.data[:{2 * module.embed_dim}]"  # not the values
        if len(set(weights)) > 1 or not weights[0]:
            return ""
        each = f"for name in {names}: model.get_submodule(name)"
        each = f"model.get_submodule({names[0]!r})" if len(names) == 1 else each
        return f"; or smaller weights: {each}.{weights[0]} *= {factor:.2g}"


def _softmaxes(loss: Tensor | None) -> list[Node]:
    """Return the nodes of softmax, in the order of the pass, but for those whose result is the output."""
    if loss is None:
        return []
    root = node_of(loss)
    every = nodes_below([root])
    # An output comes to the loss without being multiplied by anything that the model has made.
    products = [node for node in every if _is_product(node)]
    outputs = nodes_below([root], closed=set(products))
    found = [
        node
        for node in every
        if node.name().startswith((*_PLAIN, _FUSED)) and (node not in outputs or node.name().startswith(_FUSED))
    ]
    return sorted(found, key=creation_number)


def _is_product(node: Node) -> bool:
    is_of_two = sum(source is not None for source, _ in node.next_functions) > 1
    return node.name().startswith(_PRODUCTS) or (node.name().startswith("Mul") and is_of_two)


def _suspicious(nodes: Iterable[Node]) -> list[Node | None]:
    """Return those plain softmax nodes of which nearly all rows are one-hot, None in place of others."""
    plain = [node for node in nodes if node.name().startswith(_PLAIN)]
    shares = []
    for node in plain:
        result, dimension = saved_of(node, "result"), dimension_of(node)
        if type(result) is not Tensor or not result.numel() or result.shape[dimension] < 2:
            shares.append(torch.zeros((), device="cpu"))
        else:
            shares.append((result.amax(dimension) > _ONE_HOT).float().mean())
    read = torch.stack([share.to(shares[0].device) for share in shares]).tolist() if shares else []
    return [node if share >= _MANY else None for node, share in zip(plain, read, strict=True)]


def dimension_of(node: Node) -> int:
    """Return the dimension of a softmax; of a negative one autograd makes a very large one."""
    dimension = int(saved_of(node, "dim"))
    return dimension if dimension < 2**63 else dimension - 2**64


def _logits(node: Node) -> Any:
    """Return logits of a few queries of fused attention, masked as they were."""
    query, key = saved_of(node, "query"), saved_of(node, "key")
    if type(query) is not Tensor or type(key) is not Tensor or query.dim() != 4 or not query.numel():
        return None
    scale = saved_of(node, "scale")
    rows = torch.linspace(0, query.shape[2] - 1, min(query.shape[2], _QUERIES), device=query.device).long()
    query, key = query[:_SAMPLES, :, rows].float(), key[:_SAMPLES].float()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
    mask = saved_of(node, "attn_mask")
    mask = saved_of(node, "attn_bias") if mask is None else mask
    if isinstance(mask, Tensor):
        shape = (*saved_of(node, "query").shape[:3], key.shape[2])
        mask = mask.expand(shape)[:_SAMPLES, :, rows]
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    if saved_of(node, "is_causal"):
        logits = logits.masked_fill(torch.arange(key.shape[2], device=rows.device) > rows[:, None], -math.inf)
    return logits


def _read(logits: Tensor, dimension: int) -> _Rows | None:
    """Return what rows of logits become that have more than one entry that is not masked."""
    rows = logits.detach().float().movedim(dimension, -1)
    if rows.shape[-1] < 2:
        return None
    most = rows.amax(-1, keepdim=True)
    is_open = rows > most.clamp(max=0) - _MASKED
    count = is_open.sum(-1)
    counted = count > 1
    total = counted.sum()
    least = rows.where(is_open, most).amin(-1)
    mean = rows.where(is_open, 0).sum(-1) / count
    variance = (rows - mean[..., None]).where(is_open, 0).square().sum(-1) / count
    spread = (most[..., 0] - least).where(counted, 0)
    one_hot = (1 / (rows - most).exp().sum(-1) > _ONE_HOT) & counted
    values = [one_hot.sum() / total, total, spread.max(), (variance.where(counted, 0).sum() / total).sqrt()]
    values.append((~is_open & torch.isfinite(rows)).any())
    share, number_of_rows, largest, deviation, is_cut = torch.stack([value.double() for value in values]).tolist()
    return _Rows(share, int(number_of_rows), largest, deviation, bool(is_cut)) if number_of_rows else None
