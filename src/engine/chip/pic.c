/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/chip/pic.h"

#define CASCADE     2u
#define SPURIOUS    7u
#define ICW1_INIT   0x10u
#define ICW1_SINGLE 0x02u
#define ICW1_ICW4   0x01u
#define ICW4_AUTO   0x02u
#define ICW4_NESTED 0x10u
#define OCW3        0x08u

static const struct state_field unit_fields[] = {
    STATE_U8(struct pic_unit, irr, 1, 0, "Interrupt request register"),
    STATE_U8(struct pic_unit, level, 1, 0, "Levels of the inputs"),
    STATE_U8(struct pic_unit, isr, 1, 0, "In-service register"),
    STATE_U8(struct pic_unit, imr, 1, 0, "Interrupt mask register"),
    STATE_U8(struct pic_unit, elcr, 1, 0, "Edge/level control register"),
    STATE_U8(struct pic_unit, base, 1, 0, "ICW2: vector of input 0"),
    STATE_U8(struct pic_unit, lowest, 1, 7, "Input of lowest priority"),
    STATE_U8(struct pic_unit, init, 1, 0, "Next initialisation word, 0: none"),
    STATE_U8(struct pic_unit, icw4, 1, 0, "ICW4 will come"),
    STATE_U8(struct pic_unit, single, 1, 0, "ICW3 will not come"),
    STATE_U8(struct pic_unit, auto_eoi, 1, 0, "ICW4: automatic end of interrupt"),
    STATE_U8(struct pic_unit, rotate_on_auto_eoi, 1, 0, "Rotate priorities at automatic EOI"),
    STATE_U8(struct pic_unit, special_mask, 1, 0, "OCW3: special mask mode"),
    STATE_U8(struct pic_unit, special_nested, 1, 0, "ICW4: special fully nested mode"),
    STATE_U8(struct pic_unit, read_isr, 1, 0, "OCW3: command port reads ISR"),
    STATE_U8(struct pic_unit, poll, 1, 0, "OCW3: the next read polls"),
    STATE_U8(struct pic_unit, elcr_mask, 1, 0, "Inputs that may be level triggered"),
};
static const struct state_table unit_table = STATE_TABLE("8259", struct pic_unit, 1, unit_fields);

static const struct state_field pic_fields[] = {
    STATE_STRUCT(struct pic_state, unit, struct pic_unit, 1, &unit_table, "Master and slave"),
};
const struct state_table pic_table = STATE_TABLE("pic", struct pic_state, 1, pic_fields);

/* Priority of an input, 0 the highest. */
static unsigned priority_of(const struct pic_unit *u, unsigned input)
{
    return (input - u->lowest - 1) & 7;
}

/* The input of highest priority among bits, or 8. */
static unsigned highest(const struct pic_unit *u, uint8_t bits)
{
    for (unsigned n = 0; n < 8; n++) {
        unsigned input = (u->lowest + 1 + n) & 7;
        if (bits >> input & 1)
            return input;
    }
    return 8;
}

/* The input that the unit would deliver now, or 8. */
static unsigned pending(const struct pic_unit *u, bool master)
{
    unsigned input = highest(u, u->irr & ~u->imr);
    if (input == 8)
        return 8;
    /* What is in service and masked blocks nobody in special mask mode; what is not masked still
     * does (8259A, "Special mask mode"). */
    unsigned current = highest(u, u->special_mask ? u->isr & ~u->imr : u->isr);
    if (current == 8 || priority_of(u, input) < priority_of(u, current))
        return input;
    /* A slave's next request may come while its last one is in service; the inputs below it are
     * blocked all the same ("Special fully nested mode"). */
    return master && u->special_nested && input == CASCADE && current == CASCADE ? input : 8;
}

static void unit_set(struct pic_unit *u, unsigned input, bool level)
{
    uint8_t bit = (uint8_t)(1u << input);
    if (u->elcr & bit)
        u->irr = level ? u->irr | bit : u->irr & (uint8_t)~bit;
    else if (level && !(u->level & bit))
        u->irr |= bit;
    else if (!level) /* an edge that goes before it is acknowledged is spurious */
        u->irr &= (uint8_t)~bit;
    u->level = level ? u->level | bit : u->level & (uint8_t)~bit;
}

static void update(struct pic *pic)
{
    unit_set(&pic->s.unit[0], CASCADE, pending(&pic->s.unit[1], false) != 8);
    pic->output = pending(&pic->s.unit[0], true) != 8;
}

void pic_reset(struct pic *pic)
{
    state_reset(&pic_table, &pic->s);
    pic->s.unit[0].elcr_mask = 0xf8; /* ICH9 datasheet, 13.4.10: IRQ 0-2 are always edges */
    pic->s.unit[1].elcr_mask = 0xde; /* 8 and 13 too */
    pic->output = false;
}

void pic_set(struct pic *pic, unsigned irq, bool level)
{
    unit_set(&pic->s.unit[irq / 8], irq % 8, level);
    update(pic);
}

bool pic_requests(const struct pic *pic)
{
    return pic->output;
}

static void end_of_interrupt(struct pic_unit *u, unsigned input, bool rotate)
{
    u->isr &= (uint8_t) ~(1u << input);
    if (rotate)
        u->lowest = (uint8_t)input;
}

