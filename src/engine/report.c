/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/units.h"

static const char *const gpr_names[CPU_GPR_COUNT] = {
    [CPU_RAX] = "rax", [CPU_RCX] = "rcx", [CPU_RDX] = "rdx", [CPU_RBX] = "rbx",
    [CPU_RSP] = "rsp", [CPU_RBP] = "rbp", [CPU_RSI] = "rsi", [CPU_RDI] = "rdi",
    [CPU_R8] = "r8",   [CPU_R9] = "r9",   [CPU_R10] = "r10", [CPU_R11] = "r11",
    [CPU_R12] = "r12", [CPU_R13] = "r13", [CPU_R14] = "r14", [CPU_R15] = "r15",
};

/* As people expect them, four a line. */
static const uint8_t gpr_order[CPU_GPR_COUNT] = {
    CPU_RAX, CPU_RBX, CPU_RCX, CPU_RDX, CPU_RSI, CPU_RDI, CPU_RBP, CPU_RSP,
    CPU_R8,  CPU_R9,  CPU_R10, CPU_R11, CPU_R12, CPU_R13, CPU_R14, CPU_R15,
};

void engine_report_append(struct engine_exit *exit, const char *fmt, ...)
{
    size_t used = strlen(exit->text);
    va_list args;
    va_start(args, fmt);
    vsnprintf(exit->text + used, sizeof(exit->text) - used, fmt, args);
    va_end(args);
}

static void append_segment(struct engine_exit *exit, const char *name, const struct cpu_segment *s)
{
    unsigned attr = s->attr;
    bool present = attr >> 7 & 1;
    engine_report_append(exit, "\n%-3s %04x  base %016llx  limit %08x  type %x dpl %u%s%s%s%s",
                         name, s->selector, (unsigned long long)s->base, s->limit, attr & 0xf,
                         attr >> 5 & 3, present ? " present" : "", attr >> 13 & 1 ? " 64-bit" : "",
                         attr >> 14 & 1 ? " 32-bit" : "", present ? "" : " unusable");
}

void engine_report_state(struct engine_exit *exit, const struct cpu_regs *regs,
                         const struct cpu_sregs *sregs)
{
    for (size_t i = 0; i < CPU_GPR_COUNT; i++)
        engine_report_append(exit, "%s%-3s %016llx", i % 4 == 0 ? "\n" : "  ",
                             gpr_names[gpr_order[i]], (unsigned long long)regs->gpr[gpr_order[i]]);
    engine_report_append(exit, "\nrip %016llx  rflags %08llx", (unsigned long long)regs->rip,
                         (unsigned long long)regs->rflags);
    engine_report_append(exit, "\ncr0 %08llx  cr2 %016llx  cr3 %016llx  cr4 %08llx  efer %04llx",
                         (unsigned long long)sregs->cr0, (unsigned long long)sregs->cr2,
                         (unsigned long long)sregs->cr3, (unsigned long long)sregs->cr4,
                         (unsigned long long)sregs->efer);
    const struct {
        const char *name;
        const struct cpu_segment *segment;
    } segments[] = {
        {"cs",  &sregs->cs },
        {"ss",  &sregs->ss },
        {"ds",  &sregs->ds },
        {"es",  &sregs->es },
        {"fs",  &sregs->fs },
        {"gs",  &sregs->gs },
        {"tr",  &sregs->tr },
        {"ldt", &sregs->ldt},
    };
    for (size_t i = 0; i < ARRAY_LEN(segments); i++)
        append_segment(exit, segments[i].name, segments[i].segment);
    engine_report_append(exit, "\ngdt %016llx limit %04x  idt %016llx limit %04x",
                         (unsigned long long)sregs->gdt.base, sregs->gdt.limit,
                         (unsigned long long)sregs->idt.base, sregs->idt.limit);
}

void engine_report_instruction(struct engine_exit *exit, const uint8_t *bytes, size_t len)
{
    engine_report_append(exit, "\ninstruction");
    for (size_t i = 0; i < len; i++)
        engine_report_append(exit, " %02x", bytes[i]);
    if (len == 0)
        engine_report_append(exit, " unreadable: no memory is mapped at the instruction pointer");
}
