/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Far jumps, calls and returns, and IRET (SDM vol. 2, the operation sections; vol. 3, 5.8). Checks
 * and memory first, registers last.
 */
#include "engine/soft/exec.h"
#include "engine/soft/mmu.h"
#include "engine/soft/seg_internal.h"

/* --- stacks --- */

static uint64_t stack_mask_of(const struct cpu_segment *ss)
{
    return ss->attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;
}

struct seg_stack seg_stack_current(struct soft_cpu *cpu)
{
    bool wide = soft_code64(cpu);
    return (struct seg_stack){.ss = cpu->seg[SEG_SS],
                              .rsp = cpu->gpr[CPU_RSP],
                              .mask = wide ? UINT64_MAX : stack_mask_of(&cpu->seg[SEG_SS]),
                              .user = cpu->mode.cpl == 3,
                              .long_mode = wide,
                              .vector = EXC_SS};
}

static _Noreturn void raise_stack(struct soft_cpu *cpu, const struct seg_stack *s)
{
    soft_raise_error(cpu, s->vector, s->error);
}

static uint64_t stack_linear(struct soft_cpu *cpu, const struct seg_stack *s, uint64_t rsp,
                             unsigned size)
{
    uint64_t offset = rsp & s->mask;
    if (s->long_mode) {
        if (!soft_canonical(offset) || !soft_canonical(offset + size - 1))
            raise_stack(cpu, s);
        return offset;
    }
    uint64_t last = offset + size - 1;
    bool down = s->ss.attr & SEG_TYPE_DOWN && !(s->ss.attr & SEG_TYPE_CODE);
    if (down ? offset <= s->ss.limit || last > s->mask : last > s->ss.limit)
        raise_stack(cpu, s);
    return (s->ss.base + offset) & 0xffffffff;
}

/* The stack of an inner ring is reached with that ring's rights, before it is ours. */
static bool needs_system_access(const struct soft_cpu *cpu, const struct seg_stack *s)
{
    return cpu->mode.cpl == 3 && !s->user;
}

void seg_stack_push(struct soft_cpu *cpu, struct seg_stack *s, unsigned size, uint64_t value)
{
    uint64_t rsp = s->rsp - size;
    uint64_t la = stack_linear(cpu, s, rsp, size);
    if (needs_system_access(cpu, s))
        mmu_write_system(cpu, la, size, value);
    else if (size == 8)
        mmu_write64(cpu, la, value);
    else if (size == 4)
        mmu_write32(cpu, la, (uint32_t)value);
    else
        mmu_write16(cpu, la, (uint16_t)value);
    s->rsp = (s->rsp & ~s->mask) | (rsp & s->mask);
}

uint64_t seg_stack_pop(struct soft_cpu *cpu, struct seg_stack *s, unsigned size)
{
    uint64_t la = stack_linear(cpu, s, s->rsp, size);
    uint64_t value = size == 8   ? mmu_read64(cpu, la)
                     : size == 4 ? mmu_read32(cpu, la)
                                 : mmu_read16(cpu, la);
    s->rsp = (s->rsp & ~s->mask) | ((s->rsp + size) & s->mask);
    return value;
}

void seg_stack_commit(struct soft_cpu *cpu, const struct seg_stack *s, unsigned cpl)
{
    cpu->seg[SEG_SS] = s->ss;
    cpu->seg[SEG_SS].attr = (uint16_t)((s->ss.attr & ~SEG_ATTR_DPL) | cpl << 5);
    if (s->mask == UINT64_MAX)
        cpu->gpr[CPU_RSP] = s->rsp;
    else if (s->mask == 0xffffffff)
        cpu->gpr[CPU_RSP] = (uint32_t)s->rsp;
    else
        cpu->gpr[CPU_RSP] = (cpu->gpr[CPU_RSP] & ~0xffffULL) | (s->rsp & 0xffff);
}

