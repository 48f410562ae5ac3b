"""Texts to token ids, exactly as the reference reads tokenizer.json.

Two readers of the same vocabulary. `tokenizers` reads the 33 MB tokenizer.json in 1 s and 290 MB;
sentencepiece reads a `tokenizer.model` in 0.15 s and 45 MB. tokenizer.json is the truth: the other file
is read only where it is alone, or shown to say the same (`agrees`). A stale one is common: who adds a
token with transformers gets a new tokenizer.json beside the old tokenizer.model.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from mlx_embeddinggemma import hub
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.json_files import read_object
from mlx_embeddinggemma.presence import check_present
from mlx_embeddinggemma.tokenizer_json import (
    GEMMA_ROLES,
    put_in_lower_case,
    read_beside,
    read_tokenizer,
    refusing,
)

# In tokenizer.json, but one past the 262,144 rows of the vocabulary table.
OUTSIDE_TABLE = "<image_soft_token>"
# Tables are made longer than the vocabulary, to a multiple of 64, say; by more, it is another's.
MOST_PADDING = 1024
# Files that decide on the ids; the last two where tokenizer_config.json does not list added tokens.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# How a tokenizer.model ends that the converter derived: with a field of 32 bytes, of a number that
# sentencepiece's ModelProto leaves to others (200).
SEAL = b"\xc2\x0c\x20"
# google/embeddinggemma-300m, whose tokenizer.json was made from its tokenizer.model.
GOOGLE = {
    "tokenizer.json": "6852f8d561078cc0cebe70ca03c5bfdd0d60a45f9d2e0e1e4cc05b68e9ec329e",
    "tokenizer.model": "1299c11d7cf632ef3b4e11937501358ada021bbdf7c47638d13c0ee982f2e79c",
    "tokenizer_config.json": "9076840490613047bc9115963ee96b7702018b0d26ba644240bf856efda93118",
}


class Tokenizer(Protocol):
    """What the encoder needs of a tokenizer.

    Attributes:
        vocab_size: tokens that should have a row in the vocabulary table.
        prefix: ids in front of every text, as a rule bos.
        suffix: ids behind every text, as a rule eos; a long text is cut before them.
    """

    vocab_size: int
    prefix: list[int]
    suffix: list[int]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, `prefix` and `suffix` included, however long."""
        ...


def load_tokenizer(folder: Path, vocab_size: int, *, lower_case: bool = False) -> Tokenizer:
    """The tokenizer that a checkpoint's folder means.

    Args:
        folder: of the checkpoint.
        vocab_size: rows of its vocabulary table.
        lower_case: texts lose their capitals, but not the names of added tokens in them.

    Raises:
        EmbeddingGemmaError: no tokenizer there, a damaged one, or one for another vocabulary.
    """
    model, truth = folder / "tokenizer.model", folder / "tokenizer.json"
    if not (model.exists() or truth.exists()):
        raise EmbeddingGemmaError(
            f"{folder} has neither tokenizer.model nor tokenizer.json: {hub.download_again(folder)}"
        )
    if lower_case and not truth.exists():
        raise EmbeddingGemmaError(f"{folder} lacks tokenizer.json, which its do_lower_case needs")
    tokenizer: Tokenizer
    if not lower_case and model.exists() and (not truth.exists() or agrees(folder)):
        tokenizer = SentencePieceTokenizer(folder, vocab_size)
    else:
        tokenizer = JsonTokenizer(folder, vocab_size, lower_case)
    if not vocab_size - MOST_PADDING <= tokenizer.vocab_size <= vocab_size:
        raise EmbeddingGemmaError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the vocabulary table "
            f"{vocab_size:,} rows: resize the model's embeddings, or give it the tokenizer it came with"
        )
    return tokenizer


def agrees(folder: Path) -> bool:
    """Whether a folder's tokenizer.model is known to give the ids of the tokenizer.json beside it.

    Raises:
        EmbeddingGemmaError: one of them is empty or a Git LFS pointer.
    """
    check_present(folder / "tokenizer.json")
    content = _content(folder / "tokenizer.model")
    if content[-35:-32] == SEAL:
        return seal(folder, content[:-35]) == content
    return all(_sha256(folder / name) == digest for name, digest in GOOGLE.items())


def seal(folder: Path, model: bytes) -> bytes:
    """A tokenizer.model that vouches for itself as long as it and all of `FILES` stay as they are."""
    digest = hashlib.sha256(model)
    for name in FILES:
        digest.update(_sha256(folder / name).encode() + b"\n")
    return model + SEAL + digest.digest()


