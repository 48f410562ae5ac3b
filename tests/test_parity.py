"""The network equals transformers' on every length, layer by layer, and the comparison notices faults.

Tolerances: two correct float32 implementations of the well-conditioned checkpoints differ by 1e-7 to
3e-7 in a unit vector's worst component.
"""

from dataclasses import replace

import checkpoints
import faults
import mlx.core as mx
import numpy as np
import pytest
from vectors import UNIT

from mlx_embeddinggemma import attention, blas, layout, model, runtime
from mlx_embeddinggemma import checkpoint as ckpt
from mlx_embeddinggemma.batching import pad
from mlx_embeddinggemma.linear import Linear
from mlx_embeddinggemma.loading import load_model

pytest.importorskip("torch", reason="needs the extra `reference`: torch and transformers")
reference = pytest.importorskip("reference")

LENGTHS = (1, 2, 16, 255, 256, 257, 258, 512, 513, 514, 1024, 2048)
LAYER = 2e-5  # relative error of a layer's output


@pytest.fixture(scope="module", autouse=True)
def _fast_blas():
    blas.use_openblas()


def load(folder) -> model.Model:
    return load_model(ckpt.open_checkpoint(folder), mx.float32)


def texts_of(lengths, vocab_size) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(4, vocab_size, n).tolist() for n in lengths]


def run(network, ids) -> np.ndarray:
    return np.array(network(*pad(ids)))


def worst(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max())


@pytest.fixture(scope="module")
def tiny_reference(tiny):
    return reference.load(tiny)


@pytest.mark.parametrize("length", LENGTHS)
def test_tiny_equals_transformers_alone(machine, tiny, tiny_reference, length):
    network, (theirs, head) = load(tiny), tiny_reference
    ids = texts_of([length], 512)
    assert worst(run(network, ids), reference.vectors(theirs, head, ids)) <= UNIT


def test_tiny_equals_transformers_in_a_padded_batch(machine, tiny, tiny_reference):
    network, (theirs, head) = load(tiny), tiny_reference
    ids = texts_of(LENGTHS, 512)
    expected = np.concatenate([reference.vectors(theirs, head, [row]) for row in ids])
    assert worst(run(network, ids), expected) <= UNIT


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 2, "num_attention_heads": 4},
        {"sliding_window": 32, "num_hidden_layers": 7},
        {"head_dim": 128, "query_pre_attn_scalar": 100, "rms_norm_eps": 1e-5},
        {"rope_theta": 5e5, "rope_local_base_freq": 5e3, "_sliding_window_pattern": 2},
    ],
    ids=["two key-value heads", "narrow window", "other head size", "other rope"],
)
def test_other_shapes_equal_transformers(machine, tmp_path, change):
    folder = checkpoints.write_tiny(tmp_path / "tiny", **change)
    theirs, head = reference.load(folder)
    for ids in (texts_of([3, 40, 100], 512), texts_of([300], 512)):
        expected = np.concatenate([reference.vectors(theirs, head, [row]) for row in ids])
        assert worst(run(load(folder), ids), expected) <= UNIT


