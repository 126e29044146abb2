"""How long 300 runs of 150 layers take to be on the screen: ``python benchmarks/dashboard.py [--runs N] [ROUNDS]``.

A sweep over three initialisations and many seeds is made first, by the ensemble launcher. A round starts
``gradexp.board`` on it, waits until TensorBoard knows every run, and opens the address in a headless Chromium with an
empty profile, which needs selenium, chromium and chromedriver. Counted from opening the address: until the pinned
profile shows lines in the colours of all three initialisations, and until the page has answered a run filter that is
typed then, by listing its runs only. Target: 10 s for both.
"""

import argparse
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from machine import machine
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from gradexp.board.names import find_runs

INITS = ("he", "xavier", "orthogonal")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1400,1100")
LIMIT = 120.0


def sweep(folder: Path, runs: int) -> None:
    """Make the runs."""
    options = [f"init={','.join(INITS)}", f"seed=range(0,{runs // len(INITS)})", "depth=150", "width=16", "steps=50"]
    command = [sys.executable, "-m", "gradexp.run", "-m", *options, "hydra/launcher=ensemble", "quiet=true"]
    subprocess.run([*command, f"hydra.sweep.dir={folder}"], check=True, stdout=subprocess.DEVNULL)


def until(condition: Callable[[], bool]) -> float:
    """Return the time at which a condition holds."""
    end = time.perf_counter() + LIMIT
    while time.perf_counter() < end:
        try:
            if condition():
                return time.perf_counter()
        except (OSError, NoSuchElementException, StaleElementReferenceException):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"not within {LIMIT:g} s")


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A Chromium that has seen nothing yet."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def line_colours(driver: webdriver.Chrome) -> int:
    """Return how many colours cover many dots of the pinned chart."""
    chart = driver.find_element(By.CSS_SELECTOR, "metrics-pinned-view line-chart")
    with Image.open(io.BytesIO(chart.screenshot_as_png)) as picture:
        dots = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    _, counts = np.unique(dots[np.ptp(dots, axis=1) > 25], axis=0, return_counts=True)
    return int((counts > 200).sum())


def measure(folder: Path, runs: int) -> tuple[float, float, float]:
    """Return the seconds until the server knows all runs, and the page shows them and answers."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "gradexp.board", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()  # which folder it shows
            address = server.stdout.readline().split()[1]
            root = address.rstrip("/")
            # With the means over seeds there are more.
            known = until(lambda: len(json.load(urlopen(f"{root}/data/runs", timeout=10))) >= runs)
            with browser() as driver:
                opened = time.perf_counter()
                driver.get(address)
                drawn = until(lambda: line_colours(driver) >= len(INITS))
                box = driver.find_element(By.CSS_SELECTOR, "runs-data-table input[placeholder^='Filter']")
                box.send_keys(Keys.CONTROL, "a")  # in place of what shows the means only
                box.send_keys("xavier")
                answered = until(lambda: all("init=xavier" in name for name in listed(driver)))
        finally:
            server.kill()
    return known - begin, drawn - opened, answered - opened


def listed(driver: webdriver.Chrome) -> list[str]:
    """Return the names in the list of runs."""
    text = driver.find_element(By.CSS_SELECTOR, "runs-data-table").text
    return re.findall(r"^\d+_.*init=.*$", text, flags=re.MULTILINE) or [""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="where such a sweep lies already")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        if asked.folder is None:
            sweep(folder, asked.runs)
        runs = len(find_runs(folder))
        print(f"{date.today()}, {machine('cpu')}, {runs} runs of 150 layers, {asked.rounds} rounds")
        rounds = [measure(folder, runs) for _ in range(asked.rounds)]
    names = ("server knows all runs", "page shows every init", "page answers a filter")
    for name, seconds in zip(names, zip(*rounds, strict=True), strict=True):
        print(f"{name:<24} {statistics.median(seconds):5.1f} s   ({min(seconds):.1f} to {max(seconds):.1f})")


if __name__ == "__main__":
    main()
