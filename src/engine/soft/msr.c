/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MSRs (SDM vol. 4; AMD APM vol. 2, appendix A). A table names those that are plain storage or read
 * as constants; the rest are functions. What is not here is #GP, as on a processor that has not
 * got it.
 */
#include "engine/soft/msr.h"

#include <stddef.h>

#include "base/log.h"
#include "base/units.h"
#include "engine/soft/mmu.h"
#include "engine/soft/vm.h"

#define MSR_TSC            0x10u
#define MSR_APIC_BASE      0x1bu
#define MSR_TSC_ADJUST     0x3bu
#define MSR_MTRR_CAP       0xfeu
#define MSR_MCG_CAP        0x179u
#define MSR_MTRR_BASE0     0x200u /* base and mask in turn */
#define MSR_MTRR_FIX64K    0x250u
#define MSR_PAT            0x277u
#define MSR_MTRR_DEF_TYPE  0x2ffu
#define MSR_TSC_DEADLINE   0x6e0u
#define MSR_X2APIC         0x800u
#define MSR_EFER           0xc0000080u
#define MSR_FS_BASE        0xc0000100u
#define MSR_GS_BASE        0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u

#define MTRR_VARIABLE      8
#define MC_BANKS           0

/* How a value is checked before it is stored. */
enum msr_check {
    CHECK_NONE,
    CHECK_CANONICAL,
    CHECK_32,
    CHECK_IGNORE,    /* writes do nothing */
    CHECK_READ_ONLY, /* writes are #GP */
};

struct plain_msr {
    uint32_t index;
    uint8_t check;
    uint8_t vendor;  /* 0 both, 1 Intel's, 2 AMD's */
    uint16_t offset; /* in struct soft_msrs, or NO_STORAGE */
    uint64_t value;  /* of those without storage */
};

#define NO_STORAGE UINT16_MAX
#define STORED(index, check, member)                                                               \
    {                                                                                              \
        index, check, 0, (uint16_t)offsetof(struct soft_msrs, member), 0                           \
    }
#define CONSTANT(index, check, vendor, value)                                                      \
    {                                                                                              \
        index, check, vendor, NO_STORAGE, value                                                    \
    }

