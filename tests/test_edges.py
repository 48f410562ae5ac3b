"""Numbers at their edges: no vector is ever NaN, infinite or zero, no threshold is passed by NaN."""

import ast
import json
import math
import shutil
from pathlib import Path

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.bench import compare as engines
from mlx_embeddinggemma.bench import record as bench_record
from mlx_embeddinggemma.convert import Format, Recipe, conversion, convert, fidelity
from mlx_embeddinggemma.convert.recipes import FIXED, MOST_RULES, affine, find_recipe
from safetensors.numpy import load_file, save_file

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError, given, strict_json, unit, verify
from mlx_embeddinggemma.cli import main
from mlx_embeddinggemma.finetune import finetune, state, trainer
from mlx_embeddinggemma.finetune.data import Dataset, Row

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A layer, a head, vectors of 768."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "head_dim": 64}
    sizes |= {"num_attention_heads": 1, "dense": (64, 768)}
    return checkpoints.write_tiny(tmp_path_factory.mktemp("small") / "model", **sizes)


@pytest.fixture(autouse=True)
def short_sample(monkeypatch):
    sample = [f"sample text number {i} of twelve" for i in range(12)]
    monkeypatch.setattr("mlx_embeddinggemma.convert.conversion.SAMPLE", sample)


def changed(small: Path, out: Path, file: str, name: str, change) -> Path:
    shutil.copytree(small, out)
    tensors = load_file(out / file)
    change(tensors[name])
    save_file(tensors, out / file, metadata={"format": "pt"})
    return out


def flip(weight: np.ndarray) -> None:
    """The highest bit of the exponent of one weight: some 0.05 becomes some 1e37."""
    bits = weight.view(np.uint32)
    bits[(3,) * weight.ndim] ^= 1 << 30


def to_1_6e29(weight: np.ndarray) -> None:
    weight[3, 3] = 1.6e29


DAMAGES = {
    "one bit of the head": ("3_Dense/model.safetensors", "linear.weight", flip),
    "1.6e29 in the head": ("3_Dense/model.safetensors", "linear.weight", to_1_6e29),
    "beyond every cut": (
        "3_Dense/model.safetensors",
        "linear.weight",
        lambda w: w.__setitem__((700, 0), 1e36),
    ),
    "a first layer of 1e30": ("2_Dense/model.safetensors", "linear.weight", lambda w: w.fill(1e30)),
    "one bit of the last norm": ("model.safetensors", "norm.weight", flip),
    "a head of zeros": ("3_Dense/model.safetensors", "linear.weight", lambda w: w.fill(0)),
    "a head of 1e-30": ("3_Dense/model.safetensors", "linear.weight", lambda w: w.fill(1e-30)),
    "zeros up to 128": ("3_Dense/model.safetensors", "linear.weight", lambda w: w[:128].fill(0)),
}


@pytest.fixture(params=DAMAGES)
def damaged(request, small, tmp_path) -> Path:
    return changed(small, tmp_path / "damaged", *DAMAGES[request.param])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vector_is_of_unit_length_or_an_error_at_every_size(damaged, dtype):
    model = EmbeddingGemma(damaged, dtype=dtype)
    refused = []
    for dim in model.dimensions:
        try:
            vectors = model.encode(["a text", "another"], truncate_dim=dim)
            assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
        except EmbeddingGemmaError as error:
            refused.append(str(error))
    assert refused and {"text 0 came out as NaN, infinite or zero" in said for said in refused} == {
        True
    }


