"""Masks of later scans from a packed bundle; finished scans are skipped, and scans that do not fit are reported."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..checks import first_cause, own_sentence
from ..data.image_list import list_images
from ..durations import format_duration
from ..files import VOLUME_ENDINGS, atomic_write, file_digest, without_ending
from ..json_files import read_json
from ..volumes import first_line

__all__ = ["Prediction", "exit_status", "predict"]

RECORD = "predictions.json"
"""File beside the masks that names the scan and the model of each."""
CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's names of the channels of a case, without their endings."""
NOT_HERE = ("ProgressBar", "StatsHandler", "OutputFolder")
"""Handlers of a pack that only report; this module reports instead."""


@dataclass(frozen=True)
class Prediction:
    """The result for one case.

    Attributes:
        name: name of the case, and of its mask without the ending.
        source: its files, one per channel; a folder is one DICOM series.
        mask: the mask; None if there is none.
        status: `done`, `skipped` if this model's mask of this scan already existed, or `refused`.
        reason: one sentence on why it was refused; else empty.
        seconds: time that it took.
    """

    name: str
    source: tuple[Path, ...]
    mask: Path | None
    status: Literal["done", "skipped", "refused"]
    reason: str = ""
    seconds: float = 0.0


def predict(
    model: str | os.PathLike,
    images: str | os.PathLike | Mapping[str, Sequence[str | os.PathLike]],
    output: str | os.PathLike,
    force: bool = False,
    progress: bool = True,
) -> list[Prediction]:
    """Write a mask for each case, with the pack's own inference.

    A case that cannot be read, or is unlike the scans that the model was trained on (`common.fingerprint`), is refused,
    and the others go on. A mask is made only once: `predictions.json` in the output folder has checksums of the scan
    and of the model. A case is skipped while both are the same and its mask exists.

    Args:
        model: folder from `python -m common.pack`, with weights in `models/`.
        images: a file, a folder of files and of folders with DICOM series, or a datalist (its list `test`). With
            nnU-Net's names (`heart_0000.nii.gz`, `heart_0001.nii.gz`) a case has several channels. Or a mapping from
            the name of each case to its files.
        output: folder of the masks, `NAME.nii.gz`.
        force: accept cases unlike the training, with a warning, and make existing masks again.
        progress: whether to write a line on stderr for each case, with the remaining time.

    Returns:
        one result for each case, ordered by name; `exit_status` says whether all succeeded.

    Raises:
        FileNotFoundError, ValueError: `model` is not a packed bundle with weights, or cannot be run; there are no
            images; two cases have one name; masks would overwrite the images.
        OSError: a mask cannot be written.
    """
    pack, folder = _pack(Path(model).expanduser()), Path(output).expanduser().absolute()
    cases = _cases(images)
    for name, files in cases.items():
        if folder / f"{name}{_ending(files[0])}" in files or folder / f"{name}.nii.gz" in files:
            raise ValueError(f"the mask of {files[0]} would overwrite it; give another output than {folder}.")
    run = _Run(pack, folder, cases, force, progress)
    todo = run.skip_what_is_done()
    if todo:
        folder.mkdir(parents=True, exist_ok=True)
        with _code_of(pack):
            run.make(todo)
    return [run.results[name] for name in cases]


def exit_status(predictions: Sequence[Prediction]) -> int:
    """0 if each case has its mask, 1 if one was refused."""
    return int(any(one.status == "refused" for one in predictions))


