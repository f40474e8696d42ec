/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/pvpanic.h"

#include "dev/test_machine.h"

int main(void)
{
    struct test_machine machine = {0};
    struct device *dev;
    struct err err = ERR_INIT;

    test_machine_init(&machine);
    is_int(pvpanic_new(&dev, &machine.env, &err), 0, "pvpanic_new()");
    is_int(in(&machine, PVPANIC_PORT, 1), 3, "it understands panic and crash kernel loaded");
    out(&machine, PVPANIC_PORT, 0, 1);
    out(&machine, PVPANIC_PORT, 0xf0, 1);
    is_int(machine.panics, 0, "unknown events are no panic");
    out(&machine, PVPANIC_PORT, 1, 1);
    ok(machine.panics == 1 && !machine.crash_loaded, "panic");
    out(&machine, PVPANIC_PORT, 2, 1);
    ok(machine.panics == 2 && machine.crash_loaded, "crash kernel loaded");
    device_reset(dev);
    device_fini(dev);
    is_int(in(&machine, PVPANIC_PORT, 1), 0xff, "gone");
    test_machine_fini(&machine);
    return tap_done();
}
