from __future__ import annotations

import copy
import itertools
from collections import OrderedDict

import pytest
import torch
from monai.transforms import Orientationd
from torch import nn

from common.networks import require_strict
from common.networks.strict_loading import fill_shared, note_record
from common.preparation import preparation_record


def net(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


def test_takes_its_own_weights():
    network, other = net(2, 3, 4), net(2, 3, 4)
    assert require_strict(network) is network
    network.load_state_dict(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 4, 5)])
def test_refuses_a_part_and_a_surplus(widths, strict, copied):
    network = require_strict(net(2, 3, 4))
    network = copy.deepcopy(network) if copied else network
    with pytest.raises(RuntimeError, match=r"belong to another network|state_dict for Sequential"):
        network.load_state_dict(net(*widths).state_dict(), strict=strict)


def test_says_how_many_and_what_to_do():
    with pytest.raises(RuntimeError, match=r"2 of 4 tensors of this Sequential .*for example, 1\.weight.*common\.pack"):
        require_strict(net(2, 3, 4)).load_state_dict(net(2, 3).state_dict(), strict=False)


def test_a_part_loads_by_itself_and_inside_another():
    inner = require_strict(net(2, 3, 4))
    inner[0].load_state_dict(net(2, 3)[0].state_dict())
    outer = nn.Sequential(inner)
    outer.load_state_dict(nn.Sequential(net(2, 3, 4)).state_dict())


@pytest.mark.parametrize("copied", [False, True])
def test_refuses_weights_of_images_that_were_prepared_in_another_way(tmp_path, caplog, copied):
    """As MONAI Label reads and loads them, without our handlers. Of other files nothing is known."""
    images = Orientationd("image", "RAS", labels=None)
    state = net(2, 3).state_dict()
    note_record(state, {"preparation": preparation_record(images, task="lung")})
    torch.save(state, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)

    def load(state, axcodes="RAS", task="lung", **values):
        network = require_strict(net(2, 3), Orientationd("image", axcodes, labels=None), task=task, **values)
        network = copy.deepcopy(network) if copied else network
        before = network[0].weight.clone()
        try:
            network.load_state_dict(state, strict=False)
        finally:
            taken = not torch.equal(before, network[0].weight)
        return taken

    assert load(state) and load(net(2, 3).state_dict(), "LPS")
    with pytest.raises(ValueError, match=r"made with orientation RAS, the images have LPS .*accept_preparation"):
        load(state, "LPS")
    with pytest.raises(ValueError, match=r"made with task lung, the task has liver \(id `task`\)"):
        load(state, task="liver")
    assert (
        load(state, "LPS", accept_preparation=True)
        and "The difference is accepted (accept_preparation)." in caplog.text
    )


def test_a_tensor_of_several_names_is_filled_by_one():
    twice = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twice.append(twice[0])  # named twice, as MONAI's DynUNet names its layers
    state = twice.state_dict()
    once = OrderedDict((name, tensor + 1) for name, tensor in state.items() if not name.startswith("2."))
    once._metadata = state._metadata
    filled = fill_shared(once, state)
    assert filled.keys() == state.keys() and filled._metadata is state._metadata
    assert torch.equal(filled["2.weight"], state["0.weight"] + 1)
    assert "2.weight" not in once
    require_strict(twice).load_state_dict(once)
    assert torch.equal(twice[2].weight, once["0.weight"])
    with pytest.raises(RuntimeError, match="another network"):
        twice.load_state_dict({name: tensor for name, tensor in once.items() if name != "1.weight"})
