/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile guest on the soft engine: the input says in which mode its processor starts, how wild
 * its page tables, descriptor tables and registers are, and the code that it runs; what the input
 * has no more of comes out of a generator that the input seeds. So a mutation changes code, a seed,
 * or the mode, and random inputs already reach everything.
 *
 *     byte 0      the mode (enum start)           bytes 4-11  the generator's seed
 *     byte 1      how wild: enum wild bits        from 12     code, then generated code
 *     byte 2, 3   lengths of the generated parts
 *
 * Memory: RAM at 0, with a ROM and a hole of devices above it. All tables lie in RAM, where the
 * guest's own stores reach them. The rest is devices, whose reads give random bytes.
 *
 * Checked, besides what the sanitizers see: the engine leaves after its count of instructions, only
 * by the exits that a guest may cause, with a register state that a processor can have; nothing
 * outside of the guest's memory has changed; a ROM is as it was.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "engine/soft/translate.h"
#include "engine/soft/vm.h"
#include "mem/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM_BYTES    (512 * KIB)
#define ROM_BASE     RAM_BYTES
#define ROM_BYTES    (16 * KIB)
#define HEADER_BYTES 12
#define INSTRUCTIONS 3000 /* of virtual time, a nanosecond each */
#define LIVES        3    /* power-ons after a shutdown, in one input */

/* Where what lies; the page tables cover the first 2 MiB one to one, in the lower half and, for
 * long mode, at the start of the upper half. */
#define AT_GDT      0x1000u
#define AT_IDT      0x2000u
#define AT_TSS      0x3000u
#define AT_TABLES   0x4000u /* four or five pages */
#define AT_STACK    0xa000u
#define AT_CODE     0x10000u
#define AT_HANDLERS 0x18000u
#define CODE_BYTES  0x4000u
#define KERNEL_HALF 0xffff800000000000ULL

/* Selectors of the GDT. */
#define SEL_CODE64   0x08
#define SEL_CODE32   0x10
#define SEL_DATA     0x18
#define SEL_USER32   0x23
#define SEL_USERDATA 0x2b
#define SEL_USER64   0x33
#define SEL_CODE16   0x38
#define SEL_DATA16   0x40
#define SEL_TSS      0x48 /* two entries in long mode */
#define SEL_GATE     0x58
#define SEL_TASKGATE 0x68
#define SEL_LDT      0x70
#define GDT_ENTRIES  20

enum start {
    START_REAL,
    START_UNREAL,
    START_PROTECTED16,
    START_PROTECTED32,
    START_PAGING32,
    START_PAE,
    START_V86,
    START_COMPATIBILITY,
    START_LONG,
    START_LONG_USER,
    START_PROTECTED_USER,
    START_COUNT,
};

enum wild {
    WILD_PAGES = 1,       /* entries of page tables changed at random */
    WILD_DESCRIPTORS = 2, /* of GDT and IDT */
    WILD_REGISTERS = 4,
    WILD_CONTROL = 8, /* CR0, CR4, EFER: bits that are free in the mode */
    WILD_DEBUG = 16,  /* single step and breakpoints */
    WILD_SYSTEM = 32, /* system instructions among the generated ones */
    WILD_TWO = 64,    /* two vCPUs at once, on the host's clock */
};

struct guest {
    struct engine_vm *vm;
    struct engine_vcpu *cpus[2];
    struct mem *mem;
    uint8_t *ram;
    uint64_t random;
};

#define check(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: not %s\n", __LINE__, #condition);                            \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t random64(struct guest *g)
{
    g->random ^= g->random << 13;
    g->random ^= g->random >> 7;
    g->random ^= g->random << 17;
    return g->random * 0x2545f4914f6cdd1dULL;
}

static unsigned below(struct guest *g, unsigned n)
{
    return (unsigned)(random64(g) >> 33) % n;
}

/* --- devices: what is read is anything --- */

static uint64_t device_value(const void *data, uint64_t address)
{
    (void)data;
    return address * 0x9e3779b97f4a7c15ULL;
}

