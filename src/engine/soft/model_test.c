/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPU models: x86-64-v2 and v3 are what the System V ABI for x86-64 says they hold, whatever the
 * host; features are added and taken away by name, in CPUID and in the decoder alike.
 */
#include "engine/soft/model.h"

#include <errno.h>

#include "engine/soft/decode.h"
#include "engine/soft/test_cpu.h"

enum {
    EAX,
    EBX,
    ECX,
    EDX,
};

/* Beyond the baseline (psABI, table 3.1). */
static const struct abi_feature {
    const char *name;
    uint32_t function, index;
    unsigned reg, bit, level;
} abi_features[] = {
    {"cx8",    0x1,        0, EDX, 8,  1},
    {"cmov",   0x1,        0, EDX, 15, 1},
    {"fpu",    0x1,        0, EDX, 0,  1},
    {"fxsr",   0x1,        0, EDX, 24, 1},
    {"mmx",    0x1,        0, EDX, 23, 1},
    {"sse",    0x1,        0, EDX, 25, 1},
    {"sse2",   0x1,        0, EDX, 26, 1},
    {"sce",    0x80000001, 0, EDX, 11, 1},
    {"lm",     0x80000001, 0, EDX, 29, 1},
    {"cx16",   0x1,        0, ECX, 13, 2},
    {"lahf",   0x80000001, 0, ECX, 0,  2},
    {"popcnt", 0x1,        0, ECX, 23, 2},
    {"sse3",   0x1,        0, ECX, 0,  2},
    {"sse4_1", 0x1,        0, ECX, 19, 2},
    {"sse4_2", 0x1,        0, ECX, 20, 2},
    {"ssse3",  0x1,        0, ECX, 9,  2},
    {"avx",    0x1,        0, ECX, 28, 3},
    {"avx2",   0x7,        0, EBX, 5,  3},
    {"bmi1",   0x7,        0, EBX, 3,  3},
    {"bmi2",   0x7,        0, EBX, 8,  3},
    {"f16c",   0x1,        0, ECX, 29, 3},
    {"fma",    0x1,        0, ECX, 12, 3},
    {"lzcnt",  0x80000001, 0, ECX, 5,  3},
    {"movbe",  0x1,        0, ECX, 22, 3},
    {"xsave",  0x1,        0, ECX, 26, 3},
};

/* What neither v2 nor v3 names, and many hosts have: a model that had it would not move. */
static const struct abi_feature not_stable[] = {
    {"aes",       0x1,        0, ECX, 25, 4},
    {"pclmulqdq", 0x1,        0, ECX, 1,  4},
    {"sha",       0x7,        0, EBX, 29, 4},
    {"sse4a",     0x80000001, 0, ECX, 6,  4},
    {"gfni",      0x7,        0, ECX, 8,  4},
    {"vaes",      0x7,        0, ECX, 9,  4},
    {"avx512f",   0x7,        0, EBX, 16, 4},
    {"xop",       0x80000001, 0, ECX, 11, 4},
};

static struct soft_model model;
static struct err err;

static int init(const char *spec)
{
    err = (struct err)ERR_INIT;
    return model_init(&model, spec, 1, &err);
}

static uint32_t leaf_reg(uint32_t function, uint32_t index, unsigned reg)
{
    const struct cpuid_leaf *l = cpuid_find(&model.cpuid, function, index);
    if (!l)
        return 0;
    return reg == EAX ? l->eax : reg == EBX ? l->ebx : reg == ECX ? l->ecx : l->edx;
}

static bool announces(const struct abi_feature *f)
{
    return leaf_reg(f->function, f->index, f->reg) >> f->bit & 1;
}

static bool is_named(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(abi_features); i++) {
        if (strcmp(abi_features[i].name, name) == 0)
            return announces(&abi_features[i]);
    }
    return false;
}

/* Does the decoder take the bytes as 64-bit code, or for an undefined instruction? */
static bool decodes(const uint8_t *bytes, size_t len)
{
    const struct decode_mode mode = {.code_bits = 64, .vex = true, .features = model.features};
    uint8_t buf[INSN_LEN_MAX + 1] = {0};
    struct insn insn;
    memcpy(buf, bytes, len);
    return decode_insn(&insn, buf, INSN_LEN_MAX, &mode) == DECODE_OK && insn.op != OP_UD;
}

