"""A page in little, as the output of a cell of a notebook: verdict, pictures, findings, folded table; no script.

Its style is its own and names nothing outside of it. Texts have the notebook's colour, and lines colours that can be
told from white and from black, since a page cannot know which theme a notebook has.
"""

from collections.abc import Sequence

import numpy as np

from gradexp.page.document import escape, source
from gradexp.page.lines import Line
from gradexp.page.page import NAMES, Page
from gradexp.page.parts import Note, badges
from gradexp.page.still import loss_still, sizes, still

_MOST_NOTES, _MOST_LETTERS = 8, 1000


def cell(page: Page) -> str:
    """Return a page as a piece of HTML that may stand anywhere, and any number of times.

    Args:
        page: The page; of its lines the pictures show nine, of its findings the list has eight.
    """
    words, title = badges(page.words), escape(page.title)
    head = f"<strong>{words}</strong> {title}" if words else f"<strong>{title}</strong>"
    text, notes = page.text, list(page.findings)
    if notes and text == f"{notes[0].kind}: {notes[0].text}":
        text = ""  # the list has it, with its remedy
    worst = [note for note in notes[:1] if note.severity > 0]
    parts = [
        f"<p>{head}</p>",
        f"<p>{escape(text[:1].upper() + text[1:_MOST_LETTERS])}</p>" if text else "",
        *("" if not fact else f'<p class="soft">{escape(fact)}</p>' for fact in page.facts),
        _list(worst, len(worst)),
        _profile(page),
        _figure(loss_still(page.lines), _loss_caption(page.lines)),
        _list(notes[len(worst) :], _MOST_NOTES),
        *page.sections,
    ]
    body = "\n".join(filter(None, parts))
    html = f'<div class="gradexp"><style>{source("cell.css")}</style>\n{body}\n</div>'
    return html.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate would end the kernel's message


def _profile(page: Page) -> str:
    """Return the picture of the quantity that matters most, with what its lines mean."""
    shown = [
        key for key in NAMES if any(key in {**line.initial, **line.course, **line.theory} for line in page.lines)
    ]
    if not shown:
        return ""
    quantity = shown[0]
    size = "Root mean square" if quantity == "output" else "Norm"
    meanings = [f"{size} of the {NAMES[quantity]}", *_meanings(page.lines, quantity, page.first)]
    if quantity == "output_grad":
        meanings.append(f"green: stable, within {page.decades:g} powers of ten")
    return _figure(still(page.lines, page.decades, quantity), f"{'; '.join(meanings)}.")


def _meanings(lines: Sequence[Line], quantity: str, first: str) -> list[str]:
    """Return what dots, dashes and marks of a picture mean, if it has them."""
    meanings = [first] if any(quantity in {**line.initial, **line.theory} for line in lines) else []
    trained = [line for line in lines if quantity not in line.initial and quantity in line.course]
    if trained and len(trained[0].steps) > 1:
        meanings.append(f"step {trained[0].steps[-1]}, dotted step {trained[0].steps[0]}")
    if any(quantity in line.theory and quantity in line.initial for line in lines):
        has_band = any(line.spread is not None for line in lines) and quantity == "output_grad"
        meanings.append(f"dashed: theory{', ± 2 sd of one network' if has_band else ''}")
    values = np.concatenate([sizes(line, quantity) for line in lines])
    meanings += ["▼: exactly 0"] * bool((values == -np.inf).any())
    return meanings + ["▲: inf or nan"] * bool((values == np.inf).any())


def _loss_caption(lines: Sequence[Line]) -> str:
    trained = [line for line in lines if len(line.losses)]
    if len(trained) != 1:
        return "Loss."
    (line,) = trained
    guess = f"; dotted: of guessing, {line.guessing:.4g}" if line.guessing else ""
    return f"Loss, {line.losses[0]:.4g} to {line.losses[-1]:.4g}{guess}."


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" if svg else ""


def _list(notes: Sequence[Note], most: int) -> str:
    """Return findings with their remedies; of more than fit, how many there are."""
    if not notes:
        return ""
    items = [_item(note) for note in notes[:most]]
    items += [f"<li>… {len(notes) - most} more</li>"] if len(notes) > most else []
    return f"<ul>{''.join(items)}</ul>"


def _item(note: Note) -> str:
    remedy = f"<br>try <code>{escape(note.remedy[:_MOST_LETTERS])}</code>" if note.remedy else ""
    text = escape(note.text[:_MOST_LETTERS])
    return f'<li class="severity{note.severity}"><strong>{escape(note.kind)}</strong>: {text}{remedy}</li>'
