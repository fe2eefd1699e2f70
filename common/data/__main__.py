"""Command line: `python -m common.data prepare | check | spacing | merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..command_line import read_values, run_command
from .datalist import SECTIONS, DatalistError, find_overlaps, load_datalist, raise_problems, read_datalist
from .domains import print_spacing
from .label_maps import LABEL_SCHEMES, TASKS, known_labels, label_map
from .prepare.datasets import COLLECTORS, describe, label_scheme_hint
from .prepare.datasets import prepare as prepare_dataset
from .prepare.write import merge as merge_datalists
from .prepare.write import write_datalist


def prepare(
    name: str, source: str | None = None, output: str | None = None, force: bool = False, **options: Any
) -> None:
    """Write the datalist of a data set, or make the sample data set.

    Sets: abide, acdc, adni, bids, brats, cc359, decathlon (nnU-Net's layout too), folders (scans and masks of equal
    names in two folders), ixi, lidc, oasis1, synapse, visceral.

    Options of all sets: --validation and --test (number of subjects, or their share if below 1; for synapse by default
    no validation scans and the published test scans), --seed, --subject 'REGEX' (finds the subject in a scan's path,
    such as 'patient[0-9]+'; one subject stays in one list), --domain, --label_scheme (of the masks, if the set does not
    state it: freesurfer, dlmuse, msd_brats, ...), --require label,age (leave out scans that lack one), --transductive
    True (use a published test part without labels for pre-training), --check none|header|full. Options of one set:
    abide --min_age 13 (0 keeps scans without an age) and --controls True|False (False keeps subjects with autism);
    oasis1 --image norm,orig --label seg35|seg4 (skull stripping needs --image orig, norm has no skull); cc359 --masks
    machine_learning|staple|manual; folders --images images --labels labels --label_ending _seg; bids --suffix T1w
    --label_pattern '*_dseg' --diagnoses control,patient. The sample takes --subjects, --unlabelled, --seed and
    --spacing; its --output is a folder (by default in the cache).

    Args:
        name: name of the set.
        source: folder of the data set.
        output: JSON file to write.
        force: replace an existing file.
    """
    if name == "sample":
        from .sample import make_sample

        print(f"The sample is in {make_sample(output, **read_values(options, make_sample))}")
        return
    if source is None or output is None:
        raise DatalistError("Give the folder of the data set with --source and the file to write with --output.")
    values = read_values(options, *([COLLECTORS[name]] if name in COLLECTORS else []), prepare_dataset)
    content = prepare_dataset(name, source, output, force=force, **values)
    print(f"{describe(content)}\nwritten to {Path(output).absolute()}")
    hint = label_scheme_hint(content)
    if hint:
        print(hint)


def check(
    path: str,
    base_dir: str | None = None,
    label_key: str | None = "label",
    num_classes: int | None = None,
    label_scheme: str | None = None,
    task: str | None = None,
) -> None:
    """Read every voxel of a datalist's files and list all problems that training would find.

    Args:
        path: the datalist.
        base_dir: folder that its paths are relative to; by default its own.
        label_key: key of the labels. Only the
            images are checked with None, or if no item of training, validation and test has the key and no option
            concerns labels.
        num_classes: number of classes of the net. Without a label scheme, the labels in the files must be below it;
            with one, the classes of the task must fit in it.
        label_scheme: how the masks are numbered (freesurfer, dlmuse, ...), as in the config id of that name; by default
            as the datalist states. Labels outside of the scheme are errors.
        task: what the net segments (structures4, ...), as in the config id of that name; the masks must hold classes of
            it.
    """
    content = read_datalist(path)
    lists = [content.get(name) for name in SECTIONS]  # what is no list, `load_datalist` says below
    entries = [x for entries in lists if isinstance(entries, list) for x in entries]
    labels = [x[label_key] for x in entries if isinstance(x, dict) and label_key in x]
    key = label_key if labels else None
    known = None
    if key is None:
        _refuse_without_labels(path, label_key, num_classes=num_classes, label_scheme=label_scheme, task=task)
    if any(isinstance(x, str | list) for x in labels):
        label_scheme = label_scheme or content.get("label_scheme")
        known = _known_labels(path, label_scheme, task, num_classes)
    load_datalist(
        path,
        base_dir,
        label_key=key,
        check="full",
        num_classes=num_classes if known is None else None,
        label_scheme=label_scheme,
        known_labels=known,
    )
    extra = [name for name in ("unlabelled", "unlabeled") if name in content]
    if extra:
        load_datalist(path, base_dir, label_key=None, training_sections=extra, check="full")
    print(describe(content))
    if not content.get("validation"):
        print("no validation list: training needs one (--fold 0 splits one off the training list)")
    if not content.get("test"):
        print("no test list: evaluation, and inference on the datalist, need one")
    print(f"{path}: nothing is wrong")


def _refuse_without_labels(path: str, label_key: str | None, **asked: Any) -> None:
    """Refuse options about labels if no item has a label."""
    options = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if label_key not in (None, "label"):
        options.insert(0, f"--label_key {label_key}")
    if options and label_key is None:
        raise DatalistError(f"{', '.join(options)} cannot be checked without labels: leave out --label_key None.")
    if options:
        raise DatalistError(
            f"No item of {', '.join(SECTIONS)} in {path} has a {label_key!r}, so {', '.join(options)} cannot be "
            "checked: add the masks to the datalist, or leave these options out to check the images alone."
        )
    print(f"no labels in {', '.join(SECTIONS)}: the images alone are checked")


def _known_labels(path: str, label_scheme: str | None, task: str | None, num_classes: int | None) -> set[int] | None:
    """The values that masks may have; `None` with a message if they are unknown."""
    if label_scheme is None:
        if task is not None:
            others = ", ".join(name for name in LABEL_SCHEMES if name != "task")
            raise DatalistError(
                f"{path} does not say how its masks are numbered: give --label_scheme NAME with --task {task}, `task` "
                f"where they hold the task's own classes from 0 on, else one of {others}."
            )
        taken = "are not checked" if num_classes is None else f"are taken for classes from 0 to {num_classes - 1}"
        print(
            f"{path} does not say how its masks are numbered, so label values {taken}: give --label_scheme NAME --task "
            f"NAME to check them as training does (label schemes: {', '.join(LABEL_SCHEMES)}; "
            f"tasks: {', '.join(TASKS)})"
        )
        return None
    if task is None:
        if num_classes is not None:
            raise DatalistError(
                f"The masks of {path} are numbered as {label_scheme!r}: give --task NAME in place of --num_classes "
                f"{num_classes} ({', '.join(TASKS)})."
            )
        if label_scheme == "task":
            print("label values are not checked: give --task NAME, whose classes they are")
            return None
        return known_labels(label_scheme)
    groups = label_map(label_scheme, task)
    if num_classes is not None and len(groups) > num_classes:
        raise DatalistError(
            f"The task {task!r} has {len(groups)} classes with the background, more than --num_classes {num_classes}: "
            "give the number that the config has."
        )
    return {0}.union(*groups.values())


def merge(*paths: str, output: str | None = None, force: bool = False) -> None:
    """Merge datalists list by list, such as a source and a target set; each keeps its `domain`.

    Items without one get the name of their datalist, or of its file. Masks must be numbered alike.

    Args:
        paths: the datalists.
        output: JSON file to write.
        force: replace an existing file.
    """
    if len(paths) < 2 or output is None:
        raise DatalistError("Give two datalists or more, and the file to write with --output.")
    content = merge_datalists(paths)
    raise_problems(find_overlaps({name: content[name] for name in SECTIONS}), ", ".join(paths))
    write_datalist(output, content, force)
    print(f"{describe(content)}\nwritten to {Path(output).absolute()}")


def main() -> None:
    run_command({"prepare": prepare, "check": check, "spacing": print_spacing, "merge": merge}, "python -m common.data")


if __name__ == "__main__":
    main()
