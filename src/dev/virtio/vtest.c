/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/vtest.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "engine/fake/fake.h"

#define DESC_F_NEXT     1
#define DESC_F_WRITE    2
#define DESC_F_INDIRECT 4
#define DESC_F_AVAIL    (1u << 7)
#define DESC_F_USED     (1u << 15)

static void must(bool cond, const char *what)
{
    if (!cond) {
        printf("Bail out! vtest: %s\n", what);
        fflush(stdout);
        abort();
    }
}

/* --- the machine --- */

static void on_pirq(void *ctx, unsigned pirq, bool level)
{
    struct vtest *t = ctx;
    t->pirq[pirq % ARRAY_LEN(t->pirq)] = level;
}

/* vtest_msix_enable() gives each vector the data slot << 8 | vector. */
static void on_engine_event(void *ctx, const struct fake_event *event)
{
    struct vtest *t = ctx;
    unsigned slot = event->data >> 8, vector = event->data & 0xff;
    if (event->kind == FAKE_MSI && slot < PCI_SLOT_COUNT && vector < VTEST_VECTORS_MAX)
        __atomic_fetch_add(&t->msi_count[slot][vector], 1, __ATOMIC_SEQ_CST);
}

void vtest_init(struct vtest *t)
{
    struct err err = ERR_INIT;
    struct mem_options options = {0};
    memset(t, 0, sizeof(*t));
    must(mem_new(&t->mem, &options, &err) == 0, err.text);
    must(mem_add_ram(t->mem, "ram-low", GPA(0), VTEST_RAM_BYTES, &err) == 0, err.text);
    must(bus_new(&t->bus, &err) == 0, err.text);
    struct engine_vm_config config = {
        .vcpu_count = 1,
        .upcalls = &bus_upcalls,
        .upcall_ctx = t->bus,
    };
    must(engine_fake.vm_new(&t->engine, &config, &err) == 0, err.text);
    fake_set_hook(t->engine, on_engine_event, t);
    must(loop_new(&t->loop, 0, &err) == 0, err.text);
    irq_router_init(&t->irq, t->engine);
    struct pci_bus_config pci = {
        .bus = t->bus,
        .irq = &t->irq,
        .loop = t->loop,
        .pirq_set = on_pirq,
        .pirq_ctx = t,
    };
    must(pci_bus_new(&t->pci, &pci, &err) == 0, err.text);
    t->env = (struct virtio_env){
        .mem = t->mem,
        .pci = t->pci,
        .irq = &t->irq,
        .engine = t->engine,
        .loop = t->loop,
    };
    t->next_gpa = MIB;
}

void vtest_fini(struct vtest *t)
{
    pci_bus_free(t->pci);
    irq_router_fini(&t->irq);
    loop_free(t->loop);
    t->engine->ops->vm_free(t->engine);
    bus_free(t->bus);
    mem_free(t->mem);
}

uint64_t vtest_alloc(struct vtest *t, uint64_t len, uint64_t align)
{
    uint64_t gpa = align_up(t->next_gpa, align < 64 ? 64 : align);
    must(range_fits(gpa, len, VTEST_RAM_BYTES), "out of guest RAM");
    t->next_gpa = gpa + len;
    if (len != 0)
        mem_zero(t->mem, GPA(gpa), len);
    return gpa;
}

void *vtest_ram(struct vtest *t, uint64_t gpa, uint64_t len)
{
    void *p = mem_ptr(t->mem, GPA(gpa), len, MEM_READ);
    must(p != NULL, "vtest_ram: not in RAM");
    return p;
}

struct run {
    struct loop_timer timer;
    struct vtest *t;
    bool (*done)(void *arg);
    void *arg;
    uint64_t end_ns;
    bool result;
};

