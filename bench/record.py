"""The record: everything a run saw, with raw samples, as one JSON value.

    {"schema": 2, "when": UTC, "machine": {...}, "versions": {...}, "commit": ...,
     "settings": {"dims", "rounds", "lengths", "batch_sizes", "threads"},
     "tasks": {NAME: {"type", "metric", "published", "note", "gold"}},
     "models": [{"name", "sha256", "revision", "recipe", "source", "size_bytes",
                 "speed": [one a round, see speed.measure],
                 "quality": {NAME: {DIM: {"score", "items"}}}}]}

`published` is the score of google/embeddinggemma-300m in mteb's results repository, measured with
prompts that Google did not disclose for a dozen tasks. `items` are the values a score is made of
(scores.Score), None for mteb's tasks; `gold` is what the items of pairs are ranked against.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlx_embeddinggemma import EmbeddingGemma, given, hub, strict_json
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.config import MATRYOSHKA
from mlx_embeddinggemma.errors import EmbeddingGemmaError

from . import identity, speed
from .identity import machine as machine
from .scores import Score, score
from .tasks import STS, Classification, Clustering, PairClassification, Task, known_names, published
from .tasks import load as load_tasks

SCHEMA = 2
MOST_ROUNDS = 1000


def bench(
    models: Sequence[str],
    *,
    dims: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    data: str | Path | None = None,
    rounds: int = 2,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Measures models: speed and memory in turns, then quality.

    Args:
        models: "demo", folders or hub ids; the first is what the others are compared with.
        dims: dimensions to score, by default all that the models have.
        tasks: names of tasks or presets: "quick" (the bundled ones), names of those in `data`, and
            with the extra `mteb` "subset", "english", "multilingual" or any of its tasks. By default
            the bundled ones and those in `data`.
        data: folder with more task files.
        rounds: how often speed and memory are measured; 0 leaves them out.
        output: folder that keeps finished steps, from which an interrupted run goes on.

    Returns:
        The record; see the head of this file.

    Raises:
        EmbeddingGemmaError: a model does not load, lacks a dimension or came twice, an unknown task,
            or a step failed: then nothing is reported.
    """
    models = _names("models", models)
    rounds = given.whole("rounds", rounds, 0, MOST_ROUNDS)
    folder = None if output is None else given.path("output", output)
    local, foreign = _resolve(None if tasks is None else _names("tasks", tasks), data)
    abouts = [identity.model(name) for name in models]
    if len({about["name"] for about in abouts}) < len(abouts):
        for about, name in zip(abouts, models, strict=True):
            about["name"] = name
    wanted = _common_dims(models, dims)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": identity.machine(),
        "versions": identity.versions(),
        "commit": identity.commit(),
        "settings": {
            "dims": wanted,
            "rounds": rounds,
            "lengths": speed.LENGTHS,
            "batch_sizes": speed.BATCH_SIZES,
        },
        "tasks": {task.name: _about(task) for task in local},
        "models": [about | {"speed": [], "quality": {}} for about in abouts],
    }
    if foreign:
        from . import mteb_tasks

        found = mteb_tasks.find(foreign)
        record["tasks"] |= {task.metadata.name: mteb_tasks.about(task) for task in found}
    journal = Journal(folder / "unfinished.jsonl" if folder else None, _same_run(record))
    total = sum(task.characters for task in local) * len(models)
    # A round of speed takes about as long as encoding this many characters.
    round_cost = 60_000
    bar = tqdm(
        total=total + round_cost * rounds * len(models), unit=" chars", unit_scale=True, disable=None
    )
    with bar:
        for number in range(rounds):
            for name, model in zip(models, record["models"], strict=True):
                bar.set_description(f"{model['name']}: speed and memory, round {number + 1}")
                key = f"speed {model['sha256']} {model['name']} {number}"
                model["speed"].append(journal.once(key, lambda name=name: speed.measure(name)))
                bar.update(round_cost)
        for name, model in zip(models, record["models"], strict=True):
            encoder: EmbeddingGemma | None = None
            for task in local:
                bar.set_description(f"{model['name']}: {task.name}")
                key = f"quality {model['sha256']} {model['name']} {task.name}"
                if key not in journal:
                    encoder = encoder or EmbeddingGemma(name)
                    scores = score(encoder, task, wanted)
                    journal.put(key, {str(dim): _written(task, s) for dim, s in scores.items()})
                model["quality"][task.name] = journal.get(key)
                bar.update(task.characters)
            for task in found if foreign else ():
                bar.set_description(f"{model['name']}: {task.metadata.name}")
                key = f"quality {model['sha256']} {model['name']} {task.metadata.name}"
                if key not in journal:
                    encoder = encoder or EmbeddingGemma(name)
                    cache = (folder or Path()) / "mteb"
                    meta = mteb_tasks.model_meta(name, encoder)
                    values = mteb_tasks.evaluate(meta, task, wanted, cache)
                    journal.put(key, {str(d): {"score": v, "items": None} for d, v in values.items()})
                model["quality"][task.metadata.name] = journal.get(key)
    return record


