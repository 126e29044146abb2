"""What is wrong with anybody's model, where and why: ``measure`` runs one pass, and each other file finds one kind.

Import ``measure`` from ``gradexp``: its name here would hide the file.
"""
