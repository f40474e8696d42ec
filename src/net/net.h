/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Networks of the host, a packet at a time. Every packet, in both directions, starts with a
 * struct net_header of 12 bytes (the layout of virtio_net_hdr_v1, virtio 1.2, 5.1.6, and of the tun
 * driver with IFF_VNET_HDR): a backend without offloads ignores it on send and zeroes it on
 * receive. Knows no guest.
 *
 * Threads: each queue is served by the loop it was attached to; open and close while detached.
 */
#ifndef HULL_NET_NET_H
#define HULL_NET_NET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/loop.h"

struct err;

struct net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers;
};

#define NET_HEADER_BYTES 12
#define NET_PACKET_MAX                                                                             \
    (65550 + NET_HEADER_BYTES) /* header, Ethernet header, 64 KiB of GSO payload */

/* Offloads that the reader of packets can take (for the backend to send us), as TUN_F_*. */
#define NET_OFFLOAD_CSUM 0x01u
#define NET_OFFLOAD_TSO4 0x02u
#define NET_OFFLOAD_TSO6 0x04u
#define NET_OFFLOAD_ECN  0x08u
#define NET_OFFLOAD_UFO  0x10u
#define NET_OFFLOAD_USO4 0x20u
#define NET_OFFLOAD_USO6 0x40u

struct net_backend;

struct net_ops {
    const char *name;

    /* Serve `queue` on loop: rx_ready when packets can be read, tx_ready when there is room to
     * send, each again and again for as long as it is watched and true. */
    int (*attach)(struct net_backend *net, unsigned queue, struct loop *loop,
                  void (*rx_ready)(void *ctx, unsigned queue),
                  void (*tx_ready)(void *ctx, unsigned queue), void *ctx);
    /* Want rx_ready / tx_ready? Both are off after attach. */
    void (*watch)(struct net_backend *net, unsigned queue, bool rx, bool tx);

    /* One packet, header first. Bytes taken, or -EAGAIN (queue full: watch tx), or -errno
     * (dropped). */
    ssize_t (*send)(struct net_backend *net, unsigned queue, const struct iovec *iov,
                    unsigned iov_count);
    /* One packet, header first. Bytes, -EAGAIN when there is none. Longer ones are cut. */
    ssize_t (*receive)(struct net_backend *net, unsigned queue, const struct iovec *iov,
                       unsigned iov_count);

    /* The receiver takes these offloads from now on (subset of offloads_rx). */
    int (*set_offloads)(struct net_backend *net, unsigned offloads);
    /* Use the first n queue pairs. */
    int (*set_queue_pairs)(struct net_backend *net, unsigned n);

    void (*close)(struct net_backend *net);
};

struct net_backend {
    const struct net_ops *ops;
    unsigned queue_pairs; /* available */
    unsigned offloads_rx; /* NET_OFFLOAD_*: what packets we can be told to receive */
    unsigned offloads_tx; /* what we may send into it */
    uint16_t mtu;         /* 0: 1500 */
    /* May go down while attached: then rx_ready is called once, whether watched or not, and from
     * then on send says -ENETDOWN and receive -EAGAIN. */
    bool link_up;
    char description[128]; /* for people: "tap hull0", "user 10.0.2.0/24" */
};

/* --- tap --- */

struct net_tap_options {
    const char *name; /* NULL: the kernel chooses; an existing persistent tap is used as it is */
    unsigned queue_pairs; /* 1: no IFF_MULTI_QUEUE */
};

/* -EPERM: err says how to get a tap without root (ip tuntap add ... user). */
int net_tap_open(struct net_backend **net, const struct net_tap_options *options, struct err *err);

/* --- user: libslirp in a sandboxed helper process, joined by a socket pair --- */

struct net_forward {
    bool udp;
    char host_addr[46]; /* numeric; "" is 127.0.0.1 */
    uint16_t host_port;
    char guest_addr[46]; /* "" is the guest's DHCP address, 10.0.2.15 */
    uint16_t guest_port;
};

#define NET_FORWARDS_MAX 64

struct net_user_options {
    const struct net_forward *forwards;
    unsigned forward_count;
    bool restricted; /* no way out: only forwards */
};

/*
 * Start the helper (the program hull-slirp that stands beside this program, or in
 * ../libexec/hull). It dies with the calling thread, which is therefore one that lasts as long as
 * the VM. Ports that are taken fail here, with err naming the port.
 */
int net_user_open(struct net_backend **net, const struct net_user_options *options,
                  struct err *err);

static inline void net_close(struct net_backend *net)
{
    if (net)
        net->ops->close(net);
}

#endif
