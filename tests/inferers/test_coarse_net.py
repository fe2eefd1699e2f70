from __future__ import annotations

from functools import partial

import pytest
import torch

from common.inferers import med3d_of_file
from common.networks import BranchDecoder, Med3DNet
from common.weights.model_file import load_model

HEAD = partial(BranchDecoder, classes=[2])


@pytest.mark.parametrize(
    "settings",
    [
        {"depth": 10, "shortcut": "B"},
        {"depth": 18, "shortcut": "A"},
        {"depth": 50, "norm": "group"},
        {"depth": 10, "preactivation": True, "output_stride": 32},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_net_is_that_of_the_file(settings, tmp_path):
    trained = Med3DNet(HEAD, width=4, **settings)
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    net = med3d_of_file(tmp_path / "model.pt", HEAD)
    load_model(net, tmp_path / "model.pt")
    image = torch.rand(1, 1, 32, 32, 40)
    torch.testing.assert_close(net.eval()(image), trained.eval()(image))


def test_other_files(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold a ResNet for the first stage"):
        med3d_of_file(tmp_path / "other.pt", HEAD)
    with torch.device("meta"):
        assert med3d_of_file(tmp_path / "none.pt", HEAD).encoder.depth == 50  # loading says that there is none
