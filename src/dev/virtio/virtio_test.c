/* SPDX-License-Identifier: Apache-2.0 */
/* Status, features, reset and queues of the transport, through its registers; named after sections
 * of virtio 1.2. */
#include "dev/virtio/virtio.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "dev/virtio/pci.h"
#include "dev/virtio/vtest.h"

#define ACK    1
#define DRIVER 2
#define OK     4
#define F_OK   8
#define FAILED 128

struct fixture {
    struct vtest t;
    struct vtest_driver d;
    struct vtest_echo *echo;
};

static const uint64_t kinds[] = {
    0,
    VIRTIO_BIT(VIRTIO_F_EVENT_IDX),
    VIRTIO_BIT(VIRTIO_F_RING_PACKED),
    VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX),
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

static void accept(struct fixture *f, uint64_t features)
{
    wr(f, VTEST_DEVICE_STATUS, 0, 1);
    wr(f, VTEST_DEVICE_STATUS, ACK | DRIVER, 1);
    for (unsigned i = 0; i < 2; i++) {
        wr(f, VTEST_DRIVER_FEATURE_SELECT, i, 4);
        wr(f, VTEST_DRIVER_FEATURE, (uint32_t)(features >> (32 * i)), 4);
    }
    wr(f, VTEST_DEVICE_STATUS, ACK | DRIVER | F_OK, 1);
}

static bool is_served(void *arg)
{
    struct fixture *f = arg;
    return f->echo->held_count != 0;
}

/* A request that the device holds back. */
static void hold_one(struct fixture *f, unsigned queue)
{
    uint64_t gpa = vtest_alloc(&f->t, 64, 64);
    struct vtest_seg segs[] = {
        {gpa,      4, false},
        {gpa + 32, 4, true }
    };
    f->echo->hold = true;
    vtest_add(&f->d.queues[queue], segs, 2);
    vtest_kick(&f->d.queues[queue]);
    ok(vtest_run(&f->t, is_served, f), "a request is in flight");
}

static void test_features(void)
{
    struct fixture *f = set_up();
    uint64_t version_1 = VIRTIO_BIT(VIRTIO_F_VERSION_1);
    f->echo->dev.features_offered = 5;
    is_int(vtest_features(&f->d),
           5 | version_1 | VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX) |
               VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_RING_RESET),
           "2.2: the device's features and the generic ones");
    wr(f, VTEST_DEVICE_FEATURE_SELECT, 2, 4);
    is_int(rd(f, VTEST_DEVICE_FEATURE, 4), 0, "no features above 63");
    accept(f, 5);
    is_int(vtest_status(&f->d), ACK | DRIVER, "6.2: FEATURES_OK is refused without VERSION_1");
    wr(f, VTEST_DEVICE_STATUS, ACK | DRIVER | F_OK | OK, 1);
    is_int(vtest_status(&f->d), ACK | DRIVER, "3.1.1: then there is no DRIVER_OK either");
    accept(f, version_1 | 2);
    is_int(vtest_status(&f->d), ACK | DRIVER, "2.2.2: refused with a bit that is not offered");
    accept(f, version_1 | VIRTIO_BIT(VIRTIO_F_IN_ORDER));
    is_int(vtest_status(&f->d), ACK | DRIVER, "likewise a generic one");
    accept(f, version_1 | 4);
    is_int(vtest_status(&f->d), ACK | DRIVER | F_OK, "2.2.2: a subset is accepted");
    is_int(f->echo->dev.features, version_1 | 4, "and known to the device");
    wr(f, VTEST_DRIVER_FEATURE_SELECT, 0, 4);
    wr(f, VTEST_DRIVER_FEATURE, 1, 4);
    is_int(rd(f, VTEST_DRIVER_FEATURE, 4), 4, "3.1.1: fixed after FEATURES_OK");
    wr(f, VTEST_DRIVER_FEATURE_SELECT, 7, 4);
    is_int(rd(f, VTEST_DRIVER_FEATURE, 4), 0, "no features above 63");
    wr(f, VTEST_DEVICE_STATUS, ACK, 1);
    is_int(vtest_status(&f->d), ACK | DRIVER | F_OK, "2.1.1: a bit cannot be cleared alone");
    is_int(f->echo->driver_oks, 0, "the device is not told before DRIVER_OK");
    vtest_driver_ok(&f->d);
    vtest_driver_ok(&f->d);
    is_int(f->echo->driver_oks, 1, "and once when it comes");
    wr(f, VTEST_DEVICE_STATUS, 0xff, 1);
    is_int(vtest_status(&f->d), ACK | DRIVER | OK | F_OK | FAILED,
           "2.1: the driver sets its own bits, not DEVICE_NEEDS_RESET");
    ok(!virtio_is_live(&f->echo->dev), "FAILED: not live");
    wr(f, VTEST_DEVICE_STATUS, 0, 1);
    is_int(vtest_status(&f->d), 0, "2.1.2: 0 after reset");
    is_int(f->echo->dev.features, 0, "nothing is negotiated");
    tear_down(f);
}

