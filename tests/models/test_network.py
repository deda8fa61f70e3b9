"""Weights fit a network or are refused; initial ones are drawn from a seed."""

import pytest
import torch
from torch import nn

from premed.errors import UserError
from premed.models import network


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        (lambda state: state.pop("weight"), "missing: weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda state: state.update(bias=torch.zeros(9)), "of another shape: bias"),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_nothing_is_loaded(change, misfit):
    module, state = nn.Linear(2, 3), {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    change(state)
    with pytest.raises(UserError, match=f"head: the saved weights do not fit .*{misfit}"):
        network.load_strictly(module, state, "head")
    assert not (module.weight == 1).any()


def test_initial_weights_come_from_the_seed_and_move_no_generator():
    before = torch.random.get_rng_state()
    with network.seeded_init(0, "encoder"):
        ours = torch.rand(3)
    with network.seeded_init(0, "encoder"):
        assert torch.equal(ours, torch.rand(3))
    with network.seeded_init(0, "head"):
        assert not torch.equal(ours, torch.rand(3))
    assert torch.equal(before, torch.random.get_rng_state())
