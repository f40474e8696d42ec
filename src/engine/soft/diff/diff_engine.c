/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's side: a processor at CPL 3 with page tables that show it the arena, and its decoder
 * and handlers without the loop around them.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "engine/soft/diff/diff.h"
#include "engine/soft/exec.h"
#include "engine/soft/mmu.h"
#include "engine/soft/translate.h"
#include "mem/mem.h"

#define RAM_BYTES (1u << 20)
#define TABLES    0x1000u /* four levels, a page each */
#define ARENA_AT  0x40000u
#define PTE_P     1ULL
#define PTE_W     2ULL
#define PTE_U     4ULL
#define PTE_A     0x20ULL
#define PTE_D     0x40ULL
#define CODE64    0xa0fb /* CPU_SEG_CODE64, code and data of DPL 3 */
#define CODE      0x00fb
#define DATA      0x00f3
#define DPL3_TSS  0x008b

/* arch_prctl(2) */
#define ARCH_SET_GS 0x1001
#define ARCH_GET_GS 0x1004

static void set_entry(uint8_t *ram, unsigned level, uint64_t la, uint64_t value)
{
    /* level 0 is the top */
    unsigned index = la >> (39 - 9 * level) & 511;
    memcpy(ram + TABLES + (size_t)level * DIFF_PAGE + 8 * (size_t)index, &value, sizeof(value));
}

static void make_tables(uint8_t *ram)
{
    uint64_t upper = PTE_P | PTE_W | PTE_U | PTE_A;
    for (unsigned level = 0; level < 3; level++)
        set_entry(ram, level, DIFF_ARENA, (TABLES + (level + 1) * DIFF_PAGE) | upper);
    for (unsigned i = 0; i < DIFF_PAGES; i++) {
        uint64_t page = (uint64_t)i * DIFF_PAGE;
        uint64_t leaf = (ARENA_AT + page) | PTE_P | PTE_U;
        if (diff_page_kinds[i] == 'W')
            leaf |= PTE_W;
        if (diff_page_kinds[i] != '-')
            set_entry(ram, 3, DIFF_ARENA + page, leaf);
    }
}

int diff_engine_init(struct diff_engine *e, struct err *err)
{
    static struct soft_cpu *cpus[1];
    const struct mem_options options = {0};
    struct mem *mem;
    memset(e, 0, sizeof(*e));
    e->cpu = mmu_cpu_alloc();
    if (!e->cpu)
        return err_errno(err, errno, "the engine's processor");
    int code = mem_new(&mem, &options, err);
    if (code == 0)
        code = mem_add_ram(mem, "ram", GPA(0), RAM_BYTES, err);
    if (code == 0)
        code = model_init(&e->vm.model, "host", 1, err);
    if (code == 0)
        code = mmu_vm_init(&e->vm, err);
    if (code < 0)
        return code;
    e->vm.mem = mem;
    e->vm.config.vcpu_count = 1;
    e->vm.cpus = cpus;
    e->cpu->vm = &e->vm;
    pthread_mutex_init(&e->vm.exclusive.lock, NULL);
    pthread_cond_init(&e->vm.exclusive.changed, NULL);
    e->vm.exclusive.running = 1; /* as within vcpu_run */
    code = mmu_vm_map(&e->vm, 0, mem_region_at(mem, 0), err);
    if (code == 0)
        code = mmu_init(e->cpu, err);
    if (code == 0)
        code = block_cache_init(e->cpu, err);
    if (code == 0)
        code = translate_init(e->cpu, err);
    if (code < 0)
        return code;
    const struct translate_options exact = {.exact = true};
    translate_configure(e->cpu, &exact);
    cpus[0] = e->cpu;
    uint8_t *ram = mem_region_at(mem, 0)->host;
    e->memory = ram + ARENA_AT;
    make_tables(ram);
    return 0;
}

void diff_engine_fini(struct diff_engine *e)
{
    block_cache_fini(e->cpu);
    mmu_fini(e->cpu);
    mmu_cpu_free(e->cpu);
    mmu_vm_fini(&e->vm);
    mem_free(e->vm.mem);
}

static struct cpu_segment segment_of(const struct diff_segment *s, uint16_t attr)
{
    if (s->wide)
        attr |= SEG_ATTR_DB | SEG_ATTR_G;
    if (s->down)
        attr |= SEG_TYPE_DOWN;
    return (struct cpu_segment){
        .base = s->base, .limit = s->limit, .selector = s->selector, .attr = attr};
}

