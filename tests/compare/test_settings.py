from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.compare.bundle_config import parsed
from common.compare.settings import CompareError, read_settings
from common.weights import find_encoder, shipped, shipped_encoders
from common.weights.encoder_file import write_state

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "pretrain_once"


def read(output, **given):
    return read_settings(**{"bundle": str(BUNDLE), "arms": "scratch,pretrain_once", "output": str(output), **given})


def test_defaults_and_comma_separated_lists(tmp_path):
    override = "learning_rate=0.01 roi_size=[96, 96, 96] optimizer#eps=1e-7 orientation=LPS"
    settings = read(tmp_path, fractions="0.3,0.1,1", seeds="4,2", override=override)
    assert [arm.name for arm in settings.arms] == ["scratch", "pretrain_once"]
    assert settings.baseline == "scratch" and settings.arms[0].is_scratch
    assert settings.arms[1].pretrain == (str(BUNDLE / "configs/pretrain.json"),)
    assert settings.fractions == (0.1, 0.3, 1.0) and settings.seeds == (4, 2)
    assert settings.override == {
        "learning_rate": 0.01,
        "roi_size": [96, 96, 96],
        "optimizer#eps": 1e-7,
        "orientation": "LPS",
    }
    assert settings.equal == "steps" and settings.examples == 3


@pytest.mark.parametrize("path", sorted(ROOT.glob("bundles/*/compare*.json")), ids=lambda path: path.stem)
def test_shipped_settings_pretrain_on_no_list_that_is_held_out(path):
    content = json.loads(path.read_text())
    arms = content["arms"]
    given = [content, *(filter(None, arms.values()) if isinstance(arms, dict) else ())]
    lists = {name for one in given for name in one.get("pretrain_override", {}).get("lists", [])}
    assert content.get("transductive", False) or not lists & {"validation", "test"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("bundles/med*/compare_*.json")), ids=lambda path: path.stem)
def test_verdicts_rest_on_a_pretraining_a_seed(path, tmp_path, monkeypatch):
    """Where pre-training is short enough; those of the paper's sets have one seed, and folds in its place."""
    monkeypatch.setattr(shipped, "find_encoder", Path)  # a user converts some first
    settings = read_settings(str(path), output=str(tmp_path))
    assert len(settings.seeds) == 1 or all(arm.pretrain_per_seed for arm in settings.arms if arm.pretrain)


@pytest.mark.parametrize("bundle", ["medical_transformer", "ssl3d"])
@pytest.mark.parametrize("name", ["adni_age", "adni_diagnosis", "brats"])
def test_pretraining_on_other_sets_is_not_drawn_or_sized_by_the_target(bundle, name, tmp_path):
    """The target's files set its folds and, for tumours, four channels of 1 mm."""
    settings = read_settings(str(ROOT / f"bundles/{bundle}/compare_{name}.json"), output=str(tmp_path), arms="scratch")
    configs = settings.bundle / "configs"
    config = parsed([str(configs / "pretrain.json"), *settings.config_file], settings.pretrain_override).get()
    alone = parsed([str(configs / "pretrain.json")], {}).get()
    for key in ("fold", "pool_test", "in_channels", "spacing", "pooling", "roi_size", "map_size"):
        assert config.get(key) == alone.get(key), key


def test_fire_hands_over_numbers_and_tuples(tmp_path):
    settings = read(tmp_path, fractions=0.5, seeds=(0, 1), steps=7, arms=("scratch", "again=scratch"), probe=True)
    assert settings.fractions == (0.5,) and settings.seeds == (0, 1) and settings.steps == 7
    assert all(arm.is_scratch for arm in settings.arms)
    assert settings.probe == ("label",)


