/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/hpet.h"

#include <time.h>

#include "dev/test_machine.h"

#define TICKS_PER_MS 100000u
#define LEVEL        0x02u
#define INTERRUPT    0x04u
#define PERIODIC     0x08u
#define VALUE_SET    0x40u
#define BITS32       0x100u
#define ROUTE(gsi)   ((gsi) << 9)
#define ENABLE       1u
#define LEGACY       2u

static uint64_t get(struct test_machine *machine, unsigned reg, unsigned size)
{
    return bus_read(machine->bus, BUS_MMIO, HPET_BASE + reg, size);
}

static void set(struct test_machine *machine, unsigned reg, uint64_t value, unsigned size)
{
    bus_write(machine->bus, BUS_MMIO, HPET_BASE + reg, value, size);
}

static unsigned config(unsigned n)
{
    return 0x100 + 0x20 * n;
}

static unsigned comparator(unsigned n)
{
    return 0x108 + 0x20 * n;
}

/* Halted, with the counter at a value. */
static void halt_at(struct test_machine *machine, uint64_t counter)
{
    set(machine, 0x10, 0, 8);
    set(machine, 0xf0, counter, 8);
}

/* From here on time is what the test says. */
static struct chip_clock *virtual_clock;

static void advance(uint64_t ticks)
{
    uint64_t end = chip_clock_now(virtual_clock) + ticks * 10, next;

    /* Timer by timer, as the soft engine's vCPU does. */
    while ((next = chip_clock_advance(virtual_clock, chip_clock_now(virtual_clock))) <= end)
        chip_clock_advance(virtual_clock, next);
    chip_clock_advance(virtual_clock, end);
}

static void test_registers(struct test_machine *machine, struct device *dev)
{
    is_int(get(machine, 0, 4), 0x8086a201, "capabilities: three timers of 64 bits, legacy");
    is_int(get(machine, 4, 4), 10000000, "a tick is 10 ns");
    set(machine, 0, 0, 8);
    is_int(get(machine, 0, 8), 0x009896808086a201, "they are read-only");
    set(machine, 0x10, UINT64_MAX, 8);
    is_int(get(machine, 0x10, 8), 3, "configuration: two bits");
    set(machine, 0x10, 0, 8);
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        is_int(get(machine, config(n), 8), 0x00ff000000000030, "a timer's capabilities");
        ok(get(machine, comparator(n), 8) == UINT64_MAX, "its comparator");
        set(machine, config(n), UINT64_MAX & ~(uint64_t)ROUTE(31u), 8);
        is_int(get(machine, config(n), 4), 0x17e, "what can be written of it");
        set(machine, config(n) + 1, ROUTE(20u) >> 8, 1);
        is_int(get(machine, config(n), 4), ROUTE(20u) | 0x7e, "a byte of it: a route");
        set(machine, config(n), ROUTE(15u), 4);
        is_int(get(machine, config(n), 4), 0x30, "a route it has not does not stay");
        is_int(get(machine, config(n) + 0x10, 8), 0, "no FSB route");
    }
    is_int(get(machine, 0x160, 8), 0, "no fourth timer");
    is_int(get(machine, 0x3f8, 8), 0, "nothing at the end");
    ok(get(machine, 0x400, 4) == UINT32_MAX, "and nothing behind it");

    halt_at(machine, 0x1122334455667788);
    is_int(get(machine, 0xf4, 4), 0x11223344, "the counter, its upper half");
    set(machine, 0xf0, 0, 4);
    is_int(get(machine, 0xf0, 8), 0x1122334400000000, "half of it is written");
    ok(get(machine, 0xec, 8) == 0, "an access across two registers: low half");
    is_int(get(machine, 0xf4, 8), 0x11223344, "and high half");
    device_reset(dev);
    is_int(get(machine, 0xf0, 8), 0, "reset");
}

static void test_counter(struct test_machine *machine)
{
    const struct timespec pause = {.tv_nsec = 20 * NS_PER_MS};
    uint64_t before, passed, ticks;

    halt_at(machine, 1000);
    nanosleep(&pause, NULL);
    is_int(get(machine, 0xf0, 8), 1000, "halted, it stands");
    before = clock_now_ns();
    set(machine, 0x10, ENABLE, 4);
    nanosleep(&pause, NULL);
    ticks = get(machine, 0xf0, 8) - 1000;
    passed = (clock_now_ns() - before) / 10;
    ok(ticks >= 20 * TICKS_PER_MS && ticks <= passed, "it runs at 100 MHz");
    set(machine, 0x10, 0, 4);
    ticks = get(machine, 0xf0, 8);
    nanosleep(&pause, NULL);
    is_int(get(machine, 0xf0, 8), ticks, "and stops where it was");

    set(machine, config(2), INTERRUPT | ROUTE(20u), 4);
    set(machine, comparator(2), ticks + 5 * TICKS_PER_MS, 8);
    set(machine, 0x10, ENABLE, 4);
    test_run(machine, 20);
    is_int(fake_gsi_rises(machine->vm, 20), 1, "the main loop's timer fires");
    set(machine, 0x10, 0, 4);
}

