"""Which precision is fast on this machine."""

from typing import Any

import torch
from torch import nn


def has_fast_bf16() -> bool:
    """Whether bfloat16 is faster than float32 here: on GPUs that have it, and on CPUs with instructions for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def compute_dtype(args: Any, model: nn.Module) -> torch.dtype:
    """The precision of a student's forward pass: that of autocast, or of its parameters."""
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    return next(model.parameters()).dtype
