import pytest

import brats_cli
from brats_cli.core.demo import DemoFinished, DemoStep, demo
from brats_cli.core.errors import OutputExistsError

COMPLETE = {"train", "evaluate", "mesh"} <= set(brats_cli.__all__)
needs_all = pytest.mark.skipif(not COMPLETE, reason="the API does not have all steps yet")


@needs_all
def test_every_step_is_done_before_the_next_begins_though_nobody_looks(tmp_path):
    made_by = {
        "split": "splits.yaml",
        "train": "runs/demo/best.pt",
        "predict": "predictions/predictions.jsonl",
        "evaluate": "scores.csv",
    }
    begun = []
    for step in demo(tmp_path, device="cpu", small=True):
        for name in begun:
            assert name == "mesh" or (tmp_path / made_by[name]).is_file()
        if isinstance(step, DemoStep):
            assert step.command.startswith(f"brats {step.name} ")
            begun.append(step.name)
    assert begun == ["split", "train", "predict", "evaluate", "mesh"]
    assert isinstance(step, DemoFinished)
    assert [made.step for made in step.made] == ["phantoms", *begun]
    assert all(made.where.exists() for made in step.made if made.step != "mesh")


@needs_all
def test_an_earlier_demo_is_replaced_only_on_request(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"config.yaml exists already"):
        next(demo(tmp_path, small=True))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"
    next(demo(tmp_path, small=True, overwrite=True))
