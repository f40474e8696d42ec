/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vector and x87 units against the host's processor: each row of the decoder's tables with
 * random registers and memory, executed by the soft engine, and as it is encoded by the host after
 * an XRSTOR of the same state.
 */
#include <cpuid.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "base/err.h"
#include "base/tap.h"
#include "engine/soft/decode.h"
#include "engine/soft/exec.h"
#include "engine/soft/exec_vec.h"
#include "engine/soft/exec_xsave.h"
#include "engine/soft/vm.h"
#include "mem/mem.h"

#define RAM_BYTES   (64u << 10)
#define AT          0x8000u /* of the operand in guest memory */
#define WINDOW      1024u   /* compared around it */
#define BEFORE      64u
#define MXCSR_PE    (1u << 5)
#define MXCSR_OE_UE 0x18u

static struct soft_vm vm;
static struct soft_cpu *cpu;
static uint8_t *ram;
static unsigned operand_at; /* in guest memory */

/* --- random state --- */

static uint64_t seed = 0x9e3779b97f4a7c15ULL;

static uint64_t random64(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * 0x2545f4914f6cdd1dULL;
}

static unsigned below(unsigned n)
{
    return (unsigned)(random64() >> 33) % n;
}

static uint32_t random_single(void)
{
    static const uint32_t special[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000,
                                       0xff800000, 0x7fc00000, 0x7f800001, 1,          0x007fffff,
                                       0x00800000, 0x7f7fffff, 0x4f000000, 0x3fc00000, 0x00000003};
    unsigned pick = below(24);
    if (pick < sizeof(special) / sizeof(special[0]))
        return special[pick];
    if (pick < 20) {
        float small = (float)((int)below(2000) - 1000);
        uint32_t bits;
        memcpy(&bits, &small, sizeof(bits));
        return bits;
    }
    return (uint32_t)random64();
}

static uint64_t random_double(void)
{
    static const uint64_t special[] = {0,
                                       1ULL << 63,
                                       0x3ff0000000000000,
                                       0x7ff0000000000000,
                                       0xfff0000000000000,
                                       0x7ff8000000000000,
                                       0x7ff0000000000001,
                                       1,
                                       0x000fffffffffffff,
                                       0x7fefffffffffffff,
                                       0x0010000000000000,
                                       0x41e0000000000000,
                                       0x43e0000000000000,
                                       0x36a0000000000000};
    unsigned pick = below(24);
    if (pick < sizeof(special) / sizeof(special[0]))
        return special[pick];
    if (pick < 20) {
        double small = (double)((int)below(2000) - 1000) / 4;
        uint64_t bits;
        memcpy(&bits, &small, sizeof(bits));
        return bits;
    }
    return random64();
}

/* Whole 16-byte pieces. */
static void fill_random(uint8_t *to, size_t len)
{
    for (size_t at = 0; at < len; at += 16) {
        uint64_t words[2];
        unsigned kind = below(4);
        for (unsigned i = 0; i < 2; i++) {
            words[i] = kind == 0   ? random_single() | (uint64_t)random_single() << 32
                       : kind == 1 ? random_double()
                       : kind == 2 ? (random64() & 0x8080808080808080ULL) | (random64() & 0x0f0f)
                                   : random64();
        }
        memcpy(to + at, words, 16);
    }
}

static void random_st(uint8_t st[16])
{
    static const uint16_t exponents[] = {0, 1, 0x3fff, 0x4000, 0x7fff, 0x403e, 0x3f80, 0x43ff};
    uint64_t mantissa = below(4) == 0 ? 0 : random64();
    unsigned pick = below(12);
    uint16_t exponent = pick < 8 ? exponents[pick] : (uint16_t)(0x3fff + (int)below(80) - 20);
    if (exponent && below(8))
        mantissa |= 1ULL << 63;
    exponent |= (uint16_t)(below(2) << 15);
    memset(st, 0, 16);
    memcpy(st, &mantissa, 8);
    memcpy(st + 8, &exponent, 2);
}

static void random_fpu(struct soft_fpu *f, bool masked)
{
    uint32_t mxcsr = 0x1f80 | (below(4) << 13) | (below(4) == 0 ? 1u << 15 : 0) |
                     (below(4) == 0 ? 1u << 6 : 0) | (below(3) ? 0 : below(64));
    uint16_t fcw = (uint16_t)(0x7f | below(4) << 8 | below(4) << 10);
    uint16_t fsw = (uint16_t)(below(8) << 11 | (random64() & 0x4700));
    uint32_t mask = MXCSR_VALID;
    memset(f, 0, sizeof(*f));
    if (!masked) {
        fcw = (uint16_t)(fcw & ~below(64));
        mxcsr &= ~(below(64) << 7);
    }
    if ((fcw & 0x300) == 0x100)
        fcw |= 0x300;
    fsw |= (uint16_t)(below(64) & fcw & 0x3f);
    memcpy(f->x87 + X87_FCW, &fcw, 2);
    memcpy(f->x87 + X87_FSW, &fsw, 2);
    f->x87[X87_TAGS] = (uint8_t)(below(3) ? 0xff : random64());
    memcpy(f->x87 + X87_MXCSR, &mxcsr, 4);
    memcpy(f->x87 + X87_MXCSR_MASK, &mask, 4);
    for (unsigned i = 0; i < 8; i++)
        random_st(f->st[i]);
    fill_random(f->xmm[0], sizeof(f->xmm));
    fill_random(f->ymm_hi[0], sizeof(f->ymm_hi));
}

