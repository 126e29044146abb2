"""The page of a sweep holds everything, asks for nothing, and shows what it is given as text."""

import re
from pathlib import Path
from typing import Any

import pytest
from cases import few
from pages import Parsed
from sweep_folders import cube, grid, leave

from gradexp.config import Config, InitConfig
from gradexp.sweeps.compare import compare
from gradexp.sweeps.page import DEFINITIONS, command_of, write_page
from gradexp.sweeps.report import write_figures


@pytest.mark.slow
@pytest.mark.parametrize("counts", few([{"init": 2}, {}, {"depth": 2}, {"depth": 3, "init": 2, "width": 2}]))
def test_the_page_holds_all_and_asks_for_nothing(counts: dict[str, int], tmp_path: Path) -> None:
    comparison = cube(tmp_path, **counts)
    figures = write_figures(comparison)
    assert all(path.stat().st_size > 1000 for path in figures.values())
    text = write_page(comparison, figures).read_text(encoding="utf-8")
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', text)) == len(figures)
    assert len(figures) >= (len(counts) > 0)
    assert len(Parsed(text).data["lines"]) == len(comparison.rows)
    assert not re.search(r"https?://|(src|href)=\"?//|@import|url\(", text)
    assert "default-src 'none'" in text
    assert text.count("<tr data-words") == len(comparison.rows)
    for row in comparison.rows:
        assert f'title="folder {row.job.name}"' in text
    assert "<a " not in text  # which would be dead in a page that was sent
    assert not list(tmp_path.glob("*.part"))


def test_the_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    sweep = tmp_path / 'a"<script>x'
    leave(sweep, "0_a<script>&\"'#?%", Config(seed=0), ["seed=0"], status="failed", error=evil)
    leave(sweep, "1_x", Config(seed=1), ["seed=1", f"data.path={evil.replace('/', '')}"])
    text = write_page(compare(sweep), {}).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 5  # the page's own and its data
    assert "&lt;script&gt;alert(1)" in text
    assert 'title="folder 0_a&lt;script&gt;&amp;&quot;&#x27;#?%"' in text


def test_a_column_without_numbers_is_left_out_and_others_are_explained(tmp_path: Path) -> None:
    comparison = compare(grid(tmp_path))
    text = write_page(comparison, {}).read_text(encoding="utf-8")
    jobs = text.partition('<table class="jobs">')[2]
    heads = [re.sub("<.*?>", "", head) for head in re.findall("<th.*?</th>", jobs)]
    assert heads[:5] == ["job", "status", "depth", "init", "seed"]
    assert "log_chi" in heads
    assert "loss_first" not in heads  # nothing was trained
    assert set(comparison.rows[0].numbers) <= set(DEFINITIONS)


def test_numbers_are_rounded_and_keep_all_digits_beside_them(tmp_path: Path) -> None:
    leave(tmp_path, "0_x", Config(depth=7), [], slope=-0.123456789)
    value = compare(tmp_path).rows[0].numbers["log_chi"]
    assert f'data-value="{value!r}" title="{value!r}">-0.123<' in write_page(compare(tmp_path), {}).read_text("utf-8")


def test_of_several_seeds_there_is_a_table_of_their_means_and_the_jobs_are_folded(tmp_path: Path) -> None:
    comparison = compare(grid(tmp_path))  # three seeds of each
    text = write_page(comparison, {}).read_text(encoding="utf-8")
    groups = re.search(r'<table class="groups">(.*?)</table>', text, re.DOTALL)
    assert groups is not None
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', groups[1])
    assert heads[:6] == ["depth", "init", "seeds", "gradient", "training", "theory"]
    assert "loss" not in heads  # nothing was trained
    assert groups[1].count("<tr>") == 1 + 4
    assert "↘ vanishing" in groups[1]
    assert "<details><summary>All 12 jobs" in text


def test_without_seeds_the_table_of_jobs_is_open(tmp_path: Path) -> None:
    leave(tmp_path, "0_x", Config(depth=7), ["depth=7"])
    leave(tmp_path, "1_x", Config(depth=8), ["depth=8"])
    text = write_page(compare(tmp_path), {}).read_text(encoding="utf-8")
    assert "Mean over seeds" not in text
    assert "<details open><summary>All 2 jobs" in text


def test_failed_jobs_alone_make_a_page_without_pictures(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"status": "failed", "error": "no such file"}
    job = leave(tmp_path, "0_a", Config(), [], **changes)
    (job / "layers.csv").unlink()
    comparison = compare(tmp_path)
    text = write_page(comparison, write_figures(comparison)).read_text(encoding="utf-8")
    assert "1 failed" in text
    assert "no such file" in text


def test_the_command_is_told_if_the_jobs_are_all_combinations(tmp_path: Path) -> None:
    rows = compare(grid(tmp_path)).rows
    assert command_of(rows) == "python -m gradexp.run -m depth=10,4 init=xavier,he seed=0,1,2 steps=100"
    assert command_of(rows[:6]) == "python -m gradexp.run -m depth=4 init=xavier,he seed=0,1,2 steps=100"
    assert command_of(rows[:5]) is None


def test_a_folder_named_by_hand_and_another_option_are_shown(tmp_path: Path) -> None:
    leave(tmp_path, "mine", Config(), ["init=he"])
    leave(tmp_path, "7_x", Config(init=InitConfig("xavier"), depth=9), ["init=xavier", "depth=9"])
    text = write_page(compare(tmp_path), {}).read_text(encoding="utf-8")
    assert ">mine</span>" in text
    assert "To run these jobs again" not in text
