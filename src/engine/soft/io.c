/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accesses that leave the processor: to the chips, to an eventfd that waits for them, or up. An
 * upcall may have asked for the vCPU to stop (power-off, reset): it executes no further
 * instruction, so the block ends here when an event is pending.
 */
#include <string.h>
#include <unistd.h>

#include "base/units.h"
#include "engine/soft/vm.h"

/* On a virtual clock in any case: the device may hold the clock, and where a block ends must not
 * depend on whether it has let it go already. */
static void after_upcall(struct soft_cpu *cpu)
{
    if (__atomic_load_n(&cpu->events, __ATOMIC_ACQUIRE) || chip_clock_is_virtual(cpu->vm->clock))
        cpu->stop_block = true;
}

/* --- ioeventfds --- */

static bool ioeventfd_matches(const struct engine_ioeventfd *e, enum engine_space space,
                              uint64_t addr, unsigned size)
{
    return e->space == space && e->addr == addr && (e->len == 0 || e->len == size);
}

/* Fire the one that waits for this write. */
static bool fire_ioeventfd(struct soft_vm *vm, enum engine_space space, uint64_t addr,
                           unsigned size)
{
    const uint64_t one = 1;
    bool found = false;
    if (__atomic_load_n(&vm->ioeventfd_count, __ATOMIC_ACQUIRE) == 0)
        return false;
    pthread_mutex_lock(&vm->ioeventfd_lock);
    for (unsigned i = 0; i < vm->ioeventfd_count && !found; i++) {
        const struct engine_ioeventfd *e = &vm->ioeventfds[i];
        found = ioeventfd_matches(e, space, addr, size);
        /* A full counter says that it has fired already. */
        if (found && write(e->fd, &one, sizeof(one)) < 0)
            break;
    }
    pthread_mutex_unlock(&vm->ioeventfd_lock);
    return found;
}

/* --- ports --- */

void soft_pio_read(struct soft_cpu *cpu, uint16_t port, unsigned size, void *data, uint32_t count)
{
    struct soft_vm *vm = cpu->vm;
    uint8_t *at = data;
    if (size == 1 && irqchip_pio_read(vm->irqchip, port, at)) {
        for (uint32_t i = 1; i < count; i++)
            irqchip_pio_read(vm->irqchip, port, at + i);
        cpu->stats.chips += count;
        return;
    }
    cpu->stats.port_reads++;
    vm->config.upcalls->pio_read(vm->config.upcall_ctx, port, size, data, count);
    after_upcall(cpu);
}

/* A wider write to the chips' ports is one to each port, as on their 8-bit bus. */
static bool write_chips(struct soft_vm *vm, uint16_t port, unsigned size, const uint8_t *data)
{
    if (!irqchip_pio_write(vm->irqchip, port, data[0]))
        return false;
    for (unsigned i = 1; i < size; i++)
        irqchip_pio_write(vm->irqchip, (uint16_t)(port + i), data[i]);
    return true;
}

void soft_pio_write(struct soft_cpu *cpu, uint16_t port, unsigned size, const void *data,
                    uint32_t count)
{
    struct soft_vm *vm = cpu->vm;
    const uint8_t *at = data;
    if (write_chips(vm, port, size, at)) {
        for (uint32_t i = 1; i < count; i++)
            write_chips(vm, port, size, at + (size_t)i * size);
        cpu->stats.chips += count;
        return;
    }
    if (count == 1 && fire_ioeventfd(vm, ENGINE_SPACE_PIO, port, size)) {
        cpu->stats.ioeventfds++;
        return;
    }
    cpu->stats.port_writes++;
    vm->config.upcalls->pio_write(vm->config.upcall_ctx, port, size, data, count);
    after_upcall(cpu);
}

/* --- memory --- */

/* Upcalls take 1, 2, 4 and 8 bytes: the largest of these that fits. */
static unsigned natural(unsigned size)
{
    return size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
}

void soft_mmio_read(struct soft_cpu *cpu, uint64_t gpa, unsigned size, void *data)
{
    struct soft_vm *vm = cpu->vm;
    uint8_t *at = data;
    if (irqchip_mmio_read(vm->irqchip, cpu->base.id, gpa, size, data)) {
        cpu->stats.chips++;
        return;
    }
    cpu->stats.memory_reads++;
    while (size > 0) {
        unsigned now = natural(size);
        vm->config.upcalls->mmio_read(vm->config.upcall_ctx, GPA(gpa), now, at);
        gpa += now;
        at += now;
        size -= now;
    }
    after_upcall(cpu);
}

void soft_mmio_write(struct soft_cpu *cpu, uint64_t gpa, unsigned size, const void *data)
{
    struct soft_vm *vm = cpu->vm;
    const uint8_t *at = data;
    if (irqchip_mmio_write(vm->irqchip, cpu->base.id, gpa, size, data)) {
        cpu->stats.chips++;
        return;
    }
    if (fire_ioeventfd(vm, ENGINE_SPACE_MMIO, gpa, size)) {
        cpu->stats.ioeventfds++;
        return;
    }
    cpu->stats.memory_writes++;
    while (size > 0) {
        unsigned now = natural(size);
        vm->config.upcalls->mmio_write(vm->config.upcall_ctx, GPA(gpa), now, at);
        gpa += now;
        at += now;
        size -= now;
    }
    after_upcall(cpu);
}
