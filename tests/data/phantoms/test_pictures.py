"""Phantoms look like what they stand for, can be learnt (not perfectly), and lie on disk as the real data sets do."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.phantoms import bytes_of, dice
from support.suite import examples

from premed.data.phantoms.chest import FINDINGS, chest
from premed.data.phantoms.hippocampus import hippocampus
from premed.data.phantoms.shapes import noise, transform_points
from premed.data.phantoms.writers import write_chestxray14, write_msd
from premed.errors import UserError
from premed.rng import SampleRng, key


@pytest.fixture(scope="module")
def chests() -> tuple[np.ndarray, np.ndarray]:
    """Pictures [600, 64, 64] in 0..1 and findings [600, 14]."""
    drawn = [chest(SampleRng(key("test", i)), 64) for i in range(600)]
    return np.stack([image for image, _ in drawn]) / np.float32(255), np.array([list(f.values()) for _, f in drawn])


@pytest.fixture(scope="module")
def blocks() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels [60, 32, 48, 32]."""
    drawn = [hippocampus(SampleRng(key("test", i)), (32, 48, 32)) for i in range(60)]
    return np.stack([image / image.mean() for image, _, _ in drawn]), np.stack([label for _, label, _ in drawn])


@pytest.fixture(scope="module")
def nih(tmp_path_factory) -> Path:
    return write_chestxray14(tmp_path_factory.mktemp("nih"), num_patients=12, seed=1, size=32)


@pytest.fixture(scope="module")
def msd(tmp_path_factory) -> Path:
    return write_msd(tmp_path_factory.mktemp("msd"), num_cases=8, seed=1, num_unlabelled=2)


def patches(images: np.ndarray, p: int = 8) -> np.ndarray:
    """[N, *S] cut into [N, *grid, p**dims]."""
    dims = images.ndim - 1
    views = np.lib.stride_tricks.sliding_window_view(images, (p,) * dims, tuple(range(1, dims + 1)))
    views = views[(slice(None), *[slice(None, None, p)] * dims)]
    return views.reshape(*views.shape[: dims + 1], p**dims)


def normalised(p: np.ndarray) -> np.ndarray:
    return (p - p.mean(-1, keepdims=True)) / np.sqrt(p.var(-1, keepdims=True) + 1e-6)


def gate(images: np.ndarray, p: int = 8) -> float:
    """MAE's loss where each patch is answered with the mean normalised patch of its position (the last quarter)."""
    target, train = normalised(patches(images, p)), len(images) * 3 // 4
    return float(np.mean((target[train:] - target[:train].mean(0)) ** 2))


