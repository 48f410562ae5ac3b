"""Every training text once, the teacher's vector of each, and which two make a pair.

The teacher grades any text, so variety costs its forward pass only. Texts that people wrote are paired
with one that the teacher finds near; texts made here come in pairs that share most of their words.
"""

import json
import random
from argparse import Namespace
from pathlib import Path

import corpus
import forum
import news
import numpy as np
import real
import teacher
import words

BASE, VARIATIONS, CAPTIONS, NEWS, ANSWERS, PARAGRAPHS = 160_000, 40_000, 40_000, 20_000, 40_000, 5_000
GROUPS, EXCHANGES, QUESTIONS = 25_000, 35_000, 5_000  # pairs made of the teacher's own words


def held_out(tasks: Path | None) -> set[str]:
    """Every text of the tasks that the checkpoint is judged by."""
    files = tasks.rglob("*.jsonl") if tasks else ()
    rows = (json.loads(line) for file in files for line in file.read_text("utf-8").splitlines())
    return {real.key(value) for row in rows for value in row.values() if isinstance(value, str)}


def prepare(args: Namespace, vocabulary: list[str]) -> None:
    """Leaves texts.json, vectors.npy (n, 384) and pairs.npy (m, 2) in `args.cache`."""
    rng = random.Random(args.seed)
    judged = held_out(args.tasks)
    base = real.unseen(corpus.sentences(args.corpus), judged)
    base = rng.sample(base, min(len(base), BASE)) + corpus.banking_questions(args.banking77)
    written = {
        "base": base,
        "tatoeba": real.unseen(real.tatoeba(args.tatoeba), judged) if args.tatoeba else [],
        "headlines": real.unseen(real.abc_news(args.headlines), judged) if args.headlines else [],
    }
    made = words.Words(vocabulary, teacher.vectors(vocabulary, args.cache / "words.npy"), args.seed)
    vary = corpus.Variations(args.corpus, base, args.seed)
    short = [text for text in base if len(text) < 160]
    originals = [text for text in short if len(text) < 110]
    variants = [(text, vary.vary(text, rng.choice(short))) for text in rng.sample(short, VARIATIONS)]
    for name in ("tatoeba", "headlines"):
        variants += [(text, made.exchange(text, 0.3)) for text in written[name][::3]]
    in_pairs = [
        *corpus.paragraphs(args.corpus, PARAGRAPHS, args.seed),
        *(text for _ in range(CAPTIONS) for text in vary.caption()),
        *news.headlines(NEWS, args.seed),
        *forum.answers(ANSWERS, args.seed),
        *made.texts(originals, GROUPS, EXCHANGES, QUESTIONS),
    ]
    pairs = [*zip(in_pairs[::2], in_pairs[1::2], strict=True), *variants]
    pairs = [pair for pair in pairs if all(pair) and not judged & set(map(real.key, pair))]
    texts = list(dict.fromkeys(t for part in (*written.values(), *pairs) for t in part))
    place = {text: i for i, text in enumerate(texts)}
    vectors = teacher.vectors(texts, args.cache / "vectors.npy")
    rows = [np.array([[place[a], place[b]] for a, b in pairs])]
    for part in written.values():
        own = np.array([place[text] for text in part])
        for seed in (1, 2):  # twice: two partners for each
            rows.append(own[real.partners(vectors[own], seed)].reshape(-1, 2))
    np.save(args.cache / "pairs.npy", np.concatenate(rows))
    (args.cache / "texts.json").write_text(json.dumps(texts))