#define DECODES(...) decodes((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void test_level(const char *spec, unsigned level)
{
    bool right = true;
    if (init(spec) < 0) {
        printf("# %s\n", err.text);
        tap_skip(spec, "the host's processor has not all of it");
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(abi_features); i++) {
        const struct abi_feature *f = &abi_features[i];
        /* XSAVE is in both: protection keys need it. */
        bool want = f->level <= level || strcmp(f->name, "xsave") == 0;
        if (announces(f) == want)
            continue;
        printf("# %s: %s is %s\n", spec, f->name, want ? "missing" : "there");
        right = false;
    }
    for (size_t i = 0; i < ARRAY_LEN(not_stable); i++) {
        if (!announces(&not_stable[i]))
            continue;
        printf("# %s: %s is there\n", spec, not_stable[i].name);
        right = false;
    }
    ok(right, spec);
    ok(DECODES(0x66, 0x0f, 0x38, 0x17, 0xc0), "PTEST");
    ok(DECODES(0xf3, 0x0f, 0xb8, 0xc0), "POPCNT");
    is_int(DECODES(0xc5, 0xfc, 0x58, 0xc0), level >= 3, "VADDPS ymm");
    is_int(DECODES(0xc4, 0xe2, 0x78, 0xf2, 0xc0), level >= 3, "ANDN");
    is_int(DECODES(0x0f, 0x38, 0xf0, 0x00), level >= 3, "MOVBE");
    is_int(DECODES(0xc4, 0xe2, 0x7d, 0x98, 0xc0), level >= 3, "VFMADD132PS");
    ok(!DECODES(0x66, 0x0f, 0x38, 0xdc, 0xc0), "AESENC is undefined");
    is_int(model.xcr0_allowed >> 2 & 1, level >= 3, "XCR0.AVX");
}

static void test_names(void)
{
    is_int(init("x86-64-v2,-popcnt"), 0, "a feature less");
    ok(!is_named("popcnt") && is_named("sse4_2"), "is not announced, and the others are");
    ok(!DECODES(0xf3, 0x0f, 0xb8, 0xc0), "nor executed");
    is_int(init("x86-64-v2,+movbe"), 0, "one more");
    ok(is_named("movbe") && DECODES(0x0f, 0x38, 0xf0, 0x00), "is announced and executed");
    is_int(init("x86-64-v2,+movbe,-movbe"), 0, "the last word counts");
    ok(!is_named("movbe"), "it is not");
    is_int(init("x86-64-v2,-movbe,+movbe,-cx16"), 0, "the other way");
    ok(is_named("movbe") && !is_named("cx16"), "it is");
    is_int(init("host,-smap,-smep,-umip,-pcid,-pku,-fsgsbase,-pdpe1gb"), 0, "system features less");
    ok(!(model.cr4_allowed & (CR4_SMAP | CR4_SMEP | CR4_UMIP | CR4_PCIDE | CR4_PKE | CR4_FSGSBASE)),
       "CR4 has not their bits");
    ok(!model.gib_pages && !model.smap && !model.smep && !model.pcid && !model.pku && !model.umip,
       "nor has the MMU");
    is_int(init("host"), 0, "all");
    const uint64_t bits = CR4_SMAP | CR4_SMEP | CR4_UMIP | CR4_PCIDE | CR4_PKE | CR4_FSGSBASE;
    ok((model.cr4_allowed & bits) == bits && model.gib_pages, "they are there otherwise");
    is_int(init(NULL), 0, "nothing said");
    is_int(model.features, (init("host"), model.features), "is host");
}

