"""What differs from machine to machine, decided in one place."""

import os

import mlx.core as mx

from mlx_embeddinggemma import blas


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return mx.default_device().type == mx.DeviceType.gpu


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Makes MLX ready on this machine; cheap when already done."""
    if on_gpu():
        # By default MLX keeps freed buffers up to nearly all memory; every new length adds some.
        mx.set_cache_limit(2**30)
    else:
        blas.use_openblas()


def batch_tokens() -> int:
    """Tokens a batch holds by default, padding included."""
    return 16_384 if on_gpu() else 4_096
