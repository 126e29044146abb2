"""What a page holds, as a browser reads it."""

import base64
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
from numpy.typing import NDArray

EVIL = "</script><img src=x onerror=alert(1)><!--"
"""A name that would become markup, in an element, an attribute or a script, if it were not escaped."""


class Parsed(HTMLParser):
    """Tags, attributes, texts outside of scripts and styles, and the data of a page.

    Args:
        text: The page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.data: Any = None
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = "data" if ("id", "data") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data = json.loads(data)
        elif self._inside not in ("script", "style"):
            self.words += data


def unpacked(line: Any, quantity: str) -> NDArray[np.float64]:
    """Return the sizes of a line in training, shape ``(step, layer)``; nan where there is no number."""
    hundredths = np.frombuffer(base64.b64decode(line["course"][quantity]), "<i2").astype(float)
    hundredths[np.abs(hundredths) > 32766] = np.nan
    return hundredths.reshape(len(line["steps"]), len(line["courseLayers"])) / 100
