"""The command ``python -m gradexp.phase``: an activation's phase diagram, and the critical region of its weights.

``plane`` computes both by theory and measures networks in them, ``figures`` draws them, and ``__main__`` has the
options.
"""
