import hashlib
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import REAL, needs_real, save_nifti, write_case

from brats_cli.core.data import splitting
from brats_cli.core.data.cases import Case
from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import SCHEMES, write_labels
from brats_cli.core.data.splitting import (
    make_split,
    parse_ratios,
    select,
    split,
    with_patients,
)
from brats_cli.core.data.strata import table_strata, tumour_strata
from brats_cli.core.errors import (
    BratsWarning,
    LabelError,
    OutputError,
    SplitError,
    UnreadableFileError,
)
from brats_cli.core.images.nifti import LabelCount, read_labels


def visits(patients, *, several=0, start=0):
    """Cases of so many patients, the first `several` of whom were seen twice."""
    ids = [
        f"BraTS-GLI-{patient:05}-{visit:03}"
        for patient in range(start, start + patients)
        for visit in range(2 if patient - start < several else 1)
    ]
    return [Case(case_id, case_id[:-4], {}, None, SCHEMES["brats2023"]) for case_id in ids]


def assign(cases, strata=None, **kwargs):
    strata = strata or {case.id: "all" for case in cases}
    return make_split(cases, data=Path("data"), strata=strata, **kwargs)


def random_strata(cases):
    """Six kinds of cases, the rarest of which is one in twenty."""
    generator = np.random.default_rng(0)
    sizes = generator.choice(["small", "medium", "large"], len(cases))
    enhancing = generator.choice(["ET", "no ET"], len(cases), p=[0.85, 0.15])
    return {case.id: f"{s}, {e}" for case, s, e in zip(cases, sizes, enhancing, strict=True)}


def patients_of(ids):
    return {case_id[:-4] for case_id in ids}


# --- a thousand cases --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand():
    cases = visits(700, several=300)
    assert len(cases) == 1000
    return cases


@pytest.fixture(scope="module")
def five_folds(thousand):
    return assign(thousand, random_strata(thousand), folds=5)


def test_no_patient_is_on_two_sides(five_folds):
    for fold in five_folds.folds:
        sides = [patients_of(ids) for ids in (fold.train, fold.val, five_folds.test)]
        assert len(set.union(*sides)) == sum(map(len, sides)) == 700


def test_every_case_validates_once_or_tests(five_folds, thousand):
    everywhere = [case_id for fold in five_folds.folds for case_id in fold.val]
    assert sorted((*everywhere, *five_folds.test)) == sorted(case.id for case in thousand)
    for fold in five_folds.folds:
        assert len(fold.train) + len(fold.val) + len(five_folds.test) == 1000


def test_every_fold_has_its_share_of_every_stratum(five_folds, thousand):
    strata = random_strata(thousand)
    validated = [case_id for fold in five_folds.folds for case_id in fold.val]
    overall = Counter(strata[case_id] for case_id in validated)
    # Folds come out less even before scikit-learn 1.8, which Python 3.10 does not have.
    off = 2 if tuple(map(int, version("scikit-learn").split(".")[:2])) >= (1, 8) else 3
    for fold in five_folds.folds:
        assert len(fold.val) == pytest.approx(len(validated) / 5, abs=off)
        sizes = Counter(strata[case_id] for case_id in fold.val)
        for kind, number in overall.items():
            assert sizes[kind] / len(fold.val) == pytest.approx(number / len(validated), abs=0.05)


