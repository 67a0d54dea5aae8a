import csv
import json
import math
import time

import numpy as np
import pytest

from brats_cli.core.errors import (
    BratsWarning,
    CaseError,
    ConfigError,
    OutputExistsError,
    UnreadableFileError,
)
from brats_cli.core.score.comparison import compare, model_names
from brats_cli.core.score.paired import holm, permutation_p


def put(path, dice, *, hd95=None, regions=("WT",)):
    """Scores of cases A, B ... as `brats evaluate` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "region", "dice", "hausdorff95_mm", "reference_mm3"])
        for region in regions:
            for number, (case, value) in enumerate(dice.items()):
                distance = 1.0 if hd95 is None else hd95[number]
                rows.writerow([case, region, value, distance, 100])
    return path


def named(values):
    return dict(zip("ABCDEFGHIJKLMNOP", values, strict=False))


@pytest.fixture
def three(tmp_path):
    """In six cases a is better than b by 0.1 to 0.6, and c equals b."""
    b = [0.3] * 6
    a = [0.3 + 0.1 * step for step in range(1, 7)]
    return [
        put(tmp_path / "a.csv", named(a)),
        put(tmp_path / "b.csv", named(b)),
        put(tmp_path / "c.csv", named(b)),
    ]


def test_a_pair_of_models_by_hand(three):
    found = compare(three[:2], metric=["dice"])
    (each,) = found.differences
    assert (each.a, each.b, each.region, each.metric, each.n) == ("a", "b", "WT", "dice", 6)
    assert each.mean_difference == pytest.approx(0.35)
    assert (each.wins, each.ties, each.losses) == (6, 0, 0)
    # All six signed ranks are positive: 2 of the 2^6 ways are as extreme.
    assert each.p == pytest.approx(2 / 64)
    assert each.p_holm == each.p  # a single comparison
    low, high = each.ci95
    # The standard error of six values from 0.1 to 0.6 is sqrt(0.035 / 6) = 0.076, without n - 1
    # 0.070; a percentile interval is about twice that wide on either side.
    assert low == pytest.approx(0.35 - 1.96 * 0.070, abs=0.03)
    assert high == pytest.approx(0.35 + 1.96 * 0.070, abs=0.03)


def test_less_wins_where_a_distance_is_compared(tmp_path):
    a = put(tmp_path / "a.csv", named([0.5] * 3), hd95=[1, 2, 9])
    b = put(tmp_path / "b.csv", named([0.5] * 3), hd95=[2, 2, 3])
    dice, hd95 = compare([a, b]).differences
    assert (dice.wins, dice.ties, dice.losses, dice.p) == (0, 3, 0, 1)
    assert (hd95.wins, hd95.ties, hd95.losses) == (1, 1, 1)
    assert hd95.mean_difference == pytest.approx((-1 + 0 + 6) / 3)


def test_holm_corrects_for_all_comparisons():
    # Smallest first: 3 x 0.01, 2 x 0.03, 1 x 0.04 which may not be less than the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    corrected = holm([math.nan, 0.01])
    assert math.isnan(corrected[0])
    assert corrected[1] == 0.01


def test_models_are_ranked_by_their_mean_rank(three):
    found = compare(three, metric=["dice"])
    # In each case a is first, and b and c share 2 and 3.
    assert [(each.model, each.rank, each.score) for each in found.ranking] == [
        ("a", 1, 1.0),
        ("b", 2, 2.5),
        ("c", 2, 2.5),
    ]
    # Exchanging the ranks of a and b in any case makes the difference smaller: 1 way of 64.
    assert found.ranking[0].p_next == pytest.approx(1 / 64)
    assert found.ranking[1].p_next == 1
    assert math.isnan(found.ranking[2].p_next)
    # Holm: p of a against b and a against c are 2/64 of three comparisons, b against c has 1.
    assert [each.p_holm for each in found.differences] == pytest.approx([6 / 64, 6 / 64, 1])


def test_an_undefined_value_is_no_pair_and_the_worst_rank(tmp_path):
    a = put(tmp_path / "a.csv", {"A": 0.5, "B": ""})
    b = put(tmp_path / "b.csv", {"A": 0.4, "B": 0.1})
    found = compare([a, b], metric=["dice"])
    assert found.differences[0].n == 1
    # A: a before b; B: b before a.
    assert [each.score for each in found.ranking] == [1.5, 1.5]


def test_permutations_of_many_cases_are_drawn():
    # 30 differences of 1: only one way of 2^30 reaches the mean.
    assert permutation_p(np.ones(30), seed=0) == 1 / 10_001
    assert permutation_p(np.array([1.0, -1.0]), seed=0) == 3 / 4


def test_one_seed_gives_one_answer(tmp_path):
    draw = np.random.default_rng(0)
    paths = [
        put(
            tmp_path / name,
            {f"case{number}": value for number, value in enumerate(draw.random(40))},
        )
        for name in ("a.csv", "b.csv")
    ]
    first, again, other = (compare(paths, seed=seed).to_json_dict() for seed in (0, 0, 1))
    assert first == again
    assert first["pairs"][0]["ci95"] != other["pairs"][0]["ci95"]


def test_only_cases_of_all_models_are_compared_and_the_others_are_named(tmp_path):
    a = put(tmp_path / "a.csv", {"A": 0.5, "B": 0.6, "C": 0.7})
    b = put(tmp_path / "b.csv", {"B": 0.5, "C": 0.5, "D": 0.9})
    found = compare([a, b], metric=["dice"])
    assert found.cases == ("B", "C")
    assert found.missing == {"a": ("D",), "b": ("A",)}
    assert found.differences[0].mean_difference == pytest.approx(0.15)


def test_json_has_the_promised_keys_and_no_nan(three):
    content = json.loads(json.dumps(compare(three).to_json_dict(), allow_nan=False))
    assert content["format"] == "brats-comparison/1"
    assert set(content["pairs"][0]) == {
        *("a", "b", "region", "metric", "n", "mean_difference", "ci95", "p", "p_holm"),
        *("wins", "ties", "losses"),
    }
    assert {"model", "rank", "score"} <= set(content["ranking"][0])


def test_models_are_named_after_their_files(tmp_path):
    paths = [tmp_path / "unet/scores.csv", tmp_path / "vnet/scores.csv"]
    assert model_names(paths) == ["unet/scores", "vnet/scores"]
    with pytest.raises(ConfigError, match="the same file is given twice"):
        model_names([paths[0], paths[0]])


def test_one_model_is_nothing_to_compare(three):
    with pytest.raises(ConfigError, match="there is nothing to compare"):
        compare(three[:1])


def test_other_cases_other_regions_and_other_versions_are_named(tmp_path, three):
    other = put(tmp_path / "other.csv", {"X": 0.5, "Y": 0.5})
    with pytest.raises(CaseError, match=r"no case in common \(a: A, B, C and 3 more; other: X, Y"):
        compare([three[0], other])
    two = put(tmp_path / "two.csv", named([0.5] * 6), regions=("WT", "TC"))
    with pytest.raises(CaseError, match=r"two\.csv has other regions of case A than .*a\.csv"):
        compare([three[0], two])
    with pytest.raises(ConfigError, match=r"a\.csv has no metric 'lesion_dice'"):
        compare(three, metric=["lesion_dice"])
    with pytest.raises(ConfigError, match="no metric 'dcie'") as caught:
        compare(three, metric=["dcie"])
    assert caught.value.hint == "did you mean 'dice'?"
    with pytest.raises(ConfigError, match="no metric 'reference_mm3'"):  # larger is not better
        compare(three, metric=["reference_mm3"])


def with_rules(path, **rules):
    """The file again, with further columns at the end."""
    head, *lines = path.read_text().splitlines()
    more = [",".join([head, *rules])] + [",".join([line, *rules.values()]) for line in lines]
    path.write_text("\n".join([*more, ""]))
    return path


def test_scores_of_two_conventions_are_not_compared(three):
    a, b = (
        with_rules(path, convention=name)
        for path, name in zip(three, ("brats2023", "brats2020"), strict=False)
    )
    with pytest.raises(ConfigError) as caught:
        compare([a, b])
    assert str(caught.value) == (
        f"{b} and {a} were scored by different rules: convention brats2020 and brats2023"
    )
    assert caught.value.hint == "score all models with the same options of brats evaluate"


def test_a_rule_of_a_metric_that_is_not_compared_does_not_matter(three):
    a = with_rules(three[0], convention="plain")
    b = with_rules(three[1], convention="plain", lesion_wise="2023", tolerance_mm="2")
    assert len(compare([a, b]).differences) == 2
    for path, numbers in ((a, "1"), (b, "0.5")):
        text = path.read_text().replace("dice,", "surface_dice,lesion_dice,", 1)
        path.write_text(text.replace("WT,", f"WT,{numbers},"))
    with pytest.raises(ConfigError, match=r"rules: tolerance_mm 2 and not given"):
        compare([a, b], metric=["surface_dice"])
    with pytest.raises(ConfigError, match=r"rules: lesion_wise 2023 and not given"):
        compare([a, b], metric=["lesion_dice"])


def test_an_older_file_without_its_convention_is_compared_with_a_warning(three):
    stated = with_rules(three[1], convention="brats2020")
    with pytest.warns(BratsWarning, match=r"no column of .*a\.csv says .* taken to be brats2020"):
        assert len(compare([three[0], stated]).differences) == 2


def test_a_file_of_lines_scored_by_two_conventions_is_named(three):
    path = with_rules(three[0], convention="brats2020")
    path.write_text(path.read_text() + "G,WT,0.5,1.0,100,plain\n")
    with pytest.raises(UnreadableFileError, match=r"line 8 .*convention plain.*brats2020"):
        compare([path, three[1]])


def test_models_scored_against_other_references_are_named(three):
    three[1].write_text(three[1].read_text().replace("B,WT,0.3,1.0,100", "B,WT,0.3,1.0,101"))
    with pytest.warns(BratsWarning, match=r"different references: their volumes differ in B$"):
        compare(three[:2])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not begin with the columns case and region"),
        ("model,dice\na,1\n", "does not begin with the columns case and region"),
        ("case,region,dice\n", "it has no scores"),
        ("case,region,dice\nA,WT\n", "line 2 is cut short"),
        ("case,region,dice\nA,WT,good\n", "line 2 has 'good' for dice"),
        ("case,region,dice\nA,WT,1\nA,WT,1\n", "line 3 has region WT of a case again"),
    ],
)
def test_a_csv_that_is_not_ours_is_named_with_the_line(tmp_path, three, text, reason):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UnreadableFileError, match=reason):
        compare([three[0], path])


def test_a_missing_file_and_an_image_are_two_lines(tmp_path, three):
    with pytest.raises(UnreadableFileError, match=r"nowhere\.csv"):
        compare([three[0], tmp_path / "nowhere.csv"])
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UnreadableFileError, match=r"image\.csv"):
        compare([three[0], tmp_path / "image.csv"])


def test_a_plot_is_drawn_and_not_replaced(tmp_path, three):
    path = tmp_path / "compare.png"
    compare(three, output=path)
    assert path.read_bytes()[1:4] == b"PNG"
    with pytest.raises(OutputExistsError):
        compare(three, output=path)


@pytest.mark.slow
def test_1251_cases_are_compared_in_five_seconds(tmp_path):
    draw = np.random.default_rng(0)
    paths = []
    for name in ("a", "b", "c"):
        dice = {f"case{number}": value for number, value in enumerate(draw.random(1251))}
        paths.append(put(tmp_path / f"{name}.csv", dice, regions=("WT", "TC", "ET")))
    start = time.process_time()
    assert compare(paths).differences[0].n == 1251
    assert time.process_time() - start < 5