struct cpu_segment seg_check_new_stack(struct soft_cpu *cpu, uint16_t selector, unsigned cpl,
                                       enum soft_vector vector, uint32_t ext)
{
    uint32_t error = (selector & ~3u) | ext;
    struct seg_descriptor desc;
    if (selector_is_null(selector))
        soft_raise_error(cpu, vector, ext);
    if (!seg_find_descriptor(cpu, selector, &desc))
        soft_raise_error(cpu, vector, error);
    unsigned attr = desc_attr(desc);
    if ((selector & 3) != cpl || desc_dpl(desc) != cpl || !(attr & SEG_ATTR_S) ||
        attr & SEG_TYPE_CODE || !(attr & SEG_TYPE_WRITE))
        soft_raise_error(cpu, vector, error);
    if (!(attr & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_SS, error);
    seg_set_accessed(cpu, selector, desc);
    return seg_unpack(selector, desc);
}

static struct seg_stack stack_of_tss64(struct soft_cpu *cpu, unsigned dpl, unsigned ist,
                                       uint32_t ext)
{
    unsigned at = ist ? 0x24 + (ist - 1) * 8 : 4 + dpl * 8;
    if (at + 7 > cpu->tr.limit)
        soft_raise_error(cpu, EXC_TS, (cpu->tr.selector & ~3u) | ext);
    uint64_t rsp = mmu_read_system(cpu, cpu->tr.base + at, 8);
    struct seg_stack s = {.rsp = rsp,
                          .mask = UINT64_MAX,
                          .user = dpl == 3,
                          .long_mode = true,
                          .vector = EXC_SS,
                          .error = ext};
    /* SS becomes null with the new ring in its RPL. */
    s.ss = (struct cpu_segment){.selector = (uint16_t)dpl, .attr = SEG_ATTR_DB};
    if (!soft_canonical(rsp))
        raise_stack(cpu, &s);
    return s;
}

struct seg_stack seg_stack_of_tss(struct soft_cpu *cpu, unsigned dpl, unsigned ist, bool external)
{
    uint32_t ext = external;
    if (cpu->mode.long_active)
        return stack_of_tss64(cpu, dpl, ist, ext);
    bool wide = (cpu->tr.attr & SEG_ATTR_TYPE) >= TYPE_TSS32;
    unsigned at = wide ? 4 + dpl * 8 : 2 + dpl * 4;
    unsigned bytes = wide ? 4 : 2;
    if (at + bytes + 1 > cpu->tr.limit)
        soft_raise_error(cpu, EXC_TS, (cpu->tr.selector & ~3u) | ext);
    uint64_t rsp = mmu_read_system(cpu, cpu->tr.base + at, bytes);
    uint16_t selector = (uint16_t)mmu_read_system(cpu, cpu->tr.base + at + bytes, 2);
    struct seg_stack s = {.rsp = rsp, .user = dpl == 3, .vector = EXC_SS};
    s.ss = seg_check_new_stack(cpu, selector, dpl, EXC_TS, ext);
    s.mask = stack_mask_of(&s.ss);
    s.error = (selector & ~3u) | ext;
    return s;
}

/* --- code segments --- */

struct cpu_segment seg_code(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc,
                            unsigned cpl)
{
    unsigned attr = desc_attr(desc);
    if (!(attr & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, selector & ~3u);
    if (cpu->mode.long_active && attr & SEG_ATTR_L && attr & SEG_ATTR_DB)
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    struct cpu_segment cs = seg_unpack((uint16_t)((selector & ~3u) | cpl), desc);
    cs.attr |= 1;
    return cs;
}

void seg_check_target(struct soft_cpu *cpu, const struct cpu_segment *cs, uint64_t offset)
{
    bool code64 = cpu->mode.long_active && cs->attr & SEG_ATTR_L;
    if (code64 ? !soft_canonical(offset) : offset > cs->limit)
        soft_raise_error(cpu, EXC_GP, 0);
}

static bool is_code(struct seg_descriptor desc)
{
    return (desc_attr(desc) & (SEG_ATTR_S | SEG_TYPE_CODE)) == (SEG_ATTR_S | SEG_TYPE_CODE);
}

static bool is_conforming(struct seg_descriptor desc)
{
    return desc_attr(desc) & SEG_TYPE_DOWN;
}

static void commit_code(struct soft_cpu *cpu, const struct cpu_segment *cs, uint64_t rip)
{
    cpu->seg[SEG_CS] = *cs;
    cpu->rip = rip;
    soft_cpu_update(cpu);
}

static void real_transfer(struct soft_cpu *cpu, uint16_t selector, uint64_t offset)
{
    struct cpu_segment *cs = &cpu->seg[SEG_CS];
    if (offset > cs->limit)
        soft_raise_error(cpu, EXC_GP, 0);
    cs->selector = selector;
    cs->base = (uint64_t)selector << 4;
    cpu->rip = offset;
    soft_cpu_update(cpu);
}

/* --- direct transfers --- */

static uint64_t truncate(uint64_t offset, unsigned bytes)
{
    return bytes == 2 ? offset & 0xffff : bytes == 4 ? offset & 0xffffffff : offset;
}

static void check_direct(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc)
{
    unsigned cpl = cpu->mode.cpl, dpl = desc_dpl(desc);
    bool good = is_conforming(desc) ? dpl <= cpl : (selector & 3) <= cpl && dpl == cpl;
    if (!good)
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
}

static void jump_code(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc,
                      uint64_t offset)
{
    struct cpu_segment cs = seg_code(cpu, selector, desc, cpu->mode.cpl);
    seg_check_target(cpu, &cs, offset);
    seg_set_accessed(cpu, selector, desc);
    commit_code(cpu, &cs, offset);
}

static void call_code(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc,
                      uint64_t offset, unsigned bytes, uint64_t next_rip)
{
    struct cpu_segment cs = seg_code(cpu, selector, desc, cpu->mode.cpl);
    struct seg_stack stack = seg_stack_current(cpu);
    seg_stack_push(cpu, &stack, bytes, cpu->seg[SEG_CS].selector);
    seg_stack_push(cpu, &stack, bytes, next_rip);
    seg_check_target(cpu, &cs, offset);
    seg_set_accessed(cpu, selector, desc);
    soft_set_rsp(cpu, stack.rsp);
    commit_code(cpu, &cs, offset);
}

/* --- gates --- */

struct gate {
    uint16_t selector;
    uint64_t offset;
    unsigned bytes; /* 2, 4, 8 */
    unsigned parameters;
};

static struct gate read_call_gate(struct soft_cpu *cpu, uint16_t selector,
                                  struct seg_descriptor desc)
{
    unsigned type = desc_attr(desc) & SEG_ATTR_TYPE;
    struct gate g = {.selector = (uint16_t)(desc.low >> 16),
                     .offset = (desc.low & 0xffff) | (desc.low >> 32 & 0xffff0000),
                     .bytes = type == TYPE_CALL16 ? 2 : 4,
                     .parameters = desc.low >> 32 & 31};
    if (desc_dpl(desc) < cpu->mode.cpl || desc_dpl(desc) < (selector & 3u))
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    if (!(desc_attr(desc) & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, selector & ~3u);
    if (cpu->mode.long_active) {
        if (desc.high >> 40 & 0x1f)
            soft_raise_error(cpu, EXC_GP, selector & ~3u);
        g.offset |= desc.high << 32;
        g.bytes = 8;
        g.parameters = 0;
    } else if (g.bytes == 2) {
        g.offset &= 0xffff;
    }
    return g;
}

/* The code segment behind a gate. */
static struct seg_descriptor gate_target(struct soft_cpu *cpu, const struct gate *g)
{
    if (selector_is_null(g->selector))
        soft_raise_error(cpu, EXC_GP, 0);
    struct seg_descriptor desc = seg_read_descriptor(cpu, g->selector, EXC_GP);
    bool l = desc_attr(desc) & SEG_ATTR_L, d = desc_attr(desc) & SEG_ATTR_DB;
    if (!is_code(desc) || desc_dpl(desc) > cpu->mode.cpl || (cpu->mode.long_active && (!l || d)))
        soft_raise_error(cpu, EXC_GP, g->selector & ~3u);
    return desc;
}

static void jump_gate(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc)
{
    struct gate g = read_call_gate(cpu, selector, desc);
    struct seg_descriptor target = gate_target(cpu, &g);
    if (!is_conforming(target) && desc_dpl(target) != cpu->mode.cpl)
        soft_raise_error(cpu, EXC_GP, g.selector & ~3u);
    jump_code(cpu, g.selector, target, g.offset);
}

static void call_inner(struct soft_cpu *cpu, const struct gate *g, struct seg_descriptor target,
                       uint64_t next_rip)
{
    unsigned dpl = desc_dpl(target);
    struct cpu_segment cs = seg_code(cpu, g->selector, target, dpl);
    struct seg_stack old = seg_stack_current(cpu), stack = seg_stack_of_tss(cpu, dpl, 0, false);
    uint64_t parameters[31];
    struct seg_stack reader = old;
    for (unsigned n = 0; n < g->parameters; n++)
        parameters[n] = seg_stack_pop(cpu, &reader, g->bytes);
    seg_stack_push(cpu, &stack, g->bytes, old.ss.selector);
    seg_stack_push(cpu, &stack, g->bytes, old.rsp);
    for (unsigned n = g->parameters; n-- > 0;)
        seg_stack_push(cpu, &stack, g->bytes, parameters[n]);
    seg_stack_push(cpu, &stack, g->bytes, cpu->seg[SEG_CS].selector);
    seg_stack_push(cpu, &stack, g->bytes, next_rip);
    seg_check_target(cpu, &cs, g->offset);
    seg_set_accessed(cpu, g->selector, target);
    seg_stack_commit(cpu, &stack, dpl);
    commit_code(cpu, &cs, g->offset);
}

static void call_gate(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc,
                      uint64_t next_rip)
{
    struct gate g = read_call_gate(cpu, selector, desc);
    struct seg_descriptor target = gate_target(cpu, &g);
    if (!is_conforming(target) && desc_dpl(target) < cpu->mode.cpl)
        call_inner(cpu, &g, target, next_rip);
    else
        call_code(cpu, g.selector, target, g.offset, g.bytes, next_rip);
}

/* A TSS, or the TSS that a task gate names, for JMP and CALL. */
static void task_transfer(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc,
                          enum seg_task_reason reason, uint64_t next_rip)
{
    unsigned type = desc_attr(desc) & SEG_ATTR_TYPE;
    if (desc_dpl(desc) < cpu->mode.cpl || desc_dpl(desc) < (selector & 3u))
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    if (!(desc_attr(desc) & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, selector & ~3u);
    uint16_t tss = type == TYPE_TASK ? (uint16_t)(desc.low >> 16) : selector;
    seg_task_switch(cpu, tss, reason, next_rip, false, 0);
}

static void transfer(struct soft_cpu *cpu, uint16_t selector, uint64_t offset, unsigned bytes,
                     bool call, uint64_t next_rip)
{
    if (selector_is_null(selector))
        soft_raise_error(cpu, EXC_GP, 0);
    struct seg_descriptor desc = seg_read_descriptor(cpu, selector, EXC_GP);
    if (desc_attr(desc) & SEG_ATTR_S) {
        if (!is_code(desc))
            soft_raise_error(cpu, EXC_GP, selector & ~3u);
        check_direct(cpu, selector, desc);
        if (call)
            call_code(cpu, selector, desc, offset, bytes, next_rip);
        else
            jump_code(cpu, selector, desc, offset);
        return;
    }
    unsigned type = desc_attr(desc) & SEG_ATTR_TYPE;
    bool gate = type == TYPE_CALL32 || (type == TYPE_CALL16 && !cpu->mode.long_active);
    bool task = type == TYPE_TASK || type == TYPE_TSS16 || type == TYPE_TSS32;
    if (gate && call)
        call_gate(cpu, selector, desc, next_rip);
    else if (gate)
        jump_gate(cpu, selector, desc);
    else if (task && !cpu->mode.long_active)
        task_transfer(cpu, selector, desc, call ? SEG_TASK_CALL : SEG_TASK_JUMP, next_rip);
    else
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
}

void seg_jump_far(struct soft_cpu *cpu, uint16_t selector, uint64_t offset, unsigned op_bytes,
                  uint64_t next_rip)
{
    offset = truncate(offset, op_bytes);
    if (cpu->mode.real || cpu->mode.v86)
        real_transfer(cpu, selector, offset);
    else
        transfer(cpu, selector, offset, op_bytes, false, next_rip);
}

void seg_call_far(struct soft_cpu *cpu, uint16_t selector, uint64_t offset, unsigned op_bytes,
                  uint64_t next_rip)
{
    offset = truncate(offset, op_bytes);
    if (!cpu->mode.real && !cpu->mode.v86) {
        transfer(cpu, selector, offset, op_bytes, true, next_rip);
        return;
    }
    struct seg_stack stack = seg_stack_current(cpu);
    seg_stack_push(cpu, &stack, op_bytes, cpu->seg[SEG_CS].selector);
    seg_stack_push(cpu, &stack, op_bytes, next_rip);
    real_transfer(cpu, selector, offset);
    soft_set_rsp(cpu, stack.rsp);
}

/* --- returns --- */

static struct seg_descriptor check_return_code(struct soft_cpu *cpu, uint16_t selector)
{
    unsigned rpl = selector & 3;
    if (selector_is_null(selector))
        soft_raise_error(cpu, EXC_GP, 0);
    struct seg_descriptor desc = seg_read_descriptor(cpu, selector, EXC_GP);
    unsigned dpl = desc_dpl(desc);
    if (!is_code(desc) || rpl < cpu->mode.cpl || (is_conforming(desc) ? dpl > rpl : dpl != rpl))
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    return desc;
}

/* SS of the ring that a return goes to: null only for 64-bit code below ring 3. */
static struct cpu_segment check_return_stack(struct soft_cpu *cpu, uint16_t selector, unsigned rpl,
                                             const struct cpu_segment *cs)
{
    bool code64 = cpu->mode.long_active && cs->attr & SEG_ATTR_L;
    if (selector_is_null(selector)) {
        if (!code64 || rpl == 3)
            soft_raise_error(cpu, EXC_GP, 0);
        return (struct cpu_segment){.selector = selector, .attr = SEG_ATTR_DB};
    }
    struct cpu_segment ss = seg_check_new_stack(cpu, selector, rpl, EXC_GP, 0);
    ss.attr |= 1;
    return ss;
}

/* What the outer ring may not use becomes null (SDM vol. 3, 5.8.6). */
static void drop_segments(struct soft_cpu *cpu, unsigned cpl)
{
    static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < sizeof(data); i++) {
        struct cpu_segment *s = &cpu->seg[data[i]];
        bool conforming = s->attr & SEG_TYPE_CODE && s->attr & SEG_TYPE_DOWN;
        if ((unsigned)(s->attr >> 5 & 3) < cpl && !conforming && s->attr & SEG_ATTR_P)
            *s = (struct cpu_segment){.selector = 0};
    }
}

static uint64_t wide_mask(const struct soft_cpu *cpu, const struct cpu_segment *cs,
                          const struct cpu_segment *ss)
{
    if (cpu->mode.long_active && cs->attr & SEG_ATTR_L)
        return UINT64_MAX;
    return stack_mask_of(ss);
}

void seg_return_far(struct soft_cpu *cpu, unsigned op_bytes, unsigned drop_bytes)
{
    struct seg_stack stack = seg_stack_current(cpu);
    uint64_t rip = seg_stack_pop(cpu, &stack, op_bytes);
    uint16_t selector = (uint16_t)seg_stack_pop(cpu, &stack, op_bytes);
    stack.rsp = (stack.rsp & ~stack.mask) | ((stack.rsp + drop_bytes) & stack.mask);
    if (cpu->mode.real || cpu->mode.v86) {
        real_transfer(cpu, selector, rip);
        soft_set_rsp(cpu, stack.rsp);
        return;
    }
    unsigned rpl = selector & 3;
    struct seg_descriptor desc = check_return_code(cpu, selector);
    struct cpu_segment cs = seg_code(cpu, selector, desc, rpl);
    if (rpl == cpu->mode.cpl) {
        seg_check_target(cpu, &cs, rip);
        soft_set_rsp(cpu, stack.rsp);
        commit_code(cpu, &cs, rip);
        return;
    }
    uint64_t rsp = seg_stack_pop(cpu, &stack, op_bytes);
    uint16_t ss_selector = (uint16_t)seg_stack_pop(cpu, &stack, op_bytes);
    struct seg_stack outer = {.ss = check_return_stack(cpu, ss_selector, rpl, &cs)};
    seg_check_target(cpu, &cs, rip);
    outer.mask = wide_mask(cpu, &cs, &outer.ss);
    outer.rsp = (rsp & ~outer.mask) | ((rsp + drop_bytes) & outer.mask);
    seg_stack_commit(cpu, &outer, rpl);
    drop_segments(cpu, rpl);
    commit_code(cpu, &cs, rip);
}

/* --- IRET --- */

/* Flags that an IRET at ring cpl may change. */
static uint64_t iret_mask(const struct soft_cpu *cpu, unsigned bytes)
{
    uint64_t mask =
        RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_RF | RFLAGS_AC | RFLAGS_ID;
    unsigned iopl = (unsigned)(cpu->rflags & RFLAGS_IOPL) >> 12;
    if (cpu->mode.cpl <= iopl || cpu->mode.real)
        mask |= RFLAGS_IF;
    if (cpu->mode.cpl == 0)
        mask |= RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP;
    return bytes == 2 ? mask & 0xffff : mask;
}

static void set_flags_of_image(struct soft_cpu *cpu, uint64_t image, uint64_t mask)
{
    cpu->rflags = (cpu->rflags & ~mask) | (image & mask) | RFLAGS_FIXED;
}

static void iret_real(struct soft_cpu *cpu, unsigned bytes)
{
    struct seg_stack stack = seg_stack_current(cpu);
    uint64_t rip = seg_stack_pop(cpu, &stack, bytes);
    uint16_t selector = (uint16_t)seg_stack_pop(cpu, &stack, bytes);
    uint64_t image = seg_stack_pop(cpu, &stack, bytes);
    uint64_t mask = iret_mask(cpu, bytes);
    if (cpu->mode.v86) {
        bool iopl3 = (cpu->rflags & RFLAGS_IOPL) == RFLAGS_IOPL;
        bool vme = cpu->cr4 & CR4_VME && bytes == 2;
        if (!iopl3 && !vme)
            soft_raise_error(cpu, EXC_GP, 0);
        if (!iopl3) {
            if ((image & RFLAGS_IF && cpu->rflags & RFLAGS_VIP) || image & RFLAGS_TF)
                soft_raise_error(cpu, EXC_GP, 0);
            mask &= ~(RFLAGS_IF | RFLAGS_IOPL);
        } else {
            mask = (mask | RFLAGS_IF) & ~(RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP);
        }
        real_transfer(cpu, selector, rip);
        if (!iopl3)
            cpu->rflags = image & RFLAGS_IF ? cpu->rflags | RFLAGS_VIF : cpu->rflags & ~RFLAGS_VIF;
    } else {
        real_transfer(cpu, selector, rip);
    }
    soft_set_rsp(cpu, stack.rsp);
    set_flags_of_image(cpu, image, mask);
    soft_cpu_update(cpu);
}

/* To virtual-8086 mode: nothing more can fault. */
static void iret_v86(struct soft_cpu *cpu, struct seg_stack *stack, uint64_t rip,
                     uint16_t cs_selector, uint64_t image)
{
    static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint64_t rsp = seg_stack_pop(cpu, stack, 4);
    uint16_t selectors[sizeof(order)];
    for (unsigned i = 0; i < sizeof(order); i++)
        selectors[i] = (uint16_t)seg_stack_pop(cpu, stack, 4);
    uint64_t mask = iret_mask(cpu, 4) | RFLAGS_VM;
    set_flags_of_image(cpu, image, mask);
    cpu->seg[SEG_CS] = (struct cpu_segment){
        .base = (uint64_t)cs_selector << 4, .limit = 0xffff, .selector = cs_selector, .attr = 0xf3};
    for (unsigned i = 0; i < sizeof(order); i++)
        cpu->seg[order[i]] = (struct cpu_segment){.base = (uint64_t)selectors[i] << 4,
                                                  .limit = 0xffff,
                                                  .selector = selectors[i],
                                                  .attr = 0xf3};
    cpu->gpr[CPU_RSP] = (uint32_t)rsp;
    cpu->rip = rip & 0xffff;
    soft_cpu_update(cpu);
}

static void iret_protected(struct soft_cpu *cpu, unsigned bytes)
{
    struct seg_stack stack = seg_stack_current(cpu);
    bool from64 = soft_code64(cpu);
    uint64_t rip = seg_stack_pop(cpu, &stack, bytes);
    uint16_t selector = (uint16_t)seg_stack_pop(cpu, &stack, bytes);
    uint64_t image = seg_stack_pop(cpu, &stack, bytes);
    if (image & RFLAGS_VM && cpu->mode.cpl == 0 && bytes == 4 && !cpu->mode.long_active) {
        iret_v86(cpu, &stack, rip, selector, image);
        return;
    }
    unsigned rpl = selector & 3;
    struct seg_descriptor desc = check_return_code(cpu, selector);
    struct cpu_segment cs = seg_code(cpu, selector, desc, rpl);
    uint64_t mask = iret_mask(cpu, bytes);
    if (rpl == cpu->mode.cpl && !from64) {
        seg_check_target(cpu, &cs, rip);
        soft_set_rsp(cpu, stack.rsp);
    } else {
        uint64_t rsp = seg_stack_pop(cpu, &stack, bytes);
        uint16_t ss_selector = (uint16_t)seg_stack_pop(cpu, &stack, bytes);
        struct seg_stack outer = {.ss = check_return_stack(cpu, ss_selector, rpl, &cs), .rsp = rsp};
        seg_check_target(cpu, &cs, rip);
        outer.mask = wide_mask(cpu, &cs, &outer.ss);
        bool outward = rpl != cpu->mode.cpl;
        seg_stack_commit(cpu, &outer, rpl);
        if (outward)
            drop_segments(cpu, rpl);
    }
    seg_set_accessed(cpu, selector, desc);
    set_flags_of_image(cpu, image, mask);
    commit_code(cpu, &cs, rip);
}

void seg_return_interrupt(struct soft_cpu *cpu, unsigned op_bytes, uint64_t next_rip)
{
    if (cpu->mode.real || cpu->mode.v86) {
        iret_real(cpu, op_bytes);
    } else if (cpu->rflags & RFLAGS_NT) {
        if (cpu->mode.long_active)
            soft_raise_error(cpu, EXC_GP, 0);
        uint16_t back = (uint16_t)mmu_read_system(cpu, cpu->tr.base, 2);
        seg_task_switch(cpu, back, SEG_TASK_RETURN, next_rip, false, 0);
    } else {
        iret_protected(cpu, op_bytes);
    }
    cpu->nmi_blocked = false;
}
