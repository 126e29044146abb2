"""Several threads that measure at a time, and what an interruption or the interpreter's end leaves of a probe."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import GradientProbe, measure
from gradexp.probe.hooks import Hooks


class Meets(nn.Module):
    """Goes on when two threads are in its forward pass, so that their passes overlap whatever the machine does."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier

    def forward(self, x):
        self.barrier.wait(60)
        return x


def network(seed, barrier):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), Meets(barrier), nn.Tanh(), nn.Linear(5, 3))


def test_two_threads_measure_their_own_models():
    x, y = torch.linspace(-1, 1, 8).view(2, 4), torch.tensor([0, 2])
    alone = [measure(network(seed, threading.Barrier(1)), F.cross_entropy, (x, y)) for seed in range(2)]
    barrier = threading.Barrier(2)
    models = [network(seed, barrier) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda model: measure(model, F.cross_entropy, (x, y)), models))
    for mine, reference in zip(together, alone, strict=True):
        for quantity in ("output", "output_grad", "weight_grad"):
            assert mine.profile(quantity).tolist() == reference.profile(quantity).tolist()


def test_measuring_in_one_thread_hides_nothing_from_a_probe_in_another():
    barrier = threading.Barrier(2)
    watched, other = network(0, barrier), network(1, barrier)
    x = torch.ones(2, 4)
    with GradientProbe(watched) as probe:
        thread = threading.Thread(target=measure, args=(other, torch.sum, x))
        thread.start()
        watched(x).sum().backward()
        thread.join(60)
        probe.collect(0)
    assert (probe.history.status["output_grad"] == 0).all()


def test_a_forward_pass_that_ctrl_c_ended_leaves_no_rows():
    class Interrupts(nn.Module):
        now = True

        def forward(self, x):
            if self.now:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(nn.Linear(3, 3), Interrupts(), nn.Linear(3, 1))
    probe = GradientProbe(model).attach()
    with pytest.raises(KeyboardInterrupt):
        model(torch.ones(2, 3))
    model[1].now = False
    model(torch.ones(2, 3)).sum().backward()
    probe.collect(0)
    probe.remove()
    assert list(zip(probe.history.names, probe.history.calls, strict=True)) == [("0", 0), ("2", 0)]
    assert (probe.history.status["output_grad"] == 0).all()


def test_a_model_that_calls_itself_is_one_pass():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, times=3):
            return self.layer(x) if times == 1 else self(self.layer(x), times - 1)

    model = Recursive()
    with GradientProbe(model) as probe:
        model(torch.ones(2, 3)).sum().backward()
        probe.collect(0)
    assert probe.history.calls == [0, 1, 2]


def test_a_probe_that_outlives_the_interpreter_touches_no_hook(monkeypatch):
    model = nn.Linear(3, 1)
    probe = GradientProbe(model).attach()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "is_finalizing", lambda: True)
        patch.setattr(Hooks, "detach", lambda self: pytest.fail("torch is gone"))
        probe.__del__()
    probe.remove()
