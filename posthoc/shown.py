"""How numbers, and text that came from elsewhere (a file's name, a tensor's, a library's error), are shown to a person."""

import math
import re
from collections.abc import Sequence

LISTED = 4
"""So many names are given before "and N more"."""
LARGE = 1e8
"""Numbers from here on are shown with a power of ten, as the loss of a training that diverges."""
SMALL = 1e-12
"""Numbers below it are shown as 0."""
WHOLE = (1.0, 100.0)
"""What a number that is rounded is not shown as: all of something."""
ROUNDING = 1e-7
"""So near to all of something, relatively, a number of 32 bits is it."""
MOST_DIGITS = 7
"""Decimals that are added to tell numbers apart, as many as a number of 32 bits has."""


def listed(names: Sequence[str], most: int = LISTED) -> str:
    """Names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def counted(number: float, noun: str) -> str:
    """A whole number of things, one of which is called `noun`.

    >>> counted(1, "weight"), counted(0, "class"), counted(1600, "value")
    ('1 weight', '0 classes', '1,600 values')
    """
    ending = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{number:,.0f} {noun}{'' if number == 1 else ending}"


def decimals(value: float, digits: int = 4, sign: str = "") -> str:
    """A number with so many decimals, or two digits of one so small that these would leave fewer; 1 or 100 only where it is that.

    Where fewer than two decimals are asked for, only what would be 0 is shown with more. sign: "+" for one before
    numbers above 0, too.

    >>> decimals(0.0860), decimals(0.787, 3), decimals(1.2e-4), decimals(7.512e-6), decimals(0.99996), decimals(2.0633763e29)
    ('0.0860', '0.787', '0.00012', '7.5e-06', '0.99996', '2.063e+29')
    >>> decimals(-1e-17), decimals(0.0642, 3, "+"), decimals(9.6, 0), decimals(0.3, 0)
    ('0.0000', '+0.064', '10', '0.3')
    """
    if abs(value) >= LARGE:
        return f"{value:{sign}.4g}"
    if SMALL < abs(value) < (10.0 ** (1 - digits) if digits > 1 else 0.5 * 10.0**-digits):
        return f"{value:{sign}.2g}"
    text = f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no -0.0000
    shown = abs(float(text))
    if digits < MOST_DIGITS and shown in WHOLE and not math.isclose(abs(value), shown, rel_tol=ROUNDING):
        return decimals(value, digits + 1, sign)
    return text


def digits_apart(values: Sequence[float], digits: int = 4) -> int:
    """With how many decimals numbers that differ look different, `digits` at the least; these where no number of them does it.

    >>> digits_apart([0.95012, 0.95021], 3), digits_apart([0.774, 0.801], 3), digits_apart([0.1, 0.1 + 1e-12], 3)
    (4, 3, 3)
    """
    for more in range(digits, MOST_DIGITS + 1):
        if len({decimals(value, more) for value in values}) == len(set(values)):
            return more
    return digits


def with_article(noun: str) -> str:
    """A noun, or the name of a type, after "a" or "an", as it is spoken: initials letter by letter.

    >>> [with_article(noun) for noun in ("int", "str", "Embedding", "LSTM", "GRU", "UserDict", "uint8", "OrderedDict")]
    ['an int', 'a str', 'an Embedding', 'an LSTM', 'a GRU', 'a UserDict', 'a uint8', 'an OrderedDict']
    """
    initials = noun[:1].isupper() and not noun[1:2].islower()
    spoken_open = noun[:1] in "AEFHILMNORSX" if initials else re.match(r"[aeio]|u(?!int|ni|se)", noun.lower())
    return f"{'an' if spoken_open else 'a'} {noun}"


def shown(text: object, lines: bool = False) -> str:
    r"""`text` as a string that any terminal or log shows as what it is: nothing is hidden, nothing acts.

    What Python does not count as printable (control characters and ESC, bidirectional overrides, characters without
    width, separators of lines, halves of surrogate pairs, such as those of a file's name that is not UTF-8) becomes its
    escape. Nothing is cut short. With `lines`, "\n" stays.

    >>> shown("epoch_1[best]\x1b[2J\n\u202egpj.pth")
    'epoch_1[best]\\x1b[2J\\n\\u202egpj.pth'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or (lines and sign == "\n") else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )
