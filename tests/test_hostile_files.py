"""Files that are made to do harm: refused by name, within bounds of memory and time, nothing run.

The bounds: no reader takes more than `MOST_MB` beside what the program takes itself, nor longer
than `MOST_SECONDS`, whatever a file claims to be. They are measured in a process of its own.
"""

import gzip
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers import TINY, assert_refused, brats, write_case

from brats_cli.core.data.splits import Split
from brats_cli.core.errors import BratsError
from brats_cli.core.images.nifti import MOST_VOXELS, read_volume
from brats_cli.core.model.archive import load_archive
from brats_cli.core.model.checkpoint import FORMAT, Checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.reading import parse_json, parse_yaml, read_table
from brats_cli.core.score.comparison import read_scores
from brats_cli.core.train.config import TrainConfig, load_config, parse_setting
from brats_cli.core.train.run_record import RunRecord

MOST_MB, MOST_SECONDS = 500, 60

CONFIG = TrainConfig.model_validate({**TINY, "network": {"channels": 1, "levels": 2}})

needs_posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")


def labels(number=0):
    found = np.zeros((6, 6, 6), np.uint8)
    found[2:4, 2:4, 2 : 4 + number % 3] = 2
    found[3, 3, 2:4] = 1, 4
    return found


def checkpoint(**config):
    torch.manual_seed(0)
    network = make_network(CONFIG.network, in_channels=4, out_channels=3, patch_size=16)
    return Checkpoint(
        weights=network.state_dict(),
        config={**CONFIG.model_dump(mode="json"), **config},
        labels="brats2020",
        epoch=3,
        scores={"WT": 0.9},
    )


# --- within bounds -----------------------------------------------------------------------------

_MEASURE = """
import resource, time
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # the machine of the tests survives
from pathlib import Path
from brats_cli.core.errors import BratsError
{setup}
for call in {calls}:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        eval(call)
        said = "nothing"
    except BratsError as error:
        said = str(error)
    took = time.monotonic() - started
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, took, said)
"""


def refused_within_bounds(setup, *calls):
    """What the errors say of files that must be refused with little memory and in little time.

    The calls are made one after another in one new process.
    """
    code = _MEASURE.format(setup=setup, calls=calls)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=4 * MOST_SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    lines = [line.split(" ", 2) for line in ended.stdout.splitlines()]
    assert len(lines) == len(calls)
    for megabytes, seconds, _ in lines:
        assert int(megabytes) < MOST_MB
        assert float(seconds) < MOST_SECONDS
    return [said for _, _, said in lines]


def image(path, shape, voxels, *, itself=nib.Nifti1Header):
    """A file whose header claims a shape, and that holds some bytes, or their gzip members."""
    header = itself()
    header.set_data_dtype(np.uint8)
    header["dim"][: 1 + len(shape)] = len(shape), *shape
    header["sform_code"] = 1
    for axis, row in enumerate(("srow_x", "srow_y", "srow_z")):
        header[row][axis] = 1
    header["vox_offset"] = 352 if itself is nib.Nifti1Header else 544
    start = header.binaryblock + bytes(4)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(start) + voxels)
    else:
        path.write_bytes(start + voxels)


ZEROS = gzip.compress(bytes(1 << 26), 9)
"""64 MB in 65 kB; several in a row are one file."""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
@pytest.mark.parametrize("read", ["read_volume", "count_labels", "read_image"])
def test_an_image_is_read_as_far_as_a_head_scan_goes(tmp_path, read):
    wrong = [
        ("claims.nii", (10_000,) * 3, bytes(100), "its header claims 1,000,000,000,352 bytes"),
        ("claims.nii.gz", (10_000,) * 3, ZEROS, "its header claims 1,000,000,000,352 bytes"),
        # 10 GB of zeros, behind an image of 8 voxels or as the header says.
        ("bomb.nii.gz", (2, 2, 2), ZEROS * 160, "it holds more than the 360 bytes it claims"),
        ("honest.nii.gz", (2150,) * 3, ZEROS * 160, "its header claims 2150 x 2150 x 2150 voxels"),
    ]
    for name, shape, voxels, _ in wrong:
        image(tmp_path / name, shape, voxels)
    setup = f"from brats_cli.core.images.nifti import {read}\nfolder = Path({str(tmp_path)!r})"
    calls = [f"{read}(folder / {name!r})" for name, *_ in wrong]
    for found, (name, *_, said) in zip(refused_within_bounds(setup, *calls), wrong, strict=True):
        assert f"cannot read {tmp_path / name}: {said}" in found