def test_overrides_of_the_command_are_merged_into_those_of_the_file_by_id(tmp_path):
    content = {
        "bundle": str(BUNDLE),
        "arms": {"scratch": None},
        "override": {"roi_size": [32, 32, 32], "batch_size": 1, "datalist": "$@dataset_dir + '/other.json'"},
        "pretrain_override": {"max_epochs": 2},
    }
    (tmp_path / "settings.json").write_text(json.dumps(content))

    def settings(**given):
        return read_settings(str(tmp_path / "settings.json"), output=str(tmp_path / "out"), **given)

    assert settings().override == content["override"]
    found = settings(override="batch_size=3 seed_of_mine=1", pretrain_override={"batch_size": 4})
    assert found.override == content["override"] | {"batch_size": 3, "seed_of_mine": 1}
    assert found.pretrain_override == {"max_epochs": 2, "batch_size": 4}
    found = settings(datalist="mine.json")
    assert found.datalist == str(Path.cwd() / "mine.json")
    assert found.override == {"roi_size": [32, 32, 32], "batch_size": 1}
    assert settings(override="datalist=mine.json").override["datalist"] == "mine.json"
    with pytest.raises(CompareError, match=r"--datalist and --override datalist=\.\.\. both say where the data are"):
        settings(datalist="mine.json", override="datalist=other.json")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"override": "learning_rate=1"}, r"--override learning_rate=\.\.\. has no effect on arm 'mae', which sets"),
        ({"pretrain_override": "max_epochs=1"}, "--pretrain_override max_epochs=... has no effect on arm 'mae'"),
        ({"pretrain_override": "roi_size#0=16"}, "--pretrain_override roi_size#0=... has no effect on arm 'mae'"),
        ({"datalist": "mine.json"}, "--datalist has no effect on arm 'mae', which sets datalist itself"),
    ],
)
def test_an_override_that_an_arm_would_replace_is_refused(tmp_path, given, sentence):
    arm = {"pretrain": [], "override": {"learning_rate": 2, "datalist": "own.json"}}
    arm["pretrain_override"] = {"max_epochs": 9, "roi_size": [32, 32, 32]}
    content = {"bundle": "pretrain_once", "arms": {"scratch": None, "mae": arm}}
    (tmp_path / "settings.json").write_text(json.dumps(content))
    with pytest.raises(CompareError, match=sentence):
        read_settings(str(tmp_path / "settings.json"), output=str(tmp_path / "out"), **given)
    settings = read_settings(str(tmp_path / "settings.json"), output=str(tmp_path / "out"), arms="scratch", **given)
    assert [arm.name for arm in settings.arms] == ["scratch"]


def test_truth_values_may_be_typed_in_small_letters(tmp_path):
    for text, expected in (("false", False), ("True", True), (True, True), (1, True), ("0", False)):
        assert read(tmp_path, transductive=text).transductive is expected
    assert read(tmp_path, probe="false").probe == () and read(tmp_path, probe="True").probe == ("label",)
    with pytest.raises(CompareError, match="--validation_from_labels: 'no' must be True or False"):
        read(tmp_path, validation_from_labels="no")
    arms = {"scratch": None, "mae": {"pretrain": [], "pretrain_per_seed": "false"}}
    assert read(tmp_path, arms=arms).arms[1].pretrain_per_seed is False


def test_a_settings_file_may_name_an_included_bundle_and_must_be_a_mapping(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"bundle": "pretrain_once", "arms": {"scratch": {"pretrain": None}}}))
    settings = read_settings(str(path), output=str(tmp_path / "out"))
    assert settings.bundle == BUNDLE and settings.arms[0].is_scratch
    path.write_text("[]")
    with pytest.raises(CompareError, match="is no JSON object"):
        read_settings(str(path), output=str(tmp_path / "out"))


@pytest.mark.parametrize(("text", "count"), [("True", 3), ("4", 4), ("False", 0), ("optimizer#lr=[1e-4,1e-3]", 2)])
def test_what_to_tune_as_typed(tmp_path, text, count):
    tune = read(tmp_path, tune=text).tune
    assert sum(map(len, tune.values())) == count and set(tune) <= {"learning_rate", "optimizer#lr"}


