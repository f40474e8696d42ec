/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/bus.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

/* A device that answers a read with offset + tag, byte by byte, and notes what it saw. */
struct probe {
    struct device dev;
    struct bus_range range;
    struct bus *bus;
    uint8_t tag;
    unsigned reads, writes;
    uint64_t last_offset, last_value;
    unsigned last_size;
    bool unlocked;        /* an access came without the lock */
    unsigned unmap_after; /* unmaps itself at this write; 0: never */
};

static void check_lock(struct probe *probe)
{
    if (pthread_mutex_trylock(&probe->dev.lock) == 0) {
        pthread_mutex_unlock(&probe->dev.lock);
        probe->unlocked = true;
    }
}

static uint64_t probe_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct probe *probe = CONTAINER_OF(range, struct probe, range);
    uint64_t value = 0;

    check_lock(probe);
    probe->reads++;
    probe->last_offset = offset;
    probe->last_size = size;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)(uint8_t)(probe->tag + offset + i) << (i * 8);
    return value;
}

static void probe_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct probe *probe = CONTAINER_OF(range, struct probe, range);

    check_lock(probe);
    probe->writes++;
    probe->last_offset = offset;
    probe->last_value = value;
    probe->last_size = size;
    if (probe->writes == probe->unmap_after)
        bus_unmap(probe->bus, range);
}

static const struct bus_range_ops probe_ops = {probe_read, probe_write, 8};
static const struct bus_range_ops narrow_ops = {probe_read, probe_write, 2};
static const struct bus_range_ops mute_ops = {.max_size = 4};
static const struct device_ops no_ops;

static void probe_init(struct probe *probe, struct bus *bus, const struct bus_range_ops *ops,
                       enum bus_space space, uint64_t base, uint64_t len, uint8_t tag)
{
    memset(probe, 0, sizeof(*probe));
    device_init(&probe->dev, &no_ops, NULL, NULL, NULL, "probe");
    probe->bus = bus;
    probe->tag = tag;
    probe->range = (struct bus_range){
        .ops = ops, .dev = &probe->dev, .space = space, .base = base, .len = len};
}

static void test_dispatch(struct bus *bus)
{
    struct probe a, narrow, mute;

    is_int(bus_read(bus, BUS_MMIO, 0x1000, 4), 0xffffffff, "nobody answers: all ones");
    is_int(bus_read(bus, BUS_PIO, 0x60, 1), 0xff, "of the access's width");
    bus_write(bus, BUS_MMIO, 0x1000, 1, 8);

    probe_init(&a, bus, &probe_ops, BUS_MMIO, 0x1000, 0x100, 0x10);
    is_int(bus_map(bus, &a.range), 0, "map");
    is_int(bus_read(bus, BUS_MMIO, 0x1004, 4), 0x17161514, "a read reaches the device");
    is_int(a.last_offset, 4, "relative to the range");
    bus_write(bus, BUS_MMIO, 0x1008, 0x1122334455667788, 8);
    ok(a.last_value == 0x1122334455667788 && a.last_size == 8, "so does a write");
    bus_write(bus, BUS_MMIO, 0x1008, 0xabcd, 1);
    is_int(a.last_value, 0xcd, "a value is cut to its size");
    is_int(bus_read(bus, BUS_PIO, 0x1004, 1), 0xff, "the other space is another one");
    is_int(bus_read(bus, BUS_MMIO, 0xfff, 1), 0xff, "below the range");
    is_int(bus_read(bus, BUS_MMIO, 0x1100, 1), 0xff, "above the range");

    is_int(bus_read(bus, BUS_MMIO, 0x10fe, 4), 0xffff0f0e, "an access across the end is split");
    is_int(bus_read(bus, BUS_MMIO, 0xffe, 4), 0x1110ffff, "and one across the start");
    is_int(bus_read(bus, BUS_MMIO, 0x1000, 3), 0x121110, "odd sizes come as bytes");
    is_int(a.last_size, 1, "of one byte each");
    ok(!a.unlocked, "the lock was held every time");
    bus_unmap(bus, &a.range);
    is_int(bus_read(bus, BUS_MMIO, 0x1004, 4), 0xffffffff, "unmapped, nobody answers");
    bus_unmap(bus, &a.range);

    probe_init(&narrow, bus, &narrow_ops, BUS_PIO, 0x3f8, 8, 0);
    bus_map(bus, &narrow.range);
    is_int(bus_read(bus, BUS_PIO, 0x3f8, 4), 0x03020100, "a wide access comes in pieces");
    ok(narrow.reads == 2 && narrow.last_offset == 2, "as large as the device takes, low first");
    bus_unmap(bus, &narrow.range);

    probe_init(&mute, bus, &mute_ops, BUS_PIO, 0x80, 4, 0);
    bus_map(bus, &mute.range);
    is_int(bus_read(bus, BUS_PIO, 0x80, 2), 0xffff, "without a read function: all ones");
    bus_write(bus, BUS_PIO, 0x80, 1, 1);
    bus_unmap(bus, &mute.range);
}

