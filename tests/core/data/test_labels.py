import itertools

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from brats_cli.core.data.labels import (
    REGION_COLOURS,
    REGIONS,
    SCHEMES,
    fitting_schemes,
    label_scheme,
    scheme_named,
    tightest_schemes,
)
from brats_cli.core.errors import LabelError

# FACTS section 1: the labels of WT, TC and ET, scheme by scheme.
REGION_LABELS = {
    "brats2015": ((1, 2, 3, 4), (1, 3, 4), (4,)),
    "brats2020": ((1, 2, 4), (1, 4), (4,)),
    "brats2023": ((1, 2, 3), (1, 3), (3,)),
    "brats2024": ((1, 2, 3), (1, 3), (3,)),  # the resection cavity is in none of them
    "brats2024-ped": ((1, 2, 3, 4), (1, 2, 3), (1,)),
    "msd": ((1, 2, 3), (2, 3), (3,)),  # 1 edema, 2 non-enhancing
    "nnunet": ((1, 2, 3), (2, 3), (3,)),
}


@pytest.mark.parametrize("name", REGION_LABELS)
def test_the_regions_of_every_year(name):
    regions = [SCHEMES[name].region(region).labels for region in REGIONS]
    assert tuple(regions) == REGION_LABELS[name]


def test_the_table_has_no_scheme_that_is_not_tested():
    assert set(SCHEMES) == {*REGION_LABELS, "men-rt"}


def test_the_cavity_and_the_target_volume_are_regions_of_their_own():
    assert SCHEMES["brats2024"].region("RC").labels == (4,)
    assert SCHEMES["men-rt"].region("GTV").labels == (1,)


def test_an_unknown_region_lists_those_there_are():
    with pytest.raises(LabelError, match="label scheme men-rt has no region WT") as caught:
        SCHEMES["men-rt"].region("WT")
    assert caught.value.hint == "its regions are GTV"


def test_a_region_is_a_mask():
    mask = SCHEMES["brats2020"].region("TC").mask(np.array([[0, 1], [2, 4]]))
    np.testing.assert_array_equal(mask, [[False, True], [False, True]])


@pytest.mark.parametrize(
    ("name", "painted"),
    [("brats2020", [0, 2, 1, 4]), ("msd", [0, 1, 2, 3]), ("brats2024-ped", [0, 4, 2, 1])],
)
def test_nested_masks_are_painted_from_the_outside_in(name, painted):
    # Four voxels: background, edema only, core, enhancing.
    masks = np.array([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool).reshape(3, 4, 1, 1)
    labels = SCHEMES[name].paint(masks)
    assert (labels.ravel().tolist(), labels.dtype) == (painted, np.uint8)


@pytest.mark.parametrize("name", [name for name in REGION_LABELS if name != "brats2015"])
def test_painting_gives_back_the_masks(name):
    masks = np.array([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool).reshape(3, 4, 1, 1)
    labels = SCHEMES[name].paint(masks)
    again = [SCHEMES[name].region(region).mask(labels) for region in REGIONS]
    np.testing.assert_array_equal(again, masks)


# Tissue by tissue: NCR, ED, ET are 1, 2, 4 in 2020; 1, 2, 3 in 2023; 2, 1, 3 in the Decathlon;
# 2, 4, 1 for the children of 2024.
@pytest.mark.parametrize(
    ("source", "target", "labels", "converted"),
    [
        ("brats2020", "brats2023", [0, 1, 2, 4], [0, 1, 2, 3]),
        ("brats2023", "brats2020", [0, 1, 2, 3], [0, 1, 2, 4]),
        ("msd", "brats2020", [0, 1, 2, 3], [0, 2, 1, 4]),
        ("nnunet", "brats2023", [0, 1, 2, 3], [0, 2, 1, 3]),
        ("brats2020", "nnunet", [0, 1, 2, 4], [0, 2, 1, 3]),
        ("brats2015", "brats2020", [0, 1, 2, 3, 4], [0, 1, 2, 1, 4]),  # NET counts as NCR
        ("brats2024-ped", "brats2023", [0, 1, 2, 3, 4], [0, 3, 1, 1, 2]),  # so do cysts
        ("brats2024", "brats2020", [0, 1, 2, 3, 4], [0, 1, 2, 4, 0]),  # a cavity is no tumour
    ],
)
def test_conversion_goes_tissue_by_tissue(source, target, labels, converted):
    result = SCHEMES[source].convert(np.array(labels, np.uint8), SCHEMES[target])
    assert result.tolist() == converted


@pytest.mark.parametrize("name", [name for name in REGION_LABELS if name != "brats2015"])
def test_conversion_keeps_every_region(name):
    labels = np.array([0, 1, 2, 4], np.uint8)
    there = SCHEMES["brats2020"].convert(labels, SCHEMES[name])
    for region in REGIONS:
        expected = SCHEMES["brats2020"].region(region).mask(labels)
        np.testing.assert_array_equal(SCHEMES[name].region(region).mask(there), expected)


def test_a_tumour_cannot_become_a_target_volume():
    with pytest.raises(LabelError, match="label scheme men-rt has no label for"):
        SCHEMES["brats2020"].convert(np.array([1], np.uint8), SCHEMES["men-rt"])


def test_an_unknown_scheme_lists_those_there_are():
    with pytest.raises(LabelError, match="there is no label scheme 'brats2021'") as caught:
        scheme_named("brats2021")
    assert "brats2020" in caught.value.hint


def test_strange_values_are_named():
    with pytest.raises(LabelError, match=r"a.nii holds label 3, which .* brats2020 \(2017-2022\)"):
        SCHEMES["brats2020"].require([0, 1, 3], "a.nii")
    with pytest.raises(LabelError) as caught:
        SCHEMES["brats2020"].require([0, 7], "a.nii")
    assert caught.value.hint == "is it a label map?"


# FACTS section 1: which values fit what.
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((0, 1, 2, 4), ["brats2020"]),
        ((0, 1, 2, 3), ["brats2023", "msd", "nnunet"]),
        ((0, 1, 2, 3, 4), ["brats2015", "brats2024", "brats2024-ped"]),
        ((0, 7), []),
    ],
)
def test_values_fit_as_few_schemes_as_can_be(values, names):
    assert [scheme.name for scheme in tightest_schemes(values)] == names


