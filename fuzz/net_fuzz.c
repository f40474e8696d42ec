/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network card between a driver and a network that both follow the input, mostly in valid ways:
 * buffers of odd sizes, packets of all sizes, headers, control commands, a backend that is full,
 * resets; now and then a corrupted descriptor. What arrives in the guest must be a packet that the
 * network sent, whole and in order; what arrives at the network must have a header that was agreed
 * on; and no chain may be lost.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"
#include "dev/virtio/net.h"
#include "dev/virtio/net_priv.h"
#include "dev/virtio/vtest.h"
#include "net/packet.h"

#define OPS_MAX    128
#define HOST_MAX   64
#define SEGS_MAX   12
#define OFFLOADS   (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN)
#define QUEUE_RX   0
#define QUEUE_TX   1
#define QUEUE_CTRL 2

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* --- input --- */

static const uint8_t *input;
static size_t input_left;

static uint8_t next_byte(void)
{
    if (input_left == 0)
        return 0;
    input_left--;
    return *input++;
}

static uint32_t next_word(void)
{
    uint32_t word = 0;
    for (unsigned i = 0; i < 4; i++)
        word = word << 8 | next_byte();
    return word;
}

/* --- the network --- */

static struct vtest t;
static struct vtest_driver d;
static struct net_backend network;
static void (*rx_ready)(void *ctx, unsigned queue);
static void (*tx_ready)(void *ctx, unsigned queue);
static void *ready_ctx;
static bool watch_rx, watch_tx, full;

/* Packets on their way to the guest: a length and a seed each, in a ring. */
struct host_packet {
    uint32_t len; /* with header */
    uint8_t seed;
};
static struct host_packet host[HOST_MAX];
static unsigned host_head, host_count;
/* Those that the card has read and the guest not seen; filtered and dropped ones stay. */
static struct host_packet taken[4096];
static unsigned taken_first, taken_count;

static uint8_t packet[NET_PACKET_MAX], merged[NET_PACKET_MAX];

static void make_packet(const struct host_packet *p, uint8_t *to)
{
    memset(to, 0, NET_HEADER_BYTES);
    for (uint32_t i = NET_HEADER_BYTES; i < p->len; i++)
        to[i] = (uint8_t)(p->seed + i * 7 + (i >> 8));
}

static int network_attach(struct net_backend *net, unsigned queue, struct loop *loop,
                          void (*rx)(void *ctx, unsigned queue),
                          void (*tx)(void *ctx, unsigned queue), void *ctx)
{
    (void)net, (void)queue, (void)loop;
    rx_ready = rx;
    tx_ready = tx;
    ready_ctx = ctx;
    return 0;
}

static void network_watch(struct net_backend *net, unsigned queue, bool rx, bool tx)
{
    (void)net, (void)queue;
    watch_rx = rx;
    watch_tx = tx;
}

static ssize_t network_send(struct net_backend *net, unsigned queue, const struct iovec *iov,
                            unsigned iov_count)
{
    struct net_header header, checked;
    size_t len = 0;
    (void)net, (void)queue;
    if (full)
        return -EAGAIN;
    if (iov_count > 1024 || iov[0].iov_len != sizeof(header))
        abort();
    for (unsigned i = 0; i < iov_count; i++)
        len += iov[i].iov_len;
    memcpy(&header, iov[0].iov_base, sizeof(header));
    checked = header;
    if (len > NET_PACKET_MAX || !packet_header_check(&checked, OFFLOADS, len - sizeof(header)) ||
        memcmp(&header, &checked, sizeof(header)) != 0)
        abort();
    size_t at = 0;
    for (unsigned i = 0; i < iov_count; at += iov[i++].iov_len)
        memcpy(merged + at, iov[i].iov_base, iov[i].iov_len);
    if (header.flags & NET_HEADER_NEEDS_CSUM &&
        !packet_finish_checksum(merged + sizeof(header), len - sizeof(header), &header))
        abort();
    return (ssize_t)len;
}

