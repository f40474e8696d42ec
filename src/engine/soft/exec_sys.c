/* SPDX-License-Identifier: Apache-2.0 */
/* System instructions (SDM vol. 2; AMD APM vol. 3 where the vendors differ). */
#include "base/units.h"
#include "engine/soft/exec_int.h"
#include "engine/soft/intr.h"
#include "engine/soft/msr.h"
#include "engine/soft/seg.h"
#include "engine/soft/seg_internal.h"
#include "engine/soft/vm.h"

static void privileged(struct soft_cpu *cpu)
{
    if (cpu->mode.cpl != 0)
        soft_raise_error(cpu, EXC_GP, 0);
}

static void done(struct soft_cpu *cpu, const struct insn *i)
{
    cpu->rip = soft_next_rip(cpu, i);
}

/* User code may not look at the system's tables (SDM vol. 3, 2.5, UMIP). */
static void check_umip(struct soft_cpu *cpu)
{
    if (cpu->cr4 & CR4_UMIP && cpu->mode.cpl != 0)
        soft_raise_error(cpu, EXC_GP, 0);
}

/* --- far transfers and software interrupts --- */

static void jump_far(struct soft_cpu *cpu, const struct insn *i)
{
    seg_jump_far(cpu, i->imm2, i->imm, i->op_bytes, soft_next_rip(cpu, i));
}

static void call_far(struct soft_cpu *cpu, const struct insn *i)
{
    seg_call_far(cpu, i->imm2, i->imm, i->op_bytes, soft_next_rip(cpu, i));
}

static void far_indirect(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t la = insn_linear(cpu, i, bytes + 2, false);
    uint64_t offset = mmu_read_sized(cpu, la, bytes);
    uint16_t selector = mmu_read16(cpu, la + bytes);
    if (i->op == OP_JMP_FAR_IND)
        seg_jump_far(cpu, selector, offset, bytes, soft_next_rip(cpu, i));
    else
        seg_call_far(cpu, selector, offset, bytes, soft_next_rip(cpu, i));
}

static void ret_far(struct soft_cpu *cpu, const struct insn *i)
{
    seg_return_far(cpu, i->op_bytes, (unsigned)i->imm & 0xffff);
}

static void iret(struct soft_cpu *cpu, const struct insn *i)
{
    seg_return_interrupt(cpu, i->op_bytes, soft_next_rip(cpu, i));
}

static void interrupt_n(struct soft_cpu *cpu, const struct insn *i)
{
    if (cpu->mode.v86)
        intr_software_v86(cpu, (uint8_t)i->imm, soft_next_rip(cpu, i));
    else
        intr_software(cpu, (uint8_t)i->imm, soft_next_rip(cpu, i));
}

static void int3(struct soft_cpu *cpu, const struct insn *i)
{
    if (cpu->debug.on && cpu->debug.want.breakpoints && !cpu->debug.pass_breakpoint) {
        cpu->exit->stop = ENGINE_STOP_BREAKPOINT;
        soft_exit(cpu, ENGINE_EXIT_DEBUG, NULL);
    }
    cpu->debug.pass_breakpoint = false;
    intr_software(cpu, EXC_BP, soft_next_rip(cpu, i));
}

static void into(struct soft_cpu *cpu, const struct insn *i)
{
    if (cpu->rflags & RFLAGS_OF)
        intr_software(cpu, EXC_OF, soft_next_rip(cpu, i));
    else
        done(cpu, i);
}

static void int1(struct soft_cpu *cpu, const struct insn *i)
{
    const struct soft_exception debug = {.vector = EXC_DB, .trap = true};
    done(cpu, i);
    cpu->insn = NULL; /* it is complete */
    soft_raise_exception(cpu, &debug);
}

static void undefined(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    soft_raise(cpu, EXC_UD);
}

/* --- segment registers --- */

static void mov_to_seg(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t selector = (uint16_t)int_get_rm(cpu, i, 2);
    if (i->reg == SEG_CS || i->reg > SEG_GS)
        soft_raise(cpu, EXC_UD);
    seg_load(cpu, i->reg, selector);
    done(cpu, i);
    if (i->reg == SEG_SS)
        cpu->no_interrupt = cpu->no_debug = true;
}