static void test_echo(uint64_t kind, bool indirect)
{
    struct fixture *f = set_up();
    uint8_t out[3000], in[3000];
    bool right = true;
    ok(vtest_start(&f->d, kind | VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC), 3), "start");
    for (unsigned i = 0; i < 200 && right; i++) {
        struct vtest_queue *q = &f->d.queues[i % 3];
        uint32_t len = 1 + i * 13;
        q->indirect = indirect;
        memset(out, (int)i, sizeof(out));
        memset(in, 0, sizeof(in));
        vtest_enable_interrupts(q);
        unsigned interrupts = vtest_interrupts(q);
        right = vtest_request(q, out, len, in, len + 7) == len && memcmp(in, out, len) == 0;
        right = right && vtest_interrupts(q) == interrupts + 1;
    }
    ok(right, indirect ? "echo through indirect tables, each with an interrupt"
                       : "echo through three queues, each with an interrupt");
    is_int(f->echo->dev.queues[0].chains_popped, 67, "chains are counted");
    is_int(f->echo->dev.queues[0].interrupts_sent, 67, "and interrupts");
    tear_down(f);
}

/* 2.1.2: nothing is consumed before DRIVER_OK; what was added before is found then. */
static void test_early_kick(void)
{
    struct fixture *f = set_up();
    struct vtest_used used;
    uint64_t gpa = vtest_alloc(&f->t, 64, 64);
    struct vtest_seg seg = {gpa, 4, true};
    vtest_negotiate(&f->d, 0);
    vtest_msix_enable(&f->d);
    ok(vtest_queue_start(&f->d, 0, 0), "a queue before DRIVER_OK");
    vtest_add(&f->d.queues[0], &seg, 1);
    vtest_kick(&f->d.queues[0]);
    vtest_settle(&f->t);
    is_int(f->echo->kicks, 0, "2.1.2: no buffer is consumed before DRIVER_OK");
    vtest_driver_ok(&f->d);
    ok(vtest_wait(&f->d.queues[0], &used), "it is consumed after, without another kick");
    wr(f, VTEST_DEVICE_STATUS, FAILED | 0xf, 1);
    vtest_add(&f->d.queues[0], &seg, 1);
    vtest_kick(&f->d.queues[0]);
    vtest_settle(&f->t);
    ok(!vtest_used(&f->d.queues[0], &used), "a driver that set FAILED is not served");
    tear_down(f);
}

