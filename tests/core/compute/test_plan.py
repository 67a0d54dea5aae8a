from pathlib import Path

import pytest

from brats_cli.core.compute import plan as planning
from brats_cli.core.compute.plan import Plan, by_folder, free_disk
from brats_cli.core.errors import BratsError, OutputError


def planned(**more):
    return Plan(cases=("a",), outputs=("out/a.stl",), **more)


@pytest.fixture
def small(monkeypatch):
    """A machine of which 1 GB of disk and 2 GB of memory are free."""
    monkeypatch.setattr(planning, "free_disk", lambda folder: 1_000_000_000)
    monkeypatch.setattr(planning, "free_memory", lambda: 2_000_000_000)


def test_what_fits_is_no_error(small, tmp_path):
    plan = planned(disk_bytes={tmp_path: 999_999_999}, least_memory_bytes=2_000_000_000)
    assert plan.require_room() is plan


def test_a_small_disk_is_an_error_with_both_sizes(small, tmp_path):
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}") as caught:
        planned(disk_bytes={tmp_path: 13_400_000_000}).require_room()
    assert "take about 13.4 GB, and the disk has 1.0 GB left" in str(caught.value)
    assert caught.value.hint == "make room, or choose another place"


def test_folders_of_one_disk_share_it(small, tmp_path):
    halves = {tmp_path / "a": 600_000_000, tmp_path / "b" / "c": 600_000_000}
    with pytest.raises(OutputError, match=r"take about 1.2 GB"):
        planned(disk_bytes=halves).require_room()
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_an_error_if_not_even_the_smallest_case_fits(small):
    planned(memory_bytes=9_000_000_000, least_memory_bytes=1_000_000_000).require_room()
    with pytest.raises(BratsError, match=r"at least 3.0 GB of memory, and 2.0 GB are free"):
        planned(memory_bytes=9_000_000_000, least_memory_bytes=3_000_000_000).require_room()


def test_files_of_one_folder_add_up():
    files = [(Path("a/x.stl"), 3), (Path("b/x.stl"), 4), (Path("a/y.stl"), 5)]
    assert by_folder(files) == {Path("a"): 8, Path("b"): 4}


def test_processes_take_memory_each_for_the_largest_image_and_at_least_for_the_smallest():
    plan = planned().in_processes(2, [10, 100, 40], base=1000, per_voxel=5)
    assert plan.memory_bytes == 2 * (1000 + 5 * 100)
    assert plan.least_memory_bytes == 5 * 10
    # Without workers there is this process; without an image, nothing but itself.
    assert planned().in_processes(0, [100], base=1000, per_voxel=5).memory_bytes == 1500
    none = planned().in_processes(None, [], base=1000, per_voxel=5)
    assert (none.memory_bytes, none.least_memory_bytes) == (1000, 0)


def test_an_executor_has_its_own_memory_and_this_disk(small, tmp_path):
    plan = planned(disk_bytes={tmp_path: 5}, memory_bytes=7, least_memory_bytes=6)
    assert plan.over(None) == plan
    assert plan.over("tcp://host:8786") == planned(disk_bytes={tmp_path: 5})


def test_a_folder_that_does_not_exist_has_the_disk_of_its_parent(tmp_path, monkeypatch):
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.1)
    monkeypatch.chdir(tmp_path)
    assert free_disk(Path("a")) > 0


def test_plain_values(small, tmp_path):
    plan = planned(skipped=("b",), disk_bytes={tmp_path: 5}, memory_bytes=7)
    assert plan.to_json_dict() == {
        "format": "brats-plan/1",
        "cases": ["a"],
        "outputs": ["out/a.stl"],
        "skipped": ["b"],
        "device": None,
        "disk": {str(tmp_path): {"needed_bytes": 5, "free_bytes": 1_000_000_000}},
        "memory": {"needed_bytes": 7, "free_bytes": 2_000_000_000},
    }
