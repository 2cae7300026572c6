"""The documented entry points; each also runs as a script from a checkout."""
