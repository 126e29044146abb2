"""The lesson is one safe file, and what it says is so."""

import re
from dataclasses import replace

import mpmath
import pytest
from lessons import small_trainings
from pages import EVIL, Parsed

from gradexp.choices import ACTIVATIONS as KNOWN
from gradexp.lesson.page import ACTIVATIONS, INITS, factor_that_loses, laws_data, lesson_page
from gradexp.lesson.trainings import outcome
from gradexp.networks.inits import INITS as SCHEMES
from gradexp.theory import MeanField


@pytest.fixture(scope="module")
def text() -> str:
    return lesson_page(small_trainings())


def test_a_lesson_asks_for_nothing_and_allows_nothing_but_its_own_scripts(text: str) -> None:
    assert not re.search(r"https?://|(src|href)=|@import|url\(", text)
    assert "default-src 'none'" in text
    (allowed,) = re.findall(r"script-src ([^;\"]*)", text)
    assert len(re.findall(r"'sha256-[^']{44}'", allowed)) == text.count("<script>") == 5
    assert "unsafe" not in allowed


def test_every_place_is_filled(text: str) -> None:
    assert not re.search(r"\$[a-z]", Parsed(text).words)
    assert not re.search(r"\b(nan|None)\b", Parsed(text).words.replace("inf or nan", ""))


def test_no_name_becomes_markup(text: str) -> None:
    evil = [replace(training, name=EVIL) for training in small_trainings()]
    parsed = Parsed(lesson_page(evil))
    assert parsed.tags == Parsed(text).tags
    assert not {"onerror", "onload"} & {key for key, _ in parsed.attributes}
    assert parsed.words.count(EVIL) == 2 * len(evil)  # beside its tick, and what became of it
    assert {line["name"] for line in parsed.data["lines"]} == {EVIL}


def test_every_activation_of_a_run_can_be_chosen() -> None:
    assert set(ACTIVATIONS) == set(KNOWN)
    assert set(INITS) <= set(SCHEMES)


def test_every_control_has_a_name(text: str) -> None:
    named = set(re.findall(r'<label[^>]* for="([^"]+)"', text))
    for tag in re.findall(r"<(?:input|select)[^>]*>", text):
        inside_label = 'type="checkbox"' in tag
        (name,) = re.findall(r'id="([^"]+)"', tag) or [""]
        assert inside_label or "aria-label" in tag or name in named or name == "quantity", tag


@pytest.mark.parametrize(("decades", "shown"), [(10, "0.857"), (3, "0.955"), (-3, "1.047")])
def test_the_factor_of_an_answer_is_right(decades: float, shown: str, text: str) -> None:
    factor = mpmath.mpf(10) ** (mpmath.mpf(-decades) / 149)
    assert factor_that_loses(decades) == pytest.approx(float(factor), rel=1e-12)
    assert f"{float(factor):.3f}" == shown
    assert shown in Parsed(text).words


def test_what_the_answers_say_of_laws_is_so(text: str) -> None:
    words = Parsed(text).words

    def decades(activation: str, sigma_w2: float, sigma_b2: float = 0.0) -> float:
        point = MeanField(activation, sigma_w2, sigma_b2)
        lengths = point.lengths(sigma_w2 + sigma_b2, 149)
        return float(sum(mpmath.log10(point.chi(q)) for q in lengths) / 2)

    assert "but the line rises to 104 only" in words.replace("\n", " ")
    assert round(decades("tanh", 1.5**2)) == 4
    assert round(float(149 * mpmath.log10(1.5))) == 26
    assert decades("tanh", 1.5**2, 0.5) < 0
    assert abs(decades("relu", 2.0)) < 1e-9
    assert abs(decades("tanh", 1.0)) < 3
    for activation in ("relu", "tanh"):
        assert decades(activation, 1 / 3, 1 / 192) < -3
    assert decades("relu", 1.0) == pytest.approx(float(149 * mpmath.log10(mpmath.sqrt(0.5))))
    for sigma_w2 in (1.0, 5.0):
        assert MeanField("sigmoid", sigma_w2).chi_1 <= sigma_w2 / 16 < 1 / 3
    assert round(100 * MeanField("sigmoid", 1.0).chi_1) == 6
    critical = laws_data()["critical"]["sigmoid"]
    assert MeanField("sigmoid", critical).chi_1 == pytest.approx(1, abs=1e-6)
    assert f"It would take σw² = {critical:.0f}" in words.replace("\n", " ")


def test_a_critical_variance_keeps_the_gradient() -> None:
    critical = laws_data()["critical"]
    assert {"relu", "tanh", "linear"} <= set(critical)
    assert not {"gelu", "silu", "softplus"} & set(critical)
    for activation, sigma_w2 in critical.items():
        assert MeanField(activation, sigma_w2).chi_1 == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_what_became_of_a_training_is_told() -> None:
    training = small_trainings()[0]
    told = {}
    for word in ("trained", "stuck", "diverged"):
        verdict = replace(training.result.verdict, training=word)
        told[word] = outcome(replace(training, result=replace(training.result, verdict=verdict)))
    assert "The network learns" in told["trained"]
    assert "does not learn" in told["stuck"]
    assert "The training breaks" in told["diverged"]
    left = training.result.initial.first_over_last("output_grad")
    assert f"{abs(left):.1f}</sup>" in told["stuck"]
