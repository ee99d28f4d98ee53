# make train   set up .venv and train the garbage classifier on its sample set
# make test    set up .venv, check style and types, run the tests
# make quick   style, types and a few tests of every area, for use while editing
# make gpu     measure and test on a GPU for ten minutes (MINUTES=10), into runs/gpu; run again to resume
# make test-all  make headers and make test with the slow tests and those that need Debian packages, which it installs
# make headers  compile the bindings against the headers of the oldest supported torch
# make docs    build the documentation site in build/docs; warnings are errors
# make sanitize  the fuzz tests on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer, for every
#              instruction set of this processor
# make dist    sdist and a wheel for this machine, in dist/
# make wheels  a wheel for other Linux machines too, in wheelhouse/; needs Docker
# make hub     the tree for Hugging Face's kernel-builder, in build/hub
# make smoke WHEEL=FILE TORCH=torch==2.10.0   the smoke test of a wheel with this torch, in a new environment
# An existing .venv is used with its torch.

PYTHON ?= python3
BIN := .venv/bin

CPP = $(shell find csrc tests bench torch-ext -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# Files whose changes need a new build. Python files need none, since the installation is editable.
BUILT_FROM := setup.py pyproject.toml $(wildcard _build/*.py) $(shell find csrc -type f)

.PHONY: train test quick style gpu test-all headers compilers docs format sanitize dist wheels smoke hub check-tag

train: .venv/train.installed
	$(BIN)/python train_example.py

# A worker per core, with one thread each; the tests of a file share a worker and its fixtures.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
QUICK := numerics/test_values numerics/test_semantics numerics/test_errors cpu/test_threads cuda/test_plan \
	triton/test_tiles models/test_switches models/test_variants models/test_attention_maps \
	torch/test_programs torch/test_func garbage/test_settings garbage/test_metrics \
	package/test_typing package/test_workflows

test: style
	$(PYTEST)

quick: style
	$(PYTEST) -q $(QUICK:%=tests/%.py)

style: .venv/test,dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/typos

# In an environment with PyTorch, .venv or PYTHON's, to save the time of its download.
MINUTES ?= 10
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tools/gpu.py --minutes $(MINUTES)

test-all: export CBAM_FUSED_SLOW = 1
test-all: headers compilers test

headers: .venv/torch.installed
	$(BIN)/python tools/check_headers.py

docs: .venv/test,dev.installed
	$(BIN)/python -m sphinx -E -q -W --keep-going docs build/docs

# For tests/cpu/test_aarch64.py and tests/package/test_compilers.py, which skip missing packages.
PACKAGES := g++-aarch64-linux-gnu qemu-user g++-11 clang-14
compilers:
	dpkg -s $(PACKAGES) >/dev/null 2>&1 || { $(SUDO) apt-get update && \
		$(SUDO) apt-get install --yes --no-install-recommends $(PACKAGES); } || \
		echo "not all of $(PACKAGES) could be installed: the tests that need them are skipped"

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# The CPU kernels in build/sanitize hide those of the installation. GCC's runtimes must be preloaded. Python never frees
# some of its memory, so leaks are not reported; PyTorch reports allocations that are too large.
RUNTIMES = $(foreach name,libasan.so libubsan.so libstdc++.so.6,$$(gcc -print-file-name=$(name)))
SANITIZED = LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=build/sanitize

sanitize: .venv/test,dev.installed
	rm -rf build/sanitize
	CBAM_FUSED_CUDA=0 CBAM_FUSED_SANITIZE=1 $(BIN)/python -m pip install --no-deps --no-build-isolation --target build/sanitize .
	for limit in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=avx512 ''; do \
		env $$limit $(SANITIZED) $(BIN)/pytest -o pythonpath="tests/support _build" tests/numerics/test_fuzz.py tests/numerics/test_hostile.py \
			tests/cpu/test_split.py -k 'not pickles' || exit 1; \
	done

# The wheel is built from the sdist, with the torch of .venv, and for more GPUs than those of this machine.
dist: .venv/dev.installed
	rm -rf dist
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-all}" \
		CBAM_FUSED_BUILD_SITE="$$($(BIN)/python -c 'import torch; print(torch.__path__[0].removesuffix("/torch"))')" $(BIN)/python -m build

# In a small separate environment: the containers copy this folder, and .venv has gigabytes.
wheels:
	$(PYTHON) -m venv build/cibuildwheel
	build/cibuildwheel/bin/python -m pip install cibuildwheel
	build/cibuildwheel/bin/python -m cibuildwheel

TORCH ?= torch
smoke:
	rm -rf build/smoke
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/python -m pip install "$(TORCH)" "$(WHEEL)"
	build/smoke/bin/python tools/smoke.py

# kernel-builder expects the package in torch-ext and writes its own setup.py, pyproject.toml and _ops.py.
HUB ?= $(CURDIR)/build/hub
hub:
	rm -rf "$(HUB)"
	mkdir -p "$(HUB)/torch-ext"
	cp -r build.toml LICENSE csrc "$(HUB)"
	cp torch-ext/module.cpp "$(HUB)/torch-ext"
	find cbam_fused -name '*.py' ! -path cbam_fused/_ops.py -exec cp --parents -t "$(HUB)/torch-ext" {} +

# CHANGELOG.md must have a section for the tag.
check-tag:
	grep -q '^## $(TAG:v%=%)\b' CHANGELOG.md || { echo "CHANGELOG.md has no section for the tag $(TAG)"; exit 1; }

# --exit-zero: make test reports errors without an automatic fix.
format: .venv/test,dev.installed
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# torch first; otherwise the build downloads a second torch.
.venv/torch.installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"cbam_fused needs Python 3.10 or newer, but $(PYTHON) is {sys.version}")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install torch torchvision
	touch $@

.venv/%.installed: .venv/torch.installed $(BUILT_FROM)
	$(BIN)/python -m pip install --editable '.[$*]'
	touch '$@'
