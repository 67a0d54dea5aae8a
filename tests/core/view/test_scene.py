import math

import nibabel as nib
import numpy as np
import pytest
from viewcases import BRATS, CORE, ENHANCING, SHAPE, TUMOUR, images, label_map, write, write_case

from brats_cli.core.data.finding import case_at
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import GridMismatchError, LabelError, UnreadableFileError
from brats_cli.core.view.scene import Wanted, load_scene


def scene_of(folder, **wanted):
    case = case_at(folder)
    return load_scene(case, Wanted(**({"reference": case.label} | wanted)))


def world(affine, index):
    return (affine @ [*index, 1])[:3]


def test_scans_are_turned_upright_and_cropped_to_the_brain(case_folder):
    scene = scene_of(case_folder)
    # The brain is 40 x 44 x 30 voxels, with two voxels around it.
    assert scene.shape == (44, 48, 34)
    assert np.allclose(scene.affine[:3, :3], np.eye(3))
    assert list(scene.scans) == ["t1", "t1ce", "t2", "flair"]


def test_a_voxel_keeps_its_place_in_space(case_folder):
    scene = scene_of(case_folder)
    enhancing = np.argwhere(scene.segmentations[0].masks["ET"])
    ends = [world(scene.affine, enhancing.min(axis=0)), world(scene.affine, enhancing.max(axis=0))]
    # ET is 32..35, 16..19, 19..22 in the file, whose x is -i and whose y is 239 - j.
    assert np.allclose(ends, [[-35, 220, 19], [-32, 223, 22]])


def test_slices_are_numbered_as_in_the_file(case_folder):
    scene = scene_of(case_folder)
    enhancing = np.argwhere(scene.segmentations[0].masks["ET"])
    for axis, (first, last) in enumerate([(32, 35), (16, 19), (19, 22)]):
        found = {scene.file_index(axis, int(index)) for index in enhancing[:, axis]}
        assert found == set(range(first, last + 1))
        for index in found:
            assert scene.file_index(axis, scene.index_of(axis, index)) == index


def test_the_fullest_slices_lie_in_the_tumour(case_folder):
    scene = scene_of(case_folder)
    for axis, side in enumerate(TUMOUR):
        assert side.start <= scene.file_index(axis, scene.fullest[axis]) < side.stop


def test_without_a_segmentation_the_middle_is_shown(case_folder):
    scene = scene_of(case_folder, reference=None)
    assert scene.segmentations == ()
    assert scene.fullest == (22, 24, 17)


def test_volumes_are_those_of_the_voxels(case_folder):
    volumes = scene_of(case_folder).segmentations[0].volumes_mm3
    assert volumes == {"WT": 12 * 12 * 12, "TC": 8 * 8 * 8, "ET": 4 * 4 * 4}


def test_scores_compare_prediction_and_reference(case_folder, prediction):
    scene = scene_of(case_folder, prediction=prediction)
    assert [each.name for each in scene.segmentations] == ["prediction", "reference"]
    assert [each.dashed for each in scene.segmentations] == [False, True]
    # 1,728 voxels against 144 more.
    assert scene.scores["WT"].dice == pytest.approx(2 * 1728 / (2 * 1728 + 144))
    assert scene.scores["ET"].dice == 1


def test_one_segmentation_alone_is_drawn_solid_and_has_no_scores(case_folder):
    scene = scene_of(case_folder)
    assert not scene.segmentations[0].dashed
    assert scene.scores == {}


def test_voxels_that_are_not_cubes(tmp_path):
    affine = np.diag([1.0, 1, 3, 1])
    scene = scene_of(write_case(tmp_path, affine=affine))
    assert scene.spacing_mm == (1, 1, 3)
    assert scene.segmentations[0].volumes_mm3["ET"] == 64 * 3


def test_axes_in_another_order(tmp_path):
    # The file's axes run to superior, left and anterior.
    affine = np.array([[0.0, -1, 0, 5], [0, 0, 1, 7], [2, 0, 0, 9], [0, 0, 0, 1]])
    scene = scene_of(write_case(tmp_path, affine=affine))
    assert np.allclose(scene.affine[:3, :3], np.diag([1, 1, 2]))
    enhancing = np.argwhere(scene.segmentations[0].masks["ET"])
    low = world(scene.affine, enhancing.min(axis=0))
    # Of the corners (32..35, 16..19, 19..22): x = 5 - j, y = 7 + k, z = 9 + 2 i.
    assert np.allclose(low, [5 - 19, 7 + 19, 9 + 64])
    assert scene.file_order == (2, 0, 1)


def test_an_oblique_scan_keeps_its_axes_and_says_so(tmp_path):
    angle = math.radians(20)
    affine = BRATS.copy()
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0],
                     [0, 0, 1]])  # fmt: skip
    affine[:3, :3] = turn @ affine[:3, :3]
    scene = scene_of(write_case(tmp_path, affine=affine))
    assert scene.notes == (
        "The scan is oblique: slices follow its own axes, 20 degrees off the patient's.",
    )
    enhancing = np.argwhere(scene.segmentations[0].masks["ET"]).mean(axis=0)
    assert np.allclose(world(scene.affine, enhancing), world(affine, [33.5, 17.5, 20.5]))


