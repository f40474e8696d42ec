/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCI Express as software sees it: one root complex, bus 0, functions with 4 KiB of configuration
 * space reached through ports 0xcf8/0xcfc and through ECAM, BARs that map bus ranges, capabilities,
 * MSI and MSI-X, INTx. (PCI Local Bus 3.0; PCI Express Base 5.0, 7.)
 *
 * A device embeds struct pci_function, fills its identity with pci_function_init(), adds BARs and
 * capabilities, and plugs it into a slot. Everything below is called with the function's device
 * lock held, or while the board is built.
 */
#ifndef HULL_BUS_PCI_H
#define HULL_BUS_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "bus/bus.h"
#include "bus/device.h"
#include "bus/irq.h"

#define PCI_CONFIG_BYTES          4096
#define PCI_BAR_COUNT             6
#define PCI_SLOT_COUNT            32
#define PCI_FUNCTION_COUNT        8
#define PCI_MSIX_VECTORS_MAX      129 /* 64 queue pairs and the configuration vector */

#define PCI_DEVFN(slot, function) ((uint8_t)(((slot) << 3) | (function)))

enum pci_bar_kind {
    PCI_BAR_NONE,
    PCI_BAR_IO,
    PCI_BAR_MEM32,
    PCI_BAR_MEM64,          /* takes two BAR registers */
    PCI_BAR_MEM64_PREFETCH, /* likewise */
};

struct pci_function;

struct pci_bar {
    struct pci_function *fn;
    enum pci_bar_kind kind;
    uint64_t size_bytes; /* power of two; at least 16 (memory) or 4 (I/O) */
    struct bus_range range;
    /* Called after the BAR moved, appeared or vanished (range.mapped, range.base tell). May be
     * NULL. */
    void (*moved)(struct pci_bar *bar);
};

struct pci_identity {
    uint16_t vendor_id, device_id;
    uint16_t subsystem_vendor_id, subsystem_id;
    uint32_t class_code; /* 24 bits: class, subclass, programming interface */
    uint8_t revision;
    uint8_t interrupt_pin; /* 1 = INTA ... 4; 0: none */
};

/* Guest-visible state of any function; a device nests it in its own state struct and table. */
struct pci_msix_entry {
    uint32_t addr_lo, addr_hi, data, control; /* PCI 3.0, 6.8.2.7-9 */
};

struct pci_state {
    uint8_t config[PCI_CONFIG_BYTES];
    struct pci_msix_entry msix[PCI_MSIX_VECTORS_MAX];
    uint64_t msix_pending[(PCI_MSIX_VECTORS_MAX + 63) / 64];
    uint8_t intx_level;
    uint8_t pad_[7];
};

extern const struct state_table pci_state_table;

struct pci_bus;

struct pci_function {
    struct device dev; /* first */
    struct pci_state *pci;
    struct pci_bus *bus;
    uint8_t devfn;
    uint8_t write_mask[PCI_CONFIG_BYTES]; /* 1: the guest may change the bit */
    uint8_t w1c_mask[PCI_CONFIG_BYTES];   /* 1: writing 1 clears the bit */
    uint8_t reset_config[PCI_CONFIG_BYTES];
    struct pci_bar bars[PCI_BAR_COUNT];
    uint16_t next_cap; /* offset where the next capability goes */
    uint16_t next_ext_cap;
    uint16_t last_cap, last_ext_cap;
    uint16_t msi_cap, msix_cap; /* offset of the capability, 0: none */
    uint16_t msix_vectors;
    struct bus_range *msix_table;      /* inside a BAR of the device */
    struct engine_irqfd *irqfds;       /* one a vector where irqfds are in use, else NULL */
    bool intx_asserted;                /* what the bus was told */
    struct pci_msix_entry *irqfd_sent; /* what the engine knows of each irqfd; control: masked */

    /* After the masks were applied to a configuration write; may be NULL. */
    void (*config_written)(struct pci_function *fn, unsigned offset, unsigned size);
    /* Before a configuration read, for registers that are computed; may be NULL. */
    void (*config_read)(struct pci_function *fn, unsigned offset, unsigned size);
};

/* --- building a function --- */

/*
 * Initialise config space and masks with the identity; fn->dev was initialised with device_init()
 * before, its state struct holds *pci somewhere. Call pci_function_reset() from the device's reset.
 * After this a device may edit reset_config, write_mask and w1c_mask for registers of its own; they
 * take effect with the device's first reset.
 */
void pci_function_init(struct pci_function *fn, struct pci_state *pci,
                       const struct pci_identity *identity);

/*
 * Registers of a device's own in configuration space, as a table: value after reset, the bits that
 * the guest may change, the bits that writing 1 clears. Init only.
 */
struct pci_register {
    const char *name; /* of the data sheet, with its section */
    uint16_t offset;
    uint8_t width; /* 1, 2, 4 or 8 bytes */
    uint64_t reset, writable, w1c;
};

void pci_registers_add(struct pci_function *fn, const struct pci_register *registers, size_t count);

/* BAR `index` of kind and size; ops/dev of the range as given. Returns the bar. Init only. */
struct pci_bar *pci_bar_add(struct pci_function *fn, unsigned index, enum pci_bar_kind kind,
                            uint64_t size_bytes, const struct bus_range_ops *ops);

