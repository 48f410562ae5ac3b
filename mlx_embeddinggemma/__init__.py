"""EmbeddingGemma-300m in MLX: private text embeddings on your own machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_embeddinggemma.encoder import EmbeddingGemma as EmbeddingGemma
    from mlx_embeddinggemma.errors import EmbeddingGemmaError as EmbeddingGemmaError
    from mlx_embeddinggemma.precision import quantize_embeddings as quantize_embeddings

__version__ = "0.1.0"

_PUBLIC = {
    "EmbeddingGemma": "encoder",
    "EmbeddingGemmaError": "errors",
    "quantize_embeddings": "precision",
}
__all__ = ["EmbeddingGemma", "EmbeddingGemmaError", "__version__", "quantize_embeddings"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `--help` does not wait for MLX."""
    if name in _PUBLIC:
        from importlib import import_module

        from mlx_embeddinggemma.errors import missing_backend

        try:
            return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        except ImportError as error:
            raise ImportError(missing_backend(error) or str(error)) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
