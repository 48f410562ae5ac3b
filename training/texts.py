"""Every training text once, the teacher's vector of each, and which two make a pair.

The teacher grades any text, so variety costs its forward pass only. Texts that people wrote are paired
with one that the teacher finds near; texts made here come in pairs that share most of their words.
"""

import json
import random
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import corpus
import forum
import news
import numpy as np
import real
import teacher
import words
from pairs import Pairs

from mlx_embeddinggemma import EmbeddingGemma


@dataclass(frozen=True)
class Sizes:
    """How many of each kind; pairs, but for the first and the last."""

    base: int = 160_000
    variations: int = 40_000
    captions: int = 40_000
    news: int = 20_000
    answers: int = 40_000
    paragraphs: int = 5_000
    groups: int = 25_000  # this and the next two: made of the teacher's own words
    exchanges: int = 35_000
    questions: int = 5_000
    misjudged: int = 0  # of all texts so far, paired by how wrong the student is about the two


def held_out(tasks: Path | None) -> set[str]:
    """Every text of the tasks that the checkpoint is judged by."""
    files = tasks.rglob("*.jsonl") if tasks else ()
    rows = (json.loads(line) for file in files for line in file.read_text("utf-8").splitlines())
    return {real.key(value) for row in rows for value in row.values() if isinstance(value, str)}


def prepare(
    args: Namespace,
    vocabulary: list[str],
    folder: Path,
    seed: int,
    sizes: Sizes,
    known: Pairs,
    model: Path,
) -> None:
    """Leaves a round's texts.json, vectors.npy (n, 384) and pairs.npy (m, 2) in `folder`.

    Args:
        args: the command's files.
        vocabulary: of `words.cased`.
        folder: of the round.
        seed: of everything drawn.
        sizes: of the round.
        known: the rounds before; pairs count texts on from theirs.
        model: the student so far.
    """
    rng = random.Random(seed)
    judged = held_out(args.tasks)
    seen = judged | set(map(real.key, known.texts))
    base = real.unseen(corpus.sentences(args.corpus), seen)
    base = rng.sample(base, min(len(base), sizes.base))
    base += [] if known.texts else corpus.banking_questions(args.banking77)
    written = {
        "base": base,
        "tatoeba": real.unseen(real.tatoeba(args.tatoeba), seen) if args.tatoeba else [],
        "headlines": real.unseen(real.abc_news(args.headlines), seen) if args.headlines else [],
    }
    made = words.Words(vocabulary, teacher.vectors(vocabulary, args.cache / "words.npy"), seed)
    vary = corpus.Variations(args.corpus, base, seed)
    short = [text for text in base if len(text) < 160]
    originals = [text for text in short if len(text) < 110]
    variants = [
        (text, vary.vary(text, rng.choice(short))) for text in rng.sample(short, sizes.variations)
    ]
    for name in ("tatoeba", "headlines"):
        variants += [(text, made.exchange(text, 0.3)) for text in written[name][::3]]
    in_pairs = [
        *corpus.paragraphs(args.corpus, sizes.paragraphs, seed),
        *(text for _ in range(sizes.captions) for text in vary.caption()),
        *news.headlines(sizes.news, seed),
        *forum.answers(sizes.answers, seed),
        *made.texts(originals, sizes.groups, sizes.exchanges, sizes.questions),
    ]
    pairs = [*zip(in_pairs[::2], in_pairs[1::2], strict=True), *variants]
    pairs = [pair for pair in pairs if all(pair) and not judged & set(map(real.key, pair))]
    texts = list(dict.fromkeys(t for part in (*written.values(), *pairs) for t in part))
    vectors = np.concatenate([known.vectors, teacher.vectors(texts, folder / "vectors.npy")])
    place = {text: i for i, text in enumerate(texts, len(known.texts))}
    rows = [np.array([(place[a], place[b]) for a, b in pairs], int).reshape(-1, 2)]
    for part in filter(None, written.values()):
        own = np.array([place[text] for text in part])
        for order in (1, 2):  # twice: two partners for each
            rows.append(own[real.near(vectors[own], order)].reshape(-1, 2))
    if sizes.misjudged:
        everything = [*known.texts, *texts]
        chosen = np.array(rng.sample(range(len(everything)), sizes.misjudged))
        student = EmbeddingGemma(model).encode([everything[i] for i in chosen], show_progress_bar=True)
        rows.append(chosen[real.misjudged(student, vectors[chosen], seed)].reshape(-1, 2))
    np.save(folder / "pairs.npy", np.concatenate(rows))
    (folder / "texts.json").write_text(json.dumps(texts))
