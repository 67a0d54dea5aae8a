# From a bare Python to everything: `make demo` shows all of brats, `make test` checks all of it,
# and `make quick` runs the tests that are not slow, on every CPU.

PYTHON ?= python3
BIN := .venv/bin
# Touched last, so that a set-up that was cut short is done again.
READY := .venv/ready

# In one process per CPU.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8

# Without Python's caches every process that a test starts would compile all of brats again.
unexport PYTHONDONTWRITEBYTECODE

# Inputs per reader of `make fuzz`.
FUZZ ?= 10000

.PHONY: demo test quick faults fuzz lint completions docs dist check-wheel check-lowest bench-feed bench-train bench-quality bench-predict \
	bench-evaluate bench-mesh gpu-check clean

demo: $(READY)
	$(BIN)/brats demo --overwrite

# pytest last: its closing line says how many passed. The tests of a slow file share what was
# costly to make, so they stay together.
test: lint quick
	$(PYTEST) -m slow --dist loadfile

# A process that has nothing left to do takes tests from the others.
quick: $(READY)
	$(PYTEST) -m "not slow" --dist worksteal

# Interrupts every command that writes, some 200 times each; one after another, each below ten
# minutes. FAULTS="mesh view" takes these alone.
FAULTS ?= split compare evaluate evaluate--report mesh view view--png check--fix store predict \
	train import export demo
faults: $(READY)
	@for each in $(FAULTS); do $(BIN)/python tests/interruptions.py $$each || exit 1; done

# Nightly: so many inputs, other ones each time, for every reader of files; says how many it took.
# A test may take longer than any of the suite.
fuzz: $(READY)
	FUZZ=$(FUZZ) $(PYTEST) --dist worksteal -o faulthandler_timeout=0 --hypothesis-show-statistics \
		tests/test_fuzzed_files.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first, and by its exact version: so pip takes it as the machine offers it (a CPU build,
# if that is what its index or wheel folder holds).
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "brats needs Python 3.10 or later: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(READY)

# BENCH=--help tells what it can do besides; the peers' versions are pinned.
bench-feed: .venv/peers
	$(BIN)/python benchmarks/bench_feed.py $(BENCH)

bench-train: .venv/peers
	$(BIN)/python benchmarks/bench_train.py $(BENCH)

bench-quality: .venv/peers
	$(BIN)/python benchmarks/bench_quality.py $(BENCH)

# With the newest run's best network, or with BENCH="--model RUN".
bench-predict: .venv/peers
	$(BIN)/python benchmarks/bench_predict.py $(BENCH)

# What a machine with a GPU, PyTorch and no network needs to be checked, in .gpu; see there: run.sh.
CASES ?= ../shared/data/cases
gpu-check: $(READY)
	$(BIN)/python benchmarks/pack_gpu_check.py --cases $(CASES)

bench-evaluate: .venv/peers
	$(BIN)/python benchmarks/bench_evaluate.py $(BENCH)

# Needs no trained network. BENCH="--only goals --every 6" is a short look.
bench-mesh: .venv/peers
	$(BIN)/python benchmarks/bench_mesh.py $(BENCH)

.venv/peers: $(READY) benchmarks/requirements.txt
	$(BIN)/python -m pip install --no-deps -r benchmarks/requirements.txt
	touch .venv/peers

completions: $(READY)
	$(BIN)/python completions/make.py

docs: $(READY)
	$(BIN)/python docs/make.py

# The source distribution, and the wheel made of it.
dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build

# Installs wheel and source distribution outside this folder and uses them there; CHECK= takes
# options: see the script.
check-wheel: dist
	$(PYTHON) tests/installed.py dist/*.whl --sdist dist/*.tar.gz $(CHECK)

# torch alone stays as constraints.txt has it, because an index may have no other CPU build;
# CHECK="--torch 2.6.0" takes another.
check-lowest: dist
	$(PYTHON) tests/installed.py dist/*.whl --sdist dist/*.tar.gz --lowest $(CHECK)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .gpu build dist demo src/*.egg-info
	find src tests -name __pycache__ -type d -exec rm -r {} +