/* --- the host --- */

struct native {
    struct soft_fpu fpu; /* an XSAVE area */
    uint64_t gpr[16];
    uint64_t flags;
    uint32_t components, saved_mxcsr;
};

void native_run(struct native *n, const void *code);

/* clang-format off */
__asm__(".text\n.globl native_run\n.type native_run, @function\n"
        "native_run:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "stmxcsr 1036(%rdi)\n"
        "push %rdi; push %rsi\n"
        "mov 1032(%rdi), %eax; xor %edx, %edx; xrstor64 (%rdi)\n"
        "push 1024(%rdi); popfq\n"
        "mov 896(%rdi), %rax; mov 904(%rdi), %rcx; mov 912(%rdi), %rdx; mov 920(%rdi), %rbx\n"
        "mov 936(%rdi), %rbp; mov 944(%rdi), %rsi\n"
        "mov 960(%rdi), %r8; mov 968(%rdi), %r9; mov 976(%rdi), %r10; mov 984(%rdi), %r11\n"
        "mov 992(%rdi), %r12; mov 1000(%rdi), %r13; mov 1008(%rdi), %r14; mov 1016(%rdi), %r15\n"
        "mov 952(%rdi), %rdi\n"
        "call *(%rsp)\n"
        "pushfq; push %rdi; mov 24(%rsp), %rdi\n"
        "mov %rax, 896(%rdi); mov %rcx, 904(%rdi); mov %rdx, 912(%rdi); mov %rbx, 920(%rdi)\n"
        "mov %rbp, 936(%rdi); mov %rsi, 944(%rdi)\n"
        "mov %r8, 960(%rdi); mov %r9, 968(%rdi); mov %r10, 976(%rdi); mov %r11, 984(%rdi)\n"
        "mov %r12, 992(%rdi); mov %r13, 1000(%rdi); mov %r14, 1008(%rdi); mov %r15, 1016(%rdi)\n"
        "pop 952(%rdi); pop 1024(%rdi)\n"
        "mov 1032(%rdi), %eax; xor %edx, %edx; xsave64 (%rdi)\n"
        "testb $4, 1032(%rdi); jz 1f; vzeroupper; 1:\n"
        "fninit; ldmxcsr 1036(%rdi); cld\n"
        "pop %rsi; pop %rdi\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
        ".size native_run, . - native_run\n");
/* clang-format on */

_Static_assert(offsetof(struct native, gpr) == 896, "native_run");
_Static_assert(offsetof(struct native, flags) == 1024, "native_run");
_Static_assert(offsetof(struct native, components) == 1032, "native_run");
_Static_assert(offsetof(struct native, saved_mxcsr) == 1036, "native_run");

static sigjmp_buf on_signal;
static volatile sig_atomic_t signal_seen;
static uint32_t signal_mxcsr;
static uint8_t signal_x87[offsetof(struct soft_fpu, xmm)]; /* all that is before the vectors */

static void handler(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    (void)info;
    signal_seen = number;
    signal_mxcsr = uc->uc_mcontext.fpregs->mxcsr;
    memcpy(signal_x87, uc->uc_mcontext.fpregs, sizeof(signal_x87));
    siglongjmp(on_signal, 1);
}

static uint8_t *code_page;
static uint8_t native_memory[4096] __attribute__((aligned(4096)));

/* Run the bytes on the host: the signal that they ended with, or 0. */
static int run_native(struct native *n, const struct insn *insn)
{
    mprotect(code_page, 4096, PROT_READ | PROT_WRITE);
    memcpy(code_page, insn->bytes, insn->len);
    code_page[insn->len] = 0xc3;
    mprotect(code_page, 4096, PROT_READ | PROT_EXEC);
    signal_seen = 0;
    if (sigsetjmp(on_signal, 1) == 0) {
        native_run(n, code_page);
    } else {
        uint32_t mxcsr = 0x1f80;
        __asm__ volatile("fninit; ldmxcsr %0; cld" : : "m"(mxcsr));
    }
    return signal_seen;
}