@dataclass
class _Run:
    """One call of `predict`."""

    pack: Path
    folder: Path
    cases: Mapping[str, tuple[Path, ...]]
    force: bool
    progress: bool
    results: dict[str, Prediction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = _digest([self.pack / "models" / "model.pt", self.pack / "configs" / "inference.json"])
        self.record: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):  # none yet, or damaged: the masks are made again
            found = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            self.record = found if isinstance(found, dict) else {}
        self.scans: dict[str, str] = {}
        self.began = time.monotonic()
        self.made = 0

    def mask(self, name: str) -> Path:
        return self.folder / f"{name}.nii.gz"

    def skip_what_is_done(self) -> list[str]:
        """Names of the remaining cases."""
        left = []
        for name, files in self.cases.items():
            try:
                self.scans[name] = _digest(files)
            except OSError as error:
                self.refuse(name, f"{files[0]} cannot be read ({error.strerror or first_line(error)}).", 0.0)
                continue
            same = {"scan": self.scans[name], "model": self.model}
            if not self.force and self.record.get(name) == same and self.mask(name).is_file():
                self.tell(Prediction(name, files, self.mask(name), "skipped"))
            else:
                left.append(name)
        return left

    def make(self, todo: list[str]) -> None:
        """Run the pack's own workflow on the cases; if a case fails, the others go on."""
        from monai.bundle import ConfigWorkflow

        loader = _Cases(self, todo)
        with _quiet("monai.bundle.workflows"):
            workflow = ConfigWorkflow(
                config_file=str(self.pack / "configs" / "inference.json"),
                logging_file=False,
                workflow_type="inference",
                bundle_root=str(self.pack),
                output_dir=str(self.folder),
                accept_scans=self.force,
            )
        parser = workflow.parser
        handlers = [one for one in parser["handlers"] if str(one.get("_target_")).rpartition(".")[2] not in NOT_HERE]
        parser.update({"handlers": handlers, "dataloader": loader})
        workflow.initialize()
        loader.preprocessing = parser.get_parsed_content("preprocessing")
        parser.get_parsed_content("save_output").folder_layout = _Layout(self)
        evaluator = parser.get_parsed_content("evaluator")
        while loader.todo:
            evaluator.state.epoch_length = None  # how many will not be refused is not known before
            try:
                with _quiet("ignite.engine.engine.SupervisedEvaluator"):
                    evaluator.run()
            except Exception as error:
                cause = first_cause(error)
                if loader.current is None:  # of the model, before any case
                    raise ValueError(f"{self.pack} cannot be run: {_sentence(error, self.pack)}") from error
                if isinstance(cause, OSError):  # a mask cannot be written, nor can the next
                    raise cause from error
                self.refuse(
                    loader.current, f"{self.cases[loader.current][0]} ended in an error: {_sentence(error, self.pack)}"
                )
                loader.current = None
        workflow.finalize()

    def finish(self, name: str, seconds: float) -> None:
        self.record[name] = {"scan": self.scans[name], "model": self.model}
        with atomic_write(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(self.record, indent=4) + "\n", encoding="utf-8")
        self.tell(Prediction(name, self.cases[name], self.mask(name), "done", seconds=seconds))

    def refuse(self, name: str, reason: str, seconds: float = 0.0) -> None:
        reason = reason.replace("--accept_scans True", "--force")
        self.tell(Prediction(name, self.cases[name], None, "refused", reason, seconds))

    def tell(self, result: Prediction) -> None:
        self.results[result.name] = result
        self.made += result.status != "skipped"
        if not self.progress:
            return
        line = f"{len(self.results)}/{len(self.cases)} {result.name}: {result.reason or result.status}"
        left = len(self.cases) - len(self.results)
        if left and self.made:
            seconds = left * (time.monotonic() - self.began) / self.made
            line += f" (about {format_duration(seconds)} left)"
        print(line, file=sys.stderr, flush=True)


class _Cases:
    """The loader of an evaluator: batches of one case, without cases that preprocessing refuses."""

    def __init__(self, run: _Run, todo: list[str]) -> None:
        self.run, self.todo = run, todo
        self.current: str | None = None
        self.preprocessing: Any = None

    def __iter__(self) -> Iterator[Any]:
        from monai.data import list_data_collate

        while self.todo:
            name = self.todo.pop(0)
            files = [str(file) for file in self.run.cases[name]]
            began = time.monotonic()
            try:
                item = self.preprocessing({"image": files if len(files) > 1 else files[0]})
            except Exception as error:  # each transform and reader has its own kinds
                self.run.refuse(name, _sentence(error, self.run.pack), time.monotonic() - began)
                continue
            self.current = name
            yield list_data_collate([item])
            # Its mask was written before the engine asked for the next.
            self.current = None
            self.run.finish(name, time.monotonic() - began)


