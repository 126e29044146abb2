"""A place where nan or inf was born, in words, and what to do about it."""

import re
from dataclasses import dataclass

import torch

from gradexp.history.finding import Finding


@dataclass(frozen=True)
class Birth:
    """The first place whose output, or gradient, is not finite though what it got was.

    Args:
        value: ``nan``, ``inf`` or ``-inf``.
        place: ``input``, ``parameter``, ``buffer``, ``module``, ``target``, ``loss``, ``loss gradient`` (of
            which no more is known), or ``operation`` (of the backward pass).
        module: Name of the module, empty for the model itself; None for the loss, or unknown.
        kind: Class of that module.
        is_container: Whether operations between the modules inside did it.
        between: The modules before and after those operations; empty for none.
        tensor: Name of the parameter or buffer.
        operations: Those that may have done it; of an ``operation`` the one that did.
        dtype: Number format of what was born.
        size: Largest magnitude of what it got, None if unknown.
        taken: The module whose output the operation took, or the parameter; empty if unknown or several.
        is_parameter: Whether it took a parameter.
        taken_range: The smallest and the largest number in it.
        follows: The operation of the backward pass that makes nan of inf.
        is_unused: Whether ``where`` or the like came before, and sent a gradient of 0 to what it did not take.
        is_sum: Whether it is the sum of finite gradients.
        detail: How much of a tensor is not finite.
        reaches: Whether the loss or a gradient is not finite for it.
    """

    value: str
    place: str
    module: str | None = None
    kind: str = ""
    is_container: bool = False
    between: tuple[str, str] = ("", "")
    tensor: str = ""
    operations: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    size: float | None = None
    taken: str = ""
    is_parameter: bool = False
    taken_range: tuple[float, float] = (0.0, 0.0)
    follows: str = ""
    is_unused: bool = False
    is_sum: bool = False
    detail: str = ""
    reaches: bool = True

    @property
    def is_backward(self) -> bool:
        """Whether the forward pass was finite."""
        return self.place in ("loss gradient", "operation")

    def finding(self) -> Finding:
        """Return it as a finding."""
        source = self.taken if self.module is None and not self.is_parameter else ""
        modules = (self.module or source,) if self.module or source else ()
        if not self.reaches:
            text = f"{self._text()}; the loss and all gradients are finite without it"
            return Finding("nonfinite", text, modules, "", 1)
        return Finding("nonfinite", self._text(), modules, self._remedy(), 3)

    def _text(self) -> str:
        if self.place in ("input", "target"):
            return f"{self.value} in the {self.place}{self.detail}"
        if self.place in ("parameter", "buffer"):
            return f"{self.value} in the {self.place} {self.tensor} before the pass{self.detail}"
        if self.place == "loss gradient":
            return (
                f"{self.value} is born in the backward pass, in the loss: the model's output is finite, "
                f"the gradient that comes back to it is {self.value}"
            )
        got = "finite numbers" + ("" if self.size is None else f" up to {self.size:.3g}")
        if self.place in ("loss", "module"):
            by, suspects = self._suspects()
            got = self._taken() or got
            return f"{self.value} is born in the forward pass, in {self._where()}{by}, which got {got}{suspects}"
        if self.is_sum:
            return f"{self.value} is born in the backward pass where finite gradients add up, in {self._where()}"
        after = f"; {self.follows} makes it nan" if self.follows not in ("", self.operations[0]) else ""
        return (
            f"{self.value} is born in the backward pass, in {self.operations[0]} of {self._where()}, "
            f"which got {got.replace('numbers', 'gradients')}{after}"
        )

    def _suspects(self) -> tuple[str, str]:
        """Return the operation that did it, or those that may have."""
        names = ", ".join(map(_plain_name, self.operations))
        if len(self.operations) == 1:
            return f", by {names}", ""
        return "", f" (operations there: {names})" if names else ""

    def _taken(self) -> str:
        """Return what the operation got, if it got one thing that is known by name."""
        low, high = self.taken_range
        if self.is_parameter:
            return f"the parameter {self.taken}" + (f" = {low:.3g}" if low == high else f", {low:.3g} to {high:.3g}")
        largest = max(abs(low), abs(high))
        return f"finite numbers up to {largest:.3g} from {self.taken}" if self.taken else ""

    def _where(self) -> str:
        if self.module is None:
            return "the loss"
        name = f"{self.module} ({self.kind})" if self.module else f"the model itself ({self.kind})"
        if not self.is_container:
            return name
        before, after = self.between
        if before and after:
            return f"{name}, between {before} and {after}"
        return name + (f", after {before}" if before else f", before {after}" if after else "")

    def _remedy(self) -> str:
        if self.place in ("input", "target"):
            return f"assert torch.isfinite({self.place}).all() where the batch is made; drop or fill those samples"
        if self.place == "loss gradient":
            return "gradexp.measure(model, loss_fn, batch), which names the operation"
        if self.place == "parameter":
            return (
                "go back to a checkpoint from before, then a lower learning rate or "
                "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); GradientProbe(model, alarm='raise') stops "
                "before the step that does it"
            )
        known = [_KNOWN.get(_plain_name(operation).lower()) for operation in (*self.operations, self.kind)]
        causes = [cause for cause in known if cause is not None]
        if self.dtype is torch.float16 and "inf" in self.value and _POLES.isdisjoint(causes):
            return "torch.bfloat16 in place of torch.float16, which ends at 65504" + (
                "" if self.place != "operation" else ", or a torch.amp.GradScaler with a smaller init_scale"
            )
        if self.place == "buffer" and "running" not in self.tensor:
            return f"assert torch.isfinite({self.tensor}).all() where it is set"
        if self.place == "buffer":
            return (
                f"model.get_submodule('{self.module}').reset_running_stats(), and a look for nan in earlier batches"
            )
        table = _BACKWARD if self.place == "operation" else _FORWARD
        if self.is_unused and "softmax" not in causes:
            name = _plain_name(self.operations[0])
            return (
                f"torch.where(mask, {name}(torch.where(mask, x, 1.0)), 0.0), an argument that is safe in the branch "
                "not taken: where() multiplies the slope there by 0, and 0 * inf is nan"
            )
        if "exp" in causes and self.taken:
            return self._smaller()
        # A mean makes nan of finite numbers only where it has none; inf comes from what it is taken of.
        if self.value == "nan" and {*causes} in ({"mean"}, {"mean", "softmax"}):
            return table["mean"]
        for cause in causes:
            if cause != "mean":
                return table[cause]
        if "CheckpointFunctionBackward" in self.operations:
            return "checkpoint(..., use_reentrant=False), and measure again, which shows the operation inside"
        return _GROWTH if (self.size or 0) > _LARGE else _OTHERWISE

    def _smaller(self) -> str:
        """Return how what is exponentiated becomes small enough."""
        if self.is_parameter:
            return f"model.get_parameter({self.taken!r}).data.clamp_(max=4.6), after each step too: exp(4.6) is 100"
        largest = max(map(abs, self.taken_range))
        if largest < _OVERFLOWS:  # it grew on the way
            return _FORWARD["exp"]
        smaller = f"for p in model.get_submodule({self.taken!r}).parameters(): p.data *= {2 / largest:.2g}"
        return f"{_FORWARD['exp']}; or smaller weights: {smaller}"


