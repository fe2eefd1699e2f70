from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from common.preparation import preparation_record
from common.weights.encoder_file import write_state
from common.weights.prepare import prepare

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.fixture
def encoder(tmp_path):
    def make(**record):
        write_state({"weight": torch.zeros(1)}, tmp_path / "encoder.safetensors", record)
        return tmp_path / "encoder.safetensors"

    return make


@pytest.mark.parametrize("bundle", ["med3d", "medical_transformer", "pretrain_once", "simtrot", "ssl3d"])
def test_images_are_prepared_as_those_of_the_encoder(encoder, tmp_path, bundle):
    made = {"spacing": [2.0, 1.5, 3.0], "orientation": "SRA", "intensity": None}
    file = encoder(preparation=made, intensity="z-scores of the whole image")
    said = prepare(file, tmp_path / "ids.json")
    assert "spacing [2.0, 1.5, 3.0], orientation SRA" in said and "z-scores of the whole image" in said
    for files in (["train.json"], ["train.json", "evaluate.json"], ["inference.json"]):
        parser = ConfigParser()
        parser.read_config([*(str(BUNDLES / bundle / "configs" / name) for name in files), str(tmp_path / "ids.json")])
        assert parser["spacing"] == made["spacing"] and parser["orientation"] == made["orientation"]
    if bundle != "pretrain_once":
        return  # one whose transforms are built suffices
    parser.read_config([str(BUNDLES / bundle / "configs/train.json"), str(tmp_path / "ids.json")])
    record = preparation_record(parser.get_parsed_content("validate#preprocessing"))
    assert {name: record[name] for name in ("spacing", "orientation")} == {
        name: made[name] for name in ("spacing", "orientation")
    }


def test_what_the_record_does_not_say_is_said(encoder, tmp_path):
    said = prepare(encoder(preparation={"spacing": [1.0, 1.0, 1.0], "orientation": None}), tmp_path / "ids.json")
    assert json.loads((tmp_path / "ids.json").read_text()) == {"spacing": [1.0, 1.0, 1.0]}
    assert "says nothing of the orientation" in said and "not known" in said


@pytest.mark.parametrize("made", [None, {"spacing": {"one": [1.0, 1.0, 1.0], "two": [2.0, 2.0, 2.0]}}])
def test_a_record_without_either_is_refused(encoder, tmp_path, made):
    with pytest.raises(ValueError, match="does not say of which spacing or orientation all of its images were"):
        prepare(encoder(preparation=made), tmp_path / "ids.json")
    assert not (tmp_path / "ids.json").exists()
