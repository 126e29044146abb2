"""Every option of a run: schema, defaults and range checks in one place.

The dataclasses are the schema that Hydra checks a command line against, and what Python users build
directly: ``Config(depth=150, init="he")`` or ``init=InitConfig("he")``. The string under a field is its help text.
An option of a group that is left at ``None`` takes the default of its choice, from ``gradexp.choices``.

This file imports neither torch nor Hydra, so that ``--help`` stays fast.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from gradexp.architecture import LOWEST_SIZES, check_additions, check_sizes, options_of_network
from gradexp.choice_options import AUTO, check_fields, options_of_choice, refuse_option, resolve
from gradexp.choices import (
    ACTIVATION_ALIASES,
    ACTIVATIONS,
    CELLS,
    DISTRIBUTIONS,
    DTYPES,
    GROUPS,
    INIT_LOWEST,
    INIT_OF_FAMILY,
    LOGS,
    LOSSES,
    LYAPUNOV_ACTIVATIONS,
    MODEL_TAKES,
    MODES,
    NORMS,
    PADDINGS,
    PRECISIONS,
    QUERIES,
    RESIDUALS,
    RESNET_RESIDUALS,
    SCHEDULES,
    ConfigError,
    require,
)
from gradexp.kinds import WrongKindError, convert
from gradexp.own_parts import OwnPart, hint, own_part

# Options whose default is that of the family of networks, which is known once a Config is made.
if TYPE_CHECKING:
    _Whole: TypeAlias = int
    _Word: TypeAlias = str
else:
    _Whole, _Word = int | None, str | None
_OF_FAMILY: Any = None


@dataclass
class ModelConfig:
    """Family of networks."""

    name: str = "mlp"
    """the family"""
    kernel: int | None = None
    """height and width of a kernel, odd"""
    padding: str | None = None
    """what is beyond the edge of an image: circular (its other side; theory is exact), or zeros"""
    heads: int | None = None
    """heads of attention, a divisor of the width"""
    context: int | None = None
    """number of tokens into which the features are cut; an rnn reads one per step, and goes on without"""
    norm: str | None = None
    """where layer norm is: pre (inside the branches, and before the readout), post (behind them) or none"""
    queries: str | None = None
    """zero: query weights start at 0, and all tokens weigh the same; init: drawn like the others"""
    depth_scaled: bool | None = None
    """divide the last weights of each branch by sqrt(2 depth) at initialisation"""
    cell: str | None = None
    """rnn, gru or lstm"""
    own: dict[str, Any] = field(default_factory=dict)
    """options of a part of your own, typed as model.NAME=VALUE"""

    @property
    def options(self) -> dict[str, Any]:
        """The options that are set, as keyword arguments."""
        return _set_options(self)


@dataclass
class InitConfig:
    """Weight initialisation scheme."""

    name: str = "auto"
    """the scheme; auto: he, for rnn orthogonal, and for a model of your own the weights that it comes with"""
    gain: float | None = None
    """multiplies the standard deviation that the scheme's paper gives"""
    std: float | None = None
    """standard deviation of the weights (truncated_normal: null is He's; sparse: null keeps the variance)"""
    sigma_w2: float | None = None
    """mean-field weight variance, fan_in * Var(W)"""
    mode: str | None = None
    """which side keeps its variance: fan_in (outputs) or fan_out (gradients)"""
    distribution: str | None = None
    """normal or uniform, with the same variance"""
    sparsity: float | None = None
    """share of each unit's incoming weights that is exactly 0"""
    corrected: bool | None = None
    """widen the cut normal so that its standard deviation is the stated one"""
    tolerance: float | None = None
    """how far the variance of a layer's outputs may be from 1"""
    iterations: int | None = None
    """how often the weights of a layer are rescaled at most"""
    own: dict[str, Any] = field(default_factory=dict)
    """options of a part of your own, typed as init.NAME=VALUE"""

    @property
    def options(self) -> dict[str, Any]:
        """The options that are set, as keyword arguments of the scheme."""
        return _set_options(self)


