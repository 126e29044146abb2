"""The command ``python -m gradexp.predict``: what theory says of a run before it is made, and what to change.

``forecast`` computes it as numbers, ``text`` writes it down, and ``__main__`` prints it.
"""
