"""Whatever a file holds, its reader gives a value or a `BratsError`, and nothing else comes out."""

import gzip
import io
import json
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import peers
import pytest
import torch
import yaml
from fuzzing import VALUES, changed, damaged, encoded, fuzzed, only_brats_errors, sprinkled
from helpers import TINY, write_case
from hypothesis import example
from hypothesis import strategies as st

import brats_cli
from brats_cli.console import _finite
from brats_cli.core.check.report import check_data_set
from brats_cli.core.data.cases import Case
from brats_cli.core.data.dataset_json import channel_order, declared_schemes
from brats_cli.core.data.finding import find_cases, survey
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.data.meaning import declared_beside
from brats_cli.core.data.splits import Split
from brats_cli.core.data.splitting import make_split, parse_ratios, with_patients
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
from brats_cli.core.model import nnunet
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import NnunetConfig
from brats_cli.core.model.foreign import Source
from brats_cli.core.model.imported import _checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.model.run_folder import RunFolder
from brats_cli.core.prepared.store import Store
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


DSEG = "index\tname\n0\tBackground\n1\tnecrosis\n2\tedema\n4\tenhancing tumour\n"


@fuzzed(content=encoded(sprinkled(st.just(DSEG))))
@example(DSEG.encode())
def test_the_table_of_labels_of_bids(here, content):
    folder = here / "bids/sub-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sub-1_dseg.tsv").write_bytes(content)
    found = only_brats_errors(lambda: declared_beside(folder / "sub-1_dseg.nii"))
    if content == DSEG.encode():
        assert [scheme.name for scheme in found.schemes] == ["brats2020"]


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


# --- NIfTI -------------------------------------------------------------------------------------


def _whole_images():
    """Headers and voxels of every kind that is read: both versions, both orders of bytes."""
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[2:4, 1:4, 1:3] = 2
    labels[3, 2, 1:3] = 1, 4
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for data in (labels, labels.astype(np.float32), labels.astype(np.int16)[..., None]):
            image = kind(data, np.diag([-1.0, 1, 1, 1]))
            image.header.set_xyzt_units("mm")
            yield image.to_bytes(), image.header.template_dtype
    swapped = nib.Nifti1Image(labels, np.eye(4), nib.Nifti1Header(endianness=">"))
    yield swapped.to_bytes(), swapped.header.template_dtype.newbyteorder(">")


WHOLE = list(_whole_images())
FLOATS = st.one_of(
    st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e-30, 1e30, -1.0, 0.001, 1000.0, 1e-45]),
    st.floats(width=32),
)


@st.composite
def images(draw):
    """Bytes of an image with some fields of its header changed, zipped or not, then damaged."""
    content, kind = draw(st.sampled_from(WHOLE))
    header = np.frombuffer(content[: kind.itemsize], kind).copy()
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(kind.names))
        field = header[name].reshape(-1)
        if field.dtype.kind == "f":
            value = draw(FLOATS)
            with np.errstate(over="ignore"):
                field[draw(st.integers(0, field.size - 1))] = value
        elif field.dtype.kind in "iu":
            limits = np.iinfo(field.dtype)
            small = st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 512, 2304, 32767])
            value = draw(st.one_of(small, st.integers(int(limits.min), int(limits.max))))
            field[draw(st.integers(0, field.size - 1))] = np.clip(value, limits.min, limits.max)
        else:
            header[name] = draw(st.binary(max_size=field.dtype.itemsize))
    found = header.tobytes() + content[kind.itemsize :]
    if draw(st.integers(0, 3)) == 0:
        found = draw(damaged(found))
    if draw(st.booleans()):
        found = gzip.compress(found, 1, mtime=0)
        if draw(st.integers(0, 3)) == 0:
            found = draw(damaged(found))
    return found


@fuzzed(content=images())
def test_images(here, content):
    path = here / "x.nii"
    path.write_bytes(content)
    shape_on_disk(path)
    note_on_disk(path)
    only_brats_errors(lambda: count_labels(path))
    for read in (read_volume, read_image, read_labels):
        found = only_brats_errors(lambda: read(path))  # noqa: B023
        if not isinstance(found, BratsError) and read is not read_volume:
            write_image(here / "o.nii.gz", found.data, found.grid, overwrite=True)
            again = read(here / "o.nii.gz")
            np.testing.assert_array_equal(again.data, found.data)


