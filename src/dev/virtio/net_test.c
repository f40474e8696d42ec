/* SPDX-License-Identifier: Apache-2.0 */
/* The card between a driver made by vtest and a backend that is a pair of sockets. */
#include "dev/virtio/net.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "dev/virtio/net_priv.h"
#include "dev/virtio/vtest.h"
#include "net/packet.h"

#define ALL_OFFLOADS                                                                               \
    (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_USO4 | \
     NET_OFFLOAD_USO6)

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc};

static const struct {
    const char *name;
    uint64_t features;
} rings[] = {
    {"split",               0                                                                },
    {"split, event index",  VIRTIO_BIT(VIRTIO_F_EVENT_IDX)                                   },
    {"packed",              VIRTIO_BIT(VIRTIO_F_RING_PACKED)                                 },
    {"packed, event index", VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX)},
};

/* --- the backend: packets, headers included, are datagrams; the test holds the far ends --- */

#define PAIRS 2

struct dummy {
    struct net_backend net; /* first */
    int far[PAIRS];
    struct dummy_queue {
        struct dummy *dummy;
        unsigned index;
        int fd;
        struct loop *loop;
        struct loop_fd lfd;
    } queues[PAIRS];
    void (*rx_ready)(void *ctx, unsigned queue);
    void (*tx_ready)(void *ctx, unsigned queue);
    void *ctx;
    unsigned offloads, pairs, sends;
    unsigned full_for; /* sends that say -EAGAIN */
    bool deaf;         /* never says that there is room again, as an interface that has gone */
    bool closed;
};

static void dummy_event(struct loop_fd *lfd, short revents)
{
    struct dummy_queue *q = CONTAINER_OF(lfd, struct dummy_queue, lfd);

    if (revents & POLLOUT)
        q->dummy->tx_ready(q->dummy->ctx, q->index);
    if (revents & POLLIN && lfd->events & POLLIN)
        q->dummy->rx_ready(q->dummy->ctx, q->index);
}

static int dummy_attach(struct net_backend *net, unsigned queue, struct loop *loop,
                        void (*rx_ready)(void *ctx, unsigned queue),
                        void (*tx_ready)(void *ctx, unsigned queue), void *ctx)
{
    struct dummy *d = CONTAINER_OF(net, struct dummy, net);
    struct dummy_queue *q = &d->queues[queue];

    d->rx_ready = rx_ready;
    d->tx_ready = tx_ready;
    d->ctx = ctx;
    q->loop = loop;
    q->lfd = (struct loop_fd){.fd = q->fd, .fn = dummy_event};
    return loop_fd_add(loop, &q->lfd);
}

static void dummy_watch(struct net_backend *net, unsigned queue, bool rx, bool tx)
{
    struct dummy_queue *q = &CONTAINER_OF(net, struct dummy, net)->queues[queue];

    if (q->dummy->deaf)
        tx = false;
    loop_fd_modify(q->loop, &q->lfd, (short)((rx ? POLLIN : 0) | (tx ? POLLOUT : 0)));
}

static ssize_t dummy_send(struct net_backend *net, unsigned queue, const struct iovec *iov,
                          unsigned iov_count)
{
    struct dummy *d = CONTAINER_OF(net, struct dummy, net);
    struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = iov_count};

    d->sends++;
    if (!net->link_up)
        return -ENETDOWN;
    if (d->full_for) {
        d->full_for--;
        return -EAGAIN;
    }
    ssize_t n = sendmsg(d->queues[queue].fd, &m, MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

static ssize_t dummy_receive(struct net_backend *net, unsigned queue, const struct iovec *iov,
                             unsigned iov_count)
{
    struct dummy *d = CONTAINER_OF(net, struct dummy, net);
    struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = iov_count};
    ssize_t n = recvmsg(d->queues[queue].fd, &m, MSG_DONTWAIT);

    return n <= 0 ? -EAGAIN : n;
}

static int dummy_set_offloads(struct net_backend *net, unsigned offloads)
{
    CONTAINER_OF(net, struct dummy, net)->offloads = offloads;
    return 0;
}

static int dummy_set_pairs(struct net_backend *net, unsigned n)
{
    CONTAINER_OF(net, struct dummy, net)->pairs = n;
    return 0;
}

