"""streams.py: what stdout and stderr cannot write is replaced, and a reader that leaves ends the reading alone."""

import io
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import shell
from support.suite import examples

from premed.cli import streams

OURS = "0.71 ± 0.02, 2 × 3, 20 °C, 3 µm, …, m², –"


def written(text, encoding):
    """What arrives at the other end of a pipe, as bytes."""
    reading, writing = os.pipe()
    with open(reading, "rb") as reader:
        with open(writing, "w", encoding=encoding) as raw, streams.settled(raw) as stream:
            stream.write(text)
        return reader.read()


def test_signs_that_a_stream_cannot_write_are_ascii_that_says_the_same():
    assert written(OURS, "ascii") == b"0.71 +- 0.02, 2 x 3, 20 degC, 3 um, ..., m^2, -"
    assert written(OURS, "latin-1") == "0.71 ± 0.02, 2 × 3, 20 °C, 3 µm, ..., m², -".encode("latin-1")
    assert written(OURS, "utf-8") == OURS.encode()
    assert written("Milz_脾.nii, \udce9", "ascii") == rb"Milz_\u813e.nii, \udce9"
    assert written("\udce9", "utf-8") == rb"\udce9"  # a file's name that is no UTF-8


@given(st.text(max_size=40), st.sampled_from(["ascii", "latin-1", "cp1252", "koi8-r", "utf-8", "utf-16"]))
@settings(max_examples=examples(200))
def test_any_text_is_written_and_what_an_encoding_has_stays_as_it_is(text, encoding):
    text = text.replace("\r", "").replace("\n", " ")
    came = written(text, encoding).decode(encoding)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        kept = "".join(sign for sign in text if sign.isascii())
        left = iter(came)
        assert all(sign in left for sign in kept)  # in this order
    else:
        assert came == text


def test_a_reader_that_has_left_and_a_full_disk_raise_nothing_and_only_the_disk_is_a_failure():
    reading, writing = os.pipe()
    with open(writing, "w") as raw:
        stream = streams.settled(raw)
        os.close(reading)
        for _ in range(3):
            print("x" * 100_000, file=stream)
        assert streams.failure(stream) is None
        os.write(writing, b"others of this process, too")
    with open("/dev/full", "w") as raw:
        stream = streams.settled(raw)
        print("x" * 100_000, file=stream)
        assert streams.failure(stream) == "No space left on device"


def test_a_stream_that_is_no_file_replaces_signs_and_one_that_was_closed_takes_all():
    memory = io.TextIOWrapper(io.BytesIO(), "ascii")
    assert streams.settled(memory) is memory
    memory.write("±")
    assert streams.failure(memory) is None and memory.buffer.getvalue() == b"+-"
    with streams.settled(None) as nothing:
        print("±", file=nothing)


# ---- commands


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("premed --help | head -c 1", 0, " ", ""),
        ("premed --help >&-", 0, "", ""),
        ("premed frobnicate 2>&-", 2, "", ""),
        ("premed frobnicate 2> >(exec <&-)", 2, "", ""),
        ("premed --help >/dev/full", 2, "", "premed: stdout: cannot be written (No space left on device); "),
    ],
)
def test_a_stream_that_nobody_reads_does_not_change_what_a_command_is_worth(line, code, out, err):
    got = shell(line)
    assert got[:2] == (code, out) and got[2].startswith(err) and len(got[2].splitlines()) == bool(err)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_table_is_drawn_in_any_encoding(environment):
    code = "from premed.cli import streams; from premed.reporting.console import print_table as table; streams.settle()"
    code += r"; table('mean \xb1 std', ['\xb1', 'b'], [['\xe9', '1 \xb1 2'], ['ab', '3']])"
    environment = os.environ | environment | {"PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    title, *rows = done.stdout.decode("ascii").splitlines()
    assert title.strip() == "mean +- std" and len(set(map(len, rows))) == 1
    assert r"|\xe9|1 +- 2|" in rows and "|ab  |3     |" in rows


def test_a_crash_of_a_library_says_where_each_thread_was():
    crash = "from premed.cli.streams import settle; settle(); import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    done = subprocess.run([sys.executable, "-c", crash], capture_output=True, text=True)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr and 'File "<string>", line 1' in done.stderr
