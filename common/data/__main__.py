"""Command line: `python -m common.data prepare | check | merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fire

from .datalist import SECTIONS, DatalistError, find_overlaps, load_datalist, raise_problems, read_datalist
from .prepare.datasets import describe
from .prepare.datasets import prepare as prepare_dataset
from .prepare.write import merge as merge_datalists
from .prepare.write import write_datalist


def prepare(
    name: str, source: str | None = None, output: str | None = None, force: bool = False, **options: Any
) -> None:
    """Write the datalist of a data set: adni, bids, cc359, decathlon, ixi, oasis1 or synapse; or make the sample.

    Options of all sets: --validation and --test (number of subjects, or their share below 1; for synapse by default no
    validation scans and the published test scans), --seed, --domain, --numbering (of the masks, where the set does not
    say it: freesurfer, dlmuse, msd_brats, ...), --require label,age (leave out scans that lack one), --check
    none|header|full. Options of one set: oasis1 --image norm,orig --label seg35|seg4 (skull stripping needs --image
    orig, norm has no skull); cc359 --masks machine_learning|staple|manual;
    bids --suffix T1w --label_pattern '*_dseg' --diagnoses control,patient. The sample takes --subjects,
    --unlabelled, --seed and --spacing; its --output is a folder (by default in the cache).

    Args:
        name: which set.
        source: folder of the data set.
        output: JSON file to write.
        force: replace an existing file.
    """
    if name == "sample":
        from .sample import make_sample

        print(f"The sample is in {make_sample(output, **options)}")
        return
    if source is None or output is None:
        raise DatalistError("Give the folder of the data set with --source and the file to write with --output.")
    content = prepare_dataset(name, source, output, force=force, **options)
    print(f"{describe(content)}\nwritten to {Path(output).absolute()}")


def check(
    path: str, base_dir: str | None = None, label_key: str | None = "label", num_classes: int | None = None
) -> None:
    """Read every voxel that a datalist names and list all that is wrong.

    Args:
        path: the datalist.
        base_dir: folder that its paths are relative to, where it is not its own.
        label_key: key of the labels; where no item of training, validation and test has it, and with None, the images
            alone are checked.
        num_classes: labels have to be below this number.
    """
    content = read_datalist(path)
    entries = [x for name in SECTIONS for x in content.get(name) or []]
    key = label_key if any(isinstance(x, dict) and label_key in x for x in entries) else None
    load_datalist(path, base_dir, label_key=key, check="full", num_classes=num_classes)
    extra = [name for name in ("unlabelled", "unlabeled") if name in content]
    if extra:
        load_datalist(path, base_dir, label_key=None, training_sections=extra, check="full")
    print(f"{describe(content)}\n{path}: nothing is wrong")


def merge(*paths: str, output: str | None = None, force: bool = False) -> None:
    """Merge datalists list by list, for example a source and a target set; each keeps its `domain`.

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
    try:
        fire.Fire({"prepare": prepare, "check": check, "merge": merge}, name="python -m common.data")
    except (DatalistError, FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
