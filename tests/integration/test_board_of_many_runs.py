"""Lines that ``gradexp.board`` draws in a browser, counted: of one run, of hundreds, and of a sweep over seeds."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_board_in_browser import board, rows, tab, wait
from test_tensorboard import browser, keep, pytestmark

from gradexp.board.page import PINNED
from gradexp.history.scalars import points
from gradexp.sinks.event_file import EventFile
from gradexp.sinks.tensorboard import write_points

__all__ = ["browser", "pytestmark"]

ACROSS = 30  # short lines side by side, in rows one above the other, so that each can be told from its neighbours


def leave(folder: Path, names: Sequence[str]) -> None:
    """Leave runs whose profile is a short line, each at another place of the chart."""
    for index, name in enumerate(names):
        row, column = divmod(index, ACROSS)
        file = EventFile(folder / name)
        write_points(file, points(range(5 * column, 5 * column + 4), {PINNED[0]: [row] * 4}))
        file.close()


def lines_drawn(browser) -> int:
    """Return how many separate coloured lines the pinned chart has."""
    chart = browser.find_element(By.CSS_SELECTOR, "metrics-pinned-view line-chart")
    with Image.open(io.BytesIO(chart.screenshot_as_png)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return int(label(np.ptp(pixels, axis=2) > 25, np.ones((3, 3)))[1])


def opened(browser, address: str, names: Sequence[str]) -> None:
    """Open the address that was printed, and wait until the list has exactly some runs, and all are ticked."""
    tab(browser, address, "timeseries")
    wait(browser).until(
        lambda _: len(browser.find_elements(By.CSS_SELECTOR, "tb-data-table-content-row")) == len(names)
    )
    ticked = "return [...document.querySelectorAll('runs-data-table input[type=checkbox]')].every(box => box.checked)"
    wait(browser).until(lambda _: browser.execute_script(ticked))
    assert set(listed(browser)) == set(names)


def listed(browser) -> list[str]:
    script = "return [...document.querySelectorAll('tb-data-table-content-row')].map(row => row.innerText.trim())"
    names: list[str] = browser.execute_script(script)
    return names


@pytest.mark.parametrize("count", [11, 126, 600])
def test_every_run_is_drawn_however_many_there_are(browser, tmp_path: Path, count: int) -> None:
    names = [f"21-16-{index:02}-015112_init=he,depth={index}" for index in range(count)]
    leave(tmp_path / "2026-11-29", names)
    with board(tmp_path) as address:
        opened(browser, address, names)
        wait(browser).until(lambda _: lines_drawn(browser) == count)
        keep(browser, tmp_path, f"board_of_{count}.png")


def test_the_only_run_of_a_folder_is_called_by_the_folder(browser, tmp_path: Path) -> None:
    own = tmp_path / "21-16-01-015112_init=he,depth=150"
    leave(own, [".", "theory"])
    with board(own) as address:
        opened(browser, address, [own.name, f"{own.name}/theory"])
        wait(browser).until(lambda _: lines_drawn(browser) == 2)


def test_a_sweep_over_seeds_shows_mean_and_band_first_and_then_each_seed(browser, tmp_path: Path) -> None:
    jobs = [f"{job}_init={'hx'[job // 3]},seed={job % 3}" for job in range(6)]
    for job, name in enumerate(jobs):
        file = EventFile(tmp_path / name)
        write_points(file, points(range(1, 4), {PINNED[0]: [20 * (job // 3) + job] * 3}))
        file.close()
    lines = [f"init={init}/3 seeds/mean{band}" for init in "hx" for band in ("", "-sd", "+sd")]
    with board(tmp_path) as address:
        opened(browser, address, lines)
        wait(browser).until(lambda _: lines_drawn(browser) == 6)
        keep(browser, tmp_path, "board_of_seeds.png")
        filter_box = browser.find_element(By.CSS_SELECTOR, "runs-data-table input[placeholder^='Filter']")
        assert filter_box.get_property("value") == "seeds/mean"
        filter_box.send_keys(Keys.CONTROL, "a")
        filter_box.send_keys(Keys.DELETE)
        wait(browser).until(lambda _: rows(browser).keys() == {*jobs, *lines})
