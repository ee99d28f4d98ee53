# make train   set up .venv and train the garbage classifier on its sample set
# make test    set up .venv, check style and types, run the tests
# An existing .venv is used as it is, with the torch that is in it.

PYTHON ?= python3
BIN := .venv/bin

CPP = $(shell find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# A change in any of these needs a new build; Python files do not, since the installation is editable.
BUILT_FROM := setup.py pyproject.toml $(wildcard _build/*.py) $(shell find csrc -type f)

.PHONY: train test format

train: .venv/train.installed
	$(BIN)/python train_example.py

test: .venv/test,dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/python -m pytest

# What cannot be put right without thinking is for make test to report.
format: .venv/test,dev.installed
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# torch first: the package is then built against this one, and not against a second one downloaded for the build.
.venv/torch.installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"cbam_fused needs Python 3.10 or newer, but $(PYTHON) is {sys.version}")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install torch torchvision
	touch $@

.venv/%.installed: .venv/torch.installed $(BUILT_FROM)
	$(BIN)/python -m pip install --editable '.[$*]'
	touch '$@'