def test_no_command_succeeds_with_damaged_vectors(small, tmp_path, capsys):
    damaged = changed(small, tmp_path / "damaged", *DAMAGES["1.6e29 in the head"])
    (tmp_path / "rows.jsonl").write_text('{"anchor": "a", "positive": "b"}\n' * 2)
    data = tmp_path / "data" / "sts" / "T"
    data.mkdir(parents=True)
    (data / "test.default.jsonl").write_text(
        "".join(json.dumps({"s1": "a", "s2": "b" * i, "score": i}) + "\n" for i in range(3))
    )
    (tmp_path / "note.txt").write_text("a note")
    before = sorted(tmp_path.iterdir())
    for argv in (
        ["embed", "a text", "--model", damaged],
        ["search", "a", tmp_path / "note.txt", "--model", damaged],
        ["convert", damaged, tmp_path / "out", "--recipe", "bf16"],
        ["convert", damaged, tmp_path / "out", "--recipe", "bf16", "--min-cosine", "0.99"],
        ["bench", "--model", damaged, "--data", tmp_path / "data", "--tasks", "T", "--rounds", "0"],
        ["verify", damaged],
    ):
        assert main([str(part) for part in argv]) == 1, argv
        said = capsys.readouterr()
        assert said.out == "" and "NaN, infinite or zero" in said.err and said.err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
    argv = [
        "finetune",
        "--model",
        damaged,
        "--train",
        tmp_path / "rows.jsonl",
        "--output",
        tmp_path / "o",
    ]
    assert main([*map(str, argv), "--steps", "1", "--batch-size", "2"]) == 1
    assert "the model's vectors, before any training, came out as NaN" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_conversion_whose_cut_has_no_direction_is_refused(small, tmp_path):
    """The full vectors are right; of the 128-dimensional ones every figure would be NaN."""
    damaged = changed(small, tmp_path / "damaged", *DAMAGES["zeros up to 128"])
    with pytest.raises(EmbeddingGemmaError, match="the source's vectors cut to 128 came out as NaN"):
        convert(damaged, tmp_path / "out", recipe="bf16")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("error")
def test_calibration_texts_that_overflow_are_refused_before_any_rounding(small, tmp_path):
    damaged = changed(
        small, tmp_path / "damaged", "model.safetensors", "layers.0.mlp.down_proj.weight", flip
    )
    with pytest.raises(EmbeddingGemmaError, match="calibration texts give NaN or infinite"):
        convert(damaged, tmp_path / "out", recipe="4bit-tuned")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, 0.99, 1e-30, 1e30])
def test_rows_of_another_length_are_found(bad):
    vectors = np.eye(4, 8, dtype=np.float32)
    assert not len(unit.not_unit(vectors)) and not len(unit.not_unit(np.empty((0, 8))))
    vectors[2, 2] = bad
    assert unit.not_unit(vectors).tolist() == [2]
    with pytest.raises(EmbeddingGemmaError, match=r"ours came out .* \(1 of 4, the first is 2\)"):
        unit.check_unit(vectors, "ours")


# Thresholds.


def test_min_cosine_is_not_met_by_nan(small, tmp_path, monkeypatch):
    nan = fidelity.Fidelity(math.nan, math.nan, math.nan, math.nan)
    monkeypatch.setattr(conversion, "_fill", lambda *_: ({768: nan}, {}))
    with pytest.raises(EmbeddingGemmaError, match="mean cosine to the source is nan"):
        convert(small, tmp_path / "out", recipe="bf16", min_cosine=-1)


def test_no_conversion_writes_nan(small, tmp_path, monkeypatch):
    nan = fidelity.Fidelity(1.0, math.nan, 1.0, 1.0)
    monkeypatch.setattr(conversion, "compare", lambda *_: {768: nan})
    with pytest.raises(EmbeddingGemmaError, match="NaN or infinity at fidelity.768.percentile_1"):
        convert(small, tmp_path / "out", recipe="bf16")
    assert not (tmp_path / "out").exists()


def test_verifys_checks_are_not_passed_by_nan(small, monkeypatch):
    encoder = EmbeddingGemma(small)

    def encode(texts, truncate_dim=768, **_):
        """The first of several texts has a right vector, where the built-in max would stay."""
        if isinstance(texts, str):
            return np.full(truncate_dim, np.nan)
        vectors = np.eye(len(texts), truncate_dim)
        vectors[1:] = np.nan
        return vectors

    nan = mx.full((2, 7, 64), mx.nan)
    monkeypatch.setattr(encoder, "encode", encode)
    monkeypatch.setattr(encoder.network, "hidden_states", lambda ids, lengths: nan)
    checks = {check.name: check.passed for check in verify._invariants(encoder)}
    assert checks == {"alone = in a batch": False, "unit length": False, "both directions": False}


