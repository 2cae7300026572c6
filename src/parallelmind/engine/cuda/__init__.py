"""The engine on a GPU: three kernels per layer for the whole tree of a step, and steps recorded as CUDA graphs."""
