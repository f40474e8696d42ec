/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ENGINE_EXIT_FAILURE says beyond its sentence: the registers and the bytes at the instruction
 * pointer, a line each, the same for every engine.
 */
#ifndef HULL_ENGINE_REPORT_H
#define HULL_ENGINE_REPORT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

/* An x86 instruction has at most 15 bytes (SDM vol. 2, 2.3.11). */
#define INSTRUCTION_BYTES_MAX 15

/* Append to exit->text; what does not fit is cut. */
void engine_report_append(struct engine_exit *exit, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void engine_report_state(struct engine_exit *exit, const struct cpu_regs *regs,
                         const struct cpu_sregs *sregs);
/* len 0: the bytes cannot be read. */
void engine_report_instruction(struct engine_exit *exit, const uint8_t *bytes, size_t len);

#endif
