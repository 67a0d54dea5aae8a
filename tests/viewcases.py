"""Cases whose every voxel is known, written as a user's files are, for the tests of view."""

import nibabel as nib
import numpy as np

# As in BraTS: axes to the left, posterior and superior, voxels of 1 mm.
BRATS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])

SHAPE = (48, 56, 40)

# In the file's voxels. Its first axis runs to the left: high indices are the patient's left.
BRAIN = np.s_[4:44, 6:50, 5:35]
TUMOUR = np.s_[28:40, 12:24, 15:27]  # left, anterior
CORE = np.s_[30:38, 14:22, 17:25]
ENHANCING = np.s_[32:36, 16:20, 19:23]
MARK = np.s_[30:40, 40:46, 10:30]  # bright in T2 alone: left, posterior


def brain(value=100.0):
    image = np.zeros(SHAPE)
    image[BRAIN] = value
    return image


def label_map():
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[TUMOUR] = 2
    labels[CORE] = 1
    labels[ENHANCING] = 4
    return labels


def images():
    """Four sequences of one level each, so that pixels tell them apart."""
    generator = np.random.default_rng(0)
    found = {}
    for number, name in enumerate(("t1", "t1ce", "t2", "flair")):
        image = brain(200.0 + 100 * number)
        image[BRAIN] += generator.integers(-20, 20, image[BRAIN].shape)
        found[name] = image
    found["t2"][MARK] = 900
    return found


def write(path, data, affine=BRATS, dtype=np.int16, description="", **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(data).astype(dtype), affine)
    image.header["descrip"] = description.encode()
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def write_case(
    folder, scans=None, labels="default", *, case="BraTS2021_00001", affine=BRATS, **how
):
    """A case in `folder`, and the folder; `labels=None` writes no label map."""
    for name, image in (images() if scans is None else scans).items():
        write(folder / case / f"{case}_{name}.nii.gz", image, affine, **how)
    if labels is not None:
        data = label_map() if isinstance(labels, str) else labels
        write(folder / case / f"{case}_seg.nii.gz", data, affine, np.uint8)
    return folder / case
