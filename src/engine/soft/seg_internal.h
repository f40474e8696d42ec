/* SPDX-License-Identifier: Apache-2.0 */
/* What seg.c, far.c, task.c and intr.c share. */
#ifndef HULL_ENGINE_SOFT_SEG_INTERNAL_H
#define HULL_ENGINE_SOFT_SEG_INTERNAL_H

#include "engine/soft/seg.h"

#define SELECTOR_TI 4u

/* System descriptor types (SDM vol. 3, table 3-2). */
#define TYPE_TSS16      0x1u
#define TYPE_LDT        0x2u
#define TYPE_TSS16_BUSY 0x3u
#define TYPE_CALL16     0x4u
#define TYPE_TASK       0x5u
#define TYPE_INT16      0x6u
#define TYPE_TRAP16     0x7u
#define TYPE_TSS32      0x9u
#define TYPE_TSS32_BUSY 0xbu
#define TYPE_CALL32     0xcu
#define TYPE_INT32      0xeu
#define TYPE_TRAP32     0xfu
#define TSS_BUSY        0x2u

static inline uint16_t desc_attr(struct seg_descriptor desc)
{
    return (uint16_t)(desc.low >> 40 & 0xf0ff);
}

static inline unsigned desc_dpl(struct seg_descriptor desc)
{
    return (unsigned)(desc.low >> 45) & 3;
}

static inline bool selector_is_null(uint16_t selector)
{
    return (selector & ~3u) == 0;
}

/* In legacy modes the linear address of a table's entry wraps at 4 GiB. */
static inline uint64_t seg_table_linear(const struct soft_cpu *cpu, uint64_t base, uint64_t offset)
{
    uint64_t la = base + offset;
    return cpu->mode.long_active ? la : la & 0xffffffff;
}

/* seg_load() of ES, DS, FS or GS in protected mode, and seg_load_ldt(): a task switch raises #TS
 * where the instructions raise something else (SDM vol. 3, table 7-1). */
void seg_load_data(struct soft_cpu *cpu, unsigned seg, uint16_t selector, enum soft_vector vector);
void seg_load_local(struct soft_cpu *cpu, uint16_t selector, enum soft_vector bad,
                    enum soft_vector absent);

void seg_set_accessed(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc);
void seg_set_busy(struct soft_cpu *cpu, uint16_t selector, bool busy);

/*
 * Code segment `desc` as the target of a transfer that ends at ring `cpl`: the register's value.
 * All checks of rights are the caller's; this one raises #NP, and #GP for L and D both set.
 */
struct cpu_segment seg_code(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor desc,
                            unsigned cpl);
/* Raise #GP(0) unless offset can be RIP in that code segment. */
void seg_check_target(struct soft_cpu *cpu, const struct cpu_segment *cs, uint64_t offset);

/* A stack that is not the current one, being filled before it becomes current. */
struct seg_stack {
    struct cpu_segment ss;
    uint64_t rsp;
    uint64_t mask;           /* of rsp */
    bool user;               /* ring 3 */
    bool long_mode;          /* no segmentation */
    enum soft_vector vector; /* what a limit violation raises, with error */
    uint32_t error;
};

/* Of the TSS, for a transfer to ring `dpl`: SS:RSP checked as a stack of that ring (#TS). ist: 1-7
 * chooses an interrupt stack (64-bit TSS only), 0 none. */
struct seg_stack seg_stack_of_tss(struct soft_cpu *cpu, unsigned dpl, unsigned ist, bool ext);
/* The current stack. */
struct seg_stack seg_stack_current(struct soft_cpu *cpu);
void seg_stack_push(struct soft_cpu *cpu, struct seg_stack *stack, unsigned size, uint64_t value);
uint64_t seg_stack_pop(struct soft_cpu *cpu, struct seg_stack *stack, unsigned size);
/* Make it the current one; cpl becomes SS's DPL. */
void seg_stack_commit(struct soft_cpu *cpu, const struct seg_stack *stack, unsigned cpl);

/* An SS value of the ring `cpl`; raises vector(selector). */
struct cpu_segment seg_check_new_stack(struct soft_cpu *cpu, uint16_t selector, unsigned cpl,
                                       enum soft_vector vector, uint32_t ext);

#endif
