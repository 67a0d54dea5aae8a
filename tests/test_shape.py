"""Who may import whom, what loads when, and what every command shows: the promises of the layout.

The edges between rooms are the design: a module may import from its own room, from the rooms that
its room has an edge to, and from what is for every room.
"""

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import brats, loaded_by, write_case

from brats_cli.app import app

PACKAGE = Path(__file__).parents[1] / "src/brats_cli"
CORE = PACKAGE / "core"

FOR_EVERY_ROOM = {"errors", "wording", "reading", "writing", "compute"}

EDGES = {
    "compute": set(),
    "images": set(),
    "data": {"images"},
    "check": {"images", "data"},
    "prepared": {"images", "data"},
    "model": {"images", "data", "prepared"},
    "score": {"images", "data"},
    "surface": {"images", "data"},
    "view": {"images", "data", "score", "surface"},
    "train": {"images", "data", "prepared", "model", "score"},
    "predict": {"images", "data", "prepared", "model"},
}
"""The rooms of the core, and the rooms that each may import from."""

ON_TOP = {"demo": {"data"}}
"""Modules beside the rooms that use them, and the rooms that each may import from."""

WITHOUT_NETWORK = {"images", "data", "check", "score", "surface", "view"}
"""Rooms that import neither torch nor torchio anywhere."""

AT_HOME = {
    "distributed": {"core/compute/cluster"},
    "fast_simplification": {"core/surface/reduction"},
    "dynamic_network_architectures": {"core/model/nnunet"},
    "matplotlib": {"core/score/plots", "core/train/figures", "core/view/slices"},
    "medpy": {"core/score/metrics"},
    "monai": {"core/model/monai"},
    "nibabel": {"core/images/grid", "core/images/nifti"},
    "onnx": {"core/model/onnx_export"},
    "onnxruntime": {"core/model/onnx_export"},
    "pydantic": {"core/model/config", "core/train/config"},
    "rich": {"console"},
    "skimage": {"core/surface/voxels"},
    "sklearn": {"core/data/splitting"},
    "stl": {"core/surface/files"},
    "torchio": {"core/train/sampling"},
    "zlib_ng": {"core/images/gzipped"},
}
"""The modules that a library may be imported in."""

COMMANDS = sorted(typer.main.get_command(app).commands)

# These start in a fraction of the 2 s that torch takes to load, and run where it is missing.
WITHOUT_TORCH = {"check", "split", "evaluate", "compare", "mesh", "view"} & set(COMMANDS)

HEAVY = {"torch", "torchio"}


def modules(folder):
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path, *, for_types=True):
    """Names of what a module imports anywhere in it, as written: `numpy`, `.labels`."""
    body = [node for node in parsed(path).body if for_types or not isinstance(node, ast.If)]
    names = set()
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            names |= {dots + (node.module or alias.name) for alias in node.names}
    return frozenset(names)


def libraries(path):
    return {name.split(".")[0] for name in imported(path)} - {""}


def calls_of(function, path):
    nodes = ast.walk(parsed(path))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return [node.lineno for node in calls if getattr(node.func, "id", None) == function]


def neighbours(path, *, for_types=True):
    """What a module of the core imports of the core, as (room or module, module or None)."""
    inside = path.relative_to(CORE).parent.parts
    found = set()
    for name in imported(path, for_types=for_types):
        dots = len(name) - len(name.lstrip("."))
        if 0 < dots <= len(inside) + 1:
            target = (*inside[: len(inside) + 1 - dots], *name[dots:].split("."))
            found.add((target[0], target[1] if target[1:] else None))
    return found


CORE_MODULES = sorted(path for path in CORE.rglob("*.py") if path.stem != "__init__")


def of_core(path):
    return path.relative_to(CORE).with_suffix("").as_posix()


