from .class_dice import ClassDice
from .hd95 import HD95
from .pooled_dice import PooledDice
from .representation import effective_rank, feature_std, position_cosines

__all__ = ["HD95", "ClassDice", "PooledDice", "effective_rank", "feature_std", "position_cosines"]
