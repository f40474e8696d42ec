/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The IOAPIC (82093AA; ICH9 datasheet, 13.5): 24 inputs, each with a redirection entry.
 *
 * Threads: all functions under one lock of the caller's (irqchip.c).
 */
#ifndef HULL_ENGINE_CHIP_IOAPIC_H
#define HULL_ENGINE_CHIP_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "state/state.h"

#define IOAPIC_PINS 24
#define IOAPIC_BASE 0xfec00000ULL

struct ioapic_state {
    uint64_t entry[IOAPIC_PINS]; /* redirection table */
    uint32_t id;
    uint32_t level; /* inputs */
    uint8_t index;  /* IOREGSEL */
    uint8_t pad_[7];
};

extern const struct state_table ioapic_table;

struct ioapic {
    struct ioapic_state s;
    /* Send an interrupt message to the local APICs: has one of them accepted it? */
    bool (*send)(void *ctx, uint64_t addr, uint32_t data);
    void *ctx;
    bool wide_ids; /* bits 49-55 of an entry are bits 8-14 of the destination */
};

void ioapic_reset(struct ioapic *ioapic);
void ioapic_set(struct ioapic *ioapic, unsigned pin, bool level);
/* A local APIC has ended a level-triggered interrupt of that vector. */
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);
uint32_t ioapic_read(struct ioapic *ioapic, uint32_t offset);
void ioapic_write(struct ioapic *ioapic, uint32_t offset, uint32_t value);

#endif