static void mov_from_seg(struct soft_cpu *cpu, const struct insn *i)
{
    if (i->reg > SEG_GS)
        soft_raise(cpu, EXC_UD);
    int_put_rm(cpu, i, i->is_mem ? 2 : i->op_bytes, cpu->seg[i->reg].selector);
}

/* A 32- or 64-bit push of a selector; processors write 16 bits of the slot, or all with zeros. */
static void push_seg(struct soft_cpu *cpu, const struct insn *i)
{
    soft_push(cpu, i->op_bytes, cpu->seg[i->reg].selector);
}

static void pop_seg(struct soft_cpu *cpu, const struct insn *i)
{
    seg_load(cpu, i->reg, (uint16_t)soft_peek(cpu, i->op_bytes, 0));
    soft_drop(cpu, i->op_bytes);
    done(cpu, i);
    if (i->reg == SEG_SS)
        cpu->no_interrupt = cpu->no_debug = true;
}

static void load_far_pointer(struct soft_cpu *cpu, const struct insn *i)
{
    static const uint8_t segments[] = {SEG_DS, SEG_ES, SEG_SS, SEG_FS, SEG_GS};
    unsigned bytes = i->op_bytes;
    uint64_t la = insn_linear(cpu, i, bytes + 2, false);
    uint64_t offset = mmu_read_sized(cpu, la, bytes);
    seg_load(cpu, segments[i->op - OP_LDS], mmu_read16(cpu, la + bytes));
    int_put_reg(cpu, i, i->reg, bytes, offset);
    done(cpu, i);
}

/* --- descriptor tables --- */

static void load_table(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    bool wide = soft_code64(cpu);
    uint64_t la = insn_linear(cpu, i, wide ? 10 : 6, false);
    uint16_t limit = mmu_read16(cpu, la);
    uint64_t base = wide ? mmu_read64(cpu, la + 2) : mmu_read32(cpu, la + 2);
    if (!wide && i->op_bytes == 2)
        base &= 0xffffff;
    if (wide && !soft_canonical(base))
        soft_raise_error(cpu, EXC_GP, 0);
    struct cpu_table_register *table = i->op == OP_LGDT ? &cpu->gdt : &cpu->idt;
    *table = (struct cpu_table_register){.base = base, .limit = limit};
}

static void store_table(struct soft_cpu *cpu, const struct insn *i)
{
    check_umip(cpu);
    bool wide = soft_code64(cpu);
    const struct cpu_table_register *table = i->op == OP_SGDT ? &cpu->gdt : &cpu->idt;
    uint64_t la = insn_linear(cpu, i, wide ? 10 : 6, true);
    uint8_t image[10];
    store_le16(image, table->limit);
    store_le64(image + 2, table->base);
    mmu_write_bytes(cpu, la, image, wide ? 10 : 6);
}

static void lldt(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    seg_load_ldt(cpu, (uint16_t)int_get_rm(cpu, i, 2));
}

static void ltr(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    seg_load_task(cpu, (uint16_t)int_get_rm(cpu, i, 2));
}

static void store_selector(struct soft_cpu *cpu, const struct insn *i)
{
    check_umip(cpu);
    uint16_t selector = i->op == OP_SLDT ? cpu->ldt.selector : cpu->tr.selector;
    int_put_rm(cpu, i, i->is_mem ? 2 : i->op_bytes, selector);
}

/* --- LAR, LSL, VERR, VERW, ARPL --- */

static bool system_type_visible(const struct soft_cpu *cpu, unsigned type, bool limit)
{
    switch (type) {
    case TYPE_LDT:
    case TYPE_TSS32:
    case TYPE_TSS32_BUSY:
        return true;
    case TYPE_TSS16:
    case TYPE_TSS16_BUSY:
        return !cpu->mode.long_active;
    case TYPE_CALL32:
        return !limit;
    case TYPE_CALL16:
    case TYPE_TASK:
        return !limit && !cpu->mode.long_active;
    default:
        return false;
    }
}

/* Is the segment there for the current ring and the selector's? */
static bool visible(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor *desc)
{
    if (selector_is_null(selector) || !seg_find_descriptor(cpu, selector, desc))
        return false;
    unsigned attr = desc_attr(*desc), dpl = desc_dpl(*desc);
    bool conforming = (attr & (SEG_ATTR_S | SEG_TYPE_CODE | SEG_TYPE_DOWN)) ==
                      (SEG_ATTR_S | SEG_TYPE_CODE | SEG_TYPE_DOWN);
    return conforming || (dpl >= cpu->mode.cpl && dpl >= (selector & 3u));
}

