"""What the student learns: where each text's vector should lie, and the loss that says how far it is off."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.config import MATRYOSHKA
from mlx_embeddinggemma.finetune.losses import Loss, Targets, unit

COMPONENTS_SHARE = 0.7  # of a target's squared length that lies in the first half, the components
PARTNERS = 10.0  # weight of the partners' cosines in the loss
ALL_PAIRS = 10.0  # and of those of any two texts
EVENED, LENGTHENED = 0.08, 1.2  # what `shaped` does; 0 and 1 would change nothing


def layout(vectors: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's principal components (384, 384), largest first, and the map (384, 768) from
    its vectors to the targets, which keeps cosines."""
    sample = vectors[generator.choice(len(vectors), 50_000, replace=False)].astype(np.float32)
    components = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    rotation, _ = np.linalg.qr(generator.standard_normal((384, 384)))
    halves = components * COMPONENTS_SHARE**0.5, rotation * (1 - COMPONENTS_SHARE) ** 0.5
    return components, np.concatenate(halves, axis=1).astype(np.float32)


def laid_out(student: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The map (384, 768) nearest to how a trained student lays the teacher's vectors out.

    Orthogonal Procrustes (Schoenemann 1966): of all maps that keep cosines the one of least squares.

    Args:
        student: (n, 768) its vectors.
        vectors: (n, 384) the teacher's of the same texts.
    """
    left, _, right = np.linalg.svd(vectors.astype(np.float32).T @ student, full_matrices=False)
    return left @ right


def shaped(student: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The map (768, 768) of a student's vectors to ones whose cosines follow people's judgements better.

    Whitening (arXiv 2103.15316) divides by the standard deviation along each principal component about
    the mean; this divides by its power `EVENED`. What all vectors have in common, the direction of their
    mean, becomes `LENGTHENED` times as long.

    Args:
        student: (n, 768) its vectors of any texts.
        spread: (384, 768) the map from the teacher's vectors to where the student's lie.
    """
    vectors = student @ spread.T
    mean = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    along = np.outer(mean, mean)
    about = vectors - vectors @ along
    variances, components = np.linalg.eigh(about.T @ about / len(about))
    variances = np.maximum(variances / np.median(variances), 0.02)  # none along the mean
    evened = components * variances ** (-EVENED / 2) @ components.T
    across = np.eye(len(spread)) - along
    found: np.ndarray = spread.T @ (across @ evened @ across + LENGTHENED * along) @ spread
    return found


def distillation(spread: np.ndarray) -> Loss:
    """Distance to the teacher's direction, between cosines of partners and between all cosines.

    Hardly any two texts of a batch are related, so that the similarity matrix alone would say little
    about how much alike two like texts are: the partners' cosines count again.
    """
    to_target = mx.array(spread)

    def distill(columns: Sequence[mx.array], targets: Targets) -> mx.array:
        size = columns[0].shape[-1]
        assert targets.teacher is not None
        target = unit((targets.teacher @ to_target)[..., :size])
        a, b = unit(columns[0]), unit(columns[1])
        s, t = mx.concatenate([a, b]), mx.concatenate([target[:, 0], target[:, 1]])
        apart = (a * b).sum(-1) - (target[:, 0] * target[:, 1]).sum(-1)
        value = (1 - (s * t).sum(-1)).mean() + PARTNERS * apart.square().mean()
        value = value + ALL_PAIRS * (s @ s.T - t @ t.T).square().mean()
        return value / len(MATRYOSHKA)

    return distill
