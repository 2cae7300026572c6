"""Whether code uses packages as their versions are: it is read, never run, and judged only where it is certain."""
