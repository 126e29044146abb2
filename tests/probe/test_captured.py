"""A captured step is recorded as the probe records it: on the CPU the same path, on CUDA a graph that is replayed."""

import numpy as np
import pytest
import torch
from torch import nn

from gradexp import GradientProbe
from gradexp.history.step import STATUSES
from gradexp.probe.captured import CapturedProbe


def network(device: str, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for _ in range(5) for part in (nn.Linear(6, 6), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


@pytest.mark.parametrize("scale", [1.0, 1e-9])  # of which float32's own norms of gradients are 0
def test_replayed_steps_have_the_probes_numbers(device: str, scale: float) -> None:
    model, batches = network(device, scale), torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(1))
    x = torch.zeros(8, 6, device=device)
    captured = CapturedProbe(model)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model(x).square().mean().backward()
        captured.measure()

    with captured:
        if device == "cpu":
            replay = step
        else:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            replay = graph.replay
        for index, batch in enumerate(batches):
            x.copy_(batch)
            replay()
            captured.collect(10 * index)
    with GradientProbe(model, quantities=("output", "output_grad", "weight_grad")) as probe:
        for index, batch in enumerate(batches):
            model.zero_grad()
            model(batch.to(device)).square().mean().backward()
            probe.collect(10 * index)
    ours, theirs = captured.history, probe.history
    assert (ours.names, ours.steps) == (theirs.names, theirs.steps)
    for quantity, expected in theirs.log10.items():
        np.testing.assert_allclose(ours.log10[quantity], expected, rtol=0, atol=1e-6 if device != "cpu" else 1e-12)
        np.testing.assert_array_equal(ours.status[quantity], theirs.status[quantity])


def test_a_layer_that_a_step_leaves_out_is_not_called(device: str) -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)}).to(device)
    with CapturedProbe(model) as captured:
        model["used"](torch.ones(2, 3, device=device)).sum().backward()
        captured.measure()
    captured.collect(0)
    for quantity in ("output", "output_grad", "weight_grad"):
        found = captured.history.status[quantity][0, 0].tolist()
        assert [STATUSES[code] for code in found] == ["ok", "not_called"]
        assert np.isnan(captured.history.log10[quantity][0, 0, 1])


def test_hooks_are_gone_after_the_capture() -> None:
    model = network("cpu")
    with CapturedProbe(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_nothing_captured_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"^no step was captured: call probe.measure\(\) after backward"):
        CapturedProbe(network("cpu")).collect(0)