def test_a_target_volume_is_told_by_name_only():
    assert "men-rt" in [scheme.name for scheme in fitting_schemes([0, 1])]
    assert "men-rt" not in [scheme.name for scheme in tightest_schemes([0, 1])]


def test_the_flag_wins_over_the_name():
    assert label_scheme([0, 1, 2, 3], SCHEMES["brats2023"], "a.nii", "msd").name == "msd"
    with pytest.raises(LabelError, match=r"a.nii holds label 3, which label scheme brats2020"):
        label_scheme([0, 3], SCHEMES["brats2023"], "a.nii", "brats2020")


def test_the_name_wins_over_the_values_if_they_fit():
    assert label_scheme([0, 2], SCHEMES["msd"], "a.nii").name == "msd"
    assert label_scheme([0, 1, 2, 4], SCHEMES["msd"], "a.nii").name == "brats2020"


def test_what_the_name_leaves_open_the_values_decide():
    allowed = (SCHEMES["brats2023"], SCHEMES["brats2024"])
    # Without a cavity the two read the same, so that there is nothing to ask.
    assert label_scheme([0, 1, 2, 3], None, "a.nii", allowed=allowed).name == "brats2023"
    assert label_scheme([0, 1, 2, 4], None, "a.nii", allowed=allowed).name == "brats2024"


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 2), (0, 1, 2, 3, 4), (0, 1)])
def test_two_meanings_are_never_guessed_between(values):
    with pytest.raises(
        LabelError, match=r"a.nii holds labels .* which fit several schemes"
    ) as caught:
        label_scheme(values, None, "a.nii")
    mask = "a mask of 0 and 1 does not say of which tissue: " if values == (0, 1) else ""
    assert caught.value.hint.startswith(f"{mask}choose one with --labels: brats")


def test_an_empty_label_map_means_the_same_in_every_scheme():
    assert label_scheme([0], None, "a.nii").name in SCHEMES


def test_no_scheme_at_all_is_an_error():
    with pytest.raises(LabelError, match=r"a.nii holds label 7") as caught:
        label_scheme([0, 7], None, "a.nii")
    assert caught.value.hint == "is it a label map?"


@pytest.mark.parametrize(
    ("scheme", "whole", "core", "enhancing"),
    [
        ("brats2023", [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]),
        ("brats2020", [0, 1, 1, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 1]),
        ("brats2024-ped", [0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 1, 0, 0, 0]),
    ],
)
def test_masks_are_regions_of_labels_in_arrays_and_tensors(scheme, whole, core, enhancing):
    torch = pytest.importorskip("torch")  # on Pythons that an index has no small build for
    for labels in (np.arange(5, dtype=np.uint8), torch.arange(5, dtype=torch.uint8)):
        masks = SCHEMES[scheme].masks(labels)
        assert [mask.tolist() for mask in masks] == [whole, core, enhancing]


@pytest.mark.parametrize(("smallest", "label"), [(0, 3), (4, 3), (4.1, 1)])
def test_little_enhancing_tumour_becomes_necrosis(smallest, label):
    # Four voxels of ET, the last of which neither WT nor TC has, and one of TC alone.
    masks = np.zeros((3, 6, 1, 1), bool)
    masks[0, :3] = masks[1, :3] = masks[2, :4] = masks[1, 4] = True
    labels = SCHEMES["brats2023"].paint(masks, smallest_et_voxels=smallest)
    assert labels.ravel().tolist() == [label] * 4 + [1, 0]


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def seen(colour, sight):
    """A colour in CIELAB as somebody with that sight sees it."""
    rgb = np.array(list(bytes.fromhex(colour.lstrip("#")))) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    changed = np.clip(sight @ linear, 0, 1)
    again = np.where(changed <= 0.0031308, 12.92 * changed, 1.055 * changed ** (1 / 2.4) - 0.055)
    return rgb2lab(again[None, None])[0, 0]


@pytest.mark.parametrize("sight", SIGHT)
def test_the_regions_colours_differ_for_every_eye_and_from_every_grey(sight):
    colours = [seen(REGION_COLOURS[region], SIGHT[sight]) for region in REGIONS]
    greys = [seen(f"#{level:02x}{level:02x}{level:02x}", SIGHT["normal"]) for level in range(256)]
    for first, second in itertools.combinations(colours, 2):
        assert deltaE_ciede2000(first, second) >= 20
    assert min(deltaE_ciede2000(colour, grey) for colour in colours for grey in greys) >= 20


def test_every_region_has_a_colour():
    named = {region.name for scheme in SCHEMES.values() for region in scheme.regions}
    assert named == set(REGION_COLOURS)
