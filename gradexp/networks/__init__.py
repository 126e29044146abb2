"""The networks under study: activations, the MLP and its stacks, normalisation, and initialisation schemes.

Example:
    >>> from gradexp import MLP, initialize
    >>> initialize(MLP([64, *[128] * 20, 10], activation="tanh"), "xavier", seed=0).depth
    21
"""