static void on_run_timer(struct loop_timer *timer)
{
    struct run *run = CONTAINER_OF(timer, struct run, timer);
    uint64_t now = clock_now_ns();
    run->result = run->done != NULL && run->done(run->arg);
    if (run->result || now >= run->end_ns)
        loop_stop(run->t->loop);
    else
        loop_timer_arm(run->t->loop, timer, now + 100 * NS_PER_US);
}

static bool run_for(struct vtest *t, bool (*done)(void *arg), void *arg, uint64_t ns)
{
    struct run run = {.t = t, .done = done, .arg = arg, .end_ns = clock_now_ns() + ns};
    loop_timer_init(&run.timer, on_run_timer);
    loop_timer_arm(t->loop, &run.timer, 0);
    loop_run(t->loop);
    loop_timer_cancel(t->loop, &run.timer);
    return run.result;
}

bool vtest_run(struct vtest *t, bool (*done)(void *arg), void *arg)
{
    return run_for(t, done, arg, VTEST_TIMEOUT_NS);
}

void vtest_settle(struct vtest *t)
{
    run_for(t, NULL, NULL, 5 * NS_PER_MS);
}

/* --- registers --- */

uint32_t vtest_pci_read(struct vtest *t, uint8_t devfn, unsigned offset, unsigned size)
{
    bus_write(t->bus, BUS_PIO, 0xcf8, 0x80000000u | (uint32_t)devfn << 8 | (offset & 0xfc), 4);
    return (uint32_t)bus_read(t->bus, BUS_PIO, 0xcfc + (offset & 3), size);
}

void vtest_pci_write(struct vtest *t, uint8_t devfn, unsigned offset, uint32_t value, unsigned size)
{
    bus_write(t->bus, BUS_PIO, 0xcf8, 0x80000000u | (uint32_t)devfn << 8 | (offset & 0xfc), 4);
    bus_write(t->bus, BUS_PIO, 0xcfc + (offset & 3), value, size);
}

uint64_t vtest_read(struct vtest_driver *d, const struct vtest_window *window, uint32_t offset,
                    unsigned size)
{
    return bus_read(d->t->bus, window->space, window->addr + offset, size);
}

void vtest_write(struct vtest_driver *d, const struct vtest_window *window, uint32_t offset,
                 uint64_t value, unsigned size)
{
    bus_write(d->t->bus, window->space, window->addr + offset, value, size);
}

uint8_t vtest_status(struct vtest_driver *d)
{
    return (uint8_t)vtest_read(d, &d->common, VTEST_DEVICE_STATUS, 1);
}

static void set_status(struct vtest_driver *d, uint8_t status)
{
    vtest_write(d, &d->common, VTEST_DEVICE_STATUS, status, 1);
}

uint64_t vtest_config(struct vtest_driver *d, uint32_t offset, unsigned size)
{
    return vtest_read(d, &d->config, offset, size);
}

/* --- discovery --- */

static uint64_t bar_address(struct vtest_driver *d, unsigned bar, enum bus_space *space)
{
    uint32_t low = vtest_pci_read(d->t, d->devfn, 0x10 + 4 * bar, 4);
    if (low & 1) {
        *space = BUS_PIO;
        return low & ~3u;
    }
    *space = BUS_MMIO;
    uint64_t addr = low & ~15u;
    if ((low & 6) == 4)
        addr |= (uint64_t)vtest_pci_read(d->t, d->devfn, 0x14 + 4 * bar, 4) << 32;
    return addr;
}

static struct vtest_window read_window(struct vtest_driver *d, unsigned cap)
{
    struct vtest_window w = {.cap = (uint8_t)cap};
    w.bar = (uint8_t)vtest_pci_read(d->t, d->devfn, cap + 4, 1);
    w.offset = vtest_pci_read(d->t, d->devfn, cap + 8, 4);
    w.len = vtest_pci_read(d->t, d->devfn, cap + 12, 4);
    if (w.bar < PCI_BAR_COUNT)
        w.addr = bar_address(d, w.bar, &w.space) + w.offset;
    return w;
}

static void read_virtio_cap(struct vtest_driver *d, unsigned cap)
{
    struct vtest_window w = read_window(d, cap);
    struct vtest_window *slot = NULL;
    switch (vtest_pci_read(d->t, d->devfn, cap + 3, 1)) {
    case 1:
        slot = &d->common;
        break;
    case 2:
        w.multiplier = vtest_pci_read(d->t, d->devfn, cap + 16, 4);
        if (w.space == BUS_MMIO && d->notify_mem.cap == 0)
            d->notify_mem = w;
        slot = &d->notify;
        break;
    case 3:
        slot = &d->isr;
        break;
    case 4:
        slot = &d->config;
        break;
    case 5:
        slot = &d->pci_cfg;
        break;
    default:
        break;
    }
    if (slot != NULL && slot->cap == 0) /* the first of a type is the preferred one */
        *slot = w;
}

void vtest_attach(struct vtest_driver *d, struct vtest *t, struct virtio_device *dev)
{
    struct err err = ERR_INIT;
    struct pci_windows windows = {
        .io_base = 0x6000,
        .io_len = 0xa000,
        .mem32_base = 0xc0000000,
        .mem32_len = 0x10000000,
        .mem64_base = 0x800000000,
        .mem64_len = 0x800000000,
    };
    must(pci_bus_assign(t->pci, &windows, &err) == 0, err.text);
    memset(d, 0, sizeof(*d));
    d->t = t;
    d->dev = dev;
    d->devfn = dev->fn.devfn;
    uint32_t command = vtest_pci_read(t, d->devfn, 4, 2);
    vtest_pci_write(t, d->devfn, 4, command | 7, 2);

    unsigned cap = vtest_pci_read(t, d->devfn, 0x34, 1);
    for (unsigned i = 0; cap != 0 && i < 48; i++) {
        unsigned id = vtest_pci_read(t, d->devfn, cap, 1);
        if (id == 0x09) {
            read_virtio_cap(d, cap);
        } else if (id == 0x11) {
            uint32_t table = vtest_pci_read(t, d->devfn, cap + 4, 4);
            d->msix_cap = (uint8_t)cap;
            d->msix_bar = table & 7;
            d->msix_offset = table & ~7u;
            d->msix_vectors = (vtest_pci_read(t, d->devfn, cap + 2, 2) & 0x7ff) + 1;
        }
        cap = vtest_pci_read(t, d->devfn, cap + 1, 1);
    }
    must(d->common.cap && d->isr.cap && d->notify.cap, "a virtio capability is missing");
}

uint64_t vtest_features(struct vtest_driver *d)
{
    uint64_t features = 0;
    for (unsigned i = 0; i < 2; i++) {
        vtest_write(d, &d->common, VTEST_DEVICE_FEATURE_SELECT, i, 4);
        features |= vtest_read(d, &d->common, VTEST_DEVICE_FEATURE, 4) << (32 * i);
    }
    return features;
}

static bool is_reset(void *arg)
{
    return vtest_status(arg) == 0;
}

bool vtest_reset(struct vtest_driver *d)
{
    set_status(d, 0);
    return vtest_status(d) == 0 || vtest_run(d->t, is_reset, d);
}

bool vtest_negotiate(struct vtest_driver *d, uint64_t features)
{
    if (!vtest_reset(d))
        return false;
    set_status(d, 1);
    set_status(d, 1 | 2);
    features |= VIRTIO_BIT(VIRTIO_F_VERSION_1);
    for (unsigned i = 0; i < 2; i++) {
        vtest_write(d, &d->common, VTEST_DRIVER_FEATURE_SELECT, i, 4);
        vtest_write(d, &d->common, VTEST_DRIVER_FEATURE, (uint32_t)(features >> (32 * i)), 4);
    }
    set_status(d, 1 | 2 | 8);
    if ((vtest_status(d) & 8) == 0)
        return false;
    d->features = features;
    return true;
}

