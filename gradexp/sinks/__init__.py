"""Where a result goes: files, terminal and TensorBoard."""