static void pio_read(void *ctx, uint16_t port, unsigned size, void *data, uint32_t count)
{
    (void)ctx;
    memset(data, (int)(device_value(data, port) >> 56), (size_t)size * count);
}

/* Every byte is there to be read. */
static uint8_t written;

static void pio_write(void *ctx, uint16_t port, unsigned size, const void *data, uint32_t count)
{
    uint8_t sum = 0;
    (void)ctx, (void)port;
    for (size_t i = 0; i < (size_t)size * count; i++)
        sum ^= ((const uint8_t *)data)[i];
    __atomic_store_n(&written, sum, __ATOMIC_RELAXED);
}

static void mmio_read(void *ctx, gpa_t gpa, unsigned size, void *data)
{
    uint64_t value = device_value(data, gpa.a);
    (void)ctx;
    check(size <= 8);
    memcpy(data, &value, size);
}

static void mmio_write(void *ctx, gpa_t gpa, unsigned size, const void *data)
{
    pio_write(ctx, (uint16_t)gpa.a, size, data, 1);
}

static const struct engine_upcalls upcalls = {
    .pio_read = pio_read,
    .pio_write = pio_write,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
};

/* --- tables --- */

static void put64(struct guest *g, unsigned at, uint64_t value)
{
    memcpy(g->ram + at, &value, sizeof(value));
}

/* base 0, limit 4 GiB - 1 by G, or 64 KiB - 1 */
static uint64_t descriptor(uint16_t attr)
{
    uint64_t limit = attr & SEG_ATTR_G ? 0xfffff : 0xffff;
    return (limit & 0xffff) | (uint64_t)attr << 40 | (limit >> 16 << 48);
}

static uint64_t system_descriptor(uint32_t base, uint16_t limit, uint8_t type)
{
    return limit | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(0x80u | type) << 40 |
           (uint64_t)(base >> 24) << 56;
}

static uint64_t gate(uint16_t selector, uint32_t offset, uint8_t type)
{
    return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)type << 40 |
           (uint64_t)(offset >> 16) << 48;
}

static void make_gdt(struct guest *g, bool long_mode)
{
    static const struct {
        uint8_t selector;
        uint16_t attr;
    } rows[] = {
        {SEL_CODE64,   0xa09b},
        {SEL_CODE32,   0xc09b},
        {SEL_DATA,     0xc093},
        {SEL_USER32,   0xc0fb},
        {SEL_USERDATA, 0xc0f3},
        {SEL_USER64,   0xa0fb},
        {SEL_CODE16,   0x009b},
        {SEL_DATA16,   0x0093},
    };
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        put64(g, AT_GDT + (rows[i].selector & ~7u), descriptor(rows[i].attr));
    put64(g, AT_GDT + SEL_TSS, system_descriptor(AT_TSS, 0xff, 9));
    put64(g, AT_GDT + SEL_GATE, gate(long_mode ? SEL_CODE64 : SEL_CODE32, AT_HANDLERS, 0xec));
    if (!long_mode) {
        put64(g, AT_GDT + SEL_TASKGATE, gate(SEL_TSS, 0, 0xe5));
        put64(g, AT_GDT + SEL_LDT, system_descriptor(AT_GDT, 0x7f, 2));
    }
}

/* Vectors to short handlers in the generated code; some by another kind of gate. */
static void make_idt(struct guest *g, bool long_mode)
{
    for (unsigned i = 0; i < 256; i++) {
        uint8_t type = below(g, 4) ? 0xee : 0x8f;
        uint32_t to = AT_HANDLERS + below(g, 64) * 16;
        if (!long_mode && below(g, 16) == 0)
            put64(g, AT_IDT + 8 * i, gate(SEL_TSS, 0, 0xe5));
        else if (!long_mode)
            put64(g, AT_IDT + 8 * i, gate(SEL_CODE32, to, type));
        else if (i < 256 / 2) { /* the table is a page */
            put64(g, AT_IDT + 16 * i, gate(SEL_CODE64, to, type) | (uint64_t)below(g, 3) << 32);
            put64(g, AT_IDT + 16 * i + 8, 0);
        }
    }
}

