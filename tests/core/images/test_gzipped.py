"""Gzip by zlib-ng, held to what Python's own zlib and gzip make of the same bytes."""

import gzip
import io
import zlib

import numpy as np
import pytest

from brats_cli.core.images import gzipped

TEXT = bytes(np.random.default_rng(0).integers(0, 40, 3_000_000, dtype=np.uint8))


def unzipped(content):
    return b"".join(gzipped.unzipped(io.BytesIO(content)))


def outcome_of_zlib(content):
    """What one gzip member makes by zlib: its content, or the kind of damage."""
    member = zlib.decompressobj(wbits=31)
    try:
        found = member.decompress(content)
    except zlib.error:
        return "damaged"
    return found if member.eof else "cut short"


def outcome(content):
    try:
        return unzipped(content)
    except gzipped.DamagedGzipError:
        return "damaged"
    except EOFError:
        return "cut short"


@pytest.mark.parametrize("content", [b"", b"x", TEXT, bytes(5_000_000)], ids=len)
def test_what_is_zipped_any_gzip_reads(content):
    zipped = gzipped.zipped(content)
    assert gzip.decompress(zipped) == content
    assert unzipped(zipped) == content
    assert zipped == gzipped.zipped(content)
    assert zipped[4:8] == bytes(4)  # the time, which would make equal content differ


@pytest.mark.parametrize("level", range(10))
def test_what_gzip_wrote_is_read_at_every_level(level):
    assert unzipped(gzip.compress(TEXT, level)) == TEXT


def test_pieces_are_bounded_however_much_a_byte_makes():
    sizes = [len(piece) for piece in gzipped.unzipped(io.BytesIO(gzip.compress(bytes(1 << 26))))]
    assert sum(sizes) == 1 << 26
    assert max(sizes) <= 1 << 20


def test_members_follow_each_other_and_zeros_may_follow_them():
    parts = [TEXT[:7], b"", TEXT[7:]]
    assert unzipped(b"".join(map(gzip.compress, parts)) + bytes(600_000)) == TEXT


@pytest.mark.parametrize("rest", [b"xy", b"\0\0xy", b"PK\x03\x04" * 99, TEXT])
def test_anything_else_behind_a_member_is_damage(rest):
    assert outcome(gzip.compress(TEXT[:99]) + rest) == "damaged"


def test_a_single_byte_behind_a_member_may_be_the_first_of_another():
    assert outcome(gzip.compress(TEXT[:99]) + b"x") == "cut short"


def test_every_cut_and_every_flipped_byte_is_noticed_as_by_zlib():
    whole = gzip.compress(TEXT[:300])
    assert outcome(whole) == TEXT[:300]
    for end in range(1, len(whole)):
        assert outcome(whole[:end]) == "cut short"
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        assert outcome(bytes(changed)) == outcome_of_zlib(bytes(changed)), place


def test_the_first_bytes_are_unzipped_alone():
    assert gzipped.first_unzipped(gzip.compress(TEXT)[:4096], 348) == TEXT[:348]
    assert gzipped.first_unzipped(gzip.compress(b"short"), 348) == b"short"
    with pytest.raises(gzipped.DamagedGzipError):
        gzipped.first_unzipped(b"\x1f\x8b\x08junk and more of it", 348)
