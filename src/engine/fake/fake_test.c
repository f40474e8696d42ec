/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/fake/fake.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

struct seen {
    char log[256];
};

static void note(struct seen *s, const char *kind, uint64_t addr, unsigned size, uint32_t count,
                 uint64_t value)
{
    size_t used = strlen(s->log);
    snprintf(s->log + used, sizeof(s->log) - used, "%s %llx/%u*%u=%llx;", kind,
             (unsigned long long)addr, size, count, (unsigned long long)value);
}

static void pio_read(void *ctx, uint16_t port, unsigned size, void *data, uint32_t count)
{
    memset(data, 0x7e, (size_t)size * count);
    note(ctx, "in", port, size, count, 0);
}

static void pio_write(void *ctx, uint16_t port, unsigned size, const void *data, uint32_t count)
{
    note(ctx, "out", port, size, count, load_le(data, size));
}

static void mmio_read(void *ctx, gpa_t gpa, unsigned size, void *data)
{
    memset(data, 0x7d, size);
    note(ctx, "r", gpa.a, size, 1, 0);
}

static void mmio_write(void *ctx, gpa_t gpa, unsigned size, const void *data)
{
    note(ctx, "w", gpa.a, size, 1, load_le(data, size));
}

static const struct engine_upcalls upcalls = {pio_read, pio_write, mmio_read, mmio_write};

static struct engine_vm *new_vm(struct seen *seen)
{
    const struct engine_vm_config config = {
        .vcpu_count = 2, .upcalls = &upcalls, .upcall_ctx = seen};
    struct engine_vm *vm = NULL;
    if (engine_fake.vm_new(&vm, &config, NULL) < 0)
        abort();
    return vm;
}

static void *run_until_failure(void *arg)
{
    struct engine_vcpu *vcpu = arg;
    struct engine_exit exit;
    do {
        vcpu->ops->vcpu_run(vcpu, &exit);
    } while (exit.kind != ENGINE_EXIT_FAILURE);
    return NULL;
}

static void call(void *ctx)
{
    ++*(int *)ctx;
}

static void test_script(void)
{
    struct seen seen = {0};
    struct engine_vm *vm = new_vm(&seen);
    struct engine_vcpu *vcpu;
    struct engine_exit exit;
    engine_fake.vcpu_new(vm, 0, &vcpu, NULL);

    uint8_t in[4] = {0}, read[8] = {0};
    int called = 0;
    fake_pio_write(vcpu, 0x3f8, 1, "A", 1);
    fake_pio_read(vcpu, 0x60, 2, in, 2);
    fake_mmio_write(vcpu, GPA(0xe0000000), 4, "\x78\x56\x34\x12");
    fake_mmio_read(vcpu, GPA(0xe0000010), 8, read);
    fake_call(vcpu, call, &called);
    fake_exit(vcpu, ENGINE_EXIT_TRIPLE_FAULT, NULL);
    fake_exit(vcpu, ENGINE_EXIT_FAILURE, "why");
    engine_fake.vcpu_run(vcpu, &exit);
    is_int(exit.kind, ENGINE_EXIT_TRIPLE_FAULT, "the queue runs to its first exit");
    is_str(seen.log, "out 3f8/1*1=41;in 60/2*2=0;w e0000000/4*1=12345678;r e0000010/8*1=0;",
           "the accesses came in order");
    is_int(load_le(in, 4), 0x7e7e7e7e, "the answers of a port");
    is_int(read[7], 0x7d, "the answer of memory");
    is_int(called, 1, "the call was made");
    engine_fake.vcpu_run(vcpu, &exit);
    ok(exit.kind == ENGINE_EXIT_FAILURE && strcmp(exit.text, "why") == 0, "a failure has its text");

    engine_fake.vcpu_kick(vcpu);
    engine_fake.vcpu_run(vcpu, &exit);
    is_int(exit.kind, ENGINE_EXIT_KICK, "a kick before the run ends it");

    pthread_t thread;
    pthread_create(&thread, NULL, run_until_failure, vcpu);
    for (int i = 0; i < 1000; i++)
        engine_fake.vcpu_kick(vcpu);
    for (int i = 0; i < 1000; i++)
        fake_call(vcpu, call, &called);
    fake_drain(vcpu);
    is_int(called, 1001, "draining waits for all");
    fake_exit(vcpu, ENGINE_EXIT_FAILURE, NULL);
    pthread_join(thread, NULL);

    fake_pio_write(vcpu, 1, 1, "x", 1); /* freed with the vCPU */
    engine_fake.vcpu_free(vcpu);
    engine_fake.vm_free(vm);
}