void vtest_msix_enable(struct vtest_driver *d)
{
    must(d->msix_cap != 0, "no MSI-X capability");
    vtest_pci_write(d->t, d->devfn, d->msix_cap + 2, 0x8000, 2);
    struct vtest_window table = {.len = 16};
    table.addr = bar_address(d, d->msix_bar, &table.space) + d->msix_offset;
    for (unsigned i = 0; i < d->msix_vectors; i++) {
        vtest_write(d, &table, 16 * i, 0xfee00000, 4);
        vtest_write(d, &table, 16 * i + 4, 0, 4);
        vtest_write(d, &table, 16 * i + 8, (uint32_t)(d->devfn >> 3) << 8 | i, 4);
        vtest_write(d, &table, 16 * i + 12, 0, 4);
    }
    vtest_write(d, &d->common, VTEST_CONFIG_MSIX_VECTOR, 0, 2);
}

static bool msix_is_on(struct vtest_driver *d)
{
    return d->msix_cap != 0 && (vtest_pci_read(d->t, d->devfn, d->msix_cap + 2, 2) & 0x8000);
}

static void write_gpa(struct vtest_driver *d, uint32_t offset, uint64_t gpa)
{
    vtest_write(d, &d->common, offset, (uint32_t)gpa, 4);
    vtest_write(d, &d->common, offset + 4, gpa >> 32, 4);
}

static void queue_init(struct vtest_driver *d, unsigned index)
{
    must(index < VTEST_QUEUES_MAX, "queue index");
    struct vtest_queue *q = &d->queues[index];
    memset(q, 0, sizeof(*q));
    q->d = d;
    q->index = index;
    q->packed = d->features & VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    q->event_idx = d->features & VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    q->avail_wrap = q->used_wrap = q->kicked_wrap = true;
}

void vtest_queue_layout(struct vtest_driver *d, unsigned index, unsigned size)
{
    struct vtest_queue *q = &d->queues[index];
    queue_init(d, index);
    must(size <= VIRTQ_SIZE_MAX, "queue size");
    q->size = q->free_descs = q->id_count = size;
    q->desc = vtest_alloc(d->t, 16 * size, 4096);
    q->driver = vtest_alloc(d->t, q->packed ? 4 : 6 + 2 * size, 64);
    q->device = vtest_alloc(d->t, q->packed ? 4 : 6 + 8 * size, 64);
    for (unsigned i = 0; i < size; i++)
        q->free_ids[i] = (uint16_t)(size - 1 - i);
}

bool vtest_queue_start(struct vtest_driver *d, unsigned index, unsigned size)
{
    struct vtest_queue *q = &d->queues[index];
    vtest_write(d, &d->common, VTEST_QUEUE_SELECT, index, 2);
    if (size != 0)
        vtest_write(d, &d->common, VTEST_QUEUE_SIZE, size, 2);
    size = (unsigned)vtest_read(d, &d->common, VTEST_QUEUE_SIZE, 2);
    if (size == 0)
        return false;
    vtest_queue_layout(d, index, size);
    if (msix_is_on(d))
        vtest_write(d, &d->common, VTEST_QUEUE_MSIX_VECTOR, index + 1, 2);
    write_gpa(d, VTEST_QUEUE_DESC, q->desc);
    write_gpa(d, VTEST_QUEUE_DRIVER, q->driver);
    write_gpa(d, VTEST_QUEUE_DEVICE, q->device);
    q->notify_off = (uint16_t)vtest_read(d, &d->common, VTEST_QUEUE_NOTIFY_OFF, 2);
    vtest_write(d, &d->common, VTEST_QUEUE_ENABLE, 1, 2);
    return vtest_read(d, &d->common, VTEST_QUEUE_ENABLE, 2) == 1;
}

void vtest_driver_ok(struct vtest_driver *d)
{
    set_status(d, 1 | 2 | 8 | 4);
}

