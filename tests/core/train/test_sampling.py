import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio

from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import UnreadableFileError
from brats_cli.core.prepared.store import Store
from brats_cli.core.train.sampling import Patches, WorkerError, batches, cut


def numbered(stored_case, shape=(12, 10, 8), *, case_id="case", tumour=True):
    """A case whose first modality numbers its voxels from 1, with a small tumour in one corner.

    Edema 2 in 3 x 3 x 3 voxels from (1, 1, 1), necrosis 1 in its middle row, enhancing 3 in its
    middle.
    """
    numbers = np.arange(1, np.prod(shape) + 1).reshape(shape)
    labels = np.zeros(shape)
    if tumour:
        labels[1:4, 1:4, 1:4] = 2
        labels[1:4, 2, 2] = 1
        labels[2, 2, 2] = 3
    return stored_case(np.stack([numbers, numbers % 7]), labels, case_id=case_id)


def patches_of(*cases, edge=4, tumour_share=0.75, seed=0):
    return Patches(cases, edge=edge, tumour_share=tumour_share, seed=seed)


def read(patches, first, last, *, workers, batch_size=2):
    return list(batches(patches, range(first, last), batch_size=batch_size, workers=workers))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.case_ids == other.case_ids


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def three(stored_case):
    return [numbered(stored_case, case_id=name) for name in "abc"]


# --- one patch ---------------------------------------------------------------------------------


def test_a_patch_is_cut_at_its_corner(stored_case):
    case = numbered(stored_case)
    images, labels = cut(case, np.array([1, 2, 3]), 4)
    assert (images.dtype, labels.dtype) == (torch.float16, torch.uint8)
    # Voxel (1, 2, 3) of 12 x 10 x 8 is number 80 + 2 * 8 + 3, from 1.
    assert images[0, 0, 0, 0] == 80 + 16 + 3 + 1
    np.testing.assert_array_equal(images, case.images[:, 1:5, 2:6, 3:7])
    np.testing.assert_array_equal(labels, case.labels[1:5, 2:6, 3:7])


def test_a_patch_larger_than_the_case_is_padded_on_both_sides(stored_case):
    # 12 x 5 x 4 in a patch of 8: 3 are missing, 1 before and 2 behind; 4 are, 2 and 2.
    case = numbered(stored_case, (12, 5, 4))
    images, labels = cut(case, np.array([2, 0, 0]), 8)
    assert images.shape == (2, 8, 8, 8)
    expected = np.zeros((2, 8, 8, 8))
    expected[:, :, 1:6, 2:6] = case.images[:, 2:10]
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels[:, 1:6, 2:6], case.labels[2:10])
    assert labels.sum() == case.labels[2:10].sum()


def test_a_patch_is_a_copy_that_may_be_changed(stored_case):
    case = numbered(stored_case)
    before = case.images.copy()
    images, _ = cut(case, np.array([0, 0, 0]), 12)
    images.fill_(0)
    np.testing.assert_array_equal(case.images, before)


def test_a_patch_lies_about_its_centre_and_within_the_case(stored_case):
    # The only voxels of the tumour: (0, 0, 0), too near to the edge, and (6, 5, 4).
    labels = np.zeros((12, 10, 8))
    labels[0, 0, 0] = labels[6, 5, 4] = 2
    case = stored_case(np.ones((1, 12, 10, 8)), labels)
    patches = patches_of(case, tumour_share=1)
    corners = {tuple(patches.draw(number)[1].tolist()) for number in range(40)}
    assert corners == {(0, 0, 0), (4, 3, 2)}


def test_no_patch_reaches_beyond_the_case(three):
    patches = patches_of(*three, edge=6)
    corners = np.array([patches.draw(number)[1] for number in range(300)])
    assert (corners.min(axis=0) == 0).all()
    assert (corners.max(axis=0) == [6, 4, 2]).all()  # 12 - 6, 10 - 6, 8 - 6


# --- which patches -----------------------------------------------------------------------------


