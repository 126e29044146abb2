"""Trained parameters that the optimizer does not hold."""

from collections.abc import Iterator

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.wording import outermost, owners, verb
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.probe.optimizers import held_by, unwrapped


class Unoptimized(Observer):
    """Parameters that get a gradient and are not in the optimizer that ``measure`` was given."""

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding if some are missing."""
        optimizers = unwrapped(examination.optimizer)
        if not optimizers:
            return
        held = set().union(*map(held_by, optimizers))
        owner = owners(examination.model)
        trained = {id(p): p.grad is not None for p in examination.model.parameters() if p.requires_grad}
        missing = [key for key, has_gradient in trained.items() if has_gradient and key not in held]
        if not missing:
            return
        others = {owner[key] for key in trained if key in held}
        names = outermost(list(dict.fromkeys(owner[key] for key in missing)), others)
        strangers = len(held - owner.keys())
        text = f"{listed(names)} {verb(names, 'is', 'are')} not in the optimizer and never change"
        text += "s" if len(names) == 1 else ""
        if strangers:
            text += f"; it holds {strangers} tensor{'s' if strangers > 1 else ''} that {_are(strangers)} in the model"
        cure = "optimizer.add_param_group({'params': …}), or create the optimizer after all layers"
        yield Finding("cut", text, tuple(names), cure, 3)


def _are(count: int) -> str:
    return "is not" if count == 1 else "are not"
