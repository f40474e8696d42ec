/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GSIs, the kernel's numbers for interrupt sources, and where each leads:
 *
 *     0       PIC pin 0 and IOAPIC pin 2 (the in-kernel PIT raises it; the MADT tells the guest)
 *     1-15    PIC and IOAPIC pins of that number; 2 is the cascade and leads nowhere
 *     16-23   IOAPIC pins of that number
 *     24-39   PIC pins 0-15 alone
 *     40-55   IOAPIC pins 0-15 alone, used while a PCI interrupt holds the PIC pin (see gsi_set)
 *     56-     a message each: irqfds
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "engine/kvm/internal.h"

#define GSI_IOAPIC_END  24u
#define GSI_PIC         24u
#define GSI_IOAPIC_ONLY 40u
#define GSI_MSI         56u

#define PIC_PINS        16u
#define PIC_CASCADE     2u

/* Entries of the lines: PIC and IOAPIC for 0-15, IOAPIC for 16-23, each again for the two copies.
 */
#define LINE_ENTRIES_MAX (2 * PIC_PINS + 8 + 2 * PIC_PINS)

static void add_pin(struct kvm_irq_routing *table, uint32_t gsi, uint32_t chip, uint32_t pin)
{
    table->entries[table->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {.irqchip = chip, .pin = pin}
    };
}

static void add_pic_pin(struct kvm_irq_routing *table, uint32_t gsi, uint32_t pin)
{
    add_pin(table, gsi, pin < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, pin % 8);
}

static uint32_t ioapic_pin(uint32_t isa)
{
    return isa == 0 ? 2 : isa;
}

/*
 * The kernel tells whoever waits for the end of an interrupt by the last GSI in the table that has
 * the pin. The interval timer waits for that of GSI 0 before it raises the next, so the copies come
 * first.
 */
static void add_lines(struct kvm_irq_routing *table)
{
    for (uint32_t i = 0; i < PIC_PINS; i++) {
        if (i == PIC_CASCADE)
            continue;
        add_pic_pin(table, GSI_PIC + i, i);
        add_pin(table, GSI_IOAPIC_ONLY + i, KVM_IRQCHIP_IOAPIC, ioapic_pin(i));
    }
    for (uint32_t i = 0; i < PIC_PINS; i++) {
        if (i == PIC_CASCADE)
            continue;
        add_pic_pin(table, i, i);
        add_pin(table, i, KVM_IRQCHIP_IOAPIC, ioapic_pin(i));
    }
    for (uint32_t i = PIC_PINS; i < GSI_IOAPIC_END; i++)
        add_pin(table, i, KVM_IRQCHIP_IOAPIC, i);
}

/* Give the kernel the whole table. Lock held, or no other thread yet. */
static int routing_update(struct kvm_machine *vm)
{
    const struct irq_state *irq = &vm->irq;
    struct kvm_irq_routing *table = calloc(
        1, sizeof(*table) + (LINE_ENTRIES_MAX + irq->route_count) * sizeof(table->entries[0]));
    if (!table)
        return -ENOMEM;
    add_lines(table);
    for (unsigned i = 0; i < irq->route_count; i++) {
        const struct msi_route *route = &irq->routes[i];
        if (!route->set)
            continue;
        table->entries[table->nr++] = (struct kvm_irq_routing_entry){
            .gsi = GSI_MSI + i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)route->addr,
                      .address_hi = (uint32_t)(route->addr >> 32),
                      .data = route->data}
        };
    }
    int code = ioctl(vm->fd, KVM_SET_GSI_ROUTING, table) < 0 ? -errno : 0;
    free(table);
    return code;
}

int kvm_irq_init(struct kvm_machine *vm, struct err *err)
{
    unsigned max = (unsigned)vm->host.irq_routes_max;
    if (max < LINE_ENTRIES_MAX + GSI_MSI)
        return err_set(err, ENOTSUP, "KVM has only %u interrupt routes", max);
    vm->irq.route_max = max - LINE_ENTRIES_MAX - GSI_MSI;
    int code = routing_update(vm);
    if (code < 0)
        return err_errno(err, code, "set KVM's interrupt routes");
    pthread_mutex_init(&vm->irq.lock, NULL);
    return 0;
}

void kvm_irq_fini(struct kvm_machine *vm)
{
    for (unsigned i = 0; i < vm->irq.route_count; i++)
        assert(!vm->irq.routes[i].used);
    free(vm->irq.routes);
    pthread_mutex_destroy(&vm->irq.lock);
}