def test_every_case_once_a_round_and_not_always_in_one_order(three):
    patches = patches_of(*three)
    rounds = ["".join(patches.draw(3 * r + n)[0].id for n in range(3)) for r in range(20)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3  # of 6 orders


def test_the_share_of_patches_on_tumour(stored_case):
    # Patches of one voxel show what they are centred on. Of 12 * 10 * 8 = 960 voxels of brain 27
    # are tumour, so that 0.75 + 0.25 * 27/960 = 0.757 of all are; 0.75 / 3 of all are centred on
    # ET alone, whose one voxel WT and TC hit in 1 of 27 and 1 of 3:
    # 0.25 * (1 + 1/3 + 1/27) + 0.25 / 960 = 0.343.
    patches = patches_of(numbered(stored_case), edge=1)
    found = np.array([int(cut(*patches.draw(n), 1)[1]) for n in range(4000)])
    # Five standard deviations of a share of 4000 draws are at most 5 * 0.5 / 63.2 = 0.04.
    assert (found > 0).mean() == pytest.approx(0.757, abs=0.04)
    assert (found == 3).mean() == pytest.approx(0.343, abs=0.04)


def test_no_patch_is_sought_on_a_tumour_that_is_not_there(stored_case):
    patches = patches_of(numbered(stored_case, tumour=False), edge=1, tumour_share=1)
    places = {tuple(patches.draw(number)[1].tolist()) for number in range(300)}
    assert len(places) > 200  # anywhere in the brain


def test_a_region_that_is_not_there_leaves_its_share_to_the_others(stored_case):
    # Without ET, half of the patches on tumour are centred on the core, one voxel of 27.
    labels = np.zeros((12, 10, 8))
    labels[1:4, 1:4, 1:4] = 2
    labels[2, 2, 2] = 1
    patches = patches_of(stored_case(np.ones((1, 12, 10, 8)), labels), edge=1, tumour_share=1)
    found = np.array([int(cut(*patches.draw(n), 1)[1]) for n in range(2000)])
    # 0.5 + 0.5 / 27, within five standard deviations: 5 * 0.5 / sqrt(2000).
    assert (found == 1).mean() == pytest.approx(0.519, abs=0.056)
    assert (found > 0).all()


def test_a_share_of_none_is_uniform_over_the_brain(stored_case):
    # 27 of 960 voxels are tumour, 2.8 %, and 4 % is seven standard deviations more.
    patches = patches_of(numbered(stored_case), edge=1, tumour_share=0)
    found = np.array([int(cut(*patches.draw(n), 1)[1]) for n in range(4000)])
    assert 0.015 < (found > 0).mean() < 0.045


def test_another_seed_draws_other_patches(three):
    drawn = [
        [(case.id, *corner) for case, corner in map(patches_of(*three, seed=seed).draw, range(20))]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


# --- through the queue -------------------------------------------------------------------------


def test_batches_hold_the_patches_in_order(three):
    patches = patches_of(*three)
    found = read(patches, 4, 10, workers=0)
    assert [batch.images.shape for batch in found] == [(2, 2, 4, 4, 4)] * 3
    assert [batch.labels.shape for batch in found] == [(2, 4, 4, 4)] * 3
    assert found[0].images.dtype == torch.float16
    assert found[0].labels.dtype == torch.uint8
    for number in range(4, 10):
        case, corner = patches.draw(number)
        images, labels = cut(case, corner, 4)
        batch, place = divmod(number - 4, 2)
        assert torch.equal(found[batch].images[place], images)
        assert torch.equal(found[batch].labels[place], labels)
        assert found[batch].case_ids[place] == case.id


def test_workers_read_the_same_patches_in_the_same_order(three):
    patches = patches_of(*three)
    assert_same(read(patches, 0, 12, workers=2), read(patches, 0, 12, workers=0))


def test_a_resumed_run_goes_on_with_the_patches_that_follow(three):
    whole = read(patches_of(*three), 0, 12, workers=0)
    assert_same(read(patches_of(*three), 6, 12, workers=0), whole[3:])


def test_a_finished_run_has_no_patches_left(three):
    assert read(patches_of(*three), 12, 12, workers=0) == []


def test_more_patches_than_cases_and_a_batch_across_two_rounds(three):
    found = read(patches_of(*three), 0, 8, workers=0, batch_size=4)
    ids = [case_id for batch in found for case_id in batch.case_ids]
    assert sorted(ids[:3]) == sorted(ids[3:6]) == ["a", "b", "c"]


def test_a_long_run_uses_the_slots_again_and_again(three):
    # Two workers and batches of three take 2 * 2 + 3 = 7 slots, so that 60 patches go nine rounds.
    patches = patches_of(*three)
    found = read(patches, 0, 60, workers=2, batch_size=3)
    assert_same(found, read(patches, 0, 60, workers=0, batch_size=3))


def test_batches_that_are_kept_do_not_change(three):
    feed = batches(patches_of(*three), range(40), batch_size=2, workers=0)
    first = next(feed)
    before = first.images.clone(), first.labels.clone()
    for _ in feed:
        pass
    assert torch.equal(first.images, before[0])
    assert torch.equal(first.labels, before[1])


@pytest.mark.parametrize("last", [4, 1000])
def test_workers_end_well_with_their_feed_or_when_it_is_left(three, last):
    feed = batches(patches_of(*three), range(last), batch_size=2, workers=2)
    next(feed)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    next(feed)
    feed.close()
    gc.collect()
    assert multiprocessing.active_children() == []
    assert [worker.exitcode for worker in workers] == [0, 0]


# --- from a store ------------------------------------------------------------------------------


@pytest.fixture
def store_cases(phantoms, tmp_path):
    """Two phantoms as a store has them."""
    scheme = SCHEMES["brats2023"]
    cases = [replace(case, scheme=scheme) for case in find_cases(phantoms)[:2]]
    plan = Store(tmp_path / "store", scheme).plan(cases)
    list(plan.run(workers=1))
    return plan.cases([case.id for case in cases])


def test_patches_of_a_store_are_cut_from_its_cases(store_cases):
    patches = Patches(store_cases, edge=16, tumour_share=0.5, seed=0)
    found = read(patches, 0, 4, workers=1)
    for number in range(4):
        case, (x, y, z) = patches.draw(number)
        batch, place = divmod(number, 2)
        box = np.s_[..., x : x + 16, y : y + 16, z : z + 16]
        np.testing.assert_array_equal(found[batch].images[place], case.images[:][box])
        np.testing.assert_array_equal(found[batch].labels[place], case.labels[:][box])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_no_file_stays_open(store_cases):
    patches = Patches(store_cases, edge=16, tumour_share=0.5, seed=0)
    before = open_files()
    assert len(read(patches, 0, 40, workers=0)) == 20
    gc.collect()
    assert open_files() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_reaches_the_training_as_the_error_it_is(store_cases, workers):
    path = store_cases[1].images.path
    path.write_bytes(path.read_bytes()[:-1])
    patches = Patches(store_cases, edge=16, tumour_share=0.5, seed=0)
    with pytest.raises(UnreadableFileError) as caught:
        read(patches, 0, 4, workers=workers)
    assert str(caught.value) == f"cannot read {path}: the prepared case is damaged"
    assert caught.value.hint.startswith(f"remove {path.parent} and start again")


# --- processes that die ------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """Look after workers that do not answer at once, and not only after five seconds."""
    wait = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(wait, "__defaults__", (0.2,))


class Deadly:
    """Images whose reader dies, which is what happens to one that takes too much memory."""

    def __init__(self, shape, how):
        self.shape = shape
        self.how = how

    def __getitem__(self, box):
        self.how()


def dying(stored_case, how):
    case = numbered(stored_case)
    return type(case)(case.id, Deadly(case.images.shape, how), case.labels, case.centres)


def test_a_worker_that_is_killed_is_named_as_lack_of_memory(stored_case, impatient):
    feed = batches(patches_of(numbered(stored_case)), range(500), batch_size=2, workers=4)
    next(feed)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.1)  # the training goes on, and is not interrupted in the middle of a step
    with pytest.raises(WorkerError) as caught:
        list(feed)
    assert str(caught.value) == (
        "a process that reads patches was killed, most likely because memory ran out"
    )
    assert caught.value.hint == "use fewer of them: --workers 2"


@pytest.mark.parametrize(
    ("how", "end"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "SIGTERM"),
        (lambda: os._exit(3), "exit status 3"),
    ],
)
def test_a_worker_that_ends_otherwise_is_told_with_its_end(stored_case, impatient, how, end):
    patches = patches_of(dying(stored_case, how))
    with pytest.raises(WorkerError) as caught:
        read(patches, 0, 4, workers=1)
    assert str(caught.value) == f"a process that reads patches ended with {end}"
    assert "--workers 0" in caught.value.hint