static void test_reset(uint64_t kind)
{
    struct fixture *f = set_up();
    vtest_start(&f->d, kind, 2);
    hold_one(f, 1);
    wr(f, VTEST_CONFIG_MSIX_VECTOR, 2, 2);
    is_int(f->echo->resets, 1, "one reset so far: the driver's first");
    wr(f, VTEST_DEVICE_STATUS, 0, 1);
    ok(vtest_status(&f->d) != 0, "2.4.1: the reset waits for what is in flight");
    is_int(f->echo->resets, 2, "the device was told");
    ok(!virtio_is_live(&f->echo->dev), "not live");
    wr(f, VTEST_DEVICE_STATUS, ACK | DRIVER, 1);
    wr(f, VTEST_DEVICE_STATUS, 0, 1);
    is_int(f->echo->resets, 2, "4.1.4.3.2: the driver has to wait: its writes are ignored");
    unsigned interrupts = vtest_interrupts(&f->d.queues[1]);
    struct vtest_used used;
    vtest_echo_release(f->echo);
    is_int(vtest_status(&f->d), 0, "0 when the last request is back");
    ok(!vtest_used(&f->d.queues[1], &used), "it is not written into the ring any more");
    is_int(vtest_interrupts(&f->d.queues[1]), interrupts, "nor is there an interrupt");

    wr(f, VTEST_QUEUE_SELECT, 1, 2);
    is_int(rd(f, VTEST_QUEUE_ENABLE, 2), 0, "4.1.4.3.1: queue_enable is 0");
    is_int(rd(f, VTEST_QUEUE_SIZE, 2), 64, "queue_size is the maximum");
    is_int(rd(f, VTEST_QUEUE_DESC, 4), 0, "addresses are 0");
    is_int(rd(f, VTEST_QUEUE_MSIX_VECTOR, 2), 0xffff, "no vector");
    is_int(rd(f, VTEST_CONFIG_MSIX_VECTOR, 2), 0xffff, "nor for the configuration");
    f->echo->hold = false;
    uint32_t out = 0x12345678, in = 0;
    ok(vtest_start(&f->d, kind, 2) && vtest_request(&f->d.queues[1], &out, 4, &in, 4) == 4 &&
           in == out,
       "2.4: and it starts again");
    tear_down(f);
}

static bool is_queue_reset(void *arg)
{
    return rd(arg, VTEST_QUEUE_RESET, 2) == 0;
}

static void test_queue_reset(uint64_t kind)
{
    struct fixture *f = set_up();
    uint32_t out = 0x12345678, in = 0;
    vtest_start(&f->d, kind, 2);
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    wr(f, VTEST_QUEUE_RESET, 1, 2);
    is_int(rd(f, VTEST_QUEUE_ENABLE, 2), 1, "2.6.1: nothing without VIRTIO_F_RING_RESET");

    kind |= VIRTIO_BIT(VIRTIO_F_RING_RESET);
    vtest_start(&f->d, kind, 2);
    hold_one(f, 0);
    f->echo->hold = false;
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    wr(f, VTEST_QUEUE_RESET, 1, 2);
    is_int(rd(f, VTEST_QUEUE_RESET, 2), 1, "4.1.4.3.1: 1 while it goes on");
    wr(f, VTEST_QUEUE_ENABLE, 1, 2);
    is_int(rd(f, VTEST_QUEUE_ENABLE, 2), 0, "2.6.1.2: it cannot be enabled meanwhile");
    ok(vtest_request(&f->d.queues[1], &out, 4, &in, 4) == 4, "the other queue goes on");
    vtest_echo_release(f->echo);
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    ok(vtest_run(&f->t, is_queue_reset, f), "4.1.4.3.1: 0 when it is done");
    is_int(rd(f, VTEST_QUEUE_SIZE, 2), 64, "2.6.1.1: all is default again");
    ok(vtest_queue_start(&f->d, 0, 16), "2.6.1.2: enabled again, with another size");
    ok(vtest_request(&f->d.queues[0], &out, 4, &in, 4) == 4, "and it works");
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    wr(f, VTEST_QUEUE_RESET, 1, 2);
    ok(rd(f, VTEST_QUEUE_RESET, 2) == 0 && rd(f, VTEST_QUEUE_ENABLE, 2) == 0,
       "2.6.1: at once when nothing is in flight");

    /* A device reset on top of a queue reset. */
    ok(vtest_queue_start(&f->d, 0, 16), "once more");
    hold_one(f, 0);
    wr(f, VTEST_QUEUE_RESET, 1, 2);
    wr(f, VTEST_DEVICE_STATUS, 0, 1);
    ok(vtest_status(&f->d) != 0, "a device reset during a queue reset");
    vtest_echo_release(f->echo);
    is_int(vtest_status(&f->d), 0, "ends");
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    is_int(rd(f, VTEST_QUEUE_RESET, 2), 0, "and ends the other");
    tear_down(f);
}

