"""Dropout that leaves next to nothing, mostly since the share to keep was given for the share to drop."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.wording import listed
from gradexp.history.finding import Finding

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_INSIDE = (nn.RNNBase, nn.MultiheadAttention)  # which drop within, at the rate ``dropout``
_MOST = 0.9  # the rates in use, up to those of papers, are far below


class Dropout(Observer):
    """Finds modules that were called in training mode and drop more than nine of ten units."""

    def begin(self, examination: Examination) -> None:
        """Begin with none."""
        self._rates: dict[str, float] = {}
        self._settings: dict[str, str] = {}

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Read the rate of a module that drops."""
        if not module.training or not isinstance(module, _DROPOUTS + _INSIDE):
            return
        if isinstance(module, nn.RNNBase) and module.num_layers < 2:  # it drops between layers
            return
        setting = "p" if isinstance(module, _DROPOUTS) else "dropout"
        rate = float(getattr(module, setting))
        if rate > _MOST:
            self._rates[name], self._settings[name] = rate, setting

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding over all modules."""
        if not self._rates:
            return
        names = sorted(self._rates, key=lambda name: -self._rates[name])
        highest = self._rates[names[0]]
        done = (
            "nothing comes through"
            if highest == 1
            else f"what is left of each sample is scaled by {1 / (1 - highest):.3g}"
        )
        rates = "" if len(set(self._rates.values())) == 1 else "up to "
        text = (
            f"{listed(names)} {'drops' if len(names) == 1 else 'drop'} {rates}{100 * highest:.4g} % of units: {done}"
        )
        kept = 1 - highest
        value = f"{kept:.2g}" if kept > 0 else "0.1"
        remedy = f"model.get_submodule({names[0]!r}).{self._settings[names[0]]} = {value}: the share that is dropped"
        if len(names) > 1:
            remedy += ", and so on"
        yield Finding("dropout", text, tuple(names), remedy, 2)