static void make_tss(struct guest *g, bool long_mode)
{
    uint8_t *tss = g->ram + AT_TSS;
    for (unsigned i = 0; i < 0x68; i += 4) {
        uint32_t value = AT_STACK + 0x800 + below(g, 64) * 16;
        memcpy(tss + i, &value, 4);
    }
    if (long_mode) {
        memset(tss, 0, 0x68);
        for (unsigned i = 4; i < 0x5c; i += 8)
            put64(g, AT_TSS + i, AT_STACK + 0x800 + below(g, 16) * 0x40);
    } else {
        static const struct {
            uint8_t offset;
            uint16_t value;
        } words[] = {
            {8,    SEL_DATA          },
            {0x4c, SEL_CODE32        },
            {0x50, SEL_DATA          },
            {0x48, SEL_DATA          },
            {0x54, SEL_DATA          },
            {0x58, SEL_DATA          },
            {0x5c, SEL_DATA          },
            {0x60, 0                 },
            {0x1c, AT_TABLES & 0xffff}
        };
        for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
            memcpy(tss + words[i].offset, &words[i].value, 2);
    }
    tss[0x66] = 0x68; /* the I/O map: some ports allowed */
    memset(tss + 0x68, below(g, 2) ? 0 : 0xff, 0x98);
}

#define PTE_P  1ULL
#define PTE_RW 2ULL
#define PTE_US 4ULL

/* The root, for CR3. */
static uint64_t make_tables(struct guest *g, enum start start)
{
    const uint64_t all = PTE_P | PTE_RW | PTE_US;
    uint8_t *t = g->ram + AT_TABLES;
    memset(t, 0, 5 * 0x1000);
    if (start == START_PAGING32 || start == START_V86 || start == START_PROTECTED_USER) {
        for (uint32_t i = 0; i < 1024; i++) {
            uint32_t pte = i << 12 | (uint32_t)all;
            memcpy(t + 0x1000 + 4 * i, &pte, 4);
        }
        uint32_t pde = (AT_TABLES + 0x1000) | (uint32_t)all;
        memcpy(t, &pde, 4);
        return AT_TABLES;
    }
    bool pae = start == START_PAE;
    for (unsigned i = 0; i < 512; i++)
        put64(g, AT_TABLES + 0x1000 + 8 * i, (uint64_t)i << 12 | all);
    put64(g, AT_TABLES + 0x2000, (AT_TABLES + 0x1000) | all);
    put64(g, AT_TABLES + 0x2000 + 8, 0x80 | all); /* a large page */
    for (unsigned i = 0; i < 4; i++)
        put64(g, AT_TABLES + 0x3000 + 8 * i, (AT_TABLES + 0x2000) | (pae ? PTE_P : all));
    if (pae)
        return AT_TABLES + 0x3000;
    put64(g, AT_TABLES + 0x4000, (AT_TABLES + 0x3000) | all);
    put64(g, AT_TABLES + 0x4000 + 8 * 256, (AT_TABLES + 0x3000) | all);
    return AT_TABLES + 0x4000;
}

static void change_at_random(struct guest *g, unsigned at, unsigned len, unsigned times)
{
    while (times-- > 0) {
        unsigned where = at + below(g, len / 8) * 8;
        uint64_t value;
        memcpy(&value, g->ram + where, 8);
        switch (below(g, 4)) {
        case 0:
            value ^= 1ULL << below(g, 64);
            break;
        case 1:
            value ^= below(g, 0x1000);
            break;
        case 2:
            value = random64(g);
            break;
        default: /* elsewhere: RAM, ROM, a device, the tables themselves */
            value = (value & 0xfff) | (uint64_t)below(g, 256) << 12;
            break;
        }
        put64(g, where, value);
    }
}