/* --- the engine --- */

/* The vector it raised, or -1. */
static int run_soft(struct insn *insn)
{
    cpu->rip_page = 0x1000;
    insn->next_offset = insn->len;
    exec_bind(cpu, insn);
    cpu->insn = cpu->block_start = insn;
    if (setjmp(cpu->unwind) == 0) {
        insn->exec(cpu, insn);
        cpu->insn = NULL;
        return -1;
    }
    return cpu->exception.vector;
}

static bool set_up(void)
{
    struct mem *mem;
    struct mem_options options = {0};
    struct err err = ERR_INIT;
    static struct soft_cpu *cpus[1];
    cpu = aligned_alloc(64, (sizeof(*cpu) + 63) / 64 * 64);
    if (!cpu || mem_new(&mem, &options, &err) < 0 ||
        mem_add_ram(mem, "ram", GPA(0), RAM_BYTES, &err) < 0 || mmu_vm_init(&vm, &err) < 0 ||
        model_init(&vm.model, "host", 1, &err) < 0) {
        printf("# %s\n", err.text);
        return false;
    }
    memset(cpu, 0, sizeof(*cpu));
    vm.config.vcpu_count = 1;
    vm.cpus = cpus;
    cpu->vm = &vm;
    if (mmu_vm_map(&vm, 0, mem_region_at(mem, 0), &err) < 0 || mmu_init(cpu, &err) < 0) {
        printf("# %s\n", err.text);
        return false;
    }
    cpus[0] = cpu;
    ram = mem_region_at(mem, 0)->host;
    code_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGFPE, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    return code_page != MAP_FAILED;
}

static void set_mode(unsigned bits)
{
    cpu->cr0 = CPU_CR0_PE | CPU_CR0_NE | CPU_CR0_ET;
    cpu->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    cpu->xcr0 = 0x207;
    cpu->efer = bits == 64 ? CPU_EFER_LME | CPU_EFER_LMA : 0;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = (struct cpu_segment){.limit = UINT32_MAX, .attr = CPU_SEG_DATA};
    cpu->seg[SEG_CS] = (struct cpu_segment){.limit = UINT32_MAX,
                                            .attr = bits == 64 ? CPU_SEG_CODE64 : CPU_SEG_CODE32};
    cpu->rflags = RFLAGS_FIXED;
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
}

/* --- one case --- */

static struct decode_mode mode = {.vex = true};

static bool is_vector(const struct opcode *o)
{
    return o->op >= OP_VEC_BASE && o->op < OP_VEC_END;
}

/* Variants of a row's example: other registers, memory, immediates. */
static bool make_instruction(size_t index, struct insn *insn)
{
    const struct opcode *o = decode_opcode_at(index);
    uint8_t bytes[24] = {0};
    int modrm_at;
    size_t len = decode_opcode_example(index, &mode, bytes, &modrm_at);
    if (len == 0)
        return false;
    bool vex = bytes[0] == 0xc4;
    if (modrm_at >= 0 && o->op != OP_VEC_GATHER) {
        uint8_t old = bytes[modrm_at], try = old;
        bool may_ext = !(o->attr & ATTR_X87);
        bool fixed_reg = o->form == FORM_RM || o->form == FORM_V_RM || o->form == FORM_NONE;
        if (!fixed_reg)
            try = (uint8_t)((try & ~0x38) | below(8) << 3);
        if (below(2) || (o->attr & ATTR_X87)) {
            unsigned rm = below(8);
            try = (uint8_t)(try >= 0xc0 ? (try & ~7) | rm : try);
        }
        if (try >= 0xc0 && below(2))
            try = (uint8_t)((try & 0x38) | 3); /* [rbx] */
        bytes[modrm_at] = try;
        may_ext = may_ext && mode.code_bits == 64;
        if (vex && may_ext && below(2))
            bytes[1] ^= (uint8_t)(fixed_reg ? 0 : 0x80);
        if (vex && may_ext && try >= 0xc0 && below(2))
            bytes[1] ^= 0x20;
    }
    if (vex && (o->form == FORM_REG_V_RM || o->form == FORM_V_RM || o->form == FORM_REG_RM_V ||
                o->form == FORM_RM_V_REG))
        bytes[2] = (uint8_t)((bytes[2] & ~0x78) | below(16) << 3);
    if (vex && mode.code_bits == 32) /* its high bit would do nothing */
        bytes[2] |= 0x40;
    if (vex && o->mem_bytes && below(2) && !(o->attr & ATTR_VSIB))
        bytes[2] ^= 0x04;
    if (!vex && !(o->attr & ATTR_X87) && modrm_at > 0 && mode.code_bits == 64 && below(2)) {
        /* A REX in front of 0F, where there is none. */
        unsigned at = 0;
        while (bytes[at] == 0x66 || bytes[at] == 0xf2 || bytes[at] == 0xf3)
            at++;
        if (bytes[at] == 0x0f) {
            memmove(bytes + at + 1, bytes + at, 16);
            bytes[at] =
                (uint8_t)(0x40 | (below(2) << 2) | (bytes[modrm_at + 1] >= 0xc0 && below(2)));
            len++;
        }
    }
    for (unsigned i = 0; i < 4; i++)
        bytes[len + i] = (uint8_t)random64();
    if (o->op == OP_VEC_STR)
        bytes[len] &= 0x7f;
    if (decode_insn(insn, bytes, sizeof(bytes), &mode) != DECODE_OK || insn->op == OP_UD ||
        insn->opcode != o)
        return false;
    /* Outside of 64-bit code the fourth register's high bit does nothing. */
    if (o->attr & ATTR_IMM_REG && mode.code_bits == 32)
        insn->bytes[insn->len - 1] &= 0x7f;
    /* Not the stack pointer. */
    if ((o->attr & ATTR_GPR_REG && insn->reg == CPU_RSP) ||
        (o->attr & ATTR_GPR_RM && !insn->is_mem && insn->rm == CPU_RSP))
        return false;
    return true;
}