static void test_one_shot(struct test_machine *machine)
{
    unsigned rises = fake_gsi_rises(machine->vm, 16);

    halt_at(machine, 0);
    set(machine, config(0), INTERRUPT | ROUTE(16u), 4);
    set(machine, comparator(0), 1000, 8);
    set(machine, 0x10, ENABLE, 4);
    advance(999);
    is_int(fake_gsi_rises(machine->vm, 16), rises, "not a tick too early");
    advance(1);
    is_int(fake_gsi_rises(machine->vm, 16), rises + 1, "a one-shot timer");
    ok(!fake_gsi_level(machine->vm, 16), "makes an edge");
    is_int(get(machine, 0x20, 4), 0, "without a status");
    advance(5ull << 32);
    is_int(fake_gsi_rises(machine->vm, 16), rises + 1, "once");
    set(machine, comparator(0), get(machine, 0xf0, 8), 8);
    advance(1000);
    is_int(fake_gsi_rises(machine->vm, 16), rises + 1, "a match of now is past");

    set(machine, config(0), INTERRUPT | ROUTE(16u) | BITS32, 4);
    set(machine, comparator(0), 0xffffffff00000000 | (uint32_t)(get(machine, 0xf0, 4) + 50), 8);
    is_int(get(machine, comparator(0) + 4, 4), 0, "32 bits: no upper half");
    advance(50);
    is_int(fake_gsi_rises(machine->vm, 16), rises + 2, "matches the lower half");
    advance(1ull << 32);
    is_int(fake_gsi_rises(machine->vm, 16), rises + 3, "and does when it has wrapped around");
    set(machine, config(0), ROUTE(16u) | BITS32, 4);
    advance(1ull << 32);
    is_int(fake_gsi_rises(machine->vm, 16), rises + 3, "not while it may not interrupt");
    set(machine, config(0), 0, 4);
}

static void test_periodic(struct test_machine *machine)
{
    unsigned rises = fake_gsi_rises(machine->vm, 17);

    halt_at(machine, 0);
    set(machine, config(1), INTERRUPT | PERIODIC | VALUE_SET | ROUTE(17u), 4);
    set(machine, comparator(1), 20000, 8);
    is_int(get(machine, config(1), 4) & VALUE_SET, 0, "the bit clears itself");
    set(machine, comparator(1), 10000, 8);
    is_int(get(machine, comparator(1), 8), 20000, "the accumulator, then the period");
    set(machine, 0x10, ENABLE, 4);
    advance(19999);
    is_int(fake_gsi_rises(machine->vm, 17), rises, "not before the accumulator");
    advance(1);
    is_int(fake_gsi_rises(machine->vm, 17), rises + 1, "there");
    is_int(get(machine, comparator(1), 8), 30000, "which goes on by the period");
    advance(100000);
    is_int(fake_gsi_rises(machine->vm, 17), rises + 11, "again and again");

    set(machine, config(1), INTERRUPT | PERIODIC | VALUE_SET | BITS32 | ROUTE(17u), 4);
    halt_at(machine, 0xfffffff0);
    set(machine, config(1), INTERRUPT | PERIODIC | VALUE_SET | BITS32 | ROUTE(17u), 4);
    set(machine, comparator(1), 0xfffffff8, 4);
    set(machine, comparator(1), 10000, 4);
    set(machine, 0x10, ENABLE, 4);
    advance(30008);
    is_int(fake_gsi_rises(machine->vm, 17), rises + 15, "32 bits wrap around");
    is_int(get(machine, comparator(1), 8), 39992, "with the accumulator");

    set(machine, comparator(1), 1, 4);
    rises = fake_gsi_rises(machine->vm, 17);
    advance(HPET_MIN_PERIOD_TICKS * 10 + 20000);
    rises = fake_gsi_rises(machine->vm, 17) - rises;
    ok(rises >= 8 && rises <= 16, "a period of 10 ns is served no more than the host bears");
    set(machine, comparator(1), 0, 4);
    advance(100000);
    ok(get(machine, 0xf0, 4) > 0, "a period of none is survived");
    set(machine, config(1), 0, 4);
}