/* What another feature needs goes with it. */
static void test_dependencies(void)
{
    if (init("x86-64-v3") < 0) {
        tap_skip("what needs AVX", "the host's processor has not x86-64-v3");
    } else {
        is_int(init("x86-64-v3,-avx"), 0, "without AVX");
        ok(!is_named("avx2") && !is_named("fma") && !is_named("f16c"), "there is none of its kind");
        ok(is_named("bmi1") && is_named("bmi2") && is_named("movbe"), "BMI stays");
        ok(!DECODES(0xc5, 0xfd, 0xfe, 0xc0), "VPADDD is undefined");
        is_int(model.xcr0_allowed, 3 | 1 << 9, "XCR0 has x87, SSE and PKRU");
    }
    is_int(init("host,-xsave"), 0, "without XSAVE");
    ok(!is_named("avx") && !is_named("avx2") && !is_named("fma"), "there is no AVX");
    ok(!(leaf_reg(7, 0, ECX) >> 3 & 1), "nor are there protection keys");
    ok(!(leaf_reg(0xd, 1, EAX) & 7), "nor XSAVEOPT and XSAVEC");
    is_int(model.xcr0_allowed, 0, "XCR0 cannot be set");
    ok(!(model.cr4_allowed & (CR4_OSXSAVE | CR4_PKE)), "nor CR4's bits");
}

static void test_refused(void)
{
    is_int(init("x86-64-v2,+nonsense"), -EINVAL, "a name that there is not");
    ok(strstr(err.text, "'nonsense'"), "is told");
    is_int(init("x86-64-v2,-sse"), -EINVAL, "one that cannot be chosen");
    is_int(init("x86-64-v2,+mov"), -EINVAL, "the start of one");
    is_int(init("x86-64-v2,+movbee"), -EINVAL, "more than one");
    is_int(init("x86-64-v9"), -EINVAL, "a model that there is not");
    ok(strstr(err.text, "'x86-64-v9'"), "is told");
    is_int(init("x86-64-v"), -EINVAL, "the start of one");
    is_int(init(""), -EINVAL, "none");
    is_int(init("x86-64-v2,movbe"), -EINVAL, "a name without + or -");
    is_int(init("x86-64-v2,"), -EINVAL, "no name");
    is_int(init("x86-64-v2,+"), -EINVAL, "nor behind a +");
    is_int(init("x86-64-v2,,+movbe"), -EINVAL, "nor between commas");
}

static void test_state(void)
{
    static struct test_guest guest;
    uint32_t r[4];
    if (!ok(test_guest_init(&guest, 1), "a machine"))
        return;
    struct soft_cpu *cpu = guest.cpu[0];
    test_mode(cpu, 64, 0);
    model_cpuid(cpu, 1, 0, r);
    ok(!(r[ECX] >> 27 & 1), "OSXSAVE is clear");
    model_cpuid(cpu, 7, 0, r);
    ok(!(r[ECX] >> 4 & 1), "and OSPKE");
    cpu->cr4 |= CR4_OSXSAVE | CR4_PKE;
    model_cpuid(cpu, 1, 0, r);
    ok(r[ECX] >> 27 & 1, "until CR4 has it");
    model_cpuid(cpu, 7, 0, r);
    ok(r[ECX] >> 4 & 1, "both");
    cpu->xcr0 = 3;
    model_cpuid(cpu, 0xd, 0, r);
    is_int(r[EBX], 576, "x87 and SSE have 576 bytes");
    cpu->xcr0 = 7;
    model_cpuid(cpu, 0xd, 0, r);
    is_int(r[EBX], 832, "with AVX 832");
    ok(r[ECX] >= r[EBX], "the most is no less");
    model_cpuid(cpu, 7, 1, r);
    ok(!(r[EAX] | r[EBX] | r[ECX] | r[EDX]), "a subleaf that there is not has zeros");
    model_cpuid(cpu, 0x12345, 0, r);
    ok(!(r[EAX] | r[EBX] | r[ECX] | r[EDX]), "and so has a leaf");
    model_cpuid(cpu, 0x80000008, 0, r);
    is_int(r[EAX] & 0xff, guest.vm->model.phys_bits, "bits of physical addresses");
    test_guest_fini(&guest);
}

int main(void)
{
    test_level("x86-64-v2", 2);
    test_level("x86-64-v3", 3);
    test_names();
    test_dependencies();
    test_refused();
    test_state();
    return tap_done();
}
