"""How alike: sentence-transformers' four measures on floats, exact on bits and wide enough on int8."""

import numpy as np
import pytest

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError, quantize_embeddings
from mlx_embeddinggemma.similarity import all_pairs, each_pair

MEASURES = ["cosine", "dot", "euclidean", "manhattan"]
DIMENSIONS = (768, 512, 256, 128)


@pytest.fixture(scope="module")
def model(tiny) -> EmbeddingGemma:
    return EmbeddingGemma(tiny)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((30, 768), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def theirs(measure: str, pairwise: bool = False):
    util = pytest.importorskip("sentence_transformers.util", reason="needs the extra `reference`")
    function = util.SimilarityFunction
    return (function.to_similarity_pairwise_fn if pairwise else function.to_similarity_fn)(measure)


@pytest.mark.parametrize("scale", [1, 1e-3, 1e15])
@pytest.mark.parametrize("measure", MEASURES)
def test_floats_are_measured_as_there(vectors, measure, scale):
    a, b = vectors[:10] * np.float32(scale), vectors[10:17] * np.float32(2)
    for one, other in [(a, b), (a[0], b), (a, b[0]), (a[0], b[0]), (a[:0], b), (a, b[:0])]:
        mine = all_pairs(one, other, measure, DIMENSIONS)
        expected = theirs(measure)(one, other).numpy()
        assert mine.dtype == np.float32 and mine.shape == expected.shape
        np.testing.assert_allclose(mine, expected, rtol=2e-6, atol=2e-6 * max(scale, 1))
    for one, other in [(a[:7], b), (a[0], b[0]), (a[:1], b), (a[0], b)]:
        mine = each_pair(one, other, measure, DIMENSIONS)
        expected = theirs(measure, pairwise=True)(one, other).numpy()
        assert mine.dtype == np.float32 and mine.shape == expected.shape
        np.testing.assert_allclose(mine, expected, rtol=2e-6, atol=2e-6 * max(scale, 1))


def test_the_models_measure_is_used(model, vectors):
    other = EmbeddingGemma(model.folder)
    for measure in MEASURES:
        other.similarity_fn_name = measure
        assert other.similarity_fn_name == measure
        expected = all_pairs(vectors[:3], vectors[3:], measure, DIMENSIONS)
        assert (other.similarity(vectors[:3], vectors[3:]) == expected).all()
        expected = each_pair(vectors[:3], vectors[3:6], measure, DIMENSIONS)
        assert (other.similarity_pairwise(vectors[:3], vectors[3:6]) == expected).all()
    other.similarity_fn_name = None
    assert other.similarity_fn_name == "cosine"
    other.similarity_fn_name = pytest.importorskip("sentence_transformers").SimilarityFunction.EUCLIDEAN
    assert other.similarity_fn_name == "euclidean"


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[np.unpackbits(x.view("u1") ^ y.view("u1")).sum() for y in b] for x in a], int)


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("precision", ["binary", "ubinary"])
@pytest.mark.parametrize("measure", MEASURES)
def test_bits_rank_by_hamming_distance(model, vectors, precision, measure, dim):
    """And have the measure of the vectors of signs that they are."""
    bits = quantize_embeddings(vectors[:, :dim], precision)
    mine = all_pairs(bits[:10], bits[10:], measure, model.dimensions)
    h = hamming(bits[:10], bits[10:])
    for row, distances in zip(mine, h, strict=True):
        for i, j in np.ndindex(len(row), len(row)):
            assert np.sign(row[i] - row[j]) == np.sign(distances[j] - distances[i])
    signs = np.where(vectors[:, :dim] > 0, np.float32(1), np.float32(-1))
    np.testing.assert_allclose(mine, theirs(measure)(signs[:10], signs[10:]), rtol=1e-5, atol=1e-6)
    pairs = each_pair(bits[:10], bits[10:20], measure, model.dimensions)
    np.testing.assert_allclose(pairs, np.diag(mine), rtol=1e-6)
    assert all_pairs(bits[0], bits[0], "cosine", model.dimensions)[0, 0] == 1
    flipped = (bits[0].view(np.uint8) ^ 0xFF).view(bits.dtype)
    assert all_pairs(bits[0], flipped, "cosine", model.dimensions)[0, 0] == -1


def test_bits_of_many_vectors_are_unpacked_in_blocks(monkeypatch):
    bits = np.random.default_rng(0).integers(0, 256, (50, 96), np.uint8)
    expected = all_pairs(bits, bits[:31], "cosine", DIMENSIONS)
    monkeypatch.setattr("mlx_embeddinggemma.similarity.ROWS", 7)
    assert (all_pairs(bits, bits[:31], "cosine", DIMENSIONS) == expected).all()
    assert (expected == np.float32(768 - 2 * hamming(bits, bits[:31])) / np.float32(768)).all()


