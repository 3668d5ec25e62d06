"""A device that no test machine has, played on the CPU: what an Apple GPU refuses is refused, and waits are counted.

A tensor there holds one of the CPU, on which operations are made once it is known that all tensors of more than one
number are there, that none is of float64, and that torch has a kernel for Apple's GPUs, by the table that it comes
with. torch itself takes them for tensors of the device "meta".
"""

import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import torch
import torchgen
from accelerate.state import AcceleratorState, PartialState
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map


PLACE = torch.device("mps:0")

_ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount"}
"""Operations of whose result the CPU has to know something: a number, a shape."""


class Elsewhere(torch.Tensor):
    """A tensor there."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: PLACE)

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device="meta", **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _made(func, args, kwargs or {}, Counter())

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Elsewhere(inner["held"])

    def new_tensor(self, data):
        return torch.tensor(data, dtype=self.dtype, device=PLACE)

    def tolist(self):
        return self.cpu().tolist()


class Computer(TorchDispatchMode):
    """Within the block there is such a device.

    Attributes:
        waits: how often the CPU has waited for it, by the function of the library in which it did, or else "".
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor(..., device=PLACE) looks for a real one
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _made(func, args, kwargs or {}, self.waits)

    def move(self, trainer):
        """A trainer that was made for the CPU."""
        trainer.args.__dict__["_setup_devices"] = PLACE
        for state in (PartialState, AcceleratorState):
            state._shared_state["device"] = PLACE
        trainer.model.to(PLACE)


def _made(func, args, kwargs, waits):
    name, asked = func.overloadpacket.__name__, kwargs.get("device")
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = _is_there(args[0]) if name == "copy_" else any(map(_is_there, given)) if asked is None else _means(asked)
    if not there and not any(map(_is_there, given)):
        return func(*args, **kwargs)
    copies = name in ("copy_", "_to_copy")
    if not copies:
        _check(func, given if asked is None else [])
    if any(_is_there(value) != there for value in given) if copies else _asks(name, args):
        waits[_reader()] += 1
    own = {**tree_map(_held, kwargs), **({} if asked is None else {"device": torch.device("cpu")})}
    result = func(*tree_map(_held, args), **own)
    if not there:
        return args[0] if name == "copy_" else result.clone()
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_sent, result))


def _means(device):
    return torch.device(device).type in (PLACE.type, "meta")


def _is_there(value):
    return isinstance(value, Elsewhere)


def _held(value):
    return value.held if _is_there(value) else value


def _sent(value):
    if not isinstance(value, torch.Tensor) or _is_there(value):
        return value
    if value.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    return Elsewhere(value)


def _check(func, given):
    apart = [tuple(value.shape) for value in given if value.ndim and not _is_there(value)]
    if apart:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {apart} of the CPU.")
    if not _has_kernel(*str(func).split(".")[1:]):
        raise NotImplementedError(f"The operator '{func}' is not currently implemented for the MPS device.")


def _asks(name, args):
    return name in _ASKS or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]))


def _reader():
    frame = sys._getframe()
    while frame is not None and "/amal_hf/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


@cache
def _kernels():
    """For what has kernels of its own on CPUs: whether it has one on Apple's GPUs."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    found = {}
    for block in table.read_text().split("\n- func: ")[1:]:
        keys = {
            key for line in re.findall(r"^    ([A-Z][\w, ]*): \w", block, re.MULTILINE) for key in line.split(", ")
        }
        if "CPU" in keys:
            found[block.split("(")[0]] = "MPS" in keys
    return found


@cache
def _has_kernel(name, overload):
    """What has none of its own is made of its variant that writes into a given tensor, or of others."""
    own, writes = (name, f"{name}.out") if overload == "default" else (f"{name}.{overload}", f"{name}.{overload}_out")
    return _kernels().get(own, _kernels().get(writes, True))
