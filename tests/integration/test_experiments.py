"""Every claim of every experiment can fail: with other options than the source's, it does."""

import importlib
import os

import pytest

from experiments import EXPERIMENTS
from experiments.claims import Claim
from experiments.lab import Lab

pytestmark = [
    pytest.mark.experiments,
    pytest.mark.usefixtures("on_one_thread"),
    pytest.mark.skipif("GRADEXP_TEST_EXPERIMENTS" not in os.environ, reason="set GRADEXP_TEST_EXPERIMENTS=1"),
]

# Experiment -> options, under each of which some claims are wrong, and under one or another every claim.
PERTURBED = {
    "he2015": [["init.gain=0.7"], ["init.gain=1.4"], ["steps=20"]],
}


def claims(name: str, overrides: list[str]) -> list[Claim]:
    module = importlib.import_module(f"experiments.{name}")
    found: list[Claim] = module.reproduce(Lab(name, module.QUICK, overrides)).claims
    return found


def test_every_experiment_is_perturbed() -> None:
    assert set(PERTURBED) == set(EXPERIMENTS)


@pytest.mark.parametrize("name", PERTURBED)
def test_every_claim_can_fail(name: str) -> None:
    wrong = {claim.text for options in PERTURBED[name] for claim in claims(name, options) if not claim.holds}
    assert [claim.text for claim in claims(name, []) if claim.text not in wrong] == []
