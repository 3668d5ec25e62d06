"""Which precision is fast on this machine, which a student computes in, and what goes back quickly in it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def has_fast_bf16() -> bool:
    """Whether bfloat16 is faster than float32 here: on GPUs that have it, and on CPUs with instructions for it.

    Not on CPUs whose instructions torch does not tell, as 2.8 does not.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    told = getattr(torch.cpu, "get_capabilities", None)
    features = told() if told else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def quick_backward(model: nn.Module, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Where a forward pass of a model runs whose backward pass should not take longer than it must.

    On a CPU in bfloat16 torch's fused attention without dropout goes back half as fast as plain attention does (torch
    2.13, `benchmarks/LOG.md`). Forward and back, plain attention is faster up to about 200 tokens, and takes a fifth
    longer at 512. Not under checkpointing, which runs layers again in the backward pass, outside of this.
    """
    slow = next(model.parameters()).device.type == "cpu" and dtype == torch.bfloat16
    slow = slow and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()
    return context


def compute_dtype(mixed_precision: str, model: nn.Module) -> torch.dtype:
    """The precision of a student's forward pass: that of autocast, or of its parameters.

    Args:
        mixed_precision: Accelerate's word for it, which arguments or the launcher may have set.
        model: the student.
    """
    dtype: torch.dtype = _AUTOCAST.get(mixed_precision) or next(model.parameters()).dtype
    return dtype
