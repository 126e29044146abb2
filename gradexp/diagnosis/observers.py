"""Those who look for something in a pass of ``measure``, and what they found together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from gradexp.diagnosis.collapse import Collapse
from gradexp.diagnosis.cut import Cut
from gradexp.diagnosis.cut_state import CutState
from gradexp.diagnosis.dropout import Dropout
from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.formats import NumberFormats
from gradexp.diagnosis.guessing import Guessing
from gradexp.diagnosis.initial_scale import InitialScale
from gradexp.diagnosis.input_scale import InputScale
from gradexp.diagnosis.missing_log_softmax import MissingLogSoftmax
from gradexp.diagnosis.nonfinite import Nonfinite
from gradexp.diagnosis.output_activation import OutputActivation
from gradexp.diagnosis.over_samples import OverSamples
from gradexp.diagnosis.pairs import Pairs
from gradexp.diagnosis.resolution import Resolution
from gradexp.diagnosis.rounding import RoundingNoise
from gradexp.diagnosis.saturated_softmax import SaturatedSoftmax
from gradexp.diagnosis.sharing import Experts, TiedWeights
from gradexp.diagnosis.squashed_twice import SquashedTwice
from gradexp.diagnosis.stops import Stops
from gradexp.diagnosis.symmetry import EqualUnits
from gradexp.diagnosis.units import Units
from gradexp.diagnosis.unoptimized import Unoptimized
from gradexp.diagnosis.unregistered import Unregistered
from gradexp.diagnosis.unseen import Unseen
from gradexp.diagnosis.zeros import ZeroInitialised
from gradexp.history.finding import Finding, worst_first
from gradexp.probe.names import named_modules

OBSERVERS: tuple[type[Observer], ...] = (
    Nonfinite,
    NumberFormats,
    Cut,
    CutState,
    Unregistered,
    Unoptimized,
    Stops,
    ZeroInitialised,
    EqualUnits,
    RoundingNoise,
    Dropout,
    Units,
    SaturatedSoftmax,
    Collapse,
    InputScale,
    InitialScale,
    Pairs,
    OverSamples,
    MissingLogSoftmax,
    SquashedTwice,
    OutputActivation,
    Guessing,
    Resolution,
    Unseen,
    TiedWeights,
    Experts,
)
"""All of them, causes before effects: the order in which findings of the same severity are told."""


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
        for name, module in (named_modules(examination.model).items() if observers else ())
        if not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def ended(observers: Sequence[Observer]) -> Iterator[None]:
    """Let the observers go at the end, also after an error."""
    try:
        yield
    finally:
        for observer in observers:
            observer.end()


def found(examination: Examination, observers: Sequence[Observer]) -> tuple[Finding, ...]:
    """Return everything that was found, worst first."""
    return worst_first([finding for observer in observers for finding in observer.findings(examination)])
