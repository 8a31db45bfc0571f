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

.PHONY: demo test test-slow core install-core sanitize fuzz fuzz-long check-macos lint clean

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
# make prove    the short forms of all that follows: about a minute
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

lint:
	$(PIP) ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf build dist .venv .venv-sanitize python/*.egg-info python/halotile/*.so examples/out
