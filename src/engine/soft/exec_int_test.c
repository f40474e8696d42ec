/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The integer instructions against the host's processor: each row of the decoder's tables with
 * random registers, flags and memory, executed by the soft engine, and as it is encoded by the
 * host. The operands are at the same address in the guest and in this process, so that registers
 * can be compared as they are. Then, with values worked out by hand, what the host cannot run
 * (16- and 32-bit code, flow, privileges).
 */
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/tap.h"
#include "engine/soft/decode.h"
#include "engine/soft/exec.h"
#include "engine/soft/vm.h"
#include "mem/mem.h"

#define RAM_BYTES   (4u << 20)
#define WINDOW      0x200000u /* linear address of the operands, here and there */
#define WINDOW_LEN  0x3000u
#define OPERAND     (WINDOW + 0x1000u) /* a page's start */
#define STACK       (WINDOW + 0x2800u)
#define CODE        0x1000u
#define TRIES       400
#define RANDOM_CASE 4 /* of so many cases, one is special in this or that way */

static struct soft_vm vm;
static struct soft_cpu *cpu;
static uint8_t *ram, *window;
static uint8_t *code_page;

/* --- random values --- */

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

/* Often near the limits of a width. */
static uint64_t random_value(void)
{
    static const uint64_t edges[] = {
        0,          0x7f,       0xff,      0x7fff,     0xffff,
        0x7fffffff, 0xffffffff, INT64_MAX, UINT64_MAX, 0x8080808080808080,
    };
    switch (below(4)) {
    case 0:
        return edges[below(sizeof(edges) / sizeof(edges[0]))] + below(3) - 1;
    case 1:
        return below(80);
    case 2:
        return 1ULL << below(64);
    default:
        return random64();
    }
}

/* --- the host --- */

struct native {
    uint64_t gpr[16];
    uint64_t flags, target, host_rsp;
};

extern struct native native_state;
struct native native_state __attribute__((visibility("hidden")));
void native_run(void);
extern const uint8_t native_exit[];

/* clang-format off */
__asm__(".text\n.globl native_run\n.type native_run, @function\n"
        "native_run:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, native_state+144(%rip)\n"
        "push native_state+128(%rip); popfq\n"
        "mov native_state+0(%rip), %rax; mov native_state+8(%rip), %rcx\n"
        "mov native_state+16(%rip), %rdx; mov native_state+24(%rip), %rbx\n"
        "mov native_state+32(%rip), %rsp; mov native_state+40(%rip), %rbp\n"
        "mov native_state+48(%rip), %rsi; mov native_state+56(%rip), %rdi\n"
        "mov native_state+64(%rip), %r8; mov native_state+72(%rip), %r9\n"
        "mov native_state+80(%rip), %r10; mov native_state+88(%rip), %r11\n"
        "mov native_state+96(%rip), %r12; mov native_state+104(%rip), %r13\n"
        "mov native_state+112(%rip), %r14; mov native_state+120(%rip), %r15\n"
        "jmp *native_state+136(%rip)\n"
        ".globl native_exit\nnative_exit:\n"
        "mov %rax, native_state+0(%rip); mov %rcx, native_state+8(%rip)\n"
        "mov %rdx, native_state+16(%rip); mov %rbx, native_state+24(%rip)\n"
        "mov %rsp, native_state+32(%rip); mov %rbp, native_state+40(%rip)\n"
        "mov %rsi, native_state+48(%rip); mov %rdi, native_state+56(%rip)\n"
        "mov %r8, native_state+64(%rip); mov %r9, native_state+72(%rip)\n"
        "mov %r10, native_state+80(%rip); mov %r11, native_state+88(%rip)\n"
        "mov %r12, native_state+96(%rip); mov %r13, native_state+104(%rip)\n"
        "mov %r14, native_state+112(%rip); mov %r15, native_state+120(%rip)\n"
        "mov native_state+144(%rip), %rsp\n"
        "pushfq; pop native_state+128(%rip); cld\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
        ".size native_run, . - native_run\n");
/* clang-format on */

_Static_assert(offsetof(struct native, flags) == 128, "native_run");
_Static_assert(offsetof(struct native, target) == 136, "native_run");
_Static_assert(offsetof(struct native, host_rsp) == 144, "native_run");

static sigjmp_buf on_signal;
static volatile sig_atomic_t signal_seen, native_under_way;

/* The engine's own crash is none of the host's exceptions. */
static void handler(int number)
{
    if (!native_under_way) {
        signal(number, SIG_DFL);
        return;
    }
    signal_seen = number;
    siglongjmp(on_signal, 1);
}

