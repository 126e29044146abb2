"""A prediction is shown in words and as a picture."""

from pages import Parsed

from gradexp import theory


def test_a_prediction_is_shown_with_its_verdict_and_its_layers() -> None:
    prediction = theory.predict("tanh", sigma_w2=0.5, width=50, depth=40)
    counts, verdict = repr(prediction).splitlines()
    assert counts.startswith(f"Prediction(40 layers: log_chi {prediction.log_chi:+.4g} ± ")
    assert verdict.startswith("vanishing: ")
    page = Parsed(prediction._repr_html_())
    for text in ("↘ vanishing", f"10^{prediction.first_over_last:+.1f} at layer 1", "All 40 layers", "± 2 sd"):
        assert text in page.words
    assert page.tags.count("tr") == 41
    assert 'class="band' in prediction._repr_html_()


def test_without_a_formula_it_shows_what_infinite_width_knows() -> None:
    wild = theory.predict("gelu", sigma_w2=2.0, width=16, depth=40)
    assert not wild.valid
    page = Parsed(wild._repr_html_())
    assert "infinitely wide" in page.words
    assert page.tags.count("svg") == 1
    assert "table" not in page.tags
    assert wild.reason in repr(wild)
