from functools import cache

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brats_cli.core.data.cases import read_images
from brats_cli.core.data.finding import case_at, find_cases
from brats_cli.core.data.labels import label_scheme, noted_scheme
from brats_cli.core.data.phantom import SCHEME, SHAPE, TISSUES, make_phantom, write_phantoms
from brats_cli.core.errors import OutputExistsError
from brats_cli.core.images.grid import require_same_grid
from brats_cli.core.images.nifti import read_labels

SMALL = (40, 48, 36)
make = cache(make_phantom)  # a phantom is the same every time: the first test below


def where(phantom, tissue):
    return phantom.tissues == TISSUES.index(tissue)


def median(phantom, modality, tissue):
    """Of the tissue away from its borders, where a voxel holds some of its neighbours too."""
    mask = where(phantom, tissue)
    inner = ndimage.binary_erosion(mask)
    return np.median(phantom.images[modality][inner if inner.any() else mask])


def test_a_seed_gives_the_same_phantom_every_time():
    first, second = make_phantom(3, shape=SMALL), make_phantom(3, shape=SMALL)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.volumes_mm3 == second.volumes_mm3
    for modality, image in first.images.items():
        np.testing.assert_array_equal(image, second.images[modality])


def test_another_seed_gives_another_brain_and_tumour():
    first, second = make(3, shape=SMALL), make(4, shape=SMALL)
    assert (first.images["t1"] > 0).tobytes() != (second.images["t1"] > 0).tobytes()
    assert first.volumes_mm3 != second.volumes_mm3


