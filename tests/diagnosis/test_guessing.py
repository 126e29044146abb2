"""Whether a classifier beats guessing by the labels' real frequencies."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def trained(labels, steps, inputs=16, classes=2):
    """Train on fresh batches and measure on another one."""
    model = nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        x = torch.randn(256, inputs)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels(x)).backward()
        optimizer.step()
    x = torch.randn(2000, inputs)
    return measure(model, F.cross_entropy, (x, labels(x))).findings[0]


def rare(x):
    return (torch.rand(len(x)) < 0.02).long()


def test_a_model_that_knows_only_how_rare_a_class_is_does_not_beat_guessing():
    findings = trained(rare, 300)
    kinds = {finding.kind: finding for finding in findings if finding.severity > 0}
    assert kinds["guessing not beaten"].severity == 2
    assert "knowing the frequencies, not the samples" in kinds["guessing not beaten"].text
    assert kinds["one class"].text == "all 2000 samples are predicted to be of class 0; there are 2 classes"


def test_a_model_that_finds_the_rare_class_raises_no_alarm():
    findings = trained(lambda x: (x[:, 0] > 2).long(), 300)
    assert not [finding for finding in findings if finding.severity > 0]


def test_balanced_noise_is_not_beaten_after_training_and_a_fresh_model_is_no_alarm():
    noise = lambda x: torch.randint(4, (len(x),))  # noqa: E731
    (finding,) = [f for f in trained(noise, 300, classes=4) if f.kind == "guessing not beaten"]
    assert finding.severity == 1
    assert not [f for f in trained(noise, 0, classes=4) if f.kind == "guessing not beaten"]


def test_a_discriminator_that_is_even_with_its_generator_raises_no_alarm():
    model = nn.Linear(16, 1)
    with torch.no_grad():
        for _ in range(5000):
            model.weight.mul_(0.99)
            model.bias.mul_(0.99)
    labels = torch.cat([torch.ones(64, 1), torch.zeros(64, 1)])
    findings = measure(model, F.binary_cross_entropy_with_logits, (torch.randn(128, 16), labels)).findings[0]
    assert [f.severity for f in findings if f.kind == "guessing not beaten"] == [0]
    mixed = labels[torch.randperm(128)]
    findings = measure(model, F.binary_cross_entropy_with_logits, (torch.randn(128, 16), mixed)).findings[0]
    assert [f.severity for f in findings if f.kind == "guessing not beaten"] == [2]


def test_few_samples_say_nothing_about_guessing():
    model = nn.Linear(16, 10)
    findings = measure(model, F.cross_entropy, (torch.randn(8, 16), torch.randint(10, (8,)))).findings[0]
    assert findings == ()
