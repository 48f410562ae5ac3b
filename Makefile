# Two commands do everything: `make demo` and `make test`. PYTHON may name another interpreter.
PYTHON ?= python3
BIN := .venv/bin
# On Linux MLX needs a backend of its own; on a Mac it is Metal.
EXTRA := $(if $(filter Linux,$(shell uname -s)),[cpu])

.PHONY: demo test test-other-kernels bench readme lint clean

demo: .venv/demo.done
	rm -rf out/demo
	$(BIN)/mlx-embeddinggemma convert demo out/demo/8bit --recipe 8bit
	$(BIN)/mlx-embeddinggemma convert demo out/demo/4bit --recipe 4bit
	$(BIN)/mlx-embeddinggemma search "Which planet is closest to the Sun?" examples/texts --model demo --top-k 3
	$(BIN)/mlx-embeddinggemma search "how do I keep basil fresh" examples/texts --model out/demo/4bit --top-k 3
	$(BIN)/mlx-embeddinggemma bench --model demo out/demo/8bit out/demo/4bit --tasks STSBenchmark-captions XQuADRetrieval-en --rounds 1 --output out/demo/bench

test: .venv/test.done
	$(BIN)/python -m pytest

# What compares vectors, once more with the kernels that OpenBLAS has for processors without AVX-512.
COMPARING := test_loading test_encoder test_compute test_cli test_dropin test_pickle test_inputs test_convert test_convert_gguf test_other_tools test_parity
test-other-kernels: .venv/test.done
	OPENBLAS_CORETYPE=HASWELL $(BIN)/python -m pytest -q -m "not slow" $(COMPARING:%=tests/%.py)

# The demo checkpoint's full matrix; `results/demo` is committed.
RECIPES := 8bit 4bit 4bit-tuned mixed q4_0 q8_0

bench: .venv/demo.done
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	for recipe in $(RECIPES); do $(BIN)/mlx-embeddinggemma convert demo out/bench/$$recipe --recipe $$recipe --force || exit 1; done
	$(BIN)/mlx-embeddinggemma bench --model demo $(addprefix out/bench/,$(RECIPES)) --output results/demo

# Its tables, from the committed records.
readme: .venv/demo.done
	$(BIN)/python -m mlx_embeddinggemma.bench.readme

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo.done: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".$(EXTRA)"
	touch $@

# The version of torch is the one that parity was proven with.
.venv/test.done: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".$(EXTRA)"
	$(BIN)/python -m pip install --quiet --editable ".[test,reference,dev]"
	touch $@

clean:
	rm -rf .venv out build dist *.egg-info
