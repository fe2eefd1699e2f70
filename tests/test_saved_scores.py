from __future__ import annotations

import pytest

from common.saved_scores import saved_scores


def test_paths_and_names_may_have_commas(tmp_path):
    path = tmp_path / "val_dice_raw.csv"
    path.write_text('filename,"tumour, core",class1,mean\n/d/a, b.nii,0.2,0.4,0.3\n\n/d/c.nii,nan,1.0,1.0\n')
    assert [list(row.items()) for row in saved_scores(path)] == [
        [("filename", "/d/a, b.nii"), ("tumour, core", "0.2"), ("class1", "0.4"), ("mean", "0.3")],
        [("filename", "/d/c.nii"), ("tumour, core", "nan"), ("class1", "1.0"), ("mean", "1.0")],
    ]


def test_a_row_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "val_dice_raw.csv"
    path.write_text("filename,class0,mean\n/d/a.nii,0.2,0.2\n/d/b.nii\n")
    with pytest.raises(ValueError, match="line 3 has fewer cells than its header; evaluate that run again"):
        saved_scores(path)
