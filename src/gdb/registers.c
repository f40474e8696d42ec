/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers in the order of GDB's standard features org.gnu.gdb.i386.core and .sse (GDB manual,
 * G.5.15), then one of ours for the system registers. The description that GDB reads and the
 * transfer of values are made from the same table.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/units.h"
#include "gdb/gdb.h"

/* Where a register's value is. */
enum source {
    SRC_GPR, /* index: enum cpu_gpr */
    SRC_RIP,
    SRC_RFLAGS,
    SRC_SEG,     /* index into segment_of() */
    SRC_SEGBASE, /* the same */
    SRC_ST,      /* x87 register */
    SRC_X87,     /* control registers: index into x87_controls */
    SRC_XMM,
    SRC_MXCSR,
    SRC_SYSTEM, /* index: enum system_register */
};

enum system_register {
    SYS_CR0,
    SYS_CR2,
    SYS_CR3,
    SYS_CR4,
    SYS_CR8,
    SYS_EFER,
};

struct reg {
    const char *name, *name32; /* name32 NULL: there is none in 32-bit mode */
    const char *type;          /* NULL: an integer of the mode's width */
    uint8_t bits;              /* 0: the mode's width */
    uint8_t source, index;
};

enum {
    SEG_INDEX_CS,
    SEG_INDEX_SS,
    SEG_INDEX_DS,
    SEG_INDEX_ES,
    SEG_INDEX_FS,
    SEG_INDEX_GS,
};

#define GPR(n64, n32, i)                                                                           \
    {                                                                                              \
        n64, n32, NULL, 0, SRC_GPR, i                                                              \
    }
#define SEG(n, i)                                                                                  \
    {                                                                                              \
        n, n, "int32", 32, SRC_SEG, i                                                              \
    }
#define ST(n, i)                                                                                   \
    {                                                                                              \
        n, n, "i387_ext", 80, SRC_ST, i                                                            \
    }
#define CONTROL(n, i)                                                                              \
    {                                                                                              \
        n, n, "int", 32, SRC_X87, i                                                                \
    }
#define XMM(n, n32, i)                                                                             \
    {                                                                                              \
        n, n32, "vec128", 128, SRC_XMM, i                                                          \
    }
#define SYSTEM(n, i)                                                                               \
    {                                                                                              \
        n, n, NULL, 0, SRC_SYSTEM, i                                                               \
    }

static const struct reg core[] = {
    GPR("rax", "eax", CPU_RAX),
    GPR("rbx", NULL, CPU_RBX),
    GPR("rcx", "ecx", CPU_RCX),
    GPR("rdx", "edx", CPU_RDX),
    GPR(NULL, "ebx", CPU_RBX),
    GPR(NULL, "esp", CPU_RSP),
    GPR(NULL, "ebp", CPU_RBP),
    GPR("rsi", "esi", CPU_RSI),
    GPR("rdi", "edi", CPU_RDI),
    GPR("rbp", NULL, CPU_RBP),
    GPR("rsp", NULL, CPU_RSP),
    GPR("r8", NULL, CPU_R8),
    GPR("r9", NULL, CPU_R9),
    GPR("r10", NULL, CPU_R10),
    GPR("r11", NULL, CPU_R11),
    GPR("r12", NULL, CPU_R12),
    GPR("r13", NULL, CPU_R13),
    GPR("r14", NULL, CPU_R14),
    GPR("r15", NULL, CPU_R15),
    {"rip",    "eip",    "code_ptr",    0,  SRC_RIP,    0},
    {"eflags", "eflags", "i386_eflags", 32, SRC_RFLAGS, 0},
    SEG("cs", SEG_INDEX_CS),
    SEG("ss", SEG_INDEX_SS),
    SEG("ds", SEG_INDEX_DS),
    SEG("es", SEG_INDEX_ES),
    SEG("fs", SEG_INDEX_FS),
    SEG("gs", SEG_INDEX_GS),
    ST("st0", 0),
    ST("st1", 1),
    ST("st2", 2),
    ST("st3", 3),
    ST("st4", 4),
    ST("st5", 5),
    ST("st6", 6),
    ST("st7", 7),
    CONTROL("fctrl", 0),
    CONTROL("fstat", 1),
    CONTROL("ftag", 2),
    CONTROL("fiseg", 3),
    CONTROL("fioff", 4),
    CONTROL("foseg", 5),
    CONTROL("fooff", 6),
    CONTROL("fop", 7),
};

