"""The numbers that `premed init` chooses, against their rules written out."""

from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.suite import examples

from premed.contracts import Case
from premed.data.io.headers import Header
from premed.data.survey import Survey, Values, survey
from premed.planning import document, images, init, training
from premed.planning.choices import Choice
from premed.planning.folder import Looked
from premed.planning.machine import Machine

TWO_CORES, GPU = Machine(2, 16.0), Machine(16, 128.0, (80.0,))


def volumes(*grids, values=(0.0, 1.0, 50.0, 99.0, 100.0), labelled=None, **facts) -> Survey:
    """What a survey of volumes of (shape, spacing) found."""
    headers = [Header(shape, spacing, 1) for shape, spacing in grids]
    return Survey(len(headers), headers, values=Values(values, 3), labelled=labelled and Values(labelled, 3), **facts)


def pictures(*shapes, **facts) -> Survey:
    return Survey(len(shapes), [Header(shape, (), 1) for shape in shapes], values=Values((0, 1, 9, 90, 99), 3), **facts)


def test_a_small_volume_is_seen_as_a_whole_at_its_own_spacing():
    grid = images.volume_grid(volumes(((35, 50, 36), (1.0, 1.0, 1.0))), TWO_CORES, dense=True)
    assert grid.roi == (32, 48, 32) and grid.patch == 8  # experiments/hippocampus/small.yaml
    assert grid.choices["spacing"].value == [1.0, 1.0, 1.0] and grid.tokens == 4 * 6 * 4


def test_what_is_said_of_the_roi_and_of_images_that_are_smaller_is_one_story():
    """Edges are whole patches: along some the roi has less than the image, along others more."""
    grids = [((35, 50, 36), (1.0, 1.0, 1.0)), ((35, 50, 37), (1.0, 1.0, 1.0)), ((40, 44, 37), (1.0, 1.0, 1.0))]
    grid = images.volume_grid(volumes(*grids), TWO_CORES, dense=True)
    assert grid.roi == (32, 48, 40)
    share = "91 to 108 % of the edges of the median image, 35 × 50 × 37 voxels at this spacing"
    assert f": {share} (it is padded to more than 100 %); patches of 8" in grid.choices["roi"].why
    assert grid.notes == [
        "3 of 3 images are smaller than the roi [32, 48, 40] along some edge, by 4 voxels at most: an edge is a whole "
        "number of patches of 8; they are padded there"
    ]
    half = images.volume_grid(volumes(((80, 80, 80), (1.0, 1.0, 1.0))), TWO_CORES, dense=True)
    assert "50 % of the edges of the median image" in half.choices["roi"].why and half.notes == []
    assert "the roi has 50 % of an edge" in training.pretrain_views(data(dense=True), half).why


def test_where_half_an_image_is_too_much_the_finest_edges_of_voxels_grow_first():
    found = volumes(((320, 320, 20), (0.6, 0.6, 3.0)))
    grid = images.volume_grid(found, TWO_CORES, dense=True)
    x, y, z = grid.choices["spacing"].value
    assert x == y > 0.6 and z == 3.0 and prod(grid.roi) <= 64_000
    assert all(
        edge * step >= 0.4 * whole for edge, step, whole in zip(grid.roi, (x, y, z), (192, 192, 60), strict=True)
    )
    assert images.volume_grid(found, GPU, dense=True).choices["spacing"].value == [0.6, 0.6, 3.0]


def test_of_several_spacings_the_median_counts_and_a_wide_range_is_noted():
    grids = [((40, 40, 40), (1.0, 1.0, step)) for step in (1.0, 1.0, 1.2, 2.0, 2.5)]
    grid = images.volume_grid(volumes(*grids), TWO_CORES, dense=True)
    assert grid.choices["spacing"].value[2] == 1.2
    assert grid.notes[0].startswith("spacings are mixed: 1 to 2.5 mm along S")
    alike = images.volume_grid(
        volumes(*[((40, 40, 40), (1.0, 1.0, step)) for step in (1.0, 1.4)]), TWO_CORES, dense=True
    )
    assert not any("mixed" in note for note in alike.notes)


def test_the_spacing_of_a_task_s_papers_holds_unless_images_are_far_coarser():
    own = (1.5, 1.5, 2.0)
    fine, coarse = volumes(((64, 64, 40), (0.8, 0.8, 3.0))), volumes(((40, 40, 40), (6.0, 6.0, 6.0)))
    assert images.volume_grid(fine, GPU, True, own).choices["spacing"].value == [1.5, 1.5, 2.0]
    assert images.volume_grid(coarse, GPU, True, own).choices["spacing"].value == [6.0, 6.0, 6.0]


edges, steps = st.tuples(*[st.integers(4, 600)] * 3), st.tuples(*[st.floats(0.2, 8)] * 3)


