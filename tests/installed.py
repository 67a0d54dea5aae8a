"""Installs a built wheel in a fresh environment, and uses it there as somebody without a checkout.

The source distribution is then installed over it: it has to bring the same files.

    make check-wheel                      # with the versions of constraints.txt
    make check-lowest                     # with the lowest versions that the wheel declares
    make check-wheel PYTHON=python3.13 CHECK="--without torch torchio --tests"

Only Python's own library is needed. Everything is written to a temporary folder and removed.
"""

import argparse
import email
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"

NETWORK = ("torch", "torchio")
"""What a machine may lack: an index may have no build of torch that is small enough."""

PHANTOMS = (
    "from pathlib import Path; from brats_cli.core.data.phantom import write_phantoms;"
    "write_phantoms(Path('data'), cases=6, shape=(32, 36, 34))"
)
COMMANDS = (
    "import typer; from brats_cli.app import app; print(*typer.main.get_command(app).commands)"
)

FILES = (
    "from importlib.metadata import files;"
    "print(*(f'{file} {file.hash and file.hash.value}' for file in files('brats-cli')"
    " if file.parts[0] == 'brats_cli' and file.suffix != '.pyc'), sep='\\n')"
)

CASE = "data/BraTS-GLI-00000-000"
SEG = f"{CASE}/BraTS-GLI-00000-000-seg.nii.gz"

WALK = [
    "check data",
    "split data",
    "evaluate data data -o scores.csv --report report.html --workers 0",
    "evaluate data data -o others.csv --lesion-wise 2023 --workers 0",
    "compare scores.csv others.csv -o compare.png",
    f"mesh {SEG} --region all -o tumour.glb",
    f"mesh {SEG} --reduce 0.5 -o seg_WT.stl",
    f"view {CASE} -o view.html",
    f"view {CASE} -o view.png",
]
"""Everything that needs no network; each line works in the folder that those before it left."""

WALK_WITH_NETWORK = [
    "demo --small --device cpu",
    f"predict {CASE} -o seg.nii.gz --model demo/runs/demo --device cpu",
]

NEED_AN_EXTRA = [
    (f"mesh {SEG} -o meshes --scheduler tcp://127.0.0.1:1", "pip install 'brats-cli[cluster]'"),
    ("train --summary --set network=monai/SegResNet", "pip install 'brats-cli[monai]'"),
    ("export demo/runs/demo -o model.onnx", "pip install 'brats-cli[onnx]'"),
]
"""What asks for an optional library, and the hint that is then printed."""

TESTS_WITHOUT_NETWORK = [
    *(f"tests/core/{room}" for room in ("images", "data", "check", "score", "surface", "view")),
    *(f"tests/core/test_{module}.py" for module in ("errors", "reading", "writing")),
    *(
        f"tests/commands/test_{name}_command.py"
        for name in ("check", "split", "evaluate", "compare", "mesh", "view")
    ),
    "tests/test_app.py",
]


def metadata_of(wheel):
    """The wheel's METADATA, as a message with headers."""
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(content.read(name))


def requirements_of(metadata):
    """What is required without extras, as {name: requirement}."""
    required = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    return {re.match(r"[\w.-]+", each)[0]: each for each in required}


def lowest(requirements, *, kept):
    """Constraints to the lowest versions that are declared; those `kept` are left out.

    >>> lowest({"numpy": "numpy>=1.26", "torch": "torch>=2.6"}, kept={"torch"})
    ['numpy==1.26']
    """
    bounds = {name: re.search(r">=([\w.]+)", each) for name, each in requirements.items()}
    return [f"{name}=={bound[1]}" for name, bound in bounds.items() if name not in kept]


def torch_of(constraints):
    """The line of the constraints that fixes torch."""
    return next(line for line in constraints.splitlines() if line.startswith("torch=="))


def run(*words, cwd, status=0):
    """Run a command outside the checkout; its output. Another status ends this program."""
    print("$", *words, flush=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=clean, capture_output=True, text=True
    )
    if done.returncode != status:
        print(done.stdout, done.stderr, sep="\n")
        sys.exit(f"failed: status {done.returncode}, not {status}")
    return done


