"""Cases that the tests of this room share; not to be changed."""

import numpy as np
import pytest
from viewcases import label_map, write, write_case


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory):
    """The case; not to be changed."""
    return write_case(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="session")
def prediction(tmp_path_factory):
    """The case's tumour, one voxel too large on the left, with ET and core as they are."""
    labels = label_map()
    labels[40:41, 12:24, 15:27] = 2
    return write(tmp_path_factory.mktemp("seg") / "seg.nii.gz", labels, dtype=np.uint8)
