/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One processor, whatever the host's: AMD's vendor and family 1Ah, so that Linux needs no
 * page-table isolation, no retpolines (automatic IBRS is announced) and none of the errata of older
 * families. Nothing of this matters to an engine without speculation; what matters is that the
 * guest's kernel leaves its mitigations off.
 *
 * A feature that the host's processor executes (vector units; POPCNT, LZCNT, TZCNT, CRC32) needs
 * the host's; all else is the engine's own.
 */
#include "engine/soft/model.h"

#include <cpuid.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/soft/exec_xsave.h"
#include "engine/soft/vm.h"

enum reg {
    EAX,
    EBX,
    ECX,
    EDX,
};

#define FAMILY_1A_MODEL_2 0x00b00f21u
#define PHYS_BITS         46
#define LINEAR_BITS       48
#define NONE              FEAT_COUNT

/* In which models a feature is, besides `host`, which has all that the host allows. */
enum level {
    LEVEL_BASE, /* x86-64-v2 and v3 */
    LEVEL_V3,
    LEVEL_HOST,
};

static const struct feature_bit {
    const char *name; /* for +name and -name; NULL: not to be chosen */
    uint32_t function, index;
    uint8_t reg, bit;
    uint8_t feature; /* enum insn_feature, or NONE */
    uint8_t level;
    bool host; /* the host's processor must have it */
} feature_bits[] = {
    {NULL,         0x1,        0, EDX, 0,  FEAT_X87,        LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 1,  NONE,            LEVEL_BASE, false}, /* VME */
    {NULL,         0x1,        0, EDX, 2,  NONE,            LEVEL_BASE, false}, /* DE */
    {NULL,         0x1,        0, EDX, 3,  NONE,            LEVEL_BASE, false}, /* PSE */
    {NULL,         0x1,        0, EDX, 4,  NONE,            LEVEL_BASE, false}, /* TSC */
    {NULL,         0x1,        0, EDX, 5,  NONE,            LEVEL_BASE, false}, /* MSR */
    {NULL,         0x1,        0, EDX, 6,  NONE,            LEVEL_BASE, false}, /* PAE */
    {NULL,         0x1,        0, EDX, 7,  NONE,            LEVEL_BASE, false}, /* MCE */
    {NULL,         0x1,        0, EDX, 8,  FEAT_CX8,        LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 11, FEAT_SYSENTER,   LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 12, NONE,            LEVEL_BASE, false}, /* MTRR */
    {NULL,         0x1,        0, EDX, 13, NONE,            LEVEL_BASE, false}, /* PGE */
    {NULL,         0x1,        0, EDX, 14, NONE,            LEVEL_BASE, false}, /* MCA */
    {NULL,         0x1,        0, EDX, 15, FEAT_CMOV,       LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 16, NONE,            LEVEL_BASE, false}, /* PAT */
    {NULL,         0x1,        0, EDX, 17, NONE,            LEVEL_BASE, false}, /* PSE-36 */
    {NULL,         0x1,        0, EDX, 19, FEAT_CLFLUSH,    LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 23, FEAT_MMX,        LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 24, FEAT_FXSR,       LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 25, FEAT_SSE,        LEVEL_BASE, false},
    {NULL,         0x1,        0, EDX, 26, FEAT_SSE2,       LEVEL_BASE, false},
    {"sse3",       0x1,        0, ECX, 0,  FEAT_SSE3,       LEVEL_BASE, true },
    {"pclmulqdq",  0x1,        0, ECX, 1,  FEAT_PCLMUL,     LEVEL_HOST, true },
    {"ssse3",      0x1,        0, ECX, 9,  FEAT_SSSE3,      LEVEL_BASE, true },
    {"fma",        0x1,        0, ECX, 12, FEAT_FMA,        LEVEL_V3,   true },
    {"cx16",       0x1,        0, ECX, 13, FEAT_CX16,       LEVEL_BASE, false},
    {"pcid",       0x1,        0, ECX, 17, NONE,            LEVEL_BASE, false},
    {"sse4_1",     0x1,        0, ECX, 19, FEAT_SSE41,      LEVEL_BASE, true },
    {"sse4_2",     0x1,        0, ECX, 20, FEAT_SSE42,      LEVEL_BASE, true },
    {"movbe",      0x1,        0, ECX, 22, FEAT_MOVBE,      LEVEL_V3,   false},
    {"popcnt",     0x1,        0, ECX, 23, FEAT_POPCNT,     LEVEL_BASE, true },
    {"aes",        0x1,        0, ECX, 25, FEAT_AES,        LEVEL_HOST, true },
    {"xsave",      0x1,        0, ECX, 26, FEAT_XSAVE,      LEVEL_BASE, true },
    {"avx",        0x1,        0, ECX, 28, FEAT_AVX,        LEVEL_V3,   true },
    {"f16c",       0x1,        0, ECX, 29, FEAT_F16C,       LEVEL_V3,   true },
    {"rdrand",     0x1,        0, ECX, 30, FEAT_RDRAND,     LEVEL_BASE, false},
    {"fsgsbase",   0x7,        0, EBX, 0,  FEAT_FSGSBASE,   LEVEL_BASE, false},
    {NULL,         0x7,        0, EBX, 1,  NONE,            LEVEL_BASE, false}, /* TSC_ADJUST */
    {"bmi1",       0x7,        0, EBX, 3,  FEAT_BMI1,       LEVEL_V3,   true },
    {"avx2",       0x7,        0, EBX, 5,  FEAT_AVX2,       LEVEL_V3,   true },
    {"smep",       0x7,        0, EBX, 7,  NONE,            LEVEL_BASE, false},
    {"bmi2",       0x7,        0, EBX, 8,  FEAT_BMI2,       LEVEL_V3,   false},
    {"erms",       0x7,        0, EBX, 9,  NONE,            LEVEL_BASE, false},
    {"invpcid",    0x7,        0, EBX, 10, FEAT_INVPCID,    LEVEL_BASE, false},
    {"rdseed",     0x7,        0, EBX, 18, FEAT_RDSEED,     LEVEL_BASE, false},
    {"adx",        0x7,        0, EBX, 19, FEAT_ADX,        LEVEL_BASE, false},
    {"smap",       0x7,        0, EBX, 20, FEAT_SMAP,       LEVEL_BASE, false},
    {"clflushopt", 0x7,        0, EBX, 23, FEAT_CLFLUSHOPT, LEVEL_BASE, false},
    {"clwb",       0x7,        0, EBX, 24, FEAT_CLWB,       LEVEL_BASE, false},
    {"sha",        0x7,        0, EBX, 29, FEAT_SHA,        LEVEL_HOST, true },
    {"umip",       0x7,        0, ECX, 2,  NONE,            LEVEL_BASE, false},
    {"pku",        0x7,        0, ECX, 3,  FEAT_PKU,        LEVEL_BASE, false},
    {"gfni",       0x7,        0, ECX, 8,  FEAT_GFNI,       LEVEL_HOST, true },
    {"vaes",       0x7,        0, ECX, 9,  FEAT_VAES,       LEVEL_HOST, true },
    {"vpclmulqdq", 0x7,        0, ECX, 10, FEAT_VPCLMUL,    LEVEL_HOST, true },
    {"rdpid",      0x7,        0, ECX, 22, FEAT_RDPID,      LEVEL_BASE, false},
    {"movdiri",    0x7,        0, ECX, 27, FEAT_MOVDIRI,    LEVEL_BASE, false},
    {"movdir64b",  0x7,        0, ECX, 28, FEAT_MOVDIR64B,  LEVEL_BASE, false},
    {"fsrm",       0x7,        0, EDX, 4,  NONE,            LEVEL_BASE, false},
    {"serialize",  0x7,        0, EDX, 14, FEAT_SERIALIZE,  LEVEL_BASE, false},
    {"xsaveopt",   0xd,        1, EAX, 0,  FEAT_XSAVEOPT,   LEVEL_BASE, false},
    {"xsavec",     0xd,        1, EAX, 1,  FEAT_XSAVEC,     LEVEL_BASE, false},
    {NULL,         0x80000001, 0, ECX, 0,  FEAT_LAHF64,     LEVEL_BASE, false},
    {"lzcnt",      0x80000001, 0, ECX, 5,  FEAT_LZCNT,      LEVEL_V3,   true },
    {"sse4a",      0x80000001, 0, ECX, 6,  FEAT_SSE4A,      LEVEL_HOST, true },
    {NULL,         0x80000001, 0, ECX, 8,  FEAT_PREFETCHW,  LEVEL_BASE, false},
    {NULL,         0x80000001, 0, EDX, 11, FEAT_SYSCALL,    LEVEL_BASE, false},
    {NULL,         0x80000001, 0, EDX, 20, NONE,            LEVEL_BASE, false}, /* NX */
    {"pdpe1gb",    0x80000001, 0, EDX, 26, NONE,            LEVEL_BASE, false},
    {NULL,         0x80000001, 0, EDX, 27, FEAT_RDTSCP,     LEVEL_BASE, false},
    {NULL,         0x80000001, 0, EDX, 29, NONE,            LEVEL_BASE, false}, /* long mode */
    {NULL,         0x80000007, 0, EDX, 8,  NONE,            LEVEL_BASE, false}, /* invariant TSC */
    {NULL,         0x80000008, 0, EBX, 26, NONE,            LEVEL_BASE, false}, /* SSB_NO */
    {NULL,         0x80000021, 0, EAX, 2,  NONE,            LEVEL_BASE, false}, /* LFENCE serialises */
    {NULL,         0x80000021, 0, EAX, 6,  NONE,            LEVEL_BASE, false}, /* null selectors clear */
    {NULL,         0x80000021, 0, EAX, 8,  NONE,            LEVEL_BASE, false}, /* automatic IBRS */
    {NULL,         0x80000021, 0, EAX, 29, NONE,            LEVEL_BASE, false}, /* SRSO_NO */
};