class Journal:
    """Results of finished steps, a JSON line each, so that a killed run goes on where it stopped.

    Args:
        path: of the file; without one nothing is kept.
        run: what must be the same for results to belong together.
    """

    def __init__(self, path: Path | None, run: dict[str, Any]) -> None:
        self._path = path
        self._done: dict[str, Any] = {}
        if path is None:
            return
        head = strict_json.dumps({"run": run})
        lines = path.read_bytes().splitlines() if path.is_file() else []
        if lines[:1] == [head.encode()]:
            for line in lines[1:]:
                try:
                    key, value = strict_json.loads(line)
                    self._done[given.text("step", key)] = value
                except (ValueError, TypeError):  # half-written by a killed run
                    break
            print(f"going on with {len(self._done)} finished steps in {path}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [head, *(strict_json.dumps(item) for item in self._done.items())]
        replace(path, "\n".join(kept) + "\n")

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def get(self, key: str) -> Any:
        return self._done[key]

    def put(self, key: str, value: Any) -> None:
        """Keeps a result, on disk before it returns."""
        line = strict_json.dumps([key, value])
        self._done[key] = value
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())

    def once(self, key: str, compute: Any) -> Any:
        """The kept result, or else `compute()`'s, kept from now on."""
        if key not in self:
            self.put(key, compute())
        return self.get(key)


def read(path: str | Path, expected: int | str = SCHEMA) -> dict[str, Any]:
    """A record from a file, of that schema.

    Raises:
        EmbeddingGemmaError: not a record, or one of another schema.
    """
    try:
        record = strict_json.loads(given.path("report", path).read_bytes())
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise EmbeddingGemmaError(f"{path} is not a record of `bench`: {error}") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != expected:
        raise EmbeddingGemmaError(
            f"{path}: expected a record of `bench` of schema {expected}, got {given.shown(schema)}; "
            "measure again"
        )
    return dict(record)


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _resolve(names: Sequence[str] | None, data: str | Path | None) -> tuple[list[Task], list[str]]:
    """Tasks that we score, and names of those that mteb does."""
    known = known_names(data)
    if names is None:
        return _without_sklearn(load_tasks(None, data)), []
    asked = [part for name in names for part in (known_names(None) if name == "quick" else [name])]
    foreign = [name for name in dict.fromkeys(asked) if name not in known]
    if foreign:
        try:
            import mteb  # noqa: F401
        except ImportError:
            raise EmbeddingGemmaError(
                f"no bundled or local task {foreign[0]!r}; known tasks: {', '.join(known)}. "
                f'For those of mteb: pip install "mlx-embeddinggemma[mteb]"'
            ) from None
    return load_tasks([name for name in dict.fromkeys(asked) if name in known], data), foreign


def _without_sklearn(tasks: list[Task]) -> list[Task]:
    """The tasks that can be scored here, when nobody asked for particular ones."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        left = [task for task in tasks if isinstance(task, (Classification, Clustering))]
        if left:
            print(
                f"skipped, for want of scikit-learn: {', '.join(task.name for task in left)} "
                '(pip install "mlx-embeddinggemma[bench]")',
                file=sys.stderr,
            )
        return [task for task in tasks if task not in left]
    return tasks


def _names(argument: str, names: object) -> list[str]:
    """One or more names or paths."""
    found = given.listed(argument, names)
    if not found:
        raise EmbeddingGemmaError(f"expected {argument} to name one or more, got none")
    for name in found:
        given.path(argument, name)
    return [str(name) for name in found]


def _common_dims(models: Sequence[str], dims: Sequence[int] | None) -> list[int]:
    """The dimensions to score, checked before anything slow begins."""
    asked = () if dims is None else given.listed("dims", dims)
    wanted = list(dict.fromkeys(given.whole("dims", dim, 1, 2**20) for dim in asked))
    for name in models:
        size = open_checkpoint(hub.find(name)).embedding_size
        known = (size, *(d for d in MATRYOSHKA if d < size))
        if unknown := set(wanted) - set(known):
            raise EmbeddingGemmaError(
                f"{name} has dimensions {', '.join(map(str, known))}, "
                f"not {', '.join(map(str, sorted(unknown)))}"
            )
        wanted = wanted or list(known)
    return wanted


def _same_run(record: dict[str, Any]) -> dict[str, Any]:
    """What results must have in common to stand in one record."""
    models = [[model["name"], model["sha256"]] for model in record["models"]]
    settings = {key: record[key] for key in ("schema", "versions", "commit", "settings", "tasks")}
    hardware = {key: value for key, value in record["machine"].items() if key != "power"}
    return settings | {"machine": hardware, "models": models}


def _about(task: Task) -> dict[str, Any]:
    return {
        "type": task.type,
        "metric": task.metric,
        "published": published(task.task, task.split, task.subset),
        "note": task.note,
        "gold": task.gold if isinstance(task, (STS, PairClassification)) else None,
    }


def _written(task: Task, result: Score) -> dict[str, Any]:
    digits = 6 if isinstance(task, (STS, PairClassification)) else 4
    return {"score": result.value, "items": [round(float(x), digits) for x in result.items]}