def test_the_worst_cosine_of_engines_is_not_passed_over():
    a, nan, zero = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.zeros((2, 2))
    nan[1] = np.nan
    assert engines.worst_cosine(a, a) == 1
    assert engines.worst_cosine(nan, a) == engines.worst_cosine(a, zero) == 0


# JSON.


def test_json_is_written_through_one_strict_writer():
    """Whoever calls json itself says allow_nan=False."""
    for room in ("mlx_embeddinggemma", "convert", "bench"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                    said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert said.get("allow_nan") == "False", f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (math.nan, "the top"),
        ({"a": [1, {"b": math.inf}]}, "a.1.b"),
        ([0.5, (1, -math.inf)], "1.1"),
        ({"a": {1: np.float64("nan")}}, "a.1"),
    ],
)
def test_the_writer_says_where_a_number_is_not_finite(value, place):
    with pytest.raises(EmbeddingGemmaError, match=rf"NaN or infinity at {place}$"):
        strict_json.dumps(value)


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", "-Infinity", "1e999", '{"a": -1e999}', "[" * 10**5, "9" * 5000, b"\xff", ""],
)
def test_the_reader_refuses_what_the_writer_would(text):
    with pytest.raises(ValueError, match=".") as caught:
        strict_json.loads(text)
    assert len(str(caught.value)) < 300


# Recipes.

