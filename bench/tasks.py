"""Tasks: the bundled ones, whose licences allow it, and those of a folder of task files."""

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError

BUNDLED = Path(__file__).parent / "tasks"
WHOLE_STS = "sts/STSBenchmark/test.default.jsonl"


@dataclass(frozen=True)
class STS:
    """Pairs of sentences and how alike people found them."""

    name: str
    first: list[str]
    second: list[str]
    gold: list[float]
    metric = "Spearman"


@dataclass(frozen=True)
class Retrieval:
    """Questions, each with the index of the one document that answers it."""

    name: str
    queries: list[str]
    documents: list[str]
    relevant: list[int]
    metric = "nDCG@10"


def load(names: Sequence[str] | None = None, data: str | Path | None = None) -> list[STS | Retrieval]:
    """The tasks by name, by default all there are.

    Args:
        names: which ones.
        data: folder with more task files; the whole STSBenchmark test split
            (`sts/STSBenchmark/test.default.jsonl`: s1, s2, score a line) is looked for there.

    Raises:
        EmbeddingGemmaError: an unknown name, or a folder without task files.
    """
    tasks: list[STS | Retrieval] = []
    if data is not None:
        path = Path(data) / WHOLE_STS
        if not path.is_file():
            raise EmbeddingGemmaError(f"expected task files in {data}, found no {WHOLE_STS}")
        tasks.append(_sts("STSBenchmark", path))
    tasks.append(_sts("STSBenchmark-captions", BUNDLED / "STSBenchmark-captions.jsonl"))
    tasks.append(_retrieval("XQuADRetrieval-en", BUNDLED / "XQuADRetrieval-en.json.xz"))
    known = {task.name: task for task in tasks}
    for name in names or ():
        if name not in known:
            raise EmbeddingGemmaError(f"no task {name!r}; known tasks: {', '.join(known)}")
    return [known[name] for name in names or known]


def _sts(name: str, path: Path) -> STS:
    with path.open(encoding="utf-8") as file:
        rows: list[dict[str, Any]] = [json.loads(line) for line in file]
    columns = ([row[key] for row in rows] for key in ("s1", "s2", "score"))
    return STS(name, *columns)


def _retrieval(name: str, path: Path) -> Retrieval:
    raw = json.loads(lzma.decompress(path.read_bytes()))
    return Retrieval(
        name,
        [query["text"] for query in raw["queries"]],
        [document["text"] for document in raw["documents"]],
        [query["document"] for query in raw["queries"]],
    )
