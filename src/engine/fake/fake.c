/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/fake/fake.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/units.h"

#define FAKE_GSIS       24
#define FAKE_PICS       16
#define FAKE_VCPU_MAX   256
#define FAKE_IRQFDS     256
#define FAKE_IOEVENTFDS 256

enum step_kind {
    STEP_PIO_READ,
    STEP_PIO_WRITE,
    STEP_MMIO_READ,
    STEP_MMIO_WRITE,
    STEP_EXIT,
    STEP_CALL,
};

struct step {
    struct step *next;
    enum step_kind kind;
    uint64_t addr;
    unsigned size;
    uint32_t count;
    void *read_to;
    void (*fn)(void *ctx);
    void *ctx;
    enum engine_exit_kind exit;
    char *text;
    uint8_t write[]; /* size * count bytes of a write */
};

struct slot {
    uint64_t base;
    uint64_t pages; /* 0: not mapped */
    uint64_t *dirty;
};

struct irqfd {
    bool used;
    bool set; /* irqfd_set has been called */
    bool masked;
    int fd;
    uint64_t addr;
    uint32_t data;
};

struct fake_vm {
    struct engine_vm base;
    struct engine_vm_config config;
    pthread_mutex_t lock; /* all below, and the queues of all vCPUs */
    pthread_cond_t changed;

    struct fake_event events[FAKE_EVENTS_MAX];
    size_t event_total;
    size_t event_count[FAKE_EVENT_KINDS];
    struct fake_event newest[FAKE_EVENT_KINDS];
    int fail[FAKE_EVENT_KINDS];
    void (*hook)(void *ctx, const struct fake_event *event);
    void *hook_ctx;

    bool gsi[FAKE_GSIS];
    unsigned gsi_rises[FAKE_GSIS];
    bool pic[FAKE_PICS];
    bool pit_off;
    unsigned msi_count;
    uint64_t msi_addr;
    uint32_t msi_data;

    struct irqfd irqfds[FAKE_IRQFDS];
    struct engine_ioeventfd ioeventfds[FAKE_IOEVENTFDS];
    size_t ioeventfd_count;
    bool ioeventfd_refuse;

    struct slot slots[MEM_REGIONS_MAX];
    bool logging;
    unsigned vcpus; /* that exist */
};

struct fake_vcpu {
    struct engine_vcpu base;
    struct fake_vm *vm;
    struct step *first;
    struct step **last;
    bool busy; /* a step has been taken off the queue and is not finished */
    bool kicked;
    struct cpu_regs regs;
    struct cpu_sregs sregs;
};

static struct fake_vm *to_vm(struct engine_vm *vm)
{
    assert(vm->ops == &engine_fake);
    return CONTAINER_OF(vm, struct fake_vm, base);
}

static struct fake_vcpu *to_vcpu(struct engine_vcpu *vcpu)
{
    assert(vcpu->ops == &engine_fake);
    return CONTAINER_OF(vcpu, struct fake_vcpu, base);
}

/* --- recording --- */

/* The failure that the test ordered for this kind, once. Lock held. */
static int ordered_failure(struct fake_vm *vm, enum fake_event_kind kind)
{
    int code = vm->fail[kind];
    vm->fail[kind] = 0;
    return code;
}

static void record_locked(struct fake_vm *vm, const struct fake_event *event)
{
    vm->events[vm->event_total % FAKE_EVENTS_MAX] = *event;
    vm->event_total++;
    vm->event_count[event->kind]++;
    vm->newest[event->kind] = *event;
    if (event->kind == FAKE_MSI) {
        vm->msi_count++;
        vm->msi_addr = event->addr;
        vm->msi_data = event->data;
    }
}

/* Unlocks, then calls the hook: a hook may call the engine. */
static void record_unlock(struct fake_vm *vm, const struct fake_event *event)
{
    record_locked(vm, event);
    void (*hook)(void *, const struct fake_event *) = vm->hook;
    void *ctx = vm->hook_ctx;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
    if (hook)
        hook(ctx, event);
}

/* An operation that does nothing but be recorded. */
static int record_simple(struct fake_vm *vm, const struct fake_event *event)
{
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, event->kind);
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return rc;
    }
    record_unlock(vm, event);
    return 0;
}

size_t fake_event_total(struct engine_vm *evm)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    size_t total = vm->event_total;
    pthread_mutex_unlock(&vm->lock);
    return total;
}