static void test_needs_reset(uint64_t kind)
{
    struct fixture *f = set_up();
    vtest_start(&f->d, kind, 1);
    unsigned before = vtest_config_interrupts(&f->d);
    unsigned generation = (unsigned)rd(f, VTEST_CONFIG_GENERATION, 1);
    struct vtest_seg seg = {VTEST_RAM_BYTES, 16, true};
    vtest_add(&f->d.queues[0], &seg, 1);
    vtest_kick(&f->d.queues[0]);
    vtest_settle(&f->t);
    ok(vtest_status(&f->d) & VTEST_STATUS_RESET, "2.1.2: a broken queue: DEVICE_NEEDS_RESET");
    is_int(vtest_config_interrupts(&f->d), before + 1, "and a configuration change interrupt");
    ok(rd(f, VTEST_CONFIG_GENERATION, 1) != generation, "with a new generation");
    vtest_kick(&f->d.queues[0]);
    vtest_settle(&f->t);
    is_int(vtest_config_interrupts(&f->d), before + 1, "once");

    uint32_t out = 1, in;
    ok(vtest_start(&f->d, kind, 1) && vtest_request(&f->d.queues[0], &out, 4, &in, 4) == 4,
       "works after a reset");

    vtest_negotiate(&f->d, kind);
    wr(f, VTEST_QUEUE_SELECT, 0, 2);
    wr(f, VTEST_QUEUE_DESC, 8, 4);
    wr(f, VTEST_QUEUE_ENABLE, 1, 2);
    is_int(rd(f, VTEST_QUEUE_ENABLE, 2), 0, "2.7, 2.8: a queue whose rings are misplaced");
    ok(vtest_status(&f->d) & VTEST_STATUS_RESET, "needs a reset");
    vtest_driver_ok(&f->d);
    is_int(f->echo->driver_oks, 2, "and the device does not go live");
    tear_down(f);
}

static void test_config_changed(void)
{
    struct fixture *f = set_up();
    vtest_negotiate(&f->d, 0);
    vtest_msix_enable(&f->d);
    device_lock(&f->echo->dev.fn.dev);
    virtio_config_changed(&f->echo->dev);
    device_unlock(&f->echo->dev.fn.dev);
    is_int(rd(f, VTEST_CONFIG_GENERATION, 1), 1, "2.5: a new generation");
    is_int(vtest_config_interrupts(&f->d), 0, "2.1.2: no notification before DRIVER_OK");
    vtest_driver_ok(&f->d);
    device_lock(&f->echo->dev.fn.dev);
    virtio_config_changed(&f->echo->dev);
    device_unlock(&f->echo->dev.fn.dev);
    is_int(rd(f, VTEST_CONFIG_GENERATION, 1), 2, "another generation");
    is_int(vtest_config_interrupts(&f->d), 1, "and a notification");
    tear_down(f);
}

