"""spec.py: what is refused, and what a digest tells apart."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SerializeAsAny, ValidationError

from premed.config.spec import Spec, canonical, runtime_field, validate_spec, with_versions
from premed.errors import UserError


class Inner(Spec):
    width: int = 4
    device: str = runtime_field("cpu")


class Outer(Spec):
    rate: float = Field(default=0.5, ge=0, le=1)
    sizes: tuple[int, ...] = (1, 2)
    root: Path | None = None
    inner: SerializeAsAny[Spec] = Inner()
    extra: dict[str, Any] = {}
    workers: int = runtime_field(1, ge=0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"rat": 0.1}, "rat"), ({"rate": "fast"}, "rate"), ({"rate": 2}, "rate"), ({"workers": -1}, "workers")],
)
def test_what_is_unknown_of_another_type_or_out_of_range_is_refused_by_name(settings, field):
    with pytest.raises(UserError, match=f"^{field}: "):
        validate_spec(Outer, settings)


def test_too_few_numbers_are_told_as_such():
    class Sized(Spec):
        size: tuple[int, int, int]

    with pytest.raises(UserError, match=r"^size: needs more than 2 values \(it is \[3, 4\]\)$"):
        validate_spec(Sized, {"size": [3, 4]})


def test_a_wrong_default_is_refused_too():
    class Wrong(Spec):
        rate: float = Field(default=2.0, le=1)

    with pytest.raises(ValidationError):
        Wrong()


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Outer().rate = 0.1  # type: ignore[misc]


def test_numbers_in_a_yamls_spelling_are_numbers():
    assert Outer.model_validate({"rate": "1e-3"}).digest() == Outer(rate=0.001).digest()


@pytest.mark.parametrize("settings", [{"rate": True}, {"rate": False}, {"sizes": [3, True]}, {"workers": True}])
def test_yes_and_no_are_no_numbers(settings):
    """YAML reads them, on and off as truth values, which are 1 and 0 in Python."""
    with pytest.raises(UserError, match=r"takes a number, and (yes, on or true|no, off or false) is none"):
        validate_spec(Outer, settings)
    assert validate_spec(Outer, {"extra": {"flag": True}}).extra == {"flag": True}


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 0.25},
        {"sizes": (2, 1)},
        {"root": Path("/data")},
        {"inner": Inner(width=5)},
        {"extra": {"a": 1}},
    ],
)
def test_what_changes_a_result_changes_the_digest(change):
    assert Outer(**change).digest() != Outer().digest()


@pytest.mark.parametrize("change", [{"workers": 4}, {"inner": Inner(device="cuda")}, {"rate": 0.5}, {"sizes": [1, 2]}])
def test_where_it_runs_and_how_it_is_written_does_not_change_the_digest(change):
    assert Outer(**change).digest() == Outer().digest()


def test_a_raised_version_changes_the_digest_of_all_that_hold_it():
    class Raised(Inner):
        version: ClassVar[int] = 2

    assert Raised().digest() != Inner().digest()
    assert Outer(inner=Raised()).digest() != Outer().digest()


def test_the_version_is_not_a_setting():
    with pytest.raises(ValidationError, match="version"):
        Inner.model_validate({"version": 3})


def test_a_digest_is_the_same_in_another_process_and_has_64_hex_digits():
    program = "from premed.config.spec import Spec\nclass A(Spec):\n x: dict = {'b': 1, 'a': (2.5, None)}\n"
    program += "print(A().digest())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(seen) == 1 and len(bytes.fromhex(seen.pop())) == 32


def test_of_versions_those_that_were_raised_are_recorded():
    class Raised(Spec):
        version: ClassVar[int] = 3
        width: int = 4

    class Whole(Spec):
        inner: SerializeAsAny[Spec] = Raised()
        several: tuple[SerializeAsAny[Spec], ...] = (Inner(), Raised())
        sizes: tuple[int, ...] = (1, 2)
        none: Spec | None = None

    tree = Whole().model_dump(mode="json", exclude={"sizes": True})
    raised = {"width": 4, "version": 3}
    expected = {"inner": raised, "several": [{"width": 4, "device": "cpu"}, raised], "none": None}
    assert with_versions(tree, Whole()) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_canonical_text_says_all_and_in_one_order(value):
    assert json.loads(canonical(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_names_does_not_matter(settings):
    assert canonical(settings) == canonical(dict(reversed(settings.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_without_a_meaning_has_no_digest(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"x": value})


def test_a_set_has_no_digest_for_it_has_no_order():
    with pytest.raises(TypeError, match="set"):
        canonical({"x": {"a", "b"}})
