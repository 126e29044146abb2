"""What the board adds to TensorBoard's page: its settings, its address, and ticks where TensorBoard has none."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import quote

PINNED = ("profile/log10_output_grad", "train/loss")
"""Cards that stand above all others."""

# What a page of TensorBoard keeps in the browser, under its key. Smoothing would run across layers, outliers are the
# runs that explode, a page that is not reloaded does not follow a training, a narrow list of runs hides their
# colours, and a step selector at layer 150 and the open pane of settings take the room of the charts.
_KEPT_BY = "_tb_global_settings"
_SETTINGS = {
    "scalarSmoothing": 0,
    "ignoreOutliers": False,
    "autoReload": True,
    "autoReloadPeriodInMs": 5000,
    "stepSelectorEnabled": False,
    "timeSeriesSettingsPaneOpened": False,
    "timeSeriesCardMinWidth": 400,
    "sideBarWidthInPercent": 30,
}
# Tabs that show what Time Series shows, but each run in another colour.
_TABS_OUT = ("scalars", "custom_scalars", "images", "histograms", "distributions")
# Columns that come first, and those that give way to options. Older runs have the longer names.
_VERDICTS = ("Gradient", "Learned", "verdict.gradient", "verdict.training")
_LESS = ("Theory", "verdict.theory")


def script(colours: str, runs: str = "") -> str:
    """Return what runs in the page before TensorBoard does.

    Args:
        colours: Regular expression whose groups are the same in the names of runs of one colour.
        runs: Regular expression of the runs that are drawn at first; empty for all.
    """
    values = {"KEPT_BY": _KEPT_BY, "SETTINGS": _SETTINGS, "ADDRESS": address(colours, runs)}
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    return constants + files("gradexp.board").joinpath("page.js").read_text(encoding="utf-8")


def address(colours: str, runs: str = "") -> str:
    """Return what follows TensorBoard's address to show the gradient over layers above all other cards."""
    pinned = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    query = {
        "pinnedCards": json.dumps(pinned, separators=(",", ":")),
        "smoothing": "0",
        "runColorGroup": f"regex:{colours}",
        **({"runFilter": runs} if runs else {}),
    }
    return f"?{'&'.join(f'{key}={quote(value)}' for key, value in query.items())}#timeseries"


def tabs(listing: Mapping[str, Any]) -> dict[str, Any]:
    """Return TensorBoard's list of its tabs without those whose colours contradict the first one's."""
    return {name: tab for name, tab in listing.items() if name not in _TABS_OUT}


def columns(experiment: Mapping[str, Any], varying: set[str] | None) -> dict[str, Any]:
    """Return TensorBoard's description of the HParams tab with the columns that tell something, the verdicts first.

    Each run can only say what was typed for itself. TensorBoard shows the first five columns at first.

    Args:
        experiment: Reply of TensorBoard's server.
        varying: Options that differ between the runs, the only ones that are kept; None if that is not known.
    """
    infos = {info["name"]: info for info in experiment.get("hparamInfos", [])}
    if varying is None or not infos.keys() & set(_VERDICTS):
        return dict(experiment)
    options = sorted(varying)
    order = [*_VERDICTS, *options[:3], *_LESS, *options[3:]]
    return {**experiment, "hparamInfos": [{**infos[name], "differs": True} for name in order if name in infos]}
