/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's paravirtual interface, as far as it helps here: a stable clock, halting spinners, TLB
 * flushes and IPIs without a trip through each sleeping vCPU. Linux Documentation/virt/kvm/x86:
 * cpuid.rst, msr.rst, hypercalls.rst.
 *
 * The TSC counts guest nanoseconds (plus what the guest has added), so the clock page never changes
 * once it is written: time = (tsc - tsc_timestamp) * mul / 2^32 << shift, with factor 1.
 */
#include <sched.h>
#include <string.h>
#include <time.h>

#include "base/units.h"
#include "engine/chip/lapic.h"
#include "engine/soft/mmu.h"
#include "engine/soft/vm.h"

#define FEATURE_CLOCKSOURCE        (1u << 0)
#define FEATURE_NOP_IO_DELAY       (1u << 1)
#define FEATURE_CLOCKSOURCE2       (1u << 3)
#define FEATURE_STEAL_TIME         (1u << 5)
#define FEATURE_PV_UNHALT          (1u << 7)
#define FEATURE_PV_TLB_FLUSH       (1u << 9)
#define FEATURE_PV_SEND_IPI        (1u << 11)
#define FEATURE_PV_SCHED_YIELD     (1u << 13)
#define FEATURE_MSI_EXT_DEST_ID    (1u << 15)
#define FEATURE_CLOCKSOURCE_STABLE (1u << 24)

#define MSR_WALL_CLOCK_OLD         0x11u
#define MSR_SYSTEM_TIME_OLD        0x12u
#define MSR_WALL_CLOCK             0x4b564d00u
#define MSR_SYSTEM_TIME            0x4b564d01u
#define MSR_STEAL_TIME             0x4b564d03u

#define ENABLED                    1ULL
#define STABLE                     1u /* pvclock flags: PVCLOCK_TSC_STABLE_BIT */

/* struct kvm_steal_time */
#define STEAL_BYTES     64
#define STEAL_PREEMPTED 16 /* offset */
#define PREEMPTED       1u
#define FLUSH_TLB       2u

#define HC_KICK_CPU     5u
#define HC_SEND_IPI     10u
#define HC_SCHED_YIELD  11u
#define EPERM_KVM       1
#define ENOSYS_KVM      1000
#define EINVAL_KVM      22

/* Without need of it messages stay those of hardware. */
uint32_t pv_features(unsigned vcpu_count)
{
    uint32_t wide_ids = vcpu_count > 255 ? FEATURE_MSI_EXT_DEST_ID : 0;
    return wide_ids | FEATURE_CLOCKSOURCE | FEATURE_NOP_IO_DELAY | FEATURE_CLOCKSOURCE2 |
           FEATURE_STEAL_TIME | FEATURE_PV_UNHALT | FEATURE_PV_TLB_FLUSH | FEATURE_PV_SEND_IPI |
           FEATURE_PV_SCHED_YIELD | FEATURE_CLOCKSOURCE_STABLE;
}

/* --- time --- */

static uint64_t now_ns(struct soft_cpu *cpu)
{
    if (chip_clock_is_virtual(cpu->vm->clock))
        return cpu->instructions + cpu->clock_offset_ns;
    return chip_clock_now(cpu->vm->clock);
}

uint64_t soft_tsc(struct soft_cpu *cpu)
{
    return now_ns(cpu) + cpu->msr.tsc_adjust;
}

uint64_t soft_tsc_khz(const struct soft_vm *vm)
{
    (void)vm;
    return 1000000;
}

/* struct pvclock_vcpu_time_info; a guest that reads it meanwhile sees an odd version. */
void pv_write_clock(struct soft_cpu *cpu)
{
    uint8_t page[32] = {0};
    uint64_t value = cpu->msr.kvm_system_time;
    if (!(value & ENABLED) || !cpu->vm->mem)
        return;
    gpa_t gpa = GPA(value & ~ENABLED);
    uint32_t version = 0;
    mem_read(cpu->vm->mem, gpa, &version, sizeof(version));
    version = (version | 1) + 2;
    mem_write(cpu->vm->mem, gpa, &version, sizeof(version));
    store_le32(page, version + 1);
    store_le64(page + 8, cpu->msr.tsc_adjust); /* the TSC when guest time is zero */
    store_le64(page + 16, 0);
    store_le32(page + 24, 0x80000000); /* mul: 1/2; shift: 1 */
    page[28] = 1;
    page[29] = STABLE;
    mem_write(cpu->vm->mem, gpa_add(gpa, 4), page + 4, sizeof(page) - 4);
    mem_write(cpu->vm->mem, gpa, page, sizeof(version));
}

