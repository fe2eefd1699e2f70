"""The report from made-up tables with known numbers."""

from __future__ import annotations

import csv
import json
import re
import statistics

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure

from common.compare import collect
from common.compare.figures import differences, learning_curves
from common.compare.report import write_report
from common.compare.tables import Tables

ARMS = {"scratch": "from scratch", "mae": "pre-trained by <pretrain.json>"}


def write(folder, name, columns, rows):
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """Two arms, two numbers of labels, three seeds, ten subjects; mae is better with one label only."""
    draw = np.random.default_rng(0)
    subjects = []
    for labels in (1, 5):
        for seed in (0, 1, 2):
            base = 0.5 + 0.05 * draw.normal(size=10)
            for arm in ARMS:
                gain = 0.1 if (arm, labels) == ("mae", 1) else 0.0
                scores = base + gain + (0.02 * draw.normal(size=10) if arm == "mae" else 0)
                for number, score in enumerate(scores):
                    for structure, value in (("mean", score), ("white matter", score / 2), ("CSF", score / 3)):
                        subjects.append(
                            {
                                "arm": arm,
                                "fraction": labels / 10,
                                "labels": labels,
                                "seed": seed,
                                "metric": "val_mean_dice",
                                "structure": structure,
                                "subject": f"s{number}",
                                "value": value,
                            }
                        )
    write(tmp_path, "subjects", collect.SUBJECTS, subjects)
    curves = [
        {
            "arm": arm,
            "fraction": f,
            "seed": 0,
            "stage": "train",
            "tag": tag,
            "step": 4 * e,
            "seconds": e,
            "value": 0.1 * e,
        }
        for arm in ARMS
        for f in (0.1, 0.5)
        for tag in ("val_mean_dice", "train_loss")
        for e in range(1, 5)
    ]
    write(tmp_path, "curves", collect.CURVES, curves)
    costs = [
        {"arm": arm, "stage": "train", "fraction": 0.1, "seed": s, "status": "done", "seconds": 50, "steps": 16}
        | {"peak_memory_mb": 2048, "folder": "x", "reason": ""}
        for arm in ARMS
        for s in (0, 1, 2)
    ]
    costs.append({"arm": "mae", "stage": "pretrain", "status": "done", "seconds": 600, "peak_memory_mb": 1, "steps": 9})
    write(tmp_path, "costs", collect.COSTS, costs)
    about = {
        "bundle": "pretrain_once",
        "task": "structures4",
        "arms": {name: {"description": text, "one_pretraining": name == "mae"} for name, text in ARMS.items()},
        "baseline": "scratch",
        "fractions": [0.1, 0.5],
        "seeds": [0, 1, 2],
        "equal": "steps",
        "steps": 16,
        "metrics": {"val_mean_dice": "higher"},
        "margin": 0.01,
        "labelled": {"1": [1, 4], "5": [5, 4]},
        "command": "python -m common.compare --arms 'a<b'",
        "packages": [{"torch": "2.13.0"}],
        "machine": ["a machine"],
    }
    (tmp_path / "comparison.json").write_text(json.dumps(about))
    return tmp_path


@pytest.fixture
def drawn():
    """For tests of what is in the pictures, or of what only drawing them shows."""


