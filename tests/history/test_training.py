"""Healthy trainings raise no alarm at any of their steps."""

import pytest
import torch
import torch.nn.functional as F
from cases import few
from healthy import MODELS
from torch import nn
from trainings import classes, kinds, mlp, recorded

OF_TRAININGS = {"nonfinite", "cut", "dead", "number format", "diverging", "weight decay", "no progress"}


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", few(MODELS, 2))
@pytest.mark.parametrize(
    "make", few([lambda p: torch.optim.AdamW(p, 2e-3), lambda p: torch.optim.SGD(p, 0.03, 0.9)]), ids=["AdamW", "SGD"]
)
def test_healthy_models_in_training_raise_no_alarm(name, make):
    model, loss_fn, batches = MODELS[name]()
    history = recorded(model, make(model.parameters()), loss_fn, batches, steps=33)
    assert {kind for step in range(33) for kind in kinds(history, step)} & OF_TRAININGS == set()


@pytest.mark.parametrize(
    "make",
    few(
        [
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
            lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, 0.1),
            lambda p: torch.optim.Adam(p, 1e-3),
            lambda p: torch.optim.RMSprop(p, 1e-3),
        ],
        2,
    ),
    ids=["momentum", "AdamW", "SGD", "Adam", "RMSprop"],
)
@pytest.mark.parametrize("warm_up", few([20, 0]))
def test_optimizers_and_warm_ups_raise_no_alarm(make, warm_up):
    model = mlp()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, total_iters=max(warm_up, 1))
    history = recorded(model, optimizer, batch=classes, steps=40, after_step=scheduler.step if warm_up else None)
    assert {kind for step in range(40) for kind in kinds(history, step)} & OF_TRAININGS == set()


@pytest.mark.parametrize("is_sparse", [False, True])
def test_embeddings_of_which_few_rows_change_raise_no_alarm(is_sparse):
    model = nn.Sequential(nn.EmbeddingBag(500, 16, sparse=is_sparse), nn.Linear(16, 3))
    make = torch.optim.SGD(model.parameters(), 0.1) if is_sparse else torch.optim.AdamW(model.parameters(), 1e-3)

    def tokens():
        x = torch.randint(500, (32, 4))
        return x, x[:, 0] % 3

    history = recorded(model, make, F.cross_entropy, tokens, steps=20)
    assert {kind for step in range(20) for kind in kinds(history, step)} & OF_TRAININGS == set()


def test_saved_and_loaded_histories_say_the_same(tmp_path):
    model = mlp(out=1)
    x = torch.randn(32, 16)
    history = recorded(model, torch.optim.SGD(model.parameters(), lr=5.0), F.mse_loss, (x, x[:, :1]), 12)
    history.save(tmp_path / "history.npz")
    loaded = type(history).load(tmp_path / "history.npz")
    assert loaded.at().findings == history.at().findings
    assert history.at(11).findings == history.at().findings