static void dummy_close(struct net_backend *net)
{
    struct dummy *d = CONTAINER_OF(net, struct dummy, net);

    for (unsigned i = 0; i < PAIRS; i++) {
        if (d->queues[i].loop)
            loop_fd_del(d->queues[i].loop, &d->queues[i].lfd);
        close(d->queues[i].fd);
        close(d->far[i]);
    }
    d->closed = true;
}

static const struct net_ops dummy_ops = {
    .name = "dummy",
    .attach = dummy_attach,
    .watch = dummy_watch,
    .send = dummy_send,
    .receive = dummy_receive,
    .set_offloads = dummy_set_offloads,
    .set_queue_pairs = dummy_set_pairs,
    .close = dummy_close,
};

/* --- the bench: machine, card, driver --- */

struct bench {
    struct vtest t;
    struct vtest_driver d;
    struct virtio_device *dev;
    struct dummy dummy;
    /* Receive buffers: where each chain's memory is. */
    uint64_t rx_gpa[VIRTQ_SIZE_MAX];
    uint32_t rx_len;
};

static struct bench b;

static void bench_new(unsigned offloads, unsigned pairs, uint16_t mtu)
{
    struct virtio_net_options options = {0};
    struct err err = ERR_INIT;

    memset(&b, 0, sizeof(b));
    memcpy(options.mac, mac, sizeof(mac));
    b.dummy.net = (struct net_backend){.ops = &dummy_ops,
                                       .queue_pairs = pairs,
                                       .offloads_rx = offloads,
                                       .offloads_tx = offloads,
                                       .mtu = mtu,
                                       .link_up = true,
                                       .description = "dummy"};
    for (unsigned i = 0; i < PAIRS; i++) {
        int fds[2], bytes = 1 << 20;
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
            abort();
        for (unsigned k = 0; k < 2; k++)
            setsockopt(fds[k], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
        b.dummy.queues[i] = (struct dummy_queue){.dummy = &b.dummy, .index = i, .fd = fds[0]};
        b.dummy.far[i] = fds[1];
    }
    vtest_init(&b.t);
    if (virtio_net_new(&b.dev, &b.t.env, "net0", &b.dummy.net, &options, &err) < 0 ||
        virtio_pci_plug(b.dev, -1, &err) < 0) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    vtest_attach(&b.d, &b.t, b.dev);
}

static void bench_free(void)
{
    device_fini(&b.dev->fn.dev);
    vtest_fini(&b.t);
}

static struct vtest_queue *rxq(void)
{
    return &b.d.queues[0];
}

static struct vtest_queue *txq(void)
{
    return &b.d.queues[1];
}

/* Offer count buffers of len bytes, and kick if the card wants that. */
static void add_buffers(unsigned count, uint32_t len)
{
    b.rx_len = len;
    for (unsigned i = 0; i < count; i++) {
        uint64_t gpa = vtest_alloc(&b.t, len, 64);
        struct vtest_seg seg = {.gpa = gpa, .len = len, .write = true};
        int id = vtest_add(rxq(), &seg, 1);
        if (id >= 0)
            b.rx_gpa[id] = gpa;
    }
    if (vtest_kick_wanted(rxq()))
        vtest_kick(rxq());
}

/* A packet as it comes from the host: an empty header, to our MAC address. */
static size_t make_packet(uint8_t *p, size_t frame_len, unsigned seed)
{
    memset(p, 0, NET_HEADER_BYTES);
    for (size_t i = 0; i < frame_len; i++)
        p[NET_HEADER_BYTES + i] = (uint8_t)(seed + i * 5 + i / 253);
    memcpy(p + NET_HEADER_BYTES, mac, 6);
    return NET_HEADER_BYTES + frame_len;
}

static void host_sends(const uint8_t *p, size_t len)
{
    if (send(b.dummy.far[0], p, len, 0) != (ssize_t)len)
        printf("# the backend's socket is full\n");
}

/* Receive one packet as a driver does; merges num_buffers buffers. Returns its length with header,
 * 0 when none comes. */
static size_t guest_receives(uint8_t *p, bool wait)
{
    struct vtest_used used;
    size_t len = 0;
    unsigned buffers = 1;

    for (unsigned i = 0; i < buffers; i++) {
        if (!(wait ? vtest_wait(rxq(), &used) : vtest_used(rxq(), &used)))
            return 0;
        memcpy(p + len, vtest_ram(&b.t, b.rx_gpa[used.id], used.len), used.len);
        len += used.len;
        if (i == 0)
            buffers = load_le16(p + 10);
    }
    return len;
}

/* Send p through the card, header in a segment of its own when split. false: never came back. */
static bool guest_sends(const uint8_t *p, size_t len, bool split)
{
    uint64_t gpa = vtest_alloc(&b.t, len, 64);
    uint32_t first = split ? NET_HEADER_BYTES : 7;
    struct vtest_seg segs[2] = {
        {.gpa = gpa,         .len = first                },
        {.gpa = gpa + first, .len = (uint32_t)len - first},
    };
    struct vtest_used used;

    memcpy(vtest_ram(&b.t, gpa, len), p, len);
    if (vtest_add(txq(), segs, 2) < 0)
        return false;
    vtest_kick(txq());
    return vtest_wait(txq(), &used);
}

static ssize_t host_receives(uint8_t *p, size_t cap)
{
    return recv(b.dummy.far[0], p, cap, MSG_DONTWAIT);
}

/* A control command; the card's answer, or -1. */
static int control(unsigned class, unsigned number, const void *data, uint32_t len)
{
    uint8_t command[1024] = {(uint8_t) class, (uint8_t)number};
    uint8_t ack = 0xff;

    if (len)
        memcpy(command + 2, data, len);
    if (vtest_request(&b.d.queues[virtio_has_feature(b.dev, NET_F_MQ) ? 4 : 2], command, len + 2,
                      &ack, 1) != 1)
        return -1;
    return ack;
}

#define BASE_FEATURES                                                                              \
    (VIRTIO_BIT(NET_F_MAC) | VIRTIO_BIT(NET_F_STATUS) | VIRTIO_BIT(NET_F_CTRL_VQ) |                \
     VIRTIO_BIT(NET_F_CTRL_RX) | VIRTIO_BIT(NET_F_CTRL_RX_EXTRA) | VIRTIO_BIT(NET_F_CTRL_VLAN) |   \
     VIRTIO_BIT(NET_F_CTRL_MAC_ADDR))
#define MERGEABLE VIRTIO_BIT(NET_F_MRG_RXBUF)

static uint8_t sent[NET_PACKET_MAX], got[NET_PACKET_MAX + 4096];

/* --- tests --- */

static void test_features(void)
{
    char why[128];

    bench_new(ALL_OFFLOADS, 1, 9000);
    uint64_t f = vtest_features(&b.d);
    is_int(state_table_check(b.dev->type_table, why, sizeof(why)), 0, "the state table is sound");
    is_int(vtest_pci_read(&b.t, b.d.devfn, 2, 2), 0x1041, "4.1.2: device id of a network card");
    ok(f & VIRTIO_BIT(NET_F_CSUM) && f & VIRTIO_BIT(NET_F_HOST_TSO4) &&
           f & VIRTIO_BIT(NET_F_HOST_USO) && f & VIRTIO_BIT(NET_F_GUEST_TSO6),
       "what the backend can do is offered");
    ok(!(f & VIRTIO_BIT(NET_F_MQ)), "no MQ with one queue pair");
    ok(f & VIRTIO_BIT(NET_F_MTU) && vtest_config(&b.d, 10, 2) == 9000, "5.1.4: mtu");
    is_int(vtest_config(&b.d, 0, 4), load_le32(mac), "5.1.4: mac");
    is_int(vtest_config(&b.d, 6, 2), 1, "5.1.4: the link is up");
    is_int(vtest_config(&b.d, 12, 4), 10000, "5.1.4: speed");
    is_int(vtest_config(&b.d, 16, 1), 1, "5.1.4: duplex, the last byte");
    bench_free();
    ok(b.dummy.closed, "the card closes its backend");

    bench_new(0, 2, 0);
    f = vtest_features(&b.d);
    ok(!(f & (VIRTIO_BIT(NET_F_CSUM) | VIRTIO_BIT(NET_F_GUEST_CSUM) | VIRTIO_BIT(NET_F_HOST_TSO4) |
              VIRTIO_BIT(NET_F_CTRL_GUEST_OFFLOADS) | VIRTIO_BIT(NET_F_MTU))),
       "what it cannot do is not");
    ok(f & VIRTIO_BIT(NET_F_MQ) && vtest_config(&b.d, 8, 2) == 2, "two queue pairs");
    bench_free();
}

static void test_transmit(uint64_t ring, const char *name)
{
    bench_new(NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4, 1, 0);
    ok(vtest_start(&b.d, BASE_FEATURES | VIRTIO_BIT(NET_F_CSUM) | ring, 3), name);
    size_t len = make_packet(sent, 1514, 3);
    sent[10] = 0xee; /* num_buffers: means nothing here */

    ok(guest_sends(sent, len, true), "a packet is taken");
    is_int(host_receives(got, sizeof(got)), len, "and reaches the host");
    ok(memcmp(got + NET_HEADER_BYTES, sent + NET_HEADER_BYTES, 1514) == 0, "unchanged");
    is_int(got[10], 0, "with a clean header");
    ok(guest_sends(sent, len, false), "one that is cut within the header");
    is_int(host_receives(got, sizeof(got)), len, "reaches the host as well");
    ok(memcmp(got + NET_HEADER_BYTES, sent + NET_HEADER_BYTES, 1514) == 0, "unchanged");
    ok(vtest_interrupts(txq()) > 0, "the driver is told");

    struct net_header tso = {.flags = 1,
                             .gso_type = 1,
                             .gso_size = 1400,
                             .hdr_len = 54,
                             .csum_start = 34,
                             .csum_offset = 16};
    memcpy(sent, &tso, sizeof(tso));
    ok(guest_sends(sent, len, true), "segmentation that was not negotiated is taken");
    is_int(host_receives(got, sizeof(got)), -1, "and dropped");
    ok(guest_sends(sent, 20, true), "so is a frame without Ethernet header");
    is_int(host_receives(got, sizeof(got)), -1, "dropped");

    make_packet(sent, 1514, 4);
    b.dummy.full_for = 1;
    b.dummy.sends = 0;
    ok(guest_sends(sent, len, true), "a full backend is waited for");
    is_int(b.dummy.sends, 2, "and asked again");
    is_int(host_receives(got, sizeof(got)), len, "nothing is lost");

    /* More than a turn's worth, with one kick. */
    unsigned added = 0, back = 0;
    uint64_t gpa = vtest_alloc(&b.t, 256, 64);
    struct vtest_seg seg = {.gpa = gpa, .len = 72};
    memset(vtest_ram(&b.t, gpa, 256), 0, 256);
    struct vtest_used used;
    for (unsigned round = 0; round < 3; round++) {
        while (vtest_add(txq(), &seg, 1) >= 0)
            added++;
        vtest_kick(txq());
        while (back < added && vtest_wait(txq(), &used))
            back++;
        for (unsigned i = 0; i < added; i++)
            host_receives(got, sizeof(got));
    }
    ok(added >= VIRTIO_NET_QUEUE_SIZE * 3 - 3 && back == added, "hundreds come back, each once");
    ok(!(vtest_status(&b.d) & VTEST_STATUS_RESET), "all is well");
    bench_free();
}

static void test_receive(uint64_t ring, const char *name)
{
    static const unsigned sizes[] = {60,    1514,  65000, 65000, 60, 65549, 3000,  1514,
                                     20000, 65000, 40000, 60,    60, 9000,  65000, 14};

    bench_new(ALL_OFFLOADS, 1, 0);
    ok(vtest_start(&b.d, BASE_FEATURES | MERGEABLE | ring, 3), name);
    add_buffers(200, 1536);
    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        size_t len = make_packet(sent, sizes[i], i);
        host_sends(sent, len);
        size_t n = guest_receives(got, true);
        char what[64];
        snprintf(what, sizeof(what), "a frame of %u bytes, merged", sizes[i]);
        if (!ok(n == len && memcmp(got + NET_HEADER_BYTES, sent + NET_HEADER_BYTES, sizes[i]) == 0,
                what))
            printf("# %zu bytes\n", n);
        add_buffers((unsigned)((len + 1535) / 1536), 1536);
    }
    is_int(b.dev->queues[0].in_flight, 0, "no buffer is held between turns");

    /* Many at once, of all sizes: one turn. */
    for (unsigned i = 0; i < 6; i++)
        host_sends(sent, make_packet(sent, sizes[i], 100 + i));
    bool good = true;
    for (unsigned i = 0; i < 6; i++) {
        size_t len = make_packet(sent, sizes[i], 100 + i);
        good = good && guest_receives(got, true) == len &&
               memcmp(got + NET_HEADER_BYTES, sent + NET_HEADER_BYTES, sizes[i]) == 0;
    }
    ok(good, "a burst arrives in order and whole");
    ok(vtest_interrupts(rxq()) > 0, "the driver is told");
    bench_free();
}

