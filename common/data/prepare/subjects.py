"""Whose the scans are, by their names alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .adni import SUBJECT
from .files import some

__all__ = ["CONTRASTS", "MOST_SCANS", "Subjects", "has_visit", "subjects_of_names"]

MOST_SCANS = 12
"""Largest number of scans of a subject that is found only from numbers in names."""
CONTRASTS = frozenset(
    re.findall(
        r"\w+",
        "t1 t1w t1c t1ce t1gd t1n t1post t1pre t1wce t2 t2w t2f t2n t2star t2s flair pd pdw adc dwi trace swi dce ct "
        "cta pet suv mr mri bssfp lge de c0 inphase outphase opposed water fat inv1 inv2 mp2rage mprage",
    )
)
"""Words that say how a scan was made, not whose it is."""
_CT = frozenset({"ct", "cta"})
_PET = frozenset({"pet", "suv"})
_BETWEEN = r"_/ .\-"  # the parts of a name
_PARTS = re.compile(rf"[{_BETWEEN}]")
_FULL_DATE = r"(19|20)\d{2}[-_](0[1-9]|1[0-2])[-_]([0-2]\d|3[01])|([0-2]\d|3[01])[-_]([0-2]\d|3[01])[-_](19|20)\d{2}"
_COMPACT_DATE = r"(19|20)\d{2}(0[1-9]|1[0-2])([0-2]\d|3[01])"
_TIMES = r"pre|post|baseline|bl|screening|follow-?up|fu"
# Words that always mean a visit, and those that may count subjects as well (`control_m1`, `scan_v1`).
_VISIT = rf"(ses|session|visit|timepoint|tp|follow-?up|fu)[-_ ]?\d+|(day|week|month|year)[-_]?\d+|{_TIMES}|{_FULL_DATE}"
_PERHAPS_VISIT = (
    r"(v|scan|run|frame|fr|phase|time|t|d|w|m|y|mr|mri|ct|exam|study|series|ser|se|acq|rep|echo)\d+"
    r"|(run|acq|rep|echo)-\d+|\d{1,2}(m|y|mo|yr)|ed|es|left|right|lh|rh"
)
# A year, or a study, as a folder or the first word: a visit, or a group of subjects that are counted anew.
_YEAR = r"(199|20[0-3])\d(?=/)|^(199|20[0-3])\d(?=_)"
_STUDY = r"^study\d+/"
_ENTITY = re.compile(r"sub-[A-Za-z0-9]+")
_END_OF_WORD = re.compile(r"(?<=[A-Za-z0-9])(?![A-Za-z0-9])")
_MARK = "\0"


class Subjects(NamedTuple):
    """The subject of each name."""

    of: list[str]
    how: str
    """How they were found, as the end of a sentence."""
    doubt: tuple[str, str] | None = None
    """Two names of which it is open whether they are one subject's."""

    @property
    def two_readings(self) -> str:
        """What is in doubt, as the start of a sentence."""
        one, other = self.doubt or ("", "")
        return f"{one} and {other} may be two visits of one subject or scans of two"