size_t fake_event_count(struct engine_vm *evm, enum fake_event_kind kind)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    size_t count = vm->event_count[kind];
    pthread_mutex_unlock(&vm->lock);
    return count;
}

bool fake_event_at(struct engine_vm *evm, size_t index, struct fake_event *event)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    bool kept = index < vm->event_total && vm->event_total - index <= FAKE_EVENTS_MAX;
    if (kept)
        *event = vm->events[index % FAKE_EVENTS_MAX];
    pthread_mutex_unlock(&vm->lock);
    return kept;
}

bool fake_event_last(struct engine_vm *evm, enum fake_event_kind kind, struct fake_event *event)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    bool any = vm->event_count[kind] > 0;
    if (any)
        *event = vm->newest[kind];
    pthread_mutex_unlock(&vm->lock);
    return any;
}

void fake_events_clear(struct engine_vm *evm)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    vm->event_total = 0;
    memset(vm->event_count, 0, sizeof(vm->event_count));
    pthread_mutex_unlock(&vm->lock);
}

void fake_set_hook(struct engine_vm *evm, void (*fn)(void *ctx, const struct fake_event *event),
                   void *ctx)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    vm->hook = fn;
    vm->hook_ctx = ctx;
    pthread_mutex_unlock(&vm->lock);
}

void fake_fail_next(struct engine_vm *evm, enum fake_event_kind kind, int code)
{
    assert(code < 0);
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    vm->fail[kind] = code;
    pthread_mutex_unlock(&vm->lock);
}

/* --- VM --- */

static void fake_probe(struct engine_probe *probe)
{
    *probe = (struct engine_probe){.quality = ENGINE_GOOD};
    snprintf(probe->why, sizeof(probe->why), "the fake engine is always there");
}

static int fake_vm_new(struct engine_vm **out, const struct engine_vm_config *config,
                       struct err *err)
{
    struct fake_vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return err_errno(err, ENOMEM, "fake engine");
    vm->base.ops = &engine_fake;
    vm->config = *config;
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->changed, NULL);
    *out = &vm->base;
    return 0;
}

static void fake_vm_free(struct engine_vm *evm)
{
    if (!evm)
        return;
    struct fake_vm *vm = to_vm(evm);
    assert(vm->vcpus == 0);
    for (size_t i = 0; i < FAKE_IRQFDS; i++) {
        if (vm->irqfds[i].used)
            close(vm->irqfds[i].fd);
    }
    for (size_t i = 0; i < MEM_REGIONS_MAX; i++)
        free(vm->slots[i].dirty);
    pthread_cond_destroy(&vm->changed);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

static int fake_map(struct engine_vm *evm, unsigned slot, const struct mem_region *region,
                    struct err *err)
{
    struct fake_vm *vm = to_vm(evm);
    assert(slot < MEM_REGIONS_MAX);
    uint64_t pages = region->len_bytes / PAGE_SIZE_BYTES;
    uint64_t *dirty = calloc(bitmap_words(pages), sizeof(*dirty));
    if (!dirty)
        return err_errno(err, ENOMEM, "fake engine: dirty bitmap of %s", region->name);

    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_MAP);
    if (rc < 0 || vm->slots[slot].pages != 0) {
        pthread_mutex_unlock(&vm->lock);
        free(dirty);
        return err_errno(err, rc < 0 ? rc : EEXIST, "fake engine: map slot %u", slot);
    }
    vm->slots[slot] = (struct slot){.base = region->base.a, .pages = pages, .dirty = dirty};
    record_unlock(vm, &(struct fake_event){.kind = FAKE_MAP, .line = slot, .addr = region->base.a});
    return 0;
}

static int fake_vm_reset(struct engine_vm *evm, struct err *err)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_VM_RESET);
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return err_errno(err, rc, "fake engine: reset");
    }
    vm->pit_off = false;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_VM_RESET});
    return 0;
}

/* --- interrupts --- */

static int fake_gsi_set(struct engine_vm *evm, unsigned gsi, bool level)
{
    struct fake_vm *vm = to_vm(evm);
    if (gsi >= FAKE_GSIS)
        return -EINVAL;
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_GSI);
    if (rc < 0 || vm->gsi[gsi] == level) {
        pthread_mutex_unlock(&vm->lock);
        return rc;
    }
    vm->gsi[gsi] = level;
    if (level)
        vm->gsi_rises[gsi]++;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_GSI, .line = gsi, .level = level});
    return 0;
}

