from __future__ import annotations

import json
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.networks.nets import SegResNetDS

from common.checkpoint_file import save_checkpoint
from common.compare.settings import CompareError, read_settings
from common.networks.foreign import Source
from common.networks.unet_encoders import plan_of_nnssl
from common.pack import pack
from common.preparation import preparation_record
from common.weights import convert
from common.weights.encoder_file import write_state
from common.weights.prepare import prepare, prepared_ids
from common.weights.published import find_published, intensity_steps, published_weights

BUNDLES = Path(__file__).parents[2] / "bundles"
RULE = [
    {"transform": "ScaleIntensityRanged", "a_max": 250, "a_min": -175, "b_max": 2.0, "b_min": 0.5, "clip": True},
]
MADE = {"spacing": [2.0, 1.5, 3.0], "orientation": "SRA", "intensity": RULE}
WITH_RULE = ["med3d", "medical_transformer", "simtrot", "ssl3d"]


@pytest.fixture
def encoder(tmp_path):
    def make(**record):
        write_state({"weight": torch.zeros(1)}, tmp_path / "encoder.safetensors", record)
        return tmp_path / "encoder.safetensors"

    return make


def started(bundle, *files, **ids):
    """The parser of a workflow whose first step is done, and no other."""
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLES / bundle / "configs" / name) for name in files],
        meta_file=None,
        logging_file=False,
        workflow_type="infer" if "inference.json" in files else "train",
        init_id="first",
        first=[{"_target_": "common.checks.check_overrides"}],
        **ids,
    )
    workflow.initialize()
    return workflow.parser


def record_of(parser):
    name = "preprocessing" if "preprocessing" in parser else "validate#preprocessing"
    record = preparation_record(parser.get_parsed_content(name))
    return {name: record[name] for name in MADE}


@pytest.mark.parametrize("bundle", [*WITH_RULE, "pretrain_once", "transseg"])
def test_one_flag_prepares_images_as_those_of_the_encoder(encoder, tmp_path, bundle, caplog):
    made = {name: value for name, value in MADE.items() if bundle != "pretrain_once" or name != "intensity"}
    made = {name: value for name, value in made.items() if bundle != "transseg" or name != "spacing"}
    file = encoder(preparation=MADE)
    with caplog.at_level("INFO", logger="common"):
        trained = record_of(started(bundle, "train.json", prepare_as="encoder", pretrained_encoder=str(file)))
    assert {name: trained[name] for name in made} == made
    assert f"images are prepared as those of {file}" in caplog.text
    for name in MADE.keys() - made.keys():
        assert f"this config has no id {name}" in caplog.text
    # what reads the trained model has the same images by its record
    save_checkpoint({"weight": torch.zeros(1)}, tmp_path / "model.pt", {"preparation": trained})
    for files in (["train.json", "evaluate.json"], ["inference.json"]):
        parser = started(bundle, *files, prepare_as="model", model_path=str(tmp_path / "model.pt"))
        assert {name: record_of(parser)[name] for name in made} == made


@pytest.mark.parametrize("bundle", WITH_RULE)
def test_own_intensities_are_made_again(bundle):
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / bundle / "configs/train.json"))
    own = preparation_record(parser.get_parsed_content("intensity"))
    ids = prepared_ids("x", {"preparation": own | {"spacing": None, "orientation": None}})
    assert preparation_record(ConfigParser(config=ids).get_parsed_content("intensity"))["intensity"] == own["intensity"]


def test_several_and_no_transforms_of_intensities():
    two = [*RULE, {"transform": "ScaleIntensityd", "minv": 0.0, "maxv": 1.0, "factor": None, "channel_wise": False}]
    for steps in (two, []):
        ids = prepared_ids("x", {"preparation": {"intensity": steps}})
        again = preparation_record(ConfigParser(config=ids).get_parsed_content("intensity"))["intensity"]
        assert again == [dict(sorted(step.items(), key=lambda item: item[0] != "transform")) for step in steps]


