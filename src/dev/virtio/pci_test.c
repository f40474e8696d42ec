/* SPDX-License-Identifier: Apache-2.0 */
/* The PCI transport's registers, notifications and interrupts; named after sections of virtio 1.2.
 */
#include "dev/virtio/pci.h"

#include <stdlib.h>

#include "base/tap.h"
#include "base/units.h"
#include "dev/virtio/vtest.h"
#include "engine/fake/fake.h"

struct fixture {
    struct vtest t;
    struct vtest_driver d;
    struct vtest_echo *echo;
};

static struct fixture *set_up(void)
{
    struct fixture *f = calloc(1, sizeof(*f));
    vtest_init(&f->t);
    f->echo = vtest_echo_new(&f->t, 3, 64);
    vtest_attach(&f->d, &f->t, &f->echo->dev);
    return f;
}

static void tear_down(struct fixture *f)
{
    device_fini(&f->echo->dev.fn.dev);
    vtest_fini(&f->t);
    free(f);
}

static uint64_t rd(struct fixture *f, uint32_t offset, unsigned size)
{
    return vtest_read(&f->d, &f->d.common, offset, size);
}

static void wr(struct fixture *f, uint32_t offset, uint64_t value, unsigned size)
{
    vtest_write(&f->d, &f->d.common, offset, value, size);
}

static uint32_t pci_rd(struct fixture *f, unsigned offset, unsigned size)
{
    return vtest_pci_read(&f->t, f->d.devfn, offset, size);
}

static void pci_wr(struct fixture *f, unsigned offset, uint32_t value, unsigned size)
{
    vtest_pci_write(&f->t, f->d.devfn, offset, value, size);
}

static void test_identity(void)
{
    struct fixture *f = set_up();
    is_int(pci_rd(f, 0, 2), 0x1af4, "4.1.2: vendor");
    is_int(pci_rd(f, 2, 2), 0x1040 + 0x3f, "4.1.2: device id is 0x1040 + the virtio device id");
    is_int(pci_rd(f, 8, 1), 1, "4.1.2.1: revision 1");
    ok(pci_rd(f, 0x2e, 2) >= 0x40, "4.1.2.1: subsystem id 0x40 or higher");
    is_int(pci_rd(f, 0x3d, 1), 1, "INTA");
    is_int(f->d.notify.space, BUS_PIO, "the first notification structure is in I/O space");
    is_int(f->d.notify.multiplier, 2, "4.1.4.4: with 2 bytes a queue");
    ok(f->d.notify_mem.cap > f->d.notify.cap && f->d.notify_mem.multiplier == 4,
       "4.1.4.4: the second in memory");
    is_int(f->d.notify.len, 6, "4.1.4.4.1: room for every queue");
    is_int(f->d.config.len, VTEST_ECHO_CONFIG_BYTES, "4.1.4.6: device configuration");
    ok(f->d.pci_cfg.cap != 0, "4.1.4.9: PCI configuration access");
    is_int(f->d.msix_vectors, 4, "MSI-X: a vector a queue and one more");
    tear_down(f);
}

