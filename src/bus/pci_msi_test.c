/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "bus/pci_priv.h"
#include "engine/fake/fake.h"

#define DEVFN PCI_DEVFN(1, 0)
#define TABLE 0xc0000000ULL

struct card {
    struct pci_function fn;
    struct pci_state state;
};

struct machine {
    struct engine_vm *vm;
    struct bus *bus;
    struct irq_router irq;
    struct pci_bus *pci;
};

static void card_reset(struct device *dev)
{
    pci_function_reset((struct pci_function *)dev);
}

static const struct device_ops card_ops = {.reset = card_reset};

static void config_set(struct machine *machine, unsigned reg, uint32_t value, unsigned size)
{
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0x80000000 | DEVFN << 8 | (reg & 0xfc), 4);
    bus_write(machine->bus, BUS_PIO, 0xcfc + (reg & 3), value, size);
}

static uint32_t config_get(struct machine *machine, unsigned reg, unsigned size)
{
    bus_write(machine->bus, BUS_PIO, 0xcf8, 0x80000000 | DEVFN << 8 | (reg & 0xfc), 4);
    return (uint32_t)bus_read(machine->bus, BUS_PIO, 0xcfc + (reg & 3), size);
}

/* A card whose MSI-X BAR is mapped at TABLE, with bus mastering on. */
static struct card *card_new(struct machine *machine, unsigned vectors, bool irqfd)
{
    const struct pci_identity identity = {.vendor_id = 0x1af4, .device_id = 0x1041};
    struct card *card = calloc(1, sizeof(*card));
    struct err err = ERR_INIT;

    device_init(&card->fn.dev, &card_ops, &pci_state_table, &card->state, NULL, "card");
    pci_function_init(&card->fn, &card->state, &identity);
    pci_msi_add(&card->fn);
    if (pci_msix_add(&card->fn, 1, vectors, irqfd, &err) < 0 ||
        pci_bus_plug(machine->pci, &card->fn, DEVFN, &err) < 0)
        printf("# %s\n", err.text);
    device_reset(&card->fn.dev);
    config_set(machine, 0x14, TABLE, 4);
    config_set(machine, PCI_COMMAND, 6, 2);
    fake_events_clear(machine->vm);
    return card;
}

static void card_free(struct card *card)
{
    pci_function_fini(&card->fn);
    free(card);
}

static void entry_set(struct machine *machine, unsigned vector, uint64_t addr, uint32_t data,
                      uint32_t control)
{
    bus_write(machine->bus, BUS_MMIO, TABLE + vector * 16, addr, 8);
    bus_write(machine->bus, BUS_MMIO, TABLE + vector * 16 + 8, data, 4);
    bus_write(machine->bus, BUS_MMIO, TABLE + vector * 16 + 12, control, 4);
}

static unsigned messages(struct machine *machine)
{
    return (unsigned)fake_event_count(machine->vm, FAKE_MSI);
}

static void test_msi(struct machine *machine)
{
    struct card *card = card_new(machine, 1, false);
    unsigned cap = card->fn.msi_cap;
    uint64_t addr = 0;
    uint32_t data = 0;

    is_int(config_get(machine, cap, 1), 5, "MSI capability");
    is_int(config_get(machine, cap + 2, 2), 0x80, "64-bit address, one vector, off");
    pci_msi_notify(&card->fn);
    is_int(messages(machine), 0, "nothing is sent while it is off");
    config_set(machine, cap + 4, 0xfee01003, 4);
    config_set(machine, cap + 8, 0x1, 4);
    config_set(machine, cap + 12, 0x1234, 2);
    config_set(machine, cap + 2, 0xffff, 2);
    is_int(config_get(machine, cap + 2, 2), 0x81, "only the enable bit is writable");
    ok(pci_msi_enabled(&card->fn), "enabled");
    pci_msi_notify(&card->fn);
    fake_msi_count(machine->vm, &addr, &data);
    ok(messages(machine) == 1 && addr == 0x1fee01000 && data == 0x1234, "the message is sent");
    config_set(machine, PCI_COMMAND, 2, 2);
    pci_msi_notify(&card->fn);
    is_int(messages(machine), 1, "not without bus mastering");
    card_free(card);
}

