"""YAML that was written to do harm: one line, at once, and little memory."""

import time
import tracemalloc

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.suite import examples

from premed.config.compose import load, parse_value, read_trees, read_yaml
from premed.config.safe_yaml import MOST_ALIASED, MOST_DEPTH, parse_yaml
from premed.errors import MOST_SIGNS, UserError


def refused(path, *words, seconds=5.0):
    """The message of a file that is refused, within seconds and 64 MB."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            read_yaml(path)
        assert tracemalloc.get_traced_memory()[1] < 64e6 and time.process_time() - began < seconds
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < MOST_SIGNS + 100
    assert [word for word in words if word not in message] == [], message
    return message


def bomb(merge):
    """Nine levels, each of nine times the one before: 9 ** 9 values in nine lines."""
    names = "abcdefghi"
    lines = ["a: &a {x0: 1, x1: 2, x2: 3, x3: 4}"]
    for before, name in zip(names, names[1:], strict=False):
        several = ", ".join([f"*{before}"] * 9)
        lines.append(f"{name}: &{name} {{<<: [{several}]}}" if merge else f"{name}: &{name} [{several}]")
    return "\n".join(lines)


DEEP, NUMBER, ALIAS = f"nested more than {MOST_DEPTH} deep", "beyond 64 bits", f"more than {MOST_ALIASED:,} values"


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: " + "[" * 3000 + "]" * 3000, DEEP),
        ("\n".join(f"{'  ' * level}a:" for level in range(400)), DEEP),
        ("seed: " + "9" * 5000, NUMBER),
        ("seed: 0x" + "f" * 5000, NUMBER),
        ("seed: 18446744073709551617", NUMBER),
        ("seed: " + "1:" * 50_000 + "1", NUMBER),
        ("steps: 0100", "line 1: 0100 is 64 for YAML; write the number without a leading 0"),
        ("lr: 1:30", "line 1: 1:30 is 90 for YAML"),
        ("lr: 1:30.5", "line 1: 1:30.5 is minutes for YAML"),
        ("lr: " + "1:" * 50_000 + "1.5", "is minutes for YAML"),
        ("a: 2026-13-45", "is no timestamp"),
        ('a: !!int ""', "is no int"),
        ("a: !!float abc", "is no float"),
        ("a: !!timestamp abc", "is no timestamp"),
        (bomb(merge=True), ALIAS),
        (bomb(merge=False), ALIAS),
        ("a: &a [1, *a]", "inside what it names"),
        ("a: &a {b: *a}", "inside what it names"),
        ('train: {storage: "\\0"}', "\\x00 holds a character that no text has"),
        ('task: {root: "\\ud800"}', "\\ud800 holds a character that no text has"),
        ('"a\\0": 1', "no text has"),
    ],
    ids=[
        "deep",
        "deep lines",
        "digits",
        "hex",
        "beyond",
        "sixties",
        "octal",
        "minutes",
        "seconds",
        "many",
        "date",
        "int",
        "float",
        "time",
    ]
    + ["merge", "lists", "itself", "itself, fields", "nul", "half a pair", "nul in a name"],
)
def test_a_yaml_that_does_harm_is_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    assert words in refused(tmp_path / "a.yaml", "line ")


def test_a_yaml_of_100_mb_is_refused_unread(tmp_path):
    with (tmp_path / "a.yaml").open("w") as file:
        file.truncate(100 * 2**20)
    refused(tmp_path / "a.yaml", "has 100 MiB, and 4 are the most", "table", seconds=0.5)


def test_an_ordinary_use_of_anchors_is_read():
    text = "small: &small {lr: 0.1, steps: 3}\nfinetune: {<<: *small, steps: 4}\nlist: [*small, *small]\n"
    assert parse_yaml(text)["finetune"] == {"lr": 0.1, "steps": 4} and parse_yaml(text)["list"][1]["lr"] == 0.1
    assert parse_yaml("seed: 18446744073709551615")["seed"] == 2**64 - 1
    assert parse_yaml("a: {when: 2026-11-28, x: 1_000, y: 0x1f}")["a"]["y"] == 31


def test_an_override_of_any_length_or_depth_is_told_in_a_line():
    for override in (".".join("a" * 3000) + "=1", "seed=" + "9" * 5000, "a=" + "[" * 3000, "x" * 191_972):
        with pytest.raises(UserError) as caught:
            read_trees([], [override])
        assert len(str(caught.value)) < MOST_SIGNS + 100


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
PIECES = st.lists(
    st.sampled_from(["a: ", "b", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&x ", "*x", "<<: ", "!!int ", "? "])
    | st.sampled_from(
        ["!!set ", "!!binary ", "!!python/object:os.system ", "1:2:3", "0x", ".inf", "2026-99-99", "|", "'"]
    )
    | st.sampled_from(['"', "#"])
    | st.text(max_size=4),
    max_size=30,
).map("".join)


@settings(max_examples=examples(400, least=100))
@given(PIECES | TREES.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)))
def test_fuzz_whatever_a_yaml_holds_it_is_fields_or_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    try:
        assert isinstance(read_yaml(path), dict)
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    try:
        parse_value(text, "a=…")
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=examples(200, least=50))
@given(st.binary(max_size=200))
def test_fuzz_whatever_bytes_a_yaml_holds_it_is_fields_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(read_yaml(path), dict)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_file_that_is_not_text_or_not_there_is_named(tmp_path):
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match=r"image\.yaml: is not YAML"):
        load([tmp_path / "image.yaml"])
    with pytest.raises(UserError, match=r"gone\.yaml: cannot be read .* check the path"):
        load([tmp_path / "gone.yaml"])
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(UserError, match=r"mime\.yaml: cannot be read .* did you mean mine\.yaml"):
        load([tmp_path / "mime.yaml"])
    with pytest.raises(UserError, match=f"{tmp_path}: is a folder; premed init {tmp_path} writes a YAML for it"):
        load([tmp_path])
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans.yaml").write_text("")
    with pytest.raises(UserError, match=r"scans: is a folder; did you mean .*scans\.yaml$"):
        load([tmp_path / "scans"])