static void test_common(void)
{
    struct fixture *f = set_up();
    vtest_negotiate(&f->d, 0);
    is_int(rd(f, VTEST_NUM_QUEUES, 2), 3, "4.1.4.3: num_queues");
    wr(f, VTEST_QUEUE_SELECT, 2, 2);
    is_int(rd(f, VTEST_QUEUE_SIZE, 2), 64, "queue_size: the maximum");
    is_int(rd(f, VTEST_QUEUE_NOTIFY_OFF, 2), 2, "queue_notify_off");
    static const struct {
        unsigned write, read;
    } sizes[] = {
        {32,     32},
        {24,     32},
        {0,      32},
        {128,    32},
        {0x8000, 32},
        {1,      1 },
        {64,     64}
    };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        wr(f, VTEST_QUEUE_SIZE, sizes[i].write, 2);
        is_int(rd(f, VTEST_QUEUE_SIZE, 2), sizes[i].read, "4.1.4.3.2: queue_size, split");
    }
    wr(f, VTEST_QUEUE_MSIX_VECTOR, 3, 2);
    is_int(rd(f, VTEST_QUEUE_MSIX_VECTOR, 2), 3, "4.1.5.1.2: a vector is mapped");
    wr(f, VTEST_QUEUE_MSIX_VECTOR, 4, 2);
    is_int(rd(f, VTEST_QUEUE_MSIX_VECTOR, 2), 0xffff, "4.1.5.1.2.1: one that is not there is none");
    wr(f, VTEST_CONFIG_MSIX_VECTOR, 2, 2);
    is_int(rd(f, VTEST_CONFIG_MSIX_VECTOR, 2), 2, "likewise for the configuration");
    wr(f, VTEST_CONFIG_MSIX_VECTOR, 0xffff, 2);
    is_int(rd(f, VTEST_CONFIG_MSIX_VECTOR, 2), 0xffff, "and none");
    static const uint32_t areas[] = {VTEST_QUEUE_DESC, VTEST_QUEUE_DRIVER, VTEST_QUEUE_DEVICE};
    for (size_t i = 0; i < ARRAY_LEN(areas); i++) {
        wr(f, areas[i], 0x11223344 + i, 4);
        wr(f, areas[i] + 4, 0x55667788, 4);
        is_int(rd(f, areas[i], 4), 0x11223344 + i, "4.1.3.1: 64-bit fields in halves: low");
        is_int(rd(f, areas[i] + 4, 4), 0x55667788, "high");
        wr(f, areas[i], 0x1020304050607080 + i, 8);
        is_int(rd(f, areas[i], 8), 0x1020304050607080 + i, "or at once");
    }
    wr(f, VTEST_QUEUE_SIZE, 16, 4);
    wr(f, VTEST_QUEUE_SIZE, 16, 1);
    is_int(rd(f, VTEST_QUEUE_SIZE, 2), 64, "4.1.3.1: a write of the wrong width is ignored");
    is_int(rd(f, VTEST_QUEUE_NOTIFY_DATA, 2), 0, "queue_notify_data is not offered");
    is_int(rd(f, 0x3c, 4), 0, "nothing behind the structure");

    wr(f, VTEST_QUEUE_SELECT, 3, 2);
    is_int(rd(f, VTEST_QUEUE_SIZE, 2), 0, "4.1.4.3.1: a queue that is not there has size 0");
    wr(f, VTEST_QUEUE_ENABLE, 1, 2);
    wr(f, VTEST_QUEUE_SIZE, 2, 2);
    wr(f, VTEST_QUEUE_DESC, 4096, 4);
    wr(f, VTEST_QUEUE_MSIX_VECTOR, 1, 2);
    wr(f, VTEST_QUEUE_RESET, 1, 2);
    ok(rd(f, VTEST_QUEUE_ENABLE, 2) == 0 && rd(f, VTEST_QUEUE_DESC, 4) == 0, "and stays unset");
    ok(!(vtest_status(&f->d) & VTEST_STATUS_RESET), "without harm");

    vtest_negotiate(&f->d, VIRTIO_BIT(VIRTIO_F_RING_PACKED));
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    wr(f, VTEST_QUEUE_SIZE, 24, 2);
    is_int(rd(f, VTEST_QUEUE_SIZE, 2), 24, "2.8.10.1: packed: no power of two");
    ok(vtest_queue_start(&f->d, 0, 32), "enabled");
    wr(f, VTEST_QUEUE_SIZE, 8, 2);
    wr(f, VTEST_QUEUE_DESC, 0, 4);
    ok(rd(f, VTEST_QUEUE_SIZE, 2) == 32 && rd(f, VTEST_QUEUE_DESC, 4) != 0,
       "4.1.4.3.2: an enabled queue does not change");
    wr(f, VTEST_QUEUE_ENABLE, 0, 2);
    is_int(rd(f, VTEST_QUEUE_ENABLE, 2), 1, "4.1.4.3.2: 0 does not disable");
    vtest_reset(&f->d);
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    wr(f, VTEST_QUEUE_ENABLE, 1, 2);
    is_int(rd(f, VTEST_QUEUE_ENABLE, 2), 0, "3.1.1: not before FEATURES_OK");
    tear_down(f);
}

