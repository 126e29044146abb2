"""Where the jobs of a sweep run: in this process, as stacks, or as tasks of a cluster."""
