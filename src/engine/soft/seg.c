/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors, and loading segment registers other than CS. */
#include "engine/soft/seg_internal.h"

#include "engine/soft/exec.h"
#include "engine/soft/mmu.h"

/* --- descriptors --- */

bool seg_find_descriptor(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor *desc)
{
    bool local = selector & SELECTOR_TI;
    uint64_t base = local ? cpu->ldt.base : cpu->gdt.base;
    uint64_t limit = local ? cpu->ldt.limit : cpu->gdt.limit;
    uint64_t offset = selector & ~7u;
    if (local && !(cpu->ldt.attr & SEG_ATTR_P))
        return false;
    if (offset + 7 > limit)
        return false;
    *desc = (struct seg_descriptor){
        .low = mmu_read_system(cpu, seg_table_linear(cpu, base, offset), 8)};
    if (!cpu->mode.long_active || desc_attr(*desc) & SEG_ATTR_S)
        return true;
    /* System descriptors have 16 bytes in long mode, all of them within the limit. */
    if (offset + 15 > limit)
        return false;
    desc->high = mmu_read_system(cpu, seg_table_linear(cpu, base, offset + 8), 8);
    return true;
}

struct seg_descriptor seg_read_descriptor(struct soft_cpu *cpu, uint16_t selector,
                                          enum soft_vector vector)
{
    struct seg_descriptor desc;
    if (!seg_find_descriptor(cpu, selector, &desc))
        soft_raise_error(cpu, vector, selector & ~3u);
    return desc;
}

struct cpu_segment seg_unpack(uint16_t selector, struct seg_descriptor desc)
{
    uint64_t d = desc.low;
    uint32_t limit = (uint32_t)((d & 0xffff) | (d >> 32 & 0xf0000));
    uint16_t attr = desc_attr(desc);
    if (attr & SEG_ATTR_G)
        limit = limit << 12 | 0xfff;
    uint64_t base = (d >> 16 & 0xffffff) | (d >> 32 & 0xff000000);
    if (!(attr & SEG_ATTR_S))
        base |= desc.high << 32;
    return (struct cpu_segment){.base = base, .limit = limit, .selector = selector, .attr = attr};
}

/* The accessed bit, set when a code or data descriptor is loaded. */
void seg_set_accessed(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc)
{
    if (desc_attr(desc) & 1)
        return;
    uint64_t base = selector & SELECTOR_TI ? cpu->ldt.base : cpu->gdt.base;
    uint64_t la = seg_table_linear(cpu, base, (selector & ~7u) + 5);
    mmu_write_system(cpu, la, 1, (desc.low >> 40 & 0xff) | 1);
}

/* --- checks of accesses --- */