/* The time of day at the guest's time zero. */
static void write_wall_clock(struct soft_cpu *cpu, uint64_t gpa)
{
    uint8_t page[12];
    struct timespec ts = {.tv_sec = SOFT_VIRTUAL_EPOCH};
    if (!cpu->vm->mem)
        return;
    if (!chip_clock_is_virtual(cpu->vm->clock)) {
        clock_gettime(CLOCK_REALTIME, &ts);
        uint64_t boot = (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec - now_ns(cpu);
        ts.tv_sec = (time_t)(boot / 1000000000ULL);
        ts.tv_nsec = (long)(boot % 1000000000ULL);
    }
    store_le32(page, 2);
    store_le32(page + 4, (uint32_t)ts.tv_sec);
    store_le32(page + 8, (uint32_t)ts.tv_nsec);
    mem_write(cpu->vm->mem, GPA(gpa), page, sizeof(page));
}

/* --- sleeping vCPUs --- */

static uint8_t *preempted_byte(struct soft_cpu *cpu)
{
    uint64_t value = cpu->msr.kvm_steal_time;
    if (!(value & ENABLED) || !cpu->vm->mem)
        return NULL;
    uint8_t *area = mem_ptr(cpu->vm->mem, GPA(value & ~0x3fULL), STEAL_BYTES, MEM_WRITE);
    return area ? area + STEAL_PREEMPTED : NULL;
}

void pv_sleeps(struct soft_cpu *cpu)
{
    uint8_t *byte = preempted_byte(cpu);
    if (byte)
        __atomic_store_n(byte, PREEMPTED, __ATOMIC_SEQ_CST);
}

void pv_wakes(struct soft_cpu *cpu)
{
    uint8_t *byte = preempted_byte(cpu);
    if (byte && __atomic_exchange_n(byte, 0, __ATOMIC_SEQ_CST) & FLUSH_TLB)
        mmu_flush_all(cpu);
}

/* --- MSRs --- */

bool pv_msr_read(struct soft_cpu *cpu, uint32_t index, uint64_t *value, bool *handled)
{
    *handled = true;
    switch (index) {
    case MSR_WALL_CLOCK:
    case MSR_WALL_CLOCK_OLD:
        *value = cpu->msr.kvm_wall_clock;
        return true;
    case MSR_SYSTEM_TIME:
    case MSR_SYSTEM_TIME_OLD:
        *value = cpu->msr.kvm_system_time;
        return true;
    case MSR_STEAL_TIME:
        *value = cpu->msr.kvm_steal_time;
        return true;
    default:
        *handled = false;
        return false;
    }
}

bool pv_msr_write(struct soft_cpu *cpu, uint32_t index, uint64_t value, bool *handled)
{
    *handled = true;
    switch (index) {
    case MSR_WALL_CLOCK:
    case MSR_WALL_CLOCK_OLD:
        cpu->msr.kvm_wall_clock = value;
        write_wall_clock(cpu, value);
        return true;
    case MSR_SYSTEM_TIME:
    case MSR_SYSTEM_TIME_OLD:
        cpu->msr.kvm_system_time = value;
        pv_write_clock(cpu);
        return true;
    case MSR_STEAL_TIME:
        if (value & 0x3e)
            return false;
        cpu->msr.kvm_steal_time = value;
        return true;
    default:
        *handled = false;
        return false;
    }
}

/* --- hypercalls --- */

/* A vCPU that halted on a contended lock goes on. */
static int64_t kick_cpu(struct soft_cpu *cpu, uint64_t id)
{
    if (id < cpu->vm->config.vcpu_count && cpu->vm->cpus[id])
        soft_cpu_notify(cpu->vm->cpus[id], SOFT_EVENT_UNHALT);
    return 0;
}

static int64_t send_ipi(struct soft_cpu *cpu)
{
    uint64_t maps[2] = {cpu->gpr[CPU_RBX], cpu->gpr[CPU_RCX]};
    uint64_t first = cpu->gpr[CPU_RDX], icr = cpu->gpr[CPU_RSI];
    struct ipi ipi = {.vector = (uint8_t)icr, .delivery = icr >> 8 & 7, .x2apic = true};
    int64_t sent = 0;
    if (ipi.delivery != 0 && ipi.delivery != 4)
        return -EINVAL_KVM;
    for (unsigned word = 0; word < 2; word++) {
        for (uint64_t bits = maps[word]; bits; bits &= bits - 1) {
            uint64_t id = first + 64ULL * word + (unsigned)__builtin_ctzll(bits);
            if (id >= cpu->vm->config.vcpu_count)
                continue;
            irqchip_send_to(cpu->vm->irqchip, (unsigned)id, &ipi);
            sent++;
        }
    }
    return sent;
}

void pv_hypercall(struct soft_cpu *cpu)
{
    int64_t result = -ENOSYS_KVM;
    if (cpu->mode.cpl != 0) {
        cpu->gpr[CPU_RAX] = (uint64_t)(int64_t)-EPERM_KVM;
        return;
    }
    switch (cpu->gpr[CPU_RAX]) {
    case HC_KICK_CPU:
        result = kick_cpu(cpu, cpu->gpr[CPU_RCX]);
        break;
    case HC_SEND_IPI:
        result = send_ipi(cpu);
        break;
    case HC_SCHED_YIELD:
        sched_yield();
        result = 0;
        break;
    default:
        break;
    }
    cpu->gpr[CPU_RAX] = (uint64_t)result;
}
