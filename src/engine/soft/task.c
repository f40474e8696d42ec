/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hardware task switches (SDM vol. 3, 7.3). After the new state is in the registers, faults in
 * loading its segments belong to the new task.
 */
#include "engine/soft/exec.h"
#include "engine/soft/mmu.h"
#include "engine/soft/seg_internal.h"

/* Offsets in a 32-bit and a 16-bit TSS (SDM vol. 3, figures 7-2 and 7-10). */
struct tss_layout {
    uint8_t bytes; /* of registers */
    uint8_t minimum_limit;
    uint8_t cr3; /* 0: none */
    uint8_t ip, flags, registers, segments, ldt;
    uint8_t segment_count; /* ES CS SS DS, and FS GS */
};

static const struct tss_layout layout32 = {.bytes = 4,
                                           .minimum_limit = 0x67,
                                           .cr3 = 0x1c,
                                           .ip = 0x20,
                                           .flags = 0x24,
                                           .registers = 0x28,
                                           .segments = 0x48,
                                           .ldt = 0x60,
                                           .segment_count = 6};
static const struct tss_layout layout16 = {.bytes = 2,
                                           .minimum_limit = 0x2b,
                                           .ip = 0x0e,
                                           .flags = 0x10,
                                           .registers = 0x12,
                                           .segments = 0x22,
                                           .ldt = 0x2a,
                                           .segment_count = 4};

static const struct tss_layout *layout_of(uint16_t attr)
{
    return (attr & SEG_ATTR_TYPE) >= TYPE_TSS32 ? &layout32 : &layout16;
}

static void save_old(struct soft_cpu *cpu, uint64_t next_rip, enum seg_task_reason reason)
{
    const struct tss_layout *l = layout_of(cpu->tr.attr);
    uint64_t base = cpu->tr.base;
    uint64_t flags = cpu->rflags;
    if (reason == SEG_TASK_RETURN)
        flags &= ~RFLAGS_NT;
    mmu_write_system(cpu, base + l->ip, l->bytes, next_rip);
    mmu_write_system(cpu, base + l->flags, l->bytes, flags);
    for (unsigned i = 0; i < 8; i++)
        mmu_write_system(cpu, base + l->registers + (uint64_t)i * l->bytes, l->bytes, cpu->gpr[i]);
    for (unsigned i = 0; i < l->segment_count; i++)
        mmu_write_system(cpu, base + l->segments + (uint64_t)i * l->bytes, 2, cpu->seg[i].selector);
}

struct task_image {
    uint64_t cr3, ip, flags, gpr[8];
    uint16_t segments[6], ldt;
};

static struct task_image read_new(struct soft_cpu *cpu, const struct cpu_segment *tss,
                                  const struct tss_layout *l)
{
    struct task_image t = {.cr3 = cpu->cr3};
    if (l->cr3 && cpu->cr0 & CPU_CR0_PG)
        t.cr3 = mmu_read_system(cpu, tss->base + l->cr3, 4);
    t.ip = mmu_read_system(cpu, tss->base + l->ip, l->bytes);
    t.flags = mmu_read_system(cpu, tss->base + l->flags, l->bytes);
    for (unsigned i = 0; i < 8; i++)
        t.gpr[i] =
            mmu_read_system(cpu, tss->base + l->registers + (uint64_t)i * l->bytes, l->bytes);
    for (unsigned i = 0; i < l->segment_count; i++)
        t.segments[i] =
            (uint16_t)mmu_read_system(cpu, tss->base + l->segments + (uint64_t)i * l->bytes, 2);
    t.ldt = (uint16_t)mmu_read_system(cpu, tss->base + l->ldt, 2);
    return t;
}

static struct cpu_segment check_tss(struct soft_cpu *cpu, uint16_t selector,
                                    enum seg_task_reason reason)
{
    enum soft_vector vector = reason == SEG_TASK_RETURN ? EXC_TS : EXC_GP;
    if (selector_is_null(selector) || selector & SELECTOR_TI)
        soft_raise_error(cpu, vector, selector & ~3u);
    struct seg_descriptor desc = seg_read_descriptor(cpu, selector, vector);
    unsigned type = desc_attr(desc) & (SEG_ATTR_S | SEG_ATTR_TYPE);
    bool busy = type == TYPE_TSS16_BUSY || type == TYPE_TSS32_BUSY;
    bool available = type == TYPE_TSS16 || type == TYPE_TSS32;
    if (reason == SEG_TASK_RETURN ? !busy : !available)
        soft_raise_error(cpu, vector, selector & ~3u);
    if (!(desc_attr(desc) & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, selector & ~3u);
    struct cpu_segment tss = seg_unpack(selector, desc);
    if (tss.limit < layout_of(tss.attr)->minimum_limit)
        soft_raise_error(cpu, EXC_TS, selector & ~3u);
    return tss;
}

static void load_segments_v86(struct soft_cpu *cpu, const struct task_image *t)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = (struct cpu_segment){.base = (uint64_t)t->segments[i] << 4,
                                           .limit = 0xffff,
                                           .selector = t->segments[i],
                                           .attr = 0xf3};
    soft_cpu_update(cpu);
}