static void lar_lsl(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t selector = (uint16_t)int_get_rm(cpu, i, 2);
    struct seg_descriptor desc;
    bool limit = i->op == OP_LSL;
    bool good = visible(cpu, selector, &desc);
    if (good && !(desc_attr(desc) & SEG_ATTR_S))
        good = system_type_visible(cpu, desc_attr(desc) & SEG_ATTR_TYPE, limit);
    set_flag(cpu, RFLAGS_ZF, good);
    if (!good)
        return;
    uint64_t value = limit ? seg_unpack(selector, desc).limit : (desc.low >> 32) & 0xffff00;
    int_put_reg(cpu, i, i->reg, i->op_bytes, value);
}

static void verify(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t selector = (uint16_t)int_get_rm(cpu, i, 2);
    struct seg_descriptor desc;
    bool good = visible(cpu, selector, &desc) && desc_attr(desc) & SEG_ATTR_S;
    if (good) {
        bool code = desc_attr(desc) & SEG_TYPE_CODE, rw = desc_attr(desc) & SEG_TYPE_WRITE;
        good = i->op == OP_VERR ? !code || rw : !code && rw;
    }
    set_flag(cpu, RFLAGS_ZF, good);
}

static void arpl(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t la;
    uint64_t destination = int_get_rm_for_write(cpu, i, 2, &la);
    uint64_t rpl = cpu->gpr[i->reg] & 3;
    bool raise = (destination & 3) < rpl;
    if (raise)
        int_put_rm_at(cpu, i, 2, la, (destination & ~3ULL) | rpl);
    set_flag(cpu, RFLAGS_ZF, raise);
}

/* --- control registers --- */

#define CR0_DEFINED                                                                                \
    (CPU_CR0_PE | CPU_CR0_MP | CR0_EM | CR0_TS | CPU_CR0_ET | CPU_CR0_NE | CPU_CR0_WP | CR0_AM |   \
     CR0_NW | CR0_CD | CPU_CR0_PG)
/* A change of these changes translations. */
#define CR0_PAGING (CPU_CR0_PG | CPU_CR0_WP | CPU_CR0_PE)
#define CR4_PAGING (CR4_PSE | CPU_CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE)

/* Turning paging on or off with EFER.LME: LMA follows (SDM vol. 3, 9.8.5). */
static void write_cr0(struct soft_cpu *cpu, uint64_t value)
{
    uint64_t changed = value ^ cpu->cr0;
    if (value >> 32 || (value & CPU_CR0_PG && !(value & CPU_CR0_PE)) ||
        (value & CR0_NW && !(value & CR0_CD)))
        soft_raise_error(cpu, EXC_GP, 0);
    value = (value & CR0_DEFINED) | CPU_CR0_ET;
    if (changed & CPU_CR0_PG) {
        bool on = value & CPU_CR0_PG;
        bool lme = cpu->efer & CPU_EFER_LME;
        if (on && lme && (!(cpu->cr4 & CPU_CR4_PAE) || cpu->seg[SEG_CS].attr & SEG_ATTR_L))
            soft_raise_error(cpu, EXC_GP, 0);
        if (!on && (cpu->cr4 & CR4_PCIDE || soft_code64(cpu)))
            soft_raise_error(cpu, EXC_GP, 0);
        if (on && !lme && cpu->cr4 & CPU_CR4_PAE && !mmu_load_pdptes(cpu, cpu->cr3))
            soft_raise_error(cpu, EXC_GP, 0);
        if (lme)
            cpu->efer = on ? cpu->efer | CPU_EFER_LMA : cpu->efer & ~CPU_EFER_LMA;
    } else if (changed & (CR0_CD | CR0_NW) && value & CPU_CR0_PG && cpu->cr4 & CPU_CR4_PAE &&
               !(cpu->efer & CPU_EFER_LMA) && !mmu_load_pdptes(cpu, cpu->cr3)) {
        soft_raise_error(cpu, EXC_GP, 0);
    }
    cpu->cr0 = value;
    if (changed & CR0_PAGING)
        mmu_flush_all(cpu);
    soft_cpu_update(cpu);
}