void diff_engine_set_mode(struct diff_engine *e, const struct diff_mode *mode)
{
    struct soft_cpu *cpu = e->cpu;
    cpu->cr0 = CPU_CR0_PE | CPU_CR0_PG | CPU_CR0_NE | CPU_CR0_ET | CPU_CR0_WP | CPU_CR0_MP | CR0_AM;
    cpu->cr3 = TABLES;
    cpu->cr4 = CPU_CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    cpu->xcr0 = e->vm.model.features >> FEAT_AVX & 1 ? 7 : 3;
    cpu->efer = CPU_EFER_LME | CPU_EFER_LMA | EFER_SCE | EFER_NXE;
    cpu->seg[SEG_CS] = segment_of(&mode->cs, CODE);
    if (mode->code_bits == 64)
        cpu->seg[SEG_CS].attr = CODE64;
    cpu->seg[SEG_DS] = cpu->seg[SEG_FS] = cpu->seg[SEG_GS] = segment_of(&mode->ds, DATA);
    cpu->seg[SEG_ES] = segment_of(&mode->es, DATA);
    cpu->seg[SEG_SS] = segment_of(&mode->ss, DATA);
    cpu->seg[SEG_FS].base = 0;
    cpu->seg[SEG_GS].base = mode->code_bits == 64 ? DIFF_GS : 0;
    cpu->tr = (struct cpu_segment){.limit = 0x63, .selector = 8, .attr = DPL3_TSS};
    cpu->rflags = RFLAGS_FIXED;
    cpu->delivering = -1;
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
    mmu_cr3_written(cpu, false);
}

/* The same by the second tier. False: it has no code for it. */
static bool execute_translated(struct soft_cpu *cpu, struct diff_insn *d)
{
    uint8_t byte;
    if (!cpu->mode.translatable || d->not_translated)
        return false;
    struct block *block = block_of_insn(cpu, &d->insn);
    d->not_translated = !translate_test_block(cpu, block);
    if (d->not_translated)
        return false;
    /* A context comes with the first access. */
    if (!cpu->tlb->context)
        mmu_read_bytes(cpu, DIFF_ARENA + strcspn(diff_page_kinds, "W") * DIFF_PAGE, &byte, 1);
    if (!cpu->tlb->context) /* alignment is checked: only the first tier does */
        return false;
    /* The native side has its own base of GS; what is raised in between comes back with ours. */
    cpu->translated.gs = NULL;
    translate_run(cpu, block);
    return true;
}

/* Run it to its end, though a repeated one may stop on the way. */
static void execute(struct soft_cpu *cpu, struct diff_insn *d)
{
    const struct insn *insn = &d->insn;
    bool again;
    do {
        cpu->insn = cpu->block_start = insn;
        cpu->stop_block = cpu->rip_set = false;
        insn->exec(cpu, insn);
        again = cpu->stop_block && cpu->rip_set && cpu->rip == cpu->rip_page;
    } while (again && insn->opcode->attr & ATTR_STRING);
    cpu->insn = NULL;
    if (!cpu->rip_set && !(insn->opcode->attr & (ATTR_BRANCH | ATTR_ENDS_BLOCK)))
        cpu->rip = soft_next_rip(cpu, insn);
    cpu->stop_block = cpu->rip_set = false;
}

void diff_engine_run(struct diff_engine *e, struct diff_insn *d, const struct diff_case *c,
                     struct diff_result *result)
{
    struct soft_cpu *cpu = e->cpu;
    if (!d->bound) {
        exec_bind(cpu, &d->insn);
        d->bound = true;
    }
    cpu->events = cpu->translated.attention = 0;
    memcpy(cpu->gpr, c->start.gpr, sizeof(c->start.gpr));
    cpu->rip = cpu->rip_page = c->start.rip;
    cpu->rflags = c->start.rflags;
    mmu_select(cpu); /* AC */
    if (d->uses_fpu)
        cpu->fpu = c->start.fpu;
    result->vector = -1;
    static uint64_t gs; /* not in a register, which longjmp might put back */
    if (e->translate)
        syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
    if (setjmp(cpu->unwind) == 0) {
        if (!e->translate || !execute_translated(cpu, d))
            execute(cpu, d);
    } else {
        result->vector = cpu->exception.vector;
        result->error = cpu->exception.has_error ? cpu->exception.error : 0;
        result->address = cpu->exception.address;
    }
    if (e->translate)
        syscall(SYS_arch_prctl, ARCH_SET_GS, gs);
    memcpy(result->state.gpr, cpu->gpr, sizeof(result->state.gpr));
    result->state.rip = cpu->rip;
    result->state.rflags = cpu->rflags;
    if (d->uses_fpu)
        result->state.fpu = cpu->fpu;
}
