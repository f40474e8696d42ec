/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For unit tests of virtio devices: a machine just large enough (RAM at 0, one PCI bus, the fake
 * engine, one loop), and the driver's side of a device, which goes through configuration space,
 * BARs and rings as a guest's driver does. Nothing else links it.
 *
 *     struct vtest t;
 *     vtest_init(&t);
 *     virtio_rng_new(&dev, &t.env, "rng0", &err);
 *     virtio_pci_plug(dev, -1, &err);
 *     struct vtest_driver d;
 *     vtest_attach(&d, &t, dev);
 *     vtest_start(&d, VIRTIO_BIT(VIRTIO_F_RING_PACKED), 1);      // or 0: split rings
 *     written = vtest_request(&d.queues[0], out, sizeof(out), in, sizeof(in));
 *     device_fini(&dev->fn.dev);
 *     vtest_fini(&t);
 *
 * One thread: the test's, which also runs the loop inside vtest_run() and its callers. What a test
 * cannot do without (memory, a plugged device) aborts with a message.
 */
#ifndef HULL_DEV_VIRTIO_VTEST_H
#define HULL_DEV_VIRTIO_VTEST_H

#include "dev/virtio/virtio.h"

#define VTEST_RAM_BYTES   (16u << 20)
#define VTEST_QUEUES_MAX  8
#define VTEST_VECTORS_MAX 130
#define VTEST_TIMEOUT_NS  5000000000ULL

/* Fields of the common configuration structure (virtio 1.2, 4.1.4.3). */
enum {
    VTEST_DEVICE_FEATURE_SELECT = 0x00,
    VTEST_DEVICE_FEATURE = 0x04,
    VTEST_DRIVER_FEATURE_SELECT = 0x08,
    VTEST_DRIVER_FEATURE = 0x0c,
    VTEST_CONFIG_MSIX_VECTOR = 0x10,
    VTEST_NUM_QUEUES = 0x12,
    VTEST_DEVICE_STATUS = 0x14,
    VTEST_CONFIG_GENERATION = 0x15,
    VTEST_QUEUE_SELECT = 0x16,
    VTEST_QUEUE_SIZE = 0x18,
    VTEST_QUEUE_MSIX_VECTOR = 0x1a,
    VTEST_QUEUE_ENABLE = 0x1c,
    VTEST_QUEUE_NOTIFY_OFF = 0x1e,
    VTEST_QUEUE_DESC = 0x20,
    VTEST_QUEUE_DRIVER = 0x28,
    VTEST_QUEUE_DEVICE = 0x30,
    VTEST_QUEUE_NOTIFY_DATA = 0x38,
    VTEST_QUEUE_RESET = 0x3a,
};

#define VTEST_STATUS_RESET 0x40 /* DEVICE_NEEDS_RESET, in vtest_status() */

struct vtest {
    struct mem *mem;
    struct bus *bus;
    struct engine_vm *engine; /* the fake one: fake_*() work on it */
    struct loop *loop;
    struct irq_router irq;
    struct pci_bus *pci;
    struct virtio_env env; /* of the above, for the device under test */
    uint64_t next_gpa;
    bool pirq[8];                                          /* level of the bus's INTx pins */
    unsigned msi_count[PCI_SLOT_COUNT][VTEST_VECTORS_MAX]; /* messages, by slot and vector */
};

void vtest_init(struct vtest *t);
void vtest_fini(struct vtest *t);

/* Zeroed guest RAM, 64-byte aligned (or more: a power of two); never given back. */
uint64_t vtest_alloc(struct vtest *t, uint64_t len, uint64_t align);
/* Host address of guest RAM. */
void *vtest_ram(struct vtest *t, uint64_t gpa, uint64_t len);

/* Run the loop until done(arg), which is asked every 100 us. false: not within the timeout. */
bool vtest_run(struct vtest *t, bool (*done)(void *arg), void *arg);
/* Run the loop for some milliseconds, to see that something does not happen. */
void vtest_settle(struct vtest *t);

/* A part of the device that a capability told of. */
struct vtest_window {
    enum bus_space space;
    uint64_t addr;
    uint32_t len;
    uint32_t multiplier; /* notify only */
    uint8_t bar;
    uint8_t cap; /* offset of the capability; 0: no such window */
    uint32_t offset;
};

struct vtest_driver;

struct vtest_queue {
    struct vtest_driver *d;
    unsigned index, size;
    bool packed, event_idx;
    bool indirect; /* a test may set it: vtest_add() uses indirect tables */
    uint64_t desc, driver, device;
    uint16_t notify_off;
    uint16_t avail_idx, used_idx; /* packed: positions */
    uint16_t kicked_idx;          /* avail_idx at the last kick, or decision not to */
    bool avail_wrap, used_wrap, kicked_wrap;
    unsigned free_descs;
    unsigned id_count;
    uint16_t free_ids[VIRTQ_SIZE_MAX]; /* stack; split: descriptors, packed: buffer ids */
    uint16_t chain_len[VIRTQ_SIZE_MAX];
    uint16_t chain_next[VIRTQ_SIZE_MAX]; /* split: next descriptor of the chain */
};

struct vtest_driver {
    struct vtest *t;
    struct virtio_device *dev;
    uint8_t devfn;
    struct vtest_window common, isr, config, notify, notify_mem, pci_cfg;
    uint8_t msix_cap, msix_bar;
    uint32_t msix_offset;
    unsigned msix_vectors;
    uint64_t features; /* negotiated */
    struct vtest_queue queues[VTEST_QUEUES_MAX];
};

