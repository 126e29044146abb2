"""What summary.json and sweep.csv hold."""

import hashlib
import json
import math
import platform
import stat
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradexp._version import __version__
from gradexp.config import Config, as_dict
from gradexp.history.history import History
from gradexp.history.step import QUANTILES, QUANTITIES, Quantity, mean, standard_error
from gradexp.history.verdict import Verdict
from gradexp.runs.result import Result, RunStatus

if TYPE_CHECKING:  # importing them would load torch, and a run's first files are written before that
    from gradexp.runs.training import Training
    from gradexp.theory import Agreement, Prediction


version: Callable[[str], str] = cache(metadata.version)  # which reads a file each time

SCHEMA = 1
UNHASHED = ("device", "threads", "quiet", "log", "record", "objective")  # they do not change what is computed


def config_hash(config: Config) -> str:
    """Return sha256 of the options that determine the numbers, and of the gradexp version."""
    return hash_of(recorded(as_dict(config)))


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as summary.json holds them: of data from a file also what the file holds, as a digest.

    A file whose content has changed makes another run of the same options.
    """
    data = options.get("data")
    if not isinstance(data, Mapping) or data.get("name") != "file":
        return dict(options)
    return {**options, "data": {**data, "content": _digest(data.get("path"))}}


def _digest(path: Any) -> str | None:
    """Return sha256 of a file's content, or None if it cannot be read, which the run will say."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        return _digest_of(str(path), str(Path.cwd()), status.st_size, status.st_mtime_ns)
    except (OSError, TypeError, ValueError):
        return None


@lru_cache(maxsize=64)  # a sweep asks for it once for each job
def _digest_of(path: str, _folder: str, _size: int, _changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(options: Mapping[str, Any]) -> str:
    """Return the ``config_hash`` of options as a dict."""
    hashed = {key: value for key, value in options.items() if key not in UNHASHED}
    text = json.dumps([hashed, __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def unstarted_summary(
    options: dict[str, Any], overrides: list[str], error: str, status: RunStatus = "failed"
) -> dict[str, Any]:
    """Return the content of summary.json of a job of which only its options are known, and why it did not run."""
    content = summary(Result(Config(), overrides, status, error))
    options = recorded(options)
    return {**content, "config": options, "config_hash": hash_of(options), "seeds": []}


def summary(result: Result) -> dict[str, Any]:
    """Return the content of summary.json: always the same keys, null where not applicable, no nan or inf."""
    options = recorded(as_dict(result.config))
    content = {
        "schema": SCHEMA,
        "gradexp": __version__,
        "torch": _version("torch"),
        "python": platform.python_version(),
        "hydra": _version("hydra-core"),
        "device": result.device,
        "device_name": result.device_name,
        "threads": result.threads,
        "status": result.status,
        "error": result.error,
        "started": result.started.isoformat(),
        "seconds": result.seconds,
        "seconds_training": result.seconds_by_part.get("training"),
        "config": options,
        "config_hash": hash_of(options),
        "overrides": result.overrides,
        "seeds": result.seeds,
        "initial": _initial(result.initial),
        "theory": _theory(result.prediction, result.comparison),
        "number_format": _number_format(result),
        "training": {**_training(result.training, result.config.precision), **_guessing(result)},
        "verdict": _verdict(result.verdict),
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def metrics(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outcome of a run: one flat row from the content of its summary.json, None where not applicable."""
    initial, theory, training, verdict = (content[key] for key in ("initial", "theory", "training", "verdict"))
    return {
        **{key: verdict[key] for key in ("gradient", "training", "theory")},
        "log_chi": initial["log_chi"],
        "log_chi_theory": theory["log_chi"],
        "z": theory["z"],
        "log10_first_over_last": initial["log10_first_over_last"]["output_grad"],
        "depth_scale": initial["depth_scale"],
        **{key: training[key] for key in _OUTCOME_OF_TRAINING},
        "seconds": content["seconds"],
    }


_OUTCOME_OF_TRAINING = ("loss_first", "loss_last", "train_accuracy", "test_accuracy", "diverged_at")
_THEORY_KEYS = (
    "valid",
    "reason",
    "sigma_w2",
    "sigma_b2",
    "q_star",
    "chi_1",
    "log_chi",
    "log_chi_sd",
    "z",
    "deviates_from_layer",
)
_FORMATS = ("float32", "float16", "bfloat16")


def _initial(history: History | None) -> dict[str, Any]:
    ratios: dict[Quantity, float | None] = dict.fromkeys(QUANTITIES[:3])
    fails: dict[bool, dict[str, int | None]] = {over: dict.fromkeys(_FORMATS) for over in (False, True)}
    quantiles: dict[float, float] = {}
    log_chi = error = scale = dead = None
    if history is not None:
        initial = history.at()
        slopes = initial.log_chi_per_network()
        log_chi, error, scale = mean(slopes), standard_error(slopes), initial.depth_scale()
        ratios = {quantity: initial.first_over_last(quantity) for quantity in ratios}
        dead = mean(initial.dead_fraction) if initial.dead_fraction is not None else None
        for over, layers in fails.items():
            layers.update({name: initial.failing_layer("output_grad", name, over) for name in _FORMATS})
        quantiles = initial.log_chi_quantiles()
    return {
        "log_chi": log_chi,
        "log_chi_se": error,
        "depth_scale": scale,
        "log10_first_over_last": ratios,
        "dead_fraction": dead,
        "underflow_layer": fails[False],
        "overflow_layer": fails[True],
        "quantiles": {str(q): quantiles.get(q) for q in QUANTILES},
    }


def _theory(prediction: "Prediction | None", comparison: "Agreement | None") -> dict[str, Any]:
    content: dict[str, Any] = {key: getattr(prediction, key, None) for key in _THEORY_KEYS}
    for key in ("z", "deviates_from_layer"):
        content[key] = getattr(comparison, key, None)
    return content


def _number_format(result: Result) -> dict[str, Any]:
    """Return in which format layers compute, and where it gives out, as expected and as seen in training."""
    check = result.format_check
    failures = (None, None) if check is None else (check.expected, check.measured)
    expected, measured = (None if failure is None else failure._asdict() for failure in failures)
    return {"name": result.config.number_format, "expected": expected, "measured": measured}


def _training(training: "Training | None", precision: str) -> dict[str, Any]:
    keys = ("loss_first", "loss_last", "train_accuracy", "test_loss", "test_accuracy", "diverged_at")
    content: dict[str, Any] = {"steps": None, "skipped_steps": None, **dict.fromkeys(keys)}
    if training is not None:
        losses, tests = training.losses, training.tests
        content.update(
            steps=len(losses),
            skipped_steps=len(training.skipped) if precision == "amp_float16" else None,
            loss_first=losses[0] if losses else None,
            loss_last=losses[-1] if losses else None,
            train_accuracy=training.train_accuracy,
            # After a divergence the last test is of weights that are gone.
            test_loss=tests[-1][1] if tests and training.diverged_at is None else None,
            test_accuracy=tests[-1][2] if tests and training.diverged_at is None else None,
            diverged_at=training.diverged_at,
        )
    return content


def _guessing(result: Result) -> dict[str, Any]:
    """Return what a network reaches that ignores its input."""
    return {"guessing_loss": result.guessing, "guessing_accuracy": result.guessing_accuracy}


def _verdict(verdict: Verdict | None) -> dict[str, Any]:
    keys = ("gradient", "training", "theory", "text")
    return {key: getattr(verdict, key, None) for key in keys}


def _finite(value: Any) -> Any:
    """Replace every number that JSON cannot hold by None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