/* Small indices, in the register that an instruction takes them from. */
static void tame_indices(struct soft_fpu *f, const struct insn *insn)
{
    unsigned width = insn->opcode_byte & 1 ? 8 : 4;
    for (unsigned half = 0; half < 2; half++) {
        uint8_t *bytes = half ? f->ymm_hi[insn->index] : f->xmm[insn->index];
        for (unsigned at = 0; at < 16; at += width) {
            int64_t index = (int64_t)below(40) - 6;
            memcpy(bytes + at, &index, width);
        }
    }
}

static void describe(const struct insn *insn, const char *what)
{
    char text[96];
    decode_print(insn, 0x1000, text, sizeof(text));
    printf("# %s: %s:", text, what);
    for (unsigned i = 0; i < insn->len; i++)
        printf(" %02x", insn->bytes[i]);
    printf("\n");
}

static void dump(const char *name, const uint8_t *got, const uint8_t *want, size_t len)
{
    for (size_t at = 0; at < len; at += 16) {
        if (memcmp(got + at, want + at, 16) == 0)
            continue;
        printf("#   %s+%zu got", name, at);
        for (unsigned i = 0; i < 16; i++)
            printf(" %02x", got[at + i]);
        printf("\n#   %*s want", (int)strlen(name) + 3, "");
        for (unsigned i = 0; i < 16; i++)
            printf(" %02x", want[at + i]);
        printf("\n");
    }
}

/* Where exception pointers, and MXCSR's mask, are in an FXSAVE image: they need not be the same. */
static void forget_pointers(uint8_t *image)
{
    memset(image + X87_FOP, 0, X87_MXCSR - X87_FOP);
    memset(image + X87_MXCSR_MASK, 0, 4);
}

static void forget_in_memory(const struct insn *insn, uint8_t *at)
{
    if (insn->op == OP_FXSAVE || insn->op == OP_XSAVE || insn->op == OP_XSAVEOPT ||
        insn->op == OP_XSAVEC)
        forget_pointers(at);
    if (insn->op == OP_X87_FNSTENV || insn->op == OP_X87_FNSAVE)
        memset(at + 3ul * insn->op_bytes, 0, 4ul * insn->op_bytes);
}

static bool is_dot_product(const struct insn *insn)
{
    return strstr(insn->opcode->name, "dpp") != NULL;
}