static const struct plain_msr plain[] = {
    CONSTANT(0x00000000, CHECK_IGNORE, 0, 0),              /* P5_MC_ADDR */
    CONSTANT(0x00000001, CHECK_IGNORE, 0, 0),              /* P5_MC_TYPE */
    CONSTANT(0x00000017, CHECK_READ_ONLY, 0, 0),           /* PLATFORM_ID */
    CONSTANT(0x0000002a, CHECK_IGNORE, 1, 0),              /* EBL_CR_POWERON */
    CONSTANT(0x0000003a, CHECK_READ_ONLY, 1, 1),           /* FEATURE_CONTROL: locked, nothing on */
    STORED(0x00000048, CHECK_NONE, spec_ctrl),             /* SPEC_CTRL */
    CONSTANT(0x00000049, CHECK_IGNORE, 0, 0),              /* PRED_CMD */
    CONSTANT(0x00000079, CHECK_IGNORE, 1, 0),              /* BIOS_UPDT_TRIG */
    CONSTANT(0x0000008b, CHECK_IGNORE, 0, 0x100000000ULL), /* BIOS_SIGN_ID, PATCH_LEVEL */
    CONSTANT(0x000000ce, CHECK_READ_ONLY, 1, 0),           /* PLATFORM_INFO */
    CONSTANT(MSR_MTRR_CAP, CHECK_READ_ONLY, 0, 0x500 | MTRR_VARIABLE), /* fixed, write-combining */
    CONSTANT(0x0000010a, CHECK_READ_ONLY, 1, 0x6b), /* ARCH_CAPABILITIES: not vulnerable */
    CONSTANT(0x00000140, CHECK_IGNORE, 1, 0),       /* MISC_FEATURES_ENABLES */
    STORED(0x00000174, CHECK_32, sysenter_cs),
    STORED(0x00000175, CHECK_CANONICAL, sysenter_esp),
    STORED(0x00000176, CHECK_CANONICAL, sysenter_eip),
    CONSTANT(MSR_MCG_CAP, CHECK_READ_ONLY, 0, MC_BANKS),
    STORED(0x0000017a, CHECK_NONE, mcg_status),
    CONSTANT(0x00000198, CHECK_READ_ONLY, 1, 0), /* PERF_STATUS */
    CONSTANT(0x00000199, CHECK_IGNORE, 1, 0),    /* PERF_CTL */
    STORED(0x000001a0, CHECK_NONE, misc_enable),
    CONSTANT(0x000001d9, CHECK_IGNORE, 0, 0),    /* DEBUGCTL */
    CONSTANT(0x000001db, CHECK_READ_ONLY, 0, 0), /* LASTBRANCHFROMIP */
    CONSTANT(0x000001dc, CHECK_READ_ONLY, 0, 0),
    CONSTANT(0x000001dd, CHECK_READ_ONLY, 0, 0),
    CONSTANT(0x000001de, CHECK_READ_ONLY, 0, 0),
    CONSTANT(0x00000606, CHECK_READ_ONLY, 1, 0), /* RAPL_POWER_UNIT */
    STORED(0xc0000081, CHECK_NONE, star),
    STORED(0xc0000082, CHECK_CANONICAL, lstar),
    STORED(0xc0000083, CHECK_CANONICAL, cstar),
    STORED(0xc0000084, CHECK_32, sfmask),
    STORED(MSR_KERNEL_GS_BASE, CHECK_CANONICAL, kernel_gs_base),
    STORED(0xc0000103, CHECK_32, tsc_aux),
    CONSTANT(0xc0010000, CHECK_IGNORE, 2, 0), /* PERF_CTL0-3, PERF_CTR0-3 */
    CONSTANT(0xc0010001, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0010002, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0010003, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0010004, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0010005, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0010006, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0010007, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0010010, CHECK_IGNORE, 2, 0),         /* SYSCFG */
    CONSTANT(0xc0010015, CHECK_IGNORE, 2, 1u << 24),  /* HWCR: TSC counts at P0 */
    CONSTANT(0xc001001a, CHECK_IGNORE, 2, 0),         /* TOP_MEM */
    CONSTANT(0xc001001d, CHECK_IGNORE, 2, 0),         /* TOP_MEM2 */
    CONSTANT(0xc001001f, CHECK_IGNORE, 2, 0),         /* NB_CFG */
    CONSTANT(0xc0010020, CHECK_IGNORE, 2, 0),         /* PATCH_LOADER */
    CONSTANT(0xc0010044, CHECK_IGNORE, 2, 0),         /* MC4_CTL_MASK */
    CONSTANT(0xc0010055, CHECK_IGNORE, 2, 0),         /* INT_PENDING: no C1E */
    CONSTANT(0xc0010058, CHECK_READ_ONLY, 2, 0),      /* MMIO configuration base: none */
    CONSTANT(0xc0010061, CHECK_READ_ONLY, 2, 0),      /* PSTATE limits */
    CONSTANT(0xc0010114, CHECK_READ_ONLY, 2, 1 << 4), /* VM_CR: SVM disabled */
    CONSTANT(0xc0010117, CHECK_READ_ONLY, 2, 0),      /* VM_HSAVE_PA */
    CONSTANT(0xc0010140, CHECK_IGNORE, 2, 0),         /* OSVW length */
    CONSTANT(0xc0010141, CHECK_IGNORE, 2, 0),
    CONSTANT(0xc0011020, CHECK_IGNORE, 2, 0), /* LS_CFG */
    CONSTANT(0xc0011022, CHECK_IGNORE, 2, 0), /* DC_CFG */
    CONSTANT(0xc0011023, CHECK_IGNORE, 2, 0), /* BU_CFG */
    CONSTANT(0xc0011029, CHECK_IGNORE, 2, 2), /* DE_CFG: LFENCE serialises */
    CONSTANT(0xc001102a, CHECK_IGNORE, 2, 0), /* BU_CFG2 */
};