def test_bits_of_a_size_that_eight_does_not_divide():
    x = np.random.default_rng(0).standard_normal((9, 100), np.float32)
    for precision in ("binary", "ubinary"):
        bits = quantize_embeddings(x, precision)
        assert bits.shape == (9, 13)
        signs = np.where(x > 0, np.float32(1), np.float32(-1))
        assert np.allclose(all_pairs(bits, bits, "dot", (100,)), signs @ signs.T)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("measure", MEASURES)
def test_integers_are_wide_enough(vectors, precision, measure):
    """In float64, as integers are: 768 products of 255 and 255 have 26 bits."""
    q = quantize_embeddings(vectors, precision)
    mine = all_pairs(q[:10], q[10:], measure, DIMENSIONS)
    wide = q.astype(np.float64)
    np.testing.assert_allclose(mine, theirs(measure)(wide[:10], wide[10:]), rtol=1e-6)
    full = np.full((2, 768), 255 if precision == "uint8" else -128, q.dtype)
    assert all_pairs(full, full, "cosine", DIMENSIONS)[0, 0] == 1
    assert all_pairs(full, full, "dot", DIMENSIONS)[0, 0] == np.float32(768 * int(full[0, 0]) ** 2)
    pairs = each_pair(q[:10], q[10:20], measure, DIMENSIONS)
    np.testing.assert_allclose(pairs, np.diag(mine), rtol=1e-6)


def test_encoded_precisions_go_into_similarity(model):
    texts = [f"text number {i}" for i in range(12)]
    full = model.similarity(model.encode(texts), model.encode(texts))
    for precision in ("int8", "uint8", "binary", "ubinary"):
        q = model.encode(texts, precision=precision)
        mine = model.similarity(q, q)
        assert mine.shape == (12, 12) and np.allclose(np.diag(mine), 1)
        assert (mine.argmax(1) == full.argmax(1)).all()
        one = model.encode(texts, precision=precision, truncate_dim=128)
        assert model.similarity(one, one).shape == (12, 12)


PRECISIONS = {
    "float32": lambda x: x,
    "int8": lambda x: quantize_embeddings(x, "int8"),
    "uint8": lambda x: quantize_embeddings(x, "uint8"),
    "binary": lambda x: quantize_embeddings(x, "binary"),
    "ubinary": lambda x: quantize_embeddings(x, "ubinary"),
}


@pytest.mark.parametrize("a", PRECISIONS)
@pytest.mark.parametrize("b", PRECISIONS)
def test_mixed_precisions_are_refused(vectors, a, b):
    x, y = PRECISIONS[a](vectors), PRECISIONS[b](vectors)
    for function in (all_pairs, each_pair):
        if a == b:
            function(x, y, "cosine", DIMENSIONS)
            continue
        with pytest.raises(EmbeddingGemmaError, match="expected vectors of one (precision|size), got"):
            function(x, y, "cosine", DIMENSIONS)


@pytest.mark.parametrize("measure", MEASURES)
def test_unlike_sizes_are_one_line(vectors, measure):
    for function in (all_pairs, each_pair):
        with pytest.raises(EmbeddingGemmaError, match="one size, got 128 and 768 columns"):
            function(vectors[:, :128], vectors, measure, DIMENSIONS)
        with pytest.raises(EmbeddingGemmaError, match=r"as \(n, dim\) or \(dim,\), got shape"):
            function(vectors[None], vectors, measure, DIMENSIONS)
        with pytest.raises(EmbeddingGemmaError, match=r"got shape \(\)"):
            function(vectors, 3.0, measure, DIMENSIONS)
    with pytest.raises(EmbeddingGemmaError, match="as many vectors on both sides, got 3 and 4"):
        each_pair(vectors[:3], vectors[:4], measure, DIMENSIONS)


