# The verbs of the house. `make` lists them; each sets up what it needs first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

# Pyright speaks about newer releases of itself on every run; the version is pinned on purpose.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo studio test test-compile check format lint types imports docs reference bench gpu goldens mini clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it (once; again when the lists of packages change)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,data,cluster,eval,gguf,diffusers,server,provenance,dev]'
	@touch $@

demo: setup ## set up, then draw a picture with the checkpoint that ships inside
	$(BIN)/petzval generate "a red apple on a white background" --seed 0 --out demo.png
	@echo "the picture is demo.png; its recipe: $(BIN)/petzval show demo.png"

studio: setup ## set up, then serve the studio and open its page in a browser
	$(BIN)/petzval serve --open

test: setup ## set up, then run every test
	$(BIN)/pytest -n $(WORKERS) --dist loadscope -q

test-compile: setup ## the few tests that compile, without the shape checks that tracing cannot pass
	PETZVAL_SHAPES=0 $(BIN)/pytest -q -m compile

check: lint types imports docs test ## everything that must hold before a change lands

format: setup ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: setup ## ruff: the reasoned rule set in pyproject.toml
	$(BIN)/ruff check .

types: setup ## pyright, strict, on src, tests, benchmarks and examples
	$(BIN)/pyright

imports: setup ## the import contract: rooms import downwards only
	$(BIN)/lint-imports --no-cache

docs: setup ## run README and guides; check that generated pages are up to date
	$(BIN)/cog -I . --check --check-fail-msg="run: make reference" ARCHITECTURE.md README.md docs/training.md docs/turbo.md docs/reference/*.md
	$(BIN)/pytest -q --markdown-docs README.md docs/guides

reference: setup ## write the generated parts of the documentation again
	$(BIN)/cog -I . -r ARCHITECTURE.md README.md docs/training.md docs/turbo.md docs/reference/*.md

bench: setup ## run the benchmarks, append their rows, write benchmarks/report.md
	$(BIN)/python -m benchmarks.runner
	$(BIN)/python -m benchmarks.waterfall

# Placements under a hard limit write 21 GB first: they are asked for by name.
GPU_TESTS := tests/kernels tests/models tests/bench tests/training/test_prefetch.py \
	tests/inference/test_graphs.py tests/inference/test_pipeline.py
GPU_SECONDS ?= 480

gpu: ## on a GPU, with the packages of PYTHON: its tests, then every waterfall, 12 minutes at most
	-PETZVAL_SHAPES=0 PYTHONPATH=src timeout 240 $(PYTHON) -m pytest -q -m gpu $(GPU_TESTS)
	PYTHONPATH=src $(PYTHON) -m benchmarks.waterfall --device cuda --seconds $(GPU_SECONDS)

goldens: setup ## every golden tensor against this code, case by case with error and limit
	$(BIN)/petzval verify --goldens tests/goldens/public tests/goldens/public/checkpoint

mini: setup ## make the checkpoints that ship inside, from nothing: hours on two cores, resumable
	$(BIN)/petzval data build mini
	$(BIN)/petzval pretrain mini_tokenizer
	$(BIN)/petzval pretrain mini_vae
	$(BIN)/petzval pretrain mini_language_model
	$(BIN)/petzval pretrain mini_latents
	$(BIN)/petzval pretrain mini_denoiser
	$(BIN)/petzval pretrain mini_export
	$(BIN)/python -m petzval.evals.train_scorers --data build/data/mini
	$(BIN)/petzval evaluate --model build/runs/export --page docs/mini.md
	$(BIN)/petzval distill mini_guided --teacher build/runs/export --latents build/runs/latents --out build/runs/guided
	$(BIN)/petzval distill mini_turbo --teacher build/runs/export --start build/runs/guided/checkpoint --latents build/runs/latents --out build/runs/turbo
	@echo "build/runs/export and its student build/runs/turbo/checkpoint go in place of those that ship inside:"
	@echo "  rm -r src/petzval/assets/mini && cp -r build/runs/export src/petzval/assets/mini"
	@echo "  rm -r src/petzval/assets/mini-turbo && cp -r build/runs/turbo/checkpoint src/petzval/assets/mini-turbo"
	@echo "  $(BIN)/python -m petzval.inference.projection"

clean: ## remove caches, keep .venv and build
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
