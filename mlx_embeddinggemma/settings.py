"""Settings that a checkpoint's files keep beside its weights, as sentence-transformers reads them.

They change vectors as much as weights do: prompts, where long texts are cut, lower case. Each is
honoured as there; what is not computed here, or is no value at all, is refused with its file and name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mlx_embeddinggemma import similarity
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.json_files import read_json, read_object, write_json
from mlx_embeddinggemma.prompts import MODEL_CARD, PUBLISHED

MODEL = "config_sentence_transformers.json"
TOKENIZER = "tokenizer_config.json"
# The first of these that says anything counts.
TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
SHORTEST = 3  # tokens: bos, one of the text's, eos
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says about texts and vectors.

    Attributes:
        prompts: by name; "query" and "document" are always there, if only empty, and the model card's.
        default_prompt_name: of the prompt for texts that come without one; None is none.
        max_length: tokens that a longer text is cut to.
        truncate_dim: size of the vectors; None is the head's.
        do_lower_case: whether texts lose their capitals first, prompts included.
        truncation_side: where a long text is cut.
        similarity_fn_name: one of `similarity.NAMES`.
    """

    prompts: Mapping[str, str]
    default_prompt_name: str | None
    max_length: int
    truncate_dim: int | None
    do_lower_case: bool
    truncation_side: Side
    similarity_fn_name: str

    def cut(self, ids: list[int], length: int, before: int, behind: int) -> list[int]:
        """At most `length` of a text's tokens: the text is cut on one side, what is around it stays.

        Args:
            ids: tokens of the text and what the tokenizer puts around it.
            length: tokens that are left.
            before: how many of the first are not the text's (bos).
            behind: how many of the last (eos).
        """
        if len(ids) <= length:
            return ids
        end = len(ids) - behind
        left = max(0, length - before - behind)
        start = end - left if self.truncation_side == "left" else before
        return [*ids[:before], *ids[start : start + left], *ids[end:]]


def read_settings(folder: Path, longest: int) -> Settings:
    """The settings of a checkpoint's folder.

    Args:
        folder: of the checkpoint.
        longest: tokens that its network can take.

    Raises:
        EmbeddingGemmaError: a value of the wrong kind, or one that is not computed here.
    """
    transformer_path, transformer = _transformer(folder)
    tokenizer_path = folder / TOKENIZER
    tokenizer = read_object(tokenizer_path, optional=True)
    if tokenizer.get("split_special_tokens"):
        raise EmbeddingGemmaError(
            f"{tokenizer_path}: split_special_tokens is not computed here: use sentence-transformers"
        )
    length = transformer.get("max_seq_length")
    if length is not None:
        _check_length(transformer_path, "max_seq_length", length, longest)
    else:
        key = "model_max_length" if "model_max_length" in tokenizer else "max_len"  # its older name
        length = _tokenizer_length(tokenizer_path, key, tokenizer.get(key), longest)
    model_path = folder / MODEL
    model = read_object(model_path, optional=True)
    if model.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise EmbeddingGemmaError(
            f"{model_path}: expected model_type 'SentenceTransformer', got {model['model_type']!r:.80}"
        )
    prompts = _prompts(model_path, model)
    return Settings(
        prompts=MappingProxyType(prompts),
        default_prompt_name=_default_prompt(model_path, model, prompts),
        max_length=length,
        truncate_dim=_dimension(model_path, model.get("truncate_dim")),
        do_lower_case=bool(transformer.get("do_lower_case")),
        truncation_side=_side(folder, tokenizer),
        similarity_fn_name=_similarity(model_path, model.get("similarity_fn_name")),
    )


def write_settings(folder: Path, settings: Settings, longest: int) -> None:
    """Puts settings into a checkpoint's files, where those do not say the same already.

    Args:
        folder: of the checkpoint.
        settings: to be read from it afterwards.
        longest: tokens that its network can take.
    """
    if read_settings(folder, longest) == settings:
        return
    change: dict[str, dict[str, Any]] = {
        MODEL: {
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": settings.similarity_fn_name,
            "truncate_dim": settings.truncate_dim,
        },
        TRANSFORMER[0]: {
            "max_seq_length": settings.max_length,
            "do_lower_case": settings.do_lower_case,
        },
        TOKENIZER: {"truncation_side": settings.truncation_side},
    }
    for name, values in change.items():
        path = folder / name
        old = read_object(path, optional=True)
        if name != TOKENIZER or _side(folder, old) != settings.truncation_side:
            write_json(path, old | values)


