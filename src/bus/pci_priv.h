/* SPDX-License-Identifier: Apache-2.0 */
/* What pci.c (the bus), pci_function.c (configuration space) and pci_msi.c (messages) share. */
#ifndef HULL_BUS_PCI_PRIV_H
#define HULL_BUS_PCI_PRIV_H

#include "bus/pci.h"

/* Configuration space header, type 0 (PCI 3.0, 6.1 and 6.2). */
#define PCI_VENDOR_ID         0x00
#define PCI_DEVICE_ID         0x02
#define PCI_COMMAND           0x04
#define PCI_STATUS            0x06
#define PCI_REVISION          0x08
#define PCI_CLASS             0x09
#define PCI_CACHE_LINE        0x0c
#define PCI_HEADER_TYPE       0x0e
#define PCI_BAR0              0x10
#define PCI_SUBSYSTEM_VENDOR  0x2c
#define PCI_SUBSYSTEM         0x2e
#define PCI_CAP_POINTER       0x34
#define PCI_INTERRUPT_LINE    0x3c
#define PCI_INTERRUPT_PIN     0x3d
#define PCI_HEADER_BYTES      0x40
#define PCI_LEGACY_BYTES      0x100 /* extended capabilities lie behind */

#define PCI_COMMAND_IO        (1u << 0)
#define PCI_COMMAND_MEMORY    (1u << 1)
#define PCI_COMMAND_MASTER    (1u << 2)
#define PCI_COMMAND_PARITY    (1u << 6)
#define PCI_COMMAND_SERR      (1u << 8)
#define PCI_COMMAND_INTX_OFF  (1u << 10)
#define PCI_STATUS_INTX       (1u << 3)
#define PCI_STATUS_CAPS       (1u << 4)
#define PCI_STATUS_ERRORS     0xf900u /* write 1 to clear: 8, 11-15 */
#define PCI_MULTI_FUNCTION    0x80u

#define PCI_CAP_ID_MSI        0x05
#define PCI_CAP_ID_EXPRESS    0x10
#define PCI_CAP_ID_MSIX       0x11

#define PCI_MSI_CONTROL       2 /* offsets into the capability (PCI 3.0, 6.8.1) */
#define PCI_MSI_ADDRESS       4
#define PCI_MSI_DATA          12
#define PCI_MSI_ENABLE        (1u << 0)
#define PCI_MSI_64BIT         (1u << 7)

#define PCI_MSIX_CONTROL      2 /* (PCI 3.0, 6.8.2.3) */
#define PCI_MSIX_ENABLE       (1u << 15)
#define PCI_MSIX_FUNCTION_OFF (1u << 14)
#define PCI_MSIX_VECTOR_OFF   (1u << 0)

struct pci_bus_config;
const struct pci_bus_config *pci_bus_configuration(const struct pci_bus *bus);

/* One more, or one less, function that holds the PIRQ of slot and pin up. */
void pci_bus_intx_adjust(struct pci_bus *bus, unsigned slot, unsigned pin, bool level);
void pci_bus_unplug(struct pci_bus *bus, struct pci_function *fn);

/* One access of 1, 2 or 4 bytes inside config space. Lock of fn held. */
uint32_t pci_function_config_read(struct pci_function *fn, unsigned offset, unsigned size);
void pci_function_config_write(struct pci_function *fn, unsigned offset, uint32_t value,
                               unsigned size);
/* Tell the bus the level of the pin after anything it depends on changed. */
void pci_function_intx_update(struct pci_function *fn);

/* At plug time: make the irqfds that pci_msix_add() promised. */
int pci_msix_attach(struct pci_function *fn, struct err *err);
/* Enable, masks, address or data of all vectors may have changed: deliver what is pending and bring
 * the irqfds in step. */
void pci_msix_update(struct pci_function *fn);
void pci_msix_reset(struct pci_function *fn);
void pci_msix_fini(struct pci_function *fn);

#endif
