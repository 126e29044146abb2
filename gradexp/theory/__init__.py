"""What mean-field and finite-width theory predict of a network, without building it."""

from gradexp.numerics.square_sum import LogMoments, log_square_sum
from gradexp.theory.agreement import Agreement, compare
from gradexp.theory.critical import critical_range, critical_sigma_b2, critical_sigma_w2
from gradexp.theory.finite_width import dead_probability, gaussian_lyapunov_exponents, layer_law
from gradexp.theory.from_model import from_model
from gradexp.theory.jacobian_moments import JacobianMoments, jacobian_moments
from gradexp.theory.mean_field import MeanField
from gradexp.theory.norm_moments import log_norm_moment
from gradexp.theory.prediction import Prediction, predict, predict_layers
from gradexp.theory.weight_laws import WeightLaw, weight_laws

__all__ = [
    "Agreement",
    "JacobianMoments",
    "LogMoments",
    "MeanField",
    "Prediction",
    "WeightLaw",
    "compare",
    "critical_range",
    "critical_sigma_b2",
    "critical_sigma_w2",
    "dead_probability",
    "from_model",
    "gaussian_lyapunov_exponents",
    "jacobian_moments",
    "layer_law",
    "log_norm_moment",
    "log_square_sum",
    "predict",
    "predict_layers",
    "weight_laws",
]
