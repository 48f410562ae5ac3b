"""Trains the demo checkpoint: one command, from the corpus to the folder that ships.

    python training/train_demo.py --corpus FOLDER --output mlx_embeddinggemma/demo

A small EmbeddingGemma learns all-MiniLM-L6-v2's vectors. The teacher's 384 dimensions are laid out
over 768 so that the cosine is kept exactly and every prefix is a good smaller vector: principal
components first, a random rotation of the same vectors after. Its stages, each kept in `--cache`, so
that the same command goes on where it was interrupted:

    static    the vocabulary table, which starts from the teacher's vectors of its pieces, and the head
    round-1   everything, with this package's own trainer; the weights in floats first, then rounded to
              4bit and to q4_0 in turn
    round-2   again, from where the first round ended, with more texts beside the first round's
    round-3   again, gently, with other texts and with pairs that the student judges worst
    mean      with `--start`: of that checkpoint's weights and, for a fifth, the last round's
    shaped    the head changed, so that cosines follow people's judgements better
    settled   in floats and rounded by turns, towards the vectors that it has itself in floats, a
              translation's a little towards its original's; the mean of three such runs ships

`--start` gives the last round another checkpoint to go on from, of this shape and teacher, and leaves
out what is before it: what ships was made so, from the checkpoint that shipped before.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import corpus
import mlx.core as mx
import numpy as np
import sentencepiece as spm
import settling
import static
import student
import targets
import teacher
import texts
import tokenizer
import words
from pairs import Pairs

from mlx_embeddinggemma import EmbeddingGemma
from mlx_embeddinggemma.finetune import finetune
from mlx_embeddinggemma.finetune.data import Dataset
from mlx_embeddinggemma.finetune.losses import build

# The texts a round adds, how often it reads all pairs there are by then, and its highest rate.
ROUNDS = (
    (texts.Sizes(), 1.0, 1e-3),
    (texts.Sizes(160_000, 20_000, 10_000, 5_000, 10_000, 12_000, 0, 20_000, 5_000), 0.77, 1e-3),
    (texts.Sizes(90_000, 20_000, 8_000, 6_000, 12_000, 5_000, 4_000, 6_000, 4_000, 150_000), 0.8, 4e-4),
)
COMMON = 1e-3  # a piece this frequent starts with half the weight of a rare one
TRAINING: dict[str, Any] = {
    "max_length": 1024,
    "train_table": True,
    "warmup": 0.05,
    "quantize": "4bit,q4_0",
    "save_every": 100,
    "average": 3,
    "progress": True,
}
FLOATS = 0.55  # share of a round's steps before the weights are rounded
NEW = 0.2  # share of the last round in the mean
SETTLINGS = 3  # runs that settle: what chance does in one is less in their mean
SETTLING = {
    "batch_size": 64,
    "learning_rate": 3e-4,
    "quantize": "fp32,fp32,fp32,4bit,fp32,fp32,fp32,q4_0",  # mostly in floats, which shall stay
}


def first_table(
    pieces: spm.SentencePieceProcessor, lines: list[str], vectors: np.ndarray, components: np.ndarray
) -> np.ndarray:
    """(vocabulary, 255): the teacher's vector of every piece, common pieces shorter."""
    count = np.bincount(np.concatenate(pieces.encode(lines)), minlength=pieces.vocab_size())
    weights = COMMON / (COMMON + count / count.sum())
    table = vectors.astype(np.float32) @ components[:, :255]
    table -= table.mean(axis=0)
    length = np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6)
    return table / length * weights[:, None]


def first_stage(args: argparse.Namespace, pairs: Pairs) -> np.ndarray:
    """Leaves the student as the rounds begin with it, its table and head trained, in `start`.

    Returns:
        The map (384, 768) from the teacher's vectors to the student's.
    """
    components, spread = targets.layout(pairs.vectors, np.random.default_rng(args.seed))
    start = args.cache / "start"
    if not (start / "model.safetensors").exists():
        pieces = spm.SentencePieceProcessor(model_file=str(start / "tokenizer.model"))
        names = [
            pieces.id_to_piece(i).replace("\u2581", " ").strip() for i in range(student.VOCABULARY)
        ]
        sample = random.Random(args.seed).sample(pairs.texts, 100_000)
        vectors = teacher.vectors(names, args.cache / "pieces.npy")
        table = first_table(pieces, sample, vectors, components)
        weights = student.static_weights(table, components[:, :255].T @ spread, args.seed)
        nested = build(targets.distillation(spread), size=student.DENSE[-1])
        weights = static.train(weights, pieces, pairs.draw, nested, args.static_steps, args.seed)
        student.save(weights | student.layer_weights(args.seed), start, mx.float32)
    return spread


