/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exceptions and interrupts: through the IVT or IDT to the handler (SDM vol. 3, chapter 6; vol. 3,
 * 20.3 for virtual-8086 mode).
 */
#ifndef HULL_ENGINE_SOFT_INTR_H
#define HULL_ENGINE_SOFT_INTR_H

#include "engine/soft/cpu.h"

/*
 * Deliver an exception of the instruction at cpu->rip (faults), or before it (traps, INT n: the
 * caller has set cpu->rip to the next one). Sets CR2, DR6. A fault during delivery raises: the run
 * loop calls intr_combine() and comes again.
 */
void intr_deliver_exception(struct soft_cpu *cpu, const struct soft_exception *exception);

/* An external interrupt or NMI (vector 2). */
void intr_deliver_external(struct soft_cpu *cpu, uint8_t vector);

/* INT n, INT3, INTO from their handlers: with the checks that software interrupts have. Does not
 * raise EXC n: it delivers at once; next_rip is what the handler returns to. */
void intr_software(struct soft_cpu *cpu, uint8_t vector, uint64_t next_rip);

/* INT n in virtual-8086 mode: by IOPL and the redirection bitmap. */
void intr_software_v86(struct soft_cpu *cpu, uint8_t vector, uint64_t next_rip);

/*
 * `second` came up while `first` (a vector) was delivered: what results (SDM vol. 3, table 6-5):
 * second itself (an error code with EXT set), a double fault, or (return false) shutdown. first -1:
 * second as it is.
 */
bool intr_combine(int first, const struct soft_exception *second, struct soft_exception *result);

#endif
