/* SPDX-License-Identifier: Apache-2.0 */
/* One PCI function: configuration space with its masks, BARs, capabilities, the INTx pin. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "bus/pci_priv.h"

static const struct state_field msix_entry_fields[] = {
    STATE_U32(struct pci_msix_entry, addr_lo, 1, 0, "Message address, low half"),
    STATE_U32(struct pci_msix_entry, addr_hi, 1, 0, "Message address, high half"),
    STATE_U32(struct pci_msix_entry, data, 1, 0, "Message data"),
    STATE_U32(struct pci_msix_entry, control, 1, PCI_MSIX_VECTOR_OFF,
              "Vector control; bit 0: masked (PCI 3.0, 6.8.2.9)"),
};
static const struct state_table msix_entry_table =
    STATE_TABLE("msix-entry", struct pci_msix_entry, 1, msix_entry_fields);

static const struct state_field pci_state_fields[] = {
    STATE_BYTES(struct pci_state, config, 1, "Configuration space"),
    STATE_STRUCT(struct pci_state, msix, struct pci_msix_entry, 1, &msix_entry_table,
                 "MSI-X table"),
    STATE_U64(struct pci_state, msix_pending, 1, 0, "MSI-X pending bits"),
    STATE_U8(struct pci_state, intx_level, 1, 0, "The device asserts its INTx pin"),
    STATE_PAD(struct pci_state, pad_),
};
const struct state_table pci_state_table =
    STATE_TABLE("pci-function", struct pci_state, 1, pci_state_fields);

/* --- building --- */

/* Value after reset, now and later. */
static void config_define(struct pci_function *fn, unsigned offset, uint64_t value, unsigned size)
{
    store_le(&fn->reset_config[offset], value, size);
    store_le(&fn->pci->config[offset], value, size);
}

