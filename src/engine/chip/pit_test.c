/* SPDX-License-Identifier: Apache-2.0 */
/* The 8254 against its data sheet, on a virtual clock. */
#include "engine/chip/pit.h"

#include "base/err.h"
#include "base/tap.h"

#define PIT_HZ 1193182ULL

static struct pit pit;
static struct chip_clock *the_clock;
static unsigned rises;
static bool level;

static void irq(void *ctx, bool up)
{
    (void)ctx;
    rises += up && !level;
    level = up;
}

static void tick(void *ctx)
{
    pit_tick(ctx);
}

static void out(uint16_t port, uint8_t value)
{
    pit_write(&pit, port, value);
}

static uint8_t in(uint16_t port)
{
    uint8_t value = 0xff;
    pit_read(&pit, port, &value);
    return value;
}

/* A nanosecond into the tick, so that rounding does not matter. */
static void advance(uint64_t ticks)
{
    uint64_t end = chip_clock_now(the_clock) + ticks * 1000000000ULL / PIT_HZ + 2, next;
    while ((next = chip_clock_advance(the_clock, chip_clock_now(the_clock))) <= end)
        chip_clock_advance(the_clock, next);
    chip_clock_advance(the_clock, end);
}

static void control(unsigned counter, unsigned access, unsigned mode, unsigned bcd)
{
    out(0x43, (uint8_t)(counter << 6 | access << 4 | mode << 1 | bcd));
}

static void load(unsigned counter, uint16_t count)
{
    out((uint16_t)(0x40 + counter), (uint8_t)count);
    out((uint16_t)(0x40 + counter), (uint8_t)(count >> 8));
}

static unsigned count(unsigned counter)
{
    unsigned low;
    out(0x43, (uint8_t)(counter << 6));
    low = in((uint16_t)(0x40 + counter));
    return low | (unsigned)in((uint16_t)(0x40 + counter)) << 8;
}

/* What counter 1 shows in two reads. */
static unsigned word1(void)
{
    unsigned low = in(0x41);
    return low | (unsigned)in(0x41) << 8;
}

static unsigned status(unsigned counter)
{
    out(0x43, (uint8_t)(0xe0 | 2u << counter));
    return in((uint16_t)(0x40 + counter));
}

static bool out2(void)
{
    return in(0x61) >> 5 & 1;
}

static void gate(bool on)
{
    out(0x61, on);
}

static void reset(void)
{
    pit_reset(&pit);
    level = false;
    gate(true);
}

static void test_mode0(void)
{
    reset();
    control(2, 3, 0, 0);
    ok(!out2(), "mode 0: low after the control word");
    is_int(status(2), 0x70, "null count, both bytes, mode 0");
    load(2, 100);
    is_int(status(2), 0x30, "the count is loaded");
    advance(40);
    is_int(count(2), 60, "it counts down");
    ok(!out2(), "low meanwhile");
    gate(false);
    advance(1000);
    is_int(count(2), 60, "a low gate holds it");
    gate(true);
    advance(59);
    ok(!out2(), "not yet");
    advance(1);
    ok(out2(), "high at zero");
    advance(10);
    is_int(count(2), 0xfff6, "it counts on");
    ok(out2(), "and stays high");
    out(0x42, 50);
    ok(!out2(), "the first byte of a count makes it low");
    advance(100);
    out(0x42, 0);
    advance(49);
    is_int(count(2), 1, "the second byte starts it");
    advance(1);
    ok(out2(), "and it ends");
    gate(false);
    load(2, 10);
    advance(20);
    is_int(count(2), 10, "loaded under a low gate it waits");
    gate(true);
    advance(10);
    ok(out2(), "for the gate");
}

