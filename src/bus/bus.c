/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each space keeps its ranges in order of mapping, and beside that what the dispatch needs: a
 * sorted array of disjoint segments, in which overlaps are already resolved. A change rebuilds the
 * segments under the mutex and publishes them under a sequence count; a lookup takes no lock: it
 * searches, and searches again when the count moved meanwhile.
 *
 * What a lookup found may be unmapped before the device's lock is had. Ranges are mapped and
 * unmapped under that lock, so a second look at the range, with the lock held, decides.
 */
#include "bus/bus.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"

#define RANGES_MAX   512
#define SEGMENTS_MAX (2 * RANGES_MAX) /* they begin at a range's start or behind its end */

/* How often a lookup races with changes before it waits for the mutex. */
#define LOOKUP_TRIES 64

struct segment {
    uint64_t first, last; /* inclusive: a range may end at the top of the space */
    struct bus_range *range;
};

struct space {
    struct bus_range *ranges[RANGES_MAX]; /* in order of mapping */
    unsigned range_count;

    uint32_t sequence; /* odd while segments change */
    unsigned segment_count;
    struct segment segments[SEGMENTS_MAX];

    struct segment scratch[SEGMENTS_MAX];
};

struct bus {
    pthread_mutex_t lock; /* all of spaces, but the published segments for lookups */
    struct space spaces[2];
};

int bus_new(struct bus **bus, struct err *err)
{
    *bus = calloc(1, sizeof(**bus));
    if (!*bus)
        return err_errno(err, ENOMEM, "cannot make the bus");
    pthread_mutex_init(&(*bus)->lock, NULL);
    return 0;
}

void bus_free(struct bus *bus)
{
    if (!bus)
        return;
    pthread_mutex_destroy(&bus->lock);
    free(bus);
}

/* --- the segments --- */

/* Give range what of [first, last] none of the `count` segments in sorted order holds; returns the
 * new count. */
static unsigned segments_add(struct segment *segments, unsigned count, struct bus_range *range)
{
    uint64_t first = range->base, last = range->base + (range->len - 1);
    unsigned i = 0;

    while (i < count && segments[i].last < first)
        i++;
    for (;;) {
        bool at_end = i == count || segments[i].first > last;
        uint64_t gap_last = at_end ? last : segments[i].first - 1;

        if (at_end || segments[i].first > first) {
            assert(count < SEGMENTS_MAX);
            memmove(&segments[i + 1], &segments[i], (count - i) * sizeof(*segments));
            segments[i] = (struct segment){first, gap_last, range};
            count++;
            i++;
        }
        if (at_end || segments[i].last >= last)
            return count;
        first = segments[i].last + 1;
        i++;
    }
}

/*
 * Element stores release, element loads in a lookup acquire: a lookup that saw one new element sees
 * the odd count, too, when it looks again (H. Boehm, "Can seqlocks get along with programming
 * language memory models?", 2012).
 */
static void space_publish(struct space *space)
{
    unsigned count = 0;
    uint32_t sequence = space->sequence;

    for (unsigned i = 0; i < space->range_count; i++)
        count = segments_add(space->scratch, count, space->ranges[i]);

    __atomic_store_n(&space->sequence, sequence + 1, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < count; i++) {
        __atomic_store_n(&space->segments[i].first, space->scratch[i].first, __ATOMIC_RELEASE);
        __atomic_store_n(&space->segments[i].last, space->scratch[i].last, __ATOMIC_RELEASE);
        __atomic_store_n(&space->segments[i].range, space->scratch[i].range, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&space->segment_count, count, __ATOMIC_RELEASE);
    __atomic_store_n(&space->sequence, sequence + 2, __ATOMIC_RELEASE);
}

/* The segment that holds addr; false when there is none. Right only if nobody publishes. */
static bool space_search(const struct space *space, uint64_t addr, struct segment *found)
{
    unsigned low = 0, high = __atomic_load_n(&space->segment_count, __ATOMIC_ACQUIRE);

    while (low < high) {
        unsigned middle = (low + high) / 2;
        const struct segment *segment = &space->segments[middle];

        if (addr < __atomic_load_n(&segment->first, __ATOMIC_ACQUIRE)) {
            high = middle;
        } else if (addr > __atomic_load_n(&segment->last, __ATOMIC_ACQUIRE)) {
            low = middle + 1;
        } else {
            found->last = __atomic_load_n(&segment->last, __ATOMIC_ACQUIRE);
            found->range = __atomic_load_n(&segment->range, __ATOMIC_ACQUIRE);
            return true;
        }
    }
    return false;
}

static bool space_lookup(struct bus *bus, enum bus_space which, uint64_t addr,
                         struct segment *found)
{
    struct space *space = &bus->spaces[which];
    bool hit;

    for (unsigned i = 0; i < LOOKUP_TRIES; i++) {
        uint32_t sequence = __atomic_load_n(&space->sequence, __ATOMIC_ACQUIRE);

        hit = space_search(space, addr, found);
        if (!(sequence & 1) && __atomic_load_n(&space->sequence, __ATOMIC_ACQUIRE) == sequence)
            return hit;
    }
    pthread_mutex_lock(&bus->lock);
    hit = space_search(space, addr, found);
    pthread_mutex_unlock(&bus->lock);
    return hit;
}

/* --- mapping --- */

int bus_map(struct bus *bus, struct bus_range *range)
{
    struct space *space = &bus->spaces[range->space];
    uint64_t space_last = range->space == BUS_PIO ? 0xffff : UINT64_MAX;
    int rc = 0;

    assert(!range->mapped);
    if (range->len == 0 || range->base > space_last || range->len - 1 > space_last - range->base)
        return -EINVAL;
    pthread_mutex_lock(&bus->lock);
    if (space->range_count == RANGES_MAX) {
        rc = -ENOSPC;
    } else {
        space->ranges[space->range_count++] = range;
        range->mapped = true;
        space_publish(space);
    }
    pthread_mutex_unlock(&bus->lock);
    return rc;
}

void bus_unmap(struct bus *bus, struct bus_range *range)
{
    struct space *space = &bus->spaces[range->space];
    unsigned i = 0;

    if (!range->mapped)
        return;
    pthread_mutex_lock(&bus->lock);
    while (space->ranges[i] != range)
        i++;
    space->range_count--;
    memmove(&space->ranges[i], &space->ranges[i + 1],
            (space->range_count - i) * sizeof(space->ranges[0]));
    range->mapped = false;
    space_publish(space);
    pthread_mutex_unlock(&bus->lock);
}

/* --- accesses --- */

static uint64_t size_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ULL << (size * 8)) - 1;
}