def test_integers_that_may_be_either_are_refused():
    either = np.zeros((2, 128), np.int8)
    with pytest.raises(EmbeddingGemmaError, match="neither clearly packed bits nor clearly quantized"):
        all_pairs(either, either, "cosine", (1024, 512, 256, 128))
    with pytest.raises(EmbeddingGemmaError, match="int8 vectors of 100 columns are neither"):
        all_pairs(either[:, :100], either[:, :100], "cosine", DIMENSIONS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_vector_of_zeros_is_like_nothing(vectors, dtype):
    zero = np.zeros((1, 768), dtype)
    assert (all_pairs(zero, vectors, "cosine", DIMENSIONS) == 0).all()
    assert (theirs("cosine")(zero.astype(np.float32), vectors).numpy() == 0).all()
    assert (each_pair(zero, vectors, "cosine", DIMENSIONS) == 0).all()
    assert (
        all_pairs(np.zeros((1, 768), np.int8), np.ones((2, 768), np.int8), "cosine", DIMENSIONS) == 0
    ).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_no_number_is_named(vectors, measure, bad):
    broken = vectors.copy()
    broken[3, 5] = bad
    for function in (all_pairs, each_pair):
        with pytest.raises(EmbeddingGemmaError, match="vector 3 of the first ones is NaN or infinite"):
            function(broken, vectors, measure, DIMENSIONS)
        with pytest.raises(EmbeddingGemmaError, match="vector 3 of the second ones is NaN"):
            function(vectors, broken, measure, DIMENSIONS)


def test_large_and_small_numbers_keep_their_cosine(vectors):
    for scale in (1e-38, 1e-30, 1e30, 1e38):
        mine = all_pairs(vectors * np.float32(scale), vectors, "cosine", DIMENSIONS)
        assert np.abs(mine - vectors @ vectors.T).max() < 1e-5


def test_arrays_of_every_library_are_vectors(vectors):
    import mlx.core as mx

    torch = pytest.importorskip("torch", reason="needs the extra `reference`")
    expected = all_pairs(vectors[:3], vectors, "cosine", DIMENSIONS)
    for same in (
        vectors[:3].tolist(),
        list(vectors[:3]),
        tuple(vectors[:3]),
        vectors[:3].astype(np.float64),
        np.asfortranarray(vectors[:3]),
        mx.array(vectors[:3]),
        [mx.array(x) for x in vectors[:3]],
        torch.tensor(vectors[:3]),
        torch.tensor(vectors[:3]).requires_grad_(),
        list(torch.tensor(vectors[:3])),
    ):
        assert np.abs(all_pairs(same, vectors, "cosine", DIMENSIONS) - expected).max() < 1e-6
    for rounded in (
        mx.array(vectors[:3]).astype(mx.bfloat16),
        torch.tensor(vectors[:3]).bfloat16(),
        vectors[:3].astype(np.float16),
    ):
        assert np.abs(all_pairs(rounded, vectors, "cosine", DIMENSIONS) - expected).max() < 1e-2
    bits = quantize_embeddings(vectors, "binary")
    expected = all_pairs(bits, bits, "cosine", DIMENSIONS)
    assert (all_pairs(torch.tensor(bits), mx.array(bits), "cosine", DIMENSIONS) == expected).all()
    assert (all_pairs(list(bits), bits, "cosine", DIMENSIONS) == expected).all()


@pytest.mark.parametrize(
    "bad", ["text", ["a", "b"], [[1.0], [1.0, 2.0]], None, {}, [None], object()], ids=repr
)
def test_what_is_no_vectors_is_one_line(vectors, bad):
    for function in (all_pairs, each_pair):
        with pytest.raises(EmbeddingGemmaError) as raised:
            function(bad, vectors, "cosine", DIMENSIONS)
        assert "\n" not in str(raised.value) and "first" in str(raised.value)


def test_quantizing_says_what_it_cannot(vectors):
    st = pytest.importorskip("sentence_transformers.util", reason="needs the extra `reference`")
    for precision in ("int8", "uint8"):
        mine = quantize_embeddings(vectors[:5], precision, calibration_embeddings=vectors)
        expected = st.quantize_embeddings(vectors[:5], precision, calibration_embeddings=vectors)
        assert mine.dtype == expected.dtype and (mine == expected).all()
        with pytest.raises(EmbeddingGemmaError, match="one text has none"):
            quantize_embeddings(vectors[0], precision)
        with pytest.raises(EmbeddingGemmaError, match=r"shape \(2, 768\), got float64 \(2, 3\)"):
            quantize_embeddings(vectors, precision, np.zeros((2, 3)))
        assert quantize_embeddings(vectors[:0], precision).shape == (0, 768)
    ranges = np.stack([vectors.min(0), vectors.max(0)])
    one = quantize_embeddings(vectors[0], "int8", ranges)
    assert (one == quantize_embeddings(vectors, "int8", ranges)[0]).all()
    with pytest.raises(EmbeddingGemmaError, match="expected vectors as floats"):
        quantize_embeddings(quantize_embeddings(vectors, "int8"), "binary")
    for precision in ("float16", "", None, ["int8"], np.array(["int8"]), 8):
        with pytest.raises(EmbeddingGemmaError, match="expected precision float32, int8"):
            quantize_embeddings(vectors, precision)


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_no_texts_have_vectors_of_the_right_width(model, dim):
    for precision in ("float32", "int8", "uint8", "binary", "ubinary"):
        vectors = model.encode([], precision=precision, truncate_dim=dim)
        width = dim // 8 if "binary" in precision else dim
        assert vectors.shape == (0, width)
        assert vectors.dtype == model.encode(["a", "b"], precision=precision, truncate_dim=dim).dtype
        assert model.similarity(vectors, vectors).shape == (0, 0)
    assert model.encode([], convert_to_tensor=True).shape == (0, 768)
    assert model.encode([], return_mlx=True).shape == (0, 768)
    assert model.encode([], convert_to_numpy=False) == []
    assert model.encode([], output_value="token_embeddings") == []
    assert model.tokenize([]) == model.count_tokens([]) == []