static void write_cr3(struct soft_cpu *cpu, uint64_t value)
{
    bool keep = value >> 63 && cpu->cr4 & CR4_PCIDE;
    if (cpu->cr4 & CR4_PCIDE)
        value &= ~(1ULL << 63);
    if (cpu->mode.long_active ? value >> cpu->vm->model.phys_bits : value >> 32)
        soft_raise_error(cpu, EXC_GP, 0);
    if (cpu->mode.paging && cpu->cr4 & CPU_CR4_PAE && !cpu->mode.long_active &&
        !mmu_load_pdptes(cpu, value))
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->cr3 = value;
    mmu_cr3_written(cpu, keep);
}

static void write_cr4(struct soft_cpu *cpu, uint64_t value)
{
    uint64_t changed = value ^ cpu->cr4;
    bool long_active = cpu->mode.long_active;
    if (value & ~cpu->vm->model.cr4_allowed || (long_active && !(value & CPU_CR4_PAE)))
        soft_raise_error(cpu, EXC_GP, 0);
    if (changed & value & CR4_PCIDE && (!long_active || cpu->cr3 & 0xfff))
        soft_raise_error(cpu, EXC_GP, 0);
    if (cpu->mode.paging && !long_active && value & CPU_CR4_PAE && changed & CR4_PAGING &&
        !mmu_load_pdptes(cpu, cpu->cr3))
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->cr4 = value;
    if (changed & CR4_PAGING)
        mmu_flush_all(cpu);
    soft_cpu_update(cpu);
}

static void mov_to_cr(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    uint64_t value = int_get_reg(cpu, i, i->rm, i->op_bytes);
    switch (i->reg) {
    case 0:
        write_cr0(cpu, value);
        break;
    case 2:
        cpu->cr2 = value;
        break;
    case 3:
        write_cr3(cpu, value);
        break;
    case 4:
        write_cr4(cpu, value);
        break;
    case 8:
        if (value & ~15ULL)
            soft_raise_error(cpu, EXC_GP, 0);
        irqchip_set_cr8(cpu->vm->irqchip, cpu->base.id, (uint8_t)value);
        break;
    default:
        soft_raise(cpu, EXC_UD);
    }
    done(cpu, i);
}

static void mov_from_cr(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t value = 0;
    privileged(cpu);
    switch (i->reg) {
    case 0:
        value = cpu->cr0;
        break;
    case 2:
        value = cpu->cr2;
        break;
    case 3:
        value = cpu->cr3;
        break;
    case 4:
        value = cpu->cr4;
        break;
    case 8:
        value = irqchip_get_cr8(cpu->vm->irqchip, cpu->base.id);
        break;
    default:
        soft_raise(cpu, EXC_UD);
    }
    int_put_reg(cpu, i, i->rm, i->op_bytes, value);
}

static void clts(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    cpu->cr0 &= ~CR0_TS;
    done(cpu, i);
}

/* LMSW sets PE and never clears it. */
static void lmsw(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    uint64_t value = int_get_rm(cpu, i, 2) & 15;
    write_cr0(cpu, (cpu->cr0 & ~14ULL) | value);
    done(cpu, i);
}

static void smsw(struct soft_cpu *cpu, const struct insn *i)
{
    check_umip(cpu);
    int_put_rm(cpu, i, i->is_mem ? 2 : i->op_bytes, cpu->cr0);
}

/* --- debug registers --- */

#define DR7_GD (1ULL << 13)
#define DR6_BD (1ULL << 13)

/* The number in DR: 4 and 5 are 6 and 7 unless CR4.DE. */
static unsigned debug_register(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    unsigned number = i->reg;
    if (number > 7 || ((number == 4 || number == 5) && cpu->cr4 & CR4_DE))
        soft_raise(cpu, EXC_UD);
    if (cpu->dr[7] & DR7_GD) {
        const struct soft_exception debug = {.vector = EXC_DB, .dr6 = DR6_BD};
        soft_raise_exception(cpu, &debug);
    }
    return number == 4 || number == 5 ? number + 2 : number;
}

static void mov_to_dr(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned number = debug_register(cpu, i);
    uint64_t value = int_get_reg(cpu, i, i->rm, i->op_bytes);
    if (number >= 6 && value >> 32)
        soft_raise_error(cpu, EXC_GP, 0);
    if (number == 6)
        value = (value & 0xe00f) | 0xffff0ff0;
    if (number == 7)
        value = (value & 0xffff2bff) | 0x400;
    cpu->dr[number] = value;
    soft_cpu_update(cpu);
    done(cpu, i);
}

