/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reset. KVM has no operation for it, but what it creates is in the state after power-on: that is
 * taken when it is new, and put back. This includes the MSRs of the paravirtual interface: with
 * the clock, steal time or EOI words of the guest before still set, KVM would write into the
 * memory of the guest after.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "engine/kvm/internal.h"

/* KVM_GET_MSRS and KVM_SET_MSRS take no more in a call (MAX_IO_MSRS). */
#define MSRS_PER_CALL           256

#define MSR_IA32_TSC            0x10
#define MSR_IA32_APICBASE       0x1b
#define MSR_IA32_MISC_ENABLE    0x1a0
#define MISC_ENABLE_FAST_STRING 1u
#define MSR_MTRR_PHYS_BASE0     0x200 /* to 0x20f: 8 pairs of base and mask */
#define MSR_MTRR_FIX64K_00000   0x250
#define MSR_MTRR_FIX16K_80000   0x258
#define MSR_MTRR_FIX16K_A0000   0x259
#define MSR_MTRR_FIX4K_C0000    0x268 /* to 0x26f: 32 KiB each */
#define MSR_IA32_DEBUGCTL       0x1d9
#define MSR_IA32_MC0_CTL        0x400 /* 4 MSRs a bank, up to 32 banks */
#define MSR_MTRR_DEF_TYPE       0x2ff

#define MTRR_ALL_WB             0x0606060606060606ULL
#define MTRR_ALL_WP             0x0505050505050505ULL
#define MTRR_DEF_TYPE_WB        0xc06 /* enabled, fixed ranges enabled, write-back */

static struct kvm_msrs *batch_new(void)
{
    return calloc(1, sizeof(struct kvm_msrs) + MSRS_PER_CALL * sizeof(struct kvm_msr_entry));
}

static uint32_t batch_fill(struct kvm_msrs *batch, const struct kvm_msr_entry *from, uint32_t left)
{
    batch->nmsrs = left < MSRS_PER_CALL ? left : MSRS_PER_CALL;
    memcpy(batch->entries, from, batch->nmsrs * sizeof(*from));
    return batch->nmsrs;
}

/* Fill in the values. KVM stops at the first entry that it refuses: those leave the table. */
static int msrs_read(struct kvm_cpu *cpu, struct msr_table *table)
{
    struct kvm_msrs *batch = batch_new();
    if (!batch)
        return -ENOMEM;
    int code = 0;
    uint32_t done = 0, kept = 0;
    while (done < table->count) {
        uint32_t n = batch_fill(batch, &table->entries[done], table->count - done);
        int got = ioctl(cpu->fd, KVM_GET_MSRS, batch);
        if (got < 0) {
            code = -errno;
            break;
        }
        memcpy(&table->entries[kept], batch->entries, (size_t)got * sizeof(batch->entries[0]));
        kept += (uint32_t)got;
        done += (uint32_t)got;
        if ((uint32_t)got < n)
            done++;
    }
    free(batch);
    table->count = kept;
    return code;
}

/* Write all values, in order. An MSR that KVM refuses is one that a guest cannot have changed
 * either (read-only, or absent from its CPUID). */
static int msrs_write(struct kvm_cpu *cpu, const struct kvm_msr_entry *entries, uint32_t count)
{
    struct kvm_msrs *batch = batch_new();
    if (!batch)
        return -ENOMEM;
    int code = 0;
    uint32_t done = 0;
    while (done < count) {
        uint32_t n = batch_fill(batch, &entries[done], count - done);
        int put = ioctl(cpu->fd, KVM_SET_MSRS, batch);
        if (put < 0) {
            code = -errno;
            break;
        }
        done += (uint32_t)put;
        if ((uint32_t)put < n) {
            log_debug("kvm", "vCPU %u: MSR 0x%x stays as it is", cpu->base.id, entries[done].index);
            done++;
        }
    }
    free(batch);
    return code;
}

static int msr_write(struct kvm_cpu *cpu, uint32_t index, uint64_t value)
{
    return msrs_write(cpu, &(struct kvm_msr_entry){.index = index, .data = value}, 1);
}

/* --- taking --- */