bool vtest_start(struct vtest_driver *d, uint64_t features, unsigned queue_count)
{
    if (!vtest_negotiate(d, features))
        return false;
    vtest_msix_enable(d);
    for (unsigned i = 0; i < queue_count; i++) {
        if (!vtest_queue_start(d, i, 0))
            return false;
    }
    vtest_driver_ok(d);
    return (vtest_status(d) & (4 | VTEST_STATUS_RESET)) == 4;
}

unsigned vtest_interrupts(const struct vtest_queue *q)
{
    return __atomic_load_n(&q->d->t->msi_count[q->d->devfn >> 3][q->index + 1], __ATOMIC_SEQ_CST);
}

unsigned vtest_config_interrupts(const struct vtest_driver *d)
{
    return __atomic_load_n(&d->t->msi_count[d->devfn >> 3][0], __ATOMIC_SEQ_CST);
}

/* --- rings --- */

static uint16_t ring_load16(struct vtest_queue *q, uint64_t gpa)
{
    return __atomic_load_n((uint16_t *)vtest_ram(q->d->t, gpa, 2), __ATOMIC_SEQ_CST);
}

static void ring_store16(struct vtest_queue *q, uint64_t gpa, uint16_t value)
{
    __atomic_store_n((uint16_t *)vtest_ram(q->d->t, gpa, 2), value, __ATOMIC_SEQ_CST);
}

/* Both formats hold address and length alike; words is how many of the two 16-bit ones behind them
 * are written: flags, next (split) or id, flags (packed). */
static void put_desc(struct vtest_queue *q, uint64_t gpa, const struct vtest_seg *seg,
                     uint16_t word12, uint16_t word14, unsigned words)
{
    uint8_t *p = vtest_ram(q->d->t, gpa, 16);
    store_le64(p, seg->gpa);
    store_le32(p + 8, seg->len);
    store_le16(p + 12, word12);
    if (words == 2)
        store_le16(p + 14, word14);
}

static struct vtest_seg make_indirect(struct vtest_queue *q, const struct vtest_seg *segs,
                                      unsigned count)
{
    uint64_t table = vtest_alloc(q->d->t, 16 * count, 64);
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = segs[i].write ? DESC_F_WRITE : 0;
        if (q->packed) {
            put_desc(q, table + 16 * i, &segs[i], 0, flags, 2);
        } else {
            flags |= i + 1 < count ? DESC_F_NEXT : 0;
            put_desc(q, table + 16 * i, &segs[i], flags, (uint16_t)(i + 1), 2);
        }
    }
    return (struct vtest_seg){.gpa = table, .len = 16 * count};
}

static int add_split(struct vtest_queue *q, const struct vtest_seg *segs, unsigned count,
                     uint16_t extra)
{
    uint16_t head = q->free_ids[q->id_count - 1];
    uint16_t id = head;
    for (unsigned i = 0; i < count; i++) {
        bool last = i + 1 == count;
        uint16_t next = last ? 0 : q->free_ids[q->id_count - 2 - i];
        uint16_t flags = extra | (segs[i].write ? DESC_F_WRITE : 0) | (last ? 0 : DESC_F_NEXT);
        put_desc(q, q->desc + 16 * id, &segs[i], flags, next, 2);
        q->chain_next[id] = next;
        id = next;
    }
    q->id_count -= count;
    q->free_descs -= count;
    q->chain_len[head] = (uint16_t)count;
    ring_store16(q, q->driver + 4 + 2 * (q->avail_idx % q->size), head);
    ring_store16(q, q->driver + 2, ++q->avail_idx);
    return head;
}

