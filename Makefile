# make demo | test | lint | setup | benchmarks | soak: each does its own set-up in .venv, from constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check install --quiet -c constraints.txt
NEED_MB := 6000
VIEWER := pipeline/viewer

.PHONY: setup setup-dev demo test lint format benchmarks soak viewer viewer-if-possible clean

setup: $(VENV)/.installed viewer-if-possible

setup-dev: $(VENV)/.installed-dev viewer-if-possible

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Python 3.11 is needed (found: $$($(PYTHON) --version 2>&1)); set PYTHON=/path/to/python3.11"; exit 1; }
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "the lock file is for Linux on x86-64, this is $$(uname -sm)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "the venv module is missing (Debian: apt-get install python3.11-venv)"; exit 1; }
	@free=$$(df -Pm . | awk 'NR == 2 { print $$4 }'); test "$$free" -ge $(NEED_MB) \
	  || { echo "$(NEED_MB) MB of disk space are needed here, $$free MB are free"; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "installing (about a minute)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "installing with tests and comparison packages (two to three minutes)"
	@$(PIP) -e '.[dev,compare,dask]'
	@touch $@ $(VENV)/.installed

# the map library and the coasts of the forecast page; everything else works without them
viewer: $(VIEWER)/vendor/.installed

$(VIEWER)/vendor/.installed: $(VIEWER)/package.json $(VIEWER)/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing (Debian: apt-get install npm)"; exit 1; }
	@mkdir -p build/viewer $(VIEWER)/vendor
	@cp $(VIEWER)/package.json $(VIEWER)/package-lock.json build/viewer
	@cd build/viewer && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
	@cd build/viewer/node_modules && cp leaflet/dist/leaflet.js leaflet/dist/leaflet.css \
	  world-atlas/countries-10m.json $(CURDIR)/$(VIEWER)/vendor
	@cp build/viewer/node_modules/leaflet/LICENSE $(VIEWER)/vendor/leaflet.LICENSE
	@touch $@

viewer-if-possible:
	@if command -v npm >/dev/null || test -e $(VIEWER)/vendor/.installed; then $(MAKE) --no-print-directory --silent viewer; \
	  else echo "the forecast viewer is left out: it needs npm (Debian: apt-get install npm), then: make viewer"; fi

demo: setup
	$(VENV)/bin/nowcast demo

test: setup-dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

benchmarks: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest tests/benchmarks -s

# 24 simulated hours under faults (25 minutes), 6 with a catalog in PostgreSQL (which must be installed), then an hour
# through `nowcast up`; SEED replays one
SEED ?= 1
soak: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.soak.day --seed $(SEED) --hours 24
	$(VENV)/bin/python -m tests.soak.day --seed $(SEED) --hours 6 --kills 6 --catalog postgresql
	$(VENV)/bin/python -m tests.soak.hour --seed $(SEED) --minutes 60

clean:
	rm -rf $(VENV) $(VIEWER)/vendor build/viewer nowcast-demo .pytest_cache .mypy_cache .ruff_cache
