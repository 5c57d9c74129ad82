# Shortcuts for work in a checkout; CONTRIBUTING.md says more about each.
PYTHON ?= python
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: build gpu cuda-budget test test-triton test-emulated triton-table lint format bench readme-bench sanitize clean

build:  # compile what changed, into tnt_kernels/
	$(PYTHON) setup.py -q build_ext --inplace

test: build
	$(PYTHON) -m pytest

test-triton: build  # the Triton kernels, interpreted on CPU tensors
	TRITON_INTERPRET=1 $(PYTHON) -m pytest -q tests/ops -k triton

test-emulated: build  # the CUDA operators, launches and all, on CPU tensors
	TNT_EMULATED_GPU=1 $(PYTHON) -m pytest -q tests/ops -k emulated

triton-table:  # what the assembler makes of the Triton kernels; WRITE=--write renews the baseline
	PYTHONPATH=.:tests $(PYTHON) tests/offline/table.py $(WRITE)

lint:
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CXX_FILES)

format:
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

bench: build
	PYTHONPATH=. $(PYTHON) bench/throughput.py

cuda-budget:  # registers and instructions of the CUDA kernels against the baseline; needs nvcc only
	$(PYTHON) bench/cuda_budget.py
	$(PYTHON) bench/cuda_pixels.py

# All that only a GPU can show, the build for it included, in 9 minutes at most; STAGES picks.
gpu:
	PYTHONPATH=. $(PYTHON) bench/gpu_acceptance.py $(if $(STAGES),--stages $(STAGES))

readme-bench:  # README's performance section, from bench/results
	$(PYTHON) bench/readme.py

# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of their own.
# Python itself is not instrumented, so the runtimes are preloaded, and leaks, which would be
# Python's, are not looked for. The tests run from tests/ so that the package of this build is
# imported, not the one of the checkout; capture=sys lets a report through before the process dies.
# SANITIZE_TESTS picks what to run.
SANITIZERS = -fsanitize=address,undefined
SANITIZE_TESTS ?= ops
SANITIZE_LIB = $(CURDIR)/build/sanitize/lib
runtime = $(shell $(or $(CXX),c++) -print-file-name=$(1))
sanitize:
	FORCE_CUDA=0 LDFLAGS="$(SANITIZERS)" \
	CXXFLAGS="-O1 -g $(SANITIZERS) -fno-sanitize-recover=undefined -fno-omit-frame-pointer" \
	$(PYTHON) setup.py -q build --build-base build/sanitize --build-lib $(SANITIZE_LIB)
	cd tests && PYTHONPATH=$(SANITIZE_LIB) \
	LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libubsan.so) $(call runtime,libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(PYTHON) -m pytest -q --capture=sys $(SANITIZE_TESTS)

clean:
	rm -rf build dist *.egg-info tnt_kernels/*.so
