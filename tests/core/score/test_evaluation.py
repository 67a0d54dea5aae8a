import csv
import json
import math
import os
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
from helpers import REAL, needs_real
from medpy.metric import binary

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import (
    CaseError,
    ConfigError,
    LabelError,
    NoCasesError,
    OutputExistsError,
    UnreadableFileError,
)
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.score import evaluation
from brats_cli.core.score.evaluation import evaluate, score_pairs
from brats_cli.core.score.metrics import MaskScore, score
from brats_cli.core.score.pairing import match
from brats_cli.core.score.scores import METRICS, CaseScore, Failure, Report, Threshold
from brats_cli.core.score.statistics import Statistics

# Ten voxels in a row. Reference: WT 1-6, TC 1-4, ET 3-4. Prediction: WT 2-6, TC 2-5, ET 3-5.
TRUTH = (0, 1, 1, 4, 4, 2, 2, 0, 0, 0)
GUESS = (0, 0, 1, 4, 4, 4, 2, 0, 0, 0)
DICE = {"WT": 2 * 5 / (6 + 5), "TC": 2 * 3 / (4 + 4), "ET": 2 * 2 / (2 + 3)}
IN_2023 = {0: 0, 1: 1, 2: 2, 4: 3}
IN_MSD = {0: 0, 1: 2, 2: 1, 4: 3}