PATTERNS = "\n".join(f'"layers.{i}.*" = 4' for i in range(50_000))
RECIPES = {
    "50,000 patterns": (f"[matrices]\n{PATTERNS}", "at most 65,536 bytes, 1,000 a line"),
    "257 patterns": (
        "[matrices]\n" + "\n".join(f'"{i}" = 4' for i in range(MOST_RULES + 1)),
        "expected 256 patterns of 200 characters at most, got 257, the longest of 3",
    ),
    "a pattern of 300": (f'[matrices]\n"{"*a" * 150}" = 4', "got 1, the longest of 300"),
    "a line of 2,000": (f'description = "{"x" * 2000}"', "1,000 a line"),
    "a key of 30,000 parts": ("a" + ".a" * 30_000 + " = 1", "1,000 a line"),
    "deep lists": ("a = " + "[\n" * 20_000, "nested too deeply|is not TOML"),
    "deep tables": (
        "[matrices]\n" + "\n".join(f"{'a.' * 400}a{i} = 1" for i in range(9)),
        "expected for 'a'",
    ),
    "a number of 5,000 digits": ("a = [" + "9\n" * 5 + "]", "is not TOML"),
    "a number of 900 digits": (f'[matrices]\n"*" = {"9" * 900}', "got 999"),
    "bits true": ('[matrices]\n"*" = true', "got True"),
    "bits 4.0": ('[matrices]\n"*" = 4.0', "got 4.0"),
    "bits 16.0": ('[matrices]\n"*" = 16.0', "got 16.0"),
    "bits nan": ('[matrices]\n"*" = nan', "got nan"),
    "bits -4": ('[matrices]\n"*" = -4', "got -4"),
    "bits in a list": ('[matrices]\n"*" = [4]', r"got \[4\]"),
    "group_size a string": ('[matrices]\n"*" = {bits = 4, group_size = "64"}', "'group_size': '64'"),
    "group_size true": ('[matrices]\n"*" = {bits = 4, group_size = true}', "'group_size': True"),
    "group_size 64.0": ('[matrices]\n"*" = {bits = 4, group_size = 64.0}', "64.0"),
    "group_size huge": ('[matrices]\n"*" = {bits = 4, group_size = 9223372036854775807}', "92233720"),
    "bits missing": ('[matrices]\n"*" = {group_size = 64}', "got {'group_size': 64}"),
    "an unknown key of a format": ('[matrices]\n"*" = {bits = 4, mode = "x"}', "'mode': 'x'"),
    "an unknown key": ('x = 1\n[matrices]\n"*" = 4', r"got \['x', 'matrices'\]"),
    "matrices a list": ("matrices = [4]", r"expected a table \[matrices\]"),
    "dtype a list": ('dtype = ["float32"]\n[matrices]\n"*" = 4', r"got \['float32'\]"),
    "dtype a number": ('dtype = 32\n[matrices]\n"*" = 4', "got 32"),
    "description a number": ('description = 5\n[matrices]\n"*" = 4', "expected a description"),
    "description of lines": ('description = """a\nb"""\n[matrices]\n"*" = 4', r"got 'a\\nb'"),
    "a date": ('[matrices]\n"*" = 2020-01-01', "got datetime.date"),
    "not UTF-8": ("\udcff", "is not TOML"),
    "a key twice": ('[matrices]\n"*" = 4\n"*" = 8', "is not TOML"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_off_is_refused_at_once_with_its_file(name, tmp_path):
    text, says = RECIPES[name]
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        find_recipe(path)
    message = str(caught.value)
    assert (
        "\n" not in message and len(message) < 500 and (str(path) in message or "recipe r:" in message)
    )


def test_patterns_of_many_stars_take_no_time(tmp_path):
    """As many as a recipe may hold, on every matrix of a model; the standard's `*` does not go back."""
    rows = [f'"{"*a" * 95}{i}" = 4' for i in range(MOST_RULES)]
    (tmp_path / "r.toml").write_text("[matrices]\n" + "\n".join(rows))
    recipe = find_recipe(tmp_path / "r.toml")
    assert recipe.format_of("a" * 500) is None


def test_a_pattern_that_matches_nothing_is_said(small, tmp_path):
    (tmp_path / "r.toml").write_text('[matrices]\n"*.attention.*" = 8\n"*" = 4')
    report = convert(small, tmp_path / "out", recipe=tmp_path / "r.toml", dry_run=True)
    assert report.notes == ["no matrix is called *.attention.*, as recipe r has it"]


@pytest.mark.parametrize(
    "size",
    [
        ("affine", 7, 64),
        ("affine", True, 64),
        ("affine", 4, 64.0),
        ("affine", 4, 48),
        ("x", 4, 32),
        (["affine"], 4, 64),
        ("q4_0", 8, 32),
        ("affine", "4", 64),
        ("affine", [4], 64),
    ],
)
def test_formats_that_nobody_can_pack_are_refused(size):
    with pytest.raises(EmbeddingGemmaError, match="expected a format of affine with 2, 3, 4"):
        Format(*size)
    assert affine(4) == Format("affine", 4, 64) and FIXED["nvfp4"].group_size == 16


def test_recipes_made_in_python_are_checked():
    with pytest.raises(TypeError, match="expected rules of"):
        Recipe("r", "", (("*", 4),))
    with pytest.raises(TypeError, match="expected rules to be a list, got '\\*'"):
        Recipe("r", "", "*")
    with pytest.raises(EmbeddingGemmaError, match="expected budget from 2 to 32, got nan"):
        Recipe("r", "", (("*", None),), budget=math.nan)
    with pytest.raises(EmbeddingGemmaError, match="recipe r: expected dtype"):
        Recipe("r", "", (("*", None),), dtype="float16")


# Arguments.

CONVERT = [
    ({"source": 5}, TypeError, "expected source to be a path, got int"),
    ({"source": "a\0b"}, EmbeddingGemmaError, "source: .* null byte"),
    ({"source": "x" * 300}, EmbeddingGemmaError, "source: .* name too long"),
    (
        {"source": "~nosuchuser/x"},
        EmbeddingGemmaError,
        "source: there is no such user, or no home",
    ),
    ({"output": b"x"}, TypeError, "expected output to be a path, got bytes"),
    ({"output": "a\0b"}, EmbeddingGemmaError, "output: .* null byte"),
    ({"output": "~nosuchuser/x"}, EmbeddingGemmaError, "output: there is no such user"),
    ({"output": "\ud800"}, EmbeddingGemmaError, "output: expected a path"),
    ({"recipe": 5}, TypeError, "expected recipe to be a path, got int"),
    ({"recipe": "x" * 300}, EmbeddingGemmaError, "recipe: .* name too long"),
    ({"recipe": "9bit"}, EmbeddingGemmaError, "expected a recipe .* got '9bit'"),
    ({"group_size": "64"}, TypeError, "expected group_size to be a whole number, got '64'"),
    ({"group_size": 64.0}, TypeError, "expected group_size to be a whole number, got 64.0"),
    ({"group_size": True}, TypeError, "expected group_size to be a whole number, got True"),
    ({"group_size": -64}, EmbeddingGemmaError, "expected group_size from 1"),
    ({"group_size": 10**30}, EmbeddingGemmaError, "expected group_size from 1"),
    ({"group_size": 48}, EmbeddingGemmaError, "expected a group size of 32, 64, 128, got 48"),
    ({"dtype": ["float32"]}, TypeError, "expected dtype to be a string"),
    ({"dtype": np.array(["float32", "x"])}, TypeError, "expected dtype to be a string"),
    (
        {"dtype": "float16"},
        EmbeddingGemmaError,
        "expected dtype float32 or bfloat16|bfloat16 or float32",
    ),
    ({"min_cosine": math.nan}, EmbeddingGemmaError, "expected min_cosine from -1 to 1, got nan"),
    ({"min_cosine": math.inf}, EmbeddingGemmaError, "expected min_cosine from -1 to 1, got inf"),
    ({"min_cosine": 1.01}, EmbeddingGemmaError, "expected min_cosine from -1 to 1, got 1.01"),
    ({"min_cosine": 10**400}, EmbeddingGemmaError, "expected min_cosine from -1 to 1"),
    ({"min_cosine": "0.9"}, TypeError, "expected min_cosine to be a number, got '0.9'"),
    ({"min_cosine": True}, TypeError, "expected min_cosine to be a number, got True"),
    ({"min_cosine": np.array([0.5, 0.6])}, TypeError, "expected min_cosine to be a number"),
    ({"calibration": 5}, TypeError, "expected calibration to be a path"),
    ({"dense_from": "a\0"}, EmbeddingGemmaError, "dense_from: .* null byte"),
    ({"tokenizer": "x" * 300}, EmbeddingGemmaError, "tokenizer: .* name too long"),
    ({"force": "no"}, TypeError, "expected force to be True or False, got 'no'"),
    ({"dry_run": 1}, TypeError, "expected dry_run to be True or False, got 1"),
    ({"revision": 5}, TypeError, "expected revision to be a string"),
    ({"upload_repo": 5}, TypeError, "expected upload_repo to be a string"),
]


@pytest.mark.parametrize(("options", "error", "says"), CONVERT)
def test_converts_arguments_are_named(options, error, says, small, tmp_path):
    with pytest.raises(error, match=says) as caught:
        convert(**{"source": small, "output": tmp_path / "out", "recipe": "4bit"} | options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


FINETUNE = [
    ({"steps": 1.5}, TypeError, "expected steps to be a whole number, got 1.5"),
    ({"steps": 0}, EmbeddingGemmaError, "expected steps from 1 to 1,000,000,000, got 0"),
    ({"steps": 10**30}, EmbeddingGemmaError, "expected steps from 1"),
    ({"epochs": math.inf}, EmbeddingGemmaError, "expected epochs over 0 to 1e\\+06, got inf"),
    ({"epochs": 10**400}, EmbeddingGemmaError, "expected epochs over 0"),
    ({"epochs": "1"}, TypeError, "expected epochs to be a number"),
    ({"batch_size": True}, TypeError, "expected batch_size to be a whole number"),
    ({"batch_size": np.array([4, 5])}, TypeError, "expected batch_size to be a whole number"),
    ({"learning_rate": math.nan}, EmbeddingGemmaError, "expected learning_rate over 0"),
    ({"learning_rate": -1}, EmbeddingGemmaError, "expected learning_rate over 0"),
    ({"scale": math.nan}, EmbeddingGemmaError, "expected scale over 0"),
    ({"spread": math.nan}, EmbeddingGemmaError, "expected spread from 0"),
    ({"spread": "x"}, TypeError, "expected spread to be a number"),
    ({"warmup": math.nan}, EmbeddingGemmaError, "expected warmup from 0 to 1, got nan"),
    ({"warmup": 2}, EmbeddingGemmaError, "expected warmup from 0 to 1, got 2"),
    ({"seed": 2**63}, EmbeddingGemmaError, "expected seed from 0"),
    ({"seed": -1}, EmbeddingGemmaError, "expected seed from 0"),
    ({"matryoshka": "no"}, TypeError, "expected matryoshka to be True or False"),
    ({"quantize": 4}, TypeError, "expected quantize to be a string"),
    ({"quantize": "4bit,"}, EmbeddingGemmaError, "expected quantize .* got ''"),
    ({"task": ["none"]}, TypeError, "expected task to be a string"),
    ({"task": "x" * 5000}, EmbeddingGemmaError, "expected task"),
    ({"loss": 5}, TypeError, "expected loss to be a string"),
    ({"hardness": "soft"}, EmbeddingGemmaError, "expected hardness"),
    ({"batch_size": None}, TypeError, "expected batch_size to be a whole number, got None"),
    ({"warmup": None}, TypeError, "expected warmup to be a number, got None"),
    ({"quantize": 0}, TypeError, "expected quantize to be a string, got 0"),
    ({"hardness": []}, TypeError, "expected hardness to be a string"),
    ({"lora_rank": 10**5}, EmbeddingGemmaError, "expected lora_rank from 0 to 1,024"),
    ({"max_length": 2}, EmbeddingGemmaError, "expected max_length from 3"),
    ({"nonsense": 1}, EmbeddingGemmaError, "unknown settings: nonsense"),
    ({"output": ""}, EmbeddingGemmaError, "output: expected a folder with a name"),
    ({"output": "/"}, EmbeddingGemmaError, "output: expected a folder with a name"),
    ({"output": ".."}, EmbeddingGemmaError, "output: expected a folder with a name"),
    ({"output": "a\0b"}, EmbeddingGemmaError, "output: .* null byte"),
    ({"output": 5}, TypeError, "expected output to be a path"),
    ({"train": "x" * 300}, EmbeddingGemmaError, "train: .* name too long"),
    ({"train": None}, TypeError, "expected train to be a path, got NoneType"),
    ({"eval": 5}, TypeError, "expected eval to be a path"),
    ({"corpus": "~nosuchuser/x"}, EmbeddingGemmaError, "corpus: there is no such user"),
    ({"force": "yes"}, TypeError, "expected force to be True or False"),
]


@pytest.mark.parametrize(("options", "error", "says"), FINETUNE)
def test_finetunes_arguments_are_named(options, error, says, small, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"anchor": "a", "positive": "b"}\n' * 2)
    with pytest.raises(error, match=says) as caught:
        finetune(**{"model": small, "train": rows, "output": tmp_path / "out", "steps": 1} | options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert list(tmp_path.iterdir()) == [rows]


def test_settings_of_numpys_are_kept_as_pythons():
    settings = trainer.Settings(steps=np.int64(3), warmup=np.float32(0.5), epochs=np.float64(2))
    assert [type(getattr(settings, name)) for name in ("steps", "warmup", "epochs")] == [
        int,
        float,
        float,
    ]
    assert (
        trainer.Settings(mini_batch_size=None, loss=lambda columns, targets: columns[0].sum()).steps
        is None
    )


def test_a_file_or_a_foreign_folder_is_no_output_even_by_force(small, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"anchor": "a", "positive": "b"}\n' * 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    for output, says in ((rows, "is a file"), (tmp_path / "mine", "is no checkpoint")):
        with pytest.raises(EmbeddingGemmaError, match=says):
            finetune(small, rows, output, force=True, steps=1)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("kind", "row", "error", "says"),
    [
        ("scored", Row(("a", "b"), score=math.inf), EmbeddingGemmaError, "row 1's score"),
        ("scored", Row(("a", "b"), score="1"), TypeError, "row 1's score to be a number"),
        (
            "vectors",
            Row(("a",), vector=[math.nan, 1]),
            EmbeddingGemmaError,
            "row 1: expected finite vectors",
        ),
        (
            "vectors",
            Row(("a",), vector=[0.0, 0.0]),
            EmbeddingGemmaError,
            "row 1: expected finite vectors",
        ),
        ("pairs", Row(("a", None)), TypeError, "row 1: expected texts of strings"),
        ("pairs", Row(()), TypeError, "row 1: expected texts of strings"),
    ],
)
def test_rows_made_in_python_are_checked(kind, row, error, says, small, tmp_path):
    first = {"scored": Row(("a", "b"), score=1.0), "vectors": Row(("a",), vector=[1.0, 0.5])}
    data = Dataset(kind, [first.get(kind, Row(("a", "b"))), row])
    with pytest.raises(error, match=says):
        finetune(small, data, tmp_path / "out", steps=1)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("a", "b", 0.5), ("c", "d", 0.5)], "held-out rows whose scores differ, .* all 2 are 0.5"),
        ([("a", "b", 0.5)], "held-out rows whose (scores|cosines) differ"),
        ([("a", "b", 0.5), ("a", "b", 0.6)], "held-out rows whose cosines differ"),
    ],
)
def test_held_out_rows_that_rank_nothing_are_an_error_not_nan(rows, says, small, tmp_path):
    columns = ("sentence1", "sentence2", "score")
    path, train = tmp_path / "eval.jsonl", tmp_path / "train.jsonl"
    for file, content in ((path, rows), (train, [("a", "b", 1), ("c", "d", 0)])):
        lines = [json.dumps(dict(zip(columns, row, strict=True)) | {"task": "none"}) for row in content]
        file.write_text("\n".join(lines))
    with pytest.raises(EmbeddingGemmaError, match=says):
        finetune(small, train, tmp_path / "out", eval=path, steps=1, batch_size=2)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def stopped(small, tmp_path, monkeypatch):
    """An interrupted run: two of three steps done."""
    train = tmp_path / "train.jsonl"
    train.write_text('{"anchor": "a", "positive": "b"}\n{"anchor": "c", "positive": "d"}\n')
    arguments = (small, train, tmp_path / "out")
    settings = {"steps": 3, "save_every": 2, "batch_size": 2}
    step = trainer.Run._step

    def stop(self, model, optimizer, done):
        if done == 2:
            raise EmbeddingGemmaError("stopped")
        return step(self, model, optimizer, done)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "_step", stop)
        with pytest.raises(EmbeddingGemmaError, match="stopped"):
            finetune(*arguments, **settings)
    return arguments, settings, tmp_path / "out.run"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: (run / "settings.json").unlink(), "has no settings.json"),
        (lambda run: (run / "settings.json").write_text("[5]"), "expected a JSON object"),
        (lambda run: (run / "settings.json").write_text("[" * 10**5), "is not JSON"),
        (lambda run: (run / "settings.json").write_text("{}"), "started with other settings"),
        (
            lambda run: mx.save_safetensors(
                str(next(run.glob("step-*")) / "parameters.safetensors"), {"x": mx.zeros((2,))}
            ),
            "is of another network",
        ),
        (
            lambda run: mx.save_safetensors(
                str(next(run.glob("step-*")) / "optimizer.safetensors"), {"x": mx.array([math.nan])}
            ),
            "holds NaN or infinite numbers",
        ),
    ],
)
def test_a_damaged_run_does_not_resume_and_says_why(damage, says, stopped):
    arguments, settings, run = stopped
    damage(run)
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        finetune(*arguments, resume=True, **settings)
    assert "\n" not in str(caught.value)


