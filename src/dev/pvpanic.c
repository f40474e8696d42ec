/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/pvpanic.h"

#include <errno.h>
#include <stdlib.h>

#include "base/units.h"

#define PVPANIC_PANICKED     (1u << 0)
#define PVPANIC_CRASH_LOADED (1u << 1)

struct pvpanic {
    struct device dev; /* first */
    struct bus *bus;
    struct bus_range range;
    const struct dev_events *events;
};

/* Reads tell which events are understood. */
static uint64_t pvpanic_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    (void)range;
    (void)offset;
    (void)size;
    return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

static void pvpanic_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    const struct dev_events *events = CONTAINER_OF(range, struct pvpanic, range)->events;

    (void)offset;
    (void)size;
    if (value & PVPANIC_PANICKED)
        events->panicked(events->ctx, false);
    else if (value & PVPANIC_CRASH_LOADED)
        events->panicked(events->ctx, true);
}

static const struct bus_range_ops pvpanic_range_ops = {
    .read = pvpanic_read,
    .write = pvpanic_write,
    .max_size = 1,
};

static void pvpanic_fini(struct device *dev)
{
    struct pvpanic *pvpanic = CONTAINER_OF(dev, struct pvpanic, dev);

    bus_unmap(pvpanic->bus, &pvpanic->range);
    free(pvpanic);
}

static const struct device_ops pvpanic_ops = {.fini = pvpanic_fini};

int pvpanic_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    struct pvpanic *pvpanic = calloc(1, sizeof(*pvpanic));
    int rc;

    if (!pvpanic)
        return err_errno(err, ENOMEM, "cannot make pvpanic");
    device_init(&pvpanic->dev, &pvpanic_ops, NULL, NULL, env->loop, "pvpanic");
    pvpanic->bus = env->bus;
    pvpanic->events = env->events;
    pvpanic->range = (struct bus_range){
        .ops = &pvpanic_range_ops, .dev = &pvpanic->dev, .base = PVPANIC_PORT, .len = 1};
    rc = bus_map(env->bus, &pvpanic->range);
    if (rc < 0) {
        device_fini(&pvpanic->dev);
        return err_errno(err, rc, "cannot map pvpanic's port");
    }
    *dev = &pvpanic->dev;
    return 0;
}
