/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segmentation: loading segment registers, far transfers, gates, tasks (SDM vol. 3, chapters 3, 5
 * and 7; AMD APM vol. 2, chapter 4). Every function either does all of it or raises with nothing
 * changed (but where the architecture itself commits first, as a task switch does).
 */
#ifndef HULL_ENGINE_SOFT_SEG_H
#define HULL_ENGINE_SOFT_SEG_H

#include "engine/soft/cpu.h"

/* A raw descriptor: 8 bytes; 16 for system descriptors in long mode. */
struct seg_descriptor {
    uint64_t low, high;
};

/* Read the descriptor of a selector from GDT or LDT; raises vector(selector) outside the limit. */
struct seg_descriptor seg_read_descriptor(struct soft_cpu *cpu, uint16_t selector,
                                          enum soft_vector vector);
/* Without raising: false outside the limit (LAR, LSL, VERR, VERW). */
bool seg_find_descriptor(struct soft_cpu *cpu, uint16_t selector, struct seg_descriptor *desc);

struct cpu_segment seg_unpack(uint16_t selector, struct seg_descriptor desc);

/* MOV/POP to a segment register, LDS and the like; not CS. All checks of the mode. */
void seg_load(struct soft_cpu *cpu, unsigned seg, uint16_t selector);
void seg_load_ldt(struct soft_cpu *cpu, uint16_t selector);
void seg_load_task(struct soft_cpu *cpu, uint16_t selector); /* LTR */

/* Direct far JMP and CALL, op_bytes wide; next_rip is the return address. Through gates and task
 * gates where the selector says so. */
void seg_jump_far(struct soft_cpu *cpu, uint16_t selector, uint64_t offset, unsigned op_bytes,
                  uint64_t next_rip);
void seg_call_far(struct soft_cpu *cpu, uint16_t selector, uint64_t offset, unsigned op_bytes,
                  uint64_t next_rip);
void seg_return_far(struct soft_cpu *cpu, unsigned op_bytes, unsigned drop_bytes);
void seg_return_interrupt(struct soft_cpu *cpu, unsigned op_bytes, uint64_t next_rip); /* IRET */

enum seg_task_reason {
    SEG_TASK_JUMP,
    SEG_TASK_CALL, /* and interrupts: nests */
    SEG_TASK_RETURN,
};

/* Hardware task switch (SDM vol. 3, 7.3). has_error: push error on the new stack. */
void seg_task_switch(struct soft_cpu *cpu, uint16_t selector, enum seg_task_reason reason,
                     uint64_t next_rip, bool has_error, uint32_t error);

#endif
