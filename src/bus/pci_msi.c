/* SPDX-License-Identifier: Apache-2.0 */
/* Message-signalled interrupts of a PCI function (PCI Local Bus 3.0, 6.8). */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/units.h"
#include "bus/pci_priv.h"

#define ENTRY_BYTES sizeof(struct pci_msix_entry)

/* Pending bits start here, or behind a table that is longer. */
#define PBA_ALIGN 0x800u

static struct engine_vm *engine_of(const struct pci_function *fn)
{
    return pci_bus_configuration(fn->bus)->irq->vm;
}

static void send(struct pci_function *fn, uint64_t addr, uint32_t data)
{
    irq_msi_send(pci_bus_configuration(fn->bus)->irq, addr, data);
}

/* --- MSI --- */

void pci_msi_add(struct pci_function *fn)
{
    uint8_t body[12] = {0}, writable[12] = {0};

    store_le16(&body[PCI_MSI_CONTROL - 2], PCI_MSI_64BIT);
    store_le16(&writable[PCI_MSI_CONTROL - 2], PCI_MSI_ENABLE);
    store_le64(&writable[PCI_MSI_ADDRESS - 2], ~3ULL);
    store_le16(&writable[PCI_MSI_DATA - 2], 0xffff);
    fn->msi_cap = pci_cap_add(fn, PCI_CAP_ID_MSI, body, sizeof(body), writable);
}

bool pci_msi_enabled(const struct pci_function *fn)
{
    return fn->msi_cap &&
           (load_le16(&fn->pci->config[fn->msi_cap + PCI_MSI_CONTROL]) & PCI_MSI_ENABLE);
}

void pci_msi_notify(struct pci_function *fn)
{
    const uint8_t *cap = &fn->pci->config[fn->msi_cap];

    if (fn->bus && pci_msi_enabled(fn) && pci_bus_master_enabled(fn))
        send(fn, load_le64(cap + PCI_MSI_ADDRESS), load_le16(cap + PCI_MSI_DATA));
}

/* --- MSI-X: masks and delivery --- */

static uint16_t msix_control(const struct pci_function *fn)
{
    return load_le16(&fn->pci->config[fn->msix_cap + PCI_MSIX_CONTROL]);
}

bool pci_msix_enabled(const struct pci_function *fn)
{
    return fn->msix_cap && (msix_control(fn) & PCI_MSIX_ENABLE);
}

/* May a message of this vector go out now? Without bus mastering a function cannot write at all. */
static bool vector_open(const struct pci_function *fn, unsigned vector)
{
    return (msix_control(fn) & (PCI_MSIX_ENABLE | PCI_MSIX_FUNCTION_OFF)) == PCI_MSIX_ENABLE &&
           !(fn->pci->msix[vector].control & PCI_MSIX_VECTOR_OFF) && pci_bus_master_enabled(fn);
}

static uint64_t entry_address(const struct pci_msix_entry *entry)
{
    return (uint64_t)entry->addr_hi << 32 | entry->addr_lo;
}

/* The engine's routing tables are slow to change: tell it only of what counts, which is neither the
 * address nor the data of a vector that is masked. */
static void irqfd_update(struct pci_function *fn, unsigned vector)
{
    const struct pci_msix_entry *entry = &fn->pci->msix[vector];
    struct pci_msix_entry *sent = &fn->irqfd_sent[vector];
    bool masked = !vector_open(fn, vector);
    bool was_masked = sent->control & PCI_MSIX_VECTOR_OFF;
    int rc;

    if (masked && was_masked)
        return;
    if (masked == was_masked && sent->addr_lo == entry->addr_lo &&
        sent->addr_hi == entry->addr_hi && sent->data == entry->data)
        return;
    *sent = *entry;
    sent->control = masked ? PCI_MSIX_VECTOR_OFF : 0;
    rc = engine_of(fn)->ops->irqfd_set(engine_of(fn), &fn->irqfds[vector], entry_address(entry),
                                       entry->data, masked);
    if (rc < 0) {
        sent->control = PCI_MSIX_VECTOR_OFF; /* try again with the next change */
        log_guest(&fn->dev.log_budget, fn->dev.name, "MSI-X vector %u cannot be routed: %s", vector,
                  strerror(-rc));
    }
}