def install(wheel, folder, args):
    """A fresh environment with the wheel; its Python."""
    metadata = metadata_of(wheel)
    requirements = requirements_of(metadata)
    pinned = CONSTRAINTS.read_text(encoding="utf-8")
    constraints = folder / "constraints.txt"
    if args.lowest:
        torch = f"torch=={args.torch}" if args.torch else torch_of(pinned)
        pinned = "\n".join([*lowest(requirements, kept={"torch"}), torch])
    constraints.write_text(pinned + "\n", encoding="utf-8")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    pip = (python, "-m", "pip", "install", "-qq")
    wanted = [each for name, each in requirements.items() if name not in args.without]
    wanted += ["pytest", "trimesh"] if args.tests else []
    run(*pip, "--no-deps", wheel.resolve(), cwd=folder)
    # torch first, and by its exact version, so that the machine's own build of it is taken.
    if "torch" not in args.without:
        run(*pip, "-c", constraints, torch_of(pinned), cwd=folder)
    run(*pip, "-c", constraints, *wanted, cwd=folder)
    if not args.without:
        run(python, "-m", "pip", "check", cwd=folder)
    return python


def use(python, folder, *, version, without):
    """Every command's help, and every step on synthetic cases."""
    brats = python.with_name("brats")
    assert run(brats, "--version", cwd=folder).stdout == f"brats {version}\n"
    names = run(python, "-c", COMMANDS, cwd=folder).stdout.split()
    for words in ((), *((name,) for name in names)):
        assert "Usage: brats" in run(brats, *words, "--help", cwd=folder).stdout
    run(python, "-c", PHANTOMS, cwd=folder)
    network = WALK_WITH_NETWORK if not set(NETWORK) & set(without) else []
    for line in WALK + network:
        run(brats, *line.split(), cwd=folder)
    for line, hint in NEED_AN_EXTRA if network else ():
        done = run(brats, *line.split(), cwd=folder, status=3)
        assert done.stdout == ""
        error, second = done.stderr.splitlines()
        assert error.startswith("error: ")
        assert second == f" hint: {hint}"


def installed_files(python, folder):
    """Every file of the installed package with its hash, by pip's record of it."""
    return run(python, "-c", FILES, cwd=folder).stdout.splitlines()


def install_sdist(python, folder, *, sdist, version):
    """Build and install the source distribution in place of the wheel; they are the same."""
    before = installed_files(python, folder)
    assert "brats_cli/core/view/assets/niivue/niivue.js" in " ".join(before)
    over = ("--no-deps", "--force-reinstall", "-qq")
    run(python, "-m", "pip", "install", *over, sdist.resolve(), cwd=folder)
    assert installed_files(python, folder) == before
    assert run(python.with_name("brats"), "--version", cwd=folder).stdout == f"brats {version}\n"


def test(python, *, without):
    """The quick tests of the checkout, on the installed package."""
    some = TESTS_WITHOUT_NETWORK if without else ["tests"]
    # Old libraries use what new ones call deprecated: `--lowest` has both.
    quick = ("-q", "-p", "no:cacheprovider", "-m", "not slow", "-W", "ignore::DeprecationWarning")
    done = run(python, "-m", "pytest", *quick, *some, cwd=ROOT)
    print(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--sdist", type=Path, help="the source distribution, to install as well")
    parser.add_argument("--lowest", action="store_true", help="the lowest versions declared")
    parser.add_argument("--torch", metavar="VERSION", help="torch for --lowest; as pinned")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="leave out")
    parser.add_argument("--tests", action="store_true", help="run the quick tests as well")
    args = parser.parse_args()
    version = metadata_of(args.wheel)["Version"]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="brats-installed-") as name:
        folder = Path(name).resolve()
        python = install(args.wheel, folder, args)
        work = folder / "work"
        work.mkdir()
        use(python, work, version=version, without=args.without)
        if args.sdist:
            install_sdist(python, work, sdist=args.sdist, version=version)
        if args.tests:
            test(python, without=args.without)
        print(run(python, "-m", "pip", "list", cwd=folder).stdout)
    seconds = time.monotonic() - begun
    print(f"{args.wheel.name} works on Python {sys.version.split()[0]} ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