static ssize_t network_receive(struct net_backend *net, unsigned queue, const struct iovec *iov,
                               unsigned iov_count)
{
    (void)net, (void)queue;
    if (host_count == 0 || taken_first + taken_count == ARRAY_LEN(taken))
        return -EAGAIN;
    if (iov_count > 1024)
        abort();
    const struct host_packet *p = &host[host_head];
    size_t done = 0;
    make_packet(p, packet);
    for (unsigned i = 0; i < iov_count && done < p->len; i++) {
        size_t part = iov[i].iov_len < p->len - done ? iov[i].iov_len : p->len - done;
        memcpy(iov[i].iov_base, packet + done, part);
        done += part;
    }
    if (done != p->len)
        abort(); /* the card must have room for the largest packet */
    taken[taken_first + taken_count++] = *p;
    host_head = (host_head + 1) % HOST_MAX;
    host_count--;
    return (ssize_t)done;
}

static int network_set(struct net_backend *net, unsigned value)
{
    (void)net, (void)value;
    return 0;
}

static void network_close(struct net_backend *net)
{
    (void)net;
}

static const struct net_ops network_ops = {
    .name = "fuzz",
    .attach = network_attach,
    .watch = network_watch,
    .send = network_send,
    .receive = network_receive,
    .set_offloads = network_set,
    .set_queue_pairs = network_set,
    .close = network_close,
};

/* --- the machine --- */

static void setup(void)
{
    struct virtio_net_options options = {
        .mac = {0x52, 0x54, 0, 1, 2, 3}
    };
    struct virtio_device *dev;
    struct err err = ERR_INIT;
    if (network.ops)
        return;
    network = (struct net_backend){.ops = &network_ops,
                                   .queue_pairs = 1,
                                   .offloads_rx = OFFLOADS,
                                   .offloads_tx = OFFLOADS,
                                   .link_up = true};
    vtest_init(&t);
    if (virtio_net_new(&dev, &t.env, "net0", &network, &options, &err) < 0 ||
        virtio_pci_plug(dev, -1, &err) < 0)
        abort();
    vtest_attach(&d, &t, dev);
}

static void stop_loop(struct loop_task *task)
{
    (void)task;
    loop_stop(t.loop);
}

/* Kicks are heard, and the network calls for as long as it is watched and ready. */
static void run_loop(void)
{
    struct loop_task task = {.fn = stop_loop};
    for (unsigned i = 0; i < 4; i++) {
        loop_post(t.loop, &task);
        loop_run(t.loop);
        if (watch_rx && host_count)
            rx_ready(ready_ctx, 0);
        if (watch_tx && !full)
            tx_ready(ready_ctx, 0);
    }
}

/* --- the driver --- */

struct pending {
    bool used;
    unsigned count;
    struct vtest_seg segs[SEGS_MAX];
};

static struct pending pending[3][VIRTQ_SIZE_MAX];
/* A descriptor was corrupted: it may lead into any buffer, and contents mean nothing any more. */
static bool tainted;
/* And it leads the device into the rings, which lie below the buffers: nothing can be read from
 * them any more, until the next restart. */
static bool rings_lost;
static uint64_t buffers_at;

static uint32_t pick_len(void)
{
    static const uint32_t lens[] = {12, 26, 60, 72, 256, 1514, 1526, 1536, 2048, 4096, 9000, 65549};
    uint8_t choice = next_byte();
    return choice < 0xe0 ? lens[choice % ARRAY_LEN(lens)] : next_word() % 66000;
}

static unsigned cut(struct vtest_seg *segs, unsigned count, uint64_t gpa, uint32_t len, bool write)
{
    while (len > 0 && count < SEGS_MAX) {
        uint8_t how = next_byte();
        uint32_t piece = how < 0xc0 || count + 1 == SEGS_MAX ? len : 1 + next_word() % len;
        segs[count++] = (struct vtest_seg){.gpa = gpa, .len = piece, .write = write};
        gpa += piece;
        len -= piece;
    }
    return count;
}

