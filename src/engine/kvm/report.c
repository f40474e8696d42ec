/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/units.h"
#include "engine/kvm/internal.h"
#include "engine/report.h"
#include "engine/stats.h"

/* In newer headers than the oldest that Hull builds with. */
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

static const char *const exit_names[] = {
    [KVM_EXIT_UNKNOWN] = "UNKNOWN",
    [KVM_EXIT_EXCEPTION] = "EXCEPTION",
    [KVM_EXIT_HYPERCALL] = "HYPERCALL",
    [KVM_EXIT_DEBUG] = "DEBUG",
    [KVM_EXIT_HLT] = "HLT",
    [KVM_EXIT_FAIL_ENTRY] = "FAIL_ENTRY",
    [KVM_EXIT_SET_TPR] = "SET_TPR",
    [KVM_EXIT_TPR_ACCESS] = "TPR_ACCESS",
    [KVM_EXIT_NMI] = "NMI",
    [KVM_EXIT_INTERNAL_ERROR] = "INTERNAL_ERROR",
    [KVM_EXIT_WATCHDOG] = "WATCHDOG",
    [KVM_EXIT_SYSTEM_EVENT] = "SYSTEM_EVENT",
    [KVM_EXIT_IOAPIC_EOI] = "IOAPIC_EOI",
    [KVM_EXIT_HYPERV] = "HYPERV",
    [KVM_EXIT_X86_RDMSR] = "X86_RDMSR",
    [KVM_EXIT_X86_WRMSR] = "X86_WRMSR",
    [KVM_EXIT_DIRTY_RING_FULL] = "DIRTY_RING_FULL",
    [KVM_EXIT_X86_BUS_LOCK] = "X86_BUS_LOCK",
    [KVM_EXIT_XEN] = "XEN",
    [KVM_EXIT_NOTIFY] = "NOTIFY",
    [KVM_EXIT_MEMORY_FAULT] = "MEMORY_FAULT",
};

void kvm_vcpu_stats(struct engine_vcpu *vcpu, struct engine_stats *stats)
{
    const struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    engine_stats_add(stats, cpu->exits[KVM_EXIT_IO], "device port accesses");
    engine_stats_add(stats, cpu->exits[KVM_EXIT_MMIO], "device memory accesses");
    engine_stats_add(stats, cpu->interrupted, "interrupted by a signal");
    for (unsigned i = 0; i < KVM_EXITS_COUNTED; i++) {
        if (i != KVM_EXIT_IO && i != KVM_EXIT_MMIO)
            engine_stats_add_ranked(stats, cpu->exits[i], "exit %u %s", i,
                                    i < ARRAY_LEN(exit_names) && exit_names[i] ? exit_names[i]
                                                                               : "");
    }
}

/* The bytes at CS:RIP, through the guest's page tables and out of its memory. */
static size_t read_instruction(struct kvm_cpu *cpu, const struct kvm_regs *regs,
                               const struct kvm_sregs *sregs, uint8_t bytes[INSTRUCTION_BYTES_MAX])
{
    for (size_t i = 0; i < INSTRUCTION_BYTES_MAX; i++) {
        uint64_t base = sregs->cs.l && sregs->efer & CPU_EFER_LMA ? 0 : sregs->cs.base;
        struct kvm_translation t = {.linear_address = base + regs->rip + i};
        if (ioctl(cpu->fd, KVM_TRANSLATE, &t) < 0 || !t.valid)
            return i;
        const uint8_t *byte = kvm_guest_byte(cpu->vm, t.physical_address);
        if (!byte)
            return i;
        bytes[i] = *byte;
    }
    return INSTRUCTION_BYTES_MAX;
}

