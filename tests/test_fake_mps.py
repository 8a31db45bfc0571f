# SPDX-License-Identifier: MIT
"""The emulated Apple GPU itself: what it counts, what it refuses, and that its numbers are those of the CPU."""

import copy
import ctypes
import faulthandler
import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from . import fake_mps  # noqa: E402

ROOT = Path(__file__).parents[1]
TILES = ROOT / "csrc" / "torch" / "tiles.metal"
BYTES_LINE = b"#define HALOTILE_ARGUMENT_BYTES 1\n"
FAULTS = {signal.SIGSEGV, signal.SIGBUS}
TAG = 1 << 52  # what device addresses carry
ARRAY = 17  # the first buffer of an array


@pytest.fixture(scope="session")
def loaded():
    return fake_mps.for_tests()


@pytest.fixture
def gpu(loaded):
    """The device with nothing counted and nothing set; a violation that the test did not take fails it."""
    loaded.reset_settings()
    loaded.take_violations()
    loaded.reset_counts()
    yield loaded
    loaded.reset_settings()
    assert loaded.take_violations() == []


def on_device(array):
    return torch.as_tensor(array).to("fakemps")


def caught(gpu, *parts):
    """One violation has been noted, with these parts in its text."""
    taken = gpu.take_violations()
    assert len(taken) == 1, taken
    assert all(part in taken[0] for part in parts), taken


