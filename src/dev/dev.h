/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the chipset's devices get from the board. Each constructor below dev/ makes one device, maps
 * it, and gives its struct device for the board's list; ops->fini of that device unmaps it and
 * frees its memory. The board frees devices in reverse order of creation, and the PCI bus, the
 * interrupt router and the loop after them.
 */
#ifndef HULL_DEV_DEV_H
#define HULL_DEV_DEV_H

#include <stdbool.h>

#include "base/err.h"
#include "base/loop.h"
#include "bus/bus.h"
#include "bus/device.h"
#include "bus/irq.h"
#include "bus/pci.h"

/*
 * What the guest did to the machine as a whole. All are set; called with the device's lock held, on
 * any thread, so they only note the event and return: the guest goes on until the VM stops it.
 */
struct dev_events {
    void *ctx;
    void (*power_off)(void *ctx);
    void (*reset)(void *ctx);
    /* crash_loaded: a crash kernel takes over, let the guest run. */
    void (*panicked)(void *ctx, bool crash_loaded);
    void (*exit)(void *ctx, unsigned value); /* isa-debug-exit: what was written */
};

struct dev_env {
    struct bus *bus;
    struct irq_router *irq;
    struct pci_bus *pci;
    struct loop *loop;
    const struct dev_events *events;
};

#endif
