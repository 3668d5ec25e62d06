"""Which precision is fast on this machine."""

import torch


def has_fast_bf16() -> bool:
    """Whether bfloat16 is faster than float32 here: on GPUs that have it, and on CPUs with instructions for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
