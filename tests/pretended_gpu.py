"""A GPU that is pretended on any CPU: what would fail or wait there, with real values.

A tensor "on cuda:0" says so in Python and in C++ (with CUDA's dispatch keys, so that autograd takes
CUDA's branches) and holds a CPU tensor that the computation is done with. To C++'s device guards,
of which a CPU build has none for CUDA, it lies on `meta`. Every operation passes through
`Rehearsal`, which

* raises what CUDA would raise where tensors, indices or generators lie on different devices,
* raises where a tensor is used before the stream that copies it was waited for, and where
  page-locked memory is overwritten while it is copied,
* notes what the CPU would wait for, with the line of brats that did so, and what is launched.

It cannot see NCCL, cuDNN, true speed or indices out of bounds.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
import types
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Pretended(torch.Tensor):
    """A tensor on a device that is not there."""

    @staticmethod
    def __new__(cls, inner, device):
        shell = torch.empty_strided(inner.size(), inner.stride(), dtype=inner.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, shell, False, device_for_backend_keys=device)
        vars(made).update(inner=inner, where=device, written_by=None)
        return made

    device = property(lambda self: vars(self)["where"])
    is_cuda = property(lambda self: self.device.type == "cuda")
    is_mps = property(lambda self: self.device.type == "mps")
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    __array__ = numpy

    def data_ptr(self):
        return 0

    def record_stream(self, stream):
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, kinds, args=(), kwargs=None):
        """What threads do, which `Rehearsal` as a mode does not reach."""
        if func is torch.ops.prim.device.default:
            return vars(args[0]).get("where", torch.device("cuda", 0))
        if Rehearsal.active is None:
            raise RuntimeError(f"{func} on a pretended tensor outside of a rehearsal")
        return Rehearsal.active.run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol):
        return vars(self)["inner"].detach().__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"Pretended({vars(self)['inner']!r}, {self.device})"


optimizers._foreach_supported_types.append(Pretended)


def _names(text):
    return set(text.split())


VIEWS = _names(
    "view _unsafe_view as_strided detach expand permute select slice split squeeze t transpose "
    "unbind unsqueeze alias narrow diagonal lift_fresh _reshape_alias unfold split_with_sizes "
    "chunk movedim"
)
FREE = VIEWS | _names(
    "empty empty_like empty_strided new_empty new_empty_strided _efficientzerotensor"
)
# The size of their result, or a Python number, comes from values on the device.
WAITING = _names(
    "_local_scalar_dense nonzero masked_select unique _unique2 unique_dim equal bincount "
    "repeat_interleave is_nonzero histc"
)
# What an operation may be given beside tensors.
NUMBERS = {int, float, bool, type(None), str, torch.dtype, torch.layout, torch.memory_format}
COPIES = {"copy_", "_to_copy", "_copy_from", "copy"}

# What CUDA's autocast does to functions that a network calls. C++ sees `meta`, and does not. Those
# that are written in Python, as in `torch.nn.functional`, hide what they call.
HALF = {
    torch.conv3d,
    torch.conv_transpose3d,
    F.linear,
    torch.matmul,
    torch.addmm,
    torch.bmm,
    torch.mm,
}
FULL = {
    F.group_norm,
    F.layer_norm,
    F.softmax,
    torch.softmax,
    torch.pow,
    torch.sum,
    torch.Tensor.sum,
    torch.exp,
    torch.log,
    torch.norm,
    F.binary_cross_entropy_with_logits,
}
WIDEST = {torch.cat, torch.stack, F.grid_sample}
CAST = HALF | FULL | WIDEST

# What a program asks of a tensor all the time, of which nothing here has to know.
READING = {
    torch.Tensor.shape.__get__,
    torch.Tensor.dtype.__get__,
    torch.Tensor.requires_grad.__get__,
    torch.Tensor.is_leaf.__get__,
    torch.Tensor.grad.__get__,
    torch.Tensor.grad_fn.__get__,
    torch.Tensor.layout.__get__,
    torch.Tensor.dim,
    torch.Tensor.is_floating_point,
    torch.Tensor.numel,
    torch.Tensor.element_size,
}


class DeviceMismatch(RuntimeError):  # noqa: N818
    """What CUDA raises for tensors of different devices."""


class Race(RuntimeError):  # noqa: N818
    """A use of memory beside a copy that it should have waited for: on a GPU, wrong values."""


class Event(NamedTuple):
    """What happened on the device: a `wait` of the CPU, a `launch`, something `float64`."""

    kind: str
    operation: str
    where: str
    size: int
    note: str = ""


class Functions(TorchFunctionMode):
    """What is done before C++ decides: autocast, and page-locked memory."""

    def __torch_function__(self, func, kinds, args=(), kwargs=None):
        here = Rehearsal.active
        if func in READING:
            return func(*args)
        bare = here.bare
        if torch.device in map(type, args):
            args = tuple(here.device if _is(each, bare) else each for each in args)
        if kwargs:
            return self._with(here, func, args, dict(kwargs))
        if func is torch.Tensor.pin_memory:
            return here.pinned(args[0].clone(), reused=False)
        if func is torch.Tensor.is_pinned:
            return here.is_pinned(args[0])
        if func in CAST and torch.is_autocast_enabled(bare.type):
            args, _ = _autocast(func, args, {}, bare.type)
        return func(*args)

    def _with(self, here, func, args, kwargs):
        """A function that has keyword arguments."""
        bare = here.bare
        if kwargs.get("device") in (bare, bare.type):
            kwargs["device"] = here.device
        if kwargs.pop("pin_memory", False):
            return here.pinned(func(*args, **kwargs), reused=True)
        if func is torch.tensor and kwargs.get("device") == here.device:
            return func(*args, **(kwargs | {"device": "cpu"})).to(here.device)
        if func in CAST and torch.is_autocast_enabled(bare.type):
            args, kwargs = _autocast(func, args, kwargs, bare.type)
        return func(*args, **kwargs)


def _autocast(func, args, kwargs, kind):
    floats = set()
    _each((args, *kwargs.values()), lambda e: floats.add(e.dtype) if _is_float(e) else None)
    dtype = None
    if func in HALF:
        dtype = torch.get_autocast_dtype(kind)
    elif func in FULL or len(floats) > 1:
        dtype = torch.float32
    if dtype is None:
        return args, kwargs

    def cast(each):
        return each.to(dtype) if _is_float(each) else each  # the same if it has the type

    return _each(args, cast), {name: _each(value, cast) for name, value in kwargs.items()}


def _is(each, device):
    return type(each) is torch.device and each == device


def _is_float(each):
    return type(each) is Pretended and each.is_floating_point()


def _each(value, change):
    """`value`, an operation's arguments, with `change` of each; of lists in it, of theirs."""
    kind = type(value)
    if kind is tuple or kind is list or isinstance(value, torch.Size):
        return kind([_each(each, change) for each in value])
    return change(value)


