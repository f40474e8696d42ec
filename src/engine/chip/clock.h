/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time for the chips: nanoseconds since the VM's power-on, and timers. Two kinds:
 *
 *     host      CLOCK_MONOTONIC; a thread of the clock's own fires timers
 *     virtual   advances with the instructions that a single vCPU executes, and jumps to the next
 *               timer when the vCPU sleeps: the same run twice is the same to the bit
 *
 * Pausing stops the clock (both kinds): a VM that does not run does not age.
 *
 * Threads: [any] for all but new and free. A timer's function runs on the clock's thread (host) or
 * the vCPU's (virtual), with no lock of the clock held; it may start or stop timers, also its own.
 */
#ifndef HULL_ENGINE_CHIP_CLOCK_H
#define HULL_ENGINE_CHIP_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct chip_clock;

enum chip_clock_kind {
    CHIP_CLOCK_HOST,
    CHIP_CLOCK_VIRTUAL,
};

#define CHIP_NEVER UINT64_MAX

/* Embedded by its owner; zero before chip_timer_init. */
struct chip_timer {
    struct chip_clock *clock;
    void (*fire)(void *ctx);
    void *ctx;
    uint64_t deadline_ns; /* CHIP_NEVER: not running */
    unsigned heap_index;
};

int chip_clock_new(struct chip_clock **clock, enum chip_clock_kind kind, struct err *err);
void chip_clock_free(struct chip_clock *clock);

uint64_t chip_clock_now(struct chip_clock *clock);
bool chip_clock_is_virtual(const struct chip_clock *clock);
void chip_clock_pause(struct chip_clock *clock);
void chip_clock_resume(struct chip_clock *clock);

void chip_timer_init(struct chip_timer *timer, struct chip_clock *clock, void (*fire)(void *ctx),
                     void *ctx);
/* (Re)start: fires once at deadline_ns, at once where that is past. */
void chip_timer_start(struct chip_timer *timer, uint64_t deadline_ns);
/* After it returns the function does not run (unless called from the function itself). */
void chip_timer_stop(struct chip_timer *timer);

/* --- virtual clock only --- */

/* The vCPU's loop: set the time to what the executed instructions make it; fires what is due.
 * Returns the next deadline. */
uint64_t chip_clock_advance(struct chip_clock *clock, uint64_t now_ns);
/* The vCPU sleeps: jump to the next deadline and fire. Returns false where there is none (then only
 * an input from outside goes on: time stands still until then). */
bool chip_clock_skip(struct chip_clock *clock);

/*
 * [any] Guest time stands while there is a hold: the vCPU executes no instruction. What the guest
 * asked of another thread (a disk's request) is held for from the access that asked to the
 * interrupt that answers, so that the answer comes at the same instruction in each run, however
 * long the host takes. On the host's clock it has no effect.
 */
void chip_clock_hold(struct chip_clock *clock);
void chip_clock_release(struct chip_clock *clock);
bool chip_clock_is_held(const struct chip_clock *clock);
/* Called, on whatever thread it is, when the last hold is gone. Before the first hold. */
void chip_clock_on_release(struct chip_clock *clock, void (*fn)(void *ctx), void *ctx);

#endif
