"""A data set that several test files look for cases in."""

import pytest
from casefiles import DISTRIBUTED, ENDINGS, names_of, put, put_all


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """All of `DISTRIBUTED` in one data set, as somebody might keep it, and what lies about."""
    root = tmp_path_factory.mktemp("tree")
    for row, (folder, case_id, joint, suffixes, *_) in enumerate(DISTRIBUTED):
        put_all(root / folder, names_of(case_id, joint, suffixes, ENDINGS[row % 3]))
    (root / "name_mapping.csv").write_text("a table\n")
    put(root / "2021/BraTS2021_00000/BraTS2021_00000_brain_mask.nii.gz")
    put(root / "2021/BraTS2021_00000/._BraTS2021_00000_t1.nii.gz")  # macOS leaves such behind
    return root
