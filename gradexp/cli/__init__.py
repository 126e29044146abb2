"""What the command lines share: composing options with Hydra, help, errors in one line, interruptions, exit codes."""