def killed_by(action):
    """The signal that ends a process that does this, or 0."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            action()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


# ---- memory and transfers --------------------------------------------------------------------------------------------


def test_the_host_cannot_touch_device_memory(gpu):
    address = torch.ones(4, device="fakemps").data_ptr()
    assert killed_by(lambda: None) == 0
    assert killed_by(lambda: ctypes.string_at(address, 4)) in FAULTS
    assert killed_by(lambda: ctypes.memset(address, 0, 4)) in FAULTS


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.int64])
def test_the_guard_ends_arrays_at_a_page_that_faults(gpu, dtype):
    gpu.set_guard(True)
    t = torch.ones(5, dtype=dtype, device="fakemps")
    host = t.data_ptr() - TAG
    assert ctypes.string_at(host, t.nbytes) == torch.ones(5, dtype=dtype).numpy().tobytes()
    assert killed_by(lambda: ctypes.string_at(host, t.nbytes)) == 0
    assert killed_by(lambda: ctypes.string_at(host, t.nbytes + 1)) in FAULTS


def test_the_guard_may_be_asked_for_by_the_environment(gpu):
    program = "from tests import fake_mps\nimport mmap, torch\ngpu = fake_mps.load()\n"
    program += "print(torch.ones(5, dtype=torch.uint8, device='fakemps').data_ptr() % mmap.PAGESIZE)"
    environment = {**os.environ, "FAKE_MPS_GUARD": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == mmap.PAGESIZE - 5


def test_the_guard_lets_models_run(gpu):
    model, x = restoration(nn.BatchNorm2d(8)), torch.rand(1, 3, 17, 19)
    gpu.set_guard(True)
    with torch.no_grad():
        assert torch.equal(model(x), copy.deepcopy(model).to("fakemps")(x.to("fakemps")).cpu())


def test_transfers_are_counted(gpu):
    x = on_device(torch.zeros(3, 5))
    y = on_device(torch.zeros(4, 6, dtype=torch.int16)[:, 1:4])
    z = torch.empty(7, dtype=torch.uint8, device="fakemps")
    z.copy_(torch.arange(9, dtype=torch.uint8)[2:])
    assert (x + 1).sum().item() == 15
    x.cpu()
    y.to("cpu")
    y.clone().add_(y)
    assert gpu.transfers() == [
        ("upload", 60, "float32", True, 0),
        ("upload", 24, "int16", False, 1),
        ("upload", 7, "uint8", True, 2),
        ("download", 60, "float32", True, 0),
        ("download", 24, "int16", True, 0),
    ]
    counts = gpu.counts()
    assert (counts["uploads"], counts["upload_bytes"]) == (3, 91)
    assert (counts["downloads"], counts["download_bytes"]) == (2, 84)
    assert (counts["scalar_reads"], counts["device_copies"], counts["operations"]) == (1, 1, 3)
    assert sum(gpu.operators().values()) == 3
    gpu.reset_counts()
    assert gpu.transfers() == [] and gpu.operators() == {}


def test_what_waits_for_the_device_is_counted(gpu):
    x = on_device(torch.tensor([1.0, 0.0, 2.0]))
    waiting = [x.sum().item, lambda: bool((x > 1).any()), lambda: torch.equal(x, x), x.nonzero, lambda: x[x > 0]]
    for wait in [*waiting, lambda: x.index_put_((x > 0,), on_device(torch.ones(2)))]:
        gpu.reset_counts()
        wait()
        assert gpu.counts()["scalar_reads"] == 1


def test_indices_of_the_host_are_uploads(gpu):
    x = on_device(torch.tensor([1.0, 0.0, 2.0]))
    gpu.reset_counts()
    assert x[torch.tensor([2, 0])].cpu().tolist() == [2.0, 1.0]
    assert gpu.transfers()[0] == ("upload", 16, "int64", True, 0)


def test_memory_is_counted(gpu):
    before = gpu.counts()["live_bytes"]
    a = torch.empty(1000, dtype=torch.float16, device="fakemps")
    b = torch.empty(300, dtype=torch.uint8, device="fakemps")
    c = a[10:20]
    del a
    counts = gpu.counts()
    assert counts["live_bytes"] - before == counts["peak_bytes"] - before == 2300
    assert counts["allocations"] == 2 and counts["largest_allocation"] == 2000
    del c
    assert gpu.current_allocated_memory() - before == 300
    assert gpu.driver_allocated_memory() - before >= 2300
    gpu.empty_cache()
    assert gpu.driver_allocated_memory() - before == 300
    gpu.synchronize()
    counts = gpu.counts()
    assert counts["peak_bytes"] - before == 2300 and counts["cache_empties"] == counts["synchronizes"] == 1
    gpu.reset_counts()
    assert gpu.counts()["peak_bytes"] - before == 300
    del b


def test_fresh_memory_is_not_zero(gpu):
    assert torch.empty(64, device="fakemps").isnan().all().item()


def test_memory_runs_out_as_torch_says_it(gpu):
    gpu.set_memory_limit(gpu.current_allocated_memory() + (64 << 20))
    held = torch.empty(60 << 20, dtype=torch.uint8, device="fakemps")
    live = gpu.counts()["live_bytes"]
    with pytest.raises(RuntimeError, match=r"^MPS backend out of memory \(MPS allocated: 60\.\d\d MB, other all") as no:
        torch.empty(8 << 20, dtype=torch.uint8, device="fakemps")
    assert "Tried to allocate 8.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to " in str(no.value)
    assert gpu.counts()["live_bytes"] == live
    with pytest.raises(RuntimeError, match="MPS backend out of memory"):
        held + 1
    gpu.set_memory_limit(None)
    assert len(held + 1) == 60 << 20


def test_two_devices(gpu):
    """Of one kind, with memory of their own: operators take tensors of one, copies go from one to the other."""
    one, other = (torch.arange(6.0, device=f"fakemps:{index}") for index in (0, 1))
    assert str((other + 1).device) == str(torch.empty_like(other).device) == "fakemps:1"
    moved = other.to("fakemps:0")
    assert str(moved.device) == "fakemps:0" and torch.equal((moved + one).cpu(), 2 * torch.arange(6.0))
    with pytest.raises(RuntimeError, match="xpected all tensors to be on the same device"):
        one + other
    assert gpu.current_device() == 0 and gpu.counts()["device_copies"] > 0


def test_the_module_is_torch_fakemps(gpu):
    assert torch.fakemps is gpu is fake_mps.load()
    assert gpu.is_available() and gpu.device_count() == 2 and gpu.current_device() == 0
    assert gpu.recommended_max_memory() == 16 << 30
    gpu.set_recommended_max_memory(5 << 20)
    assert gpu.recommended_max_memory() == 5 << 20
    assert str(torch.empty(0, device="fakemps").device) == "fakemps:0"
    assert str(torch.empty(0, device="fakemps:0").device) == "fakemps:0"
    torch.manual_seed(5)


# ---- violations of the device ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("non_blocking", lambda x: x.to("cpu", non_blocking=True)),
        ("non_blocking", lambda x: torch.zeros(6).copy_(x, non_blocking=True)),
        ("non_blocking", lambda x: x.copy_(torch.zeros(6), non_blocking=True)),
        ("change of dtype", lambda x: x.to("cpu", torch.float16)),
        ("change of dtype", lambda x: torch.zeros(6, dtype=torch.float64).copy_(x)),
        ("storage offset", torch.zeros(9)[3:].copy_),
        ("pinned", lambda x: torch.zeros(9, pin_memory=True)),
        ("pinned", lambda x: torch.zeros(9).pin_memory()),
        ("limit of 100", lambda x: torch.zeros(25, device="fakemps")),
        ("limit of 100", lambda x: torch.zeros(10, 10, dtype=torch.uint8, device="fakemps")),
        ("limit of 100", lambda x: x.repeat(5)),
        ("limit of 100", lambda x: x.expand(5, 6) + 1),
    ],
)
def test_violations_are_raised_and_kept(gpu, text, forbidden):
    x = on_device(torch.ones(6))
    gpu.set_tensor_limit(100)
    with pytest.raises(RuntimeError, match=text):
        forbidden(x)
    caught(gpu, text)


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: torch.zeros(3, dtype=torch.float64, device="fakemps"),
        lambda x: x.double(),
        lambda x: torch.zeros(3, dtype=torch.float64).to("fakemps"),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: nn.Linear(2, 2).double().to("fakemps"),
        lambda x: x.view(torch.float64).abs(),
    ],
)
def test_there_is_no_float64(gpu, forbidden):
    x = on_device(torch.ones(6))
    with pytest.raises(TypeError, match="Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't"):
        forbidden(x)
    caught(gpu, "float64")


def test_host_and_device_do_not_mix(gpu):
    x = on_device(torch.ones(6))
    for mixed in (lambda: x + torch.ones(6), lambda: torch.cat([x, torch.ones(6)]), lambda: F.conv1d(x[None], W)):
        with pytest.raises(RuntimeError):
            mixed()
    with pytest.raises(TypeError):
        x.numpy()
    assert (x * 2.5 + torch.tensor(1.0)).cpu().tolist() == [3.5] * 6


W = torch.ones(1, 1, 3)


def test_two_threads_at_once_are_noticed(gpu):
    x, failures = on_device(torch.ones(6)), []
    gpu.set_busy(20_000)
    start = threading.Barrier(2)

    def work():
        start.wait()
        try:
            for _ in range(5):
                x + 1
        except RuntimeError as failure:
            failures.append(str(failure))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures and all("two threads at once" in failure for failure in failures)
    assert len(gpu.take_violations()) == len(failures)


def test_two_threads_in_turn_are_fine(gpu):
    x, lock = on_device(torch.ones(6)), threading.Lock()
    gpu.set_busy(1000)

    def work():
        for _ in range(5):
            with lock:
                x + 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- torch on the device ---------------------------------------------------------------------------------------------


def restoration(norm, act=None):
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 3, padding=1), norm, act or nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=4)]
    return nn.Sequential(*layers, nn.PixelShuffle(2)).eval()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.Identity()])
def test_a_model_gives_the_bits_of_the_cpu(gpu, norm, mode):
    for act in (nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(8), nn.GELU()):
        model, x = restoration(norm, act), torch.rand(2, 3, 17, 19)
        moved = copy.deepcopy(model).to("fakemps")
        with mode():
            assert torch.equal(model(x), moved(x.to("fakemps")).cpu())


def test_other_layers_give_the_bits_of_the_cpu(gpu):
    torch.manual_seed(7)
    x = torch.rand(1, 6, 12, 16)
    layers = [
        *[nn.Conv2d(6, 4, 3, stride=2), nn.Conv2d(6, 4, 3, padding=2, dilation=2, padding_mode="reflect")],
        *[nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Softmax(1)],
        *[nn.LayerNorm(16), nn.Linear(16, 5), nn.PixelUnshuffle(2), nn.SiLU(), nn.Sigmoid(), nn.Unfold(3), nn.Tanh()],
        *[nn.ZeroPad2d(2), nn.ReplicationPad2d(1), nn.ReflectionPad2d(3)],
        *[nn.Upsample(scale_factor=2, mode=m) for m in ("nearest", "bilinear", "bicubic")],
    ]
    for layer in layers:
        moved = copy.deepcopy(layer).to("fakemps")
        with torch.no_grad():
            assert torch.equal(layer(x), moved(x.to("fakemps")).cpu()), layer


def test_attention_is_that_of_the_cpu_but_for_rounding(gpu):
    x = torch.rand(1, 2, 12, 16)
    moved = x.to("fakemps")
    want, got = F.scaled_dot_product_attention(x, x, x), F.scaled_dot_product_attention(moved, moved, moved)
    assert torch.allclose(want, got.cpu(), atol=1e-6)


def test_tensors_can_be_printed(gpu):
    assert repr(on_device(torch.tensor([1.5, -2.0]))) == "tensor([ 1.5000, -2.0000], device='fakemps:0')"


def test_a_model_on_the_device_can_be_copied(gpu):
    model = copy.deepcopy(restoration(nn.BatchNorm2d(8))).to("fakemps")
    again = copy.deepcopy(model)
    gpu.reset_counts()
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(model.parameters(), again.parameters(), strict=True))


def rows(device):
    return torch.linspace(-3, 3, 24).reshape(4, 6).to(device)


def put(device):
    x = torch.zeros(5, 6, device=device)
    x[1:3, 2:] = 4
    x[:, 0] += 2
    x[torch.tensor([0, 4], device=device), torch.tensor([1, 1], device=device)] = 7.0
    x.narrow(0, 3, 2).copy_(rows(device)[:2])
    x.narrow(1, 1, 3).narrow(0, 1, 2).add_(rows(device)[:2, :3])
    return x.index_add_(0, torch.tensor([1], device=device), rows(device)[:1])


def grown(device):
    x = torch.empty(0, device=device)
    torch.mul(rows(device), 3, out=x)
    return x.resize_(2, 3).fill_(1.5)


OPERATIONS = {
    "conv2d": lambda d: F.conv2d(rows(d)[None, None], torch.ones(2, 1, 3, 3).to(d), torch.ones(2).to(d), padding=1),
    "pixel_shuffle": lambda d: F.pixel_shuffle(rows(d).reshape(1, 4, 2, 3), 2),
    "pixel_unshuffle": lambda d: F.pixel_unshuffle(rows(d).reshape(1, 1, 4, 6), 2),
    "nearest": lambda d: F.interpolate(rows(d)[None, None], scale_factor=2),
    "bilinear": lambda d: F.interpolate(rows(d)[None, None], scale_factor=1.5, mode="bilinear", align_corners=False),
    "bicubic": lambda d: F.interpolate(rows(d)[None, None], size=(7, 9), mode="bicubic", antialias=True),
    "cat": lambda d: torch.cat([rows(d), rows(d)[:1]]),
    "stack": lambda d: torch.stack([rows(d), rows(d)]),
    "chunk": lambda d: torch.cat(rows(d).chunk(3, 1)[::-1], 1),
    "split": lambda d: torch.cat(rows(d).split([1, 3])[::-1]),
    "unbind": lambda d: torch.stack(rows(d).unbind()[::-1]),
    "index_select": lambda d: rows(d).index_select(1, torch.tensor([5, 0, 0], device=d)),
    "gather": lambda d: rows(d).gather(1, torch.tensor([[5, 0]] * 4, device=d)),
    "indexing": lambda d: rows(d)[[2, 0]][:, torch.tensor([1, 4], device=d)],
    "mask": lambda d: rows(d)[rows(d) > 0],
    "strides": lambda d: rows(d)[::2, 1::3],
    "put": put,
    "arange": lambda d: torch.arange(2, 20, 3, device=d),
    "full": lambda d: torch.full((2, 3), 2.5, device=d),
    "zeros": lambda d: torch.zeros(3, device=d, dtype=torch.int16),
    "ones": lambda d: torch.ones(3, device=d, dtype=torch.bfloat16),
    "empty": lambda d: torch.empty(0, device=d),
    "likes": lambda d: torch.zeros_like(rows(d)) + torch.ones_like(rows(d)) + torch.full_like(rows(d), 3),
    "fill_": lambda d: rows(d).narrow(1, 2, 3).fill_(9),
    "zero_": lambda d: rows(d).zero_(),
    "grown": grown,
    "add_": lambda d: rows(d).add_(rows(d), alpha=2),
    "mul_": lambda d: rows(d).mul_(rows(d)),
    "div": lambda d: rows(d) / 3 + 3 / rows(d),
    "div_floor": lambda d: rows(d).div(0.7, rounding_mode="floor"),
    "sub": lambda d: 1 - rows(d),
    "clamp": lambda d: rows(d).clamp(-1, 1) + rows(d).clamp_(min=0),
    "round": lambda d: rows(d).round(),
    "where": lambda d: torch.where(rows(d) > 0, rows(d), torch.zeros((), device=d)),
    "remainder": lambda d: rows(d).remainder(0.7),
    "floor_divide": lambda d: torch.arange(9, device=d) // 2 + torch.arange(9, device=d) % 4,
    "to_f16": lambda d: rows(d).to(torch.float16),
    "to_bf16": lambda d: rows(d).bfloat16(),
    "to_u8": lambda d: rows(d).abs().to(torch.uint8),
    "from_u16": lambda d: torch.arange(9, dtype=torch.int32).to(torch.uint16).to(d),
    "to_int64": lambda d: rows(d).long() + rows(d).int(),
    "view_dtype": lambda d: rows(d).view(torch.int32),
    "view_dtype_16": lambda d: rows(d).half().view(torch.int16),
    "expand": lambda d: rows(d)[:1].expand(3, 6).contiguous(),
    "permute": lambda d: rows(d).reshape(2, 2, 6).permute(2, 0, 1),
    "transposed": lambda d: rows(d).t().reshape(-1),
    "flip": lambda d: rows(d).flip(1).rot90(),
    "roll": lambda d: rows(d).roll(2, 1),
    "repeat": lambda d: rows(d).repeat(2, 1),
    "sum": lambda d: torch.stack([rows(d).sum(), rows(d).sum(1)[0], rows(d).mean()]),
    "sum_int": lambda d: torch.arange(9, device=d, dtype=torch.uint8).sum(),
    "isfinite": lambda d: rows(d).isfinite().all(),
    "any": lambda d: rows(d).isnan().any() | (rows(d) > 2).any(),
    "amax": lambda d: torch.cat([rows(d).amax(1), rows(d).amin(1), rows(d).max().reshape(1)]),
    "argmax": lambda d: rows(d).argmax(1),
    "max_dim": lambda d: rows(d).max(1).indices,
    "topk": lambda d: rows(d).topk(2).values,
    "cumsum": lambda d: rows(d).cumsum(1),
    "batch_norm": lambda d: F.batch_norm(rows(d), torch.zeros(6).to(d), torch.ones(6).to(d)),
    "group_norm": lambda d: F.group_norm(rows(d), 2),
    "layer_norm": lambda d: F.layer_norm(rows(d), (6,)),
    "relu": lambda d: F.relu(rows(d)) + F.relu_(rows(d)),
    "leaky_relu": lambda d: F.leaky_relu(rows(d), 0.1),
    "prelu": lambda d: F.prelu(rows(d), torch.tensor([0.2]).to(d)),
    "sigmoid": lambda d: rows(d).sigmoid() * rows(d).tanh(),
    "softmax": lambda d: rows(d).softmax(1),
    "matmul": lambda d: rows(d) @ rows(d).t(),
    "baddbmm": lambda d: torch.baddbmm(rows(d)[None, :, :4], rows(d)[None], rows(d).t()[None]),
    "einsum": lambda d: torch.einsum("ij,kj->ik", rows(d), rows(d)),
    "reflect": lambda d: F.pad(rows(d)[None], (2, 1, 1, 2), mode="reflect"),
    "replicate": lambda d: F.pad(rows(d)[None], (2, 1, 1, 2), mode="replicate"),
    "constant": lambda d: F.pad(rows(d), (1, 0), value=3.0),
    "grid_sample": lambda d: F.grid_sample(rows(d)[None, None], torch.zeros(1, 2, 2, 2).to(d), align_corners=False),
    "unfold": lambda d: rows(d).unfold(1, 3, 2),
    "scalar": lambda d: torch.tensor(2.5, device=d) * rows(d)[0, 0],
    "triu": lambda d: rows(d).triu(),
    "sqrt": lambda d: rows(d).square().sqrt().exp().log().abs(),
    "norm": lambda d: torch.linalg.vector_norm(rows(d), dim=1),
    "normalize": lambda d: F.normalize(rows(d), dim=1),
    "shifts": lambda d: torch.arange(9, device=d).bitwise_left_shift(2) ^ 5,
    "channels_last": lambda d: rows(d).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) + 1,
    "drop_path": lambda d: F.dropout(rows(d), 0.5, training=False),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_the_bits_of_the_cpu(gpu, name):
    with torch.inference_mode():
        want, got = OPERATIONS[name]("cpu"), OPERATIONS[name]("fakemps")
    assert got.device.type == "fakemps"
    assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
    assert torch.equal(got.cpu(), want)


# ---- the runtime -----------------------------------------------------------------------------------------------------

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
U64 = ctypes.c_uint64
SIGNATURES = {
    "create_shader_library": [ctypes.c_char_p, ctypes.c_void_p],
    "delete_shader_library": [ctypes.c_void_p],
    "get_kernel_function": [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    "start_encoding": [ctypes.c_void_p],
    "set_arg_tensor": [ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p],
    "set_arg_int": [ctypes.c_void_p, ctypes.c_uint, ctypes.c_int64],
    "dispatch_single": [ctypes.c_void_p, U64],
    "dispatch_single_with_group_size": [ctypes.c_void_p, U64, U64],
    "dispatch_array": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t],
    "dispatch_array_with_group_size": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, U64],
    "run_command_block": [ctypes.c_void_p, CALLBACK, ctypes.c_void_p],
    "malloc": [ctypes.c_void_p, ctypes.c_size_t],
    "free": [ctypes.c_void_p],
    "memcpy": [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p],
    "copy_buffer": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t],
}


class Runtime:
    """The functions of a runtime library, by their names' ends."""

    def __init__(self, gpu, path):
        self.gpu, self.library = gpu, ctypes.CDLL(path)
        for name, arguments in SIGNATURES.items():
            function = getattr(self.library, f"aoti_torch_mps_{name}")
            function.argtypes, function.restype = arguments, ctypes.c_int32
            setattr(self, name, function)

    def shaders(self, source):
        handle = ctypes.c_void_p()
        return self.create_shader_library(source, ctypes.byref(handle)) or handle

    def kernel(self, name, source=None):
        handle = ctypes.c_void_p()
        library = self.shaders(source or TILES.read_bytes())
        return self.get_kernel_function(library, name.encode(), ctypes.byref(handle)) or handle

    def bind(self, function, buffer, tensor):
        handle = self.gpu.handle_of(tensor)
        error = self.set_arg_tensor(function, buffer, handle)
        self.gpu.free_handle(handle)
        return error

    def numbers(self, function, numbers):
        packed = np.zeros(34, np.int32)
        packed[: len(numbers)] = numbers
        return [self.set_arg_int(function, k, int(slot)) for k, slot in enumerate(packed.view(np.int64))]

    def launch(self, function, lengths, groups=None):
        shape = (U64 * len(lengths))(*lengths)
        if groups is None:
            return self.dispatch_array(function, shape, len(lengths))
        size = (U64 * len(groups))(*groups)
        return self.dispatch_array_with_group_size(function, shape, len(lengths), size, len(groups))

    def block(self, function, encode):
        """Runs encode() in a command block, and gives back what that gave, or the block's error."""
        results = []
        error = self.run_command_block(function, CALLBACK(lambda *_: results.append(encode())), None)
        return error or results[0]


