"""In every bundle, weights that have seen scans that they are judged by are refused, or the run says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.checkpoint_file import read_checkpoint
from common.data.seen import SeenScans
from common.weights.encoder_file import read_encoder, save_encoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("section", ["validation", "test"])
def test_fine_tuning_refuses_an_encoder_that_saw_what_is_held_out(
    bundle, section, small_files, parsed, cohort, tmp_path
):
    files = ["train.json", *small_files[bundle]]
    train = parsed(bundle, files, cohort)
    data = train.get_parsed_content("data")
    path = tmp_path / "encoder.safetensors"
    (step,) = [n for n, x in enumerate(train["initialize"]) if "load_encoder" in str(x)]

    def load(seen, **values):
        save_encoder(train.get_parsed_content("encoder"), path, {"scans": SeenScans(seen, ("training",)).record()})
        parser = parsed(bundle, files, cohort, pretrained_encoder=str(path), **values)
        return parser.get_parsed_content(f"initialize#{step}")

    assert load(data) is not None
    seen = {"training": [*data["training"], data[section][0]]}
    with pytest.raises(RuntimeError) as error:
        load(seen)
    image = data[section][0]["image"]
    image = image if isinstance(image, str) else image[0]
    assert f"was trained on {image} of the {section} list" in str(error.value.__cause__)
    assert load(seen, transductive=True) is not None


def test_evaluation_refuses_a_model_of_the_scans_that_it_is_judged_by(bundle, small_files, parsed, cohort, tmp_path):
    first, *rest = small_files[bundle]
    files = ["train.json", first, "evaluate.json", *rest]

    def loader(**values):
        parser = parsed(bundle, files, cohort, output_dir=str(tmp_path), **values)
        return parser.get_parsed_content("validate#handlers#0")

    one = loader()
    record = {"scans": SeenScans(one.scans.lists, ("training", "validation")).record()}
    for judged_by, verb in (("test", None), ("validation", None), ("training", "was trained on")):
        one = loader(evaluated_list=judged_by)
        if verb is None:
            one.look_for_scans(record, one.scans)
        else:
            with pytest.raises(ValueError, match=rf"model.pt {verb} .* of the {judged_by} list"):
                one.look_for_scans(record, one.scans)
    note = tmp_path / "eval/transductive.txt"
    assert not note.exists()
    one = loader(evaluated_list="training", transductive=True)
    one.look_for_scans(record, one.scans)
    assert note.read_text().startswith("Transductive: ") and "of the training list." in note.read_text()
    one = loader(transductive=True)
    one.look_for_scans(record, one.scans)
    assert not note.exists()


def test_savers_record_the_scans(bundle):
    configs = ROOT / "bundles" / bundle / "configs"
    for name, target in (("pretrain.json", "EncoderSaver"), ("train.json", "BestModelSaver")):
        config = json.loads((configs / name).read_text())
        handlers = [*config["train"]["handlers"], *config.get("validate", {}).get("handlers", [])]
        (saver,) = [x for x in handlers if x["_target_"] == f"common.handlers.{target}"]
        lists = {name: f"@{part}#dataset#data" for name, part in (("training", "train"), ("validation", "validate"))}
        recorded = config["scans"] if saver["scans"] == "@scans" else saver["scans"]
        assert recorded == lists  # what the data sets read: MONAI Label gives them studies of its own
        if "pretrained_encoder" in config:
            assert saver["encoder" if name == "train.json" else "earlier"] == "@pretrained_encoder"


def test_the_record_goes_from_pretraining_to_evaluation(run_bundle, tiny, cohort, tmp_path):
    """A test scan that pre-training saw under another name: refused in fine-tuning, and noted beside the scores."""
    test = cohort / json.loads((cohort / "structures4.json").read_text())["test"][0]["image"]
    content = json.loads((cohort / "unlabelled.json").read_text())
    content["training"].append({"image": str(tmp_path / "patient.nii.gz")})
    for section in ("training", "validation"):
        for item in content[section][:-1] if section == "training" else content[section]:
            item["image"] = str(cohort / item["image"])
    (tmp_path / "patient.nii.gz").write_bytes(test.read_bytes())
    (tmp_path / "pool.json").write_text(json.dumps(content))
    folder = tmp_path / "out"
    run_bundle(
        "pretrain.json", tiny["unetr"], output_dir=str(folder), datalist=str(tmp_path / "pool.json"), max_epochs=1
    )
    scans = read_encoder(folder / "encoder.safetensors")[1]["scans"]
    assert len(scans["training"]["files"]) == len(content["training"])
    given = {"pretrained_encoder": str(folder / "encoder.safetensors"), "output_dir": str(folder), "max_epochs": 1}
    with pytest.raises(RuntimeError) as error:
        run_bundle("train.json", tiny["unetr"], **given)
    assert test.name in str(error.value.__cause__)
    run_bundle("train.json", tiny["unetr"], **given, transductive=True)
    record = read_checkpoint(folder / "model.pt")[1]["scans"]
    assert record["pretraining"]["files"] == scans["training"]["files"] and record["training"]["files"]
    run_bundle("train.json", "evaluate.json", tiny["unetr"], output_dir=str(folder), transductive=True)
    assert f"was pre-trained on {test} of the test list" in (folder / "eval/transductive.txt").read_text()