def test_the_same_seed_gives_the_same_file_and_another_does_not(tmp_path, thousand, five_folds):
    strata = random_strata(thousand)
    # The order in which cases are found says nothing either.
    for name, part in {
        "first": five_folds,
        "again": assign(thousand[::-1], strata, folds=5),
        "other": assign(thousand, strata, folds=5, seed=1),
    }.items():
        part.save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert (tmp_path / "first").read_bytes() != (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_added_cases_move_no_old_one_out_of_the_test_part(thousand, seed):
    before = assign(thousand[::3], folds=2, seed=seed)
    after = assign([*thousand, *visits(500, several=100, start=5000)], folds=2, seed=seed)
    assert set(before.test) <= set(after.test)
    # Nor into it, whatever they are.
    assert set(after.test) & {case.id for case in thousand[::3]} == set(before.test)


def test_later_visits_join_their_patients():
    first = assign(visits(100))
    later = assign(visits(100, several=100))
    assert patients_of(later.test) == patients_of(first.test)


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_near_the_ratios(seed):
    split = assign(visits(200), ratios=(70.0, 15.0, 15.0), seed=seed)
    assert len(split.test) == pytest.approx(30, abs=3)
    assert len(split.folds[0].val) == pytest.approx(30, abs=3)


@pytest.mark.parametrize("patients", range(3, 15))
def test_a_few_patients_leave_no_part_empty(patients):
    for seed in range(5):
        split = assign(visits(patients), seed=seed)
        assert min(len(split.test), len(split.folds[0].val), len(split.folds[0].train)) >= 1


def test_a_ratio_of_zero_leaves_the_test_part_out():
    split = assign(visits(20), ratios=(80.0, 20.0, 0.0))
    assert split.test == ()
    assert len(split.folds[0].val) == 4


def test_too_few_patients_are_an_error():
    with pytest.raises(SplitError, match="4 patients are too few for 5 parts and a test part"):
        assign(visits(4, several=4), folds=5)
    with pytest.raises(SplitError, match="2 patients are too few"):
        assign(visits(2))


def test_visits_may_be_split_up_on_request():
    cases = visits(20, several=20)
    split = assign(cases, grouped=False, folds=2)
    sides = [patients_of(ids) for ids in (split.folds[0].val, split.folds[1].val)]
    assert sides[0] & sides[1]
    assert not split.grouped


def test_rare_kinds_are_spread_all_the_same():
    cases = visits(60)
    strata = {case.id: "rare" if number < 4 else "common" for number, case in enumerate(cases)}
    split = assign(cases, strata, folds=4, ratios=(85.0, 15.0, 0.0))
    assert [sum(strata[i] == "rare" for i in fold.val) for fold in split.folds] == [1, 1, 1, 1]


def test_strata_smaller_than_the_number_of_folds_are_split_too():
    cases = visits(12)
    strata = {case.id: str(number % 4) for number, case in enumerate(cases)}  # four of three
    split = assign(cases, strata, folds=6, ratios=(85.0, 15.0, 0.0))
    for fold in split.folds:
        assert 1 <= len(fold.val) <= 3
        assert len({strata[case_id] for case_id in fold.val}) == len(fold.val)


@pytest.mark.parametrize(
    ("text", "ratios"), [("70/15/15", (70, 15, 15)), ("0.8/0.2/0", (0.8, 0.2, 0))]
)
def test_ratios_are_three_numbers(text, ratios):
    assert parse_ratios(text) == ratios


@pytest.mark.parametrize("text", ["70/30", "a/b/c", "70/0/30", "0/50/50", "70/15/-15", "1/1/inf"])
def test_other_ratios_are_refused(text):
    with pytest.raises(SplitError, match=f"--ratios {text} is not of the form training/val"):
        parse_ratios(text)


# --- strata ------------------------------------------------------------------------------------


def in_scheme(name, ids):
    return [Case(case_id, case_id, {}, None, SCHEMES[name]) for case_id in ids]


def test_tumours_are_told_apart_by_size_and_enhancement():
    voxels = {"a": 10, "b": 20, "c": 30, "d": 40, "e": 50, "f": 60}
    counts = {case: LabelCount({0: 9, 2: n}, 1.0) for case, n in voxels.items()}
    counts["f"] = LabelCount({2: 30, 3: 30}, 1.0)
    strata = tumour_strata(in_scheme("brats2023", counts), counts)
    # Terciles of 10, 20, ... 60 lie at 26.7 and 43.3.
    assert strata == {
        "a": "small, no ET", "b": "small, no ET", "c": "medium, no ET",
        "d": "medium, no ET", "e": "large, no ET", "f": "large, ET",
    }  # fmt: skip


def test_sizes_are_in_millimetres():
    fine = LabelCount({2: 80}, 0.125)  # 10 mm3
    coarse = LabelCount({2: 20}, 1.0)
    coarser = LabelCount({2: 20}, 8.0)
    counts = {"fine": fine, "coarse": coarse, "coarser": coarser}
    strata = tumour_strata(in_scheme("brats2020", counts), counts)
    assert [each.split(",")[0] for each in strata.values()] == ["small", "medium", "large"]


def table(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_a_column_of_words_is_taken_as_it_is(tmp_path):
    path = table(
        tmp_path, "Age,Brats20ID,Grade\n60,BraTS-GLI-00000-000,HGG\n61,BraTS-GLI-00001-000,LGG\n"
    )
    strata = table_strata(f"{path}:Grade", visits(3))
    assert list(strata.values()) == ["HGG", "LGG", "unknown"]


def test_a_table_of_patients_serves_all_their_visits(tmp_path):
    path = table(tmp_path, "patient;site\nBraTS-GLI-00000;A\nBraTS-GLI-00001;B\n")
    strata = table_strata(f"{path}:site", visits(2, several=1))
    assert list(strata.values()) == ["A", "A", "B"]


def test_a_column_of_numbers_counts_by_terciles(tmp_path):
    # survival_info.csv of BraTS 2020 has "ALIVE (361 days later)" among its numbers.
    rows = [f"BraTS-GLI-{n:05}-000,{100 * n}" for n in range(9)]
    rows += ["BraTS-GLI-00009-000,ALIVE (361 days later)"]
    path = table(tmp_path, "id,Survival_days\n" + "\n".join(rows))
    strata = table_strata(f"{path}:Survival_days", visits(10))
    # Terciles of 0, 100, ... 800 lie at 266.7 and 533.3.
    assert list(strata.values()) == ["low"] * 3 + ["middle"] * 3 + ["high"] * 3 + ["unknown"]


def test_a_few_numbers_are_codes(tmp_path):
    path = table(tmp_path, "id,grade\nBraTS-GLI-00000-000,2\nBraTS-GLI-00001-000,4\n")
    assert list(table_strata(f"{path}:grade", visits(2)).values()) == ["2", "4"]


@pytest.mark.parametrize(
    ("values", "are_numbers"),
    [
        (range(6), False),  # codes, such as of a site
        (range(7), True),
        ([*range(8), "x", "x"], True),  # four fifths
        ([*range(7), "x", "x"], False),
    ],
)
def test_numbers_are_more_than_six_and_nearly_all_of_a_column(tmp_path, values, are_numbers):
    rows = [f"BraTS-GLI-{n:05}-000,{value}" for n, value in enumerate(values)]
    path = table(tmp_path, "id,x\n" + "\n".join(rows))
    strata = table_strata(f"{path}:x", visits(len(values)))
    assert ("low" in strata.values()) is are_numbers
    assert (strata["BraTS-GLI-00000-000"] == "0") is not are_numbers


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("table.csv:Grad", r"table.csv has no column 'Grad'"),
        ("table.csv:", r"--stratify .*table.csv: is not of the form TABLE.csv:COLUMN"),
        ("table.csv", r"is not of the form TABLE.csv:COLUMN|cannot read"),
    ],
)
def test_a_table_that_does_not_serve_is_named(tmp_path, option, message):
    table(tmp_path, "id,Grade\nBraTS-GLI-00000-000,HGG\n")
    with pytest.raises((SplitError, UnreadableFileError), match=message):
        table_strata(f"{tmp_path}/{option}", visits(2))


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_ids_of_a_table_may_differ_in_upper_and_lower_case(tmp_path, change):
    first, second = visits(2)
    path = table(tmp_path, f"id,Grade\n{change(first.id)},HGG\n{change(second.patient)},LGG\n")
    assert table_strata(f"{path}:Grade", [first, second]) == {first.id: "HGG", second.id: "LGG"}