/* Device lock held. */
static uint64_t range_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    unsigned piece = size < range->ops->max_size ? size : range->ops->max_size;
    uint64_t value = 0;

    if (!range->ops->read)
        return size_mask(size);
    for (unsigned done = 0; done < size; done += piece) {
        uint64_t part = range->ops->read(range, offset + done, piece);
        value |= (part & size_mask(piece)) << (done * 8);
    }
    return value;
}

static void range_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    unsigned piece = size < range->ops->max_size ? size : range->ops->max_size;

    if (!range->ops->write)
        return;
    for (unsigned done = 0; done < size; done += piece)
        range->ops->write(range, offset + done, (value >> (done * 8)) & size_mask(piece), piece);
}

enum claim {
    CLAIM_NONE,  /* nobody is there */
    CLAIM_SPLIT, /* no single range takes the whole access, but its bytes may be claimed */
    CLAIM_RANGE, /* the range, its device locked */
};

static enum claim access_claim(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size,
                               struct bus_range **range)
{
    struct segment segment;

    for (unsigned i = 0; i < LOOKUP_TRIES; i++) {
        if (!space_lookup(bus, space, addr, &segment))
            return size > 1 ? CLAIM_SPLIT : CLAIM_NONE;
        if (segment.last - addr < size - 1 || !is_power_of_two(size))
            return CLAIM_SPLIT;
        device_lock(segment.range->dev);
        *range = segment.range;
        if ((*range)->mapped && addr >= (*range)->base &&
            range_fits(addr - (*range)->base, size, (*range)->len))
            return CLAIM_RANGE;
        device_unlock(segment.range->dev);
    }
    return CLAIM_NONE;
}

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size)
{
    struct bus_range *range;
    uint64_t value = 0;

    switch (access_claim(bus, space, addr, size, &range)) {
    case CLAIM_NONE:
        return size_mask(size);
    case CLAIM_RANGE:
        value = range_read(range, addr - range->base, size);
        device_unlock(range->dev);
        return value;
    case CLAIM_SPLIT:
        break;
    }
    for (unsigned i = 0; i < size; i++)
        value |= bus_read(bus, space, addr + i, 1) << (i * 8);
    return value;
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, uint64_t value, unsigned size)
{
    struct bus_range *range;

    switch (access_claim(bus, space, addr, size, &range)) {
    case CLAIM_NONE:
        return;
    case CLAIM_RANGE:
        range_write(range, addr - range->base, value, size);
        device_unlock(range->dev);
        return;
    case CLAIM_SPLIT:
        break;
    }
    for (unsigned i = 0; i < size; i++)
        bus_write(bus, space, addr + i, (value >> (i * 8)) & 0xff, 1);
}

/* --- the engine's upcalls --- */

/* One lookup and one lock for a whole string instruction, unless an access moves the range. */
static void upcall_pio_read(void *ctx, uint16_t port, unsigned size, void *data, uint32_t count)
{
    struct bus_range *range;
    uint8_t *bytes = data;
    uint32_t done = 0;

    while (done < count) {
        if (access_claim(ctx, BUS_PIO, port, size, &range) != CLAIM_RANGE) {
            store_le(bytes + (size_t)done++ * size, bus_read(ctx, BUS_PIO, port, size), size);
            continue;
        }
        do {
            uint64_t value = range_read(range, port - range->base, size);
            store_le(bytes + (size_t)done++ * size, value, size);
        } while (done < count && range->mapped && range_fits(port - range->base, size, range->len));
        device_unlock(range->dev);
    }
}

static void upcall_pio_write(void *ctx, uint16_t port, unsigned size, const void *data,
                             uint32_t count)
{
    struct bus_range *range;
    const uint8_t *bytes = data;
    uint32_t done = 0;

    while (done < count) {
        if (access_claim(ctx, BUS_PIO, port, size, &range) != CLAIM_RANGE) {
            bus_write(ctx, BUS_PIO, port, load_le(bytes + (size_t)done++ * size, size), size);
            continue;
        }
        do {
            uint64_t value = load_le(bytes + (size_t)done++ * size, size);
            range_write(range, port - range->base, value, size);
        } while (done < count && range->mapped && range_fits(port - range->base, size, range->len));
        device_unlock(range->dev);
    }
}

static void upcall_mmio_read(void *ctx, gpa_t gpa, unsigned size, void *data)
{
    store_le(data, bus_read(ctx, BUS_MMIO, gpa.a, size), size);
}

static void upcall_mmio_write(void *ctx, gpa_t gpa, unsigned size, const void *data)
{
    bus_write(ctx, BUS_MMIO, gpa.a, load_le(data, size), size);
}

const struct engine_upcalls bus_upcalls = {
    .pio_read = upcall_pio_read,
    .pio_write = upcall_pio_write,
    .mmio_read = upcall_mmio_read,
    .mmio_write = upcall_mmio_write,
};
