import json
from functools import partial

import pytest
from helpers import assert_refused, brats

compare = partial(brats, "compare")

ROWS = {
    "a": {"A": 0.9, "B": 0.8, "C": 0.7},
    "b": {"A": 0.8, "B": 0.8, "C": 0.5},
}


@pytest.fixture
def two(tmp_path):
    paths = []
    for model, dice in ROWS.items():
        path = tmp_path / f"{model}.csv"
        lines = [f"{case},WT,{value},{10 * (1 - value):.1f}" for case, value in dice.items()]
        path.write_text("\n".join(["case,region,dice,hausdorff95_mm", *lines, ""]))
        paths.append(path)
    return paths


def test_the_tables_show_pairs_and_ranking_within_80_columns(two):
    result = compare(*two)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "a minus b"
    # (0.1 + 0 + 0.2) / 3; one case is tied. Two signed ranks, both positive: p = 2/4.
    assert lines[2].split()[:4] == ["WT", "Dice", "3", "0.100"]
    assert lines[2].split()[-1] == "2/1/0"
    assert lines[5] == "ranking over 3 cases"
    # a has ranks 1, 1.5 and 1 in both metrics.
    assert lines[7].split()[:3] == ["1", "a", "1.167"]


def test_json_and_a_plot(two, tmp_path):
    result = compare(*two, "--json", "-o", tmp_path / "compare.png")
    assert json.loads(result.stdout)["format"] == "brats-comparison/1"
    assert (tmp_path / "compare.png").read_bytes()[1:4] == b"PNG"
    assert f"wrote {tmp_path / 'compare.png'}" in result.stderr


def test_cases_that_a_model_lacks_are_named_on_stderr(two):
    two[1].write_text(two[1].read_text().replace("C,WT", "D,WT"))
    result = compare(*two)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "a lacks 1 case, which is left out: D",
        "b lacks 1 case, which is left out: C",
    ]


def test_another_metric_and_a_misspelt_one(two):
    assert compare(*two, "--metric", "dice").exit_code == 0
    result = compare(*two, "--metric", "dcie")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[1] == " hint: did you mean 'dice'?"


def test_one_file_is_two_lines(two):
    result = compare(two[0])
    assert_refused(result, "there is nothing to compare", "give the scores of two models or more")


def test_two_conventions_are_two_lines(two):
    for path, name in zip(two, ("brats2020", "plain"), strict=True):
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([f"{head},convention", *(f"{line},{name}" for line in lines)]))
    result = compare(*two)
    assert_refused(
        result,
        f"{two[1]} and {two[0]} were scored by different rules: convention plain and brats2020",
        "score all models with the same options of brats evaluate",
    )
