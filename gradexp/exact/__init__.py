"""The profile at initialisation with exponents carried: right at any depth."""
