"""A model is of images prepared in one way; evaluation and inference of every bundle prepare them so, or refuse."""

from __future__ import annotations

import pytest

from common.preparation import preparation_record


@pytest.mark.parametrize("base", [["inference.json"], ["train.json", "evaluate.json"]], ids=["inference", "evaluate"])
def test_a_model_of_other_images_is_refused(bundle, base, small_files, parsed, cohort):
    files = small_files[bundle]
    train = parsed(bundle, ["train.json", *files], cohort)
    made = {"preparation": preparation_record(train.get_parsed_content("validate#preprocessing"), task=train["task"])}
    where = "handlers#0" if base == ["inference.json"] else "validate#handlers#0"

    def loader(**values):
        return parsed(bundle, [base[0], *files[:1], *base[1:], *files[1:]], cohort, **values).get_parsed_content(where)

    loader().compare(made)  # the same images
    loader().compare({})  # a model of before
    size = {"image_size": [64, 48]} if bundle == "transseg" else {"spacing": [3.0, 4.0, 4.0]}
    intensity = {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 3.0}
    changes = [("size" if bundle == "transseg" else "spacing", size), ("orientation", {"orientation": "LPI"})]
    changes.append(("intensity", {"percentiles": [2, 98]} if bundle == "pretrain_once" else {"intensity": intensity}))
    for name, change in changes:
        with pytest.raises(ValueError, match=f"made with {name} .*accept_preparation"):
            loader(**change).compare(made)
    with pytest.raises(ValueError, match=rf"made with task another, the task has {train['task']} \(id `task`\)"):
        loader().compare({"preparation": made["preparation"] | {"task": "another"}})
    loader(**changes[1][1], accept_preparation=True).compare(made)
