/* SPDX-License-Identifier: Apache-2.0 */
/* The 8259A pair against its data sheet. */
#include "engine/chip/pic.h"

#include "base/tap.h"

#define EOI         0x20
#define MASTER_BASE 0x30
#define SLAVE_BASE  0x70

static struct pic pic;

static void out(uint16_t port, uint8_t value)
{
    pic_write(&pic, port, value);
}

static uint8_t in(uint16_t port)
{
    uint8_t value = 0xff;
    pic_read(&pic, port, &value);
    return value;
}

static uint8_t irr(uint16_t port)
{
    out(port, 0x0a);
    return in(port);
}

static uint8_t isr(uint16_t port)
{
    out(port, 0x0b);
    return in(port);
}

/* As a PC's firmware does, with these ICW4s. */
static void init(uint8_t master_icw4, uint8_t slave_icw4)
{
    pic_reset(&pic);
    out(0x20, 0x11);
    out(0x21, MASTER_BASE);
    out(0x21, 0x04);
    out(0x21, master_icw4);
    out(0xa0, 0x11);
    out(0xa1, SLAVE_BASE);
    out(0xa1, 0x02);
    out(0xa1, slave_icw4);
}

static void edge(unsigned irq)
{
    pic_set(&pic, irq, false);
    pic_set(&pic, irq, true);
}

/* The vector that is delivered, -1: none. */
static int take(void)
{
    return pic_requests(&pic) ? pic_acknowledge(&pic) : -1;
}

static void test_table(void)
{
    char why[256] = "";
    state_table_check(&pic_table, why, sizeof(why));
    is_str(why, "", "the state table tiles the struct");
}

static void test_nesting(void)
{
    init(1, 1);
    is_int(take(), -1, "nothing is requested");
    edge(3);
    edge(5);
    is_int(irr(0x20), 0x28, "two requests");
    is_int(take(), MASTER_BASE + 3, "the higher one is first");
    is_int(irr(0x20), 0x20, "acknowledged, it is no request");
    is_int(isr(0x20), 0x08, "but in service");
    is_int(take(), -1, "a lower one waits");
    edge(1);
    is_int(take(), MASTER_BASE + 1, "a higher one interrupts");
    is_int(isr(0x20), 0x0a, "both are in service");
    out(0x20, EOI);
    is_int(isr(0x20), 0x08, "EOI ends the higher one");
    out(0x20, 0x63);
    is_int(isr(0x20), 0, "specific EOI");
    is_int(take(), MASTER_BASE + 5, "the lower one");
    out(0x20, EOI);
    out(0x20, EOI);
    is_int(take(), -1, "an EOI of nothing does nothing");

    edge(4);
    out(0x21, 0x10);
    is_int(take(), -1, "masked");
    is_int(irr(0x20), 0x10, "a request stays");
    is_int(in(0x21), 0x10, "the mask reads back");
    out(0x21, 0);
    is_int(take(), MASTER_BASE + 4, "unmasked");
    out(0x20, EOI);
    pic_set(&pic, 4, true);
    is_int(take(), -1, "a high line is no new edge");
}

static void test_cascade(void)
{
    init(1, 1);
    edge(9);
    edge(12);
    is_int(irr(0x20), 0x04, "the slave is the master's input 2");
    is_int(take(), SLAVE_BASE + 1, "the slave's vector");
    is_int(isr(0x20) | isr(0xa0) << 8, 0x0204, "in service in both");
    edge(3);
    is_int(take(), -1, "the master's lower inputs wait");
    edge(8);
    is_int(take(), -1, "the slave's higher ones, too: fully nested");
    out(0xa0, EOI);
    out(0x20, EOI);
    is_int(take(), SLAVE_BASE, "and come after the EOIs");
    out(0xa0, EOI);
    out(0x20, EOI);
    is_int(take(), SLAVE_BASE + 4, "one");
    out(0xa0, EOI);
    out(0x20, EOI);
    is_int(take(), MASTER_BASE + 3, "after the other");

    init(1, 3);
    edge(10);
    edge(11);
    is_int(take(), SLAVE_BASE + 2, "a slave with automatic EOI");
    out(0x20, EOI);
    is_int(take(), SLAVE_BASE + 3, "has its next request seen as an edge");
}