static void test_overlap(struct bus *bus)
{
    struct probe small, big, top;

    probe_init(&small, bus, &probe_ops, BUS_MMIO, 0x2010, 0x10, 0x40);
    probe_init(&big, bus, &probe_ops, BUS_MMIO, 0x2000, 0x100, 0x80);
    bus_map(bus, &small.range);
    bus_map(bus, &big.range);
    is_int(bus_read(bus, BUS_MMIO, 0x2010, 1), 0x40, "where ranges overlap, the first wins");
    is_int(bus_read(bus, BUS_MMIO, 0x200f, 1), 0x8f, "below it, the second");
    is_int(bus_read(bus, BUS_MMIO, 0x2020, 1), 0xa0, "above it, the second");
    is_int(bus_read(bus, BUS_MMIO, 0x200e, 4), 0x41408f8e, "an access across gets both");
    bus_unmap(bus, &small.range);
    is_int(bus_read(bus, BUS_MMIO, 0x2010, 1), 0x90, "the first gone, the second is seen");
    bus_map(bus, &small.range);
    is_int(bus_read(bus, BUS_MMIO, 0x2010, 1), 0x90, "back again, it comes second now");
    bus_unmap(bus, &big.range);
    bus_unmap(bus, &small.range);

    probe_init(&top, bus, &probe_ops, BUS_MMIO, UINT64_MAX - 0xf, 0x10, 0);
    is_int(bus_map(bus, &top.range), 0, "a range may end at the top of the space");
    is_int(bus_read(bus, BUS_MMIO, UINT64_MAX, 1), 0x0f, "and is found there");
    is_int(bus_read(bus, BUS_MMIO, UINT64_MAX - 1, 4), 0xffff0f0e, "beyond the top is nothing");
    bus_unmap(bus, &top.range);
    top.range.len = 0x11;
    is_int(bus_map(bus, &top.range), -EINVAL, "a range past the top is refused");
    top.range.len = 0;
    is_int(bus_map(bus, &top.range), -EINVAL, "and an empty one");
    top.range = (struct bus_range){
        .ops = &probe_ops, .dev = &top.dev, .space = BUS_PIO, .base = 0xfff8, .len = 16};
    is_int(bus_map(bus, &top.range), -EINVAL, "and ports beyond 64 K");
}

/* Every byte of a small space against the plain rule, over random maps. */
static void test_overlap_random(struct bus *bus)
{
    enum { N = 24, SPACE = 256 };
    struct probe probes[N];
    struct probe *order[N];
    unsigned mapped = 0, wrong = 0;

    srand(1);
    for (unsigned i = 0; i < N; i++)
        probe_init(&probes[i], bus, &probe_ops, BUS_MMIO, 0, 1, (uint8_t)i);
    for (unsigned step = 0; step < 400; step++) {
        struct probe *probe = &probes[rand() % N];
        if (probe->range.mapped) {
            unsigned at = 0;
            while (order[at] != probe)
                at++;
            mapped--;
            for (; at < mapped; at++)
                order[at] = order[at + 1];
            bus_unmap(bus, &probe->range);
        } else {
            probe->range.base = (unsigned)rand() % SPACE;
            probe->range.len = 1 + (unsigned)rand() % (SPACE - probe->range.base);
            bus_map(bus, &probe->range);
            order[mapped++] = probe;
        }
        for (unsigned addr = 0; addr < SPACE; addr++) {
            uint64_t want = 0xff;
            for (unsigned i = mapped; i-- > 0;) {
                if (addr - order[i]->range.base < order[i]->range.len)
                    want = (uint8_t)(order[i]->tag + addr - order[i]->range.base);
            }
            wrong += bus_read(bus, BUS_MMIO, addr, 1) != want;
        }
    }
    is_int(wrong, 0, "random overlaps: the range mapped first has every byte");
    while (mapped > 0)
        bus_unmap(bus, &order[--mapped]->range);
}

