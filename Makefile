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

ifeq ($(VARIANT),fuzz)
CC := clang
endif

# build/ for the release build by gcc, build/debug, build/release-clang, ... for the others.
TAG := $(VARIANT)$(if $(findstring clang,$(CC)),-clang)
OUT := build/$(TAG)
BIN := $(if $(filter release,$(TAG)),build,$(OUT))

WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wvla -Wno-gnu-zero-variadic-macro-arguments -Werror
CPPFLAGS += -Isrc -D_GNU_SOURCE -DHULL_VERSION='"$(VERSION)"'
CFLAGS   ?= -g -O2
HARDEN   := -fstack-protector-strong -D_FORTIFY_SOURCE=2
ALL_CFLAGS = -std=gnu17 -pthread -fPIE -fno-strict-aliasing $(WARNINGS) $(VARIANT_CFLAGS) $(CFLAGS)

VARIANT_CFLAGS_release := $(HARDEN) -ffunction-sections -fdata-sections
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

SOURCES   := $(sort $(shell find src -name '*.c'))
TEST_SRCS := $(filter %_test.c,$(SOURCES))
PROG_SRCS := src/main.c $(wildcard src/helper/*.c)
LIB_SRCS  := $(filter-out $(TEST_SRCS) $(PROG_SRCS),$(SOURCES))
LIB_OBJS  := $(LIB_SRCS:%.c=$(OUT)/%.o)
LIB       := $(OUT)/libhull.a
TESTS     := $(TEST_SRCS:src/%.c=$(OUT)/test/%)
FUZZERS   := $(patsubst fuzz/%.c,$(OUT)/fuzz/%,$(wildcard fuzz/*_fuzz.c))

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all tests fuzzers unit clean

all: $(BIN)/hull $(BIN)/hull-slirp

$(BIN)/hull: $(OUT)/src/main.o $(LIB)
	$(CC) $(ALL_CFLAGS) $(VARIANT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BIN)/hull-slirp: $(OUT)/src/helper/slirp.o $(LIB)
	$(CC) $(ALL_CFLAGS) $(filter-out -static-pie,$(VARIANT_LDFLAGS)) -pie $(LDFLAGS) -o $@ $^ $(SLIRP_LIBS)

$(OUT)/src/helper/slirp.o: CPPFLAGS += $(SLIRP_CFLAGS)

$(LIB): $(LIB_OBJS)
	rm -f $@
	$(AR) rcs $@ $^

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/test/%: $(OUT)/src/%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(VARIANT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(OUT)/fuzz/%: $(OUT)/fuzz/%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(VARIANT_LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

tests: $(TESTS)
fuzzers: $(FUZZERS)

unit: tests
	prove $(TESTS)

clean:
	rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)
