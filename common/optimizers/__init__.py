"""Parameter groups for optimisers."""

from .weight_decay import decay_groups

__all__ = ["decay_groups"]