/* Run the bytes on the host: the signal that they ended with, or 0. */
static int run_native(const uint8_t *bytes, size_t len)
{
    static const uint8_t jump[6] = {0xff, 0x25}; /* through the pointer behind it */
    const uint8_t *exit = native_exit;
    mprotect(code_page, 4096, PROT_READ | PROT_WRITE);
    memcpy(code_page, bytes, len);
    memcpy(code_page + len, jump, sizeof(jump));
    memcpy(code_page + len + sizeof(jump), &exit, sizeof(exit));
    mprotect(code_page, 4096, PROT_READ | PROT_EXEC);
    native_state.target = (uint64_t)(uintptr_t)code_page;
    signal_seen = 0;
    native_under_way = 1;
    if (sigsetjmp(on_signal, 1) == 0)
        native_run();
    native_under_way = 0;
    return signal_seen;
}

/* --- the engine --- */

/* The vector it raised, or -1. A repeated instruction is run to its end. */
static int run_soft(struct insn *insn)
{
    insn->next_offset = insn->len;
    exec_bind(cpu, insn);
    for (;;) {
        cpu->rip_page = CODE;
        cpu->rip = CODE;
        cpu->insn = cpu->block_start = insn;
        cpu->stop_block = cpu->rip_set = false;
        if (setjmp(cpu->unwind) != 0)
            return cpu->exception.vector;
        insn->exec(cpu, insn);
        cpu->insn = NULL;
        if (!cpu->rip_set || cpu->rip != CODE)
            return -1;
    }
}

static bool set_up(void)
{
    struct mem *mem;
    struct mem_options options = {0};
    struct err err = ERR_INIT;
    static struct soft_cpu *cpus[1];
    static uint8_t signal_stack[64 << 10];
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
    vm.exclusive.running = 1; /* as in the loop */
    cpu->vm = &vm;
    if (mmu_vm_map(&vm, 0, mem_region_at(mem, 0), &err) < 0 || mmu_init(cpu, &err) < 0) {
        printf("# %s\n", err.text);
        return false;
    }
    cpus[0] = cpu;
    ram = mem_region_at(mem, 0)->host;
    window = mmap((void *)(uintptr_t)WINDOW, WINDOW_LEN, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    code_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)};
    const struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigaltstack(&stack, NULL);
    sigaction(SIGFPE, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    return code_page != MAP_FAILED;
}

static struct decode_mode mode = {.vex = true};

static void set_mode(unsigned bits, unsigned cpl)
{
    uint16_t dpl = (uint16_t)(cpl << 5);
    uint16_t code = bits == 64 ? CPU_SEG_CODE64 : CPU_SEG_CODE32;
    cpu->cr0 = CPU_CR0_PE | CPU_CR0_NE | CPU_CR0_ET;
    cpu->cr4 = 0;
    cpu->efer = bits == 64 ? CPU_EFER_LME | CPU_EFER_LMA : 0;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = (struct cpu_segment){
            .limit = UINT32_MAX, .attr = (uint16_t)((CPU_SEG_DATA & ~SEG_ATTR_DPL) | dpl)};
    if (bits == 16) {
        code &= (uint16_t)~SEG_ATTR_DB;
        cpu->seg[SEG_SS].attr &= (uint16_t)~SEG_ATTR_DB;
    }
    cpu->seg[SEG_CS] =
        (struct cpu_segment){.limit = UINT32_MAX, .attr = (uint16_t)((code & ~SEG_ATTR_DPL) | dpl)};
    cpu->rflags = RFLAGS_FIXED;
    mode.code_bits = (uint8_t)bits;
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
}

/* --- instructions --- */

/* Another ModRM byte: registers, or [rbx], [rbx + disp8], [rbx + rsi * scale]. Room is behind. */
static size_t vary_modrm(const struct opcode *o, uint8_t *bytes, size_t len, int at)
{
    uint8_t modrm = bytes[at];
    bool was_mem = modrm < 0xc0;
    bool fixed_reg = o->form == FORM_RM || o->form == FORM_V_RM || o->form == FORM_NONE;
    if (!fixed_reg)
        modrm = (uint8_t)((modrm & ~0x38) | below(8) << 3);
    bool mem = below(2) || (was_mem && below(8));
    if (!mem) {
        bytes[at] = (uint8_t)(0xc0 | (modrm & 0x38) | below(8));
        return len;
    }
    switch (below(3)) {
    case 0:
        bytes[at] = (uint8_t)((modrm & 0x38) | 3);
        return len;
    case 1:
        bytes[at] = (uint8_t)(0x40 | (modrm & 0x38) | 3);
        bytes[at + 1] = (uint8_t)random64();
        return (size_t)at + 2;
    default:
        bytes[at] = (uint8_t)((modrm & 0x38) | 4);
        bytes[at + 1] = (uint8_t)(below(4) << 6 | CPU_RSI << 3 | CPU_RBX);
        return (size_t)at + 2;
    }
}

