"""metrics.py against MONAI, scikit-learn and formulas written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.geometries import affines, gantry_tilt
from support.suite import examples

from premed.data.io.geometry import voxel_edges
from premed.tasks.common import metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own

spacings = st.tuples(*[st.floats(0.5, 5, width=32)] * 3)


@st.composite
def mask_pairs(draw):
    """Two random masks of one 3D shape, each with at least one voxel."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    pair = draw(arrays.arrays(bool, (2, *shape)))
    for mask in pair:
        mask[draw(st.tuples(*[st.integers(0, n - 1) for n in shape]))] = True
    return pair


def surface_by_hand(mask):
    """A voxel is surface if one of its face neighbours is not in the mask; outside the image nothing is."""
    voxels = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    steps = [sign * np.eye(mask.ndim, dtype=int)[axis] for axis in range(mask.ndim) for sign in (-1, 1)]
    return np.array([v for v in sorted(voxels) if any(tuple((v + step).tolist()) not in voxels for step in steps)])


def hd95_by_hand(prediction, truth, affine):
    """Voxel centres in mm by the whole affine, all distances by brute force."""
    ours, theirs = (surface_by_hand(mask) @ affine[:3, :3].T + affine[:3, 3] for mask in (prediction, truth))
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


def hd95_by_monai(prediction, truth, spacing):
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    ours, theirs = (torch.from_numpy(mask[None, None].copy()) for mask in (prediction, truth))
    return float(
        compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=list(spacing))
    )


def ball(shape, centre, radius):
    offset = np.indices(shape) - np.reshape(centre, (-1, *[1] * len(shape)))
    return np.linalg.norm(offset, axis=0) <= radius


@settings(deadline=None, max_examples=examples(50))
@given(mask_pairs())
def test_dice_is_the_overlap_over_the_mean_size(pair):
    a, b = pair
    assert metrics.dice(a, b) == pytest.approx((a & b).sum() / ((a.sum() + b.sum()) / 2))


@settings(deadline=None, max_examples=examples(50))
@given(mask_pairs(), spacings)
def test_hd95_is_what_brute_force_says(pair, spacing):
    a, b = pair
    assert metrics.hd95(a, b, spacing) == pytest.approx(hd95_by_hand(a, b, np.diag([*spacing, 1])))


@settings(deadline=None, max_examples=examples(50))
@given(arrays.arrays(np.uint8, (2, 5, 6, 4), elements=st.integers(0, 3)), spacings)
def test_a_row_has_the_scores_of_the_whole_masks_and_masks_are_those_of_isin(pair, spacing):
    regions = {"a": (1,), "b": (2, 3), "c": (7,), "d": (0,)}
    prediction, truth = ({name: metrics.mask_of(x, values) for name, values in regions.items()} for x in pair)
    for masks, labels in zip((prediction, truth), pair, strict=True):
        assert all((masks[name] == np.isin(labels, values)).all() for name, values in regions.items())
    row = metrics.region_row(prediction, truth, spacing)
    for name in regions:
        a, b = prediction[name], truth[name]
        assert row[f"dice/{name}"] == pytest.approx(metrics.dice(a, b), nan_ok=True, abs=0)
        assert row[f"hd95/{name}"] == pytest.approx(metrics.hd95(a, b, spacing), nan_ok=True, abs=0)


@settings(deadline=None, max_examples=examples(20))
@given(mask_pairs(), spacings)
def test_hd95_is_what_monai_says(pair, spacing):
    a, b = pair
    assert metrics.hd95(a, b, spacing) == pytest.approx(hd95_by_monai(a, b, spacing), rel=1e-5)


@pytest.mark.parametrize(
    "a, b",
    [
        (ball((40, 30, 20), (15, 15, 10), 8), ball((40, 30, 20), (18, 13, 9), 7)),
        (ball((40, 30, 20), (0, 0, 0), 9), ball((40, 30, 20), (39, 29, 19), 9)),  # at the border, far apart
        (ball((40, 30), (15, 15), 0), ball((40, 30), (18, 11), 0)),  # one pixel each
        (np.ones((12, 9, 7), bool), ball((12, 9, 7), (6, 4, 3), 2)),  # full
    ],
    ids=["balls", "corners", "one pixel", "full"],
)
def test_hd95_is_monais_on_shapes(a, b):
    spacing = (1.5, 0.7, 2.0)[: a.ndim]
    assert metrics.hd95(a, b, spacing) == pytest.approx(hd95_by_monai(a, b, spacing), rel=1e-6)


