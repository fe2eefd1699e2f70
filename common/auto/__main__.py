"""The command ``python -m common.auto``."""

from __future__ import annotations

import sys
from pathlib import Path

from ..command_line import run_command
from .errors import RunError


def auto(
    images: str,
    masks: str | None = None,
    output: str = "auto",
    subject: str | None = None,
    hours: float = 1.0,
    control: bool = False,
    plan: bool = False,
    task: str | None = None,
    bundle: str | None = None,
    names: str | None = None,
    pretrained_encoder: str | None = None,
    network: str | None = None,
    prepare_as: str | None = None,
) -> None:
    """From scans and masks to a model: look, plan, train, evaluate, pack, report. Repeat the command to resume.

    `python -m common.auto predict --help` explains label maps for later scans.

    Args:
        images: folder of scans, a data set in the layout of nnU-Net, the Decathlon or BIDS, or a datalist.
        masks: folder of masks, named like the scans; leave it out if the layout includes them.
        output: folder for all results.
        subject: regular expression for the subject in a scan's name, such as 'patient[0-9]+'.
        hours: time for everything.
        control: if an encoder is used, also train from scratch, each with half of the time.
        plan: stop after the plan, to read and edit it.
        task: structures4, structures34, ...: task for masks numbered by FreeSurfer or another known tool.
        bundle: folder of the bundle ssl3d, if not the one in the package.
        names: names of the labels of the masks, such as '1=right ventricle, 2=myocardium'.
        pretrained_encoder: encoder file to start from, if a trial shows that it helps.
        network: the network that it fills, such as vista3d (`python -m common.weights check FILE` names them).
        prepare_as: encoder, or a file by whose record spacing, orientation and intensities are set.
    """
    from .pipeline import run  # torch and MONAI take seconds, which a wrong option should not cost

    label_names, chosen = _label_names(names), (pretrained_encoder, network, prepare_as)
    run(images, masks, output, subject, hours, control, plan, task, bundle, label_names, *chosen)


def _label_names(given: str | None) -> dict[int, str] | None:
    """Label -> name; commas separate the pairs, names may contain blanks.

    Raises:
        ValueError: it has another form.
    """
    if given is None:
        return None
    pairs = [[part.strip() for part in one.partition("=")[::2]] for one in given.split(",")]
    if not all(label.isdecimal() and name for label, name in pairs):
        raise ValueError(f"--names {given!r}: write label=name, separated by commas, such as '1=liver, 2=tumour'.")
    return {int(label): name for label, name in pairs}


def predict(model: str, images: str, output: str, force: bool = False) -> None:
    """Label other scans: finished ones are skipped, and scans unlike the training scans are refused.

    Args:
        model: the folder `model` of an automatic run, or another packed bundle.
        images: a scan or a folder of scans.
        output: folder for the label maps.
        force: accept scans unlike those of the training.
    """
    from .predict import predict as predict_scans

    done = predict_scans(model, images, output, force=force)
    refused = sum(one.status == "refused" for one in done)  # each has been told with its reason
    if refused < len(done):
        print(f"Label maps: {Path(output).expanduser().absolute()}")
    if refused:
        sys.exit(f"error: {refused} of {len(done)} scans got no label map.")


def main() -> None:
    """The command line: ``predict`` as first word, else a run."""
    try:
        if sys.argv[1:2] == ["predict"]:
            run_command({"predict": predict}, "python -m common.auto")
        else:
            run_command(auto, "python -m common.auto")
    except RunError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. Repeat the command to go on from here.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
