"""Numbers that stay right: norms, number formats, random generators."""
