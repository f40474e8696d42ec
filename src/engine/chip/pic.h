/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pair of 8259A interrupt controllers, as the ICH9 has them (ICH9 datasheet, 5.8 and 13.4),
 * with their edge/level control registers.
 *
 * Threads: all functions under one lock of the caller's (irqchip.c).
 */
#ifndef HULL_ENGINE_CHIP_PIC_H
#define HULL_ENGINE_CHIP_PIC_H

#include <stdbool.h>
#include <stdint.h>

#include "state/state.h"

struct pic_unit {
    uint8_t irr;    /* requests, latched for edge inputs */
    uint8_t level;  /* levels of the inputs */
    uint8_t isr;    /* in service */
    uint8_t imr;    /* masked */
    uint8_t elcr;   /* level triggered */
    uint8_t base;   /* ICW2: vector of input 0 */
    uint8_t lowest; /* input of lowest priority */
    uint8_t init;   /* ICWs still to come: 0 none, else the number of the next (2-4) */
    uint8_t icw4;   /* ICW1 announced ICW4 */
    uint8_t single; /* ICW1: no other controller, so no ICW3 */
    uint8_t auto_eoi;
    uint8_t rotate_on_auto_eoi;
    uint8_t special_mask;
    uint8_t special_nested;
    uint8_t read_isr; /* a read of the command port gives ISR, not IRR */
    uint8_t poll;     /* the next read is a poll */
    uint8_t elcr_mask;
};

struct pic_state {
    struct pic_unit unit[2]; /* master, slave */
};

extern const struct state_table pic_table;

struct pic {
    struct pic_state s;
    bool output; /* INTR of the master */
};

void pic_reset(struct pic *pic);
void pic_set(struct pic *pic, unsigned irq, bool level);
/* INTR: is an interrupt requested? */
bool pic_requests(const struct pic *pic);
/* Both INTA cycles: the vector (a spurious one where the request has gone). */
uint8_t pic_acknowledge(struct pic *pic);
/* Ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1. */
bool pic_read(struct pic *pic, uint16_t port, uint8_t *value);
bool pic_write(struct pic *pic, uint16_t port, uint8_t value);

#endif
