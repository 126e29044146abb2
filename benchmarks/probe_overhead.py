"""What the probe costs, and whether its numbers are right, side by side with what else one would do.

``python benchmarks/probe_overhead.py [--device cuda] [--threads 1] [--models mlp64,cnn] [--batch 128]
[--brief] [--against TREE] [ROUNDS]``

Split 1 times one training step (forward, backward, SGD with learning rate 0, zero_grad) under each monitor, a few
steps of one after a few of the other, in an order that rotates. One pass over all monitors is a lap; a model gets at
least ROUNDS laps, and more until ROUNDS times 4 seconds are over. Printed are the median over laps of the time
and of its ratio to the bare steps of the same lap, which a slow spell of the machine changes less than either time,
with the ratio's quartiles.

Split 2 counts in how many layers of a vanishing network the reported norms are right.
"""

import argparse
import gc
import importlib
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from functools import cache, partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from machine import machine
from other_tree import OtherTree, serve
from torch import Tensor, nn

from gradexp import GradientProbe

DEPTH, BATCH = 150, 128
SECONDS_PER_ROUND = 4.0


# The models


def mlp(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """A ResNet's block, with both of its in-place operations."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv(outputs, outputs))
        self.shortcut = nn.Sequential(*conv(inputs, outputs, 1, stride)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body(x) + shortcut(x))."""
        out: Tensor = self.body(x)
        out += self.shortcut(x)
        return torch.relu_(out)


def cnn() -> nn.Module:
    widths = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    blocks = [Residual(*width) for width in widths]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*conv(3, 16, 3, 2), nn.ReLU(inplace=True), *blocks, *head)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, nhead=4, dim_feedforward=256, batch_first=True)
    return nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)


class Tokens(nn.Module):
    """A model of transformers that takes token ids, which do not fit into a tensor of floats; returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits for ids that are made of some numbers."""
        logits: Tensor = self.model((x.abs() * 100).long() % 64).logits
        return logits


def of_transformers(kind: str) -> nn.Module:
    """Return a small model of transformers, with its own names of sizes."""
    transformers: Any = importlib.import_module("transformers")
    if kind == "gpt2":
        sizes = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 64}
        return Tokens(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))
    common = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    if kind == "mixtral":
        sizes = {**common, "num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 64}
        return Tokens(transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)))
    config = transformers.ViTConfig(**common, image_size=32, patch_size=4, num_labels=10)
    return Logits(transformers.ViTForImageClassification(config))


class Logits(nn.Module):
    """A model of transformers that takes pictures; returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(x).logits
        return logits


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f"mlp{width}": (partial(mlp, width), (width,)) for width in (64, 128, 512)},
    "cnn": (cnn, (3, 32, 32)),
    "transformer": (transformer, (32, 128)),
    "gpt2": (partial(of_transformers, "gpt2"), (32,)),
    "vit": (partial(of_transformers, "vit"), (3, 32, 32)),
    "mixtral": (partial(of_transformers, "mixtral"), (32,)),
}


# The monitors: each is attached to a model and gives what to call after each backward pass


Attach = Callable[[nn.Module], AbstractContextManager[Callable[[], Any]]]


def watched(model: nn.Module) -> list[nn.Module]:
    """Return the modules that the probe selects by default."""
    return [m for m in model.modules() if any(p.dim() >= 2 for p in m.parameters(recurse=False))]


def leaves(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if not list(m.children())]


@contextmanager
def removing(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def bare(_model: nn.Module) -> Iterator[Callable[[], Any]]:
    yield lambda: None


@contextmanager
def idle_hooks(model: nn.Module) -> Iterator[Callable[[], Any]]:
    """Attach the hooks that the probe needs, but do nothing in them: the least that it can cost."""

    def see_gradient(_gradient: Tensor) -> None:
        pass

    def see_output(_module: nn.Module, _args: Any, output: Any) -> None:
        (output[0] if isinstance(output, tuple) else output).register_hook(see_gradient)

    with removing([module.register_forward_hook(see_output) for module in watched(model)]):
        yield lambda: None


def probe(**options: Any) -> Attach:
    @contextmanager
    def attach(model: nn.Module) -> Iterator[Callable[[], Any]]:
        with GradientProbe(model, **options) as own:
            yield own.collect

    return attach


@cache
def square_sum() -> Callable[[int, int], float]:
    from gradexp.numerics.compiled import compiled_square_sum  # which an older checkout lacks

    return compiled_square_sum()


@contextmanager
def probe_with_compiled_norms(model: nn.Module) -> Iterator[Callable[[], Any]]:
    with mock.patch("gradexp.numerics.norms._square_sum", square_sum()), GradientProbe(model) as own:
        yield own.collect


def backward_hooks(choose: Callable[[nn.Module], list[nn.Module]]) -> Attach:
    @contextmanager
    def attach(model: nn.Module) -> Iterator[Callable[[], Any]]:
        norms: dict[nn.Module, Tensor] = {}

        def see(module: nn.Module, _grad_input: Any, grad_output: Any) -> None:
            if grad_output[0] is not None:  # a router's first output may be of no use
                norms[module] = grad_output[0].norm()

        with removing([module.register_full_backward_hook(see) for module in choose(model)]):
            yield lambda: [norm.item() for norm in norms.values()]

    return attach


@contextmanager
def histograms(model: nn.Module) -> Iterator[Callable[[], Any]]:
    """Take a histogram of each parameter's gradient in the manner of ``wandb.watch(log="gradients")``."""
    found: dict[nn.Parameter, tuple[list[float], list[float]]] = {}

    def hook_of(parameter: nn.Parameter) -> Callable[[Tensor], None]:
        def see(gradient: Tensor) -> None:
            flat = gradient.detach().flatten()
            finite = flat.isfinite()
            if not finite.all():
                flat = flat[finite]
            low, high = flat.min().item(), flat.max().item()
            counts = torch.histc(flat, bins=64, min=low, max=high).cpu().tolist()
            found[parameter] = counts, torch.linspace(low, high, 65).tolist()

        return see

    with removing([parameter.register_hook(hook_of(parameter)) for parameter in model.parameters()]):
        yield lambda: None