/* Registers and instruction, behind the sentence. known: the bytes that KVM itself reports. */
static void append_state(struct kvm_cpu *cpu, struct engine_exit *exit, const uint8_t *known,
                         size_t known_len)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    if (ioctl(cpu->fd, KVM_GET_REGS, &regs) < 0 || ioctl(cpu->fd, KVM_GET_SREGS, &sregs) < 0) {
        engine_report_append(exit, "\nthe registers cannot be read: %s", strerror(errno));
        return;
    }
    struct cpu_regs r;
    struct cpu_sregs sr;
    kvm_regs_to_cpu(&r, &regs);
    kvm_sregs_to_cpu(&sr, &sregs);
    engine_report_state(exit, &r, &sr);
    if (known_len > 0) {
        engine_report_instruction(exit, known, known_len);
        return;
    }
    uint8_t bytes[INSTRUCTION_BYTES_MAX];
    size_t len = read_instruction(cpu, &regs, &sregs, bytes);
    engine_report_instruction(exit, bytes, len);
}

static void start(struct kvm_cpu *cpu, struct engine_exit *exit)
{
    exit->kind = ENGINE_EXIT_FAILURE;
    snprintf(exit->text, sizeof(exit->text), "vCPU %u: ", cpu->base.id);
}

static void report_internal_error(struct kvm_cpu *cpu, struct engine_exit *exit)
{
    const struct kvm_run *run = cpu->run;
    const uint8_t *known = NULL;
    size_t known_len = 0;
    switch (run->internal.suberror) {
    case KVM_INTERNAL_ERROR_EMULATION:
        engine_report_append(exit, "KVM cannot emulate an instruction of the guest");
        if (run->emulation_failure.ndata > 0 &&
            run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES &&
            run->emulation_failure.insn_size <= INSTRUCTION_BYTES_MAX) {
            known = run->emulation_failure.insn_bytes;
            known_len = run->emulation_failure.insn_size;
        }
        break;
    case KVM_INTERNAL_ERROR_SIMUL_EX:
        engine_report_append(exit, "KVM met an exception while it delivered an exception");
        break;
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
        engine_report_append(exit, "KVM could not deliver an interrupt or exception to the guest");
        break;
    case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
        engine_report_append(exit,
                             "the processor left the guest for a reason that KVM does not know");
        if (run->internal.ndata > 0)
            engine_report_append(exit, ": 0x%llx", (unsigned long long)run->internal.data[0]);
        break;
    default:
        engine_report_append(exit, "KVM reports internal error %u", run->internal.suberror);
        break;
    }
    append_state(cpu, exit, known, known_len);
}

void kvm_report_exit(struct kvm_cpu *cpu, struct engine_exit *exit)
{
    const struct kvm_run *run = cpu->run;
    start(cpu, exit);
    switch (run->exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR:
        report_internal_error(cpu, exit);
        return;
    case KVM_EXIT_FAIL_ENTRY:
        engine_report_append(
            exit,
            "the processor refuses the guest's state (hardware reason 0x%llx, on host CPU %u)",
            (unsigned long long)run->fail_entry.hardware_entry_failure_reason, run->fail_entry.cpu);
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        engine_report_append(exit, "KVM reports system event %u, which this machine has no use for",
                             run->system_event.type);
        break;
    case KVM_EXIT_UNKNOWN:
        engine_report_append(
            exit, "the processor left the guest for a reason that KVM does not know: 0x%llx",
            (unsigned long long)run->hw.hardware_exit_reason);
        break;
    default: {
        const char *name =
            run->exit_reason < ARRAY_LEN(exit_names) ? exit_names[run->exit_reason] : NULL;
        engine_report_append(exit,
                             "KVM left the guest with exit %u (%s), which Hull has not asked for",
                             run->exit_reason, name ? name : "unknown");
        break;
    }
    }
    append_state(cpu, exit, NULL, 0);
}

void kvm_report_run_error(struct kvm_cpu *cpu, int code, struct engine_exit *exit)
{
    start(cpu, exit);
    switch (-code) {
    case EFAULT:
        engine_report_append(
            exit, "KVM cannot reach a page of the guest's memory (the host may have run out of "
                  "huge pages, or the guest executes from a device)");
        break;
    case EHWPOISON:
        engine_report_append(
            exit, "the guest touched a page whose memory is defective (look at the host's "
                  "kernel log)");
        break;
    case ENOMEM:
        engine_report_append(exit, "the host has no memory left for KVM");
        break;
    default:
        engine_report_append(exit, "KVM_RUN: %s", strerror(-code));
        break;
    }
    append_state(cpu, exit, NULL, 0);
}