static void hook(void *ctx, const struct fake_event *event)
{
    *(struct fake_event *)ctx = *event;
}

static void test_interrupts(void)
{
    struct seen seen = {0};
    struct engine_vm *vm = new_vm(&seen);
    struct fake_event event = {0};
    engine_fake.gsi_set(vm, 4, true);
    engine_fake.gsi_set(vm, 4, true);
    ok(fake_gsi_level(vm, 4) && !fake_gsi_level(vm, 5), "a line is up");
    is_int(fake_event_count(vm, FAKE_GSI), 1, "only the change is recorded");
    engine_fake.gsi_set(vm, 4, false);
    engine_fake.gsi_set(vm, 4, true);
    is_int(fake_gsi_rises(vm, 4), 2, "it rose twice");
    is_int(engine_fake.gsi_set(vm, 24, true), -EINVAL, "there is no GSI 24");
    engine_fake.pic_set(vm, 10, true);
    ok(fake_pic_level(vm, 10), "a PIC input is up");
    ok(fake_pit_connected(vm), "the PIT is connected");
    engine_fake.pit_connect(vm, false);
    engine_fake.pit_connect(vm, false);
    ok(!fake_pit_connected(vm), "and is not");
    is_int(fake_event_count(vm, FAKE_PIT), 1, "which is recorded once");

    uint64_t addr = 0;
    uint32_t data = 0;
    is_int(fake_msi_count(vm, &addr, &data), 0, "no message yet");
    fake_set_hook(vm, hook, &event);
    engine_fake.msi_send(vm, 0xfee01000, 0x41);
    ok(fake_msi_count(vm, &addr, &data) == 1 && addr == 0xfee01000 && data == 0x41, "a message");
    ok(event.kind == FAKE_MSI && event.data == 0x41, "the hook saw it");
    fake_fail_next(vm, FAKE_MSI, -EIO);
    is_int(engine_fake.msi_send(vm, 0xfee01000, 0x42), -EIO, "an ordered failure");
    is_int(engine_fake.msi_send(vm, 0xfee01000, 0x43), 0, "happens once");

    is_int(fake_event_total(vm), 7, "all events");
    ok(fake_event_at(vm, 0, &event) && event.kind == FAKE_GSI && event.level, "the first");
    ok(fake_event_last(vm, FAKE_PIC, &event) && event.line == 10, "the newest of a kind");
    fake_events_clear(vm);
    ok(!fake_event_at(vm, 0, &event) && !fake_event_last(vm, FAKE_PIC, &event), "cleared");
    for (int i = 0; i < FAKE_EVENTS_MAX + 5; i++)
        engine_fake.msi_send(vm, 0, (uint32_t)i);
    ok(!fake_event_at(vm, 4, &event), "the oldest are dropped");
    ok(fake_event_at(vm, 5, &event) && event.data == 5, "the newest are kept");
    engine_fake.vm_free(vm);
}

