"""Banking77: 13,083 questions to a bank, 77 intents (Casanueva et al. 2020, CC BY 4.0).

python banking77.py download FOLDER              # train.jsonl and test.jsonl
python banking77.py score FOLDER MODEL [MODEL]   # accuracy on test.jsonl, by model and dimension
"""

import argparse
import csv
import io
import json
import urllib.request
from pathlib import Path

import numpy as np

from mlx_embeddinggemma import EmbeddingGemma

SOURCE = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data/"


def download(folder: Path) -> None:
    """Writes both splits, a question and its intent a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with urllib.request.urlopen(f"{SOURCE}{split}.csv") as response:
            rows = csv.DictReader(io.TextIOWrapper(response, encoding="utf-8", newline=""))
            lines = [json.dumps({"text": row["text"], "label": row["category"]}) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def score(folder: Path, models: list[str]) -> None:
    """Prints how often a test question is nearest to the mean vector of its intent's training ones."""
    train, test = (
        [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "test")
    )
    names = sorted({row["label"] for row in train})
    label = {name: i for i, name in enumerate(names)}
    known = np.array([label[row["label"]] for row in train])
    gold = np.array([label[row["label"]] for row in test])
    for name in models:
        model = EmbeddingGemma(name)
        seen, asked = (
            model.encode([row["text"] for row in rows], prompt_name="Classification")
            for rows in (train, test)
        )
        cells = []
        for dim in (model.dimensions[0], 128):
            short = seen[:, :dim] / np.linalg.norm(seen[:, :dim], axis=1, keepdims=True)
            means = np.stack([short[known == i].mean(axis=0) for i in range(len(names))])
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            right = ((asked[:, :dim] @ means.T).argmax(axis=1) == gold).mean()
            cells.append(f"{dim}: {100 * right:.2f}")
        print(name, *cells, sep="  ", flush=True)


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("download", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*")
    args = parser.parse_args()
    if args.command == "download":
        download(args.folder)
    else:
        score(args.folder, args.models)


if __name__ == "__main__":
    main()
