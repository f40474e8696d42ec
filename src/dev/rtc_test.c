/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/rtc.h"

#include <time.h>

#include "dev/test_machine.h"

static uint8_t get(struct test_machine *machine, uint8_t index)
{
    out(machine, 0x70, index, 1);
    return (uint8_t)in(machine, 0x71, 1);
}

static void set(struct test_machine *machine, uint8_t index, uint8_t value)
{
    out(machine, 0x70, index, 1);
    out(machine, 0x71, value, 1);
}

static bool irq(struct test_machine *machine)
{
    return fake_gsi_level(machine->vm, 8);
}

static unsigned bcd(uint8_t byte)
{
    return (byte >> 4) * 10u + (byte & 15);
}

/* As a driver reads it: not within an update. */
static time_t read_bcd(struct test_machine *machine)
{
    struct tm tm = {0};

    while (get(machine, 0x0a) & 0x80)
        ;
    tm.tm_sec = (int)bcd(get(machine, 0));
    tm.tm_min = (int)bcd(get(machine, 2));
    tm.tm_hour = (int)bcd(get(machine, 4));
    tm.tm_mday = (int)bcd(get(machine, 7));
    tm.tm_mon = (int)bcd(get(machine, 8)) - 1;
    tm.tm_year = (int)(bcd(get(machine, 9)) + bcd(get(machine, 0x32)) * 100) - 1900;
    return timegm(&tm);
}

static void write_bcd(struct test_machine *machine, const uint8_t fields[7])
{
    static const uint8_t indices[7] = {0, 2, 4, 7, 8, 9, 0x32};

    set(machine, 0x0b, 0x82);
    for (unsigned i = 0; i < 7; i++)
        set(machine, indices[i], fields[i]);
    set(machine, 0x0b, 0x02);
}

static void test_time(struct test_machine *machine, struct device *dev)
{
    const uint8_t evening[7] = {0x10, 0x30, 0x23, 0x28, 0x02, 0x24, 0x20};
    const uint8_t eve[7] = {0x59, 0x59, 0x23, 0x28, 0x02, 0x24, 0x20}; /* of a leap day */
    const uint8_t zero[7] = {0, 0, 0, 0, 0, 0, 0};
    const uint8_t ones[7] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    time_t now = time(NULL), guest = read_bcd(machine);

    ok(guest >= now - 1 && guest <= now + 1, "the clock shows UTC");
    is_int(get(machine, 0x0d), 0x80, "the battery is good");
    is_int(get(machine, 0x0a) & 0x7f, 0x26, "register A");
    is_int(get(machine, 0x0b), 0x02, "register B: BCD, 24 hours");

    write_bcd(machine, evening);
    guest = read_bcd(machine);
    ok(guest >= 1709163010 && guest <= 1709163020, "the clock was set");
    is_int(get(machine, 6), 4, "to a Wednesday");
    device_reset(dev);
    guest = read_bcd(machine);
    ok(guest >= 1709163010 && guest <= 1709163020, "a reset keeps it");
    set(machine, 2, 0x45);
    guest = read_bcd(machine);
    ok(guest >= 1709163910 && guest <= 1709163920, "a register set while the clock runs");
    write_bcd(machine, eve);
    do
        guest = read_bcd(machine);
    while (guest < 1709164800);
    is_int(get(machine, 7), 0x29, "midnight into the leap day");

    set(machine, 0x0b, 0x06);
    set(machine, 4, 15);
    is_int(get(machine, 4), 15, "binary, 24 hours");
    set(machine, 0x0b, 0x04);
    is_int(get(machine, 4), 0x83, "binary, 12 hours: 3 pm");
    set(machine, 0x0b, 0x00);
    set(machine, 4, 0x12);
    is_int(get(machine, 4), 0x12, "BCD, 12 hours: 12 am");
    set(machine, 0x0b, 0x02);
    is_int(get(machine, 4), 0x00, "is hour 0");
    set(machine, 0x0b, 0x00);
    set(machine, 4, 0x92);
    set(machine, 0x0b, 0x02);
    is_int(get(machine, 4), 0x12, "12 pm is hour 12");

    set(machine, 0x0b, 0x82);
    guest = read_bcd(machine);
    test_run(machine, 1100);
    is_int(read_bcd(machine), guest, "SET stops the clock");
    is_int(get(machine, 0x0a) & 0x80, 0, "and there is no update");
    set(machine, 0x0b, 0x02);
    write_bcd(machine, zero);
    write_bcd(machine, ones);
    ok(read_bcd(machine) > 0, "nonsense is survived");
    is_int(get(machine, 0x0b), 0x02, "by all");
}

/* As Linux sets the clock: the first update is half a second after the divider starts. */
static void test_divider(struct test_machine *machine)
{
    const uint8_t evening[7] = {0x10, 0x30, 0x23, 0x28, 0x02, 0x24, 0x20};
    uint64_t start, passed;
    time_t guest;

    set(machine, 0x0b, 0x82);
    set(machine, 0x0a, 0x66);
    write_bcd(machine, evening);
    get(machine, 0x0c);
    test_run(machine, 1050);
    is_int(read_bcd(machine), 1709163010, "a divider held in reset stops the clock");
    is_int(get(machine, 0x0a), 0x66, "without an update");
    is_int(get(machine, 0x0c), 0, "or a periodic interrupt");
    set(machine, 0x0b, 0x12);
    start = clock_now_ns();
    set(machine, 0x0a, 0x26);
    while (!irq(machine) && clock_now_ns() - start < 2 * NS_PER_SEC)
        test_run(machine, 1);
    passed = clock_now_ns() - start;
    ok(passed >= 499 * NS_PER_MS && passed < 990 * NS_PER_MS,
       "started, it updates in half a second");
    guest = read_bcd(machine);
    ok(guest >= 1709163011 && guest <= 1709163012, "to the next second");
    is_int(get(machine, 0x0c) & 0xd0, 0xd0, "with its interrupt");
    set(machine, 0x0b, 0x82);
    test_run(machine, 20);
    is_int(get(machine, 0x0c) & 0x40, 0x40, "SET does not stop the periodic one");
    set(machine, 0x0b, 0x02);
}

