/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/ports.h"

#include <errno.h>
#include <stdlib.h>

#include "base/units.h"

/* What debugcon answers to reads. */
#define DEBUGCON_PRESENT 0xe9u

/* Firmware's text is worth logging; a guest that writes without end is not. */
#define DEBUGCON_BYTES_MAX (1 * MIB)

struct post_state {
    uint8_t code;
};

static const struct state_field post_fields[] = {
    STATE_U8(struct post_state, code, 1, 0, "Last progress code"),
};
const struct state_table post_state_table = STATE_TABLE("post", struct post_state, 1, post_fields);

struct port {
    struct device dev; /* first */
    struct bus *bus;
    struct bus_range range;
    const struct dev_events *events;
    struct post_state post;

    char line[256]; /* of debugcon, not yet complete */
    size_t line_len;
    size_t bytes_logged;
};

static void port_fini(struct device *dev)
{
    struct port *port = CONTAINER_OF(dev, struct port, dev);

    bus_unmap(port->bus, &port->range);
    free(port);
}

static int port_new(struct device **dev, const struct dev_env *env, const char *name,
                    const struct device_ops *ops, const struct state_table *table,
                    const struct bus_range_ops *range_ops, uint16_t base, unsigned len,
                    struct err *err)
{
    struct port *port = calloc(1, sizeof(*port));
    int rc;

    if (!port)
        return err_errno(err, ENOMEM, "cannot make device %s", name);
    device_init(&port->dev, ops, table, &port->post, env->loop, "%s", name);
    port->bus = env->bus;
    port->events = env->events;
    port->range = (struct bus_range){.ops = range_ops, .dev = &port->dev, .base = base, .len = len};
    rc = bus_map(env->bus, &port->range);
    if (rc < 0) {
        device_fini(&port->dev);
        return err_errno(err, rc, "cannot map the port of %s", name);
    }
    *dev = &port->dev;
    return 0;
}

/* --- POST codes --- */

static uint64_t post_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    (void)offset;
    (void)size;
    return CONTAINER_OF(range, struct port, range)->post.code;
}

static void post_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    (void)offset;
    (void)size;
    CONTAINER_OF(range, struct port, range)->post.code = (uint8_t)value;
}

static const struct bus_range_ops post_range_ops = {post_read, post_write, 1};
static const struct device_ops post_ops = {.fini = port_fini};

int post_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    return port_new(dev, env, "post", &post_ops, &post_state_table, &post_range_ops, PORTS_POST, 1,
                    err);
}

/* --- debugcon --- */

static void debugcon_flush(struct port *port)
{
    if (port->line_len == 0)
        return;
    log_debug("firmware", "%.*s", (int)port->line_len, port->line);
    port->bytes_logged += port->line_len;
    port->line_len = 0;
    if (port->bytes_logged >= DEBUGCON_BYTES_MAX)
        log_debug("firmware", "(no more of this: the guest has written %llu KiB)",
                  DEBUGCON_BYTES_MAX / KIB);
}

static uint64_t debugcon_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    (void)range;
    (void)offset;
    (void)size;
    return DEBUGCON_PRESENT;
}

/* Control characters do not reach the log, which may be a terminal. */
static void debugcon_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct port *port = CONTAINER_OF(range, struct port, range);
    char c = (char)value;

    (void)offset;
    (void)size;
    if (port->bytes_logged >= DEBUGCON_BYTES_MAX || c == '\r')
        return;
    if (c == '\n') {
        debugcon_flush(port);
        return;
    }
    port->line[port->line_len++] = (c >= ' ' && c <= '~') || c == '\t' ? c : '?';
    if (port->line_len == sizeof(port->line))
        debugcon_flush(port);
}

static void debugcon_reset(struct device *dev)
{
    debugcon_flush(CONTAINER_OF(dev, struct port, dev));
}

static void debugcon_fini(struct device *dev)
{
    debugcon_flush(CONTAINER_OF(dev, struct port, dev));
    port_fini(dev);
}

static const struct bus_range_ops debugcon_range_ops = {debugcon_read, debugcon_write, 1};
static const struct device_ops debugcon_ops = {.reset = debugcon_reset, .fini = debugcon_fini};

int debugcon_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    return port_new(dev, env, "debugcon", &debugcon_ops, NULL, &debugcon_range_ops, PORTS_DEBUGCON,
                    1, err);
}

/* --- the exit port --- */

static void exit_port_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    const struct dev_events *events = CONTAINER_OF(range, struct port, range)->events;

    (void)size;
    if (offset == 0)
        events->exit(events->ctx, (unsigned)value);
}

static const struct bus_range_ops exit_port_range_ops = {.write = exit_port_write, .max_size = 4};
static const struct device_ops exit_port_ops = {.fini = port_fini};

int exit_port_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    return port_new(dev, env, "exit", &exit_port_ops, NULL, &exit_port_range_ops, PORTS_EXIT, 4,
                    err);
}
