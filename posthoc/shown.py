"""How text that came from elsewhere (a file's name, a tensor's, a library's error) is shown to a person."""

import re
from collections.abc import Sequence

LISTED = 4
"""So many names are given before "and N more"."""


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