def test_arms_of_every_form(tmp_path):
    encoder = tmp_path / "x.safetensors"
    encoder.write_bytes(b"")
    (tmp_path / "mine.json").write_text("{}")
    content = {
        "bundle": str(BUNDLE),
        "arms": {
            "scratch": None,
            "file": "x.safetensors",
            "mine": "mine.json+networks/swin_unetr.json",
            "long": {"pretrain": ["mine.json"], "pretrain_override": {"max_epochs": 9}, "pretrain_per_seed": True},
            "again": {"seed_offset": 100},
            "slow": {"encoder": "x.safetensors", "override": {"learning_rate": 1e-5}},
            "warm": {"encoder": "x.safetensors", "schedule": "warmup"},
            "control": {"schedule": "scratch"},
            "own": {"pretrain": [], "schedule": "mine.json"},
        },
    }
    (tmp_path / "settings.json").write_text(json.dumps(content))
    arms = {arm.name: arm for arm in read_settings(str(tmp_path / "settings.json"), output=str(tmp_path)).arms}
    assert arms["file"].encoder == str(encoder)
    assert arms["mine"].pretrain[1:] == (
        str(tmp_path / "mine.json"),
        str(BUNDLE / "configs/networks/swin_unetr.json"),
    )
    assert arms["long"].pretrain_override == {"max_epochs": 9} and arms["long"].pretrain_per_seed
    assert arms["again"].is_scratch and "seeds + 100" in arms["again"].describe()
    assert arms["slow"].override == {"learning_rate": 1e-5} and not arms["slow"].pretrain
    assert arms["warm"].overlays == (str(BUNDLE / "configs/schedules/warmup.json"),)
    assert arms["warm"].describe().endswith("(schedule warmup)") and arms["slow"].overlays == ()
    assert arms["control"].is_scratch and arms["own"].overlays == (str(tmp_path / "mine.json"),)


def test_images_of_an_arm_are_prepared_as_those_of_its_encoder(tmp_path):
    """By ids, which its evaluation has, too; an id that the bundle lacks is left out."""
    record = {"preparation": {"spacing": [2.0, 1.0, 2.0], "orientation": "LPS"}}
    write_state({"weight": torch.zeros(1)}, tmp_path / "x.safetensors", record)
    theirs = {"encoder": str(tmp_path / "x.safetensors"), "override": {"prepare_as": "encoder", "learning_rate": 0.1}}
    settings = read(tmp_path, arms={"scratch": None, "theirs": theirs})
    known = {"spacing": [2.0, 1.0, 2.0], "orientation": "LPS", "learning_rate": 0.1}
    assert settings.arms[0].override == {} and settings.arms[1].override == known


def test_damaged_settings_and_a_bundle_without_pretraining_are_named(tmp_path):
    (tmp_path / "s.json").write_text('{"arms": ')
    with pytest.raises(CompareError, match=r"s\.json cannot be read as JSON"):
        read_settings(str(tmp_path / "s.json"), output=str(tmp_path))
    (tmp_path / "mine/configs").mkdir(parents=True)
    for name in ("train.json", "evaluate.json"):
        shutil.copy(BUNDLE / "configs" / name, tmp_path / "mine/configs")
    with pytest.raises(CompareError, match=r"'x': mine has no configs/pretrain\.json; name an encoder file instead"):
        read(tmp_path, bundle=str(tmp_path / "mine"), arms={"x": {"pretrain": []}})


def test_an_argument_wins_over_the_file(tmp_path):
    content = {"bundle": str(BUNDLE), "arms": "scratch", "seeds": [0, 1, 2], "steps": 5}
    (tmp_path / "s.json").write_text(json.dumps(content))
    settings = read_settings(str(tmp_path / "s.json"), output=str(tmp_path), seeds=7, steps=None)
    assert settings.seeds == (7,) and settings.steps == 5


@pytest.mark.parametrize("file", [{"fractions": [0.1, 1.0]}, {"labels": [2, 8]}, {}])
def test_labels_and_fractions_win_over_the_others_of_the_file(file, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"bundle": str(BUNDLE), "arms": "scratch", **file}))
    labels = read_settings(str(tmp_path / "settings.json"), output=str(tmp_path), labels="3")
    assert labels.labels == (3,) and labels.fractions == (1.0,)
    shares = read_settings(str(tmp_path / "settings.json"), output=str(tmp_path), fractions="0.5")
    assert shares.labels is None and shares.fractions == (0.5,)
    with pytest.raises(CompareError, match="give only one of them"):
        read_settings(str(tmp_path / "settings.json"), output=str(tmp_path), fractions="0.5", labels="3")


@pytest.mark.parametrize("path", sorted((ROOT / "bundles").glob("*/compare*.json")), ids=lambda path: path.name)
def test_settings_that_the_bundles_ship(path, tmp_path):
    arms = json.loads(path.read_text())["arms"]
    arms = [arm for arm in arms.values() if arm] if isinstance(arms, dict) else []
    starts = [*arms, *(arm["reference"] for arm in arms if isinstance(arm.get("reference"), dict))]
    files = [start["encoder"] for start in starts if "encoder" in start]
    written = [file for file in files if file not in shipped_encoders()]
    if any(not (path.parent / file).is_file() for file in written):  # pre-training writes them first
        with pytest.raises(CompareError, match="no encoder file"):
            read_settings(str(path), output=str(tmp_path))
        return
    settings = read_settings(str(path), output=str(tmp_path))
    assert settings.bundle == path.parent and settings.baseline == "scratch" and len(settings.arms) > 1


