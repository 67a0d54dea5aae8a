import os
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import nibabel as nib
import numpy as np
import pytest

from brats_cli.core import store as store_module
from brats_cli.core.cases import case_at, find_cases
from brats_cli.core.errors import (
    BratsError,
    GridMismatchError,
    LabelError,
    OutputError,
    UnreadableFileError,
)
from brats_cli.core.labels import SCHEMES
from brats_cli.core.preparation import prepare
from brats_cli.core.store import CENTRES, Store, training_scheme
from brats_cli.core.volumes import read_label_map, read_volume

BRATS2023, BRATS2020 = SCHEMES["brats2023"], SCHEMES["brats2020"]
SUFFIX = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}


def all_in(scheme, cases):
    return {case.id: scheme for case in cases}


def stored(store, cases, schemes=None, *, workers=1):
    """The ids that had to be prepared, in the order they were done."""
    return list(store.prepare(cases, schemes or all_in(BRATS2023, cases), workers=workers))


def contents(folder):
    """Every file below a folder with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rewrite_label(case, change):
    """Write a case's label map again with its values changed."""
    image = nib.load(case.label)
    data = np.asarray(image.dataobj).copy()
    nib.save(nib.Nifti1Image(change(data).astype(np.uint8), image.affine), case.label)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", BRATS2023)


@pytest.fixture
def case(phantoms, tmp_path):
    """A copy of one phantom, to be changed."""
    source = phantoms / "BraTS-GLI-00000-000"
    return case_at(shutil.copytree(source, tmp_path / "data" / source.name))


# --- what is stored ----------------------------------------------------------------------------


def test_a_case_is_stored_as_preparation_has_it(store, case):
    assert stored(store, [case]) == [case.id]
    found = store.open(case, BRATS2023)
    folder = case.folder
    volumes = [read_volume(folder / f"{case.id}-{suffix}.nii.gz") for suffix in SUFFIX.values()]
    expected = prepare(volumes)
    assert found.id == case.id
    assert found.images.dtype == np.float16
    np.testing.assert_array_equal(found.images, expected.images.astype(np.float16))
    # A phantom's axes run as BraTS's: the first two are flipped; tumours lie in the brain box.
    labels = read_label_map(case.label).data
    assert found.labels.dtype == np.uint8
    assert [(found.labels == value).sum() for value in (1, 2, 3)] == [
        (labels == value).sum() for value in (1, 2, 3)
    ]
    corner = np.linalg.inv(nib.load(case.label).affine) @ expected.affine[:, 3]
    x, y, z = np.rint(corner[:3]).astype(int)
    size_x, size_y, size_z = found.labels.shape
    box = labels[x - size_x + 1 : x + 1, y - size_y + 1 : y + 1, z : z + size_z]
    np.testing.assert_array_equal(found.labels, box[::-1, ::-1])


def test_arrays_are_mapped_and_not_read(store, case):
    stored(store, [case])
    found = store.open(case, BRATS2023)
    assert isinstance(found.images, np.memmap)
    assert isinstance(found.labels, np.memmap)


def test_only_the_modalities_asked_for_are_stored_in_their_order(tmp_path, case):
    every = Store(tmp_path / "store", BRATS2023)
    two = Store(tmp_path / "store", BRATS2023, ("flair", "t1"))
    stored(every, [case])
    assert stored(two, [case]) == [case.id]  # beside the other, not in its place
    images = every.open(case, BRATS2023).images
    np.testing.assert_array_equal(two.open(case, BRATS2023).images, images[[3, 0]])


def test_centres_are_the_voxels_of_their_regions(store, case):
    stored(store, [case])
    found = store.open(case, BRATS2023)
    values = {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}
    for name, labels in values.items():
        centres = found.centres[name]
        mask = np.isin(found.labels, list(labels))
        assert set(np.unique(found.labels[tuple(centres.T)])) == labels
        assert len(np.unique(centres, axis=0)) == len(centres) == min(mask.sum(), CENTRES)
    brain = found.centres["brain"]
    # The brain has more voxels than are kept: those are spread over all of it, none twice.
    assert len(brain) == CENTRES < np.any(found.images != 0, axis=0).sum()
    assert len(np.unique(brain, axis=0)) == CENTRES
    assert np.any(found.images[(slice(None), *brain.T)] != 0, axis=0).all()
    assert (np.ptp(brain, axis=0) > 0.8 * np.array(found.labels.shape)).all()