def test_the_core_has_the_rooms_of_the_design():
    rooms = {path.name for path in CORE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(EDGES)
    assert set(modules(CORE)) == (FOR_EVERY_ROOM - {"compute"}) | set(ON_TOP)


@pytest.mark.parametrize("path", CORE_MODULES, ids=of_core)
def test_rooms_import_only_along_the_edges(path):
    room = path.relative_to(CORE).parts[0].removesuffix(".py")
    used = {home for home, _ in neighbours(path)} - {room}
    allowed = FOR_EVERY_ROOM if room in EDGES else FOR_EVERY_ROOM - {"compute"}
    assert used <= allowed | {**EDGES, **ON_TOP}.get(room, set())


@pytest.mark.parametrize("room", EDGES)
def test_modules_of_a_room_import_each_other_in_no_circle(room):
    waiting = {
        path.stem: {m for home, m in neighbours(path, for_types=False) if home == room}
        for path in (CORE / room).glob("*.py")
        if path.stem != "__init__"
    }
    while free := [module for module, needs in waiting.items() if not needs & set(waiting)]:
        for module in free:
            del waiting[module]
    assert waiting == {}


@pytest.mark.parametrize("room", EDGES)
def test_every_room_says_what_it_is_about(room):
    tree = parsed(CORE / room / "__init__.py")
    assert len(ast.get_docstring(tree)) > 40
    assert len(tree.body) == 1  # no re-exports


@pytest.mark.parametrize("path", CORE_MODULES, ids=of_core)
def test_core_neither_talks_nor_knows_the_command_line(path):
    assert not libraries(path) & {"typer", "rich", "click", "brats_cli"}
    assert calls_of("print", path) == []
    if path.relative_to(CORE).parts[0] in WITHOUT_NETWORK:
        assert not libraries(path) & {"torch", "torchio"}


@pytest.mark.parametrize("command", modules(PACKAGE / "commands"))
def test_commands_print_through_the_console_and_import_no_other_command(command):
    path = PACKAGE / "commands" / f"{command}.py"
    siblings = {name for name in imported(path) if name.startswith(".") and name[1] != "."}
    # The demo shows each step as its command does.
    shown = {f".{name}" for name in COMMANDS} if command == "demo" else set()
    assert siblings <= {".batch", ".options", ".train_view"} | shown
    assert "click" not in libraries(path)
    assert calls_of("print", path) == []


def test_the_console_knows_no_command_and_of_the_core_only_the_wording():
    names = {name for name in imported(PACKAGE / "console.py") if name.startswith(".")}
    assert names == {".core.wording"}


@pytest.mark.parametrize("library", AT_HOME)
def test_a_library_lives_in_one_module(library):
    users = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if library in libraries(path)
    }
    assert users == AT_HOME[library]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name):
    result = brats(name, "--help")
    assert result.exit_code == 0
    assert f"Example: brats {name}" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_has_a_help_text(name):
    command = typer.main.get_command(app).commands[name]
    assert [param.name for param in command.params if not param.help] == []


def loaded_after(*words, cwd, of=HEAVY):
    """Those `of` some modules that `brats WORDS`, which has to succeed, loads."""
    code = (
        "import sys; from brats_cli.app import app\n"
        "assert not app(sys.argv[1:], standalone_mode=False)"
    )
    return loaded_by(code, of, *words, cwd=cwd)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three patients' cases of 4 x 4 x 4 voxels, named as in 2021, with labels."""
    folder = tmp_path_factory.mktemp("shape") / "data"
    for number in range(3):
        # No two cases may hold the same image or the same tumour.
        labels = np.zeros((4, 4, 4), dtype=np.uint8)
        labels[1:3, 1:3, 1:3] = 4
        labels[1, 1, 1:3] = (1, 2)
        labels[3, 3, number] = 2
        write_case(folder, f"BraTS2021_0000{number}", labels, seed=number)
    for name in ("a.csv", "b.csv"):
        (folder.parent / name).write_text("case,region,dice,hausdorff95_mm\nA,WT,0.5,2\n")
    return folder


WORK = {
    "--help": ["--help"],
    "check": ["check", "data"],
    "split": ["split", "data"],
    "evaluate": ["evaluate", "data", "data", "--workers", "0"],
    "compare": ["compare", "a.csv", "b.csv"],
    "mesh": ["mesh", "data/BraTS2021_00000/BraTS2021_00000_seg.nii.gz"],
    "view": ["view", "data", "--seg", "data", "-o", "views", "--workers", "0"],
}


def test_all_work_without_torch_is_tried():
    assert set(WORK) == {"--help", *WITHOUT_TORCH}


NOT_NEEDED = {"evaluate": {"skimage"}, "mesh": {"medpy"}}
"""What commands leave alone besides."""


@pytest.mark.slow  # the processes, each with the libraries of its command
@pytest.mark.parametrize("name", WORK)
def test_work_that_needs_no_network_loads_no_torch(name, data):
    unused = HEAVY | NOT_NEEDED.get(name, set())
    assert loaded_after(*WORK[name], cwd=data.parent, of=unused) == set()


OF_TRAINING = {"SimpleITK", "blosc2", "matplotlib", "medpy", "tensorboard", "torchio"}


@pytest.mark.slow
def test_predict_loads_nothing_that_only_training_needs(data):
    from brats_cli.core.model.checkpoint import Checkpoint
    from brats_cli.core.model.network import UNet3D
    from brats_cli.core.train.config import TrainConfig

    config = TrainConfig(patch_size=8, network={"channels": 1, "levels": 2})
    weights = UNet3D(config.network, in_channels=4, out_channels=3).state_dict()
    run = data.parent / "runs" / "tiny"
    Checkpoint(weights, config.model_dump(mode="json"), "brats2020", 1, {}).save(run / "best.pt")
    (data.parent / "runs" / "latest").write_text("tiny\n")
    words = ("predict", "data/BraTS2021_00000", "-o", "seg.nii.gz", "--device", "cpu")
    training = {"brats_cli.core.train", "brats_cli.core.score", "brats_cli.core.prepared.store"}
    assert loaded_after(*words, cwd=data.parent, of=OF_TRAINING | training) == set()
    assert (data.parent / "seg.nii.gz").is_file()


def test_help_loads_no_numerical_library():
    numerical = {"torch", "torchio", "numpy", "scipy", "nibabel"}
    assert loaded_by("import brats_cli.app", numerical) == set()
