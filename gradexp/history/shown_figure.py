"""A figure that a notebook shows as it is, and that pyplot knows where pyplot is in use."""

import io
import sys
import warnings
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_DPI = 144  # of the PNG, half of whose dots make the width that is shown


class ShownFigure(Figure):
    """A figure that is a picture at the end of a cell, whether or not ``%matplotlib inline`` was typed."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:  # noqa: ARG002
        """Take the figure from those that the inline backend shows at the end of a cell, since it is shown now."""
        if self.canvas.manager is not None and "inline" in matplotlib.get_backend():
            sys.modules["matplotlib.pyplot"].close(self)
        return {}  # and leave the picture to the backend's formatter, or else to the next method

    def _repr_png_(self) -> tuple[bytes, dict[str, int]] | None:
        if self.canvas.required_interactive_framework or hasattr(self.canvas, "_repr_mimebundle_"):
            return None  # it has a window, or is a widget
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
            self.savefig(file, format="png", dpi=_DPI)
        width, height = (round(inches * _DPI / 2) for inches in self.get_size_inches())
        return file.getvalue(), {"width": width, "height": height}


def shown_figure() -> Figure:
    """Return an empty figure.

    Where the program has imported ``matplotlib.pyplot``, it is pyplot's current figure, as one of ``plt.subplots()``
    is: ``plt.show()`` and ``plt.savefig()`` find it, and ``plt.close()`` frees it. Else it belongs to no window, and
    is freed like any other object.
    """
    pyplot = sys.modules.get("matplotlib.pyplot")
    figure: Figure = ShownFigure() if pyplot is None else pyplot.figure(FigureClass=ShownFigure)
    return figure