@pytest.fixture(scope="module")
def around(here):
    """A case of three sound sequences, where the fourth and the label map are put."""
    image = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    for name in ("t1", "t1ce", "flair"):
        path = here / f"around/X/X_{name}.nii"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1, 1, 1])), path)
    return here / "around"


@fuzzed(scan=images(), label=images())
def test_images_in_a_data_set(around, scan, label):
    (around / "X/X_t2.nii").write_bytes(scan)
    (around / "X/X_seg.nii").write_bytes(label)
    report = only_brats_errors(lambda: check_data_set(around, workers=0))
    if not isinstance(report, BratsError):
        json.dumps(_finite(report.as_dict()), allow_nan=False)


@fuzzed(content=images())
def test_label_maps_scored_and_meshed(here, content):
    path = here / "y_seg.nii"
    path.write_bytes(content)
    only_brats_errors(lambda: brats_cli.evaluate(path, path, workers=0))
    only_brats_errors(
        lambda: brats_cli.mesh(
            path, region="all", output=here / "meshes", workers=0, overwrite=True
        )
    )


# --- checkpoints -------------------------------------------------------------------------------


def _trained():
    torch.manual_seed(0)
    network = make_network(CONFIG.network, in_channels=4, out_channels=3, patch_size=16)
    return Checkpoint(
        weights=network.state_dict(),
        config={
            **CONFIG.model_dump(mode="json"),
            "preparation": {"orientation": "LPS", "crop": "nonzero", "spacing_mm": [1, 1, 1]},
            "inference": {"rule": "monai", "window": [16, 16, 16], "overlap": 0.5},
            "origin": {"kind": "x", "name": "y", "licence": "z"},
        },
        labels="brats2020",
        epoch=3,
        scores={"WT": 0.9, "TC": 0.8, "ET": 0.7},
        preparation="brats-recipe/1",
        state={"progress": {"epoch": 3}, "optimizer": {"state": {}, "param_groups": [{}]}},
    )


