"""The training text: sentences from openly licensed corpora, and cheap variations of them.

The teacher grades whatever text it is given, so variety costs nothing but its forward pass: near
pairs (one word exchanged, dropped, two sentences crossed) teach what a small change of words does
to the meaning, and captions built from WordNet's nouns and verbs teach short scenes.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
WORD = re.compile(r"[A-Za-z][a-z]+")
FILLED_IN = re.compile(r"{{.*?}}")  # by the reader, in a command
LATIN = {"bs", "ca", "da", "de", "es", "fr", "it", "nl", "no", "pl", "pt_BR", "pt_PT", "ro", "sv"}


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def sentences(corpus: Path) -> list[str]:
    """Distinct English sentences, questions, definitions, examples and some paragraphs."""
    texts: list[str] = []
    for row in rows(corpus / "openstax-ccby.en.jsonl"):
        if row["kind"] == "para":
            texts += SENTENCE_END.split(row["text"])
            texts.append(row["title"] + ": " + row["section"])
            if len(texts) % 8 == 0:
                texts.append(row["text"][:700])
        elif row["kind"] == "def":
            texts.append(f"{row['term']}: {row['text']}")
        else:
            texts += [row["question"], row["text"]]
    for row in rows(corpus / "wordnet-glosses.en.jsonl"):
        texts += row["examples"]
        texts += [f"{row['lemmas'][0]}: {row['definition']}", row["definition"]]
    for row in rows(corpus / "tldr-pages.multilingual.jsonl"):
        if row["lang"] == "en":
            texts.append(f"{row['command']}: {row['description']}")
            texts += [example["text"] for example in row["examples"]]
    clean = (re.sub(r"\s+", " ", text).strip() for text in texts)
    return list(dict.fromkeys(text for text in clean if 8 <= len(text) <= 300 or len(text) % 4 == 0))


def translations(corpus: Path) -> list[tuple[str, str]]:
    """What tldr-pages says of commands in languages that are not English, and the English of it.

    A translated page may be older than its original: what explains one command belongs together. In
    the file all English pages come first.
    """
    pages = list(rows(corpus / "tldr-pages.multilingual.jsonl"))
    explained: dict[tuple[str, str], dict[str, str]] = {}
    found: dict[str, str] = {}
    for page in pages:
        key = page["platform"], page["command"]
        said = {FILLED_IN.sub("", example["code"]): example["text"] for example in page["examples"]}
        said[""] = page["description"]  # of no single command
        if page["lang"] == "en":
            explained[key] = said
        elif page["lang"] in LATIN:
            found |= {
                text: explained[key][code] for code, text in said.items() if code in explained[key]
            }
    return [pair for pair in found.items() if pair[0] != pair[1]]


def paragraphs(corpus: Path, count: int, seed: int) -> list[str]:
    """Pairs side by side: what a paragraph is called, or asked, and the paragraph (300 to 1,200 letters)."""
    pairs = []
    for row in rows(corpus / "openstax-ccby.en.jsonl"):
        if row["kind"] == "para" and 300 <= len(row["text"]) <= 1200:
            pairs.append((f"{row['title']}: {row['section']}", row["text"]))
    chosen = random.Random(seed).sample(pairs, min(count, len(pairs)))
    return [text for pair in chosen for text in pair]


def banking_questions(train: Path | None) -> list[str]:
    """Banking77's training questions (CC BY 4.0), where given."""
    return [row["text"] for row in rows(train)] if train else []


