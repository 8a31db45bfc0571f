# make demo   restores a real photo (about two minutes once installed)
# make test   everything that CI runs
#
# Both make their own virtual environment in .venv. torch is installed first and pinned: a plain `torch` may bring
# gigabytes of CUDA libraries.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install -q

.PHONY: demo test test-slow coverage core install-core sanitize prove fuzz fuzz-long mutate coverage-c threads machines valgrind hostile
.PHONY: docs analyze check-macos check-windows lint clean

$(VENV)/torch: Makefile
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" numpy
	touch $@

$(VENV)/demo: $(VENV)/torch pyproject.toml setup.py $(shell find csrc python -name '*.[ch]' -o -name '*.cpp' -o -name '*.metal' -o -name '*.py' -o -name '*.pyi')
	$(PIP) ".[torch,cli]"
	touch $@

# Editable, with warnings as errors. Built in place, so no second copy of the sources is tested by mistake.
$(VENV)/test: $(VENV)/torch pyproject.toml setup.py $(shell find csrc -name '*.[ch]' -o -name '*.cpp' -o -name '*.metal')
	HALOTILE_WERROR=1 $(PIP) --editable ".[torch,cli,onnx,metrics,plot,test]"
	$(PIP) --no-deps "spandrel>=0.4.2,<0.5"  # its dependency torchvision would bring another torch; two networks need it
	$(PIP) einops typing_extensions onnx
	-$(PIP) --no-deps openvino  # the runtime of examples/onnx.c; without it that is not tested
	touch $@

demo: $(VENV)/demo
	$(BIN)/python examples/demo.py

# Two processes of one thread each: tests are many and small.
test: $(VENV)/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(VENV)/test
	$(BIN)/python -m pytest -m slow

# Branches of the package that `make test` takes, also in child processes and threads: 95 % in all, no module under 90.
coverage: $(VENV)/test
	$(PIP) "coverage>=7.10" "pytest-cov>=7"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --cov --cov-report=json:build/coverage.json --cov-report=
	$(BIN)/python scripts/coverage_table.py build/coverage.json

