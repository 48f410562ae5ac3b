"""What the student settles on: its own float vectors, and a little of the original's for a translation.

Rounding shall move no vector, and on English alone those of other languages would drift. A translation's
leans towards its original's: multilingual distillation (arXiv 2004.09813), in a dose that English bears.
"""

import random
from collections.abc import Sequence

from mlx_embeddinggemma import EmbeddingGemma
from mlx_embeddinggemma.finetune.data import Dataset, Row
from mlx_embeddinggemma.prompts import PUBLISHED

ENGLISH, TRANSLATED = 38_400, 9_600  # texts
ORIGINALS_SHARE = 0.15  # in a translation's vector


def dataset(
    student: EmbeddingGemma, texts: Sequence[str], translations: Sequence[tuple[str, str]], seed: int
) -> Dataset:
    """Texts, most after a prompt, and their vectors, for `finetune`.

    Args:
        student: in floats.
        texts: in English, to draw from.
        translations: and their originals, to draw from.
        seed: of what is drawn.
    """
    rng = random.Random(seed)
    prompts = ["", *sorted(set(PUBLISHED.values()))]
    english = [rng.choice(prompts) + text for text in rng.sample(texts, ENGLISH)]
    before = [rng.choice(prompts) for _ in range(TRANSLATED)]
    drawn = [*zip(before, rng.sample(translations, TRANSLATED), strict=True)]
    translated = [prompt + text for prompt, (text, _) in drawn]
    originals = student.encode([prompt + text for prompt, (_, text) in drawn])
    means = (1 - ORIGINALS_SHARE) * student.encode(translated) + ORIGINALS_SHARE * originals
    vectors = [*student.encode(english), *means]
    rows = [Row((text,), vector=to) for text, to in zip(english + translated, vectors, strict=True)]
    return Dataset("vectors", rows)