/* Too few buffers, then just enough; kicks only where the card asked for them. */
static void test_starved(uint64_t ring, const char *name)
{
    bench_new(ALL_OFFLOADS, 1, 0);
    ok(vtest_start(&b.d, BASE_FEATURES | MERGEABLE | ring, 3), name);
    vtest_settle(&b.t);
    size_t len = make_packet(sent, 60000, 9);
    host_sends(sent, len);
    vtest_settle(&b.t);
    is_int(guest_receives(got, false), 0, "no buffer, no packet");
    add_buffers(10, 1536);
    vtest_settle(&b.t);
    is_int(guest_receives(got, false), 0, "ten buffers are too few");
    is_int(b.dev->queues[0].in_flight, 0, "and are not held");
    add_buffers(20, 1536);
    vtest_settle(&b.t);
    is_int(guest_receives(got, false), 0, "thirty are");
    add_buffers(10, 1536);
    ok(guest_receives(got, true) == len &&
           memcmp(got + NET_HEADER_BYTES, sent + NET_HEADER_BYTES, 60000) == 0,
       "with forty it arrives whole");
    add_buffers(100, 1536);
    len = make_packet(sent, 1000, 1);
    host_sends(sent, len);
    is_int(guest_receives(got, true), len, "and the next one follows");

    /* A packet that waits is forgotten by a reset. */
    ok(vtest_start(&b.d, BASE_FEATURES | MERGEABLE | ring, 3), "after a reset");
    len = make_packet(sent, 50000, 2);
    host_sends(sent, len);
    add_buffers(1, 1536);
    vtest_settle(&b.t);
    ok(vtest_start(&b.d, BASE_FEATURES | MERGEABLE | ring, 3), "and another while one waits");
    add_buffers(40, 1536);
    len = make_packet(sent, 700, 3);
    host_sends(sent, len);
    is_int(guest_receives(got, true), len, "the next one comes");
    bench_free();
}