@pytest.fixture(autouse=True)
def text_only(request, monkeypatch):
    """All else reads the text: the pictures are composed and not drawn, which takes most of a report's time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda self, file, **given: file.write(b"a picture"))


def read_subjects(folder):
    with (folder / "subjects.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["structure"] == "mean"]


def test_numbers_are_those_of_the_subjects(folder):
    text = write_report(folder).read_text()
    means = {}
    for row in read_subjects(folder):
        means.setdefault((row["arm"], row["labels"], row["seed"]), []).append(float(row["value"]))
    for labels in ("1", "5"):
        cells = []
        for arm in ARMS:
            seeds = [statistics.mean(values) for key, values in means.items() if key[:2] == (arm, labels)]
            cells.append(f"{statistics.mean(seeds):.3f} ± {statistics.stdev(seeds):.3f}")
        assert f"| {labels} training + 4 validation labels | {' | '.join(cells)} |" in text


def test_outcome_says_what_was_found_and_what_not(folder):
    text = write_report(folder).read_text()
    lines = text.split("## Outcome")[1].split("##")[0].strip().splitlines()
    assert lines[0].startswith("- With 1 training + 4 validation labels, mae against scratch: **better** (mean Dice 0.")
    assert lines[1].startswith("- With 5 training + 4 validation labels, mae against scratch: **undecided** (")
    assert " seeds would decide it" in lines[1]
    assert "Holm's procedure over 2 comparisons limits false verdicts" in text
    assert '"Equivalent" means that the difference is shown to be below 0.01.' in text
    assert "3 seeds, 10 subjects" in lines[0]
    assert "All seeds of mae start from one pre-training" in text
    assert "| 10 min |" in text and "| 50 s (16 steps) | 3 |" in text and "2.0 GiB" in text


def test_subjects_stand_beside_scans_where_they_differ(folder):
    about = json.loads((folder / "comparison.json").read_text())
    for counts, words in (([2, 3], "2 to 3 subjects"), ([1], "1 subject")):
        about["training_subjects"] = {"5": counts}
        (folder / "comparison.json").write_text(json.dumps(about))
        text = write_report(folder).read_text()
        assert f"With 5 training ({words}) + 4 validation labels, mae" in text
        assert "With 1 training + 4 validation labels, mae" in text
        assert f"| 5 training ({words}) + 4 validation labels |" in text


def test_an_arm_is_compared_with_the_one_it_names_too(folder):
    before = write_report(folder).read_text()
    about = json.loads((folder / "comparison.json").read_text())
    about["arms"]["scratch"]["against"] = "mae"
    about["arms"]["mae"]["against"] = "not run yet"
    (folder / "comparison.json").write_text(json.dumps(about))
    after = write_report(folder).read_text()
    assert (
        "With 1 training + 4 validation labels, scratch against mae: **worse**" in after
        and "scratch against mae" not in before
    )
    rows = {line.split("|")[2].strip(): line.split("|")[3].strip() for line in after.splitlines() if line[:4] == "| 1 "}
    assert float(rows["scratch - mae"]) == -float(rows["mae - scratch"]) < 0
    assert "not run yet" not in after


def test_a_reference_shows_the_level_and_is_not_judged(folder):
    rows = list(csv.DictReader((folder / "subjects.csv").open()))
    own = [{**row, "arm": "nnU-Net", "value": 0.875} for row in rows if row["arm"] == "mae" and row["seed"] == "0"]
    write(folder, "subjects", collect.SUBJECTS, [*rows, *own])
    about = json.loads((folder / "comparison.json").read_text())
    about["arms"]["nnU-Net"] = {"description": "reference, scores of x.csv", "reference": True}
    (folder / "comparison.json").write_text(json.dumps(about))
    text = write_report(folder).read_text()
    assert "| labels | scratch | mae | nnU-Net |" in text and "| 0.875 |" in text
    assert "nnU-Net against" not in text and "- nnU-Net" not in text.split("## How it was made")[0]
    assert "over 2 comparisons" in text
    about["arms"]["nnU-Net"]["against"] = "scratch"
    (folder / "comparison.json").write_text(json.dumps(about))
    text = write_report(folder).read_text()
    assert "nnU-Net against scratch: **" in text and "another network, so not the start alone" in text
    assert "mae against nnU-Net" not in text


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_missing_score_is_the_best_one_but_in_a_table_from_elsewhere(folder, elsewhere):
    """In nine of ten scans the structure is in neither mask; mae invents it, scratch does not (an empty score)."""
    rows = list(csv.DictReader((folder / "subjects.csv").open()))
    for row in rows:
        if row["subject"] != "s0":
            row["value"] = "nan" if row["arm"] == "scratch" else "0.0"
    write(folder, "subjects", collect.SUBJECTS, rows)
    about = json.loads((folder / "comparison.json").read_text())
    about["arms"]["scratch"]["scores"] = elsewhere
    (folder / "comparison.json").write_text(json.dumps(about))
    found = Tables(folder).difference(("mae", "scratch"), 1)
    assert found.parts.subjects == (1 if elsewhere else 10)
    assert (found.parts.mean < -0.8) is not elsewhere


def test_convergence_is_the_slope_of_the_last_third(folder):
    assert "not converged" not in write_report(folder).read_text()  # four validations tell nothing
    curves = []
    for arm, slope in (("scratch", 0.005), ("mae", 0.001)):
        for fraction in (0.1, 0.5):
            for seed in (0, 1):
                values = [0.1 * e if e <= 6 else 0.6 + (slope + 0.002 * seed) * (e - 6) for e in range(1, 10)]
                curves += [
                    {"arm": arm, "fraction": fraction, "seed": seed, "stage": "train", "tag": "val_mean_dice"}
                    | {"step": 10 * number, "seconds": number, "value": value}
                    for number, value in enumerate(values)
                ]
    write(folder, "curves", collect.CURVES, curves)
    text = write_report(folder).read_text()
    # over the two intervals of the last third
    assert "| 1 training + 4 validation labels | +0.012, not converged | +0.004, converged |" in text
    about = json.loads((folder / "comparison.json").read_text()) | {"metrics": {"val_mean_dice": "lower"}}
    (folder / "comparison.json").write_text(json.dumps(about))
    assert "| -0.012, converged | -0.004, converged |" in write_report(folder).read_text()


def test_html_holds_everything_and_nothing_from_elsewhere(folder, drawn):
    write_report(folder)
    text = (folder / "report.html").read_text()
    assert "http" not in text and "<script" not in text
    assert text.count("data:image/png;base64,") == 4 == len(list((folder / "figures").glob("*.png")))
    assert "pre-trained by &lt;pretrain.json&gt;" in text and "a&lt;b" in text and "<pretrain.json>" not in text
    markdown = (folder / "report.md").read_text()
    for number in re.findall(r"\d\.\d{3}", markdown):
        assert number in text


def test_failures_have_their_reason_and_interrupted_runs_are_named(folder):
    with (folder / "costs.csv").open("a") as file:
        file.write("mae,train,0.5,2,failed,3,,16,runs/x,the mask of x.nii.gz has a label 9 (see train.log)\n")
        file.write("mae,evaluate,0.5,2,missing,,,,runs/x,\n")
    text = write_report(folder).read_text()
    section = text.split("## Unfinished runs")[1].split("##")[0]
    assert "train, mae, fraction 0.5, seed 2: failed. the mask of x.nii.gz has a label 9 (see train.log)" in section
    assert "evaluate, mae, fraction 0.5, seed 2: missing. not started yet" in section


def test_validation_from_the_labels_is_said_first(folder):
    about = json.loads((folder / "comparison.json").read_text()) | {"validation_from_labels": True}
    (folder / "comparison.json").write_text(json.dumps(about))
    assert "## Outcome\n\n- Validation scans are part of the labels; pre-training" in write_report(folder).read_text()


def test_each_table_is_read_once(folder, monkeypatch):
    read = []
    reader = csv.DictReader
    monkeypatch.setattr("common.compare.tables.csv.DictReader", lambda file: read.append(file.name) or reader(file))
    write_report(folder)
    assert read and len(read) == len(set(read))


def test_an_arm_that_lacks_a_seed_has_no_verdict(folder):
    rows = list(csv.DictReader((folder / "subjects.csv").open()))
    kept = [row for row in rows if (row["arm"], row["labels"], row["seed"]) != ("mae", "1", "2")]
    write(folder, "subjects", collect.SUBJECTS, kept)
    lines = write_report(folder).read_text().split("## Outcome")[1].strip().splitlines()
    assert "mae against scratch: **incomplete** (mae lacks seed 2, " in lines[0] and "2 seeds" in lines[0]
    assert "**undecided**" in lines[1]


def test_arms_that_have_learnt_nothing_have_no_verdict(folder):
    """They may be as close as any two good nets."""
    rows = list(csv.DictReader((folder / "subjects.csv").open()))
    low = [{**row, "value": str(0.04 * float(row["value"]))} if row["labels"] == "1" else row for row in rows]
    write(folder, "subjects", collect.SUBJECTS, low)
    text = write_report(folder).read_text()
    lines = text.split("## Outcome")[1].strip().splitlines()
    assert "mae against scratch: **untrained** (" in lines[0] and "untrained" not in lines[1]
    assert "both arms have a mean Dice below 0.05" in text
    one_learnt = [{**row, "value": "0.5"} if (row["arm"], row["labels"]) == ("mae", "1") else row for row in low]
    write(folder, "subjects", collect.SUBJECTS, one_learnt)
    assert "mae against scratch: **better** (" in write_report(folder).read_text()


def test_only_the_main_metric_has_verdicts(folder):
    rows = list(csv.DictReader((folder / "subjects.csv").open()))
    write(folder, "subjects", collect.SUBJECTS, [*rows, *({**row, "metric": "val_hd95"} for row in rows)])
    about = json.loads((folder / "comparison.json").read_text())
    about["metrics"]["val_hd95"] = "lower"
    (folder / "comparison.json").write_text(json.dumps(about))
    text = write_report(folder).read_text()
    heads = [line for line in text.splitlines() if line.startswith("| labels | difference")]
    assert [head.endswith("| verdict |") for head in heads] == [True, False]
    assert text.count("better |") == 3  # two heads, and one verdict
    assert "Other metrics and single structures are described but not judged." in text


def test_a_pretraining_that_may_have_seen_test_scans_is_said_first(folder):
    about = json.loads((folder / "comparison.json").read_text())
    assert "Transductive" not in write_report(folder).read_text()
    (folder / "comparison.json").write_text(json.dumps(about | {"transductive": True}))
    assert "## Outcome\n\n- Transductive: pre-training may have seen" in write_report(folder).read_text()


def test_test_scans_that_chose_the_weights_are_said_first(folder):
    about = json.loads((folder / "comparison.json").read_text())
    assert "served as validation" not in write_report(folder).read_text()
    (folder / "comparison.json").write_text(json.dumps(about | {"validated_on_test": True}))
    text = write_report(folder).read_text()
    assert "## Outcome\n\n- The test scans also served as validation scans, which choose the weights" in text
    assert "The validation scans are the test scans." in (folder / "paper/tables.md").read_text()


def test_results_of_other_settings_are_said_first(folder):
    about = json.loads((folder / "comparison.json").read_text())
    assert "than the present ones" not in write_report(folder).read_text()
    stale = ["train, mae, 3 labels, seed 0", "evaluate, mae, 3 labels, seed 0"]
    (folder / "comparison.json").write_text(json.dumps(about | {"stale": stale}))
    start = "## Outcome\n\n- Of other settings, config files or data than the present ones: "
    assert f"{start}train, mae, 3 labels, seed 0 and 1 more." in write_report(folder).read_text()


def test_what_an_encoder_file_cost_is_not_known(folder):
    about = json.loads((folder / "comparison.json").read_text())
    about["arms"]["mae"]["made_elsewhere"] = True
    (folder / "comparison.json").write_text(json.dumps(about))
    text = write_report(folder).read_text()
    assert "| mae | unknown (an encoder file) |" in text and "| scratch | - |" in text
    assert "unknown for mae" in learning_curves(Tables(folder)).axes[1].get_xlabel()


def test_memory_of_gpus_has_a_column_where_there_was_one(folder):
    assert "| of GPUs |" not in write_report(folder).read_text()
    rows = list(csv.DictReader((folder / "costs.csv").open()))
    write(folder, "costs", collect.COSTS, [{**row, "peak_gpu_mb": 1536} for row in rows if row["arm"] == "scratch"])
    text = write_report(folder).read_text()
    assert "| peak memory | of GPUs |" in text and "| 2.0 GiB | 1.5 GiB |" in text


def test_hours_of_devices_are_shown_where_they_are_not_those_of_the_clock(folder):
    """Four GPUs for half an hour are two GPU hours; each number of labels has its own, as in the paper's table III."""
    rows = list(csv.DictReader((folder / "costs.csv").open()))
    own = {"processes": 1, "device": "CPU, 2 cores, x86_64, Linux", "device_hours": 0.1, "epochs": 4}
    write(folder, "costs", collect.COSTS, [{**row, **own} for row in rows])
    assert "hours of one pre-training" not in write_report(folder).read_text()  # a single CPU: the clock says it all

    gpus = {"processes": 4, "device": "NVIDIA H200", "epochs": 4}
    mine = [{**row, **gpus, "device_hours": 5.0 if row["stage"] == "pretrain" else 2.0} for row in rows]
    longer = [
        {**row, "fraction": 0.5, "device_hours": 3.0 + int(row["seed"]), "epochs": 7 + int(row["seed"])}
        for row in mine
        if row["stage"] == "train" and row["arm"] == "mae"
    ]
    copied = {**longer[0], "taken": "yes"}
    write(folder, "costs", collect.COSTS, [*mine, copied, *longer[1:]])
    text = write_report(folder).read_text()
    assert "| all | all, GPU hours | peak memory |" in text
    line = next(line for line in text.splitlines() if line.startswith("| mae | 10 min |"))
    assert "| 20 |" in line  # 5 of the pre-training, 3 times 2, and 4 + 5 that no trial had done
    assert "| arm | a pre-training | a fine-tuning: 1 training + 4 validation labels |" in text
    assert "| scratch | - | 2 (epoch 4) | - |" in text and "| mae | 5 | 2 (epoch 4) | 4 (epoch 7 to 9) |" in text
    assert "On NVIDIA H200." in text

    shared = [{**row, "processes": 2, "device": "CPU", "device_hours": 0.2, "epochs": 4} for row in rows]
    write(folder, "costs", collect.COSTS, shared)
    assert "all, CPU-process hours" in write_report(folder).read_text()


