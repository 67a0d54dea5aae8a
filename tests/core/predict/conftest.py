import pytest
import torch

from brats_cli.core.data.finding import find_cases
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.predict.outputs import Job
from brats_cli.core.train.config import TrainConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint that finds WT with 0.9 anywhere, and TC and ET with 0.1."""
    config = TrainConfig(
        patch_size=16, precision="float32", network=UNetConfig(channels=2, levels=2)
    )
    net = UNet3D(config.network, in_channels=4, out_channels=3)
    with torch.no_grad():
        net.output.weight.zero_()
        net.output.bias.copy_(torch.logit(torch.tensor([0.9, 0.1, 0.1])))
    path = tmp_path_factory.mktemp("model") / "best.pt"
    Checkpoint(net.state_dict(), config.model_dump(mode="json"), "brats2023", 1, {}).save(path)
    return path


@pytest.fixture
def jobs(phantoms, tmp_path):
    return [Job(case, tmp_path / f"{case.id}.nii.gz") for case in find_cases(phantoms)]