static void test_device_config(void)
{
    struct fixture *f = set_up();
    for (unsigned i = 0; i < VTEST_ECHO_CONFIG_BYTES; i++)
        f->echo->config[i] = (uint8_t)(i + 1);
    is_int(vtest_config(&f->d, 0, 1), 0x01, "4.1.4.6: 8 bits");
    is_int(vtest_config(&f->d, 2, 2), 0x0403, "16");
    is_int(vtest_config(&f->d, 4, 4), 0x08070605, "32");
    is_int(vtest_config(&f->d, 8, 8), 0x100f0e0d0c0b0a09, "64");
    is_int(vtest_config(&f->d, 20, 4), 0x1615, "0 behind the end");
    is_int(vtest_config(&f->d, 24, 4), 0, "and far behind");
    vtest_write(&f->d, &f->d.config, 20, 0xaabbccdd, 4);
    ok(f->echo->config[20] == 0xdd && f->echo->config[21] == 0xcc, "a write is cut at the end");
    vtest_write(&f->d, &f->d.config, 22, 0xaabb, 2);
    vtest_write(&f->d, &f->d.config, 1, 0x77, 1);
    is_int(f->echo->config[1], 0x77, "a byte is written");
    tear_down(f);
}

/* 4.1.4.5, 4.1.5.3, 4.1.5.4 */
static void test_intx(void)
{
    struct fixture *f = set_up();
    unsigned pirq = pci_slot_pirq(f->d.devfn >> 3, 1);
    uint32_t value = 1;
    vtest_negotiate(&f->d, 0);
    vtest_queue_start(&f->d, 0, 0);
    vtest_driver_ok(&f->d);
    ok(vtest_request(&f->d.queues[0], &value, 4, &value, 4) == 4, "a request without MSI-X");
    ok(f->t.pirq[pirq], "INTx is raised");
    is_int(vtest_read(&f->d, &f->d.isr, 0, 1), 1, "4.1.4.5: ISR: queue");
    ok(!f->t.pirq[pirq], "reading lowers the line");
    is_int(vtest_read(&f->d, &f->d.isr, 0, 1), 0, "and clears the register");
    device_lock(&f->echo->dev.fn.dev);
    virtio_config_changed(&f->echo->dev);
    device_unlock(&f->echo->dev.fn.dev);
    ok(f->t.pirq[pirq] && vtest_read(&f->d, &f->d.isr, 0, 1) == 2, "ISR: configuration");
    ok(vtest_request(&f->d.queues[0], &value, 4, &value, 4) == 4 && f->t.pirq[pirq], "raised");
    vtest_reset(&f->d);
    ok(!f->t.pirq[pirq] && vtest_read(&f->d, &f->d.isr, 0, 1) == 0, "4.1.5: a reset lowers it");
    is_int(fake_msi_count(f->t.engine, NULL, NULL), 0, "no message was sent");
    tear_down(f);
}

static void test_msix(void)
{
    struct fixture *f = set_up();
    unsigned pirq = pci_slot_pirq(f->d.devfn >> 3, 1);
    uint32_t value = 1;
    vtest_start(&f->d, 0, 2);
    ok(vtest_request(&f->d.queues[1], &value, 4, &value, 4) == 4, "a request with MSI-X");
    is_int(vtest_interrupts(&f->d.queues[1]), 1, "4.1.5.3: the queue's vector");
    is_int(vtest_interrupts(&f->d.queues[0]), 0, "and no other");
    ok(!f->t.pirq[pirq] && vtest_read(&f->d, &f->d.isr, 0, 1) == 0, "no INTx beside it");
    wr(f, VTEST_QUEUE_SELECT, 1, 2);
    wr(f, VTEST_QUEUE_MSIX_VECTOR, 0xffff, 2);
    ok(vtest_request(&f->d.queues[1], &value, 4, &value, 4) == 4, "served without a vector");
    is_int(fake_msi_count(f->t.engine, NULL, NULL), 1, "4.1.5.3: and no interrupt");
    tear_down(f);
}

