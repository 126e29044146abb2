"""One run, from options to verdict: the only file that knows all the others.

``run`` is what ``python -m gradexp.run`` calls, and what a script calls that does without Hydra.
"""

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from gradexp.config import Config, ConfigError
from gradexp.result import Result
from gradexp.verdict import run_verdict

if TYPE_CHECKING:
    import torch

    from gradexp.data import Dataset
    from gradexp.models import MLP
    from gradexp.train import Part

# Bytes of parameters that are held at a time.
_STACK = 512 << 20


class Sink(Protocol):
    """Where results go: ``write`` is called again and again as a run becomes known."""

    def write(self, stage: str, result: Result) -> None:
        """Take in what is known at a stage: start, built, initial, step, end, or progress in between."""

    def close(self) -> None:
        """Release files and terminal."""


def run(config: Config, sinks: Sequence[Sink] = (), overrides: Sequence[str] = ()) -> Result:
    """Build the network, measure it at initialisation, train it and judge it.

    Args:
        config: The options.
        sinks: Told of every stage; on an error or an interruption they still get the stage ``end``.
        overrides: The command line, for the record.

    Returns:
        All that was found. Divergence is a result.

    Raises:
        ConfigError: If an option cannot work with the data or the device.
        KeyboardInterrupt: Passed on once the sinks hold what there is, with status ``interrupted``.

    Example:
        >>> result = run(Config(depth=10, width=16, steps=5))
        >>> result.verdict.gradient
        'stable'
    """
    result = Result(config, list(overrides))
    clock = _Clock(result)
    try:
        _tell(sinks, "start", result)
        with clock.part("importing torch"):
            import torch  # noqa: F401  here, so that an interruption while it loads is recorded too
        _run(result, sinks, clock)
        result.status = "complete"
    except KeyboardInterrupt:
        result.status = "interrupted"
        raise
    except BaseException as error:  # also SystemExit, with which rich answers a closed pipe
        result.status = "failed"
        text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        result.error = text.split("\n")[0]
        raise
    finally:
        clock.stop()
        try:
            _tell(sinks, "end", result)
        finally:
            for sink in sinks:
                sink.close()
    return result


def _run(result: Result, sinks: Sequence[Sink], clock: "_Clock") -> None:
    import torch

    from gradexp.data import chance_loss, check_batch, load, resolve_loss
    from gradexp.forecast import predict_run
    from gradexp.history import join
    from gradexp.propagate import exact_profile
    from gradexp.theory import compare
    from gradexp.train import Training

    config = result.config
    device = _device(config.device)
    result.device = str(device)
    result.device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    result.threads = config.threads or 1

    def progress(activity: str, done: int, total: int) -> None:
        result.progress = (activity, done, total)
        _tell(sinks, "progress", result)

    with _threads(result.threads):
        with clock.part("data"):
            data = load(config.data, config.width)
            loss = resolve_loss(config.loss, data, config.data.name)
            check_batch(config.batch_size, data, config.data.name)
        parts, histories = _parts(config, data), []
        for index, seeds in enumerate(parts):

            def share(activity: str, done: int, total: int, before: int = index) -> None:
                progress(activity, before * total + done, len(parts) * total)

            with clock.part("weights"):
                stack = _build(config, data, device, seeds, partial(share, "drawing weights"))
            if index == 0:
                model = stack.network(0) if config.seeds > 1 else stack
                result.building = _describe(config, model, data, loss, result)
                _tell(sinks, "built", result)
            with clock.part("profile"):
                x = data.x_train[: config.batch_size]
                report = partial(share, "profile at initialisation")
                histories.append(exact_profile(stack, x, seeds=seeds, progress=report))
            del stack  # before the next one is built
        result.initial = join(histories)
        with clock.part("theory"):
            result.prediction = predict_run(config, data.x_train[: config.batch_size], data.output_width)
            result.initial.theory = result.prediction.arrays
            result.comparison = compare(result.prediction, result.initial)
        result.verdict = run_verdict(config, result.initial, theory=result.comparison)
        _tell(sinks, "initial", result)

        if config.steps:
            result.training = Training()

            def on_step(step: int) -> None:
                _tell(sinks, "step", result)
                progress("training", step + 1, config.steps)

            with clock.part("training"):
                _train(result, model, data, loss, on_step)
        if config.save_weights:
            result.weights = {name: value.cpu() for name, value in model.state_dict().items()}
        training = result.training or Training()
        result.verdict = run_verdict(
            config,
            result.initial,
            training.losses,
            training.diverged_at,
            chance_loss(data, loss),
            result.gradients,
            result.comparison,
        )