@pytest.fixture
def runtime(gpu):
    return Runtime(gpu, gpu.runtime_path)


@pytest.fixture
def runtime_bytes(gpu):
    runtime = Runtime(gpu, gpu.runtime_bytes_path)
    runtime.set_arg_bytes = runtime.library.torch_mps_set_arg_bytes
    runtime.set_arg_bytes.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_char_p, U64]
    runtime.set_arg_bytes.restype = ctypes.c_int32
    return runtime


def reading(image, height, width):
    """The numbers of a read of one window, from (-2, -3) on; its scaling: divided by 255, times 2, minus 1."""
    channels, rows, columns = image.shape
    strides = [rows * columns, columns, 1]
    scaling = np.array([255, 2, -1], np.float32).view(np.int32).tolist()
    return [1, channels, height, width, *strides, rows, columns, 0, rows, 0, 1, -2, 0, 0, 0, -3, 0, 0, 0, *scaling]


def read_window(image, height, width):
    padded = np.pad(image, [(0, 0), (2, height), (3, width)], mode="reflect")[:, :height, :width]
    return padded.astype(np.float32) / np.float32(255) * np.float32(2) + np.float32(-1)


def encode_read(runtime, function, image, window, groups=(16, 4, 1), told=None):
    """told: how high the window is said to be."""
    shape = (len(window), told or window.shape[1], window.shape[2])

    def encode():
        errors = [runtime.start_encoding(function)]
        errors += runtime.numbers(function, reading(image, *shape[1:]))
        errors += [runtime.bind(function, ARRAY, image), runtime.bind(function, ARRAY + 1, window)]
        return [*errors, runtime.launch(function, shape[::-1], groups)]

    return encode


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("groups", [(16, 4, 1), (32, 8, 4), None])
def test_a_kernel_runs(gpu, runtime, rng, groups, guard):
    gpu.set_guard(guard)
    image = rng.integers(0, 256, (3, 9, 11), dtype=np.uint8)
    given, window = on_device(image), torch.empty(3, 13, 17, device="fakemps")
    function = runtime.kernel("read_u8_f32")
    assert not any(runtime.block(function, encode_read(runtime, function, given, window, groups)))
    assert np.array_equal(window.cpu().numpy(), read_window(image, 13, 17))
    assert gpu.launches() == {"read_u8_f32": 1}
    assert gpu.command_blocks() == gpu.libraries() == 1


