"""`finetune`: rows in, a sentence-transformers folder out.

read and check everything -> batches -> loss and gradient -> Adam -> checkpoints -> their mean -> folder
"""

import hashlib
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from tqdm import tqdm

from mlx_embeddinggemma import EmbeddingGemma, __version__, given, strict_json
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.folders import new_folder
from mlx_embeddinggemma.given import shown
from mlx_embeddinggemma.model import Model
from mlx_embeddinggemma.unit import check_unit, not_unit

from . import state
from .batches import batch_at, steps_per_epoch
from .data import TASKS, Dataset, read
from .evaluation import evaluate
from .export import export
from .gradients import Ids, embed, loss_and_gradient
from .grids import RECIPES
from .losses import Hardness, Loss, build
from .mining import mine, read_corpus
from .network import take_turn, tensors, trainable
from .plot import plot
from .teacher import with_vectors

LOSSES_OF = {  # the first is the default
    "pairs": ("multiple_negatives_ranking",),
    "scored": ("cosent", "cosine_similarity"),
    "labelled": ("multiple_negatives_ranking",),
    "vectors": ("embedding_matching", "similarity_matching"),
    "texts": ("embedding_matching", "similarity_matching"),
}
WHOLE = {  # settings that are whole numbers, from and to
    "steps": (1, 10**9),
    "batch_size": (2, 10**6),
    "mini_batch_size": (1, 10**9),
    "lora_rank": (0, 1024),
    "max_length": (3, 10**6),
    "average": (1, 10**9),
    "save_every": (1, 10**9),
    "mine": (0, 10**5),
    "seed": (0, 2**63 - 1),
}
POSITIVE = {"epochs": 1e6, "learning_rate": 1e6, "scale": 1e6}  # numbers over 0, and up to
SHARES = {"spread": 1e6, "warmup": 1, "quantize_after": 1}  # numbers from 0, and up to
CLIP = 1.0  # largest norm of a gradient
TRIED = 64  # texts that a checkpoint embeds before it is kept