static bool same_state(const struct insn *insn, const struct soft_fpu *start, struct native *n,
                       bool raised)
{
    struct soft_fpu got = cpu->fpu, want = raised ? *start : n->fpu;
    uint8_t *got_memory = ram + operand_at - BEFORE, *want_memory = native_memory + 1024 - BEFORE;
    const char *what = NULL;
    uint32_t mxcsr = signal_mxcsr;
    if (raised) {
        /* Where a result is too large or too small, the engine does not know whether it would be
         * exact otherwise; and not at which step of a dot product the host has stopped. */
        uint32_t unknown = is_dot_product(insn)                               ? MXCSR_FLAGS
                           : mxcsr & ~mxcsr >> MXCSR_MASK_SHIFT & MXCSR_OE_UE ? MXCSR_PE
                                                                              : 0;
        mxcsr |= unknown;
        memcpy(&want, signal_x87, sizeof(signal_x87)); /* MMX may have begun */
        got.x87[X87_MXCSR] |= (uint8_t)unknown;
        memcpy(want.x87 + X87_MXCSR, &mxcsr, 4);
    }
    forget_pointers(got.x87);
    forget_pointers(want.x87);
    forget_in_memory(insn, got_memory + BEFORE);
    forget_in_memory(insn, want_memory + BEFORE);
    if (memcmp(got.x87, want.x87, 416) != 0)
        what = "legacy state differs";
    else if (memcmp(got.ymm_hi, want.ymm_hi, sizeof(got.ymm_hi)) != 0)
        what = "upper halves differ";
    else if (memcmp(got_memory, want_memory, WINDOW) != 0)
        what = "memory differs";
    for (unsigned i = 0; i < 16 && !raised; i++) {
        if (i != CPU_RSP && i != CPU_RBX && i != CPU_RDI && cpu->gpr[i] != n->gpr[i])
            what = "a general register differs";
    }
    if (!raised && !insn->is_mem && insn->op != OP_VEC_MASKMOVDQU &&
        (cpu->gpr[CPU_RBX] != n->gpr[CPU_RBX] || cpu->gpr[CPU_RDI] != n->gpr[CPU_RDI]))
        what = "a general register differs";
    if (!raised && (cpu->rflags ^ n->flags) & RFLAGS_ARITH)
        what = "flags differ";
    if (!what)
        return true;
    describe(insn, what);
    dump("legacy", got.x87, want.x87, 416);
    dump("ymm_hi", got.ymm_hi[0], want.ymm_hi[0], sizeof(got.ymm_hi));
    dump("memory", got_memory, want_memory, WINDOW);
    for (unsigned i = 0; i < 16; i++)
        if (cpu->gpr[i] != n->gpr[i])
            printf("#   gpr %u got %llx want %llx\n", i, (unsigned long long)cpu->gpr[i],
                   (unsigned long long)n->gpr[i]);
    printf("#   flags got %llx want %llx\n", (unsigned long long)cpu->rflags,
           (unsigned long long)n->flags);
    return false;
}

/* An FXSAVE image that FXRSTOR takes. */
static void make_valid(uint8_t *image)
{
    struct soft_fpu f;
    random_fpu(&f, false);
    memcpy(image, &f, 416);
}

/* --- XSAVE --- */

/* An area that XRSTOR takes most of the time. */
static void make_area(uint8_t *area)
{
    uint64_t present = below(8), format = 0;
    make_valid(area);
    memset(area + 512, 0, 64);
    if (below(2))
        format = 1ULL << 63 | present | below(8);
    if (below(16) == 0)
        format ^= 1ULL << below(64);
    if (below(16) == 0)
        present |= 1ULL << (3 + below(6));
    if (below(16) == 0)
        area[528 + below(48)] = 1;
    if (below(16) == 0)
        area[X87_MXCSR + 3] = 1;
    present &= ~XSAVE_AVX512;
    format &= ~XSAVE_AVX512;
    memcpy(area + 512, &present, 8);
    memcpy(area + 520, &format, 8);
}

static bool try_case(struct insn *insn, bool masked)
{
    static struct native n;
    struct soft_fpu start;
    uint8_t memory[WINDOW];
    uint64_t flags = RFLAGS_FIXED | (random64() & RFLAGS_ARITH);
    unsigned shift = insn->opcode->attr & ATTR_ALIGNED || insn->op >= OP_FXSAVE ? 0 : below(3) * 5;
    /* Now and then across a page's end. */
    operand_at = shift && below(4) == 0 ? 0x8ff8 : 0x8000;
    random_fpu(&start, masked);
    if (insn->op == OP_VEC_GATHER)
        tame_indices(&start, insn);
    fill_random(memory, sizeof(memory));
    if (insn->op == OP_FXRSTOR)
        make_valid(memory + BEFORE);
    if (insn->op == OP_LDMXCSR)
        memset(memory + BEFORE + 2, 0, WINDOW - BEFORE - 2);
    if (insn->op == OP_XRSTOR)
        make_area(memory + BEFORE);
    memcpy(ram + operand_at - BEFORE, memory, WINDOW);
    memcpy(native_memory + 1024 - BEFORE, memory, WINDOW);

    for (unsigned i = 0; i < 16; i++)
        cpu->gpr[i] = n.gpr[i] = below(2) ? random64() : below(40);
    if (insn->is_mem) {
        cpu->gpr[CPU_RBX] = operand_at + shift;
        n.gpr[CPU_RBX] = (uint64_t)(uintptr_t)native_memory + 1024 + shift;
    }
    if (insn->op >= OP_XSAVE) {
        cpu->gpr[CPU_RAX] = n.gpr[CPU_RAX] = below(8);
        cpu->gpr[CPU_RDX] = n.gpr[CPU_RDX] = random64();
    }
    if (insn->op == OP_VEC_MASKMOVDQU) {
        cpu->gpr[CPU_RDI] = operand_at + shift;
        n.gpr[CPU_RDI] = (uint64_t)(uintptr_t)native_memory + 1024 + shift;
    }
    cpu->rflags = n.flags = flags;
    cpu->fpu = n.fpu = start;
    n.fpu.header[0] = 7;
    n.components = vm.model.features >> FEAT_AVX & 1 ? 7 : 3;
    if (n.components == 3)
        memset(n.fpu.ymm_hi, 0, sizeof(n.fpu.ymm_hi)), memset(cpu->fpu.ymm_hi, 0, 256);

    int signal = run_native(&n, insn), vector = run_soft(insn);
    bool raised = signal == SIGFPE;
    if (vector != (signal == SIGFPE    ? EXC_XM
                   : signal == SIGSEGV ? EXC_GP
                                       : -1) ||
        (signal == SIGSEGV && insn->op != OP_XRSTOR)) {
        describe(insn, "exceptions differ");
        printf("#   signal %d, vector %d; mxcsr %x, native %x\n", signal, vector,
               *(const uint32_t *)(const void *)(start.x87 + X87_MXCSR), signal_mxcsr);
        return false;
    }
    if (signal == SIGSEGV)
        return memcmp(&cpu->fpu, &start, sizeof(start)) == 0;
    return same_state(insn, &start, &n, raised);
}

