"""Trains the demo checkpoint: one command, from the corpus to the folder that ships.

    python training/train_demo.py --corpus FOLDER --output mlx_embeddinggemma/demo

A small EmbeddingGemma learns all-MiniLM-L6-v2's vectors. The teacher's 384 dimensions are laid out
over 768 so that the cosine is kept exactly and every prefix is a good smaller vector: principal
components first, a random rotation of the same vectors after. The vocabulary table starts from the
teacher's vectors of its pieces and learns alone (the layers skipped); then everything learns.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import forum
import news
import numpy as np
import real
import sentencepiece as spm
import teacher
import tokenizer
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import words
from student import PROMPTS, Student, save

DIMENSIONS = (768, 512, 256, 128)
MAX_TOKENS = 320
LONGEST = 1024
COMPONENTS_SHARE = 0.7  # of a target's squared length that lies in the first half, the components
PROMPTED = 0.5  # share of the batches whose texts follow prompts
LONG_EVERY = 25  # steps from one batch of long texts to the next
AVERAGE = 0.998
PARTNERS = 10.0  # weight of the partners' cosines in the loss
COMMON = 1e-3  # a piece this frequent starts with half the weight of a rare one


def layout(vectors: np.ndarray, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's principal components (384, 384), largest first, and the map (384, 768) from
    its vectors to the targets, which keeps cosines."""
    sample = vectors[generator.choice(len(vectors), 50_000, replace=False)].astype(np.float32)
    components = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    rotation, _ = np.linalg.qr(generator.standard_normal((384, 384)))
    halves = components * COMPONENTS_SHARE**0.5, rotation * (1 - COMPONENTS_SHARE) ** 0.5
    return (
        torch.from_numpy(components.astype(np.float32).copy()),
        torch.from_numpy(np.concatenate(halves, axis=1).astype(np.float32)),
    )


