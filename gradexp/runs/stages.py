"""Build, measure, predict, train, judge; torch at the top."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import torch

from gradexp.choices import MODEL_TAKES
from gradexp.config import Config, as_dict
from gradexp.exact.profile import exact_profile
from gradexp.history.history import History
from gradexp.history.sentences import counted
from gradexp.networks.alone import Alone
from gradexp.networks.chain import Chain
from gradexp.networks.mlp import MLP
from gradexp.networks.one_node import OneNode, can_be_one_node
from gradexp.numerics.seeds import generator, steady
from gradexp.own_parts import OwnPart
from gradexp.probe.one_node import OneNodeProbe
from gradexp.probe.probe import GradientProbe
from gradexp.runs.clock import Clock
from gradexp.runs.data import Dataset, batches, check_batch, load
from gradexp.runs.device import device_name, find_device
from gradexp.runs.format_check import check_format
from gradexp.runs.live_results import LiveResults, sample_outputs
from gradexp.runs.losses import chance_accuracy, chance_loss, resolve_loss, targets
from gradexp.runs.models import AS_BUILT, MODELS, build, draw_weights
from gradexp.runs.number_format import NARROW
from gradexp.runs.optimizers import build_optimizer, is_elementwise
from gradexp.runs.precision import precision_of
from gradexp.runs.prediction import predict_run
from gradexp.runs.profiles import profile
from gradexp.runs.remedies import Predict
from gradexp.runs.result import Result, Sink, tell
from gradexp.runs.schedules import Schedule
from gradexp.runs.stacks import count_weights, split
from gradexp.runs.training import Split, Training, train
from gradexp.runs.trials import Measure
from gradexp.runs.verdict import run_verdict
from gradexp.runs.wording import network_name
from gradexp.theory import compare

# Bytes of parameters that are held at a time.
_STACK = 512 << 20
# Samples on which remedies are tried.
_TRIED = 8


_Network = tuple[Result, int]  # whose network it is, and its seed
_SEED = {"seed": 0}


def measure_and_train(results: list[Result], sinks: Sequence[Sink], clock: Clock) -> None:
    """Run all stages for runs that share a stack: data, weights, profile, theory, training, verdict."""
    config = results[0].config  # what it shares with the others is taken from it
    device = find_device(config.device)
    name = device_name(device)
    for result in results:
        result.device = str(device)
        result.device_name = name
        result.threads = config.threads or 1

    def progress(activity: str, done: int, total: int) -> None:
        results[0].progress = (activity, done, total)
        tell(sinks, "progress", results[0])

    with clock.part("data"):
        progress(f"loading {config.data.name}", 0, 0)
        data = load(config.data, config.width)
        loss = resolve_loss(config.loss, data, config.data.name)
        check_batch(config.batch_size, len(data.x_train), config.data.name)
        config.check_sizes(data.input_width)
    for result in results:
        result.building = _describe(result, data, loss)
        result.guessing, result.guessing_accuracy = chance_loss(data, loss), chance_accuracy(data)
    tell(sinks, "built", results[0])

    # The profile is float64, which Apple's devices do not have.
    at_first = torch.device("cpu") if device.type == "mps" else device
    measured = _measure if config.model.name == "mlp" else _measure_alone
    model = measured(results, data, at_first, clock, progress)
    if config.number_format in NARROW and isinstance(model, MLP):
        with clock.part("profile"):
            for index, result in enumerate(results):
                result.format_check = check_format(result.config, model.network(index), data, loss, device)
    model = model.to(device)
    predict, trial = _predictions(data), _trials(data)
    _judge(results, predict, trial, clock)
    if config.record.histograms:
        sample_outputs(results, model, data.x_train[: config.batch_size], 0)
    tell(sinks, "initial", results[0])

    if config.steps:
        for result in results:
            result.training = Training()

        def on_step(step: int) -> None:
            tell(sinks, "step", results[0])
            progress("training", step + 1, config.steps)

        with clock.part("training"):
            _train(results, model, data, loss, on_step)
    for index, result in enumerate(results):
        if result.config.save_weights:
            alone = _network(model, index)
            result.weights = {name: value.cpu() for name, value in alone.state_dict().items()}
        assert result.initial is not None
        training = result.training or Training()
        result.verdict = run_verdict(
            result.config,
            result.initial,
            training.losses,
            training.diverged_at,
            result.guessing or 0.0,
            result.gradients,
            result.comparison,
            predict,
            trial,
            result.format_check,
            len(training.skipped),
        )
    progress("writing files", 0, 0)  # and drawing pictures


def _measure(
    results: Sequence[Result],
    data: Dataset,
    device: torch.device,
    clock: Clock,
    progress: Callable[[str, int, int], None],
) -> MLP:
    """Measure all networks of all runs at initialisation, and return those with the runs' own seeds.

    They are worked through in stacks that fit into memory.
    """
    x = data.x_train[: results[0].config.batch_size]
    networks = [(result, seed) for result in results for seed in result.seeds]
    groups, histories = _groups(networks, data), []
    kept: list[MLP] = []
    for index, group in enumerate(groups):

        def share(activity: str, done: int, total: int, before: int = index) -> None:
            progress(activity, before * total + done, len(groups) * total)

        with clock.part("weights"):
            stack = _build(group, data, device, partial(share, "drawing weights"))
        places = [place for place, (result, seed) in enumerate(group) if seed == result.config.seed]
        kept += [stack] if len(places) == stack.networks else [stack.network(place) for place in places]
        with clock.part("profile"):
            report = partial(share, "profile at initialisation")
            histories.append(exact_profile(stack, x, seeds=[seed for _, seed in group], progress=report))
        del stack  # before the next one is built
    measured = History.join(histories)
    start = 0
    for result in results:
        end = start + len(result.seeds)
        result.initial = measured.of_networks(slice(start, end))
        start = end
    return kept[0] if len(kept) == 1 else MLP.join(kept)


def _measure_alone(
    results: Sequence[Result],
    data: Dataset,
    device: torch.device,
    clock: Clock,
    progress: Callable[[str, int, int], None],
) -> Alone:
    """Do the same for networks that are no MLPs, one after the other."""
    [result] = results
    config, x = result.config, data.x_train[: result.config.batch_size]
    histories, kept = [], None
    for index, seed in enumerate(result.seeds):

        def share(done: int, total: int, before: int = index) -> None:
            progress("profile at initialisation", before * total + done, len(result.seeds) * total)

        with clock.part("weights"):
            model = build(config, x, data.output_width, seed).to(device)
        with clock.part("profile"):
            histories.append(_profile(config, model, x, seed, share))
        kept = kept or Alone(model)
    result.initial = History.join(histories)
    assert kept is not None
    return kept


def _profile(
    config: Config, model: torch.nn.Module, x: torch.Tensor, seed: int, progress: Callable[[int, int], None] | None
) -> History:
    """Measure a network that is no MLP; what an own one raises in float64 is named."""
    name = config.model.name
    with name.named() if isinstance(name, OwnPart) else nullcontext():
        return profile(model, x, seed, progress)


def _network(model: MLP | Alone, index: int) -> torch.nn.Module:
    """Return one network of those that are trained."""
    if isinstance(model, Alone):
        return model.module
    return model if model.networks == 1 else model.network(index)


def _judge(results: Sequence[Result], predict: Predict, trial: Measure, clock: Clock) -> None:
    """Predict each run's profile and compare."""
    for result in results:
        assert result.initial is not None
        with clock.part("theory"):
            result.prediction = predict(result.config)
            result.initial.theory = result.prediction.arrays
            result.comparison = compare(result.prediction, result.initial)
            result.verdict = run_verdict(
                result.config,
                result.initial,
                theory=result.comparison,
                predict=predict,
                measure=trial,
                format_check=result.format_check,
            )