static const struct plain_msr *find_plain(const struct soft_cpu *cpu, uint32_t index)
{
    unsigned vendor = cpu->vm->model.amd ? 2 : 1;
    for (size_t i = 0; i < ARRAY_LEN(plain); i++) {
        if (plain[i].index == index && (plain[i].vendor == 0 || plain[i].vendor == vendor))
            return &plain[i];
    }
    return NULL;
}

static uint64_t *storage(struct soft_cpu *cpu, const struct plain_msr *p)
{
    return (uint64_t *)(void *)((uint8_t *)&cpu->msr + p->offset);
}

/* --- MTRRs --- */

static const uint32_t fixed_mtrrs[11] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                         0x26b, 0x26c, 0x26d, 0x26e, 0x26f};

__attribute__((nonnull)) static uint64_t *mtrr_of(struct soft_cpu *cpu, uint32_t index)
{
    if (index >= MSR_MTRR_BASE0 && index < MSR_MTRR_BASE0 + 2 * MTRR_VARIABLE) {
        unsigned number = (index - MSR_MTRR_BASE0) / 2;
        return index & 1 ? &cpu->msr.mtrr_mask[number] : &cpu->msr.mtrr_base[number];
    }
    if (index == MSR_MTRR_DEF_TYPE)
        return &cpu->msr.mtrr_def_type;
    for (unsigned i = 0; i < ARRAY_LEN(fixed_mtrrs); i++) {
        if (fixed_mtrrs[i] == index)
            return &cpu->msr.mtrr_fixed[i];
    }
    return NULL;
}

/* UC, WC, WT, WP, WB; and, for PAT, UC-. */
static bool is_memory_type(unsigned type, bool pat)
{
    return type == 0 || type == 1 || (type >= 4 && type <= 6) || (pat && type == 7);
}

static bool types_good(uint64_t value, bool pat)
{
    for (unsigned i = 0; i < 8; i++) {
        if (!is_memory_type(value >> (8 * i) & 0xff, pat))
            return false;
    }
    return true;
}

static bool mtrr_value_good(const struct soft_cpu *cpu, uint32_t index, uint64_t value)
{
    uint64_t physical = (1ULL << cpu->vm->model.phys_bits) - 1;
    if (index == MSR_MTRR_DEF_TYPE)
        return !(value & ~0xcffULL) && is_memory_type(value & 0xff, false);
    if (index >= MSR_MTRR_FIX64K)
        return types_good(value, false);
    if (index & 1)
        return !(value & ~physical) && !(value & 0x7ff);
    return !(value & ~physical) && !(value & 0xf00) && is_memory_type(value & 0xff, false);
}

/* --- EFER --- */

static bool write_efer(struct soft_cpu *cpu, uint64_t value)
{
    uint64_t changed = value ^ cpu->efer;
    if (value & ~(cpu->vm->model.efer_allowed | CPU_EFER_LMA))
        return false;
    if (changed & CPU_EFER_LME && cpu->cr0 & CPU_CR0_PG)
        return false;
    cpu->efer = (value & ~CPU_EFER_LMA) | (cpu->efer & CPU_EFER_LMA);
    if (changed & EFER_NXE)
        mmu_flush_all(cpu);
    soft_cpu_update(cpu);
    return true;
}

/* --- reading and writing --- */

