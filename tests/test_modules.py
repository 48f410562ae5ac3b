"""modules.json: every step is done as sentence-transformers does it, or refused by type and path."""

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from mlx_embeddinggemma.convert import convert
from safetensors.numpy import save_file
from test_settings import CARRIERS, CLOSE, converted, finetuned

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError
from mlx_embeddinggemma.head import ACTIVATIONS
from mlx_embeddinggemma.modules import read_modules

TEXTS = ["the first text", "in the thin thing " * 9, ""]
OLD, NEW = "sentence_transformers.models.", "sentence_transformers.base.modules."
TORCH = "torch.nn.modules."
PLAIN = {"bias": False, "activation_function": TORCH + "linear.Identity"}
Step = tuple[str, dict[str, Any]]


def with_head(source: Path, folder: Path, steps: list[Step]) -> Path:
    """A copy with these steps after the pooling; a Dense has random weights, and a bias if it asks."""
    shutil.copytree(source, folder)
    for old in folder.glob("*_Dense"):
        shutil.rmtree(old)
    rng, size = np.random.default_rng(3), 192
    modules = [(OLD + "Transformer", ""), (OLD + "Pooling", "1_Pooling")]
    for kind, settings in steps:
        # Names that nothing may be concluded from.
        place = f"part {len(modules)}"
        modules.append((kind if "." in kind else OLD + kind, place))
        if kind.endswith("Dense"):
            outputs = settings.get("out_features", 256)
            tensors = {"linear.weight": rng.standard_normal((outputs, size), np.float32) / 8}
            if settings.get("bias", True):
                tensors["linear.bias"] = rng.standard_normal(outputs, np.float32) / 4
            settings = {"in_features": size, "out_features": outputs, **settings}
            checkpoints.write_json(folder / place / "config.json", settings)
            save_file(tensors, folder / place / "model.safetensors")
            size = outputs
        elif settings:
            checkpoints.write_json(folder / place / "config.json", settings)
    listed = [{"idx": i, "name": str(i), "path": p, "type": t} for i, (t, p) in enumerate(modules)]
    checkpoints.write_json(folder / "modules.json", listed)
    return folder


def activation(name: str) -> dict[str, Any]:
    return {"bias": False, "activation_function": TORCH + "activation." + name}


