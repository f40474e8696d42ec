/* SPDX-License-Identifier: Apache-2.0 */
/* Model-specific registers. */
#ifndef HULL_ENGINE_SOFT_MSR_H
#define HULL_ENGINE_SOFT_MSR_H

#include "engine/soft/cpu.h"

/* RDMSR and WRMSR without the CPL check: false is #GP(0) (and is logged once for an unknown MSR).
 */
bool msr_read(struct soft_cpu *cpu, uint32_t index, uint64_t *value);
bool msr_write(struct soft_cpu *cpu, uint32_t index, uint64_t value);

#endif