def test_one_seed_is_called_what_it_is(folder):
    rows = [row for row in csv.DictReader((folder / "subjects.csv").open()) if row["seed"] == "0"]
    write(folder, "subjects", collect.SUBJECTS, rows)
    about = json.loads((folder / "comparison.json").read_text()) | {"seeds": [0]}
    (folder / "comparison.json").write_text(json.dumps(about))
    text = write_report(folder).read_text()
    assert "**better between these two models**" in text and "the spread of trainings is unknown" in text
    assert "Each 95 % interval covers the spread of subjects" in text
    close = [{**row, "value": str(0.5 + 1e-4 * number)} for number, row in enumerate(rows)]
    write(folder, "subjects", collect.SUBJECTS, close)
    assert "**equivalent within 0.01 between these two models**" in write_report(folder).read_text()


def keep_subjects(folder, count, seeds):
    rows = [row for row in csv.DictReader((folder / "subjects.csv").open()) if int(row["seed"]) < seeds]
    write(folder, "subjects", collect.SUBJECTS, [row for row in rows if int(row["subject"][1:]) < count])
    about = json.loads((folder / "comparison.json").read_text()) | {"seeds": list(range(seeds))}
    (folder / "comparison.json").write_text(json.dumps(about))


def test_one_score_of_one_seed_is_undecided(folder):
    keep_subjects(folder, 1, 1)
    text = write_report(folder).read_text()
    assert "**undecided** (one seed says nothing about other trainings, mean Dice" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"baseline": None}, "No arm starts from scratch"),
        ({"arms": {"scratch": {"description": ""}}}, "Only one arm was compared"),
        ({}, "No evaluation was completed"),
    ],
)
def test_a_report_is_written_when_there_is_nothing_to_compare(folder, drawn, change, sentence):
    about = json.loads((folder / "comparison.json").read_text()) | change
    (folder / "comparison.json").write_text(json.dumps(about))
    if not change:
        for name in ("subjects", "curves", "costs"):
            header = (folder / f"{name}.csv").read_text().splitlines()[0]
            (folder / f"{name}.csv").write_text(header + "\n")
    assert sentence in write_report(folder).read_text()