static const struct reg sse[] = {
    XMM("xmm0", "xmm0", 0),
    XMM("xmm1", "xmm1", 1),
    XMM("xmm2", "xmm2", 2),
    XMM("xmm3", "xmm3", 3),
    XMM("xmm4", "xmm4", 4),
    XMM("xmm5", "xmm5", 5),
    XMM("xmm6", "xmm6", 6),
    XMM("xmm7", "xmm7", 7),
    XMM("xmm8", NULL, 8),
    XMM("xmm9", NULL, 9),
    XMM("xmm10", NULL, 10),
    XMM("xmm11", NULL, 11),
    XMM("xmm12", NULL, 12),
    XMM("xmm13", NULL, 13),
    XMM("xmm14", NULL, 14),
    XMM("xmm15", NULL, 15),
    {"mxcsr", "mxcsr", "i386_mxcsr", 32, SRC_MXCSR, 0},
};

static const struct reg system_regs[] = {
    {"fs_base", "fs_base", NULL, 0, SRC_SEGBASE, SEG_INDEX_FS},
    {"gs_base", "gs_base", NULL, 0, SRC_SEGBASE, SEG_INDEX_GS},
    SYSTEM("cr0", SYS_CR0),
    SYSTEM("cr2", SYS_CR2),
    SYSTEM("cr3", SYS_CR3),
    SYSTEM("cr4", SYS_CR4),
    SYSTEM("cr8", SYS_CR8),
    SYSTEM("efer", SYS_EFER),
};

/* What GDB asks of the features it knows by name, written out for it: types first. */
static const char core_types[] =
    "<flags id=\"i386_eflags\" size=\"4\">"
    "<field name=\"CF\" start=\"0\" end=\"0\"/><field name=\"\" start=\"1\" end=\"1\"/>"
    "<field name=\"PF\" start=\"2\" end=\"2\"/><field name=\"AF\" start=\"4\" end=\"4\"/>"
    "<field name=\"ZF\" start=\"6\" end=\"6\"/><field name=\"SF\" start=\"7\" end=\"7\"/>"
    "<field name=\"TF\" start=\"8\" end=\"8\"/><field name=\"IF\" start=\"9\" end=\"9\"/>"
    "<field name=\"DF\" start=\"10\" end=\"10\"/><field name=\"OF\" start=\"11\" end=\"11\"/>"
    "<field name=\"NT\" start=\"14\" end=\"14\"/><field name=\"RF\" start=\"16\" end=\"16\"/>"
    "<field name=\"VM\" start=\"17\" end=\"17\"/><field name=\"AC\" start=\"18\" end=\"18\"/>"
    "<field name=\"VIF\" start=\"19\" end=\"19\"/><field name=\"VIP\" start=\"20\" end=\"20\"/>"
    "<field name=\"ID\" start=\"21\" end=\"21\"/></flags>";

static const char sse_types[] =
    "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>"
    "<vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
    "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/>"
    "<vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
    "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/>"
    "<vector id=\"v2i64\" type=\"int64\" count=\"2\"/>"
    "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/>"
    "<field name=\"v2_double\" type=\"v2d\"/><field name=\"v16_int8\" type=\"v16i8\"/>"
    "<field name=\"v8_int16\" type=\"v8i16\"/><field name=\"v4_int32\" type=\"v4i32\"/>"
    "<field name=\"v2_int64\" type=\"v2i64\"/><field name=\"uint128\" type=\"uint128\"/></union>"
    "<flags id=\"i386_mxcsr\" size=\"4\">"
    "<field name=\"IE\" start=\"0\" end=\"0\"/><field name=\"DE\" start=\"1\" end=\"1\"/>"
    "<field name=\"ZE\" start=\"2\" end=\"2\"/><field name=\"OE\" start=\"3\" end=\"3\"/>"
    "<field name=\"UE\" start=\"4\" end=\"4\"/><field name=\"PE\" start=\"5\" end=\"5\"/>"
    "<field name=\"DAZ\" start=\"6\" end=\"6\"/><field name=\"IM\" start=\"7\" end=\"7\"/>"
    "<field name=\"DM\" start=\"8\" end=\"8\"/><field name=\"ZM\" start=\"9\" end=\"9\"/>"
    "<field name=\"OM\" start=\"10\" end=\"10\"/><field name=\"UM\" start=\"11\" end=\"11\"/>"
    "<field name=\"PM\" start=\"12\" end=\"12\"/><field name=\"FZ\" start=\"15\" end=\"15\"/>"
    "</flags>";

