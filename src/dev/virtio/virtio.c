/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/virtio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "dev/virtio/pci.h"

#define DEVICE_CONFIG_MAX 4096u

/* What every device offers (6). */
#define FEATURES_GENERIC                                                                           \
    (VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |                         \
     VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_F_RING_PACKED) |                           \
     VIRTIO_BIT(VIRTIO_F_RING_RESET))

static const struct state_field virtio_pci_fields[] = {
    STATE_STRUCT(struct virtio_pci_state, pci, struct pci_state, 1, &pci_state_table,
                 "PCI function"),
    STATE_U64(struct virtio_pci_state, driver_features, 1, 0, "Features that the driver accepted"),
    STATE_U32(struct virtio_pci_state, device_feature_select, 1, 0, "Word of device_feature"),
    STATE_U32(struct virtio_pci_state, driver_feature_select, 1, 0, "Word of driver_feature"),
    STATE_U16(struct virtio_pci_state, queue_select, 1, 0, "Queue that queue_* registers show"),
    STATE_U16(struct virtio_pci_state, config_msix_vector, 1, VIRTIO_NO_VECTOR,
              "MSI-X vector of configuration changes; 0xffff: none"),
    STATE_U8(struct virtio_pci_state, device_status, 1, 0, "Device status (2.1)"),
    STATE_U8(struct virtio_pci_state, isr, 1, 0, "ISR status (4.1.4.5)"),
    STATE_U8(struct virtio_pci_state, config_generation, 1, 0,
             "Changes with the device configuration"),
    STATE_U8(struct virtio_pci_state, resetting, 1, 0, "A device reset waits for requests"),
    STATE_U8(struct virtio_pci_state, queue_resetting, 1, 0, "A queue reset waits for requests"),
    STATE_STRUCT(struct virtio_pci_state, queues, struct virtq_state, 1, &virtq_state_table,
                 "Virtqueues"),
};
const struct state_table virtio_pci_state_table =
    STATE_TABLE("virtio-pci", struct virtio_pci_state, 1, virtio_pci_fields);

static struct virtio_device *to_virtio(struct device *dev)
{
    return CONTAINER_OF(dev, struct virtio_device, fn.dev);
}

static struct virtio_pci_state *state_of(const struct virtio_device *dev)
{
    return &dev->pci->state;
}

bool virtio_is_live(const struct virtio_device *dev)
{
    const struct virtio_pci_state *s = state_of(dev);
    const unsigned mask =
        VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_FAILED | VIRTIO_STATUS_NEEDS_RESET;
    return (s->device_status & mask) == VIRTIO_STATUS_DRIVER_OK && !s->resetting;
}

/* --- reset (2.4, 2.6.1) --- */

/* A queue as after reset: its size is the largest until the driver says otherwise (4.1.4.3). */
static void queue_to_default(struct virtq *vq)
{
    virtq_disable(vq);
    state_reset(&virtq_state_table, vq->s);
    vq->s->size = vq->size_max;
    vq->packed = vq->event_idx = vq->indirect = vq->in_order = false;
    vq->in_flight = 0;
    vq->why = NULL;
}

static void reset_finish(struct virtio_device *dev)
{
    struct virtio_pci_state *s = state_of(dev);
    for (unsigned i = 0; i < dev->queue_count; i++)
        queue_to_default(&dev->queues[i]);
    memset(s->queue_resetting, 0, sizeof(s->queue_resetting));
    s->resetting = 0;
    s->device_status = 0;
}

/* All but what waits for requests in flight happens now: from here on nothing is popped, what is
 * pushed is dropped, and no interrupt is sent. */
static void reset_begin(struct virtio_device *dev)
{
    struct virtio_pci_state *s = state_of(dev);
    s->resetting = 1;
    for (unsigned i = 0; i < dev->queue_count; i++)
        virtq_disable(&dev->queues[i]);
    virtio_pci_sync_notifiers(dev);
    virtio_pci_interrupt_clear(dev);
    s->config_msix_vector = VIRTIO_NO_VECTOR;
    s->device_feature_select = s->driver_feature_select = 0;
    s->queue_select = 0;
    bool done = dev->ops->reset == NULL || dev->ops->reset(dev, NULL);
    s->driver_features = dev->features = 0;
    if (done)
        reset_finish(dev);
}