def _set_options(group: Any) -> dict[str, Any]:
    known = {key: value for key, value in vars(group).items() if key not in ("name", "own") and value is not None}
    own: dict[str, Any] = group.own
    return known | own


@dataclass
class DataConfig:
    """Where inputs and targets come from."""

    name: str = "digits"
    """the data set"""
    standardize: bool | None = None
    """shift and scale each feature to mean 0, variance 1 over the training part"""
    path: str | None = None
    """an .npz file with x of shape (samples, ...) and y: integers are classes, floats regression targets"""
    samples: int | None = None
    """number of samples"""
    features: int | None = None
    """input width"""
    targets: int | None = None
    """output width of the linear teacher"""
    normalize: bool | None = None
    """scale every input to mean square exactly 1"""
    seed: int | None = None
    """fixes the inputs and the teacher"""
    length: int | None = None
    """number of symbols in a sequence, of which the first is to be told"""
    symbols: int | None = None
    """number of different symbols"""
    own: dict[str, Any] = field(default_factory=dict)
    """options of a part of your own, typed as data.NAME=VALUE"""


@dataclass
class OptimizerConfig:
    """How the weights are updated."""

    name: str = "sgd"
    """the update rule"""
    lr: float | None = None
    """learning rate"""
    weight_decay: float | None = None
    """L2 penalty, added to the gradient as in torch.optim; adamw and muon take lr times it off the weights instead"""
    clip_norm: float | None = None
    """largest allowed L2 norm of the whole gradient; null: no clipping"""
    momentum: float | None = None
    """share of the last update that is kept"""
    warmup: int | None = None
    """steps in which the learning rate grows from 0 to lr"""
    schedule: str | None = None
    """the learning rate after the warm-up: constant, or cosine, half a wave down to 0 at the last step"""
    own: dict[str, Any] = field(default_factory=dict)
    """options of a part of your own, typed as optimizer.NAME=VALUE"""


@dataclass
class RecordConfig:
    """What is recorded during training."""

    every: int = 1
    """record the real gradients every N training steps"""
    profile_steps: list[int] = field(default_factory=list)
    """training steps whose real gradient is drawn over layers in TensorBoard, as runs of their own"""
    histograms: bool = False
    """write histograms of the outputs of five layers to TensorBoard, ten times in a training"""
    subruns: bool | None = None
    """in TensorBoard, draw theory into the cards of the profile, as runs of its own; null: not in sweeps"""
    figures: bool | None = None
    """draw pictures of the gradient over layers and steps, as files and in TensorBoard; null: not in sweeps"""
    report: bool | None = None
    """write report.html, the whole run on one page to open in a browser; null: one page for all jobs of a sweep"""


@dataclass
class VerdictConfig:
    """When a gradient counts as vanishing or exploding."""

    decades: float = 3.0
    """powers of ten between the output gradients of the first and the last layer"""