def test_a_kernel_that_leaves_its_array_faults(gpu, runtime):
    gpu.set_guard(True)
    image, window = on_device(torch.zeros(1, 9, 11, dtype=torch.uint8)), torch.empty(1, 8, 8, device="fakemps")
    function = runtime.kernel("read_u8_f32")
    fits, exceeds = (encode_read(runtime, function, image, window, told=told) for told in (8, 9))
    assert killed_by(lambda: runtime.block(function, fits)) == 0
    assert killed_by(lambda: runtime.block(function, exceeds)) in FAULTS


def test_arguments_may_be_bytes(gpu, runtime_bytes, rng):
    image = rng.integers(0, 256, (2, 6, 5), dtype=np.uint8)
    given, window = on_device(image), torch.empty(2, 7, 4, dtype=torch.float16, device="fakemps")
    function = runtime_bytes.kernel("read_u8_f16", BYTES_LINE + TILES.read_bytes())
    numbers = np.array(reading(given, 7, 4), np.int32).tobytes()

    def encode():
        return [
            runtime_bytes.start_encoding(function),
            runtime_bytes.set_arg_bytes(function, 0, numbers, len(numbers)),
            runtime_bytes.bind(function, ARRAY, given),
            runtime_bytes.bind(function, ARRAY + 1, window),
            runtime_bytes.launch(function, [4, 7, 2]),
        ]

    assert not any(runtime_bytes.block(function, encode))
    assert np.array_equal(window.cpu().numpy(), read_window(image, 7, 4).astype(np.float16))