/* A driver whose ring is full cannot add what a larger packet lacks: it must not wait for that. */
static void test_small_ring(uint64_t ring, const char *name)
{
    bench_new(0, 1, 0);
    ok(vtest_negotiate(&b.d, BASE_FEATURES | MERGEABLE | ring), name);
    vtest_msix_enable(&b.d);
    ok(vtest_queue_start(&b.d, 0, 16) && vtest_queue_start(&b.d, 1, 0), "a ring of 16 buffers");
    vtest_driver_ok(&b.d);
    add_buffers(15, 512);
    size_t large = make_packet(sent, 15 * 512, 1);
    host_sends(sent, large);
    vtest_settle(&b.t);
    is_int(guest_receives(got, false), 0, "a packet waits for the buffer that it lacks");
    add_buffers(1, 512);
    is_int(guest_receives(got, true), large, "and takes all 16");
    add_buffers(16, 512);
    host_sends(sent, make_packet(sent, 16 * 512, 2));
    size_t small = make_packet(sent, 64, 3);
    host_sends(sent, small);
    is_int(guest_receives(got, true), small, "one that is larger than the ring stops no other");
    bench_free();
}

static void test_not_mergeable(uint64_t ring, const char *name)
{
    bench_new(ALL_OFFLOADS, 1, 0);
    ok(vtest_start(&b.d, BASE_FEATURES | ring, 3), name);
    add_buffers(4, 1600);
    host_sends(sent, make_packet(sent, 3000, 1));
    size_t len = make_packet(sent, 1500, 2);
    host_sends(sent, len);
    is_int(guest_receives(got, true), len, "a packet beyond the buffer is dropped, the next comes");
    is_int(load_le16(got + 10), 1, "5.1.6.4.1: num_buffers is 1");
    ok(memcmp(got + NET_HEADER_BYTES, sent + NET_HEADER_BYTES, 1500) == 0, "unchanged");
    bench_free();
}