static int fake_pit_connect(struct engine_vm *evm, bool on)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_PIT);
    if (rc < 0 || vm->pit_off == !on) {
        pthread_mutex_unlock(&vm->lock);
        return rc;
    }
    vm->pit_off = !on;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_PIT, .level = on});
    return 0;
}

static int fake_pic_set(struct engine_vm *evm, unsigned irq, bool level)
{
    struct fake_vm *vm = to_vm(evm);
    if (irq >= FAKE_PICS)
        return -EINVAL;
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_PIC);
    if (rc < 0 || vm->pic[irq] == level) {
        pthread_mutex_unlock(&vm->lock);
        return rc;
    }
    vm->pic[irq] = level;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_PIC, .line = irq, .level = level});
    return 0;
}

static int fake_msi_send(struct engine_vm *evm, uint64_t addr, uint32_t data)
{
    return record_simple(to_vm(evm),
                         &(struct fake_event){.kind = FAKE_MSI, .addr = addr, .data = data});
}

bool fake_gsi_level(struct engine_vm *evm, unsigned gsi)
{
    struct fake_vm *vm = to_vm(evm);
    assert(gsi < FAKE_GSIS);
    pthread_mutex_lock(&vm->lock);
    bool level = vm->gsi[gsi];
    pthread_mutex_unlock(&vm->lock);
    return level;
}

unsigned fake_gsi_rises(struct engine_vm *evm, unsigned gsi)
{
    struct fake_vm *vm = to_vm(evm);
    assert(gsi < FAKE_GSIS);
    pthread_mutex_lock(&vm->lock);
    unsigned rises = vm->gsi_rises[gsi];
    pthread_mutex_unlock(&vm->lock);
    return rises;
}

bool fake_pit_connected(struct engine_vm *evm)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    bool connected = !vm->pit_off;
    pthread_mutex_unlock(&vm->lock);
    return connected;
}

bool fake_pic_level(struct engine_vm *evm, unsigned irq)
{
    struct fake_vm *vm = to_vm(evm);
    assert(irq < FAKE_PICS);
    pthread_mutex_lock(&vm->lock);
    bool level = vm->pic[irq];
    pthread_mutex_unlock(&vm->lock);
    return level;
}

unsigned fake_msi_count(struct engine_vm *evm, uint64_t *last_addr, uint32_t *last_data)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    unsigned count = vm->msi_count;
    if (count > 0 && last_addr)
        *last_addr = vm->msi_addr;
    if (count > 0 && last_data)
        *last_data = vm->msi_data;
    pthread_mutex_unlock(&vm->lock);
    return count;
}

/* --- eventfds --- */

static int fake_irqfd_new(struct engine_vm *evm, struct engine_irqfd *irqfd)
{
    struct fake_vm *vm = to_vm(evm);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_IRQFD_NEW);
    unsigned route = 0;
    while (route < FAKE_IRQFDS && vm->irqfds[route].used)
        route++;
    if (rc < 0 || route == FAKE_IRQFDS) {
        pthread_mutex_unlock(&vm->lock);
        close(fd);
        return rc < 0 ? rc : -ENOSPC;
    }
    vm->irqfds[route] = (struct irqfd){.used = true, .fd = fd};
    *irqfd = (struct engine_irqfd){.fd = fd, .route = route};
    record_unlock(vm, &(struct fake_event){.kind = FAKE_IRQFD_NEW, .line = route, .fd = fd});
    return 0;
}

static int fake_irqfd_set(struct engine_vm *evm, struct engine_irqfd *irqfd, uint64_t addr,
                          uint32_t data, bool masked)
{
    struct fake_vm *vm = to_vm(evm);
    assert(irqfd->route < FAKE_IRQFDS);
    pthread_mutex_lock(&vm->lock);
    struct irqfd *own = &vm->irqfds[irqfd->route];
    assert(own->used && own->fd == irqfd->fd);
    int rc = ordered_failure(vm, FAKE_IRQFD_SET);
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return rc;
    }
    own->set = true;
    own->addr = addr;
    own->data = data;
    own->masked = masked;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_IRQFD_SET,
                                           .line = irqfd->route,
                                           .fd = irqfd->fd,
                                           .addr = addr,
                                           .data = data,
                                           .masked = masked});
    return 0;
}

