/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The 8254 interval timer (Intel 8254 datasheet; ICH9 datasheet, 5.7): three counters at 1.193182
 * MHz. Counter 0 drives IRQ 0, counter 2 the speaker, gated by port 0x61. Counters are computed
 * from the clock when they are looked at.
 *
 * Threads: all functions under one lock of the caller's (irqchip.c); irq is called under it.
 */
#ifndef HULL_ENGINE_CHIP_PIT_H
#define HULL_ENGINE_CHIP_PIT_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/chip/clock.h"
#include "state/state.h"

struct pit_channel {
    uint64_t start_ns;   /* when the count was loaded into the counting element */
    uint64_t held_ticks; /* ticks since then, while the gate stops the counter */
    uint32_t reload;     /* in the counting element: 1 to 65536 (0 was written) */
    uint32_t count;      /* in the count register, to be loaded next */
    uint16_t latch;
    uint8_t latched; /* bytes of the latch still to read: 0, 1, 2 */
    uint8_t status;
    uint8_t status_latched;
    uint8_t mode;   /* 0-5 */
    uint8_t access; /* 1 low, 2 high, 3 both */
    uint8_t bcd;
    uint8_t write_low; /* first byte of two */
    uint8_t write_half;
    uint8_t read_half;
    uint8_t gate;
    uint8_t written; /* the count register has a count since the control word */
    uint8_t null;    /* NULL COUNT: it is not in the counting element yet */
    uint8_t armed;   /* the counting element has a count since the control word */
    uint8_t pad_[1];
};

struct pit_state {
    struct pit_channel channel[3];
    uint8_t speaker;   /* port 0x61, bits 0 to 3 */
    uint8_t connected; /* counter 0 drives IRQ 0 */
    uint8_t pad_[6];
};

extern const struct state_table pit_table;

struct pit {
    struct pit_state s;
    struct chip_clock *clock;
    struct chip_timer timer; /* the next rise of counter 0's output, or load of a new count */
    uint64_t deadline_ns;    /* what it waits for: a tick that comes before is of the past */
    bool rise_due;           /* which of them */
    void (*irq)(void *ctx, bool level);
    void *ctx;
};

/* tick: the timer's function, which must take the caller's lock and call pit_tick(). */
void pit_init(struct pit *pit, struct chip_clock *clock, void (*tick)(void *ctx), void *tick_ctx);
void pit_fini(struct pit *pit);
void pit_reset(struct pit *pit);
void pit_tick(struct pit *pit);
/* Ports 0x40-0x43 and 0x61. */
bool pit_read(struct pit *pit, uint16_t port, uint8_t *value);
bool pit_write(struct pit *pit, uint16_t port, uint8_t value);

#endif