/* Did the frame whose first bytes are given pass the filter? A packet to us follows as a mark. */
static bool passes(const uint8_t *head, size_t head_len)
{
    uint8_t packet[NET_HEADER_BYTES + 60];

    make_packet(packet, 60, 0);
    memcpy(packet + NET_HEADER_BYTES, head, head_len);
    packet[NET_HEADER_BYTES + 59] = 1;
    host_sends(packet, sizeof(packet));
    make_packet(packet, 60, 0);
    memcpy(packet + NET_HEADER_BYTES, b.dev->type_state, 6); /* the state begins with the MAC */
    packet[NET_HEADER_BYTES + 59] = 2;
    host_sends(packet, sizeof(packet));
    add_buffers(2, 1536);
    size_t n = guest_receives(got, true);
    bool passed = n && got[NET_HEADER_BYTES + 59] == 1;
    if (passed)
        guest_receives(got, true);
    return passed;
}

static void test_filter(void)
{
    static const uint8_t other[6] = {0x52, 0x54, 0, 1, 2, 3}, third[6] = {0x52, 0x54, 0, 9, 9, 9};
    static const uint8_t multi[6] = {1, 0, 0x5e, 1, 1, 1},
                         broadcast[6] = {255, 255, 255, 255, 255, 255};
    static const uint8_t on = 1, off = 0, two[2] = {1, 0};
    uint8_t tagged[18] = {0}, id[2] = {7, 0};

    bench_new(0, 1, 0);
    ok(vtest_start(&b.d, BASE_FEATURES | MERGEABLE, 3), "filter");
    ok(passes(other, 6), "promiscuous to begin with");
    is_int(control(0, 0, &off, 1), 0, "PROMISC off");
    ok(passes(mac, 6) && passes(broadcast, 6), "our address and broadcast pass");
    ok(!passes(other, 6) && !passes(multi, 6), "others do not");

    uint8_t tables[4 + 6 + 4 + 6] = {1};
    memcpy(tables + 4, other, 6);
    tables[10] = 1;
    memcpy(tables + 14, multi, 6);
    is_int(control(1, 0, tables, sizeof(tables)), 0, "TABLE_SET");
    ok(passes(other, 6) && passes(multi, 6) && !passes(third, 6), "the tables are followed");
    is_int(control(1, 0, tables, sizeof(tables) - 1), 1, "a table that is cut is an error");
    tables[3] = 0xff;
    is_int(control(1, 0, tables, sizeof(tables)), 1, "so is a count beyond the data");
    ok(passes(other, 6), "and changes nothing");
    uint8_t many[4 + 65 * 6 + 4] = {65};
    is_int(control(1, 0, many, sizeof(many)), 0, "a table beyond ours");
    ok(passes(third, 6) && !passes(multi, 6), "lets in all of its kind");
    is_int(control(1, 0, (uint8_t[8]){0}, 8), 0, "empty tables");

    is_int(control(0, 1, &on, 1), 0, "ALLMULTI");
    ok(passes(multi, 6) && !passes(other, 6), "lets in multicast");
    is_int(control(0, 5, &on, 1), 0, "NOBCAST");
    ok(!passes(broadcast, 6), "keeps broadcast out");
    is_int(control(0, 2, &on, 1), 0, "ALLUNI");
    ok(passes(other, 6), "lets in unicast");
    is_int(control(0, 3, &on, 1), 0, "NOMULTI");
    ok(!passes(multi, 6), "keeps multicast out");

    memcpy(tagged, mac, 6);
    tagged[12] = 0x81;
    tagged[15] = 7;
    ok(!passes(tagged, 18), "a VLAN that was not added does not pass");
    is_int(control(2, 0, id, 2), 0, "VLAN_ADD");
    ok(passes(tagged, 18), "it passes now");
    is_int(control(2, 1, id, 2), 0, "VLAN_DEL");
    ok(!passes(tagged, 18), "and no more");
    id[1] = 0x10;
    is_int(control(2, 0, id, 2), 1, "there is no VLAN 4103");

    is_int(control(1, 1, other, 6), 0, "MAC_ADDR_SET");
    is_int(vtest_config(&b.d, 2, 4), load_le32(other + 2), "shows in the configuration");
    is_int(control(1, 1, multi, 6), 1, "but not a multicast address");
    is_int(control(0, 0, two, 2), 1, "too much data is an error");
    is_int(control(4, 0, two, 2), 1, "MQ was not negotiated");
    is_int(control(9, 9, NULL, 0), 1, "an unknown command is an error");
    ok(vtest_reset(&b.d), "reset");
    is_int(vtest_config(&b.d, 2, 4), load_le32(mac + 2), "restores the address");
    bench_free();
}

