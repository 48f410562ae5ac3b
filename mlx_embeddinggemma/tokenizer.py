"""Texts to token ids, exactly as the reference tokenizer.json gives them.

Two readers of the same vocabulary. sentencepiece reads `tokenizer.model` (which the converter writes
beside every tokenizer.json) in 0.05 s and 45 MB; `tokenizers` reads the 33 MB tokenizer.json in 1 s
and 290 MB, and serves where nothing else is there.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mlx_embeddinggemma import hub
from mlx_embeddinggemma.errors import EmbeddingGemmaError

# In tokenizer.json, but one past the 262,144 rows of the vocabulary table.
OUTSIDE_TABLE = "<image_soft_token>"


class Tokenizer(Protocol):
    """What the encoder needs of a tokenizer."""

    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, bos and eos included, however long."""
        ...


def load_tokenizer(folder: Path, vocab_size: int, *, lower_case: bool = False) -> Tokenizer:
    """The best tokenizer that a checkpoint's folder allows.

    Args:
        folder: of the checkpoint.
        vocab_size: rows of its vocabulary table.
        lower_case: texts lose their capitals, but not the names of special tokens in them.

    Raises:
        EmbeddingGemmaError: no tokenizer there, or one for another vocabulary.
    """
    tokenizer: Tokenizer
    if lower_case:  # sentencepiece cannot tell a text's capitals from a special token's
        tokenizer = JsonTokenizer(folder / "tokenizer.json", vocab_size)
        tokenizer.lower_case()
    elif (folder / "tokenizer.model").exists():
        tokenizer = SentencePieceTokenizer(folder / "tokenizer.model")
    elif (folder / "tokenizer.json").exists():
        tokenizer = JsonTokenizer(folder / "tokenizer.json", vocab_size)
    else:
        raise EmbeddingGemmaError(
            f"{folder} has neither tokenizer.model nor tokenizer.json: {hub.download_again(folder)}"
        )
    if tokenizer.vocab_size != vocab_size:
        raise EmbeddingGemmaError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, "
            f"the vocabulary table {vocab_size:,} rows"
        )
    return tokenizer


def clean(text: str) -> str:
    """The text as valid Unicode: surrogate pairs joined, lone surrogates as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class SentencePieceTokenizer:
    """`tokenizer.model`, read by sentencepiece."""

    def __init__(self, path: Path):
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise EmbeddingGemmaError(f"{path} is not a sentencepiece model: {error}") from None
        model = self._model
        self.vocab_size: int = model.vocab_size()
        self._bos, self._eos, unk = model.bos_id(), model.eos_id(), model.unk_id()
        # sentencepiece never finds its control tokens in a text; the reference does.
        controls = {model.id_to_piece(i): i for i in (model.pad_id(), self._eos, self._bos, unk)}
        # Nor does it tell a literal run of U+2581 (a piece in Gemma) from the spaces beside it.
        runs: dict[str, int] = {}
        while (run := model.piece_to_id("▁" * (len(runs) + 2))) != unk:
            runs["▁" * (len(runs) + 2)] = run
        self._controls = {OUTSIDE_TABLE: unk} | controls | dict(reversed(runs.items()))
        self._split = re.compile("(" + "|".join(map(re.escape, self._controls)) + ")").split

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        pieces = [self._split(clean(text)) for text in texts]
        plain = [piece for split in pieces for piece in split[::2]]
        ids = iter(self._model.encode(plain))
        result = []
        for split in pieces:
            row = [self._bos, *next(ids)]
            for control in split[1::2]:
                row.append(self._controls[control])
                row.extend(next(ids))
            result.append([*row, self._eos])
        return result


class JsonTokenizer:
    """`tokenizer.json`, read by tokenizers."""

    def __init__(self, path: Path, vocab_size: int):
        from tokenizers import Tokenizer as FastTokenizer

        try:
            self._model = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise EmbeddingGemmaError(f"{path} is not a tokenizer: {error}") from None
        self._model.no_truncation()
        self._model.no_padding()
        size = self._model.get_vocab_size()
        self.vocab_size = size - (size > vocab_size and OUTSIDE_TABLE in self._model.get_vocab())
        self._unk: int = self._model.token_to_id("<unk>") or 0

    def lower_case(self) -> None:
        """Texts lose their capitals from now on, before all else is done to them."""
        from tokenizers.normalizers import Lowercase, Sequence

        own = self._model.normalizer
        self._model.normalizer = Sequence([Lowercase(), *([own] if own else [])])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        encodings = self._model.encode_batch_fast([clean(text) for text in texts])
        return [
            [i if i < self.vocab_size else self._unk for i in encoding.ids] for encoding in encodings
        ]
