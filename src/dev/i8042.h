/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The i8042 keyboard controller at ports 0x60 and 0x64, without keyboard and mouse, and port 0x92
 * (fast A20 and reset). (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary
 * Device Controller"; Intel ICH9 data sheet, 13.7.3.) A byte sent to a device that is not there
 * gives the answer of real controllers: 0xfe with the time-out bit. Address line 20 always passes:
 * its switch is stored only.
 */
#ifndef HULL_DEV_I8042_H
#define HULL_DEV_I8042_H

#include "dev/dev.h"

extern const struct state_table i8042_state_table;

int i8042_new(struct device **dev, const struct dev_env *env, struct err *err);

#endif