@dataclass
class Config:
    """One run: a network, its data, its training and what is recorded."""

    depth: _Whole = _OF_FAMILY
    """number of weight matrices L; of a transformer blocks, of an rnn time steps + 1"""
    width: _Whole = _OF_FAMILY
    """units in every hidden layer; of a cnn or resnet channels"""
    widths: list[int] | None = None
    """units of each hidden layer, instead of width; depth follows as their number + 1"""
    activation: _Word = _OF_FAMILY
    """what is applied after every layer but the last"""
    negative_slope: float = 0.01
    """slope of leaky_relu below 0"""
    bias: bool = True
    """layers have a bias, which starts at 0 unless sigma_b2 or the scheme says otherwise"""
    sigma_b2: float | None = None
    """variance of the biases at initialisation; null: the scheme's own"""
    normalization: _Word = _OF_FAMILY
    """before each activation: none, batch (over samples), layer or rms (over units)"""
    affine: bool = False
    """the normaliser has a learnable scale and shift of each unit (rms: a scale), which start at 1 and 0"""
    residual: _Word = _OF_FAMILY
    """skip connections: none, or branches of factor 1 (plain), 1/sqrt(depth) (depth), a learned one (zero), fixup"""
    dropout: float = 0.0
    """share of units that is 0 in each training step; the profile at initialisation and theory are without it"""
    seed: int = 0
    """fixes weights, batch order, cotangents and dropout"""
    seeds: int = 1
    """measure this many networks at initialisation, with seeds seed, seed + 1, ..."""
    steps: int = 100
    """training steps; 0 measures the initialisation only"""
    batch_size: int = 64
    """samples in a training step and in the profile at initialisation"""
    loss: str = "auto"
    """auto: cross_entropy for classes, mse (on one-hot targets if classes) otherwise"""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:N; auto takes CUDA where there is one"""
    dtype: str = "float32"
    """number format of weights and training; the profile at initialisation is always float64"""
    precision: str = "full"
    """full: all in dtype; amp_float16, amp_bfloat16: matrix products in that format, float16 with a scaled loss"""
    threads: int | None = None
    """CPU threads; null: 1, the fastest below some hundred units and the same on every machine"""
    quiet: bool = False
    """print the verdict only"""
    log: str | None = None
    """a logger that gets profile and curves too: wandb, mlflow, or csv, which is curves.csv in the run's folder"""
    objective: str | None = None
    """number that a run hands to an optimising sweeper: loss_last, test_accuracy, abs_log_chi, any of summary.json"""
    save_weights: bool = False
    """write the final weights to weights.pt"""
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)

    def __post_init__(self) -> None:
        """Fill in the options of the chosen model, init, data and optimizer, and check every range.

        Raises:
            ConfigError: For the first option whose value cannot work.
        """
        self._find_own_parts()
        try:
            convert(self, choices=tuple(GROUPS))
        except WrongKindError as error:
            raise ConfigError(str(error)) from None
        self._choose_init()
        for group in GROUPS:
            resolve(group, getattr(self, group))
        self._resolve_family()
        for key, value in _numbers(self):
            require(math.isfinite(value), key, value, "a finite number")
            fits = abs(value) <= _HIGHEST or not key.startswith(_BOUNDED)
            require(fits, key, value, f"at most {_HIGHEST:g} in size, the range of float32")
            most = _MOST.get(key, _MOST_WHOLE)
            require(not isinstance(value, int) or value <= most, key, value, f"at most {most}")
        for key, low in _LOWEST.items():
            value = _get(self, key)
            require(value is None or value >= low, key, value, f"at least {low}")
        for key, choices in _CHOICES.items():
            value = _get(self, key)
            allowed = value is None or value in choices or (key in _OWN and isinstance(value, OwnPart))
            require(allowed, key, value, f"one of {', '.join(choices)}", hint(key, value) if key in _OWN else "")
        self._check_profile_steps()
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        require(self.verdict.decades > 0, "verdict.decades", self.verdict.decades, "above 0")
        clip = self.optimizer.clip_norm
        require(clip is None or clip > 0, "optimizer.clip_norm", clip, "above 0, or null for no clipping")
        if self.sigma_b2 is not None and not self.bias:
            raise ConfigError(f"sigma_b2={self.sigma_b2} needs bias=true")
        if self.init.name == "lyapunov" and self.activation not in LYAPUNOV_ACTIVATIONS:
            raise ConfigError(
                f"init 'lyapunov' is for activation {', '.join(LYAPUNOV_ACTIVATIONS)}, got '{self.activation}'"
            )
        self._check_additions()
        self.check_sizes()
        sparsity = self.init.sparsity
        require(sparsity is None or sparsity < 1, "init.sparsity", sparsity, "below 1")
        device_match = re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", self.device)
        require(bool(device_match), "device", self.device, "auto, cpu, mps, cuda or cuda:N")
        if self.device == "mps" and self.dtype == "float64":
            raise ConfigError("device=mps has no float64; use dtype=float32")
        if self.precision != "full" and self.dtype != "float32":
            raise ConfigError(f"precision={self.precision} is for weights in float32, got dtype={self.dtype}")

    def check_sizes(self, features: int | None = None) -> None:
        """Check that the sizes of a built-in network go together, and with the data.

        Args:
            features: Number of inputs; None: not known yet.

        Raises:
            ConfigError: For the first size that cannot work.
        """
        name = self.model.name
        if isinstance(name, OwnPart):
            return
        sizes = {key: getattr(self.model, key) for key in _SIZES}
        try:
            check_sizes(name, depth=self.depth, width=self.width, features=features, **sizes)
        except ValueError as error:
            raise ConfigError(f"model '{name}': {error}") from None

    @property
    def hidden_widths(self) -> list[int]:
        """Units of each hidden layer, ``depth - 1`` of them."""
        return list(self.widths) if self.widths is not None else [self.width] * (self.depth - 1)

    @property
    def number_format(self) -> str:
        """The format in which layers compute."""
        return self.dtype if self.precision == "full" else self.precision.removeprefix("amp_")

    @property
    def units(self) -> str:
        """The hidden widths in words: ``128``, or ``200-100-50``."""
        hidden = self.hidden_widths
        return str(hidden[0]) if len(set(hidden)) == 1 else "-".join(map(str, hidden))

    @property
    def family_options(self) -> list[str]:
        """Width and options of a network that is no MLP: ``["width 16", "kernel=3", "padding=zeros"]``."""
        width = [] if isinstance(self.model.name, OwnPart) else [f"width {self.width}"]
        return [*width, *(f"{key}={value}" for key, value in self.model.options.items())]

    @property
    def additions(self) -> list[str]:
        """The normaliser and the skip connections, if there are any, as typed on a command line."""
        settings = {"normalization": self.normalization, "residual": self.residual}
        typed = [f"{key}={value}" for key, value in settings.items() if value != "none"]
        return [*typed, *(["affine=true"] if self.affine else [])]

    def _find_own_parts(self) -> None:
        """Put functions and import paths into the form of parts, also where a group is given as its choice alone."""
        for key in _OWN:
            setattr(self, key, own_part(key, getattr(self, key)))
        if isinstance(self.activation, str):
            self.activation = ACTIVATION_ALIASES.get(self.activation, self.activation)
        for group, schema in _SCHEMAS.items():
            value = getattr(self, group)
            if callable(value) or isinstance(value, str):
                setattr(self, group, value := schema(value))
            if isinstance(value, schema):
                value.name = own_part(group, value.name)

    def _choose_init(self) -> None:
        is_own = isinstance(self.model.name, OwnPart)
        if self.init.name == AUTO and not is_own:
            self.init.name = INIT_OF_FAMILY.get(self.model.name, "he")
        elif self.init.name == AUTO and self.init.options:
            refuse_option("init", AUTO, next(iter(self.init.options)), {})

    def _resolve_family(self) -> None:
        """Give unset options of the network the family's defaults; refuse those that it does not take."""
        depth = None if self.widths is None else self._depth_of_widths()
        given = {key: getattr(self, key) for key in MODEL_TAKES["mlp"]}
        for key, value in options_of_network(self.model.name, given).items():
            setattr(self, key, value)
        if depth is not None:
            self.depth = depth

    def _check_profile_steps(self) -> None:
        record = self.record
        fits = [0 <= step < self.steps and step % record.every == 0 for step in record.profile_steps]
        allowed = f"a list of steps from 0 to {self.steps - 1}" if self.steps else "[] where steps=0"
        if record.every > 1:
            allowed += f", multiples of record.every={record.every}"
        require(all(fits), "record.profile_steps", list(record.profile_steps), allowed)

    def _check_additions(self) -> None:
        residuals = RESNET_RESIDUALS if self.model.name == "resnet" else RESIDUALS
        try:
            check_additions(self.normalization, self.residual, self.hidden_widths, self.affine, residuals)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.normalization == "batch" and self.batch_size == 1:
            raise ConfigError("normalization='batch' needs batch_size of at least 2: a sample alone becomes 0")

    def _depth_of_widths(self) -> int:
        assert self.widths is not None
        for width in self.widths:
            require(1 <= width <= _MOST["width"], "widths", list(self.widths), "a list of numbers of at least 1")
        depth = len(self.widths) + 1
        if self.depth not in (depth, None):
            raise ConfigError(
                f"depth={self.depth} contradicts widths, whose {depth - 1} hidden layers make depth {depth}; "
                "leave depth out"
            )
        return depth


