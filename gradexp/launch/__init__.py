"""Where the jobs of a sweep run: the sweeper, and launchers for stacks in this process, for Slurm and for Ray."""
