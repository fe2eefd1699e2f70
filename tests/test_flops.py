from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.flops import count_operations

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "transseg"
TINY = [str(BUNDLE / "configs" / name) for name in ("train.json", "networks/beit_tiny.json")]


def cells(text: str) -> dict[str, list[float]]:
    return {row.split()[0]: [float(cell) for cell in row.split()[1:]] for row in text.splitlines()[1:]}


def test_five_slices_cost_what_their_patch_embedding_does():
    """Four slices more: a product of 4 p p values with each feature of each token, and as many weights."""
    one = cells(count_operations(TINY, "1,1,96,96,1", image_size=[96, 96], slices=1))
    five = cells(count_operations(TINY, [1, 1, 96, 96, 5], image_size=[96, 96], slices=5))
    assert five["TransSeg"][0] == pytest.approx(
        sum(row[0] for name, row in five.items() if name != "TransSeg"), abs=2e-3
    )
    net = json.loads((BUNDLE / "configs/networks/beit_tiny.json").read_text())["segmentation_net"]["encoder"]
    patch, width = net["patch_size"], net["hidden_size"]
    tokens = (96 // patch) ** 2
    assert five["encoder"][0] - one["encoder"][0] == pytest.approx(2 * 4 * patch**2 * width * tokens / 1e9, abs=2e-3)
    assert five["encoder"][1] - one["encoder"][1] == pytest.approx(4 * patch**2 * width / 1e6, abs=2e-3)
    assert five["decoder"] == one["decoder"]


def test_another_shape_is_one_sentence():
    with pytest.raises(ValueError, match="does not accept an image of the shape") as error:
        count_operations(TINY, "1,1,40,96,5", image_size=[96, 96])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no id 'net'"):
        count_operations(TINY, "1,1,96,96,5", net_id="net")


@pytest.mark.slow
def test_command_line():
    call = [sys.executable, "-m", "common.flops", "--config_file", ",".join(TINY), "--input_shape", "1,1,512,512,5"]
    made = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert set(cells(made)) == {"encoder", "neck", "decoder", "TransSeg"}