def put(path, labels, *, spacing=1.0, note=""):
    """Write a row of labels as NIfTI, with a note on the label scheme if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.array(labels, dtype=np.uint8).reshape(-1, 1, 1)
    image = nib.Nifti1Image(data, np.diag([spacing, 1, 1, 1]))
    image.header["descrip"] = f"brats labels={note}".encode() if note else b""
    nib.save(image, path)
    return path


def put_image(path, *, channels=None):
    shape = (10, 1, 1) if channels is None else (10, 1, 1, channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros(shape, dtype=np.int16), np.eye(4)), path)


def values(labels, table):
    return [table[label] for label in labels]


def dice(report):
    return {each.region: each.metrics.dice for each in report.scores}


@pytest.fixture
def folders(tmp_path):
    """Predictions of two cases and references of three."""
    for number in (1, 2, 3):
        put(tmp_path / f"ref/BraTS20_Training_00{number}_seg.nii.gz", TRUTH)
    for number in (1, 2):
        put(tmp_path / f"pred/BraTS20_Training_00{number}.nii.gz", GUESS)
    return tmp_path / "pred", tmp_path / "ref"


# --- what belongs together ---------------------------------------------------------------------


def test_files_are_matched_by_case_id_whatever_their_suffix(folders):
    predictions, references = folders
    matching = match(predictions, references)
    assert matching.pairs[0].case == "BraTS20_Training_001"
    assert matching.pairs[0].predicted == predictions / "BraTS20_Training_001.nii.gz"
    assert matching.pairs[0].reference == references / "BraTS20_Training_001_seg.nii.gz"
    assert [pair.case[-1] for pair in matching.pairs] == ["1", "2"]
    assert matching.without_prediction == ("BraTS20_Training_003",)


def test_a_prediction_without_reference_is_told(folders):
    predictions, references = folders
    put(predictions / "BraTS20_Training_009.nii.gz", GUESS)
    assert match(predictions, references).without_reference == ("BraTS20_Training_009",)


def test_references_may_be_a_data_set(tmp_path):
    case = "BraTS2021_00001"
    put_image(tmp_path / f"data/{case}/{case}_t1.nii.gz")
    put(tmp_path / f"data/{case}/{case}_seg.nii.gz", TRUTH)
    put(tmp_path / f"pred/{case}.nii.gz", GUESS)
    report = evaluate(tmp_path / "pred", tmp_path / "data")
    assert dice(report) == DICE


def test_two_files_belong_together_whatever_their_names(tmp_path):
    predicted = put(tmp_path / "out.nii.gz", GUESS)
    reference = put(tmp_path / "BraTS20_Training_001_seg.nii.gz", TRUTH)
    report = evaluate(predicted, reference)
    assert {each.case for each in report.scores} == {"BraTS20_Training_001"}
    assert dice(report) == DICE


def test_one_file_finds_its_reference_in_a_folder(folders):
    predictions, references = folders
    matching = match(predictions / "BraTS20_Training_002.nii.gz", references)
    assert [pair.case for pair in matching.pairs] == ["BraTS20_Training_002"]


def test_nothing_in_common_names_both_sides(tmp_path):
    put(tmp_path / "pred/Anna.nii.gz", GUESS)
    for name in "BCDE":
        put(tmp_path / f"ref/{name}_seg.nii.gz", TRUTH)
    with pytest.raises(CaseError) as caught:
        match(tmp_path / "pred", tmp_path / "ref")
    assert str(caught.value) == (
        f"no prediction in {tmp_path / 'pred'} (Anna) has the case id of a reference "
        f"in {tmp_path / 'ref'} (B, C, D and 1 more)"
    )
    assert "rename the predictions" in caught.value.hint


def test_an_empty_folder_and_a_missing_one_are_errors(folders, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(NoCasesError, match="no label maps in"):
        match(tmp_path / "nothing", folders[1])
    with pytest.raises(UnreadableFileError, match="there is no such file or folder"):
        match(folders[0], tmp_path / "nowhere")


# --- scores ------------------------------------------------------------------------------------


def test_regions_are_scored_in_millimetres(tmp_path):
    put(tmp_path / "pred/BraTS20_Training_001.nii.gz", GUESS, spacing=2)
    put(tmp_path / "ref/BraTS20_Training_001_seg.nii.gz", TRUTH, spacing=2)
    report = evaluate(tmp_path / "pred", tmp_path / "ref", tolerance=1.9)
    assert dice(report) == DICE
    whole = report.scores[0].metrics
    # WT: reference voxel 1 is one voxel, 2 mm, from the prediction; the 10 others lie on both.
    assert (whole.hausdorff_mm, whole.assd_mm) == (2, 2 / 11)
    assert whole.surface_dice == 10 / 11
    assert (whole.reference_mm3, whole.predicted_mm3) == (6 * 2, 5 * 2)
    # Sensitivity is the reference's share that was found, precision the prediction's that is right.
    assert (whole.sensitivity, whole.precision) == (5 / 6, 1)


@pytest.mark.slow
def test_several_processes_score_as_one_does(folders):
    pairs = match(*folders).pairs
    alone = list(score_pairs(pairs, workers=0))
    assert list(score_pairs(pairs, workers=2)) == alone
    assert [len(outcome) for outcome in alone] == [3, 3]


def test_a_case_that_cannot_be_scored_does_not_stop_the_others(folders):
    predictions, references = folders
    damaged = predictions / "BraTS20_Training_001.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:40])
    report = evaluate(predictions, references)
    assert {each.case for each in report.scores} == {"BraTS20_Training_002"}
    (failure,) = report.failures
    assert failure.case == "BraTS20_Training_001"
    assert failure.message.startswith(f"cannot read {damaged}: ")


def test_another_grid_is_a_failure_that_names_both_files(folders):
    predictions, references = folders
    put(predictions / "BraTS20_Training_001.nii.gz", GUESS, spacing=1.5)
    (failure,) = evaluate(predictions, references).failures
    # Nine steps of half a millimetre more.
    assert failure.message == (
        f"{predictions / 'BraTS20_Training_001.nii.gz'} does not lie on the grid of "
        f"{references / 'BraTS20_Training_001_seg.nii.gz'}: corners 4.5 mm apart"
    )


class _Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.slow
def test_a_killed_process_is_told_with_the_case(folders):
    sound, *_ = pairs = list(match(*folders).pairs)
    pairs[1:1] = [replace(sound, case="BraTS20_Training_999", predicted=_Deadly())]
    first, failure, *others = score_pairs(pairs, workers=2)
    assert [scores[0].case for scores in (first, *others)] == [
        pair.case for pair in pairs if pair.case != "BraTS20_Training_999"
    ]
    assert failure.case == "BraTS20_Training_999"
    assert failure.message == (
        "the process that worked on case BraTS20_Training_999 was killed, most likely because "
        "memory ran out"
    )
    assert failure.hint.startswith("end other programs, or use a machine with more memory")


# --- whose labels ------------------------------------------------------------------------------


def test_label_schemes_of_different_years_are_compared_by_region(tmp_path):
    put(tmp_path / "pred/BraTS20_Training_001.nii.gz", values(GUESS, IN_2023), note="brats2023")
    put(tmp_path / "ref/BraTS20_Training_001_seg.nii.gz", TRUTH)
    assert dice(evaluate(tmp_path / "pred", tmp_path / "ref")) == DICE


def test_a_name_tells_the_scheme_where_values_fit_several(tmp_path):
    # {0, 1, 2} is edema and necrosis one way round in BraTS and the other in nnU-Net's.
    put(tmp_path / "pred/BraTS20_Training_001.nii.gz", (0, 1, 1, 2, 0))
    put(tmp_path / "ref/BraTS20_Training_001_seg.nii.gz", (0, 1, 2, 2, 0))
    found = evaluate(tmp_path / "pred", tmp_path / "ref").scores[1]
    assert (found.region, found.metrics.reference_mm3, found.metrics.predicted_mm3) == ("TC", 1, 2)


def test_ambiguous_labels_are_a_failure_that_names_the_flag(tmp_path):
    predicted = put(tmp_path / "pred/Anna.nii.gz", values(GUESS, IN_2023))
    put(tmp_path / "ref/Anna_seg.nii.gz", TRUTH)
    (failure,) = evaluate(tmp_path / "pred", tmp_path / "ref").failures
    assert failure.message.startswith(f"{predicted} holds labels 0, 1, 2, 3, which fit several")
    assert "--labels" in failure.hint


def test_flags_tell_the_schemes_of_either_side(tmp_path):
    put(tmp_path / "pred/Anna.nii.gz", values(GUESS, IN_2023))
    put(tmp_path / "ref/Anna_seg.nii.gz", values(TRUTH, IN_MSD))
    report = evaluate(
        tmp_path / "pred", tmp_path / "ref", labels="brats2023", reference_labels="msd"
    )
    assert dice(report) == DICE


def test_the_flag_wins_over_the_header(tmp_path):
    # By the header 1 is necrosis; by the flag it is edema, and the reference says so too.
    put(tmp_path / "pred/Anna.nii.gz", (0, 1, 1, 2, 0), note="brats2023")
    put(tmp_path / "ref/Anna_seg.nii.gz", (0, 1, 1, 2, 0), note="msd")
    noted = dice(evaluate(tmp_path / "pred", tmp_path / "ref"))
    told = dice(evaluate(tmp_path / "pred", tmp_path / "ref", labels="msd"))
    assert noted["TC"] == 0  # two voxels against the third
    assert told["TC"] == 1


def test_each_side_has_its_flag(tmp_path):
    put(tmp_path / "pred/Anna.nii.gz", GUESS, note="brats2020")
    predicted = put(tmp_path / "ref/Anna_seg.nii.gz", values(TRUTH, IN_MSD))
    (failure,) = evaluate(tmp_path / "pred", tmp_path / "ref").failures
    assert failure.message.startswith(f"{predicted} holds labels 0, 1, 2, 3, which fit several")
    assert failure.hint.startswith("choose one with --reference-labels: ")
    told = evaluate(tmp_path / "pred", tmp_path / "ref", reference_labels="msd")
    assert dice(told) == DICE


def test_a_header_that_does_not_fit_the_values_is_stale(tmp_path):
    # Relabelled by a tool that kept the header.
    put(tmp_path / "pred/Anna.nii.gz", values(GUESS, IN_2023), note="brats2020")
    put(tmp_path / "ref/Anna_seg.nii.gz", TRUTH, note="brats2020")
    assert dice(evaluate(tmp_path / "pred", tmp_path / "ref", labels="brats2023")) == DICE


def test_the_decathlons_layout_tells_its_labels(tmp_path):
    put_image(tmp_path / "data/imagesTr/BRATS_001.nii.gz", channels=4)
    put(tmp_path / "data/labelsTr/BRATS_001.nii.gz", values(TRUTH, IN_MSD))
    put(tmp_path / "pred/BRATS_001.nii.gz", GUESS)
    assert dice(evaluate(tmp_path / "pred", tmp_path / "data")) == DICE


def test_radiotherapy_cases_are_scored_by_their_one_region(tmp_path):
    put(tmp_path / "pred/BraTS-MEN-RT-0001-1.nii.gz", (0, 1, 1, 0))
    put(tmp_path / "ref/BraTS-MEN-RT-0001-1_gtv.nii.gz", (0, 1, 0, 0))
    assert dice(evaluate(tmp_path / "pred", tmp_path / "ref")) == {"GTV": 2 * 1 / 3}


def test_schemes_without_a_common_region_are_a_failure(tmp_path):
    put(tmp_path / "pred/Anna.nii.gz", TRUTH)
    put(tmp_path / "ref/Anna_seg.nii.gz", (0, 1, 1, 0, 0, 0, 0, 0, 0, 0), note="men-rt")
    (failure,) = evaluate(tmp_path / "pred", tmp_path / "ref").failures
    assert "(brats2020)" in failure.message
    assert failure.message.endswith("(men-rt) have no region in common")
    assert "--reference-labels" in failure.hint


def test_an_unknown_scheme_is_one_error_not_one_a_case(folders):
    with pytest.raises(LabelError, match="there is no label scheme 'brats1999'"):
        evaluate(*folders, reference_labels="brats1999")


# --- the report --------------------------------------------------------------------------------


def masks(*voxels):
    mask = np.zeros((10, 1, 1), dtype=bool)
    mask[list(voxels)] = True
    return mask


def report_of(**pairs):
    """A report on ET masks given as voxel numbers, reference and prediction."""
    return Report(
        tuple(
            CaseScore(case, "ET", score(masks(*reference), masks(*predicted), (1.0, 1.0, 1.0)))
            for case, (reference, predicted) in pairs.items()
        )
    )


def test_a_case_that_memory_does_not_suffice_for_stops_no_other(folders, monkeypatch):
    read = evaluation.read_pair

    def read_pair(pair, scoring):
        if pair.case == "BraTS20_Training_001":
            raise MemoryError
        return read(pair, scoring)

    monkeypatch.setattr(evaluation, "read_pair", read_pair)
    report = evaluate(*folders, workers=0)
    (failure,) = report.failures
    assert (failure.case, failure.message) == ("BraTS20_Training_001", "not enough memory")
    assert {score.case for score in report.scores} == {"BraTS20_Training_002"}


@pytest.fixture
def report():
    """One case found to one half, one rightly empty, one missed, one invented."""
    return report_of(half=([1, 2], [2, 3]), none=([], []), missed=([1], []), extra=([], [1]))


def test_statistics_of_one_to_four():
    found = Statistics.of([4, 1, math.nan, 3, 2])
    assert (found.mean, found.median, found.n) == (2.5, 2.5, 4)
    # Squares 2.25 + 0.25 + 0.25 + 2.25 = 5 over n - 1 = 3.
    assert found.std == pytest.approx(math.sqrt(5 / 3))
    # Student's t for three degrees of freedom, from a printed table: 3.182.
    margin = 3.182 * math.sqrt(5 / 3) / 2
    assert found.ci95 == pytest.approx((2.5 - margin, 2.5 + margin), abs=1e-3)


def test_statistics_of_one_value_and_of_none():
    one, none = Statistics.of([0.5]), Statistics.of([math.nan])
    assert (one.mean, one.median, one.n) == (0.5, 0.5, 1)
    assert math.isnan(one.std)
    assert (math.isnan(none.mean), math.isnan(none.median), none.n) == (True, True, 0)


def test_the_summary_counts_empties_and_that_of_defined_values_does_not(report):
    official, defined = report.summary()["ET"], report.summary_of_defined()["ET"]
    # Dice: 1/2, 1 (rightly empty), 0 (missed), 0 (invented); without a rule the second has none.
    assert (official["dice"].mean, official["dice"].n) == (1.5 / 4, 4)
    assert (defined["dice"].mean, defined["dice"].n) == (0.5 / 3, 3)
    # HD95: 1 mm (each row ends one voxel off), 0, and twice the missed tumour's price.
    assert official["hausdorff95_mm"].mean == pytest.approx((1 + 0 + 2 * 373.12866) / 4)
    assert (defined["hausdorff95_mm"].mean, defined["hausdorff95_mm"].n) == (1, 1)
    # Sensitivity: 1/2 and 0; where nothing is to be found it has no value under any rule.
    assert (official["sensitivity"].mean, official["sensitivity"].n) == (0.25, 2)


def test_the_csv_has_the_columns_promised_and_blanks_for_no_value(report, tmp_path):
    path = tmp_path / "scores.csv"
    report.to_csv(path)
    assert path.read_text().splitlines()[0] == (
        "case,region,dice,jaccard,sensitivity,specificity,precision,hausdorff_mm,"
        "hausdorff95_mm,assd_mm,surface_dice,reference_mm3,predicted_mm3,convention"
    )
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["case"] for row in rows] == ["half", "none", "missed", "extra"]
    assert [row["dice"] for row in rows] == ["0.5", "1.0", "0.0", "0.0"]
    assert [row["hausdorff95_mm"] for row in rows] == ["1.0", "0.0", "373.12866", "373.12866"]
    assert [row["sensitivity"] for row in rows] == ["0.5", "", "0.0", ""]


def test_a_csv_is_not_replaced_unless_asked(report, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        report.to_csv(path)
    assert path.read_text() == "mine"
    report.to_csv(path, overwrite=True)
    assert path.read_text().startswith("case,region")


def test_json_has_no_nan_and_says_by_which_rule(report):
    content = json.loads(json.dumps(report.to_json_dict(), allow_nan=False))
    assert content["format"] == "brats-scores/1"
    assert content["convention"] == "brats2020"
    assert content["missed_mm"] == 373.12866
    assert content["tolerance_mm"] == 1.0
    assert list(content["cases"][0]) == ["case", "region", *METRICS]
    assert content["cases"][1]["precision"] is None
    assert list(content["summary"]["ET"]["dice"]) == [
        *("mean", "std", "median", "ci95", "n", "ci95_bootstrap")
    ]
    assert content["summary_defined"]["ET"]["hausdorff_mm"] == {
        "mean": 1.0,
        "std": None,
        "median": 1.0,
        "ci95": None,
        "n": 1,
        "ci95_bootstrap": None,
    }


def test_json_names_what_could_not_be_scored():
    content = Report((), (Failure("A", "it is cut", "copy it"),), ("B",)).to_json_dict()
    assert content["failed"] == [{"case": "A", "message": "it is cut", "hint": "copy it"}]
    assert content["without_reference"] == ["B"]
    assert content["summary"] == {}


# --- thresholds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ET.dice=0.375", None),  # the mean exactly
        ("ET.dice=0.4", "ET.dice is 0.375, under 0.4"),
        # (1 + 0 + 373.12866 + 373.12866) / 4; of distances the larger is the worse.
        ("ET.hausdorff95_mm=200", None),
        ("ET.hausdorff95_mm=10", "ET.hausdorff95_mm is 186.8, over 10"),
        ("WT.dice=0", "WT.dice has no value in any case"),
    ],
)
def test_a_threshold_is_missed_by_what_is_worse(report, text, words):
    assert Threshold.parse(text).missed_by(report.summary()) == words


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("WT.dice", "'WT.dice' is not a threshold", "REGION.METRIC=NUMBER"),
        ("WT.dice=good", "'WT.dice=good' is not a threshold", "REGION.METRIC=NUMBER"),
        ("WT.dice=nan", "'WT.dice=nan' is not a threshold", "REGION.METRIC=NUMBER"),
        ("dice=0.8", "there is no region 'dice'", "choose from ET, GTV, RC, TC, WT"),
        ("WT.dcie=0.8", "there is no metric 'dcie'", "did you mean 'dice'?"),
        ("WT.hausdorff95=9", "there is no metric 'hausdorff95'", "did you mean 'hausdorff95_mm'?"),
        ("WT.reference_mm3=9", "there is no metric 'reference_mm3'", ""),
    ],
)
def test_what_is_no_threshold_is_told_how_to_write_one(text, message, hint):
    with pytest.raises(ConfigError) as caught:
        Threshold.parse(text)
    assert str(caught.value).startswith(message)
    assert hint in caught.value.hint


# --- real cases --------------------------------------------------------------------------------


@pytest.mark.real
@needs_real
def test_a_real_pair_overlaps_as_medpy_says():
    report = evaluate(REAL / "pairs/model_a/BraTS20_Training_002.nii.gz", REAL / "pairs/truth")
    assert [each.region for each in report.scores] == ["WT", "TC", "ET"]
    reference = read_labels(REAL / "pairs/truth/BraTS20_Training_002_seg.nii.gz")
    predicted = read_labels(REAL / "pairs/model_a/BraTS20_Training_002.nii.gz")
    for each in report.scores:
        region = SCHEMES["brats2020"].region(each.region)
        both = region.mask(predicted.data), region.mask(reference.data)
        assert each.metrics.dice == binary.dc(*both)
        assert each.metrics.sensitivity == binary.sensitivity(*both)
        assert each.metrics.specificity == binary.specificity(*both)


@pytest.mark.real
@needs_real
def test_a_data_set_of_several_years_is_perfect_against_itself(tmp_path):
    for case in ("Brats18_2013_2_1", "BraTS-GLI-00000-000", "BraTS2021_01484"):
        (source,) = (REAL / "cases" / case).glob("*seg.nii.gz")
        (tmp_path / source.name).symlink_to(source)
    report = evaluate(tmp_path, REAL / "cases")
    assert not report.failures
    for each in report.official:
        expected = asdict(each.metrics)
        assert (expected["dice"], expected["hausdorff95_mm"]) == (1, 0)
    # BraTS2021_01484 has no enhancing tumour: nothing to be found, and nothing invented.
    et = {each.case: each.metrics for each in report.scores if each.region == "ET"}
    assert math.isnan(et["BraTS2021_01484"].dice)
    # 11,738 + 12,836 + 32,731 voxels of 1 mm3 of the 2023 case.
    wt = {each.case: each.metrics for each in report.scores if each.region == "WT"}
    assert wt["BraTS-GLI-00000-000"].reference_mm3 == pytest.approx(57305)
    assert isinstance(wt["BraTS-GLI-00000-000"], MaskScore)


# --- the twin of the command -------------------------------------------------------------------


def test_the_twin_takes_text_for_paths_and_writes_the_csv(folders, tmp_path):
    path = tmp_path / "new/scores.csv"
    report = evaluate(str(folders[0]), str(folders[1]), output=str(path), labels="brats2020")
    assert len(path.read_text().splitlines()) == 1 + len(report.scores)
    with pytest.raises(OutputExistsError):
        evaluate(*folders, output=path)
    evaluate(*folders, output=path, labels=SCHEMES["brats2020"], overwrite=True)


def test_the_twin_names_the_means_that_are_missed(folders):
    report = evaluate(*folders, fail_under=["WT.dice=0.95", Threshold("ET", "dice", 0.1)])
    assert report.missed == ("WT.dice is 0.9091, under 0.95",)


def test_the_twin_reports_progress_and_what_was_left_over(folders):
    heard = []
    report = evaluate(*folders, on_progress=lambda matching, scored: heard.append(scored))
    assert heard == [0, 1, 2]
    assert report.without_prediction == ("BraTS20_Training_003",)


# --- conventions, lesions, the brain and uncertainty, from files ------------------------------


@pytest.fixture
def data_set(tmp_path):
    """A case with scans: its brain is voxels 0 to 7, its tumour as TRUTH; predicted as GUESS."""
    case = "BraTS2021_00001"
    put_image(tmp_path / f"data/{case}/{case}_t2.nii.gz")
    brain = np.array([5] * 8 + [0] * 2, dtype=np.int16).reshape(10, 1, 1)
    nib.save(nib.Nifti1Image(brain, np.eye(4)), tmp_path / f"data/{case}/{case}_t1.nii.gz")
    put(tmp_path / f"data/{case}/{case}_seg.nii.gz", TRUTH)
    put(tmp_path / f"pred/{case}.nii.gz", GUESS)
    return tmp_path / "pred", tmp_path / "data"


def test_specificity_within_the_brain_leaves_out_the_air_around_it(data_set):
    # TC is 1-4 in truth and 2-5 as predicted: of ten voxels six are negative and five of them
    # right; of the brain's eight, four and three.
    tc = evaluate(*data_set).scores[1].metrics
    assert tc.specificity == 5 / 6
    assert evaluate(*data_set, within_brain=True).scores[1].metrics.specificity == 3 / 4


def test_brain_masks_may_lie_in_a_folder_of_their_own(folders, tmp_path):
    for number, ending in ((1, "_brain"), (2, "")):
        mask = np.array([1] * 7 + [0] * 3, dtype=np.uint8).reshape(10, 1, 1)
        path = tmp_path / f"masks/BraTS20_Training_00{number}{ending}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), path)
    report = evaluate(*folders, within_brain=True, brain=tmp_path / "masks")
    assert report.failures == ()
    # Of the brain's seven voxels, three are not TC, of which two are left out.
    assert {each.metrics.specificity for each in report.scores if each.region == "TC"} == {2 / 3}


def test_without_a_brain_there_is_an_error_for_the_case(folders):
    (first, _) = evaluate(*folders, within_brain=True).failures
    assert first.message.startswith("case BraTS20_Training_001 has no T1 scan beside ")
    assert "--brain" in first.hint


def test_uncertainty_adds_its_columns(data_set, tmp_path):
    # Certain everywhere but in the one voxel that TC has too many, 5.
    doubt = np.zeros((10, 1, 1, 3), dtype=np.uint8)
    doubt[5, 0, 0] = 100
    nib.save(
        nib.Nifti1Image(doubt, np.eye(4)), tmp_path / "pred/BraTS2021_00001_uncertainty.nii.gz"
    )
    report = evaluate(*data_set, uncertainty=data_set[0], output=tmp_path / "scores.csv")
    tc = report.scores[1].uncertainty
    # Dice of what is kept: reference 1-4, prediction 2-4, 6/7; at 100 it is 6/8.
    assert tc.uncertainty_dice_auc == pytest.approx((39.5 * 6 / 7 + 0.5 * 6 / 8) * 0.025)
    header = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert header.endswith(
        "predicted_mm3,uncertainty_dice_auc,uncertainty_ftp_auc,uncertainty_ftn_auc,"
        "uncertainty_score,convention"
    )


def test_lesions_add_their_columns_and_a_table(folders, tmp_path):
    report = evaluate(
        *folders,
        lesion_wise=2023,
        challenge="MET",
        output=tmp_path / "scores.csv",
        lesions=tmp_path / "lesions.csv",
    )
    header = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert header.endswith(
        "predicted_mm3,lesion_dice,lesion_hausdorff95_mm,lesions,lesions_found,lesions_missed,"
        "lesions_invented,convention,lesion_wise,challenge"
    )
    rows = list(csv.DictReader((tmp_path / "lesions.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3  # one lesion per case and region
    assert rows[0]["case"] == "BraTS20_Training_001"
    assert (rows[0]["region"], rows[0]["lesion"], rows[0]["kind"]) == ("WT", "1", "found")
    # Voxels 1 to 6 of 1 mm; their middle is 3.5.
    assert (rows[0]["reference_mm3"], rows[0]["x_mm"]) == ("6.0", "3.5")
    assert report.summary()["WT"]["lesion_dice"].mean == pytest.approx(DICE["WT"])
    # GLI drops lesions of 50 mm3 or less: nothing is left to find, and nothing was invented.
    gli = evaluate(*folders, lesion_wise="2023").summary()["WT"]
    assert (gli["lesions"].mean, gli["lesion_dice"].mean) == (0, 1)


def test_the_2024_columns_have_the_surface_dice(folders, tmp_path):
    evaluate(*folders, lesion_wise=2024, output=tmp_path / "scores.csv")
    header = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert {"lesion_surface_dice_05", "lesion_surface_dice_1"} <= set(header.split(","))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, {"convention": "brats2020"}),
        ({"convention": "plain", "tolerance": 2}, {"convention": "plain", "tolerance_mm": "2"}),
        ({"lesion_wise": 2024}, {"convention": "brats2020", "lesion_wise": "2024"}),
    ],
)
def test_the_last_columns_say_by_which_rules(folders, tmp_path, asked, said):
    evaluate(*folders, output=tmp_path / "scores.csv", **asked)
    for row in csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()):
        assert dict(list(row.items())[-len(said) :]) == said


def test_the_convention_decides_what_empties_give(tmp_path):
    put(tmp_path / "pred/BraTS-GLI-00001-000.nii.gz", (0, 2, 2, 0), note="brats2023")
    put(tmp_path / "ref/BraTS-GLI-00001-000_seg.nii.gz", (0, 2, 3, 0), note="brats2023")
    hd95 = {}
    for name in ("brats2020", "brats2023", "brats2024", "brats2025", "plain"):
        report = evaluate(tmp_path / "pred", tmp_path / "ref", convention=name)
        hd95[name] = report.summary()["ET"]["hausdorff95_mm"].mean
        assert report.decided_by_rule()["ET"] == [("BraTS-GLI-00001-000", "missed")]
        assert report.to_json_dict()["convention"] == name
    assert math.isnan(hd95.pop("plain"))
    assert hd95 == {"brats2020": 373.12866, "brats2023": 374, "brats2024": 337, "brats2025": 373}


def test_a_missing_prediction_counts_as_missed_if_asked(folders):
    assert len(evaluate(*folders).cases) == 2
    report = evaluate(*folders, missing_as_empty=True)
    assert [case[-1] for case in report.cases] == ["1", "2", "3"]
    last = report.official[-1].metrics
    assert (last.dice, last.hausdorff95_mm) == (0, 373.12866)


def test_markdown_has_means_deviations_and_intervals(folders, tmp_path):
    evaluate(*folders, markdown=tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("| region | n | Dice | HD95 (mm) |")
    # Both cases are the same: no deviation, and no doubt.
    assert lines[2].startswith("| WT | 2 | 0.909 ± 0.000 [0.909, 0.909] |")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"convention": "brats1999"}, "there is no convention 'brats1999'"),
        ({"lesion_wise": 2022}, "there are no lesion-wise rules of 2022"),
        ({"lesions": "l.csv"}, "a table of lesions needs the rules of a year"),
        ({"lesion_wise": 2023, "challenge": "MEN-RT"}, "BraTS 2023 had no lesion-wise scores"),
        ({"challenge": "LUNG"}, "there is no challenge 'LUNG'"),
    ],
)
def test_wrong_settings_are_errors_before_anything_is_read(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(tmp_path / "nowhere", tmp_path / "nowhere", **settings)


def test_bad_files_are_named_and_the_rest_is_scored(folders):
    predictions, references = folders
    for number in (4, 5, 6):
        put(references / f"BraTS20_Training_00{number}_seg.nii.gz", TRUTH)
    image = np.array(GUESS, dtype=np.float32).reshape(-1, 1, 1)
    image[0] = np.nan
    nib.save(nib.Nifti1Image(image, np.eye(4)), predictions / "BraTS20_Training_004.nii.gz")
    four = np.zeros((10, 1, 1, 4), dtype=np.uint8)
    nib.save(nib.Nifti1Image(four, np.eye(4)), predictions / "BraTS20_Training_005.nii.gz")
    put(predictions / "BraTS20_Training_006.nii.gz", GUESS, spacing=3)
    report = evaluate(predictions, references)
    assert [case[-1] for case in report.cases] == ["1", "2"]
    nan, channels, grid = report.failures
    assert "holds nan, which is not a label" in nan.message
    assert "it has 4 dimensions" in channels.message
    assert "does not lie on the grid of" in grid.message


def test_bootstrap_intervals_stay_within_what_was_seen():
    values = [0.2, 0.95, 0.97, 1.0]
    found = Statistics.of(values)
    assert found.ci95[1] > 1
    low, high = found.ci95_bootstrap
    assert min(values) <= low < found.mean < high <= max(values)
    assert Statistics.of(values).ci95_bootstrap == found.ci95_bootstrap
