"""What the recorded steps of a training tell together, as findings."""

from gradexp.history.course import Course
from gradexp.history.decay import decay
from gradexp.history.died import died
from gradexp.history.divergence import divergence
from gradexp.history.finding import Finding
from gradexp.history.half_range import half_range
from gradexp.history.progress import no_progress
from gradexp.history.unbounded import unbounded
from gradexp.history.untrained import untrained

_JUDGES = (
    untrained,
    half_range,
    died,
    decay,
)


def training_findings(course: Course) -> tuple[Finding, ...]:
    """Return what is wrong with a training at the last of some recorded steps."""
    # What grows with a loss that has no lower bound grows at any learning rate.
    first = unbounded(course) or divergence(course)
    findings = (*first, *(finding for judge in _JUDGES for finding in judge(course)))
    is_explained = any(finding.severity > 1 for finding in (*course.found, *findings))
    return findings if is_explained else (*findings, *no_progress(course))
