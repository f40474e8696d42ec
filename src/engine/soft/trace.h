/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A trace of a vCPU's state, to find where two runs become different: with a virtual clock every
 * run is the same, whichever tier does the instructions. One process writes (`trace=FILE`), another
 * reads and compares (`compare=FILE`); between them is a file or, of any length, a FIFO.
 *
 * A record is of the start of a block, before interrupts: blocks begin at the same instructions in
 * both tiers. The run loop and translated code come by where soft_cpu.trace_next instructions have
 * been done. In between translated code is left alone, jumps from block to block and all; so a
 * difference is known to lie between two records, and a second run with a record at each block
 * (`trace-every=1,trace-from=N`) shows in which.
 *
 * Threads: the vCPU's, but for opening and closing.
 */
#ifndef HULL_ENGINE_SOFT_TRACE_H
#define HULL_ENGINE_SOFT_TRACE_H

#include <stdint.h>

struct err;
struct soft_cpu;
struct soft_vm;

/* What the VM's configuration asks for, which may be nothing. -EINVAL: there is no virtual clock.
 */
int trace_open(struct soft_vm *vm, struct err *err);
/* To the end of the other's trace: that it has more is said in the log. */
void trace_close(struct soft_vm *vm);

/* Of how many instructions the first record is; UINT64_MAX: of none. */
uint64_t trace_first(const struct soft_vm *vm);

/* The vCPU is between two blocks, and has done at least trace_next instructions. Leaves vcpu_run by
 * soft_exit() where the states differ or the file fails. */
void trace_record(struct soft_cpu *cpu);

#endif