def test_bytes_that_do_not_fit(gpu, runtime_bytes):
    function = runtime_bytes.kernel("read_u8_f16", BYTES_LINE + TILES.read_bytes())
    for size, text in [(4097, "4097 bytes"), (8, "8 bytes, but reads"), (135, "135 bytes"), (0, "0 bytes")]:

        def encode(size=size):
            runtime_bytes.start_encoding(function)
            return runtime_bytes.set_arg_bytes(function, 0, bytes(8192), size)

        assert runtime_bytes.block(function, encode) != 0
        caught(gpu, text)
    slots = runtime_bytes.kernel("read_u8_f16")
    start = runtime_bytes.start_encoding
    assert runtime_bytes.block(slots, lambda: start(slots) or runtime_bytes.set_arg_bytes(slots, 0, bytes(8), 8))
    caught(gpu, "is an integer, not bytes")
    assert runtime_bytes.set_arg_bytes(function, 0, bytes(136), 136) != 0
    caught(gpu, "set_arg_bytes outside of a command block")


def test_only_one_library_has_bytes(gpu, runtime, runtime_bytes):
    with pytest.raises(AttributeError):
        runtime.library.torch_mps_set_arg_bytes  # noqa: B018
    assert runtime_bytes.library.torch_mps_set_arg_bytes