static size_t count(struct fixture *f, enum fake_event_kind kind)
{
    return fake_event_count(f->t.engine, kind);
}

/* Does a write of the queue's register through the window, as an access or an ioeventfd, kick? */
static bool kicks(struct fixture *f, const struct vtest_window *window, bool by_engine)
{
    struct vtest_queue *q = &f->d.queues[1];
    struct vtest_used used;
    uint64_t gpa = vtest_alloc(&f->t, 64, 64);
    struct vtest_seg seg = {gpa, 4, true};
    enum engine_space space = window->space == BUS_PIO ? ENGINE_SPACE_PIO : ENGINE_SPACE_MMIO;
    uint32_t offset = q->notify_off * window->multiplier;
    vtest_settle(&f->t);
    vtest_add(q, &seg, 1);
    if (!by_engine)
        vtest_write(&f->d, window, offset, q->index, 2);
    else if (!fake_ioeventfd_fire(f->t.engine, space, window->addr + offset, 2))
        return false;
    return vtest_wait(q, &used);
}

static void test_notify(void)
{
    struct fixture *f = set_up();
    vtest_negotiate(&f->d, 0);
    vtest_queue_start(&f->d, 0, 0);
    vtest_queue_start(&f->d, 1, 0);
    is_int(count(f, FAKE_IOEVENTFD_ADD), 0, "no ioeventfd before DRIVER_OK");
    vtest_driver_ok(&f->d);
    is_int(count(f, FAKE_IOEVENTFD_ADD), 4, "two windows, two queues");
    ok(kicks(f, &f->d.notify, true), "4.1.5.2: kick by ioeventfd, I/O");
    ok(kicks(f, &f->d.notify_mem, true), "memory");
    ok(kicks(f, &f->d.notify, false), "and by an access, I/O");
    ok(kicks(f, &f->d.notify_mem, false), "memory");

    /* The guest moves the I/O BAR; memory stays. */
    uint32_t bar = pci_rd(f, 0x10, 4) & ~3u;
    pci_wr(f, 0x10, bar + 0x100, 4);
    f->d.notify.addr += 0x100;
    is_int(count(f, FAKE_IOEVENTFD_DEL), 2, "a moved BAR takes its ioeventfds along");
    is_int(count(f, FAKE_IOEVENTFD_ADD), 6, "to the new place");
    ok(kicks(f, &f->d.notify, true), "where they work");
    pci_wr(f, 4, 4, 2);
    is_int(count(f, FAKE_IOEVENTFD_DEL), 6, "none while decoding is off");
    pci_wr(f, 4, 7, 2);
    is_int(count(f, FAKE_IOEVENTFD_ADD), 10, "again when it is on");
    vtest_reset(&f->d);
    is_int(count(f, FAKE_IOEVENTFD_DEL), 10, "none after a reset");

    fake_ioeventfd_refuse(f->t.engine, true);
    vtest_start(&f->d, 0, 2);
    is_int(count(f, FAKE_IOEVENTFD_ADD), 10, "an engine without ioeventfds");
    ok(kicks(f, &f->d.notify, false) && kicks(f, &f->d.notify_mem, false), "kicks by access");
    vtest_write(&f->d, &f->d.notify_mem, 4 * 100, 100, 2);
    vtest_write(&f->d, &f->d.notify_mem, 4 * 2, 2, 2);
    vtest_settle(&f->t);
    ok(!(vtest_status(&f->d) & VTEST_STATUS_RESET), "a kick of a queue that is off is ignored");
    tear_down(f);
}

