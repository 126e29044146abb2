"""Measurements: a History is a list of Steps, with verdict, table, plot, scalars and files."""