static void test_power_on(uint64_t kind)
{
    struct fixture *f = set_up();
    struct device *dev = &f->echo->dev.fn.dev;
    uint32_t value = 7;
    f->echo->dev.type_table = &virtq_state_table; /* any table will do */
    struct virtq_state type_state = {.size = 5};
    f->echo->dev.type_state = &type_state;
    vtest_start(&f->d, kind, 2);
    ok(vtest_request(&f->d.queues[0], &value, 4, &value, 4) == 4, "it runs");
    hold_one(f, 1);
    device_reset(dev);
    is_int(f->echo->power_ons, 1, "power_on is called");
    is_int(type_state.size, 0, "the type's own state is reset");
    ok(!device_quiet(dev), "not quiet while a request is in flight");
    vtest_echo_release(f->echo);
    ok(device_quiet(dev), "quiet");
    f->echo->hold = false;
    is_int(vtest_pci_read(&f->t, f->d.devfn, 4, 2) & 7, 0, "BARs are off");
    vtest_attach(&f->d, &f->t, &f->echo->dev);
    is_int(vtest_status(&f->d), 0, "status 0");
    ok(vtest_start(&f->d, kind, 2) && vtest_request(&f->d.queues[0], &value, 4, &value, 4) == 4,
       "and it runs again");
    tear_down(f);
}

static bool was_kicked(void *arg)
{
    struct fixture *f = arg;
    return f->echo->kicks != 0;
}

static void test_kick_later(void)
{
    struct fixture *f = set_up();
    vtest_start(&f->d, 0, 1);
    vtest_settle(&f->t);
    f->echo->kicks = 0;
    device_lock(&f->echo->dev.fn.dev);
    virtio_queue_kick_later(&f->echo->dev, &f->echo->dev.queues[0]);
    device_unlock(&f->echo->dev.fn.dev);
    is_int(f->echo->kicks, 0, "kick_later: not at once");
    ok(vtest_run(&f->t, was_kicked, f), "but from the loop");
    tear_down(f);
}

static void test_init(void)
{
    static struct virtio_device dev;
    static const struct virtio_ops ops = {.device_id = 4};
    struct vtest t;
    struct err err = ERR_INIT;
    vtest_init(&t);
    is_int(virtio_init(&dev, &ops, &t.env, "x", 0, 64, 0, NULL, NULL, &err), -EINVAL, "no queue");
    is_int(virtio_init(&dev, &ops, &t.env, "x", 129, 64, 0, NULL, NULL, &err), -EINVAL,
           "too many queues");
    is_int(virtio_init(&dev, &ops, &t.env, "x", 1, 48, 0, NULL, NULL, &err), -EINVAL,
           "no power of two");
    is_int(virtio_init(&dev, &ops, &t.env, "x", 128, 1024, 4096, NULL, NULL, &err), 0,
           "the largest device");
    is_int(virtio_pci_plug(&dev, -1, &err), 0, "plugs");
    device_fini(&dev.fn.dev);
    is_int(virtio_init(&dev, &ops, &t.env, "x", 1, 64, 0, NULL, NULL, &err), 0, "one more");
    virtio_fini(&dev);
    is_int(virtio_init(&dev, &ops, &t.env, "x", 1, 64, 0, NULL, NULL, &err), 0, "one in slot 5");
    is_int(virtio_pci_plug(&dev, PCI_DEVFN(5, 0), &err), 0, "plugs there");
    static struct virtio_device other;
    is_int(virtio_init(&other, &ops, &t.env, "y", 1, 64, 0, NULL, NULL, &err), 0, "another");
    ok(virtio_pci_plug(&other, PCI_DEVFN(5, 0), &err) < 0, "the slot is taken");
    device_fini(&other.fn.dev);
    device_fini(&dev.fn.dev);
    vtest_fini(&t);
}

int main(void)
{
    char why[256] = "";
    is_int(state_table_check(&virtio_pci_state_table, why, sizeof(why)), 0, "state is described");
    test_features();
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        printf("# %s ring%s\n", kinds[i] & VIRTIO_BIT(VIRTIO_F_RING_PACKED) ? "packed" : "split",
               kinds[i] & VIRTIO_BIT(VIRTIO_F_EVENT_IDX) ? ", event index" : "");
        test_echo(kinds[i], false);
        test_echo(kinds[i], true);
        test_reset(kinds[i]);
        test_queue_reset(kinds[i]);
        test_needs_reset(kinds[i]);
        test_power_on(kinds[i]);
    }
    test_early_kick();
    test_config_changed();
    test_kick_later();
    test_init();
    return tap_done();
}
