import gc

import numpy as np
import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from premed.tracking import model_registry


@pytest.mark.slow
def test_an_export_leaves_nothing_of_its_trace_in_memory(tmp_path):
    """torch keeps half a megabyte of each, which a sweep of two thousand trainings would feel."""
    for number in range(2):
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))
        model_registry.export(network, np.zeros((2, 1, 8, 8), np.float32), {}, tmp_path / str(number))
    gc.collect()
    assert sum(type(each) is ShapeEnv for each in gc.get_objects()) == 0
