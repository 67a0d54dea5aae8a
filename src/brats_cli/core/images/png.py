"""Pictures as PNG, which take longer to write by libraries that take longer to load."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The PNG file of greys (H, W) or of colours (H, W, 3), the first row on top."""
    high, wide, *colours = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    # 8 bits, of grey or of each of three colours; and for each row that it is not predicted from
    # its neighbours.
    head = struct.pack(">2I5B", wide, high, 8, 2 if colours else 0, 0, 0, 0)
    rows = np.pad(pixels.reshape(high, -1), ((0, 0), (1, 0))).tobytes()
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows, 6)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
