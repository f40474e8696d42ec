/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reception (virtio 1.2, 5.1.6.4): from the backend to guest memory.
 *
 * Theory of operation. How large the next packet is shows only once it has been read, and reading
 * is best done straight into the guest's buffers. So a turn pops buffers for as much as packets
 * have lately been (`expect`), reads into them with a buffer of our own behind (`bounce`), and
 * copies what ended up there into further buffers of the guest. A stream of large packets soon has
 * all its room up front and is not copied; a stream of small ones pops one buffer a packet.
 *
 * A packet for which the guest has not enough buffers waits in `bounce` as `pending`, and nothing
 * more is read, until the driver adds some. Popped chains that were not used are put back before
 * the turn ends, the last popped first.
 */
#include <errno.h>
#include <string.h>

#include "base/units.h"
#include "dev/virtio/net_priv.h"
#include "net/packet.h"

#define CHAIN_SEGMENTS_MAX VIRTIO_NET_QUEUE_SIZE /* 2.6.5.3.1 */
#define EXPECT_MIN         1600u                 /* a packet of the usual MTU */
#define HEAD_BYTES         18u                   /* Ethernet header and a VLAN tag */

enum rx_result {
    RX_MORE,    /* go on */
    RX_EMPTY,   /* the backend has no packet */
    RX_STARVED, /* the guest has no buffers; a kick will tell */
    RX_BROKEN,  /* the queue is */
};

/* --- chains of the turn --- */

static bool have_room(const struct net_rx *rx)
{
    return rx->chain_first + rx->chain_count < NET_RX_CHAINS &&
           /* One segment stays free, for the bounce buffer. */
           rx->seg_first + rx->seg_count + CHAIN_SEGMENTS_MAX < NET_RX_SEGMENTS;
}

/* Pop one chain. 1, 0: none there, or -EPROTO. The caller saw have_room(). */
static int pop_one(struct virtq *vq, struct net_rx *rx)
{
    struct virtq_chain *chain = &rx->chains[rx->chain_first + rx->chain_count];
    struct iovec *segs = &rx->segs[rx->seg_first + rx->seg_count];
    int ret = virtq_pop(vq, chain, segs, CHAIN_SEGMENTS_MAX);

    if (ret <= 0)
        return ret;
    rx->chain_count++;
    rx->seg_count += chain->in_num;
    rx->space += chain->in_len;
    /* 5.1.6.3.1: a buffer of the driver takes at least the header. */
    return chain->out_num || chain->in_len < NET_HEADER_BYTES ? -EPROTO : 1;
}

static void unpop_all(struct virtq *vq, struct net_rx *rx)
{
    while (rx->chain_count)
        virtq_unpop(vq, &rx->chains[rx->chain_first + --rx->chain_count]);
    rx->chain_first = rx->seg_first = rx->seg_count = 0;
    rx->space = 0;
}

/* The first n chains are the guest's again. */
static void consume(struct virtq *vq, struct net_rx *rx, unsigned n)
{
    virtq_push_many(vq, &rx->chains[rx->chain_first], rx->written, n);
    for (unsigned i = 0; i < n; i++) {
        rx->space -= rx->chains[rx->chain_first].in_len;
        rx->seg_first += rx->chains[rx->chain_first].in_num;
        rx->seg_count -= rx->chains[rx->chain_first].in_num;
        rx->chain_first++;
        rx->chain_count--;
    }
    if (rx->chain_count == 0)
        rx->chain_first = rx->seg_first = 0;
}

/* Has the driver no place in its ring left, so that it cannot make more available? */
static bool holds_all(const struct virtq *vq, const struct net_rx *rx)
{
    unsigned entries = 0;

    for (unsigned i = 0; i < rx->chain_count; i++)
        entries += rx->chains[rx->chain_first + i].desc_count;
    return entries >= vq->s->size;
}

