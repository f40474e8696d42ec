/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/i8042.h"

#include "dev/test_machine.h"

static void command(struct test_machine *machine, uint8_t value)
{
    out(machine, 0x64, value, 1);
}

static uint32_t ask(struct test_machine *machine, uint8_t value)
{
    command(machine, value);
    return in(machine, 0x64, 1) & 1 ? in(machine, 0x60, 1) : 0xffff;
}

static uint32_t command_byte(struct test_machine *machine)
{
    return ask(machine, 0x20);
}

static void test_commands(struct test_machine *machine)
{
    is_int(in(machine, 0x64, 1), 0x10, "idle: nothing to read, not locked");
    is_int(ask(machine, 0xaa), 0x55, "self test");
    is_int(in(machine, 0x64, 1), 0x1c, "sets the system flag; the last write was a command");
    is_int(ask(machine, 0xab), 0, "keyboard port test");
    is_int(ask(machine, 0xa9), 0, "auxiliary port test");
    is_int(ask(machine, 0xa4), 0xf1, "no password");
    is_int(ask(machine, 0xc0), 0xa0, "input port");
    is_int(ask(machine, 0xac), 0xffff, "an unknown command gives nothing");

    command(machine, 0x60);
    out(machine, 0x60, 0x47, 1);
    is_int(command_byte(machine), 0x47, "the command byte");
    command(machine, 0xa7);
    is_int(command_byte(machine), 0x67, "auxiliary interface off");
    command(machine, 0xa8);
    command(machine, 0xad);
    is_int(command_byte(machine), 0x57, "on; keyboard interface off");
    command(machine, 0xae);
    is_int(command_byte(machine), 0x47, "on");
    command(machine, 0x7f);
    out(machine, 0x60, 0x99, 1);
    is_int(ask(machine, 0x3f), 0x99, "controller RAM");

    command(machine, 0xd2);
    out(machine, 0x60, 0xab, 1);
    is_int(in(machine, 0x64, 1) & 0x21, 0x01, "a byte as from the keyboard");
    ok(fake_gsi_level(machine->vm, 1), "with IRQ 1");
    is_int(in(machine, 0x60, 1), 0xab, "is read");
    ok(!fake_gsi_level(machine->vm, 1), "which acknowledges");
    command(machine, 0xd3);
    out(machine, 0x60, 0x5a, 1);
    is_int(in(machine, 0x64, 1) & 0x21, 0x21, "a byte as from the mouse");
    ok(fake_gsi_level(machine->vm, 12) && !fake_gsi_level(machine->vm, 1), "with IRQ 12");
    is_int(in(machine, 0x60, 1), 0x5a, "is read");
    ok(!fake_gsi_level(machine->vm, 12), "which acknowledges");
}

static void test_absent(struct test_machine *machine)
{
    out(machine, 0x60, 0xff, 1);
    is_int(in(machine, 0x64, 1) & 0x61, 0x41, "no keyboard: time-out");
    is_int(in(machine, 0x60, 1), 0xfe, "and 0xfe");
    is_int(in(machine, 0x64, 1) & 0x61, 0, "which is read once");
    command(machine, 0xd4);
    out(machine, 0x60, 0xf2, 1);
    is_int(in(machine, 0x64, 1) & 0x61, 0x61, "no mouse: time-out");
    is_int(in(machine, 0x60, 1), 0xfe, "and 0xfe");
}

static void test_outputs(struct test_machine *machine, struct device *dev)
{
    is_int(ask(machine, 0xd0), 0xc3, "output port: A20 passes, no reset");
    command(machine, 0xdd);
    is_int(ask(machine, 0xd0), 0xc1, "A20 off");
    is_int(in(machine, 0x92, 1), 0, "port 0x92 sees it");
    out(machine, 0x92, 2, 1);
    is_int(ask(machine, 0xd0), 0xc3, "and turns it on");
    command(machine, 0xd1);
    out(machine, 0x60, 0x01, 1);
    is_int(ask(machine, 0xd0), 0xc1, "the output port is written");
    command(machine, 0xdf);
    is_int(ask(machine, 0xd0), 0xc3, "A20 on");

    is_int(machine->resets, 0, "no reset so far");
    command(machine, 0xff);
    command(machine, 0xfd);
    is_int(machine->resets, 0, "pulses of other bits do not reset");
    command(machine, 0xfe);
    is_int(machine->resets, 1, "0xfe resets");
    command(machine, 0xf0);
    is_int(machine->resets, 2, "so does a pulse of all bits");
    command(machine, 0xd1);
    out(machine, 0x60, 0x02, 1);
    is_int(machine->resets, 3, "and bit 0 of the output port");
    out(machine, 0x92, 3, 1);
    is_int(machine->resets, 4, "and port 0x92");
    out(machine, 0x92, 3, 1);
    is_int(machine->resets, 4, "by its transition");

    out(machine, 0x60, 0xed, 1);
    device_reset(dev);
    ok(!fake_gsi_level(machine->vm, 1), "reset lowers the line");
    is_int(in(machine, 0x64, 1), 0x10, "and empties the buffer");
    is_int(in(machine, 0x92, 1), 2, "A20 passes after reset");
}

int main(void)
{
    struct test_machine machine = {0};
    struct device *dev;
    struct err err = ERR_INIT;

    test_machine_init(&machine);
    test_table(&i8042_state_table);
    is_int(i8042_new(&dev, &machine.env, &err), 0, "i8042_new()");
    test_commands(&machine);
    test_absent(&machine);
    test_outputs(&machine, dev);
    device_fini(dev);
    is_int(in(&machine, 0x64, 1), 0xff, "gone");
    test_machine_fini(&machine);
    return tap_done();
}
