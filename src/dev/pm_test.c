/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/pm.h"

#include "dev/test_machine.h"

#define BASE 0x600

/* The PM block in a device of its own. */
struct holder {
    struct device dev;
    struct pm_state state;
    struct pm pm;
};

static const struct device_ops no_ops;

/* As if that many timer ticks went by. */
static void advance(struct holder *holder, uint64_t ticks)
{
    device_lock(&holder->dev);
    holder->state.timer_offset += ticks;
    device_unlock(&holder->dev);
}

static bool sci(struct test_machine *machine)
{
    return fake_gsi_level(machine->vm, PM_SCI_GSI);
}

static void test_timer(struct test_machine *machine, struct holder *holder)
{
    uint64_t before_ns = clock_now_ns(), passed_ns, ticks, ns;
    uint32_t first = in(machine, BASE + 8, 4), second;
    unsigned left;

    test_run(machine, 20);
    second = in(machine, BASE + 8, 4);
    passed_ns = clock_now_ns() - before_ns;
    ticks = second - first;
    ns = ticks * NS_PER_SEC / PM_TIMER_HZ;
    ok(ns >= 19 * NS_PER_MS && ns <= passed_ns, "the timer runs at 3.579545 MHz");
    ok(second < PM_TIMER_HZ, "from 0 on");
    advance(holder, 0xab000000u - second);
    is_int(in(machine, BASE + 8, 4) >> 24, 0xab, "and is 32 bits wide");
    is_int(in(machine, BASE + 11, 1), 0xab, "byte by byte, too");

    /* Shortly before the top bit changes. */
    out(machine, BASE, 1, 2);
    left = 0u - in(machine, BASE + 8, 4);
    advance(holder, left + 0x80000000u - 360000);
    out(machine, BASE, 1, 2);
    is_int(in(machine, BASE, 2) & 1, 0, "no overflow yet");
    out(machine, BASE + 2, 1, 2);
    out(machine, BASE + 4, 1, 2);
    ok(!sci(machine), "no interrupt yet");
    test_run(machine, 130);
    ok(sci(machine), "the change of the top bit raises the SCI");
    is_int(in(machine, BASE, 2) & 1, 1, "with the status bit");
    out(machine, BASE, 1, 2);
    ok(!sci(machine), "until it is acknowledged");
    advance(holder, 0x80000000u);
    is_int(in(machine, BASE, 2) & 1, 1, "the status is right without an interrupt, too");
    out(machine, BASE + 2, 0, 2);
    out(machine, BASE + 4, 0, 2);
    out(machine, BASE, 0xffff, 2);
}

static void test_events(struct test_machine *machine, struct holder *holder)
{
    device_lock(&holder->dev);
    pm_press_power_button(&holder->pm);
    device_unlock(&holder->dev);
    is_int(in(machine, BASE, 2), 0x100, "the power button sets its status bit");
    ok(!sci(machine), "not the interrupt while it is not enabled");
    out(machine, BASE + 2, 0xffff, 2);
    is_int(in(machine, BASE + 2, 2), 0x4521, "enable bits");
    ok(!sci(machine), "nor while ACPI mode is off");
    out(machine, BASE + 4, 1, 1);
    ok(sci(machine), "SCI");
    out(machine, BASE, 0, 2);
    ok(sci(machine), "writing 0 does not acknowledge");
    out(machine, BASE + 1, 1, 1);
    ok(!sci(machine), "writing 1 does, to a byte as well");
    out(machine, BASE + 0x30, 0xa0, 1);
    ok(sci(machine) && (in(machine, BASE, 2) & 0x20), "BIOS_RLS gives the global lock");
    is_int(in(machine, BASE + 0x30, 4), 0x20, "and reads zero");
    out(machine, BASE, 0xffffffff, 4);
    out(machine, BASE, 0xffff, 2);
    ok(!sci(machine), "acknowledged");

    pm_rtc_alarm(&holder->pm);
    ok(sci(machine), "the clock's alarm");
    is_int(in(machine, BASE, 2), 0x400, "has a status");
    out(machine, BASE + 2, 0, 2);
    ok(!sci(machine), "not enabled, it is silent");
    out(machine, BASE + 2, 0x400, 2);
    out(machine, BASE + 4, 0, 1);
    ok(!sci(machine), "nor out of ACPI mode");
    out(machine, BASE + 4, 1, 1);
    ok(sci(machine), "both");
    device_lock(&holder->dev);
    pm_set_sci(&holder->pm, 20);
    ok(!sci(machine) && fake_gsi_level(machine->vm, 20), "on another input");
    pm_set_sci(&holder->pm, PM_SCI_GSI);
    device_unlock(&holder->dev);
    out(machine, BASE, 0xfbff, 2);
    ok(sci(machine), "other bits do not acknowledge it");
    out(machine, BASE + 1, 4, 1);
    ok(!sci(machine) && in(machine, BASE, 2) == 0, "its own does");
    pm_rtc_alarm(&holder->pm);
    ok(sci(machine), "again");
    out(machine, BASE, 0x400, 2);
    out(machine, BASE + 2, 0xffff, 2);

    device_lock(&holder->dev);
    pm_raise_gpe(&holder->pm, 9);
    pm_raise_gpe(&holder->pm, 64);
    device_unlock(&holder->dev);
    is_int(in(machine, BASE + 0x20, 4), 0x200, "a general-purpose event");
    ok(!sci(machine), "is silent while not enabled");
    out(machine, BASE + 0x28, 0x200, 4);
    ok(sci(machine), "and raises the SCI");
    out(machine, BASE + 0x21, 2, 1);
    ok(!sci(machine), "acknowledged");
    is_int(in(machine, BASE + 0x26, 4), 0x02000000, "an access across two registers");
    is_int(in(machine, BASE + 0x60, 4), 0, "what is not there reads zero");
}

static void test_sleep(struct test_machine *machine)
{
    out(machine, BASE + 4, PM_SLP_TYP_S5 << 10, 2);
    is_int(machine->power_offs, 0, "SLP_TYP alone does nothing");
    is_int(in(machine, BASE + 4, 2), PM_SLP_TYP_S5 << 10, "and is kept");
    out(machine, BASE + 4, PM_SLP_TYP_S5 << 10 | 1 << 13, 2);
    is_int(machine->power_offs, 1, "SLP_EN with S5 powers off");
    is_int(in(machine, BASE + 4, 2), PM_SLP_TYP_S5 << 10, "SLP_EN reads zero");
    out(machine, BASE + 5, 0x20, 1);
    is_int(machine->power_offs, 2, "sleep type 0, a byte");
    out(machine, BASE + 4, 7 << 10 | 1 << 13, 4);
    is_int(machine->power_offs, 3, "sleep type 7, a doubleword");
    out(machine, BASE + 4, 1 << 10 | 1 << 13, 2);
    is_int(machine->power_offs, 3, "other sleep types do nothing");
}

int main(void)
{
    struct test_machine machine = {0};
    struct holder holder = {0};

    test_machine_init(&machine);
    test_table(&pm_state_table);
    device_init(&holder.dev, &no_ops, &pm_state_table, &holder.state, machine.loop, "pm");
    pm_init(&holder.pm, &holder.dev, &holder.state, &machine.env);
    device_lock(&holder.dev);
    pm_reset(&holder.pm);
    pm_place(&holder.pm, BASE);
    device_unlock(&holder.dev);
    test_timer(&machine, &holder);
    test_events(&machine, &holder);
    test_sleep(&machine);
    pm_fini(&holder.pm);
    is_int(in(&machine, BASE, 2), 0xffff, "gone");
    test_machine_fini(&machine);
    return tap_done();
}