/* A REX prefix where it may be; then size prefixes and LOCK in front. */
static size_t vary_prefixes(const struct opcode *o, uint8_t *bytes, size_t len)
{
    size_t at = 0;
    while (bytes[at] == 0x66 || bytes[at] == 0xf2 || bytes[at] == 0xf3)
        at++;
    if (bytes[at] == 0xc4) {
        bytes[at + 2] = (uint8_t)((bytes[at + 2] & ~0x78) | below(16) << 3);
        bytes[at + 2] ^= (uint8_t)(below(2) << 7);
        bytes[at + 1] ^= (uint8_t)(below(2) << 7);
        return len;
    }
    if (below(3)) {
        uint8_t rex = (uint8_t)(0x40 | below(2) << 3 | below(2) << 2);
        if ((bytes[at] & 0xf0) != 0x40) {
            memmove(bytes + at + 1, bytes + at, 20);
            bytes[at] = rex;
            len++;
        } else {
            bytes[at] = (uint8_t)(bytes[at] | rex);
        }
    }
    static const uint8_t in_front[] = {0x66, 0x67, 0xf0, 0xf3, 0xf2};
    for (unsigned n = 0; n < sizeof(in_front); n++) {
        bool wanted = in_front[n] == 0xf0   ? o->attr & ATTR_LOCKABLE && below(2)
                      : in_front[n] >= 0xf2 ? o->attr & ATTR_STRING && below(2)
                                            : below(4) == 0;
        if (!wanted)
            continue;
        memmove(bytes + 1, bytes, 20);
        bytes[0] = in_front[n];
        len++;
    }
    return len;
}

static bool make_instruction(size_t index, struct insn *insn)
{
    const struct opcode *o = decode_opcode_at(index);
    uint8_t bytes[32] = {0};
    int modrm_at;
    size_t len = decode_opcode_example(index, &mode, bytes, &modrm_at);
    if (len == 0)
        return false;
    if (modrm_at >= 0)
        len = vary_modrm(o, bytes, len, modrm_at);
    len = vary_prefixes(o, bytes, len);
    for (unsigned i = 0; i < 8; i++)
        bytes[len + i] = (uint8_t)random64();
    if (o->op == OP_ENTER) /* small frames */
        bytes[len + 1] = 0;
    if (decode_insn(insn, bytes, INSN_LEN_MAX, &mode) != DECODE_OK || insn->opcode != o)
        return false;
    return true;
}

/* What runs on the host as it does in the engine. */
static bool is_comparable(const struct opcode *o)
{
    if (o->op >= OP_INT_END || o->attr & ATTR_BRANCH || !(vm.model.features >> o->feature & 1))
        return false;
    switch (o->op) {
    case OP_IN: /* devices, chance, privileges, addresses in the code: by hand */
    case OP_OUT:
    case OP_INS:
    case OP_OUTS:
    case OP_RDRAND:
    case OP_RDSEED:
    case OP_PUSHF:
    case OP_POPF:
    case OP_MOV_MOFFS_LOAD:
    case OP_MOV_MOFFS_STORE:
    case OP_MOVDIR64B:
        return false;
    case OP_LAHF: /* a row for other modes than this */
    case OP_SAHF:
        return o->feature == FEAT_LAHF64;
    default:
        return true;
    }
}

/* --- one case --- */

static bool is_bit_string(const struct insn *insn)
{
    return insn->is_mem && insn->op >= OP_BT && insn->op <= OP_BTC;
}

static bool is_string(const struct insn *insn)
{
    return insn->opcode->attr & ATTR_STRING;
}

/* The registers that hold addresses, counts, or what must compare equal now and then. */
static void make_operands(const struct insn *insn, uint64_t gpr[16], uint8_t *memory)
{
    for (unsigned i = 0; i < 16; i++)
        gpr[i] = random_value();
    gpr[CPU_RSP] = STACK + below(3);
    if (is_string(insn)) {
        gpr[CPU_RSI] = OPERAND - below(40) + below(300);
        gpr[CPU_RDI] = OPERAND - below(40) + below(300);
        gpr[CPU_RCX] = below(40);
    }
    if (insn->op == OP_XLAT || insn->is_mem)
        gpr[CPU_RBX] = OPERAND + (below(RANDOM_CASE) ? 64ul : 0) - below(20);
    if (insn->is_mem && insn->index == CPU_RSI)
        gpr[CPU_RSI] = below(64);
    if (insn->op == OP_ENTER || insn->op == OP_LEAVE)
        gpr[CPU_RBP] = OPERAND + below(256);
    if ((insn->op == OP_DIV || insn->op == OP_IDIV) && below(2))
        gpr[CPU_RDX] = 0 - (uint64_t)below(2);
    if (is_bit_string(insn) && insn->reg != CPU_RBX && insn->reg != CPU_RSI)
        gpr[insn->reg] = (uint64_t)(int64_t)((int)below(16000) - 8000);
    if (insn->is_mem && insn->op >= OP_CMPXCHG && insn->op <= OP_CMPXCHG16B && below(2)) {
        uint64_t at = gpr[insn->base] +
                      (gpr[insn->index == GPR_ZERO ? 0 : insn->index] * (insn->index != GPR_ZERO)
                       << insn->scale) +
                      (uint64_t)(int64_t)insn->disp;
        uint64_t at_hand[2] = {gpr[CPU_RAX], gpr[CPU_RDX]};
        unsigned half = insn->op == OP_CMPXCHG8B ? 4 : 8;
        memcpy(memory + (at - WINDOW), &at_hand[0], half);
        memcpy(memory + (at - WINDOW) + half, &at_hand[1], half);
    }
}

