"""`EmbeddingGemma`: texts to sentence vectors.

text -> prompt -> ids -> batches -> network -> truncate and renormalise -> array in the caller's order
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import compute, hub, runtime
from mlx_embeddinggemma.batching import batches, pad
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.config import MATRYOSHKA
from mlx_embeddinggemma.distinct import Distinct
from mlx_embeddinggemma.dropin import SentenceTransformerNames
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.expansion import Expanded
from mlx_embeddinggemma.folders import new_folder
from mlx_embeddinggemma.given import flag, path, shown, text, whole
from mlx_embeddinggemma.inputs import strings, titled
from mlx_embeddinggemma.loaded import LoadedFiles
from mlx_embeddinggemma.loading import load_model
from mlx_embeddinggemma.options import (
    AllKeywords,
    Job,
    Keywords,
    OutputValue,
    check_output_value,
    count,
    refuse,
    refuse_when_loading,
    the_texts,
)
from mlx_embeddinggemma.outputs import Matrix, Output, Vector, as_given, converted, form_of
from mlx_embeddinggemma.precision import Precision, check_precision, quantize_embeddings
from mlx_embeddinggemma.progress import Bar, progress_bar
from mlx_embeddinggemma.prompts import checked_prompts, choose_prompt, prompt_for, with_title
from mlx_embeddinggemma.settings import SHORTEST, read_settings, write_settings
from mlx_embeddinggemma.similarity import all_pairs, each_pair
from mlx_embeddinggemma.tokenizer import load_tokenizer
from mlx_embeddinggemma.unit import not_unit

if TYPE_CHECKING:
    from torch import Tensor

# Texts tokenized and sorted by length at a time: enough to fill batches of one length, small enough
# that memory does not grow with the input.
CHUNK = 2048

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}

Texts = str | Iterable[str]
Titles = str | Iterable[str | None] | None


class EmbeddingGemma(SentenceTransformerNames):
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
        device: accepted where it names the device that computes, see `to`.
        prompts: by name, in addition to the checkpoint's and in the place of those.
        default_prompt_name: of the prompt for texts that come without one.
        similarity_fn_name: what `similarity` computes.
        **others: sentence-transformers' other arguments are refused by name.

    Raises:
        TypeError: an argument of a wrong type, or one that does not exist.
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
        device: object = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        **others: object,
    ):
        refuse_when_loading(others)
        compute.run(runtime.prepare)  # there, so that one thread at a time does it
        if device is not None:
            self.to(device)
        if str(dtype) == "float16":
            raise EmbeddingGemmaError(
                "float16 overflows: EmbeddingGemma's activations reach 8e5 and float16 ends at "
                "65,504; use 'bfloat16' or 'float32'"
            )
        if dtype is not None and not (isinstance(dtype, str) and dtype in DTYPES):
            raise EmbeddingGemmaError(f"expected dtype 'float32' or 'bfloat16', got {shown(dtype)}")
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
        self._max_length = self._checked_length(max_length)
        self.prompts = {**self._settings.prompts, **checked_prompts({} if prompts is None else prompts)}
        self.default_prompt_name = default_prompt_name or self._settings.default_prompt_name
        self.similarity_fn_name = similarity_fn_name or self._settings.similarity_fn_name
        # On the compute thread, too: glibc gives each thread memory of its own, and the weights then
        # fill what reading a tokenizer.json leaves, 180 MB.
        self._tokenizer = compute.run(
            load_tokenizer,
            self.folder,
            self._checkpoint.config.vocab_size,
            lower_case=self._settings.do_lower_case,
        )
        self._dequantize = flag("dequantize", dequantize)
        self.network = compute.run(
            load_model, self._checkpoint, DTYPES[self.dtype], dequantize=dequantize
        )
        self._expands = isinstance(self.network.layers[0], Expanded)

    @overload
    def encode(self, texts: str, **keywords: Unpack[Keywords]) -> Vector: ...  # type: ignore[overload-overlap]
    @overload
    def encode(self, texts: Iterable[str], **keywords: Unpack[Keywords]) -> Matrix: ...
    @overload
    def encode(
        self, texts: Texts, *, return_mlx: Literal[True], **keywords: Unpack[Keywords]
    ) -> mx.array: ...
    @overload
    def encode(
        self, texts: Texts, *, convert_to_tensor: Literal[True], **keywords: Unpack[Keywords]
    ) -> "Tensor": ...
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, texts: str, *, output_value: Literal["token_embeddings"], **keywords: Unpack[Keywords]
    ) -> Matrix: ...
    @overload
    def encode(
        self,
        texts: Iterable[str],
        *,
        output_value: Literal["token_embeddings"],
        **keywords: Unpack[Keywords],
    ) -> list[Matrix]: ...
    @overload
    def encode(self, texts: Texts | None = None, **keywords: Unpack[AllKeywords]) -> Output: ...

    def encode(
        self,
        texts: Texts | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision | None = "float32",
        return_mlx: bool = False,
        output_value: OutputValue = "sentence_embedding",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        device: object = None,
        task: str | None = None,
        inputs: Texts | None = None,
        sentences: Texts | None = None,
        pool: None = None,
        chunk_size: None = None,
        processing_kwargs: None = None,
    ) -> Output:
        """Embeds texts.

        Args:
            texts: one text or any iterable of texts: a list, a generator, a column of a table.
            prompt_name: which of `prompts` to put in front of each text; by default
                `default_prompt_name`, which most checkpoints leave out.
            prompt: the prompt itself; wins over `prompt_name`.
            truncate_dim: size of the vectors, one of `dimensions`.
            batch_tokens: tokens a batch may hold, padding included: bounds memory.
            batch_size: texts a batch may hold, for those who count in texts.
            show_progress_bar: on stderr; by default on a terminal when it takes over a second.
            precision: "float32" (None says so too), "int8", "uint8", "binary" or "ubinary".
            return_mlx: an `mx.array` instead of a numpy array.
            output_value: "token_embeddings" gives what the last layer says of each token, those of
                the prompt, bos and eos included and a long text's rest left out, in float32.
            convert_to_numpy: False gives a list of torch's tensors, or one for a single string.
            convert_to_tensor: a torch tensor, on the CPU.
            normalize_embeddings: False leaves truncated vectors as short as truncation made them.
                Whole ones are of unit length either way.
            device: accepted where it names the device that computes, see `to`.
            task: changes nothing: sentence-transformers picks a part of some other models by it.
            inputs: sentence-transformers' name of `texts`.
            sentences: its older name.
            pool: refused, as are the next two: one process computes.
            chunk_size: refused.
            processing_kwargs: refused.

        Returns:
            (n, dim) in the order of the texts, or (dim,) for a single string. For token embeddings a
            list of (tokens, hidden size), or one of them.

        Raises:
            TypeError: something among the texts is not a string; names its index.
            EmbeddingGemmaError: unknown prompt, dimension or precision, an argument that is refused,
                or a vector that came out NaN, infinite or zero; names the text's index.
        """
        texts = the_texts(texts=texts, inputs=inputs, sentences=sentences)
        refuse(pool=pool, chunk_size=chunk_size, processing_kwargs=processing_kwargs)
        precision = "float32" if precision is None else precision
        check_precision(precision)
        check_output_value(output_value, precision)
        if device is not None:
            self.to(device)
        single = isinstance(texts, str)
        form = form_of(return_mlx, convert_to_tensor, convert_to_numpy, single)
        job = Job(
            texts=texts,
            prompt=self._prompt(prompt, prompt_name),
            dim=self._checked_dim(truncate_dim),
            rescale=flag("normalize_embeddings", normalize_embeddings),
            batch_tokens=count("batch_tokens", batch_tokens),
            batch_size=count("batch_size", batch_size),
            show_progress_bar=None
            if show_progress_bar is None
            else flag("show_progress_bar", show_progress_bar),
        )
        results: np.ndarray | list[np.ndarray]
        if output_value == "token_embeddings":
            results = self._token_states(job)
        else:
            results = quantize_embeddings(self._vectors(job), precision)
        return converted(results[0] if single else results, form)

    @overload
    def encode_query(  # type: ignore[overload-overlap]
        self, texts: str, **keywords: Unpack[Keywords]
    ) -> Vector: ...
    @overload
    def encode_query(self, texts: Iterable[str], **keywords: Unpack[Keywords]) -> Matrix: ...
    @overload
    def encode_query(
        self, texts: Texts, *, return_mlx: Literal[True], **keywords: Unpack[Keywords]
    ) -> mx.array: ...
    @overload
    def encode_query(
        self, texts: Texts, *, convert_to_tensor: Literal[True], **keywords: Unpack[Keywords]
    ) -> "Tensor": ...
    @overload
    def encode_query(self, texts: Texts | None = None, **keywords: Unpack[AllKeywords]) -> Output: ...

    def encode_query(self, texts: Texts | None = None, **keywords: Unpack[AllKeywords]) -> Output:
        """`encode` with the prompt "query", unless the keywords name another."""
        return self.encode(texts, **self._with_prompt(keywords, "query"))

    @overload
    def encode_document(  # type: ignore[overload-overlap]
        self, texts: str, titles: Titles = None, **keywords: Unpack[Keywords]
    ) -> Vector: ...
    @overload
    def encode_document(
        self, texts: Iterable[str], titles: Titles = None, **keywords: Unpack[Keywords]
    ) -> Matrix: ...
    @overload
    def encode_document(
        self,
        texts: Texts,
        titles: Titles = None,
        *,
        return_mlx: Literal[True],
        **keywords: Unpack[Keywords],
    ) -> mx.array: ...
    @overload
    def encode_document(
        self,
        texts: Texts,
        titles: Titles = None,
        *,
        convert_to_tensor: Literal[True],
        **keywords: Unpack[Keywords],
    ) -> "Tensor": ...
    @overload
    def encode_document(
        self, texts: Texts | None = None, titles: Titles = None, **keywords: Unpack[AllKeywords]
    ) -> Output: ...

    def encode_document(
        self, texts: Texts | None = None, titles: Titles = None, **keywords: Unpack[AllKeywords]
    ) -> Output:
        """`encode` with the prompt "document", unless the keywords name another.

        Args:
            texts: one document or any iterable of them.
            titles: one a document; goes into the prompt's "title: ". None, NaN, pandas' NA and NaT, ""
                and blanks say that a document has none.
            **keywords: as in `encode`.

        Raises:
            TypeError: something among the titles is neither a string nor missing; names its index.
            EmbeddingGemmaError: as many titles as documents were expected; and as `encode`.
        """
        keywords = self._with_prompt(keywords, "document")
        if titles is None:
            return self.encode(texts, **keywords)
        texts = the_texts(
            texts=texts, inputs=keywords.pop("inputs", None), sentences=keywords.pop("sentences", None)
        )
        prompt = self._prompt(keywords.pop("prompt", None), keywords.pop("prompt_name", None))
        documents = self._titled(prompt, texts, titles)
        keywords["prompt"] = ""
        return self.encode("".join(documents) if isinstance(texts, str) else documents, **keywords)

    @overload
    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> Matrix: ...
    @overload
    def similarity(self, embeddings1: object, embeddings2: object) -> "Matrix | Tensor": ...

    def similarity(self, embeddings1: object, embeddings2: object) -> "Matrix | Tensor":
        """Of each vector of one side with each of the other, by `similarity_fn_name`.

        Packed bits and quantized vectors are recognised by dtype and columns; see `similarity.py`.

        Args:
            embeddings1: (n, dim) or (dim,), of numpy, MLX or torch.
            embeddings2: (m, dim) or (dim,), of the same precision.

        Returns:
            (n, m) float32, torch's where a side is. The cosine of a vector of zeros and any other is 0.

        Raises:
            EmbeddingGemmaError: unlike sizes or precisions, or vectors that are NaN or infinite.
        """
        measure, dimensions = self.similarity_fn_name, self.dimensions
        scores = all_pairs(embeddings1, embeddings2, measure, dimensions)
        return as_given(scores, embeddings1, embeddings2)

    @overload
    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> Vector: ...
    @overload
    def similarity_pairwise(self, embeddings1: object, embeddings2: object) -> "Vector | Tensor": ...

    def similarity_pairwise(self, embeddings1: object, embeddings2: object) -> "Vector | Tensor":
        """Of each vector with its partner on the other side: two (n, dim) to (n,); see `similarity`."""
        measure, dimensions = self.similarity_fn_name, self.dimensions
        scores = each_pair(embeddings1, embeddings2, measure, dimensions)
        return as_given(scores, embeddings1, embeddings2)

    @overload
    def tokenize(self, texts: str) -> list[int]: ...  # type: ignore[overload-overlap]
    @overload
    def tokenize(self, texts: Iterable[str]) -> list[list[int]]: ...

    def tokenize(self, texts: Texts) -> list[int] | list[list[int]]:
        """Token ids as the network sees them: bos and eos added, cut at `max_length`.

        Returns:
            A list for each text, or the ids of a single string.
        """
        ids = [self._cut(row) for row in self._ids(texts)]
        return ids[0] if isinstance(texts, str) else ids

    @overload
    def count_tokens(self, texts: str) -> int: ...  # type: ignore[overload-overlap]
    @overload
    def count_tokens(self, texts: Iterable[str]) -> list[int]: ...

    def count_tokens(self, texts: Texts) -> int | list[int]:
        """Tokens of each text, or of a single string, bos and eos counted, nothing cut."""
        counts = [len(row) for row in self._ids(texts)]
        return counts[0] if isinstance(texts, str) else counts

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
        with new_folder(path("folder", folder)) as target:
            longest = self._checkpoint.config.max_position_embeddings
            self._files.copy(target)
            write_settings(target, settings, longest)
            read_settings(target, longest)  # as any reader will

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied by folder and settings: the weights are loaded again.

        The folder, also of a hub id: it holds the very weights that computed so far, where the id
        would ask the network and may mean others by now.
        """
        arguments = {
            "model": self.folder.absolute(),
            "truncate_dim": self._truncate_dim,
            "dtype": self.dtype,
            "max_length": self.max_length,
            "dequantize": self._dequantize,
        }
        settings = {
            "prompts": dict(self.prompts),
            "default_prompt_name": self.default_prompt_name,
            "similarity_fn_name": self.similarity_fn_name,
        }
        return _load_again, (type(self), arguments, settings)

    def _vectors(self, job: Job) -> np.ndarray:
        """Vectors of the texts in their order, (n, dim) float32."""
        dim = job.dim if job.rescale else self.dimensions[0]
        distinct, found = Distinct(), [np.zeros((0, job.dim), np.float32)]

        def embed(ids: Sequence[Sequence[int]], bar: Bar) -> None:
            start = sum(map(len, found))
            vectors = self._forward(ids, dim, job, bar)
            if len(bad := not_unit(vectors)):
                raise self._damaged(distinct.where.index(start + bad[0]))
            found.append(vectors[:, : job.dim])

        self._encode(job, distinct, embed)
        vectors = np.concatenate(found)
        return vectors if len(distinct) == len(distinct.where) else vectors[distinct.where]

    def _token_states(self, job: Job) -> list[np.ndarray]:
        """The last layer's states of each text's tokens, (tokens, hidden size) float32."""
        distinct = Distinct()
        found: list[np.ndarray] = []

        def embed(ids: Sequence[Sequence[int]], bar: Bar) -> None:
            for states in self._states(ids, job, bar):
                if not np.isfinite(states).all():
                    raise self._damaged(distinct.where.index(len(found)))
                found.append(states)

        self._encode(job, distinct, embed)
        return [found[row].copy() for row in distinct.where]

    def _encode(
        self, job: Job, distinct: Distinct, embed: Callable[[Sequence[Sequence[int]], Bar], None]
    ) -> None:
        """Has `embed` see the ids of the distinct texts, chunk after chunk: only results pile up."""
        prompted = (job.prompt + text for text in strings(job.texts))
        total = len(job.texts) if isinstance(job.texts, Sized) else None
        long: set[int] = set()
        with progress_bar(total, job.show_progress_bar) as bar:
            while chunk := list(islice(prompted, CHUNK)):
                start = len(distinct)
                ids = self._tokenizer.encode(distinct.add(chunk))
                long |= {start + i for i, row in enumerate(ids) if len(row) > self.max_length}
                embed([self._cut(row) for row in ids], bar)
                bar.update(len(distinct.where) - int(bar.n))
        if long:
            cut = sum(row in long for row in distinct.where)
            _warn(
                f"{cut:,} of {len(distinct.where):,} texts were longer than {self.max_length:,} tokens "
                "and were cut"
            )

    def _damaged(self, index: int) -> EmbeddingGemmaError:
        return EmbeddingGemmaError(
            f"text {index} came out as NaN, infinite or zero: the weights in {self.folder} are "
            "damaged, or their activations overflow"
        )

    def _forward(self, ids: Sequence[Sequence[int]], dim: int, job: Job, bar: Bar) -> np.ndarray:
        """Vectors of token ids, (n, dim), in their order."""

        def forward(ids: np.ndarray, lengths: np.ndarray) -> mx.array:
            unit = self.network(ids, lengths)
            if dim < unit.shape[1]:
                unit = unit[:, :dim]
                unit = unit / mx.linalg.norm(unit, axis=-1, keepdims=True)
            return unit

        vectors = np.empty((len(ids), dim), np.float32)
        for batch, unit in self._batches(ids, forward, job, bar):
            vectors[batch] = unit
        return vectors

    def _states(self, ids: Sequence[Sequence[int]], job: Job, bar: Bar) -> list[np.ndarray]:
        """States of token ids, in their order; padding is left out."""

        def forward(ids: np.ndarray, lengths: np.ndarray) -> mx.array:
            return self.network.hidden_states(ids, lengths).astype(mx.float32)

        found: dict[int, np.ndarray] = {}
        for batch, states in self._batches(ids, forward, job, bar):
            found |= {i: row[: len(ids[i])].copy() for i, row in zip(batch, states, strict=True)}
        return [found[i] for i in range(len(ids))]

    def _batches(
        self,
        ids: Sequence[Sequence[int]],
        forward: Callable[[np.ndarray, np.ndarray], mx.array],
        job: Job,
        bar: Bar,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of texts by their index among `ids`, each with what `forward` makes of it."""
        lengths = [len(row) for row in ids]

        def product_threads(batch: np.ndarray) -> int:
            # Expanding weights takes all cores: a product's second thread would wait for one.
            return 1 if self._expands else runtime.product_threads(len(batch), lengths[batch[0]])

        todo = batches(lengths, job.batch_tokens or runtime.batch_tokens(), job.batch_size)
        for batch, result in compute.run_batches(
            lambda batch: forward(*pad([ids[i] for i in batch])), todo, product_threads
        ):
            yield batch, result
            bar.update(len(batch))

    def _ids(self, texts: Texts) -> list[list[int]]:
        return self._tokenizer.encode(list(strings(texts)))

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        prompt = None if prompt is None else text("prompt", prompt)
        return choose_prompt(self.prompts, prompt, name, self.default_prompt_name)

    def _titled(self, prompt: str, texts: Texts, titles: Titles) -> Iterator[str]:
        """Documents behind their prompt, with their titles in it."""
        lost = 0
        for body, title in titled(texts, titles):
            start = with_title(prompt, title)
            lost += title is not None and start == prompt
            yield start + body
        if lost:
            _warn(
                f"{lost:,} titles were left out: the prompt {prompt!r:.80} has no place for them, "
                "'title: none'"
            )

    def _with_prompt(self, keywords: AllKeywords, name: str) -> AllKeywords:
        """Puts a prompt among keywords that name none: an empty one where the checkpoint has none."""
        if keywords.get("prompt") is None and keywords.get("prompt_name") is None:
            keywords["prompt"] = self.prompts.get(name) or ""
        return keywords

    def _cut(self, ids: list[int], length: int | None = None) -> list[int]:
        """What is kept of a long text's tokens: one side of it, and what is around every text."""
        around = len(self._tokenizer.prefix), len(self._tokenizer.suffix)
        return self._settings.cut(ids, length or self.max_length, *around)

    @property
    def max_length(self) -> int:
        """Longer texts are cut to this many tokens; may be set."""
        return self._max_length

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        self._max_length = self._checked_length(length)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by name; may be set, and added to."""
        return self._prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        self._prompts = checked_prompts(prompts)

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt for texts that come without one, None where they get none; may be set."""
        return self._default_prompt_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        if name is not None:
            prompt_for(self.prompts, name)  # whose error lists those that exist
        self._default_prompt_name = name

    def _checked_dim(self, dim: int | None) -> int:
        if dim is None:
            return self._truncate_dim
        if not isinstance(dim, int | np.integer) or dim not in self.dimensions:
            known = ", ".join(map(str, self.dimensions))
            raise EmbeddingGemmaError(f"expected truncate_dim {known}, got {shown(dim)}")
        return int(dim)

    def _checked_length(self, length: int | None) -> int:
        longest = self._checkpoint.config.max_position_embeddings
        if length is None:
            return self._settings.max_length
        return whole("max_length", length, SHORTEST, longest)

    def _default_dtype(self) -> str:
        if not runtime.on_gpu():
            return "float32"
        floats = {tensor.dtype for tensor in self._checkpoint.tensors.values()}
        return "float32" if floats & {"F32", "F64"} else "bfloat16"


def _load_again(
    kind: type[EmbeddingGemma], arguments: dict[str, Any], settings: dict[str, Any]
) -> EmbeddingGemma:
    model = kind(**arguments)
    for name, value in settings.items():
        setattr(model, name, value)
    return model


def _warn(message: str) -> None:
    """Points at the caller's line, however many of ours are in between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
