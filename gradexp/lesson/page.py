"""The lesson as one HTML file."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from gradexp._version import __version__
from gradexp.lesson import MARK
from gradexp.lesson.tables import DEPTH, power_table
from gradexp.lesson.trainings import Training, line, outcome
from gradexp.page.document import CHART, document, escape, source
from gradexp.page.page import chart_data
from gradexp.page.parts import MARKS, chart
from gradexp.page.still import still
from gradexp.theory import critical_sigma_w2, weight_laws

TITLE = "Why deep networks lose their gradient"
ACTIVATIONS = {
    "relu": "ReLU",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "gelu": "GELU",
    "leaky_relu": "leaky ReLU, slope 0.01",
    "silu": "SiLU (swish)",
    "elu": "ELU",
    "selu": "SELU",
    "softplus": "softplus",
    "softsign": "softsign",
    "hard_tanh": "hard tanh",
    "erf": "erf",
    "linear": "none (linear)",
}
"""Those that ``laws.js`` knows, in the order of the list."""
INITS = {"he": "He", "xavier": "Xavier", "torch_default": "PyTorch’s default"}
"""Those that are compared while the sliders move."""

_FOLDER = Path(__file__).parent
_WIDTH = 64  # of the layers whose initialisations are compared
_DECADES = 3.0


def lesson_page(trainings: Sequence[Training]) -> str:
    """Return the page.

    Args:
        trainings: The networks that were trained for it.
    """
    lines, laws = [line(training) for training in trainings], laws_data()
    first = trainings[0].result
    rules = {key: f"{init['name']} (σ_w² = {_short(init['sigma_w2'])})" for key, init in laws["inits"].items()}
    ten = factor_that_loses(10)
    filled = Template(source(_FOLDER / "lesson.html")).substitute(
        title=TITLE,
        growing=power_table("1.5"),
        shrinking=power_table("0.5"),
        activations=_options(ACTIVATIONS),
        inits=_options(rules),
        depth=first.config.depth,
        width=first.config.width,
        guessing=f"{first.guessing:.2f}",
        chart=chart(lines, [("output_grad", "gradient")]),
        still=still(lines, _DECADES),
        outcomes="".join(map(outcome, trainings)),
        ten=f"{ten:.3f}",
        ten_below=f"{100 * (1 - ten):.0f}",
        low=f"{factor_that_loses(_DECADES):.3f}",
        high=f"{factor_that_loses(-_DECADES):.3f}",
        sigmoid=f"{laws['critical']['sigmoid']:.0f}",
        version=__version__,
    )
    return document(
        TITLE,
        f"{MARK}\n{filled}",
        {**chart_data(lines, decades=_DECADES), "lesson": {**laws, "marks": MARKS}},
        scripts=[*CHART, _FOLDER / "laws.js", _FOLDER / "lesson.js"],
        styles=["page.css", _FOLDER / "lesson.css"],
    )


@cache
def laws_data() -> dict[str, Any]:
    """Return the variances of each initialisation, and each activation's sigma_w2 that keeps the gradient, if any."""
    inits, critical = {}, {}
    for key, name in INITS.items():
        (law,) = weight_laws(key, [_WIDTH, _WIDTH])
        inits[key] = {"name": name, "sigma_w2": law.sigma_w2, "sigma_b2": law.sigma_b2}
    for activation in ACTIVATIONS:
        with suppress(ValueError):  # there is none
            critical[activation] = critical_sigma_w2(activation)
    return {"inits": inits, "critical": critical}


def factor_that_loses(decades: float) -> float:
    """Return the λ at which the gradient loses so many powers of ten on its way through 150 layers of λ I.

    Examples:
        >>> round(factor_that_loses(10), 3)
        0.857
    """
    return float(10 ** (-decades / (DEPTH - 1)))


def _options(names: Mapping[str, str]) -> str:
    return "".join(f'<option value="{key}">{escape(name)}</option>' for key, name in names.items())


def _short(value: float) -> str:
    """Return a number as a fraction of small numbers.

    Examples:
        >>> _short(1 / 3), _short(2.0)
        ('1/3', '2')
    """
    return str(Fraction(value).limit_denominator(10))
