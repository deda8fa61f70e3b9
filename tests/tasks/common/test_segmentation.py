"""What segmentation tasks share, beyond what test_tasks.py states of each."""

from pathlib import Path

import numpy as np
import pytest
import torch

from premed.contracts import Sample
from premed.data.cache import Cache
from premed.data.phantoms.writers import write_msd
from premed.tasks import msd


@pytest.fixture
def small(tmp_path: Path) -> tuple[msd.MSD, Sample]:
    """A task whose roi is larger than the image."""
    root = write_msd(tmp_path / "small", 8, seed=0, shape=(20, 24, 20))
    task = msd.build(msd.Config(root=root, roi=(32, 32, 32)))
    case = task.split("train")[0]
    return task, Sample(case, Cache(tmp_path / "cache").prepare([case], task.preprocessing)[0])


def test_an_image_smaller_than_the_roi_is_padded_alike_in_training_and_in_scoring(small):
    task, sample = small
    seen = []

    def forward(image):
        seen.append(image[0].numpy())
        return torch.zeros(len(image), 3, *image.shape[2:])

    assert task.logits(forward, sample).shape == (3, *sample.prepared.shape)
    assert np.array_equal(seen[0], task.tiles(sample)[0])


def test_the_padding_is_cut_off_where_it_was_put(small):
    task, sample = small
    answer = task.logits(lambda image: torch.cat([image, image, image], dim=1), sample)
    assert np.allclose(answer[0], sample.prepared.image()[0], atol=1e-5)