#define TRIES 160

static bool skipped(const struct opcode *o)
{
    switch (o->op) {
    case OP_XSAVE: /* below */
    case OP_XSAVEOPT:
    case OP_XSAVEC:
    case OP_XRSTOR:
        return true;
    case OP_VEC_ZERO: /* of eight registers only, where the host's are sixteen */
    case OP_FXSAVE:
    case OP_FXRSTOR:
        return mode.code_bits == 32;
    default:
        return false;
    }
}

static void test_rows(const char *what)
{
    unsigned rows = 0, wrong = 0, untried = 0;
    for (size_t i = 0; i < decode_opcode_count(); i++) {
        const struct opcode *o = decode_opcode_at(i);
        unsigned tried = 0, failed = 0;
        if (!is_vector(o) || skipped(o) || !(vm.model.features >> o->feature & 1))
            continue;
        rows++;
        for (unsigned n = 0; n < TRIES && failed < 2; n++) {
            struct insn insn;
            if (!make_instruction(i, &insn))
                continue;
            tried++;
            failed += !try_case(&insn, n < TRIES / 2);
        }
        if (!tried && mode.code_bits == 64) {
            char place[64];
            decode_opcode_place(i, place, sizeof(place));
            printf("# %s (%s): no example\n", o->name, place);
            untried++;
        }
        wrong += failed != 0;
    }
    printf("# %u rows\n", rows);
    is_int(wrong, 0, what);
    is_int(untried, 0, "every row was tried");
}

static void test_xsave(void)
{
    unsigned wrong = 0, tried = 0;
    for (size_t i = 0; i < decode_opcode_count(); i++) {
        const struct opcode *o = decode_opcode_at(i);
        uint8_t bytes[24] = {0};
        struct insn insn;
        int modrm_at;
        if (o->op < OP_XSAVE || o->op > OP_XRSTOR || !(vm.model.features >> o->feature & 1) ||
            !decode_opcode_example(i, &mode, bytes, &modrm_at))
            continue;
        for (unsigned n = 0; n < 400 && wrong < 3; n++) {
            if (decode_insn(&insn, bytes, sizeof(bytes), &mode) != DECODE_OK || insn.op != o->op)
                continue;
            wrong += !try_case(&insn, true);
            tried++;
        }
    }
    ok(tried > 0, "XSAVE and the like are there");
    is_int(wrong, 0, "XSAVE, XSAVEOPT, XSAVEC and XRSTOR do what the host does");
}

/* --- what needs no host --- */

static int run_bytes(const uint8_t *bytes, size_t len)
{
    uint8_t padded[24] = {0};
    struct insn insn;
    memcpy(padded, bytes, len);
    if (decode_insn(&insn, padded, sizeof(padded), &mode) != DECODE_OK || insn.op == OP_UD)
        return -2;
    return run_soft(&insn);
}
#define RUN(...) run_bytes((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void set_limit(uint32_t limit)
{
    cpu->seg[SEG_DS].limit = limit;
    soft_cpu_update(cpu);
}