static void test_eventfds(void)
{
    struct seen seen = {0};
    struct engine_vm *vm = new_vm(&seen);
    struct engine_irqfd irqfd;
    uint64_t one = 1, addr = 0;
    uint32_t data = 0;
    is_int(engine_fake.irqfd_new(vm, &irqfd), 0, "an irqfd");
    is_int(fake_irqfd_poll(vm), 0, "that has not fired");
    ok(write(irqfd.fd, &one, 8) == 8 && fake_irqfd_poll(vm) == 0, "one not set sends nothing");
    engine_fake.irqfd_set(vm, &irqfd, 0xfee00000, 0x51, true);
    is_int(fake_irqfd_poll(vm), 0, "a masked one is held back");
    engine_fake.irqfd_set(vm, &irqfd, 0xfee00000, 0x52, false);
    ok(fake_irqfd_poll(vm) == 1 && fake_msi_count(vm, &addr, &data) == 1 && data == 0x52,
       "unmasked, it is sent");
    is_int(fake_irqfd_poll(vm), 0, "once");
    engine_fake.irqfd_free(vm, &irqfd);

    int fd = eventfd(0, EFD_NONBLOCK);
    const struct engine_ioeventfd e = {ENGINE_SPACE_MMIO, 0x1000, 2, fd};
    const struct engine_ioeventfd any = {ENGINE_SPACE_PIO, 0x1000, 0, fd};
    is_int(engine_fake.ioeventfd_add(vm, &e), 0, "an ioeventfd");
    is_int(engine_fake.ioeventfd_add(vm, &e), -EEXIST, "not twice");
    ok(!fake_ioeventfd_fire(vm, ENGINE_SPACE_MMIO, 0x1000, 4), "another width does not match");
    ok(!fake_ioeventfd_fire(vm, ENGINE_SPACE_PIO, 0x1000, 2), "nor another space");
    ok(fake_ioeventfd_fire(vm, ENGINE_SPACE_MMIO, 0x1000, 2), "it matches");
    ok(read(fd, &one, 8) == 8, "and fires");
    engine_fake.ioeventfd_add(vm, &any);
    ok(fake_ioeventfd_fire(vm, ENGINE_SPACE_PIO, 0x1000, 4), "length 0 matches every width");
    engine_fake.ioeventfd_del(vm, &e);
    ok(!fake_ioeventfd_fire(vm, ENGINE_SPACE_MMIO, 0x1000, 2), "removed");
    fake_ioeventfd_refuse(vm, true);
    is_int(engine_fake.ioeventfd_add(vm, &e), -ENOTSUP, "an engine without them");
    close(fd);
    engine_fake.vm_free(vm);
}

static void test_memory_and_state(void)
{
    struct seen seen = {0};
    struct engine_vm *vm = new_vm(&seen);
    struct err err = ERR_INIT;
    const struct mem_region region = {.name = "ram", .base = GPA(0x10000), .len_bytes = 100 * 4096};
    uint64_t map[2] = {0};
    is_int(engine_fake.map(vm, 0, &region, &err), 0, "map");
    is_int(engine_fake.map(vm, 0, &region, &err), -EEXIST, "a slot is mapped once");
    fake_dirty_mark(vm, 0, 7);
    is_int(engine_fake.dirty_collect(vm, 0, map), -ENOENT, "nothing is logged at first");
    engine_fake.dirty_start(vm, &err);
    fake_dirty_mark(vm, 0, 70);
    map[0] = 1;
    is_int(engine_fake.dirty_collect(vm, 0, map), 0, "collect");
    ok(map[0] == 1 && map[1] == 1ULL << 6, "the page since the start, ORed");
    memset(map, 0, sizeof(map));
    engine_fake.dirty_collect(vm, 0, map);
    ok(map[0] == 0 && map[1] == 0, "once");
    engine_fake.dirty_stop(vm, &err);

    struct engine_vcpu *vcpu;
    engine_fake.vcpu_new(vm, 1, &vcpu, &err);
    struct cpu_regs regs;
    struct cpu_sregs sregs;
    engine_fake.vcpu_get(vcpu, &regs, &sregs);
    ok(regs.rip == 0xfff0 && sregs.cs.base == 0xffff0000, "a new vCPU is at the reset vector");
    regs.rip = 0x1000;
    engine_fake.vcpu_set(vcpu, &regs, &sregs);
    engine_fake.vcpu_get(vcpu, &regs, NULL);
    is_int(regs.rip, 0x1000, "its state is set");
    engine_fake.vcpu_reset(vcpu, &err);
    engine_fake.vcpu_get(vcpu, &regs, NULL);
    is_int(regs.rip, 0xfff0, "and reset");
    fake_fail_next(vm, FAKE_VM_RESET, -EIO);
    is_int(engine_fake.vm_reset(vm, &err), -EIO, "an ordered failure of a reset");
    is_int(engine_fake.vm_reset(vm, &err), 0, "a reset");
    engine_fake.vcpu_free(vcpu);
    engine_fake.vm_free(vm);

    ok(engine_find("fake") == NULL, "the fake engine is not for the command line");
    is_str(engine_find("kvm")->name, "kvm", "KVM is found");
    ok(engine_find("") == NULL, "nothing is not");
}

int main(void)
{
    test_script();
    test_interrupts();
    test_eventfds();
    test_memory_and_state();
    return tap_done();
}