static void test_masking(struct machine *machine)
{
    struct card *card = card_new(machine, 4, false);
    unsigned cap = card->fn.msix_cap;
    uint64_t addr = 0;
    uint32_t data = 0;

    is_int(config_get(machine, cap, 1), 0x11, "MSI-X capability");
    is_int(config_get(machine, cap + 2, 2), 3, "table size less one");
    is_int(config_get(machine, cap + 4, 4), 1, "table at 0 of BAR 1");
    is_int(config_get(machine, cap + 8, 4), 0x801, "pending bits at 0x800");
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 12, 4), 1, "vectors are masked after reset");

    entry_set(machine, 1, 0xfee02007, 0x41, 0);
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 16, 4), 0xfee02004, "address bits 0-1 are 0");
    pci_msix_notify(&card->fn, 1);
    is_int(messages(machine), 0, "nothing is sent while MSI-X is off");
    config_set(machine, cap + 2, 0x8000, 2);
    is_int(messages(machine), 0, "nor was it kept");
    pci_msix_notify(&card->fn, 1);
    fake_msi_count(machine->vm, &addr, &data);
    ok(messages(machine) == 1 && addr == 0xfee02004 && data == 0x41, "on: the message is sent");

    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 12, 0xffffffff, 4);
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 16 + 12, 4), 1,
           "only the mask bit is writable");
    pci_msix_notify(&card->fn, 1);
    pci_msix_notify(&card->fn, 1);
    is_int(messages(machine), 1, "a masked vector is held back");
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x800, 4), 2, "and pending");
    bus_write(machine->bus, BUS_MMIO, TABLE + 0x800, 0, 8);
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x800, 8), 2, "pending bits are read-only");
    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 8, 0x42, 4);
    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 12, 0, 4);
    fake_msi_count(machine->vm, &addr, &data);
    ok(messages(machine) == 2 && data == 0x42, "unmasked, it is sent once, with the new data");
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x800, 4), 0, "and no longer pending");

    config_set(machine, cap + 2, 0xc000, 2);
    pci_msix_notify(&card->fn, 1);
    is_int(messages(machine), 2, "the function mask holds all back");
    config_set(machine, cap + 2, 0x8000, 2);
    is_int(messages(machine), 3, "until it is taken away");
    config_set(machine, PCI_COMMAND, 2, 2);
    pci_msix_notify(&card->fn, 1);
    is_int(messages(machine), 3, "so does the lack of bus mastering");
    config_set(machine, PCI_COMMAND, 6, 2);
    is_int(messages(machine), 4, "likewise");
    pci_msix_notify(&card->fn, 4);
    pci_msix_notify(&card->fn, 4000);
    is_int(messages(machine), 4, "vectors out of range are dropped");

    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x40, 4), 0, "behind the table: zero");
    bus_write(machine->bus, BUS_MMIO, TABLE + 0x3c, 0xffffffffffffffff, 8);
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x3c, 8), 1, "a write across its end is cut");
    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 9, 0xab, 1);
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 16 + 8, 4), 0xab42, "a byte alone");
    card_free(card);
}

static void test_large(struct machine *machine)
{
    struct card *card = card_new(machine, PCI_MSIX_VECTORS_MAX, false);
    unsigned cap = card->fn.msix_cap;

    is_int(config_get(machine, cap + 8, 4), 0x1001, "a long table pushes the pending bits away");
    is_int(card->fn.bars[1].size_bytes, 8192, "into a larger BAR");
    config_set(machine, 0x14, TABLE, 4);
    config_set(machine, cap + 2, 0x8000, 2);
    pci_msix_notify(&card->fn, 128);
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x1000 + 16, 8), 1, "vector 128 is pending");
    device_reset(&card->fn.dev);
    ok(!pci_msix_enabled(&card->fn), "reset turns MSI-X off");
    is_int(card->state.msix_pending[2], 0, "and nothing is pending");
    card_free(card);
}