def test_strange_names_and_lines_in_a_runs_folder_are_passed_over(stopped):
    arguments, settings, run = stopped
    (run / "step-old").mkdir()
    with (run / "log.jsonl").open("a") as log:
        log.write('5\n{"loss": 1}\n{"step": NaN}\n[' + "[" * 10**5 + "\n")
    assert [state.step_of(path) for path in state.checkpoints(run)] == [2]
    assert finetune(*arguments, resume=True, **settings).steps == 3


COMMANDS = [
    (["convert", "demo", "out", "--min-cosine", "nan"], 1, "expected min_cosine from -1 to 1, got nan"),
    (["convert", "demo", "out", "--min-cosine", "x"], 2, "argument --min-cosine"),
    (["convert", "demo", "out", "--group-size", "1.5"], 2, "argument --group-size"),
    (["convert", "~nosuchuser/x", "out"], 1, "source: there is no such user"),
    (["convert", "demo", "x" * 300], 1, "output: .* name too long|name too long"),
    (["convert", "demo", "out", "--recipe", "x" * 300], 1, "name too long"),
    (["bench", "--rounds", "-1"], 1, "expected rounds from 0 to 1,000, got -1"),
    (["bench", "--dims", "5", "--rounds", "0"], 1, "has dimensions 768, 512, 256, 128, not 5"),
    (["bench", "--dims", "768,768"], 2, "argument --dims: invalid int value: '768,768'"),
    (["bench", "--data", "~nosuchuser/x"], 1, "data: there is no such user"),
    (["bench", "--output", "x" * 300], 1, "--output: .* name too long|name too long"),
    (["bench", "--tasks", "x" * 300], 1, "task"),
    (
        ["finetune", "--model", "demo", "--train", "a", "--output", "b", "--steps", "0"],
        1,
        "expected steps",
    ),
    (
        ["finetune", "--model", "demo", "--train", "a", "--output", "b", "--warmup", "nan"],
        1,
        "expected warmup",
    ),
    (
        ["finetune", "--model", "demo", "--train", "a", "--output", "b", "--epochs", "inf"],
        1,
        "expected epochs",
    ),
    (
        ["finetune", "--model", "demo", "--train", "x" * 300, "--output", "b"],
        1,
        "train: .* name too long",
    ),
]


@pytest.mark.parametrize(("argv", "status", "says"), COMMANDS)
def test_a_flag_that_is_off_is_named(argv, status, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        got = main(argv)
    except SystemExit as stopped:
        got = stopped.code
    said = capsys.readouterr()
    assert got == status and said.out == ""
    last = said.err.strip().splitlines()[-1]
    assert (status == 2 or said.err.count("\n") == 1) and len(last) < 1000
    import re

    assert re.search(says, last)
    assert not list(tmp_path.iterdir())


def test_a_value_is_shown_on_one_short_line():
    deep = json.loads("[" * 900 + "]" * 900)
    for value in (10**5000, "x" * 5000, np.zeros((50, 50)), [[0] * 50] * 50, "a\nb", deep):
        shown = given.shown(value)
        assert len(shown) <= 80 and "\n" not in shown


def test_a_record_cannot_hold_nan(tmp_path):
    journal = bench_record.Journal(tmp_path / "j", {"run": 1})
    with pytest.raises(EmbeddingGemmaError, match="NaN or infinity at 1.score"):
        journal.put("step", {"score": math.nan})
    assert "step" not in journal and "NaN" not in (tmp_path / "j").read_text()