static void mov_from_dr(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned number = debug_register(cpu, i);
    int_put_reg(cpu, i, i->rm, i->op_bytes, cpu->dr[number]);
}

/* --- TLB and caches --- */

static void invlpg(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    uint64_t la = cpu->seg_base[i->seg] + insn_offset(cpu, i);
    if (!soft_code64(cpu) || soft_canonical(la))
        mmu_invlpg(cpu, la);
    done(cpu, i);
}

static void invpcid(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    uint64_t type = int_get_reg(cpu, i, i->reg, soft_code64(cpu) ? 8 : 4);
    uint64_t la = insn_linear(cpu, i, 16, false);
    uint64_t pcid = mmu_read64(cpu, la), address = mmu_read64(cpu, la + 8);
    bool needs_pcid = type <= 1;
    if (type > 3 || (needs_pcid && pcid >> 12) || (type == 0 && !soft_canonical(address)) ||
        (needs_pcid && !(cpu->cr4 & CR4_PCIDE) && pcid != 0))
        soft_raise_error(cpu, EXC_GP, 0);
    mmu_invpcid(cpu, (unsigned)type, (unsigned)pcid, address);
    done(cpu, i);
}

/* There is no cache to be seen. */
static void invalidate_caches(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    privileged(cpu);
}

/* --- MSRs, time, identification --- */

static void put_edx_eax(struct soft_cpu *cpu, uint64_t value)
{
    cpu->gpr[CPU_RAX] = (uint32_t)value;
    cpu->gpr[CPU_RDX] = value >> 32;
}

static uint64_t get_edx_eax(const struct soft_cpu *cpu)
{
    return (uint32_t)cpu->gpr[CPU_RAX] | cpu->gpr[CPU_RDX] << 32;
}

static void rdmsr(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t value;
    (void)i;
    privileged(cpu);
    if (!msr_read(cpu, (uint32_t)cpu->gpr[CPU_RCX], &value))
        soft_raise_error(cpu, EXC_GP, 0);
    put_edx_eax(cpu, value);
}

static void wrmsr(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    if (!msr_write(cpu, (uint32_t)cpu->gpr[CPU_RCX], get_edx_eax(cpu)))
        soft_raise_error(cpu, EXC_GP, 0);
    done(cpu, i);
}

static void rdtsc(struct soft_cpu *cpu, const struct insn *i)
{
    if (cpu->cr4 & CR4_TSD && cpu->mode.cpl != 0)
        soft_raise_error(cpu, EXC_GP, 0);
    put_edx_eax(cpu, soft_tsc(cpu));
    if (i->op == OP_RDTSCP)
        cpu->gpr[CPU_RCX] = (uint32_t)cpu->msr.tsc_aux;
}

/* There is no performance counter. */
static void rdpmc(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    soft_raise_error(cpu, EXC_GP, 0);
}

static void rdpid(struct soft_cpu *cpu, const struct insn *i)
{
    cpu->gpr[i->rm] = (uint32_t)cpu->msr.tsc_aux;
}

static void cpuid(struct soft_cpu *cpu, const struct insn *i)
{
    uint32_t out[4];
    (void)i;
    model_cpuid(cpu, (uint32_t)cpu->gpr[CPU_RAX], (uint32_t)cpu->gpr[CPU_RCX], out);
    cpu->gpr[CPU_RAX] = out[0];
    cpu->gpr[CPU_RBX] = out[1];
    cpu->gpr[CPU_RCX] = out[2];
    cpu->gpr[CPU_RDX] = out[3];
}

/* --- SYSCALL and its like --- */

static void flat_code(struct soft_cpu *cpu, uint16_t selector, unsigned dpl, bool code64)
{
    uint16_t size = code64 ? SEG_ATTR_L : SEG_ATTR_DB;
    cpu->seg[SEG_CS] = (struct cpu_segment){
        .limit = UINT32_MAX, .selector = selector, .attr = (uint16_t)(0x809b | dpl << 5 | size)};
}

static void flat_stack(struct soft_cpu *cpu, uint16_t selector, unsigned dpl)
{
    cpu->seg[SEG_SS] = (struct cpu_segment){
        .limit = UINT32_MAX, .selector = selector, .attr = (uint16_t)(0xc093 | dpl << 5)};
}

