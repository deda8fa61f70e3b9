"""Made-up CTs and brains: they look like what they are, differ from each other, and lie on disk as real ones do."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.phantoms import bytes_of, dice

from premed.data.phantoms.abdomen import NUMBERS, abdomen, write_btcv
from premed.data.phantoms.brain import brain, write_brats
from premed.errors import UserError
from premed.rng import SampleRng, key
from premed.tasks.btcv import ORGANS, TEST, TRAIN
from premed.tasks.common.label_maps import sample_atlas
from premed.tasks.common.metrics import dice as measured_dice

SHAPE = (64, 64, 44)
CENTRES = {  # in a supine patient (right, front, head), against the vertebrae: who lies on which side of whom
    "liver": (1, 0, 0), "gallbladder": (1, 1, 0), "right_kidney": (1, 0, 0), "inferior_vena_cava": (1, 0, 0),
    "spleen": (-1, 0, 0), "left_kidney": (-1, 0, 0), "stomach": (-1, 1, 0), "esophagus": (-1, 0, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def abdomens() -> list[tuple]:
    return [abdomen(SampleRng(key("test", i)), SHAPE) for i in range(6)]


@pytest.fixture(scope="module")
def brains() -> list[tuple]:
    return [brain(SampleRng(key("test", i)), (56, 56, 40)) for i in range(10)]


def where(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


# Abdomen -------------------------------------------------------------------------------------------------------------


def test_every_abdomen_has_the_13_organs_each_in_one_place(abdomens):
    for image, label, affine in abdomens:
        assert image.shape == label.shape == SHAPE and image.dtype == np.int16 and label.dtype == np.uint8
        assert set(np.unique(label)) == set(range(14))
        spine = np.array([0.0, -38, 0])
        for organ, signs in CENTRES.items():
            at = where(label == ORGANS.index(organ) + 1, affine) - spine
            assert all(sign == 0 or sign * place > 0 for sign, place in zip(signs, at, strict=True)), (organ, at)


def test_organs_have_the_volumes_and_densities_of_patients(abdomens):
    """In millilitres and Hounsfield units, of the tissue with and without contrast medium."""
    volumes = {
        "liver": (700, 2400),
        "spleen": (40, 450),
        "right_kidney": (60, 300),
        "aorta": (30, 220),
        "pancreas": (8, 110),
    }
    for image, label, affine in abdomens:
        for organ, (low, high) in volumes.items():
            inside = label == ORGANS.index(organ) + 1
            assert low < inside.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000 < high, organ
            assert 20 < np.median(image[inside]) < 230, organ
        assert image.min() >= -1024 and -1024 <= np.median(image[:3, :3]) < -950  # air in the corners
        body = image[(image > -300) & (label == 0)]
        assert 0.1 < np.mean((body > -140) & (body < -70)) < 0.9  # fat
        assert np.percentile(image, 99.9) > 250  # bone


def test_patients_differ_in_place_size_and_contrast(abdomens):
    labels = [label for _, label, _ in abdomens]
    for organ in ("liver", "left_kidney", "pancreas", "gallbladder"):
        masks = [label == ORGANS.index(organ) + 1 for label in labels]
        overlaps = [dice(a, b) for i, a in enumerate(masks) for b in masks[:i]]
        assert max(overlaps) < 0.93 and min(overlaps) < 0.7, organ
    livers = [float(np.median(image[label == 6])) for image, label, _ in abdomens]
    assert np.ptp(livers) > 15
    assert len({affine[0, 0] for _, _, affine in abdomens}) == len(abdomens)


@pytest.mark.slow
def test_the_mean_label_does_not_find_the_organs_nor_the_tumours():
    """Place alone tells little: on 4 of 16 patients, the body's box stretched to one size."""
    score = {}
    for name, classes, make in (("abdomen", 14, abdomen), ("brain", 4, brain)):
        maps = []
        for i in range(16):
            image, label, _ = make(SampleRng(key("mean", i)), (36, 36, 26))
            inside = np.argwhere(image > -175 if name == "abdomen" else image[..., 0] > 0)
            maps.append(
                sample_atlas(label[tuple(slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))])
            )
        atlas = np.stack([np.mean([labels == k for labels in maps[:12]], axis=0) for k in range(classes)])
        answers = [(1 - atlas[0] >= share) * (1 + atlas[1:].argmax(axis=0)) for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
        pairs = [(labels, k) for labels in maps[12:] for k in range(1, classes)]
        scores = [np.nanmean([measured_dice(a == k, labels == k) for labels, k in pairs]) for a in answers]
        score[name] = max(scores)
    assert score["abdomen"] < 0.42 and score["brain"] < 0.2, score


@pytest.mark.parametrize("make", [lambda d, s: abdomen(d, s), lambda d, s: brain(d, s)], ids=["abdomen", "brain"])
def test_the_same_draw_is_the_same_patient_at_any_resolution(make):
    (image, label, affine), again = make(SampleRng(3), (48, 48, 32)), make(SampleRng(3), (48, 48, 32))
    assert all(np.array_equal(a, b) for a, b in zip((image, label, affine), again, strict=True))
    assert not np.array_equal(label, make(SampleRng(4), (48, 48, 32))[1])
    _, fine, _ = make(SampleRng(3), (96, 96, 64))
    assert dice(fine[::2, ::2, ::2] > 0, label > 0) > 0.75


# Brain ---------------------------------------------------------------------------------------------------------------


def test_a_brain_has_four_channels_and_nothing_around_it(brains):
    for image, label, _ in brains:
        assert image.shape == (56, 56, 40, 4) and image.dtype == np.float32 and label.dtype == np.uint8
        inside = image[..., 0] != 0
        assert 0.1 < inside.mean() < 0.3 and all(np.array_equal(image[..., c] != 0, inside) for c in range(4))
        assert not (label[~inside] > 0).any()


def test_tumours_are_nested_and_differ(brains):
    from scipy.ndimage import binary_dilation

    found = [set(np.unique(label)) for _, label, _ in brains]
    assert all({0, 1} < some <= {0, 1, 2, 3} for some in found) and {0, 1, 2, 3} in found
    outside = []
    for _, label, _ in brains:
        around = binary_dilation(label >= 2) & (label < 2)
        outside.append(np.mean(label[around] == 0))  # where a core meets sulci or the brain's surface
    assert np.mean(outside) < 0.5
    wholes = [label > 0 for _, label, _ in brains]
    assert np.median([dice(a, b) for i, a in enumerate(wholes) for b in wholes[:i]]) < 0.2


def test_contrast_medium_lights_up_label_3_and_not_label_2(brains):
    """The data test of MSD's labels: T1 with gadolinium is brighter in 3 than in 2; edema is brightest on FLAIR."""
    some = [(image, label) for image, label, _ in brains if {2, 3} <= set(np.unique(label))]
    assert len(some) >= 5
    for image, label in some:
        assert image[label == 3, 2].mean() > 1.15 * image[label == 2, 2].mean()
    for image, label, _ in brains:
        normal = (image[..., 0] > 0) & (label == 0)
        assert image[label == 1, 0].mean() > 1.2 * image[normal, 0].mean()
        fluid = image[..., 3] > np.percentile(image[normal, 3], 97)
        assert image[fluid & normal, 0].mean() < image[normal, 0].mean()  # bright on T2, dark on FLAIR


# Folders -------------------------------------------------------------------------------------------------------------


def test_btcv_phantoms_lie_as_downloaded_under_btcv_s_numbers(tmp_path):
    assert sorted(NUMBERS) == [*range(1, 11), *range(21, 41)]
    write_btcv(tmp_path, 5, seed=1, num_unlabelled=1, shape=(24, 24, 16))
    images = sorted(path.name for path in (tmp_path / "Training/img").iterdir())
    assert images == [f"img{n:04d}.nii.gz" for n in (1, 2, 5, 6, 7)]
    assert sorted(path.name for path in (tmp_path / "Training/label").iterdir()) == [
        name.replace("img", "label") for name in images
    ]
    assert [path.name for path in (tmp_path / "Testing/img").iterdir()] == ["img0061.nii.gz"]
    first = {f"img{n:04d}" for n in NUMBERS[:5]}
    assert len(first & {*TRAIN}) == 3 and len(first & {*TEST}) == 2


def test_brats_phantoms_have_task01_s_listing_and_4d_files(tmp_path, real):
    write_brats(tmp_path, 2, seed=1, num_unlabelled=1, shape=(24, 24, 16))
    ours, theirs = (json.loads((at / "dataset.json").read_text()) for at in (tmp_path, real("Task01_BrainTumour")))
    assert list(ours) == list(theirs) and [ours[field] for field in ("modality", "labels")] == [
        theirs[field] for field in ("modality", "labels")
    ]
    assert (ours["numTraining"], ours["numTest"], len(ours["training"])) == (2, 1, 2)
    files = [file for entry in ours["training"] for file in entry.values()] + ours["test"]
    shapes = [nib.nifti1.load(tmp_path / file).shape for file in files]
    assert [len(shape) for shape in shapes] == [4, 3, 4, 3, 4] and shapes[0][3] == 4


@pytest.mark.parametrize("write", [write_btcv, write_brats])
def test_image_and_label_share_a_grid_and_files_lie_in_several_ways(tmp_path, write):
    write(tmp_path, 6, seed=0, shape=(20, 20, 16))
    labels = sorted(tmp_path.rglob("label*/*.nii.gz"))
    axes, spacings = set(), set()
    for path in labels:
        image = path.parents[1] / path.parent.name.replace("labels", "images").replace("label", "img")
        image = nib.nifti1.load(image / path.name.replace("label", "img"))
        label = nib.nifti1.load(path)
        assert image.shape[:3] == label.shape and np.allclose(image.affine, label.affine)
        axes.add(nib.aff2axcodes(image.affine))
        spacings.add(tuple(np.round(label.header.get_zooms(), 3)))
    assert len(labels) == 6 and len(axes) > 1 and len(spacings) == 6


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for write in (write_btcv, write_brats):
        folders = [
            write(tmp_path / f"{write.__name__} {i}", 1, seed, shape=(20, 20, 16)) for i, seed in enumerate((1, 1, 2))
        ]
        first, again, other = (bytes_of(folder) for folder in folders)
        assert first == again and first.items().isdisjoint(other.items())


def test_phantoms_are_never_written_over_somebody_s_data(tmp_path):
    for folder, write in ((tmp_path / "ct", write_btcv), (tmp_path / "mri", write_brats)):
        (folder / "Training").mkdir(parents=True)
        (folder / "dataset.json").touch()
        with pytest.raises(UserError, match="name another folder"):
            write(folder, 1, 0)


def test_real_task01_brightness_agrees_with_what_the_brains_are_drawn_with(real, brains):
    """Fluid is dark on T1 and bright on T2, in the real brain and in the made-up ones."""
    path = real("Task01_BrainTumour") / "imagesTr" / "BRATS_001.nii.gz"
    whole = np.asarray(nib.nifti1.load(path).dataobj[::3, ::3, ::3]).astype(np.float32)
    for image in (whole, *(image for image, _, _ in brains[:3])):
        inside = image[..., 0] > 0
        t1, t2 = image[inside, 1], image[inside, 3]
        assert t1[t2 > np.percentile(t2, 95)].mean() < 0.95 * t1.mean()


@pytest.mark.slow
def test_size_and_number_are_free(tmp_path):
    root = Path(write_btcv(tmp_path / "ct", 32, seed=0, shape=(9, 8, 7)))
    numbers = [int(path.name[3:7]) for path in (root / "Training/img").iterdir()]
    assert sorted(numbers) == [*range(1, 11), *range(21, 41), 111, 112]