static void add(unsigned queue, struct vtest_seg *segs, unsigned count)
{
    struct vtest_queue *q = &d.queues[queue];
    struct pending p = {.used = true, .count = count};
    if (count == 0)
        return;
    memcpy(p.segs, segs, count * sizeof(segs[0]));
    if (next_byte() == 0xff) {
        struct vtest_seg *seg = &segs[next_byte() % count];
        uint8_t how = next_byte();
        if (how % 3 == 0)
            seg->gpa = (uint64_t)next_word() << (next_byte() % 33);
        else if (how % 3 == 1)
            seg->len = next_word();
        else
            seg->write = !seg->write;
        tainted = true;
        rings_lost |= seg->write && seg->gpa < buffers_at;
    }
    q->indirect = next_byte() & 1;
    int id = vtest_add(q, segs, count);
    if (id >= 0)
        pending[queue][id] = p;
}

static void add_buffers(void)
{
    struct vtest_seg segs[SEGS_MAX];
    unsigned n = 1 + next_byte() % 16;
    uint32_t len = pick_len();
    for (unsigned i = 0; i < n; i++) {
        if (t.next_gpa + len + 4096 > VTEST_RAM_BYTES)
            return;
        add(QUEUE_RX, segs, cut(segs, 0, vtest_alloc(&t, len, 64), len, true));
    }
}

static void add_packet(void)
{
    struct vtest_seg segs[SEGS_MAX];
    uint32_t len = pick_len();
    if (t.next_gpa + len + 4096 > VTEST_RAM_BYTES)
        return;
    uint64_t gpa = vtest_alloc(&t, len + NET_HEADER_BYTES, 64);
    struct net_header *header = vtest_ram(&t, gpa, sizeof(*header));
    uint8_t how = next_byte();
    if (how & 1)
        *header = (struct net_header){.flags = 1, .csum_start = 34, .csum_offset = 16};
    if (how & 2) {
        header->gso_type = how & 4 ? 1 : next_byte();
        header->gso_size = 1460;
        header->hdr_len = 54;
    }
    if ((how & 0xf0) == 0xf0) {
        uint8_t *byte = (uint8_t *)header + next_byte() % sizeof(*header);
        *byte = next_byte();
    }
    add(QUEUE_TX, segs, cut(segs, 0, gpa, len, false));
}

static void add_command(void)
{
    static const uint8_t lens[] = {0, 1, 2, 6, 8, 20, 64};
    struct vtest_seg segs[SEGS_MAX];
    uint64_t gpa = vtest_alloc(&t, 128, 64);
    uint8_t *p = vtest_ram(&t, gpa, 128);
    uint32_t len = 2u + lens[next_byte() % ARRAY_LEN(lens)];
    for (uint32_t i = 0; i < len; i++)
        p[i] = i < 2 ? next_byte() % 7 : next_byte();
    unsigned count = cut(segs, 0, gpa, len, false);
    if (count < SEGS_MAX)
        segs[count++] = (struct vtest_seg){.gpa = gpa + 127, .len = 1, .write = true};
    add(QUEUE_CTRL, segs, count);
}

static void host_packet(void)
{
    uint32_t len = pick_len();
    if (host_count == HOST_MAX)
        return;
    if (len > NET_PACKET_MAX)
        len = NET_PACKET_MAX;
    if (len < NET_HEADER_BYTES)
        len = NET_HEADER_BYTES;
    host[(host_head + host_count++) % HOST_MAX] =
        (struct host_packet){.len = len, .seed = next_byte()};
}

/* Append what the card wrote to a chain to merged. */
static void append(const struct pending *p, uint32_t used_len, uint32_t *at)
{
    for (unsigned i = 0; i < p->count && used_len; i++) {
        uint32_t part = used_len < p->segs[i].len ? used_len : p->segs[i].len;
        if (*at + part > sizeof(merged))
            abort();
        memcpy(merged + *at, vtest_ram(&t, p->segs[i].gpa, part), part);
        *at += part;
        used_len -= part;
    }
    if (used_len)
        abort(); /* more than the chain holds */
}

