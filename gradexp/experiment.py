"""One run, from options to verdict: the only file that knows all the others.

``run`` is what ``python -m gradexp.run`` calls, and what a script calls that does without Hydra.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from gradexp.config import Config, ConfigError
from gradexp.device import device_name, find_device
from gradexp.ensemble import count_weights, split
from gradexp.result import Result
from gradexp.verdict import run_verdict

if TYPE_CHECKING:
    import torch

    from gradexp.data import Dataset
    from gradexp.models import MLP
    from gradexp.train import Part

# Bytes of parameters that are held at a time.
_STACK = 512 << 20


_Network = tuple[Result, int]  # whose network it is, and its seed


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
    try:
        _run([result], sinks)
    finally:
        _finish(result, sinks)
    return result


def run_stack(configs: Sequence[Config], sinks: Sequence[Sink] = ()) -> list[Result]:
    """Run several experiments as one stack of networks, each with the numbers that ``run`` gives.

    Args:
        configs: Options that differ in ``init``, ``sigma_b2`` and ``seed`` only (see ``gradexp.ensemble``).
        sinks: Told the first run's stages, for a look at the progress.

    Returns:
        What was found, for each config; ``deliver`` hands it to the sinks of a run. Times are shares of the stack's.

    Raises:
        KeyboardInterrupt: With the results, of status ``interrupted``, as its argument.
    """
    results = [Result(config) for config in configs]
    try:
        _run(results, sinks)
    except KeyboardInterrupt as interruption:
        interruption.args = (results,)
        raise
    finally:
        for sink in sinks:
            sink.close()
    return results


def deliver(result: Result, sinks: Sequence[Sink], overrides: Sequence[str] = ()) -> None:
    """Tell the sinks of a run what ``run_stack`` has found."""
    result.overrides = list(overrides)
    try:
        if result.initial is not None:
            _tell(sinks, "built", result)
            _tell(sinks, "initial", result)
    except Exception as mistake:
        _fail(result, mistake)
        raise
    finally:
        _finish(result, sinks)


def _finish(result: Result, sinks: Sequence[Sink]) -> None:
    """Let every sink complete its work; those after one that fails are told that the run has failed."""
    if not sinks:
        return
    try:
        try:
            sinks[0].write("end", result)
        finally:
            sinks[0].close()
    except Exception as mistake:
        _fail(result, mistake)
        raise
    finally:
        _finish(result, sinks[1:])


def _fail(result: Result, mistake: BaseException) -> None:
    text = str(mistake) if isinstance(mistake, ConfigError) else f"{type(mistake).__name__}: {mistake}"
    result.status, result.error = "failed", text.split("\n")[0]


def _run(results: list[Result], sinks: Sequence[Sink]) -> None:
    """Run experiments together, and note how they ended. Sinks are told of the first."""
    clock = _Clock(results)
    try:
        _tell(sinks, "start", results[0])
        with clock.part("importing torch"):
            import torch  # noqa: F401  here, so that an interruption while it loads is recorded too
        with _threads(results[0].config.threads or 1):
            _measure_and_train(results, sinks, clock)
        for result in results:
            result.status = "complete"
    except KeyboardInterrupt:
        for result in results:
            result.status = "interrupted"
        raise
    except BaseException as mistake:  # also SystemExit, with which rich answers a closed pipe
        for result in results:
            _fail(result, mistake)
        raise
    finally:
        clock.stop()


def _measure_and_train(results: list[Result], sinks: Sequence[Sink], clock: "_Clock") -> None:

    from gradexp.data import chance_loss, check_batch, load, resolve_loss
    from gradexp.recording import sample_outputs
    from gradexp.train import Training

    config = results[0].config  # what it shares with the others is taken from it
    device = find_device(config.device)
    name = device_name(device)
    for result in results:
        result.device = str(device)
        result.device_name = name
        result.threads = config.threads or 1

    def progress(activity: str, done: int, total: int) -> None:
        results[0].progress = (activity, done, total)
        _tell(sinks, "progress", results[0])

    with clock.part("data"):
        data = load(config.data, config.width)
        loss = resolve_loss(config.loss, data, config.data.name)
        check_batch(config.batch_size, data, config.data.name)
    for result in results:
        result.building = _describe(result, data, loss)
    _tell(sinks, "built", results[0])

    model = _measure(results, data, device, clock, progress)
    _judge(results, data, clock)
    if config.record.histograms:
        sample_outputs(results, model, data.x_train[: config.batch_size], 0)
    _tell(sinks, "initial", results[0])

    if config.steps:
        for result in results:
            result.training = Training()

        def on_step(step: int) -> None:
            _tell(sinks, "step", results[0])
            progress("training", step + 1, config.steps)

        with clock.part("training"):
            _train(results, model, data, loss, on_step)
    for index, result in enumerate(results):
        if result.config.save_weights:
            alone = model if model.networks == 1 else model.network(index)
            result.weights = {name: value.cpu() for name, value in alone.state_dict().items()}
        assert result.initial is not None
        training = result.training or Training()
        result.verdict = run_verdict(
            result.config,
            result.initial,
            training.losses,
            training.diverged_at,
            chance_loss(data, loss),
            result.gradients,
            result.comparison,
        )


def _measure(
    results: Sequence[Result],
    data: "Dataset",
    device: "torch.device",
    clock: "_Clock",
    progress: Callable[[str, int, int], None],
) -> "MLP":
    """Measure all networks of all runs at initialisation, and return those with the runs' own seeds.

    They are worked through in stacks that fit into memory.
    """
    from gradexp.history import join
    from gradexp.models import MLP
    from gradexp.propagate import exact_profile

    x = data.x_train[: results[0].config.batch_size]
    networks = [(result, seed) for result in results for seed in result.seeds]
    parts, histories = _parts(networks, data), []
    kept: list[MLP] = []
    for index, part in enumerate(parts):

        def share(activity: str, done: int, total: int, before: int = index) -> None:
            progress(activity, before * total + done, len(parts) * total)

        with clock.part("weights"):
            stack = _build(part, data, device, partial(share, "drawing weights"))
        own = [place for place, (result, seed) in enumerate(part) if seed == result.config.seed]
        kept += [stack] if len(own) == stack.networks else [stack.network(place) for place in own]
        with clock.part("profile"):
            report = partial(share, "profile at initialisation")
            histories.append(exact_profile(stack, x, seeds=[seed for _, seed in part], progress=report))
        del stack  # before the next one is built
    measured = join(histories)
    start = 0
    for result in results:
        end = start + len(result.seeds)
        result.initial = measured.of_networks(slice(start, end))
        start = end
    return kept[0] if len(kept) == 1 else MLP.join(kept)


def _judge(results: Sequence[Result], data: "Dataset", clock: "_Clock") -> None:
    """Set theory beside what was measured at initialisation. Networks that differ in their seed share it."""
    from gradexp.forecast import predict_run
    from gradexp.theory import Prediction, compare

    known: dict[str, Prediction] = {}
    for result in results:
        assert result.initial is not None
        with clock.part("theory"):
            law = repr((result.config.init, result.config.sigma_b2))
            if law not in known:
                x = data.x_train[: result.config.batch_size]
                known[law] = predict_run(result.config, x, data.output_width)
            result.prediction = known[law]
            result.initial.theory = result.prediction.arrays
            result.comparison = compare(result.prediction, result.initial)
        result.verdict = run_verdict(result.config, result.initial, theory=result.comparison)


def _train(
    results: Sequence[Result], model: "MLP", data: "Dataset", loss: str, on_step: Callable[[int], None]
) -> None:
    """Train one network of each run with the probe on, and keep what it saw even if training is interrupted."""
    from gradexp.data import batches
    from gradexp.probe import GradientProbe
    from gradexp.recording import Recording
    from gradexp.seeds import generator
    from gradexp.train import build_optimizer, train

    config = results[0].config
    logs = [result.training for result in results if result.training is not None]
    optimizer = build_optimizer(config.optimizer, list(model.parameters()))
    seeds = [result.config.seed for result in results]
    probe = GradientProbe(model, every=config.record.every, optimizer=optimizer, networks=model.networks, seeds=seeds)
    recording = Recording(results, model, probe, data.x_train[: config.batch_size])

    def after_step(step: int) -> None:
        recording.after(step)
        on_step(step)

    try:
        train(
            model,
            _part(data.x_train, data.y_train, data, loss, model),
            _part(data.x_test, data.y_test, data, loss, model),
            [batches(len(data.x_train), config.batch_size, generator(seed, "batches")) for seed in seeds],
            loss,
            optimizer,
            config.steps,
            probe,
            logs,
            config.optimizer.clip_norm,
            after_step,
        )
    finally:
        recording.read()


def _widths(config: Config, data: "Dataset") -> list[int]:
    return [data.input_width, *config.hidden_widths, data.output_width]


def _parts(networks: Sequence[_Network], data: "Dataset") -> list[Sequence[_Network]]:
    """Split the networks into stacks of about equal size that fit into memory."""
    config = networks[0][0].config
    size = count_weights(_widths(config, data)) * (8 if config.dtype == "float64" else 4)
    parts = min(len(networks), math.ceil(len(networks) * size / _STACK))
    return split(networks, parts)


def _build(
    networks: Sequence[_Network], data: "Dataset", device: "torch.device", progress: Callable[[int, int], None]
) -> "MLP":
    """Draw some networks, those of one run with neighbouring seeds, as one stack."""
    from gradexp.models import MLP

    seeds_of = {id(result): (result.config, list[int]()) for result, _ in networks}
    for result, seed in networks:
        seeds_of[id(result)][1].append(seed)
    runs = list(seeds_of.values())

    def share(done: int, total: int) -> None:
        progress(len(stacks) * total + done, len(runs) * total)

    stacks: list[MLP] = []
    for config, seeds in runs:
        stacks.append(_draw(config, seeds, data, device, share))
    return stacks[0] if len(stacks) == 1 else MLP.join(stacks)


def _draw(
    config: Config, seeds: list[int], data: "Dataset", device: "torch.device", progress: Callable[[int, int], None]
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


def _describe(result: Result, data: "Dataset", loss: str) -> str:
    """Say in four lines what is built."""
    config = result.config
    hidden, widths = config.hidden_widths, _widths(result.config, data)
    parameters = sum((fan_in + config.bias) * fan_out for fan_in, fan_out in pairwise(widths))
    parameters += max(0, config.depth - 2) if config.residual == "zero" else 0
    options = ", ".join(f"{key}={value}" for key, value in config.init.options.items())
    cures = "".join(f"{cure}, " for cure in config.cures)
    seeds = f"seed {config.seed}" + (f" to {result.seeds[-1]}" if config.seeds > 1 else "")
    update = f"{config.steps} steps of {config.optimizer.name} lr={config.optimizer.lr:g}, {loss}, "
    threads = f", {result.threads} thread{'s' if result.threads != 1 else ''}" if result.device == "cpu" else ""
    return (
        f"network   {config.depth} {config.activation} layers{f' of {config.units} units' if hidden else ''}, {cures}"
        f"{widths[0]} inputs, {widths[-1]} outputs, {parameters:,} weights\n"
        f"init      {config.init.name} ({options}), {seeds}\n"
        f"data      {config.data.name}, {len(data.x_train)} training samples, batches of {config.batch_size}\n"
        f"training  {update if config.steps else 'none; '}{config.dtype} on {result.device}{threads}"
    )


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
    """Wall time of whole runs and of their parts. Runs that are made together share it equally."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        self.begin = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            for result in self.results:
                parts = result.seconds_by_part
                parts[name] = parts.get(name, 0) + self._share(begin)

    def stop(self) -> None:
        for result in self.results:
            result.seconds = self._share(self.begin)

    def _share(self, begin: float) -> float:
        return (time.perf_counter() - begin) / len(self.results)
