/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PCI side of a virtio device (virtio 1.2, 4.1), modern only:
 *
 *     BAR 0   I/O      notifications, 2 bytes a queue
 *     BAR 1   memory   MSI-X table and pending bits
 *     BAR 2   memory   0x0000 common configuration, 0x1000 ISR, 0x2000 device configuration,
 *                      0x3000 notifications, 4 bytes a queue
 *
 * The notification structure is offered twice (4.1.4.4 lets the driver take the first that it can
 * use), in I/O space first: a write to a port exits with all that is needed in the exit itself,
 * while for a write to memory KVM on AMD must fetch and decode the guest's instruction even when
 * all it does is signal an eventfd.
 */
#include "dev/virtio/pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"

#define VIRTIO_VENDOR      0x1af4
#define VIRTIO_DEVICE_BASE 0x1040
#define VIRTIO_SUBSYSTEM_ID                                                                        \
    0x1100 /* 0x40 or above (4.1.2.1); this one Windows' drivers look for                          \
            */

#define BAR_NOTIFY_IO     0
#define BAR_MSIX          1
#define BAR_REGS          2

#define REGS_PART_BYTES   0x1000u
#define REGS_COMMON       0x0000u
#define REGS_ISR          0x1000u
#define REGS_CONFIG       0x2000u
#define REGS_NOTIFY       0x3000u
#define REGS_BYTES        0x4000u

#define NOTIFY_IO_STRIDE  2u
#define NOTIFY_MEM_STRIDE 4u

/* Vendor-specific capabilities (4.1.4). */
#define PCI_CAP_ID_VENDOR 0x09
#define CAP_COMMON_CFG    1
#define CAP_NOTIFY_CFG    2
#define CAP_ISR_CFG       3
#define CAP_DEVICE_CFG    4
#define CAP_PCI_CFG       5
#define CAP_BYTES         16u /* id and next pointer included; an argument of 4 bytes may follow */
#define CAP_BAR           4u
#define CAP_OFFSET        8u
#define CAP_LENGTH        12u
#define CAP_ARGUMENT      16u

/* The common configuration structure (4.1.4.3). */
enum common_offset {
    COMMON_DEVICE_FEATURE_SELECT = 0x00,
    COMMON_DEVICE_FEATURE = 0x04,
    COMMON_DRIVER_FEATURE_SELECT = 0x08,
    COMMON_DRIVER_FEATURE = 0x0c,
    COMMON_CONFIG_MSIX_VECTOR = 0x10,
    COMMON_NUM_QUEUES = 0x12,
    COMMON_DEVICE_STATUS = 0x14,
    COMMON_CONFIG_GENERATION = 0x15,
    COMMON_QUEUE_SELECT = 0x16,
    COMMON_QUEUE_SIZE = 0x18,
    COMMON_QUEUE_MSIX_VECTOR = 0x1a,
    COMMON_QUEUE_ENABLE = 0x1c,
    COMMON_QUEUE_NOTIFY_OFF = 0x1e,
    COMMON_QUEUE_DESC = 0x20,
    COMMON_QUEUE_DRIVER = 0x28,
    COMMON_QUEUE_DEVICE = 0x30,
    COMMON_QUEUE_NOTIFY_DATA = 0x38,
    COMMON_QUEUE_RESET = 0x3a,
    COMMON_BYTES = 0x3c,
};

static struct virtio_device *to_virtio(struct pci_function *fn)
{
    return CONTAINER_OF(fn, struct virtio_device, fn);
}

static struct virtio_device *range_device(struct bus_range *range)
{
    return to_virtio(CONTAINER_OF(range, struct pci_bar, range)->fn);
}

/* --- interrupts (4.1.5.3, 4.1.5.4) --- */

void virtio_pci_interrupt(struct virtio_device *dev, unsigned vector, uint8_t isr_bit)
{
    if (pci_msix_enabled(&dev->fn)) {
        if (vector != VIRTIO_NO_VECTOR)
            pci_msix_notify(&dev->fn, vector);
        return;
    }
    dev->pci->state.isr |= isr_bit;
    pci_intx_set(&dev->fn, true);
}

void virtio_pci_interrupt_clear(struct virtio_device *dev)
{
    dev->pci->state.isr = 0;
    pci_intx_set(&dev->fn, false);
}

/* --- notifications (4.1.4.4, 4.1.5.2) --- */

