/* SPDX-License-Identifier: Apache-2.0 */
/* Transmission (virtio 1.2, 5.1.6.2): from guest memory to the backend, a packet a chain. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/units.h"
#include "dev/virtio/net_priv.h"
#include "net/packet.h"

/*
 * Cut len bytes off the front of iov, at most all of it, and put `front` there instead; there is a
 * free entry before iov. Returns the new first entry and sets count.
 */
static struct iovec *replace_front(struct iovec *iov, unsigned *count, size_t len,
                                   struct iovec front)
{
    while (*count && len >= iov->iov_len) {
        len -= iov->iov_len;
        iov++;
        (*count)--;
    }
    if (len) {
        iov->iov_base = (uint8_t *)iov->iov_base + len;
        iov->iov_len -= len;
    }
    iov--;
    *iov = front;
    (*count)++;
    return iov;
}

/* What the backend says of the packet; a packet that may not be sent is -EINVAL. The chain's
 * segments, which lie at net->iov + 1, are used up. */
static ssize_t transmit(struct virtio_net *net, unsigned pair, const struct virtq_chain *chain)
{
    struct net_header header;
    unsigned count = chain->out_num;

    if (chain->out_len < sizeof(header) + ETHERNET_HEADER_BYTES || chain->out_len > NET_PACKET_MAX)
        return -EINVAL;
    virtq_chain_read(chain, 0, &header, sizeof(header));
    if (!packet_header_check(&header, net->tx_offloads, chain->out_len - sizeof(header)))
        return -EINVAL;
    struct iovec *iov =
        replace_front(chain->iov, &count, sizeof(header), (struct iovec){&header, sizeof(header)});
    return net->net->ops->send(net->net, pair, iov, count);
}

static void count_result(struct virtio_net *net, struct net_tx *tx, ssize_t sent)
{
    if (sent >= 0) {
        tx->packets++;
        return;
    }
    tx->dropped++;
    if (sent == -EINVAL)
        log_guest(&net->dev.fn.dev.log_budget, net->dev.fn.dev.name,
                  "a packet of the guest was dropped, its header or length is wrong");
}

void net_tx_run(struct virtio_net *net, unsigned pair)
{
    struct virtq *vq = net_tx_queue(net, pair);
    struct net_tx *tx = &net->tx[pair];
    struct virtq_chain chain;
    unsigned served = 0;

    virtq_disable_kick(vq);
    for (unsigned n = 0;; n++) {
        if (n == VIRTIO_NET_TURN_PACKETS) {
            virtio_queue_kick_later(&net->dev, vq);
            break;
        }
        /* 2.6.5.3.1: no chain is longer than the queue. */
        int ret = virtq_pop(vq, &chain, net->iov + 1, VIRTIO_NET_QUEUE_SIZE);
        if (ret == 0) {
            if (!virtq_enable_kick(vq))
                break;
            virtq_disable_kick(vq);
            continue;
        }
        if (ret < 0) {
            virtio_needs_reset(&net->dev, "a packet to be sent is not sound");
            break;
        }
        ssize_t sent = transmit(net, pair, &chain);
        if (sent == -EAGAIN) {
            virtq_unpop(vq, &chain);
            net_watch(net, pair, net->rx[pair].watched, true);
            break;
        }
        count_result(net, tx, sent);
        virtq_push(vq, &chain, 0);
        served++;
    }
    if (served)
        virtio_queue_notify(&net->dev, vq);
}
