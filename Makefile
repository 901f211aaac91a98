# `make` lists the targets. Everything they need goes into .venv and .cache, nothing outside; labels that a service is given
# go to the user's state folder (docs/feedback.md), where `make clean` does not reach them.

PYTHON ?= python3
PORT ?= 3000
HOST ?= 127.0.0.1
MODEL ?= digits
RUNS ?= 100000
MINUTES ?= 60
ATHERIS := 3.0.0
VENV := .venv
BIN := $(VENV)/bin
# The GPU build where there is an NVIDIA driver; GPU=0 or GPU=1 decides otherwise.
GPU ?= $(if $(wildcard /dev/nvidia0),1,0)
SERVE_LOCK := requirements/serve$(if $(filter 1,$(GPU)),-gpu).lock
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header

export BENTOML_HOME ?= $(CURDIR)/.cache/bentoml-$(PORT)
export TRUEODDS_COMPILED ?= $(CURDIR)/.cache/compiled
export BENTOML_DO_NOT_TRACK ?= True
export ORT_DISABLE_TELEMETRY ?= 1

# Where the bill of materials of each lock goes.
SBOM ?= .cache/sbom
LOCKS := serve serve-gpu signing oidc postgres dev torch oracles

.DEFAULT_GOAL := help
.PHONY: help serve test test-fast check format fuzz soak train summary export cpp cards zoo shift sign load bench image image-test image-abuse lock sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/serve $(if $(TRUEODDS_SIGNED_BY),$(VENV)/signing) $(if $(TRUEODDS_OIDC_ISSUER),$(VENV)/oidc) $(if $(filter postgres%,$(TRUEODDS_FEEDBACK)),$(VENV)/postgres) ## serve both models on PORT (3000), HOST (127.0.0.1)
	@mkdir -p $(BENTOML_HOME)
	@exec $(BIN)/python -m service --host $(HOST) --port $(PORT)

test: $(VENV)/dev ## every check and test (under 15 minutes)
	$(MAKE) --no-print-directory check
	$(BIN)/pytest

test-fast: $(VENV)/dev ## the tests that take under a minute together
	$(BIN)/pytest -m "not slow"

check: $(VENV)/dev ## lint, format, types, import contracts, security lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive service export models loadtest

format: $(VENV)/dev ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# atheris has no wheel for every Python, so it is installed for this only.
fuzz: $(VENV)/dev ## look for images that the decoder stumbles over: RUNS (100000) of them
	$(PIP_INSTALL) --no-deps atheris==$(ATHERIS)
	$(BIN)/python -m tests.abuse.fuzz_images --runs $(RUNS) $(if $(CORPUS),--corpus $(CORPUS))

soak: $(VENV)/dev ## good and bad traffic for MINUTES (60); writes memory, descriptors and latency to .cache/soak
	$(BIN)/python -m tests.abuse.soak --minutes $(MINUTES) $(SOAK)

train: $(VENV)/dev ## train MODEL, any of the zoo, on DATA_DIR (TRAIN='--plot --tensorboard' to watch, TRAIN='--data photos' on your own images)
	$(BIN)/python -m models.train $(MODEL) $(TRAIN)

summary: $(VENV)/dev ## tell what each layer of MODEL does to an image, and what it costs
	$(BIN)/python -m models.summary $(MODEL)

export: $(VENV)/dev ## export MODEL as bundle VERSION (the next); EXPORT='--bundles bundles' puts it there
	$(BIN)/python -m export $(MODEL) $(if $(VERSION),--version $(VERSION)) $(EXPORT)

cpp: $(VENV)/dev ## build the C++ programs into .cache/cpp (docs/cpp.md)
	cmake -S export/cpp -B .cache/cpp -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build .cache/cpp --parallel

cards: $(VENV)/dev ## write the model cards of the newest bundles anew, with their pictures (MODEL: of one only)
	$(BIN)/python -m export cards $(if $(filter-out file,$(origin MODEL)),$(MODEL))