def test_hd95_is_in_millimetres():
    a, b = ball((20, 20), (5, 5), 0), ball((20, 20), (8, 9), 0)
    assert metrics.hd95(a, b, (1, 1)) == pytest.approx(5)
    assert metrics.hd95(a, b, (2, 2)) == pytest.approx(10)
    assert metrics.hd95(a, b, (4, 1)) == pytest.approx((12**2 + 4**2) ** 0.5)


@settings(deadline=None, max_examples=examples(60))
@given(mask_pairs(), affines(sheared=True))
def test_hd95_on_a_sheared_grid_goes_by_the_whole_affine(pair, affine):
    a, b = pair
    assert metrics.hd95(a, b, voxel_edges(affine)) == pytest.approx(hd95_by_hand(a, b, affine))


@settings(deadline=None, max_examples=examples(60))
@given(mask_pairs(), affines())
def test_hd95_on_a_grid_with_right_angles_needs_the_spacing_alone_to_the_last_bit(pair, affine):
    (a, b), spacing = pair, tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    assert metrics.hd95(a, b, voxel_edges(affine)) == metrics.hd95(a, b, spacing)
    assert metrics.hd95(a, b, affine[:3, :3]) == pytest.approx(metrics.hd95(a, b, spacing))


def test_hd95_in_a_ct_with_a_tilted_gantry():
    """Two voxels, 3 along y and 4 along z apart, of 1 × 2 × 5 mm; the gantry is tilted by 30 degrees."""
    a, b = ball((9, 9, 9), (4, 2, 2), 0), ball((9, 9, 9), (4, 5, 6), 0)
    y, z = 3 * 2 * np.cos(np.pi / 6), 3 * 2 * np.sin(np.pi / 6) + 4 * 5
    edges = voxel_edges(gantry_tilt((1, 2, 5), 30))
    assert metrics.hd95(a, b, edges) == pytest.approx(np.hypot(y, z)) == pytest.approx(23.58, abs=0.01)
    assert metrics.hd95(a, b, (1, 2, 5)) == pytest.approx(20.88, abs=0.01)  # as if its axes were at right angles


@settings(deadline=None, max_examples=examples(50))
@given(mask_pairs(), affines(sheared=True))
def test_a_missed_class_on_a_sheared_grid_is_as_far_as_no_two_voxels_are(pair, affine):
    (mask, _), corners = pair, np.array(list(np.ndindex(2, 2, 2)))
    far = (corners[:, None] - corners[None]).reshape(-1, 3) * mask.shape @ affine[:3, :3].T
    missed = metrics.hd95(np.zeros_like(mask), mask, voxel_edges(affine))
    assert missed == pytest.approx(np.linalg.norm(far, axis=1).max())


@settings(deadline=None, max_examples=examples(50))
@given(mask_pairs(), spacings, st.permutations(range(3)), st.integers(0, 2))
def test_turning_and_flipping_the_image_changes_no_score(pair, spacing, order, axis):
    (a, b), turned_spacing = pair, [spacing[i] for i in order]
    turned_a, turned_b = (np.flip(mask.transpose(order), axis) for mask in pair)
    assert metrics.dice(turned_a, turned_b) == metrics.dice(a, b)
    assert metrics.hd95(turned_a, turned_b, turned_spacing) == pytest.approx(metrics.hd95(a, b, spacing))


@settings(deadline=None, max_examples=examples(50))
@given(mask_pairs(), spacings)
def test_scores_are_symmetric_and_perfect_for_itself(pair, spacing):
    a, b = pair
    assert metrics.hd95(a, b, spacing) == metrics.hd95(b, a, spacing)
    assert (metrics.dice(a, a), metrics.hd95(a, a, spacing)) == (1, 0)


def test_masks_of_another_shape_or_spacing_are_refused():
    mask = np.ones((3, 4), bool)
    with pytest.raises(ValueError, match=r"\(3, 4\) is not the truth's, \(4, 3\)"):
        metrics.dice(mask, mask.T)
    for spacing in ((1, 1, 1), np.eye(3)):
        with pytest.raises(ValueError, match="has 3 numbers"):
            metrics.hd95(mask, mask, spacing)


def test_hd95_of_a_real_label_moved_by_a_voxel_is_its_spacing(real):
    from nibabel.nifti1 import Nifti1Image

    path = min((real("Task04_Hippocampus") / "labelsTr").glob("hippo*.nii.gz"))
    mask = np.asarray(Nifti1Image.from_filename(path).dataobj) > 0
    moved = np.roll(mask, 1, axis=0)
    assert metrics.hd95(mask, moved, (2, 1, 1)) == pytest.approx(hd95_by_monai(mask, moved, (2, 1, 1)))
    assert 0 < metrics.hd95(mask, moved, (2, 1, 1)) <= 2


