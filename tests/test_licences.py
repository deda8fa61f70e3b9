"""No dependency has a licence that nobody looked at, and the page of them is what the packages say."""

import os
import subprocess
import sys

import pytest
from support.licences import NVIDIA, PAGE, PERMISSIVE, WEAK, found, page, short, terms
from support.stores import free_port
from support.suite import REPOSITORY

QUIETLY = {"cwd": REPOSITORY, "capture_output": True, "text": True}


def test_every_locked_dependency_has_a_licence_that_is_known():
    unknown = {words: names for words, names in found().items() if not terms(words) <= PERMISSIVE | WEAK | NVIDIA}
    assert not unknown


def test_what_is_not_free_is_nvidia_s_and_what_asks_for_changes_is_named():
    by_name = {name: terms(words) for words, names in found().items() for name in names}
    closed = {name for name, each in by_name.items() if each & NVIDIA}
    assert all(name.startswith(("nvidia-", "cuda-")) for name in closed)
    named = {"certifi", "hypothesis", "psycopg2-binary", "tqdm"}
    assert {name for name, each in by_name.items() if each & WEAK} <= named


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("MIT OR GPL-3.0-only", {"MIT"}),
        ("Apache-2.0 AND (BSD-2-Clause OR GPL-2.0-only)", {"Apache-2.0", "BSD-2-Clause"}),
        ("GPL-3.0-only", {"GPL-3.0-only"}),
        ("MIT AND GPL-3.0-only", {"MIT", "GPL-3.0-only"}),
    ],
)
def test_all_that_must_be_kept_is_looked_at(words, expected):
    assert terms(words) == expected


def test_licences_that_no_rule_knows_stay_as_they_are_written():
    assert short("GNU General Public License v3 (GPLv3)") == "GNU General Public License v3 (GPLv3)"
    assert short("Affero GPL") == "Affero GPL" and short("Apache Software License") == "Apache-2.0"


def test_the_page_is_what_the_installed_packages_say():
    """make licences"""
    if sys.platform != "linux" or sys.version_info[:2] != (3, 11):
        pytest.skip("docs/licences.md is of Python 3.11 on Linux")
    assert PAGE.read_text() == page()


def test_an_audit_without_the_network_says_so_in_a_line():
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not below make test
    done = subprocess.run(["make", "audit", f"PYPI=http://127.0.0.1:{free_port()}"], **QUIETLY, env=alone)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("make audit needs the network: http://127")
