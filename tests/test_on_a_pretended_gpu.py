"""What `brats` does on a GPU, rehearsed without one: see `pretended_gpu`.

Beside right results, a budget is held: a training step makes the CPU wait for the GPU never, and a
window once at most. Who adds a `.item()` to either finds its line in the failure.
"""

import copy
import gc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers import brats, stdout_of
from pretended_gpu import DeviceMismatch, Pretended, Race, Rehearsal
from torch.autograd.graph import saved_tensors_hooks

from brats_cli.core.compute.devices import autocast
from brats_cli.core.data.labels import REGIONS, SCHEMES
from brats_cli.core.data.phantom import write_phantoms
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D, make_network, on_device
from brats_cli.core.model.sliding import SlidingWindow
from brats_cli.core.model.sliding import probabilities as of_imported
from brats_cli.core.model.summary import costs
from brats_cli.core.model.windows import probabilities
from brats_cli.core.prepared.store import StoredCase
from brats_cli.core.train.config import AugmentConfig, TrainConfig
from brats_cli.core.train.events import CaseValidated, Epoch, StepDone
from brats_cli.core.train.learner import TrainingError
from brats_cli.core.train.thresholds import select_thresholds
from brats_cli.core.train.training import profile, train
from brats_cli.core.train.transfer import Transfer

CPU = torch.device("cpu")
SCHEME = SCHEMES["brats2023"]

EVERYTHING = AugmentConfig(
    spatial=1, noise=1, blur=1, brightness=1, contrast=1, low_resolution=1, gamma=1
)
TINY = TrainConfig(
    epochs=2,
    steps_per_epoch=2,
    patch_size=16,
    modalities=("t1", "flair"),
    network=UNetConfig(channels=4, levels=3),
    augmentation=EVERYTHING,
    precision="float32",
    workers=0,
)


@pytest.fixture(scope="module")
def cases():
    """Three cases of noise, each with a bright tumour of nested boxes."""
    made = []
    for seed in range(3):
        labels = np.zeros((20, 18, 17), np.uint8)
        for value, inset in ((2, 0), (1, 2), (3, 3)):
            box = slice(3 + seed + inset, 12 + seed - inset)
            labels[box, box, box] = value
        images = np.random.default_rng(seed).normal(0, 0.3, (2, *labels.shape)).astype(np.float16)
        images[0] += np.array([0, 1, 0, 2], np.float16)[labels]
        images[1] += 2 * (labels > 0)
        masks = dict(zip(REGIONS, SCHEME.masks(labels), strict=True))
        masks["brain"] = np.ones(labels.shape, bool)
        centres = {name: np.argwhere(mask).astype(np.int16) for name, mask in masks.items()}
        made.append(StoredCase(f"case{seed}", images, labels, centres))
    return made


NOTHING = AugmentConfig(enabled=False)


def losses(config, cases, device, **options):
    events = train(config, cases, [], SCHEME, device, **options)
    return [event.loss for event in events if isinstance(event, Epoch)]


class Trained:
    """A training of two epochs that validates two cases after each.

    Attributes:
        losses: By epoch.
        dice: By validated case, a list by region.
        waits: How often a GPU was waited for until then, by validated case.
        checkpoints: By epoch, as they are on disk.
    """

    # Noise alone is drawn by each device for itself.
    CONFIG = TINY.model_copy(
        update={"augmentation": EVERYTHING.model_copy(update={"noise": 0}), "ema_decay": 0.9}
    )

    def __init__(self, cases, device, folder, gpu=None):
        self.losses, self.dice, self.waits, self.checkpoints = [], [], [], []
        for event in train(self.CONFIG, cases, cases[:2], SCHEME, device):
            if isinstance(event, CaseValidated):
                self.dice.append(list(event.dice.values()))
                self.waits.append(gpu.count("wait") if gpu else 0)
            elif isinstance(event, Epoch):
                self.losses.append(event.loss)
                event.checkpoint.save(folder / f"{event.number}.pt")
                self.checkpoints.append(Checkpoint.load(folder / f"{event.number}.pt"))


