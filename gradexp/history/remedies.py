"""What helps against a gradient that vanishes or explodes, where nobody could try it on the model itself."""

STRUCTURE = "in residual blocks a norm in the branch, or the branch times 1 / sqrt(number of blocks)"
"""What else helps where one explodes and no initialisation does."""

REMEDIES = {
    "vanishing": (
        "gradexp.initialize(model, 'he') with nn.ReLU() in place of any sigmoid or tanh, a norm before each "
        "activation, or skip connections x + f(x)"
    ),
    "exploding": f"gradexp.initialize(model, 'he'); {STRUCTURE}",
    "exploding activations": f"gradexp.initialize(model, 'he'); {STRUCTURE}",
    "vanishing over time": (
        "the mean of all outputs in place of the last one, shorter sequences, or an LSTM whose forget gates have a "
        "bias of 5"
    ),
    "exploding over time": (
        "gradexp.initialize(model, 'orthogonal'), and "
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) before each step"
    ),
}
"""Kind of finding -> remedy."""
