"""What is handed to people: the source distribution, the wheel made of it, and its extras."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import assert_refused, brats, write_case

import brats_cli
from brats_cli.app import app
from brats_cli.core.errors import BratsError
from brats_cli.core.model.config import NnunetConfig
from brats_cli.core.model.nnunet import made

ROOT = Path(__file__).parents[1]

BUILT = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "demo", "runs",
    "scratch", "brats-store", ".gpu", "gpu-check", "node_modules", ".hypothesis",
)  # fmt: skip
"""What lies in a checkout and is no part of the project."""


def build(kind, source, out):
    """Build a distribution as pip does, by what pyproject.toml names, but without a network."""
    code = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("release") / "checkout", ignore=BUILT)


@pytest.fixture(scope="module")
def sources(checkout):
    """The source distribution, unpacked."""
    build("sdist", checkout, checkout.parent)
    (packed,) = checkout.parent.glob("*.tar.gz")
    with tarfile.open(packed) as content:
        content.extractall(checkout.parent, filter="data")
    return checkout.parent / packed.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sources):
    """The wheel that is made of the source distribution, and not of the checkout."""
    build("wheel", sources, sources.parent)
    (packed,) = sources.parent.glob("*.whl")
    with zipfile.ZipFile(packed) as content:
        yield content


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_is_the_project(checkout, sources):
    made = {"PKG-INFO", "setup.cfg"}
    packed = {name for name in files_in(sources) if ".egg-info/" not in name}
    project = {name for name in files_in(checkout) if ".egg-info/" not in name}
    assert packed - made == project
    for name in ("LICENSE", "tests/test_release.py", "examples/train.yaml", "docs/tutorial.md"):
        assert name in packed


def test_the_wheel_is_the_package_alone(checkout, wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {f"brats_cli/{name}" for name in files_in(checkout / "src/brats_cli")}
    assert "brats_cli/core/view/assets/niivue/niivue.js" in names
    assert "brats_cli/py.typed" in names


def test_the_wheel_has_the_licences_of_all_that_is_in_it(wheel):
    licences = [name for name in wheel.namelist() if "/licenses/" in name]
    texts = [wheel.read(name).decode() for name in licences]
    assert len(texts) == 2
    assert any("Apache License" in text for text in texts)
    assert any("Niivue" in text and "BSD 2-Clause" in text for text in texts)


def test_the_wheels_metadata_say_what_it_is(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "brats-cli"
    assert metadata["Version"] == brats_cli.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0 AND BSD-2-Clause AND MIT AND ISC"
    entry = name.replace("METADATA", "entry_points.txt")
    assert wheel.read(entry).decode() == "[console_scripts]\nbrats = brats_cli.__main__:main\n"


# Optional libraries


def extras():
    """By extra, what its libraries are imported as."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    found = re.findall(r"^(\w+) = \[(.*)\]$", section, re.MULTILINE)
    return {
        extra: [name.replace("-", "_") for name in re.findall(r'"([\w-]+)', libraries)]
        for extra, libraries in found
        if extra != "dev"
    }


OPTIONAL = {name for names in extras().values() for name in names}


@pytest.fixture
def bare(monkeypatch):
    """This process as it is where no optional library is installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in OPTIONAL:
            monkeypatch.delitem(sys.modules, name)
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError


def test_the_extras_are_known():
    assert extras()["cluster"] == ["distributed"]
    assert extras()["monai"] == ["monai"]
    assert extras()["nnunet"] == ["dynamic_network_architectures"]
    assert extras()["onnx"] == ["onnx", "onnxruntime"]


def test_version_and_every_help_need_no_extra():
    commands = [[], *([name] for name in sorted(typer.main.get_command(app).commands))]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))\n"
        "from brats_cli.app import app\n"
        f"for words in [['--version'], *([*words, '--help'] for words in {commands})]:\n"
        "    assert not app(words, prog_name='brats', standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"brats {brats_cli.__version__}\n")
    assert done.stdout.count("Usage: brats") == len(commands)


def test_training_a_network_of_monai_asks_for_the_extra(bare):
    result = brats("train", "--summary", "--set", "network=monai/SegResNet")
    error = "network monai/SegResNet needs MONAI, which is not installed"
    assert_refused(result, error, "pip install 'brats-cli[monai]'")


def test_a_cluster_asks_for_the_extra(bare, tmp_path):
    write_case(tmp_path, "BraTS2021_00000", np.full((4, 4, 4), 4, np.uint8), seed=0)
    words = ("--scheduler", "tcp://127.0.0.1:1", "-o", tmp_path / "meshes")
    result = brats("mesh", *tmp_path.glob("*/*_seg.nii.gz"), *words)
    error = "a Dask cluster needs the library distributed, which is not installed"
    assert_refused(result, error, "pip install 'brats-cli[cluster]'")
    assert not (tmp_path / "meshes").exists()


def test_exporting_asks_for_the_extra(bare, tmp_path):
    result = brats("export", tmp_path, "-o", tmp_path / "model.onnx")
    error = "exporting needs onnx, which is not installed"
    assert_refused(result, error, "pip install 'brats-cli[onnx]'")
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_nnunet_asks_for_the_extra(bare):
    each = {"features": (4, 8), "kernels": ((3, 3, 3),) * 2, "strides": ((1, 1, 1), (2, 2, 2))}
    config = NnunetConfig(name="nnunet/PlainConvUNet", blocks=(2, 2), decoder_blocks=(2,), **each)
    with pytest.raises(BratsError, match="needs dynamic-network-architectures") as caught:
        made(config, in_channels=4, classes=4)
    assert caught.value.hint == "pip install 'brats-cli[nnunet]'"
