"""sentence-transformers' names on `EmbeddingGemma`: what they do there, or in one line why not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import mlx.core as mx

from mlx_embeddinggemma import runtime
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import shown
from mlx_embeddinggemma.similarity import Measure, check_measure


def _refused(name: str, instead: str) -> Callable[..., NoReturn]:
    def method(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise EmbeddingGemmaError(f"EmbeddingGemma has no {name}: {instead}")

    method.__name__, method.__doc__ = name, f"Refused: {instead}."
    return method


_DTYPE = "choose its dtype when loading, EmbeddingGemma(..., dtype='bfloat16') or 'float32'"
_POOL = "call encode, which uses every core of the CPU, or the GPU, in one process"
_MODULE = "it is no torch module: call encode for vectors, tokenize for token ids"
_HUB = "call save_pretrained and upload the folder, `hf upload NAME FOLDER`"


class SentenceTransformerNames:
    """A base of `EmbeddingGemma` that computes nothing itself."""

    dimensions: tuple[int, ...]
    dtype: str
    _truncate_dim: int
    _similarity_fn_name: Measure = "cosine"

    if TYPE_CHECKING:

        @property
        def max_length(self) -> int: ...
        @max_length.setter
        def max_length(self, length: int | None) -> None: ...
        def _checked_dim(self, dim: int | None) -> int: ...
        def _checked_length(self, length: int | None) -> int: ...
        def save_pretrained(self, folder: str | Path) -> None: ...

    @property
    def device(self) -> str:
        """Where the model computes: "cpu", "mps" or "cuda", which torch understands too."""
        if not runtime.on_gpu():
            return "cpu"
        return "cuda" if mx.cuda.is_available() else "mps"

    def to(self, device: object) -> Self:
        """The model itself, where `device` names where it computes ("gpu" is any of them).

        Raises:
            EmbeddingGemmaError: another device, a list of them, or a dtype.
        """
        names = (self.device, "gpu") if runtime.on_gpu() else (self.device,)
        if str(device).removesuffix(":0") not in names:
            raise EmbeddingGemmaError(
                f"expected device {self.device!r}, where MLX computes here, got {shown(device)}"
            )
        return self

    def cpu(self) -> Self:
        """See `to`."""
        return self.to("cpu")

    def cuda(self, device: object = "cuda") -> Self:
        """See `to`."""
        return self.to("cuda" if device is None or device == 0 else device)

    def float(self) -> Self:
        """The model itself, where it computes in float32."""
        return self if self.dtype == "float32" else _refused("float()", _DTYPE)(self)

    def eval(self) -> Self:
        """The model itself: it never trains."""
        return self

    def train(self, mode: bool = True) -> Self:
        """The model itself with `mode` False, an error otherwise."""
        return (
            _refused("train()", "`mlx-embeddinggemma finetune` trains a copy")(self) if mode else self
        )

    @property
    def max_seq_length(self) -> int:
        """Longer texts are cut to this many tokens: `max_length`, and may be set."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        self.max_length = length

    def get_max_seq_length(self) -> int:
        """See `max_seq_length`."""
        return self.max_length

    @property
    def truncate_dim(self) -> int | None:
        """Size to which vectors are cut by default, None where they are not cut; may be set."""
        return None if self._truncate_dim == self.dimensions[0] else self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, dim: int | None) -> None:
        self._truncate_dim = self.dimensions[0] if dim is None else self._checked_dim(dim)

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Another `truncate_dim` for a while."""
        before = self._truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self._truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def get_embedding_dimension(self) -> int:
        """Size of the vectors that `encode` gives."""
        return self._truncate_dim

    def get_sentence_embedding_dimension(self) -> int:
        """See `get_embedding_dimension`."""
        return self._truncate_dim

    @property
    def similarity_fn_name(self) -> Measure:
        """What `similarity` computes: "cosine", "dot", "euclidean" or "manhattan"; may be set."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: str | None) -> None:
        self._similarity_fn_name = "cosine" if name is None else check_measure(name)

    def get_backend(self) -> str:
        """What computes."""
        return "mlx"

    def save(self, path: str | Path) -> None:
        """See `save_pretrained`."""
        self.save_pretrained(path)

    @property
    def tokenizer(self) -> Any:
        """Absent, and `hasattr` says so."""
        raise AttributeError(
            "EmbeddingGemma has no tokenizer object: call tokenize(texts) or count_tokens(texts)"
        )

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refused: it is no torch module."""
        _refused("forward pass over torch's features", _MODULE)(self)

    forward = _refused("forward()", _MODULE)
    preprocess = _refused("preprocess()", _MODULE)
    compile = _refused("compile()", "nothing is to be compiled, call encode")
    half = _refused("half()", "float16 overflows; " + _DTYPE)
    bfloat16 = _refused("bfloat16()", _DTYPE)
    double = _refused("double()", _DTYPE)
    start_multi_process_pool = _refused("start_multi_process_pool()", _POOL)
    stop_multi_process_pool = _refused("stop_multi_process_pool()", _POOL)
    encode_multi_process = _refused("encode_multi_process()", _POOL)
    fit = _refused("fit()", "`mlx-embeddinggemma finetune` trains a copy")
    push_to_hub = _refused("push_to_hub()", _HUB)
    save_to_hub = _refused("save_to_hub()", _HUB)
