# `make run` and `make test` set up everything they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config.yaml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

.PHONY: run test coverage lint bench bench-pace soak verify-provider docs docs-site homepage screenshots audit sbom chart lock lint-dashboards clean

run: $(VENV)/.run
	@if [ -f $(CONFIG) ]; then exec $(BIN)/python -m exporter --config.file=$(CONFIG); \
	else exec $(BIN)/python -m exporter demo; fi

# More workers than cores: most of the time is waiting. They share the bytecode of what they import.
WORKERS ?= 8
test coverage: export PYTHONDONTWRITEBYTECODE :=
test: lint
	$(BIN)/python -m pytest -n $(WORKERS)

# The tests again, with the branches that they reach; takes three times as long.
coverage: $(VENV)/.dev
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest -n $(WORKERS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Figures for docs/performance.md; takes some half an hour, on a machine that does nothing else.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.polls
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.watched
	$(BIN)/python -m benchmarks.watched --calls 1000000 --full-ledger --interval 5m --seconds 120 --runs 1
	$(BIN)/python -m benchmarks.scheduling
	$(BIN)/python -m benchmarks.pushed
	$(BIN)/python -m benchmarks.callbacks
	$(BIN)/python -m benchmarks.notifications
	$(BIN)/python -m benchmarks.pace
	$(BIN)/python -m benchmarks.replicas
	$(BIN)/python -m benchmarks.export

# The part of it that needs no quiet machine: virtual time, the same figures everywhere.
bench-pace: $(VENV)/.dev
	$(BIN)/python -m benchmarks.pace

# Figures for docs/reliability.md; three times half an hour, or `make soak MINUTES=3`.
MINUTES ?= 30
soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --life sqlite
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --life postgresql

# What the provider's real API answers beside what the exporter assumes: a report in Markdown, from
# ESMS_API_KEY, ESMS_SECRET_KEY, and the ids ESMS_CALL_ID and ESMS_MESSAGE_ID. Places no call.
verify-provider: $(VENV)/.run
	@$(BIN)/python -m tools.verify_provider

# The references in docs/, from the configuration's models, the catalogue of metrics and log calls.
docs: $(VENV)/.dev
	$(BIN)/python -m tools.reference

# The documentation as a site with search, in build/site; fails where a link is broken.
docs-site: $(VENV)/.docs
	{ git ls-files || find * -type f; } | $(BIN)/python -m tools.site build/pages
	$(BIN)/zensical build --strict --clean

# Set the address of the repository's files, such as https://HOST/OWNER/esms-exporter/blob/main, in every
# file that names it.
HOME_NOW = $(shell sed -n 's/^Homepage = "\(.*\)"/\1/p' pyproject.toml)
homepage:
	@[ -n "$(HOMEPAGE)" ] || { echo "usage: make homepage HOMEPAGE=https://..." >&2; exit 2; }
	git grep -lF '$(HOME_NOW)' | xargs sed -i 's|$(HOME_NOW)|$(HOMEPAGE:/=)|g'

# The pictures of the documentation, in docs/images; needs Chromium.
screenshots: $(VENV)/.dev
	$(BIN)/python -m tests.web.screenshots

# What the lock files say is installed; they are made with `make lock`.
$(VENV)/.run: requirements.lock | $(VENV)/bin/python
	$(PIP) -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock | $(VENV)/bin/python
	$(PIP) -r requirements-dev.lock
	@touch $@ $(VENV)/.run

$(VENV)/.docs: requirements-docs.lock | $(VENV)/bin/python
	$(PIP) -r requirements-docs.lock
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# `make lock UPGRADE=--upgrade` locks the newest versions.
LOCK := $(BIN)/uv pip compile $(UPGRADE) --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: $(VENV)/.dev
	$(LOCK) pyproject.toml --all-extras -o requirements.lock
	$(LOCK) pyproject.toml --all-extras --group dev --group build -c requirements.lock -o requirements-dev.lock
	$(LOCK) --group build -c requirements-dev.lock -o requirements-build.lock
	$(LOCK) --group docs -c requirements-dev.lock -o requirements-docs.lock

# Whether anything that is locked is known to be vulnerable; fails where nobody can be asked.
audit: $(VENV)/.dev
	BIN=$(BIN) .ci/audit

# What an installation consists of, for those who keep inventories: CycloneDX, from the lock alone.
SBOM ?= sbom.cdx.json
sbom: $(VENV)/.dev
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --spec-version 1.6 \
		--output-reproducible --output-file $(SBOM) requirements.lock

# The chart of a release, in dist: `make chart VERSION=1.2.3 IMAGE=HOST/OWNER/esms-exporter`.
chart:
	rm -rf build/chart
	mkdir -p build/chart dist
	cp -R deploy/helm/esms-exporter build/chart
	sed -i 's|^  repository: esms-exporter$$|  repository: $(IMAGE)|' build/chart/esms-exporter/values.yaml
	helm package build/chart/esms-exporter --version $(VERSION) --app-version $(VERSION) --destination dist

# Grafana's own linter, which no registry has as a package: not part of the tests.
lint-dashboards:
	@command -v dashboard-linter >/dev/null || { echo "needs Grafana's dashboard-linter" >&2; exit 2; }
	for file in monitoring/dashboards/*.json; do dashboard-linter lint --strict $$file || exit 1; done

clean:
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis build .cache