static bool read_special(struct soft_cpu *cpu, uint32_t index, uint64_t *value, bool *handled)
{
    *handled = true;
    switch (index) {
    case MSR_TSC:
        *value = soft_tsc(cpu);
        return true;
    case MSR_TSC_ADJUST:
        *value = cpu->msr.tsc_adjust;
        return true;
    case MSR_APIC_BASE:
        *value = cpu->apic_base;
        return true;
    case MSR_PAT:
        *value = cpu->msr.pat;
        return true;
    case MSR_EFER:
        *value = cpu->efer;
        return true;
    case MSR_FS_BASE:
        *value = cpu->seg[SEG_FS].base;
        return true;
    case MSR_GS_BASE:
        *value = cpu->seg[SEG_GS].base;
        return true;
    default:
        break;
    }
    const uint64_t *mtrr = mtrr_of(cpu, index);
    if (mtrr) {
        *value = *mtrr;
        return true;
    }
    if (index == MSR_TSC_DEADLINE || index >> 8 == MSR_X2APIC >> 8)
        return irqchip_msr_read(cpu->vm->irqchip, cpu->base.id, index, value);
    return pv_msr_read(cpu, index, value, handled);
}

static bool write_base(struct soft_cpu *cpu, unsigned seg, uint64_t value)
{
    if (!soft_canonical(value))
        return false;
    cpu->seg[seg].base = value;
    soft_cpu_update(cpu);
    return true;
}

static bool write_apic_base(struct soft_cpu *cpu, uint64_t value)
{
    if (!irqchip_set_apic_base(cpu->vm->irqchip, cpu->base.id, value))
        return false;
    cpu->apic_base = value;
    mmu_flush_all(cpu);
    return true;
}

static bool write_special(struct soft_cpu *cpu, uint32_t index, uint64_t value, bool *handled)
{
    *handled = true;
    switch (index) {
    case MSR_TSC:
        cpu->msr.tsc_adjust += value - soft_tsc(cpu);
        pv_write_clock(cpu);
        return true;
    case MSR_TSC_ADJUST:
        cpu->msr.tsc_adjust = value;
        pv_write_clock(cpu);
        return true;
    case MSR_APIC_BASE:
        return write_apic_base(cpu, value);
    case MSR_PAT:
        if (!types_good(value, true))
            return false;
        cpu->msr.pat = value;
        return true;
    case MSR_EFER:
        return write_efer(cpu, value);
    case MSR_FS_BASE:
        return write_base(cpu, SEG_FS, value);
    case MSR_GS_BASE:
        return write_base(cpu, SEG_GS, value);
    default:
        break;
    }
    uint64_t *mtrr = mtrr_of(cpu, index);
    if (mtrr) {
        if (!mtrr_value_good(cpu, index, value))
            return false;
        *mtrr = value;
        return true;
    }
    if (index == MSR_TSC_DEADLINE || index >> 8 == MSR_X2APIC >> 8)
        return irqchip_msr_write(cpu->vm->irqchip, cpu->base.id, index, value);
    return pv_msr_write(cpu, index, value, handled);
}

static void report_unknown(struct soft_cpu *cpu, const char *what, uint32_t index)
{
    log_guest(&cpu->vm->msr_budget, "soft", "the guest %s MSR 0x%x, which there is not", what,
              index);
}

bool msr_read(struct soft_cpu *cpu, uint32_t index, uint64_t *value)
{
    bool handled;
    const struct plain_msr *p = find_plain(cpu, index);
    if (p) {
        *value = p->offset == NO_STORAGE ? p->value : *storage(cpu, p);
        return true;
    }
    bool good = read_special(cpu, index, value, &handled);
    if (!handled)
        report_unknown(cpu, "reads", index);
    return handled && good;
}

bool msr_write(struct soft_cpu *cpu, uint32_t index, uint64_t value)
{
    bool handled;
    const struct plain_msr *p = find_plain(cpu, index);
    if (p) {
        if (p->check == CHECK_READ_ONLY ||
            (p->check == CHECK_CANONICAL && !soft_canonical(value)) ||
            (p->check == CHECK_32 && value >> 32))
            return false;
        if (p->offset != NO_STORAGE)
            *storage(cpu, p) = value;
        return true;
    }
    bool good = write_special(cpu, index, value, &handled);
    if (!handled)
        report_unknown(cpu, "writes", index);
    return handled && good;
}
