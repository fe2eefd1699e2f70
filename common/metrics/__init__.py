from .hd95 import HD95
from .representation import effective_rank, feature_std

__all__ = ["HD95", "effective_rank", "feature_std"]