/* Flags that the manuals leave open; with a count of zero none are. */
static uint64_t undefined_flags(const struct insn *insn, const uint64_t gpr[16])
{
    bool by_cl = (insn->op >= OP_ROL_CL && insn->op <= OP_SAR_CL) || insn->op == OP_SHLD_CL ||
                 insn->op == OP_SHRD_CL;
    uint64_t count = by_cl ? gpr[CPU_RCX] : insn->imm;
    bool shifts = insn->op >= OP_ROL && insn->op <= OP_SHRD_CL;
    if (shifts && (count & (insn->op_bytes == 8 ? 63 : 31)) == 0)
        return 0;
    return insn->opcode->flags_undefined;
}

static void describe(const struct insn *insn, const char *what)
{
    char text[96];
    decode_print(insn, CODE, text, sizeof(text));
    printf("# %s: %s:", text, what);
    for (unsigned i = 0; i < insn->len; i++)
        printf(" %02x", insn->bytes[i]);
    printf("\n");
}

static uint64_t open_flags_seen; /* where engine and host differ in what is open */

static bool same_state(const struct insn *insn, const uint64_t start[16], uint64_t start_flags)
{
    const char *what = NULL;
    uint64_t flags = (cpu->rflags ^ native_state.flags) & (RFLAGS_ARITH | RFLAGS_DF);
    uint64_t open = undefined_flags(insn, start);
    if (memcmp(ram + WINDOW, window, WINDOW_LEN) != 0)
        what = "memory differs";
    if (flags & ~open)
        what = "flags differ";
    if (memcmp(cpu->gpr, native_state.gpr, sizeof(native_state.gpr)) != 0)
        what = "registers differ";
    open_flags_seen |= flags;
    if (!what)
        return true;
    describe(insn, what);
    for (unsigned i = 0; i < 16; i++)
        if (cpu->gpr[i] != native_state.gpr[i])
            printf("#   gpr %u was %llx got %llx want %llx\n", i, (unsigned long long)start[i],
                   (unsigned long long)cpu->gpr[i], (unsigned long long)native_state.gpr[i]);
    printf("#   flags were %llx got %llx want %llx, open %llx; rax %llx rcx %llx rdx %llx\n",
           (unsigned long long)start_flags, (unsigned long long)cpu->rflags,
           (unsigned long long)native_state.flags, (unsigned long long)open,
           (unsigned long long)start[CPU_RAX], (unsigned long long)start[CPU_RCX],
           (unsigned long long)start[CPU_RDX]);
    for (unsigned i = 0; i < WINDOW_LEN; i++)
        if (ram[WINDOW + i] != window[i])
            printf("#   at %x got %02x want %02x\n", WINDOW + i, ram[WINDOW + i], window[i]);
    return false;
}

static bool try_case(struct insn *insn)
{
    uint64_t gpr[16], flags = RFLAGS_FIXED | (random64() & RFLAGS_ARITH);
    bool plain = below(2); /* equal elements for the comparisons of strings */
    if (is_string(insn) && below(RANDOM_CASE) == 0)
        flags |= RFLAGS_DF;
    for (unsigned at = 0; at < WINDOW_LEN; at += 8) {
        uint64_t value = plain ? 0 : random64();
        memcpy(window + at, &value, 8);
    }
    make_operands(insn, gpr, window);
    if (insn->op == OP_SCAS && plain)
        gpr[CPU_RAX] = below(3) == 0;
    memcpy(ram + WINDOW, window, WINDOW_LEN);
    memcpy(cpu->gpr, gpr, sizeof(gpr));
    memcpy(native_state.gpr, gpr, sizeof(gpr));
    cpu->rflags = native_state.flags = flags;
    /* A LOCK prefix changes nothing here, and across two pages it would be slow. */
    const uint8_t *bytes = insn->bytes;
    size_t len = insn->len;
    uint8_t unlocked[INSN_LEN_MAX];
    if (insn->prefixes & PREFIX_LOCK) {
        len = 0;
        bool found = false;
        for (unsigned i = 0; i < insn->len; i++) {
            if (insn->bytes[i] != 0xf0 || found)
                unlocked[len++] = insn->bytes[i];
            else
                found = true;
        }
        bytes = unlocked;
    }
    int seen = run_native(bytes, len), vector = run_soft(insn);
    if (seen == SIGILL) /* the model has what this host has not */
        return true;
    int want = seen == SIGFPE ? EXC_DE : seen ? EXC_GP : -1;
    if (vector != want) {
        describe(insn, "exceptions differ");
        printf("#   signal %d, vector %d\n", seen, vector);
        return false;
    }
    if (seen) { /* nothing has happened */
        memcpy(native_state.gpr, gpr, sizeof(gpr));
        native_state.flags = flags;
        return memcmp(cpu->gpr, gpr, sizeof(gpr)) == 0 && cpu->rflags == flags &&
               memcmp(ram + WINDOW, window, WINDOW_LEN) == 0;
    }
    return same_state(insn, gpr, flags);
}

