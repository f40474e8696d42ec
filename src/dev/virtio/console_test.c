/* SPDX-License-Identifier: Apache-2.0 */
/* The console, driven through its rings by vtest. The character device is the test's own: these
 * functions stand in for char.c. */
#include "dev/virtio/console.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "dev/virtio/vtest.h"

/* --- the host's side --- */

struct char_dev {
    struct char_client client;
    uint8_t out[256 * KIB];
    size_t out_len, out_room;
    bool blocked; /* a write was cut: writable() is due */
    unsigned kicks;
};

int char_attach(struct char_dev *chr, struct loop *loop, const struct char_client *client,
                struct err *err)
{
    (void)loop, (void)err;
    chr->client = *client;
    return 0;
}

void char_kick_input(struct char_dev *chr)
{
    chr->kicks++;
}

size_t char_write(struct char_dev *chr, const uint8_t *buf, size_t len)
{
    size_t n = len < chr->out_room ? len : chr->out_room;
    memcpy(chr->out + chr->out_len, buf, n);
    chr->out_len += n;
    chr->out_room -= n;
    chr->blocked |= n < len;
    return n;
}

static void make_room(struct char_dev *chr, size_t room)
{
    chr->out_room += room;
    if (chr->blocked) {
        chr->blocked = false;
        chr->client.writable(chr->client.ctx);
    }
}

/* --- the machine --- */

struct fixture {
    struct vtest t;
    struct vtest_driver d;
    struct virtio_device *dev;
    struct char_dev *chr;
    struct vtest_queue *rx, *tx;
};

static void setup(struct fixture *f)
{
    struct err err = ERR_INIT;
    memset(f, 0, sizeof(*f));
    vtest_init(&f->t);
    f->chr = calloc(1, sizeof(*f->chr));
    f->chr->out_room = sizeof(f->chr->out);
    if (virtio_console_new(&f->dev, &f->t.env, "console0", f->chr, &err) < 0 ||
        virtio_pci_plug(f->dev, -1, &err) < 0) {
        ok(false, err.text);
        exit(tap_done());
    }
    vtest_attach(&f->d, &f->t, f->dev);
    f->rx = &f->d.queues[VIRTIO_CONSOLE_RX];
    f->tx = &f->d.queues[VIRTIO_CONSOLE_TX];
}

static void teardown(struct fixture *f)
{
    device_fini(&f->dev->fn.dev);
    vtest_fini(&f->t);
    free(f->chr);
}

static int add_buffer(struct vtest_queue *q, uint64_t gpa, uint32_t len, bool write)
{
    struct vtest_seg seg = {.gpa = gpa, .len = len, .write = write};
    return vtest_add(q, &seg, 1);
}

static uint64_t text(struct fixture *f, const char *s)
{
    uint64_t gpa = vtest_alloc(&f->t, strlen(s), 1);
    memcpy(vtest_ram(&f->t, gpa, strlen(s)), s, strlen(s));
    return gpa;
}

static bool out_is(const struct fixture *f, const char *want)
{
    return f->chr->out_len == strlen(want) && memcmp(f->chr->out, want, strlen(want)) == 0;
}

/* --- tests --- */

static void test_output(struct fixture *f)
{
    struct vtest_used used;
    is_int(vtest_request(f->tx, "hello ", 6, NULL, 0), 0, "output is served");
    struct vtest_seg segs[3] = {
        {.gpa = text(f, "w"),  .len = 1},
        {.gpa = text(f, "or"), .len = 2},
        {.gpa = text(f, "ld"), .len = 2}
    };
    vtest_add(f->tx, segs, 3);
    vtest_kick(f->tx);
    ok(vtest_wait(f->tx, &used), "output in pieces is served");
    ok(out_is(f, "hello world"), "in order");
}