sign: $(VENV)/dev ## sign bundle VERSION (the newest) of MODEL with KEY, a private key in PEM form
	$(BIN)/python -m export sign models/bundles/$(MODEL)/$(or $(VERSION),$(shell ls models/bundles/$(MODEL) | sort -V | tail -1)) --key $(KEY)

zoo: $(VENV)/dev ## compare all networks: measures what is new and writes the table in README.md
	$(BIN)/python -m export zoo

shift: $(VENV)/dev ## measure MODEL on corrupted images and on others than its own; writes docs/shift (SHIFT='--images 500' for fewer)
	$(BIN)/python -m export shift $(MODEL) $(SHIFT)

load: $(VENV)/dev ## post test images to a running service; prints percentiles, writes an HTML report
	$(BIN)/python -m loadtest --host http://localhost:$(PORT)

bench: $(VENV)/dev ## measure the service beside its in-process limit and HTTP floor; writes .cache/bench (needs wrk)
	$(BIN)/python -m loadtest.bench $(BENCH)

image: $(VENV)/serve ## build the OCI image
	deploy/image.sh build

image-test: $(VENV)/serve ## run the image and classify two images through it
	deploy/image.sh test

image-abuse: $(VENV)/dev ## run the tests that abuse a service against the image, locked down
	deploy/image.sh abuse

lock: $(VENV)/serve ## renew the locks after a change of requirements/*.in
	$(PIP_INSTALL) uv
	$(COMPILE) requirements/serve.in -o requirements/serve.lock
	$(COMPILE) -c requirements/serve.lock requirements/serve-gpu.in -o requirements/serve-gpu.lock
	$(COMPILE) -c requirements/serve.lock requirements/signing.in -o requirements/signing.lock
	$(COMPILE) -c requirements/serve.lock -c requirements/signing.lock requirements/oidc.in -o requirements/oidc.lock
	$(COMPILE) -c requirements/serve.lock requirements/postgres.in -o requirements/postgres.lock
	$(COMPILE) -c requirements/serve.lock -c requirements/signing.lock -c requirements/oidc.lock -c requirements/postgres.lock requirements/dev.in -o requirements/dev.lock
	$(COMPILE) --no-deps -c requirements/dev.lock requirements/oracles.in -o requirements/oracles.lock

sbom: $(VENV)/dev ## write a bill of materials (CycloneDX) of each lock to SBOM (.cache/sbom)
	@mkdir -p $(SBOM)
	@for lock in $(LOCKS); do \
	  $(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements requirements/$$lock.lock --pyproject pyproject.toml --output-reproducible \
	    --output-file $(SBOM)/$$lock.cdx.json || exit 1; \
	done
	@echo "wrote $(SBOM)"

clean: ## remove what the targets made
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "TrueOdds needs Python 3.11 or newer; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve: $(BIN)/python $(SERVE_LOCK)
	$(PIP_INSTALL) --require-hashes -r $(SERVE_LOCK)
	@touch $@

$(VENV)/signing: $(VENV)/serve requirements/signing.lock
	$(PIP_INSTALL) --require-hashes -r requirements/signing.lock
	@touch $@

$(VENV)/oidc: $(VENV)/serve requirements/oidc.lock
	$(PIP_INSTALL) --require-hashes -r requirements/oidc.lock
	@touch $@

$(VENV)/postgres: $(VENV)/serve requirements/postgres.lock
	$(PIP_INSTALL) --require-hashes -r requirements/postgres.lock
	@touch $@

# torch's wheel is checked against the lock; a CUDA build of it then names its libraries itself, each by exact version.
$(VENV)/dev: $(VENV)/serve requirements/dev.lock requirements/torch.lock requirements/oracles.lock
	$(PIP_INSTALL) --require-hashes -r requirements/dev.lock
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements/torch.lock
	$(PIP_INSTALL) -r requirements/torch.in
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements/oracles.lock
	@touch $@
