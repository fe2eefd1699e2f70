"""``python -m common.compare``: does pre-training help on my data?"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import fire
from fire.decorators import SetParseFns

from ..checks import renamed_sentence, split_arguments
from ..json_files import read_json
from .collect import choose_examples, choose_trials, collect, write_example_list
from .execute import execute, hold_folder, take_models
from .plan import make_plan
from .run import STAGES
from .settings import OWN, CompareError, read_settings, truth


# as typed: fire would cut an override at a '#', and take a folder named 2024 for a number
@SetParseFns(
    **dict.fromkeys(
        (
            "override",
            "pretrain_override",
            "evaluate_override",
            "models_from",
            "output",
            "dataset_dir",
            "datalist",
            "bundle",
            "tune",
        ),
        str,
    )
)
def compare(
    bundle: str | None = None,
    arms: Any = None,
    output: str | None = None,
    settings: str | None = None,
    fractions: Any = None,
    labels: Any = None,
    seeds: Any = None,
    equal: str | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    validations: int | None = None,
    config_file: Any = None,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    override: Any = None,
    pretrain_override: Any = None,
    evaluate_override: Any = None,
    models_from: str | None = None,
    probe: Any = None,
    examples: int | None = None,
    example_slices: int | None = None,
    devices: Any = None,
    processes: int | None = None,
    keep_checkpoints: bool | None = None,
    transductive: bool | None = None,
    margin: float | None = None,
    validation_from_labels: bool | None = None,
    tune: Any = None,
    tune_trials: int | None = None,
    tune_seeds: int | None = None,
    patience: int | None = None,
    launcher: Any = None,
    folds: int | None = None,
    plan: bool = False,
    report: bool = False,
) -> None:
    """Pre-train each arm, fine-tune it with few and many labels over several seeds, and report the results.

    python -m common.compare --bundle bundles/pretrain_once --arms scratch,pretrain_once --labels 1,4,12 \\
        --config_file configs/datasets/sample.json --output runs/sample

    Finished runs are kept: call it again to resume after an interruption, or with more arms, labels or seeds. The
    output folder holds report.md, report.html, their tables, and one folder per run with its command, resolved config,
    log and TensorBoard events.

    Args:
        bundle: folder of the bundle, or the name of an included one.
        arms: ways to start, separated by commas: scratch, the bundle's name, a file of configs/pretexts without .json,
            NAME=FILE.safetensors, NAME=overlay.json+overlay.json, NAME=scratch.
        output: folder for runs and report.
        settings: JSON file that holds any of these options.
        fractions: shares of the training list, separated by commas.
        labels: numbers of training items instead of shares.
        seeds: separated by commas.
        equal: steps, epochs or time (pre-training included).
        steps: optimiser steps of a fine-tuning, rounded to whole passes over the labels; a changed number is reported.
        epochs: passes over the labels, with --equal epochs.
        validations: validations during a fine-tuning.
        config_file: overlays for every stage, separated by commas or in MONAI's form.
        dataset_dir: config id, for every stage.
        datalist: config id, for every stage.
        override: ids and values of fine-tuning and evaluation: 'id=value id=value'.
        pretrain_override: ids and values of pre-training.
        evaluate_override: ids and values of evaluation alone, such as the datalist of another scanner.
        models_from: output folder of a comparison that differs in nothing but evaluate_override, to copy its trainings.
        probe: also probe the frozen encoders, without fine-tuning: label, age, diagnosis, separated by commas.
        examples: test volumes to show; 3, the default, are the worst, the median and the best; 0: none.
        example_slices: consecutive slices of each to show, one under the other; 1 by default.
        devices: GPU numbers, separated by commas; one run at a time on each.
        processes: processes per run, through torchrun.
        keep_checkpoints: keep the checkpoints to resume from.
        transductive: let pre-training see validation and test scans, which is refused otherwise.
        margin: arms are equivalent if the main metric differs by less; default 0.01 for Dice.
        validation_from_labels: validate on a fifth of the labels, not on the validation list, which would need extra
            labels.
        tune: values to try in every arm; the best in validation is used: 'id=[a,b] id=[c,d]', or a number of trials of
            learning_rate over one order of magnitude.
        tune_trials: number of combinations to try, drawn at random; default all.
        tune_seeds: number of seeds that each trial trains on; their mean decides. By default only the first.
        patience: a fine-tuning ends after this many validations without a better one; its steps are then a cap.
        folds: cross-validation with this many parts of all items, each tested once.
        launcher: where to run: local, slurm, or in a settings file a mapping for submitit.
        plan: only list the runs, with an estimate of time, memory and disk from a short dry run on this machine, and
            the smallest difference that they can find.
        report: run nothing, only collect and report existing results.
    """
    given = {name: value for name, value in locals().items() if name not in ("plan", "report", "settings")}
    plan, report = truth(plan, "plan"), truth(report, "report")
    asked = read_settings(settings, **given)
    # torch and matplotlib take seconds, which a wrong option should not cost
    from .estimate import equal_time, estimate
    from .report import write_report

    if not report:
        take_models(asked)
    with hold_folder(asked):
        planned = make_plan(asked, try_items=not report)
    for line in planned.other_steps():
        say(line)
    if plan:
        print(estimate(planned))
        return
    extra, over = None, set[str]()

    def run_stages(*stages: str) -> None:
        if not report:
            runs = tuple(run for run in planned.runs if run.stage in {*stages} - over)
            execute(replace(planned, runs=runs), say, planned)
        over.update(stages)

    if asked.equal == "time":
        run_stages("pretrain")
        with hold_folder(asked):
            extra = equal_time(planned, may_run=not report)
        planned = make_plan(asked, extra)
    if asked.tune:
        run_stages("pretrain", "tune")
        planned = make_plan(asked, extra, chosen=choose_trials(planned))
    run_stages(*(stage for stage in STAGES if stage != "infer"))
    if asked.examples:
        planned = make_plan(asked, extra, chosen=choose_trials(planned), examples=choose_examples(planned))
        with hold_folder(asked):
            write_example_list(planned)
        run_stages("infer")
    with hold_folder(asked):
        collect(planned, None if report else "python -m common.compare " + shlex.join(sys.argv[1:]))
        path = write_report(asked.output)
    print(f"\n{_outcome(path.read_text(encoding='utf-8'))}\n\n{path}\n{path.with_suffix('.html')}")


def _outcome(report: str) -> str:
    """The first section of a report in Markdown, without its picture and the caption."""
    paragraphs = report.split("## ")[1].strip().split("\n\n")
    return "\n\n".join(part for part in paragraphs if not part.startswith("![") and not re.match(r"\*[^*]", part))


def say(text: str) -> None:
    print(text, flush=True)


def check_options(words: Sequence[str]) -> None:
    """Refuse an option that ``compare`` lacks; fire alone would call the function first and complain afterwards.

    Raises:
        CompareError: with a suggestion, or how to set an id of the bundle's config.
    """
    options = list(inspect.signature(compare).parameters)
    flags, others = split_arguments(words)
    given = {name: value for name, value, _ in flags}
    if given.keys() & {"help", "h"}:
        return
    if others:
        raise CompareError(
            f"There is no option for {others[0]!r}: write a list without spaces (--seeds 0,1,2), and put a value that "
            "has spaces in quotes."
        )
    names = [name for name, _, _ in flags if name.endswith("override")]  # of others the last counts, as is usual
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise CompareError(f"--{twice} is given twice: give it once, with all values (--{twice} 'id=value id=value').")
    for name, value, typed in flags:
        if name in options or (len(name) == 1 and any(option.startswith(name) for option in options)):
            continue
        ids = _config_ids(given)
        head, *rest = re.split("(?=#|::)", name, maxsplit=1)
        if head in ids:
            if name in OWN:
                raise CompareError(f"{typed} is not an option; the comparison sets this id itself: use {OWN[name]}.")
            text = f"--{ids[head]} {shlex.quote(f'{name}={value}')}"
            raise CompareError(f"{typed} is not an option but an id of the bundle's config: use `{text}`.")
        renamed = renamed_sentence(typed, head, ids)
        if renamed:
            raise CompareError(renamed)
        near = difflib.get_close_matches(head, [*options, *ids], n=1, cutoff=0.7)
        if near and near[0] in options:
            raise CompareError(f"There is no option {typed}; did you mean --{near[0]}?")
        if near:
            text = f"--{ids[near[0]]} {shlex.quote(''.join([near[0], *rest, '=', value]))}"
            raise CompareError(f"There is no option {typed}; did you mean `{text}`?")
        raise CompareError(f"There is no option {typed}; `python -m common.compare --help` lists them.")


def _config_ids(given: Mapping[str, str]) -> dict[str, str]:
    """Top-level ids of the named bundle, each with the option that sets it; none if it is unknown."""
    try:
        bundle = read_settings(
            given.get("settings"), **{name: given.get(name) for name in ("bundle", "arms", "output")}
        ).bundle
        files = {option: bundle / "configs" / f"{stage}.json" for option, stage in _STAGE_OF.items()}
        return {name: option for option, file in files.items() if file.is_file() for name in read_json(file)}
    except (CompareError, OSError, ValueError):
        return {}


_STAGE_OF = {"pretrain_override": "pretrain", "override": "train"}  # where both have an id, the last is meant


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else ():
        signal.signal(number, signal.default_int_handler)  # ends the children too, as Ctrl-C does
    try:
        check_options(sys.argv[1:])
        fire.Fire(compare, name="python -m common.compare")
    except (CompareError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; call it again to resume.")


if __name__ == "__main__":
    main()
