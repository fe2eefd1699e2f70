from __future__ import annotations

import difflib
import inspect
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...checks import renamed_sentence
from ..datalist import SECTIONS, DatalistError, find_problems, raise_problems
from ..label_maps import LABEL_SCHEMES
from .abide import collect_abide
from .acdc import collect_acdc
from .adni import collect_adni
from .bids import collect_bids
from .brats import collect_brats
from .cc359 import collect_cc359
from .decathlon import collect_decathlon
from .files import scans, some, stem
from .folders import collect_folders
from .ixi import collect_ixi
from .lidc import collect_lidc
from .oasis1 import collect_oasis1
from .split import split_by_subject
from .subjects import subjects_of_names
from .synapse import SYNAPSE_TEST, collect_synapse
from .visceral import collect_visceral
from .write import LAYOUTS, LISTS, write_datalist

# Each takes the folder of its set, and options of its own, and gives items with absolute paths.
COLLECTORS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "abide": collect_abide,
    "acdc": collect_acdc,
    "adni": collect_adni,
    "bids": collect_bids,
    "brats": collect_brats,
    "cc359": collect_cc359,
    "decathlon": collect_decathlon,
    "folders": collect_folders,
    "ixi": collect_ixi,
    "lidc": collect_lidc,
    "oasis1": collect_oasis1,
    "synapse": collect_synapse,
    "visceral": collect_visceral,
}
# How the masks are numbered that a set is published with, by the options of its collector. For the other sets it
# depends on who made the masks.
_LABEL_SCHEME_OF = {
    "acdc": "task",
    "adni": "malpem",
    "brats": "brats2020",
    "cc359": "binary",
    "oasis1": "oasis_{label}",
    "synapse": "btcv",
    "visceral": "visceral",
}
_TEST = "published_test"  # of items that a set is published with as its test part, with labels or without
_LIST = "published_list"  # of items whose lists somebody published
_ADVICE = "name the subject with --subject, a regular expression such as "
_EACH_FOR_ITSELF = ("decathlon", "folders")  # layouts that do not say what a subject is
# The split where none is asked for, validation and test: that of Zhang et al., or the one that a set is known by.
_SPLIT = (0.1, 0.2)
_SPLIT_OF: dict[str, tuple[float, float | tuple[str, ...]]] = {"synapse": (0, SYNAPSE_TEST)}