def test_a_phantom_is_shaped_and_typed_as_a_brats_case():
    phantom = make(0)
    assert list(phantom.images) == ["t1", "t1ce", "t2", "flair"]
    for image in phantom.images.values():
        assert (image.shape, image.dtype) == (SHAPE, np.int16)
    assert (phantom.labels.shape, phantom.labels.dtype) == (SHAPE, np.uint8)
    assert nib.aff2axcodes(phantom.affine) == ("L", "P", "S")
    # BraTS has diag(-1, -1, 1) with an offset of 239 on its axis of 240 voxels: here 95 of 96.
    expected = [[-1, 0, 0, 0], [0, -1, 0, 95], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(phantom.affine, expected)


def test_every_sequence_is_zero_outside_the_brain_and_nowhere_inside():
    phantom = make(0)
    brain = ~where(phantom, "background")
    for image in phantom.images.values():
        assert image.min() == 0
        np.testing.assert_array_equal(image > 0, brain)


@pytest.mark.parametrize("seed", [0, 2, 3])
@pytest.mark.parametrize(
    ("modality", "darker_to_brighter"),
    [
        ("t1", "CSF GM WM"),
        ("t1", "NCR ED WM"),
        ("t1ce", "CSF GM WM ET"),
        ("t1ce", "NCR ED ET"),
        ("t1ce", "vessel ET"),
        ("t2", "WM GM ED CSF"),
        ("t2", "ET NCR"),
        ("flair", "CSF WM GM ED"),
        ("flair", "CSF NCR ED"),
    ],
)
def test_tissues_are_ordered_as_in_the_real_sequence(seed, modality, darker_to_brighter):
    phantom = make(seed)
    found = [median(phantom, modality, tissue) for tissue in darker_to_brighter.split()]
    assert found == sorted(found)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_the_enhancing_rim_outshines_99_percent_of_the_rest_on_t1ce(seed):
    phantom = make(seed)
    rim = where(phantom, "ET")
    rest = phantom.images["t1ce"][(phantom.tissues > 0) & ~rim]
    assert median(phantom, "t1ce", "ET") > np.percentile(rest, 99)


def test_ventricles_pass_for_edema_on_t2_but_not_on_flair():
    phantom = make(0)
    t2, flair = (
        median(phantom, modality, "CSF") / median(phantom, modality, "ED")
        for modality in ("t2", "flair")
    )
    # By the table of contrasts 2.3 / 1.7 = 1.4 and 0.3 / 1.65 = 0.2, each tissue drawn to 5 %.
    assert t2 > 1
    assert flair < 0.5


def test_noise_bias_and_scale_differ_from_scan_to_scan():
    first, second = make(0), make(0, visit=1)
    ratios = {m: median(first, m, "WM") / median(second, m, "WM") for m in first.images}
    assert len({round(ratio, 2) for ratio in ratios.values()}) == 4


def test_noise_is_about_5_percent_of_white_matter():
    phantom = make(0)
    image = phantom.images["t1"].astype(float)
    white = ndimage.binary_erosion(where(phantom, "WM"), iterations=2)
    # Neighbours share tissue and bias field, so they differ by noise alone: by sqrt(2) sigma,
    # sigma = 0.05 of T1's white matter, which is drawn to 5 % and carries the bias field.
    both = white[1:] & white[:-1]
    sigma = np.diff(image, axis=0)[both].std() / np.sqrt(2)
    assert sigma / image[white].mean() == pytest.approx(0.05, rel=0.3)


@pytest.mark.parametrize("seed", range(6))
def test_counted_volumes_agree_with_the_formula(seed):
    """A voxel counts if its centre is inside, so only voxels cut by a surface err, either way.

    Each errs by at most half a voxel, evenly spread (standard deviation 0.29), and the errors of
    a surface of S voxels add up to about 0.29 sqrt(S). The smallest ball here is a necrosis of
    some 500 mm3: its surface is (36 pi)^(1/3) 500^(2/3) = 305 voxels (an irregular one's is
    larger, say 400), which makes 6 voxels or 1.2 %; the rim has two surfaces. Three deviations
    stay below 4 %. The whole tumour, 7,000 mm3 and more with some 2,300 voxels of surface, errs
    by 14 voxels: 0.6 % at three deviations.
    """
    phantom = make(seed)
    for tissue, volume in phantom.volumes_mm3.items():
        label = {name: value for value, name in SCHEME.tissues.items()}[tissue]
        assert (phantom.labels == label).sum() == pytest.approx(volume, rel=0.04)
    assert (phantom.labels > 0).sum() == pytest.approx(sum(phantom.volumes_mm3.values()), rel=0.006)


@pytest.mark.parametrize("seed", range(6))
def test_the_tumour_lies_inside_the_brain(seed):
    phantom = make(seed)
    # A margin of 1.5 mm: the voxel next to any of the tumour's is brain as well.
    around = ndimage.binary_dilation(phantom.labels > 0)
    assert (phantom.tissues[around] > 0).all()


def test_a_tumour_that_does_not_enhance_has_no_et_and_all_of_its_core_is_necrosis():
    plain, enhancing = make(1, enhancing=False), make(1)
    assert set(np.unique(plain.labels)) == {0, 1, 2}
    core = enhancing.volumes_mm3["NCR"] + enhancing.volumes_mm3["ET"]
    assert plain.volumes_mm3 == {"NCR": core, "ED": enhancing.volumes_mm3["ED"], "ET": 0}
    assert median(plain, "t1ce", "NCR") < median(plain, "t1ce", "WM")


def test_visits_share_the_brain_and_the_tumour_shrinks_into_itself():
    first, second = make(0), make(0, visit=1)
    np.testing.assert_array_equal(first.images["t1"] > 0, second.images["t1"] > 0)
    assert not (second.labels > 0)[first.labels == 0].any()
    # Every length becomes 0.88 of itself, so every volume 0.88 ** 3 = 0.681472.
    for tissue, volume in first.volumes_mm3.items():
        assert second.volumes_mm3[tissue] == pytest.approx(0.681472 * volume)


def test_a_grid_too_small_for_a_brain_is_refused():
    with pytest.raises(ValueError, match="a phantom needs 32 voxels along each axis"):
        make_phantom(0, shape=(64, 31, 64))


def test_the_smallest_grid_holds_a_tumour():
    assert set(np.unique(make_phantom(0, shape=(32, 32, 32)).labels)) == {0, 1, 2, 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    return folder, write_phantoms(folder, cases=4, shape=SMALL)


def test_a_data_set_is_found_with_its_patients(data):
    folder, written = data
    cases = find_cases(folder)
    assert [case.id for case in cases] == [
        "BraTS-GLI-00000-000",
        "BraTS-GLI-00000-001",
        "BraTS-GLI-00001-000",
        "BraTS-GLI-00002-000",
    ]
    assert [phantom.folder for phantom in written] == [folder / case.id for case in cases]
    first, again, *others = (case.patient for case in cases)
    assert first == again
    assert len({first, *others}) == 3


def test_a_written_phantom_reads_back_on_one_grid(data):
    _, written = data
    case = case_at(written[1].folder)
    images, labels = read_images(case), read_labels(case.label)
    require_same_grid([*images, labels])
    phantom = make(0, visit=1, shape=SMALL)
    for image, made in zip(images, phantom.images.values(), strict=True):
        np.testing.assert_array_equal(image.data, made)
        assert image.header.get_data_dtype() == np.int16
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    np.testing.assert_array_equal(labels.data, phantom.labels)
    np.testing.assert_array_equal(labels.affine, phantom.affine)
    assert written[1].volumes_mm3 == phantom.volumes_mm3


def test_every_label_map_tells_its_scheme_also_the_one_without_et(data):
    _, written = data
    labels = [read_labels(case_at(phantom.folder).label) for phantom in written]
    assert [noted_scheme(each.note) for each in labels] == [SCHEME] * 4
    assert [set(np.unique(volume.data)) for volume in labels] == [
        {0, 1, 2, 3},
        {0, 1, 2, 3},
        {0, 1, 2},
        {0, 1, 2, 3},
    ]


def test_name_and_grid_tell_the_scheme_without_a_flag(data):
    folder, _ = data
    for case in find_cases(folder):
        assert label_scheme({0, 1, 2, 3}, case.scheme, case.id, allowed=case.allowed) == SCHEME


def test_files_that_are_there_are_replaced_only_if_asked(tmp_path):
    write_phantoms(tmp_path, cases=1, seed=1, shape=SMALL)
    label = tmp_path / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-seg.nii.gz"
    before = label.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        write_phantoms(tmp_path, cases=1, shape=SMALL)
    assert label.read_bytes() == before
    write_phantoms(tmp_path, cases=1, shape=SMALL, overwrite=True)
    assert label.read_bytes() != before
    assert len(list(tmp_path.rglob("*.*"))) == 5