/* Address of queue's register in a window, while its BAR is mapped. */
static bool notify_address(struct virtio_device *dev, enum virtio_notify_window window,
                           unsigned queue, struct engine_ioeventfd *ioeventfd)
{
    bool io = window == VIRTIO_NOTIFY_IO;
    const struct bus_range *range = &dev->fn.bars[io ? BAR_NOTIFY_IO : BAR_REGS].range;
    if (!range->mapped)
        return false;
    ioeventfd->space = io ? ENGINE_SPACE_PIO : ENGINE_SPACE_MMIO;
    ioeventfd->addr =
        range->base + (io ? NOTIFY_IO_STRIDE * queue : REGS_NOTIFY + NOTIFY_MEM_STRIDE * queue);
    ioeventfd->len = 0; /* drivers may write 2 or 4 bytes; the queue follows from the address */
    return true;
}

static void sync_window(struct virtio_device *dev, struct virtio_notifier *n,
                        enum virtio_notify_window window, bool live)
{
    struct engine_vm *engine = dev->pci->env.engine;
    struct engine_ioeventfd want = {.fd = n->event.fd};
    struct engine_ioeventfd *have = &n->ioeventfd[window];
    bool wanted = live && notify_address(dev, window, n->queue, &want);
    if (n->registered[window] && (!wanted || have->addr != want.addr)) {
        engine->ops->ioeventfd_del(engine, have);
        n->registered[window] = false;
    }
    /* Where the engine takes it not (-ENOTSUP, or two BARs at one address), the write arrives at
     * notify_write() instead. */
    if (wanted && !n->registered[window] && engine->ops->ioeventfd_add(engine, &want) == 0) {
        *have = want;
        n->registered[window] = true;
    }
}

void virtio_pci_sync_notifiers(struct virtio_device *dev)
{
    if (dev->pci->notifiers == NULL)
        return;
    bool live = virtio_is_live(dev);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        for (int window = 0; window < VIRTIO_NOTIFY_WINDOWS; window++)
            sync_window(dev, &dev->pci->notifiers[i], window, live && dev->queues[i].s->enabled);
    }
}

static void on_bar_moved(struct pci_bar *bar)
{
    virtio_pci_sync_notifiers(to_virtio(bar->fn));
}

void virtio_queue_kick_later(struct virtio_device *dev, const struct virtq *vq)
{
    uint64_t one = 1;
    if (dev->pci->notifiers == NULL)
        return;
    struct virtio_notifier *n = &dev->pci->notifiers[vq->index];
    n->pending = true;
    device_hold(&dev->fn.dev, &n->held, true);
    /* Blocks only at 2^64 - 1 kicks that the loop has not read, fails never. */
    ssize_t written = write(n->event.fd, &one, sizeof(one));
    (void)written;
}

/* A notification that came as an access, for want of an ioeventfd. */
static void notify_write(struct virtio_device *dev, uint64_t index)
{
    if (index < dev->queue_count && dev->queues[index].s->enabled && virtio_is_live(dev))
        virtio_queue_kick_later(dev, &dev->queues[index]);
}

/* On the home loop: the driver kicked. */
static void on_kick(struct loop_event *event)
{
    struct virtio_notifier *n = CONTAINER_OF(event, struct virtio_notifier, event);
    struct virtio_device *dev = n->dev;
    device_lock(&dev->fn.dev);
    struct virtq *vq = &dev->queues[n->queue];
    n->pending = false;
    if (vq->s->enabled && virtio_is_live(dev))
        dev->ops->queue_kick(dev, vq);
    device_hold(&dev->fn.dev, &n->held, n->pending);
    device_unlock(&dev->fn.dev);
}

/* --- common configuration (4.1.4.3) --- */

static struct virtq *selected_queue(struct virtio_device *dev)
{
    unsigned index = dev->pci->state.queue_select;
    return index < dev->queue_count ? &dev->queues[index] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
    return select < 2 ? (uint32_t)(features >> (32 * select)) : 0;
}

/* Reading has no side effects, so a read of any width is one from an image of the structure. Of a
 * queue that does not exist all fields are 0. */
