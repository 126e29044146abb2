"""The words and pictures that a run leaves in TensorBoard."""

import io
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradexp.config import Config, InitConfig, OptimizerConfig, RecordConfig
from gradexp.runs import live_results
from gradexp.runs.experiment import deliver, run, run_stack
from gradexp.runs.result import Result
from gradexp.sinks import tensorboard as sinks
from gradexp.sinks.pictures import PROFILE, TRAINING
from gradexp.sinks.tensorboard import TensorBoard

DIVERGES = OptimizerConfig(lr=1e30)


def small(**options: Any) -> Config:
    return Config(**({"depth": 4, "width": 4} | options))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder: Path = tmp_path_factory.mktemp("run")
    config = Config(depth=4, width=4, steps=12, init=InitConfig("xavier"))
    run(config, [TensorBoard(folder)], ["init=xavier", "widths=[4,4,4]", "data.path=my file.npz"])
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def tensor(written: EventAccumulator, tag: str) -> bytes:
    [event] = written.Tensors(tag)
    return event.tensor_proto.string_val[0]


def test_the_text_tab_has_verdict_command_and_options(written: EventAccumulator) -> None:
    verdict = tensor(written, "run/1 verdict/text_summary").decode()
    assert verdict.startswith("**gradient: stable, training: ")
    assert re.search(r"^theory .*; agrees: ", verdict, flags=re.MULTILINE)
    assert not re.search(r"^ ", verdict, flags=re.MULTILINE)  # Markdown would show it as code
    command = tensor(written, "run/2 command/text_summary").decode()
    assert command == "    python -m gradexp.run init=xavier 'widths=[4,4,4]' 'data.path=my file.npz'"
    options = tensor(written, "run/3 options/text_summary").decode().splitlines()
    assert "| init | xavier |" in options
    assert "| depth | 4 |" in options
    assert not any(line.startswith("| init.std ") for line in options)  # xavier has none


@pytest.mark.slow
def test_the_text_tab_says_from_which_layer_the_number_format_fails(tmp_path: Path) -> None:
    config = Config(depth=60, width=4, activation="linear", steps=0, init=InitConfig("identity", gain=0.1))
    run(config, [TensorBoard(tmp_path)])
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    verdict = tensor(events, "run/1 verdict/text_summary").decode()
    # The cotangent's largest element is below 1, and float32 rounds 0.7e-45 to 0: 45 or 46 factors of 0.1 later.
    [layer] = re.findall(r"gradients 0 from .*layer (\d+) down in float32", verdict)
    assert int(layer) in (14, 15)


class Image(NamedTuple):
    """One picture of the Images tab."""

    step: int
    width: int
    height: int
    pixels: np.ndarray


def images(folder: Path) -> dict[str, list[Image]]:
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    found: dict[str, list[Image]] = {}
    for tag in events.Tags()["images"]:
        for event in events.Images(tag):
            with PIL.Image.open(io.BytesIO(event.encoded_image_string)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            found.setdefault(tag, []).append(Image(event.step, event.width, event.height, pixels))
    return found


@pytest.mark.slow
def test_pictures_are_written_if_asked_for_and_fit_a_card(tmp_path: Path) -> None:
    run(small(steps=12), [TensorBoard(tmp_path, figures=True)])
    found = images(tmp_path)
    assert {tag: [own.step for own in pictures] for tag, pictures in found.items()} == {PROFILE: [0], TRAINING: [11]}
    for [picture] in found.values():
        assert (picture.height, picture.width) == picture.pixels.shape[:2]
        assert 600 < picture.width < 800
        assert picture.width > 1.4 * picture.height  # TensorBoard fills the width of a card


def test_no_pictures_unless_asked_for(tmp_path: Path) -> None:
    run(small(steps=2), [TensorBoard(tmp_path)])
    assert images(tmp_path) == {}


@pytest.fixture
def looking_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_BETWEEN", 0.0)
    monkeypatch.setattr(live_results, "_BETWEEN", 0.0)
    monkeypatch.setattr(live_results, "_SHARE", math.inf)


@pytest.mark.slow
@pytest.mark.usefixtures("looking_at_every_step")
def test_a_long_training_is_drawn_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_BETWEEN_PICTURES", 0.0)
    board = TensorBoard(tmp_path, figures=True)
    board._picture_due = board._opened = -math.inf
    run(small(steps=3), [board])
    assert [own.step for own in images(tmp_path)[TRAINING]] == [0, 2]  # the next is due in an infinite time


@pytest.mark.slow
def test_histograms_hold_the_outputs_of_five_layers_only_if_asked_for(tmp_path: Path) -> None:
    config = small(depth=9, steps=20, record=RecordConfig(histograms=True))
    result = run(config, [TensorBoard(tmp_path / "on")])
    run(small(depth=9, steps=20), [TensorBoard(tmp_path / "off")])
    on, off = (EventAccumulator(str(tmp_path / name), size_guidance={"histograms": 0}) for name in ("on", "off"))
    on.Reload()
    off.Reload()
    assert off.Tags()["histograms"] == []
    assert on.Tags()["histograms"] == [f"outputs/layer_{layer:03}" for layer in (1, 3, 5, 7, 9)]
    seen = dict(result.outputs)
    for layer in (1, 3, 5, 7, 9):
        written = on.Histograms(f"outputs/layer_{layer:03}")
        assert [event.step for event in written] == [*range(0, 20, 2), 20]
        for event in written:
            expected, own = seen[event.step][layer], event.histogram_value
            assert own.num == sum(own.bucket) == 64 * (10 if layer == 9 else 4)
            assert (own.min, own.max) == (expected.edges[0], expected.edges[-1])
            assert own.bucket == [0, *expected.counts]
            assert own.bucket_limit == expected.edges.tolist()


def test_profiles_in_training_are_runs_of_their_own(tmp_path: Path) -> None:
    config = small(steps=4, record=RecordConfig(profile_steps=[0, 3]))
    result = run(config, [TensorBoard(tmp_path, subruns=False)])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["step_000000", "step_000003"]
    assert result.gradients is not None
    for step in (0, 3):
        events = EventAccumulator(str(tmp_path / f"step_{step:06}"))
        events.Reload()
        for quantity in ("output", "output_grad", "weight_grad"):
            points = [(event.step, event.value) for event in events.Scalars(f"profile_of_loss/log10_{quantity}")]
            expected = [*enumerate(result.gradients.profile(quantity, step), start=1)]
            assert points == [(layer, pytest.approx(value, abs=1e-5)) for layer, value in expected]
        # The gradient of length 1 at the last layer is another quantity, and not in one chart with the loss's own.
        assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("profile/")]


