"""``python -m gradexp.board``: TensorBoard on runs of gradexp, with names and settings in which they are legible.

``names`` finds runs and names them; ``view`` is the folder of links that TensorBoard is shown; ``seeds`` adds the
mean over seeds; ``server`` starts TensorBoard and adds ``page`` to its page.
"""
