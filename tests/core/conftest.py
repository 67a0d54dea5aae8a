"""Small cases that several test files of the core share."""

import numpy as np
import pytest

from brats_cli.core.data.labels import REGIONS, SCHEMES
from brats_cli.core.data.phantom import write_phantoms
from brats_cli.core.prepared.store import StoredCase


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A data set of four phantom cases, of which the third does not enhance; not to be changed."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(folder, cases=4, shape=(32, 36, 34))
    return folder


@pytest.fixture
def stored_case():
    """A function that makes a case as the store opens it, of arrays in memory."""

    def make(images, labels, *, case_id="case", scheme="brats2023"):
        images, labels = np.asarray(images, np.float16), np.asarray(labels, np.uint8)
        masks = {name: SCHEMES[scheme].region(name).mask(labels) for name in REGIONS}
        masks["brain"] = np.any(images != 0, axis=0)
        centres = {name: np.argwhere(mask).astype(np.int16) for name, mask in masks.items()}
        return StoredCase(case_id, images, labels, centres)

    return make
