"""Every claim of every experiment can fail: with other options than the source's, it does."""

import importlib
import os

import pytest

from experiments import EXPERIMENTS
from experiments.lab.lab import Lab

pytestmark = [
    pytest.mark.experiments,
    pytest.mark.usefixtures("on_one_thread"),
    pytest.mark.skipif("GRADEXP_TEST_EXPERIMENTS" not in os.environ, reason="set GRADEXP_TEST_EXPERIMENTS=1"),
]

# Experiment -> options, under each of which some claims are wrong, and under one or another every claim.
PERTURBED = {
    "lesson": [["init.gain=1.6"], ["activation=tanh", "optimizer.lr=1e-9"]],
    "glorot2010": [["sigma_b2=0.5"]],
    "he2015": [["init.gain=1.4"], ["steps=20"]],
    "schoenholz2017": [["init.gain=0.7"], ["residual=depth"]],
    # In 400 layers the gradients themselves leave float32; with this gain they neither vanish nor explode.
    "monitors": [["depth=400"], ["init.gain=1.414"]],
    "pascanu2013": [["residual=none", "init.gain=1.2"], ["optimizer.clip_norm=10"], ["optimizer.clip_norm=null"]],
    "pennington2017": [["init.gain=1.5", "steps=20"], ["activation=linear", "init.gain=1", "steps=20"]],
    "poole2016": [["activation=linear"]],
    "saxe2014": [["activation=tanh", "init.gain=0.7", "steps=20"], ["data=ones", "init.gain=0.9", "steps=20"]],
    "hanin_rolnick2018": [["activation=linear"]],
    "xiao2018": [["init.gain=2"], ["depth=10"]],
    "yang2019": [["residual=plain"], ["normalization=none", "steps=10"]],
    "residual": [["residual=plain"], ["residual=zero"]],
    "xiong2020": [["init.gain=2"], ["init.gain=0.5"], ["model.queries=init"]],
    "ten_thousand": [["init.gain=0.9"]],
}


def test_every_experiment_is_perturbed() -> None:
    assert set(PERTURBED) == set(EXPERIMENTS)


@pytest.mark.parametrize("name", PERTURBED)
def test_every_claim_can_fail(name: str) -> None:
    module = importlib.import_module(f"experiments.{name}")
    outcomes: dict[str, list[bool]] = {}
    for overrides in PERTURBED[name]:
        for claim in module.reproduce(Lab(name, module.QUICK, overrides)).claims:
            outcomes.setdefault(claim.text, []).append(claim.holds)
    assert [claim for claim, held in outcomes.items() if all(held)] == []