static void test_offloads(void)
{
    uint64_t features = BASE_FEATURES | MERGEABLE | VIRTIO_BIT(NET_F_GUEST_CSUM) |
                        VIRTIO_BIT(NET_F_GUEST_TSO4) | VIRTIO_BIT(NET_F_CTRL_GUEST_OFFLOADS);
    uint8_t set[8];

    bench_new(ALL_OFFLOADS, 1, 0);
    ok(vtest_start(&b.d, features, 3), "offloads");
    vtest_settle(&b.t);
    is_int(b.dummy.offloads, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4, "the backend knows them");
    store_le64(set, VIRTIO_BIT(NET_F_GUEST_CSUM));
    is_int(control(5, 0, set, 8), 0, "GUEST_OFFLOADS_SET");
    is_int(b.dummy.offloads, NET_OFFLOAD_CSUM, "reaches the backend");
    store_le64(set, VIRTIO_BIT(NET_F_GUEST_TSO6));
    is_int(control(5, 0, set, 8), 1, "not beyond what was negotiated");

    /* What the backend had queued for a driver that took more. */
    add_buffers(4, 1536);
    size_t len = make_packet(sent, 60, 0);
    sent[1] = NET_GSO_TCPV4;
    host_sends(sent, len);
    len = make_packet(sent, 80, 0);
    host_sends(sent, len);
    is_int(guest_receives(got, true), len, "segments that the driver does not take are dropped");

    ok(vtest_start(&b.d, BASE_FEATURES | VIRTIO_BIT(NET_F_GUEST_TSO4), 3), "TSO4 without CSUM");
    vtest_settle(&b.t);
    is_int(b.dummy.offloads, 0, "5.1.3.1: counts for nothing");
    bench_free();
}