static void test_full(struct bus *bus)
{
    enum { N = 1000 };
    struct probe *probes = calloc(N, sizeof(*probes));
    unsigned mapped = 0;
    int rc = 0;

    while (probes && mapped < N) {
        probe_init(&probes[mapped], bus, &probe_ops, BUS_MMIO, 0x10000 + mapped * 4ULL, 2, 0);
        rc = bus_map(bus, &probes[mapped].range);
        if (rc < 0)
            break;
        mapped++;
    }
    is_int(rc, -ENOSPC, "a full bus says so");
    ok(mapped >= 256, "after many ranges");
    ok(!probes[mapped].range.mapped, "the range stays unmapped");
    is_int(bus_read(bus, BUS_MMIO, 0x10000 + (mapped - 1) * 4ULL, 2), 0x0100, "the last is found");
    while (mapped > 0)
        bus_unmap(bus, &probes[--mapped].range);
    free(probes);
}

static void test_strings(struct bus *bus)
{
    struct probe fifo;
    uint16_t in[3] = {0};
    const uint8_t out[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint32_t value = 0;

    probe_init(&fifo, bus, &probe_ops, BUS_PIO, 0x500, 4, 0x20);
    bus_map(bus, &fifo.range);
    bus_upcalls.pio_read(bus, 0x502, 2, in, 3);
    ok(in[0] == 0x2322 && in[1] == 0x2322 && in[2] == 0x2322, "rep insw reads the port each time");
    is_int(fifo.reads, 3, "as often as asked");
    bus_upcalls.pio_write(bus, 0x500, 4, out, 2);
    is_int(fifo.last_value, 0x08070605, "rep outsd writes one after the other");
    ok(!fifo.unlocked, "under the lock");

    fifo.writes = 0;
    fifo.unmap_after = 3;
    bus_upcalls.pio_write(bus, 0x500, 1, out, 8);
    is_int(fifo.writes, 3, "a device that unmaps itself gets no more of the string");
    bus_upcalls.pio_read(bus, 0x500, 2, in, 2);
    ok(in[0] == 0xffff && in[1] == 0xffff, "rep insw from nobody");

    fifo.range.space = BUS_MMIO;
    bus_map(bus, &fifo.range);
    bus_upcalls.mmio_read(bus, GPA(0x500), 4, &value);
    is_int(value, 0x23222120, "mmio_read");
    bus_upcalls.mmio_write(bus, GPA(0x502), 2, out);
    is_int(fifo.last_value, 0x0201, "mmio_write");
    bus_unmap(bus, &fifo.range);
}

/* One thread moves a range about, others read around it: every answer is one of the two devices' or
 * all ones, and no access comes without the lock. */
struct mover {
    struct bus *bus;
    struct probe *fixed, *moving;
    int stop;
    unsigned wrong;
};

static void *mover_reads(void *arg)
{
    struct mover *mover = arg;
    unsigned wrong = 0;

    while (!__atomic_load_n(&mover->stop, __ATOMIC_ACQUIRE)) {
        wrong += bus_read(mover->bus, BUS_MMIO, 0x5004, 1) != 0x14;
        uint64_t value = bus_read(mover->bus, BUS_MMIO, 0x6000, 1);
        wrong += value != 0x80 && value != 0xff;
    }
    __atomic_fetch_add(&mover->wrong, wrong, __ATOMIC_RELAXED);
    return NULL;
}

static void test_threads(struct bus *bus)
{
    struct probe fixed, moving;
    struct mover mover = {.bus = bus, .fixed = &fixed, .moving = &moving};
    pthread_t threads[2];

    probe_init(&fixed, bus, &probe_ops, BUS_MMIO, 0x5000, 0x10, 0x10);
    probe_init(&moving, bus, &probe_ops, BUS_MMIO, 0x6000, 0x10, 0x80);
    bus_map(bus, &fixed.range);
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, mover_reads, &mover);
    for (unsigned i = 0; i < 5000; i++) {
        device_lock(&moving.dev);
        bus_unmap(bus, &moving.range);
        moving.range.base = i % 2 ? 0x6000 : 0x4000;
        bus_map(bus, &moving.range);
        device_unlock(&moving.dev);
    }
    __atomic_store_n(&mover.stop, 1, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    is_int(mover.wrong, 0, "reads beside a range that moves all the time");
    ok(!fixed.unlocked && !moving.unlocked, "the lock was held every time");
    bus_unmap(bus, &fixed.range);
    bus_unmap(bus, &moving.range);
}

int main(void)
{
    struct bus *bus;
    struct err err = ERR_INIT;

    if (bus_new(&bus, &err) < 0)
        return 1;
    test_dispatch(bus);
    test_overlap(bus);
    test_overlap_random(bus);
    test_full(bus);
    test_strings(bus);
    test_threads(bus);
    bus_free(bus);
    bus_free(NULL);
    return tap_done();
}