def _plain_name(operation: str) -> str:
    """Return ``log_softmax`` for ``LogSoftmaxBackward``; other names stay."""
    if not operation.endswith("Backward"):
        return operation
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation.removesuffix("Backward").strip("_")).lower()


_KNOWN = {
    **dict.fromkeys(("sqrt", "norm", "linalg_vector_norm", "cdist", "euclidean_dist"), "root"),
    "pow": "power",
    **dict.fromkeys(("std", "var"), "spread"),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "xlogy"), "log"),
    "rsqrt": "rsqrt",
    **dict.fromkeys(("div", "reciprocal", "_weightnorm", "weight_norm_interface"), "quotient"),
    **dict.fromkeys(("exp", "expm1", "exp2", "sinh", "cosh"), "exp"),
    **dict.fromkeys(("softmax", "log_softmax", "safe_softmax", "multiheadattention"), "softmax"),
    **dict.fromkeys(("mean", "nll_loss", "nll_loss2d"), "mean"),
    **dict.fromkeys(("acos", "asin", "atanh", "acosh", "tan"), "arc"),
}

_POLES = frozenset(
    ("root", "power", "rsqrt", "log", "quotient", "spread", "arc")
)  # which make inf of small numbers in any format
_FORWARD = {
    "root": "torch.sqrt(x.clamp(min=0) + 1e-8) in place of torch.sqrt(x)",
    "power": "x.clamp(min=1e-6) ** p: negative numbers have no such power",
    "spread": "x.std(dim, correction=0) + 1e-8: the standard deviation of one number is nan",
    "rsqrt": "torch.rsqrt(x + 1e-8) in place of torch.rsqrt(x)",
    "log": (
        "torch.log(x.clamp(min=1e-8)); F.log_softmax or F.cross_entropy on logits in place of log(softmax), "
        "F.binary_cross_entropy_with_logits in place of log(sigmoid)"
    ),
    "quotient": "x / (y + 1e-8) where y may be 0; leave out samples for which there is nothing to divide by",
    "exp": "torch.logsumexp or torch.softmax, which subtract the largest first, or torch.exp(x.clamp(max=50))",
    "softmax": "one entry of each row unmasked, or -1e4 in place of -inf as the mask: softmax of -inf alone is nan",
    "mean": "a mean over at least one element: is the mask empty, or every target ignored?",
    "arc": "x.clamp(-1 + 1e-6, 1 - 1e-6) before it",
}
_BACKWARD = {
    **_FORWARD,
    "root": "torch.sqrt(x + 1e-8) in place of torch.sqrt(x): the slope of a root at 0 is infinite",
    "power": "x.clamp(min=1e-6) ** p: the slope of a root at 0 is infinite",
    "spread": "torch.sqrt(x.var(dim) + 1e-8): the slope of a standard deviation at 0 is infinite",
}
_OVERFLOWS = 88  # exp of more is too large for float32
_LARGE = 1e10  # no network that works has numbers of this size
_GROWTH = (
    "weights of the right size, gradexp.initialize(model, 'he'), or a norm between the layers, so that numbers do "
    "not grow from layer to layer; a lower learning rate if they grew in training"
)
_OTHERWISE = (
    "clamp what goes in there, add an eps below fractions, roots and logarithms, or lower the learning rate if the "
    "numbers grew during training"
)