# --- segmentation tables

EMPTY, LEFT, RIGHT = np.zeros((3, 4), bool), ball((3, 4), (1, 0), 0), ball((3, 4), (1, 3), 0)


def row(prediction, truth):
    return metrics.region_row({"organ": prediction}, {"organ": truth}, (2, 2))


def test_a_missed_or_invented_class_costs_all_there_is_to_lose():
    assert row(EMPTY, LEFT) == {"dice/organ": 0, "hd95/organ": 10, "state/organ": "missed"}  # hypot(3 × 2, 4 × 2)
    assert row(LEFT, EMPTY) == {"dice/organ": 0, "hd95/organ": 10, "state/organ": "invented"}
    assert row(LEFT, RIGHT) == {"dice/organ": 0, "hd95/organ": 6, "state/organ": "both"}


def test_a_class_absent_in_both_has_no_score():
    absent = row(EMPTY, EMPTY)
    assert absent["state/organ"] == "absent"
    assert np.isnan([absent["dice/organ"], absent["hd95/organ"]]).all()


def test_the_summary_means_over_cases_then_over_classes_and_counts_the_rest():
    masks = {"a": (LEFT, LEFT), "b": (LEFT, RIGHT)}, {"a": (EMPTY, LEFT), "b": (EMPTY, EMPTY)}
    rows = [metrics.region_row({n: m[0] for n, m in c.items()}, {n: m[1] for n, m in c.items()}, (2, 2)) for c in masks]
    assert metrics.segmentation_summary(rows, ("a", "b")) == {
        "dice/a": 0.5, "dice/b": 0, "dice": 0.25, "hd95/a": 5, "hd95/b": 6, "hd95": 5.5,
        "n_missed": 1, "n_invented": 0, "n_excluded": 1,
    }  # fmt: skip


def test_a_class_without_a_case_is_left_out_of_the_summary():
    nothing = {"n_missed": 0, "n_invented": 0, "n_excluded": 1}
    assert metrics.segmentation_summary([row(EMPTY, EMPTY)], ("organ",)) == nothing
    assert metrics.segmentation_summary([], ("organ",)) == nothing | {"n_excluded": 0}


def findings(truth, probability):
    """Rows of one class `x`, one patient each."""
    pairs = enumerate(zip(truth, probability, strict=True))
    return [{"patient": str(i), "y/x": y, "p/x": p} for i, (y, p) in pairs]


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=30))
def test_auc_is_sklearns_ties_included(pairs):
    from sklearn.metrics import roc_auc_score

    truth, probability = np.array(pairs).T
    summary = metrics.auc_summary(findings(truth, probability / 7), ("x",))
    if 0 < truth.sum() < len(truth):
        assert summary["auc/x"] == pytest.approx(roc_auc_score(truth, probability))
    else:
        assert summary == {"n_undefined": 1}


def test_an_undefined_auc_is_named_and_left_out_of_the_mean():
    rows = [{"y/a": y, "p/a": y, "y/b": 0, "p/b": 0.5, "y/c": None, "p/c": 0.5} for y in (0, 1)]
    assert metrics.auc_summary(rows, ("a", "b", "c")) == {"auc/a": 1, "mauc": 1, "n_undefined": 2}


def test_unknown_labels_move_no_auc():
    known = findings([0, 1, 0, 1, 1], [0.1, 0.4, 0.6, 0.6, 0.2])
    unknown = findings([np.nan, None], [0.3, 0.99])
    assert metrics.auc_summary(known + unknown, ("x",)) == metrics.auc_summary(known, ("x",))


def test_a_nan_prediction_is_refused_by_name():
    with pytest.raises(ValueError, match="p/x of row 1 is nan"):
        metrics.auc_summary(findings([0, 1], [0.1, np.nan]), ("x",))


def test_accuracy_is_the_share_of_cases_whose_highest_p_is_the_truth():
    table = [("a", 0.9, 0.1), ("a", 0.2, 0.8), ("b", 0.3, 0.7), ("b", 0.1, 0.9)]
    rows = [{"y/a": y == "a", "y/b": y == "b", "p/a": a, "p/b": b} for y, a, b in table]
    assert metrics.accuracy_summary(rows, ("a", "b")) == {"accuracy": 0.75, "accuracy/a": 0.5, "accuracy/b": 1}
    unknown = {"y/a": None, "y/b": None, "p/a": 0.5, "p/b": 0.5}
    assert metrics.accuracy_summary([*rows, unknown], ("a", "b"))["accuracy"] == 0.75
    assert metrics.accuracy_summary([unknown], ("a", "b")) == {}