def test_a_nifti_2_header_may_claim_more_than_its_numbers_hold(tmp_path):
    path = tmp_path / "x.nii"
    image(path, (2**40, 2**40, 2**40), bytes(10), itself=nib.Nifti2Header)
    setup = "from brats_cli.core.images.nifti import read_volume"
    (found,) = refused_within_bounds(setup, f"read_volume(Path({str(path)!r}))")
    assert "more than the file can hold" in found
    assert MOST_VOXELS < 2**40


def _deflated(path):
    checkpoint().save(path)
    with ZipFile(path) as archive:
        kept = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
        with archive.open("m/data/999", "w", force_zip64=True) as entry:
            for _ in range(40):
                entry.write(bytes(1 << 24))  # 670 MB in 1 MB


def _overlapping(path):
    checkpoint().save(path)
    with ZipFile(path, "a", ZIP_STORED) as archive:
        archive.writestr("m/data/big", bytes(1 << 24))
        entry = archive.filelist[-1]
        for number in range(500):  # 8 GB: the same 16 MB under many names
            again = pickle.loads(pickle.dumps(entry))
            again.filename = f"m/data/b{number:02}"
            archive.filelist.append(again)


def _expanded(path):
    checkpoint().save(path)
    content = torch.load(path, weights_only=True)
    first = next(iter(content["weights"]))
    content["weights"][first] = torch.zeros(1, dtype=torch.float16).expand(10**6, 10**6)
    torch.save(content, path)


def _wide(path):
    network = {"channels": 10**6, "levels": 7}
    checkpoint(network=network).save(path)


def _wide_of_monai(path):
    options = {"channels": [4096] * 9, "strides": [2] * 8}
    checkpoint(network={"name": "monai/UNet", "options": options}).save(path)


def _wide_of_monai_transformer(path):
    """Wide, then wrong: what is wrong is found when the memory for the rest was taken."""
    options = {"feature_size": 4080, "depths": [64] * 4, "norm_name": "nonsense"}
    checkpoint(network={"name": "monai/SwinUNETR", "options": options}).save(path)


def _deep_of_monai_transformer(path):
    options = {"feature_size": 12, "depths": [4096] * 4, "window_size": [4096] * 3}
    checkpoint(network={"name": "monai/SwinUNETR", "options": options}).save(path)


def _wide_of_nnunet(path):
    network = {
        "name": "nnunet/PlainConvUNet", "features": [4096] * 9, "kernels": [[9, 9, 9]] * 9,
        "strides": [[1, 1, 1]] * 9, "blocks": [9] * 9, "decoder_blocks": [9] * 8,
    }  # fmt: skip
    checkpoint(network=network).save(path)


def _shared(path):
    """A list of lists, each of which holds the one before ten times: 10^12 entries in all."""
    found = ["x"]
    for _ in range(12):
        found = [found] * 10
    torch.save({"format": FORMAT, "weights": {}, "config": {"network": found}}, path)


def _nested(path):
    found = []
    for _ in range(200):
        found = [found]
    torch.save({"format": FORMAT, "weights": {}, "config": found}, path)


