"""`EmbeddingGemma`: texts to sentence vectors.

text -> prompt -> ids -> batches -> network -> truncate and renormalise -> array in the caller's order
"""

import shutil
import warnings
from collections.abc import Iterable, Sequence, Sized
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import hub, runtime
from mlx_embeddinggemma.batching import batches, pad
from mlx_embeddinggemma.checkpoint import open_checkpoint, read_json
from mlx_embeddinggemma.config import MATRYOSHKA
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.folders import new_folder
from mlx_embeddinggemma.loading import load_model
from mlx_embeddinggemma.precision import check_precision, quantize_embeddings
from mlx_embeddinggemma.prompts import load_prompts, prompt_for, with_title
from mlx_embeddinggemma.tokenizer import load_tokenizer
from mlx_embeddinggemma.unit import not_unit

if TYPE_CHECKING:
    from tqdm import tqdm

# Texts tokenized and sorted by length at a time: enough to fill batches of one length, small enough
# that memory does not grow with the input.
CHUNK = 2048

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


class EmbeddingGemma:
    """An EmbeddingGemma checkpoint, loaded and ready.

    Args:
        model: "demo" (bundled), a checkpoint's folder, or a hub id.
        revision: branch, tag or commit of a hub id.
        local_files_only: never go online.
        truncate_dim: default size of the vectors, one of `dimensions`.
        dtype: of the activations: "float32" or "bfloat16". By default that of the checkpoint's
            floats on a GPU, and float32 on the CPU, whose bfloat16 product is slow and rough.
        max_length: longer texts are cut to this many tokens; by default the checkpoint's own, 2,048.
        dequantize: expand packed and 16-bit weights once, when loading, and hold them. On the CPU
            they otherwise stay in their file and are expanded for each batch: a third of the memory,
            and a single query takes some 2.5 times as long.

    Raises:
        EmbeddingGemmaError: the model cannot be found, is damaged, or an argument is off.
    """

    def __init__(
        self,
        model: str | Path = "google/embeddinggemma-300m",
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        truncate_dim: int | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        max_length: int | None = None,
        dequantize: bool = False,
    ):
        runtime.prepare()
        if str(dtype) == "float16":
            raise EmbeddingGemmaError(
                "float16 overflows: EmbeddingGemma's activations reach 8e5 and float16 ends at "
                "65,504; use 'bfloat16' or 'float32'"
            )
        if dtype not in (None, *DTYPES):
            raise EmbeddingGemmaError(f"expected dtype 'float32' or 'bfloat16', got {dtype!r}")
        self.folder = hub.find(model, revision=revision, local_files_only=local_files_only)
        self._checkpoint = open_checkpoint(self.folder)
        size = self._checkpoint.embedding_size
        self.dimensions = (size, *(d for d in MATRYOSHKA if d < size))
        self._truncate_dim = self._checked_dim(truncate_dim)
        self.dtype = dtype or self._default_dtype()
        self.max_length = self._checked_length(max_length)
        self.prompts = load_prompts(self.folder)
        self._tokenizer = load_tokenizer(self.folder, self._checkpoint.config.vocab_size)
        self.network = load_model(self._checkpoint, DTYPES[self.dtype], dequantize=dequantize)

    def encode(
        self,
        texts: str | Iterable[str] | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
        return_mlx: bool = False,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = True,
        sentences: str | Iterable[str] | None = None,
    ) -> Any:
        """Embeds texts.

        Args:
            texts: one text or any iterable of texts.
            prompt_name: which of `prompts` to put in front of each text.
            prompt: the prompt itself; wins over `prompt_name`.
            truncate_dim: size of the vectors, one of `dimensions`.
            batch_tokens: tokens a batch may hold, padding included: bounds memory.
            batch_size: texts a batch may hold, for those who count in texts.
            show_progress_bar: on stderr; by default on a terminal when it takes over a second.
            precision: "float32", "int8", "uint8", "binary" or "ubinary".
            return_mlx: an `mx.array` instead of a numpy array.
            convert_to_numpy: False is sentence-transformers' way to say `return_mlx`.
            normalize_embeddings: accepted for sentence-transformers' sake; vectors are of unit
                length either way.
            sentences: sentence-transformers' older name of `texts`.

        Returns:
            (n, dim) in the order of the texts, or (dim,) for a single string.

        Raises:
            TypeError: something among the texts is not a string; names its index.
            EmbeddingGemmaError: unknown prompt, dimension or precision, or a vector that came out
                NaN, infinite or zero; names the text's index.
        """
        texts = sentences if texts is None else texts
        check_precision(precision)
        if prompt is None:
            prompt = prompt_for(self.prompts, prompt_name) if prompt_name else ""
        vectors = self._encode(
            texts,
            prompt,
            self._checked_dim(truncate_dim),
            batch_tokens,
            batch_size,
            show_progress_bar,
        )
        vectors = quantize_embeddings(vectors, precision)
        if isinstance(texts, str):
            vectors = vectors[0]
        return mx.array(vectors) if return_mlx or not convert_to_numpy else vectors

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> Any:
        """`encode` with the prompt "query", unless the options name another."""
        return self.encode(texts, **({"prompt_name": "query"} | options))

    def encode_document(
        self,
        texts: str | Iterable[str],
        titles: str | Iterable[str | None] | None = None,
        **options: Any,
    ) -> Any:
        """`encode` with the prompt "document", unless the options name another.

        Args:
            texts: one document or any iterable of them.
            titles: one a document, None or "" where it has none; goes into the prompt's "title: ".
            **options: as in `encode`.
        """
        options = {"prompt_name": "document"} | options
        if titles is None:
            return self.encode(texts, **options)
        prompt = options.pop("prompt", None) or prompt_for(self.prompts, options["prompt_name"])
        listed = [texts] if isinstance(texts, str) else list(texts)
        titles = [titles] if isinstance(titles, str) else list(titles)
        if len(titles) != len(listed):
            raise EmbeddingGemmaError(
                f"expected a title for each of {len(listed)} documents, got {len(titles)}"
            )
        titled = [
            with_title(prompt, title) + _text(text, i)
            for i, (title, text) in enumerate(zip(titles, listed, strict=True))
        ]
        return self.encode(titled[0] if isinstance(texts, str) else titled, prompt="", **options)

    def similarity(self, a: np.ndarray | mx.array, b: np.ndarray | mx.array) -> np.ndarray:
        """Cosine of each vector of `a` with each of `b`: (n, dim), (m, dim) to (n, m) float32."""
        return np.asarray(np.atleast_2d(_unit(a)) @ np.atleast_2d(_unit(b)).T)

    def similarity_pairwise(self, a: np.ndarray | mx.array, b: np.ndarray | mx.array) -> np.ndarray:
        """Cosine of each vector of `a` with its partner in `b`: two (n, dim) to (n,) float32."""
        return np.asarray(np.einsum("...d,...d->...", _unit(a), _unit(b)))

    def tokenize(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids as the network sees them: bos and eos added, cut at `max_length`."""
        return [self._cut(row) for row in self._ids(texts)]

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text, bos and eos counted, nothing cut."""
        return [len(row) for row in self._ids(texts)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Copies the checkpoint as it was loaded to a new folder, whole or not at all."""
        with new_folder(Path(folder)) as target:
            for source in chain.from_iterable(map(self.folder.glob, hub.FILES)):
                copy = target / source.relative_to(self.folder)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, copy)

    def _encode(
        self,
        texts: str | Iterable[str] | None,
        prompt: str,
        dim: int,
        batch_tokens: int | None,
        batch_size: int | None,
        show_progress_bar: bool | None,
    ) -> np.ndarray:
        """Chunk after chunk, so that only vectors pile up."""
        from tqdm import tqdm  # here, because its import takes 5 MB and a third of the time of ours

        if not isinstance(texts, Iterable):
            raise TypeError(f"expected a string or an iterable of strings, got {texts!r}")
        texts = [texts] if isinstance(texts, str) else texts
        prompted = (prompt + _text(text, i) for i, text in enumerate(texts))
        # A text that comes again is not computed again. Known by its digest: a generator's texts are
        # gone when their vectors are there.
        rows: dict[bytes, int] = {}
        where: list[int] = []  # each text's row among the vectors
        found = [np.zeros((0, dim), np.float32)]
        long: set[int] = set()
        with tqdm(
            total=len(texts) if isinstance(texts, Sized) else None,
            unit=" texts",
            delay=1,
            disable=None if show_progress_bar is None else not show_progress_bar,
        ) as bar:
            while chunk := list(islice(prompted, CHUNK)):
                digests = [_digest(text) for text in chunk]
                new = {key: text for key, text in zip(digests, chunk, strict=True) if key not in rows}
                start = len(rows)
                rows |= {key: start + i for i, key in enumerate(new)}
                where += [rows[key] for key in digests]
                ids = self._tokenizer.encode(list(new.values()))
                long |= {start + i for i, row in enumerate(ids) if len(row) > self.max_length}
                vectors = self._forward(
                    [self._cut(row) for row in ids], dim, batch_tokens, batch_size, bar
                )
                found.append(vectors)
                if len(bad := not_unit(vectors)):
                    raise EmbeddingGemmaError(
                        f"text {where.index(start + bad[0])} came out as NaN, infinite or zero: the "
                        f"weights in {self.folder} are damaged, or their activations overflow"
                    )
                bar.update(len(where) - bar.n)
        if long:
            cut = sum(row in long for row in where)
            warnings.warn(
                f"{cut:,} of {len(where):,} texts were longer than {self.max_length:,} tokens and "
                "were cut",
                stacklevel=3,
            )
        vectors = np.concatenate(found)
        return vectors if len(rows) == len(where) else vectors[where]

    def _forward(
        self,
        ids: Sequence[Sequence[int]],
        dim: int,
        batch_tokens: int | None,
        batch_size: int | None,
        bar: "tqdm[Any]",
    ) -> np.ndarray:
        """Vectors of token ids, in their order. A zero vector has become NaN on the way."""
        lengths = [len(row) for row in ids]
        budget = batch_tokens or runtime.batch_tokens()

        def compute(batch: np.ndarray) -> mx.array:
            unit = self.network(*pad([ids[i] for i in batch]))
            if dim < unit.shape[1]:
                unit = unit[:, :dim]
                unit = unit / mx.linalg.norm(unit, axis=-1, keepdims=True)
            return unit

        vectors = np.empty((len(ids), dim), np.float32)
        for batch, unit in runtime.run_batches(compute, batches(lengths, budget, batch_size)):
            vectors[batch] = unit
            bar.update(len(batch))
        return vectors

    def _ids(self, texts: Iterable[str]) -> list[list[int]]:
        return self._tokenizer.encode([_text(text, i) for i, text in enumerate(texts)])

    def _cut(self, ids: list[int]) -> list[int]:
        """The first tokens of a long text, its eos kept."""
        return ids if len(ids) <= self.max_length else [*ids[: self.max_length - 1], ids[-1]]

    def _checked_dim(self, dim: int | None) -> int:
        if dim is None:
            return getattr(self, "_truncate_dim", self.dimensions[0])
        if dim not in self.dimensions:
            known = ", ".join(map(str, self.dimensions))
            raise EmbeddingGemmaError(f"expected truncate_dim {known}, got {dim!r}")
        return dim

    def _checked_length(self, length: int | None) -> int:
        longest = self._checkpoint.config.max_position_embeddings
        path = self.folder / "sentence_bert_config.json"
        if length is None and path.exists():
            length = read_json(path).get("max_seq_length")
        if length is None:
            return longest
        if not 2 < length <= longest:
            raise EmbeddingGemmaError(f"expected max_length from 3 to {longest:,}, got {length}")
        return length

    def _default_dtype(self) -> str:
        if not runtime.on_gpu():
            return "float32"
        floats = {tensor.dtype for tensor in self._checkpoint.tensors.values()}
        return "float32" if "F32" in floats else "bfloat16"


def _text(text: object, index: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text {index}: expected a string, got {type(text).__name__}")
    return text


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _unit(vectors: np.ndarray | mx.array) -> np.ndarray:
    array = np.asarray(vectors, np.float32)
    return np.asarray(array / np.linalg.norm(array, axis=-1, keepdims=True))