def test_examples_and_probes(folder, drawn):
    image = np.zeros((12, 10, 8), np.float32)
    image[2:9, 3:8, 2:7] = 100
    mask = (image > 0).astype(np.uint8)
    ras = nib.Nifti1Image(image, np.eye(4))
    nib.save(ras, folder / "image.nii.gz")
    turned = nib.Nifti1Image(mask[::-1, ::-1], np.diag([-1, -1, 1, 1]))  # the same place, stored in LPS
    nib.save(turned, folder / "mask.nii.gz")
    entry = {"fraction": 0.1, "seed": 0, "subject": "s0", "image": str(folder / "image.nii.gz")}
    entries = [
        {**entry, "arm": "scratch", "label": None, "prediction": str(folder / "mask.nii.gz")},
        {**entry, "arm": "mae", "label": None, "prediction": str(folder / "mask.nii.gz")},
    ]
    (folder / "examples.json").write_text(json.dumps(entries))
    rows = [
        {"arm": arm, "fraction": 0.1, "labels": 1, "seed": s, "probe": "linear", "target": "age", "metric": "mae"}
        | {"structure": "mean", "value": 5.0 + s + (arm == "mae")}
        for arm in ARMS
        for s in (0, 1)
    ]
    write(folder, "probes", collect.PROBES, rows)
    text = write_report(folder).read_text()
    assert (folder / "figures/examples.png").stat().st_size > 1000
    assert "| age | mae | mean | linear | 1 | 5.500 | 6.500 |" in text


