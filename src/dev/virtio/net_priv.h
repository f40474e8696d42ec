/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of the network card: net.c (features, configuration, life), net_rx.c, net_tx.c
 * (packets), net_ctrl.c (control queue, receive filter). Lock and loop as in virtio.h; what watches
 * the backend runs on the home loop only, where all kicks and packets come.
 */
#ifndef HULL_DEV_VIRTIO_NET_PRIV_H
#define HULL_DEV_VIRTIO_NET_PRIV_H

#include "dev/virtio/net.h"
#include "net/net.h"

/* Feature bits (5.1.3). */
#define NET_F_CSUM                0
#define NET_F_GUEST_CSUM          1
#define NET_F_CTRL_GUEST_OFFLOADS 2
#define NET_F_MTU                 3
#define NET_F_MAC                 5
#define NET_F_GUEST_TSO4          7
#define NET_F_GUEST_TSO6          8
#define NET_F_GUEST_ECN           9
#define NET_F_HOST_TSO4           11
#define NET_F_HOST_TSO6           12
#define NET_F_HOST_ECN            13
#define NET_F_MRG_RXBUF           15
#define NET_F_STATUS              16
#define NET_F_CTRL_VQ             17
#define NET_F_CTRL_RX             18
#define NET_F_CTRL_VLAN           19
#define NET_F_CTRL_RX_EXTRA       20
#define NET_F_GUEST_ANNOUNCE      21
#define NET_F_MQ                  22
#define NET_F_CTRL_MAC_ADDR       23
#define NET_F_GUEST_USO4          54
#define NET_F_GUEST_USO6          55
#define NET_F_HOST_USO            56
#define NET_F_SPEED_DUPLEX        63

#define NET_MAC_TABLE_MAX         64 /* addresses of either kind; with more, all are let in */
#define NET_RX_SEGMENTS           1024
#define NET_RX_CHAINS             256

/* Guest-visible state. Reset values are those after a reset by the driver. */
struct virtio_net_state {
    uint8_t mac[6];
    uint8_t promisc, allmulti, alluni, nomulti, nouni, nobcast; /* CTRL_RX (5.1.6.5.1) */
    uint8_t uni_overflow, multi_overflow;                       /* the driver's table did not fit */
    uint8_t uni_count, multi_count;
    uint16_t pairs;   /* in use */
    uint8_t announce; /* VIRTIO_NET_S_ANNOUNCE is set */
    uint8_t pad_[5];
    uint64_t offloads; /* GUEST_* feature bits that the driver wants, of those negotiated */
    uint8_t uni[NET_MAC_TABLE_MAX * 6];
    uint8_t multi[NET_MAC_TABLE_MAX * 6];
    uint64_t vlans[4096 / 64];
};

/*
 * One receive queue. Between turns no chain is held: what was popped in vain goes back, so that
 * the queue's state alone says what the guest has made available (a snapshot needs no more).
 */
struct net_rx {
    bool watched; /* the backend is */
    /* A packet that was read and found no room: bounce[0..pending). 0: none. */
    uint32_t pending;
    uint32_t expect; /* bytes of buffers to have at hand before a packet is read */
    /* Within a turn: popped chains first .. first + count, their segments alike, and the bytes
     * they hold. */
    unsigned chain_first, chain_count, seg_first, seg_count;
    uint64_t space;
    uint64_t packets, filtered, dropped; /* counters for people */
    struct virtq_chain chains[NET_RX_CHAINS];
    uint32_t written[NET_RX_CHAINS];
    struct iovec segs[NET_RX_SEGMENTS];
    uint8_t bounce[NET_PACKET_MAX];
};

struct net_tx {
    bool watched; /* the backend took no more: wait until it does */
    uint64_t packets, dropped;
};

struct virtio_net {
    struct virtio_device dev; /* first */
    struct net_backend *net;
    struct virtio_net_state state;
    uint8_t mac[6]; /* as configured */
    unsigned pairs_max;
    bool synced;          /* the backend was told of features and queue pairs */
    bool link_up;         /* as last told to the guest */
    unsigned tx_offloads; /* NET_OFFLOAD_* that the guest may ask for */
    unsigned rx_offloads; /* that it takes */
    struct net_tx tx[VIRTIO_NET_PAIRS_MAX];
    struct iovec iov[VIRTIO_NET_QUEUE_SIZE + 1]; /* of a chain being sent, or a command */
    struct net_rx rx[];                          /* pairs_max of them */
};

static inline struct virtq *net_rx_queue(struct virtio_net *net, unsigned pair)
{
    return &net->dev.queues[2 * pair];
}

static inline struct virtq *net_tx_queue(struct virtio_net *net, unsigned pair)
{
    return &net->dev.queues[2 * pair + 1];
}

/* Tell the backend what the guest takes. 0 or -errno. */
int net_apply_offloads(struct virtio_net *net);
/* Use state.pairs queue pairs; those that are new get a turn. 0 or -errno. */
int net_apply_pairs(struct virtio_net *net);
void net_watch(struct virtio_net *net, unsigned pair, bool rx, bool tx);

/* A turn of receiving: from the backend to the guest, until either has no more. */
void net_rx_run(struct virtio_net *net, unsigned pair);
void net_tx_run(struct virtio_net *net, unsigned pair);
void net_ctrl_run(struct virtio_net *net, struct virtq *vq);

/* Does a frame that starts with head (Ethernet header and VLAN tag, 18 bytes) concern the guest? */
bool net_filter_accepts(const struct virtio_net *net, const uint8_t head[18]);

#endif
