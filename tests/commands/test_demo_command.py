import pytest
from helpers import assert_refused, brats

import brats_cli

pytestmark = pytest.mark.skipif(
    not {"train", "evaluate", "mesh"} <= set(brats_cli.__all__),
    reason="the API does not have all steps yet",
)


def test_the_demo_shows_every_command_and_what_it_made(tmp_path):
    result = brats("demo", tmp_path / "demo", "--small", "--device", "cpu")
    assert result.exit_code == 0, result.output
    shown = [line for line in result.stderr.splitlines() if line.startswith("$ brats ")]
    assert [line.split()[2] for line in shown] == ["split", "train", "predict", "evaluate", "mesh"]
    assert f"-o {tmp_path / 'demo/splits.yaml'} --ratios 60/15/25 --seed 0" in shown[0]
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert rows[-6:] == ["phantoms", "split", "train", "predict", "evaluate", "mesh"]

    again = brats("demo", tmp_path / "demo", "--small", "--device", "cpu")
    assert_refused(again, f"{tmp_path / 'demo/config.yaml'} exists already", "--overwrite")
