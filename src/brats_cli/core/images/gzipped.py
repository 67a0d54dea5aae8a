"""Gzip in and out, by zlib-ng: the same format three to four times as fast as by zlib."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from zlib_ng import zlib_ng

MAGIC = b"\x1f\x8b"
"""The first two bytes of a gzip file."""

MOST_RATIO = 1032
"""No byte of a gzip file makes more than this many (zlib's technical details)."""

DamagedGzipError: type[Exception] = zlib_ng.error  # type: ignore[assignment]
"""A checksum that does not fit, or bytes that are not gzip's."""

_CHUNK = 1 << 18
"""Bytes that are read, and unzipped, at once: what stays in a core's cache."""

# Of a label map 6 makes 25 kB in 5 ms, of a scan 2.47 MB in 50 ms; zlib at its fastest takes 11 and
# 73 ms for 69 kB and 2.59 MB. Higher levels take several times as long for a few per cent.
_LEVEL = 6

_AS_GZIP = 31  # zlib's `wbits`: a window of 32 kB, and gzip's header and checksum around it


def unzipped(file: IO[bytes]) -> Iterator[bytes]:
    """The unzipped bytes of a file of one or more gzip members, in pieces of bounded size.

    Zeros behind a member, with which some programs fill up the last block, are passed over.

    Raises:
        EOFError: If it ends too soon.
        DamagedGzipError: If a checksum does not fit, or something else follows a member.
    """
    member = zlib_ng.decompressobj(wbits=_AS_GZIP)
    while read := file.read(_CHUNK):
        while read:
            if member.eof:
                read = read.lstrip(b"\0")
                if not read:
                    break
                member = zlib_ng.decompressobj(wbits=_AS_GZIP)
            piece = member.decompress(read, _CHUNK)
            read = member.unused_data if member.eof else member.unconsumed_tail
            if piece:
                yield piece
    # What is left of the last read may still be in the decompressor.
    while not member.eof:
        piece = member.decompress(member.unconsumed_tail, _CHUNK)
        if not piece:
            raise EOFError
        yield piece


def first_unzipped(start: bytes, most: int) -> bytes:
    """What the first bytes of a gzip file make, at most `most` bytes.

    Raises:
        DamagedGzipError: If they are not gzip's.
    """
    return zlib_ng.decompressobj(wbits=_AS_GZIP).decompress(start, most)


def zipped(content: bytes) -> bytes:
    """`content` as one gzip member without a time: the same content gives the same bytes."""
    packer = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, _AS_GZIP)
    return packer.compress(content) + packer.flush()