static void fake_irqfd_free(struct engine_vm *evm, struct engine_irqfd *irqfd)
{
    struct fake_vm *vm = to_vm(evm);
    assert(irqfd->route < FAKE_IRQFDS);
    struct fake_event event = {.kind = FAKE_IRQFD_FREE, .line = irqfd->route, .fd = irqfd->fd};
    pthread_mutex_lock(&vm->lock);
    assert(vm->irqfds[irqfd->route].used && vm->irqfds[irqfd->route].fd == irqfd->fd);
    vm->irqfds[irqfd->route].used = false;
    close(irqfd->fd);
    irqfd->fd = -1;
    record_unlock(vm, &event);
}

unsigned fake_irqfd_poll(struct engine_vm *evm)
{
    struct fake_vm *vm = to_vm(evm);
    unsigned sent = 0;
    for (size_t i = 0; i < FAKE_IRQFDS; i++) {
        pthread_mutex_lock(&vm->lock);
        struct irqfd *irqfd = &vm->irqfds[i];
        uint64_t value;
        if (!irqfd->used || !irqfd->set || irqfd->masked ||
            read(irqfd->fd, &value, sizeof(value)) != sizeof(value)) {
            pthread_mutex_unlock(&vm->lock);
            continue;
        }
        record_unlock(
            vm, &(struct fake_event){.kind = FAKE_MSI, .addr = irqfd->addr, .data = irqfd->data});
        sent++;
    }
    return sent;
}

static bool same_ioeventfd(const struct engine_ioeventfd *a, const struct engine_ioeventfd *b)
{
    return a->space == b->space && a->addr == b->addr && a->len == b->len;
}

static int fake_ioeventfd_add(struct engine_vm *evm, const struct engine_ioeventfd *ioeventfd)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    int rc = vm->ioeventfd_refuse ? -ENOTSUP : ordered_failure(vm, FAKE_IOEVENTFD_ADD);
    for (size_t i = 0; rc == 0 && i < vm->ioeventfd_count; i++) {
        if (same_ioeventfd(&vm->ioeventfds[i], ioeventfd))
            rc = -EEXIST;
    }
    if (rc == 0 && vm->ioeventfd_count == FAKE_IOEVENTFDS)
        rc = -ENOSPC;
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return rc;
    }
    vm->ioeventfds[vm->ioeventfd_count++] = *ioeventfd;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_IOEVENTFD_ADD, .ioeventfd = *ioeventfd});
    return 0;
}

static void fake_ioeventfd_del(struct engine_vm *evm, const struct engine_ioeventfd *ioeventfd)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    size_t i = 0;
    while (i < vm->ioeventfd_count && !same_ioeventfd(&vm->ioeventfds[i], ioeventfd))
        i++;
    assert(i < vm->ioeventfd_count);
    vm->ioeventfds[i] = vm->ioeventfds[--vm->ioeventfd_count];
    record_unlock(vm, &(struct fake_event){.kind = FAKE_IOEVENTFD_DEL, .ioeventfd = *ioeventfd});
}

bool fake_ioeventfd_fire(struct engine_vm *evm, enum engine_space space, uint64_t addr,
                         unsigned len)
{
    struct fake_vm *vm = to_vm(evm);
    bool fired = false;
    pthread_mutex_lock(&vm->lock);
    for (size_t i = 0; i < vm->ioeventfd_count && !fired; i++) {
        const struct engine_ioeventfd *e = &vm->ioeventfds[i];
        if (e->space != space || e->addr != addr || (e->len != 0 && e->len != len))
            continue;
        uint64_t one = 1;
        fired = write(e->fd, &one, sizeof(one)) == sizeof(one);
    }
    pthread_mutex_unlock(&vm->lock);
    return fired;
}

void fake_ioeventfd_refuse(struct engine_vm *evm, bool refuse)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    vm->ioeventfd_refuse = refuse;
    pthread_mutex_unlock(&vm->lock);
}

/* --- dirty log --- */

static int fake_dirty_start(struct engine_vm *evm, struct err *err)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_DIRTY_START);
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return err_errno(err, rc, "fake engine: start the dirty log");
    }
    for (size_t i = 0; i < MEM_REGIONS_MAX; i++) {
        struct slot *slot = &vm->slots[i];
        if (slot->dirty)
            memset(slot->dirty, 0, bitmap_words(slot->pages) * sizeof(*slot->dirty));
    }
    vm->logging = true;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_DIRTY_START});
    return 0;
}

