"""Whether a classifier beats guessing with the real frequencies of the classes."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from gradexp.diagnosis.age import changes
from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import LossTerm, far_above, loss_terms
from gradexp.history.finding import Finding
from gradexp.history.sentences import number

# Fewer samples than this, or than this many per class seen, tell little about frequencies.
_ENOUGH_SAMPLES, _PER_CLASS = 32, 2
# Up to this share of the loss of guessing counts as guessing: batches differ.
_BEATEN = 0.95
# No fresh model has half the loss of one that prefers nothing; one that has learned the frequencies may.
_LEARNED = 0.5
# After some hundred steps a model has begun to learn, after thousands it should have.
_SOME_STEPS, _MANY_STEPS = 200, 2000
_REMEDY = "first check that inputs and labels match; then train on 32 samples, whose loss must come down to 0"


class Guessing(Observer):
    """Finds a classifier whose loss is that of guessing, and one that gives all samples the same class."""

    def see_loss(self, examination: Examination) -> None:
        """Look at predictions and labels while the graph keeps them."""
        age = changes(examination.model)
        with torch.no_grad():
            self._found = [finding for term in loss_terms(examination) for finding in _of(term, age)]

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found before the backward pass."""
        return self._found


def _of(term: LossTerm, age: int) -> Iterator[Finding]:
    if term.kind not in ("cross entropy", "binary cross entropy") or term.samples < _ENOUGH_SAMPLES:
        return
    labels = _labels(term)
    classes = len(labels.unique())
    if classes < 2 or term.samples < _PER_CLASS * classes:
        return
    # The entropy of few labels is too small by this much on average (Miller, 1955).
    guessing = term.guessing + (classes - 1) / (2 * term.samples)
    if not term.guessing or not _BEATEN * guessing <= term.value <= far_above(term.indifferent):
        return
    knows_frequencies = term.value < _LEARNED * term.indifferent
    if not knows_frequencies and age < _SOME_STEPS:  # as before and early in every training
        return
    severity = 2 if age >= (_SOME_STEPS if knows_frequencies else _MANY_STEPS) else 1
    text = f"{term.kind} is {number(term.value)}; guessing by the labels' frequencies costs {number(term.guessing)}"
    if knows_frequencies:
        text += (
            f". The model has learned the frequencies (guessing evenly costs {number(term.indifferent)}) and nothing "
        )
        text += "else"
    elif _are_real_and_fake(labels):
        text, severity = f"{text}; for a discriminator that is as it should be", 0
    yield Finding("guessing not beaten", text, (), _REMEDY if severity else "", severity)
    only = _only_class(term) if severity else None
    if only is not None:
        text = f"all {term.samples} samples are predicted to be of class {only}; there are {classes} classes"
        yield Finding("one class", text, (), _REMEDY, severity)


def _are_real_and_fake(labels: Tensor) -> bool:
    """Return whether all samples of one class come first, and then as many of the other, as a discriminator gets."""
    half = len(labels) // 2
    first, second = labels[:half], labels[half:]
    return len(first) == len(second) and bool((first == first[0]).all()) and bool((second == second[0]).all())


def _labels(term: LossTerm) -> Tensor:
    """Return the labels, or the likeliest class of each target with probabilities."""
    if term.kind == "binary cross entropy":
        return (term.target > 0.5).flatten()
    if not term.target.is_floating_point():
        return term.target.flatten()
    return term.target.argmax(-1).flatten()


def _only_class(term: LossTerm) -> int | None:
    """Return the class that all samples are given, None if there are two."""
    if term.prediction is None:
        return None
    if term.kind == "cross entropy":
        chosen = term.prediction.argmax(-1).flatten()
    elif term.prediction.numel() == term.samples:
        chosen = (term.prediction > 0).flatten().long()
    else:
        return None  # several answers for each sample
    first = int(chosen[0])
    return first if bool((chosen == first).all()) and math.isfinite(term.value) else None
