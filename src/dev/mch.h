/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Q35 host bridge, 8086:29c0 at 00:00.0 (Intel 3 Series Express Chipset Family data sheet,
 * 5.1): places the ECAM window. The registers of shadow RAM and SMM keep what is written to them,
 * with their locks; all of RAM is always readable and writable, and there is no SMM.
 */
#ifndef HULL_DEV_MCH_H
#define HULL_DEV_MCH_H

#include "dev/dev.h"

extern const struct state_table mch_state_table;

int mch_new(struct device **dev, const struct dev_env *env, struct err *err);

/* What firmware does to the bridge, for direct kernel boot, after each reset: ECAM of 256 buses at
 * base, a multiple of 256 MiB below 64 GiB. No vCPU runs. */
void mch_enable_ecam(struct device *dev, uint64_t base);

#endif
