/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the two halves of the transport: virtio.c (status, features, queues, reset) and pci.c
 * (registers, BARs, notifications, interrupts; virtio 1.2, 4.1). No device type includes it.
 *
 * All functions: device lock held.
 */
#ifndef HULL_DEV_VIRTIO_PCI_H
#define HULL_DEV_VIRTIO_PCI_H

#include "dev/virtio/virtio.h"

#define VIRTIO_NO_VECTOR 0xffffu /* 4.1.5.1.2 */

/* Device status (2.1). */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01u
#define VIRTIO_STATUS_DRIVER      0x02u
#define VIRTIO_STATUS_DRIVER_OK   0x04u
#define VIRTIO_STATUS_FEATURES_OK 0x08u
#define VIRTIO_STATUS_NEEDS_RESET 0x40u
#define VIRTIO_STATUS_FAILED      0x80u

/* ISR status (4.1.4.5). */
#define VIRTIO_ISR_QUEUE  0x1u
#define VIRTIO_ISR_CONFIG 0x2u

/* Guest-visible state of the transport. */
struct virtio_pci_state {
    struct pci_state pci;
    uint64_t driver_features;
    uint32_t device_feature_select;
    uint32_t driver_feature_select;
    uint16_t queue_select;
    uint16_t config_msix_vector;
    uint8_t device_status;
    uint8_t isr;
    uint8_t config_generation;
    uint8_t resetting;
    uint8_t queue_resetting[VIRTIO_QUEUES_MAX];
    struct virtq_state queues[VIRTIO_QUEUES_MAX];
};

extern const struct state_table virtio_pci_state_table;

/* Where a driver may write its notification; in the order in which they are offered. */
enum virtio_notify_window {
    VIRTIO_NOTIFY_IO,
    VIRTIO_NOTIFY_MEM,
    VIRTIO_NOTIFY_WINDOWS,
};

/* The kick of one queue: an eventfd that engine, notify register or we ourselves write. */
struct virtio_notifier {
    struct virtio_device *dev;
    unsigned queue;
    bool pending, held; /* a kick by virtio_queue_kick_later() is on its way; device_hold() */
    struct loop_event event;
    /* What the engine was told. */
    bool registered[VIRTIO_NOTIFY_WINDOWS];
    struct engine_ioeventfd ioeventfd[VIRTIO_NOTIFY_WINDOWS];
};

struct virtio_pci {
    struct virtio_env env;
    struct virtio_pci_state state;
    struct virtio_notifier *notifiers; /* one a queue, while plugged; else NULL */
    uint16_t cfg_cap;                  /* offset of the configuration access capability */
};

/* --- virtio.c --- */

/* What the driver reads as device status: not 0 while a reset goes on. */
uint8_t virtio_status_read(const struct virtio_device *dev);
uint64_t virtio_features_offered(const struct virtio_device *dev);
/* Writes of the driver: device_status, and 1 to queue_enable and queue_reset (4.1.4.3). Not while a
 * device reset goes on. */
void virtio_status_write(struct virtio_device *dev, uint8_t value);
void virtio_queue_enable(struct virtio_device *dev, struct virtq *vq);
void virtio_queue_reset(struct virtio_device *dev, struct virtq *vq);

/* --- pci.c --- */

void virtio_pci_interrupt(struct virtio_device *dev, unsigned vector, uint8_t isr_bit);
/* ISR to 0, INTx low. */
void virtio_pci_interrupt_clear(struct virtio_device *dev);
/* Tell the engine of the ioeventfds that hold now: queue enabled, device live, BAR mapped. */
void virtio_pci_sync_notifiers(struct virtio_device *dev);
/* Undo virtio_pci_plug(). No lock; no vCPU and no loop runs. Nothing when it was not plugged. */
void virtio_pci_unplug(struct virtio_device *dev);

#endif
