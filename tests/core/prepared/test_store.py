import gzip
import os
import pickle
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import blosc2
import nibabel as nib
import numpy as np
import pytest
from helpers import REAL, needs_real

from brats_cli.core.data.finding import case_at, find_cases
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import (
    BratsError,
    GridMismatchError,
    LabelError,
    OutputError,
    UnreadableFileError,
)
from brats_cli.core.images.nifti import read_image, read_labels
from brats_cli.core.prepared import store as store_module
from brats_cli.core.prepared.preparation import prepare
from brats_cli.core.prepared.store import (
    CENTRES,
    PackedArray,
    Store,
    StoredCases,
    _pack,
    training_scheme,
)
from brats_cli.core.wording import size_text

BRATS2023, BRATS2020 = SCHEMES["brats2023"], SCHEMES["brats2020"]
SUFFIX = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}


def known(case, scheme=BRATS2023):
    """A case as a split has it: with its label scheme."""
    return replace(case, scheme=scheme)


def first_two(phantoms):
    return [known(case) for case in find_cases(phantoms)[:2]]


def stored(store, cases, *, workers=1):
    """The ids that had to be prepared, in the order they were done."""
    return list(store.plan(cases).run(workers=workers))


def contents(folder):
    """Every file below a folder with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def overwrite_with_zeros(path, start, stop):
    """What a bad sector or a crash of the machine leaves: a part of a file that is 0."""
    content = bytearray(path.read_bytes())
    first, last = (int(len(content) * share) for share in (start, stop))
    content[first:last] = bytes(last - first)
    path.write_bytes(content)


def touch(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def opened(store, case):
    """A case as a training opens it."""
    return store.plan([case]).cases([case.id])[0]


def places(store):
    return sorted(path.name for path in store.folder.iterdir())


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
    return known(case_at(shutil.copytree(source, tmp_path / "data" / source.name)))


# --- what is stored ----------------------------------------------------------------------------


def test_a_case_is_stored_as_preparation_has_it(store, case):
    assert stored(store, [case]) == [case.id]
    found = opened(store, case)
    folder = case.folder
    volumes = [read_image(folder / f"{case.id}-{suffix}.nii.gz") for suffix in SUFFIX.values()]
    expected = prepare(volumes)
    assert found.id == case.id
    assert found.images[:].dtype == np.float16
    np.testing.assert_array_equal(found.images[:], expected.images.astype(np.float16))
    # A phantom's axes run as BraTS's: the first two are flipped; tumours lie in the brain box.
    labels = read_labels(case.label).data
    assert found.labels[:].dtype == np.uint8
    assert [(found.labels[:] == value).sum() for value in (1, 2, 3)] == [
        (labels == value).sum() for value in (1, 2, 3)
    ]
    corner = np.linalg.inv(nib.load(case.label).affine) @ expected.affine[:, 3]
    x, y, z = np.rint(corner[:3]).astype(int)
    size_x, size_y, size_z = found.labels.shape
    box = labels[x - size_x + 1 : x + 1, y - size_y + 1 : y + 1, z : z + size_z]
    np.testing.assert_array_equal(found.labels[:], box[::-1, ::-1])


def test_a_slice_of_a_stored_array_is_that_of_the_array(store, case):
    stored(store, [case])
    images = opened(store, case).images
    whole = np.array(images)
    assert (images.shape, images[:].dtype) == (whole.shape, np.float16)
    for box in (np.s_[:, 3:9, 20:, 5:6], np.s_[1, :, 7], np.s_[..., 40:], np.s_[:, 9:9]):
        np.testing.assert_array_equal(images[box], whole[box])


def test_a_slice_unpacks_only_the_blocks_it_touches(tmp_path):
    # The second half of the file holds the second half of the first axis, and is overwritten.
    values = np.random.default_rng(0).integers(0, 50, (1, 128, 64, 64)).astype(np.float16)
    path = tmp_path / "values.b2nd"
    path.write_bytes(_pack(values))
    overwrite_with_zeros(path, 0.6, 0.9)
    np.testing.assert_array_equal(PackedArray(path)[:, :64], values[:, :64])
    with pytest.raises(UnreadableFileError, match=f"cannot read {path}"):
        PackedArray(path)[:, 64:]


def test_only_the_modalities_asked_for_are_stored_in_their_order(tmp_path, case):
    one_way = Store(tmp_path / "store", BRATS2023, ("t1", "flair"))
    other_way = Store(tmp_path / "store", BRATS2023, ("flair", "t1"))
    stored(one_way, [case])
    assert stored(other_way, [case]) == [case.id]  # beside the other, not in its place
    images = opened(one_way, case).images[:]
    np.testing.assert_array_equal(opened(other_way, case).images[:], images[::-1])


def test_centres_are_the_voxels_of_their_regions(store, case):
    stored(store, [case])
    found = opened(store, case)
    values = {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}
    for name, labels in values.items():
        centres = found.centres[name]
        mask = np.isin(found.labels, list(labels))
        assert set(np.unique(found.labels[:][tuple(centres.T)])) == labels
        assert len(np.unique(centres, axis=0)) == len(centres) == min(mask.sum(), CENTRES)
    brain_mask = np.any(found.images[:] != 0, axis=0)
    brain = found.centres["brain"]
    # The brain has more voxels than are kept: those are spread over all of it, none twice.
    assert len(brain) == CENTRES < brain_mask.sum()
    assert len(np.unique(brain, axis=0)) == CENTRES
    assert brain_mask[tuple(brain.T)].all()
    assert (np.ptp(brain, axis=0) > 0.8 * np.array(found.labels.shape)).all()


def test_a_region_that_is_not_there_has_no_centres(store, phantoms):
    case = known(case_at(phantoms / "BraTS-GLI-00001-000"))  # the second patient's does not enhance
    stored(store, [case])
    found = opened(store, case)
    assert found.centres["ET"].shape == (0, 3)
    assert len(found.centres["TC"]) > 0


def test_a_large_case_may_have_a_name_that_is_not_utf_8(store, case):
    named = replace(case, id=os.fsdecode(b"caf\xe9"))
    assert stored(store, [named]) == [named.id]
    assert len(opened(store, named).centres["brain"]) == CENTRES


def test_centres_are_the_same_at_every_preparation(tmp_path, case):
    chosen = []
    for name in ("first", "second"):
        again = Store(tmp_path / name, BRATS2023)
        stored(again, [case])
        chosen.append(opened(again, case).centres["brain"])
    np.testing.assert_array_equal(*chosen)


# --- schemes -----------------------------------------------------------------------------------


def test_labels_of_mixed_years_are_converted_to_the_stores(tmp_path, case):
    # Enhancing tumour is 3 in 2023 and 4 up to 2022.
    as_2020 = Store(tmp_path / "store", BRATS2020)
    stored(as_2020, [case])
    found = opened(as_2020, case)
    counts = np.bincount(read_labels(case.label).data.ravel(), minlength=5)
    converted = np.bincount(found.labels[:].ravel(), minlength=5)
    assert converted[1:].tolist() == [counts[1], counts[2], 0, counts[3]]
    assert set(np.unique(found.labels[:][tuple(found.centres["ET"].T)])) == {4}


def test_training_is_in_the_scheme_of_most_cases():
    schemes = [BRATS2023, BRATS2020, BRATS2020]
    assert training_scheme(SimpleNamespace(scheme=scheme) for scheme in schemes) is BRATS2020


def test_of_schemes_with_as_many_cases_the_first_by_name():
    schemes = [BRATS2023, BRATS2020]
    assert training_scheme(SimpleNamespace(scheme=scheme) for scheme in schemes) is BRATS2020


# --- once, and again when something changed ----------------------------------------------------


def test_a_case_is_prepared_once(store, phantoms):
    cases = first_two(phantoms)
    assert stored(store, cases) == [case.id for case in cases]
    before = contents(store.folder)
    assert store.plan(cases).missing == ()
    assert stored(store, cases) == []
    assert contents(store.folder) == before


def test_a_case_is_prepared_again_when_its_label_changed(store, case):
    stored(store, [case])
    rewrite_label(case, lambda labels: np.where(labels == 3, 1, labels))
    assert store.plan([case]).missing == (case,)
    assert stored(store, [case]) == [case.id]
    assert 3 not in opened(store, case).labels[:]


def test_a_case_is_prepared_again_when_an_image_was_touched(store, case):
    stored(store, [case])
    touch(case.images["t2"].path)
    assert stored(store, [case]) == [case.id]


def test_a_case_is_prepared_again_when_its_labels_mean_something_else(store, case):
    stored(store, [case])
    msd = known(case, SCHEMES["msd"])
    assert stored(store, [msd]) == [case.id]
    edema = read_labels(case.label).data == 1
    assert (opened(store, msd).labels[:] == 2).sum() == edema.sum()


def test_a_case_is_prepared_again_by_a_version_that_prepares_differently(store, case, monkeypatch):
    for name in ("PREPARATION", "FORMAT"):
        stored(store, [case])
        monkeypatch.setattr(store_module, name, "another")
        assert stored(store, [case]) == [case.id]


def test_what_was_stored_before_an_image_changed_is_removed(store, case):
    stored(store, [case])
    before = places(store)
    touch(case.images["t2"].path)
    stored(store, [case])
    (after,) = places(store)
    assert before != [after]


def test_what_others_want_of_the_same_files_is_kept(store, case):
    two = Store(store.folder, BRATS2023, ("flair", "t1"))
    stored(two, [case])
    stored(store, [case])
    stored(store, [known(case, SCHEMES["msd"])])
    assert len(places(store)) == 3
    assert two.plan([case]).missing == ()


def test_nothing_is_removed_while_another_training_reads(store, case):
    stored(store, [case])
    touch(case.images["t2"].path)
    with store.in_use():
        stored(store, [case])
        assert len(places(store)) == 2
    stored(store, [case])
    assert len(places(store)) == 1


def test_a_case_that_changes_while_it_is_read_is_prepared_again(store, case, monkeypatch):
    def slowly(recipe, volumes):
        touch(case.images["t2"].path)
        return prepare(volumes)

    monkeypatch.setattr(store_module, "prepare_by", slowly)
    stored(store, [case])
    monkeypatch.undo()
    assert stored(store, [case]) == [case.id]


@pytest.mark.slow
def test_processes_store_the_same_as_one_does(tmp_path, phantoms):
    cases = first_two(phantoms)
    alone, together = (Store(tmp_path / name, BRATS2023) for name in ("alone", "together"))
    stored(alone, cases)
    assert stored(together, cases, workers=2) == [case.id for case in cases]
    assert places(alone) == places(together)
    for place in places(alone):
        for file in (alone.folder / place).iterdir():
            assert file.read_bytes() == (together.folder / place / file.name).read_bytes()


# --- many cases --------------------------------------------------------------------------------


def test_cases_are_opened_when_asked_for(store, phantoms):
    cases = first_two(phantoms)
    found = store.plan(cases).cases([case.id for case in cases])  # before they are prepared
    stored(store, cases)
    assert len(found) == 2
    assert [case.id for case in found] == [case.id for case in cases]
    assert [case.id for case in found[1:]] == [cases[1].id]
    direct = opened(store, cases[1])
    np.testing.assert_array_equal(found[1].images[:], direct.images[:])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_open_files_do_not_grow_with_the_number_of_cases(store, case):
    stored(store, [case])
    many = StoredCases(store.plan([case]).cases([case.id]).places * 100)
    assert many[0].images[0, 0, 0, 0] == 0
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert all(len(each.centres["brain"]) == CENTRES for each in many)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_cases_travel_to_other_processes_by_their_places(store, case):
    stored(store, [case])
    cases = store.plan([case]).cases([case.id])
    sent = pickle.dumps(cases)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[0].labels[:], cases[0].labels[:])


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


@pytest.mark.slow
def test_a_damaged_image_is_named_by_the_process_that_read_it(store, phantoms, tmp_path):
    data = shutil.copytree(phantoms, tmp_path / "data")
    cases = first_two(data)
    broken = cases[0].images["t1"].path
    broken.write_bytes(broken.read_bytes()[:3000])
    with pytest.raises(UnreadableFileError) as caught:
        stored(store, cases, workers=2)
    assert str(caught.value) == f"cannot read {broken}: it is cut short"


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
    write, calls = Path.write_bytes, []

    def interrupted(path, content):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored(store, [case])
    assert places(store) == []
    monkeypatch.undo()
    assert stored(store, [case]) == [case.id]


def test_what_a_killed_process_left_is_no_case_and_is_removed(store, case):
    # Process numbers come again, in a container nearly always.
    stored(store, [case])
    (place,) = places(store)
    for process in (os.getpid(), os.getpid() + 1):
        left = store.folder / f".{process}.partial.{place}"
        shutil.copytree(store.folder / place, left)
        (left / "images.b2nd").write_bytes(b"half")
    shutil.rmtree(store.folder / place)
    assert stored(store, [case]) == [case.id]
    assert opened(store, case).images[:].any()
    assert places(store) == [place]


def test_a_case_is_written_under_a_name_of_its_own(store, case, monkeypatch):
    # Two machines that share a store may number their processes alike.
    made, mkdir = [], Path.mkdir

    def note(path, **options):
        made.append(path.name)
        mkdir(path, **options)

    monkeypatch.setattr(Path, "mkdir", note)
    for _ in range(2):
        stored(store, [case])
        (place,) = places(store)
        shutil.rmtree(store.folder / place)
    first, second = (name for name in made if name.endswith(f".partial.{place}"))
    assert first != second


def test_a_case_that_another_training_stored_meanwhile_is_fine(store, case, monkeypatch):
    def slowly(recipe, volumes):
        monkeypatch.undo()
        stored(store, [case])  # the other's
        return prepare(volumes)

    monkeypatch.setattr(store_module, "prepare_by", slowly)
    assert stored(store, [case]) == [case.id]
    assert len(places(store)) == 1


@pytest.mark.parametrize("name", ["images", "labels", "centres"])
@pytest.mark.parametrize("length", [0, 20, 100, -1000, -1, None])
def test_a_file_that_was_cut_short_is_noticed_and_the_case_prepared_again(
    store, case, name, length
):
    stored(store, [case])
    (place,) = places(store)
    path = store.folder / place / f"{name}.b2nd"
    whole = path.read_bytes()
    path.unlink() if length is None else path.write_bytes(whole[:length])
    with pytest.raises(UnreadableFileError) as caught:
        opened(store, case)
    found = "there is no such prepared case" if length is None else "the prepared case is damaged"
    assert str(caught.value) == f"cannot read {path}: {found}"
    assert stored(store, [case]) == [case.id]
    assert path.read_bytes() == whole


def test_a_damage_inside_a_file_names_the_case_when_it_is_read(store, case):
    stored(store, [case])
    (place,) = places(store)
    assert place.startswith(case.id)
    path = store.folder / place / "images.b2nd"
    overwrite_with_zeros(path, 0.3, 0.7)
    found = opened(store, case)
    with pytest.raises(UnreadableFileError) as caught:
        found.images[:]
    assert str(caught.value) == f"cannot read {path}: the prepared case is damaged"
    assert caught.value.hint == (
        f"remove {store.folder / place} and start again: the case is then prepared again"
    )


def test_an_image_that_is_gone_names_it(store, case):
    path = case.images["t2"].path
    path.unlink()
    with pytest.raises(UnreadableFileError, match=f"cannot read {path}: No such file"):
        stored(store, [case])


def test_a_store_that_cannot_be_made_names_the_place(tmp_path, case):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        stored(Store(tmp_path / "file" / "store", BRATS2023), [case])
    assert str(caught.value) == f"cannot write {tmp_path}/file/store: Not a directory"
    assert caught.value.hint == "make room, or choose another place with --store DIR"


def test_a_process_killed_for_lack_of_memory_is_named_as_one(store, phantoms, monkeypatch):
    submit = ProcessPoolExecutor.submit
    monkeypatch.setattr(ProcessPoolExecutor, "submit", lambda pool, *_: submit(pool, os._exit, 1))
    cases = first_two(phantoms)
    with pytest.raises(BratsError) as caught:
        stored(store, cases, workers=2)
    assert str(caught.value) == (
        f"the process that worked on case {cases[0].id} was killed, most likely because memory "
        "ran out"
    )
    assert caught.value.hint.startswith("end other programs, or use a machine with more memory")


# --- the disk ----------------------------------------------------------------------------------


def test_the_size_is_told_from_the_images(store, case, tmp_path):
    # 1.15 bytes for each of a zipped file, 0.16 for each of one that is not.
    zipped = [image.path for image in case.images.values()]
    assert store.bytes_needed([case]) == int(sum(path.stat().st_size for path in zipped) * 1.15)
    for path in zipped:
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    # 352 bytes of header and float32 voxels.
    unzipped = case_at(case.folder)
    voxels = np.prod(nib.load(case.label).shape)
    size = nib.load(unzipped.images["t1"].path).get_data_dtype().itemsize * voxels + 352
    assert store.bytes_needed([unzipped]) == int(4 * size * 0.16)


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system of so many bytes."""
    made = []

    def make(size):
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(small_disk, case):
    disk = small_disk(64 * 1024)
    store = Store(disk / "store", BRATS2023)
    with pytest.raises(OutputError) as caught:
        stored(store, [case])
    size = size_text(store.bytes_needed([case]))
    assert str(caught.value) == (
        f"cannot write {disk}/store: 1 prepared cases take about {size}, "
        "and the disk has 65.5 kB left"
    )
    assert caught.value.hint == "make room, or choose another place with --store DIR"
    assert places(store) == []


