/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between a virtio device type (block, network, ...) and its PCI transport
 * (virtio 1.2, 2 and 4.1; modern only). The transport owns status, features, queues and interrupts;
 * the device owns its configuration structure and what chains mean.
 *
 * A device type embeds struct virtio_device first in its own struct, and is made by
 *     virtio_init() -> own set-up -> virtio_pci_plug().
 *
 * Everything runs with the device lock held: queue_kick on the home loop when an ioeventfd fires
 * (or on a vCPU's thread never), the rest on whatever thread the guest's access came from.
 */
#ifndef HULL_DEV_VIRTIO_VIRTIO_H
#define HULL_DEV_VIRTIO_VIRTIO_H

#include "bus/pci.h"
#include "dev/virtio/virtq.h"

#define VIRTIO_QUEUES_MAX 128

/* Device-independent feature bits (virtio 1.2, 6). */
#define VIRTIO_F_INDIRECT_DESC     28
#define VIRTIO_F_EVENT_IDX         29
#define VIRTIO_F_VERSION_1         32
#define VIRTIO_F_ACCESS_PLATFORM   33
#define VIRTIO_F_RING_PACKED       34
#define VIRTIO_F_IN_ORDER          35
#define VIRTIO_F_NOTIFICATION_DATA 38
#define VIRTIO_F_RING_RESET        40

#define VIRTIO_BIT(n)              (1ULL << (n))

struct virtio_device;

struct virtio_ops {
    uint16_t device_id;  /* virtio 1.2, 5: 1 network, 2 block, 3 console, 4 entropy */
    uint32_t class_code; /* PCI class code, 24 bits */

    /* DRIVER_OK: dev->features is final, enabled queues may be used. May be NULL. */
    void (*driver_ok)(struct virtio_device *dev);

    /* The driver made chains available in vq. */
    void (*queue_kick)(struct virtio_device *dev, struct virtq *vq);

    /*
     * The driver resets the device, or one queue (vq != NULL). Stop popping. Return true when none
     * of its chains are in flight any more; otherwise return false and call virtio_reset_done(dev,
     * vq) once the last has come back (its memory is not touched after that). Until then the driver
     * reads a reset that is still going on. May be NULL: nothing is ever in flight.
     */
    bool (*reset)(struct virtio_device *dev, struct virtq *vq);

    /* Device configuration structure; offset + size <= config_len. NULL write: ignored. */
    void (*config_read)(struct virtio_device *dev, unsigned offset, void *buf, unsigned size);
    void (*config_write)(struct virtio_device *dev, unsigned offset, const void *buf,
                         unsigned size);

    /* Power-on reset of what is outside the state structs, after reset(dev, NULL). May be NULL. */
    void (*power_on)(struct virtio_device *dev);
    /* As device_ops.fini; the last call for dev, which may be freed in it. May be NULL. */
    void (*fini)(struct virtio_device *dev);
};

struct virtio_pci; /* the transport's part */

struct virtio_device {
    struct pci_function fn; /* first; fn.dev is the struct device */
    const struct virtio_ops *ops;
    uint64_t features_offered; /* device's own bits; the transport adds the generic ones */
    uint64_t features;         /* negotiated, valid from FEATURES_OK */
    unsigned config_len;       /* bytes of the device configuration structure */
    unsigned queue_count;
    struct virtq *queues; /* queue_count of them */
    struct mem *mem;
    struct virtio_pci *pci;
    /* The device type's own guest-visible state, saved with the transport's. table may be NULL. */
    const struct state_table *type_table;
    void *type_state;
};

/* What the board hands to every virtio device. */
struct virtio_env {
    struct mem *mem;
    struct pci_bus *pci;
    struct irq_router *irq;
    struct engine_vm *engine;
    struct loop *loop; /* home loop of this device */
};

/*
 * Prepare dev with queue_count queues of at most queue_size entries. name: "disk0". type_table and
 * type_state as in the struct. 0 or -ENOMEM / -EINVAL.
 */
int virtio_init(struct virtio_device *dev, const struct virtio_ops *ops,
                const struct virtio_env *env, const char *name, unsigned queue_count,
                unsigned queue_size, unsigned config_len, const struct state_table *type_table,
                void *type_state, struct err *err);

/* Undo virtio_init() where the type's own set-up failed after it; device_fini() is for devices that
 * are complete, and calls ops->fini. */
void virtio_fini(struct virtio_device *dev);

/* Build the PCI function (BARs, capabilities, MSI-X) and plug it; devfn < 0: next free slot. */
int virtio_pci_plug(struct virtio_device *dev, int devfn, struct err *err);

static inline bool virtio_has_feature(const struct virtio_device *dev, unsigned bit)
{
    return (dev->features >> bit) & 1;
}

/* DRIVER_OK is set, and neither FAILED nor DEVICE_NEEDS_RESET. */
bool virtio_is_live(const struct virtio_device *dev);

/* Interrupt the driver for vq if it wants that (virtq_should_interrupt). After a batch of pushes.
 */
void virtio_queue_notify(struct virtio_device *dev, struct virtq *vq);

/*
 * Have the home loop call queue_kick for vq soon, as if the driver had kicked: for a device that
 * ends its turn, so that others get theirs, while chains are left. A reset forgets it.
 */
void virtio_queue_kick_later(struct virtio_device *dev, const struct virtq *vq);

/* The configuration changed: new generation, and an interrupt. */
void virtio_config_changed(struct virtio_device *dev);

/* The guest broke the rules: set DEVICE_NEEDS_RESET, tell the driver, log once. */
void virtio_needs_reset(struct virtio_device *dev, const char *why);

void virtio_reset_done(struct virtio_device *dev, struct virtq *vq);

#endif
