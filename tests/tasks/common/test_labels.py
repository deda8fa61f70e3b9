"""`labels` of a dataset.json: both directions, regions, `ignore`, and what is no numbering."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.suite import examples
from support.tasks import refused

from premed.tasks.common.labels import Labels, parse_labels

LISTING = Path("dataset.json")


@settings(max_examples=examples(100))
@given(num=st.integers(1, 12), order=st.randoms(use_true_random=False), ignore=st.booleans(), text=st.booleans())
def test_labels_stand_in_the_order_of_their_numbers_whichever_way_they_are_written(num, order, ignore, text):
    pairs = [(f"organ {i}" if i else "background", i) for i in range(num + 1)] + [("ignore", num + 1)] * ignore
    order.shuffle(pairs)
    expected = ("background", *(f"organ_{i}" for i in range(1, num + 1)))
    by_name = {name: str(number) if text else number for name, number in pairs}
    for written in (by_name, {str(number): name for name, number in pairs}):
        found = parse_labels(LISTING, written)
        assert found == Labels(expected, None, num + 1 if ignore else None)
        assert found.values == tuple(range(num + 1 + ignore))


@settings(max_examples=examples(100))
@given(
    united=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True), min_size=1, max_size=6),
    ignore=st.booleans(),
)
def test_regions_unite_what_the_file_lists_in_its_order(united, ignore):
    highest = max(2, *(max(each) for each in united))
    united = [*united, [*range(1, highest + 1)]]
    written = {"background": 0} | {f"r {i}": each for i, each in enumerate(united)}
    found = parse_labels(LISTING, written | ({"ignore": highest + 1} if ignore else {}), with_regions=True)
    names = tuple(f"r_{i}" for i in range(len(united)))
    assert found.classes == names and found.ignore == (highest + 1 if ignore else None)
    assert found.regions == {name: tuple(sorted(each)) for name, each in zip(names, united, strict=True)}
    assert found.values == tuple(range(highest + 1 + ignore))


def test_a_label_among_regions_is_a_region_of_its_own():
    found = parse_labels(LISTING, {"background": 0, "whole": [1, 2, 3], "in": [3], "edge": 1}, with_regions=True)
    assert found.regions == {"whole": (1, 2, 3), "in": (3,), "edge": (1,)}


GAP = "`labels` must number 0 (background), 1, 2, … without a gap"
WRONG = {
    "none": ({}, GAP),
    "no mapping": (["background", "x"], GAP),
    "background alone": ({"background": 0}, GAP),
    "only ignore": ({"background": 0, "ignore": 1}, GAP),
    "no background": ({"a": 1, "b": 2}, GAP),
    "negative": ({"background": 0, "a": -1}, GAP),
    "far": ({"background": 0, "a": 10**12}, GAP),
    "no number": ({"background": 0, "a": "liver"}, GAP),
    "thousands of digits": ({"background": "0", "a": "9" * 5000}, GAP),
    "half a pair": ({"background": 0, "a\ud800": 1}, "its name is not UTF-8"),
    "a truth": ({"background": 0, "a": True}, GAP),
    "a fraction": ({"background": 0, "a": 1.0}, GAP),
    "one number twice": ({"background": 0, "a": 1, "b": 1}, GAP),
    "a gap in regions": ({"background": 0, "a": [1, 3], "b": 3}, GAP),
    "an empty region": ({"background": 0, "a": [1, 2], "b": []}, GAP),
    "a nested list": ({"background": 0, "a": [1, [2]]}, GAP),
    "background in a region": ({"background": 0, "a": [0, 1], "b": [1, 2]}, "'a' unites 0, which is background"),
    "ignore is a region": ({"background": 0, "a": 1, "ignore": [2, 3]}, "`ignore` must be one number, the highest"),
    "ignore is a class": ({"background": 0, "a": 1, "ignore": 1}, "`ignore` must be one number"),
    "Ignore": ({"0": "background", "1": "a", "2": "IGNORE"}, "nnU-Net's word is `ignore`, in lower case"),
    "nameless": ({"background": 0, "": 1, "b": 2}, "`labels` has '', which is no name; name what it is"),
    "blank": ({"0": "background", "1": " ", "2": "b"}, "`labels` has ' ', which is no name; name what it is"),
    "alike": ({"background": 0, "a b": [1, 2], "a_b": [2]}, "'a b' and 'a_b' are both scored as a_b; rename one"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_numbering_is_refused(what):
    labels, words = WRONG[what]
    refused(lambda: parse_labels(LISTING, labels, with_regions=True), "dataset.json: `", words)


def test_regions_are_refused_where_there_can_be_none():
    refused(lambda: parse_labels(LISTING, {"background": 0, "a": [1, 2]}), GAP, "are for task.name=nnunet")
