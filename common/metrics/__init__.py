from .hd95 import HD95
from .representation import effective_rank, feature_std, position_cosines

__all__ = ["HD95", "effective_rank", "feature_std", "position_cosines"]
