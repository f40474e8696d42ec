/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A 16550A UART as COM1-COM4 (National Semiconductor PC16550D data sheet), joined to a character
 * device of the host. The line has no speed of its own: output goes out at once, for as long as the
 * host takes it; when it does not, the holding register stays full and nothing is lost.
 */
#ifndef HULL_DEV_UART_H
#define HULL_DEV_UART_H

#include "char/char.h"
#include "dev/dev.h"

#define UART_COUNT 4

extern const struct state_table uart_state_table;

/* index 0-3: COM1-COM4 at 0x3f8/IRQ 4, 0x2f8/IRQ 3, 0x3e8/IRQ 4, 0x2e8/IRQ 3. chr NULL: nothing is
 * plugged in, output is dropped. chr stays the caller's and outlives the device. */
int uart_new(struct device **dev, const struct dev_env *env, unsigned index, struct char_dev *chr,
             struct err *err);

#endif
