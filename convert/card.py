"""The model card: what the folder is, how to use it, how near it stays, under which terms."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_embeddinggemma import strict_json

from .fidelity import Fidelity
from .sources import Source

GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "https://ai.google.dev/gemma/terms. These files were modified from Google's: the weights were "
    "converted as described above."
)
USAGE = """\
```python
from mlx_embeddinggemma import EmbeddingGemma

model = EmbeddingGemma("{name}")  # this folder, or the repository it was uploaded to
query = model.encode_query("Which planet is known as the Red Planet?")
documents = model.encode_document(["Venus is Earth's twin.", "Mars is red from iron oxide."])
model.similarity(query, documents)
```"""


def front_matter(source: Source) -> list[str]:
    """The YAML lines that state the licence: the source's own, or Gemma's for an EmbeddingGemma."""
    lines = source.card.splitlines()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        own = [line for line in lines[1 : lines.index("---", 1)] if line.startswith("license")]
        if own:
            return own
    config = source.config
    if (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (262_144, 24, 768):
        return ["license: gemma"]
    return ["license: unknown"]


def write_card(
    source: Source,
    folder_name: str,
    recipe: str,
    parts: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    fidelity: Mapping[int, Fidelity],
    inputs: Mapping[str, str],
) -> str:
    """README.md.

    Args:
        source: what was converted.
        folder_name: what the output is called.
        recipe: its name and description.
        parts: name, weights, bits and MB of each part, the whole last.
        notes: what the reader must know of this conversion.
        fidelity: by dimension.
        inputs: sha256 by file.
    """
    licence = front_matter(source)
    base = [f"base_model: {source.name}"] if "/" in source.name else []
    revision = f", revision `{source.revision}`" if source.revision else ""
    gemma = any("gemma" in line for line in licence)
    sections = [
        "\n".join(
            [
                "---",
                *licence,
                "library_name: mlx",
                "pipeline_tag: feature-extraction",
                *base,
                "tags:",
                "- mlx",
                "- sentence-similarity",
                "---",
            ]
        ),
        f"# {folder_name}",
        f"`{source.name}`{revision}, converted to MLX by mlx-embeddinggemma. Recipe: {recipe}.",
        USAGE.format(name=folder_name),
        "## Size",
        _table(
            ("part", "weights", "bits a weight", "MB"),
            [(p["part"], f"{p['weights']:,}", f"{p['bits']:.2f}", f"{p['MB']:.2f}") for p in parts],
        ),
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
        "## Fidelity",
        "Cosine of each text's vector to the source's, and how many of a text's ten nearest "
        "neighbours stay the same, on 64 short texts in 15 languages:",
        _table(
            ("dimension", "mean", "1st percentile", "worst", "top-10 kept"),
            [(str(dim), *value.cells()) for dim, value in fidelity.items()],
        ),
        "## Licence",
        GEMMA_NOTICE if gemma else f"As the source's: {'; '.join(licence)}.",
        "## Inputs",
        _table(("file", "sha256"), [(name, f"`{digest}`") for name, digest in inputs.items()]),
    ]
    return "\n\n".join(sections) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(value: object) -> str:
    """JSON as every file of the folder holds it; see `strict_json.dumps`."""
    return strict_json.dumps(value, indent=2, ensure_ascii=False) + "\n"
