"""What `fuzz.py` mutates: a function a target, which draws an input and runs it to its end."""

import contextlib
import io
import json
import math
import shutil
import struct
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import checkpoints
import numpy as np

from mlx_embeddinggemma import EmbeddingGemma

TEXTS = ["", "the ant and the bee", "x\0é 日本 <bos> </s> 🎉\ud83d", "a " * 40]
SETTINGS = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
)
TOO_LARGE = "@1e999@"  # becomes the number, which json.dumps cannot write
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 63, 64, 128, 257, 512, 2**31, 2**63, 10**30, 10**400, 0.5,
    64.0, -0.0, 1e-300, 1e308, math.inf, -math.inf, math.nan, TOO_LARGE, "", " ", "512", "true",
    "false", "mean", "x" * 300, "y" * 5000, "a\nb", "\ud800", "\0", "日本語", "~nosuchuser/x", ".",
    "..", [], {}, [0], [[]], ["a", "b"], [1] * 2000, {"a": {}}, {"rope_type": "linear", "factor": 2},
    {"bits": 4, "group_size": 64},
]  # fmt: skip
TEXT_EDITS: list[Callable[[Random, bytes], bytes]] = [
    lambda r, b: b"",
    lambda r, b: b[: r.randrange(len(b) + 1)],
    lambda r, b: flipped(r, b, r.randint(1, 8)),
    lambda r, b: b"[" * 100_000,
    lambda r, b: b'{"a":' * 50_000,
    lambda r, b: b"\xef\xbb\xbf" + b,
    lambda r, b: b.decode("utf-8", "replace").encode("utf-16"),
    lambda r, b: b + bytes(r.randint(1, 9)),
    lambda r, b: r.choice(
        [b"5", b"null", b"[]", b'"x"', b"{}", b"NaN", b"1e999", b"9" * 5000, b"\xff"]
    ),
    lambda r, b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    lambda r, b: spliced(r, b, bytes(r.choices(range(256), k=r.randint(1, 40)))),
    lambda r, b: spliced(r, b, b"[" * 2000),
    lambda r, b: spliced(r, b, b[: r.randrange(len(b) + 1)][:200]),
]


def make_base(folder: Path) -> Path:
    """The sound files that inputs are made of."""
    sizes = {"num_hidden_layers": 2, "_sliding_window_pattern": 2, "hidden_size": 64, "head_dim": 64}
    sizes |= {"intermediate_size": 64, "num_attention_heads": 1, "dense": (64, 256)}
    model = checkpoints.write_tiny(folder / "model", **sizes)
    from mlx_embeddinggemma.convert.sentencepiece_model import from_json

    (folder / "tokenizer.model").write_bytes(from_json(model / "tokenizer.json") or b"")
    with contextlib.suppress(ImportError):  # without the gguf package that target has nothing to do
        from test_convert_gguf import write_gguf

        write_gguf(model, folder / "model.gguf", "Q8_0")
    return folder


# Mutations.