static void test_mode1(void)
{
    reset();
    gate(false);
    control(2, 3, 1, 0);
    load(2, 100);
    advance(200);
    ok(out2(), "mode 1: high until a trigger");
    is_int(status(2), 0xf2, "the count is not loaded");
    gate(true);
    ok(!out2(), "low from the trigger");
    is_int(status(2) & 0x40, 0, "which loads the count");
    advance(60);
    gate(false);
    is_int(count(2), 40, "the gate's level does not matter");
    gate(true);
    advance(99);
    ok(!out2(), "a trigger starts it over");
    load(2, 10);
    is_int(status(2) & 0x40, 0x40, "a new count waits");
    advance(1);
    ok(out2(), "for the next trigger");
    gate(false);
    gate(true);
    advance(10);
    ok(out2(), "which it is for");
    control(2, 3, 1, 0);
    gate(false);
    gate(true);
    ok(out2(), "a trigger without a count does nothing");
}

static void test_mode2(void)
{
    reset();
    control(2, 3, 2, 0);
    load(2, 100);
    advance(99);
    ok(!out2(), "mode 2: low for a tick");
    is_int(count(2), 1, "at count 1");
    advance(1);
    ok(out2(), "and high again");
    is_int(count(2), 100, "with the count");
    advance(40);
    load(2, 50);
    is_int(status(2) & 0x40, 0x40, "a new count waits");
    advance(59);
    is_int(count(2), 1, "for the end of the period");
    advance(1);
    is_int(count(2), 50, "and is loaded then");
    is_int(status(2) & 0x40, 0, "loaded");
    advance(49);
    ok(!out2(), "its period");
    gate(false);
    ok(out2(), "a low gate makes the output high");
    advance(10);
    is_int(count(2), 1, "and holds the count");
    gate(true);
    is_int(count(2), 50, "a rising one starts a period");
    control(2, 3, 6, 0);
    is_int(status(2) & 0x0e, 0x04, "mode 6 is mode 2");
}

static void test_mode3(void)
{
    reset();
    control(2, 3, 3, 0);
    load(2, 7);
    advance(3);
    ok(out2(), "mode 3: the high half of an odd count is the longer one");
    is_int(count(2), 0, "it counts by two");
    advance(1);
    ok(!out2(), "then the low half");
    is_int(count(2), 6, "counts again");
    advance(2);
    ok(!out2(), "until the end");
    advance(1);
    ok(out2(), "of the period");
    load(2, 100);
    advance(4);
    ok(!out2(), "a new count is loaded with the next half");
    is_int(count(2), 100, "it is");
    advance(49);
    ok(!out2(), "a half of its length");
    advance(1);
    ok(out2(), "then the other");
    gate(false);
    advance(500);
    ok(out2(), "a low gate makes the output high");
    gate(true);
    advance(50);
    ok(!out2(), "a rising one starts a period");
    load(2, 0);
    advance(50);
    advance(32767);
    ok(out2(), "0 is 65536");
    advance(1);
    ok(!out2(), "its half");
}

static void test_strobes(void)
{
    reset();
    control(2, 3, 4, 0);
    ok(out2(), "mode 4: high");
    load(2, 20);
    advance(10);
    gate(false);
    advance(10);
    gate(true);
    advance(10);
    ok(!out2(), "a strobe at zero, the gate's pause left out");
    advance(1);
    ok(out2(), "of a tick");
    load(2, 5);
    advance(5);
    ok(!out2(), "each count is a strobe");

    gate(false);
    control(2, 3, 5, 0);
    load(2, 20);
    advance(20);
    ok(out2(), "mode 5: no strobe without a trigger");
    gate(true);
    advance(20);
    ok(!out2(), "a strobe after one");
    gate(false);
    gate(true);
    advance(20);
    ok(!out2(), "after each");
}

