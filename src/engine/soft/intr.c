/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/intr.h"

#include "engine/soft/exec.h"
#include "engine/soft/mmu.h"
#include "engine/soft/seg_internal.h"

/* How the interrupt came: decides about DPL, EXT, and RIP. */
enum cause {
    CAUSE_EXCEPTION,
    CAUSE_EXTERNAL,
    CAUSE_SOFTWARE, /* INT n, INT3, INTO */
};

struct interrupt {
    uint8_t vector;
    enum cause cause;
    bool has_error;
    uint32_t error;
    uint64_t return_rip;
    uint64_t flags; /* to be pushed */
};

static uint32_t ext_of(const struct interrupt *in)
{
    return in->cause == CAUSE_SOFTWARE ? 0 : 1;
}

/* Error code that names the IDT's entry. */
static uint32_t idt_error(const struct interrupt *in)
{
    return (uint32_t)in->vector * 8 + 2 + ext_of(in);
}

/* --- real mode --- */

static void deliver_real(struct soft_cpu *cpu, const struct interrupt *in)
{
    uint64_t at = cpu->idt.base + (uint64_t)in->vector * 4;
    if (in->vector * 4u + 3 > cpu->idt.limit)
        soft_raise_error(cpu, EXC_GP, idt_error(in));
    uint64_t entry = mmu_read_system(cpu, at, 4);
    struct seg_stack stack = seg_stack_current(cpu);
    seg_stack_push(cpu, &stack, 2, in->flags);
    seg_stack_push(cpu, &stack, 2, cpu->seg[SEG_CS].selector);
    seg_stack_push(cpu, &stack, 2, in->return_rip);
    soft_set_rsp(cpu, stack.rsp);
    cpu->seg[SEG_CS].selector = (uint16_t)(entry >> 16);
    cpu->seg[SEG_CS].base = entry >> 16 << 4;
    cpu->rip = entry & 0xffff;
    cpu->rflags &= ~(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF);
    soft_cpu_update(cpu);
}

/* --- protected mode --- */

struct idt_gate {
    unsigned type;
    uint16_t selector;
    uint64_t offset;
    unsigned ist;
    unsigned bytes; /* what is pushed */
};