/* Where entries are used: the first ones, and what maps the upper half. */
static void change_tables(struct guest *g, unsigned times)
{
    change_at_random(g, AT_TABLES + 0x1000, 0x400, times);
    for (unsigned i = 0; i < 5; i++) {
        if (below(g, 4) == 0)
            change_at_random(g, AT_TABLES + 0x1000 * i, 0x20, 1);
    }
    if (below(g, 4) == 0)
        put64(g, AT_TABLES + 0x4800, random64(g));
}

/* --- code --- */

/* Whole instructions that random bytes hit too rarely. */
static const struct {
    uint8_t len, bytes[4];
} system_instructions[] = {
    {3, {0x0f, 0x22, 0xc0}      }, /* MOV CR0..., and with another ModRM */
    {3, {0x0f, 0x22, 0xd8}      },
    {3, {0x0f, 0x22, 0xe0}      },
    {3, {0x0f, 0x20, 0xc0}      },
    {3, {0x0f, 0x23, 0xf8}      },
    {3, {0x0f, 0x01, 0x10}      },
    {3, {0x0f, 0x01, 0x18}      },
    {3, {0x0f, 0x01, 0x38}      },
    {3, {0x0f, 0x01, 0xf8}      },
    {3, {0x0f, 0x01, 0xca}      },
    {3, {0x0f, 0x01, 0xcb}      },
    {3, {0x0f, 0x01, 0xd1}      },
    {3, {0x0f, 0x01, 0xc1}      },
    {3, {0x0f, 0x00, 0xd8}      },
    {3, {0x0f, 0x00, 0xd0}      },
    {3, {0x0f, 0xae, 0x00}      },
    {3, {0x0f, 0xae, 0x08}      },
    {3, {0x0f, 0xae, 0x20}      },
    {3, {0x0f, 0xae, 0x28}      },
    {3, {0x0f, 0xc7, 0x20}      },
    {3, {0x0f, 0xc7, 0x18}      },
    {3, {0x0f, 0xc7, 0x08}      },
    {2, {0x0f, 0x05}            },
    {2, {0x0f, 0x07}            },
    {2, {0x0f, 0x34}            },
    {2, {0x0f, 0x35}            },
    {2, {0x0f, 0x30}            },
    {2, {0x0f, 0x32}            },
    {2, {0x0f, 0xa2}            },
    {2, {0x0f, 0x06}            },
    {2, {0x0f, 0x09}            },
    {1, {0xcf}                  },
    {2, {0x48, 0xcf}            },
    {1, {0xfb}                  },
    {1, {0xfa}                  },
    {1, {0xf4}                  },
    {1, {0x9d}                  },
    {1, {0x9c}                  },
    {1, {0xcb}                  },
    {2, {0xcd, 0x80}            },
    {1, {0xcc}                  },
    {1, {0xf1}                  },
    {2, {0x8e, 0xd8}            },
    {2, {0x8e, 0xd0}            },
    {3, {0x66, 0x0f, 0x38}      },
    {2, {0xf3, 0xa4}            },
    {2, {0xf3, 0xab}            },
    {2, {0xf3, 0x6c}            },
    {2, {0xf3, 0x6f}            },
    {2, {0xf0, 0x0f}            },
    {3, {0x0f, 0x01, 0xd9}      },
    {3, {0xf3, 0x0f, 0xc7}      },
    {4, {0x66, 0x0f, 0x38, 0x82}},
};

/* MSRs by the load of ECX: their beginnings. */
static const uint32_t msr_bases[] = {0x10,       0x1b,       0x174, 0x200,      0x277,
                                     0x2ff,      0x6e0,      0x800, 0xc0000080, 0xc0000100,
                                     0x4b564d00, 0xc0010000, 0x48};

static unsigned put_bytes(struct guest *g, unsigned at, const void *bytes, unsigned len)
{
    memcpy(g->ram + at, bytes, len);
    return at + len;
}

