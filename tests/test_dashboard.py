"""The layout and the words that a run leaves in TensorBoard."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from gradexp.config import Config, InitConfig
from gradexp.dashboard import CHARTS
from gradexp.experiment import run
from gradexp.sinks import TensorBoard


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


def test_every_chart_of_the_layout_has_scalars_to_draw(written: EventAccumulator) -> None:
    layout = Layout.FromString(tensor(written, "custom_scalars__config__"))
    [category] = layout.category
    assert [chart.title for chart in category.chart] == list(CHARTS)
    tags = written.Tags()["scalars"]
    for chart in category.chart:
        for pattern in chart.multiline.tag:
            assert [tag for tag in tags if re.match(pattern, tag)] == [pattern.removesuffix("$")]


def test_the_text_tab_has_verdict_command_and_options(written: EventAccumulator) -> None:
    verdict = tensor(written, "run/1 verdict/text_summary").decode()
    assert verdict.startswith("**gradient: stable, training: ")
    command = tensor(written, "run/2 command/text_summary").decode()
    assert command == "    python -m gradexp.run init=xavier 'widths=[4,4,4]' 'data.path=my file.npz'"
    options = tensor(written, "run/3 options/text_summary").decode().splitlines()
    assert "| init | xavier |" in options
    assert "| depth | 4 |" in options
    assert not any(line.startswith("| init.std ") for line in options)  # xavier has none