def test_a_region_that_is_not_there_has_no_centres(store, phantoms):
    case = case_at(phantoms / "BraTS-GLI-00001-000")  # the second patient's does not enhance
    stored(store, [case])
    found = store.open(case, BRATS2023)
    assert found.centres["ET"].shape == (0, 3)
    assert len(found.centres["TC"]) > 0


def test_centres_are_the_same_at_every_preparation(tmp_path, case):
    chosen = []
    for name in ("first", "second"):
        again = Store(tmp_path / name, BRATS2023)
        stored(again, [case])
        chosen.append(again.open(case, BRATS2023).centres["brain"])
    np.testing.assert_array_equal(*chosen)


# --- schemes -----------------------------------------------------------------------------------


def test_labels_of_mixed_years_are_converted_to_the_stores(tmp_path, case):
    # Enhancing tumour is 3 in 2023 and 4 up to 2022.
    as_2020 = Store(tmp_path / "store", BRATS2020)
    stored(as_2020, [case])
    found = as_2020.open(case, BRATS2023)
    counts = np.bincount(read_label_map(case.label).data.ravel(), minlength=5)
    converted = np.bincount(found.labels.ravel(), minlength=5)
    assert converted[1:].tolist() == [counts[1], counts[2], 0, counts[3]]
    assert set(np.unique(found.labels[tuple(found.centres["ET"].T)])) == {4}


def test_training_is_in_the_scheme_of_most_cases():
    schemes = {"a": BRATS2023, "b": BRATS2020, "c": BRATS2020}
    assert training_scheme(schemes) is BRATS2020


def test_of_schemes_with_as_many_cases_the_first_by_name():
    assert training_scheme({"a": BRATS2023, "b": BRATS2020}) is BRATS2020


# --- once, and again when something changed ----------------------------------------------------


def test_a_case_is_prepared_once(store, phantoms):
    cases = find_cases(phantoms)[:2]
    assert stored(store, cases) == [case.id for case in cases]
    before = contents(store.folder)
    assert store.missing(cases, all_in(BRATS2023, cases)) == []
    assert stored(store, cases) == []
    assert contents(store.folder) == before


def test_a_case_is_prepared_again_when_its_label_changed(store, case):
    stored(store, [case])
    rewrite_label(case, lambda labels: np.where(labels == 3, 1, labels))
    assert [other.id for other, _ in store.missing([case], all_in(BRATS2023, [case]))] == [case.id]
    assert stored(store, [case]) == [case.id]
    assert 3 not in store.open(case, BRATS2023).labels


def test_a_case_is_prepared_again_when_an_image_was_touched(store, case):
    stored(store, [case])
    path = case.images["t2"].path
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert stored(store, [case]) == [case.id]


def test_a_case_is_prepared_again_when_its_labels_mean_something_else(store, case):
    stored(store, [case])
    msd = {case.id: SCHEMES["msd"]}
    assert stored(store, [case], msd) == [case.id]
    edema = read_label_map(case.label).data == 1
    assert (store.open(case, SCHEMES["msd"]).labels == 2).sum() == edema.sum()


def test_a_case_is_prepared_again_by_a_version_that_prepares_differently(store, case, monkeypatch):
    for name in ("PREPARATION", "FORMAT"):
        stored(store, [case])
        monkeypatch.setattr(store_module, name, "another")
        assert stored(store, [case]) == [case.id]