/* MSRs that are the same before and after whatever a guest does, or are set in another way. */
static bool msr_left_out(uint32_t index)
{
    return index == MSR_IA32_TSC ||                      /* zeroed by itself */
           index == MSR_IA32_APICBASE ||                 /* in kvm_sregs */
           (index >= 0x480 && index <= 0x493) ||         /* VMX capabilities: VMX is not offered */
           (index >= 0x40000000 && index <= 0x400001ff); /* Hyper-V's: it is not offered */
}

/* MSRs that a guest can write and that KVM does not list (or lists only in newer versions). */
static const struct {
    uint32_t first, count;
} unlisted_msrs[] = {
    {MSR_MTRR_PHYS_BASE0,   16    },
    {MSR_MTRR_FIX64K_00000, 1     },
    {MSR_MTRR_FIX16K_80000, 2     },
    {MSR_MTRR_FIX4K_C0000,  8     },
    {MSR_MTRR_DEF_TYPE,     1     },
    {MSR_IA32_DEBUGCTL,     1     },
    {MSR_IA32_MC0_CTL,      4 * 32},
};

static void msr_table_add(struct msr_table *table, uint32_t index)
{
    for (uint32_t i = 0; i < table->count; i++) {
        if (table->entries[i].index == index)
            return;
    }
    if (table->count < KVM_MSRS_MAX)
        table->entries[table->count++] = (struct kvm_msr_entry){.index = index};
}

