/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Console (virtio 1.2, 5.3): one port, joined to a character device of the host. What the host does
 * not take waits in the guest's ring, what the guest does not take waits in the host: nothing is
 * lost, and nothing is buffered here.
 */
#ifndef HULL_DEV_VIRTIO_CONSOLE_H
#define HULL_DEV_VIRTIO_CONSOLE_H

#include "char/char.h"
#include "dev/virtio/virtio.h"

/* Feature bits (5.3.3). */
#define VIRTIO_CONSOLE_F_SIZE        0
#define VIRTIO_CONSOLE_F_EMERG_WRITE 2

/* Queues of port 0 (5.3.2). */
#define VIRTIO_CONSOLE_RX 0
#define VIRTIO_CONSOLE_TX 1

/* Device configuration structure (5.3.4); little-endian. */
struct virtio_console_config {
    uint16_t cols;
    uint16_t rows;
    uint32_t max_nr_ports;
    uint32_t emerg_wr;
};

struct virtio_console_state {
    uint32_t tx_offset; /* bytes of the next chain of the transmit queue that the host has taken */
};

extern const struct state_table virtio_console_state_table;

/* Make the device, for virtio_pci_plug(). chr is attached to env->loop, stays the caller's, and
 * outlives it. */
int virtio_console_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                       struct char_dev *chr, struct err *err);

/*
 * The terminal has this size. Before the guest first runs: the device offers SIZE from here on;
 * later on: the driver is told, if it has accepted that. Takes the device's lock.
 */
void virtio_console_set_size(struct virtio_device *dev, uint16_t cols, uint16_t rows);

#endif