static int fake_dirty_collect(struct engine_vm *evm, unsigned slot_index, uint64_t *bitmap)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_DIRTY_COLLECT);
    if (rc == 0 && (slot_index >= MEM_REGIONS_MAX || !vm->slots[slot_index].dirty || !vm->logging))
        rc = -ENOENT;
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return rc;
    }
    struct slot *slot = &vm->slots[slot_index];
    for (size_t i = 0; i < bitmap_words(slot->pages); i++) {
        bitmap[i] |= slot->dirty[i];
        slot->dirty[i] = 0;
    }
    record_unlock(vm, &(struct fake_event){.kind = FAKE_DIRTY_COLLECT, .line = slot_index});
    return 0;
}

static int fake_dirty_stop(struct engine_vm *evm, struct err *err)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_DIRTY_STOP);
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return err_errno(err, rc, "fake engine: stop the dirty log");
    }
    vm->logging = false;
    record_unlock(vm, &(struct fake_event){.kind = FAKE_DIRTY_STOP});
    return 0;
}

void fake_dirty_mark(struct engine_vm *evm, unsigned slot_index, uint64_t page)
{
    struct fake_vm *vm = to_vm(evm);
    pthread_mutex_lock(&vm->lock);
    assert(slot_index < MEM_REGIONS_MAX && page < vm->slots[slot_index].pages);
    if (vm->logging)
        bitmap_set(vm->slots[slot_index].dirty, page);
    pthread_mutex_unlock(&vm->lock);
}

/* --- vCPUs --- */

static void reset_state(struct fake_vcpu *vcpu)
{
    /* SDM vol. 3, table 9-1. */
    const struct cpu_segment data = {.limit = 0xffff, .attr = 0x93};
    vcpu->regs = (struct cpu_regs){.rip = 0xfff0, .rflags = 2};
    vcpu->sregs = (struct cpu_sregs){
        .cs = {.base = 0xffff0000,   .limit = 0xffff, .selector = 0xf000, .attr = 0x9b},
        .ds = data,
        .es = data,
        .fs = data,
        .gs = data,
        .ss = data,
        .tr = {.limit = 0xffff,  .attr = CPU_SEG_TSS},
        .ldt = {.limit = 0xffff,                    .attr = 0x82},
        .gdt = {.limit = 0xffff},
        .idt = {.limit = 0xffff     },
        .cr0 = 0x60000010,
        .apic_base = 0xfee00800 | (vcpu->base.id == 0 ? 0x100 : 0),
    };
}

static int fake_vcpu_new(struct engine_vm *evm, unsigned id, struct engine_vcpu **out,
                         struct err *err)
{
    struct fake_vm *vm = to_vm(evm);
    if (id >= FAKE_VCPU_MAX)
        return err_set(err, EINVAL, "fake engine: at most %u vCPUs", FAKE_VCPU_MAX);
    struct fake_vcpu *vcpu = calloc(1, sizeof(*vcpu));
    if (!vcpu)
        return err_errno(err, ENOMEM, "fake engine: vCPU %u", id);
    vcpu->base = (struct engine_vcpu){.ops = &engine_fake, .id = id};
    vcpu->vm = vm;
    vcpu->last = &vcpu->first;
    reset_state(vcpu);
    pthread_mutex_lock(&vm->lock);
    vm->vcpus++;
    pthread_mutex_unlock(&vm->lock);
    *out = &vcpu->base;
    return 0;
}

static void step_free(struct step *step)
{
    free(step->text);
    free(step);
}

static void fake_vcpu_free(struct engine_vcpu *evcpu)
{
    if (!evcpu)
        return;
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    pthread_mutex_lock(&vcpu->vm->lock);
    vcpu->vm->vcpus--;
    pthread_mutex_unlock(&vcpu->vm->lock);
    while (vcpu->first) {
        struct step *step = vcpu->first;
        vcpu->first = step->next;
        step_free(step);
    }
    free(vcpu);
}

static int fake_vcpu_reset(struct engine_vcpu *evcpu, struct err *err)
{
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    struct fake_vm *vm = vcpu->vm;
    pthread_mutex_lock(&vm->lock);
    int rc = ordered_failure(vm, FAKE_VCPU_RESET);
    if (rc < 0) {
        pthread_mutex_unlock(&vm->lock);
        return err_errno(err, rc, "fake engine: reset vCPU %u", evcpu->id);
    }
    reset_state(vcpu);
    record_unlock(vm, &(struct fake_event){.kind = FAKE_VCPU_RESET, .line = evcpu->id});
    return 0;
}

