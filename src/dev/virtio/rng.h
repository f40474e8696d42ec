/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio entropy device (virtio 1.2, 5.4): fills the guest's buffers from the host kernel's
 * random number generator.
 */
#ifndef HULL_DEV_VIRTIO_RNG_H
#define HULL_DEV_VIRTIO_RNG_H

#include "dev/virtio/virtio.h"

/* A chain gets at most this; the driver asks again for the rest. */
#define VIRTIO_RNG_CHAIN_MAX (64u << 10)
/* One turn of the loop ends when either is reached, so that others get theirs. */
#define VIRTIO_RNG_TURN_BYTES  (256u << 10)
#define VIRTIO_RNG_TURN_CHAINS 64u

/* Make the device, for virtio_pci_plug(). device_fini() frees it. 0 or -errno with err filled. */
int virtio_rng_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                   struct err *err);

#endif
