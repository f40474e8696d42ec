/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupt routing: what devices call to raise a line or send a message. Lines may be shared; the
 * controller sees the OR of all that share an input. All functions may be called from every thread.
 */
#ifndef HULL_BUS_IRQ_H
#define HULL_BUS_IRQ_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"

#define IRQ_GSI_COUNT 24

/* One VM's interrupt inputs; embedded in the board. */
struct irq_router {
    struct engine_vm *vm;
    pthread_mutex_t lock;
    uint16_t asserted[IRQ_GSI_COUNT]; /* how many lines hold this input up */
    uint16_t pic_asserted[16];        /* likewise, PCI interrupts routed to the PIC alone */
    bool level[IRQ_GSI_COUNT];        /* what the engine was told */
    const struct irq_line *sole[IRQ_GSI_COUNT]; /* drives this input alone; NULL: all lines do */
};

void irq_router_init(struct irq_router *router, struct engine_vm *vm);
void irq_router_fini(struct irq_router *router);

/* A device's output wire to one input. Zero level after init. */
struct irq_line {
    struct irq_router *router;
    uint8_t gsi;
    bool level;
};

void irq_line_init(struct irq_line *line, struct irq_router *router, unsigned gsi);
/* Calls the engine only when the OR changes. Caller holds its device's lock. */
void irq_line_set(struct irq_line *line, bool level);
/* Edge: up and down again. */
void irq_line_pulse(struct irq_line *line);

/*
 * From now on this line drives its input in place of all others, whose levels are kept until
 * irq_line_restore(). At most one line of an input does so. For the HPET, which takes the input of
 * the real-time clock over (IA-PC HPET 1.0a, 2.3.5). Caller holds its device's lock.
 */
void irq_line_replace(struct irq_line *line);
void irq_line_restore(struct irq_line *line);

/* For the LPC bridge: raise or lower one more holder of a PIC input. */
void irq_pic_adjust(struct irq_router *router, unsigned irq, bool level);

/* Send a message; a message the engine cannot deliver is dropped, as on the bus. */
void irq_msi_send(struct irq_router *router, uint64_t addr, uint32_t data);

#endif
