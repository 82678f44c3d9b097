"""Text from elsewhere is shown whole, and does nothing."""

import unicodedata

import pytest

from posthoc.shown import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch_1[best].pth :smile: [/e]", "epoch_1[best].pth :smile: [/e]"),
        ("é ü 漢字 — ±", "é ü 漢字 — ±"),
        ("\x1b]0;title\x07\x9b2J", r"\x1b]0;title\x07\x9b2J"),
        ("a\r\nb\tc\0\x7f\x85", r"a\r\nb\tc\x00\x7f\x85"),
        ("\u202egpj\u2066\u2069", r"\u202egpj\u2066\u2069"),
        ("a\u200bb\ufeff\u2028\u2029", r"a\u200bb\ufeff\u2028\u2029"),
        (b"caf\xe9.pth".decode("utf-8", "surrogateescape"), r"caf\udce9.pth"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_lines_stay_where_they_are_asked_for() -> None:
    assert shown("a\nb\r\x1b", lines=True) == "a\nb\\r\\x1b"


def test_no_control_or_format_character_of_unicode_passes_and_no_length_is_cut() -> None:
    every = "".join(map(chr, range(0x110000)))
    left = {unicodedata.category(sign) for sign in shown(every)}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(shown("x" * 100_000)) == 100_000


def test_paths_and_numbers_are_taken_as_they_are() -> None:
    assert shown(3) == "3"
    assert shown(ValueError("a\nb")) == r"a\nb"
