"""Inputs that nobody wrote on purpose: values, trees, texts and bytes for hypothesis to draw.

`FUZZ=10000 pytest tests/test_fuzzed_files.py` (as `make fuzz` does) tries so many inputs per test,
other ones each time; without it, the suite tries the same few hundred every time.
"""

import copy
import os
import warnings

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brats_cli.core.errors import BratsError, BratsWarning

INPUTS = int(os.environ.get("FUZZ", "0"))
"""How many inputs per test; 0 for the suite's."""

_SETTINGS = settings(
    max_examples=INPUTS or 200,
    derandomize=not INPUTS,
    database=None,  # what failed gets a test of its own, or an @example
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def fuzzed(**strategies):
    """A test of many inputs."""
    return lambda test: _SETTINGS(given(**strategies)(test))


def only_brats_errors(call):
    """What `call` gives, or its `BratsError`, of one line and a hint; anything else is raised.

    Also a warning, unless it is one about the user's data, or one to developers, as NumPy's of the
    type 'a', which a damaged header may name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for allowed in (BratsWarning, DeprecationWarning):
            warnings.simplefilter("ignore", allowed)
        try:
            return call()
        except BratsError as caught:
            error = caught
    assert str(error)
    assert error.hint
    assert "\n" not in str(error) + error.hint
    assert len(str(error)) < 5000
    return error


# --- values ------------------------------------------------------------------------------------

_WORDS = [
    "", "x", "0", "1", "01", "\u00b2", "null", "nan", "-inf", "1e400", "\0", "a" * 300, "../..",
    "2001-99-99", "=1+1", "[red]", "\x1b[31m", "\ud800", "$x^", "<b>", "%s", "{}", "unet",
    "monai/SegResNet", "monai/x", "nnunet/PlainConvUNet", "brats2023", "t1", "WT", "background",
]  # fmt: skip

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([10**9, -(10**9), 2**31, 2**63, 10**30, -(10**30), 10**400]),
    st.floats(),
    st.sampled_from(_WORDS),
    st.text(max_size=6),
)

VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(_WORDS), inner, max_size=3)
    ),
    max_leaves=6,
)
"""What a field may hold that should hold something else: anything of JSON and YAML."""


@st.composite
def changed(draw, tree):
    """A tree of dicts and lists with one to four of its entries replaced, renamed or removed."""
    if draw(st.integers(0, 29)) == 0:
        return draw(VALUES)
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(tree))
        if not places:
            break
        inside, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["other", "other", "other", "gone", "renamed", "more"]))
        if what == "other":
            inside[key] = draw(VALUES)
        elif what == "gone":
            del inside[key]
        elif what == "renamed" and isinstance(inside, dict):
            inside[draw(st.sampled_from(_WORDS))] = inside.pop(key)
        elif isinstance(inside, dict):
            inside[draw(st.sampled_from(_WORDS))] = draw(VALUES)
        else:
            inside.append(draw(VALUES))
    return tree


def _places(tree):
    """Every entry of a tree, as the container and the key in it."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


# --- text and bytes ----------------------------------------------------------------------------

_TOKENS = [
    "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!bool ", "!!set ", "!!omap ", "!!pairs ",
    "!!null ", "!!python/object/apply:os.getcwd ", "!x ", "&a ", "*a ", "<<: ", "? ", "| ", "> ",
    "0x", "0b", "1:2:", "2001-", "~", "'", '"', "{", "[", "- ", ": ", "#", "%", "@", "\t", "\n",
    "---\n", "...\n", "\x85", "\ufeff", ",", ";", "1e", "=",
]  # fmt: skip


@st.composite
def sprinkled(draw, text):
    """A text with up to three tokens of YAML, JSON or CSV put anywhere."""
    found = draw(text)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(found)))
        found = found[:place] + draw(st.sampled_from(_TOKENS)) + found[place:]
    return found


def encoded(text):
    """The bytes of a text, some in other encodings, some damaged."""
    encodings = st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "latin-1"])
    whole = st.builds(
        lambda found, name: found.encode(name, "surrogatepass" if "utf" in name else "replace"),
        text,
        encodings,
    )
    return whole.flatmap(lambda content: st.one_of(st.just(content), damaged(content)))


@st.composite
def damaged(draw, content):
    """Bytes with one to six places overwritten, removed, put in or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        what = draw(st.sampled_from(["other", "other", "flipped", "removed", "put in", "cut"]))
        if what == "cut":
            del found[place:]
        elif what == "removed":
            del found[place : place + draw(st.integers(1, 20))]
        elif what == "put in":
            found[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif found:
            found[place] = (
                draw(st.integers(0, 255)) if what == "other" else found[place] ^ 1 << draw(_BIT)
            )
    return bytes(found)


_BIT = st.integers(0, 7)