static void load_segments(struct soft_cpu *cpu, const struct task_image *t)
{
    static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint16_t cs_selector = t->segments[SEG_CS];
    if (selector_is_null(cs_selector))
        soft_raise_error(cpu, EXC_TS, 0);
    struct seg_descriptor desc = seg_read_descriptor(cpu, cs_selector, EXC_TS);
    unsigned attr = desc_attr(desc), rpl = cs_selector & 3;
    bool conforming = attr & SEG_TYPE_DOWN;
    if (!(attr & SEG_ATTR_S) || !(attr & SEG_TYPE_CODE) ||
        (conforming ? desc_dpl(desc) > rpl : desc_dpl(desc) != rpl))
        soft_raise_error(cpu, EXC_TS, cs_selector & ~3u);
    if (!(attr & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, cs_selector & ~3u);
    cpu->seg[SEG_SS] = seg_check_new_stack(cpu, t->segments[SEG_SS], rpl, EXC_TS, 0);
    cpu->seg[SEG_CS] = seg_unpack(cs_selector, desc);
    soft_cpu_update(cpu);
    for (unsigned i = 0; i < sizeof(data); i++)
        seg_load_data(cpu, data[i], t->segments[data[i]], EXC_TS);
    if (t->ip > cpu->seg[SEG_CS].limit)
        soft_raise_error(cpu, EXC_GP, 0);
}

/* The new task's registers; from here on faults are its own. */
static void become(struct soft_cpu *cpu, const struct task_image *t, const struct tss_layout *l)
{
    if (l->cr3 && cpu->cr0 & CPU_CR0_PG && t->cr3 != cpu->cr3) {
        if (cpu->cr4 & CPU_CR4_PAE && !mmu_load_pdptes(cpu, t->cr3))
            soft_raise_error(cpu, EXC_GP, 0);
        cpu->cr3 = t->cr3;
        mmu_cr3_written(cpu, false);
    }
    cpu->cr0 |= CR0_TS;
    cpu->rip = t->ip;
    cpu->rflags = (t->flags & 0x3f7fd5) | RFLAGS_FIXED;
    for (unsigned i = 0; i < 8; i++)
        cpu->gpr[i] = l->bytes == 4 ? t->gpr[i] : (cpu->gpr[i] & ~0xffffULL) | t->gpr[i];
    cpu->dr[7] &= ~0x155ULL; /* the local breakpoints */
    /* Selectors without contents, as the architecture has them until each is loaded. */
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = (struct cpu_segment){.selector = t->segments[i],
                                           .attr = (uint16_t)((t->segments[SEG_CS] & 3) << 5)};
    cpu->insn = NULL;
    soft_cpu_update(cpu);
}

void seg_task_switch(struct soft_cpu *cpu, uint16_t selector, enum seg_task_reason reason,
                     uint64_t next_rip, bool has_error, uint32_t error)
{
    struct cpu_segment tss = check_tss(cpu, selector, reason);
    const struct tss_layout *l = layout_of(tss.attr);
    struct task_image t = read_new(cpu, &tss, l);
    uint16_t old_selector = cpu->tr.selector;
    const struct insn *insn = cpu->insn;
    save_old(cpu, next_rip, reason);
    if (reason != SEG_TASK_CALL)
        seg_set_busy(cpu, old_selector, false);
    if (reason == SEG_TASK_CALL) {
        mmu_write_system(cpu, tss.base, 2, old_selector);
        t.flags |= RFLAGS_NT;
    }
    if (reason != SEG_TASK_RETURN)
        seg_set_busy(cpu, selector, true);
    tss.attr |= TSS_BUSY;
    cpu->tr = tss;
    become(cpu, &t, l);
    cpu->ldt = (struct cpu_segment){.selector = t.ldt};
    seg_load_local(cpu, t.ldt, EXC_TS, EXC_TS);
    if (t.flags & RFLAGS_VM)
        load_segments_v86(cpu, &t);
    else
        load_segments(cpu, &t);
    cpu->insn = insn;
    if (has_error)
        soft_push(cpu, l->bytes, error);
}
