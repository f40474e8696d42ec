# SPDX-License-Identifier: Apache-2.0
#
#   make            build/hull, the release build
#   make run        install what is missing, build, boot a stock Debian guest to a prompt
#   make check      install what is missing, run all tests
#   make help       the other targets
#
# Variants: make VARIANT=debug|asan|tsan|fuzz [CC=clang]; each has a folder of its own under build/.

VERSION := 0.1.0
VARIANT ?= release
CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
PREFIX  ?= /usr/local

# build/ for the release build by gcc, build/debug, build/release-clang, ... for the others. libFuzzer
# is clang's.
ifeq ($(VARIANT),fuzz)
CC  := clang
TAG := fuzz
else
TAG := $(VARIANT)$(if $(findstring clang,$(CC)),-clang)
endif
OUT := build/$(TAG)
BIN := $(if $(filter release,$(TAG)),build,$(OUT))

WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wvla -Wno-gnu-zero-variadic-macro-arguments -Werror
CPPFLAGS += -Isrc -D_GNU_SOURCE -DHULL_VERSION='"$(VERSION)"'
CFLAGS   ?= -g
HARDEN   := -fstack-protector-strong -D_FORTIFY_SOURCE=2
ALL_CFLAGS = -std=gnu17 -pthread -fPIE -fno-strict-aliasing $(WARNINGS) $(VARIANT_CFLAGS) $(CFLAGS)

VARIANT_CFLAGS_release := -O2 $(HARDEN) -ffunction-sections -fdata-sections
VARIANT_LDFLAGS_release := -static-pie -Wl,--gc-sections,-z,relro,-z,now
VARIANT_CFLAGS_debug   := -O0
VARIANT_LDFLAGS_debug  := -static-pie
VARIANT_CFLAGS_asan    := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
VARIANT_LDFLAGS_asan   := -pie -fsanitize=address,undefined
VARIANT_CFLAGS_tsan    := -O1 -fsanitize=thread -fno-omit-frame-pointer
VARIANT_LDFLAGS_tsan   := -pie -fsanitize=thread
VARIANT_CFLAGS_fuzz    := -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
VARIANT_LDFLAGS_fuzz   := -pie -fsanitize=address,undefined
VARIANT_CFLAGS  = $(VARIANT_CFLAGS_$(VARIANT))
VARIANT_LDFLAGS = $(VARIANT_LDFLAGS_$(VARIANT))

# What a VM process links (statically, so that it maps nothing else), and what the helper does.
LIBS       := $(shell pkg-config --static --libs liburing libseccomp jansson zlib 2>/dev/null)
SLIRP_LIBS := $(shell pkg-config --libs slirp libseccomp 2>/dev/null)
SLIRP_CFLAGS := $(shell pkg-config --cflags slirp 2>/dev/null)
$(if $(and $(LIBS),$(SLIRP_LIBS)),,$(if $(filter all tests fuzzers unit,$(or $(MAKECMDGOALS),all)),\
	$(error libraries are missing: make deps installs them)))

