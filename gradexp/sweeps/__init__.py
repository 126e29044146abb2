"""Many runs: their folder, comparison, figures and page."""
