from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import REAL, centroid, needs_real, volume

from brats_cli.core.data.labels import SCHEMES, write_labels
from brats_cli.core.errors import ConfigError, LabelError, MeshError
from brats_cli.core.images.grid import Volume
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.surface.regions import Islands, region_masks, regions_of, wanted_region
from brats_cli.core.surface.surfaces import SurfaceConfig, surface_of


def label_map(*values: int, name: str = "seg.nii.gz", affine: np.ndarray | None = None) -> Volume:
    """One voxel of each value and one of background, in a row."""
    data = np.array([0, *values], dtype=np.uint8).reshape(-1, 1, 1)
    path = Path("/data/case") / name
    return volume(data, np.eye(4) if affine is None else affine, path=path)


@pytest.mark.parametrize(
    ("text", "wanted"), [("WT", "WT"), ("et", "ET"), ("All", "all"), ("02", "2"), ("255", "255")]
)
def test_a_region_may_be_written_in_several_ways(text, wanted):
    assert wanted_region(text) == wanted


def test_an_unknown_region_names_those_there_are():
    with pytest.raises(LabelError, match="there is no region 'tumor'") as caught:
        wanted_region("tumor")
    assert caught.value.hint == (
        "the regions are ET, GTV, RC, TC, WT; a label value, all and brain work as well"
    )


@pytest.mark.parametrize("text", ["0", "256"])
def test_the_background_is_no_tissue(text):
    with pytest.raises(LabelError, match=f"no tissue of label {text}"):
        wanted_region(text)


@pytest.mark.parametrize(
    ("volume", "wanted", "labels"),
    [
        (label_map(1, 2, 4), "TC", (1, 4)),  # 2017-2022, by its values
        (label_map(1, 2, 3), "WT", (1, 2, 3)),  # 2023, Decathlon or nnU-Net: WT is the same
        (label_map(1, 2, 3), "ET", (3,)),  # so is ET
        (label_map(1, 2, name="BraTS20_Training_001_seg.nii.gz"), "TC", (1, 4)),
        (label_map(1, 2, 3, name="BraTS-SSA-00001-000-seg.nii.gz"), "TC", (1, 3)),
        (label_map(1, name="BraTS-MEN-RT-0001-1_gtv.nii.gz"), "GTV", (1,)),
        (label_map(1, 2, 3, 4), "2", (2,)),  # a value needs no scheme
        (label_map(1, 2, 3, 4), "RC", (4,)),  # which only 2024 has
    ],
)
def test_the_region_meant_is_found_without_a_flag(volume, wanted, labels):
    (region,) = regions_of(volume, wanted)
    assert region.labels == labels


@pytest.mark.parametrize(
    ("values", "wanted", "fitting"),
    [
        ((1, 2, 3), "TC", "brats2023, msd, nnunet"),  # necrosis or edema is 1?
        ((1, 2, 3, 4), "WT", "brats2015, brats2024, brats2024-ped"),  # tumour or cavity is 4?
        ((1, 2, 3), "all", "brats2023, msd, nnunet"),
    ],
)
def test_a_region_that_depends_on_the_scheme_is_an_error_that_names_the_flag(
    values, wanted, fitting
):
    with pytest.raises(LabelError, match=f"fit several schemes: {fitting}") as caught:
        regions_of(label_map(*values), wanted)
    assert caught.value.hint == f"choose one with --labels: {fitting}"


def test_the_scheme_that_the_user_gives_wins_over_the_name():
    name = "BraTS2021_00006_seg.nii.gz"
    (region,) = regions_of(label_map(1, 2, name=name), "TC", labels="nnunet")
    assert region.labels == (2, 3)
    with pytest.raises(LabelError, match="holds label 4, which label scheme msd"):
        regions_of(label_map(4, name=name), "WT", labels="msd")


def test_a_post_treatment_grid_tells_the_year():
    data = np.zeros((182, 218, 182), dtype=np.uint8)
    data[90, 100, 90:94] = [1, 2, 3, 4]
    later = volume(data, np.eye(4), path=Path("BraTS-GLI-00005-100-seg.nii.gz"))
    assert [region.name for region in regions_of(later, "all")] == ["WT", "TC", "ET", "RC"]


def test_the_scheme_in_the_header_is_known(tmp_path):
    def written(scheme: str) -> Volume:
        labels = label_map(1, 2, 3)
        write_labels(tmp_path / f"{scheme}.nii.gz", labels.data, labels.grid, SCHEMES[scheme])
        return read_labels(tmp_path / f"{scheme}.nii.gz")

    assert regions_of(written("brats2023"), "TC")[0].labels == (1, 3)
    assert regions_of(written("msd"), "TC")[0].labels == (2, 3)


def test_all_regions_are_those_that_are_not_empty():
    regions = regions_of(label_map(1, 2, name="BraTS2021_01477_seg.nii.gz"), "all")
    assert [region.name for region in regions] == ["WT", "TC"]
    with pytest.raises(MeshError, match=r"seg\.nii\.gz has no tumour in any region"):
        regions_of(label_map(), "all")


