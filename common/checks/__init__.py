"""Checks that every bundle makes before its first step, and the last message of a refused run."""

from .console import FULL_LOG, drop_untrue_warnings
from .mirroring import check_mirroring
from .overrides import check_overrides, override_problem
from .refusals import REFUSED, TRACEBACK, final_sentence, first_cause, own_sentence
from .renamed import renamed_problems, renamed_sentence, renamed_target
from .running import PLACES, config_digest, parse_flags, running_config, split_arguments

__all__ = [
    "FULL_LOG",
    "PLACES",
    "REFUSED",
    "TRACEBACK",
    "check_mirroring",
    "check_overrides",
    "config_digest",
    "drop_untrue_warnings",
    "final_sentence",
    "first_cause",
    "override_problem",
    "own_sentence",
    "parse_flags",
    "renamed_problems",
    "renamed_sentence",
    "renamed_target",
    "running_config",
    "split_arguments",
]