END: Step = ("Normalize", {})
HEADS: dict[str, list[Step]] = {
    "as sentence-transformers makes a Dense": [("Dense", {}), END],
    "a bias alone": [("Dense", PLAIN | {"bias": True}), ("Dense", PLAIN), END],
    "a bias that counts as true": [("Dense", PLAIN | {"bias": 1}), END],
    "no bias, null": [("Dense", PLAIN | {"bias": None}), END],
    "no activation named": [("Dense", {"bias": False}), END],
    **{
        name: [("Dense", activation(name)), ("Dense", PLAIN), END]
        for name in ACTIVATIONS
        if name != "Identity"
    },
    "a shorter name": [("Dense", {"bias": False, "activation_function": "torch.nn.SiLU"}), END],
    "unit length before a bias": [END, ("Dense", PLAIN | {"bias": True}), END],
    "unit length between": [("Dense", PLAIN), END, ("Dense", activation("Tanh")), END],
    "unit length twice": [("Dense", PLAIN), END, END],
    "dropout anywhere": [("Dropout", {"dropout": 0.9}), ("Dense", PLAIN), ("Dropout", {}), END],
    "no head": [END],
    "one size to another": [("Dense", {"out_features": 64}), END],
    "newer types": [
        (NEW + "dense.Dense", PLAIN | {"module_input_name": "sentence_embedding"}),
        ("sentence_transformers.sentence_transformer.modules.Dropout", {}),
        (NEW + "normalize.Normalize", {"module_input_name": "sentence_embedding"}),
    ],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_computed_as_sentence_transformers_does(name, tiny, tmp_path):
    reference = pytest.importorskip("reference", reason="needs the extra `reference`")
    folder = with_head(tiny, tmp_path / "m", HEADS[name])
    expected = reference.sentence_transformer(folder).encode(TEXTS)
    assert np.abs(EmbeddingGemma(folder).encode(TEXTS) - expected).max() <= CLOSE


HARD: list[Step] = [END, ("Dense", {"out_features": 128}), ("Dense", activation("GELU")), END]


@pytest.mark.parametrize("carry", CARRIERS)
def test_a_head_is_carried_on(carry, tiny, tmp_path):
    """As everything that changes vectors: never dropped on the way."""
    source = with_head(tiny, tmp_path / "m", HARD)
    copy = carry(source, tmp_path / "copy")
    expected = EmbeddingGemma(source).encode(TEXTS)
    assert np.abs(EmbeddingGemma(copy).encode(TEXTS) - expected).max() <= CLOSE
    again = carry(copy, tmp_path / "again")
    assert np.abs(EmbeddingGemma(again).encode(TEXTS) - expected).max() <= CLOSE


def test_sentence_transformers_reads_the_head_that_finetune_writes(tiny, tmp_path):
    reference = pytest.importorskip("reference", reason="needs the extra `reference`")
    source = with_head(tiny, tmp_path / "m", HARD)
    theirs = reference.sentence_transformer(finetuned(source, tmp_path / "tuned"))
    assert np.abs(EmbeddingGemma(source).encode(TEXTS) - theirs.encode(TEXTS)).max() <= CLOSE


def test_a_packed_head_keeps_its_activation_and_says_so(tiny, tmp_path):
    source = with_head(tiny, tmp_path / "m", HARD)
    report = convert(source, tmp_path / "8bit", recipe="8bit")
    assert any("modules.json describes" in note for note in report.notes)
    assert report.fidelity[256].worst > 0.99
    ours, theirs = EmbeddingGemma(tmp_path / "8bit").encode(TEXTS), EmbeddingGemma(source).encode(TEXTS)
    assert (ours * theirs).sum(axis=1).min() > 0.99


def test_a_plain_head_is_written_as_ever(tiny, tmp_path):
    assert not (converted(tiny, tmp_path / "out") / "modules.json").exists()


def refused(folder: Path, message: str) -> None:
    """By whoever loads it, in one line."""
    for load in (EmbeddingGemma, lambda m: convert(m, folder.parent / "out", dry_run=True)):
        with pytest.raises(EmbeddingGemmaError, match=message) as caught:
            load(folder)
        assert str(caught.value).count("\n") == 0 and len(str(caught.value)) < 500


KINDS = [
    OLD + "LayerNorm",
    OLD + "CNN",
    OLD + "LSTM",
    OLD + "Router",
    OLD + "Asym",
    OLD + "WeightedMeanPooling",
    OLD + "WeightedLayerPooling",
    OLD + "BoW",
    OLD + "StaticEmbedding",
    NEW + "router.Router",
    "sentence_transformers.sparse_encoder.models.SpladePooling",
    "sentence_transformers.cross_encoder.modules.Dense",
    "pylate.models.Dense.Dense",
    "modeling.CustomPooling",
    "torch.nn.Dense",
    "Dense",
    "",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_is_not_computed_here_is_refused_by_type_and_path(kind, tiny, tmp_path):
    folder = with_head(tiny, tmp_path / "m", [("Dense", PLAIN), END])
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules.insert(2, {"idx": 9, "name": "9", "path": "2_Odd", "type": kind})
    checkpoints.write_json(path, modules)
    refused(folder, f"{kind} at '2_Odd' is not computed here")


ORDERS = [
    [1, 0, 2, 3],  # the pooling first
    [0, 2, 1, 3],  # a Dense before it
    [0, 3, 1, 2],
    [0, 1, 1, 2, 3],  # twice
    [1, 2, 3],
    [0],
]


@pytest.mark.parametrize("order", ORDERS)
def test_another_order_is_refused(order, tiny, tmp_path):
    folder = with_head(tiny, tmp_path / "m", [("Dense", PLAIN), END])
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    checkpoints.write_json(path, [modules[i] for i in order])
    refused(folder, "expected Transformer, Pooling, then Dense, Normalize, Dropout, got")


DENSE = [
    ({"use_residual": True}, "use_residual True is not computed here"),
    ({"use_residual": "false"}, "use_residual 'false' is not computed here"),
    ({"module_input_name": "token_embeddings"}, "module_input_name 'sentence_embedding', got 'token"),
    ({"module_output_name": "other"}, "module_output_name 'sentence_embedding', got 'other'"),
    ({"activation_function": TORCH + "activation.PReLU"}, "activation 'torch.nn.modules.activation.P"),
    ({"activation_function": "transformers.activations.Tanh"}, "activation 'transformers.activations"),
    ({"activation_function": "Tanh"}, "activation 'Tanh' is not computed here"),
    ({"activation_function": None}, "activation None is not computed here"),
    ({"activation_function": ["Tanh"]}, "activation \\['Tanh'\\] is not computed here"),
    ({"scale": 2.0}, "scale is not known here"),
    ({"bias": True}, "missing 1: dense.0.bias"),
]


@pytest.mark.parametrize(("change", "message"), DENSE)
def test_a_dense_that_is_not_computed_here_is_refused(change, message, tiny, tmp_path):
    folder = with_head(tiny, tmp_path / "m", [("Dense", PLAIN), END])
    path = folder / "part 2" / "config.json"
    checkpoints.write_json(path, json.loads(path.read_text()) | change)
    refused(folder, message)


def test_a_bias_that_the_settings_do_not_name_is_refused(tiny, tmp_path):
    folder = with_head(tiny, tmp_path / "m", [("Dense", {}), END])
    path = folder / "part 2" / "config.json"
    checkpoints.write_json(path, json.loads(path.read_text()) | {"bias": False})
    refused(folder, "left over 1: dense.0.bias")


POOLING = [
    {"pooling_mode_cls_token": 1},
    {"pooling_mode_cls_token": "false"},
    {"pooling_mode_max_tokens": [0]},
    {"pooling_mode_mean_tokens": False, "pooling_mode_weightedmean_tokens": True},
    {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True},
    {"pooling_mode": "cls"},
    {"pooling_mode": ["mean", "mean"]},
    {"pooling_mode": ["mean", "max"]},
    {"pooling_mode": None},
    {"pooling_mode": {"mean": True}},
    {"include_prompt": 0},
    {"include_prompt": None},
    {"include_prompt": ""},
]


@pytest.mark.parametrize("change", POOLING)
def test_pooling_that_is_not_the_mean_of_all_tokens_is_refused(change, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    path = folder / "1_Pooling" / "config.json"
    checkpoints.write_json(path, json.loads(path.read_text()) | change)
    refused(folder, "expected the mean over all tokens, the prompt's included")


@pytest.mark.parametrize(
    "change", [{"include_prompt": 1}, {"include_prompt": "false"}, {"pooling_mode_mean_tokens": 0}]
)
def test_what_counts_as_the_mean_is_taken(change, tiny, tmp_path):
    """0 for every mode is the mean there, and a string that is not empty is true."""
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    path = folder / "1_Pooling" / "config.json"
    checkpoints.write_json(path, json.loads(path.read_text()) | change)
    difference = EmbeddingGemma(folder).encode("a") - EmbeddingGemma(tiny).encode("a")
    assert np.abs(difference).max() <= CLOSE


def test_an_unknown_setting_of_the_pooling_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    path = folder / "1_Pooling" / "config.json"
    checkpoints.write_json(path, json.loads(path.read_text()) | {"pooling_mode_odd": True})
    refused(folder, "pooling_mode_odd is not known here")


LISTS: list[Any] = [
    {"type": OLD + "Transformer", "path": ""},
    "modules",
    None,
    3,
    [[]],
    [None],
    ["Transformer"],
    [{"type": OLD + "Transformer"}],
    [{"type": None, "path": ""}],
    [{"type": [OLD + "Transformer"], "path": ""}],
    [{"type": OLD + "Transformer", "path": 0}],
]


@pytest.mark.parametrize("content", LISTS)
def test_nonsense_in_modules_json_is_one_line(content, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    checkpoints.write_json(folder / "modules.json", content)
    refused(folder, "modules.json: expected a list of modules with type and path, got")


@pytest.mark.parametrize("path", ["../other", "/etc", "1_Pooling/../..", "a\0b"])
def test_a_module_outside_the_folder_is_refused(path, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    checkpoints.write_json(folder / "modules.json", modules)
    refused(folder, "expected paths inside the folder, got")


def test_a_transformer_in_a_folder_of_its_own_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    checkpoints.write_json(folder / "modules.json", modules)
    refused(folder, "expected the Transformer in the folder itself, got path '0_Transformer'")


def test_as_many_dense_weights_as_modules(tiny, tmp_path):
    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m")
    modules = json.loads((tiny / "modules.json").read_text())
    checkpoints.write_json(folder / "modules.json", modules)
    assert EmbeddingGemma(folder).encode("a").shape == (768,)  # as mlx-embeddings leaves it
    checkpoints.write_json(folder / "modules.json", modules[:3] + modules[4:])
    refused(folder, "expected 2 Dense, as there are dense weights, got 1")


def test_the_bundled_checkpoint_has_a_plain_head(demo):
    modules = read_modules(demo)
    assert modules is not None and modules.normalized and modules.folders == ("2_Dense", "3_Dense")


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_refused_with_the_way_out(beside, tiny, tmp_path):
    """With the weights that it corrects, or without them, as peft saves it."""
    peft, reference = pytest.importorskip("peft"), pytest.importorskip("reference")
    network, _ = reference.load(tiny)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    folder = tmp_path / "m"
    if beside:
        shutil.copytree(tiny, folder)
    adapted = peft.get_peft_model(network, lora)
    adapted.save_pretrained(folder)
    assert (folder / "adapter_config.json").exists()
    refused(folder, r"holds an adapter \(adapter_config.json\).*merge_and_unload\(\)")
    if beside:  # and the way out is one
        adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(tmp_path / "merged" / name, folder / name)
        (folder / "adapter_config.json").unlink()
        merged = EmbeddingGemma(folder).encode("a the in")
        expected = reference.sentence_transformer(folder).encode("a the in")
        assert np.abs(merged - expected).max() <= CLOSE
        assert np.abs(merged - EmbeddingGemma(tiny).encode("a the in")).max() > 1e-3


def test_a_head_that_a_gguf_file_borrows_is_whole(tiny, tmp_path):
    pytest.importorskip("gguf")
    from test_convert_gguf import write_gguf

    source = with_head(tiny, tmp_path / "m", HARD)
    file = write_gguf(tiny, tmp_path / "model.gguf", "F32", heads=())
    convert(file, tmp_path / "out", recipe="fp32", tokenizer=tiny, dense_from=source)
    difference = EmbeddingGemma(tmp_path / "out").encode(TEXTS) - EmbeddingGemma(source).encode(TEXTS)
    assert np.abs(difference).max() <= CLOSE


def test_a_list_of_no_modules_beside_a_head_is_refused(tiny, tmp_path):
    """Ours is written for networks without a head; here the head would be left out."""
    folder = shutil.copytree(tiny, tmp_path / "m")
    (folder / "modules.json").write_text("[]")
    with pytest.raises(EmbeddingGemmaError, match="lists no modules, but 2_Dense is there"):
        EmbeddingGemma(folder)
