"""Hooks on anybody's model: ``GradientProbe`` records a training, ``measure`` one pass."""
