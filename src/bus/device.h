/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every device is: a name, one struct of state with its table, one lock, one home loop.
 *
 * The lock is held on every way into a device. The bus takes it for accesses; device_event and
 * device_timer take it for what comes from the home loop. A backend's callback (a finished disk
 * request) enters with device_lock(). Nothing else locks. Lock order: vm, device, backend, log.
 */
#ifndef HULL_BUS_DEVICE_H
#define HULL_BUS_DEVICE_H

#include <pthread.h>
#include <stdbool.h>

#include "base/log.h"
#include "base/loop.h"
#include "engine/chip/clock.h"
#include "state/state.h"

struct device;

struct device_ops {
    /*
     * Back to power-on, after the state struct got its reset values from the table: drop what is
     * outside the struct, lower lines. Lock held, no vCPU runs. May be NULL.
     */
    void (*reset)(struct device *dev);
    /*
     * After reset(): is nothing of the device in flight in a backend any more? Until then guest
     * memory may still be written. Lock held. May be NULL: always.
     */
    bool (*quiet)(struct device *dev);
    /* Stop threads and give back what init took. No lock; no vCPU and no loop runs. May be NULL. */
    void (*fini)(struct device *dev);
};

struct device {
    char name[32]; /* unique in the VM: "uart0", "disk1" */
    const struct device_ops *ops;
    const struct state_table *table; /* NULL: a device without state */
    void *state;
    struct loop *loop; /* home loop */
    /* What time it is for the device, where that is not the host's time: a virtual clock, on which
     * timers fire on the vCPU's thread. NULL: the host's. Set by the board before power-on. */
    struct chip_clock *clock;
    pthread_mutex_t lock;
    struct log_budget log_budget; /* for log_guest() */
    struct device *next;          /* the board's list, in order of creation */
};

/* name is printf-like. Resets the state from the table. */
void device_init(struct device *dev, const struct device_ops *ops, const struct state_table *table,
                 void *state, struct loop *loop, const char *name, ...)
    __attribute__((format(printf, 6, 7)));

void device_reset(struct device *dev);
bool device_quiet(struct device *dev);
void device_fini(struct device *dev);

static inline void device_lock(struct device *dev)
{
    pthread_mutex_lock(&dev->lock);
}

static inline void device_unlock(struct device *dev)
{
    pthread_mutex_unlock(&dev->lock);
}

/* Nanoseconds of a clock that never jumps, and since 1970. A virtual clock's date begins with 2026.
 */
uint64_t device_now_ns(const struct device *dev);
uint64_t device_date_ns(const struct device *dev);

/*
 * Is the device at work on what the guest asked for? On a virtual clock guest time stands for so
 * long (chip_clock_hold()); else it has no effect. *held is the owner's note of what it said last,
 * false at first, and not state of the guest: a reset does not clear it. Lock held.
 */
void device_hold(struct device *dev, bool *held, bool busy);

/* A timer of the home loop whose fn runs with the device's lock held, and not after a cancel that
 * was made under that lock. */
struct device_timer {
    struct loop_timer timer;
    struct chip_timer virtual_timer; /* with device.clock, instead */
    struct device *dev;
    void (*fn)(struct device_timer *self);
    uint64_t armed_ns; /* deadline that counts; UINT64_MAX when disarmed */
};

void device_timer_init(struct device_timer *timer, struct device *dev,
                       void (*fn)(struct device_timer *self));
/* Lock held. deadline_ns: of device_now_ns(). */
void device_timer_arm(struct device_timer *timer, uint64_t deadline_ns);
void device_timer_cancel(struct device_timer *timer);

#endif