@pytest.mark.usefixtures("looking_at_every_step")
def test_a_dashboard_can_follow_a_training(tmp_path: Path) -> None:
    """All that is known of a step stands in the file before the next step begins."""
    config = small(steps=4, record=RecordConfig(profile_steps=[1], histograms=True))
    board = TensorBoard(tmp_path)
    seen: list[tuple[int, ...]] = []

    class Follower:
        def write(self, stage: str, _result: Result) -> None:
            if stage == "step":
                board.writer.flush()
                events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
                events.Reload()
                there = events.Tags()["scalars"]
                tags = ("train/loss", "test/loss", "gradient/log10_first_over_last")
                counts = [len(events.Scalars(tag)) if tag in there else 0 for tag in tags]
                profiles = len([path for path in tmp_path.iterdir() if path.name.startswith("step_")])
                seen.append((*counts, profiles, len(events.Histograms("outputs/layer_001"))))

        def close(self) -> None:
            pass

    run(config, [board, Follower()])
    assert seen == [(1, 1, 1, 0, 2), (2, 2, 2, 1, 3), (3, 3, 3, 1, 4), (4, 4, 4, 1, 5)]


@pytest.mark.usefixtures("looking_at_every_step")
@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, [0, 1, 2, 3, 4, 5]), ({"record": RecordConfig(every=2)}, [0, 2, 4]), ({"optimizer": DIVERGES}, [0, 1])],
    ids=["every step", "every other step", "diverges"],
)
def test_a_gradient_is_written_once_whenever_it_is_looked_at(
    tmp_path: Path, options: dict[str, Any], steps: list[int]
) -> None:
    result = run(small(steps=6, **options), [TensorBoard(tmp_path)])
    assert result.gradients is not None
    assert result.gradients.steps == steps
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for tag in ("gradient/zero_layers", "gradient/nonfinite_layers"):
        assert [event.step for event in events.Scalars(tag)] == steps


def test_a_stack_that_is_delivered_leaves_the_profiles_of_its_steps(tmp_path: Path) -> None:
    record = RecordConfig(profile_steps=[1], histograms=True)
    configs = [small(steps=2, seed=seed, record=record) for seed in (0, 1)]
    for config, result in zip(configs, run_stack(configs), strict=True):
        deliver(result, [TensorBoard(tmp_path / str(config.seed))])
        alone = run(config)
        assert alone.gradients is not None
        events = EventAccumulator(str(tmp_path / str(config.seed) / "step_000001"))
        events.Reload()
        written = [event.value for event in events.Scalars("profile_of_loss/log10_output_grad")]
        assert written == pytest.approx(alone.gradients.profile("output_grad", 1).tolist(), abs=1e-4)