def test_every_kernel_is_there(gpu, runtime):
    elements = ["u8", "u16", "f16", "bf16", "f32"]
    names = [f"read_{a}_{b}" for a in elements for b in ("f32", "f16", "bf16")]
    names += [f"accumulate_{a}" for a in ("f32", "f16", "bf16")] + [f"finish_{a}" for a in elements]
    for name in names:
        for line in (b"", BYTES_LINE):
            assert isinstance(runtime.kernel(name, line + TILES.read_bytes()), ctypes.c_void_p), name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s + "\u2014".encode(), "not ASCII"),
        (lambda s: s + b"\n", "differs"),
        (lambda s: b"#define OTHER 1\n" + s, "differs"),
        (lambda s: s.replace(b"x / peak", b"x * peak"), "differs"),
        (lambda s: BYTES_LINE + BYTES_LINE + s, "differs"),
    ],
)
def test_the_source_is_that_of_the_repository(gpu, runtime, change, text):
    assert runtime.shaders(change(TILES.read_bytes())) == 1
    caught(gpu, text)


def test_libraries_and_names(gpu, runtime):
    handle = ctypes.c_void_p()
    library = runtime.shaders(TILES.read_bytes())
    assert runtime.get_kernel_function(library, b"read_u8", ctypes.byref(handle)) != 0
    caught(gpu, "no kernel named read_u8")
    assert runtime.get_kernel_function(None, b"read_u8_f32", ctypes.byref(handle)) != 0
    caught(gpu, "never given out")
    assert runtime.start_encoding(None) != 0
    caught(gpu, "never given out")
    assert runtime.delete_shader_library(library) != 0
    caught(gpu, "delete_shader_library")