def prepare(
    name: str,
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
    subject: str | None = None,
    domain: str | None = None,
    label_scheme: str | None = None,
    require: str | None = None,
    one_scan: bool = False,
    transductive: bool = False,
    check: str = "header",
    force: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write the datalist of a data set, split by subject.

    The default split is that of Zhang et al., BIBM 2023, section IV-A: 70 % of a set for training, a third of the rest
    for validation and two thirds for test. `synapse` has the split of TransUNet (Chen et al., arXiv 2102.04306, section
    4.1; its published lists), also used by nnFormer and SimTROT: 18 scans for training and 12 named scans for test. It
    has no validation list: the published code of nnFormer and SimTROT validates on the test scans; here `validation`
    draws scans from the 18 instead.

    Args:
        name: data set, one of `COLLECTORS`.
        source: folder of the data set.
        output: datalist to write; its paths are relative to its folder.
        validation: number of validation subjects, or their share if below 1; by default 0.1, and 0 for `synapse`.
        test: number of test subjects, or their share if below 1; by default 0.2. If a set has a published test part
            with labels, that is the default, and a given number draws others.
        seed: seed of the split.
        subject: regular expression that finds the subject in the path of a scan below `source`, without its suffix: its
            first group, else the whole match (`'patient\\d+'`). It replaces the set's own rule for subjects.
        domain: `domain` of the items; by default the name of the set (none for `bids`, `decathlon` and `folders`).
        label_scheme: how the masks are numbered (see `label_map`). It is written into the datalist, so a run that
            expects another numbering is refused. The default for `acdc`, `adni`, `cc359`, `oasis1` and `synapse` is
            that of the published masks; other sets have none.
        require: keys, separated by commas, that items must have (`label`, `age`, `diagnosis`); others are left out. All
            kept items then count as labelled, with or without a mask; otherwise only items with a mask do.
        one_scan: keep one scan per subject among those with the required keys, at the youngest age or else the first by
            name: repeated visits are not more people.
        transductive: use a published test part without labels for pre-training (list `unlabelled`). By default it is
            left out, since weights that have seen it must not be judged by it.
        check: how the files are checked before anything is written, as in `load_datalist`.
        force: replace an existing file.
        options: options of the collector of this set.

    Returns:
        the written content, with absolute paths.

    Raises:
        DatalistError: the set, an option or the label scheme is unknown, the folder is missing or holds no scan, a file
            is broken, subjects seem to have several scans each but `subject` is not given, all scans belong to a test
            part without labels, the split is impossible, or the output exists.
    """
    folder = Path(source).expanduser().absolute()
    _check_options(name, folder, output, force, label_scheme, options)
    collect = COLLECTORS[name]
    items = collect(folder, **options)
    if not items:
        layout = (inspect.getdoc(collect) or "").partition("Args:")[0].strip()
        raise DatalistError(f"No scan of {name} is below {folder}. The expected layout: {' '.join(layout.split())}")
    published = {_first(x) for x in items if x.pop(_TEST, False)}
    list_of = {_first(x): x.pop(_LIST) for x in items if _LIST in x}
    if list_of and (validation is not None or test is not None or seed):
        raise DatalistError("--split sets the list of each scan: leave out --validation, --test and --seed.")
    if subject is not None:
        items = with_subjects(items, subject, folder)
    elif name in _EACH_FOR_ITSELF:
        _refuse_several_a_subject(items, folder)
    lone = [] if name == "bids" else _lone_masks(items, folder)
    kept = [x for x in items if transductive or "label" in x or _first(x) not in published]
    hidden = len(items) - len(kept)
    if not kept:
        raise DatalistError(
            f"All {len(items)} scans below {folder} belong to the published test part, which has no labels: "
            "add the training part, or use them for pre-training with --transductive True."
        )
    published_subjects = {x["subject"] for x in kept if _first(x) in published and "label" in x}
    found = len(kept)
    required = _keys(require)
    items, repeated = _select(kept, folder, required, one_scan)
    domain = domain or (None if name in LAYOUTS else name)
    if domain:
        items = [x | {"domain": domain} for x in items]
    raise_problems(find_problems([_as_text(x) for x in items], check), f"of {name} below {folder}")

    content: dict[str, Any] = {"name": name, "seed": seed}
    chosen = inspect.signature(collect).bind(folder, **options)
    chosen.apply_defaults()
    label_scheme = label_scheme or _LABEL_SCHEME_OF.get(name, "").format(**chosen.arguments)
    if label_scheme and any("label" in x for x in items):
        content["label_scheme"] = label_scheme
    if list_of:
        content |= {name: [x for x in items if list_of.get(_first(x)) == name] for name in SECTIONS}
        if transductive:
            content["unlabelled"] = [x for x in items if _first(x) not in list_of]
    else:
        split = _SPLIT_OF.get(name, _SPLIT)
        if published_subjects:
            split = split[0], tuple(sorted({x["subject"] for x in items} & published_subjects))
        content |= split_by_subject(
            items,
            split[0] if validation is None else validation,
            split[1] if test is None else test,
            seed,
            required or ["label"],
        )
    content["left_out"] = found - repeated - sum(len(v) for v in content.values() if isinstance(v, list))
    if repeated:
        content["repeated_scans_left_out"] = repeated
    if hidden:
        content["test_scans_left_out"] = hidden
    if lone:
        content["masks_without_scan"] = lone
    write_datalist(output, content, force)
    return content


def _check_options(
    name: str,
    folder: Path,
    output: str | os.PathLike,
    force: bool,
    label_scheme: str | None,
    options: Mapping[str, Any],
) -> None:
    """Refuse an unknown set, folder, option or label scheme, and an output that exists."""
    if name not in COLLECTORS:
        raise DatalistError(f"Unknown data set {name!r}; known are {', '.join(COLLECTORS)}.")
    if not folder.is_dir():
        raise DatalistError(f"No folder at {folder}: give the folder of the data set with --source.")
    if Path(output).exists() and not force:
        raise DatalistError(f"{Path(output).absolute()} exists: choose another output, or replace it with --force.")
    known = [p for p in inspect.signature(COLLECTORS[name]).parameters if p != "source"]
    unknown = [option for option in options if option not in known]
    if unknown:
        general = [p.name for p in inspect.signature(prepare).parameters.values() if p.kind is p.KEYWORD_ONLY]
        renamed = [renamed_sentence(f"--{option}", option, general, prefix="--") for option in unknown]
        if any(renamed):
            raise DatalistError(" ".join(sentence for sentence in renamed if sentence))
        close = [difflib.get_close_matches(option, [*known, *general], n=1) for option in unknown]
        if all(close):
            listed = f"did you mean {', '.join(f'--{match}' for (match,) in close)}?"
        else:
            own = f"its options are {', '.join(known)}" if known else "it has no options of its own"
            listed = f"{own}, and those of all sets are {', '.join(general)}."
        raise DatalistError(f"{name} has no option {', '.join(map(repr, unknown))}; {listed}")

    if label_scheme is not None and label_scheme not in LABEL_SCHEMES:
        raise DatalistError(f"Unknown label scheme {label_scheme!r}; known are {', '.join(LABEL_SCHEMES)}.")


def _keys(require: Any) -> list[str]:
    """The keys of ``require``."""
    if require is None:
        return []
    return re.findall(r"[^\s,()\[\]'\"]+", require) if isinstance(require, str) else list(require)


def _select(
    items: list[dict[str, Any]], folder: Path, required: list[str], one_scan: bool
) -> tuple[list[dict[str, Any]], int]:
    """The items with the required keys, and how many further scans of the same subjects ``one_scan`` leaves out."""
    selected = [x for x in items if all(key in x for key in required)]
    if not selected:
        raise DatalistError(f"None of the {len(items)} scans below {folder} has {' and '.join(required)}.")
    if not one_scan:
        return selected, 0
    chosen: dict[Any, dict[str, Any]] = {}
    for x in sorted(selected, key=lambda x: (x.get("age", math.inf), str(_first(x)))):
        chosen.setdefault(x["subject"], x)
    return [x for x in selected if chosen[x["subject"]] is x], len(selected) - len(chosen)


def _first(x: dict[str, Any]) -> Path:
    return Path(x["image"][0] if isinstance(x["image"], list) else x["image"])


def with_subjects(items: list[dict[str, Any]], pattern: str, folder: Path) -> list[dict[str, Any]]:
    """Items with the subject that the pattern finds in their paths."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DatalistError(f"--subject {pattern!r} is not a regular expression ({error}): correct it.") from error
    result = []
    without = []
    for x in items:
        path = Path(os.path.relpath(_first(x), folder))
        match = compiled.search((path.parent / stem(path)).as_posix())
        known = next((group for group in match.groups() if group), match[0]) if match else ""
        if not known:
            without.append(path.as_posix())
        result.append(x | {"subject": known})
    if without:
        raise DatalistError(
            f"--subject {pattern!r} finds nothing in {len(without)} of {len(items)} scans ({some(without)}): widen it."
        )
    return result


def _refuse_several_a_subject(items: list[dict[str, Any]], folder: Path) -> None:
    """Refuse scans that the layout counts as one subject each, although their names suggest fewer subjects.

    Names suggest that by the rule of `subjects_of_names`, or if most are in groups that differ only in their last part.
    """
    names = [str(x["subject"]) for x in items]
    for x, name in zip(items, names, strict=True):
        if name != stem(_first(x)) and not stem(_first(x)).startswith(f"{Path(name).name}"):
            return  # the set's own file says what a subject is
    several = dict.fromkeys(names)
    subjects = dict(zip(several, (found := subjects_of_names(list(several))).of, strict=True))
    if len(set(subjects.values())) == len(subjects):
        if found.doubt is not None:
            raise DatalistError(
                f"{found.two_readings}: {_ADVICE}"
                "'patient[0-9]+'; if each scan is a separate subject, give --subject '.*'."
            )
        last = {name: re.sub(r"[_/-]?[^_/-]*$", "", name) or name for name in several}
        sizes = [count for count in Counter(last.values()).values() if count > 1]
        if len(sizes) < 2 or 2 * sum(sizes) < len(items):
            return
        subjects = last
    of = [subjects[name] for name in names]
    one = min(subject for subject, count in Counter(of).items() if count > 1)
    of_one = some([name for name in names if subjects[name] == one], 3)
    raise DatalistError(
        f"{len(items)} scans seem to belong to {len(set(of))} subjects ({of_one} of {one}): "
        f"{_ADVICE}{_pattern(items, of, folder)}, so that none is in two lists; "
        "if each scan is a separate subject, give --subject '.*'."
    )


def _pattern(items: list[dict[str, Any]], subjects: list[str], folder: Path) -> str:
    """A regular expression that finds these subjects in the paths of the items."""
    like = re.sub(r"\d+", r"\\d+", re.sub(r"([^\w/ -])", r"\\\1", subjects[0]))
    tried = (like, r"[^/]*$", r"([^/]*)[_-][^/]*$", r"([^/]*)/[^/]*$", r"([^/_-]*)[^/]*$", r"[^/_-]*$")
    wanted = _partition(subjects)
    for pattern in tried:
        try:
            found = [str(x["subject"]) for x in with_subjects(items, pattern, folder)]
        except DatalistError:
            continue
        if _partition(found) == wanted:
            return f"'{pattern}'"
    return "'patient[0-9]+'"


def _partition(names: list[str]) -> list[int]:
    """For each name, the place of the first that is equal."""
    first: dict[str, int] = {}
    return [first.setdefault(name, i) for i, name in enumerate(names)]


def _lone_masks(items: list[dict[str, Any]], folder: Path) -> list[str]:
    """Files in folders of masks that belong to no scan."""
    images = {Path(p).parent for x in items for p in (x["image"] if isinstance(x["image"], list) else [x["image"]])}
    masks = {Path(x["label"]) for x in items if isinstance(x.get("label"), str | Path)}
    among = {mask.parent for mask in masks} - images
    lone = [p for parent in sorted(among) for p in scans(parent) if p not in masks]
    return [Path(os.path.relpath(p, folder)).as_posix() for p in lone]


def label_scheme_hint(content: dict[str, Any]) -> str | None:
    """Advice for a datalist with masks but without their numbering."""
    labels = [x.get("label") for name in LISTS for x in content.get(name, []) if isinstance(x, dict)]
    if "label_scheme" in content or not any(isinstance(x, str | os.PathLike | list) for x in labels):
        return None
    return (
        "The datalist does not state how the masks are numbered: write it again with --label_scheme "
        "NAME --force, so that a run that expects another numbering is refused "
        f"({', '.join(LABEL_SCHEMES)})."
    )


def describe(content: dict[str, Any]) -> str:
    """Counts of a datalist, one line per list."""
    lines = []
    for name in ("training", "validation", "test", "unlabelled"):
        items = [x if isinstance(x, dict) else {} for x in content.get(name, [])]
        if not items and name == "unlabelled":
            continue
        counts = {"labels": sum("label" in x for x in items), "ages": sum("age" in x for x in items)}
        diagnoses = Counter(x["diagnosis"] for x in items if "diagnosis" in x)
        text = f"{len(items)} scans of {len({x.get('subject', i) for i, x in enumerate(items)})} subjects"
        text += "".join(f", {n} {what}" for what, n in counts.items() if n)
        text += "".join(f", diagnosis {k}: {n}" for k, n in sorted(diagnoses.items(), key=lambda pair: str(pair[0])))
        if name == "unlabelled":
            text += f" ({some([_name(x) for x in items])})"
        lines.append(f"{name:<11}{text}")
    if content.get("left_out"):
        lines.append(f"{'left out':<11}{content['left_out']} scans without a required key")
    if content.get("repeated_scans_left_out"):
        lines.append(f"{'left out':<11}{content['repeated_scans_left_out']} further scans of the same subjects")
    if content.get("test_scans_left_out"):
        lines.append(
            f"{'left out':<11}{content['test_scans_left_out']} scans of the published test part, which has no labels "
            "(--transductive True uses them for pre-training)"
        )
    lone = content.get("masks_without_scan") or []
    if lone:
        lines.append(f"masks without a scan, not used: {len(lone)} ({some(lone)})")
    return "\n".join(lines)


def _name(x: dict[str, Any]) -> str:
    image = x.get("image", "?")
    return Path(image[0] if isinstance(image, list) and image else str(image)).name


def _as_text(x: dict[str, Any]) -> dict[str, Any]:
    def text(value: Any) -> Any:
        return [os.fspath(v) for v in value] if isinstance(value, list) else os.fspath(value)

    return x | {k: text(x[k]) for k in ("image", "label") if k in x}