static void test_queue_pairs(void)
{
    uint8_t pairs[2] = {2, 0};

    bench_new(0, 2, 0);
    ok(vtest_start(&b.d, BASE_FEATURES | MERGEABLE | VIRTIO_BIT(NET_F_MQ), 5), "two queue pairs");
    vtest_settle(&b.t);
    is_int(b.dummy.pairs, 1, "one is in use at first");
    is_int(control(4, 0, pairs, 2), 0, "VQ_PAIRS_SET");
    is_int(b.dummy.pairs, 2, "reaches the backend");
    struct vtest_seg seg = {.gpa = vtest_alloc(&b.t, 2048, 64), .len = 2048, .write = true};
    struct vtest_used used;
    vtest_add(&b.d.queues[2], &seg, 1);
    vtest_kick(&b.d.queues[2]);
    size_t len = make_packet(sent, 99, 0);
    ok(send(b.dummy.far[1], sent, len, 0) > 0 && vtest_wait(&b.d.queues[2], &used) &&
           used.len == len,
       "the second queue receives");
    pairs[0] = 3;
    is_int(control(4, 0, pairs, 2), 1, "three are too many");
    pairs[0] = 0;
    is_int(control(4, 0, pairs, 2), 1, "none too few");
    ok(vtest_start(&b.d, BASE_FEATURES | MERGEABLE, 3), "without MQ");
    is_int(control(0, 0, "", 1), 0, "5.1.2: queue 2 is the control queue");
    is_int(b.dummy.pairs, 1, "and one pair is in use");
    bench_free();
}

static void test_link_and_announce(void)
{
    bench_new(0, 1, 0);
    ok(vtest_start(&b.d, BASE_FEATURES | VIRTIO_BIT(NET_F_GUEST_ANNOUNCE), 3), "link");
    vtest_settle(&b.t);
    unsigned before = vtest_config_interrupts(&b.d);
    b.dummy.net.link_up = false;
    b.dummy.rx_ready(b.dummy.ctx, 0);
    is_int(vtest_config(&b.d, 6, 2), 0, "the link goes down");
    is_int(vtest_config_interrupts(&b.d), before + 1, "the driver is told");
    b.dummy.net.link_up = true;
    b.dummy.rx_ready(b.dummy.ctx, 0);
    is_int(vtest_config(&b.d, 6, 2), 1, "and up");
    virtio_net_announce(b.dev);
    is_int(vtest_config(&b.d, 6, 2), 3, "5.1.4: ANNOUNCE");
    is_int(control(3, 0, NULL, 0), 0, "ANNOUNCE_ACK");
    is_int(vtest_config(&b.d, 6, 2), 1, "ends it");
    bench_free();
}