class Stream:
    """A pretended CUDA stream: what it has been given, and what it has waited for."""

    def __init__(self, device=None):
        self.work = 0
        self.seen = {}  # of other streams, how much of their work this one has waited for
        self.copies = []  # (work, source, what it held), of page-locked memory that is used again
        if Rehearsal.active is not None:
            Rehearsal.active.created.append(self)

    def wait_stream(self, other):
        self.seen[other] = other.work

    def synchronize(self):
        Rehearsal.active.note("wait", "stream", 0)
        self.check(self.work)

    def check(self, work):
        """The copies up to some work are done: their sources must still be as they were."""
        for done, source, held in self.copies:
            if done <= work and not torch.equal(source, held):
                raise Race("page-locked memory was overwritten while it was copied")
        self.copies = [copy for copy in self.copies if copy[0] > work]

    __enter__ = lambda self: Rehearsal.active.streams.append(self)  # noqa: E731
    __exit__ = lambda self, *_: Rehearsal.active.streams.pop()  # noqa: E731


class CudaEvent:
    """A pretended CUDA event; an hour passes between any two."""

    def __init__(self, enable_timing=False, blocking=False):
        self.stream = self.work = None

    def record(self, stream=None):
        self.stream = stream or Rehearsal.active.streams[-1]
        self.work = self.stream.work

    def wait(self, stream=None):
        (stream or Rehearsal.active.streams[-1]).seen[self.stream] = self.work

    def synchronize(self):
        if self.stream is not None:  # of its own copies alone, which are far ahead of the work
            self.stream.check(self.work)

    def query(self):
        return True

    def elapsed_time(self, later):
        return 0.001


