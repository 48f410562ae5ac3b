"""Gradients of the network against PyTorch's, and what may learn."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_embeddinggemma import layout
from mlx_embeddinggemma.batching import pad
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.finetune.network import tensors, trainable

rng = np.random.default_rng(3)
# Longer than the window's 257, longer than a block of queries, and padding beside them.
IDS = [[2, *rng.integers(4, 500, n).tolist(), 1] for n in (3, 600, 40, 17)]
SHORT = [row for row in IDS if len(row) < 100]
WEIGHTS = rng.standard_normal((len(IDS), 768)).astype(np.float32)


def gradients(model, rows=SHORT):
    """Of a fixed linear function of the unit vectors, by the checkpoint's names."""
    ids, lengths = pad(rows)

    def loss(parameters):
        model.update(parameters)
        return (model(ids, lengths) * mx.array(WEIGHTS[: len(rows)])).sum()

    parameters = model.trainable_parameters()
    grads = dict(tree_flatten(mx.grad(loss)(parameters)))
    model.update(parameters)
    found = {}
    for name, grad in grads.items():
        path, _, kind = name.rpartition(".")
        parts = layout.parts(path)
        if len(parts) == 1 or kind != "weight":
            found[name] = np.array(grad)
            continue
        module = dict(model.named_modules())[path]
        for part, piece in zip(parts, mx.split(grad, module._ends), strict=True):
            found[f"{part}.weight"] = np.array(piece)
    return found


def torch_gradients(folder):
    reference = pytest.importorskip("reference")
    import torch

    model, head = reference.load(folder)
    head = [weight.requires_grad_() for weight in head]
    ids, lengths = pad(IDS)
    mask = torch.tensor((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
    x = model(input_ids=torch.tensor(ids).long(), attention_mask=mask, use_cache=False)
    real = mask[..., None].float()
    y = (x.last_hidden_state * real).sum(1) / real.sum(1)
    for weight in head:
        y = y @ weight.T
    (torch.nn.functional.normalize(y, dim=-1) * torch.tensor(WEIGHTS)).sum().backward()
    found = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    return found | {f"dense.{i}.weight": weight.grad.numpy() for i, weight in enumerate(head)}


def test_every_gradient_is_pytorchs(tiny):
    theirs = torch_gradients(tiny)
    ours = gradients(trainable(open_checkpoint(tiny), train_table=True), IDS)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        difference = np.linalg.norm(ours[name] - grad) / np.linalg.norm(grad)
        assert difference < 1e-4, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("quantize", [(), ("q4_0",)])
def test_checkpointed_layers_give_the_same_gradients(tiny, quantize):
    checkpoint = open_checkpoint(tiny)
    plain = gradients(trainable(checkpoint, quantize=quantize))
    again = gradients(trainable(checkpoint, quantize=quantize, checkpoint_layers=True))
    assert plain.keys() == again.keys()
    assert all(np.array_equal(plain[name], again[name]) for name in plain)


def test_the_trainable_network_gives_the_encoders_vectors(tiny):
    from mlx_embeddinggemma import EmbeddingGemma

    ids, lengths = pad(IDS)
    mine = np.array(trainable(open_checkpoint(tiny), train_table=True)(ids, lengths))
    assert np.abs(mine - np.array(EmbeddingGemma(tiny).network(ids, lengths))).max() < 1e-6


def test_its_tensors_are_the_checkpoints(tiny):
    checkpoint = open_checkpoint(tiny)
    found = tensors(trainable(checkpoint, train_table=True, lora_rank=4))
    assert found.keys() == checkpoint.tensors.keys()
    for name, value in found.items():
        assert np.abs(np.array(value) - np.array(checkpoint.tensors[name].read())).max() < 2e-7, name


def test_lora_trains_two_small_matrices_a_layer_and_nothing_else(tiny):
    model = trainable(open_checkpoint(tiny), lora_rank=4)
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert {name.rpartition(".")[2] for name in names} == {"lora_a", "lora_b"}
    assert len(names) == 2 * (4 * 6 + 2)
    assert {name.rpartition(".")[2] for name in gradients(model)} == {"lora_a", "lora_b"}


def test_loras_gradient_is_that_of_the_merged_weight(tiny):
    """With W + s B A in the place of W: dA = s B^T dW, dB = s dW A^T."""
    checkpoint = open_checkpoint(tiny)
    model = trainable(checkpoint, lora_rank=4)
    module = model.layers[2].mlp.down_proj
    module.lora_b = mx.random.normal(module.lora_b.shape) * 0.1
    lora = gradients(model)

    plain = trainable(checkpoint)
    plain.layers[2].mlp.down_proj.weight = module.merged()
    dW = gradients(plain)["layers.2.mlp.down_proj.weight"]
    a, b = np.array(module.lora_a), np.array(module.lora_b)
    for name, expected in (("lora_a", 2 * b.T @ dW), ("lora_b", 2 * dW @ a.T)):
        grad = lora[f"layers.2.mlp.down_proj.{name}"]
        assert np.linalg.norm(grad - expected) < 1e-4 * np.linalg.norm(expected)


def test_the_vocabulary_table_stays_on_disk_unless_it_learns(tiny):
    checkpoint = open_checkpoint(tiny)
    assert "embed_tokens.weight" not in dict(tree_flatten(trainable(checkpoint).parameters()))
    grads = gradients(trainable(checkpoint, train_table=True))
    used = np.flatnonzero(np.abs(grads["embed_tokens.weight"]).sum(axis=1))
    assert used.tolist() == sorted({i for row in SHORT for i in row})
