"""Losses: which is taken, the targets it takes, and what guessing costs."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gradexp.choices import ConfigError
from gradexp.config import DataConfig
from gradexp.runs.data import Dataset, load
from gradexp.runs.losses import chance_accuracy, chance_loss, resolve_loss, targets


def labelled(*labels, classes):
    y = torch.tensor(labels)
    x = torch.ones(len(labels), 1, dtype=torch.float64)
    return Dataset(x, y, x, y, classes)


def test_loss_follows_the_targets():
    classes, real = labelled(0, 1, classes=2), load(DataConfig("ones"), width=2)
    assert resolve_loss("auto", classes, "digits") == "cross_entropy"
    assert resolve_loss("auto", real, "ones") == "mse"
    assert resolve_loss("mse", classes, "digits") == "mse"
    assert resolve_loss("mse", real, "ones") == "mse"
    assert resolve_loss("cross_entropy", classes, "digits") == "cross_entropy"


def test_cross_entropy_with_real_valued_targets_is_refused():
    message = r"^loss=cross_entropy needs class labels, but data 'ones' has real-valued targets; use loss=mse$"
    with pytest.raises(ConfigError, match=message):
        resolve_loss("cross_entropy", load(DataConfig("ones"), width=2), "ones")


def test_targets_are_one_hot_for_mse_on_classes_only():
    y = torch.tensor([2, 0])
    one_hot = targets(y, "mse", 3)
    assert one_hot.dtype == torch.float64
    assert one_hot.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert targets(y, "cross_entropy", 3) is y
    real = torch.ones(2, 1, dtype=torch.float64)
    assert targets(real, "mse", None) is real


def test_chance_loss_of_cross_entropy_is_the_entropy_of_the_labels():
    data = load(DataConfig("digits"), width=128)
    chance = chance_loss(data, "cross_entropy")
    logits = (data.y_train.bincount() / 1437.0).log().double().expand(1437, 10)
    assert chance == pytest.approx(F.cross_entropy(logits, data.y_train).item(), rel=1e-6)
    assert chance < math.log(10)
    for frequency, expected in ((0.02, 0.0980391), (0.5, math.log(2)), (0.0, 0.0)):
        labels = (torch.arange(1000) < 1000 * frequency).long()
        two = dataclasses.replace(data, y_train=labels, classes=2)
        assert chance_loss(two, "cross_entropy") == pytest.approx(expected, abs=1e-6)


def test_chance_loss_of_mse_is_that_of_the_mean_target_and_no_constant_beats_it():
    data = load(DataConfig("gaussian", samples=50, features=4, targets=3), width=128)
    mean = data.y_train.mean(0).expand_as(data.y_train)
    chance = chance_loss(data, "mse")
    assert chance == pytest.approx(F.mse_loss(mean, data.y_train).item(), rel=1e-12)
    assert F.mse_loss(mean + 0.01, data.y_train) > chance
    assert F.mse_loss(mean - 0.01, data.y_train) > chance


def test_chance_loss_of_mse_on_balanced_classes_is_p_times_1_minus_p():
    assert chance_loss(labelled(0, 1, 2, 3, classes=4), "mse") == pytest.approx(1 / 4 * 3 / 4, rel=1e-12)


def test_guessing_is_right_as_often_as_the_most_frequent_class_and_undefined_without_classes():
    assert chance_accuracy(labelled(0, 2, 2, 1, 2, 0, classes=4)) == 3 / 6
    assert chance_accuracy(labelled(1, classes=2)) == 1
    assert chance_accuracy(load(DataConfig("ones"), width=2)) is None