class _Layout:
    """Names the masks after the cases; the pack would name them after the scans' files."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.names = {str(files[0]): name for name, files in run.cases.items()}

    def filename(self, subject: str | os.PathLike = "subject", idx: int | None = None, **kwargs: Any) -> str:
        return str(self.run.mask(self.names[os.path.abspath(subject)]))


def _pack(folder: Path) -> Path:
    folder = folder.absolute()
    how = "give the folder that `python -m common.pack BUNDLE --weights model.pt` writes"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; {how}.")
    for part in ("configs/inference.json", "models/model.pt"):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{folder} is not a packed bundle with its model, since it has no {part}; {how}.")
    config = read_json(folder / "configs" / "inference.json")
    if "save_output" not in config or "evaluator" not in config:
        raise ValueError(f"{folder} writes no masks (its inference.json has no save_output); {how}.")
    return folder


def _cases(images: str | os.PathLike | Mapping[str, Sequence[str | os.PathLike]]) -> dict[str, tuple[Path, ...]]:
    """Files of each case by its name."""
    if isinstance(images, Mapping):
        given = {name: tuple(Path(file).absolute() for file in files) for name, files in images.items()}
        return dict(sorted(given.items()))
    found: list[tuple[Path, ...]] = []
    for item in list_images(os.path.expanduser(images), option="--images"):
        value = item["image"]
        found.append(tuple(Path(file).absolute() for file in ([value] if isinstance(value, str) else value)))
    channels: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for files in found:
        match = CHANNEL.fullmatch(without_ending(files[0].name))
        if len(files) == 1 and match and files[0].is_file():
            place = (files[0].parent, match[1], _ending(files[0]))
            channels.setdefault(place, {})[int(match[2])] = files[0]
    # Years and the like are no channels: those begin with 0 and leave none out.
    whole = {place: group for place, group in channels.items() if sorted(group) == list(range(len(group)))}
    grouped = {file for group in whole.values() for file in group.values()}
    cases: dict[str, tuple[Path, ...]] = {}
    named = [(place[1], tuple(group[n] for n in sorted(group))) for place, group in whole.items()]
    named += [(_name(files[0]), files) for files in found if files[0] not in grouped]
    for name, files in sorted(named):
        if name in cases:
            raise ValueError(
                f"{cases[name][0]} and {files[0]} would both have the mask {name}.nii.gz; rename one of them."
            )
        cases[name] = files
    return cases


def _name(file: Path) -> str:
    return file.name if file.is_dir() else without_ending(file.name)


def _ending(file: Path) -> str:
    return next((end for end in VOLUME_ENDINGS if file.name.lower().endswith(end)), file.suffix)


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of the content of files, and of all files of folders."""
    digest = hashlib.sha256()
    for path in files:
        for file in sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]:
            digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()


@contextlib.contextmanager
def _code_of(pack: Path) -> Iterator[None]:
    """Import `scripts` from this pack; other packs have their own code under that name."""

    def theirs() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "scripts"}

    path, before = list(sys.path), theirs()
    sys.path.insert(0, str(pack))
    try:
        yield
    finally:
        theirs()
        sys.modules.update(before)
        sys.path[:] = path


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger that is meant for direct users of MONAI; this module catches and reports errors."""
    logger = logging.getLogger(name)
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was


def _sentence(error: BaseException, pack: Path) -> str:
    """The pack's or our own sentence inside a wrapped error; else its first cause, in one line."""
    said, link = own_sentence(error), error
    code = (pack / "scripts").resolve()
    while said is None:
        frames = traceback.extract_tb(link.__traceback__)
        if frames and Path(frames[-1].filename).resolve().is_relative_to(code):
            said = str(link)
        elif link.__cause__ is None:
            said = str(link) or type(link).__name__
        else:
            link = link.__cause__
    return said.strip().splitlines()[0]
