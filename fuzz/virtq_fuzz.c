/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzer of virtqueues and the virtio PCI transport: the input is a hostile driver. Each operation
 * is one byte and its arguments; most arguments are reduced to sound values, so that inputs get
 * past the first check, and some bytes make them wild.
 *
 *     0 features size    reset, negotiate, lay out both queues, DRIVER_OK; features bit 4: with a
 *                        register write (as 4) before each queue is enabled
 *     1 queue n {kind off len}*n   make a chain of n descriptors available; kind: bit 0 writable,
 *                        bit 1 through an indirect table, bits 4-7 all set: wild address or length
 *     2 queue            serve a queue, as when the loop hears a kick
 *     3 area off n bytes write to ring memory
 *     4 reg value*4      write a register of the common configuration
 *     5                  hold requests back, or no longer
 *     6                  finish what is held
 *     7 what             0 queue reset, 1 device reset, 2 power-on
 *     8 off              read registers, through the BAR and through configuration space
 *     9 queue            pop and put back
 *
 * Checked: every chain popped lies in RAM, and outside of ROM where it is writable; its sums are
 * right; a queue has in flight what the device holds, never more than its size.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "dev/virtio/pci.h"
#include "dev/virtio/vtest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define QUEUES    2u
#define AREA      (256 * KIB) /* of each queue: rings, then tables, then buffers */
#define AREA_DESC 0u
#define AREA_DRV  (32 * KIB)
#define AREA_DEV  (48 * KIB)
#define AREA_TAB  (64 * KIB)
#define AREA_BUF  (128 * KIB)
#define BASE      MIB
#define ROM_BASE  0x80000000ULL

struct input {
    const uint8_t *p;
    size_t left;
};

/* The driver's idea of a queue. */
struct ring {
    unsigned size;
    uint16_t avail_idx;
    bool wrap;
};

static struct vtest vt;
static struct vtest_driver driver;
static struct vtest_echo *echo;
static bool packed;
static struct ring rings[QUEUES];

static uint8_t take(struct input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->p++;
}

static uint32_t take32(struct input *in)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < 4; i++)
        value |= (uint32_t)take(in) << (8 * i);
    return value;
}

static uint64_t area(unsigned queue, uint64_t part)
{
    return BASE + queue * AREA + part;
}

/* --- invariants --- */

static const struct mem_region *region_of(const struct iovec *iov)
{
    for (size_t i = 0; i < mem_region_count(vt.mem); i++) {
        const struct mem_region *region = mem_region_at(vt.mem, i);
        const uint8_t *start = iov->iov_base;
        if (start >= region->host && start < region->host + region->len_bytes &&
            iov->iov_len <= (size_t)(region->host + region->len_bytes - start))
            return region;
    }
    return NULL;
}

static void check_chain(struct vtest_echo *self, struct virtq *vq, const struct virtq_chain *chain)
{
    uint64_t out_len = 0, in_len = 0;
    (void)self;
    assert((uint64_t)chain->out_num + chain->in_num <= VIRTQ_IOV_MAX);
    for (uint32_t i = 0; i < chain->out_num + chain->in_num; i++) {
        const struct iovec *iov = &chain->iov[i];
        const struct mem_region *region = region_of(iov);
        assert(iov->iov_len != 0 && region != NULL);
        assert(i < chain->out_num || !region->read_only);
        *(i < chain->out_num ? &out_len : &in_len) += iov->iov_len;
    }
    assert(out_len == chain->out_len && in_len == chain->in_len);
    assert(out_len + in_len <= UINT32_MAX);
    assert(vq->in_flight <= vq->s->size && vq->s->enabled && !vq->s->broken);
    assert(chain->desc_count >= 1 && chain->desc_count <= vq->s->size);
}

static void check_queues(void)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        const struct virtq *vq = &echo->dev.queues[i];
        unsigned held = 0;
        for (unsigned j = 0; j < echo->held_count; j++)
            held += echo->held[j].vq == vq;
        assert(vq->in_flight == held);
        assert(!vq->s->enabled == (vq->desc == NULL));
    }
}

/* --- operations --- */

static void write_register(struct input *in)
{
    static const uint8_t sizes[] = {1, 2, 4, 8};
    uint8_t reg = take(in);
    vtest_write(&driver, &driver.common, reg & 0x3f, take32(in), sizes[reg >> 6]);
}