static void test_special_nested(void)
{
    init(0x11, 1);
    edge(12);
    is_int(take(), SLAVE_BASE + 4, "special fully nested: a slave in service");
    edge(9);
    is_int(take(), SLAVE_BASE + 1, "is interrupted by its own higher input");
    edge(3);
    is_int(take(), -1, "not by the master's lower ones");
    edge(1);
    is_int(take(), MASTER_BASE + 1, "by the higher ones");
    out(0x20, EOI);
    out(0xa0, EOI);
    is_int(isr(0xa0), 0x10, "software looks whether the slave has more in service");
    out(0xa0, EOI);
    out(0x20, EOI);
    is_int(take(), MASTER_BASE + 3, "before the EOI to the master");
}

static void test_rotation(void)
{
    init(1, 1);
    edge(4);
    edge(6);
    is_int(take(), MASTER_BASE + 4, "input 4");
    out(0x20, 0xa0);
    is_int(isr(0x20), 0, "rotate on non-specific EOI");
    edge(4);
    is_int(take(), MASTER_BASE + 6, "input 4 has the lowest priority now");
    edge(5);
    is_int(take(), MASTER_BASE + 5, "input 5 the highest");
    out(0x20, 0xe6);
    is_int(isr(0x20), 0x20, "rotate on specific EOI");
    out(0x20, 0xc4);
    edge(0);
    is_int(take(), -1, "set priority: 5, in service, is the highest");
    out(0x20, 0xc5);
    is_int(take(), MASTER_BASE, "and the lowest");
    out(0x20, 0x40);
    is_int(isr(0x20), 0x21, "no operation");
    out(0x20, 0x60);
    out(0x20, 0x65);
    is_int(take(), MASTER_BASE + 4, "what is left");

    init(3, 1);
    out(0x20, 0x80);
    edge(0);
    edge(1);
    is_int(take(), MASTER_BASE, "automatic EOI");
    is_int(isr(0x20), 0, "leaves nothing in service");
    edge(0);
    is_int(take(), MASTER_BASE + 1, "and rotates");
    out(0x20, 0x00);
    is_int(take(), MASTER_BASE, "0 at last");
    edge(1);
    edge(2 + 1);
    is_int(take(), MASTER_BASE + 3, "rotated twice, input 1 is the lowest");
    edge(3);
    is_int(take(), MASTER_BASE + 3, "until rotation is switched off");
}

static void test_special_mask(void)
{
    init(1, 1);
    edge(4);
    is_int(take(), MASTER_BASE + 4, "in service");
    edge(6);
    out(0x21, 0x10);
    is_int(take(), -1, "masking does not unblock");
    out(0x20, 0x68);
    is_int(take(), MASTER_BASE + 6, "special mask mode does");
    edge(7);
    is_int(take(), -1, "what is in service and not masked still blocks");
    edge(5);
    is_int(take(), MASTER_BASE + 5, "and is itself interrupted");
    out(0x20, EOI);
    out(0x20, EOI);
    out(0x20, EOI);
    is_int(isr(0x20), 0x10, "a non-specific EOI leaves the masked one alone");
    out(0x20, 0x64);
    is_int(isr(0x20), 0, "a specific one does not");
    out(0x20, 0x48);
    is_int(take(), MASTER_BASE + 7, "the lowest");
}