static bool is_usable(const struct insn *insn)
{
    if (insn->op == OP_UD || insn->rip_relative)
        return false;
    /* The address comes from RBX and RSI; a bit's number in them leads astray. */
    if (is_bit_string(insn) && (insn->reg == CPU_RBX || insn->reg == CPU_RSI))
        return false;
    return true;
}

static void test_rows(void)
{
    unsigned rows = 0, wrong = 0, untried = 0;
    for (size_t i = 0; i < decode_opcode_count(); i++) {
        const struct opcode *o = decode_opcode_at(i);
        unsigned tried = 0, failed = 0;
        if (!is_comparable(o) || o->attr & ATTR_NO64)
            continue;
        rows++;
        open_flags_seen = 0;
        for (unsigned n = 0; n < TRIES && failed < 2; n++) {
            struct insn insn;
            if (!make_instruction(i, &insn) || !is_usable(&insn))
                continue;
            tried++;
            failed += !try_case(&insn);
        }
        char place[64];
        decode_opcode_place(i, place, sizeof(place));
        if (!tried)
            printf("# %s (%s): no example\n", o->name, place);
        if (open_flags_seen)
            printf("# %s (%s): open flags are not the host's: %llx\n", o->name, place,
                   (unsigned long long)open_flags_seen);
        untried += !tried;
        wrong += failed != 0;
    }
    printf("# %u rows\n", rows);
    is_int(wrong, 0, "in 64-bit code every row does what the host does");
    is_int(untried, 0, "every row was tried");
}

/* --- by hand --- */

static int run_bytes(const uint8_t *bytes, size_t len)
{
    uint8_t padded[24] = {0};
    struct insn insn;
    memcpy(padded, bytes, len);
    if (decode_insn(&insn, padded, INSN_LEN_MAX, &mode) != DECODE_OK || insn.op == OP_UD)
        return -2;
    return run_soft(&insn);
}
#define RUN(...) run_bytes((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void put(uint64_t at, uint64_t value, unsigned bytes)
{
    memcpy(ram + at, &value, bytes);
}

static uint64_t at(uint64_t address, unsigned bytes)
{
    uint64_t value = 0;
    memcpy(&value, ram + address, bytes);
    return value;
}

/* What DAA and the like make of AX and flags, as one number: flags << 16 | AX. */
static uint64_t adjust(uint8_t opcode, uint16_t ax, uint64_t flags)
{
    cpu->gpr[CPU_RAX] = ax;
    cpu->rflags = RFLAGS_FIXED | flags;
    RUN(opcode);
    return (cpu->rflags & (RFLAGS_CF | RFLAGS_AF)) << 16 | cpu->gpr[CPU_RAX];
}

#define CF_AF ((uint64_t)(RFLAGS_CF | RFLAGS_AF) << 16)
#define CF    ((uint64_t)RFLAGS_CF << 16)
#define AF    ((uint64_t)RFLAGS_AF << 16)

static void test_decimal(void)
{
    set_mode(32, 0);
    is_int(adjust(0x27, 0x79 + 0x35, 0), CF_AF | 0x14, "DAA: 79 + 35 = 114");
    is_int(adjust(0x27, 0x0f, 0), AF | 0x15, "DAA: the low digit");
    is_int(adjust(0x27, 0xa0, 0), CF | 0x00, "DAA: the high digit");
    is_int(adjust(0x27, 0x42, 0), 0x42, "DAA: neither");
    is_int(adjust(0x27, 0x12, RFLAGS_CF), CF | 0x72, "DAA: the carry before");
    is_int(adjust(0x2f, 0x35 - 0x47 + 0x100, RFLAGS_CF | RFLAGS_AF), CF_AF | 0x88,
           "DAS: 35 - 47 = -12");
    is_int(adjust(0x2f, 0x02, RFLAGS_AF), CF_AF | 0xfc, "DAS: the low digit borrows");
    is_int(adjust(0x37, 0x010b, 0), CF_AF | 0x0201, "AAA");
    is_int(adjust(0x37, 0x01f4, RFLAGS_AF), CF_AF | 0x020a, "AAA by AF");
    is_int(adjust(0x37, 0x01f4, 0), 0x0104, "AAA: nothing but the high digit cleared");
    is_int(adjust(0x3f, 0x02ff, RFLAGS_AF), CF_AF | 0x0109, "AAS");
    cpu->gpr[CPU_RAX] = 0x4b;
    is_int(RUN(0xd4, 0x0a), -1, "AAM");
    is_int(cpu->gpr[CPU_RAX], 0x0705, "75 is 7 and 5");
    is_int(RUN(0xd5, 0x0a), -1, "AAD");
    is_int(cpu->gpr[CPU_RAX], 0x4b, "and back");
    is_int(RUN(0xd4, 0x00), EXC_DE, "AAM by zero");
    cpu->rflags |= RFLAGS_CF;
    is_int(RUN(0xd6), -1, "SALC");
    is_int(cpu->gpr[CPU_RAX], 0xff, "AL is all ones");
}