static const struct feature {
    const char *name, *types;
    const struct reg *regs;
    size_t count;
} features[] = {
    {"org.gnu.gdb.i386.core", core_types, core,        ARRAY_LEN(core)       },
    {"org.gnu.gdb.i386.sse",  sse_types,  sse,         ARRAY_LEN(sse)        },
    {"org.hull.x86.system",   "",         system_regs, ARRAY_LEN(system_regs)},
};

static const char *reg_name(const struct reg *reg, bool i386)
{
    return i386 ? reg->name32 : reg->name;
}

static unsigned reg_bits(const struct reg *reg, bool i386)
{
    return reg->bits ? reg->bits : i386 ? 32 : 64;
}

/* --- the description --- */

struct text {
    char *at, *end;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text->at, (size_t)(text->end - text->at), format, args);
    va_end(args);
    if (len > 0)
        text->at += (size_t)len < (size_t)(text->end - text->at) ? len : text->end - text->at - 1;
}

static void describe(struct text *text, bool i386)
{
    add(text,
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>"
        "<architecture>%s</architecture>",
        i386 ? "i386" : "i386:x86-64");
    for (size_t f = 0; f < ARRAY_LEN(features); f++) {
        const struct feature *feature = &features[f];
        add(text, "<feature name=\"%s\">%s", feature->name, feature->types);
        for (size_t i = 0; i < feature->count; i++) {
            const struct reg *reg = &feature->regs[i];
            if (!reg_name(reg, i386))
                continue;
            unsigned bits = reg_bits(reg, i386);
            const char *type = reg->type ? reg->type : bits == 64 ? "int64" : "int32";
            add(text, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\"/>", reg_name(reg, i386), bits,
                type);
        }
        add(text, "</feature>");
    }
    add(text, "</target>");
}

void gdb_features(bool i386, char *text, size_t len)
{
    struct text to = {text, text + len};
    describe(&to, i386);
}

/* --- values --- */

static const struct reg *find(bool i386, unsigned number)
{
    for (size_t f = 0; f < ARRAY_LEN(features); f++) {
        for (size_t i = 0; i < features[f].count; i++) {
            const struct reg *reg = &features[f].regs[i];
            if (reg_name(reg, i386) && number-- == 0)
                return reg;
        }
    }
    return NULL;
}

unsigned gdb_reg_count(bool i386)
{
    unsigned count = 0;
    while (find(i386, count))
        count++;
    return count;
}

static struct cpu_segment *segment_of(struct cpu_sregs *s, unsigned index)
{
    struct cpu_segment *const segments[] = {
        [SEG_INDEX_CS] = &s->cs, [SEG_INDEX_SS] = &s->ss, [SEG_INDEX_DS] = &s->ds,
        [SEG_INDEX_ES] = &s->es, [SEG_INDEX_FS] = &s->fs, [SEG_INDEX_GS] = &s->gs,
    };
    return segments[index];
}

static uint64_t *system_of(struct cpu_sregs *s, unsigned index)
{
    uint64_t *const registers[] = {
        [SYS_CR0] = &s->cr0, [SYS_CR2] = &s->cr2, [SYS_CR3] = &s->cr3,
        [SYS_CR4] = &s->cr4, [SYS_CR8] = &s->cr8, [SYS_EFER] = &s->efer,
    };
    return registers[index];
}

/* FXSAVE keeps one bit a register, valid or empty; FSTENV's word, which GDB shows, has two (SDM
 * vol. 1, 8.1.7): 3 empty, else here 0, since the other kinds follow from the value. */