static _Noreturn void raise_segment(struct soft_cpu *cpu, unsigned seg)
{
    soft_raise_error(cpu, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

void seg_check_access(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                      bool write)
{
    const struct cpu_segment *s = &cpu->seg[seg];
    uint64_t last = offset + size - 1;
    bool code = s->attr & SEG_TYPE_CODE;
    if (cpu->mode.code_bits == 64)
        return;
    if (!(s->attr & SEG_ATTR_P))
        raise_segment(cpu, seg);
    /* In real and virtual-8086 mode a CS with its code type is data as well. */
    if (!cpu->mode.real && !cpu->mode.v86 &&
        (code ? write || !(s->attr & SEG_TYPE_WRITE) : write && !(s->attr & SEG_TYPE_WRITE)))
        raise_segment(cpu, seg);
    if (!code && s->attr & SEG_TYPE_DOWN) {
        uint64_t top = s->attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;
        if (offset <= s->limit || last > top)
            raise_segment(cpu, seg);
    } else if (last > s->limit) {
        raise_segment(cpu, seg);
    }
}

/* The permission bitmap of a 32- or 64-bit TSS (SDM vol. 1, 19.5.2). */
static bool bitmap_allows(struct soft_cpu *cpu, unsigned port, unsigned size)
{
    unsigned type = cpu->tr.attr & SEG_ATTR_TYPE;
    if (!(cpu->tr.attr & SEG_ATTR_P) || (type != TYPE_TSS32_BUSY && type != TYPE_TSS32) ||
        cpu->tr.limit < 0x67)
        return false;
    unsigned at = (unsigned)mmu_read_system(cpu, cpu->tr.base + 0x66, 2) + port / 8;
    /* Two bytes are read, so both must be within the limit. */
    if (at + 1 > cpu->tr.limit)
        return false;
    unsigned bits = (unsigned)mmu_read_system(cpu, cpu->tr.base + at, 2);
    return (bits >> (port & 7) & ((1u << size) - 1)) == 0;
}

void seg_check_io(struct soft_cpu *cpu, unsigned port, unsigned size)
{
    unsigned iopl = (unsigned)(cpu->rflags & RFLAGS_IOPL) >> 12;
    if (cpu->mode.real || (!cpu->mode.v86 && cpu->mode.cpl <= iopl))
        return;
    if (!bitmap_allows(cpu, port, size))
        soft_raise_error(cpu, EXC_GP, 0);
}

/* --- loading --- */

static void load_real(struct soft_cpu *cpu, unsigned seg, uint16_t selector)
{
    struct cpu_segment *s = &cpu->seg[seg];
    s->selector = selector;
    s->base = (uint64_t)selector << 4;
    if (cpu->mode.v86) {
        s->limit = 0xffff;
        s->attr = 0xf3;
    }
    soft_cpu_update(cpu);
}

static void load_null(struct soft_cpu *cpu, unsigned seg, uint16_t selector)
{
    struct cpu_segment *s = &cpu->seg[seg];
    /* SS may be null in 64-bit code below ring 3; its DPL is CPL then. */
    uint16_t attr = seg == SEG_SS ? (uint16_t)(cpu->mode.cpl << 5 | SEG_ATTR_DB) : 0;
    *s = (struct cpu_segment){.selector = selector, .attr = attr};
    soft_cpu_update(cpu);
}

static void check_stack(struct soft_cpu *cpu, uint16_t selector, uint16_t attr)
{
    unsigned dpl = attr >> 5 & 3;
    if ((selector & 3) != cpu->mode.cpl || dpl != cpu->mode.cpl || !(attr & SEG_ATTR_S) ||
        attr & SEG_TYPE_CODE || !(attr & SEG_TYPE_WRITE))
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    if (!(attr & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_SS, selector & ~3u);
}

static void check_data(struct soft_cpu *cpu, uint16_t selector, uint16_t attr,
                       enum soft_vector vector)
{
    unsigned dpl = attr >> 5 & 3, rpl = selector & 3;
    bool code = attr & SEG_TYPE_CODE, conforming = code && attr & SEG_TYPE_DOWN;
    if (!(attr & SEG_ATTR_S) || (code && !(attr & SEG_TYPE_WRITE)) ||
        (!conforming && (rpl > dpl || cpu->mode.cpl > dpl)))
        soft_raise_error(cpu, vector, selector & ~3u);
    if (!(attr & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, selector & ~3u);
}

static void commit(struct soft_cpu *cpu, unsigned seg, uint16_t selector,
                   struct seg_descriptor desc)
{
    seg_set_accessed(cpu, selector, desc);
    cpu->seg[seg] = seg_unpack(selector, desc);
    cpu->seg[seg].attr |= 1;
    soft_cpu_update(cpu);
}

void seg_load(struct soft_cpu *cpu, unsigned seg, uint16_t selector)
{
    if (cpu->mode.real || cpu->mode.v86) {
        load_real(cpu, seg, selector);
        return;
    }
    if (selector_is_null(selector)) {
        bool allowed = seg != SEG_SS ||
                       (soft_code64(cpu) && cpu->mode.cpl != 3 && (selector & 3) == cpu->mode.cpl);
        if (!allowed)
            soft_raise_error(cpu, EXC_GP, 0);
        load_null(cpu, seg, selector);
        return;
    }
    if (seg != SEG_SS) {
        seg_load_data(cpu, seg, selector, EXC_GP);
        return;
    }
    struct seg_descriptor desc = seg_read_descriptor(cpu, selector, EXC_GP);
    check_stack(cpu, selector, desc_attr(desc));
    commit(cpu, seg, selector, desc);
}

void seg_load_data(struct soft_cpu *cpu, unsigned seg, uint16_t selector, enum soft_vector vector)
{
    if (selector_is_null(selector)) {
        load_null(cpu, seg, selector);
        return;
    }
    struct seg_descriptor desc = seg_read_descriptor(cpu, selector, vector);
    check_data(cpu, selector, desc_attr(desc), vector);
    commit(cpu, seg, selector, desc);
}

void seg_load_ldt(struct soft_cpu *cpu, uint16_t selector)
{
    seg_load_local(cpu, selector, EXC_GP, EXC_NP);
}

void seg_load_local(struct soft_cpu *cpu, uint16_t selector, enum soft_vector bad,
                    enum soft_vector absent)
{
    if (selector_is_null(selector)) {
        cpu->ldt = (struct cpu_segment){.selector = selector};
        return;
    }
    if (selector & SELECTOR_TI)
        soft_raise_error(cpu, bad, selector & ~3u);
    struct seg_descriptor desc = seg_read_descriptor(cpu, selector, bad);
    if ((desc_attr(desc) & (SEG_ATTR_S | SEG_ATTR_TYPE)) != TYPE_LDT)
        soft_raise_error(cpu, bad, selector & ~3u);
    if (!(desc_attr(desc) & SEG_ATTR_P))
        soft_raise_error(cpu, absent, selector & ~3u);
    struct cpu_segment ldt = seg_unpack(selector, desc);
    if (cpu->mode.long_active && !soft_canonical(ldt.base))
        soft_raise_error(cpu, bad, selector & ~3u);
    cpu->ldt = ldt;
}

void seg_load_task(struct soft_cpu *cpu, uint16_t selector)
{
    if (selector_is_null(selector))
        soft_raise_error(cpu, EXC_GP, 0);
    if (selector & SELECTOR_TI)
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    struct seg_descriptor desc = seg_read_descriptor(cpu, selector, EXC_GP);
    unsigned type = desc_attr(desc) & (SEG_ATTR_S | SEG_ATTR_TYPE);
    bool good = type == TYPE_TSS32 || (type == TYPE_TSS16 && !cpu->mode.long_active);
    if (!good)
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    if (!(desc_attr(desc) & SEG_ATTR_P))
        soft_raise_error(cpu, EXC_NP, selector & ~3u);
    struct cpu_segment task = seg_unpack(selector, desc);
    if (cpu->mode.long_active && !soft_canonical(task.base))
        soft_raise_error(cpu, EXC_GP, selector & ~3u);
    seg_set_busy(cpu, selector, true);
    task.attr |= TSS_BUSY;
    cpu->tr = task;
}

void seg_set_busy(struct soft_cpu *cpu, uint16_t selector, bool busy)
{
    uint64_t la = seg_table_linear(cpu, cpu->gdt.base, (selector & ~7u) + 5);
    uint64_t byte = mmu_read_system(cpu, la, 1);
    mmu_write_system(cpu, la, 1, busy ? byte | TSS_BUSY : byte & ~(uint64_t)TSS_BUSY);
}
