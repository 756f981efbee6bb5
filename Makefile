# Two commands on a fresh machine with Python, make and a C++ compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICK ?=

.PHONY: help demo data test lint types tests docs bench clean
help:
	@echo "make demo    install and run the main job on real terrain (QUICK=1: under a minute)"
	@echo "make test    install, then lint, types and tests"
	@echo "make data    install Fashion-MNIST (a Debian package), which some experiments and pictures use"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make bench   time coloured noise and the structures of Γ against floors and peers"

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/spatialdiff demo $(if $(QUICK),--quick)

# never fails: nothing but experiments needs it, and they say so
FASHION := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
APT := $(if $(filter 0,$(shell id -u)),,sudo -n )apt-get
data:
	@if [ -f $(FASHION) ]; then echo "Fashion-MNIST is installed: $(FASHION)"; \
	elif command -v apt-get >/dev/null && $(APT) install -y --no-install-recommends dataset-fashion-mnist \
		|| { command -v apt-get >/dev/null && $(APT) update \
			&& $(APT) install -y --no-install-recommends dataset-fashion-mnist; }; \
	then echo "Fashion-MNIST is installed: $(FASHION)"; \
	else echo "Fashion-MNIST could not be installed. As root, on Debian or Ubuntu:"; \
		echo "    apt-get update && apt-get install dataset-fashion-mnist"; \
		echo "Elsewhere, unpack the four files *-ubyte.gz of that package and give their folder:"; \
		echo "    spatialdiff train --data spatialdiff.data.fashion_mnist --data.folder FOLDER ..."; \
		echo "spatialdiff.data.digits (scikit-learn) needs no package of the system."; fi

test: lint types tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy finds packages by their place, so the installed layout, with kernels/ inside, is laid out in links
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/spatialdiff
	ln -s "$(CURDIR)"/spatialdiff/* "$(CURDIR)"/kernels build/types/spatialdiff/
	cd build/types && $(abspath $(BIN))/mypy --config-file "$(CURDIR)/pyproject.toml"

tests: $(VENV)/.dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/coloured_noise.py
	$(BIN)/python benchmarks/kernel_product.py --quick
	$(BIN)/python benchmarks/vecchia.py --quick
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/estimation.py --quick
	$(BIN)/python benchmarks/kriging.py --quick

clean:
	rm -rf $(VENV) docs/_build build *.egg-info