@contextmanager
def parameter_norms(model: nn.Module) -> Iterator[Callable[[], Any]]:
    yield lambda: [p.grad.norm().item() for p in model.parameters() if p.grad is not None]


class Monitor(NamedTuple):
    """What is compared, and how many of its steps are timed in a lap."""

    name: str
    attach: Attach
    steps: int = 3


MONITORS = [
    Monitor("bare", bare),
    Monitor("floor: the probe's hooks, doing nothing", idle_hooks),
    Monitor("probe", probe()),
    *([Monitor("probe, compiled norms", probe_with_compiled_norms)] if shutil.which("cc") else []),
    Monitor("probe, every=10", probe(every=10), 10),  # one of ten consecutive steps is recorded
    Monitor('probe, quantities=("weight_grad",)', probe(quantities=("weight_grad",))),
    Monitor("full backward hook, norm()", backward_hooks(watched)),
    Monitor("histogram per parameter", histograms),
    Monitor("p.grad.norm().item() per parameter", parameter_norms),
]


BRIEF = ("bare", "probe", "probe, compiled norms", "full backward hook, norm()")
# What changes with the checkout.
OF_OTHER_TREES = ("bare", "probe", "probe, every=10")


# Split 1: time


class Task:
    """A model in training."""

    def __init__(self, name: str, device: str, batch: int) -> None:
        torch.manual_seed(0)
        build, shape = MODELS[name]
        self.model = build().to(device)
        self.x = torch.randn(batch, *shape, device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)

    def step(self, after_backward: Callable[[], Any]) -> None:
        """Train for one step."""
        self.model(self.x).square().mean().backward()
        after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def clock(self) -> float:
        """Return the seconds that the processor has worked, or those on a clock once a device has done its work."""
        if not self.x.is_cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def milliseconds(self, monitor: Monitor) -> float:
        """Return the mean time of a few steps. Attaching, which is done once in real use, is not timed."""
        gc.collect()  # or the next monitor would pay for what the last one left
        with monitor.attach(self.model) as after_backward:
            self.step(after_backward)
            begin = self.clock()
            for _ in range(monitor.steps):
                self.step(after_backward)
            return 1e3 * (self.clock() - begin) / monitor.steps

    def error_with(self, attach: Attach) -> str:
        """Return what a step raises under a monitor, or nothing."""
        try:
            with attach(self.model) as after_backward:
                self.step(after_backward)
        except RuntimeError as error:
            self.optimizer.zero_grad()
            return str(error).partition(".")[0]
        return ""