/* --- a device in steps, each as a driver does it --- */

/* Place all BARs of the bus and read the capabilities. */
void vtest_attach(struct vtest_driver *d, struct vtest *t, struct virtio_device *dev);

uint64_t vtest_features(struct vtest_driver *d); /* what the device offers */

/* Reset, ACKNOWLEDGE, DRIVER, features with VERSION_1 added, FEATURES_OK. false: refused. */
bool vtest_negotiate(struct vtest_driver *d, uint64_t features);

/* Enable MSI-X: vector 0 for the configuration, vector 1 + i for queue i. Before queue_start. */
void vtest_msix_enable(struct vtest_driver *d);

/* A queue without a device: rings of d->features' kind in guest RAM. For tests of virtq itself, d
 * needs no more than t and features. */
void vtest_queue_layout(struct vtest_driver *d, unsigned index, unsigned size);

/* Lay out queue `index` in guest RAM with size entries (0: the device's maximum), and enable it.
 * false: the device did not. */
bool vtest_queue_start(struct vtest_driver *d, unsigned index, unsigned size);

void vtest_driver_ok(struct vtest_driver *d);

/* All of that: negotiate, MSI-X, the first queue_count queues at maximum size, DRIVER_OK. */
bool vtest_start(struct vtest_driver *d, uint64_t features, unsigned queue_count);

/* Write 0 to the status and run the loop until it reads 0. */
bool vtest_reset(struct vtest_driver *d);

/* --- registers --- */

uint64_t vtest_read(struct vtest_driver *d, const struct vtest_window *window, uint32_t offset,
                    unsigned size);
void vtest_write(struct vtest_driver *d, const struct vtest_window *window, uint32_t offset,
                 uint64_t value, unsigned size);
uint8_t vtest_status(struct vtest_driver *d);
/* Device configuration structure. */
uint64_t vtest_config(struct vtest_driver *d, uint32_t offset, unsigned size);
uint32_t vtest_pci_read(struct vtest *t, uint8_t devfn, unsigned offset, unsigned size);
void vtest_pci_write(struct vtest *t, uint8_t devfn, unsigned offset, uint32_t value,
                     unsigned size);

/* Interrupts so far: MSI-X messages of a queue, of the configuration vector. */
unsigned vtest_interrupts(const struct vtest_queue *q);
unsigned vtest_config_interrupts(const struct vtest_driver *d);

/* --- rings --- */

struct vtest_seg {
    uint64_t gpa;
    uint32_t len;
    bool write; /* device-writable; those come last */
};

struct vtest_used {
    uint16_t id;
    uint32_t len;
};

/* Make a chain available, without a kick. Returns its id, or -1 when the ring is full. */
int vtest_add(struct vtest_queue *q, const struct vtest_seg *segs, unsigned count);
/* Does the device want a kick for what was added since the last question? (2.7.10, 2.8.21) */
bool vtest_kick_wanted(struct vtest_queue *q);
/* The notification itself, always: through an ioeventfd where one is registered, as KVM would. */
void vtest_kick(struct vtest_queue *q);
/* Take one used chain if there is one. */
bool vtest_used(struct vtest_queue *q, struct vtest_used *used);
/* The same, running the loop until there is one. */
bool vtest_wait(struct vtest_queue *q, struct vtest_used *used);

/*
 * One request: a readable segment of out_len bytes, a writable one of in_len bytes that is copied
 * back to in; either may be 0. Add, kick, wait. Returns the used length, or -1 when it was not
 * served in time.
 */
long vtest_request(struct vtest_queue *q, const void *out, uint32_t out_len, void *in,
                   uint32_t in_len);

/* Ask for interrupts again, as a driver does before it sleeps: with event index, for the next one.
 */
void vtest_enable_interrupts(struct vtest_queue *q);
void vtest_disable_interrupts(struct vtest_queue *q);

/* --- a device under no one's test --- */

/*
 * Copies what a chain reads into what it writes, and counts what it is told. With hold set it keeps
 * the chains (up to the array) until vtest_echo_release(), as a device with a slow backend does.
 */
#define VTEST_ECHO_CONFIG_BYTES 22
#define VTEST_ECHO_HELD_MAX     64

struct vtest_echo_held {
    struct virtq *vq;
    struct virtq_chain chain;
    struct iovec iov[VIRTQ_IOV_MAX];
};

struct vtest_echo {
    struct virtio_device dev; /* first */
    uint8_t config[VTEST_ECHO_CONFIG_BYTES];
    bool hold;
    size_t copy_max; /* of one chain; 0: all of it */
    bool resetting;
    struct virtq *resetting_vq;
    unsigned kicks, driver_oks, resets, power_ons, chains;
    unsigned held_count;
    struct vtest_echo_held held[VTEST_ECHO_HELD_MAX];
    struct iovec iov[VIRTQ_IOV_MAX];
    /* Called with every chain popped; may be NULL. */
    void (*popped)(struct vtest_echo *echo, struct virtq *vq, const struct virtq_chain *chain);
};

/* On the heap, plugged, freed by device_fini(). queue_size as in virtio_init(). */
struct vtest_echo *vtest_echo_new(struct vtest *t, unsigned queue_count, unsigned queue_size);
/* Finish what was held, newest first, and a reset that waits for it. */
void vtest_echo_release(struct vtest_echo *echo);

#endif