/* Make the access or call of a step, without the lock. */
static void step_do(struct fake_vcpu *vcpu, struct step *step)
{
    const struct engine_upcalls *up = vcpu->vm->config.upcalls;
    void *ctx = vcpu->vm->config.upcall_ctx;
    switch (step->kind) {
    case STEP_PIO_READ:
        up->pio_read(ctx, (uint16_t)step->addr, step->size, step->read_to, step->count);
        break;
    case STEP_PIO_WRITE:
        up->pio_write(ctx, (uint16_t)step->addr, step->size, step->write, step->count);
        break;
    case STEP_MMIO_READ:
        up->mmio_read(ctx, GPA(step->addr), step->size, step->read_to);
        break;
    case STEP_MMIO_WRITE:
        up->mmio_write(ctx, GPA(step->addr), step->size, step->write);
        break;
    case STEP_CALL:
        step->fn(step->ctx);
        break;
    case STEP_EXIT:
        break;
    }
}

/* The next step, marked busy; NULL after a kick. */
static struct step *step_wait(struct fake_vcpu *vcpu)
{
    struct fake_vm *vm = vcpu->vm;
    struct step *step = NULL;
    pthread_mutex_lock(&vm->lock);
    while (!vcpu->kicked && !vcpu->first)
        pthread_cond_wait(&vm->changed, &vm->lock);
    if (vcpu->kicked) {
        vcpu->kicked = false;
    } else {
        step = vcpu->first;
        vcpu->first = step->next;
        if (!vcpu->first)
            vcpu->last = &vcpu->first;
        vcpu->busy = true;
    }
    pthread_mutex_unlock(&vm->lock);
    return step;
}

static void fake_vcpu_run(struct engine_vcpu *evcpu, struct engine_exit *exit)
{
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    exit->text[0] = '\0';
    for (;;) {
        struct step *step = step_wait(vcpu);
        if (!step) {
            exit->kind = ENGINE_EXIT_KICK;
            return;
        }
        step_do(vcpu, step);
        bool leave = step->kind == STEP_EXIT;
        if (leave) {
            exit->kind = step->exit;
            if (step->text) {
                strncpy(exit->text, step->text, sizeof(exit->text) - 1);
                exit->text[sizeof(exit->text) - 1] = '\0';
            }
        }
        step_free(step);
        pthread_mutex_lock(&vcpu->vm->lock);
        vcpu->busy = false;
        pthread_cond_broadcast(&vcpu->vm->changed);
        pthread_mutex_unlock(&vcpu->vm->lock);
        if (leave)
            return;
    }
}

static void fake_vcpu_kick(struct engine_vcpu *evcpu)
{
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    pthread_mutex_lock(&vcpu->vm->lock);
    vcpu->kicked = true;
    record_unlock(vcpu->vm, &(struct fake_event){.kind = FAKE_KICK, .line = evcpu->id});
}

static int fake_vcpu_get(struct engine_vcpu *evcpu, struct cpu_regs *regs, struct cpu_sregs *sregs)
{
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    pthread_mutex_lock(&vcpu->vm->lock);
    if (regs)
        *regs = vcpu->regs;
    if (sregs)
        *sregs = vcpu->sregs;
    pthread_mutex_unlock(&vcpu->vm->lock);
    return 0;
}

static int fake_vcpu_set(struct engine_vcpu *evcpu, const struct cpu_regs *regs,
                         const struct cpu_sregs *sregs)
{
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    pthread_mutex_lock(&vcpu->vm->lock);
    int rc = ordered_failure(vcpu->vm, FAKE_VCPU_SET);
    if (rc < 0) {
        pthread_mutex_unlock(&vcpu->vm->lock);
        return rc;
    }
    if (regs)
        vcpu->regs = *regs;
    if (sregs)
        vcpu->sregs = *sregs;
    record_unlock(vcpu->vm, &(struct fake_event){.kind = FAKE_VCPU_SET, .line = evcpu->id});
    return 0;
}

static unsigned fake_vcpu_max(struct engine_vm *evm)
{
    (void)evm;
    return FAKE_VCPU_MAX;
}

