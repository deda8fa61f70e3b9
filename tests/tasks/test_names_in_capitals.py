"""A suffix in capitals is a suffix: the case has the same name, and nothing is left out without a word."""

import json
import shutil

import numpy as np
import pytest

from premed.data.phantoms.abdomen import abdomen
from premed.data.phantoms.writers import save_nifti, write_msd
from premed.rng import SampleRng
from premed.tasks import btcv, msd
from premed.tasks.common.decathlon import case_names, stem


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii", "a"),
        ("a.nii.gz", "a"),
        ("A.NII.GZ", "A"),
        ("a.Nii.gz", "a"),
        ("a.nii.nii", "a.nii"),
        ("a.gz.b", "a.gz.b"),
    ],
)
def test_a_case_has_its_file_s_name_without_the_suffix(name, expected):
    assert stem(name) == expected


def test_two_files_that_differ_in_the_suffix_alone_are_two_cases():
    assert case_names({"training": [{"image": "one/a.nii.gz"}, {"image": "two/a.NII.GZ"}]}) == {
        "one/a.nii.gz": "one/a",
        "two/a.NII.GZ": "two/a",
    }


def test_a_decathlon_in_capitals_has_the_same_cases_and_parts_and_misses_nothing(tmp_path):
    plain, capitals = write_msd(tmp_path / "a", 8, seed=0, shape=(16, 16, 16)), tmp_path / "b"
    shutil.copytree(plain, capitals)
    for path in [*capitals.glob("*Tr/*.nii.gz")]:
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    listing = capitals / "dataset.json"
    about = json.loads(listing.read_text().replace(".nii.gz", ".NII.GZ"))
    about["training"] = about["training"][:-1]
    listing.write_text(json.dumps(about))
    task = msd.build(msd.Config(root=capitals, split={"train": ("hippocampus_001",), "val": ("hippocampus_002",)}))
    assert [case.name for case in task.cases] == [f"hippocampus_{number:03d}" for number in range(1, 8)]
    (case,) = task.split("train")
    assert np.array_equal(case.image[0].read_bytes(), (plain / "imagesTr" / "hippocampus_001.nii.gz").read_bytes())
    unused = [(finding.severity, finding.where) for finding in task.check() if "in no entry" in finding.what]
    assert unused == [
        ("note", str(capitals / folder / "hippocampus_008.NII.GZ")) for folder in ("imagesTr", "labelsTr")
    ]


def test_a_ct_of_btcv_in_capitals_is_a_case(tmp_path):
    image, label, affine = abdomen(SampleRng(5), (24, 20, 12))
    for kind, voxels in (("img", image), ("label", label)):
        (tmp_path / kind).mkdir()
        save_nifti(voxels, affine, "RAS", tmp_path / kind / f"{kind}0001.nii.gz")
        (tmp_path / kind / f"{kind}0001.nii.gz").rename(tmp_path / kind / f"{kind}0001.NII.GZ")
    task = btcv.build(btcv.Config(root=tmp_path, split={"test": ("img0001",)}))
    assert [case.name for case in task.split("test")] == ["img0001"] and list(task.check()) == []
