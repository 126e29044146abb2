"""Hooks on anybody's model: ``GradientProbe`` records a training.

Import it from ``gradexp``: its name here would hide the file ``probe``.
"""
