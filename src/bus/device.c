/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/device.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/units.h"

void device_init(struct device *dev, const struct device_ops *ops, const struct state_table *table,
                 void *state, struct loop *loop, const char *name, ...)
{
    va_list args;

    memset(dev, 0, sizeof(*dev));
    va_start(args, name);
    vsnprintf(dev->name, sizeof(dev->name), name, args);
    va_end(args);
    dev->ops = ops;
    dev->table = table;
    dev->state = state;
    dev->loop = loop;
    pthread_mutex_init(&dev->lock, NULL);
    if (table)
        state_reset(table, state);
}

void device_reset(struct device *dev)
{
    device_lock(dev);
    if (dev->table)
        state_reset(dev->table, dev->state);
    if (dev->ops->reset)
        dev->ops->reset(dev);
    device_unlock(dev);
}

bool device_quiet(struct device *dev)
{
    bool quiet = true;

    if (dev->ops->quiet) {
        device_lock(dev);
        quiet = dev->ops->quiet(dev);
        device_unlock(dev);
    }
    return quiet;
}

/* The mutex is not destroyed: fini may have freed dev, and a Linux mutex owns nothing beyond its
 * own bytes. */
void device_fini(struct device *dev)
{
    if (dev->ops->fini)
        dev->ops->fini(dev);
}

#define VIRTUAL_EPOCH_S 1767225600ULL /* 2026-01-01 */

uint64_t device_now_ns(const struct device *dev)
{
    return dev->clock ? chip_clock_now(dev->clock) : clock_now_ns();
}

uint64_t device_date_ns(const struct device *dev)
{
    struct timespec ts;

    if (dev->clock)
        return VIRTUAL_EPOCH_S * NS_PER_SEC + chip_clock_now(dev->clock);
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

void device_hold(struct device *dev, bool *held, bool busy)
{
    if (!dev->clock || *held == busy)
        return;
    *held = busy;
    if (busy)
        chip_clock_hold(dev->clock);
    else
        chip_clock_release(dev->clock);
}

/*
 * The loop may be waiting for the lock here while a vCPU cancels or moves the timer. armed_ns is
 * what counts: a firing that finds a later deadline does nothing, the loop's timer was moved too.
 */
static void device_timer_due(struct device_timer *timer)
{
    device_lock(timer->dev);
    if (timer->armed_ns != UINT64_MAX && device_now_ns(timer->dev) >= timer->armed_ns) {
        timer->armed_ns = UINT64_MAX;
        timer->fn(timer);
    }
    device_unlock(timer->dev);
}

static void device_timer_fired(struct loop_timer *loop_timer)
{
    device_timer_due(CONTAINER_OF(loop_timer, struct device_timer, timer));
}

static void virtual_timer_fired(void *ctx)
{
    device_timer_due(ctx);
}

void device_timer_init(struct device_timer *timer, struct device *dev,
                       void (*fn)(struct device_timer *self))
{
    loop_timer_init(&timer->timer, device_timer_fired);
    timer->virtual_timer = (struct chip_timer){.clock = NULL};
    timer->dev = dev;
    timer->fn = fn;
    timer->armed_ns = UINT64_MAX;
}

static void start(struct device_timer *timer, uint64_t deadline_ns)
{
    struct device *dev = timer->dev;

    if (!dev->clock) {
        loop_timer_arm(dev->loop, &timer->timer, deadline_ns);
        return;
    }
    if (!timer->virtual_timer.clock)
        chip_timer_init(&timer->virtual_timer, dev->clock, virtual_timer_fired, timer);
    chip_timer_start(&timer->virtual_timer, deadline_ns);
}

void device_timer_arm(struct device_timer *timer, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        device_timer_cancel(timer);
        return;
    }
    if (timer->armed_ns == deadline_ns)
        return;
    timer->armed_ns = deadline_ns;
    start(timer, deadline_ns);
}

void device_timer_cancel(struct device_timer *timer)
{
    if (timer->armed_ns == UINT64_MAX)
        return;
    timer->armed_ns = UINT64_MAX;
    if (timer->virtual_timer.clock) /* not chip_timer_stop(): it would wait for us */
        chip_timer_start(&timer->virtual_timer, CHIP_NEVER);
    else
        loop_timer_cancel(timer->dev->loop, &timer->timer);
}
