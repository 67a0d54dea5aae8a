import os
import shutil
import time
from pathlib import Path

import pytest
from casefiles import NEW, OLD, four, put, put_all

from brats_cli.core.data.finding import find_cases, survey
from brats_cli.core.data.folders import nifti_files
from brats_cli.core.errors import BratsWarning, UnreadableFileError


def test_links_are_followed_once(tmp_path):
    put_all(tmp_path / "elsewhere/x", four("x", OLD))
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "elsewhere/round").symlink_to(data)
    assert [case.id for case in find_cases(data)] == ["x"]


def test_links_to_themselves_are_left_out(tmp_path):
    put(tmp_path / "a/X_t1.nii")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a/b.nii").symlink_to("b.nii")
    assert [case.id for case in survey(tmp_path).cases] == ["X"]


def test_many_links_are_listed_at_the_speed_of_folders(tmp_path):
    for number in range(400):
        folder = tmp_path / f"real/{number}"
        folder.mkdir(parents=True)
        (folder / f"X{number:04}_t1.nii").touch()
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / f"links/{number}").symlink_to(folder)
    started = time.process_time()
    assert len(survey(tmp_path / "real").cases) == 400
    folders = time.process_time() - started
    assert len(survey(tmp_path / "links").cases) == 400
    # Comparing each link with each other took 50 times as long.
    assert time.process_time() - started < 10 * folders


def test_a_folder_that_may_not_be_read_is_skipped_with_a_warning(tmp_path, monkeypatch):
    put_all(tmp_path, ["a/X_t1.nii", "lost+found/Y_t1.nii"])
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.warns(BratsWarning, match=r"lost\+found: Permission denied; it is skipped"):
        assert [case.id for case in survey(tmp_path).cases] == ["X"]
    with pytest.raises(UnreadableFileError, match="Permission denied"):
        survey(tmp_path / "lost+found")


@pytest.mark.slow
def test_ten_thousand_cases_are_all_found(tmp_path):
    for number in range(10_000):
        folder = tmp_path / f"BraTS-GLI-{number:05}-000"
        folder.mkdir()
        for suffix in NEW:
            (folder / f"{folder.name}-{suffix}.nii.gz").touch()
    assert len(find_cases(tmp_path)) == 10_000  # benchmarks/bench_listing.py tells how fast
    assert len(nifti_files(tmp_path)) == 50_000
    shutil.rmtree(tmp_path)  # pytest would keep so many files of three runs