def subjects_of_names(names: Sequence[str], people: Sequence[str] = ()) -> Subjects:
    """The subject of each scan, by its path below the folder of the scans, without its ending.

    It uses the first of these that applies to all names: `sub-`; the numbers of ADNI (`002_S_0295`); people of a table,
    if the name or a folder begins with one of them. Otherwise the subject is what remains of a name without words for
    visits (`v1`, `ses-2`, `m06`, `baseline`, dates, ...) at any place, without words for contrasts (`T1w`, `FLAIR`),
    and without words at its end that all names share; if that differs only in its last part, for at least three
    subjects with a number and at most `MOST_SCANS` scans each, the last part is left out as well. This holds also for a
    last number of one or two digits before numbers that all names share (`1000000_20252_2_0`).

    A word that may count subjects as well as visits (`control_m1`) counts as a visit if what remains has a number, or
    if there are three or more subjects with at most `MOST_SCANS` scans each.

    It is in doubt whether scans are of one subject if only words that may name a visit or a group tell them apart; if
    nothing but a short number after different dates says whose they are (`20190101_1`, `20190201_1`); or if only a
    contrast before the number differs (`ct_train_1001`, `mr_train_1001`), and one scan is CT and the other MR, or the
    contrasts share less than half of the numbers of the one that has fewer.

    Args:
        names: the paths, all different.
        people: names of all subjects.
    """
    for found, how in (
        ([(m[0] if (m := _ENTITY.search(name)) else None) for name in names], "by `sub-` in the names"),
        ([(m[0] if (m := SUBJECT.search(name)) else None) for name in names], "by ADNI's numbers in the names"),
        ([_person(name, set(people)) for name in names], "by participants.tsv"),
    ):
        if names and all(found) and len(set(found)) > 1:
            return Subjects([str(x) for x in found], how)
    visits = f"{_VISIT}|{_COMPACT_DATE}" if _have_compact_dates(names) else _VISIT
    certain = _without(names, visits)
    either = f"{visits}|{_PERHAPS_VISIT}"
    readings = [
        _without(names, f"(?!{_STUDY})({either})"),
        _without(names, f"(?<!^)({either})"),
        certain,
        _without(names, r"(?!)"),
    ]
    remains = _without_last(_first_that_tells(names, readings))
    doubt = _one_or_two(certain, remains, names) or _one_or_two(
        _without(names, f"{_YEAR}|{either}"), remains, names, of_folders=True
    )
    doubt = doubt or _of_several_dates(remains, names, visits) or _of_two_contrasts(certain, remains, names)
    example = next((one for one, count in Counter(remains).items() if count > 1), None)
    if example is None:
        return Subjects(list(names), "each scan counts as a separate subject", doubt)
    of_one = [name for name, subject in zip(names, remains, strict=True) if subject == example]
    return Subjects(remains, f"by the names ({some(of_one, 2)} belong to one)", doubt)


def has_visit(text: str) -> bool:
    """Whether a text holds a word for a visit that has no digit, such as `post`."""
    return _word(f"{_TIMES}|ed|es").search(text) is not None


def _person(name: str, people: set[str]) -> str | None:
    """The longest name of people that the scan's name, or one of its folders, begins with."""
    begins = {part[: match.start()] for part in name.split("/") for match in _END_OF_WORD.finditer(part)}
    return max(begins & people, key=len, default=None)


def _have_compact_dates(names: Sequence[str]) -> bool:
    """Whether eight digits mean a date: some numbers of subjects look like one, but not all of them."""
    numbers = [part for name in names for part in _PARTS.split(name) if re.fullmatch(r"(19|20)\d{6}", part)]
    return all(re.fullmatch(_COMPACT_DATE, number) for number in numbers)


def _word(words: str) -> re.Pattern[str]:
    """These words as whole parts of a name."""
    return re.compile(rf"(?<![^{_BETWEEN}])({words})(?![^{_BETWEEN}])", re.IGNORECASE)


def _without(names: Sequence[str], words: str) -> list[str]:
    """What remains of names without some words, without contrasts, and without words at the end that all share."""
    word = _word(words)
    shorter = []
    for name in names:
        parts = re.split(rf"([{_BETWEEN}])", word.sub(_MARK, name))
        marked = "".join(_MARK if part.lower() in CONTRASTS else part for part in parts)
        bare = re.sub(rf"[{_BETWEEN}]*{_MARK}", "", marked)
        shorter.append(bare.lstrip("_/ .-") if marked.startswith(_MARK) else bare)
    while len(set(shorter)) > 1:
        cut = [re.match(rf"(.+)([{_BETWEEN}][^{_BETWEEN}]+)$", name) for name in shorter]
        ends = {match[2] for match in cut if match}
        if not all(cut) or len(ends) > 1 or ends.pop()[1:].isdecimal():  # a number may say which visit it is
            break
        shorter = [match[1] for match in cut if match]
    return shorter


def _tells(remains: Sequence[str]) -> Callable[[str], bool]:
    """Whether what remains of a name says whose it is.

    Names that begin alike (`control_m1`, `control_m2`) do not say whose they are, unless with a number.
    """
    counts = Counter(remains)
    few = len(counts) > 2 and max(counts.values()) <= MOST_SCANS
    return lambda x: x != "" and len(counts) > 1 and (counts[x] == 1 or few or re.search(r"\d", x) is not None)


def _first_that_tells(names: Sequence[str], readings: Sequence[list[str]]) -> list[str]:
    tells = [_tells(reading) for reading in readings]
    return [
        next((one[i] for one, of in zip(readings, tells, strict=True) if of(one[i])), readings[-1][i] or name)
        for i, name in enumerate(names)
    ]


