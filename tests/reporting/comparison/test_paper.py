"""A comparison for a paper: table.csv and table.tex hold the comparison's numbers, and names that are only names."""

import csv
import re
import shutil
import subprocess
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.comparing import add, arm_of, difference_of, variety, volumes, xrays
from support.suite import examples
from support.suite import settings as profile

from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.paper import SPECIAL, latex, table_csv, table_tex
from premed.reporting.formatting import signed

UNESCAPED = {escaped: sign for sign, escaped in SPECIAL.items()} | {"$-$": "-"}
ODD = "50 % of_a #1 & {b} \\ $x$ ~ ^ <i> [c] 'd' \"e\" `f` --"


def printed(cell):
    """What LaTeX prints of a cell that `latex` wrote; an unescaped special sign is an error."""
    pattern = "|".join(re.escape(escaped) for escaped in sorted(UNESCAPED, key=len, reverse=True))
    rest = re.sub(pattern, "", cell)
    assert not set(rest) & set("\\&%$#_{}~^<>[]"), rest
    return re.sub(pattern, lambda found: UNESCAPED[found[0]], cell)


def parsed(tex):
    """The rows of each tabular, as printed; each has as many cells as the tabular has columns."""
    tables = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", tex, re.S):
        rows = [line for line in body.splitlines() if line != r"\hline"]
        assert all(row.endswith(r" \\") for row in rows)
        cells = [[printed(cell.strip()) for cell in re.split(r"(?<!\\)&", row[:-3])] for row in rows]
        assert {len(row) for row in cells} == {len(columns)}
        tables.append(cells)
    return tables


def lines(result):
    return [*csv.DictReader(StringIO(table_csv(result)))]


def test_both_hold_the_numbers_of_the_comparison(trained):
    result = compare(trained)
    base, ours = lines(result)
    arm, difference = arm_of(result), difference_of(result)
    assert (float(ours["mean"]), float(ours["low"])) == (arm.scores["mauc"].mean, arm.scores["mauc"].interval[0])
    assert (float(ours["difference"]), ours["verdict"]) == (difference.value, difference.verdict)
    assert (float(ours["ece"]), float(ours["ece_high"])) == (arm.calibration.value, arm.calibration.interval[1])
    assert (ours["images"], ours["patients"], ours["seeds"], ours["pre-trainings"]) == ("30", "10", "3", "1")
    assert (base["difference"], base["verdict"], base["pre-trainings"]) == ("", "", "0")
    ((head, first, second),) = parsed(table_tex(result))
    low, high = map(signed, difference.interval)
    assert head[0] == "Labels" and head[-1] == "ECE [95 % interval]" and first[5] == "baseline"
    assert second[:3] == ["100 %", "mae", "3"] and second[3] == f"{arm.scores['mauc'].mean:.3f} ± " + (
        f"{arm.scores['mauc'].std:.3f}"
    )
    assert second[5] == f"{signed(difference.value)} [{low}, {high}]" and second[7] == difference.verdict


def test_a_difference_of_other_seeds_than_the_row_s_mean_says_so(trained):
    add(trained, "mae", 5, xrays(0.5, 5))
    _, ours = lines(compare(trained))
    ((_, _, row),) = parsed(table_tex(compare(trained)))
    assert (ours["seeds"], ours["difference_seeds"]) == ("4", "3")
    assert row[2] == "4" and row[5].endswith("], 3 seeds")


def test_every_kind_of_comparison_is_a_table_that_parses(store):
    variety(store)
    result = compare(store)
    blocks = [block for task in result.tasks for block in task.blocks]
    tables = parsed(table_tex(result))
    assert [len(table) - 1 for table in tables] == [len(block.rows) for block in blocks]
    assert sum(len(block.rows) for block in blocks) == len(lines(result))
    assert "nan" not in table_csv(result) + table_tex(result)


def test_names_are_text_in_both(store):
    for strategy in ("none", f"=HYPERLINK({ODD})"):
        add(store, strategy, 0, volumes(0.6), score="dice", change={"task": {"name": "-task_%"}})
    result = compare(store)
    assert {line["strategy"] for line in lines(result)} == {"none", f"'=HYPERLINK({ODD})"}  # a spreadsheet runs no text
    assert {line["task"] for line in lines(result)} == {"'-task_%"}
    ((_, *rows),) = parsed(table_tex(result))
    assert {row[1] for row in rows} == {"none", " ".join(f"=HYPERLINK({ODD})".split())}
    assert table_tex(result).startswith("% -task_%, head linear")


def test_a_negative_number_stays_a_number_in_the_csv(store):
    for seed in range(3):
        add(store, "none", seed, xrays(2.5, seed))
        add(store, "mae", seed, xrays(0.2, seed))
    assert float(lines(compare(store))[1]["difference"]) < 0 and "$-$0." in table_tex(compare(store))


@given(st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" ")))
@profile(max_examples=examples(300), deadline=None)
def test_any_text_is_printed_as_it_stands(text):
    assert printed(latex(text)) == " ".join(text.split())


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not on PATH: apt-get install texlive-latex-base")
def test_latex_compiles_it(store, tmp_path):
    variety(store)
    (tmp_path / "table.tex").write_text(table_tex(compare(store)), encoding="utf-8")
    (tmp_path / "paper.tex").write_text("\\documentclass{article}\\begin{document}\\input{table}\\end{document}")
    subprocess.run(["pdflatex", "-halt-on-error", "paper"], cwd=tmp_path, check=True, capture_output=True)
