/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/trace.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/soft/vm.h"

#define EVERY_DEFAULT 1000
#define BUFFER_BYTES  (1u << 20)

/* Words alone: a record is compared and told as an array of them. */
struct record {
    uint64_t instructions, time, rip, rflags;
    uint64_t gpr[16];
    uint64_t selector[SEG_COUNT], base[SEG_COUNT];
    uint64_t tr, ldt, gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, efer, xcr0;
    uint64_t dr[8];
    uint64_t kernel_gs_base;
    uint64_t state; /* activity, and shadows of interrupts */
    uint64_t x87[4], st[16], xmm[32], ymm_hi[32], pkru;
};

#define WORDS (sizeof(struct record) / 8)

static const struct {
    const char *name;
    size_t offset;
    unsigned each; /* words of an element */
} names[] = {
#define NAME(text, member, each)                                                                   \
    {                                                                                              \
        text, offsetof(struct record, member), each                                                \
    }
    NAME("instructions", instructions, 1),
    NAME("time", time, 1),
    NAME("rip", rip, 1),
    NAME("rflags", rflags, 1),
    NAME("rax", gpr[CPU_RAX], 1),
    NAME("rcx", gpr[CPU_RCX], 1),
    NAME("rdx", gpr[CPU_RDX], 1),
    NAME("rbx", gpr[CPU_RBX], 1),
    NAME("rsp", gpr[CPU_RSP], 1),
    NAME("rbp", gpr[CPU_RBP], 1),
    NAME("rsi", gpr[CPU_RSI], 1),
    NAME("rdi", gpr[CPU_RDI], 1),
    NAME("r8", gpr[CPU_R8], 1),
    NAME("r9", gpr[CPU_R9], 1),
    NAME("r10", gpr[CPU_R10], 1),
    NAME("r11", gpr[CPU_R11], 1),
    NAME("r12", gpr[CPU_R12], 1),
    NAME("r13", gpr[CPU_R13], 1),
    NAME("r14", gpr[CPU_R14], 1),
    NAME("r15", gpr[CPU_R15], 1),
    NAME("es", selector[SEG_ES], 1),
    NAME("cs", selector[SEG_CS], 1),
    NAME("ss", selector[SEG_SS], 1),
    NAME("ds", selector[SEG_DS], 1),
    NAME("fs", selector[SEG_FS], 1),
    NAME("gs", selector[SEG_GS], 1),
    NAME("es.base", base[SEG_ES], 1),
    NAME("cs.base", base[SEG_CS], 1),
    NAME("ss.base", base[SEG_SS], 1),
    NAME("ds.base", base[SEG_DS], 1),
    NAME("fs.base", base[SEG_FS], 1),
    NAME("gs.base", base[SEG_GS], 1),
    NAME("tr.base", tr, 1),
    NAME("ldt.base", ldt, 1),
    NAME("gdt.base", gdt, 1),
    NAME("idt.base", idt, 1),
    NAME("cr0", cr0, 1),
    NAME("cr2", cr2, 1),
    NAME("cr3", cr3, 1),
    NAME("cr4", cr4, 1),
    NAME("efer", efer, 1),
    NAME("xcr0", xcr0, 1),
    NAME("dr", dr, 1),
    NAME("kernel_gs_base", kernel_gs_base, 1),
    NAME("state", state, 1),
    NAME("x87", x87, 1),
    NAME("st", st, 2),
    NAME("xmm", xmm, 2),
    NAME("ymm_hi", ymm_hi, 2),
    NAME("pkru", pkru, 1),
#undef NAME
};

struct trace {
    FILE *out, *in; /* either or both; NULL: none */
    const char *in_path;
    uint64_t every, from;
    struct record last; /* which was equal */
};

/* --- files --- */

static int open_one(FILE **file, const char *path, const char *mode, struct err *err)
{
    *file = fopen(path, mode);
    if (!*file)
        return err_errno(err, errno, "open the trace %s", path);
    if (setvbuf(*file, NULL, _IOFBF, BUFFER_BYTES) != 0)
        return err_set(err, ENOMEM, "the trace %s", path);
    return 0;
}

int trace_open(struct soft_vm *vm, struct err *err)
{
    const struct engine_vm_config *config = &vm->config;
    if (!config->trace && !config->compare)
        return 0;
    if (!config->virtual_clock)
        return err_set(err, EINVAL,
                       "a trace is of a run that is the same each time: --engine "
                       "soft,clock=virtual");
    struct trace *t = calloc(1, sizeof(*t));
    if (!t)
        return err_errno(err, ENOMEM, "the trace");
    vm->trace = t;
    t->every = config->trace_every ? config->trace_every : EVERY_DEFAULT;
    t->from = config->trace_from;
    t->in_path = config->compare;
    int code = config->trace ? open_one(&t->out, config->trace, "we", err) : 0;
    if (code == 0 && config->compare)
        code = open_one(&t->in, config->compare, "re", err);
    return code;
}