static struct idt_gate read_gate(struct soft_cpu *cpu, const struct interrupt *in)
{
    bool wide = cpu->mode.long_active;
    unsigned size = wide ? 16 : 8;
    uint64_t offset = (uint64_t)in->vector * size;
    if (offset + size - 1 > cpu->idt.limit)
        soft_raise_error(cpu, EXC_GP, idt_error(in));
    uint64_t la = seg_table_linear(cpu, cpu->idt.base, offset);
    struct seg_descriptor d = {.low = mmu_read_system(cpu, la, 8)};
    if (wide)
        d.high = mmu_read_system(cpu, la + 8, 8);
    struct idt_gate g = {.type = desc_attr(d) & (SEG_ATTR_TYPE | SEG_ATTR_S),
                         .selector = (uint16_t)(d.low >> 16),
                         .offset = (d.low & 0xffff) | (d.low >> 32 & 0xffff0000)};
    bool good = g.type == TYPE_INT32 || g.type == TYPE_TRAP32 ||
                (!wide && (g.type == TYPE_INT16 || g.type == TYPE_TRAP16 || g.type == TYPE_TASK));
    if (!good || (in->cause == CAUSE_SOFTWARE && desc_dpl(d) < cpu->mode.cpl))
        soft_raise_error(cpu, EXC_GP, idt_error(in));
    if (!(desc_attr(d) & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, idt_error(in));
    g.bytes = g.type == TYPE_INT16 || g.type == TYPE_TRAP16 ? 2 : 4;
    if (g.bytes == 2)
        g.offset &= 0xffff;
    if (wide) {
        g.offset |= d.high << 32;
        g.ist = d.low >> 32 & 7;
        g.bytes = 8;
    }
    return g;
}

static struct seg_descriptor read_target(struct soft_cpu *cpu, const struct interrupt *in,
                                         const struct idt_gate *g)
{
    struct seg_descriptor desc;
    uint32_t error = (g->selector & ~3u) | ext_of(in);
    if (selector_is_null(g->selector))
        soft_raise_error(cpu, EXC_GP, ext_of(in));
    if (!seg_find_descriptor(cpu, g->selector, &desc))
        soft_raise_error(cpu, EXC_GP, error);
    unsigned attr = desc_attr(desc);
    bool code = (attr & (SEG_ATTR_S | SEG_TYPE_CODE)) == (SEG_ATTR_S | SEG_TYPE_CODE);
    bool l = attr & SEG_ATTR_L, d = attr & SEG_ATTR_DB;
    if (!code || desc_dpl(desc) > cpu->mode.cpl || (cpu->mode.long_active && (!l || d)))
        soft_raise_error(cpu, EXC_GP, error);
    if (!(attr & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, error);
    return desc;
}

/* From virtual-8086 mode the data segments are saved and become null. */
static void push_v86_segments(struct soft_cpu *cpu, struct seg_stack *stack, unsigned bytes)
{
    static const uint8_t order[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
    for (unsigned i = 0; i < sizeof(order); i++)
        seg_stack_push(cpu, stack, bytes, cpu->seg[order[i]].selector);
}

static void drop_v86_segments(struct soft_cpu *cpu)
{
    static const uint8_t order[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
    for (unsigned i = 0; i < sizeof(order); i++)
        cpu->seg[order[i]] = (struct cpu_segment){.selector = 0};
}

static void deliver_gate(struct soft_cpu *cpu, const struct interrupt *in, const struct idt_gate *g)
{
    struct seg_descriptor target = read_target(cpu, in, g);
    bool conforming = desc_attr(target) & SEG_TYPE_DOWN;
    unsigned cpl = conforming ? cpu->mode.cpl : desc_dpl(target);
    bool inner = cpl < cpu->mode.cpl;
    bool v86 = cpu->mode.v86;
    if (v86 && cpl != 0)
        soft_raise_error(cpu, EXC_GP, (g->selector & ~3u) | ext_of(in));
    struct cpu_segment cs = seg_code(cpu, g->selector, target, cpl);
    struct seg_stack old = seg_stack_current(cpu), stack = old;
    bool wide = cpu->mode.long_active;
    if (inner || g->ist) {
        stack = seg_stack_of_tss(cpu, cpl, g->ist, ext_of(in));
        if (wide && !inner) /* an IST stack in the same ring: SS stays */
            stack.ss = old.ss;
    } else if (wide) {
        stack.mask = UINT64_MAX;
        stack.long_mode = true;
        stack.user = cpl == 3;
    }
    if (wide)
        stack.rsp &= ~15ULL;
    if (v86)
        push_v86_segments(cpu, &stack, g->bytes);
    if (inner || wide) {
        seg_stack_push(cpu, &stack, g->bytes, old.ss.selector);
        seg_stack_push(cpu, &stack, g->bytes, cpu->gpr[CPU_RSP]);
    }
    seg_stack_push(cpu, &stack, g->bytes, in->flags);
    seg_stack_push(cpu, &stack, g->bytes, cpu->seg[SEG_CS].selector);
    seg_stack_push(cpu, &stack, g->bytes, in->return_rip);
    if (in->has_error)
        seg_stack_push(cpu, &stack, g->bytes, in->error);
    seg_check_target(cpu, &cs, g->offset);
    seg_set_accessed(cpu, g->selector, target);
    /* Nothing faults from here on. */
    if (v86)
        drop_v86_segments(cpu);
    seg_stack_commit(cpu, &stack, cpl);
    cpu->seg[SEG_CS] = cs;
    cpu->rip = g->offset;
    bool interrupt = g->type == TYPE_INT16 || g->type == TYPE_INT32;
    cpu->rflags &= ~(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM | (interrupt ? RFLAGS_IF : 0));
    soft_cpu_update(cpu);
}

static void deliver(struct soft_cpu *cpu, const struct interrupt *in)
{
    if (cpu->mode.real) {
        deliver_real(cpu, in);
        return;
    }
    struct idt_gate g = read_gate(cpu, in);
    if (g.type == TYPE_TASK) {
        cpu->rip = in->return_rip;
        seg_task_switch(cpu, g.selector, SEG_TASK_CALL, in->return_rip, in->has_error, in->error);
    } else {
        deliver_gate(cpu, in, &g);
    }
}

/* --- the three causes --- */

/* Faults push RF, so that an instruction breakpoint does not hit again on the way back; so do
 * repeated strings that are interrupted, which look like any instruction here. */
static bool is_fault(const struct soft_exception *e)
{
    return !e->trap && e->vector != EXC_DF && e->vector != EXC_BP && e->vector != EXC_OF;
}

void intr_deliver_exception(struct soft_cpu *cpu, const struct soft_exception *e)
{
    struct interrupt in = {.vector = e->vector,
                           .cause = CAUSE_EXCEPTION,
                           .has_error = e->has_error,
                           .error = e->error,
                           .return_rip = cpu->rip,
                           .flags = (cpu->rflags & ~RFLAGS_RF) | (is_fault(e) ? RFLAGS_RF : 0)};
    if (e->vector == EXC_PF)
        cpu->cr2 = e->address;
    if (e->vector == EXC_DB) {
        cpu->dr[6] = (cpu->dr[6] & ~0xfULL) | e->dr6;
        cpu->dr[7] &= ~(1ULL << 13); /* GD */
        soft_cpu_update(cpu);
    }
    if (cpu->mode.real)
        in.has_error = false;
    deliver(cpu, &in);
}

void intr_deliver_external(struct soft_cpu *cpu, uint8_t vector)
{
    const struct interrupt in = {
        .vector = vector, .cause = CAUSE_EXTERNAL, .return_rip = cpu->rip, .flags = cpu->rflags};
    deliver(cpu, &in);
}

/* The redirection bitmap below the I/O bitmap of the TSS: a clear bit sends INT n of virtual-8086
 * mode to the 8086 program's own handler (SDM vol. 3, 20.3.3). */
static bool redirected(struct soft_cpu *cpu, uint8_t vector)
{
    if (!(cpu->cr4 & CR4_VME) || cpu->tr.limit < 0x67)
        return false;
    unsigned io = (unsigned)mmu_read_system(cpu, cpu->tr.base + 0x66, 2);
    if (io < 32 || io - 32 + vector / 8u > cpu->tr.limit)
        return false;
    unsigned byte = (unsigned)mmu_read_system(cpu, cpu->tr.base + io - 32 + vector / 8, 1);
    return !(byte >> (vector & 7) & 1);
}

static void deliver_v86(struct soft_cpu *cpu, uint8_t vector, uint64_t next_rip)
{
    bool iopl3 = (cpu->rflags & RFLAGS_IOPL) == RFLAGS_IOPL;
    uint64_t image = cpu->rflags;
    uint64_t entry = mmu_read32(cpu, (uint64_t)vector * 4);
    struct seg_stack stack = seg_stack_current(cpu);
    if (!iopl3)
        image = ((image | RFLAGS_IOPL) & ~RFLAGS_IF) | (image & RFLAGS_VIF ? RFLAGS_IF : 0);
    seg_stack_push(cpu, &stack, 2, image);
    seg_stack_push(cpu, &stack, 2, cpu->seg[SEG_CS].selector);
    seg_stack_push(cpu, &stack, 2, next_rip);
    soft_set_rsp(cpu, stack.rsp);
    cpu->seg[SEG_CS].selector = (uint16_t)(entry >> 16);
    cpu->seg[SEG_CS].base = entry >> 16 << 4;
    cpu->rip = entry & 0xffff;
    cpu->rflags &= ~(RFLAGS_TF | RFLAGS_NT | (iopl3 ? RFLAGS_IF : RFLAGS_VIF));
    soft_cpu_update(cpu);
}

void intr_software(struct soft_cpu *cpu, uint8_t vector, uint64_t next_rip)
{
    const struct interrupt in = {.vector = vector,
                                 .cause = CAUSE_SOFTWARE,
                                 .return_rip = next_rip,
                                 .flags = cpu->rflags & ~RFLAGS_RF};
    deliver(cpu, &in);
}

void intr_software_v86(struct soft_cpu *cpu, uint8_t vector, uint64_t next_rip)
{
    if (redirected(cpu, vector)) {
        deliver_v86(cpu, vector, next_rip);
        return;
    }
    if ((cpu->rflags & RFLAGS_IOPL) != RFLAGS_IOPL)
        soft_raise_error(cpu, EXC_GP, 0);
    intr_software(cpu, vector, next_rip);
}

/* --- double faults --- */

enum fault_class {
    CLASS_BENIGN,
    CLASS_CONTRIBUTORY,
    CLASS_PAGE_FAULT,
    CLASS_DOUBLE_FAULT,
};

static enum fault_class class_of(int vector)
{
    switch (vector) {
    case EXC_DE:
    case EXC_TS:
    case EXC_NP:
    case EXC_SS:
    case EXC_GP:
        return CLASS_CONTRIBUTORY;
    case EXC_PF:
        return CLASS_PAGE_FAULT;
    case EXC_DF:
        return CLASS_DOUBLE_FAULT;
    default:
        return CLASS_BENIGN;
    }
}

/* Those whose error code is a selector with EXT (SDM vol. 3, 6.13). */
static bool has_ext(uint8_t vector)
{
    return vector == EXC_TS || vector == EXC_NP || vector == EXC_SS || vector == EXC_GP;
}

bool intr_combine(int first, const struct soft_exception *second, struct soft_exception *result)
{
    enum fault_class a = class_of(first), b = class_of(second->vector);
    bool bad = (a == CLASS_CONTRIBUTORY && b == CLASS_CONTRIBUTORY) ||
               (a == CLASS_PAGE_FAULT && b != CLASS_BENIGN);
    if (a == CLASS_DOUBLE_FAULT && b != CLASS_BENIGN)
        return false;
    *result = *second;
    /* Whatever check it was that failed: the program has not asked for what was delivered. */
    if (first >= 0 && has_ext(second->vector))
        result->error |= 1;
    if (first >= 0 && bad)
        *result = (struct soft_exception){.vector = EXC_DF, .has_error = true};
    return true;
}