def _without_last(names: Sequence[str]) -> list[str]:
    shared = _shared_numbers(names)
    counted = [re.fullmatch(rf"(.+)[_/ -]\d{{1,2}}{re.escape(shared)}", name) for name in names] if shared else []
    if counted and all(counted):
        shorter = dict(zip(names, (match[1] for match in counted if match), strict=True))
        found = _of_few_scans(names, shorter)
        if found is not None:
            return found
    shorter = {name: re.sub(r"[_/ -][^_/ -]*$", "", name) for name in names}
    return _of_few_scans(names, shorter) or list(names)


def _shared_numbers(names: Sequence[str]) -> str:
    """The numbers that all names end in, with what joins them, such as `_0`."""
    ends = [re.search(r"([_/ -]\d+)*$", name) for name in names]
    parts = [re.findall(r"[_/ -]\d+", end[0] if end else "") for end in ends]
    shared = ""
    for number in range(1, min(map(len, parts), default=0) + 1):
        if len({part[-number] for part in parts}) > 1:
            break
        shared = parts[0][-number] + shared
    return shared


def _of_few_scans(names: Sequence[str], shorter: Mapping[str, str]) -> list[str] | None:
    """The shorter names, if they group scans and look like names of subjects."""
    counts = Counter(shorter.values())
    several = [short for short, count in counts.items() if count > 1]
    numbered = all(re.search(r"\d", short) for short in several)
    if not several or len(counts) < 3 or not numbered or max(counts.values()) > MOST_SCANS:
        return None
    return [shorter[name] for name in names]


def _one_or_two(
    wide: Sequence[str], found: Sequence[str], names: Sequence[str], of_folders: bool = False
) -> tuple[str, str] | None:
    """Two names that are one subject's if their words mean visits, but that were found to be of two."""
    contrasts = _without(names, r"(?!)")
    tells = _tells(wide)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(wide):
        groups[one].append(i)
    for one, members in groups.items():
        if of_folders and not (tells(one) and len(members) <= MOST_SCANS):
            continue
        first = members[0]
        for i in members[1:]:
            if found[i] != found[first] and contrasts[i] != contrasts[first]:
                return names[first], names[i]
    return None


def _of_several_dates(found: Sequence[str], names: Sequence[str], visits: str) -> tuple[str, str] | None:
    """Two names of different dates that only a short number after the date makes one subject's."""
    date = _word(f"{_FULL_DATE}|{_COMPACT_DATE}" if _COMPACT_DATE in visits else _FULL_DATE)
    first: dict[str, tuple[str, str]] = {}
    for name, subject in zip(names, found, strict=True):
        dated = date.search(name)
        if dated is None or not re.fullmatch(r"\d{1,3}|[A-Za-z]", subject):
            continue
        if subject in _PARTS.split(name[: dated.start()]):
            continue
        other = first.setdefault(subject, (dated[0], name))
        if other[0] != dated[0]:
            return other[1], name
    return None


def _of_two_contrasts(bare: Sequence[str], found: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    """Two names of one subject that differ in their contrast, and that may be of two sets with numbers of their own.

    A contrast after the subject's number (`p1/ct`, `p1_mr`) is of this subject; before it, it may begin a set.
    """
    contrasts = [tuple(part for part in _PARTS.split(name.lower()) if part in CONTRASTS) for name in names]
    numbers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for contrast, one in zip(contrasts, bare, strict=True):
        numbers[contrast].add(one)
    first: dict[tuple[str, str, tuple[str, ...]], str] = {}
    of: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    for name, one, subject, contrast in zip(names, bare, found, contrasts, strict=True):
        digits = Counter(re.findall(r"\d+", subject))
        if not contrast or not digits or digits <= Counter(re.findall(r"\d+", _before_contrast(name))):
            continue
        for other in sorted(of[one, subject] - {contrast}):
            both = len(numbers[contrast] & numbers[other])
            apart = 2 * both < min(len(numbers[contrast]), len(numbers[other]))
            if apart or {_modality(contrast), _modality(other)} == {"CT", "MR"}:
                return first[one, subject, other], name
        of[one, subject].add(contrast)
        first.setdefault((one, subject, contrast), name)
    return None


def _before_contrast(name: str) -> str:
    parts = re.split(rf"([{_BETWEEN}])", name)
    return "".join(parts[: next(i for i, part in enumerate(parts) if part.lower() in CONTRASTS)])


def _modality(contrast: Sequence[str]) -> str:
    return "CT" if _CT & set(contrast) else "PET" if _PET & set(contrast) else "MR"
