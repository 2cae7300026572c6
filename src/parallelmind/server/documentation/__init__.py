"""The documentation of exact package versions for coding agents, over the Model Context Protocol."""
