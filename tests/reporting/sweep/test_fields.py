"""The fields that a sweep varies: their names, their values as text, and as places in tables and charts."""

import pytest
from support.sweeping import full_grid, sweep, trial

from premed.reporting.sweep.fields import by_importance, field_axis, field_scale, format_value, short_names

RATIO, EPOCHS, DECAY = "pretext.mask_ratio", "pretrain.epochs", "finetune.layer_decay"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["pretext.mask_ratio", "pretrain.epochs"], ["mask_ratio", "epochs"]),
        (["pretrain.lr", "finetune.lr", "task.size"], ["pretrain.lr", "finetune.lr", "size"]),
        (["finetune.head.name", "seed"], ["head.name", "seed"]),
        (["a.b.lr", "c.b.lr", "lr"], ["a.b.lr", "c.b.lr", "lr"]),
        (["name"], ["name"]),
    ],
)
def test_a_field_is_called_by_what_tells_it_apart(paths, names):
    assert list(short_names(paths).values()) == names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (1e-3, "0.001"),
        (3.0, "3"),
        (40, "40"),
        (True, "true"),
        (None, "null"),
        ("vit", "vit"),
        ([0.1 + 0.2, "ü"], '[0.3, "ü"]'),
        ({"name": "vit", "width": 24}, '{"name": "vit", "width": 24}'),
    ],
)
def test_a_value_is_written_as_a_yaml_has_it_and_without_rounding_errors(value, text):
    assert format_value(value) == text


def test_numbers_stand_in_their_order_and_words_as_the_space_has_them():
    result = sweep({"a": [3, 1, 20], "b": ["x", None, "a"]}, [trial(0, {"a": 1, "b": "a"})])
    numbers, words = field_axis(result, "a"), field_axis(result, "b")
    assert numbers.labels == ["1", "3", "20"] and words.labels == ["x", "null", "a"]
    assert (numbers.positions, words.positions) == ({0: 0}, {0: 2})


def test_a_range_with_many_values_is_shown_in_bins_of_equal_width_on_its_scale():
    values, space = [1e-4, 2e-4, 9e-4, 2e-3, 2e-2, 9e-2, 1e-1], {"lr": {"loguniform": [1e-4, 1.0]}}
    trials = [trial(i, {"lr": x}) for i, x in enumerate(values)]
    axis = field_axis(result := sweep(space, trials), "lr")
    assert axis.labels == ["0.0001 … 0.001", "0.001 … 0.01", "0.01 … 0.1", "0.1 … 1"]
    assert list(axis.positions.values()) == [0, 0, 0, 1, 2, 2, 3]
    assert field_scale(result, "lr") == "log"
    assert field_axis(sweep(space, trials[:2]), "lr").labels == ["0.0001", "0.0002"]


def test_bins_of_integers_do_not_overlap():
    numbers = [5, 23, 24, 42, 43, 61, 80]
    axis = field_axis(sweep({"n": {"int": [5, 80]}}, [trial(i, {"n": n}) for i, n in enumerate(numbers)]), "n")
    assert axis.labels == ["5 … 23", "24 … 42", "43 … 61", "62 … 80"]
    assert list(axis.positions.values()) == [0, 0, 1, 1, 2, 2, 3]


def test_the_most_important_field_comes_first_and_one_with_one_value_is_none():
    assert by_importance(full_grid()) == [EPOCHS, RATIO, DECAY]
    assert by_importance(sweep({"a": [1], "b": [1, 2]}, [])) == ["b"]