/* --- lines --- */

static int line_set(struct kvm_machine *vm, unsigned gsi, bool level)
{
    struct kvm_irq_level irq = {.irq = gsi, .level = level};
    return ioctl(vm->fd, KVM_IRQ_LINE, &irq) < 0 ? -errno : 0;
}

/*
 * A PIC pin has two sources: the ISA line of its number and the PCI interrupts that the LPC bridge
 * routes to it. The kernel keeps one level a pin for all that comes from us, so the OR is made
 * here: while one source holds the pin up, the other's changes do not reach it.
 */
int kvm_gsi_set(struct engine_vm *evm, unsigned gsi, bool level)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    if (gsi >= GSI_IOAPIC_END)
        return -EINVAL;
    if (gsi >= PIC_PINS)
        return line_set(vm, gsi, level);
    pthread_mutex_lock(&vm->irq.lock);
    vm->irq.gsi_level[gsi] = level;
    int code = line_set(vm, vm->irq.pic_level[gsi] ? GSI_IOAPIC_ONLY + gsi : gsi, level);
    pthread_mutex_unlock(&vm->irq.lock);
    return code;
}

int kvm_pic_set(struct engine_vm *evm, unsigned irq, bool level)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    if (irq >= PIC_PINS || irq == PIC_CASCADE)
        return -EINVAL;
    pthread_mutex_lock(&vm->irq.lock);
    vm->irq.pic_level[irq] = level;
    int code = 0;
    if (!vm->irq.gsi_level[irq])
        code = line_set(vm, GSI_PIC + irq, level);
    pthread_mutex_unlock(&vm->irq.lock);
    return code;
}

/*
 * KVM's flag for an HPET in the PIT's place stops counter 0's timer. What it already owes the guest
 * would still come with the guest's next EOIs of GSI 0, which are the HPET's now: reinjection is
 * off meanwhile, and turning it on again forgets the debt. Lock held.
 */
static int pit_connect(struct kvm_machine *vm, bool on)
{
    struct kvm_reinject_control reinject = {.pit_reinject = on};
    struct kvm_pit_state2 pit;
    if (ioctl(vm->fd, KVM_GET_PIT2, &pit) < 0)
        return -errno;
    pit.flags &= ~(uint32_t)KVM_PIT_FLAGS_HPET_LEGACY;
    if (!on)
        pit.flags |= KVM_PIT_FLAGS_HPET_LEGACY;
    if (ioctl(vm->fd, KVM_SET_PIT2, &pit) < 0 || ioctl(vm->fd, KVM_REINJECT_CONTROL, &reinject) < 0)
        return -errno;
    return 0;
}

int kvm_pit_connect(struct engine_vm *evm, bool on)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    int code = 0;
    pthread_mutex_lock(&vm->irq.lock);
    if (vm->irq.pit_off == on) {
        code = pit_connect(vm, on);
        if (code == 0)
            vm->irq.pit_off = !on;
    }
    pthread_mutex_unlock(&vm->irq.lock);
    return code;
}

int kvm_msi_send(struct engine_vm *evm, uint64_t addr, uint32_t data)
{
    struct kvm_msi msi = {
        .address_lo = (uint32_t)addr, .address_hi = (uint32_t)(addr >> 32), .data = data};
    /* 0: the guest has it blocked, which is as it should be. */
    return ioctl(kvm_machine_of(evm)->fd, KVM_SIGNAL_MSI, &msi) < 0 ? -errno : 0;
}

/* --- irqfd --- */

/* A free route, with the array grown for it when need be; negative: -errno. Lock held. */
static int route_take(struct irq_state *irq)
{
    for (unsigned i = 0; i < irq->route_count; i++) {
        if (!irq->routes[i].used)
            return (int)i;
    }
    unsigned count = irq->route_count ? irq->route_count * 2 : 32;
    if (count > irq->route_max)
        count = irq->route_max;
    if (count <= irq->route_count)
        return -ENOSPC;
    struct msi_route *routes = realloc(irq->routes, count * sizeof(*routes));
    if (!routes)
        return -ENOMEM;
    memset(&routes[irq->route_count], 0, (count - irq->route_count) * sizeof(*routes));
    int taken = (int)irq->route_count;
    irq->routes = routes;
    irq->route_count = count;
    return taken;
}

