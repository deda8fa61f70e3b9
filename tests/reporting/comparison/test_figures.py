"""The charts of a comparison as files: those of the page, as SVG and PNG."""

from io import BytesIO

import pytest
from PIL import Image
from support.comparing import add, xrays

from premed.errors import UserError
from premed.reporting.comparison import figures
from premed.reporting.comparison.compare import compare
from premed.reporting.refusals import refuse_figures


def test_every_chart_of_the_page_is_written_twice(store, tmp_path):
    for seed in range(3):
        for fraction in (0.1, 1.0):
            add(store, "none", seed, fraction=fraction)
            add(store, "mae", seed, xrays(2.5, seed), fraction=fraction)
    refuse_figures(tmp_path / "new" / "figures")
    table, tex, methods, *files = written = figures.write(compare(store), store, tmp_path / "new" / "figures")
    assert [each.name for each in (table, tex, methods)] == ["table.csv", "table.tex", "methods.txt"]
    assert [file.name for file in files] == [
        f"chestxray14-linear-{chart}.{kind}"
        for chart in ("labels", "classes", "reliability")
        for kind in ("svg", "png")
    ]
    assert sorted(written) == sorted((tmp_path / "new" / "figures").iterdir())
    assert methods.read_text().startswith("On chestxray14, ") and methods.read_text().count("\n") == 1
    for svg, png in zip(files[::2], files[1::2], strict=True):
        picture = Image.open(BytesIO(png.read_bytes()))
        assert svg.read_bytes().startswith(b"<?xml") and picture.width == 1760
        assert picture.convert("L").getpixel((2, 2)) == 255 and picture.convert("L").getextrema()[0] < 100


def test_a_folder_that_cannot_be_made_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--figures .*/file/here: cannot be made"):
        refuse_figures(tmp_path / "file" / "here")