/* Pop until there are `need` bytes, as far as there is room for chains. 1: the driver has more or
 * enough; 0: it has no more; -EPROTO. */
static int gather(const struct virtio_net *net, struct virtq *vq, struct net_rx *rx, uint64_t need)
{
    const bool mergeable = virtio_has_feature(&net->dev, NET_F_MRG_RXBUF);

    while (rx->chain_count == 0 || (mergeable && rx->space < need)) {
        if (!have_room(rx))
            return 1;
        int ret = pop_one(vq, rx);
        if (ret <= 0)
            return ret;
    }
    return 1;
}

/* --- a packet that lies in the chains, from the first on --- */

/* The number of chains that n bytes take; `written` is filled. 0: more than there are. */
static unsigned distribute(struct net_rx *rx, uint32_t n)
{
    unsigned used = 0;

    while (n) {
        if (used == rx->chain_count)
            return 0;
        uint64_t part = rx->chains[rx->chain_first + used].in_len;
        if (part > n)
            part = n;
        rx->written[used++] = (uint32_t)part;
        n -= (uint32_t)part;
    }
    return used;
}

/* Copy between buf and the chains, from byte offset of the packet on. */
static void copy_segments(struct net_rx *rx, size_t offset, uint8_t *buf, size_t len, bool to_guest)
{
    const struct iovec *iov = &rx->segs[rx->seg_first];

    for (unsigned i = 0; i < rx->seg_count && len; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        size_t part = iov[i].iov_len - offset;
        if (part > len)
            part = len;
        uint8_t *guest = (uint8_t *)iov[i].iov_base + offset;
        memcpy(to_guest ? guest : buf, to_guest ? buf : guest, part);
        buf += part;
        len -= part;
        offset = 0;
    }
}

static enum rx_result deliver(struct virtq *vq, struct net_rx *rx, uint32_t n)
{
    unsigned used = distribute(rx, n);
    uint8_t count[2];

    /* 5.1.6.4.1: num_buffers, at the end of the header; 1 without MRG_RXBUF as well. */
    store_le16(count, (uint16_t)used);
    copy_segments(rx, offsetof(struct net_header, num_buffers), count, sizeof(count), true);
    consume(vq, rx, used);
    rx->packets++;
    return RX_MORE;
}

/* --- reading --- */

/* Does the guest want this packet? Looks at a copy of its first bytes. */
static bool wanted(const struct virtio_net *net, const uint8_t *head, uint32_t n)
{
    struct net_header header;

    if (n < NET_HEADER_BYTES + ETHERNET_HEADER_BYTES)
        return false;
    memcpy(&header, head, sizeof(header));
    /* A packet that the backend queued for the driver before this one, which takes less. */
    if (header.flags & NET_HEADER_NEEDS_CSUM && !(net->rx_offloads & NET_OFFLOAD_CSUM))
        return false;
    if (header.gso_type != NET_GSO_NONE &&
        !(net->rx_offloads & packet_gso_offloads(header.gso_type)))
        return false;
    return net_filter_accepts(net, head + NET_HEADER_BYTES);
}

/*
 * n bytes of a packet have been read, the first `direct` of them into the chains and the rest to
 * the same offset of bounce; or all of them to bounce, direct being 0.
 */
static enum rx_result finish(struct virtio_net *net, struct virtq *vq, struct net_rx *rx,
                             uint32_t direct, uint32_t n)
{
    const bool mergeable = virtio_has_feature(&net->dev, NET_F_MRG_RXBUF);

    for (;;) {
        int ret = gather(net, vq, rx, n);
        if (ret < 0)
            return RX_BROKEN;
        if (rx->space >= n) {
            copy_segments(rx, direct, rx->bounce + direct, n - direct, true);
            rx->pending = 0;
            return deliver(vq, rx, n);
        }
        bool complete = ret > 0 && (!mergeable || rx->chain_first == 0);
        if (complete || holds_all(vq, rx)) {
            /* Larger than a buffer may be, or than the whole ring, or in too many pieces. */
            rx->dropped++;
            rx->pending = 0;
            return RX_MORE;
        }
        /* From here on the whole packet is in bounce. */
        copy_segments(rx, 0, rx->bounce, direct, false);
        direct = 0;
        rx->pending = n;
        if (ret > 0) {
            /* The tables are used up by chains that went before. */
            unpop_all(vq, rx);
            continue;
        }
        /* Armed while everything is popped: the driver kicks for what comes beyond that. */
        if (!virtq_enable_kick(vq))
            return RX_STARVED;
        virtq_disable_kick(vq);
    }
}