@pytest.fixture(scope="module")
def on_gpu(cases, tmp_path_factory):
    """What was trained, and the rehearsal that it was trained in."""
    with Rehearsal() as gpu:
        return Trained(cases, gpu.device, tmp_path_factory.mktemp("gpu"), gpu), gpu


@pytest.fixture(scope="module")
def on_cpu(cases, tmp_path_factory):
    return Trained(cases, CPU, tmp_path_factory.mktemp("cpu"))


# --- training ----------------------------------------------------------------------------------

SETTINGS = {
    "as it is": {},
    "float16, average, clipped": {
        "precision": "float16",
        "ema_decay": 0.9,
        "clip_norm": 1.0,
        "accumulate": 2,
        "augmentation": NOTHING,
    },
    "bfloat16, deep supervision": {
        "precision": "bfloat16",
        "network": UNetConfig(channels=4, levels=4, norm="instance", deep_supervision=True),
        # The lowest level has 3 voxels: at 2, as a CPU computes them, gradients may be NaN.
        "patch_size": 24,
        "loss": "dice_focal",
        "augmentation": NOTHING,
    },
    "SGD, dropout, no padding": {
        "optimizer": "sgd",
        "network": UNetConfig(
            channels=4, levels=2, norm="group", padding="valid", dropout=0.2, upsampling="trilinear"
        ),
        "patch_size": 20,
        "schedule": "cosine",
        "augmentation": NOTHING,
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_training_step_never_waits_for_the_gpu(cases, settings):
    config = TINY.model_copy(update={"epochs": 1, **settings})
    waited = []
    with Rehearsal() as gpu:
        for event in train(config, cases, [], SCHEME, gpu.device):
            if isinstance(event, StepDone):
                waited.append(gpu.count("wait"))
        assert event.peak_memory_mb == 5000  # what PyTorch has reserved since this run began
        assert gpu.count("call", "reset_peak") == 1
        assert waited == waited[:1] * 2, gpu.waits()
        # The losses of the epoch, all at once; and two numbers of float16 for the checkpoint.
        assert gpu.count("wait") <= waited[0] + 3, gpu.waits()
    # The first step as well: before it, there is the network alone, a copy for each weight.
    assert {where.split(":")[0] for _, where, *_ in gpu.waits()} <= {
        "core/model/network.py",
        "core/train/learner.py",
    }
    # PyTorch's scaler inverts its scale in float64 where gradients are clipped.
    assert gpu.count("float64") == 0 or config.precision == "float16"


def test_convolutions_on_a_gpu_are_as_fast_as_they_can_be(cases, monkeypatch):
    # cuDNN looks for its fastest algorithm in training, which has one shape, and only there;
    # weights lie as it needs them.
    searches, real = [], UNet3D.forward

    def note(net, images):
        searches.append((net.training, torch.backends.cudnn.benchmark))
        weights = [each for each in net.parameters() if each.dim() == 5]
        assert all(each.is_contiguous(memory_format=torch.channels_last_3d) for each in weights)
        return real(net, images)

    monkeypatch.setattr(UNet3D, "forward", note)
    with Rehearsal() as gpu:
        config = TINY.model_copy(update={"epochs": 1, "augmentation": NOTHING})
        list(train(config, cases, cases[:1], SCHEME, gpu.device))
    assert searches == [(True, True), (True, True), (False, False)]


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_a_gpu_keeps_as_much_as_the_summary_says(norm):
    config = UNetConfig(channels=4, levels=2, norm=norm)
    here = make_network(config, in_channels=2, out_channels=3, patch_size=16)
    kept = {}

    def keep(tensor):
        storage = vars(tensor)["inner"].untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with Rehearsal() as gpu:
        net = on_device(copy.deepcopy(here), gpu.device).train()
        images = torch.rand(2, 2, 16, 16, 16).to(gpu.device, torch.bfloat16)
        with saved_tensors_hooks(keep, lambda each: each), autocast(gpu.device, torch.bfloat16):
            net(images)
        own = {vars(each)["inner"].data_ptr() for each in (*net.parameters(), *net.buffers())}
    found = sum(each.nbytes() for place, each in kept.items() if place not in own)
    half = {"dtype": torch.bfloat16, "device": torch.device("cuda")}
    told = costs(here, in_channels=2, patch_size=16, **half)
    # A GPU keeps copies of the weights in half precision as well.
    assert found == pytest.approx(2 * sum(part.kept_bytes for part in told), rel=0.02)


def test_apples_gpu_is_given_no_float64(cases):
    # Which it does not have: the rehearsal raises what it would.
    config = TINY.model_copy(update={"epochs": 1, "steps_per_epoch": 1, "ema_decay": 0.9})
    with Rehearsal("mps:0") as gpu:
        (there,) = losses(config, cases, gpu.device)
    assert there == pytest.approx(losses(config, cases, CPU)[0], rel=1e-6)


def test_training_validating_resuming_and_thresholds_are_those_of_the_cpu(cases, on_gpu, on_cpu):
    trained, _ = on_gpu
    first, last = trained.checkpoints
    with Rehearsal() as gpu:
        resumed = losses(Trained.CONFIG, cases, gpu.device, resume=first)
        finished = result(select_thresholds(last, cases[:2], gpu.device))
    assert resumed == trained.losses[1:]
    assert all(weight.is_contiguous() for weight in last.weights.values())
    assert trained.losses == pytest.approx(on_cpu.losses, rel=1e-6)
    assert trained.dice == [pytest.approx(each, abs=1e-3) for each in on_cpu.dice]
    expected = result(select_thresholds(last, cases[:2], CPU))
    assert finished[0].decision == expected[0].decision
    assert finished[0].scores == pytest.approx(expected[0].scores)


def result(work):
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_a_validated_case_waits_for_its_transfer_and_its_counts_alone(on_gpu):
    trained, gpu = on_gpu
    first, second, third, fourth = trained.waits
    # Images, labels, and nine numbers back.
    assert [second - first, fourth - third] == [3, 3], gpu.waits()


def test_a_run_resumes_in_another_precision(cases, on_gpu, tmp_path):
    checkpoint = on_gpu[0].checkpoints[0]
    with Rehearsal() as gpu:
        for number, precision in enumerate(["float16", "bfloat16", "float32"], start=2):
            config = Trained.CONFIG.model_copy(
                update={
                    "epochs": number,
                    "precision": precision,
                    "steps_per_epoch": 1,
                    "augmentation": NOTHING,
                }
            )
            events = train(config, cases, [], SCHEME, gpu.device, resume=checkpoint)
            (epoch,) = (event for event in events if isinstance(event, Epoch))
            assert np.isfinite(epoch.loss)
            epoch.checkpoint.save(tmp_path / "last.pt")
            checkpoint = Checkpoint.load(tmp_path / "last.pt")
    assert checkpoint.epoch == 4


def test_a_run_of_the_gpu_resumes_on_the_cpu_and_back(cases, on_gpu, on_cpu):
    trained, _ = on_gpu
    (moved,) = losses(Trained.CONFIG, cases, CPU, resume=trained.checkpoints[0])
    assert moved == pytest.approx(trained.losses[1], rel=1e-6)
    with Rehearsal() as gpu:
        (back,) = losses(Trained.CONFIG, cases, gpu.device, resume=on_cpu.checkpoints[0])
    assert back == pytest.approx(trained.losses[1], rel=1e-6)


def test_training_that_does_not_fit_says_so(cases, monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(UNet3D, "forward", refuse)
    with Rehearsal() as gpu, pytest.raises(TrainingError) as caught:
        losses(TINY, cases, gpu.device)
    assert str(caught.value) == (
        "training on 2 patches of 16^3 voxels at once does not fit into the 80 GB of cuda:0"
    )
    assert caught.value.hint.startswith("continue with --resume --set batch_size=1, or ")
    single = TINY.model_copy(update={"batch_size": 1})
    with Rehearsal() as gpu, pytest.raises(TrainingError) as caught:
        losses(single, cases, gpu.device)
    assert caught.value.hint.startswith("continue with --resume --set patch_size=8, or ")
    with pytest.raises(TrainingError, match="does not fit into the memory of this machine"):
        losses(TINY, cases, CPU)


def test_the_bottleneck_is_judged_by_what_the_gpu_idles(cases):
    # A pretended event comes a microsecond after the one before, whatever the CPU does.
    quick = TINY.model_copy(update={"augmentation": NOTHING})
    with Rehearsal() as gpu:
        found = profile(quick, cases, SCHEME, gpu.device, steps=2)
    assert found.data_wait_percent < 0.1


# --- prediction --------------------------------------------------------------------------------


def network(device=CPU, **settings):
    torch.manual_seed(0)
    made = make_network(
        UNetConfig(**{"channels": 4, "levels": 3} | settings),
        in_channels=2,
        out_channels=3,
        patch_size=16,
    )
    return on_device(made, device).eval()


@pytest.mark.parametrize(
    ("settings", "edge", "windows"),
    # 44 voxels in windows of about 16; in those of 16 that overlap by half; all in one pass.
    [({}, 16, 3), ({"norm": "instance"}, 16, 5), ({"padding": "valid"}, 44, 1)],
    ids=["batch", "instance", "valid"],
)
def test_a_window_waits_once_at_most(settings, edge, windows):
    images = torch.randn(2, 44, 16, 16)
    shares = []
    with Rehearsal() as gpu:
        net = network(gpu.device, **settings)
        before = gpu.count("wait")
        found = probabilities(
            net, images, patch_size=edge, device=gpu.device, on_share=shares.append
        )
        waited = gpu.count("wait") - before
        found = found.cpu()
    assert len(shares) == windows
    assert waited == 1, gpu.waits()  # for the case, however many windows there are
    here = probabilities(network(**settings), images, patch_size=edge, device=CPU)
    torch.testing.assert_close(found, here, atol=1e-6, rtol=0)


IMPORTED = SlidingWindow(rule="nnunet", window=(16, 16, 16), mirror_axes=(0,))


def test_imported_windows_do_not_wait_either():
    images = torch.randn(2, 24, 16, 16)  # in two windows
    with Rehearsal() as gpu:
        net = network(gpu.device)
        before = gpu.count("wait")
        found = of_imported(net, images, IMPORTED, device=gpu.device, tta=True)
        assert gpu.count("wait") - before == 1, gpu.waits()  # for the case
        found = found.cpu()
    here = of_imported(network(), images, IMPORTED, device=CPU, tta=True)
    torch.testing.assert_close(found, here, atol=1e-6, rtol=0)


def test_imported_windows_go_on_with_the_sums_on_the_cpu(monkeypatch):
    images, calls = torch.randn(2, 24, 16, 16), []
    with Rehearsal() as gpu:
        net = network(gpu.device)
        real = net.output.forward

        def refuse(features):
            calls.append(gpu.count("call", "empty_cache"))
            if len(calls) == 2:  # in the second window
                raise torch.OutOfMemoryError
            return real(features)

        monkeypatch.setattr(net.output, "forward", refuse)
        found = of_imported(net, images, IMPORTED, device=gpu.device)
    assert calls == [0, 0, 1, 1]
    assert found.device == CPU
    here = of_imported(network(), images, IMPORTED, device=CPU)
    torch.testing.assert_close(found, here, atol=1e-6, rtol=0)


def test_a_small_card_gives_the_cpus_answer():
    images = torch.randn(2, 44, 20, 20)
    with Rehearsal() as gpu:
        gpu.free = 1_700_000  # the case takes more than a quarter of what a network may have
        shares = []
        net = network(gpu.device, channels=2)
        found = probabilities(net, images, patch_size=44, device=gpu.device, on_share=shares.append)
    assert len(shares) > 1
    assert found.device == CPU
    here = probabilities(network(channels=2), images, patch_size=44, device=CPU)
    torch.testing.assert_close(found, here, atol=0.05, rtol=0)  # in windows of another size


@pytest.fixture
def _all_before_aside():
    """The collector looks at nothing that there was before the test: else it takes a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_all_before_aside")
def test_nothing_of_a_failed_pass_is_alive_when_memory_is_given_back(monkeypatch):
    tries, left = [], []
    with Rehearsal() as gpu:
        net = network(gpu.device)
        images = torch.randn(2, 24, 20, 20)
        before = bytes_alive()
        real = net.output.forward

        def refuse(features):
            tries.append(tuple(features.shape[2:]))
            if len(tries) < 3:
                raise torch.OutOfMemoryError
            return real(features)

        monkeypatch.setattr(net.output, "forward", refuse)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(bytes_alive()))
        probabilities(net, images, patch_size=64, device=gpu.device)
    assert before > 0
    assert left == [before, before]
    # Smaller at once: not the same window again with the sums elsewhere.
    sizes = [np.prod(size) for size in tries[:3]]
    assert sizes[0] > sizes[1] > sizes[2]


def bytes_alive():
    gc.collect()
    storages = {
        vars(each)["inner"].untyped_storage().data_ptr(): vars(each)["inner"].nbytes
        for each in gc.get_objects()
        if type(each) is Pretended and "inner" in vars(each)
    }
    return sum(storages.values())


# --- commands ----------------------------------------------------------------------------------


SMALL = [
    *("--set", "network.channels=2", "--set", "network.levels=2", "--set", "patch_size=32"),
    *("--set", "steps_per_epoch=1", "--set", "precision=float32", "--workers", "0"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretended")
    write_phantoms(folder / "data", cases=3, shape=(32, 33, 34))
    *visits, other = sorted(case.name for case in (folder / "data").iterdir())
    content = {
        "format": "brats-splits/1",
        "data": str(folder / "data"),
        "labels": "brats2023",
        "seed": 0,
        "folds": [{"train": visits, "val": [other]}],
        "test": [],
    }
    (folder / "splits.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_the_commands_run_with_gpu_0(data, monkeypatch):
    monkeypatch.chdir(data)
    # Of numbers in the log, as on any device; it takes a sixth of the test.
    monkeypatch.setattr("brats_cli.core.train.run_record.draw_curves", lambda rows, path: None)
    case = min(Path("data").iterdir())
    with Rehearsal():
        found = brats("train", "-o", "runs/a", "--epochs", "1", "--gpu", "0", *SMALL)
        assert found.exit_code == 0, found.output
        assert "training on cuda:0 (a pretended GPU) in float32" in found.stderr
        stdout_of(
            "train", "-o", "runs/a", "--epochs", "2", "--gpu", "0", "--resume", "--workers", "0"
        )
        stdout_of("train", "--gpu", "0", "--summary", *SMALL)
        several = ["--model", "runs/a/best.pt", "--model", "runs/a/last.pt"]
        options = ["--tta", "--uncertainty", "--probabilities", *several]
        stdout_of("predict", case, "-o", "there.nii.gz", "--gpu", "0", *options)
    stdout_of("predict", case, "-o", "here.nii.gz", "--device", "cpu", *options)
    for kind, step in (("", 0), ("_probabilities", 1e-3), ("_uncertainty", 1)):
        here, there = (nib.load(f"{place}{kind}.nii.gz").get_fdata() for place in ("here", "there"))
        np.testing.assert_allclose(there, here, atol=step)


def test_a_gpu_that_is_not_there_and_one_that_is_too_small_are_two_lines(data, monkeypatch):
    monkeypatch.chdir(data)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Rehearsal():
        found = brats("train", "-o", "runs/b", "--gpu", "1", *SMALL)
        assert found.exit_code == 3, found.output
        assert found.stderr.splitlines()[0] == (
            "error: this machine has no GPU 1 (CUDA devices found: 1)"
        )
        monkeypatch.setattr(UNet3D, "forward", refuse)
        found = brats("train", "-o", "runs/b", "--gpu", "0", *SMALL)
        assert found.exit_code == 3, found.output
    error, hint = found.stderr.splitlines()[-2:]
    assert error.startswith("error: training on 2 patches of 32^3 voxels at once does not fit")
    assert hint.startswith(" hint: continue with --resume --set batch_size=1")


# --- the rehearsal itself ----------------------------------------------------------------------


def test_the_rehearsal_raises_what_a_gpu_would():
    with Rehearsal() as gpu:
        there = torch.ones(3, device=gpu.device)
        assert (there + 1).device == gpu.device
        assert (there * 2).sum().item() == 6
        with pytest.raises(DeviceMismatch, match="at least two devices, cuda:0 and cpu"):
            there + torch.ones(3)
        with pytest.raises(DeviceMismatch, match="generator"):
            there.normal_(generator=torch.Generator())
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()
    assert gpu.count("wait") == 1  # .item()


def test_the_rehearsal_counts_waits():
    with Rehearsal() as gpu:
        there = torch.ones(3).to(gpu.device)  # blocks
        torch.ones(3).to(gpu.device, non_blocking=True)  # of pageable memory: blocks as well
        torch.ones(3).pin_memory().to(gpu.device, non_blocking=True)
        there.nonzero()
        there[there > 0]
        there.cpu()
    assert gpu.count("wait") == 5


def patches(value):
    return [np.full((1, 2, 2, 2), value, np.float16)], [np.full((2, 2, 2), value, np.uint8)], ["a"]


def test_batches_arrive_as_they_were_stacked():
    with Rehearsal() as gpu:
        transfer = Transfer(gpu.device)
        sent = [transfer.send(transfer.stack(*patches(value))) for value in range(5)]
        assert gpu.count("wait") == 0
        assert [batch.images.max().item() for batch in sent] == [0, 1, 2, 3, 4]
        assert [batch.labels.min().item() for batch in sent] == [0, 1, 2, 3, 4]


def test_a_copy_that_is_not_waited_for_is_a_race(monkeypatch):
    with Rehearsal() as gpu:
        monkeypatch.setattr(type(torch.cuda.current_stream()), "wait_stream", lambda *_: None)
        transfer = Transfer(gpu.device)
        batch = transfer.send(transfer.stack(*patches(1)))
        with pytest.raises(Race, match="another stream still copies"):
            batch.images + 1


def test_page_locked_memory_that_is_filled_too_early_is_a_race(monkeypatch):
    with Rehearsal() as gpu:
        transfer = Transfer(gpu.device)
        transfer.send(transfer.stack(*patches(1)))
        buffer = transfer._buffers[transfer._turn]
        buffer.images.numpy()[:] = 7  # not after its event
        with pytest.raises(Race, match="overwritten while it was copied"):
            buffer.copied.synchronize()
        buffer.images.numpy()[:] = 1  # or it is found again at the end


def test_a_half_is_stored_as_a_half():
    # A case of a store travels as it is, and is widened on the GPU.
    images = torch.randn(2, 16, 16, 16).half()
    with Rehearsal() as gpu:
        net = network(gpu.device)
        start = len(gpu.events)
        probabilities(net, images, patch_size=16, device=gpu.device)
        sizes = [e.size for e in gpu.events[start:] if e.operation == "to the device"]
    assert sizes[0] == images.nbytes
