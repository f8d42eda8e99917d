# make demo     from a fresh checkout to a sourced answer
# make test     everything: lint, unit tests, the real server and weights
# make check    lint and unit tests only
# make lab      JupyterLab with the kit in its kernel
# make notebooks  run every notebook on the profile of this machine (KIT_PROFILE=gpu for another), into build/
# make bench    the figures of the README: many hours on 2 cores; a stopped run goes on where it was
# make lock     pin the newest versions that fit (needs network)
# make audit    known faults in the pinned packages, less the accepted ones (needs network)
# make clean    remove the environment; weights and index stay in KIT_HOME

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
STARTED := $(shell date +%s)
QUESTION ?= How much was the daily meal allowance under version 2 of the travel expense policy, and how much is it under version 3?

.PHONY: demo test check lab notebooks bench lock audit clean

demo: $(VENV)/ready
	$(BIN)/kit setup
	$(BIN)/kit ingest data/collection
	$(BIN)/kit ask "$(QUESTION)"

test: $(VENV)/ready check
	KIT_PROFILE=ci $(BIN)/kit setup
	KIT_PROFILE=ci $(BIN)/pytest -q -m ollama --ignore=tests/test_notebooks.py
	KIT_PROFILE=ci TEST_STARTED=$(STARTED) $(BIN)/pytest -q -m ollama tests/test_notebooks.py

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -q -m "not ollama"

lab: $(VENV)/ready
	$(BIN)/python -m ipykernel install --prefix $(VENV) --name agentic-rag-kit --display-name "Agentic RAG kit"
	$(BIN)/jupyter lab --ServerApp.root_dir=notebooks --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

notebooks: $(VENV)/ready
	$(BIN)/kit setup
	mkdir -p build/notebooks
	for notebook in notebooks/*.ipynb; do \
		$(BIN)/papermill --cwd notebooks --kernel python3 $$notebook build/$$notebook || exit 1; \
	done

bench: $(VENV)/ready
	$(BIN)/kit setup
	for name in first_answer quality latency ingest search; do $(BIN)/python benchmarks/$$name.py || exit 1; done

lock: $(VENV)/ready
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade -q -o requirements.lock

# It needs the list of packages and not the packages, so it does without the environment.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	build/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict \
		$$(awk -v today=$$(date +%F) '!/^#/ && $$2 ~ /^[0-9]+-[0-9]+-[0-9]+$$/ && $$2 >= today { print "--ignore-vuln", $$1 }' .github/accepted-advisories.txt)

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache dist

# uv installs in half a minute what pip installs in several; it is told of the index that pip is configured with.
# Bytecode is compiled here, once: without it every command would spend 20 s more on its imports where Python may not write it.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "make: Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}; \
	$${index:+env UV_DEFAULT_INDEX=$$index} $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock && \
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --offline --editable .
	touch $@