/* A host that is slow: nothing is lost, nothing is doubled. */
static void test_back_pressure(struct fixture *f)
{
    struct vtest_used used;
    f->chr->out_len = 0;
    f->chr->out_room = 4;
    struct vtest_seg segs[2] = {
        {.gpa = text(f, "abc"), .len = 3},
        {.gpa = text(f, "def"), .len = 3}
    };
    vtest_add(f->tx, segs, 2);
    add_buffer(f->tx, text(f, "ghi"), 3, false);
    vtest_kick(f->tx);
    vtest_settle(&f->t);
    ok(out_is(f, "abcd"), "the host takes 4 bytes");
    ok(!vtest_used(f->tx, &used), "the chain is not returned");
    is_int(f->dev->queues[VIRTIO_CONSOLE_TX].in_flight, 0, "and not held");
    const struct virtio_console_state *state = f->dev->type_state;
    is_int(state->tx_offset, 4, "the state says how far it is");
    make_room(f->chr, 1);
    ok(out_is(f, "abcde") && !vtest_used(f->tx, &used), "the host takes one more");
    make_room(f->chr, 3);
    ok(out_is(f, "abcdefgh"), "the rest, and a part of the next chain");
    ok(vtest_used(f->tx, &used) && !vtest_used(f->tx, &used), "the first is returned");
    make_room(f->chr, 100);
    ok(out_is(f, "abcdefghi") && vtest_used(f->tx, &used), "all is out");
    is_int(state->tx_offset, 0, "the state says so");
}

static void test_much_output(struct fixture *f)
{
    struct vtest_used used;
    uint64_t gpa = vtest_alloc(&f->t, 2048, 1);
    memset(vtest_ram(&f->t, gpa, 2048), 'x', 2048);
    f->chr->out_len = 0;
    f->chr->out_room = sizeof(f->chr->out);
    unsigned count = 0, back = 0;
    while (add_buffer(f->tx, gpa, 2048, false) >= 0)
        count++;
    vtest_kick(f->tx);
    while (back < count && vtest_wait(f->tx, &used))
        back++;
    is_int(back, count, "a full ring is served, in several turns");
    is_int(f->chr->out_len, count * 2048, "completely");
}

static void test_input(struct fixture *f)
{
    struct vtest_used used;
    struct char_client *host = &f->chr->client;
    is_int(host->room(host->ctx), 0, "no buffer, no room");
    uint64_t first = vtest_alloc(&f->t, 8, 1), second = vtest_alloc(&f->t, 100000, 1);
    f->chr->kicks = 0;
    add_buffer(f->rx, first, 8, true);
    ok(vtest_kick_wanted(f->rx), "the device wants to hear of a buffer");
    vtest_kick(f->rx);
    vtest_settle(&f->t);
    ok(f->chr->kicks > 0, "and tells the host");
    add_buffer(f->rx, second, 100000, true);
    is_int(host->room(host->ctx), 8, "room of the first buffer");
    unsigned interrupts = vtest_interrupts(f->rx);
    host->input(host->ctx, (const uint8_t *)"12345", 5);
    ok(vtest_used(f->rx, &used) && used.len == 5, "the first comes back with 5 bytes");
    ok(memcmp(vtest_ram(&f->t, first, 5), "12345", 5) == 0, "the right ones");
    is_int(vtest_interrupts(f->rx), interrupts + 1, "with an interrupt");
    is_int(host->room(host->ctx), 4096, "room is bounded");
    host->input(host->ctx, (const uint8_t *)"6", 1);
    ok(vtest_used(f->rx, &used) && used.len == 1, "the second comes back");
    is_int(host->room(host->ctx), 0, "no room again");
    host->input(host->ctx, (const uint8_t *)"7", 1);
    ok(!vtest_used(f->rx, &used), "input without a buffer is harmless");
}

