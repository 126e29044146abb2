"""A prediction as a notebook shows it: verdict, picture with its band, folded table."""

from gradexp.history.columns import power_of_ten
from gradexp.page.lines import Line
from gradexp.page.page import NAMES, Page
from gradexp.page.parts import layer_table
from gradexp.theory.verdict import Predicted, predicted_profile, predicted_verdict

FIRST = "predicted at initialisation, ± 2 sd of one network"
"""What the sizes in the picture are."""


def prediction_page(prediction: Predicted) -> Page:
    """Return what theory says of a network."""
    verdict = predicted_verdict(prediction)
    return Page(
        f"theory of {prediction.depth} layer{'s' * (prediction.depth > 1)}",
        words=[verdict.gradient],
        text=verdict.text,
        facts=[slope(prediction), prediction.reason if prediction.valid else ""],
        lines=prediction_lines("theory", prediction),
        first=FIRST,
        sections=prediction_tables(prediction),
    )


def slope(prediction: Predicted) -> str:
    """Return log_chi with the standard deviation of one network; empty if there is none."""
    if prediction.log_chi is None or prediction.log_chi_sd is None:
        return ""
    return f"log_chi {prediction.log_chi:+.4g} ± {prediction.log_chi_sd:.2g} per layer towards the input"


def prediction_lines(name: str, prediction: Predicted) -> list[Line]:
    """Return the predicted gradient as a line of a picture; none where there is no number."""
    profile, layers = predicted_profile(prediction), range(1, prediction.depth + 1)
    if profile is None:
        return []
    return [
        Line(
            name,
            layers,
            theory={"output_grad": profile},
            spread=prediction.sd_output_grad if prediction.valid else None,
        )
    ]


def prediction_tables(prediction: Predicted) -> list[str]:
    """Return the predicted sizes of all layers as a folded table of HTML; none where no formula holds."""
    if not prediction.valid:
        return []
    sizes = (prediction.log10_output_grad, prediction.log10_weight_grad, prediction.log10_output)
    heads = ["layer", "units", *(NAMES[quantity] for quantity in ("output_grad", "weight_grad", "output")), "sd"]
    rows = [
        [
            str(layer + 1),
            str(prediction.widths[layer + 1]),
            *(power_of_ten(log10[layer], "") for log10 in sizes),
            f"{prediction.sd_output_grad[layer]:.2f}",
        ]
        for layer in range(prediction.depth)
    ]
    caption = "norms of the gradients, root mean square of the output; sd of log10 of ∂L/∂z of one network"
    return [layer_table(caption, heads, rows)]
