"""Hooks on anybody's model: ``GradientProbe`` records a training, ``measure`` one pass.

Import them from ``gradexp``: names here would hide the files ``probe`` and ``measure``.
"""