static void syscall(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t selector = (uint16_t)(cpu->msr.star >> 32 & ~3u);
    uint64_t next = soft_next_rip(cpu, i);
    if (!(cpu->efer & EFER_SCE) || cpu->mode.real)
        soft_raise(cpu, EXC_UD);
    cpu->gpr[CPU_RCX] = next;
    if (cpu->mode.long_active) {
        cpu->rip = soft_code64(cpu) ? cpu->msr.lstar : cpu->msr.cstar;
        cpu->gpr[CPU_R11] = cpu->rflags & ~RFLAGS_RF;
        cpu->rflags &= ~(cpu->msr.sfmask | RFLAGS_RF);
        cpu->rflags |= RFLAGS_FIXED;
    } else {
        cpu->rip = (uint32_t)cpu->msr.star;
        cpu->rflags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
    }
    flat_code(cpu, selector, 0, cpu->mode.long_active);
    flat_stack(cpu, (uint16_t)(selector + 8), 0);
    soft_cpu_update(cpu);
}

static void sysret(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t selector = (uint16_t)(cpu->msr.star >> 48 & ~3u);
    bool to64 = i->op_bytes == 8;
    if (!(cpu->efer & EFER_SCE) || cpu->mode.real)
        soft_raise(cpu, EXC_UD);
    privileged(cpu);
    uint64_t target = to64 ? cpu->gpr[CPU_RCX] : (uint32_t)cpu->gpr[CPU_RCX];
    /* AMD processors find a bad address only at the fetch, in ring 3; Intel's here, in ring 0. */
    if (to64 && !cpu->vm->model.amd && !soft_canonical(target))
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->rip = target;
    if (cpu->mode.long_active)
        cpu->rflags = (cpu->gpr[CPU_R11] & 0x3c7fd7) | RFLAGS_FIXED;
    else
        cpu->rflags |= RFLAGS_IF;
    flat_code(cpu, (uint16_t)((to64 ? selector + 16 : selector) | 3), 3, to64);
    flat_stack(cpu, (uint16_t)((selector + 8) | 3), 3);
    soft_cpu_update(cpu);
}

static void sysenter(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t selector = (uint16_t)(cpu->msr.sysenter_cs & ~3u);
    (void)i;
    if (cpu->mode.real || selector == 0)
        soft_raise_error(cpu, EXC_GP, 0);
    bool wide = cpu->mode.long_active;
    cpu->rflags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
    flat_code(cpu, selector, 0, wide);
    flat_stack(cpu, (uint16_t)(selector + 8), 0);
    cpu->gpr[CPU_RSP] = wide ? cpu->msr.sysenter_esp : (uint32_t)cpu->msr.sysenter_esp;
    cpu->rip = wide ? cpu->msr.sysenter_eip : (uint32_t)cpu->msr.sysenter_eip;
    soft_cpu_update(cpu);
}

static void sysexit(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t selector = (uint16_t)(cpu->msr.sysenter_cs & ~3u);
    bool to64 = i->op_bytes == 8;
    if (cpu->mode.real || selector == 0)
        soft_raise_error(cpu, EXC_GP, 0);
    privileged(cpu);
    uint64_t rip = cpu->gpr[CPU_RDX], rsp = cpu->gpr[CPU_RCX];
    if (to64 && (!soft_canonical(rip) || !soft_canonical(rsp)))
        soft_raise_error(cpu, EXC_GP, 0);
    flat_code(cpu, (uint16_t)((selector + (to64 ? 32 : 16)) | 3), 3, to64);
    flat_stack(cpu, (uint16_t)((selector + (to64 ? 40 : 24)) | 3), 3);
    cpu->gpr[CPU_RSP] = to64 ? rsp : (uint32_t)rsp;
    cpu->rip = to64 ? rip : (uint32_t)rip;
    soft_cpu_update(cpu);
}

static void swapgs(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    privileged(cpu);
    uint64_t base = cpu->seg[SEG_GS].base;
    cpu->seg[SEG_GS].base = cpu->seg_base[SEG_GS] = cpu->msr.kernel_gs_base;
    cpu->msr.kernel_gs_base = base;
}