def test_encoding_belongs_into_a_command_block(gpu, runtime):
    function = runtime.kernel("read_u8_f32")
    image = on_device(torch.zeros(1, 4, 4, dtype=torch.uint8))
    for call in (
        lambda: runtime.start_encoding(function),
        lambda: runtime.set_arg_int(function, 0, 1),
        lambda: runtime.bind(function, ARRAY, image),
        lambda: runtime.launch(function, [4]),
        lambda: runtime.dispatch_single(function, 4),
    ):
        assert call() != 0
        caught(gpu, "outside of a command block")
    assert runtime.run_command_block(function, CALLBACK(), None) != 0
    caught(gpu, "without a callback")


def test_the_order_of_encoding(gpu, runtime):
    function, other = runtime.kernel("read_u8_f32"), runtime.kernel("read_u8_f16")
    start = runtime.start_encoding
    for encode, text in [
        (lambda: runtime.set_arg_int(function, 0, 1), "before its encoding was started"),
        (lambda: runtime.launch(function, [4]), "before its encoding was started"),
        (lambda: start(function) or runtime.set_arg_int(other, 0, 1), "before its encoding was started"),
        (lambda: start(function) or start(function), "started and not dispatched"),
        (lambda: start(function) or start(other), "read_u8_f32 was started and not dispatched"),
        (lambda: runtime.block(function, lambda: 0), "a command block within a command block"),
    ]:
        assert runtime.block(function, encode) != 0
        caught(gpu, text)


def test_the_device_does_nothing_else_within_a_command_block(gpu, runtime):
    function, x, raised = runtime.kernel("read_u8_f32"), on_device(torch.zeros(4)), []

    def encode():
        try:
            x.add_(1)
        except RuntimeError as error:
            raised.append(error)
        return 0

    assert runtime.block(function, encode) == 0 and len(raised) == 1
    caught(gpu, "aten::add", "within a command block")


def test_arguments_are_checked(gpu, runtime):
    function = runtime.kernel("read_u8_f32")
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    given, floats = on_device(image), on_device(torch.zeros(4))
    nothing = given[:0].clone()
    for bind, text in [
        (lambda: runtime.bind(function, ARRAY, image), "not on the device"),
        (lambda: runtime.bind(function, ARRAY, torch.tensor(1, dtype=torch.uint8)), "not on the device"),
        (lambda: runtime.bind(function, ARRAY, floats), "has elements of 1 bytes, the tensor of 4"),
        (lambda: runtime.bind(function, ARRAY + 1, given), "has elements of 4 bytes, the tensor of 1"),
        (lambda: runtime.bind(function, ARRAY + 2, given), "buffer 19 of read_u8_f32 does not exist"),
        (lambda: runtime.bind(function, 0, given), "is an integer, not an array"),
        (lambda: runtime.bind(function, ARRAY, nothing), "without memory"),
        (lambda: runtime.set_arg_tensor(function, ARRAY, None), "no tensor"),
        (lambda: runtime.set_arg_int(function, ARRAY, 1), "is an array, not an integer"),
        (lambda: runtime.set_arg_int(function, 31, 1), "does not exist"),
        (lambda: runtime.set_arg_int(function, 0, 1) or runtime.bind(function, 0, given), "as different kinds"),
    ]:
        assert runtime.block(function, lambda bind=bind: runtime.start_encoding(function) or bind()) != 0
        caught(gpu, text)


