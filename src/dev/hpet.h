/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The high-precision event timer block (IA-PC HPET 1.0a): a 64-bit counter of 100 MHz at HPET_BASE,
 * and three timers, each periodic or one-shot, of 64 or 32 bits, edge or level triggered, to the
 * IOAPIC's inputs 16-23. With legacy replacement timer 0 has the PIT's interrupt and timer 1 the
 * real-time clock's. Messages instead of interrupts (FSB delivery) are not offered.
 */
#ifndef HULL_DEV_HPET_H
#define HULL_DEV_HPET_H

#include "dev/dev.h"

#define HPET_BASE  0xfed00000ULL
#define HPET_BYTES 0x400u

/* Low half of the capabilities, which the ACPI table repeats (3.2.4): Intel's, legacy replacement,
 * 64 bits, three timers, revision 1. */
#define HPET_TIMERS   3
#define HPET_BLOCK_ID (0x8086u << 16 | 1u << 15 | 1u << 13 | (HPET_TIMERS - 1u) << 8 | 1u)

/* Periods below this many ticks (50 us) are served no more often than that. */
#define HPET_MIN_PERIOD_TICKS 5000u

extern const struct state_table hpet_state_table;

int hpet_new(struct device **dev, const struct dev_env *env, struct err *err);

#endif