_SIZES = ("kernel", "heads", "context")  # of a model, beside depth and width

_LOWEST = {
    "depth": LOWEST_SIZES["depth"],
    "width": LOWEST_SIZES["width"],
    "seed": 0,
    "seeds": 1,
    "steps": 0,
    "batch_size": 1,
    "threads": 1,
    "sigma_b2": 0,
    "record.every": 1,
    **{f"model.{key}": LOWEST_SIZES[key] for key in _SIZES},
    **{f"init.{key}": low for key, low in INIT_LOWEST.items()},
    "data.samples": 1,
    "data.features": 1,
    "data.targets": 1,
    "data.length": 1,
    "data.symbols": 2,
    "data.seed": 0,
    "optimizer.lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.momentum": 0,
    "optimizer.warmup": 0,
}

_HIGHEST = 3e38
_BOUNDED = ("optimizer.", "negative_slope", "init.", "sigma_b2")
_MOST_WHOLE = 2**63 - 1  # what torch and TensorBoard count with
# Beyond these a run would end for want of memory, or never.
_MOST = {
    "threads": 1024,
    "depth": 10**6,
    "seeds": 10**6,
    **dict.fromkeys(
        ("width", "batch_size", "data.samples", "data.features", "data.targets", "data.length", "data.symbols"), 10**8
    ),
}