def test_every_argument_is_bound(gpu, runtime):
    function = runtime.kernel("read_u8_f32")
    image, window = on_device(torch.zeros(1, 4, 4, dtype=torch.uint8)), torch.zeros(1, 4, 4, device="fakemps")
    for left_out in (0, 16, ARRAY, ARRAY + 1):

        def encode(left_out=left_out):
            runtime.start_encoding(function)
            for k in {*range(ARRAY)} - {left_out}:
                runtime.set_arg_int(function, k, 1)
            for k in {ARRAY, ARRAY + 1} - {left_out}:
                runtime.bind(function, k, [image, window][k - ARRAY])
            return runtime.launch(function, [4, 4, 1])

        assert runtime.block(function, encode) != 0
        caught(gpu, f"buffer {left_out} of read_u8_f32 is unbound")
    assert gpu.launches() == {}


@pytest.mark.parametrize(
    ("lengths", "groups", "text"),
    [
        ([], None, "a grid of 0 dimensions"),
        ([1, 1, 1, 1], None, "a grid of 4 dimensions"),
        ([4, 0, 1], None, "a grid of length 0"),
        ([4, 1 << 32, 1], None, "a grid of length 4294967296"),
        ([4, 4, 1], [16, 0, 1], "a group of length 0"),
        ([4, 4, 1], [1025, 1, 1], "a group of length 1025"),
        ([4, 4, 1], [32, 32, 2], "a group of 2048 threads"),
        ([4, 4, 1], [16, 16], "a group of 2 dimensions for a grid of 3"),
    ],
)
def test_grids_are_checked(gpu, runtime, lengths, groups, text):
    function = runtime.kernel("read_u8_f32")
    start = runtime.start_encoding
    assert runtime.block(function, lambda: start(function) or runtime.launch(function, lengths, groups)) != 0
    caught(gpu, text)


def test_the_group_limit_can_be_set(gpu, runtime):
    function = runtime.kernel("read_u8_f32")
    given, window = on_device(torch.zeros(1, 4, 4, dtype=torch.uint8)), torch.zeros(1, 4, 4, device="fakemps")
    gpu.set_group_limit(256)
    errors = runtime.block(function, encode_read(runtime, function, given, window, (16, 32, 1)))
    assert errors[-1] != 0 and not any(errors[:-1])
    caught(gpu, "a group of 512 threads")


def test_command_blocks_of_two_threads(gpu, runtime):
    function = runtime.kernel("read_u8_f32")
    inside, done = threading.Event(), threading.Event()

    def encode():
        inside.set()
        done.wait(10)
        return 0

    thread = threading.Thread(target=runtime.block, args=(function, encode))
    thread.start()
    inside.wait(10)
    assert runtime.run_command_block(function, CALLBACK(lambda *_: None), None) != 0
    assert runtime.start_encoding(function) != 0
    done.set()
    thread.join()
    first, second = gpu.take_violations()
    assert "two threads at once: a command block during a command block of another" in first
    assert "start_encoding outside of a command block" in second


def test_buffers_of_aotinductor(gpu, runtime):
    a, b = ctypes.c_void_p(), ctypes.c_void_p()
    assert not any(runtime.malloc(ctypes.byref(each), 8) for each in (a, b))
    assert runtime.memcpy(a, 2, 1, 4, b"hello") == 0
    assert runtime.copy_buffer(a, b, 6, 2, 0) == 0
    assert runtime.copy_buffer(a, b, 6, 2, 4) != 0
    caught(gpu, "beyond the end")
    assert runtime.free(a) == runtime.free(b) == 0
    assert runtime.free(a) != 0
    caught(gpu, "is freed")
    assert gpu.transfers() == [("upload", 4, "uint8", True, 1)]


# ---- building --------------------------------------------------------------------------------------------------------


def test_kernels_that_do_not_fit_fail_the_build(gpu):
    from .fake_mps import build

    good = "kernel void k(constant long &p [[buffer(0)]], uint3 at [[thread_position_in_grid]]) {{ {} }}".format(
        "int n[1]; for (int k = 0; k < 1; k++) n[k] = int(p);"
    )
    assert build.kernels(good) == [("k", "1", [(0, True)])]
    for old, new, text in [
        ("constant ", "", "without address space"),
        (" [[buffer(0)]]", "", "without address space or buffer"),
        ("uint3 at [[thread_position_in_grid]]", "uint3 at", "not its position"),
        ("int n[1];", "int n[1]; }", "does not unpack"),
        ("kernel void k(", "kernel uint k(", "cannot be told"),
    ]:
        bad = good.replace(old, new) if text != "does not unpack" else good[: good.index("int n")] + "}"
        with pytest.raises(ValueError, match=text):
            build.kernels(bad)
    with pytest.raises(ValueError, match="f has a pointer without address space: int"):
        build.kernels(f"static inline long f(int *n, long i) {{ }} {good}")


def test_no_compiler_is_said(gpu, monkeypatch):
    from .fake_mps import build

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NoCompiler, match="there is no no-such-compiler"):
        build.compiler()