/* Elements beyond the segment's limit. 32-bit code; EBX at the last 16 bytes within. */
static void test_partial(void)
{
    static const uint32_t indices[4] = {0, 1, 100, 2};
    static const uint32_t mask[4] = {0x80000000, 0, 0x80000000, 0x80000000};
    uint32_t words[8];
    if (!(vm.model.features >> FEAT_AVX2 & 1)) {
        tap_skip("elements that are not accessed", "the host has no AVX2");
        return;
    }
    for (unsigned i = 0; i < 8; i++) {
        uint32_t value = 0x11111111u * i;
        memcpy(ram + 0x8000 + 4ul * i, &value, 4);
    }
    set_limit(0x800f);
    cpu->gpr[CPU_RBX] = 0x8000;
    memset(&cpu->fpu.xmm, 0xaa, 64);
    memset(&cpu->fpu.ymm_hi, 0xaa, 64);

    /* vpgatherdd xmm1, [ebx + xmm2 * 4], xmm3 */
    memcpy(cpu->fpu.xmm[2], indices, 16);
    memcpy(cpu->fpu.xmm[3], mask, 16);
    is_int(RUN(0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x93), EXC_GP, "a gather's third element faults");
    memcpy(words, cpu->fpu.xmm[1], 16);
    ok(words[0] == 0 && words[1] == 0xaaaaaaaa && words[2] == 0xaaaaaaaa,
       "the first is loaded, the others are not");
    memcpy(words, cpu->fpu.xmm[3], 16);
    ok(words[0] == 0 && words[2] == 0x80000000 && words[3] == 0x80000000,
       "and no longer in the mask");

    /* vpmaskmovd ymm1, ymm3, [ebx]; vpmaskmovd [ebx], ymm3, ymm1 */
    memset(cpu->fpu.ymm_hi[3], 0, 16);
    memset(cpu->fpu.xmm[3], 0xff, 16);
    is_int(RUN(0xc4, 0xe2, 0x65, 0x8c, 0x0b), -1, "masked elements beyond the limit do not matter");
    memcpy(words, cpu->fpu.xmm[1], 16);
    ok(words[3] == 0x33333333 && cpu->fpu.ymm_hi[1][0] == 0, "the others are loaded");
    cpu->fpu.ymm_hi[3][3] = 0x80;
    memset(cpu->fpu.xmm[1], 0x77, 16);
    is_int(RUN(0xc4, 0xe2, 0x65, 0x8e, 0x0b), EXC_GP, "an element beyond the limit faults");
    is_int(ram[0x8000], 0, "and nothing is stored");
    is_int(RUN(0xc5, 0xfc, 0x11, 0x0b), EXC_GP, "so does a whole store");
    set_limit(UINT32_MAX);

    cpu->gpr[CPU_RBX] = 0x8004;
    is_int(RUN(0x0f, 0x28, 0x0b), EXC_GP, "movaps wants alignment");
    is_int(RUN(0x0f, 0x58, 0x0b), EXC_GP, "and so does addps");
    is_int(RUN(0x0f, 0x10, 0x0b), -1, "movups does not");
}

static void test_gates(void)
{
    uint64_t cr0 = cpu->cr0, cr4 = cpu->cr4;
    cpu->gpr[CPU_RBX] = 0x8000;
    cpu->fpu = (struct soft_fpu){0};
    x87_init(cpu);
    fpu_set_mxcsr(cpu, MXCSR_INIT);
    memset(ram + 0x8000, 0, 64);

    cpu->cr0 = cr0 | CR0_TS;
    is_int(RUN(0x0f, 0x58, 0xc8), EXC_NM, "TS: SSE");
    is_int(RUN(0x0f, 0x10, 0x0b), EXC_NM, "TS: a move");
    is_int(RUN(0x0f, 0xfc, 0xc8), EXC_NM, "TS: MMX");
    is_int(RUN(0xd9, 0xe8), EXC_NM, "TS: x87");
    is_int(RUN(0x0f, 0xae, 0x03), EXC_NM, "TS: FXSAVE");
    is_int(RUN(0x9b), -1, "TS without MP: FWAIT");
    cpu->cr0 = cr0 | CR0_TS | CPU_CR0_MP;
    is_int(RUN(0x9b), EXC_NM, "TS with MP: FWAIT");
    cpu->cr0 = cr0 | CR0_EM;
    is_int(RUN(0x0f, 0x58, 0xc8), EXC_UD, "EM: SSE");
    is_int(RUN(0x0f, 0xfc, 0xc8), EXC_UD, "EM: MMX");
    is_int(RUN(0xd9, 0xe8), EXC_NM, "EM: x87");
    cpu->cr0 = cr0;
    cpu->cr4 = cr4 & ~CR4_OSFXSR;
    is_int(RUN(0x0f, 0x58, 0xc8), EXC_UD, "without OSFXSR: SSE");
    is_int(RUN(0x0f, 0xfc, 0xc8), -1, "without OSFXSR: MMX");
    cpu->cr4 = cr4 & ~CR4_OSXSAVE;
    is_int(RUN(0x0f, 0xae, 0x23), EXC_UD, "without OSXSAVE: XSAVE");
    if (vm.model.features >> FEAT_AVX & 1) {
        is_int(RUN(0xc5, 0xf0, 0x58, 0xc2), EXC_UD, "without OSXSAVE: AVX");
        cpu->cr4 = cr4;
        cpu->xcr0 = 3;
        is_int(RUN(0xc5, 0xf0, 0x58, 0xc2), EXC_UD, "without XCR0.AVX: AVX");
        cpu->xcr0 = 7;
        is_int(RUN(0xc5, 0xf0, 0x58, 0xc2), -1, "with it: AVX");
    }
    cpu->cr4 = cr4 & ~CR4_OSXMMEXCPT;
    fpu_set_mxcsr(cpu, MXCSR_INIT & ~(4u << MXCSR_MASK_SHIFT));
    memset(cpu->fpu.xmm[1], 0x3f, 16);
    is_int(RUN(0x0f, 0x5e, 0xc8), EXC_UD, "without OSXMMEXCPT a division by zero is #UD");
    cpu->cr4 = cr4;
    is_int(RUN(0x0f, 0x5e, 0xc8), EXC_XM, "with it #XM");
    memset(ram + 0x8000, 0xff, 4);
    is_int(RUN(0x0f, 0xae, 0x13), EXC_GP, "LDMXCSR wants reserved bits clear");
}