def _train(result: Result, model: "MLP", data: "Dataset", loss: str, on_step: Callable[[int], None]) -> None:
    """Train one network with the probe on, and keep what the probe saw even if training is interrupted."""
    from gradexp.data import batches
    from gradexp.probe import GradientProbe
    from gradexp.seeds import generator
    from gradexp.train import build_optimizer, train

    config = result.config
    assert result.training is not None
    optimizer = build_optimizer(config.optimizer, list(model.parameters()))
    probe = GradientProbe(model, every=config.record.every, optimizer=optimizer, seeds=[config.seed])
    try:
        train(
            model,
            _part(data.x_train, data.y_train, data, loss, model),
            _part(data.x_test, data.y_test, data, loss, model),
            batches(len(data.x_train), config.batch_size, generator(config.seed, "batches")),
            loss,
            optimizer,
            config.steps,
            probe,
            result.training,
            config.optimizer.clip_norm,
            on_step,
        )
    finally:
        result.gradients = probe.history


def _widths(config: Config, data: "Dataset") -> list[int]:
    return [data.input_width, *config.hidden_widths, data.output_width]


def _parts(config: Config, data: "Dataset") -> list[list[int]]:
    """Split the seeds into stacks of about equal size that fit into memory."""
    widths = _widths(config, data)
    weights = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))
    size = weights * (8 if config.dtype == "float64" else 4)
    seeds = range(config.seed, config.seed + config.seeds)
    parts = min(config.seeds, math.ceil(config.seeds * size / _STACK))
    ends = [config.seeds * part // parts for part in range(parts + 1)]
    return [list(seeds[first:last]) for first, last in pairwise(ends)]


def _build(
    config: Config, data: "Dataset", device: "torch.device", seeds: list[int], progress: Callable[[int, int], None]
) -> "MLP":
    """Return the networks of some neighbouring seeds as one stack."""
    import torch

    from gradexp.inits import initialize
    from gradexp.models import MLP

    stack = MLP(
        _widths(config, data),
        config.activation,
        bias=config.bias,
        networks=len(seeds),
        negative_slope=config.negative_slope,
        device=device,
        dtype=getattr(torch, config.dtype),
        draw=False,  # they would be overwritten at once
        normalization=config.normalization,
        residual=config.residual,
    )
    try:
        initialize(
            stack,
            config.init.name,
            seed=seeds[0],
            sigma_b2=config.sigma_b2,
            activation=config.activation,
            negative_slope=config.negative_slope,
            inputs=data.x_train[: config.batch_size],
            progress=progress,
            **config.init.options,
        )
    except ValueError as error:  # of lsuv, which depends on the data
        raise ConfigError(str(error)) from error
    return stack


def _part(x: "torch.Tensor", y: "torch.Tensor", data: "Dataset", loss: str, model: "MLP") -> "Part":
    """Move a part of the data to the model's device and number format."""
    import torch

    from gradexp.data import targets
    from gradexp.train import Part

    weight = next(model.parameters())
    target = targets(y, loss, data.classes).to(weight.device)
    return Part(
        x.to(weight.device, weight.dtype),
        target.to(weight.dtype) if target.is_floating_point() else target,
        y.to(weight.device) if y.dtype == torch.int64 else None,
    )


def _describe(config: Config, model: "MLP", data: "Dataset", loss: str, result: Result) -> str:
    """Say in four lines what is built."""
    hidden = config.hidden_widths
    parameters = sum(parameter.numel() for parameter in model.parameters()) // model.networks
    options = ", ".join(f"{key}={value}" for key, value in config.init.options.items())
    cures = "".join(f"{cure}, " for cure in config.cures)
    seeds = f"seed {config.seed}" + (f" to {result.seeds[-1]}" if config.seeds > 1 else "")
    update = f"{config.steps} steps of {config.optimizer.name} lr={config.optimizer.lr:g}, {loss}, "
    threads = f", {result.threads} thread{'s' if result.threads != 1 else ''}" if result.device == "cpu" else ""
    return (
        f"network   {config.depth} {config.activation} layers{f' of {config.units} units' if hidden else ''}, {cures}"
        f"{model.widths[0]} inputs, {model.widths[-1]} outputs, {parameters:,} weights\n"
        f"init      {config.init.name} ({options}), {seeds}\n"
        f"data      {config.data.name}, {len(data.x_train)} training samples, batches of {config.batch_size}\n"
        f"training  {update if config.steps else 'none; '}{config.dtype} on {result.device}{threads}"
    )


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device={name} is not there: PyTorch finds {found} CUDA devices; use device=cpu or auto")
    return device


def _cpu_name() -> str:
    return platform.processor() or platform.machine()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use so many CPU threads, and afterwards as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tell(sinks: Sequence[Sink], stage: str, result: Result) -> None:
    for sink in sinks:
        sink.write(stage, result)


class _Clock:
    """Wall time of the whole run and of its parts."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.begin = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            parts = self.result.seconds_by_part
            parts[name] = parts.get(name, 0) + time.perf_counter() - begin

    def stop(self) -> None:
        self.result.seconds = time.perf_counter() - self.begin