def test_names_are_neither_formulas_nor_html(folder, drawn):
    """A formula that has no end stopped the comparison after all of its runs."""
    names = {"mae": "<script>a</script>$\\frac{$", "CSF": "$\\frac{$ & <b>"}
    for name in ("subjects", "curves", "costs"):
        path = folder / f"{name}.csv"
        text = path.read_text()
        for old, new in names.items():
            text = text.replace(f"{old},", f"{new},")
        path.write_text(text)
    about = json.loads((folder / "comparison.json").read_text())
    about["arms"][names["mae"]] = about["arms"].pop("mae")
    about["metrics"] = {"val_mean_dice": "higher"}
    (folder / "comparison.json").write_text(json.dumps(about))
    text = write_report(folder).read_text()
    prose = text.partition("```")[0]
    assert "<" not in prose and "| &lt;script>a&lt;/script>$\\frac{$ |" in text
    assert "$\\frac{$ &amp; &lt;b>" in text
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_every_difference_stands_in_the_forest_plot(folder):
    axis = differences(Tables(folder)).axes[0]
    tables = Tables(folder)
    for labels, row in ((1, 0), (5, 1)):
        found = tables.difference(("mae", "scratch"), labels)
        line = axis.lines[1 + 2 * row]
        assert tuple(line.get_xdata()) == pytest.approx(found.interval) and list(line.get_ydata()) == [row, row]
        assert axis.lines[2 + 2 * row].get_xdata()[0] == pytest.approx(found.parts.mean)
    assert [text.get_text() for text in axis.texts] == ["better", "undecided"]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "mae - scratch, 1 label",
        "mae - scratch, 5 labels",
    ]


