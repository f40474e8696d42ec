/* SPDX-License-Identifier: Apache-2.0 */
/* Devices of one port each, for firmware and tests. */
#ifndef HULL_DEV_PORTS_H
#define HULL_DEV_PORTS_H

#include "dev/dev.h"

#define PORTS_POST     0x80u
#define PORTS_DEBUGCON 0x402u
#define PORTS_EXIT     0xf4u

extern const struct state_table post_state_table;

/* Port 0x80: firmware's progress codes; reads give the last one. */
int post_new(struct device **dev, const struct dev_env *env, struct err *err);

/* Port 0x402: text from firmware, a line at a time to the log, at level debug. Reads give 0xe9, by
 * which firmware knows that it is there. */
int debugcon_new(struct device **dev, const struct dev_env *env, struct err *err);

/* Port 0xf4, 4 bytes: isa-debug-exit, by which test kernels end the VM with a status. */
int exit_port_new(struct device **dev, const struct dev_env *env, struct err *err);

#endif