def compare(name: str, options: argparse.Namespace) -> None:
    rounds = options.rounds
    task = Task(name, options.device, options.batch)
    chosen = OF_OTHER_TREES if options.serve else BRIEF if options.brief else [monitor.name for monitor in MONITORS]
    monitors = [monitor for monitor in MONITORS if monitor.name in chosen]
    errors = {monitor.name: task.error_with(monitor.attach) for monitor in monitors}
    running = [monitor for monitor in monitors if not errors[monitor.name]]
    gc.freeze()  # or each collection would walk through all that importing torch has made
    if options.serve:
        serve({monitor.name: partial(task.milliseconds, monitor) for monitor in running})
        return
    same = ["--device", options.device, "--models", name, "--batch", str(options.batch)]
    other = None if options.against is None else OtherTree(options.against, same)
    theirs = [m for m in running if m.name in OF_OTHER_TREES] if other is not None else []
    laps: list[dict[str, float]] = []
    begin = time.perf_counter()
    while len(laps) < rounds or time.perf_counter() - begin < rounds * SECONDS_PER_ROUND:
        first = len(laps) % len(running)
        laps.append({m.name: task.milliseconds(m) for m in running[first:] + running[:first]})
        for monitor in theirs:
            laps[-1][f"{monitor.name}, other tree"] = other.lap(monitor.name)
    size = sum(p.numel() for p in task.model.parameters())
    print(f"\n{name}: {len(watched(task.model))} layers, {size:,} parameters; laps: {len(laps)}")
    print(f"{'':<40} {'ms per step':>11}   {'x bare':>6}   quartiles")
    for monitor in monitors:
        if monitor not in running:
            print(f"{monitor.name:<40} raises {errors[monitor.name][:32]}")
            continue
        middle = statistics.median(lap[monitor.name] for lap in laps)
        low, ratio, high = np.percentile([lap[monitor.name] / lap["bare"] for lap in laps], [25, 50, 75])
        print(f"{monitor.name:<40} {middle:11.1f}   {ratio:6.2f}   {low:.2f} to {high:.2f}")
    for own in (f"{monitor.name}, other tree" for monitor in theirs):
        middle = statistics.median(lap[own] for lap in laps)
        low, ratio, high = np.percentile([lap[own] / lap["bare, other tree"] for lap in laps], [25, 50, 75])
        print(f"{own:<40} {middle:11.1f}   {ratio:6.2f}   {low:.2f} to {high:.2f}")
    if error := task.error_with(backward_hooks(leaves)):
        print(f"full backward hooks on batch norms and activations too: raises\n  {error[:77]}")


# Split 2: right numbers


def exact_norm(x: Tensor) -> float:
    return float(np.linalg.norm(x.detach().cpu().numpy().astype(np.float64)))


def report_accuracy(device: str) -> None:
    """Count right norms where the textbook's wrong initialisation makes gradients vanish."""
    torch.manual_seed(0)
    linears = [nn.Linear(128, 128, bias=False) for _ in range(DEPTH)]
    for linear in linears:
        nn.init.xavier_normal_(linear.weight)
    model = nn.Sequential(*[part for linear in linears for part in (linear, nn.ReLU())][:-1]).to(device)
    x = torch.randn(BATCH, 128, device=device)
    exact: dict[nn.Module, float] = {}  # norms of the output gradients
    naive: dict[nn.Module, tuple[float, float]] = {}

    def see_output(module: nn.Module, _args: Any, output: Tensor) -> None:
        def see_gradient(gradient: Tensor) -> None:
            exact[module] = exact_norm(gradient)

        output.register_hook(see_gradient)

    def see_backward(module: nn.Module, _grad_input: Any, grad_output: Any) -> None:
        naive[module] = grad_output[0].norm().item(), exact_norm(grad_output[0])

    with (
        GradientProbe(model) as own,
        removing([linear.register_forward_hook(see_output) for linear in linears]),
        removing([linear.register_full_backward_hook(see_backward) for linear in linears]),
    ):
        model(x).mean().backward()
        own.collect()
    gradients = [linear.weight.grad for linear in linears if linear.weight.grad is not None]
    weights = [exact_norm(gradient) for gradient in gradients]
    outputs = [exact[linear] for linear in linears]
    print(f"\nNorms within 1e-5 of float64's: {DEPTH} relu layers of 128, xavier_normal, float32")
    reported: dict[str, dict[str, tuple[Any, Any]]] = {
        f"weight gradients, {min(weights):.1e} to {max(weights):.1e}": {
            "probe": (10 ** own.history.profile("weight_grad"), weights),
            "p.grad.norm()": ([gradient.norm().item() for gradient in gradients], weights),
            "torch._foreach_norm, as in clip_grad_norm_": (
                [norm.item() for norm in torch._foreach_norm(gradients)],
                weights,
            ),
        },
        f"output gradients, {min(outputs):.1e} to {max(outputs):.1e}": {
            "probe": (10 ** own.history.profile("output_grad"), outputs),
            "full backward hook, norm()": ([naive[m][0] for m in linears], [naive[m][1] for m in linears]),
        },
    }
    for kind, by_name in reported.items():
        print(kind)
        for name, (values, truth) in by_name.items():
            # Where nothing is recorded the probe's number is nan, which is wrong here unless all elements are 0.
            right = np.isclose(np.nan_to_num(values), truth, rtol=1e-5, atol=0.0).sum()
            print(f"  {name:<44} right {right:>3} of {len(truth)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--against", help="folder of another checkout of gradexp, whose laps are run in between")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--brief", action="store_true", help="the probe and full backward hooks only, no split 2")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", default=",".join(MODELS), help="default: all, the last three of transformers")
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"unknown model '{unknown[0]}'; choose from {', '.join(MODELS)}")
    torch.set_num_threads(options.threads)
    # The first layer's input takes no gradient, of which torch warns.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if options.serve:
        compare(options.models, options)
        return
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    print(f"{date.today()}, torch {torch.__version__}, {machine(options.device)}, {threads}, batch {options.batch}")
    for name in names:
        compare(name, options)
    if not options.brief:
        report_accuracy(options.device)


if __name__ == "__main__":
    main()