def _sha256(path: Path) -> str:
    """In hexadecimal digits, "" where there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> bytes:
    check_present(path)
    return path.read_bytes()


def clean(text: str) -> str:
    """The text as valid Unicode: surrogate pairs joined, lone surrogates as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class SentencePieceTokenizer:
    """`tokenizer.model`, read by sentencepiece."""

    def __init__(self, folder: Path, rows: int):
        from sentencepiece import SentencePieceProcessor

        self._path, self._rows = folder / "tokenizer.model", rows
        content = _content(self._path)
        try:
            model = self._model = SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError) as error:
            raise EmbeddingGemmaError(
                f"{self._path} is not a sentencepiece model: {str(error)[:80]}"
            ) from None
        size: int = model.vocab_size()
        # sentencepiece never finds its control tokens in a text; the reference does.
        controls = [i for i, control in enumerate(model.is_control(list(range(size)))) if control]
        self._unk: int = model.unk_id()
        self._controls: dict[str, int] = {model.id_to_piece(i): i for i in (*controls, self._unk)}
        alone = not (folder / "tokenizer.json").exists()
        bos, eos = self._check_alone(folder) if alone else (True, True)
        self.prefix = [self._id("bos", model.bos_id())] if bos else []
        self.suffix = [self._id("eos", model.eos_id())] if eos else []
        if not alone and content[-35:-32] != SEAL:
            # Google's: its tokenizer.json has one token more than its tokenizer.model.
            self._controls[OUTSIDE_TABLE] = size
        self.vocab_size = size - (rows < size and model.id_to_piece(size - 1) == OUTSIDE_TABLE)
        # Nor does it tell a literal run of U+2581 (a piece in Gemma) from the spaces beside it.
        runs: dict[str, int] = {}
        while (run := model.piece_to_id("▁" * (len(runs) + 2))) != self._unk:
            runs["▁" * (len(runs) + 2)] = run
        self._controls |= reversed(runs.items())
        self._split = re.compile("(" + "|".join(map(re.escape, self._controls)) + ")").split

    def _check_alone(self, folder: Path) -> tuple[bool, bool]:
        """Refuses what a tokenizer.json would have told; says whether bos and eos belong to a text.

        EmbeddingGemma has both: only a tokenizer_config.json that says no takes them away.
        """
        if self._model.normalize(" a  b") != "▁a▁▁b":
            raise EmbeddingGemmaError(
                f"{self._path}: expected a model that takes a text as it is, spaces as U+2581: give "
                "the folder its tokenizer.json"
            )
        beside = read_beside(folder)
        known = {*self._controls, *GEMMA_ROLES.values(), OUTSIDE_TABLE}
        for token in (*beside.added.values(), *beside.named):
            if token.content not in known and self._model.piece_to_id(token.content) == self._unk:
                raise EmbeddingGemmaError(
                    f"{self._path} lacks the token {token.content!r:.60} that a file beside it has: "
                    "give the folder its tokenizer.json"
                )
        config = read_object(folder / "tokenizer_config.json", optional=True)
        return config.get("add_bos_token") is not False, config.get("add_eos_token") is not False

    def _id(self, name: str, value: int) -> int:
        if value < 0:
            raise EmbeddingGemmaError(
                f"{self._path} has no {name} piece, which EmbeddingGemma needs: give the folder its "
                "tokenizer.json"
            )
        return value

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        pieces = [self._split(clean(text)) for text in texts]
        plain = [piece for split in pieces for piece in split[::2]]
        ids = iter(self._model.encode(plain))
        result = []
        for split in pieces:
            row = [*self.prefix, *next(ids)]
            for control in split[1::2]:
                row.append(self._controls[control])
                row.extend(next(ids))
            result.append([*row, *self.suffix])
        return [inside(row, self._rows, self._unk, self._name) for row in result]

    def _name(self, i: int) -> str:
        return OUTSIDE_TABLE if i >= self._model.vocab_size() else str(self._model.id_to_piece(i))


class JsonTokenizer:
    """`tokenizer.json`, read by tokenizers."""

    def __init__(self, folder: Path, rows: int, lower_case: bool = False):
        self._path, self._rows = folder / "tokenizer.json", rows
        self._model, named = read_tokenizer(folder)
        if lower_case:
            put_in_lower_case(self._model)
        self._unk: int = self._model.token_to_id("<unk>") or 0
        with refusing(self._path):  # some faults show only now
            self.prefix, self.suffix = self._affixes()
        self._rowless = {OUTSIDE_TABLE, *named}
        ids = [self._model.token_to_id(name) for name in self._rowless]
        self.vocab_size = self._model.get_vocab_size() - sum(i is not None and i >= rows for i in ids)

    def _affixes(self) -> tuple[list[int], list[int]]:
        encoding = self._model.encode("a")
        mask = "".join(map(str, encoding.special_tokens_mask))
        match = re.fullmatch("(1*)0+(1*)", mask)
        added = [i for i, special in zip(encoding.ids, mask, strict=True) if special == "1"]
        if match is None or max(added, default=0) >= self._rows:
            raise EmbeddingGemmaError(
                f"{self._path}: expected a post-processor that puts tokens of the vocabulary before "
                f"and behind the text, got ids {encoding.ids!r:.60} for 'a'"
            )
        return added[: len(match[1])], added[len(match[1]) :]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        with refusing(self._path):
            encodings = self._model.encode_batch_fast([clean(text) for text in texts])
        rows, unk = self._rows, self._unk
        return [inside(e.ids, rows, unk, self._name, self._rowless) for e in encodings]

    def _name(self, i: int) -> str:
        return self._model.id_to_token(i) or ""


def inside(
    ids: list[int],
    rows: int,
    unk: int,
    name: Callable[[int], str],
    rowless: Collection[str] = (OUTSIDE_TABLE,),
) -> list[int]:
    """Ids that all have a row in the vocabulary table.

    `<image_soft_token>` in a text becomes `<unk>`: the reference stops at it with an IndexError on a
    CPU and reads past the table on a GPU, and one string in a corpus is no reason to embed none of it.
    The same holds for a token that no file lists, which has its id because it is named for a role.

    Raises:
        EmbeddingGemmaError: another token without a row.
    """
    if max(ids, default=0) < rows:
        return ids
    for i in ids:
        if i >= rows and name(i) not in rowless:
            raise EmbeddingGemmaError(
                f"the tokenizer's token {name(i)!r:.60} has id {i:,}, the vocabulary table {rows:,} "
                "rows: resize the model's embeddings, or give it the tokenizer it came with"
            )
    return [i if i < rows else unk for i in ids]