/* What needs another feature. */
static const struct {
    uint8_t feature, needs;
} dependencies[] = {
    {FEAT_AVX,      FEAT_XSAVE},
    {FEAT_XSAVEOPT, FEAT_XSAVE},
    {FEAT_XSAVEC,   FEAT_XSAVE},
    {FEAT_PKU,      FEAT_XSAVE},
    {FEAT_F16C,     FEAT_AVX  },
    {FEAT_FMA,      FEAT_AVX  },
    {FEAT_AVX2,     FEAT_AVX  },
    {FEAT_VAES,     FEAT_AVX  },
    {FEAT_VPCLMUL,  FEAT_AVX  },
};

static bool host_has(const struct feature_bit *f)
{
    uint32_t r[4];
    if (!__get_cpuid_count(f->function, f->index, &r[EAX], &r[EBX], &r[ECX], &r[EDX]))
        return false;
    return r[f->reg] >> f->bit & 1;
}

/* --- which features --- */

#define BITS ARRAY_LEN(feature_bits)

static bool in_level(const struct feature_bit *f, enum level level)
{
    return level == LEVEL_HOST ? !f->host || host_has(f) : f->level <= level;
}

static int change_feature(bool on[BITS], const char *word, size_t len, struct err *err)
{
    for (size_t i = 0; i < BITS; i++) {
        const struct feature_bit *f = &feature_bits[i];
        if (!f->name || strlen(f->name) != len - 1 || strncmp(f->name, word + 1, len - 1) != 0)
            continue;
        on[i] = word[0] == '+';
        return 0;
    }
    return err_set(err, EINVAL,
                   "--cpu: no feature '%.*s'; they have the names of /proc/cpuinfo, such as avx2, "
                   "aes, bmi1, and a + or - in front",
                   (int)(len - 1), word + 1);
}

