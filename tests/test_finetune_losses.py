"""The losses against sentence-transformers', on the same vectors: values and gradients."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_embeddinggemma.finetune import losses
from mlx_embeddinggemma.finetune.losses import Targets

torch = pytest.importorskip("torch")
st = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

B, D = 12, 256
rng = np.random.default_rng(0)
SCORES = rng.choice([0.0, 0.2, 0.5, 0.5, 0.9, 1.0], B).astype(np.float32)
TEACHER = rng.standard_normal((B, 2, D)).astype(np.float32)


def columns(n: int) -> list[np.ndarray]:
    """Correlated columns, so that no similarity is near 0 and no softmax is flat."""
    common = rng.standard_normal((B, D))
    return [(common + 0.7 * rng.standard_normal((B, D))).astype(np.float32) for _ in range(n)]


class Given(torch.nn.Module):
    """Stands where a loss wants its model: hands out the vectors that came as features."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return D


def theirs(loss, arrays, labels=None):
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = loss(
        [{"vectors": leaf} for leaf in leaves], None if labels is None else torch.tensor(labels)
    )
    value = sum(value.values()) if isinstance(value, dict) else value
    value.backward()
    return value.item(), [leaf.grad.numpy() for leaf in leaves]


def ours(loss, arrays, targets=None):
    if targets is None:
        targets = Targets()
    value, grads = mx.value_and_grad(lambda x: loss(x, targets))([mx.array(a) for a in arrays])
    return value.item(), [np.array(g) for g in grads]


def assert_equal(a, b, tolerance=1e-5):
    assert a[0] == pytest.approx(b[0], abs=tolerance)
    for x, y in zip(a[1], b[1], strict=True):
        assert np.abs(x - y).max() < tolerance


@pytest.mark.parametrize("hardness", [None, "in_batch_negatives", "hard_negatives", "all_negatives"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_multiple_negatives_ranking_is_sentence_transformers(n, hardness):
    arrays = columns(n)
    mine = losses.build("multiple_negatives_ranking", size=D, hardness=hardness, nested=False)
    strength = 5.0 if hardness else 0.0
    reference = st.MultipleNegativesRankingLoss(
        Given(), hardness_mode=hardness, hardness_strength=strength
    )
    assert_equal(ours(mine, arrays), theirs(reference, arrays))


@pytest.mark.parametrize("name", ["multiple_negatives_ranking", "cosent"])
def test_the_scale_a_run_asks_for_is_the_losses(name):
    arrays = columns(2)
    kind = {"multiple_negatives_ranking": "MultipleNegativesRankingLoss", "cosent": "CoSENTLoss"}[name]
    mine = losses.build(name, size=D, scale=7.0, nested=False)
    reference = getattr(st, kind)(Given(), scale=7.0)
    targets = Targets(scores=mx.array(SCORES))
    assert_equal(ours(mine, arrays, targets), theirs(reference, arrays, SCORES))


def test_the_regulariser_is_added_with_its_weight():
    arrays = [array + np.float32(1) for array in columns(2)]
    plain, regular, both = (
        ours(loss, arrays)[0]
        for loss in (
            losses.multiple_negatives_ranking,
            lambda x, _: losses.spread_out(x),
            losses.build("multiple_negatives_ranking", size=D, spread=0.5, nested=False),
        )
    )
    assert both == pytest.approx(plain + 0.5 * regular, abs=1e-5)


def test_cosent_is_sentence_transformers():
    arrays = columns(2)
    assert_equal(
        ours(losses.cosent, arrays, Targets(scores=mx.array(SCORES))),
        theirs(st.CoSENTLoss(Given()), arrays, SCORES),
    )


def test_cosine_similarity_is_sentence_transformers():
    arrays = columns(2)
    assert_equal(
        ours(losses.cosine_similarity, arrays, Targets(scores=mx.array(SCORES))),
        theirs(st.CosineSimilarityLoss(Given()), arrays, SCORES),
    )


def test_embedding_matching_is_sentence_transformers():
    arrays = columns(2)
    assert_equal(
        ours(losses.embedding_matching, arrays, Targets(teacher=mx.array(TEACHER))),
        theirs(st.EmbedDistillLoss(Given(), distance_metric="cosine"), arrays, TEACHER),
    )


def test_spread_out_is_sentence_transformers():
    arrays = [array + np.float32(1) for array in columns(2)]  # all lean one way
    reference = st.GlobalOrthogonalRegularizationLoss(Given(), mean_weight=0, aggregation="sum")
    mine = ours(lambda x, _: losses.spread_out(x), arrays)
    assert mine[0] > 0.1
    assert_equal(mine, theirs(reference, arrays))


def test_similarity_matching_is_the_squared_difference_of_the_matrices():
    arrays = columns(2)
    smaller = TEACHER[..., :40]

    def reference(features, _):
        def similarities(parts):
            x = torch.nn.functional.normalize(torch.cat(parts), dim=-1)
            return x @ x.T

        teacher = [torch.tensor(smaller[:, i]) for i in range(2)]
        return (similarities([f["vectors"] for f in features]) - similarities(teacher)).square().mean()

    assert_equal(
        ours(losses.similarity_matching, arrays, Targets(teacher=mx.array(smaller))),
        theirs(reference, arrays),
    )


@pytest.mark.parametrize("name", ["multiple_negatives_ranking", "cosent", "embedding_matching"])
def test_matryoshka_is_sentence_transformers(name):
    arrays = columns(2)
    inner, labels = {
        "multiple_negatives_ranking": (st.MultipleNegativesRankingLoss, None),
        "cosent": (st.CoSENTLoss, SCORES),
        "embedding_matching": (st.EmbedDistillLoss, TEACHER),
    }[name]
    given = Given()
    reference = st.MatryoshkaLoss(given, inner(given), matryoshka_dims=[256, 128])
    targets = Targets(scores=mx.array(SCORES), teacher=mx.array(TEACHER))
    assert_equal(ours(losses.build(name, size=D), arrays, targets), theirs(reference, arrays, labels))


def test_matryoshka_goes_over_the_four_published_dimensions():
    seen = []
    loss = losses.matryoshka(
        lambda c, _: seen.append(c[0].shape[1]) or mx.array(0.0), (768, 512, 256, 128)
    )
    loss([mx.zeros((2, 768))] * 2, Targets())
    assert seen == [768, 512, 256, 128]


def test_a_hidden_candidate_is_as_if_it_were_not_there():
    anchors, positives, negatives = columns(3)
    hidden = np.zeros((B, 2 * B), bool)
    hidden[:, B:] = True
    loss = losses.multiple_negatives_ranking
    masked = ours(loss, [anchors, positives, negatives], Targets(hidden=mx.array(hidden)))
    without = ours(loss, [anchors, positives])
    assert masked[0] == pytest.approx(without[0], abs=1e-6)
    assert np.abs(masked[1][2]).max() == 0
    assert np.abs(masked[1][0] - without[1][0]).max() < 1e-6


def test_a_zero_vector_gives_a_finite_gradient():
    arrays = columns(2)
    arrays[0][3] = 0
    value, grads = ours(losses.multiple_negatives_ranking, arrays)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
