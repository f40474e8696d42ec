/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of the soft engine's processor stand on: a machine with one vCPU or two, memory
 * below and above 4 GiB and a ROM, and ways to call into it without the loop around.
 */
#ifndef HULL_ENGINE_SOFT_TEST_CPU_H
#define HULL_ENGINE_SOFT_TEST_CPU_H

#include <stdlib.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "engine/soft/block.h"
#include "engine/soft/exec.h"
#include "engine/soft/mmu.h"
#include "engine/soft/vm.h"
#include "mem/mem.h"

#define TEST_RAM_BYTES  (8 * MIB)
#define TEST_HIGH       (1ULL << 32) /* more RAM, of 4 MiB */
#define TEST_HIGH_BYTES (4 * MIB)
#define TEST_ROM        0x40000000ULL
#define TEST_ROM_BYTES  0x10000ULL

enum test_slot {
    TEST_SLOT_RAM,
    TEST_SLOT_HIGH,
    TEST_SLOT_ROM,
};

struct test_guest {
    struct engine_vm *engine;
    struct soft_vm *vm;
    struct mem *mem;
    uint8_t *ram, *high, *rom;
    struct soft_cpu *cpu[2];
};

/* Ports and memory of devices: reads give ones, a write ends vcpu_run(). */
static inline void test_pio_read(void *ctx, uint16_t port, unsigned size, void *data,
                                 uint32_t count)
{
    (void)ctx, (void)port;
    memset(data, 0xff, (size_t)size * count);
}

static inline void test_pio_write(void *ctx, uint16_t port, unsigned size, const void *data,
                                  uint32_t count)
{
    struct test_guest *g = ctx;
    (void)port, (void)size, (void)data, (void)count;
    engine_soft.vcpu_kick(&g->cpu[0]->base);
}

static inline void test_mmio_read(void *ctx, gpa_t gpa, unsigned size, void *data)
{
    (void)ctx, (void)gpa;
    memset(data, 0xff, size);
}

static inline void test_mmio_write(void *ctx, gpa_t gpa, unsigned size, const void *data)
{
    (void)ctx, (void)gpa, (void)size, (void)data;
}

/* False, and why as a comment in the tests' output, where the machine cannot be made. */
static inline bool test_guest_init(struct test_guest *g, unsigned vcpus)
{
    static const struct engine_upcalls upcalls = {
        .pio_read = test_pio_read,
        .pio_write = test_pio_write,
        .mmio_read = test_mmio_read,
        .mmio_write = test_mmio_write,
    };
    const struct engine_vm_config config = {
        .vcpu_count = vcpus, .upcalls = &upcalls, .upcall_ctx = g, .virtual_clock = vcpus == 1};
    const struct mem_options options = {0};
    struct err err = ERR_INIT;
    *g = (struct test_guest){0};
    int code = mem_new(&g->mem, &options, &err);
    if (code == 0)
        code = mem_add_ram(g->mem, "ram", GPA(0), TEST_RAM_BYTES, &err);
    if (code == 0)
        code = mem_add_ram(g->mem, "high", GPA(TEST_HIGH), TEST_HIGH_BYTES, &err);
    if (code == 0)
        code = mem_add_rom(g->mem, "rom", GPA(TEST_ROM), TEST_ROM_BYTES, &err);
    if (code == 0)
        code = engine_soft.vm_new(&g->engine, &config, &err);
    for (unsigned i = 0; code == 0 && i < 3; i++)
        code = engine_soft.map(g->engine, i, mem_region_at(g->mem, i), &err);
    for (unsigned i = 0; code == 0 && i < vcpus; i++) {
        struct engine_vcpu *vcpu;
        code = engine_soft.vcpu_new(g->engine, i, &vcpu, &err);
        if (code == 0)
            g->cpu[i] = soft_cpu_of(vcpu);
    }
    if (code < 0) {
        printf("# %s\n", err.text);
        return false;
    }
    g->vm = soft_vm_of(g->engine);
    g->ram = mem_region_at(g->mem, TEST_SLOT_RAM)->host;
    g->high = mem_region_at(g->mem, TEST_SLOT_HIGH)->host;
    g->rom = mem_region_at(g->mem, TEST_SLOT_ROM)->host;
    return true;
}

static inline void test_guest_fini(struct test_guest *g)
{
    if (g->engine)
        engine_soft.vm_free(g->engine);
    if (g->mem)
        mem_free(g->mem);
}

static inline void test_put(uint8_t *memory, uint64_t at, uint64_t value, unsigned bytes)
{
    memcpy(memory + at, &value, bytes);
}

static inline uint64_t test_get(const uint8_t *memory, uint64_t at, unsigned bytes)
{
    uint64_t value = 0;
    memcpy(&value, memory + at, bytes);
    return value;
}

/* Where an exception goes that no test waits for: test_all() sets it. */
static jmp_buf test_unexpected;

static inline void test_expect_nothing(struct soft_cpu *cpu)
{
    memcpy(&cpu->unwind, &test_unexpected, sizeof(cpu->unwind));
}

