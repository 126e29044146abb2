"""Softmax over the samples of a batch, in place of over classes: what comes out for one depends on the others."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import node_of, nodes_below
from gradexp.diagnosis.origins import Origins
from gradexp.diagnosis.saturated_softmax import dimension_of
from gradexp.history.finding import Finding
from gradexp.numerics.torch_internals import keeps_elsewhere, saved_of
from gradexp.probe.calls import tensors_in

_SOFTMAXES = ("Softmax", "LogSoftmax", "SafeSoftmax")
_TIME_FIRST = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class OverSamples(Observer):
    """Finds softmax over dimension 0 where this is that of samples: of inputs, output and targets alike."""

    def begin(self, examination: Examination) -> None:
        """Prepare to name modules."""
        self._origins = Origins()
        self._is_hidden = self._is_time_first = False

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Remember which node ends the call, and whether time may be what comes first."""
        self._origins.see_call(name, module, args, output)
        self._is_hidden |= keeps_elsewhere()
        if isinstance(module, _TIME_FIRST):
            attention = getattr(module, "self_attn", module)
            self._is_time_first |= not getattr(attention, "batch_first", True)

    def see_loss(self, examination: Examination) -> None:
        """Look at the softmaxes of the model, not of the loss, which may contrast samples with each other."""
        self._found: tuple[Finding, ...] = ()
        samples = _samples(examination)
        if samples < 2 or self._is_hidden or self._is_time_first:
            return
        for node in nodes_below([node_of(examination.output)]):
            if not node.name().startswith(_SOFTMAXES):
                continue
            result = saved_of(node, "result")
            if not isinstance(result, Tensor) or result.dim() < 2 or result.shape[0] != samples:
                continue
            is_square = result.dim() == 2 and result.shape[1] == samples  # similarities of samples
            if dimension_of(node) % result.dim() == 0 and not is_square:
                self._found = (self._finding(node, tuple(result.shape)),)
                return

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found before the backward pass."""
        return self._found

    def _finding(self, node: Node, shape: tuple[int, ...]) -> Finding:
        place, before = self._origins.around(node), self._origins.weighted_before(node)
        own = self._origins.ended_by(node)
        is_module = own is not None and own.name == place and isinstance(own.module, (nn.Softmax, nn.LogSoftmax))
        where = f"{place} (softmax)" if is_module else f"the softmax in {place or 'the model'}"
        after = f" after {before[0]}" if before and before[0] != place else ""
        text = (
            f"{where}{after} runs over dimension 0 of {shape}, which are the {shape[0]} samples: what comes out for "
            "one depends on the others in its batch"
        )
        modules = tuple(dict.fromkeys(name for name in (place, *before) if name))
        cure = (
            f"model.get_submodule({place!r}).dim = -1" if is_module else "dim=-1, the last one, in place of 0 or none"
        )
        return Finding("softmax over samples", text, modules, cure, 3)


def _samples(examination: Examination) -> int:
    """Return how many samples there are, 0 unless inputs, output and targets have as many."""
    if not isinstance(examination.output, Tensor):
        return 0
    tensors = [*tensors_in(examination.inputs), examination.output, *tensors_in(examination.targets)]
    if any(tensor.is_nested for tensor in tensors):  # whose parts have a shape each
        return 0
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    has_targets = any(True for _ in tensors_in(examination.targets))
    return sizes.pop() if len(sizes) == 1 and has_targets else 0