def _transformer(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Settings of the Transformer module, and where they stand."""
    for path in (folder / name for name in TRANSFORMER):
        if settings := read_object(path, optional=True):
            _check_transformer(path, settings)
            return path, settings
    return folder / TRANSFORMER[0], {}


def _check_transformer(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses what would make another Transformer module of it."""
    for key, value in settings.items():
        if not value or key in ("max_seq_length", "do_lower_case", "unpad_inputs"):
            continue
        if key == "modality_config" and isinstance(value, dict):
            harmless = value.get("text") == TEXT
        elif key.endswith(("_args", "_kwargs")) and isinstance(value, dict):
            # What else these may hold (a dtype, a tokenizer's options) would have to be honoured.
            harmless = value.keys() <= {"attn_implementation", "trust_remote_code"}
        else:
            expected = {
                "transformer_task": "feature-extraction",
                "module_output_name": "token_embeddings",
            }
            harmless = value == expected.get(key)
        if not harmless:
            raise EmbeddingGemmaError(
                f"{path}: {key[:80]} {value!r:.80} is not computed here: use sentence-transformers"
            )


def _check_length(path: Path, key: str, value: object, longest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not SHORTEST <= value <= longest:
        raise EmbeddingGemmaError(
            f"{path}: expected for {key} a whole number from {SHORTEST} to {longest:,}, "
            f"got {value!r:.40}"
        )


def _tokenizer_length(path: Path, key: str, value: Any, longest: int) -> int:
    """`model_max_length`, which says "no limit" by null or by a number like 1e30."""
    if value is None or (isinstance(value, int | float) and value >= longest):
        return longest
    _check_length(path, key, value, longest)
    return int(value)


def _side(folder: Path, tokenizer: Mapping[str, Any]) -> Side:
    default = "left" if _cuts_left(folder / "tokenizer.json") else "right"
    side: Any = tokenizer.get("truncation_side", default)
    if side not in ("left", "right"):
        raise EmbeddingGemmaError(
            f"{folder / TOKENIZER}: expected truncation_side 'left' or 'right', got {side!r:.40}"
        )
    return "left" if side == "left" else "right"


def _cuts_left(path: Path) -> bool:
    """Whether tokenizer.json says so: at its start, of 33 MB."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096).partition(b'"added_tokens"')[0]
    found = re.search(rb'"truncation"\s*:\s*(\{[^}]*\})', start)
    try:
        return found is not None and json.loads(found[1]).get("direction") == "Left"
    except ValueError:
        return False


def _prompts(path: Path, model: Mapping[str, Any]) -> dict[str, str]:
    """The published ones for a folder that is not sentence-transformers' own, such as mlx-lm writes."""
    modules = path.parent / "modules.json"
    if not path.exists() and (not modules.exists() or read_json(modules) == []):
        return {**MODEL_CARD, **PUBLISHED}
    prompts = model.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str | None) for p in prompts.values()):
        raise EmbeddingGemmaError(
            f"{path}: expected prompts to be an object of texts by name, got {prompts!r:.80}"
        )
    own = {name: prompt or "" for name, prompt in prompts.items()}
    return {**MODEL_CARD, "query": "", "document": "", **own}


def _default_prompt(path: Path, model: Mapping[str, Any], prompts: Mapping[str, str]) -> str | None:
    name = model.get("default_prompt_name")
    if name is None:
        return None
    if not isinstance(name, str) or name not in prompts:
        raise EmbeddingGemmaError(
            f"{path}: expected default_prompt_name to be one of the prompts "
            f"{', '.join(prompts)[:200]}, got {name!r:.40}"
        )
    return name


def _dimension(path: Path, value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise EmbeddingGemmaError(
            f"{path}: expected truncate_dim to be a whole number from 1 on, got {value!r:.40}"
        )
    return value


def _similarity(path: Path, value: object) -> str:
    if value is None:
        return "cosine"
    if not isinstance(value, str) or value not in similarity.NAMES:
        raise EmbeddingGemmaError(
            f"{path}: expected similarity_fn_name {', '.join(similarity.NAMES)}, got {value!r:.40}"
        )
    return value