def _predictions(data: Dataset) -> Predict:
    """Return a function that predicts runs on these data."""
    return lambda config: predict_run(config, data.x_train[: config.batch_size], data.output_width)


def _trials(data: Dataset) -> Measure:
    """Return a function that measures the profile of runs on a few of these data, without warnings."""
    x = data.x_train[:_TRIED]

    def measure(config: Config) -> History:
        with warnings.catch_warnings(action="ignore"):
            return _profile(config, build(config, x, data.output_width, config.seed), x, config.seed, None)

    return measure


def _train(
    results: Sequence[Result], model: MLP | Alone, data: Dataset, loss: str, on_step: Callable[[int], None]
) -> None:
    """Train one network of each run with the probe on, and keep what it saw even if training is interrupted."""
    config = results[0].config
    logs = [result.training for result in results if result.training is not None]
    seeds = [result.config.seed for result in results]
    if isinstance(model, MLP):
        model.mask_sources = [generator(seed, "dropout") for seed in seeds]
    network: MLP | Alone | OneNode
    probe: GradientProbe | OneNodeProbe
    precision = precision_of(config, next(model.parameters()).device)
    is_built_in = not isinstance(config.activation, OwnPart)
    is_written_out = is_built_in and config.precision == "full" and is_elementwise(config.optimizer)
    if isinstance(model, MLP) and can_be_one_node(model) and is_written_out:
        network = OneNode(model)
        optimizer = build_optimizer(config.optimizer, [network.parameter])
        probe = OneNodeProbe(network, config.record.every, optimizer, seeds)
    else:
        network = model
        optimizer = build_optimizer(config.optimizer, list(model.parameters()), is_stacked=isinstance(model, MLP))
        observed = model.module if isinstance(model, Alone) else model
        probe = GradientProbe(
            observed,
            _rows(observed, results[0]),
            every=config.record.every,
            optimizer=optimizer,
            scaler=precision.scaler,
            networks=model.networks,
            seeds=seeds,
        )
    live = LiveResults(results, model, probe, data.x_train[: config.batch_size])

    def after_step(step: int) -> None:
        live.after(step)
        on_step(step)

    try:
        # An MLP has generators of its own for dropout.
        with steady(None if isinstance(model, MLP) else generator(config.seed, "dropout")):
            train(
                network,
                _on_device(data.x_train, data.y_train, data, loss, model),
                _on_device(data.x_test, data.y_test, data, loss, model),
                [batches(len(data.x_train), config.batch_size, generator(seed, "batches")) for seed in seeds],
                loss,
                optimizer,
                config.steps,
                probe,
                logs,
                config.optimizer.clip_norm,
                Schedule(
                    optimizer, config.steps, config.optimizer.warmup or 0, config.optimizer.schedule or "constant"
                ),
                after_step,
                precision,
            )
    finally:
        live.read()
        for result, log in zip(results, logs, strict=True):
            if result.format_check is not None and result.gradients is not None:
                result.format_check = result.format_check.seen(result.gradients, log.skipped)


