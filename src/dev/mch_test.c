/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/mch.h"

#include "dev/test_machine.h"

#define MCH PCI_DEVFN(0, 0)

static uint32_t ecam_in(struct test_machine *machine, uint64_t base)
{
    return (uint32_t)bus_read(machine->bus, BUS_MMIO, base, 4);
}

static void test_ecam(struct test_machine *machine, struct device *mch)
{
    is_int(ecam_in(machine, 0xe0000000), 0xffffffff, "ECAM is off after reset");
    config_out(machine, MCH, 0x64, 0, 4);
    config_out(machine, MCH, 0x60, 0xb0000001, 4);
    is_int(ecam_in(machine, 0xb0000000), 0x29c08086, "PCIEXBAR places it");
    is_int(ecam_in(machine, 0xb0000000 + 256 * MIB - 4), 0xffffffff, "256 buses");
    config_out(machine, MCH, 0x60, 0xbc000001, 4);
    is_int(config_in(machine, MCH, 0x60, 4), 0xb0000001, "256 MiB: bits 26 and 27 are not there");
    config_out(machine, MCH, 0x60, 0xbc000003, 4);
    is_int(config_in(machine, MCH, 0x60, 4), 0xb8000003, "128 MiB: bit 27 is");
    is_int(ecam_in(machine, 0xb8000000), 0x29c08086, "and counts");
    config_out(machine, MCH, 0x60, 0xbc000005, 4);
    is_int(ecam_in(machine, 0xbc000000), 0x29c08086, "64 MiB: so does bit 26");
    is_int(ecam_in(machine, 0xb8000000), 0xffffffff, "it is gone from the old place");
    config_out(machine, MCH, 0x64, 8, 4);
    is_int(ecam_in(machine, 0x8bc000000), 0x29c08086, "above 4 GiB");
    config_out(machine, MCH, 0x60, 0xb0000007, 4);
    is_int(ecam_in(machine, 0x8b0000000), 0xffffffff, "the reserved size turns it off");
    config_out(machine, MCH, 0x60, 0xb0000000, 4);
    is_int(ecam_in(machine, 0x8b0000000), 0xffffffff, "off");

    mch_enable_ecam(mch, 0xb0000000);
    is_int(ecam_in(machine, 0xb0000000), 0x29c08086, "mch_enable_ecam()");
    device_reset(mch);
    is_int(ecam_in(machine, 0xb0000000), 0xffffffff, "reset turns it off");

    /* A guest that moves the window with an access through the window. */
    mch_enable_ecam(mch, 0xb0000000);
    bus_write(machine->bus, BUS_MMIO, 0xb0000060, 0xa0000001, 4);
    is_int(ecam_in(machine, 0xa0000000), 0x29c08086, "ECAM moved through itself");
    device_reset(mch);
}

static void test_smram(struct test_machine *machine, struct device *mch)
{
    is_int(config_in(machine, MCH, 0x9d, 2), 0x3802, "SMRAM and ESMRAMC after reset");
    config_out(machine, MCH, 0x9d, 0x4f, 1);
    is_int(config_in(machine, MCH, 0x9d, 1), 0x4a, "SMRAM keeps what is written");
    config_out(machine, MCH, 0xac, 0x7f800fff, 4);
    is_int(config_in(machine, MCH, 0xac, 4), 0x7f800000, "TSEG base");
    config_out(machine, MCH, 0x9e, 0x03, 1);
    is_int(config_in(machine, MCH, 0x9e, 1), 0x3b, "ESMRAMC");
    config_out(machine, MCH, 0x9d, 0x5a, 1);
    is_int(config_in(machine, MCH, 0x9d, 1), 0x1a, "locking closes SMRAM");
    config_out(machine, MCH, 0x9d, 0x42, 1);
    config_out(machine, MCH, 0x9e, 0x00, 1);
    config_out(machine, MCH, 0xac, 0, 4);
    is_int(config_in(machine, MCH, 0x9d, 2), 0x3b1a, "locked registers do not change");
    is_int(config_in(machine, MCH, 0xac, 4), 0x7f800000, "nor does TSEG");
    device_reset(mch);
    config_out(machine, MCH, 0x9d, 0x48, 1);
    is_int(config_in(machine, MCH, 0x9d, 1), 0x4a, "reset opens the lock");
    device_reset(mch);
}

int main(void)
{
    struct test_machine machine = {0};
    struct device *mch;
    struct err err = ERR_INIT;

    test_machine_init(&machine);
    test_table(&mch_state_table);
    is_int(mch_new(&mch, &machine.env, &err), 0, "mch_new()");
    is_int(config_in(&machine, MCH, 0, 4), 0x29c08086, "identity");
    is_int(config_in(&machine, MCH, 10, 2), 0x0600, "a host bridge");
    config_out(&machine, MCH, 4, 0, 2);
    is_int(config_in(&machine, MCH, 4, 2), 6, "decoding and mastering cannot be turned off");
    config_out(&machine, MCH, 0x90, 0xff, 1);
    config_out(&machine, MCH, 0x91, 0xff, 1);
    is_int(config_in(&machine, MCH, 0x90, 2), 0x3330, "PAM registers");
    device_reset(mch);
    is_int(config_in(&machine, MCH, 0x90, 2), 0, "reset");
    test_ecam(&machine, mch);
    test_smram(&machine, mch);
    device_fini(mch);
    is_int(config_in(&machine, MCH, 0, 4), 0xffffffff, "gone");
    test_machine_fini(&machine);
    return tap_done();
}