NO_CHECKPOINT, UNSOUND = "is not a brats checkpoint", "is not a sound checkpoint: its network"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
@pytest.mark.parametrize(
    ("library", "files"),
    [
        (
            "torch",
            {
                _deflated: NO_CHECKPOINT,
                _overlapping: NO_CHECKPOINT,
                _expanded: NO_CHECKPOINT,
                _shared: NO_CHECKPOINT,
                _nested: NO_CHECKPOINT,
                _wide: "do not fit its network",
            },
        ),
        (
            "monai.networks.nets",
            {
                _wide_of_monai: UNSOUND,
                _wide_of_monai_transformer: UNSOUND,
                _deep_of_monai_transformer: UNSOUND,
            },
        ),
        ("dynamic_network_architectures", {_wide_of_nnunet: UNSOUND}),
    ],
    ids=["brats", "monai", "nnunet"],
)
def test_a_checkpoint_takes_no_more_than_its_file(tmp_path, library, files):
    pytest.importorskip(library)
    paths = [tmp_path / f"{make.__name__}.pt" for make in files]
    for make, path in zip(files, paths, strict=True):
        make(path)
    # The library's own memory is not the file's.
    setup = f"import {library}\nfrom brats_cli.core.model.checkpoint import Checkpoint"
    calls = [f"Checkpoint.load(Path({str(path)!r})).network()" for path in paths]
    told = refused_within_bounds(setup, *calls)
    for found, path, said in zip(told, paths, files.values(), strict=True):
        assert found.startswith(f"{path} ")
        assert said in found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
def test_what_is_imported_takes_no_more_than_its_file(tmp_path):
    makes = [_deflated, _overlapping, _expanded, _shared]
    paths = [tmp_path / f"{make.__name__}.pt" for make in makes]
    for make, path in zip(makes, paths, strict=True):
        make(path)
    setup = f"from brats_cli import import_model\nout = Path({str(tmp_path / 'o.pt')!r})"
    calls = [f"import_model(Path({str(path)!r}), output=out)" for path in paths]
    for found, path in zip(refused_within_bounds(setup, *calls), paths, strict=True):
        assert found.startswith(f"{path} cannot be read: it ")


# Nine lists of nine of the one before: a thousand million words in 400 bytes.
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "load", "said"),
    [
        ("train.config", "load_config", "cannot read settings from {}: it is not a YAML file"),
        ("data.splits", "Split.load", "cannot read {}: it is not YAML"),
    ],
)
def test_aliases_of_yaml_are_not_written_out(tmp_path, module, load, said):
    files = [
        tmp_path / f"{key}.yaml"
        for key in ("epochs", "folds", "data", "format", "network", "labels")
    ]
    for path in files:
        content = f"format: brats-splits/1\n{ALIASES}{path.stem}: *a9\n"
        path.write_text(content.replace("format: b", "f: b"))
    setup = f"from brats_cli.core.{module} import {load.split('.')[0]}"
    found = refused_within_bounds(setup, *(f"{load}(Path({str(path)!r}))" for path in files))
    assert found == [said.format(path) for path in files]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        # 4 GB of zeros in front of eight voxels would be 4 MB of gzip.
        ("vox_offset", float(1 << 32), "its header puts the voxels behind 4,294,967,296 bytes"),
        ("datatype", 32, "its voxels are complex64, not numbers"),
        ("datatype", 128, "its voxels are colours, not numbers"),
    ],
)
def test_what_is_no_image_of_numbers_is_refused_by_its_header(tmp_path, field, value, said):
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 512))
    header["vox_offset"], header[field] = 352, value
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + ZEROS * 64)  # and no more
    with pytest.raises(BratsError, match=said):
        read_volume(path)


def test_an_image_for_which_there_is_no_memory_is_named(tmp_path, monkeypatch):
    image(tmp_path / "x.nii.gz", (4, 4, 4), gzip.compress(bytes(64)))

    def unzipped(file):
        raise MemoryError
        yield

    monkeypatch.setattr("brats_cli.core.images.gzipped.unzipped", unzipped)
    with pytest.raises(BratsError, match=r"x.nii.gz: there is not enough memory for it"):
        read_volume(tmp_path / "x.nii.gz")


# --- what PyTorch lets pass --------------------------------------------------------------------


