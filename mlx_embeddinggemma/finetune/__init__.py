"""Fine-tuning: your pairs in, a sentence-transformers folder out, on your own machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import Report as Report
    from .trainer import Settings as Settings
    from .trainer import finetune as finetune

__all__ = ["Report", "Settings", "finetune"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `--help` does not wait for MLX."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(".trainer", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