class Texts:
    """Texts in pairs and their teacher vectors; draws batches of like length."""

    def __init__(self, texts: list[str], vectors: np.ndarray, pieces: spm.SentencePieceProcessor):
        assert len(texts) == len(vectors)
        self.texts, self.vectors, self.pieces = texts, vectors, pieces
        self.lengths = np.array([len(text) for text in texts])

    def rows(self, letters: int, most: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Endless batches of at most `most` texts and about `letters` letters with padding; the two
        texts of a pair stay together."""
        pairs = np.arange(len(self.texts) // 2 * 2).reshape(-1, 2)
        while True:
            generator.shuffle(pairs)
            for start in range(0, len(pairs), 16384):
                block = pairs[start : start + 16384]
                longest = self.lengths[block].max(axis=1)
                block, longest = block[np.argsort(longest)], np.sort(longest)
                chunks, first = [], 0
                while first < len(block):
                    last = first + 1
                    while (
                        last < len(block)
                        and 2 * (last + 1 - first) <= most
                        and 2 * (last + 1 - first) * (longest[last] + 24) <= letters
                    ):
                        last += 1
                    chunks.append(block[first:last])
                    first = last
                for i in generator.permutation(len(chunks)):
                    yield chunks[i].reshape(-1)

    def ids(self, rows: np.ndarray, generator: np.random.Generator, prompted: bool) -> list[list[int]]:
        """Token ids, after prompts or not; some texts in lower or title case, which the teacher,
        who reads lower case, does not see."""
        prompts = sorted(set(PROMPTS.values()))
        dressed = []
        for row in rows:
            text = self.texts[row]
            draw = generator.random()
            text = text.lower() if draw < 0.08 else text.title() if draw < 0.14 else text
            prompt = prompts[generator.integers(len(prompts))] if prompted else ""
            dressed.append(prompt + text)
        bos, eos = self.pieces.bos_id(), self.pieces.eos_id()
        return [[bos, *ids[:MAX_TOKENS], eos] for ids in self.pieces.encode(dressed)]

    def joined(self, generator: np.random.Generator) -> tuple[list[list[int]], np.ndarray]:
        """Eight long texts, of two to twelve texts each, and the means of their vectors."""
        ids, vectors = [], []
        long = np.flatnonzero(self.lengths > 200)
        for _ in range(8):
            rows = generator.choice(long, generator.integers(2, 13))
            text = " ".join(self.texts[row] for row in rows)
            ids.append(
                [self.pieces.bos_id(), *self.pieces.encode(text)[:LONGEST], self.pieces.eos_id()]
            )
            weights = self.lengths[rows] / self.lengths[rows].sum()
            vectors.append(weights @ self.vectors[rows].astype(np.float32))
        return ids, np.stack(vectors).astype(np.float32)


def padded(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = -(-max(map(len, ids)) // 8) * 8
    out = np.zeros((len(ids), width), np.int64)
    for i, row in enumerate(ids):
        out[i, : len(row)] = row
    tokens = torch.from_numpy(out)
    return tokens, (torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]).long()


def loss(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Distance to the target's direction, and between the batch's similarity matrices.

    A text's partner stands beside it. Hardly any two others are related, so that the matrix alone
    would say little about how much alike two like texts are: the partners' cosines count again.
    """
    total = torch.zeros(())
    for dim in DIMENSIONS:
        s = F.normalize(student[:, :dim], dim=-1)
        t = F.normalize(target[:, :dim], dim=-1)
        apart = (s[::2] * s[1::2]).sum(-1) - (t[::2] * t[1::2]).sum(-1)
        total = total + (1 - (s * t).sum(-1)).mean() + PARTNERS * apart.square().mean()
        total = total + 10 * ((s @ s.T) - (t @ t.T)).square().mean()
    return total / len(DIMENSIONS)


def run(
    student: Student,
    texts: Texts,
    spread: torch.Tensor,
    *,
    steps: int,
    letters: int,
    most: int,
    rate: float,
    static: bool,
    seed: int,
    state: Path,
) -> None:
    """Trains for `steps`; leaves the running average of the weights in the student.

    Under torch.distributed every process draws its own batches, and gradients are averaged. The
    whole state is kept in `state`, and an interrupted run goes on from there.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0)
    average = {name: value.clone() for name, value in student.state_dict().items()}
    first = 0
    if state.exists():
        kept = torch.load(state)
        first, average = kept["step"], kept["average"]
        student.load_state_dict(kept["student"])
        optimizer.load_state_dict(kept["optimizer"])
    forward = student if static else torch.compile(student, dynamic=True)
    generator = np.random.default_rng((seed, rank, first))
    source = texts.rows(letters, most, generator)
    start, mean = time.time(), 0.0
    for step in range(first, steps):
        rising, falling = (step + 1) / (0.05 * steps), (steps - step) / (0.95 * steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, rising, 0.01 + 0.99 * falling)
        if not static and step % LONG_EVERY == 0:
            ids, vectors = texts.joined(generator)
        else:
            rows = next(source)
            ids = texts.ids(rows, generator, prompted=not static and generator.random() < PROMPTED)
            vectors = texts.vectors[rows].astype(np.float32)
        if static:
            output = student.static(ids)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                output = forward(*padded(ids))
        value = loss(output.float(), torch.from_numpy(vectors) @ spread)
        optimizer.zero_grad()
        value.backward()
        if ranks > 1:
            learning = [p for p in parameters if p.grad is not None]
            gradients = torch.cat([p.grad.flatten() for p in learning])
            dist.all_reduce(gradients)
            gradients /= ranks
            for p, g in zip(learning, gradients.split([p.numel() for p in learning]), strict=True):
                p.grad = g.view_as(p)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean = 0.98 * mean + 0.02 * value.item() if step > first else value.item()
        if rank > 0:
            continue
        with torch.no_grad():
            decay = min(AVERAGE, (1 + step) / (10 + step))
            for name, weight in student.state_dict().items():
                average[name].lerp_(weight, 1 - decay)
        if step % 50 == 0 or step == steps - 1:
            print(f"{state.stem} step {step} loss {mean:.4f} {time.time() - start:.0f} s", flush=True)
        if step % 250 == 249 or step == steps - 1:
            kept = {"step": step + 1, "average": average}
            kept |= {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(kept, state.with_suffix(".part"))
            state.with_suffix(".part").rename(state)
    if ranks > 1:
        dist.barrier()
    student.load_state_dict(torch.load(state)["average"])


def first_table(
    pieces: spm.SentencePieceProcessor, texts: list[str], vectors: np.ndarray, components: torch.Tensor
) -> torch.Tensor:
    """(vocabulary, 255): the teacher's vector of every piece, common pieces shorter."""
    count = np.bincount(np.concatenate(pieces.encode(texts)), minlength=pieces.vocab_size())
    share = count / count.sum()
    weights = torch.from_numpy((COMMON / (COMMON + share)).astype(np.float32))
    table = torch.from_numpy(vectors.astype(np.float32)) @ components[:, :255]
    return F.normalize(table - table.mean(0), dim=-1) * weights[:, None]


def all_texts(args: argparse.Namespace) -> None:
    """Leaves every training text, in pairs, in texts.json, the teacher's vectors in vectors.npy."""
    base = corpus.training_texts(args.corpus, args.banking77, 90_000, 60_000, args.seed)
    headlines = news.headlines(60_000, args.seed)
    vocabulary = words.cased(words.vocabulary(), base)
    if not (args.output / "tokenizer.model").exists():
        tokenizer.train(words.tokenizer_texts(vocabulary, base, args.seed), 16_384, args.output)
    word_vectors = teacher.vectors(vocabulary, args.cache / "words.npy")
    rng = random.Random(args.seed)
    short = [*corpus.sentences(args.corpus), *corpus.banking_questions(args.banking77)]
    originals = rng.sample([text for text in short if len(text) < 110], 140_000)
    originals += rng.sample(headlines, 40_000) + rng.sample(base[-120_000:], 20_000)
    made = words.Words(vocabulary, word_vectors, args.seed)
    parts = {
        "teacher": base[: len(base) // 2 * 2],
        "news": headlines,
        "forum": forum.answers(90_000, args.seed),
        "made": made.texts(originals, 180_000, 200_000, 40_000)[: args.made],
        "paragraphs": corpus.paragraphs(args.corpus, 15_000, args.seed),
    }
    written = {"tatoeba": (real.tatoeba, args.tatoeba), "abc": (real.abc_news, args.headlines)}
    given = {name: read(path) for name, (read, path) in written.items() if path}
    found = {name: real.unseen(texts, held_out(args.tasks)) for name, texts in given.items()}
    variants = (made.exchange(text, 0.3) for texts in found.values() for text in texts[::3])
    parts["variants"] = [t for text in variants for t in (text, made.exchange(text, 0.3))]
    vectors = [teacher.vectors(part, args.cache / f"{name}.npy") for name, part in parts.items()]
    texts = [text for part in parts.values() for text in part]
    for name, part in found.items():
        known = teacher.vectors(part, args.cache / f"{name}.npy")
        for seed in (1, 2):
            rows = real.partners(known, seed)
            vectors.append(known[rows])
            texts += [part[row] for row in rows]
    np.save(args.cache / "vectors.npy", np.concatenate(vectors))
    (args.cache / "texts.json").write_text(json.dumps(texts))


def held_out(tasks: Path | None) -> set[str]:
    """Every text of the tasks that the checkpoint is judged by."""
    files = tasks.rglob("*.jsonl") if tasks else ()
    rows = (json.loads(line) for file in files for line in file.read_text("utf-8").splitlines())
    return {real.key(value) for row in rows for value in row.values() if isinstance(value, str)}


def train(rank: int, ranks: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    dist.init_process_group(
        "gloo", init_method=f"file://{args.cache.resolve()}/rendezvous", rank=rank, world_size=ranks
    )
    pieces = spm.SentencePieceProcessor(model_file=str(args.output / "tokenizer.model"))
    vectors = np.load(args.cache / "vectors.npy", mmap_mode="r")
    texts = Texts(json.loads((args.cache / "texts.json").read_text()), vectors, pieces)
    components, spread = layout(texts.vectors, np.random.default_rng(args.seed))
    names = [pieces.id_to_piece(i).replace("\u2581", " ").strip() for i in range(pieces.vocab_size())]
    piece_vectors = teacher.vectors(names, args.cache / "pieces.npy")
    student = Student()
    sample = random.Random(args.seed).sample(texts.texts, 100_000)
    table = first_table(pieces, sample, piece_vectors, components)
    student.start_from(table, components[:, :255].T @ spread)
    run(student, texts, spread, steps=args.static_steps, letters=120_000, most=1024, rate=2e-3,
        static=True, seed=args.seed, state=args.cache / "static.pt")  # fmt: skip
    run(student, texts, spread, steps=args.steps, letters=22_000, most=384, rate=1e-3,
        static=False, seed=args.seed, state=args.cache / "full.pt")  # fmt: skip
    if rank == 0:
        save(student, args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the training corpus")
    parser.add_argument("--banking77", type=Path, help="Banking77's training split as JSON lines")
    parser.add_argument("--tatoeba", type=Path, help="English sentences of Tatoeba")
    parser.add_argument("--headlines", type=Path, help="abcnews-date-text.csv")
    parser.add_argument("--tasks", type=Path, help="task files, whose texts are left out of both")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("out/training"))
    parser.add_argument("--made", type=int, default=520_000, help="texts made of the teacher's words")
    parser.add_argument("--static-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=5400)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.cache / "texts.json").exists():
        all_texts(args)
    workers = os.cpu_count() or 1
    (args.cache / "rendezvous").unlink(missing_ok=True)
    mp.spawn(train, (workers, args), workers)


if __name__ == "__main__":
    main()
