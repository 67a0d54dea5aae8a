"""What several test files need."""

import numpy as np

from brats_cli.core.images.grid import Grid, Volume


def volume(data, affine=None, **more):
    """An image in memory, on the grid of an affine (by default that of voxel indices)."""
    data = np.asarray(data)
    shape = (*data.shape, 1, 1)[:3]
    return Volume(data, Grid(shape, np.eye(4) if affine is None else np.asarray(affine)), **more)


def centroid(mesh):
    """Centre of the volume that a mesh encloses: each face spans a tetrahedron with the origin."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    volumes = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6
    return (volumes[:, None] * (a + b + c) / 4).sum(axis=0) / volumes.sum()


def _patched(offset, dtype, *values):
    """A function that overwrites numbers of a NIfTI-1 header at a byte offset (nifti1.h)."""
    new = np.array(values, dtype=f"<{dtype}").tobytes()
    return lambda content: content[:offset] + new + content[offset + len(new) :]


DAMAGES = {
    "huge-dim": _patched(40, "i2", 3, 32767, 32767, 32767),
    "seven-dimensions": _patched(40, "i2", 7, 2, 2, 2, 2, 2, 2, 2),
    "negative-dim": _patched(40, "i2", 3, -4, 4, 4),
    "zero-dim": _patched(40, "i2", 3, 0, 4, 4),
    "dim-of-nine": _patched(40, "i2", 9),
    "dim-of-none": _patched(40, "i2", 0),
    "datatype-9999": _patched(70, "i2", 9999),
    "datatype-rgb": _patched(70, "i2", 128, 24),
    "offset-beyond-the-end": _patched(108, "f4", 1e9),
    "offset-nan": _patched(108, "f4", np.nan),
    "intercept-infinite": _patched(112, "f4", 1, np.inf),
    "sform-flat": _patched(280, "f4", *[0.0] * 12),
    "sform-nan": _patched(280, "f4", *[np.nan] * 12),
    "magic-missing": _patched(344, "u1", 0, 0, 0, 0),
    "sizeof-hdr": _patched(0, "i4", 349),
    "cut-in-the-header": lambda content: content[:200],
    "cut-in-the-voxels": lambda content: content[:-40],
    "empty": lambda content: b"",
    "text": lambda content: b"<html>log in first</html>" * 20,
}
"""What may have become of the bytes of a NIfTI-1 file, by name."""
