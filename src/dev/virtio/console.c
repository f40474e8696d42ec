/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: no chain is ever held. Of a chain that the host took only in part, the rest
 * is put back into the queue with virtq_unpop(), and the state says how much of it is done; a chain
 * for input is popped when there is input to put into it. So nothing is in flight at a reset or in
 * a snapshot.
 */
#include "dev/virtio/console.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"

#define CONSOLE_QUEUES     2
#define CONSOLE_QUEUE_SIZE 128
/* A turn's output: then others get theirs. */
#define CONSOLE_TURN_BYTES  (64 * KIB)
#define CONSOLE_TURN_CHAINS 64
/* The most that one call of input() brings. */
#define CONSOLE_ROOM_MAX (4 * KIB)

struct virtio_console {
    struct virtio_device dev; /* first */
    struct virtio_console_state state;
    struct char_dev *chr;
    bool held;                       /* device_hold(): output waits for the host's reader */
    uint16_t cols, rows;             /* of the host's terminal: no state of the guest */
    struct iovec iov[VIRTQ_IOV_MAX]; /* of the chain at hand; lock held */
};

static const struct state_field console_fields[] = {
    STATE_U32(struct virtio_console_state, tx_offset, 1, 0,
              "Bytes of the next transmit chain that are written"),
};
const struct state_table virtio_console_state_table =
    STATE_TABLE("virtio-console", struct virtio_console_state, 1, console_fields);

static struct virtio_console *to_console(struct virtio_device *dev)
{
    return CONTAINER_OF(dev, struct virtio_console, dev);
}

/* 1, 0, or -EPROTO: as virtq_pop(), which is said to the driver. */
static int console_pop(struct virtio_console *con, struct virtq *vq, struct virtq_chain *chain)
{
    int rc = virtq_pop(vq, chain, con->iov, VIRTQ_IOV_MAX);
    if (rc < 0)
        virtio_needs_reset(&con->dev, "a console buffer is malformed");
    return rc;
}

/* --- output --- */

/* Write the chain from byte *offset on, which moves; false: the host is full. */
static bool console_write_chain(struct virtio_console *con, const struct virtq_chain *chain,
                                uint32_t *offset)
{
    uint64_t skip = *offset;
    for (uint32_t i = 0; i < chain->out_num; i++) {
        const struct iovec *iov = &chain->iov[i];
        if (skip >= iov->iov_len) {
            skip -= iov->iov_len;
            continue;
        }
        size_t len = iov->iov_len - skip;
        size_t taken = char_write(con->chr, (const uint8_t *)iov->iov_base + skip, len);
        *offset += (uint32_t)taken;
        if (taken < len)
            return false; /* writable() comes when there is room again */
        skip = 0;
    }
    return true;
}

/* Lock held. */
static void console_transmit(struct virtio_console *con)
{
    struct virtq *vq = &con->dev.queues[VIRTIO_CONSOLE_TX];
    struct virtq_chain chain;
    uint64_t bytes = 0;
    bool pushed = false, full = false;
    if (!virtio_is_live(&con->dev)) {
        device_hold(&con->dev.fn.dev, &con->held, false);
        return;
    }
    virtq_disable_kick(vq);
    for (unsigned turns = 0;; turns++) {
        if (turns == CONSOLE_TURN_CHAINS || bytes >= CONSOLE_TURN_BYTES) {
            virtio_queue_kick_later(&con->dev, vq);
            break;
        }
        if (console_pop(con, vq, &chain) != 1) {
            if (!virtq_enable_kick(vq))
                break;
            virtq_disable_kick(vq);
            continue;
        }
        if (!console_write_chain(con, &chain, &con->state.tx_offset)) {
            virtq_unpop(vq, &chain);
            full = true;
            break; /* no kick is of use until writable() */
        }
        con->state.tx_offset = 0;
        virtq_push(vq, &chain, 0);
        pushed = true;
        bytes += chain.out_len;
    }
    if (pushed)
        virtio_queue_notify(&con->dev, vq);
    device_hold(&con->dev.fn.dev, &con->held, full);
}

static void console_writable(void *ctx)
{
    struct virtio_console *con = ctx;
    device_lock(&con->dev.fn.dev);
    console_transmit(con);
    device_unlock(&con->dev.fn.dev);
}

/* --- input --- */

/* Lock held. Bytes of the driver's next buffer; 0: there is none. */
static uint64_t console_next_room(struct virtio_console *con, struct virtq *vq)
{
    struct virtq_chain chain;
    if (console_pop(con, vq, &chain) != 1)
        return 0;
    virtq_unpop(vq, &chain);
    if (chain.in_len == 0)
        virtio_needs_reset(&con->dev, "a console input buffer has no writable part");
    return chain.in_len;
}

