"""Whatever a file holds, its reader gives a value or a `BratsError`, and nothing else comes out."""

import gzip
import io
import json
import struct
import zlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from fuzzing import VALUES, changed, damaged, encoded, fuzzed, only_brats_errors, sprinkled
from helpers import TINY, write_case
from hypothesis import strategies as st

import brats_cli
from brats_cli.console import _finite
from brats_cli.core.check.report import check_data_set
from brats_cli.core.data.cases import declared_beside, find_cases, survey
from brats_cli.core.data.dataset_json import channel_order, declared_schemes
from brats_cli.core.data.splits import Split
from brats_cli.core.data.splitting import parse_ratios, with_patients
from brats_cli.core.data.strata import table_strata
from brats_cli.core.errors import BratsError
from brats_cli.core.images.nifti import (
    count_labels,
    note_on_disk,
    read_image,
    read_labels,
    read_volume,
    shape_on_disk,
    write_image,
)
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.model.run_folder import RunFolder
from brats_cli.core.score.comparison import read_scores
from brats_cli.core.train.config import TrainConfig, initial_model, load_config, parse_setting
from brats_cli.core.train.figures import draw_curves
from brats_cli.core.train.run_record import RunRecord
from brats_cli.core.view.index import _SUMMARY, read_summary, write_index
from brats_cli.core.view.views import _reviews