/* By an immediate that is not 1, whatever OF the host leaves. */
static void test_rotate(void)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < 512; i++) {
        uint64_t overflow = i & 256 ? RFLAGS_OF : 0;
        cpu->gpr[CPU_RAX] = i & 255;
        cpu->rflags = RFLAGS_FIXED | overflow;
        kept += RUN(0xc0, 0xc8, 0x07) == -1 && /* ror $7, %al */
                (cpu->rflags & RFLAGS_OF) == overflow;
    }
    is_int(kept, 512, "OF stays where a rotate leaves it undefined");
}

static void test_16(void)
{
    set_mode(16, 0);
    memset(cpu->gpr, 0, sizeof(cpu->gpr));
    cpu->gpr[CPU_RBX] = 0xfff0;
    cpu->gpr[CPU_RSI] = 0x8020;
    put(0x8010, 0x1234, 2);
    is_int(RUN(0x8b, 0x00), -1, "mov ax, [bx + si]");
    is_int(cpu->gpr[CPU_RAX], 0x1234, "the address is taken modulo 64 KiB");

    cpu->gpr[CPU_RSP] = 0xabcd0002;
    cpu->gpr[CPU_RAX] = 0x55667788;
    put(0xfffe, 0, 2);
    is_int(RUN(0x66, 0x50), -1, "push eax on a 16-bit stack");
    is_int(cpu->gpr[CPU_RSP], 0xabcdfffe, "SP alone moves");
    is_int(RUN(0x5b), -1, "pop bx");
    is_int(cpu->gpr[CPU_RBX], 0x7788, "what was pushed");
    is_int(cpu->gpr[CPU_RSP], 0xabcd0000, "SP wraps back");

    cpu->gpr[CPU_RSP] = 0x9000;
    for (unsigned i = 0; i < 8; i++)
        cpu->gpr[i] = i == CPU_RSP ? 0x9000 : 0x10101 * i;
    is_int(RUN(0x60), -1, "pusha");
    is_int(cpu->gpr[CPU_RSP], 0x8ff0, "eight words");
    is_int(at(0x8ff6, 2), 0x9000, "SP as it was before");
    for (unsigned i = 0; i < 8; i++)
        cpu->gpr[i] = i == CPU_RSP ? 0x8ff0 : 0xaaaa0000;
    is_int(RUN(0x61), -1, "popa");
    is_int(cpu->gpr[CPU_RDI], 0xaaaa0707, "the words come back, upper halves stay");
    is_int(cpu->gpr[CPU_RSP], 0x9000, "SP is behind them");

    is_int(RUN(0xe9, 0xfd, 0xff), -1, "jmp $");
    is_int(cpu->rip, CODE, "a jump to itself");
    is_int(RUN(0xe9, 0x00, 0xe0), -1, "a jump below zero");
    is_int(cpu->rip, 0xf003, "IP wraps");
    cpu->gpr[CPU_RCX] = 0x10000;
    is_int(RUN(0xe3, 0x10), -1, "jcxz");
    is_int(cpu->rip, CODE + 0x12, "looks at CX");
    is_int(RUN(0xe2, 0x10), -1, "loop");
    is_int(cpu->gpr[CPU_RCX], 0x1ffff, "counts CX down");
    is_int(cpu->rip, CODE + 0x12, "and is taken");
    cpu->gpr[CPU_RCX] = 1;
    is_int(RUN(0xe2, 0x10), -1, "loop with 1");
    is_int(cpu->rip, CODE + 2, "is not");

    cpu->seg[SEG_CS].limit = 0xffff;
    soft_cpu_update(cpu);
    cpu->gpr[CPU_RSP] = 0x9000;
    is_int(RUN(0x66, 0xe8, 0, 0, 1, 0), EXC_GP, "a call beyond the limit");
    is_int(cpu->gpr[CPU_RSP], 0x9000, "nothing was pushed");
    put(0x9000, 0x20000, 4);
    is_int(RUN(0x66, 0xc3), EXC_GP, "a return beyond the limit");
    is_int(cpu->gpr[CPU_RSP], 0x9000, "nothing was popped");
    is_int(RUN(0xc2, 0x10, 0), -1, "ret 16");
    is_int(cpu->gpr[CPU_RSP], 0x9012, "pops the arguments too");
    is_int(cpu->rip, 0, "and goes to the word");

    put(0x8000, 5, 2);
    put(0x8002, 9, 2);
    cpu->gpr[CPU_RAX] = 9;
    is_int(RUN(0x62, 0x06, 0x00, 0x80), -1, "BOUND: at the upper bound");
    cpu->gpr[CPU_RAX] = 4;
    is_int(RUN(0x62, 0x06, 0x00, 0x80), EXC_BR, "below the lower one");
}