static void generate(struct guest *g, unsigned at, unsigned len, bool system)
{
    unsigned end = at + len - 16;
    while (at < end) {
        unsigned kind = below(g, 8);
        if (system && kind == 0) {
            unsigned n = below(g, sizeof(system_instructions) / sizeof(system_instructions[0]));
            at = put_bytes(g, at, system_instructions[n].bytes, system_instructions[n].len);
            if (below(g, 4) == 0 && system_instructions[n].len == 3)
                g->ram[at - 1] = (uint8_t)random64(g);
        } else if (system && kind == 1) {
            uint32_t msr =
                msr_bases[below(g, sizeof(msr_bases) / sizeof(msr_bases[0]))] + below(g, 32);
            g->ram[at++] = 0xb9;
            at = put_bytes(g, at, &msr, 4);
            g->ram[at++] = 0x0f;
            g->ram[at++] = below(g, 2) ? 0x30 : 0x32;
        } else if (kind < 5) { /* one opcode, registers or an address near */
            static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64};
            if (below(g, 4) == 0)
                g->ram[at++] = prefixes[below(g, sizeof(prefixes))];
            if (below(g, 3) == 0)
                g->ram[at++] = (uint8_t)(0x40 | below(g, 16));
            if (below(g, 3) == 0)
                g->ram[at++] = 0x0f;
            uint64_t rest = random64(g);
            at = put_bytes(g, at, &rest, 2);
        } else if (kind == 5) { /* VEX */
            uint64_t rest = random64(g);
            g->ram[at++] = below(g, 2) ? 0xc5 : 0xc4;
            at = put_bytes(g, at, &rest, 4);
        } else { /* a short jump, so that there are loops and code in the middle of code */
            g->ram[at++] = (uint8_t)(0x70 | below(g, 16));
            g->ram[at++] = (uint8_t)(below(g, 48) - 24);
        }
    }
}

/* --- the processor's state at the start --- */

static struct cpu_segment segment(uint16_t selector, uint16_t attr)
{
    return (struct cpu_segment){
        .selector = selector, .attr = attr, .limit = attr & SEG_ATTR_G ? UINT32_MAX : 0xffff};
}

static void set_data(struct cpu_sregs *s, struct cpu_segment data)
{
    s->ds = s->es = s->fs = s->gs = s->ss = data;
}

static struct cpu_segment real_segment(uint16_t selector)
{
    return (struct cpu_segment){
        .selector = selector, .base = (uint64_t)selector << 4, .limit = 0xffff, .attr = 0x93};
}

static bool is_long(enum start start)
{
    return start == START_LONG || start == START_LONG_USER || start == START_COMPATIBILITY;
}

