"""What each matrix becomes: a recipe is an ordered list of (pattern on its path, format).

Paths are those of `layout`: "embed_tokens", "layers.3.self_attn.q_proj", "layers.3.mlp.up_proj",
"dense.0". Norms are never packed: they are 0.03 % of the weights and cheap to keep.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.hub import local

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
MOST_RULES = 1000  # a network has some 170 matrices, and each is tried on every pattern


@dataclass(frozen=True)
class Format:
    """How one matrix is packed.

    Attributes:
        kind: "affine" (a scale and a bias a group), "mxfp4", "mxfp8", "nvfp4" (MLX's small floats),
            or "q4_0", "q8_0" (ggml's grids, stored in the affine layout).
        bits: of a packed weight, the group's scales not counted.
        group_size: neighbours in a row that share a scale.
    """

    kind: str
    bits: int
    group_size: int

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `mx.dequantize`, and the entry in config.json."""
        mode = "affine" if self.kind in ("q4_0", "q8_0") else self.kind
        return {"group_size": self.group_size, "bits": self.bits, "mode": mode}


def affine(bits: int, group_size: int = 64) -> Format:
    """MLX's own: `w = scale * q + bias`."""
    return Format("affine", bits, group_size)


FIXED = {
    "mxfp4": Format("mxfp4", 4, 32),
    "mxfp8": Format("mxfp8", 8, 32),
    "nvfp4": Format("nvfp4", 4, 16),
    "q4_0": Format("q4_0", 4, 32),
    "q8_0": Format("q8_0", 8, 32),
}


@dataclass(frozen=True)
class Recipe:
    """A named way to convert.

    Attributes:
        rules: the first pattern (as in file names) that matches a path decides; None keeps floats.
        dtype: of floats and of affine scales, where the recipe needs one; else the caller's choice.
        budget: bits a weight of the whole; `rules` are then found on calibration texts.
    """

    name: str
    description: str
    rules: tuple[tuple[str, Format | None], ...]
    dtype: str | None = None
    budget: float | None = None

    def format_of(self, path: str) -> Format | None:
        """The format of the matrix at `path`, None for floats."""
        for pattern, chosen in self.rules:
            if fnmatchcase(path, pattern):
                return chosen
        return None

    def grouped(self, group_size: int) -> "Recipe":
        """The same with another group size.

        Raises:
            EmbeddingGemmaError: no such size, or the recipe packs nothing with a size to choose.
        """
        if group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise EmbeddingGemmaError(f"expected a group size of {sizes}, got {group_size}")
        if self.budget or not any(f is not None and f.kind == "affine" for _, f in self.rules):
            raise EmbeddingGemmaError(f"recipe {self.name} has no group size to choose")
        return replace(
            self,
            rules=tuple(
                (p, replace(f, group_size=group_size) if f and f.kind == "affine" else f)
                for p, f in self.rules
            ),
        )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", "32-bit floats", (("*", None),), dtype="float32"),
        Recipe("bf16", "16-bit floats", (("*", None),), dtype="bfloat16"),
        Recipe("8bit", "8 bits everywhere", (("*", affine(8)),)),
        Recipe("4bit", "4 bits everywhere", (("*", affine(4)),)),
        Recipe(
            "4bit-tuned",
            "at most 4.7 bits, where and how they do least harm on plain text",
            (("*", affine(4)),),
            budget=4.7,
        ),
        Recipe(
            "mixed",
            "Google's e4_a8_f4_p4: 8 bits for attention, 4 for all else",
            (("*.self_attn.*", affine(8)), ("*", affine(4))),
        ),
        Recipe("mxfp4", "4-bit floats, a power of two to 32", (("*", FIXED["mxfp4"]),)),
        Recipe("mxfp8", "8-bit floats, a power of two to 32", (("*", FIXED["mxfp8"]),)),
        Recipe("nvfp4", "4-bit floats, an 8-bit float to 16", (("*", FIXED["nvfp4"]),)),
        # A 16-bit float d times a 4-bit q needs up to 15 bits: only float32 holds every product.
        Recipe(
            "q4_0",
            "ggml's 4-bit grid, for checkpoints trained for it",
            (("*", FIXED["q4_0"]),),
            dtype="float32",
        ),
        Recipe(
            "q8_0",
            "ggml's 8-bit grid, for checkpoints trained for it",
            (("*", FIXED["q8_0"]),),
            dtype="float32",
        ),
    )
}


def find_recipe(name: str | Path | Recipe) -> Recipe:
    """A recipe by name, or from a TOML file.

    Raises:
        EmbeddingGemmaError: no such recipe, or a file that is not one.
    """
    if isinstance(name, Recipe):
        return name
    if str(name) in RECIPES:
        return RECIPES[str(name)]
    path = local(name)
    if path.suffix != ".toml":
        raise EmbeddingGemmaError(
            f"expected a recipe ({', '.join(RECIPES)}) or a .toml file, got {str(name)!r}"
        )
    try:
        return _from_toml(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EmbeddingGemmaError(f"{path} is not TOML: {error}") from None


def _from_toml(name: str, raw: Mapping[str, Any]) -> Recipe:
    """Reads `description`, `dtype` and a table `matrices` of pattern = format.

    A format is a number of bits (16 or 32: left as floats), one of the names in `FIXED`, or a table
    {bits, group_size}.
    """
    unknown = raw.keys() - {"description", "dtype", "matrices"}
    rules = raw.get("matrices")
    if unknown or not isinstance(rules, dict) or not rules:
        raise EmbeddingGemmaError(
            f"recipe {name}: expected a table [matrices] of pattern = bits, perhaps a "
            f"description and a dtype, got {', '.join(raw) or 'nothing':.80}"
        )
    if len(rules) > MOST_RULES:
        raise EmbeddingGemmaError(
            f"recipe {name}: expected at most {MOST_RULES:,} patterns, got {len(rules):,}"
        )
    dtype = raw.get("dtype")
    if dtype not in (None, "bfloat16", "float32"):
        raise EmbeddingGemmaError(
            f"recipe {name}: expected dtype bfloat16 or float32, got {dtype!r:.80}"
        )
    parsed = tuple((pattern, _format(name, pattern, value)) for pattern, value in rules.items())
    if any(f is not None and f.kind in ("q4_0", "q8_0") for _, f in parsed):
        dtype = dtype or "float32"
    return Recipe(name, str(raw.get("description", "")), parsed, dtype)


def _format(recipe: str, pattern: str, value: object) -> Format | None:
    if value in (16, 32):
        return None
    if isinstance(value, str) and value in FIXED:
        return FIXED[value]
    table = {"bits": value} if isinstance(value, int) else value
    if isinstance(table, dict) and table.keys() <= {"bits", "group_size"}:
        bits, group_size = table.get("bits"), table.get("group_size", 64)
        if bits in BITS and group_size in GROUP_SIZES:
            return affine(bits, group_size)
    raise EmbeddingGemmaError(
        f'recipe {recipe}: expected for "{pattern:.80}" a number of bits '
        f"({', '.join(map(str, (*BITS, 16)))}), one of {', '.join(FIXED)}, or "
        f"{{bits, group_size}}, got {value!r:.80}"
    )