_OWN = ("activation", "loss")
_SCHEMAS: dict[str, Any] = {
    "model": ModelConfig,
    "init": InitConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
}

_CHOICES = {
    "activation": ACTIVATIONS,
    "model.padding": PADDINGS,
    "model.norm": NORMS,
    "model.queries": QUERIES,
    "model.cell": CELLS,
    "loss": LOSSES,
    "log": LOGS,
    "dtype": DTYPES,
    "precision": PRECISIONS,
    "optimizer.schedule": SCHEDULES,
    "init.mode": MODES,
    "init.distribution": DISTRIBUTIONS,
}


def as_dict(config: Config) -> dict[str, Any]:
    """Return the resolved options; model, init, data and optimizer hold their name and their own options only.

    What an own model is made of is its own affair: it has None for depth, width and the like. ``own_parts`` is there
    only if there are such: the digest of the source of each.
    """
    options = dataclasses.asdict(config)
    names = [config.activation, config.loss, *(getattr(config, group).name for group in GROUPS)]
    for key in _OWN:
        options[key] = str(options[key])
    for group in GROUPS:
        name, own = options[group]["name"], options[group].pop("own")
        allowed = ("name", *options_of_choice(group, name))
        options[group] = {key: value for key, value in options[group].items() if key in allowed} | own
        options[group]["name"] = str(name)
    if isinstance(config.model.name, OwnPart):
        options |= dict.fromkeys(MODEL_TAKES["mlp"])
    digests = {str(name): name.digest for name in names if isinstance(name, OwnPart)}
    return options | ({"own_parts": digests} if digests else {})


def _numbers(config: Any, prefix: str = "") -> list[tuple[str, float]]:
    """List every option that is a number, as (dotted key, value)."""
    numbers = []
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            numbers += _numbers(value, f"{entry.name}.")
        elif isinstance(value, int | float):
            numbers.append((prefix + entry.name, value))
    return numbers


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


check_fields("model", ModelConfig)
check_fields("init", InitConfig)
check_fields("data", DataConfig)
check_fields("optimizer", OptimizerConfig)