static int choose(bool on[BITS], const char *spec, struct err *err)
{
    static const struct {
        const char *name;
        enum level level;
    } levels[] = {
        {"host",      LEVEL_HOST},
        {"x86-64-v2", LEVEL_BASE},
        {"x86-64-v3", LEVEL_V3  },
    };
    size_t len = strcspn(spec, ",");
    size_t found = 0;
    while (found < ARRAY_LEN(levels) &&
           (strlen(levels[found].name) != len || strncmp(levels[found].name, spec, len) != 0))
        found++;
    if (found == ARRAY_LEN(levels))
        return err_set(err, EINVAL,
                       "--cpu: no model '%.*s'; there are host, x86-64-v2 and x86-64-v3, each with "
                       ",+FEATURE or ,-FEATURE behind it",
                       (int)len, spec);
    for (size_t i = 0; i < BITS; i++)
        on[i] = in_level(&feature_bits[i], levels[found].level);
    for (spec += len; *spec == ','; spec += len) {
        spec++;
        len = strcspn(spec, ",");
        if (len < 2 || (*spec != '+' && *spec != '-'))
            return err_set(err, EINVAL, "--cpu: '%.*s' is neither +FEATURE nor -FEATURE", (int)len,
                           spec);
        int code = change_feature(on, spec, len, err);
        if (code < 0)
            return code;
    }
    return 0;
}