static void fsgsbase(struct soft_cpu *cpu, const struct insn *i)
{
    bool fs = i->op == OP_RDFSBASE || i->op == OP_WRFSBASE;
    unsigned seg = fs ? SEG_FS : SEG_GS;
    if (!(cpu->cr4 & CR4_FSGSBASE))
        soft_raise(cpu, EXC_UD);
    if (i->op == OP_RDFSBASE || i->op == OP_RDGSBASE) {
        int_put_reg(cpu, i, i->rm, i->op_bytes, cpu->seg[seg].base);
        return;
    }
    uint64_t base = int_get_reg(cpu, i, i->rm, i->op_bytes);
    if (!soft_canonical(base))
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->seg[seg].base = cpu->seg_base[seg] = base;
}

/* --- HLT, interrupt flag --- */

static void hlt(struct soft_cpu *cpu, const struct insn *i)
{
    privileged(cpu);
    cpu->activity = SOFT_HALTED;
    done(cpu, i);
}

/* With PVI or VME, rings above IOPL change VIF instead (SDM vol. 2, CLI). */
static bool may_change_if(struct soft_cpu *cpu, bool *virtual_flag)
{
    unsigned iopl = (unsigned)(cpu->rflags & RFLAGS_IOPL) >> 12;
    *virtual_flag = false;
    if (cpu->mode.real || (cpu->mode.v86 ? iopl == 3 : cpu->mode.cpl <= iopl))
        return true;
    *virtual_flag = cpu->mode.v86 ? cpu->cr4 & CR4_VME : cpu->mode.cpl == 3 && cpu->cr4 & CR4_PVI;
    return *virtual_flag;
}

static void cli(struct soft_cpu *cpu, const struct insn *i)
{
    bool virtual_flag;
    (void)i;
    if (!may_change_if(cpu, &virtual_flag))
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->rflags &= ~(virtual_flag ? RFLAGS_VIF : RFLAGS_IF);
}

/* Its shadow: no interrupt before the next instruction is done. Nobody looks for one within a
 * block; where its next instruction is in another, or one waits already, the run loop knows. */
static void sti(struct soft_cpu *cpu, const struct insn *i)
{
    bool virtual_flag;
    if (!may_change_if(cpu, &virtual_flag) || (virtual_flag && cpu->rflags & RFLAGS_VIP))
        soft_raise_error(cpu, EXC_GP, 0);
    if (virtual_flag) {
        cpu->rflags |= RFLAGS_VIF;
    } else if (!(cpu->rflags & RFLAGS_IF)) {
        cpu->rflags |= RFLAGS_IF;
        if (i[1].op == OP_FALL_THROUGH || soft_cpu_has_events(cpu)) {
            cpu->no_interrupt = true;
            cpu->stop_block = true;
        }
    }
}

static void clac_stac(struct soft_cpu *cpu, const struct insn *i)
{
    if (cpu->mode.cpl != 0)
        soft_raise(cpu, EXC_UD);
    set_flag(cpu, RFLAGS_AC, i->op == OP_STAC);
    mmu_select(cpu);
}

/* --- extended state, keys, hypercalls --- */

static void xgetbv(struct soft_cpu *cpu, const struct insn *i)
{
    (void)i;
    if (!(cpu->cr4 & CR4_OSXSAVE))
        soft_raise(cpu, EXC_UD);
    uint32_t index = (uint32_t)cpu->gpr[CPU_RCX];
    if (index > 1)
        soft_raise_error(cpu, EXC_GP, 0);
    put_edx_eax(cpu, cpu->xcr0); /* XCR0 and XINUSE, of which all is in use */
}

static void xsetbv(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t value = get_edx_eax(cpu);
    if (!(cpu->cr4 & CR4_OSXSAVE))
        soft_raise(cpu, EXC_UD);
    privileged(cpu);
    bool avx_without_sse = (value & 6) == 4;
    if ((uint32_t)cpu->gpr[CPU_RCX] != 0 || !(value & 1) || value & ~cpu->vm->model.xcr0_allowed ||
        avx_without_sse)
        soft_raise_error(cpu, EXC_GP, 0);
    cpu->xcr0 = value;
    done(cpu, i);
}