def test_tables_for_a_paper_have_the_numbers_and_the_protocol(folder):
    text = write_report(folder).read_text()
    latex, markdown = ((folder / "paper" / name).read_text() for name in ("tables.tex", "tables.md"))
    rows = "\n".join(line for line in text.splitlines() if re.match(r"\| [15] training", line))
    for number in re.findall(r"(?<=\| )\d\.\d{3} ± \d\.\d{3}", rows):
        assert number in markdown and number.replace("±", r"$\pm$") in latex
    assert "3 seeds, 10 test subjects." in latex and "Holm's procedure, and equivalence within 0.01" in latex
    assert r"pre-trained by $<$pretrain.json$>$" in latex and r"95 \% intervals" in latex
    assert latex.count(r"\begin{tabular}") == 2 == latex.count(r"\end{table}") and r"pretrain\_once" in latex
    assert re.search(r"\+0\.\d{3} & \+0\.\d{3} to \+0\.\d{3} & better", latex)


def test_tables_for_a_paper_have_the_cells_of_the_report(folder):
    report = write_report(folder).read_text().splitlines()
    paper = (folder / "paper" / "tables.md").read_text().splitlines()
    tables = [[line for line in lines if line.startswith("| ")] for lines in (report, paper)]
    (of_report, differences), (of_paper, briefly) = ((rows[:4], rows[4:8]) for rows in tables)
    assert of_paper == of_report and of_report[0] == "| labels | scratch | mae |"
    for long, short in zip(differences, briefly, strict=True):
        assert long.split(" | ")[:4] == short.split(" | ")[:4]


def test_names_that_are_programs_are_shown_and_do_nothing(folder, drawn):
    """Subjects, structures and reasons come from files, and may be anything."""
    name = "<script>alert('$x$ & |')</script>"
    rows = list(csv.DictReader((folder / "subjects.csv").open()))
    for row in rows:
        row["structure"] = row["structure"].replace("CSF", name)
        row["subject"] = row["subject"].replace("s1", name)
    write(folder, "subjects", collect.SUBJECTS, rows)
    about = json.loads((folder / "comparison.json").read_text())
    about["arms"]["mae"]["description"] = about["task"] = about["command"] = name
    (folder / "comparison.json").write_text(json.dumps(about))
    with (folder / "costs.csv").open("a") as file:
        csv.writer(file).writerow(["mae", "train", 0.5, 2, "failed", 3, "", 16, "x", name])
    report = write_report(folder)
    html = report.with_suffix(".html").read_text()
    assert html.count("&lt;script&gt;") >= 5 and "<script" not in html
    assert "<script" not in report.read_text().replace(f"```\n{name}\n```", "")
    assert "<script" not in (folder / "paper/tables.md").read_text()
    assert r"$<$script$>$alert('\$x\$ \& |')" in (folder / "paper/tables.tex").read_text()


def test_runs_of_several_states_of_the_code_are_said_first(folder):
    about = json.loads((folder / "comparison.json").read_text())
    for states, said in ((["a", "a"], False), (["a", "b"], True)):
        about["packages"] = [{"torch": "2.13.0", "common": state} for state in states]
        (folder / "comparison.json").write_text(json.dumps(about))
        found = "## Outcome\n\n- The runs were made with several versions" in write_report(folder).read_text()
        assert found is said