static int take_msrs(struct kvm_cpu *cpu, struct msr_table *table)
{
    struct kvm_msr_list *list = calloc(1, sizeof(*list) + KVM_MSRS_MAX * sizeof(list->indices[0]));
    if (!list)
        return -ENOMEM;
    list->nmsrs = KVM_MSRS_MAX;
    int code = 0;
    if (ioctl(cpu->vm->host.fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
        code = -errno;
    table->count = 0;
    for (uint32_t i = 0; code == 0 && i < list->nmsrs; i++) {
        if (!msr_left_out(list->indices[i]))
            msr_table_add(table, list->indices[i]);
    }
    for (size_t i = 0; i < ARRAY_LEN(unlisted_msrs); i++) {
        for (uint32_t k = 0; k < unlisted_msrs[i].count; k++)
            msr_table_add(table, unlisted_msrs[i].first + k);
    }
    free(list);
    if (code == 0)
        code = msrs_read(cpu, table);
    for (uint32_t i = 0; code == 0 && i < table->count; i++) {
        /* Processors start with it, KVM's do not, and Linux then avoids string instructions. */
        if (table->entries[i].index == MSR_IA32_MISC_ENABLE)
            table->entries[i].data |= MISC_ENABLE_FAST_STRING;
    }
    return code;
}

static int take_shared(struct kvm_cpu *cpu, struct err *err)
{
    struct kvm_machine *vm = cpu->vm;
    struct fresh_cpu *fresh = &vm->fresh_cpu;
    fresh->xsave = calloc(1, (size_t)vm->host.xsave_bytes);
    if (!fresh->xsave)
        return err_errno(err, ENOMEM, "state of a vCPU");
    unsigned long get_xsave =
        (size_t)vm->host.xsave_bytes > sizeof(struct kvm_xsave) ? KVM_GET_XSAVE2 : KVM_GET_XSAVE;
    if (ioctl(cpu->fd, KVM_GET_REGS, &fresh->regs) < 0 ||
        ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &fresh->events) < 0 ||
        ioctl(cpu->fd, KVM_GET_DEBUGREGS, &fresh->debugregs) < 0 ||
        ioctl(cpu->fd, KVM_GET_XCRS, &fresh->xcrs) < 0 ||
        ioctl(cpu->fd, get_xsave, fresh->xsave) < 0)
        return err_errno(err, errno, "read the state of a new vCPU");
    int code = take_msrs(cpu, &fresh->msrs);
    if (code < 0)
        return err_errno(err, code, "read the MSRs of a new vCPU");
    /* RDX is the processor's signature after reset; the vCPU was created before it had one. */
    const struct cpuid_leaf *leaf = cpuid_find(&vm->cpuid, 1, 0);
    if (leaf)
        fresh->regs.rdx = leaf->eax;
    fresh->taken = true;
    return 0;
}

int kvm_state_take_cpu(struct kvm_cpu *cpu, struct err *err)
{
    struct fresh_cpu *fresh = &cpu->vm->fresh_cpu;
    if (!fresh->taken) {
        int code = take_shared(cpu, err);
        if (code < 0) {
            kvm_state_fini(cpu->vm);
            return code;
        }
    }
    if (ioctl(cpu->fd, KVM_GET_SREGS, &cpu->fresh_sregs) < 0 ||
        ioctl(cpu->fd, KVM_GET_LAPIC, &cpu->fresh_lapic) < 0)
        return err_errno(err, errno, "read the state of a new vCPU");
    if (ioctl(cpu->fd, KVM_SET_REGS, &fresh->regs) < 0)
        return err_errno(err, errno, "set the registers of a new vCPU");
    for (uint32_t i = 0; i < fresh->msrs.count; i++) {
        if (fresh->msrs.entries[i].index != MSR_IA32_MISC_ENABLE)
            continue;
        int code = msrs_write(cpu, &fresh->msrs.entries[i], 1);
        if (code < 0)
            return err_errno(err, code, "set IA32_MISC_ENABLE of a new vCPU");
    }
    return 0;
}

void kvm_state_fini(struct kvm_machine *vm)
{
    free(vm->fresh_cpu.xsave);
    vm->fresh_cpu.xsave = NULL;
    vm->fresh_cpu.taken = false;
}

int kvm_state_take_chips(struct kvm_machine *vm, struct err *err)
{
    struct fresh_chips *fresh = &vm->fresh_chips;
    fresh->pic_master.chip_id = KVM_IRQCHIP_PIC_MASTER;
    fresh->pic_slave.chip_id = KVM_IRQCHIP_PIC_SLAVE;
    fresh->ioapic.chip_id = KVM_IRQCHIP_IOAPIC;
    if (ioctl(vm->fd, KVM_GET_IRQCHIP, &fresh->pic_master) < 0 ||
        ioctl(vm->fd, KVM_GET_IRQCHIP, &fresh->pic_slave) < 0 ||
        ioctl(vm->fd, KVM_GET_IRQCHIP, &fresh->ioapic) < 0 ||
        ioctl(vm->fd, KVM_GET_PIT2, &fresh->pit) < 0)
        return err_errno(err, errno, "read the state of the new interrupt controllers");
    return 0;
}

/* --- putting back --- */

int kvm_vm_reset(struct engine_vm *evm, struct err *err)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    struct fresh_chips *fresh = &vm->fresh_chips;
    struct kvm_clock_data clock = {.clock = 0};
    int code = kvm_pit_connect(evm, true);
    if (code < 0)
        return err_errno(err, code, "connect the interval timer");
    if (ioctl(vm->fd, KVM_SET_IRQCHIP, &fresh->pic_master) < 0 ||
        ioctl(vm->fd, KVM_SET_IRQCHIP, &fresh->pic_slave) < 0 ||
        ioctl(vm->fd, KVM_SET_IRQCHIP, &fresh->ioapic) < 0 ||
        ioctl(vm->fd, KVM_SET_PIT2, &fresh->pit) < 0 || ioctl(vm->fd, KVM_SET_CLOCK, &clock) < 0)
        return err_errno(err, errno, "reset the interrupt controllers and timers");
    return 0;
}

int kvm_state_restore_registers(struct kvm_cpu *cpu)
{
    struct kvm_regs regs = cpu->vm->fresh_cpu.regs;
    if (ioctl(cpu->fd, KVM_SET_SREGS, &cpu->fresh_sregs) < 0 ||
        ioctl(cpu->fd, KVM_SET_REGS, &regs) < 0)
        return -errno;
    return 0;
}

/* Write those MSRs that the guest has changed: fewer, and none of those that KVM lets nobody write
 * and complains about in the host's log. */
static int restore_msrs(struct kvm_cpu *cpu)
{
    const struct msr_table *fresh = &cpu->vm->fresh_cpu.msrs;
    struct msr_table *table = malloc(sizeof(*table));
    if (!table)
        return -ENOMEM;
    *table = *fresh;
    int code = msrs_read(cpu, table);
    uint32_t changed = 0;
    for (uint32_t i = 0, k = 0; code == 0 && i < table->count; i++) {
        while (fresh->entries[k].index != table->entries[i].index)
            k++;
        if (table->entries[i].data != fresh->entries[k].data)
            table->entries[changed++] = fresh->entries[k];
    }
    if (code == 0)
        code = msrs_write(cpu, table->entries, changed);
    free(table);
    return code;
}