static void common_image(struct virtio_device *dev, uint8_t image[COMMON_BYTES])
{
    const struct virtio_pci_state *s = &dev->pci->state;
    memset(image, 0, COMMON_BYTES);
    store_le32(image + COMMON_DEVICE_FEATURE_SELECT, s->device_feature_select);
    store_le32(image + COMMON_DEVICE_FEATURE,
               feature_word(virtio_features_offered(dev), s->device_feature_select));
    store_le32(image + COMMON_DRIVER_FEATURE_SELECT, s->driver_feature_select);
    store_le32(image + COMMON_DRIVER_FEATURE,
               feature_word(s->driver_features, s->driver_feature_select));
    store_le16(image + COMMON_CONFIG_MSIX_VECTOR, s->config_msix_vector);
    store_le16(image + COMMON_NUM_QUEUES, (uint16_t)dev->queue_count);
    image[COMMON_DEVICE_STATUS] = virtio_status_read(dev);
    image[COMMON_CONFIG_GENERATION] = s->config_generation;
    store_le16(image + COMMON_QUEUE_SELECT, s->queue_select);
    const struct virtq *vq = selected_queue(dev);
    if (vq == NULL)
        return;
    store_le16(image + COMMON_QUEUE_SIZE, vq->s->size);
    store_le16(image + COMMON_QUEUE_MSIX_VECTOR, vq->s->msix_vector);
    store_le16(image + COMMON_QUEUE_ENABLE, vq->s->enabled);
    store_le16(image + COMMON_QUEUE_NOTIFY_OFF, vq->index);
    store_le64(image + COMMON_QUEUE_DESC, vq->s->desc_gpa);
    store_le64(image + COMMON_QUEUE_DRIVER, vq->s->driver_gpa);
    store_le64(image + COMMON_QUEUE_DEVICE, vq->s->device_gpa);
    store_le16(image + COMMON_QUEUE_RESET, s->queue_resetting[vq->index]);
}

static void write_device_feature_select(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    (void)offset;
    dev->pci->state.device_feature_select = value;
}

static void write_driver_feature_select(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    (void)offset;
    dev->pci->state.driver_feature_select = value;
}

static void write_driver_feature(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    struct virtio_pci_state *s = &dev->pci->state;
    (void)offset;
    /* Fixed from FEATURES_OK on (3.1.1). */
    if (s->driver_feature_select >= 2 || (s->device_status & VIRTIO_STATUS_FEATURES_OK))
        return;
    unsigned shift = 32 * s->driver_feature_select;
    s->driver_features = (s->driver_features & ~(0xffffffffULL << shift)) | (uint64_t)value
                                                                                << shift;
}