static enum rx_result receive(struct virtio_net *net, unsigned pair)
{
    struct virtq *vq = net_rx_queue(net, pair);
    struct net_rx *rx = &net->rx[pair];
    uint8_t head[NET_HEADER_BYTES + HEAD_BYTES] = {0};

    if (rx->pending)
        return finish(net, vq, rx, 0, rx->pending);
    int ret = gather(net, vq, rx, rx->expect);
    if (ret < 0)
        return RX_BROKEN;
    if (rx->chain_count == 0) {
        if (!virtq_enable_kick(vq))
            return RX_STARVED;
        virtq_disable_kick(vq);
        return RX_MORE;
    }

    uint32_t direct = rx->space < NET_PACKET_MAX ? (uint32_t)rx->space : NET_PACKET_MAX;
    struct iovec *iov = &rx->segs[rx->seg_first];
    unsigned count = rx->seg_count;
    if (direct < NET_PACKET_MAX)
        iov[count++] = (struct iovec){rx->bounce + direct, NET_PACKET_MAX - direct};
    ssize_t n = net->net->ops->receive(net->net, pair, iov, count);
    if (n < 0)
        return RX_EMPTY;
    if (n > NET_PACKET_MAX)
        n = NET_PACKET_MAX;
    if ((uint32_t)n < direct)
        direct = (uint32_t)n;
    /* Up at once, down slowly: a stream of large packets has small ones in it. */
    rx->expect -= rx->expect / 32;
    if (rx->expect < (uint32_t)n)
        rx->expect = (uint32_t)n;
    if (rx->expect < EXPECT_MIN)
        rx->expect = EXPECT_MIN;

    size_t head_len = direct < sizeof(head) ? direct : sizeof(head);
    copy_segments(rx, 0, head, head_len, false);
    if (n > (ssize_t)head_len) {
        size_t rest = (size_t)n < sizeof(head) ? (size_t)n - head_len : sizeof(head) - head_len;
        memcpy(head + head_len, rx->bounce + direct, rest);
    }
    if (!wanted(net, head, (uint32_t)n)) {
        rx->filtered++;
        return RX_MORE;
    }
    return finish(net, vq, rx, direct, (uint32_t)n);
}

void net_rx_run(struct virtio_net *net, unsigned pair)
{
    struct virtq *vq = net_rx_queue(net, pair);
    struct net_rx *rx = &net->rx[pair];
    enum rx_result result = RX_MORE;
    uint64_t before = rx->packets;

    if (pair >= net->state.pairs || !vq->s->enabled) {
        net_watch(net, pair, false, net->tx[pair].watched);
        return;
    }
    virtq_disable_kick(vq); /* while there are buffers, nobody needs to know of more */
    for (unsigned n = 0; n < VIRTIO_NET_TURN_PACKETS && result == RX_MORE; n++)
        result = receive(net, pair);
    unpop_all(vq, rx);
    if (result == RX_BROKEN)
        virtio_needs_reset(&net->dev, "a receive buffer is not sound");
    if (rx->packets != before)
        virtio_queue_notify(&net->dev, vq);
    /* Otherwise the backend calls again for as long as it has packets. */
    net_watch(net, pair, result == RX_EMPTY || result == RX_MORE, net->tx[pair].watched);
}