@settings(max_examples=examples(200))
@given(st.lists(st.tuples(edges, steps), min_size=1, max_size=4), st.booleans(), st.sampled_from([TWO_CORES, GPU]))
def test_a_roi_is_affordable_and_divisible_and_voxels_never_finer_than_the_median(grids, dense, machine):
    found = volumes(*grids)
    grid = images.volume_grid(found, machine, dense)
    assert prod(grid.roi) <= images.affordable_voxels(machine, dense)
    assert all(edge % grid.patch == 0 and edge > 0 for edge in grid.roi)
    median = np.median(found.spacings, axis=0)
    assert (np.array(grid.choices["spacing"].value) >= 0.99 * median).all()
    plan = training.plan(data(dense=dense), grid, machine)
    assert yaml.safe_load(document.text(["x"], grid.choices | plan.choices))


HOUNSFIELD = (-1024.0, -1020.0, -500.0, 900.0, 2000.0)


def test_the_window_of_a_ct_is_that_of_what_is_labelled_a_tenth_wider():
    found = volumes(((40, 40, 40), (1, 1, 1)), values=HOUNSFIELD, labelled=(-300.0, -97.0, 60.0, 203.0, 500.0))
    choices, notes = images.volume_values(found, ["CT"], 1)
    assert choices["window"].value == [-130, 235]  # -97 - 30 and 203 + 30, to the next multiples of 5
    assert (choices["percentiles"].value, choices["normalise"].value, notes) == (None, "window", [])


@pytest.mark.parametrize(("lungs", "window"), [(0.3, [-1000, 400]), (0.01, [-175, 250])])
def test_without_labels_it_is_that_of_a_chest_or_of_soft_tissue(lungs, window):
    found = volumes(((40, 40, 40), (1, 1, 1)), values=HOUNSFIELD, lung_share=lungs)
    assert images.volume_values(found, ["CT"], 1)[0]["window"].value == window


@pytest.mark.parametrize(
    ("values", "channels", "num", "words"),
    [
        ((0.0, 1.0, 50.0, 200.0, 255.0), ["CT"], 1, "called CT, but values are 0 to 255"),
        (HOUNSFIELD, ["image"], 1, "taken as Hounsfield units"),
        (HOUNSFIELD, ["CT", "PET"], 2, "one of several channels"),
        ((0.0, 1.0, 50.0, 900.0, 2000.0), ["T2"], 1, ""),
        ((-300.0, -20.0, 50.0, 900.0, 2000.0), ["ADC"], 1, ""),
    ],
)
def test_a_window_is_set_for_hounsfield_units_alone(values, channels, num, words):
    choices, notes = images.volume_values(volumes(((40, 40, 40), (1, 1, 1)), values=values), channels, num)
    assert ("window" in choices) == ("taken as" in words)
    assert [words in note for note in notes] == ([True] if words else [])


def test_where_the_background_was_removed_it_stays_zero():
    found = volumes(((40, 40, 40), (1, 1, 1)), zero_share=0.6)
    choices = images.volume_values(found, ["T1"], 1)[0]
    assert choices["normalise"].value == "zscore_nonzero" and choices["crop_foreground"].value is True


@pytest.mark.parametrize(
    ("shape", "roi", "patch"),
    [((28, 28), (28, 28), 4), ((64, 64), (64, 64), 8), ((1024, 1000), (96, 96), 12), ((500, 1000), (48, 96), 12)],
)
def test_pictures_keep_their_shape_and_have_some_sixty_patches(shape, roi, patch):
    grid = images.picture_grid(pictures(shape), TWO_CORES)
    assert (grid.roi, grid.patch) == (roi, patch) and grid.tokens <= 64


def test_on_a_gpu_pictures_are_those_of_the_papers():
    grid = images.picture_grid(pictures((1024, 1000)), GPU)
    assert (grid.roi, grid.patch, grid.choices["stored"].value) == ((224, 224), 16, [256, 256])


def test_colours_and_sixteen_bits_are_told_by_the_values():
    assert images.picture_values(pictures((64, 64), colour=True))[0]["channels"].value == 3
    assert images.picture_values(pictures((64, 64), bits=16))[0]["normalise"].value == "zscore"
    assert images.picture_values(pictures((64, 64))) == ({}, [])


def data(dims=3, dense=True, classes=("background", "a"), **num) -> training.Data:
    num = {"pretrain": 40, "train": 30, "val": 8, "test": 10} | num
    return training.Data(dims, 1, classes, dense, num, 60_000, 60_000)


