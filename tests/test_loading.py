"""Every layout loads to the same vectors; everything damaged is one clear line."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError, hub
from mlx_embeddinggemma.config import Config

TEXTS = ["the first text", "in the thin thing " * 40, ""]


@pytest.fixture(scope="module")
def expected(tiny) -> np.ndarray:
    return EmbeddingGemma(tiny).encode(TEXTS)


def close(folder, expected, least=2e-6) -> bool:
    return bool(np.abs(EmbeddingGemma(folder).encode(TEXTS) - expected).max() <= least)


def test_sharded(tiny, tmp_path, expected):
    assert close(checkpoints.shard(tiny, tmp_path / "m"), expected, 0)


def test_new_rope_format(tiny, tmp_path, expected):
    ropes = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    new = {"rope_parameters": ropes, "rope_theta": None, "rope_local_base_freq": None}
    assert close(checkpoints.edit_config(tiny, tmp_path / "m", **new), expected, 0)


def test_absent_layer_types(tiny, tmp_path, expected):
    assert close(checkpoints.edit_config(tiny, tmp_path / "m", layer_types=None), expected, 0)


@pytest.mark.parametrize("window", [257, 129, 65])
def test_a_window_halved_on_saving_is_repaired_with_a_warning(tiny, tmp_path, expected, window):
    folder = checkpoints.edit_config(tiny, tmp_path / "m", sliding_window=window)
    with pytest.warns(UserWarning, match=f"sliding_window {window}.*using EmbeddingGemma's 512"):
        assert close(folder, expected, 0)


def test_an_even_window_is_taken_at_its_word():
    assert Config.from_dict(checkpoints.config(sliding_window=64)).window_radius == 32


def test_mlx_community_layout(tiny, tmp_path, expected):
    bf16 = EmbeddingGemma(checkpoints.as_mlx_community(tiny, tmp_path / "bf16")).encode(TEXTS)
    assert (bf16 * expected).sum(1).min() > 0.9995


@pytest.mark.parametrize(
    ("bits", "mode", "group_size", "least"),
    [
        (8, "affine", 64, 0.999),
        (4, "affine", 32, 0.9),
        (4, "mxfp4", 32, 0.8),
        (8, "mxfp8", 32, 0.98),
        (4, "nvfp4", 16, 0.8),
    ],
)
def test_quantized_mlx_layouts(tiny, tmp_path, expected, bits, mode, group_size, least):
    folder = checkpoints.as_mlx_community(
        tiny, tmp_path / "m", bits=bits, mode=mode, group_size=group_size
    )
    assert (EmbeddingGemma(folder).encode(TEXTS) * expected).sum(1).min() > least


def test_per_layer_quantization_settings(tiny, tmp_path):
    """Settings under a tensor's path win; q, k and v that disagree still load."""
    import mlx.core as mx

    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m", bits=8)
    tensors = mx.load(str(folder / "model.safetensors"))
    path = "model.layers.0.self_attn.k_proj"
    dense = mx.array(checkpoints.all_tensors(tiny)["layers.0.self_attn.k_proj.weight"])
    packed = mx.quantize(dense, group_size=32, bits=4)
    for kind, part in zip(("weight", "scales", "biases"), packed, strict=True):
        tensors[f"{path}.{kind}"] = part
    mx.save_safetensors(str(folder / "new.safetensors"), tensors)
    os.replace(folder / "new.safetensors", folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"][path] = {"group_size": 32, "bits": 4}
    checkpoints.write_json(folder / "config.json", config)
    cosine = (EmbeddingGemma(folder).encode(TEXTS) * EmbeddingGemma(tiny).encode(TEXTS)).sum(1)
    assert cosine.min() > 0.99


def test_a_checkpoint_without_dense_modules_pools_only(tmp_path):
    folder = checkpoints.write_tiny(tmp_path / "m", dense=())
    model = EmbeddingGemma(folder)
    assert model.dimensions == (192, 128)
    assert model.encode("a").shape == (192,)


@pytest.mark.parametrize("settings", [None, {"pooling_mode": "mean"}, {"pooling_mode": ["mean"]}, {}])
def test_the_mean_however_the_pooling_says_it(settings, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    path = folder / "1_Pooling" / "config.json"
    path.unlink()  # as in folders that mlx-embeddings wrote
    if settings is not None:
        checkpoints.write_json(path, settings)
    np.testing.assert_array_equal(EmbeddingGemma(folder).encode("a"), EmbeddingGemma(tiny).encode("a"))


def test_a_checkpoint_without_normalize_gives_unit_vectors(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    checkpoints.write_json(path, [m for m in modules if not m["type"].endswith("Normalize")])
    with pytest.warns(UserWarning, match="ends without Normalize.*here they are of unit length"):
        vector = EmbeddingGemma(folder).encode("a")
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_other_dense_sizes(tmp_path):
    model = EmbeddingGemma(checkpoints.write_tiny(tmp_path / "m", dense=(320,)))
    assert model.dimensions == (320, 256, 128)


# What is damaged: a name, what is done to a good copy, and what the message must say.


def edit(name):
    def decorate(function):
        DAMAGE[name] = function
        return function

    return decorate


DAMAGE: dict = {}


@edit("expected .* has no config.json|has no config.json")
def no_config(folder: Path):
    (folder / "config.json").unlink()


@edit("config.json is not JSON")
def config_not_json(folder: Path):
    (folder / "config.json").write_text("{oops")


@edit("config.json: expected a JSON object")
def config_a_list(folder: Path):
    (folder / "config.json").write_text("[]")


@edit("config.json has no 'hidden_size'")
def config_without_a_key(folder: Path):
    change(folder, hidden_size=None)


@edit("expected for hidden_size an integer .* got 'wide'")
def config_with_a_string(folder: Path):
    change(folder, hidden_size="wide")


@edit("expected an EmbeddingGemma checkpoint .* got 'bert'")
def another_architecture(folder: Path):
    change(folder, model_type="bert")


@edit("causal Gemma 3 language model")
def a_causal_model(folder: Path):
    change(folder, use_bidirectional_attention=False)


@edit("expected hidden_activation 'gelu_pytorch_tanh', got 'silu'")
def another_activation(folder: Path):
    change(folder, hidden_activation="silu")


@edit("expected 6 layer_types")
def too_few_layer_types(folder: Path):
    change(folder, layer_types=["full_attention"])


@edit("lacks model.safetensors")
def no_weights(folder: Path):
    (folder / "model.safetensors").unlink()


@edit("pytorch_model.bin is there: save the model with safe_serialization")
def pickled_weights(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@edit("not a safetensors file or was cut short \\(0 bytes\\)")
def empty_weights(folder: Path):
    (folder / "model.safetensors").write_bytes(b"")


@edit("was cut short or has bytes left over")
def truncated_weights(folder: Path):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


@edit("was cut short")
def truncated_header(folder: Path):
    os.truncate(folder / "model.safetensors", 100)


@edit("not a safetensors file")
def not_safetensors(folder: Path):
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(1000))


@edit("Git LFS pointer")
def lfs_pointer(folder: Path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1211486072\n"
    (folder / "model.safetensors").write_text(text)


@edit("its header is damaged")
def header_not_json(folder: Path):
    (folder / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{{{{{{{{" + bytes(64))


@edit("does not match its shape")
def header_lies_about_a_shape(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[192]', b'"shape":[191]', 1))


@edit("NaN or infinite weights in 1: layers.2.mlp.up_proj.weight")
def nan_weights(folder: Path):
    tensors(folder, lambda t: t["layers.2.mlp.up_proj.weight"].__setitem__((3, 4), np.nan))


@edit("NaN or infinite weights in 1: norm.weight")
def infinite_weights(folder: Path):
    tensors(folder, lambda t: t["norm.weight"].__setitem__(0, np.inf))


@edit("missing 1: layers.1.mlp.up_proj.weight; left over 1: layers.1.mlp.odd.weight")
def renamed_tensor(folder: Path):
    tensors(
        folder,
        lambda t: t.__setitem__("layers.1.mlp.odd.weight", t.pop("layers.1.mlp.up_proj.weight")),
    )


@edit(r"wrong shape 1: norm.weight \[191\] instead of \[192\]")
def wrong_shape(folder: Path):
    tensors(folder, lambda t: t.__setitem__("norm.weight", t["norm.weight"][:-1].copy()))


@edit("wrong dtype 1: norm.weight U8")
def wrong_dtype(folder: Path):
    tensors(folder, lambda t: t.__setitem__("norm.weight", t["norm.weight"].astype(np.uint8)))


@edit("wrong dtype 1: norm.weight I64")
def unknown_dtype(folder: Path):
    tensors(folder, lambda t: t.__setitem__("norm.weight", t["norm.weight"].astype(np.int64)))


@edit("lacks 2_Dense/model.safetensors")
def lost_dense_weights(folder: Path):
    (folder / "2_Dense" / "model.safetensors").unlink()


@edit("has no dense head")
def lost_modules(folder: Path):
    (folder / "modules.json").unlink()
    for path in folder.glob("*_Dense"):
        shutil.rmtree(path)


@edit("2_Dense/config.json: a Dense with activation 'torch.nn.modules.linear.PReLU' is not computed")
def dense_with_prelu(folder: Path):
    path = folder / "2_Dense" / "config.json"
    path.write_text(path.read_text().replace("Identity", "PReLU"))


@edit("neither tokenizer.model nor tokenizer.json")
def no_tokenizer(folder: Path):
    (folder / "tokenizer.json").unlink()


@edit("tokenizer.json is not a tokenizer")
def damaged_tokenizer(folder: Path):
    (folder / "tokenizer.json").write_text("{}")


@edit("tokenizer.model is not a sentencepiece model")
def damaged_sentencepiece(folder: Path):
    (folder / "tokenizer.json").unlink()  # else it is read, and the other left alone
    (folder / "tokenizer.model").write_bytes(b"nonsense")


@edit("the tokenizer has 700 tokens, the vocabulary table 512 rows")
def another_vocabulary(folder: Path):
    checkpoints.write_tokenizer(folder, 700)


@edit("sentence_bert_config.json is not JSON")
def damaged_settings(folder: Path):
    (folder / "sentence_bert_config.json").write_text("max_seq_length: 2048")


def change(folder: Path, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    checkpoints.write_json(path, {k: v for k, v in config.items() if v is not None})


def tensors(folder: Path, function):
    path = folder / "model.safetensors"
    loaded = checkpoints.load_file(path)
    function(loaded)
    checkpoints.save_file(loaded, path)


@pytest.mark.parametrize("message", DAMAGE, ids=[f.__name__ for f in DAMAGE.values()])
def test_damage_is_one_clear_line(tiny, tmp_path, message):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    DAMAGE[message](folder)
    with pytest.raises(EmbeddingGemmaError, match=message) as caught:
        EmbeddingGemma(folder).encode("a")
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tiny, tmp_path):
    folder = checkpoints.shard(tiny, tmp_path / "m")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(EmbeddingGemmaError, match="lacks model-00002-of-00003.safetensors"):
        EmbeddingGemma(folder)


# The hub, as a server on this machine that answers what the real one answers.


@pytest.fixture
def hub_answers(tmp_path):
    """Runs the command line against a hub that gives every request one status and error code."""

    def ask(status: int, code: str, *more: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-m", "mlx_embeddinggemma", "embed", "x", "--model", "google/x"],
            env=os.environ
            | {
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(tmp_path),
                "HF_HUB_OFFLINE": "0",
            },
            capture_output=True,
            text=True,
        )
        server.shutdown()
        server.server_close()
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        return done.stderr

    return ask


def test_a_gated_repository_gives_the_two_steps(hub_answers):
    message = hub_answers(403, "GatedRepo")
    assert "1. sign in and accept it at https://huggingface.co/google/x" in message
    assert "2. run `hf auth login`" in message


def test_an_unknown_repository_or_revision(hub_answers):
    assert "check the name, or run `hf auth login`" in hub_answers(401, "RepoNotFound")
    assert "no revision" in hub_answers(404, "RevisionNotFound")


def test_offline_without_a_cached_copy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EmbeddingGemmaError, match="not in the local cache.*hf download"):
        hub.find("google/embeddinggemma-300m", local_files_only=True)


def test_a_hub_id_loads_from_the_cache_only_the_files_needed(monkeypatch, tiny):
    import huggingface_hub

    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    EmbeddingGemma("someone/fine-tune", revision="main", local_files_only=True)
    assert asked["name"] == "someone/fine-tune"
    assert asked["revision"] == "main" and asked["local_files_only"]
    needed = huggingface_hub.utils.filter_repo_objects(
        [
            "model.safetensors",
            "2_Dense/model.safetensors",
            "tokenizer.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "model-00001-of-00002.safetensors",
            "openvino/model.bin",
        ],
        allow_patterns=asked["allow_patterns"],
    )
    assert list(needed) == [
        "model.safetensors",
        "2_Dense/model.safetensors",
        "tokenizer.json",
        "model-00001-of-00002.safetensors",
    ]


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "/missing", "one-word"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(EmbeddingGemmaError, match="no folder .*expected 'demo'"):
        EmbeddingGemma(name)


def test_a_file_is_not_a_model(tiny):
    with pytest.raises(EmbeddingGemmaError, match="is a file"):
        EmbeddingGemma(tiny / "config.json")
