"""Text that is safe to print, and fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.cli.layout import Column, Row, paragraph, plain_line, table
from pytreeckpt.cli.text import amount, cell_width, count, cut, percent, shorten, size, visible


@given(st.text(st.characters()) | st.text("\x00\x1b[31m\u202e\u2066\u200b\x9b\ud800\ue000\U000e0001 a"))
def test_visible_text_is_printable_and_what_was_printable_stays(text):
    shown = visible(text)
    assert shown.isprintable()
    assert not text.isprintable() or shown == text
    shown.encode()


@given(st.text("a\u0301\u4e2d\uff21…é", max_size=20), st.integers(0, 25))
def test_cut_text_is_as_wide_as_there_is_room(text, width):
    for shortened in (cut(text, width), shorten(text, width)):
        assert cell_width(shortened) <= width
        if cell_width(text) <= width:
            assert shortened == text


def test_names_are_shortened_in_the_middle_and_values_at_the_end():
    assert shorten("transformer.h.0.attention", 12) == "transf…ntion"
    assert cut("transformer.h.0.attention", 12) == "transformer…"
    assert cell_width("\u4e2d\u6587") == 4
    assert cell_width("e\u0301") == 1


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_200, "9.96 KiB"),
        (10_240, "10.0 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (5 << 30, "5.00 GiB"),
        (1 << 62, "4.00 EiB"),
        (1 << 75, "32768.0 EiB"),
    ],
)
def test_sizes_are_in_binary_units(nbytes, text):
    assert size(nbytes) == text


def test_counts_and_shares():
    assert [count(1, "leaf"), count(2, "leaf"), count(12_345, "array")] == ["1 leaf", "2 leaves", "12,345 arrays"]
    assert [amount(9999), amount(10_000), amount(999_949), amount(999_950), amount(10**20)] == [
        *("9,999", "10.0 k", "999.9 k", "1.0 M", "100.0 E"),
    ]
    shares = [(0, 0), (0, 9), (1, 10_000), (5, 1000), (1, 2), (995, 1000), (99_999, 100_000), (3, 3), (11, 10)]
    assert [percent(part, whole) for part, whole in shares] == [
        *("", "0 %", "<0.1 %", "0.5 %", "50 %", "99.5 %", ">99.9 %", "100 %", "110 %"),
    ]


def test_a_table_moves_only_the_row_of_a_very_long_name_if_nothing_may_be_cut():
    rows = [
        Row("├─ ", "x" * 100, "float32[3]", ("12 B",), "note", "array"),
        Row("└─ ", "short", "float32[3]", ("12 B",), "note", "array"),
        Row("", "value", "'text'", (), "beside", "value"),
    ]
    lines = [plain_line(line) for line in table(rows, [Column("size")], None)]
    assert lines[1] == f"├─ {'x' * 100}  float32[3]  12 B  note"
    assert lines[2].index("float32") == 62
    assert lines[3].endswith("  'text'  beside")


def test_paragraphs_are_broken_between_words():
    assert [plain_line(line) for line in paragraph("one two three", "note", 8)] == ["one two", "three"]
    assert len(paragraph("one two three", "note", None)) == 1
