"""Checkpoints to MLX folders: packed by a recipe, measured against their source."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversion import Report as Report
    from .conversion import convert as convert
    from .recipes import RECIPES as RECIPES
    from .recipes import Format as Format
    from .recipes import Recipe as Recipe

_PUBLIC = {
    "Format": "recipes",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Report": "conversion",
    "convert": "conversion",
}
__all__ = ["RECIPES", "Format", "Recipe", "Report", "convert"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `--help` does not wait for MLX."""
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
