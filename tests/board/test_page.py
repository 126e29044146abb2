"""What the board changes in TensorBoard's page."""

import json
import re
from urllib.parse import parse_qs, urlsplit

from gradexp.board.page import address, columns, script, tabs


def test_the_address_pins_gradient_and_loss_and_does_not_smooth() -> None:
    asked = parse_qs(urlsplit(address("^(init=.*),", "seeds/mean+sd")).query)
    assert [card["tag"] for card in json.loads(asked["pinnedCards"][0])] == [
        "profile/log10_output_grad",
        "train/loss",
    ]
    assert asked["smoothing"] == ["0"]
    assert asked["runColorGroup"] == ["regex:^(init=.*),"]
    assert asked["runFilter"] == ["seeds/mean+sd"]
    assert "runFilter" not in address("x")


def test_the_script_carries_settings_and_address_whatever_runs_are_called() -> None:
    odd = '"; alert(1) </script>'
    page = script(odd)
    values = dict(re.findall(r"^const ([A-Z_]+) = (.*);$", page, flags=re.MULTILINE))
    assert json.loads(values["ADDRESS"]) == address(odd)
    assert json.loads(values["SETTINGS"])["ignoreOutliers"] is False
    assert "alert(1)" not in page


def test_tabs_that_repeat_the_first_in_other_colours_are_gone() -> None:
    names = ["timeseries", "scalars", "custom_scalars", "images", "text", "hparams"]
    listing = {name: {"enabled": True} for name in names}
    assert list(tabs(listing)) == ["timeseries", "text", "hparams"]


def reply(*names: str) -> dict[str, list[dict[str, object]]]:
    return {"hparamInfos": [{"name": name, "differs": False} for name in names], "metricInfos": []}


def test_hparams_begin_with_the_verdicts_and_have_no_option_that_all_share() -> None:
    told = columns(
        reply("Theory", "seed", "depth", "Learned", "init", "steps", "Gradient"), {"seed", "depth", "init"}
    )
    assert [info["name"] for info in told["hparamInfos"]] == [
        "Gradient",
        "Learned",
        "depth",
        "init",
        "seed",
        "Theory",
    ]
    assert all(info["differs"] for info in told["hparamInfos"])
    older = columns(reply("depth", "verdict.gradient", "verdict.theory", "verdict.training"), set())
    assert [info["name"] for info in older["hparamInfos"]] == [
        f"verdict.{x}" for x in ("gradient", "training", "theory")
    ]


def test_hparams_of_one_run_and_of_other_programs_stay_as_they_are() -> None:
    for own, varying in ((reply("Gradient", "depth"), None), (reply("lr", "depth"), {"depth"}), ({}, {"depth"})):
        assert columns(own, varying) == own
