"""What each matrix becomes: a recipe is an ordered list of (pattern on its path, format).

Paths are those of `layout`: "embed_tokens", "layers.3.self_attn.q_proj", "layers.3.mlp.up_proj",
"dense.0". Norms are never packed: they are 0.03 % of the weights and cheap to keep.
"""

import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlx_embeddinggemma import given
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import shown

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
# Bits and group size of the formats that leave no choice.
SIZES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16), "q4_0": (4, 32), "q8_0": (8, 32)}
DTYPES = ("bfloat16", "float32")
# Of a TOML file; EmbeddingGemma has 171 matrices. Python keeps 256 patterns compiled: with more, each
# would be compiled again for each matrix.
MOST_RULES, LONGEST_PATTERN, LONGEST_FILE, LONGEST_LINE = 256, 200, 2**16, 1000


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

    def __post_init__(self) -> None:
        size = (self.bits, self.group_size)
        fits = self.bits in BITS and self.group_size in GROUP_SIZES
        if self.kind != "affine":
            fits = isinstance(self.kind, str) and SIZES.get(self.kind) == size
        if not fits or {type(number) for number in size} != {int}:
            raise EmbeddingGemmaError(
                f"expected a format of affine with {_listed(BITS)} bits in groups of "
                f"{_listed(GROUP_SIZES)}, or one of FIXED, got {shown((self.kind, *size))}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `mx.dequantize`, and the entry in config.json."""
        mode = "affine" if self.kind in ("q4_0", "q8_0") else self.kind
        return {"group_size": self.group_size, "bits": self.bits, "mode": mode}


def affine(bits: int, group_size: int = 64) -> Format:
    """MLX's own: `w = scale * q + bias`."""
    return Format("affine", bits, group_size)


FIXED = {kind: Format(kind, *size) for kind, size in SIZES.items()}


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

    def __post_init__(self) -> None:
        if not all(
            isinstance(rule, tuple)
            and len(rule) == 2
            and isinstance(rule[0], str)
            and isinstance(rule[1], Format | None)
            for rule in given.listed("rules", self.rules)
        ):
            raise TypeError(f"expected rules of (pattern, Format or None), got {shown(self.rules)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise EmbeddingGemmaError(
                f"recipe {self.name}: expected dtype {' or '.join(DTYPES)}, got {shown(self.dtype)}"
            )
        if self.budget is not None:
            given.number("budget", self.budget, 2, 32)

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
        if given.whole("group_size", group_size, 1, 2**20) not in GROUP_SIZES:
            raise EmbeddingGemmaError(
                f"expected a group size of {_listed(GROUP_SIZES)}, got {group_size}"
            )
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
    path = given.path("recipe", name)
    if path.suffix != ".toml":
        raise EmbeddingGemmaError(
            f"expected a recipe ({', '.join(RECIPES)}) or a .toml file, got {shown(str(name))}"
        )
    return _from_toml(path, _parsed(path))


def _parsed(path: Path) -> Mapping[str, Any]:
    """A TOML file's content; its size is looked at first, for long keys take the parser minutes."""
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST_FILE + 1)
        if len(raw) > LONGEST_FILE or max(map(len, raw.splitlines()), default=0) > LONGEST_LINE:
            raise EmbeddingGemmaError(
                f"{path}: expected a recipe of at most {LONGEST_FILE:,} bytes, {LONGEST_LINE:,} a line"
            )
        return tomllib.loads(raw.decode())
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise EmbeddingGemmaError(f"{path} is not a recipe: nested too deeply") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of 5,000 digits
        if isinstance(error, EmbeddingGemmaError):
            raise
        raise EmbeddingGemmaError(f"{path} is not TOML: {error!s:.200}") from None


def _from_toml(path: Path, raw: Mapping[str, Any]) -> Recipe:
    """Reads `description`, `dtype` and a table `matrices` of pattern = format.

    A format is a number of bits (16 or 32: left as floats), one of the names in `FIXED`, or a table
    {bits, group_size}.
    """
    unknown = raw.keys() - {"description", "dtype", "matrices"}
    rules, description, dtype = raw.get("matrices"), raw.get("description", ""), raw.get("dtype")
    if unknown or not isinstance(rules, dict) or not rules:
        raise EmbeddingGemmaError(
            f"{path}: expected a table [matrices] of pattern = bits, perhaps a description and a "
            f"dtype, got {shown(list(raw))}"
        )
    if len(rules) > MOST_RULES or max(map(len, rules)) > LONGEST_PATTERN:
        raise EmbeddingGemmaError(
            f"{path}: expected {MOST_RULES} patterns of {LONGEST_PATTERN} characters at most, got "
            f"{len(rules):,}, the longest of {max(map(len, rules)):,}"
        )
    if not isinstance(description, str) or len(description) > LONGEST_PATTERN or "\n" in description:
        raise EmbeddingGemmaError(
            f"{path}: expected a description of one line of {LONGEST_PATTERN} characters at most, got "
            f"{shown(description)}"
        )
    parsed = tuple((pattern, _format(path, pattern, value)) for pattern, value in rules.items())
    if any(f is not None and f.kind in ("q4_0", "q8_0") for _, f in parsed):
        dtype = "float32" if dtype is None else dtype
    return Recipe(path.stem, description, parsed, dtype)


def _format(path: Path, pattern: str, value: object) -> Format | None:
    if type(value) is int and value in (16, 32):
        return None
    if isinstance(value, str) and value in FIXED:
        return FIXED[value]
    table = value if isinstance(value, dict) else {"bits": value}
    if "bits" in table and table.keys() <= {"bits", "group_size"}:
        with suppress(EmbeddingGemmaError):  # whose message does not name the file
            return affine(**table)
    raise EmbeddingGemmaError(
        f"{path}: expected for {shown(pattern)} a number of bits ({_listed((*BITS, 16))}), one of "
        f"{', '.join(FIXED)}, or {{bits, group_size}}, got {shown(value)}"
    )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
