"""Where a result goes: files, terminal and TensorBoard.

A sink is a class with ``write(stage, result)`` and ``close()``: ``Files``, ``Console``, ``Line``, ``Progress``, and
``TensorBoard``, whose cards are made in ``cards``, ``hparams``, ``lines`` and ``pictures``. ``folder`` keeps a run's
folder free of an earlier run's files.
"""
