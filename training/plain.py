"""Texts for quantization-aware training: rows for `finetune`, each after one of the prompts or none.

    python training/plain.py --cache CACHE --corpus CORPUS --tasks TASKS --count 64000 --output FOLDER

Writes train.jsonl and held-out.jsonl (1,000 rows). The texts are those that `train_demo.py` left in its
cache, OpenStax's paragraphs, and tldr-pages in all their languages, so that the pieces that English
hardly uses are seen too. Texts of any task are left out.
"""

import argparse
import json
import random
from pathlib import Path

import real
from train_demo import held_out

from mlx_embeddinggemma import EmbeddingGemma

HELD_OUT = 1000
NAMES = ("query", "document", "STS", "Classification", "Clustering", None)


def column(path: Path, name: str) -> list[str]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return sorted({row[name][:400] for row in rows if isinstance(row.get(name), str)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="of train_demo.py")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the training corpus")
    parser.add_argument("--tasks", type=Path, help="task files, whose texts are left out")
    parser.add_argument("--count", type=int, default=64_000)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    trained_on = sorted(set(json.loads((args.cache / "texts.json").read_text())))
    shares = {  # of the rows
        0.8: trained_on,
        0.08: column(args.corpus / "openstax-ccby.en.jsonl", "text"),
        0.12: column(args.corpus / "tldr-pages.multilingual.jsonl", "description"),
    }
    unwanted = held_out(args.tasks)
    prompts = EmbeddingGemma("demo").prompts
    rows = []
    for share, texts in shares.items():
        drawn = rng.sample(texts, min(len(texts), round(share * (args.count + HELD_OUT))))
        known = [text for text in drawn if text.strip() and real.key(text) not in unwanted]
        rows += [{"text": prompts.get(rng.choice(NAMES), "") + text} for text in known]
    rng.shuffle(rows)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[HELD_OUT:]), ("held-out", rows[:HELD_OUT])):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (args.output / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{args.output}: {len(rows) - HELD_OUT:,} rows to train on, {HELD_OUT:,} held out")


if __name__ == "__main__":
    main()
