/* SPDX-License-Identifier: Apache-2.0 */
/* Where the components of an XSAVE area are (SDM vol. 1, 13.4.3): CPUID leaf 0DH tells the guest.
 */
#ifndef HULL_ENGINE_SOFT_EXEC_XSAVE_H
#define HULL_ENGINE_SOFT_EXEC_XSAVE_H

#include <stdbool.h>
#include <stdint.h>

#define XSAVE_LEGACY_BYTES (512 + 64)
#define XSAVE_AVX_OFFSET   576
#define XSAVE_AVX_BYTES    256
#define XSAVE_PKRU_OFFSET  832
#define XSAVE_PKRU_BYTES   8

/* XCR0 bits 5 to 7, AVX-512: hosts have them, the engine has not. Tests that compare the two ask
 * for none of them. */
#define XSAVE_AVX512 0xe0ULL

struct soft_cpu;

/* The state that a debugger or a snapshot brings, as FXSAVE64 writes it; false, and nothing is
 * changed, where FXRSTOR64 would raise #GP: reserved bits of MXCSR. */
bool fpu_set_legacy(struct soft_cpu *cpu, const uint8_t image[512]);

#endif