static int add_packed(struct vtest_queue *q, const struct vtest_seg *segs, unsigned count,
                      uint16_t extra)
{
    uint16_t id = q->free_ids[--q->id_count];
    uint16_t first = q->avail_idx, first_flags = 0;
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = extra | (segs[i].write ? DESC_F_WRITE : 0) |
                         (i + 1 < count ? DESC_F_NEXT : 0) |
                         (q->avail_wrap ? DESC_F_AVAIL : DESC_F_USED);
        uint64_t gpa = q->desc + 16 * q->avail_idx;
        if (i == 0)
            first_flags = flags;
        put_desc(q, gpa, &segs[i], id, flags, i == 0 ? 1 : 2); /* the first's flags come last */
        if (++q->avail_idx == q->size) {
            q->avail_idx = 0;
            q->avail_wrap = !q->avail_wrap;
        }
    }
    q->free_descs -= count;
    q->chain_len[id] = (uint16_t)count;
    ring_store16(q, q->desc + 16 * first + 14, first_flags);
    return id;
}

int vtest_add(struct vtest_queue *q, const struct vtest_seg *segs, unsigned count)
{
    unsigned descs = q->indirect ? 1 : count;
    if (count == 0 || q->free_descs < descs || q->id_count == 0)
        return -1;
    struct vtest_seg table;
    uint16_t extra = 0;
    if (q->indirect) {
        table = make_indirect(q, segs, count);
        segs = &table;
        extra = DESC_F_INDIRECT;
    }
    return q->packed ? add_packed(q, segs, descs, extra) : add_split(q, segs, descs, extra);
}

