"""What segmentation tasks share, beyond what test_tasks.py states of each."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from support.geometries import gantry_tilt

from premed.contracts import Sample
from premed.data.cache import Cache
from premed.data.content import hash_file
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.tasks import msd
from premed.tasks.common.label_maps import read_labels


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


def test_labels_that_changed_since_the_image_was_prepared_are_not_scored(small):
    task, sample = small
    sample, labels = sample._replace(label_hash=hash_file(sample.case.label).hash), read_labels(sample.case.label)
    assert task.row(sample, labels)["dice/Anterior"] == 1.0
    nib.save(nib.Nifti1Image(np.zeros_like(labels), np.eye(4)), sample.case.label)
    with pytest.raises(UserError, match=f"{sample.case.label}: changed while the command ran; run the same command"):
        task.row(sample, labels)


def test_the_padding_is_cut_off_where_it_was_put(small):
    task, sample = small
    answer = task.logits(lambda image: torch.cat([image, image, image], dim=1), sample)
    assert np.allclose(answer[0], sample.prepared.image()[0], atol=1e-5)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_an_answer_on_a_sheared_grid_is_scored_in_its_own_millimetres(tmp_path, spacing):
    root = write_msd(tmp_path / "tilted", 8, seed=0, shape=(20, 24, 20))
    affine = gantry_tilt((1.0, 1.5, 4.0), 25)
    for path in root.glob("*Tr/*.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.nifti1.load(path).dataobj), affine), path)
    task = msd.build(msd.Config(root=root, roi=(32, 32, 32), spacing=spacing))
    case = task.split("train")[0]
    sample = Sample(case, Cache(tmp_path / "cache").prepare([case], task.preprocessing)[0])
    truth = np.asarray(nib.nifti1.load(case.label).dataobj)
    answer = np.roll(truth, (1, 2, 1), axis=(0, 1, 2))
    ours, theirs = (np.argwhere(mask & ~binary_erosion(mask)) @ affine[:3, :3].T for mask in (answer == 1, truth == 1))
    far = cdist(ours, theirs)
    expected = max(np.percentile(far.min(axis=1), 95), np.percentile(far.min(axis=0), 95))
    assert task.row(sample, answer)["hd95/Anterior"] == pytest.approx(expected)
    right = np.stack([sample.prepared.label() == label for label in range(3)]).astype(np.float32)
    assert task.row(sample, task.native(right, sample.prepared))["dice/Anterior"] > (0.9 if spacing else 0.9999)