static void test_irqfd(struct machine *machine)
{
    struct card *card = card_new(machine, 2, true);
    unsigned cap = card->fn.msix_cap;
    struct fake_event event;
    uint64_t one = 1;
    int fd = pci_msix_fd(&card->fn, 1);

    ok(fd >= 0, "a vector has an eventfd");
    is_int(pci_msix_fd(&card->fn, 2), -1, "one out of range has none");
    entry_set(machine, 1, 0xfee03000, 0x51, 0);
    is_int(fake_event_count(machine->vm, FAKE_IRQFD_SET), 0, "the engine is not told while off");
    config_set(machine, cap + 2, 0x8000, 2);
    ok(fake_event_last(machine->vm, FAKE_IRQFD_SET, &event) && !event.masked &&
           event.addr == 0xfee03000 && event.data == 0x51,
       "turned on, it knows address and data");
    is_int(fake_event_count(machine->vm, FAKE_IRQFD_SET), 1, "of the open vector alone");
    ok(write(fd, &one, 8) == 8 && fake_irqfd_poll(machine->vm) == 1, "a signal is a message");

    fake_events_clear(machine->vm);
    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 8, 0x52, 4);
    ok(fake_event_last(machine->vm, FAKE_IRQFD_SET, &event) && event.data == 0x52, "new data");
    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 8, 0x52, 4);
    is_int(fake_event_count(machine->vm, FAKE_IRQFD_SET), 1, "the same again is no change");

    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 12, 1, 4);
    ok(fake_event_last(machine->vm, FAKE_IRQFD_SET, &event) && event.masked, "masked");
    ok(write(fd, &one, 8) == 8 && fake_irqfd_poll(machine->vm) == 0, "a signal is held back");
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x800, 8), 2, "and seen as pending");
    bus_write(machine->bus, BUS_MMIO, TABLE + 16 + 12, 0, 4);
    fake_irqfd_poll(machine->vm);
    is_int(messages(machine), 1, "until it is unmasked");
    is_int(bus_read(machine->bus, BUS_MMIO, TABLE + 0x800, 8), 0, "no longer pending");

    pci_msix_notify(&card->fn, 1);
    is_int(messages(machine), 2, "the device itself can send as well");
    config_set(machine, cap + 2, 0xc000, 2);
    ok(fake_event_last(machine->vm, FAKE_IRQFD_SET, &event) && event.masked, "function mask");
    ok(write(fd, &one, 8) == 8, "a signal before reset");
    device_reset(&card->fn.dev);
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    is_int(poll(&pfd, 1, 0), 0, "is dropped by it");
    fake_events_clear(machine->vm);
    card_free(card);
    is_int(fake_event_count(machine->vm, FAKE_IRQFD_FREE), 2, "all irqfds are given back");
}

int main(void)
{
    struct machine machine = {0};
    struct engine_vm_config vm_config = {.vcpu_count = 1, .upcalls = &bus_upcalls};
    struct err err = ERR_INIT;

    if (engine_fake.vm_new(&machine.vm, &vm_config, &err) < 0 || bus_new(&machine.bus, &err) < 0)
        return 1;
    irq_router_init(&machine.irq, machine.vm);
    const struct pci_bus_config config = {.bus = machine.bus, .irq = &machine.irq};
    if (pci_bus_new(&machine.pci, &config, &err) < 0)
        return 1;
    test_msi(&machine);
    test_masking(&machine);
    test_large(&machine);
    test_irqfd(&machine);
    pci_bus_free(machine.pci);
    irq_router_fini(&machine.irq);
    bus_free(machine.bus);
    engine_fake.vm_free(machine.vm);
    return tap_done();
}
