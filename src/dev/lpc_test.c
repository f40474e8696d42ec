/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/lpc.h"

#include "dev/test_machine.h"

#define LPC     PCI_DEVFN(31, 0)
#define PM_BASE 0x600

static void test_routing(struct test_machine *machine)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned gsi = 16 + i;
        lpc_pirq_set(&machine->pirq_device, i, true);
        ok(fake_gsi_level(machine->vm, gsi), "a PIRQ reaches its IOAPIC input");
        lpc_pirq_set(&machine->pirq_device, i, false);
        ok(!fake_gsi_level(machine->vm, gsi), "and leaves it");
    }
    is_int(fake_event_count(machine->vm, FAKE_PIC), 0, "the PIC hears nothing while not routed");

    is_int(config_in(machine, LPC, 0x68, 4), 0x80808080, "routing is off after reset");
    config_out(machine, LPC, 0x68, 0x0a, 1);
    config_out(machine, LPC, 0x69, 0x0a, 1);
    lpc_pirq_set(&machine->pirq_device, 4, true);
    lpc_pirq_set(&machine->pirq_device, 5, true);
    ok(fake_pic_level(machine->vm, 10), "a routed PIRQ reaches the PIC");
    lpc_pirq_set(&machine->pirq_device, 4, false);
    ok(fake_pic_level(machine->vm, 10), "two may share an input");
    config_out(machine, LPC, 0x69, 0x0b, 1);
    ok(!fake_pic_level(machine->vm, 10) && fake_pic_level(machine->vm, 11),
       "a change of route takes the level along");
    config_out(machine, LPC, 0x69, 0x80, 1);
    ok(!fake_pic_level(machine->vm, 11), "routed nowhere");
    config_out(machine, LPC, 0x69, 0x02, 1);
    ok(!fake_pic_level(machine->vm, 2), "a reserved input is none");
    config_out(machine, LPC, 0x69, 0x0b, 1);
    device_reset(machine->pirq_device);
    ok(!fake_pic_level(machine->vm, 11), "reset takes the routes away");
    ok(fake_gsi_level(machine->vm, 21), "not the level, which is the device's");
    lpc_pirq_set(&machine->pirq_device, 5, false);
    lpc_pirq_set(&machine->pirq_device, 8, true);

    struct device *none = NULL;
    lpc_pirq_set(&none, 0, true);
    ok(!fake_gsi_level(machine->vm, 16), "before the bridge is there, PIRQs go nowhere");
}

static void test_ports(struct test_machine *machine, struct device *lpc)
{
    out(machine, 0xcf9, 0x02, 1);
    is_int(machine->resets, 0, "choosing the kind of reset does not reset");
    out(machine, 0xcf9, 0x06, 1);
    is_int(machine->resets, 1, "0x06 to port 0xcf9 does");
    device_reset(lpc);
    is_int(in(machine, 0xcf9, 1), 0, "the register is zero after it");
    out(machine, 0xcf9, 0x0e, 1);
    is_int(machine->resets, 2, "0x0e does, too");
    device_reset(lpc);

    config_out(machine, LPC, 0x40, PM_BASE, 4);
    config_out(machine, LPC, 0x44, 0x80, 1);
    out(machine, 0xb3, 0x5a, 1);
    is_int(in(machine, 0xb3, 1), 0x5a, "APM status is kept");
    out(machine, 0xb2, LPC_SMI_ACPI_ENABLE, 1);
    is_int(in(machine, PM_BASE + 4, 2) & 1, 1, "SMI_CMD turns ACPI mode on");
    out(machine, 0xb2, LPC_SMI_ACPI_DISABLE, 1);
    is_int(in(machine, PM_BASE + 4, 2) & 1, 0, "and off");
    is_int(in(machine, 0xb2, 1), LPC_SMI_ACPI_DISABLE, "and keeps the command");
    device_reset(lpc);
}

