"""The one printer of tables: every table of the commands, the cards and the reports goes through it."""

from simmim_hf import tables

ROWS = [["name", "value"], ["a | b", "1.5"], ["c", "10.25"]]


def test_a_plain_table_is_aligned_without_spaces_at_the_end():
    assert tables.plain(ROWS, "<>") == ["name   value", "a | b    1.5", "c      10.25"]
    assert tables.plain(ROWS, "><") == [" name  value", "a | b  1.5", "    c  10.25"]


def test_a_cell_breaks_no_markdown_table():
    lines = tables.markdown([["name", "value"], ["a | b\nc", "1.5"]], "<>")
    assert lines == ["| name | value |", "| --- | ---: |", "| a \\| b c | 1.5 |"]
