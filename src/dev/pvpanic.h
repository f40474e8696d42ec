/* SPDX-License-Identifier: Apache-2.0 */
/* pvpanic at port 0x505: the guest's kernel tells that it panicked (the interface is described in
 * QEMU's docs/specs/pvpanic.rst). */
#ifndef HULL_DEV_PVPANIC_H
#define HULL_DEV_PVPANIC_H

#include "dev/dev.h"

#define PVPANIC_PORT 0x505u

int pvpanic_new(struct device **dev, const struct dev_env *env, struct err *err);

#endif
