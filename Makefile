# Each target sets up what it needs: a virtual environment .venv with pinned versions.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types docs bench install clean

# The package and what `make demo` needs.
.venv/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

# What tests, lint and types need besides.
.venv/.dev: .venv/.core
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps torch-fidelity  # it asks for torchvision, its metrics don't
	@touch $@

install: .venv/.dev

demo: .venv/.core
	$(BIN)/dctransformer sample flowers64 --num 16 --seed 1 --guidance 1.5 --texture-guidance 1 --min-p 0.05 --out demo
	$(BIN)/dctransformer sample cats128 --num 8 --seed 0 --guidance 1.3 --out demo/cats
	@echo "contact sheets: demo/sheet.png, demo/cats/sheet.png · places: demo/heat-map.png · JPEG files: demo/sample-0000.jpg … sample-0015.jpg"

# One process per core, each with one thread, is faster than threads in every small product. Each begins with a stretch
# of files, so that few fixtures are made twice, and takes over tests from another when it has done its own.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

lint: .venv/.dev
	$(BIN)/ruff check src tests benchmarks scripts notebooks
	$(BIN)/ruff format --check src tests benchmarks scripts notebooks

types: .venv/.dev
	$(BIN)/pyright

# The API reference, made of the docstrings: build/docs/index.html.
docs: .venv/.dev
	$(BIN)/python scripts/reference.py build/docs

# make bench PHOTOS=folder/of/photographs DATA=prepared/flowers64
bench: .venv/.dev
	@test -n "$(PHOTOS)" -a -n "$(DATA)" || { echo "usage: make bench PHOTOS=folder/of/photographs DATA=prepared/set"; exit 2; }
	$(BIN)/python benchmarks/codec_parity.py $(PHOTOS) --limit 60
	$(BIN)/python benchmarks/prepare.py $(PHOTOS)
	$(BIN)/python benchmarks/coders.py $(DATA)
	$(BIN)/python benchmarks/codec_speed.py $(PHOTOS)
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/tasks.py $(DATA) --num 64

clean:
	rm -rf .venv demo build dist