CONFIG = TrainConfig.model_validate({**TINY, "network": {"channels": 1, "levels": 2}})


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder for all inputs of a test module, one after the other."""
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module")
def cases(here):
    """Two cases of 6 x 6 x 6 voxels in the folder `data`."""
    for number in range(2):
        labels = np.zeros((6, 6, 6), np.uint8)
        labels[2:4, 2:4, 2 : 4 + number] = 2
        labels[3, 3, 2:4] = 1, 4
        write_case(here / "data", f"BraTS2021_0000{number}", labels, seed=number)
    return find_cases(here / "data")


# --- YAML --------------------------------------------------------------------------------------


def as_yaml(tree):
    """Bytes of a tree as YAML or JSON, changed first as a tree, then as a text, then as bytes."""
    texts = st.builds(
        lambda found, flow: json.dumps(found) if flow else yaml.safe_dump(found),
        changed(tree),
        st.booleans(),
    )
    return encoded(sprinkled(texts))


@fuzzed(content=as_yaml(CONFIG.model_dump(mode="json")), of_a_run=st.booleans())
def test_settings(here, content, of_a_run):
    path = here / "c.yaml"
    path.write_bytes(content)
    only_brats_errors(lambda: initial_model(path, {}))
    found = only_brats_errors(lambda: load_config(path, of_a_run=of_a_run))
    if not isinstance(found, BratsError):
        found.save(here / "saved.yaml")
        assert load_config(here / "saved.yaml", of_a_run=True) == found


KEYS = [*TrainConfig.model_fields, "network.channels", "network.options", "augmentation.flip", "a"]


@fuzzed(
    key=st.one_of(st.sampled_from(KEYS), st.text(max_size=5)),
    equals=st.sampled_from(["=", "=", "=", "", "=="]),
    value=sprinkled(VALUES.map(repr)),
)
def test_settings_on_the_command_line(key, equals, value):
    def given():
        name, setting = parse_setting(key + equals + value)
        return load_config(None, **{name: setting, "network.levels": 3})

    only_brats_errors(given)


SPLIT = {
    "format": "brats-splits/1",
    "data": "data",
    "labels": {"BraTS2021_00000": "brats2020", "BraTS2021_00001": "brats2020"},
    "seed": 0,
    "grouped": True,
    "folds": [{"train": ["BraTS2021_00000"], "val": ["BraTS2021_00001"]}],
    "test": [],
    "patients": {"BraTS2021_00000": "A", "BraTS2021_00001": "B"},
    "modalities": ["t1", "flair"],
}


@fuzzed(content=as_yaml(SPLIT))
def test_splits(here, cases, content):
    path = here / "s.yaml"
    path.write_bytes(content)

    def used():
        split = Split.load(path)
        split.save(here / "again.yaml", overwrite=True)
        return split.cases(), split.only(0), split.fold(0)

    only_brats_errors(used)


# --- JSON --------------------------------------------------------------------------------------

DATASET = {
    "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
    "labels": {"background": 0, "edema": 1, "non-enhancing": 2, "enhancing tumor": [3]},
    "regions_class_order": [1, 2, 3],
    "file_ending": ".nii.gz",
}


def as_json(tree):
    """Bytes of a tree as JSON, changed first as a tree, then as a text, then as bytes."""
    return encoded(sprinkled(changed(tree).map(json.dumps)))


@pytest.fixture(scope="module")
def of_nnunet(here):
    """A data set of nnU-Net, of one case, in which dataset.json is still missing."""
    voxels = np.zeros((4, 4, 4), np.uint8)
    voxels[1:3, 1, 1] = 1, 2
    for number in range(4):
        path = here / f"nnunet/imagesTr/c_000{number}.nii"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    (here / "nnunet/labelsTr").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), here / "nnunet/labelsTr/c.nii")
    return here / "nnunet"


@fuzzed(content=as_json(DATASET))
def test_dataset_json(of_nnunet, content):
    (of_nnunet / "dataset.json").write_bytes(content)
    only_brats_errors(lambda: survey(of_nnunet))
    only_brats_errors(lambda: find_cases(of_nnunet))
    only_brats_errors(lambda: declared_beside(of_nnunet / "labelsTr/c.nii"))
    only_brats_errors(lambda: brats_cli.evaluate(of_nnunet / "labelsTr", of_nnunet, workers=0))


@fuzzed(description=changed(DATASET).filter(lambda each: isinstance(each, dict)))
def test_what_dataset_json_says(description):
    channel_order(description)
    for layout in ("", "msd", "nnunet"):
        declared_schemes(description, layout)


ROW = {"case": "A", "review": 0.5, "outputs": ["A.nii.gz"], "volumes_mm3": {"WT": 1.0}}


@fuzzed(content=as_json(ROW))
def test_a_manifest_of_predictions(here, content):
    (here / "predictions.jsonl").write_bytes(b'{"case": "B", "review": 1}\n' + content)
    reviews = only_brats_errors(lambda: _reviews(here))
    if isinstance(reviews, dict):
        assert all(np.isfinite(number) for number in reviews.values())


SUMMARY = {
    "format": "brats-view/1",
    "case": "A",
    "review": 0.5,
    "volumes_mm3": {"prediction": {"WT": 1000.0}, "reference": {"WT": 900.0}},
    "scores": {"WT": {"dice": 0.9, "hausdorff95_mm": 2.0}},
    "notes": ["The case has no T2."],
    "thumbnail": "data:image/png;base64,AAAA",
}


@fuzzed(content=as_json(SUMMARY))
def test_pages_of_others_beside_ours(here, content):
    folder = here / "views"
    folder.mkdir(exist_ok=True)
    (folder / "a.html").write_bytes(_SUMMARY.encode() + content + b"</script>")
    only_brats_errors(lambda: read_summary(folder / "a.html"))
    only_brats_errors(lambda: write_index(folder / "index.html"))


@fuzzed(content=st.one_of(st.binary(max_size=20), encoded(sprinkled(st.just("2026-01-01_1\n")))))
def test_the_note_of_the_newest_run(here, content):
    (here / "runs").mkdir(exist_ok=True)
    (here / "runs/latest").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        only_brats_errors(lambda: RunFolder.newest().best.exists())


# --- tables ------------------------------------------------------------------------------------


def as_table(text):
    """Bytes of a table: its text sprinkled with tokens, then its bytes damaged."""
    return encoded(sprinkled(st.just(text)))


STRATA = 'ID;Grade,Age\nBraTS2021_00000,HGG,1\nBraTS2021_00001,"L,GG",2\n'.replace(";", ",")


@fuzzed(content=as_table(STRATA))
def test_a_table_of_strata_or_patients(here, cases, content):
    path = here / "t.csv"
    path.write_bytes(content)
    only_brats_errors(lambda: table_strata(f"{path}:Grade", cases))
    only_brats_errors(lambda: table_strata(f"{path}:Age", cases))
    only_brats_errors(lambda: with_patients(cases, f"{path}:Grade"))


SCORES = "case,region,dice,hausdorff95_mm\n" + "".join(
    f"{case},{region},0.{case}{number},{number}\n"
    for case in range(1, 4)
    for number, region in enumerate(("WT", "TC", "ET"))
)


@fuzzed(content=as_table(SCORES))
def test_scores(here, content):
    (here / "a.csv").write_text(SCORES.replace("0.", "0.5"))
    (here / "b.csv").write_bytes(content)
    found = only_brats_errors(lambda: read_scores(here / "b.csv", "b"))
    if not isinstance(found, BratsError):
        only_brats_errors(lambda: brats_cli.compare([here / "a.csv", here / "b.csv"]))


LOG = (
    "epoch,loss,val_dice_WT,val_dice_TC,val_dice_ET,val_dice_mean,is_best,learning_rate,seconds,"
    "validation_seconds,data_wait_percent,patches_per_second,peak_memory_mb\n"
    "1,0.5,0.1,0.1,0.1,0.1,1,0.001,1.0,1.0,5.0,2.0,100\n"
    "2,0.4,,,,,0,0.001,1.0,0.0,5.0,2.0,100\n"
)


@fuzzed(content=as_table(LOG))
def test_the_log_of_a_run(here, content):
    record = RunRecord(here)
    record.log.write_bytes(content)
    rows = only_brats_errors(record.rows)
    if not isinstance(rows, BratsError) and rows and not zlib.crc32(content) % 10:
        with pytest.MonkeyPatch.context() as patch:  # what matplotlib draws is not what is tested
            patch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: None)
            patch.setattr("pathlib.Path.replace", lambda self, target: None)
            only_brats_errors(lambda: draw_curves(rows, here / "curves.png"))
