/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences of instructions in both tiers: x87, MMX, vectors, memory that faults or is slow,
 * handlers in between, in 64- and 32-bit code; registers, memory and the count of instructions must
 * be the same behind them, and at each exception on the way.
 *
 *     translate_x87_test [--cases N] [--seed N]
 */
#include <stddef.h>

#include "engine/soft/decode.h"
#include "engine/soft/exec_vec.h"
#include "engine/soft/test_cpu.h"
#include "engine/soft/translate.h"

/* Linear and physical addresses. */
#define TABLES     0x10000u
#define PAGES      (TABLES + 0x3000) /* the page tables themselves: an entry a page from 0 */
#define CODE       0x200000u
#define HANDLERS   0x210000u
#define DATA       0x220000u
#define DATA_PAGES 8u
#define STACK      0x22f000u
#define CONSTANTS  0x23e000u /* control words */
#define VARIABLES  0x23f000u
#define LOG        0x240000u /* an entry an exception, in a circle */
#define LOG_BYTES  0x40000u
#define ALL_BYTES  (LOG + LOG_BYTES - CODE)

#define PTE        3u
#define PTE_P      1u
#define DEVICE     0x50000000u
#define FS_BASE    0x40u
#define SEL_CODE   8u /* 64 bits, the handlers' */
#define SEL_DATA   16u
#define SEL_CODE32 24u
#define SEL_FS     32u
#define PORT       0xe0u /* kicks: vcpu_run() returns */
#define HLT        0xf4u

#define INSNS_MAX  80u
#define ROUNDS     6u
#define CODE_MAX   (INSNS_MAX * 32u)
#ifdef __SANITIZE_THREAD__
#define CASES 40u /* slow there, and there is but one thread */
#else
#define CASES 400u
#endif
#define VAR_COUNTER (VARIABLES + 0)
#define VAR_LOG     (VARIABLES + 8)

/* What the handlers below have as numbers. */
_Static_assert(VAR_LOG == 0x23f008 && CONSTANTS == 0x23e000 && PAGES == 0x13000, "the code below");
_Static_assert(LOG == 0x240000 && LOG_BYTES == 0x40000, "the code below");

/*
 * What exceptions go to. Each notes the x87 and vector state, the error code or what is in its
 * place, and CR2, then takes away the reason; what it cannot is left to `give_up`, whose code ends
 * the case.
 */
/* clang-format off */
__asm__(".pushsection .rodata\n"
        ".macro note\n"
        "push %rax; push %rcx\n"
        "mov 0x23f008, %rax; fxsave64 (%rax)\n"
        "mov 16(%rsp), %rcx; mov %rcx, 416(%rax)\n"
        "mov 24(%rsp), %rcx; mov %rcx, 424(%rax)\n"
        "mov %cr2, %rcx; mov %rcx, 432(%rax)\n"
        "add $512, %eax; and $0x3fe00, %eax; or $0x240000, %eax\n"
        "mov %rax, 0x23f008\n"
        ".endm\n"
        ".macro back\n"
        "pop %rcx; pop %rax; iretq\n"
        ".endm\n"
        ".hidden on_pf, on_mf, on_xm, on_nm, give_up, handlers_end\n"
        ".globl on_pf, on_mf, on_xm, on_nm, give_up, handlers_end\n"
        ".balign 16\n"
        "on_pf: note\n"
        "mov %cr2, %rcx; mov %rcx, %rax; shr $12, %ecx\n"
        "orq $3, 0x13000(,%rcx,8); invlpg (%rax)\n"
        "pop %rcx; pop %rax; add $8, %rsp; iretq\n"
        "on_mf: note; fnclex; back\n"
        "on_xm: note; ldmxcsr 0x23e040; back\n"
        "on_nm: clts; note; back\n"
        "give_up: note; out %al, $0xe0; hlt\n"
        "handlers_end:\n"
        ".popsection\n");
/* clang-format on */
extern const uint8_t on_pf[], on_mf[], on_xm[], on_nm[], give_up[], handlers_end[];

