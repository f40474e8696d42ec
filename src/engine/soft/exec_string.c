/* SPDX-License-Identifier: Apache-2.0 */
/*
 * String instructions. A repeated one does a bounded piece of its work at a time: when events are
 * pending, or after REPEAT_MAX, it leaves with its registers advanced and RIP at itself, as an
 * interrupt leaves it on hardware. MOVS, STOS, INS and OUTS work in bulk within a page where
 * nothing can tell the difference.
 */
#include <string.h>

#include "engine/soft/exec_int.h"
#include "engine/soft/vm.h"

/* Bytes that one execution of a repeated instruction moves at the most. */
#define REPEAT_MAX_BYTES (64u << 10)
/* What an element by itself takes of that: as long as so many bytes in bulk, or less (a device). */
#define SINGLE_BYTES 64u

static uint64_t address_reg(const struct soft_cpu *cpu, const struct insn *i, unsigned reg)
{
    return cpu->gpr[reg] & insn_addr_mask(i);
}

/* rCX, rSI, rDI are written at the address size: a 32-bit one clears the upper half. */
static void set_address_reg(struct soft_cpu *cpu, const struct insn *i, unsigned reg,
                            uint64_t value)
{
    int_put_reg(cpu, i, reg, i->addr_bytes, value);
}

static uint64_t step_of(const struct soft_cpu *cpu, uint64_t bytes)
{
    return cpu->rflags & RFLAGS_DF ? -bytes : bytes;
}

static uint64_t elements_left(const struct soft_cpu *cpu, const struct insn *i)
{
    return insn_is_repeated(i) ? address_reg(cpu, i, CPU_RCX) : 1;
}

/* n elements of a repeated instruction are done. */
static void consume(struct soft_cpu *cpu, const struct insn *i, uint64_t n)
{
    if (insn_is_repeated(i))
        set_address_reg(cpu, i, CPU_RCX, address_reg(cpu, i, CPU_RCX) - n);
}

/* There is more to do, later: the instruction starts again. */
static void leave_at_self(struct soft_cpu *cpu, const struct insn *i)
{
    cpu->rip = (soft_next_rip(cpu, i) - i->len) & soft_ip_mask(cpu);
    cpu->rip_set = true;
    cpu->stop_block = true;
}

/* What one execution may do. A single step is one element (SDM vol. 3, 17.3.1.1 "TF"). */
struct piece {
    uint64_t elements, bytes;
    unsigned single; /* bytes that an element by itself takes */
};

static struct piece piece_of(const struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t elements = elements_left(cpu, i);
    bool step = cpu->mode.careful && elements > 1;
    /* What is not done in bulk depends on what the tiers have made of the page's code: instructions
     * are counted for each execution, and a virtual clock is not to tell. */
    bool same = cpu->vm->clock && chip_clock_is_virtual(cpu->vm->clock);
    return (struct piece){.elements = step ? 1 : elements,
                          .bytes = REPEAT_MAX_BYTES,
                          .single = same ? i->op_bytes : SINGLE_BYTES};
}

/* Elements for which it is enough in bulk. */
static uint64_t piece_wants(const struct piece *p, const struct insn *i)
{
    uint64_t most = p->bytes / i->op_bytes;
    return p->elements < most ? p->elements : most;
}

/* n elements are done; 1 says that they were not done in bulk. */
static void spend(struct piece *p, const struct insn *i, uint64_t n)
{
    uint64_t cost = n > 1 ? n * i->op_bytes : p->single;
    p->elements -= n;
    p->bytes -= cost < p->bytes ? cost : p->bytes;
}

static bool is_spent(const struct piece *p, const struct insn *i)
{
    return p->elements == 0 || p->bytes < i->op_bytes;
}

/* Without a prefix it is done; else look whether something else wants the processor. */
static void finish(struct soft_cpu *cpu, const struct insn *i)
{
    if (insn_is_repeated(i) && address_reg(cpu, i, CPU_RCX) != 0)
        leave_at_self(cpu, i);
}

static uint64_t source_linear(struct soft_cpu *cpu, const struct insn *i, unsigned bytes)
{
    return soft_linear(cpu, i->seg, address_reg(cpu, i, CPU_RSI), bytes, false);
}

static uint64_t destination_linear(struct soft_cpu *cpu, const struct insn *i, unsigned bytes,
                                   bool write)
{
    return soft_linear(cpu, SEG_ES, address_reg(cpu, i, CPU_RDI), bytes, write);
}

static void advance(struct soft_cpu *cpu, const struct insn *i, unsigned reg, uint64_t bytes)
{
    set_address_reg(cpu, i, reg, address_reg(cpu, i, reg) + step_of(cpu, bytes));
}