static void test_update_in_progress(struct test_machine *machine)
{
    unsigned seen = 0, clean = 0;
    uint64_t end = clock_now_ns() + 20 * NS_PER_SEC;

    while (clock_now_ns() < end && !(seen && clean))
        *(get(machine, 0x0a) & 0x80 ? &seen : &clean) += 1;
    ok(clean > 0, "UIP is mostly off");
    ok(seen > 0, "and on before each second");
}

static void count(void *ctx)
{
    ++*(unsigned *)ctx;
}

static void test_interrupts(struct test_machine *machine, const unsigned *alarms)
{
    const uint8_t noon[7] = {0x59, 0x59, 0x11, 0x01, 0x06, 0x25, 0x20};
    unsigned ticks = 0;

    get(machine, 0x0c);
    set(machine, 0x0a, 0x28); /* 256 Hz */
    set(machine, 0x0b, 0x42);
    for (unsigned i = 0; i < 10; i++) {
        test_run(machine, 8);
        ticks += irq(machine) && (get(machine, 0x0c) & 0xf0) >= 0xc0;
        if (irq(machine))
            ok(false, "reading register C lowers the line");
    }
    is_int(ticks, 10, "the periodic interrupt");
    set(machine, 0x0b, 0x02);
    get(machine, 0x0c);
    test_run(machine, 10);
    ok(!irq(machine), "disabled");
    is_int(get(machine, 0x0c) & 0xc0, 0x40, "the flag comes nevertheless");
    set(machine, 0x0a, 0x20);
    get(machine, 0x0c);
    test_run(machine, 10);
    is_int(get(machine, 0x0c) & 0x40, 0, "not at rate 0");
    set(machine, 0x0a, 0x26);

    set(machine, 1, 0x00);
    set(machine, 3, 0x00);
    set(machine, 5, 0x12);
    get(machine, 0x0c);
    write_bcd(machine, noon);
    set(machine, 0x0b, 0x32);
    test_run(machine, 1010);
    ok(irq(machine), "noon");
    is_int(*alarms, 1, "ACPI is told of the alarm, and of nothing before");
    is_int(get(machine, 0x0c) & 0xb0, 0xb0, "update ended, alarm");
    ok(!irq(machine), "acknowledged");

    set(machine, 1, 0xc0);
    set(machine, 3, 0xff);
    set(machine, 0x0b, 0x22);
    test_run(machine, 1010);
    is_int(get(machine, 0x0c) & 0xb0, 0xb0, "alarm bytes that match everything");
    is_int(*alarms, 2, "another alarm");
    set(machine, 0x0b, 0x92);
    is_int(get(machine, 0x0b), 0x82, "SET clears the update-ended enable");
    set(machine, 0x0b, 0x02);
}

static void test_memory(struct test_machine *machine, struct device *dev)
{
    rtc_set_memory(dev, 2 * GIB, 3 * GIB, 4);
    is_int(get(machine, 0x15) | get(machine, 0x16) << 8, 640, "base memory");
    is_int(get(machine, 0x17) | get(machine, 0x18) << 8, 0xffff, "extended memory, capped");
    is_int(get(machine, 0x34) | get(machine, 0x35) << 8, (2048 - 16) * 16, "above 16 MiB");
    is_int(get(machine, 0x5b) | get(machine, 0x5c) << 8 | get(machine, 0x5d) << 16, 3 * 16384,
           "above 4 GiB");
    is_int(get(machine, 0x5f), 3, "CPUs less one");
    rtc_set_memory(dev, 8 * MIB, 0, 1);
    is_int(get(machine, 0x17) | get(machine, 0x18) << 8, 7 * 1024, "little memory");
    is_int(get(machine, 0x34) | get(machine, 0x35) << 8, 0, "nothing above 16 MiB");
    set(machine, 0x0f, 0x0a);
    device_reset(dev);
    is_int(get(machine, 0x0f), 0x0a, "CMOS RAM survives a reset");
    is_int(get(machine, 0x17), 0, "with the sizes");
    is_int(get(machine, 0x18), 28, "in it");
    is_int(in(machine, 0x70, 1), 0xff, "the index cannot be read");
    set(machine, 0x8f, 0x55);
    is_int(get(machine, 0x0f), 0x55, "bit 7 of the index is the NMI mask");
}

int main(void)
{
    struct test_machine machine = {0};
    struct device *dev;
    struct err err = ERR_INIT;
    unsigned alarms = 0;

    test_machine_init(&machine);
    test_table(&rtc_state_table);
    is_int(rtc_new(&dev, &machine.env, &err), 0, "rtc_new()");
    test_time(&machine, dev);
    test_divider(&machine);
    test_update_in_progress(&machine);
    rtc_on_alarm(dev, count, &alarms);
    test_interrupts(&machine, &alarms);
    test_memory(&machine, dev);
    set(&machine, 0x0b, 0x42);
    device_reset(dev);
    is_int(get(&machine, 0x0b), 0x02, "reset clears the enables");
    ok(!irq(&machine), "and lowers the line");
    device_fini(dev);
    is_int(in(&machine, 0x71, 1), 0xff, "gone");
    test_machine_fini(&machine);
    return tap_done();
}
