"""Text from elsewhere is shown whole, and does nothing; numbers keep their digits."""

import itertools
import unicodedata

import numpy as np
import pytest

from posthoc.shown import decimals, digits_apart, shown


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


def test_no_number_loses_its_digits_and_none_passes_another() -> None:
    """Rounding is by a twentieth at most, and what is larger is not shown as less: a value stays within its interval."""
    random = np.random.default_rng(0)
    values = np.sort(np.concatenate([10 ** random.uniform(-11, 7, 5000), 1 - 10 ** random.uniform(-6, -1, 500)]))
    for digits in (2, 3, 4):
        texts = [float(decimals(value, digits)) for value in values.tolist()]
        np.testing.assert_allclose(texts, values, rtol=0.0501)
        assert all(a <= b for a, b in itertools.pairwise(texts))
        assert {value for value, text in zip(values, texts, strict=True) if text in (1, 100)} <= {1.0, 100.0}


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.787, 3, "0.787"), (0.0860, 4, "0.0860"), (1.2e-4, 4, "0.00012"), (5.33e-5, 4, "5.3e-05"), (0.0, 4, "0.0000"),
        (0.99996, 4, "0.99996"), (1.0, 4, "1.0000"), (1 - 3e-8, 4, "1.0000"), (99.99999, 2, "99.99999"), (-0.0007, 3, "-0.0007"),
        (float("inf"), 4, "inf"), (1e-15, 4, "0.0000"), (12.3, 0, "12"),
    ],
)  # fmt: skip
def test_numbers(value: float, digits: int, expected: str) -> None:
    assert decimals(value, digits) == expected


def test_digits_that_tell_numbers_apart() -> None:
    assert digits_apart([0.95010, 0.95012, 0.95021, 0.95024], 3) == 5
    assert digits_apart([0.5, 0.5, 0.6], 3) == 3