/*
 * The order matters: what waits for the vCPU (INIT, SIPI) is taken in by asking for its state, so
 * that it does not arrive afterwards; the local APIC's mode (in sregs) comes before its registers,
 * whose format it decides, and these before the MSRs, one of which is its timer.
 */
int kvm_vcpu_reset(struct engine_vcpu *vcpu, struct err *err)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    struct fresh_cpu *fresh = &cpu->vm->fresh_cpu;
    /* The reset of a new machine: nothing has happened to it, and start-up is to be short. */
    if (!cpu->set && !__atomic_load_n(&cpu->vm->ran, __ATOMIC_ACQUIRE))
        return 0;
    int code = kvm_cpu_finish_io(cpu);
    if (code < 0)
        return err_errno(err, code, "reset vCPU %u: finish its access", vcpu->id);

    struct kvm_mp_state mp;
    if (ioctl(cpu->fd, KVM_GET_MP_STATE, &mp) < 0)
        return err_errno(err, errno, "reset vCPU %u: read its run state", vcpu->id);
    mp.mp_state = vcpu->id == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED;
    if (ioctl(cpu->fd, KVM_SET_MP_STATE, &mp) < 0)
        return err_errno(err, errno, "reset vCPU %u: set its run state", vcpu->id);
    if (ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &fresh->events) < 0)
        return err_errno(err, errno, "reset vCPU %u: pending exceptions", vcpu->id);
    code = kvm_state_restore_registers(cpu);
    if (code < 0)
        return err_errno(err, code, "reset vCPU %u: registers", vcpu->id);
    if (ioctl(cpu->fd, KVM_SET_XCRS, &fresh->xcrs) < 0 ||
        ioctl(cpu->fd, KVM_SET_XSAVE, fresh->xsave) < 0)
        return err_errno(err, errno, "reset vCPU %u: vector registers", vcpu->id);
    if (ioctl(cpu->fd, KVM_SET_DEBUGREGS, &fresh->debugregs) < 0)
        return err_errno(err, errno, "reset vCPU %u: debug registers", vcpu->id);
    if (ioctl(cpu->fd, KVM_SET_LAPIC, &cpu->fresh_lapic) < 0)
        return err_errno(err, errno, "reset vCPU %u: local APIC", vcpu->id);
    code = restore_msrs(cpu);
    if (code == 0)
        code = msr_write(cpu, MSR_IA32_TSC, 0);
    if (code < 0)
        return err_errno(err, code, "reset vCPU %u: MSRs", vcpu->id);
    cpu->fresh = true;
    cpu->set = false;
    if (vcpu->id == 0)
        __atomic_store_n(&cpu->vm->no_firmware, false, __ATOMIC_RELEASE);
    return 0;
}

void kvm_state_firmware_msrs(struct kvm_cpu *cpu)
{
    /* SDM vol. 3, 11.11: RAM below 640 KiB cached, the VGA window not, ROMs write-protected. */
    static const struct kvm_msr_entry msrs[] = {
        {.index = MSR_MTRR_FIX64K_00000,    .data = MTRR_ALL_WB     },
        {.index = MSR_MTRR_FIX16K_80000,    .data = MTRR_ALL_WB     },
        {.index = MSR_MTRR_FIX16K_A0000,    .data = 0               },
        {.index = MSR_MTRR_FIX4K_C0000,     .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_FIX4K_C0000 + 1, .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_FIX4K_C0000 + 2, .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_FIX4K_C0000 + 3, .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_FIX4K_C0000 + 4, .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_FIX4K_C0000 + 5, .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_FIX4K_C0000 + 6, .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_FIX4K_C0000 + 7, .data = MTRR_ALL_WP     },
        {.index = MSR_MTRR_DEF_TYPE,        .data = MTRR_DEF_TYPE_WB},
    };
    int code = msrs_write(cpu, msrs, ARRAY_LEN(msrs));
    if (code < 0)
        log_warn("kvm", "vCPU %u: set the MTRRs: %s", cpu->base.id, strerror(-code));
}
