/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/units.h"
#include "engine/kvm/internal.h"

/* An x86 instruction has at most 15 bytes (SDM vol. 2, 2.3.11). */
#define INSTRUCTION_MAX 15

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

__attribute__((format(printf, 2, 3))) static void append(struct engine_exit *exit, const char *fmt,
                                                         ...)
{
    size_t used = strlen(exit->text);
    va_list args;
    va_start(args, fmt);
    vsnprintf(exit->text + used, sizeof(exit->text) - used, fmt, args);
    va_end(args);
}

static void append_registers(struct engine_exit *exit, const struct kvm_regs *r)
{
    const struct {
        const char *name;
        uint64_t value;
    } regs[] = {
        {"rax", r->rax},
        {"rbx", r->rbx},
        {"rcx", r->rcx},
        {"rdx", r->rdx},
        {"rsi", r->rsi},
        {"rdi", r->rdi},
        {"rbp", r->rbp},
        {"rsp", r->rsp},
        {"r8",  r->r8 },
        {"r9",  r->r9 },
        {"r10", r->r10},
        {"r11", r->r11},
        {"r12", r->r12},
        {"r13", r->r13},
        {"r14", r->r14},
        {"r15", r->r15},
    };
    for (size_t i = 0; i < ARRAY_LEN(regs); i++)
        append(exit, "%s%-3s %016llx", i % 4 == 0 ? "\n" : "  ", regs[i].name,
               (unsigned long long)regs[i].value);
    append(exit, "\nrip %016llx  rflags %08llx", (unsigned long long)r->rip,
           (unsigned long long)r->rflags);
}

static void append_system_registers(struct engine_exit *exit, const struct kvm_sregs *s)
{
    const struct {
        const char *name;
        const struct kvm_segment *segment;
    } segments[] = {
        {"cs",  &s->cs },
        {"ss",  &s->ss },
        {"ds",  &s->ds },
        {"es",  &s->es },
        {"fs",  &s->fs },
        {"gs",  &s->gs },
        {"tr",  &s->tr },
        {"ldt", &s->ldt},
    };
    append(exit, "\ncr0 %08llx  cr2 %016llx  cr3 %016llx  cr4 %08llx  efer %04llx",
           (unsigned long long)s->cr0, (unsigned long long)s->cr2, (unsigned long long)s->cr3,
           (unsigned long long)s->cr4, (unsigned long long)s->efer);
    for (size_t i = 0; i < ARRAY_LEN(segments); i++) {
        const struct kvm_segment *g = segments[i].segment;
        append(exit, "\n%-3s %04x  base %016llx  limit %08x  type %x dpl %u%s%s%s%s",
               segments[i].name, g->selector, (unsigned long long)g->base, g->limit, g->type,
               g->dpl, g->present ? " present" : "", g->l ? " 64-bit" : "", g->db ? " 32-bit" : "",
               g->unusable ? " unusable" : "");
    }
    append(exit, "\ngdt %016llx limit %04x  idt %016llx limit %04x",
           (unsigned long long)s->gdt.base, s->gdt.limit, (unsigned long long)s->idt.base,
           s->idt.limit);
}

/* The bytes at CS:RIP, through the guest's page tables and out of its memory. */
static size_t read_instruction(struct kvm_cpu *cpu, const struct kvm_regs *regs,
                               const struct kvm_sregs *sregs, uint8_t bytes[INSTRUCTION_MAX])
{
    for (size_t i = 0; i < INSTRUCTION_MAX; i++) {
        uint64_t base = sregs->cs.l && sregs->efer & CPU_EFER_LMA ? 0 : sregs->cs.base;
        struct kvm_translation t = {.linear_address = base + regs->rip + i};
        if (ioctl(cpu->fd, KVM_TRANSLATE, &t) < 0 || !t.valid)
            return i;
        const uint8_t *byte = kvm_guest_byte(cpu->vm, t.physical_address);
        if (!byte)
            return i;
        bytes[i] = *byte;
    }
    return INSTRUCTION_MAX;
}

/* Registers and instruction, behind the sentence. known: the bytes that KVM itself reports. */
static void append_state(struct kvm_cpu *cpu, struct engine_exit *exit, const uint8_t *known,
                         size_t known_len)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    if (ioctl(cpu->fd, KVM_GET_REGS, &regs) < 0 || ioctl(cpu->fd, KVM_GET_SREGS, &sregs) < 0) {
        append(exit, "\nthe registers cannot be read: %s", strerror(errno));
        return;
    }
    append_registers(exit, &regs);
    append_system_registers(exit, &sregs);
    uint8_t bytes[INSTRUCTION_MAX];
    size_t len = known_len;
    if (len > 0)
        memcpy(bytes, known, len);
    else
        len = read_instruction(cpu, &regs, &sregs, bytes);
    append(exit, "\ninstruction");
    for (size_t i = 0; i < len; i++)
        append(exit, " %02x", bytes[i]);
    if (len == 0)
        append(exit, " unreadable: no memory is mapped at the instruction pointer");
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
        append(exit, "KVM cannot emulate an instruction of the guest");
        if (run->emulation_failure.ndata > 0 &&
            run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES &&
            run->emulation_failure.insn_size <= INSTRUCTION_MAX) {
            known = run->emulation_failure.insn_bytes;
            known_len = run->emulation_failure.insn_size;
        }
        break;
    case KVM_INTERNAL_ERROR_SIMUL_EX:
        append(exit, "KVM met an exception while it delivered an exception");
        break;
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
        append(exit, "KVM could not deliver an interrupt or exception to the guest");
        break;
    case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
        append(exit, "the processor left the guest for a reason that KVM does not know");
        if (run->internal.ndata > 0)
            append(exit, ": 0x%llx", (unsigned long long)run->internal.data[0]);
        break;
    default:
        append(exit, "KVM reports internal error %u", run->internal.suberror);
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
        append(exit,
               "the processor refuses the guest's state (hardware reason 0x%llx, on host CPU %u)",
               (unsigned long long)run->fail_entry.hardware_entry_failure_reason,
               run->fail_entry.cpu);
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        append(exit, "KVM reports system event %u, which this machine has no use for",
               run->system_event.type);
        break;
    case KVM_EXIT_UNKNOWN:
        append(exit, "the processor left the guest for a reason that KVM does not know: 0x%llx",
               (unsigned long long)run->hw.hardware_exit_reason);
        break;
    default: {
        const char *name =
            run->exit_reason < ARRAY_LEN(exit_names) ? exit_names[run->exit_reason] : NULL;
        append(exit, "KVM left the guest with exit %u (%s), which Hull has not asked for",
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
        append(exit, "KVM cannot reach a page of the guest's memory (the host may have run out of "
                     "huge pages, or the guest executes from a device)");
        break;
    case EHWPOISON:
        append(exit, "the guest touched a page whose memory is defective (look at the host's "
                     "kernel log)");
        break;
    case ENOMEM:
        append(exit, "the host has no memory left for KVM");
        break;
    default:
        append(exit, "KVM_RUN: %s", strerror(-code));
        break;
    }
    append_state(cpu, exit, NULL, 0);
}