static void test_poll(void)
{
    init(1, 1);
    out(0x20, 0x0c);
    is_int(in(0x20), 0, "poll: nothing");
    is_int(in(0x20), 0, "one read only: then the request register");
    edge(5);
    out(0x20, 0x0c);
    is_int(in(0x21), 0x85, "poll: input 5, by either port");
    is_int(isr(0x20), 0x20, "which is in service");
    is_int(take(), -1, "and has been acknowledged");
    out(0x20, EOI);
    edge(8);
    edge(10);
    out(0x20, 0x0c);
    is_int(in(0x20), 0x82, "poll: the slave");
    out(0xa0, 0x0c);
    is_int(in(0xa0), 0x80, "poll it");
    out(0xa0, EOI);
    out(0x20, EOI);
    is_int(take(), SLAVE_BASE + 2, "its next request");
}

static void test_spurious(void)
{
    init(1, 1);
    edge(5);
    pic_set(&pic, 5, false);
    is_int(irr(0x20), 0, "an edge that goes before the acknowledge is no request");
    is_int(pic_acknowledge(&pic), MASTER_BASE + 7, "acknowledged all the same, it is input 7");
    is_int(isr(0x20), 0, "with nothing in service");
    out(0x21, 0xfb);
    edge(9);
    out(0xa1, 0xff);
    /* The processor has seen INTR, and the slave its INTA, before the mask. */
    pic.s.unit[0].irr |= 4;
    is_int(pic_acknowledge(&pic), SLAVE_BASE + 7, "a slave's is input 15");
    is_int(isr(0x20), 4, "which leaves the slave in service in the master");
    is_int(isr(0xa0), 0, "and nothing in the slave");
}

static void test_level(void)
{
    init(1, 1);
    out(0x4d0, 0xff);
    out(0x4d1, 0xff);
    is_int(in(0x4d0) | in(0x4d1) << 8, 0xdef8, "IRQ 0, 1, 2, 8 and 13 are always edges");
    pic_set(&pic, 5, true);
    is_int(take(), MASTER_BASE + 5, "a level");
    is_int(irr(0x20), 0x20, "is a request while it is high");
    out(0x20, EOI);
    is_int(take(), MASTER_BASE + 5, "again");
    pic_set(&pic, 5, false);
    out(0x20, EOI);
    is_int(take(), -1, "until it is low");

    pic_set(&pic, 6, true);
    out(0x4d0, 0);
    out(0x20, 0x11);
    out(0x21, MASTER_BASE);
    out(0x21, 4);
    out(0x21, 1);
    is_int(take(), -1, "as an edge, it has been before the initialisation");
    out(0x4d0, 0x40);
    is_int(take(), MASTER_BASE + 6, "as a level, it is now");
}

static void test_init(void)
{
    init(1, 1);
    edge(3);
    take();
    edge(4);
    out(0x21, 0xaa);
    out(0x20, 0x68);
    out(0x20, 0x0b);
    out(0x20, 0x10);
    is_int(in(0x20), 0, "ICW1 forgets edges, and reads the request register");
    out(0x21, 0x42);
    out(0x21, 0x04);
    is_int(in(0x21), 0, "it clears the mask");
    out(0x21, 0x55);
    is_int(in(0x21), 0x55, "without ICW4 the next word is a mask");
    out(0x21, 0);
    edge(4);
    is_int(take(), 0x44, "ICW2's low bits are the input's");
    out(0x20, 0x13);
    out(0x21, 0x50);
    out(0x21, 0x03);
    out(0x21, 0x80);
    is_int(in(0x21), 0x80, "a single controller gets no ICW3");
    edge(1);
    is_int(take(), 0x51, "its vector");
    is_int(isr(0x20), 0, "its automatic EOI");
    uint8_t value;
    ok(!pic_read(&pic, 0x22, &value) && !pic_write(&pic, 0xa2, 0), "other ports are not its");
}

int main(void)
{
    test_table();
    test_nesting();
    test_cascade();
    test_special_nested();
    test_rotation();
    test_special_mask();
    test_poll();
    test_spurious();
    test_level();
    test_init();
    return tap_done();
}