/* --- bulk --- */

/*
 * Elements, at most `want`, that lie in one page from la on upwards and can be accessed plainly;
 * their host address in *host. 0: one at a time. The segment must be flat and the index register
 * must not wrap.
 */
static uint64_t bulk_span(struct soft_cpu *cpu, const struct insn *i, unsigned seg, unsigned reg,
                          bool write, uint64_t want, uint8_t **host)
{
    unsigned len, bytes = i->op_bytes;
    uint64_t at = address_reg(cpu, i, reg);
    uint8_t flat = write ? cpu->seg_flat_write : cpu->seg_flat;
    if (cpu->rflags & RFLAGS_DF || cpu->mode.careful || !(flat >> seg & 1) || want < 2)
        return 0;
    uint64_t la = (cpu->seg_base[seg] + at) & cpu->mode.linear_mask;
    if (soft_code64(cpu) && !(soft_canonical(la) && soft_canonical(la + bytes - 1)))
        return 0;
    if ((insn_addr_mask(i) - at) / bytes < want)
        want = (insn_addr_mask(i) - at) / bytes;
    *host = mmu_span(cpu, la, write, &len);
    uint64_t here = len / bytes;
    return here < want ? here : want;
}

static uint64_t bulk_movs(struct soft_cpu *cpu, const struct insn *i, uint64_t want)
{
    uint8_t *to, *from;
    uint64_t n = bulk_span(cpu, i, i->seg, CPU_RSI, false, want, &from);
    n = n ? bulk_span(cpu, i, SEG_ES, CPU_RDI, true, n, &to) : 0;
    if (n < 2)
        return 0;
    /* Forward copying, an element at a time, repeats a pattern where the destination begins inside
     * the source. */
    uint64_t ahead = (uint64_t)(to - from);
    if (ahead != 0 && ahead < n * i->op_bytes)
        return 0;
    memmove(to, from, n * i->op_bytes);
    return n;
}

static uint64_t bulk_stos(struct soft_cpu *cpu, const struct insn *i, uint64_t want)
{
    uint8_t *to;
    uint64_t n = bulk_span(cpu, i, SEG_ES, CPU_RDI, true, want, &to);
    uint64_t value = cpu->gpr[CPU_RAX];
    if (n == 0)
        return 0;
    switch (i->op_bytes) {
    case 1:
        memset(to, (uint8_t)value, n);
        break;
    case 2:
        for (uint64_t k = 0; k < n; k++)
            memcpy(to + 2 * k, &value, 2);
        break;
    case 4:
        for (uint64_t k = 0; k < n; k++)
            memcpy(to + 4 * k, &value, 4);
        break;
    default:
        if (value == 0)
            memset(to, 0, 8 * n);
        else
            for (uint64_t k = 0; k < n; k++)
                memcpy(to + 8 * k, &value, 8);
        break;
    }
    return n;
}

/* --- the instructions --- */

static void movs(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    for (struct piece p = piece_of(cpu, i); !is_spent(&p, i);) {
        uint64_t n = bulk_movs(cpu, i, piece_wants(&p, i));
        if (n == 0) {
            uint64_t value = mmu_read_sized(cpu, source_linear(cpu, i, bytes), bytes);
            mmu_write_sized(cpu, destination_linear(cpu, i, bytes, true), bytes, value);
            n = 1;
        }
        advance(cpu, i, CPU_RSI, n * bytes);
        advance(cpu, i, CPU_RDI, n * bytes);
        consume(cpu, i, n);
        spend(&p, i, n);
        if (cpu->stop_block)
            break;
    }
    finish(cpu, i);
}

static void stos(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    for (struct piece p = piece_of(cpu, i); !is_spent(&p, i);) {
        uint64_t n = bulk_stos(cpu, i, piece_wants(&p, i));
        if (n == 0) {
            mmu_write_sized(cpu, destination_linear(cpu, i, bytes, true), bytes, cpu->gpr[CPU_RAX]);
            n = 1;
        }
        advance(cpu, i, CPU_RDI, n * bytes);
        consume(cpu, i, n);
        spend(&p, i, n);
        if (cpu->stop_block)
            break;
    }
    finish(cpu, i);
}

static void lods(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    for (struct piece p = piece_of(cpu, i); !is_spent(&p, i); spend(&p, i, 1)) {
        uint64_t value = mmu_read_sized(cpu, source_linear(cpu, i, bytes), bytes);
        int_put_reg(cpu, i, CPU_RAX, bytes, value);
        advance(cpu, i, CPU_RSI, bytes);
        consume(cpu, i, 1);
    }
    finish(cpu, i);
}

