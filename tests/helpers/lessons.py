"""A lesson of small networks, of which the page has as much as of large ones."""

from dataclasses import replace
from functools import cache

from gradexp.config import DataConfig
from gradexp.lesson.trainings import NETWORK, Training, train


@cache
def small_trainings() -> tuple[Training, ...]:
    data = DataConfig("gaussian", samples=100, features=4)
    return tuple(train(replace(NETWORK, depth=8, width=4, steps=3, loss="mse", data=data)))