static void test_placement(struct test_machine *machine, struct device *lpc)
{
    is_int(in(machine, PM_BASE + 8, 4), 0xffffffff, "no PM block after reset");
    config_out(machine, LPC, 0x40, PM_BASE | 0x7f, 4);
    is_int(config_in(machine, LPC, 0x40, 4), PM_BASE | 1, "PMBASE");
    is_int(in(machine, PM_BASE + 8, 4), 0xffffffff, "nor before it is enabled");
    config_out(machine, LPC, 0x44, 0x80, 1);
    ok(in(machine, PM_BASE + 8, 4) <= 0xffffff, "enabled, it is there");
    config_out(machine, LPC, 0x40, 0xb000, 4);
    is_int(in(machine, PM_BASE + 8, 4), 0xffffffff, "it moves away");
    ok(in(machine, 0xb008, 4) <= 0xffffff, "to the new place");
    config_out(machine, LPC, 0x40, 0, 4);
    is_int(in(machine, 8, 4), 0xffffffff, "0 is no place");

    is_int((uint32_t)bus_read(machine->bus, BUS_MMIO, 0xfed1f410, 4), 0xffffffff, "RCBA is off");
    config_out(machine, LPC, 0xf0, 0xfed1c001, 4);
    is_int((uint32_t)bus_read(machine->bus, BUS_MMIO, 0xfed1f410, 4), 0x20, "GCS: no reboot");
    bus_write(machine->bus, BUS_MMIO, 0xfed1f410, 0, 4);
    is_int((uint32_t)bus_read(machine->bus, BUS_MMIO, 0xfed1f410, 4), 0x20, "is fixed");
    is_int((uint32_t)bus_read(machine->bus, BUS_MMIO, 0xfed1f404, 4), 0, "the rest is zero");
    device_reset(lpc);
    is_int((uint32_t)bus_read(machine->bus, BUS_MMIO, 0xfed1f410, 4), 0xffffffff, "RCBA is off");
}

static void test_firmware(struct test_machine *machine, struct device *lpc)
{
    lpc_enable_pm(lpc, PM_BASE);
    is_int(in(machine, PM_BASE + 4, 2), 1, "lpc_enable_pm(): ACPI mode is on");
    lpc_pirq_set(&machine->pirq_device, 5, true);
    ok(fake_pic_level(machine->vm, pci_pirq_isa_irq(5)), "PIRQs reach the PIC");
    lpc_pirq_set(&machine->pirq_device, 5, false);
    out(machine, PM_BASE + 2, 0x0100, 2);
    lpc_power_button(lpc);
    ok(fake_gsi_level(machine->vm, PM_SCI_GSI), "the power button raises the SCI");
    config_out(machine, LPC, 0x44, 0x82, 1);
    ok(!fake_gsi_level(machine->vm, 9) && fake_gsi_level(machine->vm, 11), "which can be moved");
    out(machine, PM_BASE, 0x0100, 2);
    ok(!fake_gsi_level(machine->vm, 11), "and is acknowledged");
    lpc_power_button(lpc);
    device_reset(lpc);
    ok(!fake_gsi_level(machine->vm, 11), "reset lowers it");
    is_int(in(machine, PM_BASE, 2), 0xffff, "and takes the block away");
}

int main(void)
{
    struct test_machine machine = {.pirq_set = lpc_pirq_set};
    struct err err = ERR_INIT;

    test_machine_init(&machine);
    test_table(&lpc_state_table);
    is_int(lpc_new(&machine.pirq_device, &machine.env, &err), 0, "lpc_new()");
    is_int(config_in(&machine, LPC, 0, 4), 0x29188086, "identity");
    is_int(config_in(&machine, LPC, 10, 2), 0x0601, "an ISA bridge");
    is_int(config_in(&machine, LPC, 4, 2), 7, "that always decodes");
    test_routing(&machine);
    test_ports(&machine, machine.pirq_device);
    test_placement(&machine, machine.pirq_device);
    test_firmware(&machine, machine.pirq_device);
    device_fini(machine.pirq_device);
    machine.pirq_device = NULL;
    is_int(in(&machine, 0xcf9, 1), 0xff, "gone");
    test_machine_fini(&machine);
    return tap_done();
}
