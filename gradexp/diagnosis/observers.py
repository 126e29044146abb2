"""Those who look for something in a pass of ``measure``, and what they found together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.sharing import Experts, TiedWeights
from gradexp.history.finding import Finding, worst_first

OBSERVERS: tuple[type[Observer], ...] = (
    TiedWeights,
    Experts,
)
"""All of them, in the order in which findings of the same severity are told."""


@contextmanager
def watched(examination: Examination, observers: Sequence[Observer]) -> Iterator[None]:
    """Show the observers every call of every module."""
    for observer in observers:
        observer.begin(examination)

    def see(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for observer in observers:
            observer.see_call(name, module, (args, kwargs), output)

    handles = [
        module.register_forward_hook(partial(see, name), with_kwargs=True)
        for name, module in (examination.model.named_modules() if observers else ())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def found(examination: Examination, observers: Sequence[Observer]) -> tuple[Finding, ...]:
    """Return everything that was found, worst first."""
    return worst_first([finding for observer in observers for finding in observer.findings(examination)])
