"""Tables and contact sheets."""

import math

import numpy as np
import pytest
from retrace.evaluation import sheets, tables


def test_a_table_has_a_rule_and_columns_of_one_width():
    table = tables.markdown_table(["method", "dB"], [["plain", "9.5"], ["ours", "12.5"]])
    lines = table.split("\n")
    assert lines[1] == "| ------ | ---: |"
    assert lines[2] == "| plain  |  9.5 |"
    assert len({len(line) for line in lines}) == 1


def test_numbers_that_are_not_there_are_dashes():
    assert tables.decibel(math.nan) == tables.percent(None) == "–"
    assert tables.decibel(math.inf) == "exact"
    assert (tables.decibel(31.25), tables.percent(0.985)) == ("31.2", "98.5")


def test_a_table_goes_between_its_marks_and_again_over_itself(tmp_path):
    page = tmp_path / "README.md"
    other = "<!-- table:speed -->\n<!-- /table -->\n"
    page.write_text(f"# Title\n<!-- table:edits -->\nold\n<!-- /table -->\nend\n{other}")
    for content in ("first", "second"):
        tables.fill(page, "edits", content)
    assert page.read_text() == (
        f"# Title\n<!-- table:edits -->\nsecond\n<!-- /table -->\nend\n{other}"
    )


def test_a_page_without_the_marks_is_refused(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- table:edits --> without an end")
    with pytest.raises(ValueError, match=r"add <!-- table:edits --> and <!-- /table -->"):
        tables.fill(page, "edits", "x")


def test_a_sheet_holds_every_picture_at_its_place():
    red, blue = (np.full((16, 16, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    sheet = np.asarray(sheets.contact_sheet(["a", "b"], [("row", [red, blue])], side=32))
    left, top = 190 + sheets.GAP, sheet.shape[0] - 32 - sheets.GAP
    assert (sheet[top : top + 32, left : left + 32] == (200, 0, 0)).all()
    left += 32 + sheets.GAP
    assert (sheet[top : top + 32, left : left + 32] == (0, 0, 200)).all()


def test_a_row_with_a_picture_missing_is_refused():
    with pytest.raises(ValueError, match="1 pictures for 2"):
        sheets.contact_sheet(["a", "b"], [("row", [np.zeros((8, 8, 3), np.uint8)])])