def test_missing_and_empty_sequences_are_noted(tmp_path):
    scans = images()
    del scans["t1"]
    scans["flair"][:] = 0
    scene = scene_of(write_case(tmp_path, scans))
    assert list(scene.scans) == ["t1ce", "t2", "flair"]
    assert scene.notes == ("The case has no T1.", "Every voxel of FLAIR is 0.")
    assert scene.scans["flair"].is_empty


def test_all_sequences_empty(tmp_path):
    scans = {name: image * 0 for name, image in images().items()}
    scene = scene_of(write_case(tmp_path, scans, labels=None), reference=None)
    assert scene.shape == SHAPE
    assert scene.scans["t1"].window == (0, 1)


def test_negative_values_are_inside_the_window(tmp_path):
    scans = {name: np.where(image != 0, image - 400, 0) for name, image in images().items()}
    scene = scene_of(write_case(tmp_path, scans))
    low, high = scene.scans["t1"].window
    assert -221 < low < -215
    assert -185 < high < -179


def test_a_value_of_0_inside_the_brain_is_not_outside(tmp_path):
    scans = images()
    scans["t1"][20, 20, 20] = 0
    scans["t2"][20, 20, 20] = 0
    scene = scene_of(write_case(tmp_path, scans))
    assert scene.outside.sum() == 44 * 48 * 34 - 40 * 44 * 30


def test_values_that_are_not_finite_count_as_nothing(tmp_path):
    scans = images()
    scans["t1"][20, 20, 20] = np.nan
    scans["t1"][21, 20, 20] = np.inf
    scene = scene_of(write_case(tmp_path, scans, dtype=np.float32))
    assert np.isfinite(scene.scans["t1"].voxels).all()


def test_the_label_scheme_of_a_name_that_says_nothing_is_asked_for(tmp_path):
    labels = label_map()
    labels[labels == 4] = 3
    folder = write_case(tmp_path, labels=labels, case="Anna")
    with pytest.raises(LabelError, match="fit several schemes") as caught:
        scene_of(folder)
    assert "--labels" in caught.value.hint
    scene = scene_of(folder, labels=SCHEMES["brats2023"])
    assert scene.segmentations[0].volumes_mm3["ET"] == 64


def test_a_recorded_scheme_wins_over_the_one_given(case_folder, tmp_path):
    labels = label_map()
    labels[labels == 4] = 3
    path = write(
        tmp_path / "p.nii.gz", labels, dtype=np.uint8, description="brats labels=brats2023"
    )
    scene = scene_of(case_folder, prediction=path, labels=SCHEMES["msd"])
    assert scene.scores["ET"].dice == 1  # of two schemes, compared by regions


def test_a_segmentation_on_another_grid_is_refused(case_folder, tmp_path):
    path = write(tmp_path / "p.nii.gz", label_map()[:-1], dtype=np.uint8)
    with pytest.raises(GridMismatchError, match="47 x 56 x 40 voxels, not 48 x 56 x 40"):
        scene_of(case_folder, prediction=path)


def test_a_map_per_region_and_a_single_map(case_folder, tmp_path):
    maps = np.zeros((*SHAPE, 3))
    maps[(*TUMOUR, 0)] = 30
    maps[(*CORE, 1)] = 60
    maps[(*ENHANCING, 2)] = 90
    scene = scene_of(
        case_folder,
        uncertainty=write(tmp_path / "u.nii.gz", maps, dtype=np.uint8),
        probabilities=write(tmp_path / "p.nii.gz", maps[..., 0] / 100, dtype=np.float32),
    )
    uncertainty, probability = scene.heats
    assert (uncertainty.name, uncertainty.top, list(uncertainty.maps)) == (
        "uncertainty", 100, ["WT", "TC", "ET"],
    )  # fmt: skip
    assert (uncertainty.maps["ET"] == 90).sum() == 64
    assert (probability.name, probability.top, list(probability.maps)) == ("probability", 1, [""])


@pytest.mark.parametrize("value", [-1, np.nan])
def test_a_map_of_other_values_is_refused(case_folder, tmp_path, value):
    data = np.zeros(SHAPE)
    data[5, 5, 5] = value
    path = write(tmp_path / "u.nii.gz", data, dtype=np.float32)
    with pytest.raises(UnreadableFileError, match="negative or not finite"):
        scene_of(case_folder, uncertainty=path)


def test_a_4d_case(tmp_path):
    scans = images()
    stacked = np.stack([scans[name] for name in ("flair", "t1", "t1ce", "t2")], axis=-1)
    path = tmp_path / "imagesTr" / "BRATS_001.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(stacked.astype(np.int16), BRATS), path)
    scene = load_scene(case_at(path), Wanted())
    assert scene.scans["t2"].voxels.max() == 900


def test_an_affine_that_leads_nowhere_is_refused(tmp_path):
    folder = write_case(tmp_path)
    for path in folder.glob("*.nii.gz"):
        raw = bytearray(nib.load(path).to_bytes())
        raw[312:328] = bytes(16)  # the third row of the sform, by the format's definition
        path.with_suffix("").write_bytes(raw)
        path.unlink()
    with pytest.raises(UnreadableFileError, match="affine is flat or not finite"):
        scene_of(folder)