static struct test_guest guest;
static struct soft_cpu *cpu;
static bool code32; /* the code, else of 64 bits; handlers are of 64 */
static uint64_t random_state, cases = CASES, seed = 1;

static uint64_t random64(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15ULL; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

static unsigned below(unsigned n)
{
    return (unsigned)((random64() >> 32) * n >> 32);
}

static bool one_in(unsigned n)
{
    return below(n) == 0;
}

/* Stores to the device are like another thread's event that is gone again when the loop looks. */
static void device_write(void *ctx, gpa_t gpa, unsigned size, const void *data)
{
    (void)ctx, (void)gpa, (void)size, (void)data;
    __atomic_store_n(&cpu->translated.attention, 1, __ATOMIC_SEQ_CST);
}

/* --- code --- */

struct code {
    uint8_t bytes[CODE_MAX + 64];
    unsigned len;
    uint8_t *branch; /* the displacement of a jump forward, or NULL */
    unsigned ahead;  /* instructions until its target */
};

static void put(struct code *c, const uint8_t *bytes, unsigned len)
{
    memcpy(c->bytes + c->len, bytes, len);
    c->len += len;
}

#define PUT(c, ...) put((c), (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void put32(struct code *c, uint32_t value)
{
    put(c, (const uint8_t *)&value, 4);
}

/* Bases of memory operands, which no instruction changes: the middle of a page, and places at the
 * ends of pages, or in the special ones: reset_registers(). RDI is a small index. */
static const uint8_t bases[] = {CPU_RBX, CPU_RSI, CPU_RBP, CPU_R10, CPU_R11, CPU_R13};
/* What integer instructions write to. */
static const uint8_t targets[] = {CPU_RAX, CPU_RCX, CPU_RDX, CPU_R8, CPU_R9, CPU_R14};

static unsigned base(void)
{
    return bases[one_in(3) ? below(code32 ? 3 : sizeof(bases)) : 0];
}

static unsigned target(void)
{
    return targets[below(code32 ? 3 : sizeof(targets))];
}

/*
 * An instruction: prefix (0: none), REX.W, the opcode, ModRM with `reg`; in memory: with some form
 * of address, else `rm`; an immediate byte (-1: none).
 */
struct shape {
    uint8_t prefix, map; /* map: 0, 0x0f */
    bool wide;
    uint8_t opcode, reg;
    bool memory;
    uint8_t rm;
    int imm;
};

static void put_shape(struct code *c, const struct shape *s)
{
    unsigned form = below(8), b = base(), rex = s->wide ? 8 : 0;
    bool absolute = s->memory && form == 0, relative = s->memory && form == 1;
    bool constant = absolute || relative;
    bool index = s->memory && form >= 6;
    if (s->memory && one_in(16))
        PUT(c, 0x64);
    if (s->memory && !relative && !code32 && one_in(16))
        PUT(c, 0x67);
    if (s->prefix)
        put(c, &s->prefix, 1);
    rex |= (s->reg >> 3) << 2 | (s->memory ? !constant && b >= 8 : s->rm >> 3);
    if (rex && !code32)
        PUT(c, (uint8_t)(0x40 | rex));
    if (s->map)
        put(c, &s->map, 1);
    put(c, &s->opcode, 1);
    unsigned reg = (s->reg & 7u) << 3;
    uint32_t place = DATA + below(one_in(4) ? DATA_PAGES * 0x1000 - 16 : 0x1000);
    if (!s->memory) {
        PUT(c, (uint8_t)(0xc0 | reg | (s->rm & 7)));
    } else if (absolute) {
        PUT(c, (uint8_t)(reg | 4), 0x25);
        put32(c, place);
    } else if (relative) {
        PUT(c, (uint8_t)(reg | 5));
        put32(c, place - (code32 ? 0 : CODE + c->len + 4 + (s->imm >= 0)));
    } else if (index) { /* disp8(base, %rdi, scale) */
        PUT(c, (uint8_t)(0x44 | reg), (uint8_t)(below(2) << 6 | CPU_RDI << 3 | (b & 7)),
            (uint8_t)below(64));
    } else if (form < 4) {
        PUT(c, (uint8_t)(0x40 | reg | (b & 7)), (uint8_t)(below(32) * 4));
    } else {
        PUT(c, (uint8_t)(0x80 | reg | (b & 7)));
        put32(c, below(0x200) * 2);
    }
    if (s->imm >= 0)
        PUT(c, (uint8_t)s->imm);
}

/* Is it an instruction, all of it and no more? */
static bool is_defined(const uint8_t *bytes, unsigned len, struct insn *insn)
{
    const struct decode_mode mode = {
        .code_bits = code32 ? 32 : 64, .vex = true, .features = cpu->vm->model.features};
    return decode_insn(insn, bytes, len, &mode) == DECODE_OK && insn->op != OP_UD &&
           insn->len == len;
}

/* Loads of control words come from CONSTANTS, mostly. */
static bool is_too_wild(const struct insn *insn)
{
    bool control = insn->op == OP_X87_FLDENV || insn->op == OP_X87_FRSTOR ||
                   (insn->op == OP_X87 && insn->opcode_byte == 0xd9 && insn->is_mem &&
                    (insn->modrm >> 3 & 7) == 5);
    return control && !one_in(8);
}

/* The shape, where it is an instruction. */
static bool try(struct code *c, const struct shape *s)
{
    struct insn insn;
    unsigned at = c->len;
    put_shape(c, s);
    if (is_defined(c->bytes + at, c->len - at, &insn) && !is_too_wild(&insn))
        return true;
    c->len = at;
    return false;
}

static void put_x87(struct code *c)
{
    struct shape s = {.imm = -1};
    do {
        s.opcode = (uint8_t)(0xd8 + below(8));
        s.reg = (uint8_t)below(8);
        s.rm = (uint8_t)below(8);
        s.memory = one_in(2);
    } while (!try(c, &s));
}

static void put_mmx(struct code *c)
{
    struct shape s = {.map = 0x0f};
    struct insn insn;
    unsigned at = c->len;
    if (one_in(8)) {
        PUT(c, 0x0f, 0x77); /* emms */
        return;
    }
    for (;;) {
        s.opcode = (uint8_t)(one_in(3) ? 0x60 + below(32) : 0xc0 + below(64));
        s.reg = (uint8_t)below(8);
        s.rm = (uint8_t)below(8); /* where it is a general register: */
        s.memory = one_in(2);
        s.imm =
            s.opcode == 0x70 || (s.opcode & 0xfc) == 0xc4 || (s.opcode >= 0x71 && s.opcode < 0x74)
                ? (int)below(64)
                : -1;
        if (!try(c, &s))
            continue;
        if (is_defined(c->bytes + at, c->len - at, &insn) && insn.opcode->attr & ATTR_MMX &&
            insn.op == OP_VEC &&
            !(insn.opcode->attr & ATTR_GPR_RM && !insn.is_mem && insn.rm != CPU_RAX &&
              insn.rm != CPU_RCX) &&
            !(insn.opcode->attr & ATTR_GPR_REG && insn.reg > CPU_RDX))
            return;
        c->len = at;
    }
}

/* ADD, MUL, SUB, MIN, DIV, MAX, SQRT; the conversions between MMX and XMM; moves. */
static void put_sse(struct code *c)
{
    static const uint8_t prefixes[] = {0, 0x66, 0xf2, 0xf3};
    static const uint8_t opcodes[] = {0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0x51,
                                      0x10, 0x11, 0x2a, 0x2c, 0xd6, 0x2e};
    struct shape s = {.map = 0x0f, .imm = -1};
    do {
        s.prefix = prefixes[below(4)];
        s.opcode = opcodes[below(sizeof(opcodes))];
        s.reg = (uint8_t)below(s.opcode == 0x2c ? 3 : 16);
        s.rm = (uint8_t)below(s.opcode == 0xd6 ? 8 : 16);
        /* Not what wants to be aligned. */
        s.memory = one_in(2) && (s.prefix >= 0xf2 || s.opcode == 0x10 || s.opcode == 0x11);
    } while (!try(c, &s));
}

static void put_avx(struct code *c)
{
    unsigned reg = below(8), v = code32 ? 8 + below(8) : below(16);
    if (!(cpu->vm->model.features >> FEAT_AVX & 1))
        return;
    if (one_in(8))
        PUT(c, 0xc5, 0xf8, 0x77); /* vzeroupper */
    else if (one_in(2))           /* vaddps, vmulps %ymm, %ymm, %ymm */
        PUT(c, 0xc5, (uint8_t)(0x84 | v << 3), (uint8_t)(0x58 + below(2)),
            (uint8_t)(0xc0 | reg << 3 | below(8)));
    else /* vmovups, both ways */
        PUT(c, 0xc5, 0xfc, (uint8_t)(0x10 + below(2)), (uint8_t)(0x43 | reg << 3),
            (uint8_t)below(96));
}

static void put_integer(struct code *c)
{
    /* ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, MOV, both ways; TEST */
    static const uint8_t opcodes[] = {0x01, 0x03, 0x0b, 0x11, 0x13, 0x1b, 0x23,
                                      0x29, 0x33, 0x39, 0x3b, 0x89, 0x8b, 0x85};
    struct shape s = {.imm = -1};
    do {
        s.opcode = opcodes[below(sizeof(opcodes))];
        s.wide = one_in(2);
        s.reg = (uint8_t)target();
        s.rm = (uint8_t)target();
        s.memory = one_in(2);
    } while (!try(c, &s));
}

/* Who wants something in a certain state, or has it done by a handler. */
static void put_special(struct code *c)
{
    unsigned page = below(DATA_PAGES), reg = one_in(2) ? 0 : 2;
    switch (below(13)) {
    case 0: /* a page goes, or becomes one to be read: PUSHF; ANDB; POPF; INVLPG */
        PUT(c, 0x9c, 0x80, 0x24, 0x25);
        put32(c, PAGES + 8 * ((DATA >> 12) + page));
        PUT(c, one_in(2) ? 0xfe : 0xfd, 0x9d, 0x0f, 0x01, 0x3c, 0x25);
        put32(c, DATA + page * 0x1000);
        break;
    case 1: /* fldcw, of which three in four mask all exceptions */
    case 2:
        PUT(c, 0xd9, 0x2c, 0x25);
        put32(c, CONSTANTS + 2 * below(16));
        break;
    case 3: /* ldmxcsr */
        PUT(c, 0x0f, 0xae, 0x14, 0x25);
        put32(c, CONSTANTS + 0x40 + 4 * below(8));
        break;
    case 4: /* PUSHF; CR0.TS = 1; POPF */
        PUT(c, 0x9c, 0x50, 0x0f, 0x20, 0xc0, 0x0c, 8, 0x0f, 0x22, 0xc0, 0x58, 0x9d);
        break;
    case 5:
        PUT(c, 0xdb, 0xe3); /* fninit */
        break;
    case 6: /* fxsave64, fxrstor64 */
        if (!code32)
            PUT(c, 0x48);
        PUT(c, 0x0f, 0xae, one_in(4) ? 0x0c : 0x04, 0x25);
        put32(c, VARIABLES + 0x200);
        break;
    case 7: /* sldt %eax */
        PUT(c, 0x0f, 0x00, 0xc0);
        break;
    case 8: /* push, pop */
        PUT(c, (uint8_t)(0x50 + reg));
        if (!code32)
            PUT(c, 0x41);
        PUT(c, (uint8_t)(0x58 + below(2)));
        break;
    case 9: /* lea, %edi: the index */
        PUT(c, 0x8d, 0x3c, 0x25);
        put32(c, below(40));
        break;
    case 10: /* out %al, $ */
        PUT(c, 0xe6, PORT);
        break;
    case 11: /* mov $, %eax; mov %ecx, 4(%rax); fnstsw %ax; mov %ecx, 8(%rax) */
        PUT(c, 0xb8);
        put32(c, LOG + LOG_BYTES / 2);
        PUT(c, 0x89, 0x48, 4, 0xdf, 0xe0, 0x89, 0x48, 8);
        break;
    default: /* fwait */
        PUT(c, 0x9b);
        break;
    }
}

static void put_jump(struct code *c)
{
    if (c->branch)
        return;
    PUT(c, (uint8_t)(0x70 + below(16)), 0);
    c->branch = c->bytes + c->len - 1;
    c->ahead = 1 + below(3);
}

static void land(struct code *c)
{
    if (c->branch)
        *c->branch = (uint8_t)(c->bytes + c->len - (c->branch + 1));
    c->branch = NULL;
}

static void make_code(struct code *c)
{
    unsigned count = 4 + below(INSNS_MAX - 4);
    c->len = 0;
    c->branch = NULL;
    for (unsigned i = 0; i < count && c->len < CODE_MAX - 64; i++) {
        unsigned kind = below(32);
        if (c->branch && c->ahead-- == 0)
            land(c);
        if (kind < 15)
            put_x87(c);
        else if (kind < 19)
            put_mmx(c);
        else if (kind < 22)
            put_sse(c);
        else if (kind < 24)
            put_avx(c);
        else if (kind < 28)
            put_integer(c);
        else if (kind < 29)
            put_special(c);
        else if (kind < 30)
            put_jump(c);
    }
    land(c);
    PUT(c, 0xff, 0x0c, 0x25); /* decl */
    put32(c, VAR_COUNTER);
    PUT(c, 0x83, 0x3c, 0x25); /* cmpl $0: translated code looks for events before it */
    put32(c, VAR_COUNTER);
    PUT(c, 0, 0x0f, 0x85); /* jnz to the start */
    put32(c, 0 - (c->len + 4));
    PUT(c, 0xe6, PORT, HLT); /* out %al, $ */
}

/* --- the machine --- */

static void set_gate(unsigned vector, const uint8_t *handler)
{
    uint64_t at = HANDLERS + (uint64_t)(handler - on_pf);
    test_put(guest.ram, TEST_IDT + 16 * vector, test_gate(SEL_CODE, at, 0x8e, 0), 8);
    test_put(guest.ram, TEST_IDT + 16 * vector + 8, 0, 8);
}

static void make_machine(void)
{
    test_tables(&guest, cpu);
    test_set_entry(&guest, SEL_CODE, test_descriptor(0, 0xfffff, CPU_SEG_CODE64));
    test_set_entry(&guest, SEL_CODE32, test_descriptor(0, 0xfffff, CPU_SEG_CODE32));
    test_set_entry(&guest, SEL_DATA, test_descriptor(0, 0xfffff, CPU_SEG_DATA));
    for (unsigned vector = 0; vector < 32; vector++)
        set_gate(vector, give_up);
    set_gate(EXC_PF, on_pf);
    set_gate(EXC_MF, on_mf);
    set_gate(EXC_XM, on_xm);
    set_gate(EXC_NM, on_nm);
    memcpy(guest.ram + HANDLERS, on_pf, (size_t)(handlers_end - on_pf));
    test_put(guest.ram, TABLES, (TABLES + 0x1000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x1000, (TABLES + 0x2000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x2000, PAGES | PTE, 8);
    test_put(guest.ram, TABLES + 0x2008, (PAGES + 0x1000) | PTE, 8);
    test_put(guest.ram, VAR_LOG, LOG, 8);
    test_put(guest.ram, VAR_COUNTER, ROUNDS, 4);
}

/* A value that arithmetic finds interesting, in some format. */
static uint64_t random_number(void)
{
    static const uint64_t values[] = {0x3ff0000000000000, 0x3f8000003f800000, 0x7ff0000000000000,
                                      0x0000000000000001, 0x8000000000000000, 0x4009000000000000};
    return one_in(2) ? values[below(6)] : random64() >> (one_in(2) ? 0 : below(64));
}

static void make_data(void)
{
    for (uint64_t at = DATA; at < DATA + DATA_PAGES * 0x1000; at += 8)
        test_put(guest.ram, at, random_number(), 8);
    for (unsigned i = 0; i < 16; i++) {
        unsigned masks = i < 12 ? 0x3f : below(64);
        test_put(guest.ram, CONSTANTS + 2 * i, 0x40 | masks | below(16) << 8, 2);
    }
    for (unsigned i = 0; i < 8; i++)
        test_put(guest.ram, CONSTANTS + 0x40 + 4 * i, i < 6 ? 0x1f80 : below(64) << 7, 4);
    test_put(guest.ram, VARIABLES + 0x200, 0x37f, 8);
    test_put(guest.ram, VARIABLES + 0x200 + X87_MXCSR, MXCSR_INIT, 4);
}

/* Pages: one that is not there, one to be read, a device, one with code on it. */
static void reset_pages(void)
{
    for (uint64_t la = 0; la < 4 * MIB; la += 4096)
        test_put(guest.ram, PAGES + (la >> 12) * 8, la | PTE, 8);
    test_put(guest.ram, PAGES + ((DATA + 0x2000) >> 12) * 8, (DATA + 0x2000) | 2, 8);
    test_put(guest.ram, PAGES + ((DATA + 0x4000) >> 12) * 8, (DATA + 0x4000) | PTE_P, 8);
    test_put(guest.ram, PAGES + ((DATA + 0x5000) >> 12) * 8, DEVICE | PTE, 8);
}

static void reset_registers(const struct soft_fpu *fpu)
{
    test_mode(cpu, 64, 0);
    cpu->seg[SEG_CS].selector = code32 ? SEL_CODE32 : SEL_CODE;
    if (code32)
        cpu->seg[SEG_CS].attr = CPU_SEG_CODE32;
    cpu->seg[SEG_SS].selector = cpu->seg[SEG_DS].selector = SEL_DATA;
    cpu->seg[SEG_FS].selector = SEL_FS;
    cpu->seg[SEG_FS].base = FS_BASE;
    cpu->cr0 |= CPU_CR0_PG | CPU_CR0_WP | CPU_CR0_MP;
    cpu->cr4 = CPU_CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    cpu->xcr0 = cpu->vm->model.features >> FEAT_AVX & 1 ? 7 : 3;
    cpu->efer |= EFER_NXE;
    cpu->cr3 = TABLES;
    cpu->cr2 = 0;
    cpu->idt.limit = 0x1ff;
    cpu->gpr[CPU_RSP] = STACK;
    cpu->gpr[CPU_RBX] = DATA + 0x800;
    cpu->gpr[CPU_RSI] = DATA + 0xff0;
    cpu->gpr[CPU_RBP] = DATA + 0x2100;
    cpu->gpr[CPU_R10] = DATA + 0x3fa0;
    cpu->gpr[CPU_R11] = DATA + 0x5010;
    cpu->gpr[CPU_R13] = DATA + 0x6100;
    cpu->fpu = *fpu;
    cpu->rip = CODE;
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
    mmu_cr3_written(cpu, false);
    __atomic_store_n(&cpu->events, 0, __ATOMIC_SEQ_CST);
}

static void make_fpu(struct soft_fpu *f)
{
    uint16_t fcw = (uint16_t)(FCW_INIT ^ below(16) << 8);
    uint32_t mxcsr = MXCSR_INIT;
    memset(f, 0, sizeof(*f));
    memcpy(f->x87, &fcw, 2);
    memcpy(f->x87 + X87_MXCSR, &mxcsr, 4);
    f->x87[X87_MXCSR_MASK] = f->x87[X87_MXCSR_MASK + 1] = 0xff;
    f->x87[X87_TAGS] = (uint8_t)random64();
    f->x87[X87_FIP + 2] = f->x87[X87_FDP + 4] = f->x87[X87_FOP] = 0x5a;
    for (unsigned i = 0; i < 8; i++) {
        uint64_t mantissa = random64() | 1ULL << 63;
        uint16_t exponent = (uint16_t)(0x3fff + below(64) - 32);
        memcpy(f->st[i], &mantissa, 8);
        memcpy(f->st[i] + 8, &exponent, 2);
    }
    for (unsigned i = 0; i < 32; i++) {
        uint64_t value = random_number();
        memcpy(f->xmm[i / 2] + 8 * (i & 1), &value, 8);
        if (one_in(2))
            memcpy(f->ymm_hi[i / 2] + 8 * (i & 1), &value, 8);
    }
}

struct outcome {
    uint8_t memory[ALL_BYTES];
    struct soft_fpu fpu;
    uint64_t gpr[16], rip, rflags, cr0, instructions;
    unsigned kind;
    struct translate_stats stats;
};

static void run(const struct translate_options *options, const uint8_t *memory,
                const struct soft_fpu *fpu, struct outcome *o)
{
    struct engine_exit exit;
    struct translate_stats before;
    memcpy(guest.ram + CODE, memory, ALL_BYTES);
    reset_pages();
    reset_registers(fpu);
    translate_configure(cpu, options);
    /* Decoded code on a page: writes there are slow. */
    cpu->rip = DATA + 0x6ff0;
    (void)TEST_CATCH(cpu, block_find(cpu));
    cpu->rip = CODE;
    translate_stats(cpu, &before);
    uint64_t instructions = cpu->instructions;
    do {
        engine_soft.vcpu_run(&cpu->base, &exit);
    } while (exit.kind == ENGINE_EXIT_KICK && guest.ram[cpu->rip] != HLT);
    test_expect_nothing(cpu);
    translate_stats(cpu, &o->stats);
    o->stats.blocks -= before.blocks;
    o->stats.steps -= before.steps;
    o->stats.entered -= before.entered;
    memcpy(o->memory, guest.ram + CODE, ALL_BYTES);
    o->fpu = cpu->fpu;
    memcpy(o->gpr, cpu->gpr, sizeof(o->gpr));
    o->rip = cpu->rip;
    o->rflags = cpu->rflags;
    o->cr0 = cpu->cr0;
    o->instructions = cpu->instructions - instructions;
    o->kind = exit.kind;
}

/* --- comparison --- */

/* The stack has flags that no instruction can see, which need not be right but with `exact`. */
static const char *compare(const struct outcome *got, const struct outcome *want, bool exact)
{
    const size_t stack = STACK - 0x1000 - CODE, behind = STACK - CODE;
    if (got->kind != want->kind || want->kind != ENGINE_EXIT_KICK)
        return "the exit";
    if (got->rip != want->rip)
        return "RIP";
    if (got->rflags != want->rflags)
        return "RFLAGS";
    if (got->cr0 != want->cr0)
        return "CR0";
    if (memcmp(got->gpr, want->gpr, sizeof(got->gpr)) != 0)
        return "general registers";
    if (memcmp(got->fpu.x87, want->fpu.x87, sizeof(got->fpu.x87)) != 0)
        return "x87 control state";
    if (memcmp(got->fpu.st, want->fpu.st, sizeof(got->fpu.st)) != 0)
        return "x87 registers";
    if (memcmp(got->fpu.xmm, want->fpu.xmm, sizeof(got->fpu.xmm)) != 0)
        return "XMM registers";
    if (memcmp(got->fpu.ymm_hi, want->fpu.ymm_hi, sizeof(got->fpu.ymm_hi)) != 0)
        return "upper halves";
    if (memcmp(got->memory, want->memory, exact ? behind : stack) != 0 ||
        memcmp(got->memory + behind, want->memory + behind, ALL_BYTES - behind) != 0)
        return "memory";
    if (chip_clock_is_virtual(cpu->vm->clock) && got->instructions != want->instructions)
        return "the count of instructions";
    return NULL;
}

static void report(const struct code *c, const char *mode, const char *what,
                   const struct outcome *got, const struct outcome *want)
{
    printf("# %u-bit code, %s: %s differs\n", code32 ? 32 : 64, mode, what);
    for (unsigned at = 0; at < c->len;) {
        const struct decode_mode decode = {
            .code_bits = code32 ? 32 : 64, .vex = true, .features = cpu->vm->model.features};
        struct insn insn;
        char text[128];
        if (decode_insn(&insn, c->bytes + at, c->len - at, &decode) != DECODE_OK)
            break;
        decode_print(&insn, CODE + at, text, sizeof(text));
        printf("#   %06x %s\n", CODE + at, text);
        at += insn.len;
    }
    const uint8_t *one = (const uint8_t *)&got->fpu, *other = (const uint8_t *)&want->fpu;
    for (unsigned at = 0; at < sizeof(got->fpu); at++) {
        if (one[at] != other[at])
            printf("#   fpu+%u: got %02x, want %02x\n", at, one[at], other[at]);
    }
    for (unsigned i = 0; i < 16; i++) {
        if (got->gpr[i] != want->gpr[i])
            printf("#   gpr %u: got %llx, want %llx\n", i, (unsigned long long)got->gpr[i],
                   (unsigned long long)want->gpr[i]);
    }
    unsigned told = 0;
    for (unsigned at = 0; at < ALL_BYTES && told < 24; at++) {
        if (got->memory[at] != want->memory[at] && ++told)
            printf("#   %06x: got %02x, want %02x\n", CODE + at, got->memory[at], want->memory[at]);
    }
    printf("#   rip %llx, %llx; rflags %llx, %llx; instructions %llu, %llu\n",
           (unsigned long long)got->rip, (unsigned long long)want->rip,
           (unsigned long long)got->rflags, (unsigned long long)want->rflags,
           (unsigned long long)got->instructions, (unsigned long long)want->instructions);
}

static const struct {
    const char *name;
    struct translate_options options;
} modes[] = {
    {"translated",             {.runs = 1}                                 },
    {"translated when hot",    {.runs = 3}                                 },
    {"with exact flags",       {.runs = 1, .exact = true}                  },
    {"with all accesses slow", {.runs = 1, .exact = true, .slow = true}    },
    {"with flushes",           {.runs = 1, .exact = true, .flush_every = 2}},
};

static uint8_t memory[ALL_BYTES];
static struct outcome got, want;

static void test_sequences(const char *what_for)
{
    uint64_t blocks = 0, steps = 0, exceptions = 0;
    unsigned wrong = 0;
    for (uint64_t n = 0; n < cases && wrong < 3; n++) {
        static struct code c;
        static struct soft_fpu fpu;
        const struct translate_options off = {.off = true};
        random_state = seed * 0x100000001b3ULL + n;
        code32 = one_in(3);
        memset(guest.ram + CODE, 0, ALL_BYTES);
        make_machine();
        make_data();
        make_fpu(&fpu);
        make_code(&c);
        memcpy(guest.ram + CODE, c.bytes, c.len);
        memcpy(memory, guest.ram + CODE, ALL_BYTES);
        run(&off, memory, &fpu, &want);
        exceptions += (test_get(want.memory, VAR_LOG - CODE, 4) - LOG) / 512;
        for (unsigned i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
            run(&modes[i].options, memory, &fpu, &got);
            const char *what = compare(&got, &want, modes[i].options.exact);
            if (what) {
                printf("# case %llu of seed %llu\n", (unsigned long long)n,
                       (unsigned long long)seed);
                report(&c, modes[i].name, what, &got, &want);
                wrong++;
                break;
            }
            blocks += got.stats.blocks;
            steps += i == 0 ? got.stats.steps : 0;
        }
    }
    printf("# %llu cases: %llu blocks, %llu instructions by handlers, %llu exceptions\n",
           (unsigned long long)cases, (unsigned long long)blocks, (unsigned long long)steps,
           (unsigned long long)exceptions);
    is_int(wrong, 0, what_for);
}

static void tests(void)
{
    bool counted = chip_clock_is_virtual(cpu->vm->clock);
    test_sequences(counted ? "both tiers do the same, and count the same"
                           : "both tiers do the same without a virtual clock");
}

/* With one vCPU its clock is virtual: instructions are counted, and each access to a device ends a
 * block. With two they are not, and does not. */
int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--cases") == 0)
            cases = strtoull(argv[i + 1], NULL, 0);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 0);
    }
    for (unsigned vcpus = 1; vcpus <= 2; vcpus++) {
        if (ok(test_guest_init(&guest, vcpus), "a machine")) {
            struct engine_upcalls upcalls = *guest.vm->config.upcalls;
            upcalls.mmio_write = device_write;
            guest.vm->config.upcalls = &upcalls;
            cpu = guest.cpu[0];
            test_all(tests);
        }
        test_guest_fini(&guest);
    }
    return tap_done();
}