def test_an_included_encoder_is_an_arm_by_its_name(tmp_path):
    """On the command line as in a settings file; an arm of the same name in the file comes first."""
    (tmp_path / "s.json").write_text(json.dumps({"bundle": str(BUNDLE), "arms": {"synthetic_brain": None}}))
    for arms in ("scratch,synthetic_brain,x=synthetic_brain", {"x": {"encoder": "synthetic_brain"}}):
        *_, arm = read(tmp_path, arms=arms).arms
        assert arm.encoder == str(find_encoder("synthetic_brain")) and not arm.pretrain
    assert read(tmp_path, arms="scratch,synthetic_brain").arms[1].name == "synthetic_brain"
    (own,) = read_settings(str(tmp_path / "s.json"), arms="synthetic_brain", output=str(tmp_path)).arms
    assert own.encoder is None


def test_an_unknown_arm_is_told_those_of_the_settings_file(tmp_path):
    path = ROOT / "bundles/simtrot/compare_hippocampus.json"
    with pytest.raises(CompareError) as caught:
        read_settings(str(path), output=str(tmp_path), arms="scratch,simtrott")
    known = str(caught.value).split(": ")[1].split(";")[0].split(", ")
    assert {"scratch", "simtrot_sum", "dynunet", "mae"} <= set(known) and len(known) == len(set(known))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"bundle": "/nowhere"}, "/nowhere is not a bundle: it has no configs/train.json"),
        (
            {"arms": "scratch,simclr"},
            "Unknown arm 'simclr'. Known to pretrain_once: scratch, pretrain_once; included encoders: synthetic_brain;",
        ),
        ({"arms": "x=nosuch"}, "included encoders: synthetic_brain; or NAME=FILE.safetensors"),
        ({"arms": "scratch,scratch"}, "names 'scratch' twice"),
        ({"arms": "a/b=scratch"}, "unlike 'a/b'"),
        ({"arms": "x=/none.safetensors"}, "no encoder file /none.safetensors"),
        ({"arms": "x=/none.json"}, "No config file /none.json"),
        ({"arms": {"x": {"pretrian": []}}}, "unknown key 'pretrian'"),
        ({"arms": {"x": {"pretrain": [], "encoder": "synthetic_brain"}}}, "'x' has both `pretrain` and `encoder`"),
        (
            {"arms": {"x": {"reference": {"network": ["pretrain.json"], "encoder": "/none.safetensors"}}}},
            "'x': no encoder file /none.safetensors",
        ),
        (
            {"arms": {"x": {"reference": {"encoder": "synthetic_brain"}}}},
            "'x': `reference` has an `encoder` without its `network`",
        ),
        (
            {"arms": {"x": {"reference": {"network": ["pretrain.json"]}, "encoder": "synthetic_brain"}}},
            "'x': write the `encoder` of a `reference` beside its `network`",
        ),
        (
            {
                "arms": {
                    "x": {"reference": {"network": ["pretrain.json"], "encoder": "synthetic_brain"}, "pretrain": []}
                }
            },
            "'x': a `reference` is a network, which may have an `encoder` and name an arm `against` which it is judged",
        ),
        (
            {"arms": {"x": {"schedule": "warm"}}},
            "'warm'; known to pretrain_once are frozen, layer_decay, sawtooth, scratch",
        ),
        ({"arms": {"x": {"schedule": "/none.json"}}}, "No config file /none.json"),
        ({"arms": ""}, "--arms is empty"),
        ({"fractions": "0.5,2"}, "--fractions: 2 must be above 0 and at most 1"),
        ({"fractions": "0.5", "labels": "3"}, "give only one of them"),
        ({"labels": "0"}, "--labels: 0 is below 1"),
        ({"seeds": "0.5"}, "--seeds: '0.5' is not a whole number"),
        ({"equal": "luck"}, "one of steps, epochs, time"),
        ({"equal": "epochs", "steps": 3}, "--steps goes with"),
        ({"epochs": 3}, "--epochs goes with --equal epochs"),
        ({"override": "learning_rate"}, "has no value; write id=value"),
        ({"override": 3}, "--override 3: write id=value"),
        ({"override": "val_interval=3"}, "use --validations"),
        ({"devices": "cuda:0"}, "--devices 'cuda:0': give numbers of GPUs"),
        ({"devices": "0,1", "processes": 2}, "choose one"),
        ({"override": "seed=3"}, "'seed' cannot be an override, the comparison sets it: use --seeds"),
        ({"output": None}, "Give --output."),
        ({"margin": "much"}, "--margin: 'much' is not a number."),
        ({"launcher": "pbs"}, "--launcher is 'pbs': give local or slurm, or in a settings file a mapping"),
        ({"launcher": "slurm", "devices": "0,1"}, "--devices goes with the local launcher"),
        ({"pretrain_override": "output_dir=here"}, "'output_dir' cannot be an override"),
        ({"override": "prepare_as=encoder"}, "--override: prepare_as=encoder does not say which file here"),
        ({"arms": {"x": {"override": {"prepare_as": "/none.pt"}}}}, "Arm 'x': "),
        ({"settings": "/none.json"}, "No settings file /none.json"),
    ],
)
def test_errors_say_what_to_change(tmp_path, given, sentence):
    with pytest.raises(CompareError) as error:
        read(given.pop("output", tmp_path), **given) if "output" not in given else read_settings(
            bundle=str(BUNDLE), arms="scratch", **given
        )
    assert sentence in str(error.value)


