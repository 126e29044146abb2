"""What a narrow number format is expected to do to the first batch of a training."""

import numpy as np
import torch

from gradexp.config import Config
from gradexp.exact.profile import exact_profile
from gradexp.networks.mlp import MLP, evaluating
from gradexp.numerics.seeds import generator
from gradexp.runs.data import Dataset, batches
from gradexp.runs.losses import output_gradient, targets
from gradexp.runs.number_format import FormatCheck, Range, cures, flushes_subnormals


@torch.no_grad()
def check_format(config: Config, alone: MLP, data: Dataset, loss: str, device: torch.device) -> FormatCheck:
    """Return what a narrow format is expected to do to the first batch of a training, by passes in float64.

    Args:
        config: The options of the run.
        alone: Its network, which is changed.
        data: Its data.
        loss: Its loss.
        device: Where it will be trained.
    """
    name, dtype = config.number_format, getattr(torch, config.number_format)
    rows = next(batches(len(data.x_train), config.batch_size, generator(config.seed, "batches")))
    exact = alone.to(dtype).double()
    where = next(exact.parameters()).device
    x = data.x_train[rows].to(dtype).to(where, torch.float64)
    with evaluating(exact), torch.enable_grad():
        y = targets(data.y_train[rows], loss, data.classes).to(where)
        cotangent = output_gradient(exact(x).unsqueeze(0), y.unsqueeze(0), loss)[0]
    # Where outputs leave float64, they have left the format before, and gradients do not count.
    profile = exact_profile(exact, x, cotangent if cotangent.isfinite().all() else None)
    output, gradient = (profile.largest_log10[quantity][0, 0] for quantity in ("output", "output_grad"))
    narrowest = min(config.hidden_widths, default=1)
    is_flushed = flushes_subnormals(name, device, config.batch_size, narrowest)
    held = Range(name, config.precision == "amp_float16", is_flushed)
    weight = np.array([layer.weight.abs().max().log10().item() for layer in exact.layers])  # type: ignore[operator]
    options = cures(config.dtype, config.precision, output, gradient)
    return FormatCheck(name, output, gradient, held.first_failure(output, gradient, weight), cures=options)