/* A vector that does not exist reads back as none (4.1.5.1.2.1). */
static uint16_t valid_vector(const struct virtio_device *dev, uint32_t value)
{
    return value < dev->fn.msix_vectors ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void write_config_vector(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    (void)offset;
    dev->pci->state.config_msix_vector = valid_vector(dev, value);
}

static void write_status(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    (void)offset;
    virtio_status_write(dev, (uint8_t)value);
}

static void write_queue_select(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    (void)offset;
    dev->pci->state.queue_select = (uint16_t)value;
}

/* The selected queue, while its parameters may still change. */
static struct virtq *writable_queue(struct virtio_device *dev)
{
    struct virtq *vq = selected_queue(dev);
    if (vq == NULL || vq->s->enabled || dev->pci->state.queue_resetting[vq->index])
        return NULL;
    return vq;
}

static void write_queue_size(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    struct virtq *vq = writable_queue(dev);
    (void)offset;
    if (vq == NULL || value == 0 || value > vq->size_max)
        return;
    if (!virtio_has_feature(dev, VIRTIO_F_RING_PACKED) && !is_power_of_two(value))
        return;
    vq->s->size = (uint16_t)value;
}

static void write_queue_vector(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    struct virtq *vq = selected_queue(dev);
    (void)offset;
    if (vq != NULL)
        vq->s->msix_vector = valid_vector(dev, value);
}

static void write_queue_enable(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    struct virtq *vq = writable_queue(dev);
    (void)offset;
    if (vq != NULL && value == 1)
        virtio_queue_enable(dev, vq);
}

static void write_queue_reset(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    struct virtq *vq = selected_queue(dev);
    (void)offset;
    if (vq != NULL && value == 1)
        virtio_queue_reset(dev, vq);
}

/* One half of queue_desc, queue_driver or queue_device. */
static void write_queue_address(struct virtio_device *dev, unsigned offset, uint32_t value)
{
    struct virtq *vq = writable_queue(dev);
    if (vq == NULL)
        return;
    uint64_t *gpa = offset < COMMON_QUEUE_DRIVER   ? &vq->s->desc_gpa
                    : offset < COMMON_QUEUE_DEVICE ? &vq->s->driver_gpa
                                                   : &vq->s->device_gpa;
    unsigned shift = offset % 8 * 8;
    *gpa = (*gpa & ~(0xffffffffULL << shift)) | (uint64_t)value << shift;
}

/* Registers that can be written, each with its own width (4.1.3.1); 64-bit ones in two halves. */
static const struct common_write {
    uint8_t offset, size;
    void (*fn)(struct virtio_device *dev, unsigned offset, uint32_t value);
} common_writes[] = {
    {COMMON_DEVICE_FEATURE_SELECT, 4, write_device_feature_select},
    {COMMON_DRIVER_FEATURE_SELECT, 4, write_driver_feature_select},
    {COMMON_DRIVER_FEATURE,        4, write_driver_feature       },
    {COMMON_CONFIG_MSIX_VECTOR,    2, write_config_vector        },
    {COMMON_DEVICE_STATUS,         1, write_status               },
    {COMMON_QUEUE_SELECT,          2, write_queue_select         },
    {COMMON_QUEUE_SIZE,            2, write_queue_size           },
    {COMMON_QUEUE_MSIX_VECTOR,     2, write_queue_vector         },
    {COMMON_QUEUE_ENABLE,          2, write_queue_enable         },
    {COMMON_QUEUE_DESC,            4, write_queue_address        },
    {COMMON_QUEUE_DESC + 4,        4, write_queue_address        },
    {COMMON_QUEUE_DRIVER,          4, write_queue_address        },
    {COMMON_QUEUE_DRIVER + 4,      4, write_queue_address        },
    {COMMON_QUEUE_DEVICE,          4, write_queue_address        },
    {COMMON_QUEUE_DEVICE + 4,      4, write_queue_address        },
    {COMMON_QUEUE_RESET,           2, write_queue_reset          },
};

static void common_write(struct virtio_device *dev, uint64_t offset, uint32_t value, unsigned size)
{
    if (dev->pci->state.resetting)
        return; /* until the driver reads status 0 it must not go on (4.1.4.3.2) */
    for (size_t i = 0; i < ARRAY_LEN(common_writes); i++) {
        if (common_writes[i].offset == offset && common_writes[i].size == size) {
            common_writes[i].fn(dev, (unsigned)offset, value);
            return;
        }
    }
}

/* --- BAR 2 --- */

static uint64_t isr_read(struct virtio_device *dev)
{
    uint8_t isr = dev->pci->state.isr;
    virtio_pci_interrupt_clear(dev); /* reading acknowledges (4.1.4.5) */
    return isr;
}

/* How much of [offset, offset + size) lies in the device configuration structure. */
static unsigned config_overlap(const struct virtio_device *dev, uint64_t offset, unsigned size)
{
    if (offset >= dev->config_len)
        return 0;
    uint64_t left = dev->config_len - offset;
    return size < left ? size : (unsigned)left;
}

static uint64_t regs_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct virtio_device *dev = range_device(range);
    uint64_t at = offset % REGS_PART_BYTES;
    uint8_t buf[8] = {0};
    switch (offset - at) {
    case REGS_COMMON: {
        uint8_t image[COMMON_BYTES + sizeof(buf)] = {0};
        if (at >= COMMON_BYTES)
            return 0;
        common_image(dev, image);
        return load_le(image + at, size);
    }
    case REGS_ISR:
        return at == 0 ? isr_read(dev) : 0;
    case REGS_CONFIG: {
        unsigned len = config_overlap(dev, at, size);
        if (len != 0 && dev->ops->config_read != NULL)
            dev->ops->config_read(dev, (unsigned)at, buf, len);
        return load_le(buf, size);
    }
    default:
        return 0;
    }
}

static void regs_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct virtio_device *dev = range_device(range);
    uint64_t at = offset % REGS_PART_BYTES;
    switch (offset - at) {
    case REGS_COMMON:
        common_write(dev, at, (uint32_t)value, size);
        break;
    case REGS_CONFIG: {
        unsigned len = config_overlap(dev, at, size);
        uint8_t buf[8];
        store_le64(buf, value);
        if (len != 0 && dev->ops->config_write != NULL)
            dev->ops->config_write(dev, (unsigned)at, buf, len);
        break;
    }
    case REGS_NOTIFY:
        notify_write(dev, at / NOTIFY_MEM_STRIDE);
        break;
    default:
        break;
    }
}

static const struct bus_range_ops regs_ops = {
    .read = regs_read,
    .write = regs_write,
    .max_size = 4,
};

static void io_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    (void)value;
    (void)size;
    notify_write(range_device(range), offset / NOTIFY_IO_STRIDE);
}

static const struct bus_range_ops io_ops = {
    .write = io_write,
    .max_size = 4,
};