class Variations:
    """Random near-duplicates of sentences, and captions."""

    def __init__(self, corpus: Path, texts: list[str], seed: int):
        self.random = random.Random(seed)
        count = Counter(word for text in texts for word in WORD.findall(text.lower()))
        self.siblings: dict[str, list[str]] = {}
        self.words: dict[str, list[str]] = {}
        for row in rows(corpus / "wordnet-glosses.en.jsonl"):
            lemmas = [w for w in row["lemmas"] if w.isalpha() and w.islower() and count[w] >= 20]
            self.words.setdefault(row["field"], []).extend(lemmas)
            for lemma in lemmas:
                self.siblings.setdefault(lemma, []).extend(w for w in lemmas if w != lemma)
        self.fields = {word: field for field, words in self.words.items() for word in words}

    def word_for(self, word: str) -> str:
        """A synonym, or a word of the same WordNet field."""
        low = word.lower()
        synonyms = self.siblings.get(low)
        if synonyms and self.random.random() < 0.5:
            return self.random.choice(synonyms)
        field = self.fields.get(low)
        return self.random.choice(self.words[field]) if field else word

    def vary(self, text: str, other: str) -> str:
        """The sentence with a little of it changed."""
        words = text.split(" ")
        kind = self.random.random()
        if kind < 0.6:
            for _ in range(self.random.choice((1, 1, 2))):
                places = [i for i, w in enumerate(words) if w.lower() in self.fields]
                if places:
                    i = self.random.choice(places)
                    words[i] = self.word_for(words[i])
        elif kind < 0.8:
            keep = self.random.uniform(0.6, 0.95)
            words = [w for w in words if self.random.random() < keep] or words
        else:
            tail = other.split(" ")
            words = words[: max(1, len(words) // 2)] + tail[len(tail) // 2 :]
        return " ".join(words)

    def caption(self) -> tuple[str, str]:
        """Two short scenes that share most of their words."""
        slots = {name: self.random.choice(words) for name, words in SCENE.items()}
        other = dict(slots)
        for name in self.random.sample(sorted(SCENE), self.random.choice((1, 1, 2, 3))):
            other[name] = self.random.choice(SCENE[name])
        first = self.random.choice(SHAPES)
        second = first if self.random.random() < 0.6 else self.random.choice(SHAPES)
        return first.format(**slots), second.format(**other)


SCENE = {
    name: words.split()
    for name, words in {
        "who": "man woman boy girl child baby person dog cat horse bird cow sheep monkey panda tiger "
        "lady guy kid player worker farmer cook chef soldier singer dancer teacher student doctor "
        "driver runner swimmer couple family crowd team policeman musician president",
        "verb": "playing riding eating cutting slicing holding carrying watching throwing catching "
        "pushing pulling washing cleaning painting cooking drinking kicking climbing opening closing "
        "breaking driving reading writing chasing feeding petting pouring peeling mixing frying "
        "building fixing buying selling using wearing touching facing following hitting",
        "doing": "running walking jumping sitting standing sleeping swimming dancing singing talking "
        "smiling laughing crying waiting fishing skating surfing skiing working fighting flying "
        "lying falling shouting resting exercising hiking kneeling posing",
        "what": "guitar piano flute ball bike bicycle motorcycle car truck bus train boat plane horse "
        "potato onion tomato carrot banana apple bread cake egg fish meat rice soup milk water coffee "
        "book newspaper phone camera computer laptop table chair bed couch bench door window box bag "
        "cup bottle knife hat shirt coat dress umbrella toy stick rope kite skateboard surfboard",
        "how": "black white red blue green yellow brown gray orange pink young old small big large "
        "little tall wet dirty empty new broken wooden colorful happy",
        "where": "street road park field beach river lake ocean pool house kitchen room office school "
        "store market restaurant station forest mountain garden yard stage city snow grass bridge "
        "building fence wall floor",
        "count": "Two Three Four Several Many Some",
    }.items()
}
SHAPES = (
    "A {who} is {verb} a {what}.",
    "A {how} {who} is {verb} a {what} in the {where}.",
    "The {who} is {verb} the {how} {what}.",
    "The {who} is not {verb} the {what}.",
    "{count} people are {doing} near a {where}.",
    "{count} {how} dogs are {doing} in the {where}.",
    "A {who} with a {how} {what} is {doing} by the {where}.",
    "A {who} and a {how} {what} in a {where}.",
    "There is a {how} {what} next to the {who}.",
    "A {how} {what} on a {what} in front of a {where}.",
    "A {who} {doing} on the {where} while {verb} a {what}.",
    "A {who} in a {how} shirt is {doing}.",
)


def training_texts(
    corpus: Path, banking: Path | None, variations: int, captions: int, seed: int
) -> list[str]:
    """All texts, near pairs standing side by side."""
    base = sentences(corpus) + banking_questions(banking)
    make = Variations(corpus, base, seed)
    short = [text for text in base if len(text) < 160]
    make.random.shuffle(base)
    texts = list(base)
    for text in make.random.sample(short, min(variations, len(short))):
        texts += [text, make.vary(text, make.random.choice(short))]
    for _ in range(captions):
        texts += make.caption()
    return texts
