"""The profile and the Jacobian of an MLP at initialisation, with exponents carried on the side: right at any depth.

Example:
    >>> import torch
    >>> from gradexp import MLP, exact_profile, initialize
    >>> mlp = initialize(MLP([64] * 101), "xavier", gain=1e-4, seed=0)
    >>> round(exact_profile(mlp, torch.ones(1, 64)).first_over_last("output_grad"))  # log10; float64 ends at -324
    -411
"""