/* The packet in merged must be one that was sent, at or behind the first that may still come. */
static void check_packet(uint32_t len)
{
    memset(merged + 10, 0, 2); /* num_buffers */
    while (taken_count) {
        struct host_packet p = taken[taken_first++];
        taken_count--;
        make_packet(&p, packet);
        if (p.len == len && memcmp(packet, merged, len) == 0)
            return;
    }
    abort();
}

static struct pending *take(unsigned queue, struct vtest_used *used)
{
    if (rings_lost || !vtest_used(&d.queues[queue], used))
        return NULL;
    struct pending *p = &pending[queue][used->id];
    if (!p->used)
        abort();
    p->used = false;
    return p;
}

static void take_used(void)
{
    struct vtest_used used;
    struct pending *p;
    while (take(QUEUE_TX, &used) || take(QUEUE_CTRL, &used))
        continue;
    while ((p = take(QUEUE_RX, &used)) != NULL) {
        uint32_t len = 0;
        unsigned buffers = 1;
        if (tainted)
            continue;
        append(p, used.len, &len);
        buffers = load_le16(merged + 10);
        for (unsigned i = 1; i < buffers; i++) {
            p = take(QUEUE_RX, &used);
            if (p == NULL)
                abort(); /* 5.1.6.4: all buffers of a packet become visible together */
            append(p, used.len, &len);
        }
        check_packet(len);
    }
}

static void restart(uint64_t features)
{
    memset(pending, 0, sizeof(pending));
    host_count = taken_count = taken_first = 0;
    full = tainted = rings_lost = false;
    t.next_gpa = MIB;
    if (!vtest_start(&d, features, 3))
        abort();
    buffers_at = t.next_gpa;
}

static void run_op(uint64_t features)
{
    uint8_t op = next_byte();
    if (op < 0x40) {
        add_buffers();
    } else if (op < 0x80) {
        host_packet();
    } else if (op < 0xa0) {
        add_packet();
    } else if (op < 0xb0) {
        add_command();
    } else if (op < 0xe8) {
        for (unsigned i = 0; i < 3; i++) {
            if (op & 1 || vtest_kick_wanted(&d.queues[i]))
                vtest_kick(&d.queues[i]);
        }
        run_loop();
        take_used();
    } else if (op < 0xf8) {
        full = op & 1;
    } else {
        restart(features);
    }
    if (vtest_status(&d) & VTEST_STATUS_RESET)
        restart(features);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const unsigned optional[] = {NET_F_MRG_RXBUF, NET_F_CSUM,      NET_F_HOST_TSO4,
                                        NET_F_CTRL_RX,   NET_F_CTRL_VLAN, NET_F_HOST_ECN};
    input = data;
    input_left = size;
    setup();
    uint8_t choice = next_byte();
    uint64_t features = VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) | VIRTIO_BIT(NET_F_CTRL_VQ) |
                        VIRTIO_BIT(NET_F_CTRL_MAC_ADDR) | VIRTIO_BIT(NET_F_CTRL_RX_EXTRA);
    features |= choice & 1 ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0;
    features |= choice & 2 ? VIRTIO_BIT(VIRTIO_F_EVENT_IDX) : 0;
    for (unsigned i = 0; i < ARRAY_LEN(optional); i++)
        features |= choice & (4u << i) ? 0 : VIRTIO_BIT(optional[i]);
    restart(features);
    for (unsigned i = 0; i < OPS_MAX && input_left > 0; i++)
        run_op(features);

    /* What was sent must come back: nothing holds it any more. */
    full = false;
    vtest_kick(&d.queues[QUEUE_TX]);
    vtest_kick(&d.queues[QUEUE_CTRL]);
    for (unsigned i = 0; i < 3; i++)
        run_loop();
    take_used();
    if (!(vtest_status(&d) & VTEST_STATUS_RESET)) {
        for (unsigned i = 0; i < VIRTQ_SIZE_MAX && !rings_lost; i++) {
            if (pending[QUEUE_TX][i].used || pending[QUEUE_CTRL][i].used)
                abort();
        }
        for (unsigned i = 0; i < 3; i++) {
            if (d.dev->queues[i].in_flight != 0)
                abort();
        }
    }
    return 0;
}