static void test_level(struct test_machine *machine)
{
    halt_at(machine, 0);
    set(machine, config(2), LEVEL | ROUTE(23u), 4);
    set(machine, comparator(2), 10, 8);
    set(machine, 0x10, ENABLE, 4);
    advance(10);
    is_int(get(machine, 0x20, 8), 4, "a level-triggered timer has a status");
    ok(!fake_gsi_level(machine->vm, 23), "also without an interrupt");
    set(machine, config(2), LEVEL | INTERRUPT | ROUTE(23u), 4);
    ok(fake_gsi_level(machine->vm, 23), "with one, a level");
    set(machine, 0x20, 3, 4);
    ok(fake_gsi_level(machine->vm, 23), "other timers' bits leave it alone");
    set(machine, 0x10, 0, 4);
    ok(!fake_gsi_level(machine->vm, 23), "a block that is not enabled does not interrupt");
    is_int(get(machine, 0x20, 4), 4, "and keeps the status");
    set(machine, 0x10, ENABLE, 4);
    set(machine, config(2), LEVEL | INTERRUPT | ROUTE(22u), 4);
    ok(fake_gsi_level(machine->vm, 22) && !fake_gsi_level(machine->vm, 23), "another input");
    set(machine, 0x20, 4, 4);
    ok(!fake_gsi_level(machine->vm, 22), "acknowledged");
    set(machine, comparator(2), get(machine, 0xf0, 8) + 10, 8);
    advance(10);
    ok(fake_gsi_level(machine->vm, 22), "the next one");
    set(machine, config(2), 0, 4);
    ok(!fake_gsi_level(machine->vm, 22), "as an edge it has no level");
    is_int(get(machine, 0x20, 4), 0, "nor a status");
}

static void test_legacy(struct test_machine *machine, struct device *dev)
{
    struct irq_line rtc;
    unsigned pit_rises = fake_gsi_rises(machine->vm, 0), rtc_rises;

    irq_line_init(&rtc, &machine->irq, 8);
    halt_at(machine, 0);
    set(machine, 0x10, LEGACY, 4);
    ok(fake_pit_connected(machine->vm), "legacy replacement needs the block to be enabled");
    set(machine, 0x10, LEGACY | ENABLE, 4);
    ok(!fake_pit_connected(machine->vm), "then the PIT is off its input");
    irq_line_set(&rtc, true);
    ok(!fake_gsi_level(machine->vm, 8), "and the real-time clock");
    rtc_rises = fake_gsi_rises(machine->vm, 8);
    for (unsigned n = 0; n < 2; n++) {
        set(machine, config(n), INTERRUPT | PERIODIC | VALUE_SET | ROUTE(16u), 4);
        set(machine, comparator(n), get(machine, 0xf0, 8) + 10000, 8);
        set(machine, comparator(n), 10000, 8);
    }
    advance(50000);
    is_int(fake_gsi_rises(machine->vm, 0), pit_rises + 5, "timer 0 has the PIT's input");
    is_int(fake_gsi_rises(machine->vm, 8), rtc_rises + 5, "timer 1 the clock's");
    set(machine, config(1), PERIODIC, 4);
    ok(!fake_gsi_level(machine->vm, 8), "a timer that may not interrupt leaves it low");
    set(machine, config(1), PERIODIC | INTERRUPT, 4);
    set(machine, 0x10, LEGACY, 4);
    ok(fake_pit_connected(machine->vm) && !fake_gsi_level(machine->vm, 0), "the PIT is back");
    ok(fake_gsi_level(machine->vm, 8), "and the clock, with its level");
    irq_line_set(&rtc, false);
    set(machine, 0x10, LEGACY | ENABLE, 4);
    advance(20000);
    device_reset(dev);
    ok(fake_pit_connected(machine->vm), "reset connects the PIT");
    irq_line_pulse(&rtc);
    ok(!fake_gsi_level(machine->vm, 0) && !fake_gsi_level(machine->vm, 8), "all lines are low");
    is_int(get(machine, config(0), 4), 0x30, "the timers are idle");
}

int main(void)
{
    struct test_machine machine = {0};
    struct device *dev;
    struct err err = ERR_INIT;

    test_machine_init(&machine);
    test_table(&hpet_state_table);
    is_int(hpet_new(&dev, &machine.env, &err), 0, "hpet_new()");
    test_registers(&machine, dev);
    test_counter(&machine);
    device_reset(dev);
    if (chip_clock_new(&virtual_clock, CHIP_CLOCK_VIRTUAL, &err) < 0)
        return 1;
    dev->clock = virtual_clock;
    test_one_shot(&machine);
    test_periodic(&machine);
    test_level(&machine);
    test_legacy(&machine, dev);
    set(&machine, 0x10, LEGACY | ENABLE, 4);
    device_fini(dev);
    ok(fake_pit_connected(machine.vm), "a machine without it has the PIT");
    ok(bus_read(machine.bus, BUS_MMIO, HPET_BASE, 4) == UINT32_MAX, "gone");
    chip_clock_free(virtual_clock);
    test_machine_fini(&machine);
    return tap_done();
}
