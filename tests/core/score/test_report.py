import csv
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from brats_cli.core.data.labels import REGION_COLOURS
from brats_cli.core.errors import OutputExistsError
from brats_cli.core.score.evaluation import evaluate
from brats_cli.core.score.metrics import score
from brats_cli.core.score.pairing import match
from brats_cli.core.score.plots import picture
from brats_cli.core.score.report import worst_cases, write_page, write_plots
from brats_cli.core.score.scores import CaseScore, Report

pytestmark = pytest.mark.slow  # each draws plots

SHAPE = (20, 24, 16)


def put(path, data, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1, 1, 1]) if affine is None else affine), path)
    return path


def tumour(shift=0, *, et=True):
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[4 + shift : 12 + shift, 6:16, 4:12] = 2
    labels[6 + shift : 10 + shift, 8:14, 6:10] = 1
    if et:
        labels[7 + shift : 9 + shift, 9:12, 6:10] = 4
    return labels


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Seven cases with scans; the prediction is the further off the higher the number."""
    root = tmp_path_factory.mktemp("report")
    scan = np.random.default_rng(0).integers(1, 900, SHAPE, dtype=np.int16)
    for number in range(7):
        case = f"BraTS2021_{number:05}"
        for modality in ("t1", "t1ce", "t2", "flair"):
            put(root / f"data/{case}/{case}_{modality}.nii.gz", scan)
        put(root / f"data/{case}/{case}_seg.nii.gz", tumour(et=number != 6))
        put(root / f"pred/{case}.nii.gz", tumour(number, et=number != 6))
    return evaluate(root / "pred", root / "data", lesion_wise=2023, workers=0)


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    """The page of these cases, as text."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(evaluated, path)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_one_file_that_asks_nothing_of_the_network(page):
    shown = Page(page)
    assert shown.addresses
    assert all(address.startswith("data:image/png;base64,") for address in shown.addresses)
    assert not {"link", "iframe", "object"} & set(shown.tags)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page
    # Distributions, Dice by volume, Bland-Altman, and the five worst cases.
    assert shown.tags.count("img") == 3 + 5


def test_the_worst_five_come_first_with_their_numbers(evaluated, page):
    # Shifted by s, WT (8 wide) has Dice 1 - s/8, TC (4) 1 - s/4, ET (2) 1 - s/2, not below 0. The
    # sums of 1 to 6 are 2.125, 1.25, 0.875, 0.5, 0.375, and 0.25 + 0 + 1 where there is no ET.
    assert [case[-1] for case in worst_cases(evaluated)] == ["5", "4", "3", "2", "6"]
    words = "".join(Page(page).words)
    assert words.index("1. BraTS2021_00005") < words.index("2. BraTS2021_00004")
    assert "ETboth emptyBraTS2021_00006" in words
    assert "brats2020" in words


def test_a_case_id_is_text_in_the_page_and_no_formula_in_the_csv(tmp_path):
    mask = np.ones((2, 2, 2), dtype=bool)
    evil, formula = "<script>alert(1)</script>&\"'", "=cmd|' /C calc'!A0"
    report = Report(
        tuple(
            CaseScore(case, "WT", score(mask, mask, (1.0, 1.0, 1.0))) for case in (evil, formula)
        ),
        without_reference=("<b>lone</b>",),
    )
    write_page(report, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("script") == 1  # the page's own
    assert "b" not in page.tags[page.tags.index("p") : page.tags.index("div")]
    assert any(evil in word for word in page.words)
    report.to_csv(tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == [evil, f"'{formula}"]


def test_plots_are_written_and_not_replaced(evaluated, tmp_path):
    write_plots(evaluated, tmp_path / "plots")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == [
        *("dice_by_volume.png", "distributions.png", "volumes.png"),
        *(f"worst_{number}.png" for number in range(1, 6)),
    ]
    with pytest.raises(OutputExistsError):
        write_plots(evaluated, tmp_path / "plots")
    write_plots(evaluated, tmp_path / "plots", overwrite=True)


def test_the_plots_of_an_earlier_larger_evaluation_go(evaluated, tmp_path):
    plots, pair = tmp_path / "plots", evaluated.pairs[0]
    write_plots(evaluated, plots)
    (plots / "mine.png").touch()
    before = (plots / "worst_1.png").read_bytes()
    evaluate(pair.predicted, pair.reference, plots=plots, workers=0, overwrite=True)
    names = sorted(path.name for path in plots.iterdir())
    # One case is the worst case.
    assert names == [
        *("dice_by_volume.png", "distributions.png", "mine.png", "volumes.png", "worst_1.png")
    ]
    assert (plots / "worst_1.png").read_bytes() != before


def test_a_case_without_scans_is_drawn_on_black(tmp_path):
    put(tmp_path / "ref/BraTS2021_00000_seg.nii.gz", tumour())
    put(tmp_path / "pred/BraTS2021_00000.nii.gz", tumour(1))
    report = evaluate(tmp_path / "pred", tmp_path / "ref")
    (pair,) = match(tmp_path / "pred", tmp_path / "ref").pairs
    found = picture(pair, report.scoring)
    assert isinstance(found.figure, Figure)
    assert len(found.figure.axes) == 1
    # In the colours and lines of brats view: a dashed reference, a solid prediction.
    (legend,) = found.figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["WT", "TC", "ET", "reference", "prediction"]
    lines = legend.get_lines()
    assert [line.get_color() for line in lines[:3]] == [REGION_COLOURS[name] for name in words[:3]]
    assert [line.get_linestyle() for line in lines[3:]] == ["--", "-"]
    # WT, TC and ET of the reference, then of the prediction.
    drawn = [each for each in found.figure.axes[0].collections if len(each.get_edgecolor())]
    assert [to_hex(each.get_edgecolor()[0]).upper() for each in drawn] == [
        REGION_COLOURS[name] for name in (*words[:3], *words[:3])
    ]
    assert [each.get_linestyle()[0][1] is None for each in drawn] == [False] * 3 + [True] * 3


def test_the_slice_is_the_one_with_most_errors_whatever_the_axes(tmp_path):
    truth, guess = tumour(), tumour()
    guess[:, :, 9] = 0  # slice 9 of 16 is missed, at 9 mm
    for name, order, affine in (
        ("standard", (0, 1, 2), np.diag([1.0, 1, 1, 1])),
        ("sagittal", (2, 0, 1), np.eye(4)[:, [2, 0, 1, 3]]),
    ):
        folder = tmp_path / name
        put(folder / "ref/BraTS2021_00000_seg.nii.gz", truth.transpose(order), affine)
        put(folder / "pred/BraTS2021_00000.nii.gz", guess.transpose(order), affine)
        (pair,) = match(folder / "pred", folder / "ref").pairs
        assert picture(pair, Report(()).scoring).height_mm == 9


def test_a_page_of_one_case_of_one_region_and_of_empty_masks(tmp_path):
    nothing = np.zeros((2, 2, 2), dtype=bool)
    report = Report((CaseScore("A", "ET", score(nothing, nothing, (1.0, 1.0, 1.0))),))
    write_page(report, tmp_path / "report.html")
    assert "Segmentation scores of 1 case<" in (tmp_path / "report.html").read_text()
