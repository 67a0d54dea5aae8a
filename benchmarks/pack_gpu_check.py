"""Gather what `gpu_check.py` needs on a machine that has a GPU, PyTorch and no network.

    make gpu-check CASES=CASES

fills `.gpu`, which git ignores: wheels that a machine with PyTorch, scipy and scikit-learn lacks, a
few cases, and `run.sh`. Copied there with the repository, `bash .gpu/run.sh OUT` does the rest.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from brats_cli.core.data.finding import find_cases
from brats_cli.core.errors import BratsError

REPOSITORY = Path(__file__).resolve().parents[1]

MOST_MIB = 64
"""What the folder may take."""

CASES = 4

WHEELS = (
    *(
        "annotated-doc",
        "annotated-types",
        "blosc2",
        "Deprecated",
        "einops",
        "humanize",
        "jaxtyping",
    ),
    *("msgpack", "ndindex", "nibabel", "numexpr", "pydantic", "pydantic-core", "shellingham"),
    *("torchio", "typer", "typing-inspection", "wadler-lindig", "wrapt", "zlib-ng"),
)

# MedPy comes as source; it is pure Python, as far as brats uses it. TorchIO and MedPy import
# SimpleITK, whose 53 MB are never called by what is checked.
SIMPLE_ITK = '''"""A stand-in for SimpleITK, which brats' training and prediction never call."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
'''

RUN = """#!/usr/bin/env bash
# Ends within nine minutes; its table is in OUT/check.txt.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade \\
    --target .gpu/site .gpu/whl/*.whl
export PYTHONPATH="$PWD/src:$PWD/.gpu/site:$PWD/.gpu/pure${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
exec python3 benchmarks/gpu_check.py --cases .gpu/cases --out "${1:-gpu-check}" "${@:2}"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, required=True, help="a data set with labels")
    parser.add_argument("--python", default="3.12", help="version of Python on that machine")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".gpu")
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    _download_wheels(given.out / "whl", given.python)
    _copy_pure(given.out / "pure")
    _copy_cases(given.cases, given.out / "cases")
    (given.out / "run.sh").write_text(RUN)
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file()) / 2**20
    print(f"{given.out}: {size:.1f} MiB; there: bash .gpu/run.sh OUT")
    if size > MOST_MIB:
        sys.exit(f"that is more than {MOST_MIB} MiB: give smaller cases")


def _download_wheels(folder: Path, python: str) -> None:
    pinned = _constraints()
    wanted = [
        f"{name}=={pinned[name.lower()]}" if name.lower() in pinned else name for name in WHEELS
    ]
    platforms = ("manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "-d", str(folder)]
    for platform in platforms:
        options += ["--platform", platform]
    pip = [sys.executable, "-m", "pip", "download", "-q", *options, *wanted]
    subprocess.run(pip, check=True)


def _constraints() -> dict[str, str]:
    """The tested versions, by name; of several, the last, which is that of newer Pythons."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = (line.split(";")[0].strip().split("==") for line in lines if "==" in line.split(";")[0])
    return {name.lower().replace("_", "-"): version for name, version in pins}


def _copy_pure(folder: Path) -> None:
    folder.mkdir()
    found = importlib.util.find_spec("medpy")
    assert found is not None
    assert found.origin is not None
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.cpp", "*.h")
    shutil.copytree(Path(found.origin).parent, folder / "medpy", ignore=ignored)
    (folder / "SimpleITK.py").write_text(SIMPLE_ITK)


def _copy_cases(data: Path, folder: Path) -> None:
    """Copy the smallest cases with labels; what lies around a brain hardly counts in a .nii.gz."""
    cases = [case for case in find_cases(data) if case.label is not None]
    if len(cases) < CASES:
        raise BratsError(f"{data} has {len(cases)} cases with labels", hint=f"give {CASES}")
    sizes = {case.id: sum(p.stat().st_size for p in case.folder.iterdir()) for case in cases}
    for case in sorted(cases, key=lambda case: sizes[case.id])[:CASES]:
        (folder / case.folder.name).mkdir(parents=True)
        for path in case.folder.iterdir():
            shutil.copyfile(path, folder / case.folder.name / path.name)


if __name__ == "__main__":
    main()