/* Faults leave everything as it was. 32-bit code, DS ends at 0x8fff. */
static void test_precise(void)
{
    set_mode(32, 0);
    cpu->seg[SEG_DS].limit = 0x8fff;
    soft_cpu_update(cpu);
    memset(cpu->gpr, 0, sizeof(cpu->gpr));
    cpu->gpr[CPU_RBX] = 0x8ffe;
    cpu->gpr[CPU_RSP] = 0x9100;
    cpu->gpr[CPU_RAX] = 0x77;
    put(0x8ffc, 0x11223344, 4);
    put(0x9100, 0x55, 4);
    is_int(RUN(0x8f, 0x03), EXC_GP, "pop [ebx] beyond the limit");
    is_int(cpu->gpr[CPU_RSP], 0x9100, "ESP is where it was");
    is_int(RUN(0x87, 0x03), EXC_GP, "xchg");
    is_int(cpu->gpr[CPU_RAX], 0x77, "EAX is what it was");
    is_int(RUN(0xff, 0x33), EXC_GP, "push [ebx]");
    is_int(cpu->gpr[CPU_RSP], 0x9100, "nothing was pushed");
    cpu->gpr[CPU_RSP] = 0x8ff8;
    is_int(RUN(0x8f, 0x44, 0x24, 0x00), -1, "pop [esp]");
    is_int(at(0x8ffc, 4), at(0x8ff8, 4), "addresses with ESP moved already");

    cpu->gpr[CPU_RSI] = 0x8000;
    cpu->gpr[CPU_RDI] = 0xa000;
    cpu->gpr[CPU_RCX] = 0x2000;
    is_int(RUN(0xf3, 0xa4), EXC_GP, "rep movsb runs into the limit");
    is_int(cpu->gpr[CPU_RSI], 0x9000, "ESI is there");
    is_int(cpu->gpr[CPU_RDI], 0xb000, "EDI too");
    is_int(cpu->gpr[CPU_RCX], 0x1000, "ECX is what is left");
    is_int(memcmp(ram + 0x8000, ram + 0xa000, 0x1000), 0, "what came before was moved");
    cpu->gpr[CPU_RDX] = cpu->gpr[CPU_RAX] = 1;
    cpu->gpr[CPU_RCX] = 1;
    is_int(RUN(0xf7, 0xf1), EXC_DE, "a quotient of 33 bits");
    is_int(cpu->gpr[CPU_RAX], 1, "EAX stays");
}

/* A pattern is repeated by a copy to just behind its source. */
static void test_overlap(void)
{
    set_mode(64, 0);
    memset(ram + 0x8000, 0, 64);
    memcpy(ram + 0x8000, "abc", 3);
    cpu->gpr[CPU_RSI] = 0x8000;
    cpu->gpr[CPU_RDI] = 0x8003;
    cpu->gpr[CPU_RCX] = 9;
    is_int(RUN(0xf3, 0xa4), -1, "rep movsb onto itself");
    is_int(memcmp(ram + 0x8000, "abcabcabcabc", 13), 0, "repeats what is there");
    cpu->gpr[CPU_RSI] = 0x8003;
    cpu->gpr[CPU_RDI] = 0x8000;
    cpu->gpr[CPU_RCX] = 9;
    ram[0x8003] = 'x';
    is_int(RUN(0xf3, 0xa4), -1, "and downwards");
    is_int(memcmp(ram + 0x8000, "xbcabcabcabc", 13), 0, "moves");
    cpu->mode.careful = true;
    cpu->gpr[CPU_RCX] = 2;
    struct insn insn;
    const uint8_t stos[INSN_LEN_MAX] = {0xf3, 0xaa};
    decode_insn(&insn, stos, sizeof(stos), &mode);
    insn.next_offset = insn.len;
    exec_bind(cpu, &insn);
    cpu->rip_page = CODE;
    insn.exec(cpu, &insn);
    is_int(cpu->gpr[CPU_RCX], 1, "stepped, it does one element");
    ok(cpu->stop_block && cpu->rip_set && cpu->rip == CODE, "and is at itself");
    cpu->mode.careful = cpu->stop_block = cpu->rip_set = false;
}

