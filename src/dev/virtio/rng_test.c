/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/rng.h"

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "dev/virtio/vtest.h"

static const struct {
    const char *name;
    uint64_t features;
} rings[] = {
    {"split",               0                                                                },
    {"split, event index",  VIRTIO_BIT(VIRTIO_F_EVENT_IDX)                                   },
    {"packed",              VIRTIO_BIT(VIRTIO_F_RING_PACKED)                                 },
    {"packed, event index", VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX)},
};

static struct virtio_device *new_rng(struct vtest *t)
{
    struct err err = ERR_INIT;
    struct virtio_device *dev;
    vtest_init(t);
    if (virtio_rng_new(&dev, &t->env, "rng0", &err) < 0 || virtio_pci_plug(dev, -1, &err) < 0) {
        printf("Bail out! %s\n", err.text);
        return NULL;
    }
    return dev;
}

/* 5.4.6: the buffer is filled, and not twice with the same. */
static void test_fill(uint64_t features, const char *name)
{
    struct vtest t;
    struct vtest_driver d;
    struct virtio_device *dev = new_rng(&t);
    vtest_attach(&d, &t, dev);
    is_int(vtest_pci_read(&t, d.devfn, 2, 2), 0x1044, "4.1.2: device id of an entropy device");
    ok(d.config.cap == 0, "5.4.4: no device configuration structure");
    ok(vtest_start(&d, features, 1), name);

    uint8_t a[512] = {0}, b[512] = {0};
    is_int(vtest_request(&d.queues[0], NULL, 0, a, sizeof(a)), sizeof(a), "5.4.6: all is written");
    is_int(vtest_request(&d.queues[0], NULL, 0, b, sizeof(b)), sizeof(b), "and again");
    ok(memcmp(a, b, sizeof(a)) != 0, "two requests differ");
    unsigned seen = 0;
    uint8_t values[256] = {0};
    for (size_t i = 0; i < sizeof(a); i++)
        seen += values[a[i]]++ == 0;
    ok(seen > 100, "the bytes differ from one another");
    is_int(vtest_interrupts(&d.queues[0]) > 0, 1, "the driver is told");

    static uint8_t large[200000];
    memset(large, 0, sizeof(large));
    is_int(vtest_request(&d.queues[0], NULL, 0, large, sizeof(large)), VIRTIO_RNG_CHAIN_MAX,
           "a chain gets at most VIRTIO_RNG_CHAIN_MAX");
    bool untouched = true;
    for (size_t i = VIRTIO_RNG_CHAIN_MAX; i < sizeof(large); i++)
        untouched = untouched && large[i] == 0;
    ok(untouched, "nothing is written behind that");
    is_int(vtest_request(&d.queues[0], "xyz", 3, NULL, 0), 0, "a chain to read from comes back");
    ok(!(vtest_status(&d) & VTEST_STATUS_RESET), "that is no error");
    device_fini(&dev->fn.dev);
    vtest_fini(&t);
}

/* More than one turn's worth, several segments each: all are served, none twice. */
static void test_many(uint64_t features, const char *name)
{
    struct vtest t;
    struct vtest_driver d;
    struct virtio_device *dev = new_rng(&t);
    vtest_attach(&d, &t, dev);
    ok(vtest_start(&d, features | VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC), 1), name);
    struct vtest_queue *q = &d.queues[0];
    q->indirect = true;
    unsigned added = 0, served = 0;
    for (;;) {
        uint64_t gpa = vtest_alloc(&t, 64 * KIB, 64);
        struct vtest_seg segs[] = {
            {gpa,       100,            true},
            {gpa + 100, 0,              true},
            {gpa + 100, 64 * KIB - 100, true},
        };
        if (vtest_add(q, segs, 3) < 0)
            break;
        added++;
    }
    ok(added * VIRTIO_RNG_CHAIN_MAX > 2 * VIRTIO_RNG_TURN_BYTES, "more than two turns' worth");
    vtest_kick(q);
    struct vtest_used used;
    bool whole = true;
    while (served < added && vtest_wait(q, &used)) {
        served++;
        whole = whole && used.len == 64 * KIB;
    }
    is_int(served, added, "one kick, all chains served");
    ok(whole, "each in full");
    ok(vtest_kick_wanted(q) || q->avail_idx == q->kicked_idx, "kicks are armed again");
    device_fini(&dev->fn.dev);
    vtest_fini(&t);
}

static void test_broken(uint64_t features, const char *name)
{
    struct vtest t;
    struct vtest_driver d;
    struct virtio_device *dev = new_rng(&t);
    vtest_attach(&d, &t, dev);
    ok(vtest_start(&d, features, 1), name);
    struct vtest_seg seg = {.gpa = VTEST_RAM_BYTES - 8, .len = 16, .write = true};
    vtest_add(&d.queues[0], &seg, 1);
    vtest_kick(&d.queues[0]);
    vtest_settle(&t);
    ok(vtest_status(&d) & VTEST_STATUS_RESET, "2.1.2: a wild address makes it DEVICE_NEEDS_RESET");
    uint8_t buf[16];
    ok(vtest_start(&d, features, 1) &&
           vtest_request(&d.queues[0], NULL, 0, buf, sizeof(buf)) == sizeof(buf),
       "and a reset makes it work again");
    device_reset(&dev->fn.dev);
    ok(device_quiet(&dev->fn.dev), "quiet after power-on");
    vtest_attach(&d, &t, dev);
    is_int(vtest_status(&d), 0, "status after power-on");
    device_fini(&dev->fn.dev);
    vtest_fini(&t);
}

int main(void)
{
    for (size_t i = 0; i < ARRAY_LEN(rings); i++) {
        test_fill(rings[i].features, rings[i].name);
        test_many(rings[i].features, rings[i].name);
        test_broken(rings[i].features, rings[i].name);
    }
    return tap_done();
}