/* One unit's INTA cycle: the input, or SPURIOUS. */
static unsigned unit_acknowledge(struct pic_unit *u, bool master)
{
    unsigned input = pending(u, master);
    if (input == 8)
        return SPURIOUS;
    uint8_t bit = (uint8_t)(1u << input);
    u->isr |= bit;
    if (!(u->elcr & bit))
        u->irr &= (uint8_t)~bit;
    if (u->auto_eoi)
        end_of_interrupt(u, input, u->rotate_on_auto_eoi);
    return input;
}

/* The slave's INT goes low at INTA, and rises again for what else it has: the master sees an edge
 * even where the next request was there before. */
static unsigned slave_acknowledge(struct pic *pic)
{
    unsigned input = unit_acknowledge(&pic->s.unit[1], false);
    unit_set(&pic->s.unit[0], CASCADE, false);
    return input;
}

uint8_t pic_acknowledge(struct pic *pic)
{
    struct pic_unit *master = &pic->s.unit[0], *slave = &pic->s.unit[1];
    unsigned input = unit_acknowledge(master, true);
    uint8_t vector = (uint8_t)(master->base + input);
    if (input == CASCADE)
        vector = (uint8_t)(slave->base + slave_acknowledge(pic));
    update(pic);
    return vector;
}

/* --- ports --- */

static void write_icw1(struct pic_unit *u, uint8_t value)
{
    uint8_t elcr = u->elcr, level = u->level, mask = u->elcr_mask;
    state_reset(&unit_table, u);
    u->elcr = elcr;
    u->elcr_mask = mask;
    u->level = level;
    u->irr = level & elcr;
    u->init = 2;
    u->icw4 = value & ICW1_ICW4;
    u->single = (value & ICW1_SINGLE) != 0;
}

static void write_ocw2(struct pic_unit *u, uint8_t value)
{
    unsigned input = value & 7;
    bool rotate = value & 0x80, specific = value & 0x40, eoi = value & 0x20;
    if (eoi) {
        if (!specific)
            input = highest(u, u->special_mask ? u->isr & ~u->imr : u->isr);
        if (input < 8)
            end_of_interrupt(u, input, rotate);
    } else if (specific && rotate) {
        u->lowest = (uint8_t)input;
    } else if (!specific) {
        u->rotate_on_auto_eoi = rotate;
    }
}

static void write_command(struct pic_unit *u, uint8_t value)
{
    if (value & ICW1_INIT) {
        write_icw1(u, value);
    } else if (value & OCW3) {
        if (value & 0x04)
            u->poll = 1;
        else if (value & 0x02)
            u->read_isr = value & 1;
        if (value & 0x40)
            u->special_mask = value >> 5 & 1;
    } else {
        write_ocw2(u, value);
    }
}

static void write_data(struct pic_unit *u, uint8_t value)
{
    switch (u->init) {
    case 2:
        u->base = value & 0xf8;
        u->init = !u->single ? 3 : u->icw4 ? 4 : 0;
        break;
    case 3:
        u->init = u->icw4 ? 4 : 0;
        break;
    case 4:
        u->auto_eoi = (value & ICW4_AUTO) != 0;
        u->special_nested = (value & ICW4_NESTED) != 0;
        u->init = 0;
        break;
    default:
        u->imr = value;
        break;
    }
}

/* A poll is an INTA without a vector (8259A, "Poll command"). */
static uint8_t read_poll(struct pic *pic, struct pic_unit *u)
{
    bool master = u == &pic->s.unit[0];
    u->poll = 0;
    if (pending(u, master) == 8)
        return 0;
    return (uint8_t)(0x80 | (master ? unit_acknowledge(u, true) : slave_acknowledge(pic)));
}

/* A level-triggered request is the level. */
static void write_elcr(struct pic_unit *u, uint8_t value)
{
    u->elcr = value & u->elcr_mask;
    u->irr = (u->irr & (uint8_t)~u->elcr) | (u->level & u->elcr);
}

static struct pic_unit *unit_of_port(struct pic *pic, uint16_t port)
{
    switch (port) {
    case 0x20:
    case 0x21:
    case 0x4d0:
        return &pic->s.unit[0];
    case 0xa0:
    case 0xa1:
    case 0x4d1:
        return &pic->s.unit[1];
    default:
        return NULL;
    }
}

bool pic_read(struct pic *pic, uint16_t port, uint8_t *value)
{
    struct pic_unit *u = unit_of_port(pic, port);
    if (!u)
        return false;
    if (port >= 0x4d0)
        *value = u->elcr;
    else if (u->poll)
        *value = read_poll(pic, u);
    else if (port & 1)
        *value = u->imr;
    else
        *value = u->read_isr ? u->isr : u->irr;
    update(pic);
    return true;
}

bool pic_write(struct pic *pic, uint16_t port, uint8_t value)
{
    struct pic_unit *u = unit_of_port(pic, port);
    if (!u)
        return false;
    if (port >= 0x4d0)
        write_elcr(u, value);
    else if (port & 1)
        write_data(u, value);
    else
        write_command(u, value);
    update(pic);
    return true;
}