static void test_flow_64(void)
{
    set_mode(64, 0);
    cpu->gpr[CPU_RSP] = 0x9000;
    is_int(RUN(0x66, 0xe8, 0x10, 0, 0, 0), -1, "a call with 66");
    is_int(cpu->gpr[CPU_RSP], 0x8ff8, "pushes eight bytes");
    is_int(cpu->rip, CODE + 0x16, "and has four of displacement");
    is_int(at(0x8ff8, 8), CODE + 6, "the return address");
    is_int(RUN(0xc3), -1, "ret");
    is_int(cpu->rip, CODE + 6, "goes there");
    cpu->gpr[CPU_RAX] = 1ULL << 47;
    is_int(RUN(0xff, 0xd0), EXC_GP, "a call to what is not canonical");
    is_int(cpu->gpr[CPU_RSP], 0x9000, "pushes nothing");
    cpu->gpr[CPU_RSP] = (1ULL << 47) + 64;
    is_int(RUN(0x50), EXC_SS, "a push there");
    is_int(RUN(0x58), EXC_SS, "a pop");
    cpu->gpr[CPU_RBP] = 0x9000;
    is_int(RUN(0xc9), -1, "leave does not look at RSP");
    cpu->gpr[CPU_RCX] = 0x100000000;
    is_int(RUN(0x67, 0xe3, 0x10), -1, "jecxz");
    is_int(cpu->rip, CODE + 0x13, "looks at ECX");
    cpu->gpr[CPU_RCX] = 0x500000002;
    is_int(RUN(0x67, 0xe2, 0x10), -1, "loop by ECX");
    is_int(cpu->gpr[CPU_RCX], 1, "clears the upper half");
    cpu->gpr[CPU_RSP] = 0x9000;
    cpu->rflags = RFLAGS_FIXED | RFLAGS_IF | RFLAGS_RF | RFLAGS_CF;
    is_int(RUN(0x9c), -1, "pushf");
    is_int(at(0x8ff8, 8), RFLAGS_FIXED | RFLAGS_IF | RFLAGS_CF, "without RF");
    set_mode(64, 3);
    put(0x8ff8, 0xffffffff & ~(uint64_t)RFLAGS_TF, 8);
    cpu->rflags = RFLAGS_FIXED | RFLAGS_IF;
    cpu->gpr[CPU_RSP] = 0x8ff8;
    is_int(RUN(0x9d), -1, "popf at CPL 3");
    ok(!(cpu->rflags & (RFLAGS_IOPL | RFLAGS_VM | RFLAGS_RF)), "leaves IOPL alone");
    put(0x8ff8, 0, 8);
    cpu->gpr[CPU_RSP] = 0x8ff8;
    is_int(RUN(0x9d), -1, "popf of zero");
    ok(cpu->rflags & RFLAGS_IF, "leaves IF alone");
    set_mode(64, 0);
}

/* LOCK across two pages, and a fault in the exclusive section that it takes. */
static void test_locked(void)
{
    set_mode(64, 0);
    cpu->gpr[CPU_RBX] = 0x8ffe;
    cpu->gpr[CPU_RAX] = 0x01020304;
    put(0x8ffe, 0xffffffff, 4);
    is_int(RUN(0xf0, 0x0f, 0xc1, 0x03), -1, "lock xadd across two pages");
    is_int(at(0x8ffe, 4), 0x01020303, "adds");
    is_int(cpu->gpr[CPU_RAX], 0xffffffff, "and gives what was there");
    ok(!vm.exclusive.owned && vm.exclusive.running == 1, "the exclusive section is over");
    cpu->gpr[CPU_RBX] = 0x8ff8;
    is_int(RUN(0xf0, 0x48, 0x0f, 0xc7, 0x0b), EXC_GP, "cmpxchg16b wants alignment");
    if (setjmp(cpu->unwind) == 0) {
        soft_exclusive_begin(cpu);
        soft_raise(cpu, EXC_GP);
    }
    ok(!vm.exclusive.owned && vm.exclusive.running == 1, "an exception ends it");
    /* To AMD's processors LOCK MOV CR0 is MOV CR8, where CPUID says so. */
    const struct cpuid_leaf *leaf = cpuid_find(&vm.model.cpuid, 0x80000001, 0);
    ok(leaf && !(leaf->ecx >> 4 & 1), "the other encoding of MOV CR8 is not offered");
    is_int(RUN(0xf0, 0x0f, 0x20, 0xc0), -2, "and lock mov rax, cr0 is undefined");
}

/* A data breakpoint makes all accesses slow: then no entry of the TLB counts, nor the lack of one.
 */
static void test_slow(void)
{
    set_mode(64, 0);
    cpu->gpr[CPU_RBX] = 0x8000;
    is_int(RUN(0x8a, 0x03), -1, "an entry for one page");
    cpu->dr[7] = 1;
    soft_cpu_update(cpu);
    ok(!mmu_fast(cpu, 0x8000, 4, true), "with a breakpoint it is not used");
    ok(!mmu_fast(cpu, UINT64_MAX - 3, 4, true), "nor is the last page's, which there is not");
    cpu->dr[7] = 0;
    soft_cpu_update(cpu);
    ok(mmu_fast(cpu, 0x8000, 4, true), "without, it is");
    ok(!mmu_fast(cpu, UINT64_MAX - 3, 4, true), "the last page's still is not");
}

int main(void)
{
    if (!ok(set_up(), "a vCPU with memory"))
        return tap_done();
    mode.features = vm.model.features;
    if (window == (void *)(uintptr_t)WINDOW) {
        set_mode(64, 3);
        test_rows();
    } else {
        tap_skip("the host's instructions", "the address of the operands is taken");
    }
    test_decimal();
    test_rotate();
    test_16();
    test_precise();
    test_overlap();
    test_flow_64();
    test_locked();
    test_slow();
    return tap_done();
}