static void vector_update(struct pci_function *fn, unsigned vector)
{
    if (fn->irqfds && fn->bus)
        irqfd_update(fn, vector);
    if (bitmap_test(fn->pci->msix_pending, vector) && vector_open(fn, vector)) {
        bitmap_clear(fn->pci->msix_pending, vector);
        pci_msix_notify(fn, vector);
    }
}

void pci_msix_update(struct pci_function *fn)
{
    if (!fn->msix_cap)
        return;
    for (unsigned i = 0; i < fn->msix_vectors; i++)
        vector_update(fn, i);
}

/* While MSI-X is off there is nothing to be pending. Function mask, vector mask and the lack of bus
 * mastering hold the message back (PCI 3.0, 6.8.3.4). */
void pci_msix_notify(struct pci_function *fn, unsigned vector)
{
    if (vector >= fn->msix_vectors || !fn->bus || !pci_msix_enabled(fn))
        return;
    if (vector_open(fn, vector))
        send(fn, entry_address(&fn->pci->msix[vector]), fn->pci->msix[vector].data);
    else
        bitmap_set(fn->pci->msix_pending, vector);
}

int pci_msix_fd(const struct pci_function *fn, unsigned vector)
{
    return fn->irqfds && vector < fn->msix_vectors ? fn->irqfds[vector].fd : -1;
}

/* --- MSI-X: table and pending bits --- */

static unsigned pba_offset(const struct pci_function *fn)
{
    return load_le32(&fn->reset_config[fn->msix_cap + 8]) & ~7u;
}

/* A signal that waits in a masked vector's irqfd is pending too. */
static bool irqfd_waits(const struct pci_function *fn, unsigned vector)
{
    struct pollfd pfd = {.fd = pci_msix_fd(fn, vector), .events = POLLIN};

    return pfd.fd >= 0 && (fn->irqfd_sent[vector].control & PCI_MSIX_VECTOR_OFF) &&
           poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLIN);
}

static uint8_t pba_byte(const struct pci_function *fn, uint64_t index)
{
    uint8_t byte = 0;

    for (unsigned bit = 0; bit < 8; bit++) {
        uint64_t vector = index * 8 + bit;
        if (vector < fn->msix_vectors &&
            (bitmap_test(fn->pci->msix_pending, vector) || irqfd_waits(fn, (unsigned)vector)))
            byte |= (uint8_t)(1u << bit);
    }
    return byte;
}

static uint64_t msix_bar_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct pci_function *fn = CONTAINER_OF(range, struct pci_bar, range)->fn;
    uint64_t table_bytes = fn->msix_vectors * ENTRY_BYTES, value = 0;

    if (range_fits(offset, size, table_bytes))
        return load_le((const uint8_t *)fn->pci->msix + offset, size);
    for (unsigned i = 0; i < size; i++) {
        uint64_t at = offset + i;
        uint8_t byte = 0;
        if (at < table_bytes)
            byte = ((const uint8_t *)fn->pci->msix)[at];
        else if (at >= pba_offset(fn) && at - pba_offset(fn) < bitmap_words(fn->msix_vectors) * 8)
            byte = pba_byte(fn, at - pba_offset(fn));
        value |= (uint64_t)byte << (i * 8);
    }
    return value;
}

/* Software should write whole, aligned doublewords or quadwords (6.8.2); what is not stays defined:
 * the bytes it covers. The pending bits are read-only. */
static void msix_bar_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_function *fn = CONTAINER_OF(range, struct pci_bar, range)->fn;
    uint64_t table_bytes = fn->msix_vectors * ENTRY_BYTES;
    unsigned first, last;

    if (offset >= table_bytes)
        return;
    if (size > table_bytes - offset)
        size = (unsigned)(table_bytes - offset);
    first = (unsigned)(offset / ENTRY_BYTES);
    last = (unsigned)((offset + size - 1) / ENTRY_BYTES);
    memcpy((uint8_t *)fn->pci->msix + offset, &value, size);
    for (unsigned i = first; i <= last; i++) {
        fn->pci->msix[i].addr_lo &= ~3u;
        fn->pci->msix[i].control &= PCI_MSIX_VECTOR_OFF;
        vector_update(fn, i);
    }
}

