"""The command ``python -m gradexp.phase``: the phase diagram of an activation."""