@dataclass(frozen=True)
class Settings:
    """How a run trains; it resumes with the same ones only, `learning_rate` excepted.

    Attributes:
        task: prompts for rows that name none, of `data.TASKS`; by default what fits the data.
        loss: of `losses.LOSSES`, or a function like those; by default what fits the data.
        epochs: times every row is seen.
        steps: instead of epochs, where given.
        batch_size: rows a step; each is a negative for all others.
        mini_batch_size: texts in memory at a time; the result is the large batch's.
        learning_rate: at its highest; by default 2e-5, and 2e-4 with LoRA.
        warmup: share of the steps in which the rate rises from 0; then it falls by a cosine to 0.
        scale: 1 / temperature.
        hardness: see `losses.multiple_negatives_ranking`.
        spread: weight of the spread-out regulariser.
        matryoshka: train 512, 256 and 128 dimensions too.
        lora_rank: train corrections of this rank instead of the weights; 0 trains the weights.
        train_table: train the vocabulary table too, two thirds of the parameters.
        quantize: train for the rounding of a recipe: 4bit, 8bit, mixed, q4_0 or q8_0; or of several,
            separated by commas, a step for each in turn; fp32 is a step without rounding.
        quantize_after: share of the steps that learn in floats first.
        checkpoint_layers: less memory, a third more time.
        max_length: longer texts are cut to this many tokens, with a warning.
        average: the result is the mean of this many last checkpoints.
        save_every: steps between checkpoints; by default a tenth of the run.
        mine: hard negatives to find for each pair, with the model as it starts.
        seed: of everything drawn.
    """

    task: str | None = None
    loss: str | Loss | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 64
    mini_batch_size: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.1
    scale: float = 20.0
    hardness: Hardness | None = None
    spread: float = 0.0
    matryoshka: bool = True
    lora_rank: int = 0
    train_table: bool = False
    quantize: str | None = None
    quantize_after: float = 0.0
    checkpoint_layers: bool = False
    max_length: int = 256
    average: int = 1
    save_every: int | None = None
    mine: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in WHOLE.items():
            self._check(name, given.whole, least, most)
        for name, highest in POSITIVE.items():
            self._check(name, partial(given.number, over=True), 0, highest)
        for name, highest in SHARES.items():
            self._check(name, given.number, 0, highest)
        for name in ("matryoshka", "train_table", "checkpoint_layers"):
            self._check(name, given.flag)
        for name in ("task", "hardness", "quantize", *(() if callable(self.loss) else ("loss",))):
            self._check(name, given.text)
        known = {"task": (*TASKS,), "hardness": get_args(Hardness)}
        for name, values in known.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise EmbeddingGemmaError(f"expected {name} {', '.join(values)}, got {shown(value)}")
        for recipe in self.recipes:
            if recipe not in RECIPES:
                raise EmbeddingGemmaError(
                    f"expected quantize {', '.join(RECIPES)}, or several of them, got {shown(recipe)}"
                )

    def _check(self, name: str, check: Callable[..., Any], *limits: float) -> None:
        """Keeps what `check` makes of a setting: of numpy's numbers Python's, which JSON can hold."""
        value = getattr(self, name)
        if value is not None or self.__dataclass_fields__[name].default is not None:
            object.__setattr__(self, name, check(name, value, *limits))

    @property
    def recipes(self) -> list[str]:
        """Those that `quantize` names."""
        return self.quantize.split(",") if self.quantize else []


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        log: an entry every few steps: step, loss, learning_rate, grad_norm, tokens_per_second,
            memory_mb, and `eval_...` where held-out rows were evaluated.
    """

    output: str
    steps: int
    seconds: float
    log: list[dict[str, float]] = field(repr=False)


def finetune(
    model: str | Path,
    train: str | Path | Dataset,
    output: str | Path,
    *,
    eval: str | Path | None = None,
    corpus: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Report:
    """Fine-tunes a checkpoint.

    While it runs, `OUTPUT.run` holds the log and the last checkpoints; it goes when the run is done.

    Args:
        model: "demo", a folder or a hub id.
        train: rows, see `data`; or a dataset made by the caller.
        output: folder to write, in sentence-transformers' layout.
        eval: held-out rows of the same kind, evaluated at every checkpoint.
        corpus: passages to mine hard negatives from; by default the other rows' positives.
        resume: continue an interrupted run of the same output.
        force: replace `output`.
        progress: bar on stderr.
        **settings: fields of `Settings`.

    Raises:
        EmbeddingGemmaError: bad rows, settings that do not fit, or a loss that turned NaN.
    """
    if unknown := settings.keys() - {f.name for f in fields(Settings)}:
        raise EmbeddingGemmaError(f"unknown settings: {', '.join(sorted(unknown))}")
    wanted = Settings(**settings)
    for name, on in {"resume": resume, "force": force, "progress": progress}.items():
        given.flag(name, on)
    given.path("model", model)
    if not isinstance(train, Dataset):
        given.path("train", train)
    for name, path in {"eval": eval, "corpus": corpus}.items():
        if path is not None:
            given.path(name, path)
    folder = given.path("output", output)
    _check_output(folder, force)
    run = Run(model, train, folder, eval, corpus, wanted, resume, progress)
    return run.train()


def _check_output(folder: Path, force: bool) -> None:
    """Refuses, before hours of training, what could not be written or would be lost."""
    if folder.name in ("", ".."):
        raise EmbeddingGemmaError(f"output: expected a folder with a name, got {shown(str(folder))}")
    try:
        if folder.exists() and not force:
            raise EmbeddingGemmaError(f"{folder} exists: choose another folder or replace it (--force)")
        if folder.exists() and not folder.is_dir():
            raise EmbeddingGemmaError(f"{folder} is a file; expected a folder")
        if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
            raise EmbeddingGemmaError(
                f"{folder} is no checkpoint (no config.json): remove it yourself or choose another"
            )
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {folder}: {error.strerror}") from None


class Run:
    """One fine-tuning, from checked inputs to the written folder."""

    def __init__(
        self,
        model: str | Path,
        train: str | Path | Dataset,
        output: Path,
        eval: str | Path | None,
        corpus: str | Path | None,
        settings: Settings,
        resume: bool,
        progress: bool,
    ):
        self.output, self.settings, self.progress = output, settings, progress
        self.folder = output.with_name(output.name + ".run")
        self.encoder = EmbeddingGemma(model)
        self.cut = False
        if isinstance(train, Dataset):
            if not train.rows or train.kind not in LOSSES_OF:
                raise EmbeddingGemmaError(
                    f"expected a dataset of {', '.join(LOSSES_OF)} with a row or more, got "
                    f"{len(train.rows)} rows of {train.kind!r}"
                )
            _check_rows(train)
            self.data, digest = train, _digest(train)
        else:
            self.data = read(train, self.encoder.prompts, settings.task)
            digest = _sha256(train)
        self.held_out = read(eval, self.encoder.prompts, settings.task) if eval else None
        self.loss = self._loss()
        self.record = {
            "model": str(model),
            "train": digest,
            "corpus": _sha256(corpus) if corpus else None,
            **asdict(settings),
        }
        if callable(settings.loss):
            self.record["loss"] = getattr(settings.loss, "__name__", "a function")
        self._open_folder(resume)
        if settings.mine:
            prompt = self.encoder.prompts.get("document", "")
            passages = read_corpus(corpus, prompt) if corpus else None
            self.data = mine(self.encoder, self.data, passages, count=settings.mine)
        self.batch_size = min(settings.batch_size, len(self.data.rows))
        per_epoch = steps_per_epoch(self.data, self.batch_size)
        self.steps = settings.steps or max(1, round(settings.epochs * per_epoch))
        self.save_every = settings.save_every or max(1, math.ceil(self.steps / 10))
        if self.data.kind == "texts":
            teacher = trainable(self.encoder._checkpoint)
            self.data = with_vectors(teacher, self.data, self._tokenize, progress)
            if self.held_out:
                self.held_out = with_vectors(teacher, self.held_out, self._tokenize, progress)

    def train(self) -> Report:
        """Runs to the end and writes the output."""
        s = self.settings
        model = trainable(
            self.encoder._checkpoint,
            quantize=s.recipes,
            lora_rank=s.lora_rank,
            train_table=s.train_table,
            checkpoint_layers=s.checkpoint_layers,
            seed=s.seed,
        )
        optimizer = optim.Adam(learning_rate=0.0, bias_correction=True)
        optimizer.init(model.trainable_parameters())
        done, log = self._last(model, optimizer)
        if not done:
            check_unit(self._tried(model, 0), "the model's vectors, before any training,")
        start = time.monotonic()
        with tqdm(
            total=self.steps,
            initial=done,
            unit=" steps",
            delay=1,
            disable=None if self.progress else True,
        ) as bar:
            if not done and self.held_out:
                self._log(log, {"step": 0, **self._evaluate(model)})
            while done < self.steps:
                began = time.monotonic()
                try:
                    entry = self._step(model, optimizer, done)
                except KeyboardInterrupt:
                    if done:
                        self._save(done, model, optimizer)
                    raise
                done += 1
                tokens = entry.pop("tokens")
                entry["tokens_per_second"] = round(tokens / (time.monotonic() - began), 1)
                entry["memory_mb"] = round(_memory_mb())
                bar.set_postfix_str(
                    f"loss {entry['loss']:.4f}, rate {entry['learning_rate']:.1e}, "
                    f"{entry['memory_mb']:.0f} MB",
                    refresh=False,
                )
                bar.update()
                if saving := done % self.save_every == 0 or done == self.steps:
                    self._save(done, model, optimizer)
                    if self.held_out:
                        entry |= self._evaluate(model)
                self._log(log, entry)
                if saving:
                    (self.folder / "log.svg").write_text(plot(log), encoding="utf-8")
        self._write(model, log)
        return Report(str(self.output), self.steps, time.monotonic() - start, log)

    def _step(self, model: Model, optimizer: optim.Adam, step: int) -> dict[str, float]:
        """One update; nothing has changed if the loss or the gradient is not finite."""
        batch = batch_at(self.data, self.batch_size, self.settings.seed, step)
        ids = self._tokenize(batch.texts)
        take_turn(model, step if step >= self.settings.quantize_after * self.steps else None)
        value, gradient = loss_and_gradient(model, self.loss, batch, ids, self.settings.mini_batch_size)
        gradient, norm = optim.clip_grad_norm(gradient, CLIP)
        mx.eval(value, norm, gradient)
        if not mx.isfinite(value + norm).item():
            raise EmbeddingGemmaError(self._diverged("loss", step + 1))
        rate = learning_rate(step, self.steps, self.settings)
        optimizer.learning_rate = rate
        updated = optimizer.apply_gradients(gradient, model.trainable_parameters())
        mx.eval(updated, optimizer.state)
        model.update(updated)
        return {
            "step": step + 1,
            "loss": value.item(),
            "learning_rate": rate,
            "grad_norm": norm.item(),
            "tokens": sum(map(len, ids)),
        }

    def _diverged(self, what: str, step: int) -> str:
        saved = state.checkpoints(self.folder)
        go_on = f"go on from {saved[-1]} with --resume" if saved else "start again"
        rate = max(learning_rate(i, self.steps, self.settings) for i in range(self.steps))
        return (
            f"the {what} became NaN or infinite at step {step}: lower --learning-rate (its peak is "
            f"{rate:.1e}) and {go_on}"
        )

    def _loss(self) -> Loss:
        kinds = LOSSES_OF[self.data.kind]
        if self.held_out and self.held_out.kind != self.data.kind:
            raise EmbeddingGemmaError(
                f"expected held-out rows of the kind of the training rows, {self.data.kind}, got "
                f"{self.held_out.kind}"
            )
        name = self.settings.loss or kinds[0]
        if isinstance(name, str) and name not in kinds:
            raise EmbeddingGemmaError(
                f"expected loss {' or '.join(kinds)} for {self.data.kind} rows, got {name!r}"
            )
        if self.data.kind == "texts" and not {*self.settings.recipes} - {"fp32"}:
            raise EmbeddingGemmaError(
                "expected --quantize 4bit, or another recipe that rounds, with rows of texts alone: "
                "the model is its own teacher, and has nothing to learn but living with rounded weights"
            )
        size = self.encoder.dimensions[0]
        vector = self.data.rows[0].vector
        teacher = 0 if vector is None else len(vector)
        if self.data.kind == "vectors" and name == "embedding_matching" and teacher != size:
            raise EmbeddingGemmaError(
                f"expected vectors of {size} numbers, got {teacher}: use --loss similarity_matching, "
                "which compares similarities"
            )
        s = self.settings
        return build(
            name, size=size, scale=s.scale, hardness=s.hardness, spread=s.spread, nested=s.matryoshka
        )

    def _tokenize(self, texts: Sequence[str]) -> Ids:
        longest = min(self.settings.max_length, self.encoder.max_length)
        ids = self.encoder._tokenizer.encode(texts)
        most = max(map(len, ids))
        if most > longest and not self.cut:
            self.cut = True  # said once: the rest of the rows has not been read yet
            more = f": --max-length reads up to {self.encoder.max_length:,}"
            warnings.warn(
                f"a text of {most:,} tokens is cut to {longest:,}, as other long ones will be"
                + (more if longest < self.encoder.max_length else ""),
                stacklevel=2,
            )
        return [self.encoder._cut(row, longest) for row in ids]

    def _evaluate(self, model: Model) -> dict[str, float]:
        assert self.held_out is not None
        found = evaluate(model, self.held_out, self.loss, self.batch_size, self._tokenize)
        return {f"eval_{name}": value for name, value in found.items()}

    def _open_folder(self, resume: bool) -> None:
        started = bool(state.checkpoints(self.folder))
        if resume:
            if not started:
                raise EmbeddingGemmaError(f"no run to resume: there is no {self.folder}")
            state.check_settings(self.folder, self.record)
        elif started:
            raise EmbeddingGemmaError(
                f"{self.folder} holds an interrupted run: continue it with --resume, or remove it"
            )
        else:
            state.write_settings(self.folder, self.record)

    def _last(self, model: Model, optimizer: optim.Adam) -> tuple[int, list[dict[str, float]]]:
        """Steps done before, their log; weights and optimiser as they were."""
        saved = state.checkpoints(self.folder)
        if not saved:
            (self.folder / "log.jsonl").unlink(missing_ok=True)
            return 0, []
        parameters, moments = state.load(saved[-1])
        state.check_alike(saved[-1], parameters, model.trainable_parameters())
        state.check_alike(saved[-1], moments, optimizer.state)
        model.update(parameters)
        optimizer.state = moments
        done = state.step_of(saved[-1])
        path = self.folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        log = [entry for entry in map(_entry, lines) if entry and entry["step"] <= done]
        lines = [strict_json.dumps(entry) + "\n" for entry in log]
        path.write_text("".join(lines), encoding="utf-8")
        return done, log

    def _save(self, step: int, model: Model, optimizer: optim.Adam) -> None:
        """A checkpoint, unless the last update broke the network: no loss has seen it yet."""
        if len(not_unit(self._tried(model, step - 1))):
            raise EmbeddingGemmaError(self._diverged("vectors", step))
        path = state.save(self.folder, step, model.trainable_parameters(), optimizer.state)
        for old in set(state.checkpoints(self.folder)) - {*self._averaged(), path}:
            state.remove(old)

    def _tried(self, model: Model, step: int) -> np.ndarray:
        """Vectors of some texts of a step's batch."""
        texts = batch_at(self.data, self.batch_size, self.settings.seed, step).texts[:TRIED]
        return np.array(embed(model, self._tokenize(texts)))

    def _averaged(self) -> list[Path]:
        """The checkpoints whose mean is the result; one written by an interruption is none of them."""
        regular = [
            path
            for path in state.checkpoints(self.folder)
            if (step := state.step_of(path)) % self.save_every == 0 or step == self.steps
        ]
        return regular[-self.settings.average :]

    def _log(self, log: list[dict[str, float]], entry: dict[str, float]) -> None:
        line = strict_json.dumps(entry)
        log.append(entry)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _write(self, model: Model, log: list[dict[str, float]]) -> None:
        """The mean of the last checkpoints, as the output; then the run's folder goes."""
        total: dict[str, mx.array] = {}
        saved = self._averaged()
        for checkpoint in saved:
            model.update(state.load_parameters(checkpoint))
            for name, weight in tensors(model).items():
                total[name] = (
                    total[name] + weight / len(saved) if name in total else weight / len(saved)
                )
            mx.eval(total)
        with new_folder(self.output, replace=True) as partial:
            text = card(self.record, log)
            export(self.encoder._checkpoint, total, partial, self.encoder._settings, text)
            record = {"settings": self.record, "version": __version__, "log": log}
            (partial / "finetune.json").write_text(
                strict_json.dumps(record, indent=1), encoding="utf-8"
            )
            (partial / "finetune.svg").write_text(plot(log), encoding="utf-8")
        state.remove(self.folder)


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Of the update after `step` others: up linearly to the peak, then down by a cosine to 0."""
    peak = settings.learning_rate or (2e-4 if settings.lora_rank else 2e-5)
    rise = math.ceil(settings.warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def card(record: dict[str, Any], log: Sequence[dict[str, float]]) -> str:
    """The model card: what it came from and how."""
    chosen = "\n".join(f"| {name} | {value} |" for name, value in record.items() if value is not None)
    last: dict[str, float] = {}
    for entry in log:
        last |= {name: value for name, value in entry.items() if name.startswith("eval_")}
    held_out = ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in last.items())
    return (
        f"# Fine-tuned from {record['model']}\n\n"
        f"By mlx-embeddinggemma {__version__}, in MLX. The log is in `finetune.json`.\n\n"
        + (f"Held-out rows at the end: {held_out}.\n\n" if held_out else "")
        + f"| setting | value |\n|---|---|\n{chosen}\n\n"
        "The terms of the model it came from apply to these weights too.\n"
    )


def _entry(line: str) -> dict[str, float] | None:
    """A line of the log, None for one that was cut short."""
    try:
        parsed = strict_json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get("step"), int) else None


def _check_rows(data: Dataset) -> None:
    """What `read` promises of a file's rows, of those that the caller made."""
    for i, row in enumerate(data.rows):
        if not row.texts or not all(isinstance(text, str) for text in row.texts):
            raise TypeError(f"row {i}: expected texts of strings, got {shown(row.texts)}")
        if row.score is not None:
            given.number(f"row {i}'s score", row.score, -1e30, 1e30)
        if row.vector is not None:
            vector = np.asarray(row.vector, np.float32)
            if not np.isfinite(vector).all() or not vector.any(axis=-1).all():
                raise EmbeddingGemmaError(f"row {i}: expected finite vectors with a direction")


def _digest(data: Dataset) -> str:
    found = hashlib.sha256()
    for row in data.rows:
        found.update(repr((row.texts, row.score, row.label)).encode())
        if row.vector is not None:
            found.update(np.asarray(row.vector, np.float32).tobytes())
    return found.hexdigest()


def _sha256(path: str | Path) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None


def _memory_mb() -> float:
    """Peak of the process; on a Mac the GPU's buffers count in it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