/* Append a capability of len bytes (body_len = len - 2 bytes behind id and next pointer); returns
 * its offset. writable, when not NULL, is the write mask of the body. Init only. */
uint16_t pci_cap_add(struct pci_function *fn, uint8_t id, const void *body, unsigned body_len,
                     const void *writable);

/* Likewise an extended capability (PCI Express 5.0, 7.6.3); body_len = len - 4. Init only. */
uint16_t pci_ext_cap_add(struct pci_function *fn, uint16_t id, unsigned version, const void *body,
                         unsigned body_len, const void *writable);

/* A PCI Express capability for a root complex integrated endpoint. Init only. */
void pci_express_add(struct pci_function *fn);

/*
 * MSI-X with `vectors` vectors: table at offset 0 and pending bits at 0x800 or behind the table of
 * BAR `bar_index`, which it creates (MEM32). When use_irqfd, each vector gets an irqfd that follows
 * its address, data and mask, so that pci_msix_fd() can be given to a kernel or another thread.
 * Init only.
 */
int pci_msix_add(struct pci_function *fn, unsigned bar_index, unsigned vectors, bool use_irqfd,
                 struct err *err);

/* The eventfd that sends a vector; -1 without use_irqfd, or before the function is plugged. */
int pci_msix_fd(const struct pci_function *fn, unsigned vector);

/* MSI with one vector, 64-bit address. Init only. */
void pci_msi_add(struct pci_function *fn);

/* Restore config space, BARs (unmapped), MSI-X, INTx to power-on. From the device's reset. */
void pci_function_reset(struct pci_function *fn);
void pci_function_fini(struct pci_function *fn);

/* --- signalling; lock held --- */

/* Level of the INTx pin; the PCI status bit and the command register's disable bit are respected.
 */
void pci_intx_set(struct pci_function *fn, bool level);
bool pci_msix_enabled(const struct pci_function *fn);
/* Send vector, or set its pending bit while it is masked. Vectors out of range are dropped. */
void pci_msix_notify(struct pci_function *fn, unsigned vector);
bool pci_msi_enabled(const struct pci_function *fn);
void pci_msi_notify(struct pci_function *fn);

bool pci_bus_master_enabled(const struct pci_function *fn);

/* --- the bus --- */

struct pci_bus_config {
    struct bus *bus;
    struct irq_router *irq;
    struct loop *loop;
    /* Route of INTx: called with the pin of the bus, 0-7 (PIRQA-H), whenever the OR of all
     * functions on it changes. */
    void (*pirq_set)(void *ctx, unsigned pirq, bool level);
    void *pirq_ctx;
};

/*
 * Makes the root bus and its ports 0xcf8-0xcff. ECAM is mapped by pci_bus_set_ecam(). Configuration
 * accesses hold the bus's lock and then the function's: no device may reach configuration space
 * with its own lock held.
 */
int pci_bus_new(struct pci_bus **bus, const struct pci_bus_config *config, struct err *err);
void pci_bus_free(struct pci_bus *bus);

/* The bus as a device (the address register of port 0xcf8), for the board's list: to be reset and
 * saved. Freed by pci_bus_free(), which may come after device_fini(). */
struct device *pci_bus_device(struct pci_bus *bus);

/* The host bridge (PCIEXBAR) places the ECAM window: base, and buses * 1 MiB; 0 buses: off. From
 * the bridge's config_written, or while no vCPU runs. */
void pci_bus_set_ecam(struct pci_bus *bus, gpa_t base, unsigned buses);

/*
 * The chipset's reset control register lies inside the doubleword of port 0xcf8, which takes only
 * doubleword accesses itself: byte accesses to port 0xcf9 go to this range, which is not mapped.
 */
void pci_bus_set_reset_port(struct pci_bus *bus, struct bus_range *range);

/* Plug fn at devfn, or with devfn < 0 in the next free slot, function 0, from slot 1 on.
 * -ENOSPC / -EBUSY. */
int pci_bus_plug(struct pci_bus *bus, struct pci_function *fn, int devfn, struct err *err);

struct pci_function *pci_bus_function(struct pci_bus *bus, uint8_t devfn);

/* The PIRQ (0-7) that INTx pin 1-4 of a slot is wired to: (slot + pin - 1) % 4 + 4, as ACPI's _PRT
 * says too. */
unsigned pci_slot_pirq(unsigned slot, unsigned pin);

/* The ISA interrupt to which this machine routes a PIRQ when there is no firmware to choose. */
unsigned pci_pirq_isa_irq(unsigned pirq);

/*
 * What firmware does, for direct kernel boot: give every BAR an address (I/O from io_base, 32-bit
 * memory from mem32_base, 64-bit from mem64_base), fill the interrupt line, enable decoding.
 * -ENOSPC with err when a window is too small.
 */
struct pci_windows {
    uint64_t io_base, io_len;
    uint64_t mem32_base, mem32_len;
    uint64_t mem64_base, mem64_len;
};

int pci_bus_assign(struct pci_bus *bus, const struct pci_windows *windows, struct err *err);

#endif
