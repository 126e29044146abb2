"""Callbacks for other libraries' trainers. Each module imports its library, so none is imported from here."""
