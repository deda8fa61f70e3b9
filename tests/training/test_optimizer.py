"""The optimizer computes what PyTorch's AdamW does, and does not import what compiles networks."""

import subprocess
import sys
from types import SimpleNamespace

import torch
from support.suite import REPOSITORY
from torch import nn
from torch.optim import AdamW

from premed.training.optimizer import make_optimizer


def objective_of(network):
    return SimpleNamespace(param_groups=lambda: [{"params": [*network.parameters()], "weight_decay": 0.05}])


def trained(make, steps=5):
    torch.manual_seed(0)
    network = nn.Linear(7, 3)
    optimizer = make(network)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        network(torch.randn(4, 7)).square().mean().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    return network.state_dict(), optimizer.state_dict()["state"][0]["exp_avg_sq"]


def test_steps_are_bitwise_those_of_pytorch():
    ours = trained(lambda network: make_optimizer(objective_of(network), (0.9, 0.95)))
    theirs = trained(lambda network: AdamW(objective_of(network).param_groups(), lr=0.0, betas=(0.9, 0.95), fused=True))
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ("weight", "bias"))
    assert torch.equal(ours[1], theirs[1])


ALONE = """
import sys
from training.test_optimizer import make_optimizer, objective_of, trained
trained(lambda network: make_optimizer(objective_of(network), (0.9, 0.95)))
print("torch._dynamo" in sys.modules)
"""


def test_a_process_that_trains_does_not_import_what_compiles():
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=REPOSITORY / "tests", capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