@pytest.mark.parametrize(
    "step",
    [
        {"transform": "ScaleIntensityd", "minv": "$__import__('pathlib').Path('harm').touch()", "maxv": 1.0},
        {"transform": "ScaleIntensityd", "minv": "@harm", "maxv": 1.0},
        {"transform": "Lambdad", "func": "print"},
        {"transform": "Compose"},
        {"transform": "os.system"},
    ],
)
def test_a_rule_from_elsewhere_runs_no_code(step, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = {"preparation": {"spacing": [1.0, 1.0, 1.0], "intensity": [step]}}
    assert prepared_ids("x", record) == {"spacing": [1.0, 1.0, 1.0]}
    assert not Path("harm").exists()


@pytest.mark.parametrize(("name", "value"), [("spacing", ["$1", 1.0, 1.0]), ("orientation", "$print(1)")])
def test_a_malformed_record_is_refused(name, value):
    with pytest.raises(ValueError, match=f"malformed record .{name}"):
        prepared_ids("x", {"preparation": {name: value}})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--spacing", "[1,1,1]"), "--prepare_as encoder sets spacing, and so do you: leave out spacing"),
        (("--pretrained_encoder", "None"), "--prepare_as encoder needs --pretrained_encoder"),
        (("--prepare_as", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(encoder, monkeypatch, arguments, sentence):
    file = encoder(preparation=MADE)
    config = str(BUNDLES / "ssl3d/configs/train.json")
    words = {"--prepare_as": "encoder", "--pretrained_encoder": str(file)}
    words |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    main = Path(monai.bundle.__file__).with_name("__main__.py")
    flat = [word for pair in words.items() for word in pair]
    monkeypatch.setattr(sys, "argv", [str(main), "run", "--config_file", config, *flat])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    ids = {key.lstrip("-"): value for key, value in words.items()} | {"spacing": [1, 1, 1]}
    ids["pretrained_encoder"] = None if ids["pretrained_encoder"] == "None" else ids["pretrained_encoder"]
    with pytest.raises(SystemExit) as caught:
        started("ssl3d", "train.json", **ids)
    assert sentence in str(caught.value)


def test_the_overlay_does_what_the_flag_does(encoder, tmp_path):
    said = prepare(encoder(preparation=MADE), tmp_path / "ids.json")
    assert "spacing [2.0, 1.5, 3.0], orientation SRA, intensity ScaleIntensityRanged" in said
    for files in (["train.json"], ["train.json", "evaluate.json"], ["inference.json"]):
        assert record_of(started("ssl3d", *files, str(tmp_path / "ids.json"))) == MADE


def test_what_the_record_does_not_say_is_said(encoder, tmp_path):
    record = {"preparation": {"spacing": [1.0, 1.0, 1.0], "orientation": None}, "intensity": "z-scores of all"}
    said = prepare(encoder(**record), tmp_path / "ids.json")
    assert json.loads((tmp_path / "ids.json").read_text()) == {"spacing": [1.0, 1.0, 1.0]}
    assert "says nothing of one orientation" in said and "z-scores of all. They are not taken over" in said


@pytest.mark.parametrize("made", [None, {"spacing": {"one": [1.0, 1.0, 1.0], "two": [2.0, 2.0, 2.0]}}])
def test_a_record_without_any_is_refused(encoder, tmp_path, made):
    with pytest.raises(ValueError, match="does not say of which spacing, orientation or intensities all of its images"):
        prepare(encoder(preparation=made), tmp_path / "ids.json")
    assert not (tmp_path / "ids.json").exists()


def test_the_pack_has_them_written_out(tmp_path):
    save_checkpoint({"weight": torch.zeros(1)}, tmp_path / "model.pt", {"preparation": MADE})
    override = {"prepare_as": str(tmp_path / "model.pt")}
    folder, _ = pack(BUNDLES / "ssl3d", tmp_path / "out", override=override)
    inference = json.loads((folder / "configs/inference.json").read_text())
    assert [inference[name] for name in ("spacing", "orientation")] == [MADE["spacing"], "SRA"]
    assert inference["prepare_as"] is None
    rule = inference["intensity"]
    assert rule.pop("_target_") == RULE[0]["transform"] and rule.pop("keys") == "image"
    assert rule == {name: value for name, value in RULE[0].items() if name != "transform"}
    with pytest.raises(ValueError, match="sets spacing, and so do you"):
        pack(BUNDLES / "ssl3d", tmp_path / "out", override=override | {"spacing": [1.0, 1.0, 1.0]})


def test_a_comparison_has_them_in_the_arm_that_asks_or_in_all(encoder, tmp_path):
    file = str(encoder(preparation=MADE))
    arms = {"scratch": None, "theirs": {"encoder": file, "override": {"prepare_as": "encoder", "roi_size": [32] * 3}}}
    given = {"bundle": str(BUNDLES / "ssl3d"), "output": str(tmp_path / "out")}
    scratch, theirs = read_settings(arms=arms, **given).arms
    ids = prepared_ids(file, {"preparation": MADE})
    assert scratch.override == {} and theirs.override == {"roi_size": [32] * 3, **ids}
    arms["theirs"]["override"] = {}
    settings = read_settings(arms=arms, override={"prepare_as": file}, **given)
    assert settings.override == ids and not any(arm.override for arm in settings.arms)
    assert record_of(started("ssl3d", "train.json", **ids)) == MADE
    with pytest.raises(CompareError, match="prepare_as=encoder does not say which file here"):
        read_settings(arms=arms, override={"prepare_as": "encoder"}, **given)
    arms["scratch"] = {"override": {"prepare_as": "encoder"}}
    with pytest.raises(CompareError, match="Arm 'scratch': prepare_as=encoder does not say which file here"):
        read_settings(arms=arms, **given)


@pytest.mark.parametrize("name", [name for name, entry in published_weights().items() if "rule" in entry["prepared"]])
def test_published_rules_are_ids(name):
    """What the table states in types comes out of a record as the very transforms."""
    prepared = published_weights()[name]["prepared"]
    steps = intensity_steps(prepared["rule"])
    made = {key: prepared.get(key) for key in ("spacing", "orientation")} | {"intensity": steps}
    ids = prepared_ids(name, {"preparation": made})
    assert [ids.get("spacing"), ids.get("orientation")] == [made["spacing"], made["orientation"]]
    assert preparation_record(ConfigParser(config=ids).get_parsed_content("intensity"))["intensity"] == steps


def nnunet_ids(plan):
    stated = plan_of_nnssl(Source({}, {"nnssl_adaptation_plan": {"pretrain_plan": plan}}))
    if stated["rule"] is None:
        return None
    return ConfigParser(config={"rule": stated["rule"]}).get_parsed_content("rule"), stated["unexpressed"]


def test_normalisations_of_nnunet_are_what_they_are_there():
    """Against its formulas in numpy."""
    image = np.random.default_rng(0).normal(40, 300, (1, 6, 7, 8)).astype(np.float32)
    image[:, :2] = 0

    def through(scheme, masked=None, **beside):
        one = {"spacing": [1, 1, 1], "normalization_schemes": [scheme]}
        one |= {} if masked is None else {"use_mask_for_norm": [masked]}
        rule, words = nnunet_ids({"configurations": {"3d": one}, **beside})
        for transform in rule:
            made = transform({"image": torch.as_tensor(image)})
        return np.asarray(made["image"]) if rule else image, words

    made, words = through("ZScoreNormalization")
    np.testing.assert_allclose(made, (image - image.mean()) / image.std(), atol=1e-4)
    assert words is None
    made, words = through("ZScoreNormalization", True)
    inside = image != 0
    np.testing.assert_allclose(made[inside], (image[inside] - image[inside].mean()) / image[inside].std(), atol=1e-4)
    assert (made[~inside] == 0).all() and "voxels of 0 inside" in words
    found = {"mean": 50.0, "std": 120.0, "percentile_00_5": -160.0, "percentile_99_5": 300.0, "median": 45.0}
    made, words = through("CTNormalization", foreground_intensity_properties_per_channel={"0": found})
    np.testing.assert_allclose(made, (image.clip(-160, 300) - 50) / 120, atol=1e-4)
    assert through("NoNormalization")[0] is image
    for plan in ("CTNormalization", "RGBTo01Normalization"):  # without the scans' statistics; not known here
        assert nnunet_ids({"configurations": {"normalization_schemes": [plan], "spacing": [1] * 3}}) is None


def test_sam_med3d_scales_by_what_is_above_0():
    """As torchio's ``ZNormalization(masking_method=lambda x: x > 0)``, but for its deviation over n - 1."""
    image = torch.randn(1, 6, 7, 8, generator=torch.Generator().manual_seed(0)) * 30 + 10
    rule = published_weights()["sam_med3d"]["prepared"]["rule"]
    (transform,) = ConfigParser(config={"rule": rule}).get_parsed_content("rule")
    inside = image[image > 0]
    made = transform({"image": image})["image"]
    torch.testing.assert_close(made, (image - inside.mean()) / inside.std(correction=0), atol=1e-4, rtol=0)


def test_published_weights_bring_their_preparation_along(tmp_path):
    net = SegResNetDS(3, 4, 1, 2, blocks_down=(1, 1, 1), norm="INSTANCE")
    torch.save(net.state_dict(), tmp_path / "vista.pt")
    paths = tmp_path / "vista.pt", tmp_path / "encoder.safetensors"
    bare = convert(*paths)
    assert bare["preparation"]["intensity"] is None and bare["published"] is None
    record = convert(*paths, published="vista3d", orientation="LPS")  # what the user says comes first
    assert record["published"] == "vista3d" and record["preparation"]["orientation"] == "LPS"
    assert record["preparation"]["spacing"] == [1.5] * 3
    (step,) = record["preparation"]["intensity"]
    assert (step["transform"], step["a_min"]) == ("ScaleIntensityRanged", pytest.approx(-963.82, abs=0.01))
    record = convert(*paths, published="vista3d", intensity="by eye")
    assert record["preparation"]["intensity"] is None and record["intensity"] == "by eye"
    with pytest.raises(ValueError, match="--published nobody is no name of"):
        convert(*paths, published="nobody")
    with pytest.raises(ValueError, match="suprem_swin_unetr is of the kind swin_unetr_ssl, but this file is of the"):
        convert(*paths, published="suprem_swin_unetr")


def test_a_published_file_is_known_by_its_place_or_its_digest():
    entries = published_weights()
    hub = entries["sam_med3d"]["hub"]
    assert (
        find_published(None, {"name": f"{hub}@main#sha256={'0' * 64}", "sha256": None}, "sam_med3d")[0] == "sam_med3d"
    )
    digest = entries["astra_ct_resnet152"]["sha256"]
    assert find_published(None, {"name": "x.pt", "sha256": digest}, "monai_resnet")[0] == "astra_ct_resnet152"
    assert find_published(None, {"name": "x.pt", "sha256": "0" * 64}, "monai_resnet") is None


def test_what_no_id_expresses_is_one_sentence(encoder, tmp_path):
    words = published_weights()["voco_b"]["unexpressed"]
    said = prepare(encoder(preparation=MADE, unexpressed=words), tmp_path / "ids.json")
    assert f"No id expresses this of the images of {tmp_path / 'encoder.safetensors'}: {words}." in said