bool vtest_kick_wanted(struct vtest_queue *q)
{
    uint16_t new = q->avail_idx, old = q->kicked_idx, event;
    bool old_wrap = q->kicked_wrap;
    q->kicked_idx = q->avail_idx;
    q->kicked_wrap = q->avail_wrap;
    if (!q->packed && !q->event_idx)
        return !(ring_load16(q, q->device) & 1);
    if (!q->packed) {
        event = ring_load16(q, q->device + 4 + 8 * q->size);
    } else {
        uint16_t flags = ring_load16(q, q->device + 2);
        if (flags != 2)
            return flags != 1;
        uint16_t desc = ring_load16(q, q->device);
        event = desc & 0x7fff;
        if ((desc >> 15) != q->avail_wrap)
            event -= q->size;
        if (old_wrap != q->avail_wrap)
            old -= q->size;
    }
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

void vtest_kick(struct vtest_queue *q)
{
    struct vtest_driver *d = q->d;
    uint32_t offset = q->notify_off * d->notify.multiplier;
    q->kicked_idx = q->avail_idx;
    q->kicked_wrap = q->avail_wrap;
    enum engine_space space = d->notify.space == BUS_PIO ? ENGINE_SPACE_PIO : ENGINE_SPACE_MMIO;
    if (!fake_ioeventfd_fire(d->t->engine, space, d->notify.addr + offset, 2))
        vtest_write(d, &d->notify, offset, q->index, 2);
}

static void free_chain(struct vtest_queue *q, uint16_t id)
{
    unsigned count = q->chain_len[id];
    must(id < q->size && count != 0, "the device returned a chain that it did not have");
    q->chain_len[id] = 0;
    q->free_descs += count;
    if (q->packed) {
        q->free_ids[q->id_count++] = id;
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        q->free_ids[q->id_count++] = id;
        id = q->chain_next[id];
    }
}

bool vtest_used(struct vtest_queue *q, struct vtest_used *used)
{
    const uint8_t *p;
    if (!q->packed) {
        if (ring_load16(q, q->device + 2) == q->used_idx)
            return false;
        p = vtest_ram(q->d->t, q->device + 4 + 8 * (q->used_idx % q->size), 8);
        *used = (struct vtest_used){.id = (uint16_t)load_le32(p), .len = load_le32(p + 4)};
        must(load_le32(p) < q->size, "used id out of range");
        q->used_idx++;
    } else {
        uint16_t flags = ring_load16(q, q->desc + 16 * q->used_idx + 14);
        bool avail_bit = flags & DESC_F_AVAIL, used_bit = flags & DESC_F_USED;
        if (avail_bit != q->used_wrap || used_bit != q->used_wrap)
            return false;
        p = vtest_ram(q->d->t, q->desc + 16 * q->used_idx, 16);
        *used = (struct vtest_used){.id = load_le16(p + 12), .len = load_le32(p + 8)};
        must(used->id < q->size, "used id out of range");
        q->used_idx += q->chain_len[used->id];
        if (q->used_idx >= q->size) {
            q->used_idx -= q->size;
            q->used_wrap = !q->used_wrap;
        }
    }
    free_chain(q, used->id);
    return true;
}

struct wait {
    struct vtest_queue *q;
    struct vtest_used *used;
};

static bool is_used(void *arg)
{
    struct wait *wait = arg;
    return vtest_used(wait->q, wait->used);
}

bool vtest_wait(struct vtest_queue *q, struct vtest_used *used)
{
    struct wait wait = {.q = q, .used = used};
    return vtest_run(q->d->t, is_used, &wait);
}

long vtest_request(struct vtest_queue *q, const void *out, uint32_t out_len, void *in,
                   uint32_t in_len)
{
    struct vtest *t = q->d->t;
    uint64_t mark = t->next_gpa;
    struct vtest_seg segs[2];
    unsigned count = 0;
    uint64_t in_gpa = 0;
    if (out_len != 0) {
        segs[count] = (struct vtest_seg){.gpa = vtest_alloc(t, out_len, 64), .len = out_len};
        memcpy(vtest_ram(t, segs[count].gpa, out_len), out, out_len);
        count++;
    }
    if (in_len != 0) {
        in_gpa = vtest_alloc(t, in_len, 64);
        segs[count++] = (struct vtest_seg){.gpa = in_gpa, .len = in_len, .write = true};
    }
    struct vtest_used used;
    int id = vtest_add(q, segs, count);
    must(id >= 0, "vtest_request: ring full");
    vtest_kick(q);
    if (!vtest_wait(q, &used))
        return -1;
    must(used.id == id, "vtest_request: another chain came back");
    if (in_len != 0)
        memcpy(in, vtest_ram(t, in_gpa, in_len), in_len);
    t->next_gpa = mark;
    return used.len;
}

void vtest_enable_interrupts(struct vtest_queue *q)
{
    if (q->packed && q->event_idx) {
        ring_store16(q, q->driver, (uint16_t)(q->used_idx | q->used_wrap << 15));
        ring_store16(q, q->driver + 2, 2);
    } else if (q->packed) {
        ring_store16(q, q->driver + 2, 0);
    } else if (q->event_idx) {
        ring_store16(q, q->driver + 4 + 2 * q->size, q->used_idx);
    } else {
        ring_store16(q, q->driver, 0);
    }
}

void vtest_disable_interrupts(struct vtest_queue *q)
{
    if (q->packed)
        ring_store16(q, q->driver + 2, 1);
    else if (!q->event_idx)
        ring_store16(q, q->driver, 1);
}

/* --- the echo device --- */

static struct vtest_echo *to_echo(struct virtio_device *dev)
{
    return CONTAINER_OF(dev, struct vtest_echo, dev);
}

static void echo_finish(struct vtest_echo *echo, struct virtq *vq, const struct virtq_chain *chain)
{
    uint8_t buf[512];
    size_t done = 0, n;
    do {
        n = virtq_chain_read(chain, done, buf, sizeof(buf));
        n = virtq_chain_write(chain, done, buf, n);
        done += n;
    } while (n == sizeof(buf) && (echo->copy_max == 0 || done < echo->copy_max));
    virtq_push(vq, chain, (uint32_t)done);
    virtio_queue_notify(&echo->dev, vq);
}

static void echo_queue_kick(struct virtio_device *dev, struct virtq *vq)
{
    struct vtest_echo *echo = to_echo(dev);
    echo->kicks++;
    bool more = true;
    virtq_disable_kick(vq);
    for (unsigned n = 0; more && n < 2 * VIRTQ_SIZE_MAX; n++) {
        struct virtq_chain chain;
        bool hold = echo->hold && echo->held_count < VTEST_ECHO_HELD_MAX;
        struct vtest_echo_held *held = &echo->held[hold ? echo->held_count : 0];
        int rc = virtq_pop(vq, &chain, hold ? held->iov : echo->iov, VIRTQ_IOV_MAX);
        if (rc < 0) {
            virtio_needs_reset(dev, "echo request");
            return;
        }
        if (rc == 0) {
            more = virtq_enable_kick(vq);
            continue;
        }
        echo->chains++;
        if (echo->popped != NULL)
            echo->popped(echo, vq, &chain);
        if (hold) {
            held->vq = vq;
            held->chain = chain;
            echo->held_count++;
        } else {
            echo_finish(echo, vq, &chain);
        }
    }
}

static bool echo_holds(const struct vtest_echo *echo, const struct virtq *vq)
{
    for (unsigned i = 0; i < echo->held_count; i++) {
        if (vq == NULL || echo->held[i].vq == vq)
            return true;
    }
    return false;
}

static bool echo_reset(struct virtio_device *dev, struct virtq *vq)
{
    struct vtest_echo *echo = to_echo(dev);
    echo->resets++;
    if (!echo_holds(echo, vq))
        return true;
    if (vq == NULL)
        echo->resetting = true;
    else
        echo->resetting_vq = vq;
    return false;
}

void vtest_echo_release(struct vtest_echo *echo)
{
    device_lock(&echo->dev.fn.dev);
    while (echo->held_count != 0) {
        struct vtest_echo_held *held = &echo->held[--echo->held_count];
        echo_finish(echo, held->vq, &held->chain);
    }
    if (echo->resetting_vq != NULL)
        virtio_reset_done(&echo->dev, echo->resetting_vq);
    if (echo->resetting)
        virtio_reset_done(&echo->dev, NULL);
    echo->resetting_vq = NULL;
    echo->resetting = false;
    device_unlock(&echo->dev.fn.dev);
}

static void echo_driver_ok(struct virtio_device *dev)
{
    to_echo(dev)->driver_oks++;
}

static void echo_power_on(struct virtio_device *dev)
{
    to_echo(dev)->power_ons++;
}

static void echo_config_read(struct virtio_device *dev, unsigned offset, void *buf, unsigned size)
{
    must(range_fits(offset, size, VTEST_ECHO_CONFIG_BYTES), "configuration read out of bounds");
    memcpy(buf, to_echo(dev)->config + offset, size);
}

static void echo_config_write(struct virtio_device *dev, unsigned offset, const void *buf,
                              unsigned size)
{
    must(range_fits(offset, size, VTEST_ECHO_CONFIG_BYTES), "configuration write out of bounds");
    memcpy(to_echo(dev)->config + offset, buf, size);
}

static void echo_fini(struct virtio_device *dev)
{
    free(to_echo(dev));
}

static const struct virtio_ops echo_ops = {
    .device_id = 0x3f,
    .class_code = 0xff0000,
    .driver_ok = echo_driver_ok,
    .queue_kick = echo_queue_kick,
    .reset = echo_reset,
    .config_read = echo_config_read,
    .config_write = echo_config_write,
    .power_on = echo_power_on,
    .fini = echo_fini,
};

struct vtest_echo *vtest_echo_new(struct vtest *t, unsigned queue_count, unsigned queue_size)
{
    struct err err = ERR_INIT;
    struct vtest_echo *echo = calloc(1, sizeof(*echo));
    must(echo != NULL, "out of memory");
    must(virtio_init(&echo->dev, &echo_ops, &t->env, "echo", queue_count, queue_size,
                     VTEST_ECHO_CONFIG_BYTES, NULL, NULL, &err) == 0,
         err.text);
    must(virtio_pci_plug(&echo->dev, -1, &err) == 0, err.text);
    return echo;
}
