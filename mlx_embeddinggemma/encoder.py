"""`EmbeddingGemma`: texts to sentence vectors.

text -> prompt -> ids -> batches -> network -> truncate and renormalise -> array in the caller's order
"""

import warnings
from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import compute, hub, runtime
from mlx_embeddinggemma.batching import batches, pad
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.config import MATRYOSHKA
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.expansion import Expanded
from mlx_embeddinggemma.folders import new_folder
from mlx_embeddinggemma.loaded import LoadedFiles
from mlx_embeddinggemma.loading import load_model
from mlx_embeddinggemma.precision import check_precision, quantize_embeddings
from mlx_embeddinggemma.progress import Bar, progress_bar
from mlx_embeddinggemma.prompts import choose_prompt, prompt_for, with_title
from mlx_embeddinggemma.settings import SHORTEST, read_settings, write_settings
from mlx_embeddinggemma.similarity import similarity, similarity_pairwise
from mlx_embeddinggemma.tokenizer import load_tokenizer

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
        truncate_dim: default size of the vectors, one of `dimensions`; by default the checkpoint's own,
            else the whole.
        dtype: of the activations: "float32" or "bfloat16". By default that of the checkpoint's
            floats on a GPU, and float32 on the CPU, whose bfloat16 product is slow and rough.
        max_length: longer texts are cut to this many tokens; by default the checkpoint's own, or 2,048.
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
        self._settings = read_settings(self.folder, self._checkpoint.config.max_position_embeddings)
        self._files = LoadedFiles(self._checkpoint)
        size = self._checkpoint.embedding_size
        own = min(self._settings.truncate_dim or size, size)
        self.dimensions = tuple(sorted({size, own, *(d for d in MATRYOSHKA if d < size)}, reverse=True))
        self._truncate_dim = own
        self._truncate_dim = self._checked_dim(truncate_dim)
        self.dtype = dtype or self._default_dtype()
        self.max_length = self._checked_length(max_length)
        self.prompts = dict(self._settings.prompts)
        self.default_prompt_name = self._settings.default_prompt_name
        self.similarity_fn_name = self._settings.similarity_fn_name
        # On the compute thread, too: glibc gives each thread memory of its own, and the weights then
        # fill what reading a tokenizer.json leaves, 180 MB.
        self._tokenizer = compute.run(
            load_tokenizer,
            self.folder,
            self._checkpoint.config.vocab_size,
            lower_case=self._settings.do_lower_case,
        )
        self.network = compute.run(
            load_model, self._checkpoint, DTYPES[self.dtype], dequantize=dequantize
        )

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
            prompt_name: which of `prompts` to put in front of each text; by default the checkpoint's
                `default_prompt_name`, where it has one.
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
        prompt = choose_prompt(self.prompts, prompt, prompt_name, self.default_prompt_name)
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
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options["prompt_name"] = "query"
        return self.encode(texts, **options)

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
        """Each vector of `a` with each of `b`: (n, dim), (m, dim) to (n, m) float32.

        By the checkpoint's `similarity_fn_name`, the cosine unless it names another.
        """
        return similarity(self.similarity_fn_name, np.asarray(a), np.asarray(b))

    def similarity_pairwise(self, a: np.ndarray | mx.array, b: np.ndarray | mx.array) -> np.ndarray:
        """`similarity` of each vector of `a` with its partner in `b`: two (n, dim) to (n,) float32."""
        return similarity_pairwise(self.similarity_fn_name, np.asarray(a), np.asarray(b))

    def tokenize(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids as the network sees them: bos and eos added, cut at `max_length`."""
        return [self._cut(row) for row in self._ids(texts)]

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text, bos and eos counted, nothing cut."""
        return [len(row) for row in self._ids(texts)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Copies the checkpoint as it was loaded to a new folder, whole or not at all.

        What was set since (`truncate_dim`, `max_length`, `prompts`, ...) is set in the copy.

        Raises:
            EmbeddingGemmaError: what it was loaded from is gone, or changed.
        """
        same_dim = self._settings.truncate_dim is None and self._truncate_dim == self.dimensions[0]
        settings = replace(
            self._settings,
            prompts=self.prompts,
            default_prompt_name=self.default_prompt_name,
            max_length=self.max_length,
            truncate_dim=None if same_dim else self._truncate_dim,
            similarity_fn_name=self.similarity_fn_name,
        )
        with new_folder(Path(folder)) as target:
            self._files.copy(target)
            write_settings(target, settings, self._checkpoint.config.max_position_embeddings)

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
        total = len(texts) if isinstance(texts, Sized) else None
        with progress_bar(total, show_progress_bar) as bar:
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
                bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
                if len(bad):
                    raise EmbeddingGemmaError(
                        f"text {where.index(start + bad[0])} came out as NaN, infinite or zero: the "
                        f"weights in {self.folder} are damaged, or their activations overflow"
                    )
                bar.update(len(where) - int(bar.n))
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
        bar: Bar,
    ) -> np.ndarray:
        """Vectors of token ids, in their order. A zero vector has become NaN on the way."""
        lengths = [len(row) for row in ids]
        budget = batch_tokens or runtime.batch_tokens()

        def forward(batch: np.ndarray) -> mx.array:
            unit = self.network(*pad([ids[i] for i in batch]))
            if dim < unit.shape[1]:
                unit = unit[:, :dim]
                unit = unit / mx.linalg.norm(unit, axis=-1, keepdims=True)
            return unit

        def product_threads(batch: np.ndarray) -> int:
            # Expanding weights takes all cores: a product's second thread would wait for one.
            return 1 if expanded else runtime.product_threads(len(batch), lengths[batch[0]])

        expanded = isinstance(self.network.layers[0], Expanded)
        vectors = np.empty((len(ids), dim), np.float32)
        todo = batches(lengths, budget, batch_size)
        for batch, unit in compute.run_batches(forward, todo, product_threads):
            vectors[batch] = unit
            bar.update(len(batch))
        return vectors

    def _ids(self, texts: Iterable[str]) -> list[list[int]]:
        return self._tokenizer.encode([_text(text, i) for i, text in enumerate(texts)])

    def _cut(self, ids: list[int], length: int | None = None) -> list[int]:
        """What is kept of a long text's tokens: one side of it, and what is around every text."""
        around = len(self._tokenizer.prefix), len(self._tokenizer.suffix)
        return self._settings.cut(ids, length or self.max_length, *around)

    def _checked_dim(self, dim: int | None) -> int:
        if dim is None:
            return self._truncate_dim
        if not isinstance(dim, int | np.integer) or dim not in self.dimensions:
            known = ", ".join(map(str, self.dimensions))
            raise EmbeddingGemmaError(f"expected truncate_dim {known}, got {dim!r:.40}")
        return int(dim)

    def _checked_length(self, length: int | None) -> int:
        longest = self._checkpoint.config.max_position_embeddings
        if length is None:
            return self._settings.max_length
        if not isinstance(length, int | np.integer) or not SHORTEST <= length <= longest:
            raise EmbeddingGemmaError(
                f"expected max_length from {SHORTEST} to {longest:,}, got {length!r:.40}"
            )
        return int(length)

    def _default_dtype(self) -> str:
        if not runtime.on_gpu():
            return "float32"
        floats = {tensor.dtype for tensor in self._checkpoint.tensors.values()}
        return "float32" if floats & {"F32", "F64"} else "bfloat16"


def _text(text: object, index: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text {index}: expected a string, got {type(text).__name__}")
    return text


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
