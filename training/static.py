"""The first stage: the vocabulary table and the head learn alone, the layers left out.

A text's vector is then the mean of its pieces' rows: a step costs next to nothing.
"""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import sentencepiece as spm

from mlx_embeddinggemma import runtime
from mlx_embeddinggemma.finetune.losses import Loss, Targets

PAIRS, RATE = 512, 2e-3


def vectors(
    weights: dict[str, mx.array], tokens: mx.array, owner: mx.array, lengths: mx.array
) -> mx.array:
    """(texts, 768) of all tokens in a row, each with the number of its text."""
    rows = mx.fast.rms_norm(weights["embed_tokens.weight"][tokens], 1 + weights["norm.weight"], 1e-6)
    y = mx.zeros((len(lengths), rows.shape[1])).at[owner].add(rows) / lengths[:, None]
    return y @ weights["dense.0.weight"].T @ weights["dense.1.weight"].T


def train(
    weights: dict[str, mx.array],
    pieces: spm.SentencePieceProcessor,
    draw: Callable[[np.random.Generator, int], tuple[list[str], np.ndarray]],
    loss: Loss,
    steps: int,
    seed: int,
) -> dict[str, mx.array]:
    """The weights after `steps` of Adam, the rate falling linearly.

    Args:
        weights: from `student.static_weights`.
        pieces: the tokenizer.
        draw: so many pairs of texts, side by side, and their teacher's vectors (pairs, 2, 384).
        loss: of the first texts, the second texts and the teacher.
        steps: updates.
        seed: of the draws.
    """
    runtime.prepare()
    runtime.prepare_training()
    generator = np.random.default_rng(seed)
    optimizer = optim.Adam(learning_rate=RATE, bias_correction=True)

    def value_of(
        batch: tuple[mx.array, ...], targets: Targets, weights: dict[str, mx.array]
    ) -> mx.array:
        y = vectors(weights, *batch)
        return loss([y[::2], y[1::2]], targets)

    for step in range(steps):
        texts, teacher = draw(generator, PAIRS)
        ids = [[pieces.bos_id(), *row, pieces.eos_id()] for row in pieces.encode(texts)]
        lengths = np.array([len(row) for row in ids])
        owner = np.repeat(np.arange(len(ids)), lengths)
        batch = tuple(map(mx.array, (np.concatenate(ids), owner, lengths)))
        targets = Targets(teacher=mx.array(teacher.astype(np.float32)))
        value, gradient = mx.value_and_grad(partial(value_of, batch, targets))(weights)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.learning_rate = RATE * min(1, (step + 1) / (0.05 * steps), (steps - step) / steps)
        weights = optimizer.apply_gradients(gradient, weights)
        mx.eval(weights, optimizer.state, value)
        if step % 50 == 0 or step == steps - 1:
            print(f"static step {step} loss {value.item():.4f}", flush=True)
    return weights
