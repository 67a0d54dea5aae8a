"""Cases that several test files train on."""

import numpy as np
import pytest


@pytest.fixture
def cases(stored_case):
    """Two cases of 20 x 18 x 17 voxels of noise, with a bright tumour of nested boxes in each."""
    made = []
    for seed in range(2):
        labels = np.zeros((20, 18, 17))
        first = 3 + 3 * seed
        for value, inset in ((2, 0), (1, 2), (3, 3)):
            box = slice(first + inset, first + 9 - inset)
            labels[box, box, box] = value
        images = np.random.default_rng(seed).normal(0, 0.3, (2, *labels.shape))
        images[0] += np.array([0.0, 1, 0, 2])[labels.astype(int)]
        images[1] += 2 * (labels > 0)
        made.append(stored_case(images, labels, case_id=f"case{seed}"))
    return made
