"""Learning rates over a training, and Muon's steps, against torch's own."""

from typing import Any

import pytest
import torch
from cases import HAS_MUON
from torch import nn

from gradexp.choices import ConfigError
from gradexp.config import Config, OptimizerConfig
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.optimizers import build_optimizer
from gradexp.runs.schedules import Schedule

SMALL: dict[str, Any] = {"depth": 4, "width": 8, "steps": 6, "batch_size": 16}
needs_muon = pytest.mark.skipif(not HAS_MUON, reason="torch has no Muon before 2.9")


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # which torch 2.6 itself gives from a scheduler to another
def test_the_rates_are_those_of_torchs_schedulers() -> None:
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.3) for _ in range(2))
    schedule = Schedule(ours, steps=12, warmup=4, schedule="cosine")
    warm = torch.optim.lr_scheduler.LinearLR(theirs, start_factor=1 / 4, total_iters=3)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=8)
    both = torch.optim.lr_scheduler.SequentialLR(theirs, [warm, fall], milestones=[4])
    for step in range(12):
        schedule.before(step)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        theirs.step()
        both.step()


def test_a_warm_up_longer_than_the_training_is_never_over() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    schedule = Schedule(optimizer, steps=2, warmup=10, schedule="cosine")
    schedule.before(1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_a_run_follows_its_schedule_whatever_the_optimizer() -> None:
    def sgd(parameters: list[nn.Parameter], lr: float = 0.01) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr)

    rates: dict[str, Any] = {"warmup": 3, "schedule": "cosine"}
    built_in, own, constant = (
        run(Config(**SMALL, data="gaussian", optimizer=optimizer)).training
        for optimizer in (OptimizerConfig("sgd", **rates), OptimizerConfig(sgd, **rates), OptimizerConfig("sgd"))
    )
    assert built_in is not None
    assert own is not None
    assert constant is not None
    assert built_in.losses == own.losses
    assert built_in.losses[0] == constant.losses[0]
    assert built_in.losses[1] != constant.losses[1]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((2, 5, 3), (2, 5))]
    for one in made:
        one.grad = torch.randn(one.shape, generator=generator)
    return made


@needs_muon
def test_muon_steps_each_matrix_of_a_stack_as_torch_does() -> None:
    weight, bias = parameters()
    config = Config(optimizer=OptimizerConfig("muon", lr=0.1)).optimizer
    reference = [weight.detach().clone(), bias.detach().clone()]
    optimizer = build_optimizer(config, [weight, bias])
    for network in range(2):
        options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
        matrix, vector = (nn.Parameter(values[network].clone()) for values in reference)
        assert weight.grad is not None
        assert bias.grad is not None
        matrix.grad, vector.grad = weight.grad[network].clone(), bias.grad[network].clone()
        torch.optim.Muon([matrix], momentum=0.95, adjust_lr_fn="match_rms_adamw", **options).step()
        torch.optim.AdamW([vector], **options).step()
        reference[0][network], reference[1][network] = matrix.detach(), vector.detach()
    optimizer.step()
    assert torch.equal(weight, reference[0])
    assert torch.equal(bias, reference[1])


@needs_muon
def test_muon_trains_a_stack_as_each_network_alone() -> None:
    configs = [Config(**SMALL, seed=seed, optimizer="muon") for seed in (0, 1)]
    for config, stacked in zip(configs, run_stack(configs), strict=True):
        alone = run(config).training
        assert alone is not None
        assert stacked.training is not None
        assert alone.losses == stacked.training.losses


def test_muon_says_which_torch_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"^optimizer=muon needs torch 2\.9 or newer, this is .*; use adamw$"):
        build_optimizer(Config(optimizer="muon").optimizer, parameters())