def _content(checkpoint):
    """What a checkpoint's file holds, as a tree; and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "m.pt")
        content = (Path(folder) / "m.pt").read_bytes()
    tree = dict(torch.load(io.BytesIO(content), weights_only=True))
    tree["weights"] = "WEIGHTS"  # tensors would fill pages of a report
    tree["decision"] = {
        "thresholds": {"WT": 0.4}, "smallest_et_mm3": 5.0, "rule": "thresholds",
        "temperatures": {"WT": 1.2},
    }  # fmt: skip
    return tree, content


CHECKPOINT = _trained()
TREE, BYTES = _content(CHECKPOINT)
TENSORS = st.sampled_from(
    [
        torch.zeros(0), torch.zeros(2), torch.zeros(()), torch.zeros(3, dtype=torch.int64),
        torch.full((3,), torch.nan), torch.zeros(1).expand(3), torch.zeros(1, 1).to_sparse(),
        torch.zeros(3, dtype=torch.complex64), torch.zeros(3, device="meta"),
        torch.zeros(1).expand(10**6, 10**6), torch.nn.Parameter(torch.zeros(3)),
    ]
)  # fmt: skip


def with_weights(tree, tensors):
    """A tree with the weights in their place, some of them other ones."""
    if isinstance(tree, dict) and tree.get("weights") == "WEIGHTS":
        return {**tree, "weights": {**CHECKPOINT.weights, **tensors}}
    return tree


def use(path):
    """All that a command asks a checkpoint for."""
    found = Checkpoint.load(path)
    found.network()
    replace(found, labels=found.scheme.name)
    sliding = found.sliding
    if sliding:
        sliding.mirrors, sliding.starts(sliding.window[0], 0, sliding.overlap)
    return found.modalities, found.recipe, found.origin, found.saw_missing_modalities


@fuzzed(
    tree=changed(TREE),
    tensors=st.dictionaries(st.sampled_from([*CHECKPOINT.weights, "more"]), TENSORS, max_size=1),
)
def test_what_a_checkpoint_holds(here, tree, tensors):
    path = here / "m.pt"
    try:
        torch.save(with_weights(tree, tensors), path)
    except (OverflowError, UnicodeEncodeError, RuntimeError):
        return  # no such file can be
    only_brats_errors(lambda: use(path))


@fuzzed(content=damaged(BYTES))
def test_the_bytes_of_a_checkpoint(here, content):
    path = here / "b.pt"
    path.write_bytes(content)
    only_brats_errors(lambda: use(path))


# --- the store of prepared cases ---------------------------------------------------------------


def _stored_in(folder):
    """A store of one case, the case, and its folder there."""
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[2:6, 2:6, 2:5] = 2
    labels[3, 3, 2:4] = 1, 4
    write_case(folder / "data", "BraTS2021_00000", labels, seed=0)
    (case,) = find_cases(folder / "data")
    store = Store(folder / "store", SCHEMES["brats2020"])
    plan = store.plan([case])
    list(plan.run(workers=0))
    return store, case, plan.places[case.id]


def _content_of(place):
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


with tempfile.TemporaryDirectory() as _folder:
    STORED = _content_of(_stored_in(Path(_folder))[2])
ARRAYS = [name for name in STORED if name.endswith(".b2nd")]


@pytest.fixture(scope="module")
def stored(here):
    store, case, place = _stored_in(here / "stored")
    assert _content_of(place) == STORED  # the same at every preparation
    return store, case, place


def stored_files():
    """Some files of a prepared case: damaged, gone (None), or with the content of another."""
    other = st.sampled_from([None, b"", *STORED.values()])
    arrays = {name: st.one_of(damaged(STORED[name]), other) for name in ARRAYS}
    sums = as_json(json.loads(STORED["sums.json"]))
    return st.fixed_dictionaries({}, optional={**arrays, "sums.json": st.one_of(sums, other)})


@fuzzed(files=stored_files(), fitting=st.booleans())
def test_a_prepared_case(stored, files, fitting):
    store, case, place = stored
    for name, content in {**STORED, **files}.items():
        (place / name).unlink(missing_ok=True)
        if content is not None:
            (place / name).write_bytes(content)
    if fitting:  # a list of checksums that was altered as well
        sums = {name: zlib.crc32(files.get(name, STORED[name]) or b"") for name in ARRAYS}
        (place / "sums.json").write_text(json.dumps(sums))

    def read():
        found = store.plan([case]).cases([case.id])[0].read()
        assert found.images.shape[1:] == found.labels.shape
        return found.masks(store.scheme), found.centres

    only_brats_errors(read)  # as if it were damaged after it was compared with its checksums
    plan = store.plan([case])
    # Other voxels are never taken for the case's. (No voxels have the checksum 0, or `false`.)
    is_whole = all(files.get(name, STORED[name]) in (STORED[name], b"") for name in ARRAYS)
    assert plan.missing or is_whole or fitting
    if plan.missing:
        assert list(plan.run(workers=0)) == [case.id]
        assert _content_of(place) == STORED


# --- networks of others ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nnunet_model(here):
    """A folder of nnU-Net v2 with a small network, and what its three files hold."""
    pytest.importorskip("dynamic_network_architectures")
    torch.manual_seed(0)
    plans = peers.nnunet_plans((16, 16, 16))
    stages = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    shape = NnunetConfig(
        name="nnunet/PlainConvUNet",
        features=stages["features_per_stage"],
        kernels=stages["kernel_sizes"],
        strides=stages["strides"],
        blocks=stages["n_conv_per_stage"],
        decoder_blocks=stages["n_conv_per_stage_decoder"],
    )
    network = nnunet.made(shape, in_channels=4, classes=3)
    folder = here / "model"
    (folder / "fold_0").mkdir(parents=True)
    content = {
        "init_args": {"configuration": "3d_fullres"},
        "network_weights": dict(network.state_dict()),
        "current_epoch": 3,
        "inference_allowed_mirroring_axes": [0, 1, 2],
    }
    path = folder / "fold_0/checkpoint_final.pth"
    torch.save(content, path)
    return Source(path, content, folder)


PLANS = peers.nnunet_plans((16, 16, 16))
DESCRIPTION = peers.nnunet_dataset(peers.REGION_LABELS)


@fuzzed(plans=as_json(PLANS), dataset=st.one_of(st.just(b""), as_json(DESCRIPTION)))
@example(json.dumps(PLANS).encode(), b"")
def test_plans_of_nnunet(nnunet_model, plans, dataset):
    source = nnunet_model
    (source.folder / "plans.json").write_bytes(plans)
    (source.folder / "dataset.json").write_bytes(dataset or json.dumps(DESCRIPTION).encode())
    imported = only_brats_errors(lambda: _checkpoint(source, None))
    if plans == json.dumps(PLANS).encode() and not dataset:
        assert imported.origin["kind"] == "nnU-Net v2"  # what is changed is sound


BUNDLE = {
    "name": "BraTS MRI segmentation",
    "version": "0.5.2",
    "network_data_format": {
        "inputs": {"image": {"channel_def": dict(peers.BUNDLE_CHANNELS)}},
        "outputs": {"pred": {"channel_def": {"0": "Tumor core", "1": "Whole tumor", "2": "ET"}}},
    },
}
INFERENCE = {
    "preprocessing": {"transforms": [{"_target_": "LoadImaged", "keys": "image"}]},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5},
}


@fuzzed(metadata=as_json(BUNDLE), inference=as_json(INFERENCE))
def test_settings_of_a_monai_bundle(metadata, inference, here):
    folder = here / "bundle/configs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_bytes(metadata)
    (folder / "inference.json").write_bytes(inference)
    weights = {
        "convInit.conv.weight": torch.zeros(8, 4, 3, 3, 3),
        "conv_final.2.conv.weight": torch.zeros(3, 8, 1, 1, 1),
    }
    source = Source(folder / "model.pt", weights, here / "bundle")
    torch.save(weights, source.weights)
    only_brats_errors(lambda: _checkpoint(source, None))


AUTO3DSEG = {
    "network": {
        "_target_": "SegResNetDS", "init_filters": 4, "blocks_down": [1, 1], "norm": "INSTANCE",
        "in_channels": 4, "out_channels": 3, "dsdepth": 1,
    },
    "class_names": ["wt", "tc", "et"],
    "class_index": [[1, 2, 3], [1, 3], [3]],
    "sigmoid": True,
    "roi_size": [16, 16, 16],
    "crop_foreground": True,
    "orientation_ras": True,
    "resample": False,
    "resample_resolution": [1.0, 1.0, 1.0],
    "normalize_mode": "meanstd",
    "sliding_inferrer": {"overlap": 0.5, "mode": "gaussian"},
}  # fmt: skip


@fuzzed(config=changed(AUTO3DSEG), epoch=VALUES)
def test_settings_of_auto3dseg(here, config, epoch):
    pytest.importorskip("monai")
    path = here / "a.pt"
    path.touch()
    weights = {"encoder.conv_init.weight": torch.zeros(4, 4, 3, 3, 3)}
    content = {"config": config, "state_dict": weights, "epoch": epoch}
    only_brats_errors(lambda: _checkpoint(Source(path, content), None))


# --- options that are text ---------------------------------------------------------------------

NUMBERS = st.sampled_from(["", "0", "1", "70", "15", "-1", "nan", "inf", "1e400", "1e-400", "x"])


@fuzzed(ratios=st.lists(NUMBERS, max_size=4).map("/".join))
def test_ratios(ratios):
    cases = [Case(f"c{n}", f"c{n}", {}, None, SCHEMES["brats2020"]) for n in range(12)]

    def parts():
        strata = {case.id: "a" for case in cases}
        return make_split(cases, data=Path(), strata=strata, ratios=parse_ratios(ratios))

    made = only_brats_errors(parts)
    if not isinstance(made, BratsError):
        assert made.folds[0].train
        assert made.folds[0].val


@fuzzed(text=sprinkled(st.sampled_from(["WT.dice=0.8", "TC.hausdorff95_mm=5", "ET.dice"])))
def test_limits_to_fail_under(here, text):
    path = here / "data/BraTS2021_00000/BraTS2021_00000_seg.nii.gz"
    only_brats_errors(lambda: brats_cli.evaluate(path, path, workers=0, fail_under=[text]))
