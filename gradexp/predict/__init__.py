"""The command ``python -m gradexp.predict``: what a run would find, before it is made."""