@given(st.integers(1, 5000), st.integers(1, 3000), st.integers(1, 64), st.sampled_from([2, 3]))
@settings(max_examples=examples(200))
def test_a_batch_is_no_larger_than_the_data_and_a_stage_takes_minutes(unlabelled, train, cores, dims):
    machine, roi = Machine(cores, 64.0), (32, 32, 32) if dims == 3 else (64, 64)
    grid = images.Grid(roi, 8, tuple(map(float, roi)))
    plan = training.plan(data(dims, dims == 3, train=train, pretrain=train + unlabelled), grid, machine)
    chosen = {name: choice.value for name, choice in plan.choices.items()}
    assert 1 <= chosen["finetune.batch"] <= train and 1 <= chosen["pretrain.batch"] <= train + unlabelled
    assert 1 <= chosen["train"]["cpus"] <= cores and plan.minutes and plan.minutes < 60
    assert chosen["pretrain.lr"] * chosen["pretrain.batch"] / 256 == pytest.approx(
        1.2e-3 if dims == 2 else 1e-3, rel=0.1
    )


def test_nothing_is_mirrored_where_classes_are_left_or_right():
    grid = images.Grid((32, 32, 32), 8, (32.0, 32.0, 32.0))
    sided = training.plan(data(classes=("background", "left_kidney")), grid, TWO_CORES).choices["finetune.augment"]
    other = training.plan(data(classes=("background", "liver")), grid, TWO_CORES).choices["finetune.augment"]
    assert "flip" not in sided.value and other.value["flip_axes"] == [0]


def test_each_value_comes_back_from_the_yaml_and_no_line_is_too_long():
    choices = {
        "task.name": Choice("images", "a # sign: and a colon"),
        "task.patient": Choice("(.+)[-_].+", "why " * 60),
        "pretext": Choice(["none", {"name": "mae", "mask_ratio": 0.75}], "two arms"),
        "seeds": Choice([0, 1]),
        "finetune.lr": Choice(1.2e-4),
        "finetune.label": Choice("yes"),
    }
    text = document.text(["found: " + "much " * 60, "line\nbreak"], choices)
    assert max(map(len, text.splitlines())) <= document.WIDTH
    assert yaml.safe_load(text) == {
        "task": {"name": "images", "patient": "(.+)[-_].+"},
        "pretext": ["none", {"name": "mae", "mask_ratio": 0.75}],
        "seeds": [0, 1],
        "finetune": {"lr": 1.2e-4, "label": "yes"},
    }


def test_a_survey_opens_a_bounded_sample_of_many_images(tmp_path):
    from support.folders import volume

    paths = [tmp_path / f"{n}.nii.gz" for n in range(30)]
    for n, path in enumerate(paths):
        volume(path, np.full((6, 5, 4), n, np.int16), (1, 2, 3))
    label = tmp_path / "label.nii.gz"
    volume(label, np.ones((6, 5, 4), np.uint8))
    cases = [Case(path.name, path.name, (path,), label) for path in paths]
    seen = []
    found = survey(cases, 3, lambda done, total: seen.append((done, total)))
    assert found.total == len(found.headers) == 30 and found.values.num == found.labelled.num == 8
    assert seen[-1] == (38, 38) and found.headers[0] == Header((6, 5, 4), (1.0, 2.0, 3.0), 1, "RAS")
    assert found.values.percentiles[0] == 0 and found.values.percentiles[4] == 26  # every 30/8th


def looked(*shapes) -> Looked:
    """Volumes of a segmentation, of these shapes."""
    found = volumes(*[(shape, (1.0, 1.0, 1.0)) for shape in shapes])
    task = SimpleNamespace(dims=3, channels=1, classes=("background", "a"), labels=(0, 1))
    cases = {part: [None] * num for part, num in (("train", 30), ("val", 8), ("test", 10))}
    return Looked(None, task, {}, cases, [], found)


def test_minutes_are_those_of_a_median_image_and_memory_is_for_the_largest():
    """One scan of 48 million voxels among small ones: an answer for all its voxels and two classes is 1.1 GiB."""
    small, large = (20, 30, 40), (400, 400, 300)
    mixed, alike = (init.data_of(looked(*[small] * 4, last)) for last in (large, small))
    grid = images.Grid((16, 24, 32), 8, (20.0, 30.0, 40.0))
    assert (mixed.voxels, mixed.most_voxels, alike.most_voxels) == (24_000, 48_000_000, 24_000)
    cost = training.Cost(mixed, grid)
    assert (cost.prepare, cost.score) == (training.Cost(alike, grid).prepare, training.Cost(alike, grid).score)
    assert cost.prepare == pytest.approx(1e-7 * 24_000)
    answer = 3 * 4 * 48_000_000 * 2 / 2**30
    for gib, large in ((2 * (2 + answer) / 0.8 - 0.1, True), (2 * (2 + answer) / 0.8 + 0.1, False)):
        assert training.is_large(mixed, Machine(2, gib)) is large and not training.is_large(alike, Machine(2, gib))
    one, two = (training.plan(each, grid, TWO_CORES) for each in (mixed, alike))
    assert one.minutes == two.minutes