def test_a_table_of_other_ids_is_named(tmp_path):
    path = table(tmp_path, "id,Grade\nsomebody,HGG\n")
    with pytest.raises(SplitError, match=r"no column of .*table.csv holds the case ids"):
        table_strata(f"{path}:Grade", visits(2))


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"id,Grade\n"])
def test_a_table_without_rows_is_named(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises((SplitError, UnreadableFileError), match=r"table.csv"):
        table_strata(f"{tmp_path}/table.csv:Grade", visits(2))


# --- which cases -------------------------------------------------------------------------------


def test_patterns_choose_cases():
    cases = visits(12)
    chosen = select(cases, ["*-0000*", "BraTS-GLI-00011-000"], ["*-00003-*"])
    assert [case.id[10:15] for case in chosen] == [
        "00000", "00001", "00002", "00004", "00005", "00006", "00007", "00008", "00009", "00011",
    ]  # fmt: skip


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(SplitError, match="no case id matches 'BraTS2021_'") as caught:
        select(visits(2), [], ["BraTS2021_"])
    assert caught.value.hint.startswith("case ids look like BraTS-GLI-00000-000")


# --- data sets on disk -------------------------------------------------------------------------


def write(folder, case_id, *, seed, labels=(0, 1, 2, 3), lacks=()):
    """A case of random voxels; the same seed gives the same image, the labels as many voxels."""
    data = np.zeros((6, 6, 6), np.uint8)
    data.ravel()[: len(labels) + seed] = np.resize(labels, len(labels) + seed)
    write_case(folder, case_id, None if "seg" in lacks else data, seed=seed, lacks=lacks)


@pytest.fixture
def data(tmp_path):
    for number in range(6):
        write(tmp_path, f"BraTS-GLI-{number:05}-000", seed=number)
    return tmp_path


def test_a_data_set_is_split_with_its_schemes(data):
    write(data, "BraTS2021_00000", seed=20, labels=(0, 1, 2, 4))
    write(data, "BraTS2021_00001", seed=21, lacks=["seg"])
    seen = []
    made = split(data, on_progress=lambda done, total: seen.append((done, total)))
    assert made.unlabelled == ("BraTS2021_00001",)
    assert len(made.split.ids()) == len(made.strata) == 7
    assert made.split.cases()["BraTS2021_00000"].scheme.name == "brats2020"
    assert made.split.cases()["BraTS-GLI-00000-000"].scheme.name == "brats2023"
    assert seen == [(done, 7) for done in range(1, 8)]


def test_a_case_under_two_ids_is_an_error_that_names_both(data):
    write(data, "BraTS-GLI-00099-000", seed=2)
    with pytest.raises(SplitError, match=r"00002-000 and .*00099-000 hold the same voxels: .*t1"):
        split(data)
    split(data, exclude=["*-00099-*"])


def test_a_case_under_two_ids_is_found_in_another_years_labels(data):
    # The same images zipped again, with 4 for 3; 2021's cases came back in 2023 like this.
    write(data, "BraTS2021_00099", seed=2, labels=(0, 1, 2, 4))
    for path in (data / "BraTS2021_00099").glob("*_t*.nii.gz"):
        image = nib.load(path)
        image.header["descrip"] = b"another header"
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    with pytest.raises(SplitError, match=r"BraTS-GLI-00002-000 and BraTS2021_00099 hold the same"):
        split(data)


def test_a_case_under_two_ids_is_found_whatever_its_labels(data):
    write(data, "BraTS-GLI-00099-000", seed=2)
    labels = data / "BraTS-GLI-00099-000/BraTS-GLI-00099-000_seg.nii.gz"
    save_nifti(labels, np.ones((6, 6, 6), np.uint8))
    with pytest.raises(SplitError, match="hold the same voxels"):
        split(data)


def test_equally_large_tumours_are_no_duplicates(tmp_path):
    for number in range(4):
        write(tmp_path, f"case_{number}", seed=number, labels=(0, 1, 2, 4))
        labels = tmp_path / f"case_{number}/case_{number}_seg.nii.gz"
        save_nifti(labels, np.full((6, 6, 6), 4, np.uint8))
    assert len(split(tmp_path, labels="brats2020").split.ids()) == 4


def test_incomplete_cases_are_listed(data):
    write(data, "BraTS-GLI-00007-000", seed=7, lacks=["t1", "flair"])
    with pytest.raises(SplitError, match=r"BraTS-GLI-00007-000 has no t1, flair") as caught:
        split(data)
    assert "--exclude" in caught.value.hint


def test_data_without_labels_cannot_be_split(tmp_path):
    write(tmp_path, "a", seed=0, lacks=["seg"])
    with pytest.raises(SplitError, match=r"no case in .* has a label map"):
        split(tmp_path)


def test_a_broken_label_map_is_named(data):
    path = data / "BraTS-GLI-00003-000/BraTS-GLI-00003-000_seg.nii.gz"
    save_nifti(path, np.full((6, 6, 6), 2.9))
    with pytest.raises(LabelError, match=r"00003-000_seg.nii.gz holds 2.9,"):
        split(data)


@pytest.mark.real
@needs_real
def test_the_real_cases_are_split_sensibly():
    made = split(REAL / "cases")
    fold = made.split.folds[0]
    assert [len(fold.train), len(fold.val), len(made.split.test)] == [8, 2, 2]
    assert sum("no ET" in stratum for stratum in made.strata.values()) == 2
    assert {case.id for case in find_cases(REAL / "cases")} == set(made.split.ids())


# --- any ids, and few cases --------------------------------------------------------------------


def named(*ids):
    return [Case(case_id, case_id, {}, None, SCHEMES["brats2020"]) for case_id in ids]


# DICOM UIDs, time stamps, and numbers in steps of a Fibonacci number, which the golden ratio's
# multiples crowd together.
@pytest.mark.parametrize(
    "ids",
    [
        [f"1.3.6.1.4.1.14519.5.2.1.3023.4017.24619983625988148305559663{n:05}" for n in range(40)],
        [f"2019031512345{137 * n + 11:05}" for n in range(40)],
        [f"P{144 * n}" for n in range(40)],
        [f"P{2584 * n}" for n in range(40)],
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_ids_of_any_kind_have_a_test_part_near_the_ratio(ids, seed):
    # 15 % of 40 are 6; no more than its square root off.
    assert 4 <= len(assign(named(*ids), seed=seed).test) <= 8


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("seed", range(10))
def test_few_cases_leave_no_part_empty(count, seed):
    split = assign(named(*(f"c{n}" for n in range(count))), seed=seed)
    assert min(len(split.folds[0].train), len(split.folds[0].val), len(split.test)) >= 1
    folds = assign(named(*(f"c{n}" for n in range(count))), seed=seed, folds=count - 1).folds
    assert [len(fold.val) for fold in folds] == [1] * (count - 1)


def test_patients_are_told_by_an_expression_or_a_table(tmp_path):
    ids = ["site1_A_v1", "site1_A_v2", "site2_B_v1"]
    cases = named(*ids)
    assert [c.patient for c in with_patients(cases, r"site\d+")] == ["site1", "site1", "site2"]
    assert [c.patient for c in with_patients(cases, r"(site\d)_(\w)")] == [
        "site1_A", "site1_A", "site2_B"
    ]  # fmt: skip
    table = tmp_path / "t.csv"
    table.write_text("id,who\n" + "".join(f"{i},{i[6]}\n" for i in ids))
    assert [c.patient for c in with_patients(cases, f"{table}:who")] == ["A", "A", "B"]
    with pytest.raises(SplitError, match=r"gives no patient for site2_B_v1") as caught:
        with_patients(cases, "site1")
    assert "--exclude" in caught.value.hint
    with pytest.raises(SplitError, match=r"--patients \( is not a regular expression"):
        with_patients(cases, "(")


def test_names_that_look_like_visits_are_kept_together_with_a_warning(tmp_path):
    for number, case_id in enumerate(f"{p}_visit{v}" for p in "ABCD" for v in (1, 2)):
        labels = np.zeros((6, 6, 6), np.uint8)
        labels[2, 2, : 2 + number % 3] = 1
        labels[3, 3, 3:5] = 2, 4
        write_case(tmp_path, case_id, labels, seed=number)
    with pytest.warns(BratsWarning, match=r"4 patients seem to have several visits, such as A_v"):
        made = split(tmp_path)
    assert len(made.split.test) == 2
    assert {case_id[0] for case_id in made.split.test}.isdisjoint(
        case_id[0] for case_id in made.split.folds[0].train
    )


@pytest.mark.parametrize(
    ("names", "such"),
    [
        ("P{}_scan{}", "P3_scan1, P3_scan2"),
        ("PX{}-2019010{}", "PX3-20190101, PX3-20190102"),
        ("P{}-V0{}", "P3-V01, P3-V02"),
        ("P{}_month {}", "P3_month 1, P3_month 2"),
    ],
)
def test_names_that_may_be_of_one_patient_are_warned_about(names, such):
    ids = [names.format(p, v) for p in (3, 4, 5) for v in (1, 2)]
    with pytest.warns(BratsWarning, match=f"ids such as {such} differ only at their end") as said:
        splitting._warn_of_visits([Case(each, each, {}, None, None) for each in ids])
    assert "say so with --patients" in str(said[0].message)


def test_letters_and_words_at_the_end_of_ids_count_as_well():
    for ids in (["S3a", "S3b", "S4a", "S4b"], ["P3_pre", "P3_post", "P4_pre", "P4_post"]):
        with pytest.warns(BratsWarning, match=f"ids such as {ids[0]}, {ids[1]} differ only"):
            splitting._warn_of_visits([Case(each, each, {}, None, None) for each in ids])


@pytest.mark.parametrize(
    "ids",
    [
        [f"case_{number}" for number in range(20)],
        [f"site{site}_{number}" for site in "AB" for number in range(20)],
        ["A", "B", "C_1", "C_2", "D", "E", "F"],  # two of seven
        [f"BraTS-GLI-{p:05}-00{v}" for p in range(3) for v in (0, 1)],  # of a release
        ["A"],
    ],
)
def test_numberings_of_cases_are_no_visits(ids):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        splitting._warn_of_visits([Case(each, each, {}, None, None) for each in ids])
    assert given == []


def test_a_split_is_never_written_under_the_name_of_another_format(data, tmp_path):
    with pytest.raises(OutputError, match=r"s.json: it is written in the format .yaml") as caught:
        split(data, output=tmp_path / "s.json")
    assert caught.value.hint == "end its name in .yaml or .yml"


def test_predictions_are_never_an_experts_label_maps(data):
    path = data / "BraTS-GLI-00003-000/BraTS-GLI-00003-000_seg.nii.gz"
    volume = read_labels(path)
    scheme = SCHEMES["brats2023"]
    write_labels(path, volume.data, volume.grid, scheme, predicted=True, overwrite=True)
    with pytest.raises(LabelError, match=r"00003-000_seg.nii.gz was made by brats predict"):
        split(data)


@pytest.mark.parametrize(
    ("patient", "hashed", "number"),
    [("P123456789", "0/P", 123456789), ("P1234567890", "0/P1234567890", 0)],
)
def test_which_patients_are_test_cases_never_changes(patient, hashed, number):
    """By the formula of its docstring: a change would move patients between training and test.

    Up to nine digits count patients; more are a date or a UID, which is hashed whole.
    """
    digest = hashlib.sha256(hashed.encode()).digest()
    golden = 0x9E3779B97F4A7C15  # 2^64 / 1.6180339887...
    place = int.from_bytes(digest[:8], "big") + number * golden
    assert splitting._place(0, patient) == place % 2**64
