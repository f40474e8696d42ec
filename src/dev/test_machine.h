/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of chipset devices stand on: the fake engine, a bus, a PCI bus, a loop, and a
 * record of the events. */
#ifndef HULL_DEV_TEST_MACHINE_H
#define HULL_DEV_TEST_MACHINE_H

#include <stdlib.h>

#include "base/tap.h"
#include "base/units.h"
#include "dev/dev.h"
#include "engine/fake/fake.h"

struct test_machine {
    struct engine_vm *vm;
    struct bus *bus;
    struct irq_router irq;
    struct pci_bus *pci;
    struct loop *loop;
    struct dev_env env;
    struct dev_events events;
    void (*pirq_set)(void *ctx, unsigned pirq, bool level);
    struct device *pirq_device;

    unsigned power_offs, resets, panics, exits;
    bool crash_loaded;
    unsigned exit_value;

    struct loop_timer stop_timer;
};

static void test_power_off(void *ctx)
{
    ((struct test_machine *)ctx)->power_offs++;
}

static void test_reset(void *ctx)
{
    ((struct test_machine *)ctx)->resets++;
}

static void test_panicked(void *ctx, bool crash_loaded)
{
    struct test_machine *machine = ctx;

    machine->panics++;
    machine->crash_loaded = crash_loaded;
}

static void test_exit(void *ctx, unsigned value)
{
    struct test_machine *machine = ctx;

    machine->exits++;
    machine->exit_value = value;
}

static inline void test_machine_init(struct test_machine *machine)
{
    const struct engine_vm_config config = {.vcpu_count = 1, .upcalls = &bus_upcalls};
    struct err err = ERR_INIT;

    irq_router_init(&machine->irq, NULL);
    if (engine_fake.vm_new(&machine->vm, &config, &err) < 0 || bus_new(&machine->bus, &err) < 0 ||
        loop_new(&machine->loop, LOOP_NO_URING, &err) < 0)
        abort();
    machine->irq.vm = machine->vm;
    const struct pci_bus_config pci = {
        .bus = machine->bus,
        .irq = &machine->irq,
        .loop = machine->loop,
        .pirq_set = machine->pirq_set,
        .pirq_ctx = &machine->pirq_device,
    };
    if (pci_bus_new(&machine->pci, &pci, &err) < 0)
        abort();
    machine->events = (struct dev_events){
        .ctx = machine,
        .power_off = test_power_off,
        .reset = test_reset,
        .panicked = test_panicked,
        .exit = test_exit,
    };
    machine->env = (struct dev_env){
        .bus = machine->bus,
        .irq = &machine->irq,
        .pci = machine->pci,
        .loop = machine->loop,
        .events = &machine->events,
    };
}

static inline void test_machine_fini(struct test_machine *machine)
{
    pci_bus_free(machine->pci);
    irq_router_fini(&machine->irq);
    bus_free(machine->bus);
    engine_fake.vm_free(machine->vm);
    loop_free(machine->loop);
}

static inline void test_table(const struct state_table *table)
{
    char why[256] = "";

    state_table_check(table, why, sizeof(why));
    is_str(why, "", "the state table tiles the struct");
}

static inline uint32_t in(struct test_machine *machine, uint16_t port, unsigned size)
{
    return (uint32_t)bus_read(machine->bus, BUS_PIO, port, size);
}

static inline void out(struct test_machine *machine, uint16_t port, uint32_t value, unsigned size)
{
    bus_write(machine->bus, BUS_PIO, port, value, size);
}

static inline uint32_t config_in(struct test_machine *machine, uint8_t devfn, unsigned reg,
                                 unsigned size)
{
    out(machine, 0xcf8, 0x80000000 | (uint32_t)devfn << 8 | (reg & 0xfc), 4);
    return in(machine, (uint16_t)(0xcfc + (reg & 3)), size);
}

static inline void config_out(struct test_machine *machine, uint8_t devfn, unsigned reg,
                              uint32_t value, unsigned size)
{
    out(machine, 0xcf8, 0x80000000 | (uint32_t)devfn << 8 | (reg & 0xfc), 4);
    out(machine, (uint16_t)(0xcfc + (reg & 3)), value, size);
}

static inline void test_stop(struct loop_timer *timer)
{
    loop_stop(CONTAINER_OF(timer, struct test_machine, stop_timer)->loop);
}

/* Serve the loop for this long. */
static inline void test_run(struct test_machine *machine, unsigned ms)
{
    loop_timer_init(&machine->stop_timer, test_stop);
    loop_timer_arm(machine->loop, &machine->stop_timer, clock_now_ns() + ms * NS_PER_MS);
    loop_run(machine->loop);
}

#endif
