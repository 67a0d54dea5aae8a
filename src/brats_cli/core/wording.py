"""How messages put lists, near misses, kills and names that cannot be printed into words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

KILLED = "was killed, most likely because memory ran out"
"""What is known of a process that ended by SIGKILL."""


def listing(items: Sequence[object], *, shown: int = 3) -> str:
    """Items as a list in a sentence: `a, b, c and 4 more`.

    >>> listing(["a", "b"])
    'a, b'
    >>> listing("abcdefg")
    'a, b, c and 4 more'
    """
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more


def count_of(number: int, what: str) -> str:
    """A number of things: `1 case`, `2 cases`.

    >>> count_of(1, "case"), count_of(0, "case")
    ('1 case', '0 cases')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def brief(value: object) -> str:
    """A value as a message shows it: what it is in Python, cut off behind 60 characters.

    >>> brief([1, 2])
    '[1, 2]'
    >>> len(brief("x" * 1000))
    60
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def size_text(count: int) -> str:
    """Bytes as people write them: `13.4 GB`, `75.2 MB`.

    >>> size_text(13_400_000_000)
    '13.4 GB'
    >>> size_text(20_300)
    '20.3 kB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str, cutoff: float = 0.6) -> str:
    """The hint for a name that does not exist: the nearest that does, or else `otherwise`.

    >>> did_you_mean("learning_rat", ["epochs", "learning_rate"], otherwise="see --help")
    "did you mean 'learning_rate'?"
    >>> did_you_mean("xyz", ["epochs"], otherwise="see --help")
    'see --help'
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else otherwise


# What would move the cursor, change colours or the direction of writing, or cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` as it may be printed: control characters and undecoded bytes as escapes."""

    def escaped(found: re.Match[str]) -> str:
        code = ord(found[0])
        code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0  # a byte of a name that is not UTF-8
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _UNPRINTABLE.sub(escaped, text)


def drawable(text: str) -> str:
    r"""`text` as matplotlib draws it: printable, and `$` begins no formula.

    >>> drawable("A$x^$")
    'A\\$x^\\$'
    """
    return printable(text).replace("$", r"\$")