void virtio_queue_reset(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_pci_state *s = state_of(dev);
    if (!virtio_has_feature(dev, VIRTIO_F_RING_RESET) || !vq->s->enabled)
        return;
    virtq_disable(vq);
    virtio_pci_sync_notifiers(dev);
    if (dev->ops->reset == NULL || dev->ops->reset(dev, vq))
        queue_to_default(vq);
    else
        s->queue_resetting[vq->index] = 1;
}

void virtio_reset_done(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_pci_state *s = state_of(dev);
    if (vq == NULL) {
        if (s->resetting)
            reset_finish(dev);
    } else if (s->queue_resetting[vq->index]) {
        s->queue_resetting[vq->index] = 0;
        queue_to_default(vq);
    }
}

/* Power-on. The transport's state has been reset from its table already. */
static void virtio_device_reset(struct device *device)
{
    struct virtio_device *dev = to_virtio(device);
    pci_function_reset(&dev->fn);
    if (dev->type_table != NULL)
        state_reset(dev->type_table, dev->type_state);
    reset_begin(dev);
    if (dev->ops->power_on != NULL)
        dev->ops->power_on(dev);
}

static bool virtio_device_quiet(struct device *device)
{
    return !state_of(to_virtio(device))->resetting;
}

/* --- status and features (2.1, 2.2, 3.1) --- */

uint64_t virtio_features_offered(const struct virtio_device *dev)
{
    return dev->features_offered | FEATURES_GENERIC;
}

uint8_t virtio_status_read(const struct virtio_device *dev)
{
    const struct virtio_pci_state *s = state_of(dev);
    return s->resetting ? s->device_status | VIRTIO_STATUS_ACKNOWLEDGE : s->device_status;
}

/* 2.2.2: a subset of what is offered; without VERSION_1 it is a legacy driver. */
static bool features_acceptable(const struct virtio_device *dev)
{
    uint64_t features = state_of(dev)->driver_features;
    return (features & ~virtio_features_offered(dev)) == 0 &&
           (features & VIRTIO_BIT(VIRTIO_F_VERSION_1)) != 0;
}

static void go_live(struct virtio_device *dev)
{
    virtio_pci_sync_notifiers(dev);
    if (dev->ops->driver_ok != NULL)
        dev->ops->driver_ok(dev);
    /* What was made available before now was not kicked for, or the kick was not heard. */
    for (unsigned i = 0; i < dev->queue_count; i++) {
        if (dev->queues[i].s->enabled)
            virtio_queue_kick_later(dev, &dev->queues[i]);
    }
}

void virtio_status_write(struct virtio_device *dev, uint8_t value)
{
    struct virtio_pci_state *s = state_of(dev);
    if (value == 0) {
        reset_begin(dev);
        return;
    }
    /* Bits are only ever added: the driver must not clear one (2.1.1). */
    uint8_t added = value & (uint8_t)~s->device_status;
    s->device_status |=
        added & (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FAILED);
    if ((added & VIRTIO_STATUS_FEATURES_OK) && features_acceptable(dev)) {
        dev->features = s->driver_features;
        s->device_status |= VIRTIO_STATUS_FEATURES_OK;
    }
    if ((added & VIRTIO_STATUS_DRIVER_OK) && (s->device_status & VIRTIO_STATUS_FEATURES_OK)) {
        s->device_status |= VIRTIO_STATUS_DRIVER_OK;
        if (virtio_is_live(dev))
            go_live(dev);
    }
}

/* --- queues --- */

void virtio_queue_enable(struct virtio_device *dev, struct virtq *vq)
{
    if (!(state_of(dev)->device_status & VIRTIO_STATUS_FEATURES_OK) || vq->s->enabled)
        return;
    vq->packed = virtio_has_feature(dev, VIRTIO_F_RING_PACKED);
    vq->event_idx = virtio_has_feature(dev, VIRTIO_F_EVENT_IDX);
    vq->indirect = virtio_has_feature(dev, VIRTIO_F_INDIRECT_DESC);
    if (virtq_enable(vq) < 0) {
        virtio_needs_reset(dev, "a queue could not be enabled");
        return;
    }
    if (virtio_is_live(dev)) { /* after a queue reset (2.6.1.2) */
        virtio_pci_sync_notifiers(dev);
        virtio_queue_kick_later(dev, vq);
    }
}

