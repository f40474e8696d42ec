/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dispatch of port and memory accesses to devices. A device embeds its ranges and maps them; the
 * bus finds the range of an access, takes the device's lock, cuts the access to what the device
 * takes, and calls it. Reads that nobody claims give all ones, writes are dropped, as on a PC.
 *
 * Threads: all functions may be called from every thread. The bus's own lock is never held while a
 * device's lock is taken, so that a device may map and unmap ranges from inside an access. A range
 * changes, and is mapped and unmapped, only with the lock of its device held, or while no vCPU
 * runs; its memory stays until no vCPU can be inside the dispatch any more.
 */
#ifndef HULL_BUS_BUS_H
#define HULL_BUS_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "bus/device.h"
#include "engine/engine.h"

struct bus;
struct bus_range;

enum bus_space {
    BUS_PIO,
    BUS_MMIO,
};

/*
 * offset is relative to the range; size is 1, 2, 4 or 8, at most max_size, and offset + size lies
 * in the range. An access is naturally aligned only if the guest's was. NULL read: all ones. NULL
 * write: dropped.
 */
struct bus_range_ops {
    uint64_t (*read)(struct bus_range *range, uint64_t offset, unsigned size);
    void (*write)(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size);
    unsigned max_size; /* larger accesses are cut into pieces of this size, low address first */
};

struct bus_range {
    const struct bus_range_ops *ops;
    struct device *dev; /* whose lock guards it */
    enum bus_space space;
    uint64_t base;
    uint64_t len;
    bool mapped; /* the bus's */
};

int bus_new(struct bus **bus, struct err *err);
void bus_free(struct bus *bus);

/*
 * Map range->base..+len. Where ranges overlap, the one mapped first wins (a guest may place BARs on
 * top of each other or of the chipset). -ENOSPC when the bus is full, -EINVAL when the range does
 * not fit into the space: then it stays unmapped.
 */
int bus_map(struct bus *bus, struct bus_range *range);
void bus_unmap(struct bus *bus, struct bus_range *range);

/* One access of at most 8 bytes, from a vCPU, a test, or a device acting as bus master on MMIO. A
 * device must not reach itself or, with its lock held, another device. */
uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size);
void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, uint64_t value, unsigned size);

/* The engine's way in; ctx is the struct bus. */
extern const struct engine_upcalls bus_upcalls;

#endif