/* --- access to the BARs through configuration space (4.1.4.9) --- */

struct cfg_access {
    struct bus_range *range;
    uint64_t offset;
    unsigned size;
};

/* What bar, offset and length of the capability select; false when they are not sound. */
static bool cfg_access(struct virtio_device *dev, struct cfg_access *access)
{
    const uint8_t *cap = dev->fn.pci->config + dev->pci->cfg_cap;
    unsigned bar = cap[CAP_BAR];
    access->offset = load_le32(cap + CAP_OFFSET);
    access->size = load_le32(cap + CAP_LENGTH);
    if (access->size != 1 && access->size != 2 && access->size != 4)
        return false;
    if (bar >= PCI_BAR_COUNT || access->offset % access->size != 0)
        return false;
    struct pci_bar *b = &dev->fn.bars[bar];
    access->range = &b->range;
    return b->kind != PCI_BAR_NONE && b->range.ops != NULL &&
           range_fits(access->offset, access->size, b->size_bytes) &&
           access->size <= b->range.ops->max_size;
}

/* Is it an access to the data window, and not to one of the selectors? */
static bool is_cfg_data(const struct virtio_device *dev, unsigned offset, unsigned size)
{
    unsigned data = dev->pci->cfg_cap + CAP_ARGUMENT;
    return offset <= data && data < offset + size;
}

static void on_config_read(struct pci_function *fn, unsigned offset, unsigned size)
{
    struct virtio_device *dev = to_virtio(fn);
    if (!is_cfg_data(dev, offset, size))
        return;
    struct cfg_access access;
    uint32_t value = 0xffffffff;
    if (cfg_access(dev, &access) && access.range->ops->read != NULL)
        value = (uint32_t)access.range->ops->read(access.range, access.offset, access.size);
    store_le32(fn->pci->config + dev->pci->cfg_cap + CAP_ARGUMENT, value);
}

static void on_config_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    struct virtio_device *dev = to_virtio(fn);
    struct cfg_access access;
    if (!is_cfg_data(dev, offset, size) || !cfg_access(dev, &access) ||
        access.range->ops->write == NULL)
        return;
    uint64_t value = load_le(fn->pci->config + dev->pci->cfg_cap + CAP_ARGUMENT, access.size);
    access.range->ops->write(access.range, access.offset, value, access.size);
}

/* --- building --- */

/* A virtio capability (4.1.4); the argument is the notification multiplier. Returns its offset. */
static uint16_t add_cap(struct pci_function *fn, uint8_t type, uint8_t bar, uint32_t offset,
                        uint32_t length, uint32_t argument)
{
    bool has_argument = type == CAP_NOTIFY_CFG || type == CAP_PCI_CFG;
    uint8_t cap[CAP_BYTES + 4] = {0}, writable[CAP_BYTES + 4] = {0};
    unsigned len = CAP_BYTES + (has_argument ? 4 : 0);
    cap[2] = (uint8_t)len;
    cap[3] = type;
    cap[CAP_BAR] = bar;
    store_le32(cap + CAP_OFFSET, offset);
    store_le32(cap + CAP_LENGTH, length);
    store_le32(cap + CAP_ARGUMENT, argument);
    if (type == CAP_PCI_CFG) {
        writable[CAP_BAR] = 0xff;
        memset(writable + CAP_OFFSET, 0xff, len - CAP_OFFSET);
    }
    return pci_cap_add(fn, PCI_CAP_ID_VENDOR, cap + 2, len - 2, writable + 2);
}