/* Flags of a - b. */
static void compare(struct soft_cpu *cpu, unsigned bytes, uint64_t a, uint64_t b)
{
    uint16_t ax;
    unsigned shift = 64 - 8 * bytes;
    uint64_t left = a << shift, right = b << shift;
    __asm__("cmpq %2, %1\n\t" HOST_FLAGS : "=&a"(ax) : "r"(left), "r"(right) : "cc");
    set_some_flags(cpu, ax, RFLAGS_ARITH & ~(RFLAGS_AF | RFLAGS_PF));
    /* AF and PF look at the low bits. */
    set_flag(cpu, RFLAGS_AF, (a & 15) < (b & 15));
    set_flag(cpu, RFLAGS_PF, !__builtin_parity((uint8_t)(a - b)));
}

/* Does the condition of REPE or REPNE end the repetition? */
static bool repeat_ends(const struct soft_cpu *cpu, const struct insn *i)
{
    bool equal = cpu->rflags & RFLAGS_ZF;
    return i->prefixes & PREFIX_REPNE ? equal : !equal;
}

static void cmps(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    for (struct piece p = piece_of(cpu, i); !is_spent(&p, i); spend(&p, i, 1)) {
        uint64_t a = mmu_read_sized(cpu, source_linear(cpu, i, bytes), bytes);
        uint64_t b = mmu_read_sized(cpu, destination_linear(cpu, i, bytes, false), bytes);
        compare(cpu, bytes, a, b);
        advance(cpu, i, CPU_RSI, bytes);
        advance(cpu, i, CPU_RDI, bytes);
        consume(cpu, i, 1);
        if (insn_is_repeated(i) && repeat_ends(cpu, i))
            return;
    }
    finish(cpu, i);
}

static void scas(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    for (struct piece p = piece_of(cpu, i); !is_spent(&p, i); spend(&p, i, 1)) {
        uint64_t b = mmu_read_sized(cpu, destination_linear(cpu, i, bytes, false), bytes);
        compare(cpu, bytes, cpu->gpr[CPU_RAX], b);
        advance(cpu, i, CPU_RDI, bytes);
        consume(cpu, i, 1);
        if (insn_is_repeated(i) && repeat_ends(cpu, i))
            return;
    }
    finish(cpu, i);
}

static void ins(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint16_t port = (uint16_t)cpu->gpr[CPU_RDX];
    seg_check_io(cpu, port, bytes);
    for (struct piece p = piece_of(cpu, i); !is_spent(&p, i);) {
        uint8_t *to;
        uint64_t n = bulk_span(cpu, i, SEG_ES, CPU_RDI, true, piece_wants(&p, i), &to);
        if (n > 0) {
            soft_pio_read(cpu, port, bytes, to, (uint32_t)n);
        } else {
            uint64_t la = destination_linear(cpu, i, bytes, true), value = 0;
            mmu_check(cpu, la, bytes, true);
            soft_pio_read(cpu, port, bytes, &value, 1);
            mmu_write_sized(cpu, la, bytes, value);
            n = 1;
        }
        advance(cpu, i, CPU_RDI, n * bytes);
        consume(cpu, i, n);
        spend(&p, i, n);
        if (cpu->stop_block)
            break;
    }
    finish(cpu, i);
}

static void outs(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint16_t port = (uint16_t)cpu->gpr[CPU_RDX];
    seg_check_io(cpu, port, bytes);
    for (struct piece p = piece_of(cpu, i); !is_spent(&p, i);) {
        uint8_t *from;
        uint64_t n = bulk_span(cpu, i, i->seg, CPU_RSI, false, piece_wants(&p, i), &from);
        if (n > 0) {
            soft_pio_write(cpu, port, bytes, from, (uint32_t)n);
        } else {
            uint64_t value = mmu_read_sized(cpu, source_linear(cpu, i, bytes), bytes);
            soft_pio_write(cpu, port, bytes, &value, 1);
            n = 1;
        }
        advance(cpu, i, CPU_RSI, n * bytes);
        consume(cpu, i, n);
        spend(&p, i, n);
        if (cpu->stop_block)
            break;
    }
    finish(cpu, i);
}

soft_exec_fn *string_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_MOVS:
        return movs;
    case OP_STOS:
        return stos;
    case OP_LODS:
        return lods;
    case OP_CMPS:
        return cmps;
    case OP_SCAS:
        return scas;
    case OP_INS:
        return ins;
    case OP_OUTS:
        return outs;
    default:
        return NULL;
    }
}
