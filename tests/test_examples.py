"""The examples that are programs, run on synthetic cases."""

import importlib.util
from pathlib import Path

import pytest
from helpers import TINY

import brats_cli
from brats_cli.core.data.phantom import write_phantoms

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(
    not {"train", "evaluate", "mesh"} <= set(brats_cli.__all__), reason="not in the API yet"
)
def test_the_python_api_leads_from_a_folder_to_scores_and_meshes(tmp_path, capsys):
    write_phantoms(tmp_path / "data", cases=9, shape=(40, 48, 36))
    network = {f"network.{key}": value for key, value in TINY["network"].items()}
    settings = {key: TINY[key] for key in TINY.keys() - {"network"}} | network
    example("python_api").main(tmp_path / "data", tmp_path / "out", device="cpu", settings=settings)
    printed = capsys.readouterr().out
    assert printed.startswith("9 cases, 0 errors\n")
    assert "epoch 1: loss " in printed
    assert "whole-tumour Dice 0." in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "splits.yaml",
        "run",
        "predictions",
        "scores.csv",
    }