/* One access through the window in configuration space (4.1.4.9). */
static void select_cfg(struct fixture *f, uint8_t bar, uint32_t offset, uint32_t len)
{
    pci_wr(f, f->d.pci_cfg.cap + 4u, bar, 1);
    pci_wr(f, f->d.pci_cfg.cap + 8u, offset, 4);
    pci_wr(f, f->d.pci_cfg.cap + 12u, len, 4);
}

static void test_cfg_access(void)
{
    struct fixture *f = set_up();
    unsigned data = f->d.pci_cfg.cap + 16u;
    uint8_t bar = f->d.common.bar;
    uint32_t at = f->d.common.offset;
    pci_wr(f, 4, 0, 2);
    select_cfg(f, bar, at + VTEST_NUM_QUEUES, 2);
    is_int(pci_rd(f, data, 2), 3, "4.1.4.9: a read, although the BARs are off");
    select_cfg(f, bar, at + VTEST_DEVICE_STATUS, 1);
    pci_wr(f, data, 3, 1);
    is_int(pci_rd(f, data, 1), 3, "a write");
    select_cfg(f, bar, at + VTEST_QUEUE_DESC, 4);
    pci_wr(f, data, 0x12345000, 4);
    is_int(pci_rd(f, data, 4), 0x12345000, "32 bits");
    static const struct {
        const char *what;
        uint8_t bar;
        uint32_t offset, len;
    } bad[] = {
        {"a BAR that is not there", 5,    0,      4},
        {"no BAR at all",           0xff, 0,      4},
        {"misaligned",              2,    2,      4},
        {"beyond the end",          2,    0x4000, 4},
        {"wraps",                   2,    ~0u,    1},
        {"length 3",                2,    0,      3},
        {"length 8",                2,    0,      8},
        {"length 0",                2,    0,      0},
        {"beyond the end of BAR 0", 0,    0x100,  4},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        select_cfg(f, bad[i].bar, bad[i].offset, bad[i].len);
        is_int(pci_rd(f, data, 4), 0xffffffff, bad[i].what);
        pci_wr(f, data, 0, 4);
    }
    select_cfg(f, bar, at + VTEST_DEVICE_STATUS, 1);
    is_int(pci_rd(f, data, 1), 3, "none of those wrote");
    select_cfg(f, 0, 0, 2);
    pci_wr(f, data, 0, 2);
    ok(true, "BAR 0 takes writes only");
    tear_down(f);
}

/* SeaBIOS does all of it so where BARs lie above 4 GiB: ISR and notification included. */
static void test_cfg_access_whole(void)
{
    struct fixture *f = set_up();
    unsigned data = f->d.pci_cfg.cap + 16u;
    struct vtest_seg seg = {vtest_alloc(&f->t, 64, 64), 4, true};
    struct vtest_used used;
    vtest_negotiate(&f->d, 0);
    vtest_queue_start(&f->d, 0, 0);
    vtest_driver_ok(&f->d);
    vtest_settle(&f->t);
    vtest_add(&f->d.queues[0], &seg, 1);
    select_cfg(f, f->d.notify_mem.bar, f->d.notify_mem.offset, 2);
    pci_wr(f, data, 0, 2);
    ok(vtest_wait(&f->d.queues[0], &used), "4.1.4.9: a notification");
    select_cfg(f, f->d.isr.bar, f->d.isr.offset, 1);
    is_int(pci_rd(f, data, 1), 1, "the ISR");
    is_int(pci_rd(f, data, 1), 0, "which that read has cleared");
    tear_down(f);
}

int main(void)
{
    test_identity();
    test_common();
    test_device_config();
    test_intx();
    test_msix();
    test_notify();
    test_cfg_access();
    test_cfg_access_whole();
    return tap_done();
}
