"""In a real notebook: each result is a picture, a figure is there once, a run has a bar, and the example works."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
nbconvert = pytest.importorskip("nbconvert", reason="nbconvert is not installed")
import nbformat  # noqa: E402
from IPython.core.formatters import DisplayFormatter  # noqa: E402
from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from IPython.utils.capture import capture_output  # noqa: E402
from test_tensorboard import browser, keep  # noqa: E402
from test_tensorboard import pytestmark as in_a_browser  # noqa: E402

from gradexp.config import Config, DataConfig  # noqa: E402
from gradexp.history.finding import Finding  # noqa: E402
from gradexp.history.verdict import Verdict  # noqa: E402
from gradexp.predict.forecast import forecast  # noqa: E402
from gradexp.runs import run  # noqa: E402
from gradexp.runs.notebook_progress import NotebookProgress  # noqa: E402

__all__ = ["browser"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "gradients.ipynb"
LIMIT = 600  # seconds, on a busy machine

SMALL = Config(depth=4, width=8, steps=3, batch_size=8, data=DataConfig("gaussian", samples=40))


def executed(notebook: Any) -> Any:
    nbclient.NotebookClient(notebook, timeout=LIMIT, kernel_name="python3").execute()
    return notebook


@pytest.fixture(scope="module")
def example() -> Any:
    """The example, executed; an error in a cell fails."""
    return executed(nbformat.read(EXAMPLE, 4))


def outputs(cell: Any) -> list[dict[str, str]]:
    """What a cell shows; removed bars are empty."""
    return [output.data for output in cell.outputs if any(output.get("data", {}).values())]


def pictures(cell: Any) -> list[bytes]:
    return [base64.b64decode(data["image/png"]) for data in outputs(cell) if "image/png" in data]


def source_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_example_is_kept_without_outputs() -> None:
    assert all(not cell.outputs and cell.execution_count is None for cell in source_cells(nbformat.read(EXAMPLE, 4)))


def test_the_example_finds_the_trouble_and_the_cure_that_it_speaks_of(example: Any) -> None:
    cells = source_cells(example)
    html = [data["text/html"] for cell in cells for data in outputs(cell) if "text/html" in data]
    assert len(html) == 6
    bold = [text.partition("</style>")[2].partition("</strong>")[0] for text in html]
    assert ["vanishing" in words for words in bold] == [True, False, False, True, True, False]
    assert "gradexp.initialize(model, &#x27;he&#x27;)" in html[0]
    assert "init=orthogonal activation=tanh" in html[3]
    assert all(text.count("<svg") in (1, 2) for text in html)
    said = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    before, after = (int(part.partition("%")[0]) for part in said.split("accuracy ")[1:])
    assert before < 20 < 70 < after
    assert [len(pictures(cell)) for cell in cells] == [0, 0, 0, 0, 1, 1, 0, 0, 0]


def test_a_figure_is_shown_once_with_and_without_pyplot() -> None:
    made = "import numpy as np\nfrom gradexp import History\nhistory = History('init', ['a', 'b'], [0], [0], "
    made += "{'output_grad': np.array([[[-4.0, 0.0]]])}, {'output_grad': np.zeros((1, 1, 2), dtype=np.int8)})"
    cells = {
        f"{made}\nhistory.plot()": 1,
        "history.plot(); None": 0,  # nobody's
        "figure = history.plot()\ndisplay(figure)": 1,
        "import matplotlib.pyplot as plt\nhistory.plot()": 1,
        "history.plot()\nhistory.plot(); None": 2,  # as figures of pyplot
        "plt.title(str(plt.get_fignums()))\nplt.close()": 0,  # none is left
        "%matplotlib inline\nhistory.plot()": 1,
        "figure = history.plot()": 1,
        "figure": 1,
        "axes = plt.subplots()[1]\nhistory.plot(ax=axes, label='he')": 1,
        "assert not plt.get_fignums()": 0,
    }
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    found = {cell.source: pictures(cell) for cell in source_cells(executed(notebook))}
    assert {source: len(shown) for source, shown in found.items()} == cells
    for picture in [each for shown in found.values() for each in shown]:
        assert np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).std() > 5  # not blank


def test_notebooks_show_html_and_terminals_text() -> None:
    result = run(SMALL)
    verdict = Verdict("dead", text="dead", findings=(Finding("cut", "<b>"),))
    future = forecast(SMALL)
    shown = [result, result.initial, result.gradients, verdict, future, future.prediction]
    assert [type(one).__name__ for one in shown] == [
        *("Result", "History", "History", "Verdict", "Forecast", "Prediction")
    ]
    for one in shown:
        data, _ = DisplayFormatter().format(one)
        assert set(data) == {"text/plain", "text/html"}
        assert data["text/plain"] == repr(one)
        assert len(data["text/plain"]) < 1000
        assert data["text/plain"].count("\n") < 6
        assert data["text/html"].startswith('<div class="gradexp">')
        assert "<b>" not in data["text/html"]


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """IPython, as a notebook has it."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.usefixtures("shell")
def test_a_run_in_a_notebook_has_a_bar_that_is_gone_at_the_end() -> None:
    with capture_output() as captured:
        run(SMALL, [NotebookProgress()])
    assert captured.stdout == captured.stderr == ""
    *bars, last = [output.data for output in captured.outputs]
    assert any('<progress max="3" value="3"' in bar["text/html"] for bar in bars)
    assert any("training 1 of 3" in bar["text/html"] for bar in bars)
    assert set(last.values()) == {""}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.browser
@in_a_browser[1]
def test_the_example_can_be_read(example: Any, browser, tmp_path: Path, theme: str, width: int) -> None:
    html, _ = nbconvert.HTMLExporter(theme=theme).from_notebook_node(example)
    page = tmp_path / "gradients.html"
    page.write_text(html, encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(f"file://{quote(str(page))}")
    # Texts have the notebook's colour, pictures lie inside of their cells, and nothing else is changed.
    found = browser.execute_script("""
        const style = (each) => getComputedStyle(each), cells = [...document.querySelectorAll(".gradexp")];
        return {
          ink: style(document.querySelector(".jp-RenderedMarkdown p")).color,
          texts: cells.flatMap((cell) => [style(cell.querySelector("p")).color,
            ...[...cell.querySelectorAll("svg text")].map((text) => style(text).fill)]),
          wide: cells.map((cell) => cell.scrollWidth - cell.clientWidth),
          svgs: cells.map((cell) => cell.querySelector("svg").getBoundingClientRect().width),
          open: document.querySelectorAll("details[open]").length,
          page: [document.documentElement.scrollWidth, document.documentElement.clientWidth]}""")
    assert len(set(found["texts"])) == 1
    light = [int(part) for part in found["texts"][0].strip("rgba()").split(",")[:3]]
    assert (np.mean(light) > 128) == (theme == "dark")
    assert max(found["wide"]) <= 0
    assert min(found["svgs"]) > 250
    assert found["open"] == 0
    assert found["page"][0] <= found["page"][1]
    keep(browser, tmp_path, f"notebook_{theme}_{width}.png")
