"""What several test files share: running the command, the real cases, tiny settings and cases."""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from brats_cli.app import app
from brats_cli.core.images.grid import Grid, Volume

REAL = Path(__file__).parents[2] / "shared/data"
"""Data that never enters the project: `cases`, `pairs` and others."""

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real cases are not in ../shared")

TINY = {
    "epochs": 1,
    "steps_per_epoch": 2,
    "patch_size": 16,
    "workers": 0,
    "network": {"channels": 2, "levels": 2},
}
"""Settings of the smallest training, which learns nothing but takes every step."""


def brats(*words, stdin=None):
    """Run a command in this process; an exception that is a bug is raised here."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def stdout_of(*words, stdin=None):
    """Run a command that has to succeed; its stdout."""
    result = brats(*words, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def loaded_by(code, names, *words, cwd=None):
    """Those of some modules that a new process has loaded when it has run `code`."""
    code += f"\nimport sys; print(*({set(names)} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def assert_refused(result, error, hint=""):
    """Two lines on stderr, nothing on stdout, status 3."""
    assert result.exit_code == 3, result.output
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first == f"error: {error}"
    assert second.startswith(" hint: ")
    assert hint in second


class KilledError(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


def kill_at_rename(patch, number):
    """Of all renames, the one with this number is not done, nor any after it."""
    rename, count = Path.replace, 0

    def replace(self, target):
        nonlocal count
        count += 1
        if count >= number:
            raise KilledError
        return rename(self, target)

    patch.setattr(Path, "replace", replace)


def save_nifti(path, data, affine=None):
    """Write an array as NIfTI, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def write_case(folder, case_id, labels=None, *, seed, lacks=(), affine=None, joined_by="_"):
    """Write a case of random images in a folder of its own.

    Args:
        folder: Folder of the data set.
        case_id: Name of the case's folder, and start of its files' names.
        labels: Label map, (X, Y, Z); without one, the images have 6 x 6 x 6 voxels.
        seed: The same seed gives the same images.
        lacks: Modalities that are not written.
        affine: By default voxels of 1 mm at the origin.
        joined_by: What joins the case id and the modality.
    """
    generator = np.random.default_rng(seed)
    for role in ("t1", "t1ce", "t2", "flair"):
        image = generator.integers(1, 999, (6, 6, 6) if labels is None else labels.shape)
        image[0] = 0  # background
        if role not in lacks:
            path = folder / case_id / f"{case_id}{joined_by}{role}.nii.gz"
            save_nifti(path, image.astype(np.int16), affine)
    if labels is not None:
        save_nifti(folder / case_id / f"{case_id}{joined_by}seg.nii.gz", labels, affine)


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


class Launched:
    """A process that runs a script in several that train together, and what they write to stderr.

    It is forked from one that has imported torch and the launcher, which takes three seconds.

    Attributes:
        pid: Of the process that has launched the others.
        stderr: A file to be read while they run.
    """

    def __init__(self, script, processes):
        pipe = script.with_suffix(".stderr")
        os.mkfifo(pipe)
        forked = multiprocessing.get_context("forkserver")
        forked.set_forkserver_preload(["torch.distributed.launcher.api", "pytest", __name__])
        self._process = forked.Process(target=_launch, args=(script, pipe, processes))
        with mock.patch.dict(os.environ, LOGLEVEL="CRITICAL"):  # as `launch` has it, which is late
            self._process.start()
        self.pid, self.terminate = self._process.pid, self._process.terminate
        self.stderr = pipe.open()  # when the process has opened it as well

    def ended(self, within=240):
        """All that is left of stderr, and the exit status; after so many seconds, it is ended."""
        too_late = threading.Timer(within, self.terminate)
        too_late.start()
        with self.stderr as left:
            text = left.read()
        self._process.join()
        too_late.cancel()
        return text, self._process.exitcode


def _launch(script, pipe, processes):
    with pipe.open("w") as stderr:
        os.dup2(stderr.fileno(), 2)
    from brats_cli.core.compute.distributed import launch

    sys.exit(launch([sys.executable, str(script)], processes))


def launched(code, folder, processes=2):
    """The process that runs `code`, which has `folder`, in several that train together."""
    script = folder / "each.py"
    script.write_text(f"from pathlib import Path\nfolder = Path({str(folder)!r})\n{code}")
    return Launched(script, processes)
