# Everything runs in .venv, which is made on first use with the versions of constraints.txt.
#   make demo    serve the built-in family, see one prompt answered under several preferences (CI=1: stop after that)
#   make test    style, types, tests
#   make coverage   the tests once more, and which lines they run: a table, and build/coverage/index.html
#   make bench   measure, on this machine
#   make kernels every kernel in every configuration, compiled for every GPU that we name; needs none of them
#   make gpu     tests and benchmarks that need a GPU; fails where there is none
#   make docs    the site, every command and program of README and docs, on a fresh server, and the pictures; takes minutes
#   make site    the documentation with a reference of the API, as a site in build/site
#   make conformance   clients that need an environment of their own, against a server, and layouts of quantised weights
#                against the packages that write them. Fetches all of these, takes minutes. Also trainings that are
#                killed, and shared by two processes
#   make ray     two replicas on Ray Serve, one of them killed; other people's clients in front of one. Fetches Ray, takes minutes

PYTHON ?= python3
BIN := .venv/bin
# Whatever the environment says: where no bytecode is kept, every process compiles all that it imports, torch too.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test coverage lint format bench docs site kernels gpu ray conformance clean

demo:
	@$(PYTHON) tools/environment.py server
	@$(BIN)/python tools/demo.py

# Two processes: most of a test is Python, which uses one core at a time.
test: lint
	$(BIN)/pytest -n 2 --dist worksteal $(if $(LADLE_TEST_SEED),--hypothesis-seed=$(LADLE_TEST_SEED))

# Not in `make test`: it makes the tests some tens of percent slower, see CONTRIBUTING.md.
coverage:
	@$(PYTHON) tools/environment.py dev
	@$(PYTHON) tools/environment.py coverage
	rm -rf build/coverage
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report= $(TESTS)
	@$(BIN)/python tools/coverage_table.py

lint:
	@$(PYTHON) tools/environment.py dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/typecheck.py

format:
	@$(PYTHON) tools/environment.py dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/modules.py

bench:
	@$(PYTHON) tools/environment.py dev
	$(BIN)/ladle bench decode
	$(BIN)/ladle bench guidance
	$(BIN)/ladle bench routing
	$(BIN)/ladle bench serve
	$(BIN)/ladle bench merge

docs: site
	@$(PYTHON) tools/environment.py dev
	@$(BIN)/python tools/docs.py
	@$(BIN)/python tools/screenshots.py

# The notice that is turned off is of the generator's future, and ends no build.
site:
	@$(PYTHON) tools/environment.py docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html is the documentation"

kernels:
	@$(PYTHON) tools/environment.py dev
	LADLE_ALL_GPUS=1 $(BIN)/pytest tests/kernels/gpu/test_ahead_of_time.py

gpu:
	@$(PYTHON) tools/environment.py gpu
	@$(PYTHON) tools/environment.py dev
	@$(BIN)/python tools/gpu.py

ray:
	@$(PYTHON) tools/environment.py dev
	@$(PYTHON) tools/environment.py ray
	LADLE_RAY=1 $(BIN)/pytest tests/server/scale_out
	LADLE_SERVE_OPTIONS="--ray --replica-cpus 0.5" $(BIN)/pytest tests/conformance --ignore tests/conformance/test_schemathesis.py

conformance:
	@$(PYTHON) tools/environment.py dev
	LADLE_TRAIN=1 $(BIN)/pytest tests/recipes/commands
	$(BIN)/python tools/conformance.py
	$(BIN)/python tools/layouts.py

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
