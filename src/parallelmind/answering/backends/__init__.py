"""What answers questions over contexts; see `base`."""

from parallelmind.answering.backends.base import QueryBasedInference

__all__ = ["QueryBasedInference"]