int kvm_irqfd_new(struct engine_vm *evm, struct engine_irqfd *irqfd)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    pthread_mutex_lock(&vm->irq.lock);
    int route = route_take(&vm->irq);
    if (route >= 0)
        vm->irq.routes[route] = (struct msi_route){.used = true};
    pthread_mutex_unlock(&vm->irq.lock);
    if (route < 0) {
        close(fd);
        return route;
    }
    *irqfd = (struct engine_irqfd){.fd = fd, .route = (unsigned)route};
    return 0;
}

/* Connected, the kernel sends what is or was written to the eventfd; disconnected, the eventfd
 * keeps it until it is connected again. */
static int route_attach(struct kvm_machine *vm, const struct engine_irqfd *irqfd, bool on)
{
    struct msi_route *route = &vm->irq.routes[irqfd->route];
    if (route->attached == on)
        return 0;
    struct kvm_irqfd arg = {.fd = (uint32_t)irqfd->fd,
                            .gsi = GSI_MSI + irqfd->route,
                            .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN};
    if (ioctl(vm->fd, KVM_IRQFD, &arg) < 0)
        return -errno;
    route->attached = on;
    return 0;
}

int kvm_irqfd_set(struct engine_vm *evm, struct engine_irqfd *irqfd, uint64_t addr, uint32_t data,
                  bool masked)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    int code = 0;
    pthread_mutex_lock(&vm->irq.lock);
    assert(irqfd->route < vm->irq.route_count && vm->irq.routes[irqfd->route].used);
    if (masked) {
        code = route_attach(vm, irqfd, false);
    } else {
        struct msi_route *route = &vm->irq.routes[irqfd->route];
        /* The kernel's table is rebuilt as a whole, and waits for readers: only when it differs. */
        if (!route->set || route->addr != addr || route->data != data) {
            struct msi_route old = *route;
            route->set = true;
            route->addr = addr;
            route->data = data;
            code = routing_update(vm);
            if (code < 0)
                *route = old;
        }
        if (code == 0)
            code = route_attach(vm, irqfd, true);
    }
    pthread_mutex_unlock(&vm->irq.lock);
    return code;
}

void kvm_irqfd_free(struct engine_vm *evm, struct engine_irqfd *irqfd)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    pthread_mutex_lock(&vm->irq.lock);
    assert(irqfd->route < vm->irq.route_count && vm->irq.routes[irqfd->route].used);
    int code = route_attach(vm, irqfd, false);
    if (code < 0)
        log_warn("kvm", "disconnect an irqfd: %s", strerror(-code));
    /* Its entry leaves the kernel's table with the next update; nothing refers to it. */
    vm->irq.routes[irqfd->route] = (struct msi_route){0};
    pthread_mutex_unlock(&vm->irq.lock);
    close(irqfd->fd);
    irqfd->fd = -1;
}

/* --- ioeventfd --- */

static int ioeventfd_ioctl(struct kvm_machine *vm, const struct engine_ioeventfd *e, uint32_t flags)
{
    struct kvm_ioeventfd arg = {
        .addr = e->addr,
        .len = e->len,
        .fd = e->fd,
        .flags = flags | (e->space == ENGINE_SPACE_PIO ? KVM_IOEVENTFD_FLAG_PIO : 0)};
    return ioctl(vm->fd, KVM_IOEVENTFD, &arg) < 0 ? -errno : 0;
}

int kvm_ioeventfd_add(struct engine_vm *evm, const struct engine_ioeventfd *ioeventfd)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    if (ioeventfd->len == 0 && !vm->host.ioeventfd_any_length)
        return -ENOTSUP;
    int code = ioeventfd_ioctl(vm, ioeventfd, 0);
    if (code < 0) {
        /* The kernel's table of them is full, or a guest has put two BARs at one place: the access
         * comes as an upcall all the same. */
        log_debug("kvm", "ioeventfd at 0x%llx: %s", (unsigned long long)ioeventfd->addr,
                  strerror(-code));
        return -ENOTSUP;
    }
    return 0;
}

void kvm_ioeventfd_del(struct engine_vm *evm, const struct engine_ioeventfd *ioeventfd)
{
    int code = ioeventfd_ioctl(kvm_machine_of(evm), ioeventfd, KVM_IOEVENTFD_FLAG_DEASSIGN);
    if (code < 0)
        log_warn("kvm", "remove the ioeventfd at 0x%llx: %s", (unsigned long long)ioeventfd->addr,
                 strerror(-code));
}
