import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import torch

from brats_cli.core.compute.devices import describe
from brats_cli.core.errors import BratsError
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.predict.many import predict


def test_threads_of_an_executor_share_the_models_and_make_the_same_files(
    model, phantoms, tmp_path, monkeypatch
):
    read = []
    load = Checkpoint.load.__func__
    monkeypatch.setattr(
        Checkpoint, "load", classmethod(lambda cls, path: read.append(path) or load(cls, path))
    )
    wanted = {"model": model, "device": "cpu", "probabilities": True}
    list(predict(phantoms, output=tmp_path / "one", **wanted))
    before = len(read)
    shares = []
    with ThreadPoolExecutor(4) as executor:
        started, *done = predict(
            phantoms,
            output=tmp_path / "other",
            executor=executor,
            on_progress=lambda *share: shares.append(share),
            **wanted,
        )
    assert len(read) - before == 2  # to see whether they can be averaged, and to compute
    assert started.cases == 4
    assert started.devices == (f"{describe(torch.device('cpu'))} of each worker",)
    assert shares == [(1, 4), (2, 4), (3, 4), (4, 4)]
    maps = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.nii.gz")}
    assert len(maps) == 8
    assert maps == {path.name: path.read_bytes() for path in (tmp_path / "other").glob("*.nii.gz")}
    lines = (tmp_path / "other" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == [each.case for each in done]


def test_one_bad_case_stops_no_other_on_an_executor(model, phantoms, tmp_path):
    folder = shutil.copytree(phantoms, tmp_path / "data")
    damaged = folder / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t1c.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    with ThreadPoolExecutor(2) as executor:
        _, *done = predict(
            folder, output=tmp_path / "out", model=model, device="cpu", executor=executor
        )
    (error,) = (each for each in done if isinstance(each, BratsError))
    assert str(damaged) in str(error)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
