"""The command ``python -m gradexp.lesson``: one page for those who teach vanishing gradients, and who learn of them.

What the page says stands in ``lesson.html``. ``page`` fills in what is computed: ``tables`` of exact powers, and
``trainings`` of real networks. ``laws.js`` computes in the page what ``lesson.js`` draws while sliders move.
"""

MARK = "<!-- python -m gradexp.lesson -->"
"""What tells a lesson from any other file that may lie where the lesson is to be written."""
