"""What the command lines share: help, errors, interruptions, and Hydra."""
