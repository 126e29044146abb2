"""One page that shows a measurement and needs no other file and no network.

``page`` says what is on it, ``lines`` packs the numbers, ``parts`` are its pieces of HTML, ``still`` is the picture
where scripts are off, and ``document`` puts them together with ``page.css`` and its scripts, which are copied
into every page. ``cell`` shows the same in the cell of a notebook, with ``cell.css``. The room knows numbers and
texts only: who has measured what makes a ``Page`` of it.
"""