def test_an_empty_region_tells_what_the_map_holds():
    with pytest.raises(
        MeshError, match=r"seg\.nii\.gz has no TC: its voxels are 0, 2, none is 1 or 4$"
    ) as caught:
        list(region_masks(label_map(2), "TC", labels="brats2020"))
    assert caught.value.hint == "choose another --region, or all for those that are there"


def test_a_mask_comes_in_the_box_of_the_tumour_with_its_place():
    data = np.zeros((9, 8, 7), dtype=np.uint8)
    data[2, 3, 4], data[6, 3, 4] = 1, 2
    affine = np.diag([-1.0, 2, 3, 1])
    affine[:3, 3] = [10, 20, 30]
    (core,) = region_masks(volume(data, affine, path=Path("seg.nii.gz")), "1")
    assert core.mask.shape == (5, 1, 1)  # both labels
    assert np.argwhere(core.mask).tolist() == [[0, 0, 0]]
    # Voxel (2, 3, 4): 10 - 2, 20 + 2 * 3 and 30 + 3 * 4.
    np.testing.assert_allclose(core.grid.affine[:3, 3], [8, 26, 42])


def parts() -> np.ndarray:
    """Three parts of 8, 2 and 1 voxels; the second and the third touch at an edge."""
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[:2, :2, :2] = mask[5:7, 5, 5] = mask[7, 6, 5] = True
    return mask


@pytest.mark.parametrize(
    ("islands", "voxels"),
    [
        (Islands(), 11),
        (Islands(min_volume=3), 11),  # a voxel has 3 mm3
        (Islands(min_volume=3.1), 10),
        (Islands(min_volume=6), 10),
        (Islands(min_volume=7), 8),
        (Islands(min_volume=25), 0),
        (Islands(largest=True), 8),
        (Islands(largest=True, min_volume=25), 0),
    ],
)
def test_parts_that_are_too_small_are_left_out(islands, voxels):
    assert islands.of(parts(), voxel_mm3=3).sum() == voxels


def test_cavities_are_filled_and_what_opens_at_an_edge_is_none():
    mask = np.ones((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = False
    assert Islands(fill_holes=True).of(mask, 1).all()
    assert not Islands().of(mask, 1).all()
    open_at_edge = np.ones((4, 4, 3), dtype=bool)
    open_at_edge[1, 1, 1] = open_at_edge[0, 0, 1] = False  # diagonal to the outside
    assert (Islands(fill_holes=True).of(open_at_edge, 1) == open_at_edge).all()


def test_a_region_of_small_parts_alone_says_so():
    with pytest.raises(MeshError, match=r"no part of WT that is large enough") as caught:
        list(region_masks(label_map(1, 2, 4), "WT", islands=Islands(min_volume=9)))
    assert caught.value.hint == "choose a smaller --min-volume"


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_minimum_volume_below_0(value):
    with pytest.raises(ConfigError, match="a minimum volume of"):
        Islands(min_volume=value)


def test_the_brain_is_what_is_not_0_with_what_lies_inside():
    data = np.zeros((9, 9, 9), dtype=np.float32)
    data[2:7, 2:7, 2:7] = -0.5
    data[4, 4, 4], data[0, 0, 0] = 0, np.nan
    (brain,) = region_masks(volume(data, path=Path("t1.nii.gz")), wanted_region("Brain"))
    assert brain.region.name == "brain"
    assert brain.mask.sum() == 125
    with pytest.raises(MeshError, match=r"t1\.nii\.gz is empty: all its voxels are 0"):
        list(region_masks(volume(data * 0, path=Path("t1.nii.gz")), "brain"))


@pytest.mark.real
@needs_real
@pytest.mark.parametrize("case", ["BraTS2021_01479", "BraTS2021_01482", "BraTS-GLI-00000-000"])
def test_real_tumours_are_closed_where_they_lie_and_of_the_volume_of_their_voxels(case):
    (path,) = (REAL / "cases" / case).glob("*seg.nii.gz")
    labels = read_labels(path)
    masks = list(region_masks(labels, "all"))
    assert [each.region.name for each in masks] == ["WT", "TC", "ET"]
    for config in (SurfaceConfig(), SurfaceConfig(reduce=0.25)):
        for each in masks:
            surface = surface_of(each.mask, each.grid, config)
            assert surface.mesh.is_closed
            assert surface.mesh.is_apart
            assert surface.mesh.volume_mm3 == pytest.approx(each.mask.sum(), rel=1e-5)
            centre = each.grid.affine @ [*np.argwhere(each.mask).mean(axis=0), 1]
            np.testing.assert_allclose(centroid(surface.mesh), centre[:3], atol=0.1)
    assert masks[0].mask.sum() == (labels.data > 0).sum()