void trace_close(struct soft_vm *vm)
{
    struct trace *t = vm->trace;
    if (!t)
        return;
    if (t->out && fclose(t->out) != 0)
        log_error("soft", "the trace cannot be written: %s", strerror(errno));
    if (t->in) {
        if (getc(t->in) != EOF)
            log_error("soft", "%s goes on where this machine has ended", t->in_path);
        fclose(t->in);
    }
    free(t);
    vm->trace = NULL;
}

uint64_t trace_first(const struct soft_vm *vm)
{
    return vm->trace ? vm->trace->from : UINT64_MAX;
}

/* --- records --- */

static void take(const struct soft_cpu *cpu, struct record *r)
{
    memset(r, 0, sizeof(*r));
    r->instructions = cpu->instructions;
    r->time = cpu->instructions + cpu->clock_offset_ns;
    r->rip = cpu->rip;
    r->rflags = cpu->rflags;
    memcpy(r->gpr, cpu->gpr, sizeof(r->gpr));
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        r->selector[i] = cpu->seg[i].selector;
        r->base[i] = cpu->seg[i].base;
    }
    r->tr = cpu->tr.base;
    r->ldt = cpu->ldt.base;
    r->gdt = cpu->gdt.base;
    r->idt = cpu->idt.base;
    r->cr0 = cpu->cr0;
    r->cr2 = cpu->cr2;
    r->cr3 = cpu->cr3;
    r->cr4 = cpu->cr4;
    r->efer = cpu->efer;
    r->xcr0 = cpu->xcr0;
    memcpy(r->dr, cpu->dr, sizeof(r->dr));
    r->kernel_gs_base = cpu->msr.kernel_gs_base;
    r->state = cpu->activity | (unsigned)cpu->no_interrupt << 8 | (unsigned)cpu->nmi_blocked << 9;
    memcpy(r->x87, cpu->fpu.x87, sizeof(r->x87));
    memcpy(r->st, cpu->fpu.st, sizeof(r->st));
    memcpy(r->xmm, cpu->fpu.xmm, sizeof(r->xmm));
    memcpy(r->ymm_hi, cpu->fpu.ymm_hi, sizeof(r->ymm_hi));
    r->pkru = cpu->fpu.pkru;
}

struct text {
    char chars[2600];
    size_t used;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t left = sizeof(text->chars) - text->used;
    int len = vsnprintf(text->chars + text->used, left, format, args);
    va_end(args);
    text->used += len < 0 ? 0 : (size_t)len < left ? (size_t)len : left - 1;
}

/* Each word that differs, here and there. */
static void add_differences(struct text *text, const struct record *here,
                            const struct record *there)
{
    const uint64_t *ours = (const uint64_t *)here, *theirs = (const uint64_t *)there;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        size_t first = names[i].offset / 8;
        size_t end = i + 1 < ARRAY_LEN(names) ? names[i + 1].offset / 8 : WORDS;
        for (size_t w = first; w < end; w++) {
            if (ours[w] == theirs[w])
                continue;
            add(text, "\n%s", names[i].name);
            if (end - first > 1)
                add(text, "%zu", (w - first) / names[i].each);
            if (names[i].each > 1)
                add(text, "%s", (w - first) % 2 ? ".high" : ".low");
            add(text, " %016llx, in the trace %016llx", (unsigned long long)ours[w],
                (unsigned long long)theirs[w]);
        }
    }
}

_Noreturn static void differs(struct soft_cpu *cpu, const struct record *here,
                              const struct record *there)
{
    const struct trace *t = cpu->vm->trace;
    struct text text = {.used = 0};
    add_differences(&text, here, there);
    soft_exit(cpu, ENGINE_EXIT_FAILURE,
              "not as in %s; the last state that was equal: %llu instructions, rip %016llx%s",
              t->in_path, (unsigned long long)t->last.instructions, (unsigned long long)t->last.rip,
              text.chars);
}

void trace_record(struct soft_cpu *cpu)
{
    struct trace *t = cpu->vm->trace;
    struct record here, there;
    take(cpu, &here);
    cpu->trace_next = cpu->instructions + t->every;
    cpu->stats.traced++;
    if (t->out && fwrite(&here, sizeof(here), 1, t->out) != 1)
        soft_exit(cpu, ENGINE_EXIT_FAILURE, "the trace cannot be written: %s", strerror(errno));
    if (!t->in)
        return;
    if (fread(&there, sizeof(there), 1, t->in) != 1)
        soft_exit(cpu, ENGINE_EXIT_FAILURE, "%s ends after %llu instructions", t->in_path,
                  (unsigned long long)t->last.instructions);
    if (memcmp(&here, &there, sizeof(here)) != 0)
        differs(cpu, &here, &there);
    t->last = here;
}