static unsigned fake_phys_bits(struct engine_vm *evm)
{
    (void)evm;
    return 46;
}

/* --- queueing --- */

static struct step *step_new(enum step_kind kind, uint64_t addr, unsigned size, uint32_t count,
                             const void *write)
{
    assert(count <= 65536 && size <= 8);
    size_t len = write ? (size_t)size * count : 0;
    struct step *step = calloc(1, sizeof(*step) + len);
    if (!step)
        abort();
    step->kind = kind;
    step->addr = addr;
    step->size = size;
    step->count = count;
    if (len > 0)
        memcpy(step->write, write, len);
    return step;
}

static void step_queue(struct engine_vcpu *evcpu, struct step *step)
{
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    pthread_mutex_lock(&vcpu->vm->lock);
    *vcpu->last = step;
    vcpu->last = &step->next;
    pthread_cond_broadcast(&vcpu->vm->changed);
    pthread_mutex_unlock(&vcpu->vm->lock);
}

void fake_pio_read(struct engine_vcpu *vcpu, uint16_t port, unsigned size, void *data,
                   uint32_t count)
{
    struct step *step = step_new(STEP_PIO_READ, port, size, count, NULL);
    step->read_to = data;
    step_queue(vcpu, step);
}

void fake_pio_write(struct engine_vcpu *vcpu, uint16_t port, unsigned size, const void *data,
                    uint32_t count)
{
    step_queue(vcpu, step_new(STEP_PIO_WRITE, port, size, count, data));
}

void fake_mmio_read(struct engine_vcpu *vcpu, gpa_t gpa, unsigned size, void *data)
{
    struct step *step = step_new(STEP_MMIO_READ, gpa.a, size, 1, NULL);
    step->read_to = data;
    step_queue(vcpu, step);
}

void fake_mmio_write(struct engine_vcpu *vcpu, gpa_t gpa, unsigned size, const void *data)
{
    step_queue(vcpu, step_new(STEP_MMIO_WRITE, gpa.a, size, 1, data));
}

void fake_exit(struct engine_vcpu *vcpu, enum engine_exit_kind kind, const char *text)
{
    struct step *step = step_new(STEP_EXIT, 0, 0, 0, NULL);
    step->exit = kind;
    if (text) {
        step->text = strdup(text);
        if (!step->text)
            abort();
    }
    step_queue(vcpu, step);
}

void fake_call(struct engine_vcpu *vcpu, void (*fn)(void *ctx), void *ctx)
{
    struct step *step = step_new(STEP_CALL, 0, 0, 0, NULL);
    step->fn = fn;
    step->ctx = ctx;
    step_queue(vcpu, step);
}

void fake_drain(struct engine_vcpu *evcpu)
{
    struct fake_vcpu *vcpu = to_vcpu(evcpu);
    pthread_mutex_lock(&vcpu->vm->lock);
    while (vcpu->first || vcpu->busy)
        pthread_cond_wait(&vcpu->vm->changed, &vcpu->vm->lock);
    pthread_mutex_unlock(&vcpu->vm->lock);
}

const struct engine_ops engine_fake = {
    .name = "fake",
    .probe = fake_probe,
    .vm_new = fake_vm_new,
    .vm_free = fake_vm_free,
    .map = fake_map,
    .vm_reset = fake_vm_reset,
    .gsi_set = fake_gsi_set,
    .pic_set = fake_pic_set,
    .pit_connect = fake_pit_connect,
    .msi_send = fake_msi_send,
    .irqfd_new = fake_irqfd_new,
    .irqfd_set = fake_irqfd_set,
    .irqfd_free = fake_irqfd_free,
    .ioeventfd_add = fake_ioeventfd_add,
    .ioeventfd_del = fake_ioeventfd_del,
    .dirty_start = fake_dirty_start,
    .dirty_collect = fake_dirty_collect,
    .dirty_stop = fake_dirty_stop,
    .vcpu_new = fake_vcpu_new,
    .vcpu_free = fake_vcpu_free,
    .vcpu_reset = fake_vcpu_reset,
    .vcpu_run = fake_vcpu_run,
    .vcpu_kick = fake_vcpu_kick,
    .vcpu_get = fake_vcpu_get,
    .vcpu_set = fake_vcpu_set,
    .vcpu_max = fake_vcpu_max,
    .phys_bits = fake_phys_bits,
};