/* A backend that is full and then goes away never has room again: what waits for it is dropped. */
static void test_link_lost_while_full(void)
{
    struct vtest_used used;

    bench_new(0, 1, 0);
    ok(vtest_start(&b.d, BASE_FEATURES, 3), "a backend that goes away");
    size_t len = make_packet(sent, 600, 1);
    uint64_t gpa = vtest_alloc(&b.t, len, 64);
    struct vtest_seg seg = {.gpa = gpa, .len = (uint32_t)len};
    memcpy(vtest_ram(&b.t, gpa, len), sent, len);
    b.dummy.deaf = true;
    b.dummy.full_for = 1;
    vtest_add(txq(), &seg, 1);
    vtest_kick(txq());
    vtest_settle(&b.t);
    ok(!vtest_used(txq(), &used), "a packet waits for room");
    b.dummy.net.link_up = false;
    b.dummy.rx_ready(b.dummy.ctx, 0);
    ok(vtest_wait(txq(), &used), "comes back when the link is lost");
    ok(guest_sends(sent, len, true), "and so do those after it");
    bench_free();
}

static void test_hostile(uint64_t ring, const char *name)
{
    struct vtest_seg readable = {.gpa = 0x100000, .len = 2000};
    struct vtest_seg tiny = {.gpa = 0x100000, .len = 11, .write = true};
    struct vtest_seg wild = {.gpa = VTEST_RAM_BYTES - 10, .len = 100};
    uint64_t features = BASE_FEATURES | MERGEABLE | ring;

    bench_new(ALL_OFFLOADS, 1, 0);
    ok(vtest_start(&b.d, features, 3), name);
    host_sends(sent, make_packet(sent, 60, 0));
    vtest_add(rxq(), &readable, 1);
    vtest_kick(rxq());
    vtest_settle(&b.t);
    ok(vtest_status(&b.d) & VTEST_STATUS_RESET, "a readable receive buffer: NEEDS_RESET");
    ok(vtest_start(&b.d, features, 3), "which a reset ends");
    vtest_add(rxq(), &tiny, 1);
    vtest_kick(rxq());
    host_sends(sent, make_packet(sent, 60, 0));
    vtest_settle(&b.t);
    ok(vtest_status(&b.d) & VTEST_STATUS_RESET, "a buffer without room for a header: likewise");
    ok(vtest_start(&b.d, features, 3), "reset");
    vtest_add(txq(), &wild, 1);
    vtest_kick(txq());
    vtest_settle(&b.t);
    ok(vtest_status(&b.d) & VTEST_STATUS_RESET, "a wild packet: likewise");
    ok(vtest_start(&b.d, features, 3), "reset");
    readable.len = 2;
    vtest_add(&b.d.queues[2], &readable, 1);
    vtest_kick(&b.d.queues[2]);
    vtest_settle(&b.t);
    ok(vtest_status(&b.d) & VTEST_STATUS_RESET, "a command without room for an answer: likewise");
    ok(vtest_start(&b.d, features, 3), "reset");
    add_buffers(4, 1536);
    size_t len = make_packet(sent, 60, 0);
    while (recv(b.dummy.queues[0].fd, got, sizeof(got), MSG_DONTWAIT) > 0)
        continue;
    host_sends(sent, len);
    is_int(guest_receives(got, true), len, "the card works again");
    bench_free();
}

int main(void)
{
    test_features();
    for (size_t i = 0; i < ARRAY_LEN(rings); i++) {
        test_transmit(rings[i].features, rings[i].name);
        test_receive(rings[i].features, rings[i].name);
        test_starved(rings[i].features, rings[i].name);
        test_small_ring(rings[i].features, rings[i].name);
        test_not_mergeable(rings[i].features, rings[i].name);
        test_hostile(rings[i].features, rings[i].name);
    }
    test_filter();
    test_offloads();
    test_queue_pairs();
    test_link_and_announce();
    test_link_lost_while_full();
    return tap_done();
}
