"""One run, from options to verdict: the only file that knows all the others.

``run`` is what ``python -m gradexp.run`` calls, and what a script calls that does without Hydra. torch is
imported inside functions, so that a run has its first file, and records an interruption, while it is still loading.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from gradexp.choices import ConfigError
from gradexp.config import Config, as_dict
from gradexp.runs.clock import Clock
from gradexp.runs.device import fix_order_of_sums
from gradexp.runs.result import Result, Sink, tell
from gradexp.runs.stacks import FREE, stackable_groups


def run(
    config: Config, sinks: Sequence[Sink] = (), overrides: Sequence[str] = (), *, progress: bool = False
) -> Result:
    """Build the network, measure it at initialisation, train it and judge it.

    Args:
        config: The options.
        sinks: Receivers of every stage; on an error or an interruption they still get the stage ``end``.
        overrides: The command line, for the record.
        progress: Whether to show a bar meanwhile, in a notebook or a terminal; elsewhere there is none.

    Returns:
        All that was found. Divergence is a result.

    Raises:
        ConfigError: If an option cannot work with the data or the device.
        KeyboardInterrupt: Passed on once the sinks hold what there is, with status ``interrupted``.

    Examples:
        >>> result = run(Config(depth=10, width=16, steps=5))
        >>> result.verdict.gradient
        'stable'
    """
    if progress:
        from gradexp.runs.progress import progress_here  # loads rich

        sinks = [*sinks, progress_here()]
    result = Result(config, list(overrides))
    try:
        _run([result], sinks)
    finally:
        _finish(result, sinks)
    return result


def run_stack(
    configs: Sequence[Config], sinks: Sequence[Sink] = (), results: list[Result] | None = None
) -> list[Result]:
    """Run several experiments as one stack of networks, each with the numbers that ``run`` gives.

    Args:
        configs: Options that differ in ``init``, ``sigma_b2`` and ``seed`` only (see ``gradexp.runs.stacks``).
        sinks: Sinks that follow the first run, for a progress bar.
        results: Empty list that gets the results, so that an interruption does not lose them; None: a new one.

    Returns:
        What was found, for each config; ``deliver`` hands it to the sinks of a run. Times are shares of the stack's.

    Raises:
        ConfigError: If there are none, or they differ in another option.
        KeyboardInterrupt: Passed on once ``results`` holds what there is, with status ``interrupted``.
    """
    if len(stackable_groups(configs)) != 1:
        different = _different(configs)
        text = f"{', '.join(different)} must be the same in all runs of a stack" if different else "configs is empty"
        if configs and not different:
            text = f"precision={configs[0].precision} scales the loss of each network by itself: run them one by one"
        raise ConfigError(text)
    results = [] if results is None else results
    results += [Result(config) for config in configs]
    try:
        _run(results, sinks)
    finally:
        for sink in sinks:
            sink.close()
    return results


def _different(configs: Sequence[Config]) -> list[str]:
    """Return the options that keep some runs from being one stack."""
    options = [as_dict(config) for config in configs]
    shared = [key for first in options[:1] for key in first if key not in FREE]
    return [key for key in shared if any(other[key] != options[0][key] for other in options)]


def deliver(result: Result, sinks: Sequence[Sink], overrides: Sequence[str] = ()) -> None:
    """Hand a result of ``run_stack`` to the sinks of its run."""
    result.overrides = list(overrides)
    status, result.status = result.status, "running"  # until the last file is there
    try:
        tell(sinks, "start", result)
        if result.initial is not None:
            tell(sinks, "built", result)
            tell(sinks, "initial", result)
        result.status = status
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
    if result.status == "interrupted":  # which may be why
        return
    text = str(mistake) if isinstance(mistake, ConfigError) else f"{type(mistake).__name__}: {mistake}"
    result.status, result.error = "failed", text.split("\n")[0]


def _run(results: list[Result], sinks: Sequence[Sink]) -> None:
    """Run experiments together, and note how they ended. Sinks are told of the first."""
    clock = Clock(results)
    fix_order_of_sums()
    try:
        tell(sinks, "start", results[0])
        with clock.part("importing torch"):
            from gradexp.runs.stages import measure_and_train
        with _threads(results[0].config.threads or 1), _plain_torch():
            measure_and_train(results, sinks, clock)
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


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Record gradients and compute in the run's own number format, whatever the caller's code is inside of."""
    import torch

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext(),
    ):
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of CPU threads, and restore it afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
