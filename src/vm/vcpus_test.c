/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/vcpus.h"

#include <stdint.h>

#include "base/err.h"
#include "base/tap.h"
#include "engine/fake/fake.h"

#define CPUS   4
#define ROUNDS 200

/* What the upcalls and exits of a test saw; counters are atomic. */
struct seen {
    struct vcpus *vcpus;
    unsigned writes;
    unsigned exits;
    enum engine_exit_kind last_exit;
    bool pause_in_write;
};

static void pio_read(void *ctx, uint16_t port, unsigned size, void *data, uint32_t count)
{
    (void)ctx;
    (void)port;
    memset(data, 0xff, (size_t)size * count);
}

static void pio_write(void *ctx, uint16_t port, unsigned size, const void *data, uint32_t count)
{
    struct seen *seen = ctx;

    (void)port;
    (void)size;
    (void)data;
    (void)count;
    __atomic_fetch_add(&seen->writes, 1, __ATOMIC_SEQ_CST);
    if (seen->pause_in_write)
        vcpus_request_pause(seen->vcpus);
}

static void mmio_read(void *ctx, gpa_t gpa, unsigned size, void *data)
{
    (void)ctx;
    (void)gpa;
    memset(data, 0xff, size);
}

static void mmio_write(void *ctx, gpa_t gpa, unsigned size, const void *data)
{
    (void)ctx;
    (void)gpa;
    (void)size;
    (void)data;
}

static const struct engine_upcalls upcalls = {
    .pio_read = pio_read, .pio_write = pio_write, .mmio_read = mmio_read, .mmio_write = mmio_write};

static void on_exit_seen(void *ctx, unsigned id, const struct engine_exit *exit)
{
    struct seen *seen = ctx;

    (void)id;
    seen->last_exit = exit->kind;
    __atomic_fetch_add(&seen->exits, 1, __ATOMIC_SEQ_CST);
}

static struct engine_vm *make(struct seen *seen)
{
    const struct engine_vm_config config = {
        .vcpu_count = CPUS, .upcalls = &upcalls, .upcall_ctx = seen};
    struct engine_vm *vm = NULL;
    struct err err = ERR_INIT;

    memset(seen, 0, sizeof(*seen));
    is_int(engine_fake.vm_new(&vm, &config, &err), 0, "an engine");
    is_int(vcpus_new(&seen->vcpus, vm, CPUS, on_exit_seen, seen, NULL, &err), 0, "vCPU threads");
    is_int(vcpus_wait_ready(seen->vcpus, &err), 0, "are ready");
    return vm;
}

static void drop(struct seen *seen, struct engine_vm *vm)
{
    vcpus_free(seen->vcpus);
    engine_fake.vm_free(vm);
}

static void test_pause_and_resume(void)
{
    struct seen seen;
    struct engine_vm *vm = make(&seen);
    uint8_t byte = 0;

    fake_pio_write(vcpus_get(seen.vcpus, 0), 0x80, 1, &byte, 1);
    is_int(__atomic_load_n(&seen.writes, __ATOMIC_SEQ_CST), 0, "paused from the start");
    vcpus_resume(seen.vcpus);
    fake_drain(vcpus_get(seen.vcpus, 0));
    is_int(__atomic_load_n(&seen.writes, __ATOMIC_SEQ_CST), 1, "runs after resume");
    bool stopped = true;
    for (int i = 0; i < ROUNDS; i++) {
        vcpus_pause(seen.vcpus);
        unsigned before = __atomic_load_n(&seen.writes, __ATOMIC_SEQ_CST);
        for (unsigned id = 0; id < CPUS; id++)
            fake_pio_write(vcpus_get(seen.vcpus, id), 0x80, 1, &byte, 1);
        stopped &= __atomic_load_n(&seen.writes, __ATOMIC_SEQ_CST) == before;
        vcpus_resume(seen.vcpus);
    }
    ok(stopped, "no guest code runs while paused");
    for (unsigned id = 0; id < CPUS; id++)
        fake_drain(vcpus_get(seen.vcpus, id));
    is_int(seen.writes, 1 + ROUNDS * CPUS, "and nothing was lost");
    drop(&seen, vm);
}

static void test_pause_from_upcall(void)
{
    struct seen seen;
    struct engine_vm *vm = make(&seen);
    uint8_t byte = 0;

    seen.pause_in_write = true;
    for (int i = 0; i < 3; i++)
        fake_pio_write(vcpus_get(seen.vcpus, 0), 0x80, 1, &byte, 1);
    for (unsigned i = 1; i <= 3; i++) {
        vcpus_resume(seen.vcpus);
        while (__atomic_load_n(&seen.writes, __ATOMIC_SEQ_CST) < i)
            ;
        vcpus_pause(seen.vcpus);
        is_int(seen.writes, i, "not one access after the one that asked for the pause");
    }
    drop(&seen, vm);
}

static void test_exits(void)
{
    struct seen seen;
    struct engine_vm *vm = make(&seen);

    fake_exit(vcpus_get(seen.vcpus, 2), ENGINE_EXIT_TRIPLE_FAULT, NULL);
    vcpus_resume(seen.vcpus);
    while (__atomic_load_n(&seen.exits, __ATOMIC_SEQ_CST) == 0)
        ;
    vcpus_pause(seen.vcpus);
    is_int(seen.exits, 1, "an exit is told once");
    is_int(seen.last_exit, ENGINE_EXIT_TRIPLE_FAULT, "with its kind");
    struct err err = ERR_INIT;
    is_int(vcpus_reset(seen.vcpus, &err), 0, "reset");
    is_int(fake_event_count(vm, FAKE_VCPU_RESET), CPUS, "reaches every vCPU");
    drop(&seen, vm);
}

static void test_free_at_once(void)
{
    for (int i = 0; i < 20; i++) {
        struct seen seen;
        const struct engine_vm_config config = {
            .vcpu_count = CPUS, .upcalls = &upcalls, .upcall_ctx = &seen};
        struct engine_vm *vm = NULL;
        struct vcpus *vcpus = NULL;
        struct err err = ERR_INIT;

        engine_fake.vm_new(&vm, &config, &err);
        vcpus_new(&vcpus, vm, CPUS, on_exit_seen, &seen, NULL, &err);
        vcpus_free(vcpus);
        engine_fake.vm_free(vm);
    }
    ok(true, "freed while the threads still start");
}

int main(void)
{
    test_pause_and_resume();
    test_pause_from_upcall();
    test_exits();
    test_free_at_once();
    return tap_done();
}