def _rows(model: torch.nn.Module, result: Result) -> list[str] | None:
    """Return the modules that are the rows of a chain's profile, if each row is one, for the probe to record."""
    assert result.initial is not None
    names, modules = result.initial.names, dict(model.named_modules())
    is_chain = isinstance(model, Chain) and all(name in modules for name in names)
    return list(dict.fromkeys(names)) if is_chain else None


def _widths(config: Config, data: Dataset) -> list[int]:
    return [data.input_width, *config.hidden_widths, data.output_width]


def _groups(networks: Sequence[_Network], data: Dataset) -> list[Sequence[_Network]]:
    """Split the networks into stacks of about equal size that fit into memory."""
    config = networks[0][0].config
    size = count_weights(_widths(config, data)) * getattr(torch, config.dtype).itemsize
    count = min(len(networks), math.ceil(len(networks) * size / _STACK))
    return split(networks, count)


def _build(
    networks: Sequence[_Network], data: Dataset, device: torch.device, progress: Callable[[int, int], None]
) -> MLP:
    """Draw some networks as one stack, those of runs that differ in neighbouring seeds at once."""
    runs: list[tuple[Config, list[int]]] = []
    for result, seed in networks:
        last, seeds = runs[-1] if runs else (None, [])
        is_next = last is not None and seed == seeds[-1] + 1 and vars(last) | _SEED == vars(result.config) | _SEED
        if is_next:
            seeds.append(seed)
        else:
            runs.append((result.config, [seed]))

    def share(done: int, total: int) -> None:
        progress(len(stacks) * total + done, len(runs) * total)

    stacks: list[MLP] = []
    for config, seeds in runs:
        stacks.append(_draw(config, seeds, data, device, share))
    return stacks[0] if len(stacks) == 1 else MLP.join(stacks)