def test_a_disk_that_fills_up_keeps_what_is_done_and_names_the_place(
    small_disk, phantoms, tmp_path, monkeypatch
):
    cases = first_two(phantoms)
    elsewhere = Store(tmp_path / "elsewhere", BRATS2023)
    stored(elsewhere, cases)
    sizes = [
        sum(-(-file.stat().st_size // 4096) * 4096 for file in place.iterdir())
        for place in sorted(elsewhere.folder.iterdir())
    ]
    # Room for the first case and half of the second.
    store = Store(small_disk(sizes[0] + sizes[1] // 2) / "store", BRATS2023)
    monkeypatch.setattr(Store, "bytes_needed", lambda self, cases: 0)
    preparing = store.plan(cases).run(workers=1)
    assert next(preparing) == cases[0].id
    with pytest.raises(OutputError) as caught:
        next(preparing)
    assert str(caught.value).startswith(f"cannot write {store.folder}/{cases[1].id}-")
    assert str(caught.value).endswith(": No space left on device")
    assert caught.value.hint == "make room, or choose another place with --store DIR"
    assert places(store) == places(elsewhere)[:1]
    assert opened(store, cases[0]).images[:].any()


# --- real cases --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real
@needs_real
def test_a_real_case_takes_the_size_that_was_estimated(store):
    case = known(case_at(REAL / "cases" / "BraTS2021_01659"), BRATS2020)
    stored(store, [case])
    size = sum(file.stat().st_size for file in store.folder.rglob("*.b2nd"))
    assert size == pytest.approx(store.bytes_needed([case]), rel=0.25)
    found = opened(store, case)
    # Its label map holds 7,269, 75,825 and 62,753 voxels of 1, 2 and 4: 1, 2 and 3 in 2023.
    assert np.bincount(found.labels[:].ravel())[1:].tolist() == [7269, 75825, 62753]


@pytest.mark.parametrize("name", ["images", "labels", "centres"])
@pytest.mark.parametrize("place", [0.05, 0.5, 0.98])
def test_a_flipped_bit_is_noticed_and_the_case_prepared_again(store, case, name, place):
    stored(store, [case])
    path = store.folder / places(store)[0] / f"{name}.b2nd"
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[int(place * len(whole))] ^= 1
    path.write_bytes(spoilt)
    assert [each.id for each in store.plan([case]).missing] == [case.id]
    assert stored(store, [case]) == [case.id]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("images", np.zeros((4, 9, 9), np.float16)),
        ("images", np.zeros((4, 9, 9, 9), np.float32)),
        ("images", np.zeros((4, 9, 9, 9), np.float16)),  # of another grid than the labels
        ("labels", np.zeros((9, 9), np.uint8)),
        ("labels", np.zeros((9, 9, 9, 9), np.uint8)),
        ("centres", np.zeros((3, 5), np.int16)),
        ("centres", np.full((4, 5), 999, np.int16)),  # outside the image
        ("centres", np.full((4, 5), -1, np.int16)),
    ],
)
def test_arrays_that_are_not_a_cases_are_named_when_they_are_opened(store, case, name, array):
    stored(store, [case])
    path = store.folder / places(store)[0] / f"{name}.b2nd"
    path.write_bytes(_pack(array))
    with pytest.raises(UnreadableFileError, match=r"b2nd: the prepared case is damaged"):
        opened(store, case)


def test_an_array_that_claims_more_than_scans_have_is_refused_before_it_is_read(tmp_path):
    # Of zeros alone a terabyte takes a few kilobytes.
    path = tmp_path / "images.b2nd"
    blosc2.zeros((4, 5000, 5000, 5000), dtype=np.float16, urlpath=str(path), mode="w")
    with pytest.raises(UnreadableFileError, match=r"images.b2nd: the prepared case is damaged"):
        PackedArray(path)