FAULTS = {
    "window of 255": lambda p, n: p(n, "_config", replace(n._config, window_radius=255)),
    "window of 257": lambda p, n: p(n, "_config", replace(n._config, window_radius=257)),
    "no window": lambda p, n: p(n, "_config", replace(n._config, window_radius=4096)),
    "causal mask": lambda p, n: p(model, "spans", faults.causal),
    "no dense layer": lambda p, n: (n.dense.clear(), p(n, "_head", ())),
    "w instead of 1 + w": lambda p, n: n.layers[3].update(
        {"input_layernorm": {"weight": n.layers[3].input_layernorm.weight - 1}}
    ),
    "swapped rope bases": lambda p, n: p(
        n,
        "_config",
        replace(n._config, rope_theta={"full_attention": 1e4, "sliding_attention": 1e6}),
    ),
    "padding seen": lambda p, n: p(model, "spans", faults.unpadded),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(tiny, monkeypatch, fault):
    network = load(tiny)
    theirs, head = reference.load(tiny)
    ids = texts_of([300, 280], 512)
    expected = np.concatenate([reference.vectors(theirs, head, [row]) for row in ids])
    FAULTS[fault](monkeypatch.setattr, network)
    ours = run(network, ids)
    if fault == "no dense layer":
        assert ours.shape != expected.shape
    else:
        assert worst(ours, expected) > 10 * UNIT


@pytest.mark.slow
def test_full_size_equals_transformers(full_mild):
    """Alone and in a mixed padded batch, at every length around the window."""
    network = load(full_mild)
    theirs, head = reference.load(full_mild)
    ids = texts_of(LENGTHS, 262_144)
    expected = np.concatenate([reference.vectors(theirs, head, [row]) for row in ids])
    alone = np.concatenate([run(network, [row]) for row in ids])
    short = run(network, ids[:9])
    rows = [(n, worst(a, e)) for n, a, e in zip(LENGTHS, alone, expected, strict=True)]
    print("\ntokens  max abs difference\n" + "\n".join(f"{n:6}  {d:.1e}" for n, d in rows))
    assert max(d for _, d in rows) <= UNIT
    assert worst(short, expected[:9]) <= UNIT
    assert worst(run(network, ids[8:][::-1])[::-1], expected[8:]) <= UNIT


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "full_mild"])
def test_bfloat16_stays_near_float32_on_a_gpu(size, request):
    """Cosines at every length around the window, alone and in a mixed padded batch."""
    if not runtime.on_gpu():
        pytest.skip("needs a GPU: on the CPU bfloat16 weights compute in float32")
    opened = ckpt.open_checkpoint(request.getfixturevalue(size))
    exact, half = (load_model(opened, dtype) for dtype in (mx.float32, mx.bfloat16))
    ids = texts_of([1] * 8 + list(LENGTHS), opened.config.vocab_size)
    expected = np.concatenate([run(exact, [row]) for row in ids])
    alone = np.concatenate([run(half, [row]) for row in ids])
    cosines = [(alone * expected).sum(axis=1), (run(half, ids) * expected).sum(axis=1)]
    rows = zip(map(len, ids), *cosines, strict=True)
    print("\ntokens  1 - cosine alone, in a batch")
    print("\n".join(f"{n:6}  {1 - a:.1e}  {1 - b:.1e}" for n, a, b in rows))
    assert np.min(cosines) >= 0.9995


@pytest.mark.slow
def test_every_layer_equals_transformers_on_real_statistics(machine, full_real):
    """Each layer gets the reference's own input, so that a failure names its layer."""
    network = load(full_real)
    theirs, _ = reference.load(full_real)
    config = network._config
    for length in (16, 300, 600):
        ids = texts_of([length], 262_144)[0]
        trace = reference.trace(theirs, ids)
        lengths = np.array([length])
        radius = {"sliding_attention": config.window_radius, "full_attention": None}
        parts = runtime.parts(1, length)
        for i, kind in enumerate(config.layer_types):
            out = network.layers[i](
                mx.array(trace.entered[i]),
                [model.rope_table(p, config.head_dim, config.rope_theta[kind]) for p in parts],
                [attention.spans(lengths, length, radius[kind], p) for p in parts],
            )
            error = np.linalg.norm(np.array(out) - trace.left[i]) / np.linalg.norm(trace.left[i])
            assert error <= LAYER, f"layer {i} at {length} tokens: relative error {error:.1e}"
        normed = np.array(network.norm(mx.array(trace.left[-1])))
        assert np.linalg.norm(normed - trace.normed) <= LAYER * np.linalg.norm(trace.normed)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_equal_transformers_with_the_same_rounded_weights(machine, tiny, tmp_path, bits):
    """Quantized weights, table included, compute what their dequantized values compute."""
    packed = checkpoints.as_mlx_community(tiny, tmp_path / "packed", bits=bits)
    network = load(packed)
    checkpoint = ckpt.open_checkpoint(packed)
    rounded = {}
    for name, value in checkpoints.all_tensors(tiny).items():
        path = name.removesuffix(".weight")
        if path in checkpoint.quantization:
            parts = [checkpoint.tensors[f"{path}.{n}"].read() for n in ("weight", "scales", "biases")]
            value = np.array(mx.dequantize(*parts, **checkpoint.quantization[path]))
        rounded[name] = value
    head = [rounded.pop("dense.0.weight"), rounded.pop("dense.1.weight")]
    floats = tmp_path / "floats"
    checkpoints.write_layout(floats, checkpoints.config(), rounded, head)
    theirs, head = reference.load(floats)
    ids = texts_of([5, 257, 300], 512)
    expected = np.concatenate([reference.vectors(theirs, head, [row]) for row in ids])
    assert worst(run(network, ids), expected) <= UNIT


def test_every_matrix_of_the_network_is_in_the_layout(tiny):
    """`layout` names exactly the parts that the network stacks."""
    checkpoint = ckpt.open_checkpoint(tiny)
    network = load(tiny)
    linears = [p for p, m in network.named_modules() if isinstance(m, Linear)]
    named = {part for path in linears for part in layout.parts(path)} | {layout.TABLE}
    assert named == set(layout.matrices(checkpoint.config, checkpoint.dense))