/* Code of 16, 32 or 64 bits at ring cpl, flat segments that no table holds, paging off. */
static inline void test_mode(struct soft_cpu *cpu, unsigned bits, unsigned cpl)
{
    uint16_t dpl = (uint16_t)(cpl << 5), code = bits == 64 ? CPU_SEG_CODE64 : CPU_SEG_CODE32;
    cpu->cr0 = CPU_CR0_PE | CPU_CR0_NE | CPU_CR0_ET;
    cpu->cr4 = 0;
    cpu->efer = bits == 64 ? CPU_EFER_LME | CPU_EFER_LMA : 0;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = (struct cpu_segment){
            .limit = UINT32_MAX, .selector = (uint16_t)cpl, .attr = (uint16_t)(CPU_SEG_DATA | dpl)};
    if (bits == 16) {
        code &= (uint16_t)~SEG_ATTR_DB;
        cpu->seg[SEG_SS].attr &= (uint16_t)~SEG_ATTR_DB;
    }
    cpu->seg[SEG_CS].attr = (uint16_t)(code | dpl);
    memset(cpu->gpr, 0, sizeof(cpu->gpr));
    cpu->rflags = RFLAGS_FIXED;
    cpu->activity = SOFT_ACTIVE;
    cpu->delivering = -1;
    cpu->no_interrupt = cpu->no_debug = cpu->nmi_blocked = false;
    cpu->stop_block = cpu->rip_set = false;
    cpu->insn = NULL;
    test_expect_nothing(cpu);
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
    block_cache_flush(cpu);
}

/* What TEST_CATCH gives for an exception: with its error code, or without one. */
#define FAULT(vector, error) ((int)(vector) << 16 | (int)(error))
#define FAULT_PLAIN(vector)  FAULT(vector, 0xffff)

static inline int test_raised(const struct soft_cpu *cpu)
{
    const struct soft_exception *e = &cpu->exception;
    return e->has_error ? FAULT(e->vector, e->error) : FAULT_PLAIN(e->vector);
}

/* Run the tests, to the first exception that is unexpected. */
static inline void test_all(void (*tests)(void))
{
    /* Not to be inlined: what it has in registers would not outlive setjmp(). */
    void (*volatile run)(void) = tests;
    if (setjmp(test_unexpected) == 0)
        run();
    else
        ok(false, "no exception where none is expected");
}

static inline int test_outcome(struct soft_cpu *cpu, int outcome)
{
    test_expect_nothing(cpu);
    return outcome;
}

/* What a call raises: FAULT(), or -1 for nothing. */
#define TEST_CATCH(cpu, call)                                                                      \
    test_outcome(cpu, setjmp((cpu)->unwind) == 0 ? ((void)(call), -1) : test_raised(cpu))

/* --- descriptor tables --- */

#define TEST_GDT         0x5000u
#define TEST_LDT         0x5800u
#define TEST_IDT         0x6000u
#define TEST_TABLE_LIMIT 0x7ffu

/* attr: cpu_segment's, the accessed bit as given; limit: as in the descriptor, before G. */
static inline uint64_t test_descriptor(uint64_t base, uint32_t limit, uint16_t attr)
{
    return (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)attr << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (base >> 24 & 0xff) << 56;
}

/* type with P and DPL, as a descriptor's byte 5. */
static inline uint64_t test_gate(uint16_t selector, uint64_t offset, uint8_t type, unsigned low)
{
    return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)low << 32 |
           (uint64_t)type << 40 | (offset >> 16 & 0xffff) << 48;
}

static inline void test_set_entry(struct test_guest *g, uint16_t selector, uint64_t value)
{
    test_put(g->ram, (selector & 4 ? TEST_LDT : TEST_GDT) + (selector & ~7u), value, 8);
}

static inline uint64_t test_entry(const struct test_guest *g, uint16_t selector)
{
    return test_get(g->ram, (selector & 4 ? TEST_LDT : TEST_GDT) + (selector & ~7u), 8);
}

/* Empty tables, which the registers have; TR and LDTR without anything. */
static inline void test_tables(struct test_guest *g, struct soft_cpu *cpu)
{
    memset(g->ram + TEST_GDT, 0, TEST_IDT + TEST_TABLE_LIMIT + 1 - TEST_GDT);
    cpu->gdt = (struct cpu_table_register){.base = TEST_GDT, .limit = TEST_TABLE_LIMIT};
    cpu->idt = (struct cpu_table_register){.base = TEST_IDT, .limit = TEST_TABLE_LIMIT};
    cpu->ldt = (struct cpu_segment){
        .base = TEST_LDT, .limit = TEST_TABLE_LIMIT, .selector = 0x7f0, .attr = 0x82};
    cpu->tr = (struct cpu_segment){0};
}

/* --- instructions --- */

static inline void test_execute_block(struct soft_cpu *cpu)
{
    const struct block *block = block_find(cpu);
    const struct insn *insn = &block->insns[0];
    cpu->block_start = cpu->insn = insn;
    cpu->rip_page = cpu->rip - block->offset;
    cpu->stop_block = cpu->rip_set = false;
    insn->exec(cpu, insn);
    cpu->insn = NULL;
    if (!cpu->rip_set && !(insn->opcode->attr & (ATTR_BRANCH | ATTR_ENDS_BLOCK)))
        cpu->rip = soft_next_rip(cpu, insn);
    cpu->stop_block = cpu->rip_set = false;
}

/* One instruction at RIP: what it raises, or -1. Nothing is delivered. */
static inline int test_step(struct soft_cpu *cpu)
{
    return TEST_CATCH(cpu, test_execute_block(cpu));
}

#endif
