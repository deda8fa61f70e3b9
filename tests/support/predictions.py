"""What tests of prediction and export share."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from premed.config.settings import Train
from premed.errors import UserError

FP32 = Train(precision="fp32")  # as the runs were tested: where there is AMX, bf16 is the default


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def laid(source: Path, path: Path, axes: str, turn=(0.0, 0.0, 0.0), codes=(1, 1), dtype=np.int16) -> Path:
    """A copy of a volume stored along other axes, its header turned by `turn` degrees, with these codes."""
    image = nib.nifti1.load(source)
    ornt = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(ornt)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec(np.deg2rad(turn)).as_matrix()
    made = nib.Nifti1Image(np.asarray(image.dataobj).astype(dtype), turned @ image.affine)
    made.set_qform(turned @ image.affine, codes[0])
    made.set_sform(turned @ image.affine, codes[1])
    made.header["descrip"] = b"MR of somebody"
    nib.save(made, path)
    return path
