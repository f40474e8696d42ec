/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The MC146818A real-time clock with 128 bytes of CMOS RAM at ports 0x70-0x71, IRQ 8 (Motorola
 * MC146818A data sheet; Intel ICH9 data sheet, 13.6). It runs on the host's UTC plus an offset,
 * which the guest changes when it sets the clock. Clock setting and CMOS RAM are held by a battery:
 * a reset of the machine keeps them.
 */
#ifndef HULL_DEV_RTC_H
#define HULL_DEV_RTC_H

#include "dev/dev.h"

extern const struct state_table rtc_state_table;

int rtc_new(struct device **dev, const struct dev_env *env, struct err *err);

/* fn is called when the alarm interrupts, with the clock's lock held. While the board is built. */
void rtc_on_alarm(struct device *dev, void (*fn)(void *ctx), void *ctx);

/* What firmware reads of the machine's size from CMOS: RAM below 4 GiB and from 4 GiB on, number of
 * CPUs. While the board is built; kept over resets. */
void rtc_set_memory(struct device *dev, uint64_t low_bytes, uint64_t high_bytes, unsigned cpus);

#endif