static void pkru(struct soft_cpu *cpu, const struct insn *i)
{
    if (!(cpu->cr4 & CR4_PKE))
        soft_raise(cpu, EXC_UD);
    if ((uint32_t)cpu->gpr[CPU_RCX] != 0 ||
        (i->op == OP_WRPKRU && (uint32_t)cpu->gpr[CPU_RDX] != 0))
        soft_raise_error(cpu, EXC_GP, 0);
    if (i->op == OP_RDPKRU) {
        put_edx_eax(cpu, cpu->fpu.pkru);
        return;
    }
    mmu_set_pkru(cpu, (uint32_t)cpu->gpr[CPU_RAX]);
}

static void hypercall(struct soft_cpu *cpu, const struct insn *i)
{
    done(cpu, i);
    pv_hypercall(cpu);
}

static void serialize(struct soft_cpu *cpu, const struct insn *i)
{
    done(cpu, i);
}

soft_exec_fn *exec_sys_bind(struct soft_cpu *cpu, struct insn *insn)
{
    static soft_exec_fn *const handlers[OP_SYS_END] = {
        [OP_JMP_FAR] = jump_far,
        [OP_JMP_FAR_IND] = far_indirect,
        [OP_CALL_FAR] = call_far,
        [OP_CALL_FAR_IND] = far_indirect,
        [OP_RET_FAR] = ret_far,
        [OP_IRET] = iret,
        [OP_INT] = interrupt_n,
        [OP_INT3] = int3,
        [OP_INT1] = int1,
        [OP_INTO] = into,
        [OP_UD] = undefined,
        [OP_MOV_TO_SEG] = mov_to_seg,
        [OP_MOV_FROM_SEG] = mov_from_seg,
        [OP_PUSH_SEG] = push_seg,
        [OP_POP_SEG] = pop_seg,
        [OP_LDS] = load_far_pointer,
        [OP_LES] = load_far_pointer,
        [OP_LSS] = load_far_pointer,
        [OP_LFS] = load_far_pointer,
        [OP_LGS] = load_far_pointer,
        [OP_LGDT] = load_table,
        [OP_LIDT] = load_table,
        [OP_SGDT] = store_table,
        [OP_SIDT] = store_table,
        [OP_LLDT] = lldt,
        [OP_SLDT] = store_selector,
        [OP_LTR] = ltr,
        [OP_STR] = store_selector,
        [OP_LMSW] = lmsw,
        [OP_SMSW] = smsw,
        [OP_CLTS] = clts,
        [OP_LAR] = lar_lsl,
        [OP_LSL] = lar_lsl,
        [OP_VERR] = verify,
        [OP_VERW] = verify,
        [OP_ARPL] = arpl,
        [OP_MOV_TO_CR] = mov_to_cr,
        [OP_MOV_FROM_CR] = mov_from_cr,
        [OP_MOV_TO_DR] = mov_to_dr,
        [OP_MOV_FROM_DR] = mov_from_dr,
        [OP_INVLPG] = invlpg,
        [OP_INVPCID] = invpcid,
        [OP_INVD] = invalidate_caches,
        [OP_WBINVD] = invalidate_caches,
        [OP_RDMSR] = rdmsr,
        [OP_WRMSR] = wrmsr,
        [OP_RDTSC] = rdtsc,
        [OP_RDTSCP] = rdtsc,
        [OP_RDPMC] = rdpmc,
        [OP_RDPID] = rdpid,
        [OP_CPUID] = cpuid,
        [OP_SYSCALL] = syscall,
        [OP_SYSRET] = sysret,
        [OP_SYSENTER] = sysenter,
        [OP_SYSEXIT] = sysexit,
        [OP_SWAPGS] = swapgs,
        [OP_HLT] = hlt,
        [OP_CLI] = cli,
        [OP_STI] = sti,
        [OP_CLAC] = clac_stac,
        [OP_STAC] = clac_stac,
        [OP_RDFSBASE] = fsgsbase,
        [OP_RDGSBASE] = fsgsbase,
        [OP_WRFSBASE] = fsgsbase,
        [OP_WRGSBASE] = fsgsbase,
        [OP_XGETBV] = xgetbv,
        [OP_XSETBV] = xsetbv,
        [OP_MONITOR] = undefined,
        [OP_MWAIT] = undefined,
        [OP_VMCALL] = hypercall,
        [OP_VMMCALL] = hypercall,
        [OP_RDPKRU] = pkru,
        [OP_WRPKRU] = pkru,
        [OP_SERIALIZE] = serialize,
    };
    (void)cpu;
    return handlers[insn->op];
}
