# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: demo data test docs sanitize fuzz chaos bench gpu-check clean

demo: $(VENV)/.demo
	mkdir -p demo
	$(RUN)/lotterykit reproduce plant-n-seek --quick --store demo/runs.sqlite --out demo/report

# Real images for the tests; where they cannot be fetched those tests are skipped, and this says how to get them.
FASHION := /usr/share/datasets/fashion-mnist
data:
	@if test ! -d $(FASHION) && test "$$(id -u)" = 0 && command -v apt-get > /dev/null; then \
	    apt-get install -y -qq dataset-fashion-mnist \
	    || { apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist; } || true; \
	fi; \
	if test -d $(FASHION); then echo "fashion-mnist: $(FASHION)"; else \
	    echo "fashion-mnist: not fetched. On Debian: sudo apt-get install dataset-fashion-mnist. Elsewhere:"; \
	    echo "mkdir -p DIR/FashionMNIST/raw, put the four .gz files of"; \
	    echo "https://github.com/zalandoresearch/fashion-mnist there, and set LOTTERYKIT_DATA=DIR."; \
	fi

test: $(VENV)/.test
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/python -m pytest --numprocesses auto

# Sources are installed editable: only a change of the build or of native code asks for a new install.
NATIVE := pyproject.toml constraints.txt setup.py $(wildcard csrc/* csrc/*/*)
INSTALL = $(RUN)/python -m pip install --quiet --constraint constraints.txt

$(VENV)/.demo: $(NATIVE)
	test -x $(RUN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable '.[plot]'
	touch $@

# By its name: lotterykit is there, so only what the tests need is installed, and nothing is built again.
$(VENV)/.test: $(VENV)/.demo
	$(INSTALL) 'lotterykit[plot,test]'
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(INSTALL) 'lotterykit[docs]'
	touch $@

# The API reference, HTML in build/docs.
docs: $(VENV)/.docs
	$(RUN)/python docs/reference.py build/docs

# Native code under AddressSanitizer and UndefinedBehaviorSanitizer, and ThreadSanitizer where clang is: builds of
# their own under build/sanitize, some minutes. `make test` runs a reduced form.
sanitize: $(VENV)/.test
	$(RUN)/python tests/native/sanitize.py

# Damaged files for every reader, 20,000 each, for nightly runs: some ten minutes. Failures lie in build/fuzz, and
# `tests/fuzz/hostile.py --seed S --from N --mutants 1` reads one again. `make test` runs a reduced form.
fuzz: $(VENV)/.test
	$(RUN)/python tests/fuzz/hostile.py

# Sweeps and searches that are killed, stopped, or cannot write; prints kills, lost, duplicated, differing. Some
# minutes. `make test` runs a reduced form.
chaos: $(VENV)/.test
	$(RUN)/python tests/chaos/chaos.py

# The C table of the goals: measures this machine against every peer that is installed, then judges. Ratios are
# of medians in alternating turns; leave the machine alone meanwhile. Peers: pip install sparseprop sparselab.
bench: $(VENV)/.demo
	$(RUN)/python benchmarks/linear.py
	$(RUN)/python benchmarks/conv.py
	$(RUN)/python benchmarks/topk.py
	$(RUN)/python benchmarks/synflow.py
	$(RUN)/python benchmarks/replicas.py
	$(RUN)/lotterykit bench --goals benchmarks/results

# For a machine with an NVIDIA GPU and a stock PyTorch image: nothing is downloaded.
gpu-check:
	PIP_BREAK_SYSTEM_PACKAGES=1 $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(PYTHON) benchmarks/gpu_check.py

clean:
	rm -rf build dist demo $(VENV) *.egg-info lotterykit/*.so lotterykit/_build_report.json
