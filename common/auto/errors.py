"""Errors of the automatic run, without the imports of what raises them."""

__all__ = ["RunError"]


class RunError(RuntimeError):
    """A command failed, in a sentence."""
