"""What an initialisation filled and what it left, and why."""

from dataclasses import dataclass, field

_SHOWN = 4


@dataclass
class Account:
    """What ``initialize`` did to each parameter; ``print`` shows it by what was done.

    Args:
        filled: Name of a parameter -> how its numbers were drawn.
        left: Name of a parameter -> why it is as it was.
        silent: Names of those left that nobody would expect to be filled: gains, biases of what was left, and what
            the caller named.

    Examples:
        >>> account = Account()
        >>> account.filled["head.weight"] = "by he"
        >>> account.left["lora_B.weight"] = "exactly 0, as on purpose"
        >>> print(account)
        filled    1  by he: head.weight
        left      1  exactly 0, as on purpose: lora_B.weight
    """

    filled: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    @property
    def warning(self) -> str:
        """What was left although somebody may have expected it to be filled, in one line; empty if nothing was."""
        surprising = {name: reason for name, reason in self.left.items() if name not in self.silent}
        if not surprising:
            return ""
        groups = "; ".join(f"{_some(names)} ({reason})" for reason, names in _by_reason(surprising).items())
        them = "a parameter as it is" if len(surprising) == 1 else f"{len(surprising)} parameters as they are"
        return f"initialize leaves {them}: {groups}; report=print lists all"

    def __str__(self) -> str:
        """Return a line per way in which parameters were filled, or reason to leave them."""
        lines = []
        for word, parameters in (("filled", self.filled), ("left", self.left)):
            for reason, names in _by_reason(parameters).items():
                lines.append(f"{word:<6} {len(names):>4}  {reason}: {_some(names)}")
        return "\n".join(lines)


def _by_reason(parameters: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in parameters.items():
        groups.setdefault(reason, []).append(name)
    return groups


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