class Rehearsal(TorchDispatchMode):
    """A machine that has one GPU while it is entered.

    Attributes:
        device: The GPU.
        events: What happened on it.
        free: Bytes of its memory that are free.
    """

    active = None

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # nothing is compiled here: PyTorch's wrapper of every operation is not needed

    def __init__(self, device="cuda:0"):
        super().__init__()
        self.device = torch.device(device)
        self.bare = torch.device(self.device.type)  # without a number, of which C++ asks the driver
        self.events = []
        self.free = 70 * 10**9
        self.streams = [Stream()]  # the last is the current one
        self.created = []
        self._depth = 0
        self._generators = {}  # by the place of what they wrap: Python's object may be made anew
        self._pinned = {}

    def count(self, kind, operation=None):
        """How often something happened."""
        return sum(e.kind == kind and operation in (None, e.operation) for e in self.events)

    def waits(self):
        """How often each line made the CPU wait, most often first: for a failed test to show."""
        seen = collections.Counter(
            (e.where, e.operation, e.note) for e in self.events if e.kind == "wait"
        )
        return [(count, *what) for what, count in seen.most_common()]

    # --- the machine -------------------------------------------------------------------------

    def __enter__(self):
        self._depth += 1
        if self._depth == 1:
            self._undo = contextlib.ExitStack()
            Rehearsal.active = self
            self._undo.callback(setattr, Rehearsal, "active", None)
            self._pretend()
            self._undo.enter_context(Functions())
        return super().__enter__()

    def __exit__(self, kind, *more):
        found = super().__exit__(kind, *more)
        self._depth -= 1
        if not self._depth:
            self._undo.close()
            if kind is None:
                for stream in self.created:
                    stream.check(stream.work)
        return found

    def _pretend(self):
        self._patch(torch, "Generator", self._generator(torch.Generator))
        # `module.to` puts a parameter's data into the old one, which would lose its inside.
        future = torch.__future__
        before = future.get_overwrite_module_params_on_conversion()
        future.set_overwrite_module_params_on_conversion(True)
        self._undo.callback(future.set_overwrite_module_params_on_conversion, before)
        if self.device.type == "mps":
            self._patch(torch.backends.mps, "is_available", lambda: True)
            self._patch(torch.mps, "empty_cache", lambda: self.note("call", "empty_cache", 0))
        else:
            self._pretend_cuda()

    def _pretend_cuda(self):
        cuda = torch.cuda
        for name, value in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "get_device_name": lambda device=None: "a pretended GPU",
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_properties": lambda device=None: types.SimpleNamespace(
                major=9, minor=0, total_memory=80 * 10**9
            ),
            "mem_get_info": lambda device=None: (self.free, 80 * 10**9),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "max_memory_reserved": lambda device=None: 5 * 10**9,
            "reset_peak_memory_stats": lambda device=None: self.note("call", "reset_peak", 0),
            "empty_cache": lambda: self.note("call", "empty_cache", 0),
            "synchronize": lambda device=None: self.note("wait", "synchronize", 0),
            "Stream": Stream,
            "Event": CudaEvent,
            "stream": lambda stream: stream,
            "current_stream": lambda device=None: self.streams[-1],
        }.items():
            self._patch(cuda, name, value)

    def _patch(self, owner, name, value):
        self._undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def _generator(self, real):
        rehearsal = self

        class Generator:  # a class, as annotations like `torch.Generator | None` are evaluated
            def __new__(cls, device="cpu"):
                if torch.device(device).type != rehearsal.device.type:
                    return real(device)
                made = real()
                rehearsal._generators[made._cdata] = made
                return made

        return Generator

    def pinned(self, tensor, *, reused):
        """A CPU tensor as one in page-locked memory, which is used again or by its maker alone."""
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage, reused  # held, so that no other comes there
        return tensor

    def is_pinned(self, tensor):
        return tensor.untyped_storage().data_ptr() in self._pinned

    # --- every operation ---------------------------------------------------------------------

    def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
        if func is torch.ops.prim.device.default and isinstance(args[0], Pretended):
            return vars(args[0]).get("where", self.device)
        return self.run(func, args, kwargs or {})

    def note(self, kind, operation, size, note=""):
        frame, where = sys._getframe(2), "?"
        while frame is not None and kind != "launch":  # of which there are thousands
            name = frame.f_code.co_filename
            if "brats_cli" in name:
                where = f"{name.split('brats_cli/')[-1]}:{frame.f_lineno}"
                break
            frame = frame.f_back
        self.events.append(Event(kind, operation, where, size, note))

    def run(self, func, args, kwargs):
        """An operation, as CUDA would do it."""
        kind = _kind(func)
        # Within inference_mode, an operation made of others comes whole.
        if kind.is_made_of_others:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        flat, mine = [], []

        def inside(each):
            flat.append(each)
            if type(each) is Pretended:
                mine.append(each)
                return vars(each)["inner"]
            return each

        args_inside = _each(args, inside)
        kwargs_inside = {name: _each(value, inside) for name, value in kwargs.items()}
        asked = self._asked(kwargs.get("device"), mine)
        there = asked is not None and asked.type == self.device.type
        if not mine and not there:
            return func(*args, **kwargs)
        home = asked or mine[0].device
        self._check(func, kind.name, flat, home)
        self._note(kind.name, args, kwargs, home, mine)
        if there:
            kwargs_inside["device"] = torch.device("cpu")
            kwargs_inside.pop("pin_memory", None)
        found = func(*args_inside, **kwargs_inside)
        if kind.name == "copy_" and type(args[0]) is not Pretended:
            return args[0]
        if asked is not None and not there:
            return found  # to the CPU
        return self._outside(func, kind.name, found, mine, home)

    def _asked(self, device, mine):
        """The device that an operation names, if it names one."""
        if device is None:
            return None
        device = torch.device(device)
        if device.type == "meta" and mine:
            return mine[0].device  # what C++ takes a pretended tensor's device for
        if device.type == "meta" and _in_backward():
            return self.device  # a number that autograd makes where it thinks its tensor lies
        return self.device if device.type == self.device.type else device

    def _check(self, func, name, flat, home):
        """Raise what CUDA would raise, and what it would not."""
        for each in flat:
            if type(each) is Pretended:
                written = vars(each)["written_by"]
                if written is not None and written[0] is not self.streams[-1]:
                    stream, work = written
                    if self.streams[-1].seen.get(stream, -1) < work:
                        raise Race(f"{func} of a tensor that another stream still copies")
            elif type(each) in NUMBERS:
                continue
            elif isinstance(each, torch._C.Generator):
                if (each._cdata in self._generators) != (home.type == self.device.type):
                    raise DeviceMismatch(f"Expected a '{home}' device type for generator: {func}")
            elif isinstance(each, torch.Tensor) and name not in COPIES:
                self._check_of_the_cpu(func, name, each, home)

    def _check_of_the_cpu(self, func, name, each, home):
        if each.device.type == "meta":
            raise AssertionError(f"{func} on a tensor that has lost its inside")
        if each.dim() == 0 and not (name.startswith("index") or name in ("cat", "stack")):
            return  # taken as a number
        if name.startswith(("index", "_index_put")) and each.dtype in (torch.int64, torch.bool):
            self.note("wait", name, each.numel() * 8, "an index from the CPU")
            return
        raise DeviceMismatch(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{home} and {each.device}: {func} of {tuple(each.shape)}"
        )

    def _note(self, name, args, kwargs, home, mine):
        size = sum(each.numel() * each.element_size() for each in mine)
        if name in COPIES:
            self._copy(name, args, kwargs, home)
        elif name in WAITING or (name == "index" and any(map(_is_mask, args[1] or ()))):
            self.note("wait", name, size)
        elif name not in FREE:
            self.note("launch", name, size)
            self.streams[-1].work += 1

    def _copy(self, name, args, kwargs, home):
        """Note a copy: what crosses without waiting comes from page-locked memory."""
        source = args[1] if name != "_to_copy" else args[0]
        target = home if name == "_to_copy" else args[0].device
        asynchronous = kwargs.get("non_blocking") or (name == "copy_" and any(args[2:]))
        size = source.numel() * source.element_size()
        self.streams[-1].work += 1
        if source.device == target:
            self.note("launch", name, size)
        elif source.device.type == "cpu":
            if not asynchronous or not self.is_pinned(source):
                note = "of pageable memory" if asynchronous else "blocking"
                self.note("wait", "to the device", size, note)
                return
            self.note("launch", "to the device", size)
            _, reused = self._pinned[source.untyped_storage().data_ptr()]
            if reused:
                stream = self.streams[-1]
                stream.copies.append((stream.work, source, source.clone()))
        else:
            self.note("wait", "to the CPU", size)

    def _outside(self, func, name, found, mine, home):
        """Results as tensors of the device: those that an operation writes into are the same."""
        owners = {id(vars(each)["inner"]): each for each in mine}

        def wrapped(out):
            if not isinstance(out, torch.Tensor):
                return out
            if id(out) in owners:
                same = owners[id(out)]
                assert same.shape == out.shape, f"{func} changes a shape in place"
                return same
            if out.dtype == torch.float64:
                self.note("float64", name, out.numel() * 8)
                if home.type == "mps":
                    raise TypeError(f"MPS has no float64: {func}")
            made = Pretended(out, home)
            if len(self.streams) > 1:
                vars(made)["written_by"] = self.streams[-1], self.streams[-1].work
            elif name in VIEWS and mine:
                vars(made)["written_by"] = vars(mine[0])["written_by"]
            return made

        return _each(found, wrapped)


class Kind(NamedTuple):
    """What an operation is."""

    name: str
    is_made_of_others: bool


@functools.cache
def _kind(func):
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    return Kind(func._schema.name.split("::")[-1], composite)


def _in_backward():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            return True
        frame = frame.f_back
    return False


def _is_mask(index):
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