def test_processes_store_the_same_as_one_does(tmp_path, phantoms):
    cases = find_cases(phantoms)[:2]
    alone, together = (Store(tmp_path / name, BRATS2023) for name in ("alone", "together"))
    stored(alone, cases)
    assert sorted(stored(together, cases, workers=2)) == [case.id for case in cases]
    for case in cases:
        first, second = (each.open(case, BRATS2023) for each in (alone, together))
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.centres["WT"], second.centres["WT"])


# --- failures ----------------------------------------------------------------------------------


def test_a_label_that_the_scheme_lacks_names_the_file(store, case):
    rewrite_label(case, lambda labels: np.where(labels == 3, 4, labels))
    with pytest.raises(LabelError) as caught:
        stored(store, [case])
    assert str(caught.value) == (
        f"{case.label} holds label 4, which label scheme brats2023 (2023) does not have"
    )
    assert "brats2020" in caught.value.hint
    assert contents(store.folder) == {}


def test_a_damaged_image_is_named_by_the_process_that_read_it(store, phantoms, tmp_path):
    data = shutil.copytree(phantoms, tmp_path / "data")
    cases = find_cases(data)[:2]
    broken = cases[0].images["t1"].path
    broken.write_bytes(broken.read_bytes()[:3000])
    with pytest.raises(UnreadableFileError) as caught:
        stored(store, cases, workers=2)
    assert str(caught.value) == f"cannot read {broken}: the image data are cut short or damaged"


def test_a_label_map_of_another_grid_names_both_files(store, case):
    image = nib.load(case.label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), case.label)
    with pytest.raises(GridMismatchError) as caught:
        stored(store, [case])
    assert str(caught.value) == (
        f"{case.label} does not lie on the grid of {case.images['t1'].path}: "
        "31 x 36 x 34 voxels, not 32 x 36 x 34"
    )


def test_an_interruption_in_the_middle_leaves_nothing_and_can_be_repeated(store, case, monkeypatch):
    save, calls = np.save, []

    def interrupted(path, array):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored(store, [case])
    assert list(store.folder.iterdir()) == []
    monkeypatch.undo()
    assert stored(store, [case]) == [case.id]


def test_what_a_killed_process_left_is_no_case_and_in_nobodys_way(store, case):
    # Process numbers come again, in a container nearly always.
    stored(store, [case])
    (place,) = store.folder.iterdir()
    left = place.with_name(f".{os.getpid()}.partial.{place.name}")
    place.rename(left)
    (left / "images.npy").write_bytes(b"half")
    assert [other.id for other, _ in store.missing([case], all_in(BRATS2023, [case]))] == [case.id]
    assert stored(store, [case]) == [case.id]
    assert store.open(case, BRATS2023).images.any()


def test_a_case_that_another_training_stored_meanwhile_is_fine(store, case, monkeypatch):
    def slowly(volumes):
        monkeypatch.undo()
        stored(store, [case])  # the other's
        return prepare(volumes)

    monkeypatch.setattr(store_module, "prepare", slowly)
    assert stored(store, [case]) == [case.id]
    assert len(list(store.folder.iterdir())) == 1


def test_a_full_disk_names_the_place(store, case, monkeypatch):
    def full(path, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=f"{case.id}-[0-9a-f]{{12}}: No space left on device"):
        stored(store, [case])
    assert list(store.folder.iterdir()) == []


def test_a_store_that_cannot_be_made_names_the_place(tmp_path, case):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=rf"cannot write {tmp_path}/file/store/{case.id}"):
        stored(Store(tmp_path / "file" / "store", BRATS2023), [case])


@pytest.mark.xfail(strict=True, raises=BrokenProcessPool, reason="the pool's own error comes out")
def test_a_process_killed_for_lack_of_memory_is_named_as_one(store, phantoms, monkeypatch):
    class Pool:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def submit(self, *args):
            job = Future()
            job.set_exception(BrokenProcessPool("terminated abruptly"))
            return job

        def shutdown(self, **kwargs):
            pass

    monkeypatch.setattr(store_module, "ProcessPoolExecutor", Pool)
    with pytest.raises(BratsError, match="memory"):
        stored(store, find_cases(phantoms)[:2], workers=2)
