"""From sizes of each sample to a History: cotangents to begin with, averages of logs to end with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.numerics.seeds import generator


def unit_cotangents(seed: int, batch: int, width: int) -> Tensor:
    """Return a vector of length 1 in a random direction for each sample, shape ``(batch, width)``."""
    drawn = torch.randn(batch, width, generator=generator(seed, "cotangent"), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def mean_cosine(z: Tensor) -> Tensor:
    """Return the mean cosine between two samples of each network that are not 0; nan where there are no two."""
    unit = torch.nn.functional.normalize(z, dim=2, eps=0.0)
    has_direction = unit.isfinite().all(dim=2)
    samples = has_direction.sum(dim=1, dtype=torch.float64)
    total = unit.where(has_direction.unsqueeze(2), 0).sum(dim=1)
    cosine = (total.square().sum(dim=1) - samples) / (samples * (samples - 1))
    return cosine.where(samples > 1, torch.nan)


def averaged(
    names: Sequence[str], elements: Sequence[int], seeds: Sequence[int], sizes: Mapping[str, Tensor]
) -> History:
    """Average the logs over the samples that are alive in every row.

    Args:
        names: Name of each row; those of one name are calls of one module.
        elements: Number of elements of each row's output.
        seeds: Seed of each network.
        sizes: log10 of L2 norms, ``output_norm``, ``output_grad_norm`` and ``weight_grad_norm``, and of largest
            magnitudes, ``output_largest`` and ``output_grad_largest``, each of shape ``(row, network, sample)``; the
            mean ``cosine`` of two samples' outputs, shape ``(1, network)``.
    """
    widths = torch.tensor(elements, dtype=torch.float64)
    logs = {
        "output": sizes["output_norm"] - 0.5 * widths.log10()[:, None, None],
        "output_grad": sizes["output_grad_norm"],
        "weight_grad": sizes["weight_grad_norm"],
    }
    signals = torch.cat([logs["output"], logs["output_grad"]])
    zero = (signals == -torch.inf).any(dim=0) & (signals < torch.inf).all(dim=0)  # the latter is false for nan
    alive = signals.isfinite().all(dim=0)
    # A network with no sample left still shows each layer up to where it died.
    chosen = alive | ~alive.any(dim=1, keepdim=True)

    log10, status = {}, {}
    for quantity, log in logs.items():
        counted = chosen & log.isfinite()
        count = counted.sum(dim=2)
        mean = log.where(counted, 0).sum(dim=2) / count
        code = torch.full(count.shape, STATUSES.index("ok"), dtype=torch.int8)
        code[count == 0] = STATUSES.index("nonfinite")
        code[((log == -torch.inf) | ~chosen).all(dim=2)] = STATUSES.index("zero")
        lost = (log.isnan() | (log == torch.inf)).any(dim=2)
        mean[lost], code[lost] = torch.nan, STATUSES.index("nonfinite")
        log10[quantity] = mean.T.unsqueeze(0).numpy()
        status[quantity] = code.T.unsqueeze(0).numpy()
    return History(
        phase="init",
        names=list(names),
        calls=[names[:row].count(name) for row, name in enumerate(names)],
        steps=[0],
        seeds=list(seeds),
        log10=log10,
        status=status,
        largest_log10={
            quantity: sizes[f"{quantity}_largest"].amax(dim=2).T.unsqueeze(0).numpy()
            for quantity in ("output", "output_grad")
        },
        dead_fraction=zero.double().mean(dim=1).numpy(),
        output_cosine=sizes["cosine"].squeeze(0).numpy(),
        samples=logs["output_grad"].where(alive, torch.nan)[:, :, :1].transpose(0, 1).unsqueeze(0).numpy(),
    )
