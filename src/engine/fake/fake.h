/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake engine: what a unit test of the machine above the engines runs on. It records every
 * operation that goes down, and sends up the accesses that the test has queued, so that a test
 * needs neither a guest nor /dev/kvm.
 *
 *     engine_fake.vm_new(&vm, &config, &err);
 *     uart_write(...);
 *     ok(fake_gsi_level(vm, 4), "the UART raised its line");
 *
 * A vCPU works off its queue, in order. With nothing queued it stays inside vcpu_run, as a guest
 * that has halted, until engine_vcpu_kick or until something is queued.
 *
 * Threads: every function may be called from every thread.
 */
#ifndef HULL_ENGINE_FAKE_FAKE_H
#define HULL_ENGINE_FAKE_FAKE_H

#include "engine/engine.h"

/* --- what went down --- */

enum fake_event_kind {
    FAKE_GSI,           /* line, level: only when the level changed */
    FAKE_PIC,           /* line, level: only when the level changed */
    FAKE_PIT,           /* level: connected; only when that changed */
    FAKE_MSI,           /* addr, data */
    FAKE_IRQFD_NEW,     /* line: the route; fd */
    FAKE_IRQFD_SET,     /* line: the route; fd, addr, data, masked */
    FAKE_IRQFD_FREE,    /* line: the route; fd */
    FAKE_IOEVENTFD_ADD, /* ioeventfd */
    FAKE_IOEVENTFD_DEL, /* ioeventfd */
    FAKE_MAP,           /* line: the slot; addr: its base */
    FAKE_VM_RESET,      /* */
    FAKE_VCPU_RESET,    /* line: the vCPU */
    FAKE_VCPU_SET,      /* line: the vCPU */
    FAKE_KICK,          /* line: the vCPU */
    FAKE_DIRTY_START,   /* */
    FAKE_DIRTY_COLLECT, /* line: the slot */
    FAKE_DIRTY_STOP,    /* */
    FAKE_EVENT_KINDS,
};

struct fake_event {
    enum fake_event_kind kind;
    unsigned line;
    bool level;
    uint64_t addr;
    uint32_t data;
    bool masked;
    int fd;
    struct engine_ioeventfd ioeventfd;
};

/* The newest FAKE_EVENTS_MAX events are kept; the counts go on. */
#define FAKE_EVENTS_MAX 1024

/* Events recorded since the start or the last fake_events_clear(), of one kind or of all. */
size_t fake_event_total(struct engine_vm *vm);
size_t fake_event_count(struct engine_vm *vm, enum fake_event_kind kind);

/* The event with this index (0 the oldest since the clear), or the newest of a kind. false: none.
 */
bool fake_event_at(struct engine_vm *vm, size_t index, struct fake_event *event);
bool fake_event_last(struct engine_vm *vm, enum fake_event_kind kind, struct fake_event *event);
void fake_events_clear(struct engine_vm *vm);

/* Called after each event is recorded, on the thread that caused it, without a lock held. */
void fake_set_hook(struct engine_vm *vm, void (*fn)(void *ctx, const struct fake_event *event),
                   void *ctx);

/* The next operation of this kind fails with code (a negative errno) and is not recorded. Kinds
 * whose operation returns nothing cannot fail. */
void fake_fail_next(struct engine_vm *vm, enum fake_event_kind kind, int code);

bool fake_gsi_level(struct engine_vm *vm, unsigned gsi);
/* Changes from low to high since the start: an edge-triggered interrupt that was raised and
 * dropped. */
unsigned fake_gsi_rises(struct engine_vm *vm, unsigned gsi);
bool fake_pic_level(struct engine_vm *vm, unsigned irq);
/* What pit_connect was called with last, since a reset: true without a call. */
bool fake_pit_connected(struct engine_vm *vm);

/* Messages so far. With last: the newest one (untouched when there is none). */
unsigned fake_msi_count(struct engine_vm *vm, uint64_t *last_addr, uint32_t *last_data);

/*
 * Look at the eventfds of all irqfds, as the kernel does when they are written: each that fired and
 * is set and not masked is recorded as FAKE_MSI. A masked one stays pending until it is unmasked.
 * Returns how many messages came of it.
 */
unsigned fake_irqfd_poll(struct engine_vm *vm);

/* A guest's write of len bytes: signals the ioeventfd that matches. false: none does, and the
 * access would have come as an upcall. */
bool fake_ioeventfd_fire(struct engine_vm *vm, enum engine_space space, uint64_t addr,
                         unsigned len);

/* From now on ioeventfd_add returns -ENOTSUP, as an engine without them does. */
void fake_ioeventfd_refuse(struct engine_vm *vm, bool refuse);

/* The guest has written to a page of a mapped slot: it is in the next dirty_collect. Outside of
 * dirty_start and dirty_stop nothing is kept. */
void fake_dirty_mark(struct engine_vm *vm, unsigned slot, uint64_t page);

/* --- what comes up --- */

/*
 * Queue accesses of a vCPU. For reads, data is where the answer goes; it must stay until the vCPU
 * has made the access (fake_drain()). For writes, size * count bytes are copied now. count is 1
 * except for rep ins/outs.
 */
void fake_pio_read(struct engine_vcpu *vcpu, uint16_t port, unsigned size, void *data,
                   uint32_t count);
void fake_pio_write(struct engine_vcpu *vcpu, uint16_t port, unsigned size, const void *data,
                    uint32_t count);
void fake_mmio_read(struct engine_vcpu *vcpu, gpa_t gpa, unsigned size, void *data);
void fake_mmio_write(struct engine_vcpu *vcpu, gpa_t gpa, unsigned size, const void *data);

/* Queue an exit of vcpu_run. text (may be NULL) is for ENGINE_EXIT_FAILURE. */
void fake_exit(struct engine_vcpu *vcpu, enum engine_exit_kind kind, const char *text);

/* Queue a call, on the vCPU's thread between two accesses. */
void fake_call(struct engine_vcpu *vcpu, void (*fn)(void *ctx), void *ctx);

/* Wait until a vCPU, run by another thread, has worked off its queue. */
void fake_drain(struct engine_vcpu *vcpu);

/* Queue steps are on the heap, and a test that cannot have one aborts: no error to handle. */

#endif