def context_loss(images: np.ndarray, p: int = 8) -> float:
    """The same loss where a patch is answered by ridge regression from the patches before and after it on each axis."""
    cut, train = patches(images, p), len(images) * 3 // 4
    inner = (slice(None), *[slice(1, -1)] * (images.ndim - 1))
    around = [np.roll(cut, step, axis)[inner] for axis in range(1, images.ndim) for step in (1, -1)]
    seen, target = normalised(np.concatenate(around, -1)), normalised(cut)[inner]
    a, b = (part[:train].reshape(-1, part.shape[-1]) for part in (seen, target))
    weights = np.linalg.solve(a.T @ a + 300 * np.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    return float(np.mean((seen[train:] @ weights - target[train:]) ** 2))


def edges(images: np.ndarray) -> np.ndarray:
    """What a reader by hand might use: how much edge of each of 8 directions lies in each of 4 × 4 fields, [N, 128]."""
    dy, dx = np.gradient(images, axis=(1, 2))
    direction = np.floor((np.arctan2(dy, dx) / np.pi + 1) * 4) % 8
    strength = [np.hypot(dy, dx) * (direction == k) for k in range(8)]
    return np.concatenate(
        [patches(part, images.shape[1] // 4).sum(-1).reshape(len(images), -1) for part in strength], 1
    )


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "Data_Entry_2017_v2020.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- pictures


@pytest.mark.parametrize("size", [32, 65, 96])
def test_a_chest_has_the_size_asked_for_and_the_14_findings(size):
    image, found = chest(SampleRng(3), size)
    assert image.shape == (size, size) and image.dtype == np.uint8 and image.std() > 20
    assert tuple(found) == FINDINGS and all(isinstance(value, bool) for value in found.values())


def test_the_same_key_draws_the_same_chest_and_another_key_another():
    assert np.array_equal(chest(SampleRng(1), 48)[0], chest(SampleRng(1), 48)[0])
    assert not np.array_equal(chest(SampleRng(1), 48)[0], chest(SampleRng(2), 48)[0])


def test_the_same_key_draws_the_same_hippocampus_and_another_key_another():
    first, again, other = (hippocampus(SampleRng(k), (24, 40, 24)) for k in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


@pytest.mark.slow
def test_prevalence_is_what_was_asked_for(chests):
    rates = dict(zip(FINDINGS, chests[1].mean(0), strict=True))
    assert 0.10 < rates["Effusion"] < 0.20 and 0.04 < rates["Hernia"] < 0.12
    assert not any(any(chest(SampleRng(i), 16, prevalence=0.0)[1].values()) for i in range(20))


def test_all_findings_at_once_still_make_a_picture():
    image, found = chest(SampleRng(8), 64, prevalence=100.0)
    assert image.std() > 20 and (all(found.values()) or not any(found.values()))


@pytest.mark.slow
def test_findings_can_be_learnt_but_not_perfectly(chests):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    names = ("Cardiomegaly", "Effusion", "Infiltration", "Edema")
    truths = [chests[1][:, FINDINGS.index(name)] for name in names]
    answers = [cross_val_predict(model, edges(chests[0]), y, cv=3, method="decision_function") for y in truths]
    auc = [roc_auc_score(y, answer) for y, answer in zip(truths, answers, strict=True)]
    assert sum(score > 0.65 for score in auc) >= 3 and max(auc) < 0.99, auc


@pytest.mark.slow
def test_a_chest_is_hard_to_guess_from_position_and_easier_from_context(chests):
    assert gate(chests[0]) > 0.75
    assert context_loss(chests[0]) < 0.6 * gate(chests[0])


@pytest.mark.slow
def test_a_hippocampus_block_is_hard_to_guess_from_position_and_easier_from_context(blocks):
    assert gate(blocks[0]) > 0.75
    assert context_loss(blocks[0], p=4) < 0.75 * gate(blocks[0], p=4)


def test_the_mean_label_does_not_find_the_hippocampus(blocks):
    labels = blocks[1]
    shares = np.stack([(labels[:45] == k).mean(0) for k in (1, 2)])
    answers = [np.where(shares.max(0) > level, 1 + shares.argmax(0), 0) for level in (0.1, 0.2, 0.3, 0.4, 0.5)]
    scores = [np.mean([dice(answer == k, label == k) for label in labels[45:] for k in (1, 2)]) for answer in answers]
    assert max(scores) < 0.45


def test_every_hippocampus_has_a_front_before_its_back(blocks):
    for label in blocks[1]:
        front, back = (np.argwhere(label == k) for k in (1, 2))
        assert len(front) > 100 and len(back) > 100
        assert front[:, 1].min() > back[:, 1].max()


def test_the_hippocampus_is_no_brighter_than_its_grey_surroundings(blocks):
    inside = np.median(blocks[0][blocks[1] > 0])
    share = np.mean(abs(blocks[0][blocks[1] == 0] - inside) < 0.1 * inside)
    assert share > 0.05  # intensity alone would mark more voxels outside than there are inside


# ---- what they are drawn with


@settings(max_examples=examples(25), deadline=None)
@given(st.integers(), st.lists(st.integers(5, 24), min_size=1, max_size=3), st.floats(0.3, 6))
def test_noise_has_mean_zero_and_deviation_one_at_any_smoothness(seed, shape, smooth):
    field = noise(SampleRng(key(seed)), "field", shape, smooth)
    assert field.shape == tuple(shape) and field.dtype == np.float32
    assert abs(field.mean()) < 1e-3 and abs(field.std() - 1) < 1e-2


def test_turned_points_are_those_of_a_body_that_was_turned_and_moved():
    rotation, shift = np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([3.0, 4.0])
    body = np.array([[1.0, 2.0], [5.0, -1.0]])  # two points, as columns
    assert np.allclose(transform_points(rotation @ body + shift[:, None], rotation, shift), body)


# ---- folders


def test_the_chest_table_has_nih_columns(nih, real):
    header = "Data_Entry_2017_v2020.csv"
    theirs = (real("chestxray14") / header).read_bytes().splitlines()[0]
    assert (nih / header).read_bytes().splitlines()[0] == theirs
    assert set(table(nih)[0]) == set(table(real("chestxray14"))[0])


def test_each_chest_of_the_table_is_on_disk_and_in_one_list(nih):
    names = [row["Image Index"] for row in table(nih)]
    train, test = ((nih / f"{part}_list.txt").read_text().split() for part in ("train_val", "test"))
    assert sorted(names) == sorted(train + test) == sorted(path.name for path in (nih / "images").iterdir())
    assert train and test and not {name[:8] for name in train} & {name[:8] for name in test}


def test_chest_rows_agree_with_their_names_and_labels(nih):
    for row in table(nih):
        assert row["Image Index"] == f"{int(row['Patient ID']):08d}_{int(row['Follow-up #']):03d}.png"
        assert row["Finding Labels"] == "No Finding" or set(row["Finding Labels"].split("|")) <= set(FINDINGS)
        assert row["OriginalImage[Width"] == row["Height]"] == "32"


def test_dataset_json_has_the_fields_of_msd_and_lists_what_is_on_disk(msd, real):
    ours, theirs = (json.loads((at / "dataset.json").read_text()) for at in (msd, real("Task04_Hippocampus")))
    assert list(ours) == list(theirs) and ours["labels"] == theirs["labels"]
    assert ours["numTraining"] == len(ours["training"]) == 10
    assert all((msd / path).is_file() for entry in ours["training"] for path in entry.values())
    assert ["label" in entry for entry in ours["training"]] == [True] * 8 + [False] * 2


def test_image_and_label_lie_on_the_same_grid_in_several_orientations(msd):
    axes = set()
    for entry in json.loads((msd / "dataset.json").read_text())["training"][:8]:
        image, label = (nib.Nifti1Image.from_filename(msd / entry[part]) for part in ("image", "label"))
        assert image.shape == label.shape and np.array_equal(image.get_sform(), label.get_sform())
        assert set(np.unique(label.dataobj)) == {0, 1, 2}
        axes.add(nib.aff2axcodes(image.affine))
    assert len(axes) > 1


def test_a_stored_block_turned_back_to_ras_is_the_drawn_one(msd):
    for number in range(4):
        _, label, affine = hippocampus(SampleRng(key(1, "hippocampus", number)))
        stored = nib.as_closest_canonical(
            nib.Nifti1Image.from_filename(msd / "labelsTr" / f"hippocampus_{number + 1:03d}.nii.gz")
        )
        assert np.array_equal(np.asarray(stored.dataobj), label) and np.allclose(stored.affine, affine, atol=1e-4)


def test_the_same_seed_writes_the_same_bytes(nih, msd, tmp_path):
    assert bytes_of(write_chestxray14(tmp_path / "a", 12, 1, 32)) == bytes_of(nih)
    assert bytes_of(write_msd(tmp_path / "b", 8, 1, 2)) == bytes_of(msd)
    assert bytes_of(write_msd(tmp_path / "c", 1, 2)).items().isdisjoint(bytes_of(msd).items())


def test_phantoms_are_never_written_over_somebodys_data(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="name another folder"):
        write_msd(tmp_path, 1, 0)
    assert (tmp_path / "dataset.json").read_text() == "{}"


def test_too_few_patients_for_two_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match="num_patients"):
        write_chestxray14(tmp_path, 1, 0)