def test_paths_are_relative_to_where_they_are_written(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.safetensors").write_bytes(b"")
    content = {"bundle": str(BUNDLE), "arms": {"scratch": None}, "datalist": ["a.json", "b.json"]}
    (tmp_path / "s.json").write_text(json.dumps(content))
    monkeypatch.chdir(folder)
    settings = read_settings(
        str(tmp_path / "s.json"), output="out", arms="scratch,mine=mine.safetensors", dataset_dir="."
    )
    assert settings.arms[1].encoder == str(folder / "mine.safetensors") and settings.output == folder / "out"
    assert settings.datalist == (str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert settings.dataset_dir == str(folder)


def test_an_arm_names_another_to_be_compared_with(tmp_path):
    arms = {"scratch": None, "short": {"override": {"a": 1}}, "long": {"against": "short"}}
    file = tmp_path / "compare.json"
    file.write_text(json.dumps({"bundle": str(BUNDLE), "arms": arms}))
    both = read_settings(str(file), arms="scratch,long", output=str(tmp_path / "out"))
    assert both.arms[1].against == "short"
    for wrong in ("shrot", "long"):
        file.write_text(json.dumps({"bundle": str(BUNDLE), "arms": arms | {"long": {"against": wrong}}}))
        with pytest.raises(
            CompareError, match=f"'long': `against` must name another arm, one of scratch, short; '{wrong}'"
        ):
            read_settings(str(file), output=str(tmp_path / "out"))


def test_a_name_alone_takes_the_arm_of_the_file(tmp_path):
    arms = {"scratch": None, "long": {"pretrain": [], "pretrain_override": {"max_epochs": 9}}, "other": None}
    (tmp_path / "s.json").write_text(json.dumps({"bundle": str(BUNDLE), "arms": arms}))
    found = read_settings(str(tmp_path / "s.json"), output=str(tmp_path), arms="scratch,long").arms
    assert [arm.name for arm in found] == ["scratch", "long"]
    assert found[1].pretrain_override == {"max_epochs": 9}


def test_unknown_keys_of_the_file_are_refused(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"bundle": str(BUNDLE), "arm": "scratch"}))
    with pytest.raises(CompareError, match="unknown key 'arm'; did you mean 'arms'"):
        read_settings(str(tmp_path / "s.json"), output=str(tmp_path))


@pytest.mark.parametrize("path", sorted(ROOT.glob("bundles/pretrain_once/compare*.json")), ids=lambda path: path.stem)
def test_numbers_of_target_masks_are_left_to_the_comparison(path, tmp_path):
    """A preset that states `target_masks` would have each run refused, or trained on that number alone."""
    settings = read_settings(str(path), output=str(tmp_path))
    stated = [json.loads(Path(file).read_text()).get("target_masks") for file in settings.config_file]
    assert not any(stated) or settings.override.get("target_masks", 0) is None
