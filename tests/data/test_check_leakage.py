"""`premed data check` finds the images of a pre-training that `premed run` refuses, and no others."""

import pydicom
import pytest
from support.image_tables import listed, names

from premed.data.cache import Cache
from premed.data.check import Check
from premed.data.check_leakage import leaks, recorded_leaks
from premed.data.io.dicom import is_dicom
from premed.data.leakage import record, refuse_leaks, refuse_recorded_leaks
from premed.data.phantoms.thorax import write_images
from premed.errors import UserError
from premed.tasks import chestxray14, images

pytest_plugins = ["support.experiment_fixtures"]


@pytest.fixture
def own(chest):
    return chestxray14.build(chestxray14.Config(root=chest))


def changed(record, how, own):
    """A record of a finished pre-training that learnt from the first image of the task's val, in one of many ways."""
    image = next(each for each in record["images"] if each["name"] == min(names(own, "val")))
    shown_twice = [image | {"use": use} for use in how.split()]
    return {
        "bytes": record | {"images": [image | {"values": []}]},
        "values": record | {"images": [image | {"files": []}]},
        "another number of axes": record | {"dims": 3, "hashes": "1.1"},
        "another version": record | {"hashes": "1.1"},
        "nothing": record | {"images": [each for each in record["images"] if each["name"] in names(own, "train")]},
        "validated": record | {"images": [image | {"use": "val"}]},
    }.get(how, record | {"images": shown_twice})


WAYS = [
    "bytes",
    "values",
    "train val",
    "val train",
    "another number of axes",
    "another version",
    "nothing",
    "validated",
]


@pytest.mark.parametrize("how", WAYS)
def test_the_check_finds_what_a_run_refuses_of_a_finished_pre_training(chest, own, tmp_path, how):
    cache, quiet = Cache(tmp_path / "cache"), lambda done, total: None
    other = listed(tmp_path / "leak", own, "val", chest=chest)
    recorded = [changed(record(other, cache, map, quiet), how, own)]
    refusal, checked = "", Check(chestxray14.Config(root=chest), test=True)
    try:
        refuse_recorded_leaks(own, recorded, True, cache, map, quiet, "pretrain.encoder: x")
    except UserError as error:
        refusal = str(error)
    checked.open_images(map, quiet)
    found = [*recorded_leaks(checked, recorded, cache, map, "pretrain.encoder: x")]
    assert bool(found) == bool(refusal) == (how not in ("nothing", "validated"))
    if how == "another version":
        assert [f"{each.where}: {each.what}" for each in found] == [refusal]
    elif found:
        shown = {min(names(own, "val"))} if how != "another number of axes" else names(own, "val")
        assert {each.where for each in found} == {str(chest / "images" / name) for name in shown}
        assert f"with {len(shown)} image" in refusal or len(shown) == 1
        assert {each.severity for each in found} == {"error"}


def test_the_check_finds_a_dicom_picture_whichever_way_either_task_reads_it(tmp_path):
    """One as it is displayed, one as it was measured."""
    shown = {"labels": ("pneumonia",), "roi": (16, 16)}
    first, second = (write_images(tmp_path / name, 24, 0, "dicom", size=16) for name in "ab")
    for root in (first, second):
        for path in [path for path in root.rglob("*") if path.is_file() and is_dicom(path)]:
            picture = pydicom.dcmread(path)
            picture.WindowWidth = picture.WindowWidth / 5  # what is displayed has fewer grey values than were measured
            picture.PatientComments = root.name  # other bytes
            picture.save_as(path)
    configs = [
        images.Config(root=first, **shown),
        images.Config(root=second, split_seed=1, normalise="zscore", **shown),
    ]
    task, other = (Check(config, test=config is configs[0]) for config in configs)
    for each in (task, other):
        each.open_images(map, lambda done, total: None)
    cache, quiet = Cache(tmp_path / "cache"), lambda done, total: None
    found = [*leaks(task, other, cache, map)]
    assert len(found) > 3
    with pytest.raises(UserError, match=f"shows {len(found)} images which the task keeps for val or test"):
        refuse_leaks(task.task, other.task, True, cache, map, quiet)
