/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/cpu.h"

#include <string.h>

#include "engine/soft/mmu.h"

#define XCR0_X87    1ULL
#define MXCSR_RESET 0x1f80u
#define FCW_RESET   0x0040u /* after RESET#; FNINIT makes it 0x37f */
#define PAT_RESET   0x0007040600070406ULL
#define DR6_RESET   0xffff0ff0ULL
#define DR7_RESET   0x400ULL
#define MTRR_ENABLED                                                                               \
    0xc06ULL /* as firmware leaves it: on, fixed ones on, write-back by default                    \
              */

static struct cpu_segment real_segment(uint16_t attr)
{
    return (struct cpu_segment){.limit = 0xffff, .attr = attr};
}

/* What RESET# and INIT have in common (SDM vol. 3, table 9-1). */
void soft_cpu_init_state(struct soft_cpu *cpu)
{
    uint64_t cache_bits = cpu->cr0 & (CR0_CD | CR0_NW);
    memset(cpu->gpr, 0, sizeof(cpu->gpr));
    cpu->gpr[CPU_RDX] = 0x600; /* family 6; the guest takes it from CPUID */
    cpu->rip = 0xfff0;
    cpu->rflags = RFLAGS_FIXED;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = real_segment(0x93);
    cpu->seg[SEG_CS] = real_segment(0x9b);
    cpu->seg[SEG_CS].selector = 0xf000;
    cpu->seg[SEG_CS].base = 0xffff0000;
    cpu->ldt = real_segment(0x82);
    cpu->tr = real_segment(0x8b);
    cpu->gdt = cpu->idt = (struct cpu_table_register){.limit = 0xffff};
    cpu->cr0 = CPU_CR0_ET | cache_bits;
    cpu->cr2 = cpu->cr3 = cpu->cr4 = 0;
    cpu->efer = 0;
    memset(cpu->dr, 0, sizeof(cpu->dr));
    cpu->dr[6] = DR6_RESET;
    cpu->dr[7] = DR7_RESET;
    cpu->insn = NULL;
    cpu->stop_block = cpu->rip_set = false;
    cpu->no_interrupt = cpu->no_debug = cpu->nmi_blocked = false;
    cpu->dr6_pending = 0;
    cpu->delivering = -1;
    soft_cpu_update(cpu);
}

void soft_cpu_reset_state(struct soft_cpu *cpu)
{
    cpu->cr0 = CR0_CD | CR0_NW;
    cpu->xcr0 = XCR0_X87;
    cpu->xss = 0;
    uint64_t adjust = cpu->msr.tsc_adjust;
    cpu->msr = (struct soft_msrs){.pat = PAT_RESET, .misc_enable = 1, .tsc_adjust = adjust};
    memset(&cpu->fpu, 0, sizeof(cpu->fpu));
    uint16_t fcw = FCW_RESET;
    uint32_t mxcsr = MXCSR_RESET, mask = 0xffff;
    memcpy(cpu->fpu.x87, &fcw, sizeof(fcw));
    memcpy(cpu->fpu.x87 + 24, &mxcsr, sizeof(mxcsr));
    memcpy(cpu->fpu.x87 + 28, &mask, sizeof(mask));
    cpu->fpu.x87[4] = 0xff; /* every register is valid, and zero */
    cpu->activity = cpu->base.id == 0 ? SOFT_ACTIVE : SOFT_WAIT_SIPI;
    /* A kick is the owner's, not the guest's: it survives. */
    __atomic_fetch_and(&cpu->events, SOFT_EVENT_KICK, __ATOMIC_SEQ_CST);
    soft_cpu_init_state(cpu);
}

void soft_cpu_firmware_state(struct soft_cpu *cpu)
{
    cpu->msr.mtrr_def_type = MTRR_ENABLED;
    for (unsigned i = 0; i < 11; i++)
        cpu->msr.mtrr_fixed[i] = i < 3 ? 0x0606060606060606ULL : 0;
}

/* An access needs no check: base aside, it has all offsets up to `limit`, upwards, and may be read
 * (written). In real and virtual-8086 mode CS is data like the others. */
static bool is_open(const struct cpu_segment *s, uint32_t limit, bool write)
{
    bool code = s->attr & SEG_TYPE_CODE;
    if (s->limit < limit || !(s->attr & SEG_ATTR_P) || !(s->attr & SEG_ATTR_S))
        return false;
    if (code)
        return !write && s->attr & SEG_TYPE_WRITE;
    return !(s->attr & SEG_TYPE_DOWN) && s->attr & SEG_TYPE_WRITE;
}