# The C core knows neither Python nor torch: this compiles it alone, into a library.
CORE = $(CURDIR)/csrc/core
CORE_BUILD ?= build/core
CORE_CFLAGS ?= -O3 -Wall -Wextra -Werror
core:
	mkdir -p $(CORE_BUILD)
	cd $(CORE_BUILD) && rm -f *.o libhalotile.a && $(CC) -std=c11 $(CORE_CFLAGS) -fPIC -ffp-contract=off -I$(CORE) -c $(CORE)/*.c $(CORE)/rows/*.c
	cd $(CORE_BUILD) && $(AR) rcs libhalotile.a *.o

# libhalotile.a, halotile.h and halotile.pc for C and C++ programs: pkg-config --cflags --libs halotile
PREFIX ?= /usr/local
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
install-core: core
	mkdir -p $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include
	cp $(CORE_BUILD)/libhalotile.a $(DESTDIR)$(PREFIX)/lib/
	cp $(CORE)/halotile.h $(DESTDIR)$(PREFIX)/include/
	sed -e 's|@PREFIX@|$(abspath $(PREFIX))|' -e 's|@VERSION@|$(VERSION)|' $(CORE)/halotile.pc.in > $(DESTDIR)$(PREFIX)/lib/pkgconfig/halotile.pc

# The extension with AddressSanitizer and UBSan, in an environment of its own, under the tests of every C stage.
SANITIZED = .venv-sanitize
sanitize:
	test -d $(SANITIZED) || $(PYTHON) -m venv $(SANITIZED)
	$(SANITIZED)/bin/python -m pip --disable-pip-version-check install -q --upgrade "numpy>=2" "setuptools>=77" pytest hypothesis
	HALOTILE_SANITIZE=address,undefined $(SANITIZED)/bin/python setup.py -q build_ext --build-lib build/sanitize --build-temp build/sanitize/objects --force
	cd python && find halotile -name "*.py" -exec cp --parents {} ../build/sanitize/ \;
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	PYTHONPATH=build/sanitize $(SANITIZED)/bin/python -m pytest -q -p no:cacheprovider \
		tests/test_plan.py tests/test_verbs.py tests/test_binding.py tests/test_band.py tests/test_images.py

# ---- proof of the C core: docs/reliability.md ----
# make prove    the short forms, for CI: about a minute. What needs a tool that is missing says so and is left out.
have = command -v $(1) >/dev/null || { echo "no $(1): left out"; exit 0; };
C_TESTS = $(CORE)/*.c $(CORE)/rows/*.c -lm -lpthread
C_FLAGS = -std=gnu11 -O1 -g -Wall -Wextra -Werror -ffp-contract=off -I$(CORE)

prove:
	$(PYTHON) scripts/fuzz.py --seconds 1 --kinds address
	$(PYTHON) scripts/mutate.py --sample 6 --files accumulate.c finish.c
	$(MAKE) threads machines

mutate:
	$(PYTHON) scripts/mutate.py

# Thousands of hostile files, each restored or refused in a process of its own; about half an hour.
hostile: $(VENV)/test
	$(BIN)/python -m tests.hostile

# Needs what the tests need: HALOTILE_PYTHON is an interpreter with them.
HALOTILE_PYTHON ?= $(BIN)/python
coverage-c:
	$(HALOTILE_PYTHON) scripts/coverage_c.py

# Left out where the compiler has no ThreadSanitizer, or the kernel lays memory out as it does not expect.
TSAN ?= $(CC) -fsanitize=thread
threads:
	mkdir -p build/prove
	@echo 'int main(void) { return 0; }' > build/prove/empty.c
	@$(TSAN) build/prove/empty.c -o build/prove/empty 2>/dev/null && build/prove/empty || { echo "no ThreadSanitizer: left out"; exit 0; }; \
	$(TSAN) $(C_FLAGS) tests/c/check_threads.c $(C_TESTS) -o build/prove/threads && build/prove/threads

# The same bits with every level of kernels, in another byte order and with 32-bit words.
machines:
	mkdir -p build/prove
	$(CC) $(C_FLAGS) tests/c/check_bits.c $(C_TESTS) -o build/prove/bits
	for level in scalar avx2 avx512; do HALOTILE_CPU=$$level build/prove/bits || exit 1; done > build/prove/told
	@for machine in s390x-linux-gnu:s390x arm-linux-gnueabihf:arm aarch64-linux-gnu:aarch64; do \
		command -v $${machine%:*}-gcc >/dev/null && command -v qemu-$${machine#*:}-static >/dev/null || \
			{ echo "no $${machine%:*}-gcc and qemu-$${machine#*:}-static: left out"; continue; }; \
		$${machine%:*}-gcc $(C_FLAGS) -static tests/c/check_bits.c $(C_TESTS) -o build/prove/bits-$${machine#*:} && \
		qemu-$${machine#*:}-static build/prove/bits-$${machine#*:} >> build/prove/told || exit 1; done
	sort -u build/prove/told && test $$(sort -u build/prove/told | wc -l) = 1

valgrind:
	mkdir -p build/prove
	@$(call have,valgrind) for test in bits band restore cpu threads; do \
		$(CC) $(C_FLAGS) tests/c/check_$$test.c $(C_TESTS) -o build/prove/valgrind-$$test && \
		valgrind -q --leak-check=full --error-exitcode=9 build/prove/valgrind-$$test || exit 1; done

TIDY = bugprone-*,-bugprone-easily-swappable-parameters,clang-analyzer-*,performance-*,misc-redundant-expression
TIDY_NOT = -clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling
BINDING_FLAGS = -DPy_LIMITED_API=0x030b0000 $$($(HALOTILE_PYTHON) -c "import numpy, sysconfig; print('-isystem', numpy.get_include(), '-isystem', sysconfig.get_path('include'))")
analyze:
	@$(call have,gcc) for file in $(CORE)/*.c $(CORE)/rows/rows_scalar.c csrc/binding/*.c; do \
		gcc $(C_FLAGS) -fanalyzer $(BINDING_FLAGS) -c $$file -o /dev/null || exit 1; done; echo "gcc -fanalyzer: clean"
	@$(call have,clang-tidy) clang-tidy --quiet --warnings-as-errors='*' --checks='-*,$(TIDY),$(TIDY_NOT)' \
		$(CORE)/*.c $(CORE)/rows/rows_scalar.c csrc/binding/*.c -- -std=c11 -I$(CORE) $(BINDING_FLAGS) && echo "clang-tidy: clean"

FUZZ_SECONDS ?= 20
FUZZ_LONG_SECONDS ?= 1200
fuzz:
	$(PYTHON) scripts/fuzz.py --seconds $(FUZZ_SECONDS)

fuzz-long:
	$(PYTHON) scripts/fuzz.py --seconds $(FUZZ_LONG_SECONDS)

# Builds both extensions for macOS arm64 and looks for every symbol in torch's macOS wheels (downloads a few hundred MB).
check-macos: $(VENV)/test
	$(PIP) ziglang lief
	$(BIN)/python scripts/check_macos.py

# Builds the C core and halotile._core for Windows; with Wine installed, runs the core's tests there.
check-windows: $(VENV)/test
	$(PIP) ziglang
	$(BIN)/python scripts/check_windows.py

# The site, from docs/*.md and docstrings: build/site/index.html. A warning is an error. It needs no torch.
DOCS_VENV ?= .venv-docs
$(DOCS_VENV)/docs: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	HALOTILE_WERROR=1 $(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install -q --editable ".[docs]"
	touch $@

docs: $(DOCS_VENV)/docs
	$(DOCS_VENV)/bin/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/site

lint:
	$(PIP) ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf build dist .venv .venv-docs .venv-sanitize python/*.egg-info python/halotile/*.so examples/out