/* --- CPUID --- */

static struct cpuid_leaf *leaf(struct cpuid_table *table, uint32_t function, uint32_t index,
                               bool indexed)
{
    struct cpuid_leaf *l = cpuid_find(table, function, index);
    if (l)
        return l;
    l = &table->leaves[table->count++];
    *l = (struct cpuid_leaf){.function = function, .index = index, .indexed = indexed};
    return l;
}

static uint32_t *leaf_register(struct cpuid_leaf *l, uint8_t reg)
{
    return reg == EAX ? &l->eax : reg == EBX ? &l->ebx : reg == ECX ? &l->ecx : &l->edx;
}

static void set_vendor(struct cpuid_leaf *l, uint32_t max)
{
    l->eax = max;
    l->ebx = load_le32("Auth");
    l->edx = load_le32("enti");
    l->ecx = load_le32("cAMD");
}

static void set_name(struct cpuid_table *table)
{
    static const char name[48] = "Hull soft processor";
    for (uint32_t i = 0; i < 3; i++) {
        struct cpuid_leaf *l = leaf(table, 0x80000002 + i, 0, false);
        l->eax = load_le32(name + 16 * i);
        l->ebx = load_le32(name + 16 * i + 4);
        l->ecx = load_le32(name + 16 * i + 8);
        l->edx = load_le32(name + 16 * i + 12);
    }
}

static void set_xsave(struct soft_model *m)
{
    static const struct {
        uint32_t component, bytes, offset;
    } components[] = {
        {2, XSAVE_AVX_BYTES,  XSAVE_AVX_OFFSET },
        {9, XSAVE_PKRU_BYTES, XSAVE_PKRU_OFFSET},
    };
    struct cpuid_leaf *main = leaf(&m->cpuid, 0xd, 0, true);
    main->eax = (uint32_t)m->xcr0_allowed;
    main->ecx = XSAVE_LEGACY_BYTES;
    leaf(&m->cpuid, 0xd, 1, true);
    for (size_t i = 0; i < ARRAY_LEN(components); i++) {
        if (!(m->xcr0_allowed >> components[i].component & 1))
            continue;
        struct cpuid_leaf *l = leaf(&m->cpuid, 0xd, components[i].component, true);
        l->eax = components[i].bytes;
        l->ebx = components[i].offset;
        if (components[i].offset + components[i].bytes > main->ecx)
            main->ecx = components[i].offset + components[i].bytes;
    }
}

static bool has(const struct soft_model *m, unsigned feature)
{
    return m->features >> feature & 1;
}

static bool has_bit(const bool on[BITS], uint32_t function, uint8_t reg, uint8_t bit)
{
    for (size_t i = 0; i < BITS; i++) {
        const struct feature_bit *f = &feature_bits[i];
        if (f->function == function && f->reg == reg && f->bit == bit)
            return on[i];
    }
    return false;
}

static void set_allowed(struct soft_model *m, const bool on[BITS])
{
    m->pcid = has_bit(on, 1, ECX, 17);
    m->smep = has_bit(on, 7, EBX, 7);
    m->smap = has(m, FEAT_SMAP);
    m->umip = has_bit(on, 7, ECX, 2);
    m->pku = has(m, FEAT_PKU);
    m->nx = true;
    m->gib_pages = has_bit(on, 0x80000001, EDX, 26);
    m->xcr0_allowed =
        !has(m, FEAT_XSAVE) ? 0 : 3 | (has(m, FEAT_AVX) ? 4 : 0) | (m->pku ? 1u << 9 : 0);
    m->cr4_allowed = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CPU_CR4_PAE | CR4_MCE |
                     CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | (m->umip ? CR4_UMIP : 0) |
                     (has(m, FEAT_FSGSBASE) ? CR4_FSGSBASE : 0) | (m->pcid ? CR4_PCIDE : 0) |
                     (has(m, FEAT_XSAVE) ? CR4_OSXSAVE : 0) | (m->smep ? CR4_SMEP : 0) |
                     (m->smap ? CR4_SMAP : 0) | (m->pku ? CR4_PKE : 0);
    m->efer_allowed = EFER_SCE | CPU_EFER_LME | EFER_NXE | EFER_AUTOIBRS;
}

