import json
import math
import shutil

import numpy as np
import pytest
from viewcases import SHAPE, TUMOUR, label_map, write, write_case

import brats_cli
from brats_cli.core.errors import (
    BratsError,
    CaseError,
    ConfigError,
    GridMismatchError,
    LabelError,
    NoCasesError,
    OutputExistsError,
)
from brats_cli.core.view import views
from brats_cli.core.view.index import read_summary
from brats_cli.core.view.views import view


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three cases, of which the third has no label map; predictions of the first and third."""
    folder = tmp_path_factory.mktemp("batch")
    for number, labels in ((1, "default"), (2, "default"), (3, None)):
        write_case(folder / "data", labels=labels, case=f"BraTS2021_0000{number}")
    larger = label_map()
    larger[40:41, 12:24, 15:27] = 2
    for number in (1, 3):
        write(folder / f"predictions/BraTS2021_0000{number}.nii.gz", larger, dtype=np.uint8)
    rows = [
        {"case": "BraTS2021_00001", "review": 0.9},
        {"case": "BraTS2021_00001", "review": 0.125},
        {"case": "BraTS2021_00003", "review": 0.5},
    ]
    (folder / "predictions/predictions.jsonl").write_text(
        "\n".join(json.dumps(row) for row in rows) + "\nnot json\n"
    )
    return folder


def test_it_is_part_of_the_api():
    assert brats_cli.view is view


def test_a_picture_of_a_case_with_its_own_labels(data, tmp_path):
    shown = view(data / "data/BraTS2021_00001", output=tmp_path / "a.png")
    (made,) = shown.made
    assert (made.case, made.file) == ("BraTS2021_00001", str(tmp_path / "a.png"))
    assert made.volumes_mm3 == {"reference": {"WT": 1728, "TC": 512, "ET": 64}}
    assert (made.scores, made.notes, shown.index) == ({}, (), None)
    assert (tmp_path / "a.png").is_file()


def test_paths_may_be_text(data, tmp_path):
    shown = view(
        str(data / "data/BraTS2021_00001"),
        seg=[str(data / "predictions/BraTS2021_00001.nii.gz")],
        output=str(tmp_path / "a.svg"),
        labels="brats2020",
    )
    assert shown.made[0].scores["WT"]["dice"] == pytest.approx(3456 / 3600)
    assert shown.made[0].review == 0.125  # by the manifest beside the prediction


def test_the_default_output_is_a_page_named_after_the_case(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view(data / "data/BraTS2021_00003")
    assert [path.name for path in tmp_path.iterdir()] == ["BraTS2021_00003.html"]


def test_the_experts_own_map_is_not_compared_with_itself(data, tmp_path):
    folder = data / "data/BraTS2021_00001"
    shown = view(folder, seg=[folder / "BraTS2021_00001_seg.nii.gz"], output=tmp_path / "a.png")
    assert list(shown.made[0].volumes_mm3) == ["reference"]


def test_two_segmentations(data, tmp_path):
    expert = data / "data/BraTS2021_00001/BraTS2021_00001_seg.nii.gz"
    model = data / "predictions/BraTS2021_00001.nii.gz"
    shown = view(data / "data/BraTS2021_00003", seg=[model, expert], output=tmp_path / "a.png")
    assert shown.made[0].scores["TC"]["dice"] == 1


def test_three_segmentations_are_refused(data, tmp_path):
    model = data / "predictions/BraTS2021_00001.nii.gz"
    with pytest.raises(ConfigError, match="3 segmentations"):
        view(data / "data/BraTS2021_00001", seg=[model] * 3, output=tmp_path / "a.png")


def test_a_batch_gets_a_page_per_case_and_an_index(data, tmp_path):
    shown = view(data / "data", output=tmp_path / "views")
    assert [each.case for each in shown.made] == [f"BraTS2021_0000{n}" for n in (1, 2, 3)]
    assert shown.index == tmp_path / "views/index.html"
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == [
        *(f"BraTS2021_0000{n}.html" for n in (1, 2, 3)), "index.html",
    ]  # fmt: skip
    text = shown.index.read_text(encoding="utf-8")
    assert text.count("<tr>") == 4
    assert '<a href="BraTS2021_00002.html">BraTS2021_00002</a>' in text
    assert text.count('src="data:image/png;base64,') == 3


def test_a_batch_with_predictions(data, tmp_path):
    shown = view(data / "data", seg=[data / "predictions"], output=tmp_path / "views")
    assert [each.case for each in shown.made] == ["BraTS2021_00001", "BraTS2021_00003"]
    assert shown.unmatched == ("BraTS2021_00002",)
    assert [each.review for each in shown.made] == [0.125, 0.5]  # the last line of a case holds
    assert list(shown.made[1].volumes_mm3) == ["prediction"]
    text = shown.index.read_text(encoding="utf-8")
    # What is to be looked at first comes first.
    assert text.index("BraTS2021_00003.html") < text.index("BraTS2021_00001.html")
    assert '<td data-value="0.96">0.960</td>' in text


def test_ids_of_predictions_may_differ_in_upper_and_lower_case(data, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in ("brats2021_00001", "BRATS2021_00003_SEG"):
        found = data / f"predictions/BraTS2021_0000{name[14]}.nii.gz"
        (folder / f"{name}.nii.gz").write_bytes(found.read_bytes())
    shown = view(data / "data", seg=[folder], output=tmp_path / "views", workers=0)
    assert [each.case for each in shown.made] == ["BraTS2021_00001", "BraTS2021_00003"]


def test_a_batch_goes_on_and_is_not_repeated(data, tmp_path):
    views = tmp_path / "views"
    view(data / "data/BraTS2021_00001", output=views)
    before = (views / "BraTS2021_00001.html").stat().st_mtime_ns
    with pytest.raises(OutputExistsError):
        view(data / "data", output=views)
    shown = view(data / "data", output=views, skip_existing=True)
    assert shown.skipped == ("BraTS2021_00001",)
    assert len(shown.made) == 2
    assert (views / "BraTS2021_00001.html").stat().st_mtime_ns == before
    assert (views / "index.html").read_text().count("<tr>") == 4  # also of those made before


@pytest.mark.slow
def test_several_processes_make_the_same(data, tmp_path):
    for workers in (1, 2):
        view(data / "data", output=tmp_path / str(workers), workers=workers)
    for name in ("BraTS2021_00001.html", "index.html"):
        first, second = (tmp_path / str(workers) / name for workers in (1, 2))
        assert first.read_bytes() == second.read_bytes()


def test_progress_is_reported(data, tmp_path):
    seen = []
    view(
        data / "data",
        output=tmp_path / "v",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_one_bad_case_stops_no_other(data, tmp_path):
    shutil.copytree(data / "data", tmp_path / "data")
    bad = tmp_path / "data/BraTS2021_00002/BraTS2021_00002_t2.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    shown = view(tmp_path / "data", output=tmp_path / "views")
    assert [each.case for each in shown.made] == ["BraTS2021_00001", "BraTS2021_00003"]
    (error,) = shown.failed
    assert "BraTS2021_00002_t2.nii.gz" in str(error)
    assert shown.index.read_text().count("<tr>") == 3
    with pytest.raises(BratsError, match="BraTS2021_00002_t2"):
        view(tmp_path / "data/BraTS2021_00002", output=tmp_path / "one.png")


def test_a_case_that_memory_does_not_suffice_for_stops_no_other(data, tmp_path, monkeypatch):
    load = views.load_scene

    def load_scene(case, wanted):
        if case.id == "BraTS2021_00002":
            raise MemoryError("Unable to allocate 9 GiB")
        return load(case, wanted)

    monkeypatch.setattr(views, "load_scene", load_scene)
    shown = view(data / "data", output=tmp_path / "views", workers=0)
    assert [each.case for each in shown.made] == ["BraTS2021_00001", "BraTS2021_00003"]
    (error,) = shown.failed
    assert "not enough memory: Unable to allocate 9 GiB" in str(error)


def test_maps_are_found_in_folders(data, tmp_path):
    maps = np.zeros(SHAPE)
    maps[TUMOUR] = 40
    write(tmp_path / "p/BraTS2021_00001_uncertainty.nii.gz", maps, dtype=np.uint8)
    view(data / "data", output=tmp_path / "views", uncertainty=tmp_path / "p")
    with_map, without = ((tmp_path / f"views/BraTS2021_0000{n}.html").read_text() for n in (1, 2))
    assert "blob-heat-0-0" in with_map
    assert "blob-heat-0-0" not in without
    with pytest.raises(NoCasesError, match="no probabilities maps"):
        view(data / "data", output=tmp_path / "v", probabilities=tmp_path / "p")


def test_a_summary_is_read_back_from_its_page(data, tmp_path):
    view(
        data / "data/BraTS2021_00001",
        seg=[data / "predictions/BraTS2021_00001.nii.gz"],
        output=tmp_path / "a.html",
    )
    summary = read_summary(tmp_path / "a.html")
    assert summary["case"] == "BraTS2021_00001"
    assert summary["volumes_mm3"]["prediction"]["WT"] == 1872
    assert "file" not in summary
    (tmp_path / "b.html").write_text("<html>somebody else's</html>")
    assert read_summary(tmp_path / "b.html") is None


def test_somebody_elses_index_stays(data, tmp_path):
    (tmp_path / "views").mkdir()
    (tmp_path / "views/index.html").write_text("mine")
    with pytest.raises(OutputExistsError):
        view(data / "data", output=tmp_path / "views")
    assert (tmp_path / "views/index.html").read_text() == "mine"
    assert list((tmp_path / "views").iterdir()) == [tmp_path / "views/index.html"]


def test_a_slice_begins_the_page(data, tmp_path):
    view(data / "data/BraTS2021_00001", output=tmp_path / "a.html", slice=["axial=9"])
    text = (tmp_path / "a.html").read_text()
    focus = json.loads(text.split('"focus": ')[1].split("]")[0] + "]")
    assert focus[2] == 9 - 3  # the grid begins two voxels below the brain, at 3


def test_what_is_undefined_becomes_none_in_json(data, tmp_path):
    empty = write(tmp_path / "empty.nii.gz", np.zeros(SHAPE), dtype=np.uint8)
    shown = view(data / "data/BraTS2021_00001", seg=[empty], output=tmp_path / "a.png")
    (made,) = shown.made
    assert math.isnan(made.scores["ET"]["hausdorff95_mm"])
    row = json.loads(json.dumps(made.row(), allow_nan=False))
    assert row["scores"]["ET"] == {"dice": 0, "hausdorff95_mm": None}


@pytest.mark.parametrize(
    ("how", "message", "hint"),
    [
        ({"output": "view.jpg"}, "view.jpg has a format", ".png, .pdf or .svg"),
        ({"output": "a.html", "montage": 3}, "--montage makes pictures", ".png"),
        ({"output": "a.png", "slice": ["axial=500"]}, "shows nothing", "axial slices with brain"),
        ({"output": "a.png", "slice": ["axial"]}, "'axial' is not a slice", "axial=77"),
        ({"output": "a.png", "labels": "brats1999"}, "no label scheme 'brats1999'", "brats2020"),
    ],
)
def test_wrong_settings(data, tmp_path, monkeypatch, how, message, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BratsError, match=message) as caught:
        view(data / "data/BraTS2021_00001", **how)
    assert hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_one_file_for_many_cases(data, tmp_path):
    with pytest.raises(ConfigError, match="3 cases do not fit into one file"):
        view(data / "data", output=tmp_path / "a.png")
    with pytest.raises(ConfigError, match="is not a folder, and there are several cases"):
        view(
            data / "data",
            seg=[data / "predictions/BraTS2021_00001.nii.gz"],
            output=tmp_path / "views",
        )


def test_predictions_of_other_cases(data, tmp_path):
    write(tmp_path / "p/Anna.nii.gz", label_map(), dtype=np.uint8)
    with pytest.raises(CaseError, match=r"no label map in .* \(Anna\) has the id of a case"):
        view(data / "data", seg=[tmp_path / "p"], output=tmp_path / "views")


def test_a_segmentation_of_another_grid(data, tmp_path):
    path = write(tmp_path / "p.nii.gz", label_map()[:, 1:], dtype=np.uint8)
    with pytest.raises(GridMismatchError):
        view(data / "data/BraTS2021_00001", seg=[path], output=tmp_path / "a.png")


def test_no_case(tmp_path):
    with pytest.raises(NoCasesError):
        view(tmp_path, output=tmp_path / "a.png")


def test_label_maps_of_one_folder_share_one_scheme(tmp_path):
    # Alone, the first reads as 2020's edema or the Decathlon's necrosis; the second has 2020's 4.
    bare = label_map()
    bare[bare == 4] = 0
    for name in "AB":
        write_case(tmp_path / "data", labels=None, case=name)
    write(tmp_path / "predictions/A.nii.gz", bare, dtype=np.uint8)
    with pytest.raises(LabelError, match="fit several schemes"):
        view(tmp_path / "data/A", seg=[tmp_path / "predictions"], output=tmp_path / "a.png")
    write(tmp_path / "predictions/B.nii.gz", label_map(), dtype=np.uint8)
    shown = view(tmp_path / "data", seg=[tmp_path / "predictions"], output=tmp_path / "views")
    assert shown.failed == ()
    volumes = [each.volumes_mm3["prediction"] for each in shown.made]
    # Core: 8 x 8 x 8; of A without the 4 x 4 x 4 that enhance.
    assert [each["TC"] for each in volumes] == [512 - 64, 512]
    # The same folder given as the second segmentation.
    shown = view(tmp_path / "data", seg=[tmp_path / "predictions"] * 2, output=tmp_path / "again")
    assert (shown.failed, len(shown.made)) == ((), 2)


def test_experts_label_maps_of_a_folder_share_one_scheme(tmp_path):
    bare = label_map()
    bare[bare == 4] = 0
    for name, labels in (("A", bare), ("B", label_map())):
        write_case(tmp_path / "data", labels=labels, case=name)
    shown = view(tmp_path / "data", output=tmp_path / "views")
    assert shown.failed == ()
    assert [each.volumes_mm3["reference"]["TC"] for each in shown.made] == [512 - 64, 512]
