import pytest
import torch

from brats_cli.core.compute import devices
from brats_cli.core.compute.devices import (
    arithmetic,
    autocast,
    choose_device,
    choose_devices,
    describe,
    is_out_of_memory,
    memory_for_network,
)
from brats_cli.core.compute.machine import CPU_BYTES
from brats_cli.core.errors import ConfigError, DeviceError

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without accelerators, whatever this one is."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says it has two CUDA devices."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


# --- the device asked for ----------------------------------------------------------------------


def test_auto_is_the_cpu_where_there_is_nothing_else(no_gpu):
    assert choose_device() == CPU


def test_auto_is_the_first_gpu_where_there_is_one(two_gpus):
    assert choose_device() == torch.device("cuda", 0)


def test_auto_is_apples_gpu_before_the_cpu(no_gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")


def test_a_number_of_a_gpu_goes_before_the_device(two_gpus):
    assert choose_device("cpu", gpu=1) == torch.device("cuda", 1)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(("device", "gpu"), [("auto", 0), ("cuda", None), ("cuda:0", None)])
def test_a_gpu_that_is_not_there_says_how_many_are_and_what_to_use(no_gpu, device, gpu):
    with pytest.raises(DeviceError) as caught:
        choose_device(device, gpu)
    assert str(caught.value) == "this machine has no GPU 0 (CUDA devices found: 0)"
    assert caught.value.hint == "use --device cpu, or check the driver with nvidia-smi"


def test_a_gpu_that_is_hidden(two_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(DeviceError, match="this machine has no GPU 3") as caught:
        choose_device(gpu=3)
    assert caught.value.hint == (
        "CUDA_VISIBLE_DEVICES=3,5 hides the others, and --gpu counts from 0 those it shows"
    )


def test_the_third_of_two_gpus(two_gpus):
    with pytest.raises(DeviceError) as caught:
        choose_device(gpu=2)
    assert str(caught.value) == "this machine has no GPU 2 (CUDA devices found: 2)"


def test_no_apple_gpu(no_gpu):
    with pytest.raises(DeviceError, match="no Apple GPU") as caught:
        choose_device("mps")
    assert caught.value.hint == "use --device cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", ""])
def test_a_device_that_torch_does_not_know(device):
    with pytest.raises(DeviceError) as caught:
        choose_device(device)
    assert str(caught.value) == f"there is no device '{device}'"
    assert caught.value.hint == "use --device auto, cpu, cuda or mps"


def test_a_device_that_torch_knows_and_brats_does_not():
    with pytest.raises(DeviceError, match="brats does not run on 'meta'"):
        choose_device("meta")


@pytest.mark.parametrize(("threads", "told"), [(1, "cpu (1 thread)"), (2, "cpu (2 threads)")])
def test_a_cpu_is_described_by_its_threads(monkeypatch, threads, told):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert describe(CPU) == told


def test_several_gpus_are_chosen_by_their_numbers(two_gpus):
    assert choose_devices("auto", "0, 1") == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert choose_devices("cpu", "1") == [torch.device("cuda", 1)]
    with pytest.raises(DeviceError, match="this machine has no GPU 2"):
        choose_devices("auto", "0,2")


def test_without_gpus_there_is_one_device(no_gpu):
    assert choose_devices() == choose_devices("cpu") == [CPU]


@pytest.mark.parametrize("gpus", ["0,0", "a", "0,", "", "-1", "1.5"])
def test_what_does_not_number_gpus_is_named(gpus):
    with pytest.raises(ConfigError) as caught:
        choose_devices("auto", gpus)
    assert str(caught.value) == " ".join(f"--gpu {gpus} does not number GPUs".split())
    assert caught.value.hint == "write --gpu 0, or --gpu 0,1 for several"


# --- arithmetic --------------------------------------------------------------------------------


def test_the_precision_asked_for_is_taken():
    assert arithmetic(CPU, "float32") == torch.float32
    assert arithmetic(CPU, "bfloat16") == torch.bfloat16


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags : fpu avx2 avx512f", torch.float32),
        ("flags : avx512f avx512_bf16 amx_bf16", torch.bfloat16),
        ("", torch.float32),
    ],
)
def test_auto_on_a_cpu_follows_what_it_computes_natively(monkeypatch, flags, dtype):
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    assert arithmetic(CPU, "auto") == dtype


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((9, 0), torch.bfloat16),  # H100
        ((8, 0), torch.bfloat16),  # A100
        ((7, 5), torch.float16),  # T4
        ((7, 0), torch.float16),  # V100
        ((6, 1), torch.float32),  # GTX 1080
    ],
)
def test_auto_on_a_gpu_is_what_that_one_computes_fast(monkeypatch, capability, dtype):
    # The other GPU of the machine, the one that PyTorch asks first, is of another kind.
    kinds = {0: (3, 0), 1: capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: kinds[device.index])
    assert arithmetic(torch.device("cuda", 1), "auto") == dtype


def test_autocast_computes_in_the_type_and_leaves_float32_alone():
    matrix = torch.ones(4, 4)
    with autocast(CPU, torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert (matrix @ matrix).dtype == torch.float32


# --- what there is -----------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "expected"), [(10 * 2**30, CPU_BYTES), (2**30, int(0.6 * 2**30))])
def test_a_pass_on_the_cpu_takes_3_gib_or_six_tenths_of_what_is_free(monkeypatch, free, expected):
    monkeypatch.setattr(devices, "free_memory", lambda: free)
    assert memory_for_network(CPU) == expected


def test_what_pytorch_keeps_of_a_gpus_memory_is_free(monkeypatch):
    # A card of 8 GB: the driver has 0.6 left, and of the 7.4 that PyTorch has taken 1.4 are in use.
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (6 * 10**8, 8 * 10**9))
    monkeypatch.setattr(cuda, "memory_reserved", lambda device: 74 * 10**8)
    monkeypatch.setattr(cuda, "memory_allocated", lambda device: 14 * 10**8)
    # 0.8 of 0.6 + 6.0
    assert memory_for_network(torch.device("cuda", 0)) == pytest.approx(5.28e9)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_is_out(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_machines_own_memory_runs_out_as_well():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_what_lies_beside_a_pass_is_not_for_it(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: 10 * 2**30)
    assert memory_for_network(CPU, beside=2**30) == CPU_BYTES - 2**30


# --- with a GPU --------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_is_found_described_and_has_memory():
    device = choose_device(gpu=0)
    assert describe(device) == f"cuda:0 ({torch.cuda.get_device_name(0)})"
    assert 0 < memory_for_network(device) <= torch.cuda.get_device_properties(0).total_memory