static void test_half(void)
{
    static const uint32_t singles[4] = {0x37800000, 0x3f800000, 0x40000000, 0}; /* 2^-16, 1, 2, 0 */
    if (!(vm.model.features >> FEAT_F16C & 1)) {
        tap_skip("tiny results of VCVTPS2PH", "the host has no F16C");
        return;
    }
    memcpy(cpu->fpu.xmm[1], singles, 16);
    memset(cpu->fpu.xmm[2], 0x55, 16);
    fpu_set_mxcsr(cpu, MXCSR_INIT & ~(MXCSR_UE << MXCSR_MASK_SHIFT));
    /* vcvtps2ph xmm2, xmm1, 0 */
    is_int(RUN(0xc4, 0xe3, 0x79, 0x1d, 0xca, 0x00), EXC_XM, "an exact tiny result is an underflow");
    is_int(cpu->fpu.xmm[2][0], 0x55, "and nothing is written");
    is_int(fpu_mxcsr(cpu) & MXCSR_FLAGS, MXCSR_UE, "nor flagged inexact");
    fpu_set_mxcsr(cpu, MXCSR_INIT);
    is_int(RUN(0xc4, 0xe3, 0x79, 0x1d, 0xca, 0x00), -1, "masked it is none");
    is_int(fpu_mxcsr(cpu) & MXCSR_FLAGS, 0, "and not flagged");
}

static void test_pending(void)
{
    x87_init(cpu);
    x87_put16(cpu, X87_FCW, 0x037b); /* division by zero is not masked */
    is_int(RUN(0xd9, 0xee), -1, "fldz");
    is_int(RUN(0xd9, 0xe8), -1, "fld1");
    is_int(RUN(0xd8, 0xf1), -1, "fdiv st, st(1): the exception is pending");
    ok(x87_get16(cpu, X87_FSW) & 0x80, "FSW.ES is set");
    is_int(x87_get64(cpu, X87_FIP) & 0xffffffff, 0x1000, "FIP is the instruction");
    is_int(x87_get16(cpu, X87_FOP), 0x0f1, "FOP is its opcode");
    is_int(RUN(0xdf, 0xe0), -1, "fnstsw ax does not wait");
    is_int(cpu->gpr[CPU_RAX] & 0xffff, x87_get16(cpu, X87_FSW), "and tells of it");
    is_int(RUN(0xd9, 0xe8), EXC_MF, "the next instruction that waits is #MF");
    is_int(RUN(0x0f, 0xfc, 0xc8), EXC_MF, "so is MMX");
    is_int(RUN(0x9b), EXC_MF, "so is FWAIT");
    cpu->cr0 &= ~CPU_CR0_NE;
    is_int(RUN(0xd9, 0xe8), -1, "without CR0.NE there is no exception");
    ok(cpu->stop_block && cpu->rip_set && cpu->rip == 0x1000, "but the instruction starts again");
    cpu->stop_block = cpu->rip_set = false;
    cpu->cr0 |= CPU_CR0_NE;
    is_int(RUN(0xdb, 0xe2), -1, "fnclex");
    is_int(RUN(0xd9, 0xe8), -1, "and all is well");
}

int main(void)
{
    if (!ok(set_up(), "a vCPU with memory"))
        return tap_done();
    set_mode(64);
    mode.features = vm.model.features;
    mode.code_bits = 64;
    test_rows("in 64-bit code every row does what the host does");
    test_xsave();
    set_mode(32);
    mode.code_bits = 32;
    test_rows("in 32-bit code every row does what the host does");
    test_partial();
    test_gates();
    test_half();
    test_pending();
    return tap_done();
}
