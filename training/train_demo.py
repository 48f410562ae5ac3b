"""Trains the demo checkpoint: one command, from the corpus to the folder that ships.

    python training/train_demo.py --corpus FOLDER --output mlx_embeddinggemma/demo

A small EmbeddingGemma learns all-MiniLM-L6-v2's vectors. The teacher's 384 dimensions are laid out
over 768 so that the cosine is kept exactly and every prefix is a good smaller vector: principal
components first, a random rotation of the same vectors after. First the vocabulary table alone
learns (the layers skipped), then everything.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import news
import numpy as np
import sentencepiece as spm
import teacher
import tokenizer
import torch
import torch.nn.functional as F
from student import PROMPTS, Student, save

DIMENSIONS = (768, 512, 256, 128)
MAX_TOKENS = 160
COMPONENTS_SHARE = 0.7  # of a target's squared length that lies in the first half, the components


def targets(vectors: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """(n, 384) teacher vectors as (n, 768), cosines unchanged."""
    sample = vectors[generator.choice(len(vectors), 50_000, replace=False)].astype(np.float32)
    _, components = np.linalg.eigh(sample.T @ sample)
    rotation, _ = np.linalg.qr(generator.standard_normal((384, 384)))
    spread = np.concatenate(
        [
            components[:, ::-1] * COMPONENTS_SHARE**0.5,
            rotation * (1 - COMPONENTS_SHARE) ** 0.5,
        ],
        axis=1,
    )
    return torch.from_numpy(spread.astype(np.float32))


class Tokens:
    """Every text's ids, after a prompt and alone: a prompt ends in a space, which joins the text."""

    def __init__(self, texts: list[str], model: Path):
        pieces = spm.SentencePieceProcessor(model_file=str(model))
        self.bare = [np.array(row[:MAX_TOKENS], np.int32) for row in pieces.encode(texts)]
        spaced = [" " + text for text in texts]
        self.spaced = [np.array(row[:MAX_TOKENS], np.int32) for row in pieces.encode(spaced)]
        self.prompts = pieces.encode([prompt.rstrip() for prompt in sorted(set(PROMPTS.values()))])
        self.bos, self.eos = pieces.bos_id(), pieces.eos_id()

    def batch(
        self, rows: np.ndarray, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids = []
        for row in rows:
            if generator.random() < 0.4:
                ids.append([self.bos, *self.bare[row], self.eos])
            else:
                prompt = self.prompts[generator.integers(len(self.prompts))]
                ids.append([self.bos, *prompt, *self.spaced[row], self.eos])
        width = -(-max(map(len, ids)) // 8) * 8
        padded = torch.zeros((len(ids), width), dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for i, row_ids in enumerate(ids):
            padded[i, : len(row_ids)] = torch.tensor(row_ids)
            mask[i, : len(row_ids)] = 1
        return padded, mask


def batches(lengths: np.ndarray, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of like length; texts that stand side by side (near pairs) stay together."""
    pairs = np.arange(len(lengths) // 2 * 2).reshape(-1, 2)
    while True:
        generator.shuffle(pairs)
        for start in range(0, len(pairs), size * 32):
            block = pairs[start : start + size * 32]
            block = block[np.argsort(lengths[block].max(axis=1))]
            chunks = [block[i : i + size // 2] for i in range(0, len(block), size // 2)]
            for i in generator.permutation(len(chunks)):
                yield chunks[i].reshape(-1)


def loss(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Distance to the target's direction, and between the batch's similarity matrices."""
    total = torch.zeros(())
    for dim in DIMENSIONS:
        s = F.normalize(student[:, :dim], dim=-1)
        t = F.normalize(target[:, :dim], dim=-1)
        total = total + (1 - (s * t).sum(-1)).mean() + 10 * ((s @ s.T) - (t @ t.T)).square().mean()
    return total / len(DIMENSIONS)


def run(
    student: Student,
    tokens: Tokens,
    vectors: np.ndarray,
    spread: torch.Tensor,
    *,
    steps: int,
    size: int,
    rate: float,
    static: bool,
    generator: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Trains for `steps`; returns the running average of the weights."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.05, final_div_factor=100
    )
    lengths = np.array([len(row) for row in tokens.spaced])
    source = batches(lengths, size, generator)
    forward = student if static else torch.compile(student, dynamic=True)
    average = {name: value.clone() for name, value in student.state_dict().items()}
    start, mean = time.time(), 0.0
    for step in range(steps):
        rows = next(source)
        ids, mask = tokens.batch(rows, generator)
        target = torch.from_numpy(vectors[rows].astype(np.float32)) @ spread
        with torch.autocast("cpu", torch.bfloat16, enabled=not static):
            output = forward(ids, mask, static=static)
        value = loss(output, target)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            decay = min(0.998, (1 + step) / (10 + step))
            for name, weight in student.state_dict().items():
                average[name].lerp_(weight, 1 - decay)
        mean = 0.98 * mean + 0.02 * value.item() if step else value.item()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.time() - start
            print(
                f"{'static' if static else 'full'} step {step} loss {mean:.4f} {seconds:.0f} s",
                flush=True,
            )
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the training corpus")
    parser.add_argument("--banking77", type=Path, help="Banking77's training split as JSON lines")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("out/training"))
    parser.add_argument("--static-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--news-steps", type=int, default=1100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    args.cache.mkdir(parents=True, exist_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)

    texts = corpus.training_texts(args.corpus, args.banking77, 90_000, 60_000, args.seed)
    if not (args.output / "tokenizer.model").exists():
        tokenizer.train(texts[:500_000], 16_384, args.output)
    vectors = teacher.vectors(texts, args.cache / "teacher.npy")
    tokens = Tokens(texts, args.output / "tokenizer.model")
    spread = targets(vectors, generator)
    student = Student()
    static = args.cache / "static.pt"
    if not static.exists():
        average = run(
            student,
            tokens,
            vectors,
            spread,
            steps=args.static_steps,
            size=1024,
            rate=4e-3,
            static=True,
            generator=generator,
        )
        torch.save(average, static)
    student.load_state_dict(torch.load(static))
    full = args.cache / "full.pt"
    if not full.exists():
        average = run(
            student, tokens, vectors, spread,
            steps=args.steps, size=256, rate=1e-3, static=False, generator=generator,
        )  # fmt: skip
        torch.save(average, full)
    student.load_state_dict(torch.load(full))

    # What the corpus lacks: news, with its names. Half of the last stage's texts are headlines.
    extra = news.headlines(60_000, args.seed)
    kept = np.sort(generator.choice(len(texts) // 2, 90_000, replace=False))
    rows = np.stack([2 * kept, 2 * kept + 1], axis=1).ravel()
    vectors = np.concatenate([teacher.vectors(extra, args.cache / "news.npy"), vectors[rows]])
    tokens = Tokens(extra + [texts[row] for row in rows], args.output / "tokenizer.model")
    average = run(
        student, tokens, vectors, spread,
        steps=args.news_steps, size=256, rate=1e-3, static=False, generator=generator,
    )  # fmt: skip
    student.load_state_dict(average)
    save(student, args.output)


if __name__ == "__main__":
    main()
