"""The networks that are studied: activations, the MLP and its stacks, and how their weights are drawn."""