def learned_layout(model: Path, pairs: Pairs, seed: int) -> np.ndarray:
    """The map (384, 768) by which a trained student's vectors follow the teacher's."""
    sample = random.Random(seed).sample(range(len(pairs.texts)), 50_000)
    vectors = EmbeddingGemma(model).encode([pairs.texts[i] for i in sample])
    return targets.laid_out(vectors, pairs.vectors[sample])


def learn(model: Path, dataset: Dataset, output: Path, **settings: Any) -> Path:
    """A run of the trainer, or what is left of it; returns `output`."""
    if not output.exists():
        resume = any(output.with_name(f"{output.name}.run").glob("step-*"))
        finetune(model, dataset, output, resume=resume, **TRAINING | settings)
    return output


def with_tokenizer(weights: dict[str, mx.array], start: Path, output: Path) -> Path:
    """Saves the weights in bfloat16, with the tokenizer from `start`; returns `output`."""
    student.save(weights, output, mx.bfloat16)
    for path in start.glob("*token*"):
        (output / path.name).write_bytes(path.read_bytes())
    return output


def mean_of(shares: dict[Path, float]) -> dict[str, mx.array]:
    """The mean of checkpoints' weights, each with its share, float32."""
    models = [(share, student.load(folder)) for folder, share in shares.items()]
    return {
        name: sum(share * weights[name].astype(mx.float32) for share, weights in models)
        for name in models[0][1]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the training corpus")
    parser.add_argument("--banking77", type=Path, help="Banking77's training split as JSON lines")
    parser.add_argument("--tatoeba", type=Path, help="English sentences of Tatoeba")
    parser.add_argument("--headlines", type=Path, help="abcnews-date-text.csv")
    parser.add_argument("--tasks", type=Path, help="task files, whose texts are left out")
    parser.add_argument("--start", type=Path, help="checkpoint that the last round goes on from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("out/training"))
    parser.add_argument("--static-steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    cache, start = args.cache, args.cache / "start"
    start.mkdir(parents=True, exist_ok=True)
    base = corpus.training_texts(args.corpus, args.banking77, 90_000, 60_000, args.seed)
    vocabulary = words.cased(words.vocabulary(), base)
    if not (start / "tokenizer.model").exists():
        lines = words.tokenizer_texts(vocabulary, base, args.seed)
        tokenizer.train(lines, student.VOCABULARY, start)

    folders: list[Path] = []
    model, loss = args.start or start, None
    for number, (sizes, epochs, rate) in [*enumerate(ROUNDS)][-1 if args.start else 0 :]:
        folder, seed = cache / f"round-{number + 1}", args.seed + number
        if not (folder / "texts.json").exists():
            folder.mkdir(exist_ok=True)
            texts.prepare(args, vocabulary, folder, seed, sizes, Pairs(folders), model)
        folders.append(folder)
        pairs = Pairs(folders)
        if loss is None:
            spread = learned_layout(model, pairs, args.seed) if args.start else first_stage(args, pairs)
            loss = targets.distillation(spread)
        settings = {
            "epochs": epochs,
            "learning_rate": rate,
            "quantize_after": FLOATS,
            "batch_size": 256,
        }
        model = learn(model, pairs.dataset(seed), folder / "trained", loss=loss, seed=seed, **settings)
    weights = mean_of({args.start: 1 - NEW, model: NEW} if args.start else {model: 1.0})
    mean = with_tokenizer(weights, start, cache / "mean")
    sample = random.Random(args.seed).sample(pairs.texts, 50_000)
    change = targets.shaped(EmbeddingGemma(mean).encode(sample), spread)
    weights[student.HEAD] = mx.array(change.astype(np.float32)) @ weights[student.HEAD]
    shaped = with_tokenizer(weights, start, cache / "shaped")
    translations = corpus.translations(args.corpus)
    settled: dict[Path, float] = {}
    for number in range(SETTLINGS):
        folder, seed = cache / f"settled-{number + 1}", args.seed + len(ROUNDS) + number
        if not folder.exists():
            dataset = settling.dataset(EmbeddingGemma(shaped), pairs.texts, translations, seed)
            learn(shaped, dataset, folder, seed=seed, **SETTLING)
        settled[folder] = 1 / SETTLINGS
    with_tokenizer(mean_of(settled), start, args.output)


if __name__ == "__main__":
    main()
