/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A network card (virtio 1.2, 5.1) on a backend of net/net.h. What the backend can do is offered to
 * the guest: checksum and segmentation offloads, queue pairs, MTU. Packets pass between the backend
 * and guest memory without a copy of ours, except for the tail of one that is larger than the
 * buffers that were expected to do.
 */
#ifndef HULL_DEV_VIRTIO_NET_H
#define HULL_DEV_VIRTIO_NET_H

#include "dev/virtio/virtio.h"

struct net_backend;

#define VIRTIO_NET_PAIRS_MAX    63 /* with the control queue within VIRTIO_QUEUES_MAX */
#define VIRTIO_NET_QUEUE_SIZE   256
#define VIRTIO_NET_TURN_PACKETS 256 /* of one queue, before the loop serves others */

struct virtio_net_options {
    uint8_t mac[6];       /* unicast */
    unsigned queue_pairs; /* at most that many; 0: all that the backend has */
};

/*
 * Make the card; virtio_pci_plug() follows. On success it owns net, which is attached to the home
 * loop; on failure the caller still does. 0 or -errno with err filled.
 */
int virtio_net_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                   struct net_backend *net, const struct virtio_net_options *options,
                   struct err *err);

/*
 * Ask the guest to announce itself to its network (5.1.6.5.4), after a migration. Nothing happens
 * when the guest's driver knows of no such thing. Device lock held.
 */
void virtio_net_announce(struct virtio_device *dev);

#endif
