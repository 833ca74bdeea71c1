"""Where tensors are computed: what is made follows the device of what it is made from."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from dffg.config import AUTO
from dffg.errors import InputError

CPU, CUDA = "cpu", "cuda"
# Where images are kept, ranges are chosen and files are written, whatever computes.
HOST = torch.device(CPU)
# What torch's own allocator says, oneDNN's, and the two of ONNX Runtime, whose errors are no RuntimeError.
_SHORT_OF_MEMORY = (
    *("DefaultCPUAllocator", "could not create a primitive"),
    *("Failed to allocate memory", "std::bad_alloc"),
)


def device_named(name: str) -> torch.device:
    """The device of a name like cpu, cuda or cuda:1; auto is CUDA's where there is one. InputError where there is none
    of this name."""
    if name == AUTO:
        name = CUDA if torch.cuda.is_available() else CPU
    if name == CPU:
        return HOST
    found = re.fullmatch(rf"{CUDA}(?::(\d{{1,4}}))?", name)
    if found is None:
        raise InputError(f"unknown device {name!r}; choose {AUTO}, {CPU}, {CUDA}, or one of several like cuda:1.")
    index, there = int(found[1] or 0), torch.cuda.device_count()
    if index >= there:
        raise InputError(f"there is no device {name}: torch finds {there} of this kind; leave --device out.")
    return torch.device(CUDA, index)


def device_of(module: nn.Module) -> torch.device:
    """Where a network lies; one without tensors could lie anywhere."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return HOST


def described(device: torch.device) -> str:
    """A device for people: cpu, or cuda:0 with the name of the card."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == CUDA else str(device)


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is available."""
    return torch.cuda.mem_get_info(device)[0] if device.type == CUDA else psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a processor or an accelerator."""
    reports = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        reports and any(text in str(error) for text in _SHORT_OF_MEMORY)
    )


def channels_last(images: Tensor) -> Tensor:
    """In the memory order in which convolutions are fastest; the numbers' meaning does not change."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def in_bfloat16(device: torch.device, enabled: bool = True) -> AbstractContextManager[Any]:
    """Within, convolutions and matrix products compute with 8 significant bits."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


@lru_cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies numbers of 16 bits; elsewhere they are slower than those of 32."""
    if device.type == CUDA:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
