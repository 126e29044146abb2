"""What mean-field and finite-width theory predict of a network, without building it."""

from gradexp.square_sum import LogLaw, log_square_sum
from gradexp.theory.comparison import Comparison, compare
from gradexp.theory.critical import critical_sigma_b2, critical_sigma_w2
from gradexp.theory.finite_width import dead_probability, layer_law, lyapunov_spectrum
from gradexp.theory.mean_field import MeanField
from gradexp.theory.prediction import Prediction, from_model, predict, predict_layers
from gradexp.theory.spectrum import JacobianMoments, jacobian_moments
from gradexp.theory.weights import WeightLaw, weight_laws

__all__ = [
    "Comparison",
    "JacobianMoments",
    "LogLaw",
    "MeanField",
    "Prediction",
    "WeightLaw",
    "compare",
    "critical_sigma_b2",
    "critical_sigma_w2",
    "dead_probability",
    "from_model",
    "jacobian_moments",
    "layer_law",
    "log_square_sum",
    "lyapunov_spectrum",
    "predict",
    "predict_layers",
    "weight_laws",
]