static void start_state(struct guest *g, enum start start, struct cpu_regs *regs,
                        struct cpu_sregs *s)
{
    uint64_t cr3 = make_tables(g, start);
    s->gdt = (struct cpu_table_register){.base = AT_GDT, .limit = GDT_ENTRIES * 8 - 1};
    s->idt = (struct cpu_table_register){.base = AT_IDT, .limit = 0x7ff};
    s->tr = (struct cpu_segment){
        .base = AT_TSS, .limit = 0xff, .selector = SEL_TSS, .attr = CPU_SEG_TSS};
    s->ldt = (struct cpu_segment){.attr = 0};
    s->cr3 = cr3;
    s->cr0 = CPU_CR0_PE | CPU_CR0_ET;
    s->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->efer = EFER_SCE | EFER_NXE;
    s->cs = segment(SEL_CODE32, 0xc09b);
    set_data(s, segment(SEL_DATA, 0xc093));
    regs->rip = AT_CODE;
    switch (start) {
    case START_REAL:
    case START_UNREAL:
        s->cr0 = CPU_CR0_ET;
        s->idt = (struct cpu_table_register){.base = AT_IDT, .limit = 0x3ff};
        s->cs = real_segment(AT_CODE >> 4);
        set_data(s, real_segment(start == START_REAL ? 0x800 : 0));
        if (start == START_UNREAL)
            s->ds.limit = s->es.limit = UINT32_MAX;
        regs->rip = 0;
        break;
    case START_PROTECTED16:
        s->cs = segment(SEL_CODE16, 0x009b);
        set_data(s, segment(SEL_DATA16, 0x0093));
        s->cs.base = AT_CODE;
        regs->rip = 0;
        break;
    case START_PROTECTED32:
        break;
    case START_PAE:
        s->cr4 |= CPU_CR4_PAE;
        s->cr0 |= CPU_CR0_PG;
        break;
    case START_PAGING32:
        s->cr0 |= CPU_CR0_PG | CPU_CR0_WP;
        s->cr4 |= CR4_PSE | CR4_PGE;
        break;
    case START_V86:
        s->cr0 |= CPU_CR0_PG;
        s->cr4 |= below(g, 2) ? CR4_VME : 0;
        s->cs = real_segment(AT_CODE >> 4);
        set_data(s, real_segment(0x800));
        s->cs.attr = s->ds.attr = s->es.attr = s->fs.attr = s->gs.attr = s->ss.attr = 0xf3;
        regs->rip = 0;
        regs->rflags |= RFLAGS_VM | (below(g, 2) ? RFLAGS_IOPL : 0);
        break;
    case START_PROTECTED_USER:
        s->cr0 |= CPU_CR0_PG | CR0_AM;
        s->cs = segment(SEL_USER32, 0xc0fb);
        set_data(s, segment(SEL_USERDATA, 0xc0f3));
        break;
    default:
        s->cr0 |= CPU_CR0_PG | CPU_CR0_WP;
        s->cr4 |= CPU_CR4_PAE | CR4_PGE | CR4_FSGSBASE;
        s->efer |= CPU_EFER_LME | CPU_EFER_LMA;
        if (start == START_LONG)
            s->cs = segment(SEL_CODE64, CPU_SEG_CODE64);
        if (start == START_LONG_USER) {
            s->cs = segment(SEL_USER64, 0xa0fb);
            set_data(s, segment(SEL_USERDATA, 0xc0f3));
        }
        if (start == START_LONG && below(g, 2))
            regs->rip += KERNEL_HALF;
        break;
    }
}

static uint64_t register_value(struct guest *g, bool wild)
{
    switch (below(g, wild ? 8 : 4)) {
    case 0:
        return below(g, 64);
    case 1:
    case 2:
        return below(g, RAM_BYTES);
    case 3:
        return AT_STACK + below(g, 0x2000);
    case 4:
        return ROM_BASE + below(g, 0x10000);
    case 5:
        return KERNEL_HALF + below(g, RAM_BYTES) - (below(g, 2) ? 0x800 : 0);
    case 6: /* around a page's end */
        return (uint64_t)below(g, 130) * 0x1000 - below(g, 16);
    default:
        return random64(g);
    }
}