static void test_emergency(struct fixture *f)
{
    ok(vtest_features(&f->d) & VIRTIO_BIT(VIRTIO_CONSOLE_F_EMERG_WRITE), "EMERG_WRITE is offered");
    vtest_reset(&f->d);
    f->chr->out_len = 0;
    f->chr->out_room = 100;
    vtest_write(&f->d, &f->d.config, 8, '!', 4);
    ok(out_is(f, "!"), "emergency write before the driver is up (5.3.4)");
}

static void test_reset(struct fixture *f, uint64_t ring)
{
    struct char_client *host = &f->chr->client;
    ok(vtest_start(&f->d, ring, 2), "start again");
    f->chr->out_len = 0;
    f->chr->out_room = 2;
    add_buffer(f->tx, text(f, "lost"), 4, false);
    vtest_kick(f->tx);
    vtest_settle(&f->t);
    ok(out_is(f, "lo"), "half a chain is out");
    ok(vtest_reset(&f->d), "reset");
    is_int(host->room(host->ctx), 0, "no room after it");
    make_room(f->chr, 100);
    ok(out_is(f, "lo"), "nothing comes after it");
    ok(vtest_start(&f->d, ring, 2), "start");
    is_int(vtest_request(f->tx, "new", 3, NULL, 0), 0, "output");
    ok(out_is(f, "lonew"), "from its first byte");
}

static bool is_broken(void *arg)
{
    return vtest_status(arg) & VTEST_STATUS_RESET;
}

static void test_malformed(struct fixture *f, uint64_t ring)
{
    struct char_client *host = &f->chr->client;
    add_buffer(f->tx, 1ull << 40, 4, false);
    vtest_kick(f->tx);
    ok(vtest_run(&f->t, is_broken, &f->d), "output outside of RAM: the device needs a reset");
    ok(vtest_start(&f->d, ring, 2), "which mends it");
    add_buffer(f->rx, text(f, "x"), 1, false);
    is_int(host->room(host->ctx), 0, "an input buffer that cannot be written has no room");
    ok(is_broken(&f->d), "and the device needs a reset");
}

static void test_size(void)
{
    struct fixture f;
    setup(&f);
    ok(!(vtest_features(&f.d) & VIRTIO_BIT(VIRTIO_CONSOLE_F_SIZE)), "no size, no SIZE");
    virtio_console_set_size(f.dev, 80, 25);
    ok(vtest_features(&f.d) & VIRTIO_BIT(VIRTIO_CONSOLE_F_SIZE), "SIZE is offered");
    vtest_start(&f.d, VIRTIO_BIT(VIRTIO_CONSOLE_F_SIZE), 2);
    is_int(vtest_config(&f.d, 0, 2), 80, "columns");
    is_int(vtest_config(&f.d, 2, 2), 25, "rows");
    unsigned interrupts = vtest_config_interrupts(&f.d);
    virtio_console_set_size(f.dev, 132, 43);
    is_int(vtest_config_interrupts(&f.d), interrupts + 1, "a change is told");
    is_int(vtest_config(&f.d, 0, 2), 132, "columns");
    teardown(&f);
}

static void test_ring(const char *name, uint64_t ring)
{
    struct fixture f;
    printf("# %s\n", name);
    setup(&f);
    ok(vtest_start(&f.d, ring, 2), "start");
    test_output(&f);
    test_back_pressure(&f);
    test_much_output(&f);
    test_input(&f);
    test_emergency(&f);
    test_reset(&f, ring);
    test_malformed(&f, ring);
    teardown(&f);
}

int main(void)
{
    char why[256];
    is_int(state_table_check(&virtio_console_state_table, why, sizeof(why)), 0, "state table");
    is_int(sizeof(struct virtio_console_config), 12, "configuration structure as in 5.3.4");
    test_ring("split", 0);
    test_ring("packed, event index",
              VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX));
    test_ring("split, event index", VIRTIO_BIT(VIRTIO_F_EVENT_IDX));
    test_ring("packed", VIRTIO_BIT(VIRTIO_F_RING_PACKED));
    test_size();
    return tap_done();
}