static const struct bus_range_ops msix_bar_ops = {
    .read = msix_bar_read,
    .write = msix_bar_write,
    .max_size = 8,
};

int pci_msix_add(struct pci_function *fn, unsigned bar_index, unsigned vectors, bool use_irqfd,
                 struct err *err)
{
    uint8_t body[10] = {0}, writable[10] = {0};
    unsigned pba = (unsigned)align_up(vectors * ENTRY_BYTES, PBA_ALIGN);
    uint64_t bar_bytes = PAGE_SIZE_BYTES;

    assert(vectors > 0 && vectors <= PCI_MSIX_VECTORS_MAX && !fn->msix_cap);
    if (use_irqfd) {
        fn->irqfds = calloc(vectors, sizeof(*fn->irqfds));
        fn->irqfd_sent = calloc(vectors, sizeof(*fn->irqfd_sent));
        if (!fn->irqfds || !fn->irqfd_sent) {
            pci_msix_fini(fn);
            return err_errno(err, ENOMEM, "%s: cannot make %u MSI-X vectors", fn->dev.name,
                             vectors);
        }
        for (unsigned i = 0; i < vectors; i++) {
            fn->irqfds[i].fd = -1;
            fn->irqfd_sent[i].control = PCI_MSIX_VECTOR_OFF;
        }
    }
    while (bar_bytes < pba + bitmap_words(vectors) * 8)
        bar_bytes *= 2;
    fn->msix_table = &pci_bar_add(fn, bar_index, PCI_BAR_MEM32, bar_bytes, &msix_bar_ops)->range;
    store_le16(&body[PCI_MSIX_CONTROL - 2], (uint16_t)(vectors - 1));
    store_le16(&writable[PCI_MSIX_CONTROL - 2], PCI_MSIX_ENABLE | PCI_MSIX_FUNCTION_OFF);
    store_le32(&body[4 - 2], 0 | bar_index);
    store_le32(&body[8 - 2], pba | bar_index);
    fn->msix_vectors = (uint16_t)vectors;
    fn->msix_cap = pci_cap_add(fn, PCI_CAP_ID_MSIX, body, sizeof(body), writable);
    return fn->bus ? pci_msix_attach(fn, err) : 0;
}

int pci_msix_attach(struct pci_function *fn, struct err *err)
{
    for (unsigned i = 0; fn->irqfds && i < fn->msix_vectors; i++) {
        int rc = engine_of(fn)->ops->irqfd_new(engine_of(fn), &fn->irqfds[i]);
        if (rc < 0) {
            fn->irqfds[i].fd = -1;
            return err_errno(err, rc, "%s: cannot make an irqfd for MSI-X vector %u", fn->dev.name,
                             i);
        }
    }
    return 0;
}

/* The table went back to all masked. What waits in an irqfd belongs to the time before. */
void pci_msix_reset(struct pci_function *fn)
{
    if (!fn->msix_cap)
        return;
    memset(fn->pci->msix_pending, 0, sizeof(fn->pci->msix_pending));
    for (unsigned i = 0; i < fn->msix_vectors; i++) {
        fn->pci->msix[i] = (struct pci_msix_entry){.control = PCI_MSIX_VECTOR_OFF};
        vector_update(fn, i);
        if (irqfd_waits(fn, i)) {
            uint64_t count;
            if (read(fn->irqfds[i].fd, &count, sizeof(count)) < 0)
                log_guest(&fn->dev.log_budget, fn->dev.name, "MSI-X vector %u not drained", i);
        }
    }
}

void pci_msix_fini(struct pci_function *fn)
{
    for (unsigned i = 0; fn->irqfds && fn->bus && i < fn->msix_vectors; i++) {
        if (fn->irqfds[i].fd >= 0)
            engine_of(fn)->ops->irqfd_free(engine_of(fn), &fn->irqfds[i]);
    }
    free(fn->irqfds);
    free(fn->irqfd_sent);
    fn->irqfds = NULL;
    fn->irqfd_sent = NULL;
}
