"""tokenizer.json as transformers reads it: with what the files beside it add, or refused by name.

transformers 5 has two ways to read the file. For the class GemmaTokenizer it takes the vocabulary, the
merges and the post-processor, and builds the rest itself; for PreTrainedTokenizerFast it takes the file
as it is. Both then add the tokens that tokenizer_config.json, or else special_tokens_map.json and
added_tokens.json, list or name. Neither looks at `add_bos_token`: the post-processor says it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.json_files import read_object
from mlx_embeddinggemma.presence import check_present

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as FastTokenizer

GEMMA = ("GemmaTokenizer", "GemmaTokenizerFast")
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# Without effect, since no space is left when it comes: a file may as well have none.
PRE_TOKENIZER = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
BPE = {
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
}
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GEMMA_ROLES = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "unk", "pad", "mask")}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
LISTS = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True)
class Beside:
    """What the files beside tokenizer.json say.

    Attributes:
        gemma: whether transformers reads it with its GemmaTokenizer.
        listed: whether tokenizer_config.json lists the added tokens: GemmaTokenizer takes no others.
        added: tokens that come with an id, of which only the order counts.
        named: tokens with a role, such as bos, in the order in which new ones get an id.
    """

    gemma: bool
    listed: bool
    added: "dict[int, AddedToken]"
    named: "list[AddedToken]"


def read_beside(folder: Path) -> Beside:
    """Reads tokenizer_config.json and, unless it lists the added tokens, its two older companions.

    Raises:
        EmbeddingGemmaError: one of them is damaged, or asks for what is not supported.
    """
    path = folder / "tokenizer_config.json"
    config = read_object(path, optional=True)
    kind = config.get("tokenizer_class") or GEMMA[0]
    if kind not in GEMMA + AS_IT_IS:
        raise EmbeddingGemmaError(
            f"{path}: expected tokenizer_class {GEMMA[0]} or {AS_IT_IS[0]}, got {kind!r:.80}"
        )
    if config.get("split_special_tokens"):
        raise EmbeddingGemmaError(f"{path}: split_special_tokens is not supported: set it to false")
    names = {key: value for key, value in config.items() if _is_role(key, value)}
    if kind in GEMMA:
        names = GEMMA_ROLES | names
    more = _extra(path, config)
    listed = "added_tokens_decoder" in config
    if listed:
        return Beside(
            kind in GEMMA,
            listed,
            _by_id(path, config["added_tokens_decoder"]),
            _named(path, names, more),
        )
    path = folder / "special_tokens_map.json"
    old = read_object(path, optional=True)
    names |= {key: value for key, value in old.items() if key not in LISTS}
    named = _named(path, names, [*more, *_extra(path, old)])
    special = {token.content for token in named}
    path = folder / "added_tokens.json"
    ids = read_object(path, optional=True)
    tokens = {str(i): {"content": text, "special": text in special} for text, i in ids.items()}
    return Beside(kind in GEMMA, listed, _by_id(path, tokens), named)


def _is_role(key: str, value: Any) -> bool:
    return key in ROLES or (key.endswith("_token") and isinstance(value, str))


def _extra(path: Path, config: Mapping[str, Any]) -> list[Any]:
    """Special tokens without a role."""
    extra = config.get(LISTS[0]) or config.get(LISTS[1]) or []
    if not isinstance(extra, list | dict):
        raise EmbeddingGemmaError(f"{path}: expected a list of special tokens, got {extra!r:.80}")
    return list(extra.values()) if isinstance(extra, dict) else extra


def _named(path: Path, names: Mapping[str, Any], more: list[Any]) -> "list[AddedToken]":
    keys = [*filter(names.__contains__, ROLES), *(key for key in names if key not in ROLES)]
    values = [*(names[key] for key in keys), *more]
    return [_token(path, value, special=True) for value in values if value is not None]


def _by_id(path: Path, tokens: Any) -> "dict[int, AddedToken]":
    if not isinstance(tokens, dict) or not all(key.isdecimal() and len(key) < 10 for key in tokens):
        raise EmbeddingGemmaError(f"{path}: expected added tokens with their ids, got {tokens!r:.80}")
    return {int(key): _token(path, value) for key, value in tokens.items()}


def _token(path: Path, value: Any, **flags: bool) -> "AddedToken":
    from tokenizers import AddedToken

    settings = {"content": value} if isinstance(value, str) else value
    try:
        content = settings["content"]
        return AddedToken(content, **{k: settings[k] for k in FLAGS if k in settings} | flags)
    except (TypeError, KeyError, UnicodeEncodeError):
        raise EmbeddingGemmaError(
            f"{path}: expected a token's text, or an object with its content, got {value!r:.80}"
        ) from None


def read_tokenizer(folder: Path) -> "tuple[FastTokenizer, set[str]]":
    """The tokenizer that transformers would make of a folder.

    Returns:
        It, and the tokens that it has for their roles alone: no file lists them.

    Raises:
        EmbeddingGemmaError: damaged, or its files say different things.
    """
    from tokenizers import Tokenizer

    path, beside = folder / "tokenizer.json", read_beside(folder)
    check_present(path)
    with refusing(path):
        model = Tokenizer.from_file(str(path))
        _check(path, model, beside)
        model.no_truncation()
        model.no_padding()
        known = model.get_added_tokens_decoder()
        if beside.listed and beside.gemma:
            _check_list(path, model, beside)
        # Where tokenizer_config.json describes a token otherwise, transformers follows it.
        added = beside.added if beside.listed else beside.added | known
        same = {as_tuple(token) for token in known.values()}
        new = [token for _, token in sorted(added.items()) if as_tuple(token) not in same]
        model.add_tokens([token for token in new if token.content])
        has = {"", *(token.content for token in (*known.values(), *added.values()))}
        named = [token for token in beside.named if token.content not in has]
        model.add_special_tokens(named)
    return model, {token.content for token in named}


def as_tuple(token: "AddedToken") -> tuple[str, bool, bool, bool, bool]:
    """All of a token that matters to how a text is split; equality of the class itself is less."""
    return token.content, token.lstrip, token.rstrip, token.single_word, token.normalized


def put_in_lower_case(model: "FastTokenizer") -> None:
    """Texts lose their capitals from now on, before all else is done to them."""
    from tokenizers.normalizers import Lowercase, Sequence

    own = model.normalizer
    model.normalizer = Sequence([Lowercase(), *([own] if own else [])])


def _check(path: Path, model: "FastTokenizer", beside: Beside) -> None:
    """Refuses chance, and what only some versions of transformers honour."""
    bpe = model.model
    if getattr(bpe, "dropout", None):
        raise EmbeddingGemmaError(
            f"{path}: its dropout of {bpe.dropout} splits a text differently each time: set it to null"
        )
    if not beside.gemma:
        return
    wrong = [key for key, value in BPE.items() if getattr(bpe, key, "no such thing") != value]
    for part, allowed in (("normalizer", [NORMALIZER]), ("pre_tokenizer", [PRE_TOKENIZER, None])):
        if _state(getattr(model, part)) not in allowed:
            wrong.append(part)
    if wrong:
        raise EmbeddingGemmaError(
            f"{path}: expected Gemma's own {', '.join(wrong)}, which transformers' GemmaTokenizer "
            "would put in the place of these: to have them honoured, name PreTrainedTokenizerFast as "
            "tokenizer_class in tokenizer_config.json"
        )


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _check_list(path: Path, model: "FastTokenizer", beside: Beside) -> None:
    """Refuses a list that is not tokenizer.json's: GemmaTokenizer takes its added tokens from there."""
    listed = {token.content for token in (*beside.added.values(), *beside.named)}
    known = model.get_added_tokens_decoder()
    numbered = [
        token for i, token in sorted(known.items()) if model.model.token_to_id(str(token)) is None
    ]
    new = [t for _, t in sorted(beside.added.items()) if model.model.token_to_id(t.content) is None]
    wrong = [token.content for token in known.values() if token.content not in listed]
    wrong += [
        ours.content
        for ours, theirs in zip(numbered, new, strict=False)
        if ours.content != theirs.content
    ]
    if wrong:
        raise EmbeddingGemmaError(
            f"{path} adds the token {wrong[0]!r:.60}, which the added_tokens_decoder in "
            "tokenizer_config.json lacks or numbers otherwise: save the tokenizer again"
        )


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """What the library raises as our error: bare Exceptions, and Rust's panics, which are none."""
    try:
        yield
    except EmbeddingGemmaError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise EmbeddingGemmaError(f"{path} is not a tokenizer: {str(error)[:80]}") from None