def _calls(name, *arguments, times=1):
    """A pickle of a list of what a function returns, called again and again."""
    stored = b"".join(pickle.dumps(each, 2)[2:-1] for each in arguments)
    packed = {0: b")", 1: b"\x85", 2: b"\x86"}[len(arguments)]
    module, _, function = name.rpartition(".")
    return (
        b"\x80\x02(" + stored + packed + b"r\xff\x00\x00\x001("  # 255 is the arguments, alone
        + f"c{module}\n{function}\nr\xfe\0\0\0".encode("latin-1") + b"0"
        + b"j\xfe\x00\x00\x00j\xff\x00\x00\x00R" * times + b"l."
    )  # fmt: skip


PICKLES = {
    "builtins.bytearray": ((10,), 1, "it calls builtins.bytearray"),
    "torch.Tensor": ((10,), 1, "it calls torch.Tensor"),
    "torch.FloatTensor": ((10,), 1, "it calls torch.FloatTensor"),
    "numpy.dtype": (("V2000000000",), 1, "it calls numpy.dtype"),
    "__builtin__.set": ((list(range(1000)),), 1001, "it makes too much of itself by builtins.set"),
    "collections.Counter": ((list(range(1000)),), 1001, "it makes too much of itself"),
    "collections.OrderedDict": (([("a", 1)] * 1000,), 1001, "it makes too much of itself"),
    "_codecs.encode": (("x" * 1000, "latin1"), 1001, "it makes too much of itself"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_makes_much_of_little_is_refused(tmp_path, name):
    arguments, times, said = PICKLES[name]
    path = tmp_path / "m.pt"
    with ZipFile(path, "w", ZIP_STORED) as archive:
        archive.writestr("m/data.pkl", _calls(name, *arguments, times=times))
        archive.writestr("m/version", "3\n")
    with pytest.raises(pickle.UnpicklingError, match=said):
        load_archive(path)


def test_what_trainings_of_others_keep_beside_weights_is_read(tmp_path):
    """A scheduler of steps (a Counter), sets, numbers of NumPy, parameters with attributes."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.is_frozen = True
    kept = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "seen": {1, 2},
        "parameter": parameter,
        "counts": torch.ones(2, dtype=torch.uint16),
        "numbers": [np.float32(0.5), np.int64(3), np.bool_(True), np.float16(2)],
    }
    torch.save(kept, tmp_path / "m.pt")
    found = load_archive(tmp_path / "m.pt")
    assert found["schedule"]["milestones"] == {2: 1, 4: 1}
    assert found["seen"] == {1, 2}
    assert found["numbers"] == [0.5, 3, True, 2]
    assert found["counts"].tolist() == [1, 1]


def test_a_pickle_as_large_as_weights_is_refused(tmp_path):
    path = tmp_path / "m.pt"
    with ZipFile(path, "w", ZIP_STORED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02(" + b"]" * (6 << 20) + b"l.")
    with pytest.raises(pickle.UnpicklingError, match="too much beside tensors"):
        load_archive(path)


def test_an_archive_has_one_directory(tmp_path):
    """PyTorch reads the first, of compressed entries, and Python's zipfile the second."""
    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    with ZipFile(path) as archive:
        kept = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    size, start = struct.unpack_from("<2L", content, end + 12)
    directory = bytearray(content[start : start + size])
    at = 0
    while at < size:
        directory[at + 10 : at + 12] = b"\0\0"  # stored
        directory[at + 24 : at + 28] = directory[at + 20 : at + 24]  # as large as it is packed
        at += 46 + sum(struct.unpack_from("<3H", directory, at + 28))
    path.write_bytes(content[:end] + directory + content[end:])
    assert torch.load(path, weights_only=True)["a"].shape == (1000,)  # it unpacks
    with pytest.raises(BadZipFile, match="it has two directories"):
        load_archive(path)


# --- nothing is run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir ['{0}']",
        "!!python/object/apply:subprocess.call [[mkdir, '{0}']]",
        "!!python/object/new:os.mkdir ['{0}']",
        "!!python/name:os.mkdir",
        "!!python/module:os",
        "!x {{}}",
    ],
)
def test_tags_of_yaml_run_nothing(tmp_path, tag):
    made = tmp_path / "made"
    value = tag.format(made)
    path = tmp_path / "x.yaml"
    path.write_text(f"format: brats-splits/1\nepochs: {value}\n")
    for call in (
        lambda: load_config(path),
        lambda: parse_setting(f"epochs={value}"),
        lambda: Split.load(path),
    ):
        with pytest.raises(BratsError, match="cannot read"):
            call()
    assert not made.exists()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two cases, their split and a run of it, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_case(tmp_path / "data", f"BraTS2021_0000{number}", labels(number), seed=number)
    split = {
        "format": "brats-splits/1", "data": "data", "labels": "brats2020", "seed": 0, "test": [],
        "folds": [{"train": ["BraTS2021_00000"], "val": ["BraTS2021_00001"]}],
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    for place in ("splits.yaml", "run/splits.yaml"):
        split["data"] = "../data" if "/" in place else "data"
        (tmp_path / place).write_text(yaml.safe_dump(split))
    CONFIG.save(tmp_path / "run/config.yaml")
    CONFIG.save(tmp_path / "tiny.yaml")
    checkpoint().save(tmp_path / "model.pt")
    return tmp_path / "run"


TRAIN = ["train", "--device", "cpu", "-c", "tiny.yaml", "--workers", "0"]
WITH_A_MODEL = {
    "predict": ["predict", "data", "-o", "out", "--device", "cpu", "--model"],
    "start": [*TRAIN, "-o", "new", "--init"],
    "resume": ["train", "--device", "cpu", "--resume", "-o", "run"],
    "export": ["export", "-o", "x.onnx"],
    "import": ["import", "-o", "x.pt"],
}
"""Calls that read a file of weights, which is their last word but for `resume`."""


def with_model(command, path, run):
    words = WITH_A_MODEL[command]
    if command == "resume":
        path.rename(run / "last.pt")
        return words
    return [*words, path]


@pytest.mark.parametrize("write", [torch.save, lambda content, file: pickle.dump(content, file)])
@pytest.mark.parametrize("command", WITH_A_MODEL)
def test_code_in_a_file_of_weights_is_never_run(run, command, write):
    touched, path = run / "touched", run / "evil.pt"
    with path.open("wb") as file:
        write({"format": FORMAT, "weights": Touch(touched)}, file)
    if command == "export":
        pytest.importorskip("onnx")
    result = brats(*with_model(command, path, run))
    assert result.exit_code == 3, result.output
    assert "Traceback" not in result.stderr
    assert not touched.exists()


# --- what is no file ---------------------------------------------------------------------------

CASE = "data/BraTS2021_00001/BraTS2021_00001"

WITH_A_PLACE = {
    "check a scan": (f"{CASE}_t1.nii.gz", ["check", "data"]),
    "check a label map": (f"{CASE}_seg.nii.gz", ["check", "data"]),
    "repair": (f"{CASE}_t1.nii.gz", ["check", "data", "--fix", "fixed"]),
    "split by label maps": (f"{CASE}_seg.nii.gz", ["split", "data", "-o", "new.yaml"]),
    "split by scans": (f"{CASE}_t1.nii.gz", ["split", "data", "-o", "new.yaml"]),
    "strata": ("t.csv", ["split", "data", "-o", "new.yaml", "--stratify", "t.csv:a"]),
    "patients": ("t.csv", ["split", "data", "-o", "new.yaml", "--patients", "t.csv:a"]),
    "train on splits": ("s.yaml", ["train", "s.yaml", "-c", "tiny.yaml"]),
    "train by settings": ("c.yaml", ["train", "-c", "c.yaml"]),
    "train on a scan": (f"{CASE}_t1.nii.gz", [*TRAIN, "-o", "new"]),
    "train on a label map": (f"{CASE}_seg.nii.gz", [*TRAIN, "-o", "new"]),
    "start from weights": ("m.pt", [*TRAIN, "-o", "new", "--init", "m.pt"]),
    "resume by settings": ("run/config.yaml", ["train", "--resume", "-o", "run"]),
    "resume by splits": ("run/splits.yaml", ["train", "--resume", "-o", "run"]),
    "predict a scan": (
        f"{CASE}_t1.nii.gz",
        ["predict", "data/BraTS2021_00001", "-o", "o.nii.gz", "--model", "model.pt"],
    ),
    "predict by a model": ("m.pt", ["predict", "data", "-o", "out", "--model", "m.pt"]),
    "evaluate a prediction": ("p.nii.gz", ["evaluate", "p.nii.gz", f"{CASE}_seg.nii.gz"]),
    "evaluate by an expert": ("p.nii.gz", ["evaluate", f"{CASE}_seg.nii.gz", "p.nii.gz"]),
    "evaluate into it": ("s.csv", ["evaluate", "data", "data", "-o", "s.csv", "--overwrite"]),
    "compare": ("s.csv", ["compare", "s.csv", "tiny.yaml"]),
    "mesh": ("p_seg.nii.gz", ["mesh", "p_seg.nii.gz", "-o", "m.stl"]),
    "paint": (
        "p.nii.gz", ["mesh", f"{CASE}_seg.nii.gz", "--paint", "p.nii.gz", "-o", "m.ply"],
    ),
    "view a scan": (f"{CASE}_t2.nii.gz", ["view", "data/BraTS2021_00001", "-o", "v.html"]),
    "view a label map": (
        "p.nii.gz", ["view", "data/BraTS2021_00001", "--seg", "p.nii.gz", "-o", "v.html"],
    ),
    "view a map": (
        "p.nii.gz", ["view", "data/BraTS2021_00001", "--uncertainty", "p.nii.gz", "-o", "v.html"],
    ),
    "import": ("m.pt", ["import", "m.pt"]),
    "export": ("m.pt", ["export", "m.pt"]),
}  # fmt: skip
"""A file that a call reads or writes, and the call."""


@pytest.fixture
def in_time():
    """Fail, instead of waiting for ever, what takes more than a minute."""

    def late(*_):
        raise TimeoutError("it waits for something that is no file")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@needs_posix
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("call", WITH_A_PLACE)
def test_a_pipe_or_device_in_place_of_a_file_is_refused(run, in_time, call, kind):
    place, words = WITH_A_PLACE[call]
    path = run.parent / place
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    if call == "export":
        pytest.importorskip("onnx")
    result = brats(*words)
    assert result.exit_code == 3, result.output
    assert "error: " in result.stderr + result.stdout
    # Nothing was put in its place.
    assert path.is_fifo() if kind == "pipe" else path.readlink() == Path("/dev/zero")


@needs_posix
@pytest.mark.parametrize("name", ["dataset.json", "predictions.jsonl", "index.html", "a.html"])
def test_a_pipe_where_a_file_may_be_is_passed_over(run, in_time, name):
    views = run.parent / "views"
    views.mkdir()
    for folder in (run.parent / "data", views):
        os.mkfifo(folder / name)
    result = brats("view", "data", "--seg", "data", "-o", "views")
    if name == "index.html":  # it would be written over
        assert result.exit_code == 3
        assert "index.html: it is not a regular file" in result.stderr
    else:
        assert result.exit_code == 0, result.output
        assert (views / "index.html").is_file()


@needs_posix
def test_a_pipe_in_a_run_or_a_store_is_passed_over(run, in_time):
    folder = run.parent
    (folder / "runs").mkdir()
    os.mkfifo(folder / "runs/latest")
    result = brats("predict", "data", "-o", "out", "--device", "cpu")
    assert "there is no trained model in" in result.stderr
    os.mkfifo(run / "log.csv")
    with pytest.raises(BratsError, match=r"log.csv: it is not a regular file"):
        RunRecord(run).rows()


LONG = "x" * 300
TOO_LONG = {
    "check": ["check", LONG],
    "check --fix": ["check", "data", "--fix", LONG],
    "split": ["split", LONG, "-o", "new.yaml"],
    "train --store": [*TRAIN, "--store", LONG],
    "train --init": [*TRAIN, "--init", LONG],
    "predict": ["predict", LONG, "--model", "model.pt", "--device", "cpu"],
    "predict --model": ["predict", "data", "--device", "cpu", "--model", LONG],
    "evaluate": ["evaluate", LONG, "data"],
    "evaluate --brain": ["evaluate", "data", "data", "--within-brain", "--brain", LONG],
    "mesh -o": ["mesh", f"{CASE}_seg.nii.gz", "-o", LONG],
    "view": ["view", LONG],
    "view --seg": ["view", "data/BraTS2021_00001", "--seg", LONG],
    "import": ["import", LONG],
    "compare": ["compare", LONG, LONG + "x"],
}


@pytest.mark.parametrize("call", TOO_LONG)
def test_what_the_system_says_of_a_path_is_two_lines(run, call):
    """A name that is too long stands for all that the system refuses, as it does for root too."""
    result = brats(*TOO_LONG[call])
    assert result.exit_code == 3, result.output
    first, second = result.stderr.splitlines()[-2:]
    assert first.startswith("error: cannot ")
    assert LONG in first
    assert first.endswith(": File name too long")
    assert second.startswith(" hint: ")


def test_a_path_that_the_system_refuses_stops_no_other(run):
    result = brats(
        "view", "-", "-o", "views", "--workers", "0", stdin=f"{LONG}\ndata/BraTS2021_00001\n"
    )
    assert result.exit_code == 3
    assert f"error: cannot use {LONG}: File name too long\n hint: " in result.stderr
    assert (run.parent / "views/BraTS2021_00001.html").is_file()


@pytest.mark.parametrize("content", ["data\0data\0", "x\n" * (1 << 23)], ids=["-print0", "endless"])
def test_what_is_no_list_of_paths_is_refused(content):
    result = brats("predict", "-", "--dry-run", stdin=content)
    assert_refused(result, "standard input is no list of paths", "one per line")


def test_links_that_lead_to_themselves_are_refused(run):
    place = Path(f"{CASE}_seg.nii.gz")  # the working folder is that of the data
    place.unlink()
    place.symlink_to(place.name)
    (run.parent / "out").symlink_to("out")
    result = brats("view", "data/BraTS2021_00001", "--seg", place, "--workers", "0")
    assert_refused(result, f"cannot read {place}: Too many levels of symbolic links")
    assert brats("check", "data", "--fix", "out", "--workers", "0").exit_code == 3
    result = brats(*TRAIN, "-o", "new", "--dry-run")
    assert result.exit_code == 3
    assert "Too many levels of symbolic links" in result.stderr


@pytest.mark.parametrize("words", [["mesh", "."], ["compare", ".", "splits.yaml"]])
def test_the_folder_itself_is_no_file(run, words):
    assert_refused(brats(*words), "cannot read .: it is a folder")


# --- too long, too deep ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [60, 900, 100_000])
def test_what_is_nested_without_end_is_no_json_or_yaml(count):
    with pytest.raises(ValueError, match=r"\S"):
        parse_json("[" * count + "]" * count)
    if count < 1000:  # PyYAML takes its time
        with pytest.raises(ValueError, match=r"\S"):
            parse_yaml("[" * count + "]" * count)


def test_a_million_values_are_a_file_and_more_are_not():
    assert len(parse_json(json.dumps([0] * 1_000_000))) == 1_000_000
    with pytest.raises(ValueError, match="it holds too many values"):
        parse_json(json.dumps([0] * 1_000_001))


def test_a_field_without_end_is_no_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("case,region,dice\n" + "x" * 200_000 + ",WT,1\n")
    for read in (read_table, lambda path: read_scores(path, "a")):
        with pytest.raises(BratsError, match="cannot read"):
            read(path)