static void start(struct input *in)
{
    uint8_t bits = take(in), size = take(in);
    uint64_t features = 0;
    features |= bits & 1 ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0;
    features |= bits & 2 ? VIRTIO_BIT(VIRTIO_F_EVENT_IDX) : 0;
    features |= bits & 4 ? 0 : VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    features |= bits & 8 ? 0 : VIRTIO_BIT(VIRTIO_F_RING_RESET);
    vtest_echo_release(echo);
    if (!vtest_negotiate(&driver, features))
        return;
    packed = bits & 1;
    for (unsigned i = 0; i < QUEUES; i++) {
        memset(vtest_ram(&vt, area(i, 0), AREA_BUF), 0, AREA_BUF);
        vtest_write(&driver, &driver.common, VTEST_QUEUE_SELECT, i, 2);
        unsigned entries = packed ? 1 + size % 64u : 1u << (size % 7);
        rings[i] = (struct ring){.size = entries, .wrap = true};
        vtest_write(&driver, &driver.common, VTEST_QUEUE_SIZE, entries, 2);
        static const unsigned parts[][2] = {
            {VTEST_QUEUE_DESC,   AREA_DESC},
            {VTEST_QUEUE_DRIVER, AREA_DRV },
            {VTEST_QUEUE_DEVICE, AREA_DEV }
        };
        for (unsigned j = 0; j < ARRAY_LEN(parts); j++)
            vtest_write(&driver, &driver.common, parts[j][0], area(i, parts[j][1]), 8);
        if (bits & 16)
            write_register(in);
        vtest_write(&driver, &driver.common, VTEST_QUEUE_ENABLE, 1, 2);
    }
    vtest_driver_ok(&driver);
}

static void put(uint64_t gpa, uint64_t addr, uint32_t len, uint16_t word12, uint16_t word14)
{
    uint8_t *p = vtest_ram(&vt, gpa, 16);
    store_le64(p, addr);
    store_le32(p + 8, len);
    store_le16(p + 12, word12);
    store_le16(p + 14, word14);
}

/* n descriptors from index `at` of a table (wrapping at `size`), chained. */
static void put_chain(struct input *in, unsigned queue, uint64_t table, unsigned at, unsigned size,
                      unsigned n, bool in_ring, bool *indirect)
{
    struct ring *ring = &rings[queue];
    bool wrap = ring->wrap;
    for (unsigned i = 0; i < n; i++) {
        uint8_t kind = take(in);
        uint64_t addr = area(queue, AREA_BUF) + take(in) * 16u;
        uint32_t len = take(in);
        if (kind >> 4 == 15) {
            static const uint64_t wild[] = {0, VTEST_RAM_BYTES - 64, ROM_BASE, UINT64_MAX - 100};
            addr = wild[addr / 16 % 4];
            len <<= len % 32;
        }
        unsigned index = (at + i) % size;
        uint16_t flags = (kind & 1 ? 2 : 0) | (i + 1 < n ? 1 : 0);
        if (in_ring && (kind & 2)) {
            *indirect = true;
            flags = kind & 4 ? flags | 4 : 4;
            addr = area(queue, AREA_TAB);
            len = 16u * (1 + len % 40);
            n = i + 1; /* the rest goes into the table */
        }
        if (packed) {
            if (in_ring)
                flags |= wrap ? 0x80 : 0x8000;
            put(table + 16 * index, addr, len, (uint16_t)at, flags);
            if (in_ring && index + 1 == size)
                wrap = !wrap;
        } else {
            put(table + 16 * index, addr, len, flags, (uint16_t)((index + 1) % size));
        }
    }
    if (in_ring && packed) {
        ring->wrap = wrap;
        ring->avail_idx = (uint16_t)((at + n) % size);
    }
}

static void add(struct input *in)
{
    unsigned queue = take(in) % QUEUES, n = 1 + take(in) % 20;
    struct ring *ring = &rings[queue];
    bool indirect = false;
    if (ring->size == 0)
        return;
    if (n > ring->size)
        n = ring->size;
    unsigned head = ring->avail_idx % ring->size;
    put_chain(in, queue, area(queue, AREA_DESC), head, ring->size, n, true, &indirect);
    if (indirect)
        put_chain(in, queue, area(queue, AREA_TAB), 0, 40, 1 + take(in) % 40, false, &indirect);
    if (packed)
        return;
    store_le16(vtest_ram(&vt, area(queue, AREA_DRV) + 4 + 2 * head, 2), (uint16_t)head);
    store_le16(vtest_ram(&vt, area(queue, AREA_DRV) + 2, 2), ++ring->avail_idx);
}

