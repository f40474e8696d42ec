/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/irq.h"

#include "base/err.h"
#include "base/tap.h"
#include "bus/bus.h"
#include "engine/fake/fake.h"

static void test_shared(struct irq_router *router, struct engine_vm *vm)
{
    struct irq_line a, b;

    irq_line_init(&a, router, 5);
    irq_line_init(&b, router, 5);
    fake_events_clear(vm);
    irq_line_set(&a, true);
    irq_line_set(&b, true);
    irq_line_set(&b, true);
    irq_line_set(&a, false);
    ok(fake_gsi_level(vm, 5), "an input stays up while one of its lines is up");
    is_int(fake_event_count(vm, FAKE_GSI), 1, "and the engine is told once");
    irq_line_set(&b, false);
    ok(!fake_gsi_level(vm, 5), "it falls with the last line");
    irq_line_set(&b, false);
    is_int(fake_event_count(vm, FAKE_GSI), 2, "lowering a low line does nothing");

    irq_line_pulse(&a);
    irq_line_pulse(&a);
    is_int(fake_gsi_rises(vm, 5), 3, "each pulse is an edge");
    ok(!fake_gsi_level(vm, 5), "a pulse leaves the line low");
}

static void test_replace(struct irq_router *router, struct engine_vm *vm)
{
    struct irq_line clock, hpet;

    irq_line_init(&clock, router, 8);
    irq_line_init(&hpet, router, 8);
    irq_line_set(&clock, true);
    fake_events_clear(vm);
    irq_line_replace(&hpet);
    ok(!fake_gsi_level(vm, 8), "another line takes an input over: it has that line's level");
    irq_line_set(&clock, false);
    irq_line_set(&clock, true);
    is_int(fake_event_count(vm, FAKE_GSI), 1, "the others' changes do not reach it");
    irq_line_pulse(&hpet);
    is_int(fake_event_count(vm, FAKE_GSI), 3, "those of the new line do");
    irq_line_restore(&hpet);
    ok(fake_gsi_level(vm, 8), "restored, the others' levels are as they have become");
    irq_line_replace(&hpet);
    irq_line_set(&hpet, true);
    irq_line_set(&clock, false);
    irq_line_restore(&hpet);
    ok(fake_gsi_level(vm, 8), "a line that stays up holds the input as any does");
    irq_line_restore(&hpet);
    irq_line_set(&hpet, false);
    ok(!fake_gsi_level(vm, 8), "and no longer than that");
}

static void test_pic(struct irq_router *router, struct engine_vm *vm)
{
    irq_pic_adjust(router, 11, true);
    irq_pic_adjust(router, 11, true);
    irq_pic_adjust(router, 11, false);
    ok(fake_pic_level(vm, 11), "a PIC input is the OR of its holders");
    irq_pic_adjust(router, 11, false);
    ok(!fake_pic_level(vm, 11), "and falls with the last");
    ok(!fake_gsi_level(vm, 11), "the IOAPIC does not see it");
}

static void test_msi(struct irq_router *router, struct engine_vm *vm)
{
    uint64_t addr = 0;
    uint32_t data = 0;

    irq_msi_send(router, 0xfee01000, 0x41);
    is_int(fake_msi_count(vm, &addr, &data), 1, "a message is sent");
    ok(addr == 0xfee01000 && data == 0x41, "with its address and data");
}

int main(void)
{
    struct engine_vm_config config = {.vcpu_count = 1, .upcalls = &bus_upcalls};
    struct engine_vm *vm;
    struct irq_router router;
    struct err err = ERR_INIT;

    if (engine_fake.vm_new(&vm, &config, &err) < 0)
        return 1;
    irq_router_init(&router, vm);
    test_shared(&router, vm);
    test_replace(&router, vm);
    test_pic(&router, vm);
    test_msi(&router, vm);
    irq_router_fini(&router);
    engine_fake.vm_free(vm);
    return tap_done();
}