void pci_function_init(struct pci_function *fn, struct pci_state *pci,
                       const struct pci_identity *identity)
{
    fn->pci = pci;
    memset(fn->write_mask, 0, sizeof(fn->write_mask));
    memset(fn->w1c_mask, 0, sizeof(fn->w1c_mask));
    memset(fn->reset_config, 0, sizeof(fn->reset_config));
    memset(fn->bars, 0, sizeof(fn->bars));
    fn->bus = NULL;
    fn->next_cap = PCI_HEADER_BYTES;
    fn->next_ext_cap = PCI_LEGACY_BYTES;
    fn->last_cap = fn->last_ext_cap = 0;
    fn->msi_cap = fn->msix_cap = fn->msix_vectors = 0;
    fn->msix_table = NULL;
    fn->irqfds = NULL;
    fn->irqfd_sent = NULL;
    fn->intx_asserted = false;

    config_define(fn, PCI_VENDOR_ID, identity->vendor_id, 2);
    config_define(fn, PCI_DEVICE_ID, identity->device_id, 2);
    config_define(fn, PCI_REVISION, identity->revision, 1);
    config_define(fn, PCI_CLASS, identity->class_code & 0xffff, 2);
    config_define(fn, PCI_CLASS + 2, identity->class_code >> 16, 1);
    config_define(fn, PCI_SUBSYSTEM_VENDOR, identity->subsystem_vendor_id, 2);
    config_define(fn, PCI_SUBSYSTEM, identity->subsystem_id, 2);
    config_define(fn, PCI_INTERRUPT_PIN, identity->interrupt_pin, 1);

    store_le16(&fn->write_mask[PCI_COMMAND], PCI_COMMAND_IO | PCI_COMMAND_MEMORY |
                                                 PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
                                                 PCI_COMMAND_SERR | PCI_COMMAND_INTX_OFF);
    store_le16(&fn->w1c_mask[PCI_STATUS], PCI_STATUS_ERRORS);
    fn->write_mask[PCI_CACHE_LINE] = 0xff;
    fn->write_mask[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_registers_add(struct pci_function *fn, const struct pci_register *registers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct pci_register *reg = &registers[i];

        assert(range_fits(reg->offset, reg->width, PCI_CONFIG_BYTES));
        config_define(fn, reg->offset, reg->reset, reg->width);
        store_le(&fn->write_mask[reg->offset], reg->writable, reg->width);
        store_le(&fn->w1c_mask[reg->offset], reg->w1c, reg->width);
    }
}

static bool bar_is_64bit(const struct pci_bar *bar)
{
    return bar->kind == PCI_BAR_MEM64 || bar->kind == PCI_BAR_MEM64_PREFETCH;
}

/* (PCI 3.0, 6.2.5.1) */
struct pci_bar *pci_bar_add(struct pci_function *fn, unsigned index, enum pci_bar_kind kind,
                            uint64_t size_bytes, const struct bus_range_ops *ops)
{
    static const uint8_t type_bits[] = {
        [PCI_BAR_IO] = 0x1,
        [PCI_BAR_MEM32] = 0x0,
        [PCI_BAR_MEM64] = 0x4,
        [PCI_BAR_MEM64_PREFETCH] = 0xc,
    };
    struct pci_bar *bar = &fn->bars[index];
    unsigned offset = PCI_BAR0 + index * 4;

    assert(index < PCI_BAR_COUNT && bar->kind == PCI_BAR_NONE && kind != PCI_BAR_NONE);
    assert(is_power_of_two(size_bytes) && size_bytes >= (kind == PCI_BAR_IO ? 4 : 16));
    assert(size_bytes <= (kind == PCI_BAR_IO ? 256 : 1ULL << 62));
    bar->fn = fn;
    bar->kind = kind;
    bar->size_bytes = size_bytes;
    bar->range = (struct bus_range){
        .ops = ops,
        .dev = &fn->dev,
        .space = kind == PCI_BAR_IO ? BUS_PIO : BUS_MMIO,
        .len = size_bytes,
    };
    config_define(fn, offset, type_bits[kind], 4);
    if (bar_is_64bit(bar)) {
        assert(index + 1 < PCI_BAR_COUNT && fn->bars[index + 1].kind == PCI_BAR_NONE);
        store_le64(&fn->write_mask[offset], ~(size_bytes - 1));
    } else {
        assert(size_bytes <= 1ULL << 31);
        store_le32(&fn->write_mask[offset], (uint32_t) ~(size_bytes - 1));
    }
    return bar;
}

uint16_t pci_cap_add(struct pci_function *fn, uint8_t id, const void *body, unsigned body_len,
                     const void *writable)
{
    uint16_t offset = fn->next_cap;

    assert(offset + 2 + body_len <= PCI_LEGACY_BYTES);
    config_define(fn, offset, id, 1);
    memcpy(&fn->reset_config[offset + 2], body, body_len);
    memcpy(&fn->pci->config[offset + 2], body, body_len);
    if (writable)
        memcpy(&fn->write_mask[offset + 2], writable, body_len);
    config_define(fn, fn->last_cap ? fn->last_cap + 1u : PCI_CAP_POINTER, offset, 1);
    config_define(fn, PCI_STATUS, PCI_STATUS_CAPS, 2);
    fn->last_cap = offset;
    fn->next_cap = (uint16_t)align_up(offset + 2u + body_len, 4);
    return offset;
}

uint16_t pci_ext_cap_add(struct pci_function *fn, uint16_t id, unsigned version, const void *body,
                         unsigned body_len, const void *writable)
{
    uint16_t offset = fn->next_ext_cap;

    assert(version < 16 && offset + 4 + body_len <= PCI_CONFIG_BYTES);
    config_define(fn, offset, id | version << 16, 4);
    memcpy(&fn->reset_config[offset + 4], body, body_len);
    memcpy(&fn->pci->config[offset + 4], body, body_len);
    if (writable)
        memcpy(&fn->write_mask[offset + 4], writable, body_len);
    if (fn->last_ext_cap) {
        uint32_t header = load_le32(&fn->reset_config[fn->last_ext_cap]);
        config_define(fn, fn->last_ext_cap, header | (uint32_t)offset << 20, 4);
    }
    fn->last_ext_cap = offset;
    fn->next_ext_cap = (uint16_t)align_up(offset + 4u + body_len, 4);
    return offset;
}

/* Version 2 layout (PCI Express 5.0, 7.5.3), without link, slot and root registers: those are zero
 * in an endpoint integrated into the root complex. */
void pci_express_add(struct pci_function *fn)
{
    uint8_t body[0x3c - 2] = {0}, writable[0x3c - 2] = {0};
    uint16_t cap;

    store_le16(&body[0x02 - 2], 2 | 9u << 4); /* version; root complex integrated endpoint */
    store_le32(&body[0x04 - 2], 1u << 15);    /* role-based error reporting */
    store_le16(&body[0x08 - 2], 1u << 4 | 1u << 11 | 2u << 12); /* 512 byte read requests */
    store_le16(&writable[0x08 - 2], 0x78ff);
    cap = pci_cap_add(fn, PCI_CAP_ID_EXPRESS, body, sizeof(body), writable);
    store_le16(&fn->w1c_mask[cap + 0x0a], 0x000f); /* device status: errors detected */
}

/* --- BARs --- */

static uint16_t command(const struct pci_function *fn)
{
    return load_le16(&fn->pci->config[PCI_COMMAND]);
}

/*
 * Where the registers put the BAR; false: nowhere. 0 is a BAR that was never given an address, and
 * a BAR that ends at the top of its space is one whose size is being asked (PCI 3.0, 6.2.5.1).
 */
static bool bar_decoded(const struct pci_bar *bar, uint64_t *base)
{
    const struct pci_function *fn = bar->fn;
    unsigned index = (unsigned)(bar - fn->bars);
    const uint8_t *reg = &fn->pci->config[PCI_BAR0 + index * 4];
    uint64_t top;

    if (bar_is_64bit(bar)) {
        *base = load_le64(reg) & ~(bar->size_bytes - 1);
        top = UINT64_MAX;
    } else {
        *base = load_le32(reg) & ~(bar->size_bytes - 1);
        top = bar->kind == PCI_BAR_IO ? 0xffff : UINT32_MAX;
    }
    if (!(command(fn) & (bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
        return false;
    return *base != 0 && *base < top && top - *base > bar->size_bytes - 1;
}

static void bar_update(struct pci_bar *bar)
{
    struct pci_function *fn = bar->fn;
    uint64_t base;
    bool decoded, was_mapped = bar->range.mapped;

    if (bar->kind == PCI_BAR_NONE || !fn->bus)
        return;
    decoded = bar_decoded(bar, &base);
    if (decoded == was_mapped && (!decoded || base == bar->range.base))
        return;
    bus_unmap(pci_bus_configuration(fn->bus)->bus, &bar->range);
    if (decoded) {
        bar->range.base = base;
        if (bus_map(pci_bus_configuration(fn->bus)->bus, &bar->range) < 0)
            log_guest(&fn->dev.log_budget, fn->dev.name, "BAR %u at 0x%llx cannot be mapped",
                      (unsigned)(bar - fn->bars), (unsigned long long)base);
    }
    if (bar->moved && (was_mapped || bar->range.mapped))
        bar->moved(bar);
}

static void bars_update(struct pci_function *fn)
{
    for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
        bar_update(&fn->bars[i]);
}

/* --- INTx --- */

void pci_function_intx_update(struct pci_function *fn)
{
    uint8_t pin = fn->reset_config[PCI_INTERRUPT_PIN];
    bool asserted = fn->pci->intx_level && !(command(fn) & PCI_COMMAND_INTX_OFF) &&
                    !pci_msix_enabled(fn) && !pci_msi_enabled(fn);

    if (!fn->bus || pin == 0 || asserted == fn->intx_asserted)
        return;
    fn->intx_asserted = asserted;
    pci_bus_intx_adjust(fn->bus, fn->devfn >> 3, pin, asserted);
}

/* The status bit tells the device's side, whatever the disable bit says (PCI 3.0, 6.2.3). */
void pci_intx_set(struct pci_function *fn, bool level)
{
    if (fn->pci->intx_level == level)
        return;
    fn->pci->intx_level = level;
    if (level)
        fn->pci->config[PCI_STATUS] |= PCI_STATUS_INTX;
    else
        fn->pci->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
    pci_function_intx_update(fn);
}

bool pci_bus_master_enabled(const struct pci_function *fn)
{
    return command(fn) & PCI_COMMAND_MASTER;
}

/* --- accesses --- */

static bool touches(unsigned offset, unsigned size, unsigned start, unsigned len)
{
    return offset < start + len && start < offset + size;
}

uint32_t pci_function_config_read(struct pci_function *fn, unsigned offset, unsigned size)
{
    assert(range_fits(offset, size, PCI_CONFIG_BYTES));
    if (fn->config_read)
        fn->config_read(fn, offset, size);
    return (uint32_t)load_le(&fn->pci->config[offset], size);
}

void pci_function_config_write(struct pci_function *fn, unsigned offset, uint32_t value,
                               unsigned size)
{
    assert(range_fits(offset, size, PCI_CONFIG_BYTES));
    for (unsigned i = 0; i < size; i++) {
        uint8_t *reg = &fn->pci->config[offset + i];
        uint8_t byte = (uint8_t)(value >> (i * 8)), mask = fn->write_mask[offset + i];

        *reg = (uint8_t)((*reg & ~mask) | (byte & mask));
        *reg &= (uint8_t) ~(byte & fn->w1c_mask[offset + i]);
    }
    if (touches(offset, size, PCI_COMMAND, 2) ||
        touches(offset, size, PCI_BAR0, PCI_BAR_COUNT * 4)) {
        bars_update(fn);
        pci_function_intx_update(fn);
        pci_msix_update(fn); /* messages need bus mastering */
    }
    if (fn->msi_cap && touches(offset, size, fn->msi_cap + PCI_MSI_CONTROL, 2))
        pci_function_intx_update(fn);
    if (fn->msix_cap && touches(offset, size, fn->msix_cap + PCI_MSIX_CONTROL, 2)) {
        pci_function_intx_update(fn);
        pci_msix_update(fn);
    }
    if (fn->config_written)
        fn->config_written(fn, offset, size);
}

void pci_function_reset(struct pci_function *fn)
{
    memcpy(fn->pci->config, fn->reset_config, sizeof(fn->pci->config));
    fn->pci->intx_level = 0;
    bars_update(fn);
    pci_function_intx_update(fn);
    pci_msix_reset(fn);
}

void pci_function_fini(struct pci_function *fn)
{
    if (fn->bus) {
        for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
            bus_unmap(pci_bus_configuration(fn->bus)->bus, &fn->bars[i].range);
        fn->pci->intx_level = 0;
        pci_function_intx_update(fn);
    }
    pci_msix_fini(fn);
    if (fn->bus)
        pci_bus_unplug(fn->bus, fn);
    fn->bus = NULL;
}