def _draw(
    config: Config, seeds: list[int], data: Dataset, device: torch.device, progress: Callable[[int, int], None]
) -> MLP:
    """Return the networks of some neighbouring seeds as one stack."""
    stack = MODELS["mlp"].build(
        features=data.input_width,
        outputs=data.output_width,
        networks=len(seeds),
        device=device,
        dtype=getattr(torch, config.dtype),
        draw=False,  # they would be overwritten at once
        **{key: getattr(config, key) for key in MODEL_TAKES["mlp"]},
    )
    assert isinstance(stack, MLP)
    draw_weights(stack, config, seeds[0], data.x_train[: config.batch_size], progress)
    return stack


def _on_device(x: torch.Tensor, y: torch.Tensor, data: Dataset, loss: str, model: MLP | Alone) -> Split:
    """Move one split of the data to the model's device and number format."""
    weight = next(model.parameters())
    target = targets(y, loss, data.classes)
    if target.is_floating_point():  # the loss of outputs of 16 bits is computed in float32
        target = target.to(torch.promote_types(weight.dtype, torch.float32))
    return Split(
        x.to(weight.dtype).to(weight.device),
        target.to(weight.device),
        y.to(weight.device) if y.dtype == torch.int64 else None,
    )


def _describe(result: Result, data: Dataset, loss: str) -> str:
    """Return what is built, in four lines."""
    config = result.config
    network = _network_line(config, data) if config.model.name == "mlp" else _family_line(config, data)
    options = "".join(f", {key}={value}" for key, value in config.init.options.items())
    drawn = config.init.name + (f" ({options[2:]})" if options else "")
    if config.init.name == AS_BUILT:
        drawn = "as the model comes"
    seeds = f"seed {config.seed}" + (f" to {result.seeds[-1]}" if config.seeds > 1 else "")
    lr = "" if config.optimizer.lr is None else f" lr={config.optimizer.lr:g}"
    rates = f" warmup={config.optimizer.warmup}" * bool(config.optimizer.warmup)
    rates += f" schedule={config.optimizer.schedule}" * (config.optimizer.schedule != "constant")
    update = f"{counted(config.steps, 'step')} of {config.optimizer.name}{lr}{rates}, {loss}, "
    threads = f", {counted(result.threads or 1, 'thread')}" if result.device == "cpu" else ""
    formats = config.dtype if config.precision == "full" else f"{config.dtype} and {config.precision}"
    return (
        f"network   {network}\n"
        f"init      {drawn}, {seeds}\n"
        f"data      {config.data.name}, {len(data.x_train)} training samples, batches of {config.batch_size}\n"
        f"training  {update if config.steps else 'none; '}{formats} on {result.device}{threads}"
    )


def _network_line(config: Config, data: Dataset) -> str:
    hidden, widths = config.hidden_widths, _widths(config, data)
    parameters = sum((fan_in + config.bias) * fan_out for fan_in, fan_out in pairwise(widths))
    parameters += max(0, config.depth - 2) if config.residual == "zero" else 0
    parameters += sum(hidden) * (1 + (config.normalization != "rms")) if config.affine else 0
    units = f" of {config.units} units" if hidden else ""
    return (
        f"{config.depth} {config.activation} layers{units}, {_additions(config)}"
        f"{widths[0]} inputs, {widths[-1]} outputs, {parameters:,} weights"
    )


def _family_line(config: Config, data: Dataset) -> str:
    options = ", ".join([network_name(as_dict(config)), *config.family_options])
    return f"{options}, {_additions(config)}{data.input_width} inputs, {data.output_width} outputs"


def _additions(config: Config) -> str:
    dropout = f"dropout={config.dropout:g}, " * bool(config.dropout)
    return "".join(f"{addition}, " for addition in config.additions) + dropout