static void test_access(void)
{
    reset();
    control(1, 1, 2, 0);
    out(0x41, 200);
    advance(10);
    is_int(in(0x41), 190, "low byte only");
    is_int(in(0x41), 190, "again");
    control(1, 2, 2, 0);
    out(0x41, 2);
    advance(0x101);
    is_int(in(0x41), 0, "high byte only");
    control(1, 3, 2, 0);
    load(1, 0x1234);
    advance(0x34);
    out(0x43, 0x40);
    advance(0x100);
    out(0x43, 0x40);
    is_int(in(0x41), 0x00, "a latch holds");
    is_int(in(0x41), 0x12, "both bytes, and a second one does not change it");
    is_int(in(0x41), 0x00, "then the counter shows");
    is_int(in(0x41), 0x11, "low and high in turn");
    is_int(in(0x41), 0x00, "low");
    out(0x43, 0x40);
    is_int(word1(), 0x1100, "a latch begins with its low byte");
    is_int(in(0x41), 0x11, "and does not change whose turn it is");

    out(0x43, 0xc4);
    advance(0x10);
    out(0x43, 0xc4);
    is_int(in(0x41), 0xb4, "read back: the status first");
    is_int(word1(), 0x1100, "then the count of the first command");
    out(0x43, 0xca);
    is_int(in(0x41), 0xf0, "of the chosen counters only");
    control(1, 3, 2, 0);
    is_int(status(1), 0xf4, "a control word unloads the count");
    is_int(in(0x43), 0xff, "the control word cannot be read");

    control(1, 3, 0, 1);
    load(1, 0x1000);
    advance(1);
    is_int(count(1), 0x0999, "BCD");
    advance(1000);
    is_int(count(1), 0x9999, "wraps around to 9999");
    control(1, 3, 2, 1);
    load(1, 0);
    advance(1);
    is_int(count(1), 0x9999, "0 is 10000");
}

static void test_irq(void)
{
    reset();
    control(0, 3, 2, 0);
    rises = 0;
    load(0, 1000);
    advance(999);
    is_int(rises, 0, "IRQ 0: not before the period ends");
    advance(1);
    is_int(rises, 1, "an edge at its end");
    advance(10000);
    is_int(rises, 11, "at each");
    advance(500);
    load(0, 100);
    advance(499);
    is_int(rises, 11, "a new count lets the period end");
    advance(1);
    is_int(rises, 12, "then");
    advance(1000);
    is_int(rises, 22, "its own");

    control(0, 3, 0, 0);
    ok(!level, "mode 0 lowers it");
    load(0, 100);
    advance(10000);
    is_int(rises, 23, "once");
    ok(level, "and it stays");

    control(0, 3, 3, 0);
    rises = 0;
    load(0, 1000);
    advance(100);
    load(0, 200);
    advance(499);
    is_int(rises, 0, "mode 3: a new count");
    advance(1);
    is_int(rises, 1, "from the low half on");
    advance(400);
    is_int(rises, 3, "has its periods");
    rises = 0;
    control(0, 3, 2, 0);
    load(0, 2);
    advance(PIT_HZ / 100);
    ok(rises >= 400 && rises <= 501, "600,000 interrupts a second are fewer");
    rises = 0;
    pit_reset(&pit);
    advance(1000);
    is_int(rises, 0, "reset stops it");
}

static void test_speaker(void)
{
    unsigned toggles = 0;
    reset();
    out(0x61, 0xff);
    is_int(in(0x61) & 0xcf, 0x0f, "port 0x61: four bits are written");
    for (unsigned i = 0, last = in(0x61); i < 100; i++) {
        advance(9);
        toggles += (in(0x61) ^ last) >> 4 & 1;
        last = in(0x61);
    }
    ok(toggles >= 40 && toggles <= 60, "the refresh bit toggles every 15 us");
    out(0x61, 0);
}

int main(void)
{
    struct err err = ERR_INIT;
    char why[256] = "";
    uint8_t value;

    state_table_check(&pit_table, why, sizeof(why));
    is_str(why, "", "the state table tiles the struct");
    if (chip_clock_new(&the_clock, CHIP_CLOCK_VIRTUAL, &err) < 0)
        return 1;
    pit.irq = irq;
    pit_init(&pit, the_clock, tick, &pit);
    advance(0);
    test_mode0();
    test_mode1();
    test_mode2();
    test_mode3();
    test_strobes();
    test_access();
    test_irq();
    test_speaker();
    ok(!pit_read(&pit, 0x44, &value) && !pit_write(&pit, 0x60, 0), "other ports are not its");
    pit_fini(&pit);
    chip_clock_free(the_clock);
    return tap_done();
}
