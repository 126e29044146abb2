"""What measure found, for tests of findings."""

from gradexp import measure
from gradexp.history.finding import Finding


def findings(model, loss_fn, batch, kind=None, **options) -> list[Finding]:
    """Return the findings of one pass, of one kind or all."""
    found = measure(model, loss_fn, batch, **options).findings[0]
    return [finding for finding in found if kind in (None, finding.kind)]


def alarms(model, loss_fn, batch, **options) -> list[Finding]:
    """Return the findings that say that something is wrong."""
    return [finding for finding in findings(model, loss_fn, batch, **options) if finding.severity > 1]