SOURCES   := $(sort $(shell find src -name '*.c'))
TEST_SRCS := $(filter %_test.c,$(SOURCES))
PROG_SRCS := src/main.c $(wildcard src/helper/*.c)
LIB_SRCS  := $(filter-out $(TEST_SRCS) $(PROG_SRCS),$(SOURCES))
LIB_OBJS  := $(LIB_SRCS:%.c=$(OUT)/%.o)
LIB       := $(OUT)/libhull.a
TESTS     := $(TEST_SRCS:src/%.c=$(OUT)/test/%)
FUZZERS   := $(patsubst fuzz/%.c,$(OUT)/fuzz/%,$(wildcard fuzz/*_fuzz.c))

# One short line a step; make V=1 shows the commands.
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) $@)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all tests fuzzers unit clean fuzz-replay deps run testbed check lint e2e bench install help diff-table

all: $(BIN)/hull $(BIN)/hull-slirp

$(BIN)/hull: $(OUT)/src/main.o $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(ALL_CFLAGS) $(VARIANT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BIN)/hull-slirp: $(OUT)/src/helper/slirp.o $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(ALL_CFLAGS) $(filter-out -static-pie,$(VARIANT_LDFLAGS)) -pie $(LDFLAGS) -o $@ $^ $(SLIRP_LIBS)

$(OUT)/src/helper/slirp.o: CPPFLAGS += $(SLIRP_CFLAGS)

$(LIB): $(LIB_OBJS)
	$(call say,AR)
	$(Q)rm -f $@
	$(Q)$(AR) rcs $@ $^

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/test/%: $(OUT)/src/%.o $(LIB)
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) $(ALL_CFLAGS) $(VARIANT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(OUT)/fuzz/%: $(OUT)/fuzz/%.o $(LIB)
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) $(ALL_CFLAGS) $(VARIANT_LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

tests: $(TESTS)
fuzzers: $(FUZZERS)

unit: tests $(BIN)/hull-slirp
	prove -j $(or $(NPROC),2) $(TESTS)

# Each fuzzer over its corpus (fuzz/corpus/<name>/) and no further. fuzz-<name>: for FUZZ_SECONDS.
FUZZ_SECONDS ?= 60
fuzz-replay:
	$(MAKE) VARIANT=fuzz fuzzers
	@for fuzzer in $(FUZZERS:$(OUT)/%=build/fuzz/%); do \
		corpus=fuzz/corpus/$$(basename $$fuzzer _fuzz); \
		[ -d $$corpus ] || continue; echo "$$fuzzer: $$(ls $$corpus | wc -l) inputs"; \
		$$fuzzer -runs=0 $$corpus >$$fuzzer.log 2>&1 || { tail -n 60 $$fuzzer.log; exit 1; }; \
	done

fuzz-%:
	$(MAKE) VARIANT=fuzz build/fuzz/fuzz/$*_fuzz
	@mkdir -p build/fuzz/corpus/$* fuzz/corpus/$*
	build/fuzz/fuzz/$*_fuzz -max_total_time=$(FUZZ_SECONDS) build/fuzz/corpus/$* fuzz/corpus/$*

deps:
	@tool/deps build

run:
	@tool/deps run
	$(MAKE) -j $(or $(NPROC),2) all
	@tool/run $(ARGS)

testbed:
	@tool/deps run
	$(MAKE) -j $(or $(NPROC),2) all
	@tool/testbed $(ARGS)

check:
	@tool/deps check
	@tool/check $(STAGES)

lint:
	@tool/deps check
	@tool/lint

e2e: all
	@tool/deps check
	@tool/check e2e

bench: all
	@tool/deps bench
	@bench/run $(ARGS)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/hull \
		$(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(BIN)/hull $(DESTDIR)$(PREFIX)/bin/hull
	install -m 755 $(BIN)/hull-slirp $(DESTDIR)$(PREFIX)/libexec/hull/hull-slirp
	install -m 644 docs/hull.1 $(DESTDIR)$(PREFIX)/share/man/man1/hull.1

clean:
	rm -rf build

# docs/devices.md, from the state tables.
docs: $(OUT)/devices
	$(OUT)/devices >docs/devices.md

$(OUT)/devices: $(OUT)/tool/devices.o $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(ALL_CFLAGS) $(VARIANT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# docs/soft-coverage.md, by comparing the soft engine with this machine's processor.
DIFF_CASES ?= 5000000
diff-table: $(OUT)/test/engine/soft/diff/diff_test
	$< --cases $(DIFF_CASES) --table docs/soft-coverage.md

# For tool/check: make print-TESTS
print-%:
	@echo $($*)

help:
	@echo 'make               build/hull, the release build'
	@echo 'make run           install what is missing, build, boot Debian to a prompt'
	@echo 'make testbed       a shell on a host with real KVM (by emulation), with build/hull in it'
	@echo 'make check         install what is missing, run all tests (STAGES="lint build unit fuzz e2e")'
	@echo 'make unit          the unit tests of this VARIANT'
	@echo 'make e2e           the end-to-end tests alone'
	@echo 'make lint          formatting, layers, clang-tidy'
	@echo 'make fuzz-replay   the fuzzers over their corpora; make fuzz-NAME FUZZ_SECONDS=60: on'
	@echo 'make bench         Hull beside QEMU and a minimal KVM program'
	@echo 'make docs          docs/devices.md from the state tables'
	@echo 'make diff-table    docs/soft-coverage.md: the soft engine against this processor (DIFF_CASES)'
	@echo 'make deps          install what a build needs (apt-get)'
	@echo 'make install       to PREFIX (/usr/local), below DESTDIR'
	@echo 'make clean'
	@echo 'Variants: VARIANT=release|debug|asan|tsan|fuzz, CC=gcc|clang'

-include $(shell find build -name '*.d' 2>/dev/null)