void virtio_queue_notify(struct virtio_device *dev, struct virtq *vq)
{
    const struct virtio_pci_state *s = state_of(dev);
    if (!(s->device_status & VIRTIO_STATUS_DRIVER_OK) || s->resetting)
        return;
    if (!virtq_should_interrupt(vq))
        return;
    vq->interrupts_sent++;
    virtio_pci_interrupt(dev, vq->s->msix_vector, VIRTIO_ISR_QUEUE);
}

/* --- to the driver --- */

void virtio_config_changed(struct virtio_device *dev)
{
    struct virtio_pci_state *s = state_of(dev);
    s->config_generation++;
    if ((s->device_status & VIRTIO_STATUS_DRIVER_OK) && !s->resetting) /* 2.1.2 */
        virtio_pci_interrupt(dev, s->config_msix_vector, VIRTIO_ISR_CONFIG);
}

void virtio_needs_reset(struct virtio_device *dev, const char *why)
{
    struct virtio_pci_state *s = state_of(dev);
    if (s->resetting || (s->device_status & VIRTIO_STATUS_NEEDS_RESET))
        return;
    const char *detail = NULL;
    unsigned index = 0;
    while (index < dev->queue_count && detail == NULL)
        detail = dev->queues[index++].why;
    if (detail != NULL)
        log_guest(&dev->fn.dev.log_budget, dev->fn.dev.name,
                  "the guest's driver must reset the device: %s (queue %u: %s)", why, index - 1,
                  detail);
    else
        log_guest(&dev->fn.dev.log_budget, dev->fn.dev.name,
                  "the guest's driver must reset the device: %s", why);
    s->device_status |= VIRTIO_STATUS_NEEDS_RESET;
    virtio_config_changed(dev); /* 2.1.2 */
}

/* --- life --- */

static void virtio_device_fini(struct device *device)
{
    struct virtio_device *dev = to_virtio(device);
    struct virtio_pci *pci = dev->pci;
    struct virtq *queues = dev->queues;
    /* The type's fini may return chains and report changes: nobody is told any more. */
    pci->state.device_status = 0;
    for (unsigned i = 0; i < dev->queue_count; i++)
        virtq_disable(&queues[i]);
    virtio_pci_unplug(dev);
    if (dev->ops->fini != NULL)
        dev->ops->fini(dev); /* dev may be gone after this */
    free(queues);
    free(pci);
}

void virtio_fini(struct virtio_device *dev)
{
    virtio_pci_unplug(dev);
    free(dev->queues);
    free(dev->pci);
    dev->queues = NULL;
    dev->pci = NULL;
}

static const struct device_ops virtio_device_ops = {
    .reset = virtio_device_reset,
    .quiet = virtio_device_quiet,
    .fini = virtio_device_fini,
};

int virtio_init(struct virtio_device *dev, const struct virtio_ops *ops,
                const struct virtio_env *env, const char *name, unsigned queue_count,
                unsigned queue_size, unsigned config_len, const struct state_table *type_table,
                void *type_state, struct err *err)
{
    if (queue_count == 0 || queue_count > VIRTIO_QUEUES_MAX || queue_size > VIRTQ_SIZE_MAX ||
        !is_power_of_two(queue_size) || config_len > DEVICE_CONFIG_MAX ||
        strlen(name) >= sizeof(dev->fn.dev.name))
        return err_set(err, EINVAL, "%s: %u queues of %u entries are not possible", name,
                       queue_count, queue_size);
    struct virtio_pci *pci = calloc(1, sizeof(*pci));
    struct virtq *queues = calloc(queue_count, sizeof(*queues));
    if (pci == NULL || queues == NULL) {
        free(pci);
        free(queues);
        return err_errno(err, ENOMEM, "%s: virtio device", name);
    }
    memset(dev, 0, sizeof(*dev));
    pci->env = *env;
    dev->ops = ops;
    dev->config_len = config_len;
    dev->queue_count = queue_count;
    dev->queues = queues;
    dev->mem = env->mem;
    dev->pci = pci;
    dev->type_table = type_table;
    dev->type_state = type_state;
    device_init(&dev->fn.dev, &virtio_device_ops, &virtio_pci_state_table, &pci->state, env->loop,
                "%s", name);
    if (type_table != NULL)
        state_reset(type_table, type_state);
    for (unsigned i = 0; i < queue_count; i++) {
        queues[i] = (struct virtq){
            .s = &pci->state.queues[i],
            .mem = env->mem,
            .index = (uint16_t)i,
            .size_max = (uint16_t)queue_size,
        };
        queue_to_default(&queues[i]);
    }
    return 0;
}