/*
 * What code must have to be translated, which looks at nothing of this: in 32 bits CS, DS and SS
 * are all 4 GiB from 0 on, in 16 bits CS is 64 KiB, and so is SS at least. At the other segments it
 * looks.
 */
static bool is_translatable(const struct soft_cpu *cpu)
{
    const unsigned needed = 1u << SEG_DS | 1u << SEG_SS;
    const struct soft_mode *m = &cpu->mode;
    if (m->code_bits == 64)
        return true;
    if (m->code_bits == 16)
        return cpu->code_keyed && !cpu->code_flat && m->stack_bytes == 2 &&
               cpu->seg_64k_write >> SEG_SS & 1;
    return m->code_bits == 32 && m->stack_bytes == 4 && !m->real && cpu->code_flat &&
           (cpu->seg_flat_write & needed) == needed && cpu->seg_base[SEG_CS] == 0 &&
           cpu->seg_base[SEG_DS] == 0 && cpu->seg_base[SEG_SS] == 0;
}

/* 64-bit code has no use for limits, nor for bases but these: every system call comes here. */
static void update_segments_64(struct soft_cpu *cpu)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg_base[i] = i == SEG_FS || i == SEG_GS ? cpu->seg[i].base : 0;
    cpu->seg_flat = cpu->seg_flat_write = (1u << SEG_COUNT) - 1;
    cpu->seg_64k = cpu->seg_64k_write = 0;
    cpu->code_flat = cpu->code_keyed = true;
    cpu->code_tag = 0;
}

static void update_segments(struct soft_cpu *cpu)
{
    uint32_t start = (uint32_t)cpu->seg[SEG_CS].base;
    cpu->seg_flat = cpu->seg_flat_write = cpu->seg_64k = cpu->seg_64k_write = 0;
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        const struct cpu_segment *s = &cpu->seg[i];
        cpu->seg_base[i] = s->base;
        cpu->seg_flat |= (uint8_t)(is_open(s, UINT32_MAX, false) << i);
        cpu->seg_flat_write |= (uint8_t)(is_open(s, UINT32_MAX, true) << i);
        cpu->seg_64k |= (uint8_t)(is_open(s, UINT16_MAX, false) << i);
        cpu->seg_64k_write |= (uint8_t)(is_open(s, UINT16_MAX, true) << i);
    }
    cpu->code_flat = cpu->seg[SEG_CS].limit == UINT32_MAX;
    bool usual = cpu->mode.code_bits == 16 && cpu->seg[SEG_CS].limit == UINT16_MAX;
    bool from_0 = start == 0 && !usual;
    cpu->code_tag = from_0 ? 0 : (uint64_t)~start << 32;
    cpu->code_keyed = (cpu->code_flat || usual) && (from_0 || cpu->code_tag);
}

void soft_cpu_update(struct soft_cpu *cpu)
{
    struct soft_mode *m = &cpu->mode;
    const struct cpu_segment *cs = &cpu->seg[SEG_CS], *ss = &cpu->seg[SEG_SS];
    m->real = !(cpu->cr0 & CPU_CR0_PE);
    m->v86 = !m->real && cpu->rflags & RFLAGS_VM;
    m->long_active = cpu->efer & CPU_EFER_LMA;
    m->paging = cpu->cr0 & CPU_CR0_PG;
    m->code_bits = m->long_active && cs->attr & SEG_ATTR_L ? 64 : cs->attr & SEG_ATTR_DB ? 32 : 16;
    m->stack_bytes = m->code_bits == 64 ? 8 : ss->attr & SEG_ATTR_DB ? 4 : 2;
    m->cpl = m->real ? 0 : m->v86 ? 3 : (uint8_t)(ss->attr >> 5 & 3);
    m->linear_mask = m->code_bits == 64 ? UINT64_MAX : UINT32_MAX;
    m->careful = cpu->rflags & RFLAGS_TF || cpu->dr[7] & 0xff ||
                 (cpu->debug.on && (cpu->debug.want.step || cpu->debug.want.hw_count > 0));
    if (m->code_bits == 64)
        update_segments_64(cpu);
    else
        update_segments(cpu);
    m->translatable = is_translatable(cpu);
    if (cpu->tlb)
        mmu_select(cpu);
    soft_cpu_update_key(cpu);
}