def test_a_mistake_of_ours_in_a_worker_is_no_users_error(stored_case):
    def fail():
        raise IndexError("a bug")

    with pytest.raises(IndexError, match="a bug"):
        read(patches_of(dying(stored_case, fail)), 0, 4, workers=1)


def test_workers_that_cannot_be_started(three, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tio, "Queue", full)
    with pytest.raises(WorkerError) as caught:
        read(patches_of(*three), 0, 4, workers=3)
    assert str(caught.value) == (
        "cannot start 3 processes that read patches: No space left on device"
    )
    assert caught.value.hint == (
        "is /dev/shm full? free it, or read within the training process: --workers 0"
    )


# --- other systems -----------------------------------------------------------------------------


def test_where_files_in_memory_are_unknown_one_on_disk_serves(three, monkeypatch, tmp_path):
    expected = read(patches_of(*three), 0, 8, workers=0)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert_same(read(patches_of(*three), 0, 8, workers=1), expected)
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import multiprocessing, shutil, sys
from dataclasses import replace
from pathlib import Path
from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.train.sampling import Patches, batches
from brats_cli.core.prepared.store import Store

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    scheme = SCHEMES["brats2023"]
    cases = [replace(case, scheme=scheme) for case in find_cases(Path(sys.argv[2]))[:2]]
    plan = Store(Path(sys.argv[3]), scheme).plan(cases)
    list(plan.run(workers=1))
    stored = plan.cases([case.id for case in cases])
    patches = Patches(stored, edge=int(sys.argv[4]), tumour_share=1, seed=0)
    feeds = [batches(patches, range(6), batch_size=2, workers=n) for n in (0, 2)]
    for one, other in zip(*feeds, strict=True):
        assert one.case_ids == other.case_ids
        assert (one.images == other.images).all() and (one.labels == other.labels).all()
    print(multiprocessing.get_start_method(), shutil.disk_usage("/dev/shm").total)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_may_be_started_in_every_way(method, phantoms, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, method, phantoms, tmp_path / "store", "16"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == method


@pytest.mark.slow
@pytest.mark.parametrize("size", [65536, 4096])
def test_a_container_with_hardly_any_shared_memory_is_enough(phantoms, tmp_path, size):
    # Patches of 64 voxels an edge, with labels, take 64^3 * 9 = 2.4 MB each.
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "
    words = [sys.executable, script, "fork", phantoms, tmp_path / "store", "64"]
    command = ["unshare", "--mount", "sh", "-c", mount + " ".join(map(str, words))]
    if not shutil.which("unshare") or subprocess.run([*command[:4], "true"]).returncode:
        pytest.skip("needs the right to mount another /dev/shm")
    done = subprocess.run(command, capture_output=True, text=True)
    if size > 4096:
        assert (done.stdout, done.returncode) == (f"fork {size}\n", 0), done.stderr
    else:  # for the locks alone
        told = done.stderr.splitlines()
        assert told[-1].endswith(
            "WorkerError: cannot start 2 processes that read patches: No space left on device"
        )
        assert "Exception ignored" not in done.stderr