static void serve(unsigned queue)
{
    struct virtio_device *dev = &echo->dev;
    device_lock(&dev->fn.dev);
    if (virtio_is_live(dev) && dev->queues[queue].s->enabled)
        dev->ops->queue_kick(dev, &dev->queues[queue]);
    device_unlock(&dev->fn.dev);
}

static void scribble(struct input *in)
{
    static const uint64_t parts[] = {AREA_DESC, AREA_DRV, AREA_DEV, AREA_TAB};
    unsigned where = take(in);
    uint64_t gpa = area(where / 4 % QUEUES, parts[where % 4]) + take(in) * 2u;
    unsigned n = take(in) % 32;
    uint8_t *p = vtest_ram(&vt, gpa, n + 1);
    for (unsigned i = 0; i < n; i++)
        p[i] = take(in);
}

static void reset(struct input *in)
{
    switch (take(in) % 3) {
    case 0:
        vtest_write(&driver, &driver.common, VTEST_QUEUE_RESET, 1, 2);
        break;
    case 1:
        vtest_write(&driver, &driver.common, VTEST_DEVICE_STATUS, 0, 1);
        break;
    default:
        device_reset(&echo->dev.fn.dev);
        vtest_attach(&driver, &vt, &echo->dev);
        break;
    }
}

static void read_registers(struct input *in)
{
    uint8_t off = take(in), cap = driver.pci_cfg.cap;
    uint32_t len = take(in);
    vtest_read(&driver, &driver.common, off % 0x40, 4);
    vtest_read(&driver, &driver.config, off % 0x40, 1u << len % 4);
    vtest_read(&driver, &driver.isr, 0, 1);
    vtest_pci_write(&vt, driver.devfn, cap + 4u, take(in) % 8, 1);
    vtest_pci_write(&vt, driver.devfn, cap + 8u, off * 0x40u, 4);
    vtest_pci_write(&vt, driver.devfn, cap + 12u, len % 9, 4);
    vtest_pci_read(&vt, driver.devfn, cap + 16u, 4);
    vtest_pci_write(&vt, driver.devfn, cap + 16u, len, 4);
}

static void unpop(unsigned queue)
{
    static struct iovec iov[2][VIRTQ_IOV_MAX];
    struct virtq_chain chain, again;
    struct virtio_device *dev = &echo->dev;
    struct virtq *vq = &dev->queues[queue];
    device_lock(&dev->fn.dev);
    if (virtio_is_live(dev) && virtq_pop(vq, &chain, iov[0], VIRTQ_IOV_MAX) == 1) {
        virtq_unpop(vq, &chain);
        int rc = virtq_pop(vq, &again, iov[1], VIRTQ_IOV_MAX);
        assert(rc == 1 && again.id == chain.id && again.out_len == chain.out_len &&
               again.in_len == chain.in_len && again.desc_count == chain.desc_count);
        virtq_unpop(vq, &again);
    }
    device_unlock(&dev->fn.dev);
}

static void set_up(void)
{
    struct err err = ERR_INIT;
    log_configure("error", &err);
    vtest_init(&vt);
    if (mem_add_rom(vt.mem, "rom", GPA(ROM_BASE), 64 * KIB, &err) < 0)
        abort();
    echo = vtest_echo_new(&vt, QUEUES, 64);
    echo->popped = check_chain;
    echo->copy_max = 64 * KIB;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct input in = {.p = data, .left = len};
    if (echo == NULL)
        set_up();
    vtest_echo_release(echo);
    echo->hold = false;
    device_reset(&echo->dev.fn.dev);
    vtest_attach(&driver, &vt, &echo->dev);
    memset(vtest_ram(&vt, BASE, QUEUES * AREA), 0, QUEUES * AREA);
    memset(rings, 0, sizeof(rings));
    for (unsigned ops = 0; in.left != 0 && ops < 200; ops++) {
        switch (take(&in) % 10) {
        case 0:
            start(&in);
            break;
        case 1:
            add(&in);
            break;
        case 2:
            serve(take(&in) % QUEUES);
            break;
        case 3:
            scribble(&in);
            break;
        case 4:
            write_register(&in);
            break;
        case 5:
            echo->hold = !echo->hold;
            break;
        case 6:
            vtest_echo_release(echo);
            break;
        case 7:
            reset(&in);
            break;
        case 8:
            read_registers(&in);
            break;
        default:
            unpop(take(&in) % QUEUES);
            break;
        }
        check_queues();
    }
    return 0;
}