static void power_on(struct guest *g, unsigned id, enum start start, unsigned wild)
{
    static const uint64_t cr4_free[] = {CR4_VME,  CR4_PVI,  CR4_TSD,  CR4_DE,  CR4_PSE,     CR4_PGE,
                                        CR4_UMIP, CR4_SMEP, CR4_SMAP, CR4_PKE, CR4_FSGSBASE};
    struct err err = ERR_INIT;
    struct cpu_regs regs = {.rflags = RFLAGS_FIXED | (below(g, 2) ? RFLAGS_IF : 0)};
    struct cpu_sregs s;
    check(engine_soft.vcpu_reset(g->cpus[id], &err) == 0);
    check(engine_soft.vcpu_get(g->cpus[id], NULL, &s) == 0);
    start_state(g, start, &regs, &s);
    if (wild & WILD_PAGES && id == 0)
        change_tables(g, below(g, 16));
    for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
        regs.gpr[i] = register_value(g, wild & WILD_REGISTERS);
    regs.gpr[CPU_RSP] = start == START_REAL ? 0x1000 : AT_STACK + 0x1000 - 64 * id;
    if (!is_long(start))
        for (unsigned i = 0; i < CPU_GPR_COUNT; i++)
            regs.gpr[i] &= UINT32_MAX;
    regs.rip += 0x800 * id;
    if (wild & WILD_CONTROL) {
        for (unsigned i = 0; i < sizeof(cr4_free) / sizeof(cr4_free[0]); i++)
            s.cr4 ^= below(g, 4) ? 0 : cr4_free[i];
        s.cr0 ^= below(g, 4) ? 0 : CPU_CR0_WP;
        s.cr0 ^= below(g, 4) ? 0 : CR0_AM;
        s.cr0 ^= below(g, 8) ? 0 : CR0_TS;
        s.cr0 ^= below(g, 8) ? 0 : CR0_EM;
        regs.rflags |= random64(g) & (RFLAGS_AC | RFLAGS_DF | RFLAGS_NT | RFLAGS_ARITH);
    }
    if (is_long(start))
        s.cr4 |= CPU_CR4_PAE;
    if (wild & WILD_DEBUG && below(g, 2))
        regs.rflags |= RFLAGS_TF;
    check(engine_soft.vcpu_set(g->cpus[id], &regs, &s) == 0);
    if (wild & WILD_DEBUG) {
        struct soft_cpu *cpu = soft_cpu_of(g->cpus[id]);
        for (unsigned i = 0; i < 4; i++)
            cpu->dr[i] = register_value(g, false);
        cpu->dr[7] = 0x400 | (random64(g) & 0xffff03ff);
        soft_cpu_update(cpu);
    }
}

/* --- the run --- */

static void run_out(void *ctx)
{
    engine_soft.vcpu_kick(ctx);
}

static void check_state(struct engine_vcpu *vcpu)
{
    const struct soft_cpu *cpu = soft_cpu_of(vcpu);
    check((cpu->rflags & RFLAGS_FIXED) && !(cpu->rflags & ~0x3f7fd7ULL));
    check(cpu->gpr[GPR_ZERO] == 0);
    check(!cpu->exclusive && cpu->mode.cpl <= 3);
    check(!(cpu->cr0 & CPU_CR0_PG) || cpu->cr0 & CPU_CR0_PE);
    check(!(cpu->efer & CPU_EFER_LMA) || (cpu->cr4 & CPU_CR4_PAE && cpu->cr0 & CPU_CR0_PG));
}

static void *run(void *ctx)
{
    struct engine_exit exit;
    engine_soft.vcpu_run(ctx, &exit);
    check(exit.kind == ENGINE_EXIT_KICK || exit.kind == ENGINE_EXIT_TRIPLE_FAULT);
    check_state(ctx);
    return (void *)(uintptr_t)(exit.kind == ENGINE_EXIT_TRIPLE_FAULT);
}

static void run_one(struct guest *g, enum start start, unsigned wild)
{
    struct soft_vm *vm = soft_vm_of(g->vm);
    struct chip_timer timer = {0};
    chip_timer_init(&timer, vm->clock, run_out, g->cpus[0]);
    for (unsigned life = 0; life < LIVES; life++) {
        power_on(g, 0, start, wild);
        chip_timer_start(&timer, chip_clock_now(vm->clock) + INSTRUCTIONS);
        bool shut_down = run(g->cpus[0]) != NULL;
        chip_timer_stop(&timer);
        if (!shut_down)
            break;
        start = (enum start)below(g, START_COUNT);
    }
}

/* Both run the same code in the same memory, until the first has ended and for a while. */
static void run_two(struct guest *g, enum start start, unsigned wild)
{
    struct soft_vm *vm = soft_vm_of(g->vm);
    struct chip_timer timers[2] = {0};
    pthread_t threads[2];
    for (unsigned i = 0; i < 2; i++) {
        power_on(g, i, start, wild);
        soft_cpu_of(g->cpus[i])->activity = SOFT_ACTIVE; /* no SIPI is needed */
    }
    for (unsigned i = 0; i < 2; i++) {
        check(pthread_create(&threads[i], NULL, run, g->cpus[i]) == 0);
        chip_timer_init(&timers[i], vm->clock, run_out, g->cpus[i]);
        chip_timer_start(&timers[i], chip_clock_now(vm->clock) + 1000 * INSTRUCTIONS / 2);
    }
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < 2; i++)
        chip_timer_stop(&timers[i]);
}

