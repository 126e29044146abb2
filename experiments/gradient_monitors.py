"""What widely used monitors of gradients say of the gradient of each weight.

A package that can be imported is asked itself; of any other the formula that its source has is evaluated, so that
none of them is needed. A histogram is asked for the norm of the centres of its bins.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

Ask = Callable[[Any, nn.Module], Iterable[Any]]


@dataclass(frozen=True)
class Monitor:
    """A monitor of gradients.

    Args:
        name: The name by which its users know it.
        module: The module in which its package keeps it.
        ask: A function of that module and a network with gradients, which returns the norm of each weight's gradient
            as the monitor reports it.
        formula: The same of one gradient, as its source has it; None: torch's own, always at hand.
    """

    name: str
    module: str
    ask: Ask
    formula: Callable[[Tensor], Any] | None = None

    def read(self, model: nn.Module) -> tuple[list[float], str]:
        """Return what it says of each weight's gradient, and whether that is ``real`` or by its ``formula``."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(self.module)
        except Exception:  # not installed, or not for this version of torch
            if self.formula is None:
                raise
            gradients = [weight.grad for weight in weights(model) if weight.grad is not None]
            return [float(self.formula(gradient)) for gradient in gradients], "formula"
        return [float(reading) for reading in self.ask(module, model)], "real"


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of a network by name, in order."""
    return {name: parameter for name, parameter in model.named_parameters() if name.endswith("weight")}


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a network, in order."""
    return list(named_weights(model).values())


def copy_of(weight: nn.Parameter) -> nn.Parameter:
    """Return a parameter with a gradient of its own, which can be clipped."""
    copy = nn.Parameter(weight.detach())
    copy.grad = None if weight.grad is None else weight.grad.clone()
    return copy


def _clip_grad_norm(module: Any, model: nn.Module) -> list[Tensor]:
    return [module.clip_grad_norm_([copy_of(weight)], 1.0) for weight in weights(model)]


def _lightning(module: Any, model: nn.Module) -> list[Tensor]:
    norms = module.grad_norm(model, norm_type=2)
    return [norms[f"grad_2.0_norm/{name}"] for name in named_weights(model)]


def _composer(module: Any, model: nn.Module) -> list[float]:
    logged: dict[str, float] = {}
    state = SimpleNamespace(
        model=model, optimizers=[None], fsdp_enabled=False, timestamp=SimpleNamespace(batch=SimpleNamespace(value=0))
    )
    module.OptimizerMonitor().batch_end(state, SimpleNamespace(log_metrics=logged.update))
    return [logged[f"l2_norm/grad/{name}"] for name in named_weights(model)]


def _cockpit(module: Any, model: nn.Module) -> list[float]:
    norms: list[float] = module.GradNorm(track_schedule=bool)._compute(0, weights(model), None)
    return norms


def _wandb(module: Any, model: nn.Module) -> list[float]:
    """Ask the code that ``wandb.watch`` hooks to each parameter, with a stand-in for the run that it logs to."""
    logged: dict[str, Any] = {}
    run = SimpleNamespace(_log=lambda entry, commit: logged.update(entry))  # noqa: ARG005
    with patch.object(module.wandb, "run", run):
        for name, weight in named_weights(model).items():
            module.TorchHistory().log_tensor_stats(weight.grad, name)
    histograms = [logged.get(name) for name in named_weights(model)]  # none of what is not finite
    return [math.nan if entry is None else _of_histogram(entry.histogram, entry.bins) for entry in histograms]


def _wandb_formula(gradient: Tensor) -> float:
    low, high = gradient.min().item(), gradient.max().item()
    if not low < high:
        return _of_histogram([gradient.numel()], [low, high])
    return _of_histogram(gradient.flatten().histc(64, low, high), torch.linspace(low, high, 65))


def _torchexplorer(module: Any, model: nn.Module) -> list[float]:
    def read(gradient: Tensor | None) -> float:
        if gradient is None or not gradient.isfinite().all():
            return math.nan  # it fails
        histogram = module.IncrementalHistogram(module.HistogramParams())
        histogram.update(gradient)
        edges = torch.linspace(histogram.min, histogram.max, len(histogram.bin_counts) + 1, dtype=torch.float64)
        return _of_histogram(histogram.bin_counts, edges) * math.sqrt(gradient.numel() / sum(histogram.bin_counts))

    with torch.random.fork_rng(devices=[]):  # it looks at 100 random elements
        torch.manual_seed(0)
        return [read(weight.grad) for weight in weights(model)]


def _torchexplorer_formula(gradient: Tensor) -> float:
    low, high = gradient.min().item(), gradient.max().item()
    if not math.isfinite(low + high):
        return math.nan
    low, high = low + 1.5 * (low - high) - 1e-4, low + 1.5 * (high - low) + 1e-4
    return _of_histogram(gradient.flatten().histc(10, low, high), torch.linspace(low, high, 11, dtype=torch.float64))


def _of_histogram(counts: Any, edges: Any) -> float:
    """Return the norm of elements of which a histogram is known, each taken to be at the centre of its bin."""
    counts, edges = (torch.as_tensor(values, dtype=torch.float64) for values in (counts, edges))
    centres = (edges[1:] + edges[:-1]) / 2
    return math.sqrt((counts * centres.square()).sum().item())


MONITORS = (
    Monitor("torch clip_grad_norm_", "torch.nn.utils", _clip_grad_norm),
    # torchtitan/distributed/utils.py of pytorch/torchtitan
    Monitor(
        "torchtitan clip_grad_norm_",
        "torchtitan.distributed.utils",
        _clip_grad_norm,
        lambda gradient: torch.nn.utils.get_total_norm([gradient]),
    ),
    # src/lightning/pytorch/utilities/grads.py of Lightning-AI/pytorch-lightning
    Monitor("Lightning grad_norm", "lightning.pytorch.utilities", _lightning, lambda gradient: gradient.norm(2.0)),
    # composer/callbacks/optimizer_monitor.py of mosaicml/composer
    Monitor("Composer OptimizerMonitor", "composer.callbacks", _composer, torch.linalg.vector_norm),
    # cockpit/quantities/grad_norm.py of f-dangel/cockpit
    Monitor("Cockpit GradNorm", "cockpit.quantities", _cockpit, lambda gradient: gradient.norm(2)),
    # torchexplorer/components/histogram.py of spfrommer/torchexplorer
    Monitor("TorchExplorer histogram", "torchexplorer.components.histogram", _torchexplorer, _torchexplorer_formula),
    # wandb/integration/torch/wandb_torch.py of wandb/wandb
    Monitor("wandb.watch histogram", "wandb.integration.torch.wandb_torch", _wandb, _wandb_formula),
)
"""All of them, torch's first; the comments name the source of each formula."""
