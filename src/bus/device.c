/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/device.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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

/*
 * The loop may be waiting for the lock here while a vCPU cancels or moves the timer. armed_ns is
 * what counts: a firing that finds a later deadline does nothing, the loop's timer was moved too.
 */
static void device_timer_fired(struct loop_timer *loop_timer)
{
    struct device_timer *timer = CONTAINER_OF(loop_timer, struct device_timer, timer);

    device_lock(timer->dev);
    if (timer->armed_ns != UINT64_MAX && clock_now_ns() >= timer->armed_ns) {
        timer->armed_ns = UINT64_MAX;
        timer->fn(timer);
    }
    device_unlock(timer->dev);
}

void device_timer_init(struct device_timer *timer, struct device *dev,
                       void (*fn)(struct device_timer *self))
{
    loop_timer_init(&timer->timer, device_timer_fired);
    timer->dev = dev;
    timer->fn = fn;
    timer->armed_ns = UINT64_MAX;
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
    loop_timer_arm(timer->dev->loop, &timer->timer, deadline_ns);
}

void device_timer_cancel(struct device_timer *timer)
{
    if (timer->armed_ns == UINT64_MAX)
        return;
    timer->armed_ns = UINT64_MAX;
    loop_timer_cancel(timer->dev->loop, &timer->timer);
}