/* With no buffer there, the driver's next kick makes the host ask again. */
static size_t console_room(void *ctx)
{
    struct virtio_console *con = ctx;
    struct virtq *vq = &con->dev.queues[VIRTIO_CONSOLE_RX];
    uint64_t room = 0;
    device_lock(&con->dev.fn.dev);
    if (virtio_is_live(&con->dev)) {
        virtq_disable_kick(vq);
        room = console_next_room(con, vq);
        if (room == 0 && virtq_enable_kick(vq))
            virtio_queue_kick_later(&con->dev, vq); /* one came just now */
    }
    device_unlock(&con->dev.fn.dev);
    return room < CONSOLE_ROOM_MAX ? room : CONSOLE_ROOM_MAX;
}

static void console_input(void *ctx, const uint8_t *buf, size_t len)
{
    struct virtio_console *con = ctx;
    struct virtq *vq = &con->dev.queues[VIRTIO_CONSOLE_RX];
    struct virtq_chain chain;
    device_lock(&con->dev.fn.dev);
    /* It fits, unless the driver changed its buffers or reset the device since room() was asked:
     * then what was typed in between is lost, as with a terminal that is switched off. */
    while (len > 0 && virtio_is_live(&con->dev) && console_pop(con, vq, &chain) == 1) {
        size_t n = virtq_chain_write(&chain, 0, buf, len);
        virtq_push(vq, &chain, (uint32_t)n);
        if (n == 0)
            break;
        buf += n;
        len -= n;
    }
    virtio_queue_notify(&con->dev, vq);
    device_unlock(&con->dev.fn.dev);
}

/* --- the driver --- */

static void console_queue_kick(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_console *con = to_console(dev);
    if (vq->index == VIRTIO_CONSOLE_TX)
        console_transmit(con);
    else
        char_kick_input(con->chr);
}

static bool console_reset(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_console *con = to_console(dev);
    if (!vq || vq->index == VIRTIO_CONSOLE_TX) {
        con->state.tx_offset = 0;
        device_hold(&dev->fn.dev, &con->held, false);
    }
    return true;
}

static void console_config_read(struct virtio_device *dev, unsigned offset, void *buf,
                                unsigned size)
{
    const struct virtio_console *con = to_console(dev);
    struct virtio_console_config config = {.cols = con->cols, .rows = con->rows, .max_nr_ports = 1};
    memcpy(buf, (const uint8_t *)&config + offset, size);
}

/* A character in an emergency, for which the driver need not have set anything up (5.3.4). */
static void console_config_write(struct virtio_device *dev, unsigned offset, const void *buf,
                                 unsigned size)
{
    if (offset == offsetof(struct virtio_console_config, emerg_wr) && size > 0)
        char_write(to_console(dev)->chr, buf, 1);
}

void virtio_console_set_size(struct virtio_device *dev, uint16_t cols, uint16_t rows)
{
    struct virtio_console *con = to_console(dev);
    device_lock(&dev->fn.dev);
    con->cols = cols;
    con->rows = rows;
    dev->features_offered |= VIRTIO_BIT(VIRTIO_CONSOLE_F_SIZE);
    if (virtio_has_feature(dev, VIRTIO_CONSOLE_F_SIZE))
        virtio_config_changed(dev);
    device_unlock(&dev->fn.dev);
}

/* --- life --- */

static void console_fini(struct virtio_device *dev)
{
    free(to_console(dev));
}

static const struct virtio_ops console_ops = {
    .device_id = 3,
    .class_code = 0x078000, /* simple communication controller, other */
    .queue_kick = console_queue_kick,
    .reset = console_reset,
    .config_read = console_config_read,
    .config_write = console_config_write,
    .fini = console_fini,
};

int virtio_console_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                       struct char_dev *chr, struct err *err)
{
    struct virtio_console *con = calloc(1, sizeof(*con));
    if (!con)
        return err_errno(err, ENOMEM, "%s", name);
    con->chr = chr;
    int rc = virtio_init(&con->dev, &console_ops, env, name, CONSOLE_QUEUES, CONSOLE_QUEUE_SIZE,
                         sizeof(struct virtio_console_config), &virtio_console_state_table,
                         &con->state, err);
    if (rc < 0) {
        free(con);
        return rc;
    }
    con->dev.features_offered = VIRTIO_BIT(VIRTIO_CONSOLE_F_EMERG_WRITE);
    const struct char_client client = {
        .input = console_input, .room = console_room, .writable = console_writable, .ctx = con};
    rc = char_attach(chr, env->loop, &client, err);
    if (rc < 0) {
        virtio_fini(&con->dev);
        free(con);
        return rc;
    }
    *dev = &con->dev;
    return 0;
}