def flipped(rng: Random, data: bytes, bits: int) -> bytes:
    """With some bits the other way round."""
    changed = bytearray(data)
    for _ in range(bits if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spliced(rng: Random, data: bytes, piece: bytes) -> bytes:
    """With a piece put in, or in the place of some bytes."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + piece + data[start + rng.choice([0, len(piece)]) :]


def mutated_json(rng: Random, content: Any) -> bytes:
    """A JSON value with one to three parts of it changed, or its text."""
    if rng.random() < 0.2:
        return rng.choice(TEXT_EDITS)(rng, json.dumps(content).encode())
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = _changed(rng, content)
    return json.dumps(content).replace(f'"{TOO_LARGE}"', "1e999").encode()


def _changed(rng: Random, node: Any) -> Any:
    """Down a random way, and something else where it ends."""
    if not isinstance(node, dict | list) or not node or rng.random() < 0.15:
        return deepcopy(rng.choice(VALUES))  # later changes are to this input alone
    key = rng.choice([*node] if isinstance(node, dict) else range(len(node)))
    match rng.randrange(8):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(["x", "", key * 2, "type", "bits", "quantization", "rope_parameters"])] = (
                node.pop(key)
            )
        case 1:
            node.append(deepcopy(node[key]))
        case 2:
            other = rng.choice([*node] if isinstance(node, dict) else range(len(node)))
            node[key] = deepcopy(node[other])
        case 3 if isinstance(node, dict):
            node[rng.choice(["adapter", "bias", "rope_scaling", "truncate_dim", "x" * 300])] = deepcopy(
                rng.choice(VALUES)
            )
        case _:
            node[key] = _changed(rng, node[key])
    return node


def copied(base: Path, folder: Path) -> Path:
    """The sound checkpoint, to change."""
    return shutil.copytree(base / "model", folder / "model")


# What must come out.


def check_encoder(rng: Random, folder: Path) -> None:
    """A checkpoint that loads gives finite unit vectors, at every size and in either dtype."""
    model = EmbeddingGemma(folder, dtype=rng.choice([None, None, "bfloat16"]))
    for dim in model.dimensions:
        check_vectors(model.encode(TEXTS, truncate_dim=dim), dim)


def check_vectors(vectors: np.ndarray, dim: int) -> None:
    """Finite, and of unit length."""
    assert vectors.shape == (len(TEXTS), dim), vectors.shape
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert np.abs(lengths - 1).max() < 1e-3, f"vectors of length {lengths}"


def check_conversion(rng: Random, source: Path, folder: Path, **options: Any) -> None:
    """A conversion that succeeds writes strict JSON, and a folder that embeds."""
    from mlx_embeddinggemma.convert import convert

    recipe = rng.choice(["4bit", "8bit", "bf16", "fp32", "q8_0", "mxfp4"])
    convert(source, folder / "out", **{"recipe": recipe, "dry_run": rng.random() < 0.7} | options)
    if (folder / "out").exists():
        strict((folder / "out" / "conversion.json").read_text())
        check_encoder(rng, folder / "out")


def strict(text: str) -> Any:
    """JSON without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    return json.loads(text, parse_constant=refuse)


# The targets.


def settings(rng: Random, base: Path, folder: Path) -> None:
    path = copied(base, folder) / rng.choice(SETTINGS)
    path.write_bytes(mutated_json(rng, json.loads(path.read_text())))
    if rng.random() < 0.15:
        check_conversion(rng, folder / "model", folder)
    else:
        check_encoder(rng, folder / "model")


def header(rng: Random, base: Path, folder: Path) -> None:
    path = copied(base, folder) / rng.choice(["model.safetensors", "2_Dense/model.safetensors"])
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = mutated_json(rng, json.loads(raw[8 : 8 + length]))
    size = rng.choice([len(head)] * 6 + [0, len(head) + 1, 2**40, 2**64 - 1])
    path.write_bytes(size.to_bytes(8, "little") + head + raw[8 + length :])
    check_encoder(rng, folder / "model")


def weights(rng: Random, base: Path, folder: Path) -> None:
    """The high bits of a float32 in its last byte: the damage that makes 1.6e29 of a weight."""
    path = copied(base, folder) / rng.choice(["model.safetensors", "3_Dense/model.safetensors"])
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(rng.choice([1, 1, 1, 4, 200])):
        raw[start + 4 * rng.randrange((len(raw) - start) // 4) + rng.choice([3, 3, 2, 0])] ^= (
            1 << rng.randrange(8)
        )
    path.write_bytes(raw)
    if rng.random() < 0.15:
        check_conversion(rng, folder / "model", folder, min_cosine=0.5)
    else:
        check_encoder(rng, folder / "model")


def tokenizer(rng: Random, base: Path, folder: Path) -> None:
    path = copied(base, folder) / "tokenizer.json"
    if rng.random() < 0.5:
        path.write_bytes(mutated_json(rng, json.loads(path.read_text())))
    else:
        raw = (base / "tokenizer.model").read_bytes()
        (folder / "model" / "tokenizer.model").write_bytes(rng.choice(TEXT_EDITS)(rng, raw))
    check_encoder(rng, folder / "model")


def gguf(rng: Random, base: Path, folder: Path) -> None:
    source = base / "model.gguf"
    if not source.exists():
        return
    raw = source.read_bytes()
    head = 4096  # metadata and the tensors' table
    if rng.random() < 0.3:
        raw = rng.choice(TEXT_EDITS)(rng, raw)
    elif rng.random() < 0.5:
        place = rng.randrange(0, head, 4)
        number = rng.choice([0, 1, 2, 255, 2**16, 2**31, 2**32 - 1])
        raw = raw[:place] + struct.pack("<I", number) + raw[place + 4 :]
    else:
        raw = flipped(rng, raw[:head], rng.randint(1, 4)) + raw[head:]
    (folder / "x.gguf").write_bytes(raw)
    check_conversion(rng, folder / "x.gguf", folder, tokenizer=base / "model")


def recipe(rng: Random, base: Path, folder: Path) -> None:
    from mlx_embeddinggemma.convert.recipes import find_recipe

    patterns = [
        "*",
        "embed_tokens",
        "*.self_attn.*",
        "[",
        "[!a-",
        "*a" * 90,
        "x" * 300,
        "?" * 150,
        "[[]" * 60,
    ]
    numbers = [
        "4",
        "16",
        "5",
        "true",
        "nan",
        "inf",
        "-1",
        "4.0",
        "9" * 400,
        "9" * 5000,
        '"mxfp8"',
        '"64"',
        "[4]",
    ]
    tables = [
        f"{{bits = {rng.choice(numbers)}, group_size = {rng.choice(numbers)}}}",
        "{}",
        "{bits = 4, x = 1}",
    ]
    lines = [
        f'"{rng.choice(patterns)}{i if rng.random() < 0.5 else ""}" = {rng.choice(numbers + tables)}'
        for i in range(rng.choice([0, 1, 1, 1, 2, 4, 300, 50_000]))
    ]
    heads = [
        "dtype = 'float32'",
        "dtype = ['x']",
        "description = 5",
        "other = 1",
        "",
        "",
        "",
        "a.b.c = 1",
    ]
    text = "\n".join([rng.choice(heads), rng.choice(["[matrices]"] * 5 + ["matrices = 4", ""]), *lines])
    raw = text.encode()
    if rng.random() < 0.3:
        deep = [
            b"a = " + b"[" * 60_000,
            b"a = " + b"{a=" * 20_000,
            b"a" + b".a" * 30_000 + b" = 1",
            b"[" + b"a." * 400 + b"a]\n" * 9,
        ]
        raw = rng.choice([*TEXT_EDITS, lambda r, b: r.choice(deep)])(rng, raw)
    (folder / "r.toml").write_bytes(raw)
    found = find_recipe(folder / "r.toml")
    for layer in range(24):
        found.format_of(f"layers.{layer}.self_attn.q_proj")
    check_conversion(rng, base / "model", folder, recipe=found)


ROWS = (
    [{"anchor": "a", "positive": "b", "negatives": ["c"], "title": "t"}] * 3,
    [
        {"sentence1": "a", "sentence2": "b", "score": 0.5},
        {"sentence1": "c", "sentence2": "d", "score": 1},
    ],
    [{"text": t, "label": label} for t, label in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"))],
    [{"text": "a", "vector": [0.5, 1.0]}, {"text": "b", "vector": [1, 0]}],
    [{"text": "a", "task": "none"}, {"text": "b"}],
)


def rows(rng: Random, base: Path, folder: Path) -> None:
    """Training rows, read; one in sixteen is trained on too."""
    from mlx_embeddinggemma.finetune import data, finetune

    content = rng.choice(ROWS)
    path = folder / f"rows.{rng.choice(['jsonl', 'jsonl', 'csv', 'json', 'tsv'])}"
    path.write_bytes(mutated_lines(rng, content, comma=path.suffix in (".csv", ".tsv")))
    found = data.read(path, checkpoints.PROMPTS)
    for row in found.rows:
        assert row.score is None or math.isfinite(row.score), row.score
        assert row.vector is None or np.isfinite(np.asarray(row.vector, np.float64)).all()
    if rng.random() < 1 / 16 and found.kind != "texts":
        finetune(
            base / "model",
            path,
            folder / "out",
            eval=path,
            steps=1,
            batch_size=4,
            learning_rate=rng.choice([1e-5, 1e5]),
        )
        check_encoder(rng, folder / "out")
        strict((folder / "out" / "finetune.json").read_text())


def mutated_lines(rng: Random, content: list[dict[str, Any]], comma: bool = False) -> bytes:
    """JSON or comma-separated lines, one of them or their text changed."""
    bad = rng.randrange(len(content))
    if comma:
        lines = [",".join(content[0]), *(",".join(map(str, row.values())) for row in content)]
        text = "\n".join(lines).encode()
        return rng.choice(
            [*TEXT_EDITS, lambda r, b: spliced(r, b, b'"\n,;'), lambda r, b: b + b',"' + b"z" * 200_000]
        )(rng, text)
    encoded = [
        mutated_json(rng, row) if i == bad else json.dumps(row).encode()
        for i, row in enumerate(content)
    ]
    return b"\n".join(encoded)


TASKS: dict[str, list[dict[str, Any]]] = {
    "sts/T/test.default.jsonl": [{"s1": "a", "s2": "b", "score": i} for i in range(4)],
    "pair/T/test.default.jsonl": [{"s1": "a b", "s2": "b" * i, "label": i % 2} for i in range(4)],
    "bitext/T/a-b.jsonl": [{"s1": "a" * i, "s2": "b" * i} for i in range(1, 4)],
    "bitext/T/all.jsonl": [{"eng_Latn": "a" * i, "deu_Latn": "b"} for i in range(1, 4)],
    "classification/T/train.x.jsonl": [{"text": "a" * i, "label": i % 2} for i in range(1, 5)],
    "classification/T/test.x.jsonl": [{"text": "a" * i, "label": i % 2} for i in range(1, 5)],
    "clustering/T/test.x.jsonl": [{"text": "a" * i, "label": str(i % 2)} for i in range(1, 5)],
    "retrieval/T/x/corpus.jsonl": [{"id": i, "title": "t", "text": "a" * i} for i in range(1, 4)],
    "retrieval/T/x/queries.jsonl": [{"id": f"q{i}", "text": "b" * i} for i in range(1, 4)],
    "retrieval/T/x/qrels.jsonl": [{"query": f"q{i}", "doc": i, "score": 1} for i in range(1, 4)],
}


def tasks(rng: Random, base: Path, folder: Path) -> None:
    """Bench data, read and scored; not clustered, which takes seconds."""
    from mlx_embeddinggemma.bench import scores, tasks

    name = rng.choice([*TASKS])
    for path in (one for one in TASKS if Path(one).parent == Path(name).parent):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        raw = mutated_lines(rng, TASKS[path]) if path == name else b""
        (folder / path).write_bytes(raw or b"\n".join(json.dumps(row).encode() for row in TASKS[path]))
    ours = set(tasks.known_names(folder)) - set(tasks.known_names())
    for task in tasks.load(sorted(ours), folder):
        if not isinstance(task, tasks.Clustering):
            for dim, found in scores.score(sound_model(base), task, [256, 128]).items():
                assert 0 <= found.value <= 1 or isinstance(task, tasks.STS), (
                    task.name,
                    dim,
                    found.value,
                )
                assert np.isfinite(found.items).all() and math.isfinite(found.value)


def record(rng: Random, base: Path, folder: Path) -> None:
    """Records that are reported on."""
    from mlx_embeddinggemma.cli import main

    scores = {str(dim): {"score": 0.5, "items": [0.1, 0.2, 0.3]} for dim in (256, 128)}
    timed = {"samples_s": [0.1, 0.2], "tokens": 16, "texts": 1}
    speed = {"load_s": 1.0, "first_vector_s": 1.0, "memory_mb": {"idle": 1.0, "load_peak": 2.0}}
    speed |= {"mlx_mb": {"load_peak": 1.0}, "latency": [timed], "batches": [timed], "corpus": timed}
    machine = {"chip": "c", "cores": 2, "memory_gb": 1.0, "system": "s", "power": None}
    models = [{"name": n, "size_bytes": 9, "speed": [speed], "quality": {"T": scores}} for n in "ab"]
    about = {"type": "STS", "metric": "Spearman", "published": 0.5, "note": "", "gold": [1, 2, 3]}
    content = {"schema": 2, "when": "", "machine": machine | {"device": "CPU", "python": "3"}}
    content |= {"versions": {"mlx": "1"}, "commit": None, "tasks": {"T": about}, "models": models}
    (folder / "a.json").write_bytes(mutated_json(rng, content))
    command(main, ["bench", "report", "a.json", *rng.choice([[], ["--json"], ["--output", "report"]])])
    page = folder / "report" / "report.html"
    assert (
        not page.exists()
        or "NaN" not in page.read_text().partition('id="data"')[2].partition("</script>")[0]
    )


def command(main: Callable[[list[str]], int], argv: list[str]) -> None:
    """A command line: status 0; or 1 and a line; or 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as stopped:
            status = 2 if stopped.code == 2 else -1
    said = [
        line
        for line in err.getvalue().splitlines()
        if line.startswith("mlx-embeddinggemma: ")
        and ": warning:" not in line
        and ": note:" not in line
    ]
    assert status in (0, 1, 2), f"{argv!r:.300} ends with {status}"
    assert status != 1 or (len(said) == 1 and len(said[0]) < 1100), (
        f"{argv!r:.300} says {err.getvalue()!r:.300}"
    )


@cache
def sound_model(base: Path) -> EmbeddingGemma:
    return EmbeddingGemma(base / "model")


ARGUMENTS: list[Any] = [
    *VALUES, np.nan, np.float32(0.5), np.int64(4), np.array([1, 2]), np.zeros((2, 3)), np.str_("x"),
    b"bytes", object(), len, range(3), {1, 2}, {"a": 1}, "a/b", "demo/../x", "x/" * 200, "missing.toml",
    "missing.gguf", [None], ["a", None], ["a", 5], [5], (), ("a",), float, [True], [256], [256, 256],
    ["T"], Path("x"), Path("\0"), "4bit", "8bit,", "rows.jsonl", "float16", "bfloat16", "binary", 256,
    1.5, "-1", "0",
]  # fmt: skip


def arguments(rng: Random, base: Path, folder: Path) -> None:
    """A function with one or two of its arguments replaced."""
    from mlx_embeddinggemma.bench.record import bench
    from mlx_embeddinggemma.convert import convert

    from mlx_embeddinggemma.embed import embed
    from mlx_embeddinggemma.finetune import finetune
    from mlx_embeddinggemma.finetune.trainer import Settings
    from mlx_embeddinggemma.search import search
    from mlx_embeddinggemma.verify import verify

    model, path = sound_model(base), str(base / "model")
    (folder / "note.txt").write_text("a note\n\nanother")
    (folder / "sts" / "T").mkdir(parents=True)
    (folder / "sts" / "T" / "test.default.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in TASKS["sts/T/test.default.jsonl"])
    )
    settings = dict.fromkeys(Settings.__dataclass_fields__)
    settings |= {name: field.default for name, field in Settings.__dataclass_fields__.items()}
    encode = {
        "texts": TEXTS,
        "prompt_name": None,
        "prompt": None,
        "truncate_dim": None,
        "batch_tokens": None,
    }
    encode |= {
        "batch_size": None,
        "show_progress_bar": None,
        "precision": "float32",
        "return_mlx": False,
    }
    conversion = {"source": path, "output": "out", "recipe": "4bit", "group_size": None, "dtype": None}
    conversion |= {
        "force": False,
        "revision": None,
        "dense_from": None,
        "tokenizer": None,
        "dry_run": True,
    }
    conversion |= {"min_cosine": None, "calibration": None, "upload_repo": None, "progress": False}
    loading = {
        "model": path,
        "revision": None,
        "local_files_only": True,
        "truncate_dim": None,
        "dtype": None,
    }
    loading |= {"max_length": None, "dequantize": False}
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (EmbeddingGemma, loading),
        (model.encode, encode),
        (model.encode_query, encode),
        (model.encode_document, encode | {"titles": None}),
        (model.tokenize, {"texts": TEXTS}),
        (model.count_tokens, {"texts": TEXTS}),
        (model.similarity, {"embeddings1": np.ones((2, 256)), "embeddings2": np.ones((3, 256))}),
        (model.save_pretrained, {"folder": "out"}),
        (convert, conversion),
        (Settings, settings),
        (
            finetune,
            {
                "model": path,
                "train": "absent.jsonl",
                "output": "out",
                "eval": None,
                "corpus": None,
                "resume": False,
                "force": False,
            },
        ),
        (
            bench,
            {"models": [path], "dims": [128], "tasks": ["T"], "data": ".", "rounds": 0, "output": None},
        ),
        (
            embed,
            {
                "texts": ["a"],
                "input": None,
                "output": "x.npy",
                "model": path,
                "prompt_name": None,
                "dim": None,
            },
        ),
        (search, {"query": "a", "paths": ["note.txt"], "model": path, "dim": None, "top_k": 2}),
        (verify, {"model": path}),
    ]
    function, given = rng.choice(calls)
    given = dict(given)
    for _ in range(rng.choice([1, 1, 2])):
        given[rng.choice([*given])] = rng.choice(ARGUMENTS)
    if (
        function is bench
        and isinstance(given["rounds"], int)
        and not isinstance(given["rounds"], bool)
        and 0 < given["rounds"] <= 1000
    ):
        given["rounds"] = 0  # valid, and slow
    try:
        function(**given)
    except Exception as error:
        error.args = (f"{error}",)
        error.add_note(f"{getattr(function, '__qualname__', function)}({given!r:.500})")
        raise


def commands(rng: Random, base: Path, folder: Path) -> None:
    """A command line with one or two flags replaced."""
    from mlx_embeddinggemma.cli import main

    path = str(base / "model")
    (folder / "note.txt").write_text("a note\n\nanother")
    (folder / "rows.jsonl").write_text(
        '{"anchor": "a", "positive": "b"}\n{"anchor": "c", "positive": "d"}\n'
    )
    lines = [
        ["embed", "a text", "--model", path, "--dim", "128", "--prompt", "query", "--output", "x.npy"],
        ["search", "a", "note.txt", "--model", path, "--top-k", "2", "--dim", "128"],
        [
            "convert",
            path,
            "out",
            "--recipe",
            "4bit",
            "--min-cosine",
            "0.1",
            "--group-size",
            "32",
            "--dtype",
            "float32",
            "--dry-run",
        ],
        ["bench", "--model", path, "--dims", "5", "--tasks", "T", "--rounds", "0", "--data", "."],
        [
            "finetune",
            "--model",
            path,
            "--train",
            "absent.jsonl",
            "--output",
            "out",
            "--steps",
            "1",
            "--batch-size",
            "4",
            "--warmup",
            "0.1",
        ],
        ["verify", str(folder / "absent")],
    ]
    argv = rng.choice(lines)
    values = [
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1.5",
        "1e400",
        "9" * 400,
        "x" * 300,
        "~nosuchuser/x",
        "",
        " ",
        "\ud800",
        "768,768",
        "5",
        "True",
        "a\nb",
        "--",
        "é",
        "out",
        ".",
        "x/" * 300,
        "a/b",
    ]
    for _ in range(rng.choice([1, 1, 2])):
        argv[rng.randrange(1, len(argv))] = rng.choice(values)
    command(main, argv)


ALL = (settings, header, weights, tokenizer, gguf, recipe, rows, tasks, record, arguments, commands)
TARGETS: dict[str, Callable[[Random, Path, Path], None]] = {one.__name__: one for one in ALL}