static uint32_t full_tag_word(uint8_t abridged)
{
    uint32_t word = 0;
    for (unsigned i = 0; i < 8; i++)
        word |= (abridged >> i & 1 ? 0u : 3u) << (2 * i);
    return word;
}

static uint8_t abridged_tag_word(uint32_t full)
{
    unsigned byte = 0;
    for (unsigned i = 0; i < 8; i++)
        byte |= (unsigned)((full >> (2 * i) & 3) != 3) << i;
    return (uint8_t)byte;
}

static const struct x87_control {
    uint16_t at;
    uint8_t bytes;
} x87_controls[] = {
    {0,  2}, /* FCW */
    {2,  2}, /* FSW */
    {4,  1}, /* FTW, abridged */
    {12, 2}, /* FCS in the 32-bit format; high half of FIP in the 64-bit one */
    {8,  4}, /* FIP */
    {20, 2}, /* FDS */
    {16, 4}, /* FDP */
    {6,  2}, /* FOP */
};

#define X87_TAG_WORD 2

static uint32_t x87_get(const uint8_t *fxsave, unsigned index)
{
    uint32_t value = 0;
    memcpy(&value, fxsave + x87_controls[index].at, x87_controls[index].bytes);
    return index == X87_TAG_WORD ? full_tag_word((uint8_t)value) : value;
}

static void x87_set(struct cpu_fpu *fpu, unsigned index, uint32_t value)
{
    if (index == X87_TAG_WORD)
        value = abridged_tag_word(value);
    for (unsigned i = 0; i < x87_controls[index].bytes; i++)
        fpu->fxsave[x87_controls[index].at + i] = (uint8_t)(value >> (8 * i));
}

#define FXSAVE_MXCSR 24
#define FXSAVE_ST    32
#define FXSAVE_XMM   160

/* The register's bytes where they lie as GDB wants them, or NULL: then it is made up. */
__attribute__((nonnull)) static void *plain_place(struct gdb_regs *r, const struct reg *reg)
{
    switch (reg->source) {
    case SRC_GPR:
        return &r->regs.gpr[reg->index];
    case SRC_RIP:
        return &r->regs.rip;
    case SRC_RFLAGS:
        return &r->regs.rflags;
    case SRC_SEGBASE:
        return &segment_of(&r->sregs, reg->index)->base;
    case SRC_ST:
        return r->fpu.fxsave + FXSAVE_ST + (size_t)16 * reg->index;
    case SRC_XMM:
        return r->fpu.fxsave + FXSAVE_XMM + (size_t)16 * reg->index;
    case SRC_MXCSR:
        return r->fpu.fxsave + FXSAVE_MXCSR;
    case SRC_SYSTEM:
        return system_of(&r->sregs, reg->index);
    default:
        return NULL;
    }
}

unsigned gdb_reg_get(const struct gdb_regs *regs, bool i386, unsigned number, uint8_t value[16])
{
    const struct reg *reg = find(i386, number);
    if (!reg)
        return 0;
    struct gdb_regs copy = *regs;
    unsigned bytes = reg_bits(reg, i386) / 8;
    const void *place = plain_place(&copy, reg);
    if (place) {
        memcpy(value, place, bytes);
        return bytes;
    }
    uint32_t word = reg->source == SRC_SEG ? segment_of(&copy.sregs, reg->index)->selector
                                           : x87_get(copy.fpu.fxsave, reg->index);
    memcpy(value, &word, bytes);
    return bytes;
}

unsigned gdb_reg_set(struct gdb_regs *regs, bool i386, unsigned number, const uint8_t value[16])
{
    const struct reg *reg = find(i386, number);
    if (!reg)
        return 0;
    unsigned bytes = reg_bits(reg, i386) / 8;
    void *place = plain_place(regs, reg);
    uint32_t word;
    memcpy(&word, value, sizeof(word));
    if (place) {
        if (reg->bits == 0) /* a 32-bit value of a 64-bit register: the rest is zero */
            memset(place, 0, 8);
        memcpy(place, value, bytes);
    } else if (reg->source == SRC_SEG) {
        segment_of(&regs->sregs, reg->index)->selector = (uint16_t)word;
    } else {
        x87_set(&regs->fpu, reg->index, word);
    }
    return bytes;
}