static int build_function(struct virtio_device *dev, struct err *err)
{
    struct pci_function *fn = &dev->fn;
    const struct pci_identity identity = {
        .vendor_id = VIRTIO_VENDOR,
        .device_id = VIRTIO_DEVICE_BASE + dev->ops->device_id,
        .subsystem_vendor_id = VIRTIO_VENDOR,
        .subsystem_id = VIRTIO_SUBSYSTEM_ID,
        .class_code = dev->ops->class_code,
        .revision = 1, /* 4.1.2: modern devices, 1 or higher */
        .interrupt_pin = 1,
    };
    pci_function_init(fn, &dev->pci->state.pci, &identity);
    fn->config_read = on_config_read;
    fn->config_written = on_config_written;

    unsigned io_bytes = 4;
    while (io_bytes < NOTIFY_IO_STRIDE * dev->queue_count)
        io_bytes *= 2;
    pci_bar_add(fn, BAR_NOTIFY_IO, PCI_BAR_IO, io_bytes, &io_ops)->moved = on_bar_moved;
    pci_bar_add(fn, BAR_REGS, PCI_BAR_MEM32, REGS_BYTES, &regs_ops)->moved = on_bar_moved;

    add_cap(fn, CAP_COMMON_CFG, BAR_REGS, REGS_COMMON, COMMON_BYTES, 0);
    add_cap(fn, CAP_NOTIFY_CFG, BAR_NOTIFY_IO, 0, NOTIFY_IO_STRIDE * dev->queue_count,
            NOTIFY_IO_STRIDE);
    add_cap(fn, CAP_NOTIFY_CFG, BAR_REGS, REGS_NOTIFY, NOTIFY_MEM_STRIDE * dev->queue_count,
            NOTIFY_MEM_STRIDE);
    add_cap(fn, CAP_ISR_CFG, BAR_REGS, REGS_ISR, 1, 0);
    if (dev->config_len != 0)
        add_cap(fn, CAP_DEVICE_CFG, BAR_REGS, REGS_CONFIG, dev->config_len, 0);
    dev->pci->cfg_cap = add_cap(fn, CAP_PCI_CFG, 0, 0, 0, 0);
    return pci_msix_add(fn, BAR_MSIX, dev->queue_count + 1, false, err);
}

/* --- notifiers --- */

struct event_change {
    struct virtio_device *dev;
    int rc;
};

static void add_events(void *arg)
{
    struct event_change *change = arg;
    struct virtio_pci *pci = change->dev->pci;
    for (unsigned i = 0; i < change->dev->queue_count && change->rc == 0; i++)
        change->rc = loop_event_add(pci->env.loop, &pci->notifiers[i].event);
}

static void del_events(void *arg)
{
    struct event_change *change = arg;
    struct virtio_pci *pci = change->dev->pci;
    for (unsigned i = 0; i < change->dev->queue_count; i++) {
        if (pci->notifiers[i].event.priv != NULL)
            loop_event_del(pci->env.loop, &pci->notifiers[i].event);
    }
}

static void notifiers_free(struct virtio_device *dev)
{
    struct virtio_notifier *notifiers = dev->pci->notifiers;
    struct event_change change = {.dev = dev};
    if (notifiers == NULL)
        return;
    loop_call(dev->pci->env.loop, del_events, &change);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        if (notifiers[i].event.fd >= 0)
            close(notifiers[i].event.fd);
    }
    free(notifiers);
    dev->pci->notifiers = NULL;
}

/* All of them now, although few devices use all queues: later it would have to be done on the
 * loop's thread while a vCPU holds the device lock, for which the loop may be waiting. */
static int notifiers_new(struct virtio_device *dev, struct err *err)
{
    struct virtio_notifier *notifiers = calloc(dev->queue_count, sizeof(*notifiers));
    if (notifiers == NULL)
        return err_errno(err, ENOMEM, "%s: notifications", dev->fn.dev.name);
    dev->pci->notifiers = notifiers;
    for (unsigned i = 0; i < dev->queue_count; i++) {
        notifiers[i].dev = dev;
        notifiers[i].queue = i;
        notifiers[i].event = (struct loop_event){.fd = -1, .fn = on_kick};
    }
    int rc = 0;
    for (unsigned i = 0; i < dev->queue_count && rc == 0; i++) {
        notifiers[i].event.fd = eventfd(0, EFD_CLOEXEC);
        rc = notifiers[i].event.fd < 0 ? -errno : 0;
    }
    if (rc == 0) {
        struct event_change change = {.dev = dev};
        loop_call(dev->pci->env.loop, add_events, &change);
        rc = change.rc;
    }
    if (rc < 0) {
        notifiers_free(dev);
        return err_errno(err, rc, "%s: notifications of %u queues", dev->fn.dev.name,
                         dev->queue_count);
    }
    return 0;
}

int virtio_pci_plug(struct virtio_device *dev, int devfn, struct err *err)
{
    int rc = build_function(dev, err);
    if (rc < 0)
        return rc;
    rc = notifiers_new(dev, err);
    if (rc == 0)
        rc = pci_bus_plug(dev->pci->env.pci, &dev->fn, devfn, err);
    if (rc < 0)
        virtio_pci_unplug(dev);
    return rc;
}

void virtio_pci_unplug(struct virtio_device *dev)
{
    if (dev->fn.pci == NULL)
        return;
    virtio_pci_sync_notifiers(dev);
    notifiers_free(dev);
    pci_function_fini(&dev->fn);
    dev->fn.pci = NULL;
}