static const uint8_t rom_byte = 0x90;

/* data[3]: which tier, and which of the translator's modes. Most code runs a few times only. */
static void configure_translator(struct engine_vcpu *vcpu, uint8_t byte)
{
    const struct translate_options options = {
        .off = (byte & 7) == 0,
        .exact = byte & 8,
        .slow = (byte & 0x70) == 0x10,
        .runs = 1 + (byte >> 7) * 3u,
        .flush_every = (byte & 0x70) == 0x20 ? 5 : 0,
    };
    translate_configure(soft_cpu_of(vcpu), &options);
}

static struct guest *guest_new(uint64_t seed, unsigned vcpus, uint8_t translate)
{
    static struct guest guest;
    struct engine_vm_config config = {
        .vcpu_count = vcpus, .upcalls = &upcalls, .virtual_clock = vcpus == 1};
    const struct mem_options options = {0};
    struct err err = ERR_INIT;
    guest = (struct guest){.random = seed | 1};
    check(mem_new(&guest.mem, &options, &err) == 0);
    check(mem_add_ram(guest.mem, "ram", GPA(0), RAM_BYTES, &err) == 0);
    check(mem_add_rom(guest.mem, "rom", GPA(ROM_BASE), ROM_BYTES, &err) == 0);
    check(engine_soft.vm_new(&guest.vm, &config, &err) == 0);
    memset(mem_region_at(guest.mem, 1)->host, rom_byte, ROM_BYTES);
    for (unsigned i = 0; i < 2; i++)
        check(engine_soft.map(guest.vm, i, mem_region_at(guest.mem, i), &err) == 0);
    for (unsigned i = 0; i < vcpus; i++)
        check(engine_soft.vcpu_new(guest.vm, i, &guest.cpus[i], &err) == 0);
    for (unsigned i = 0; i < vcpus; i++)
        configure_translator(guest.cpus[i], translate);
    guest.ram = mem_region_at(guest.mem, 0)->host;
    return &guest;
}

static void guest_free(struct guest *g, unsigned vcpus)
{
    const uint8_t *rom = mem_region_at(g->mem, 1)->host;
    for (unsigned i = 0; i < ROM_BYTES; i++)
        check(rom[i] == rom_byte);
    for (unsigned i = 0; i < vcpus; i++)
        engine_soft.vcpu_free(g->cpus[i]);
    engine_soft.vm_free(g->vm);
    mem_free(g->mem);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t seed;
    if (size < HEADER_BYTES || size > HEADER_BYTES + CODE_BYTES / 2)
        return 0;
    struct err err = ERR_INIT;
    check(log_configure("error", &err) == 0);
    enum start start = data[0] % START_COUNT;
    unsigned wild = data[1], vcpus = wild & WILD_TWO ? 2 : 1;
    memcpy(&seed, data + 4, sizeof(seed));
    struct guest *g = guest_new(seed, vcpus, data[3]);
    make_gdt(g, is_long(start));
    make_idt(g, is_long(start));
    make_tss(g, is_long(start));
    generate(g, AT_CODE, CODE_BYTES, wild & WILD_SYSTEM);
    generate(g, AT_HANDLERS, 0x800, wild & WILD_SYSTEM);
    memcpy(g->ram + AT_CODE, data + HEADER_BYTES, size - HEADER_BYTES);
    if (wild & WILD_DESCRIPTORS) {
        change_at_random(g, AT_GDT, GDT_ENTRIES * 8, data[2] & 15);
        change_at_random(g, AT_IDT, 0x800, data[2] >> 4);
    }
    if (vcpus == 2)
        run_two(g, start, wild);
    else
        run_one(g, start, wild);
    guest_free(g, vcpus);
    return 0;
}