static void build_cpuid(struct soft_model *m, const bool on[BITS], unsigned vcpu_count)
{
    struct cpuid_table *t = &m->cpuid;
    const struct cpuid_options options = {.tsc_deadline = true, .x2apic = true};
    set_vendor(leaf(t, 0, 0, false), 0xd);
    struct cpuid_leaf *l = leaf(t, 1, 0, false);
    l->eax = FAMILY_1A_MODEL_2;
    l->ebx = 8 << 8; /* CLFLUSH: 64 bytes */
    leaf(t, 7, 0, true);
    set_vendor(leaf(t, 0x80000000, 0, false), 0x80000021);
    leaf(t, 0x80000001, 0, false)->eax = FAMILY_1A_MODEL_2;
    set_name(t);
    l = leaf(t, 0x80000005, 0, false); /* first level: 32 KiB each, 8 ways, 64-byte lines */
    l->ecx = l->edx = 0x20080140;
    leaf(t, 0x80000006, 0, false)->ecx = 0x02006140; /* second: 512 KiB, 8 ways */
    leaf(t, 0x80000008, 0, false)->eax = PHYS_BITS | LINEAR_BITS << 8;
    set_xsave(m);
    for (size_t i = 0; i < BITS; i++) {
        const struct feature_bit *f = &feature_bits[i];
        if (on[i])
            *leaf_register(leaf(t, f->function, f->index, f->function == 7 || f->function == 0xd),
                           f->reg) |= 1u << f->bit;
    }
    /* AMD repeats the features that are older than its own leaf. */
    const uint32_t shared = 0x0183f3ff;
    leaf(t, 0x80000001, 0, false)->edx |= leaf(t, 1, 0, false)->edx & shared;
    leaf(t, 0x40000001, 0, false)->eax = pv_features(vcpu_count);
    cpuid_set_features(t, &options);
}

int model_init(struct soft_model *m, const char *spec, unsigned vcpu_count, struct err *err)
{
    bool on[BITS];
    *m = (struct soft_model){.phys_bits = PHYS_BITS, .amd = true};
    int code = choose(on, spec ? spec : "host", err);
    if (code < 0)
        return code;
    m->features = FEATURE(BASE);
    for (size_t i = 0; i < BITS; i++) {
        const struct feature_bit *f = &feature_bits[i];
        if (on[i] && f->host && !host_has(f))
            return err_set(err, ENOTSUP,
                           "--cpu: this host's processor has no %s, which the soft engine executes "
                           "on it; leave it out with -%s",
                           f->name, f->name);
        if (on[i] && f->feature != NONE)
            m->features |= 1ULL << f->feature;
    }
    for (size_t i = 0; i < ARRAY_LEN(dependencies); i++) {
        if (has(m, dependencies[i].feature) && !has(m, dependencies[i].needs)) {
            m->features &= ~(1ULL << dependencies[i].feature);
            for (size_t k = 0; k < BITS; k++)
                on[k] = on[k] && feature_bits[k].feature != dependencies[i].feature;
        }
    }
    set_allowed(m, on);
    build_cpuid(m, on, vcpu_count);
    return 0;
}

/* Bytes of an XSAVE area for the components of xcr0. */
static uint32_t xsave_bytes(uint64_t xcr0)
{
    if (xcr0 >> 9 & 1)
        return XSAVE_PKRU_OFFSET + XSAVE_PKRU_BYTES;
    return xcr0 >> 2 & 1 ? XSAVE_AVX_OFFSET + XSAVE_AVX_BYTES : XSAVE_LEGACY_BYTES;
}

void model_cpuid(const struct soft_cpu *cpu, uint32_t function, uint32_t index, uint32_t out[4])
{
    struct cpuid_table *table = cpu->cpuid;
    /* Beyond the last basic leaf processors of this vendor give zeros. */
    const struct cpuid_leaf *l = cpuid_find(table, function, index);
    if (!l) {
        memset(out, 0, 4 * sizeof(out[0]));
        return;
    }
    out[EAX] = l->eax;
    out[EBX] = l->ebx;
    out[ECX] = l->ecx;
    out[EDX] = l->edx;
    if (function == 1 && cpu->cr4 & CR4_OSXSAVE)
        out[ECX] |= 1u << 27;
    if (function == 7 && index == 0 && cpu->cr4 & CR4_PKE)
        out[ECX] |= 1u << 4; /* OSPKE */
    if (function == 0xd && index <= 1)
        out[EBX] = xsave_bytes(cpu->xcr0);
}
