/* SPDX-License-Identifier: Apache-2.0 */
/* Where the components of an XSAVE area are (SDM vol. 1, 13.4.3): CPUID leaf 0DH tells the guest.
 */
#ifndef HULL_ENGINE_SOFT_EXEC_XSAVE_H
#define HULL_ENGINE_SOFT_EXEC_XSAVE_H

#define XSAVE_LEGACY_BYTES (512 + 64)
#define XSAVE_AVX_OFFSET   576
#define XSAVE_AVX_BYTES    256
#define XSAVE_PKRU_OFFSET  832
#define XSAVE_PKRU_BYTES   8

#endif
