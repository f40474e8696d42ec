/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ICH9 LPC bridge, 8086:2918 at 00:1f.0 (Intel I/O Controller Hub 9 data sheet, 13.1): places
 * the ACPI power management block (pm.h), routes PCI interrupts, and has the ports of reset control
 * (0xcf9) and APM (0xb2, 0xb3).
 */
#ifndef HULL_DEV_LPC_H
#define HULL_DEV_LPC_H

#include "dev/dev.h"
#include "dev/pm.h"

/* Values that the guest writes to port 0xb2 (FADT: SMI_CMD, ACPI_ENABLE, ACPI_DISABLE). */
#define LPC_PORT_SMI_CMD     0xb2u
#define LPC_SMI_ACPI_ENABLE  2u
#define LPC_SMI_ACPI_DISABLE 3u

extern const struct state_table lpc_state_table;

int lpc_new(struct device **dev, const struct dev_env *env, struct err *err);

/*
 * For struct pci_bus_config.pirq_set. pirq_ctx is the address of the variable that lpc_new() fills
 * (a struct device **), NULL before: the PCI bus is made before its bridges. PIRQ n goes to input
 * 16 + n of the IOAPIC, and to the PIC where the routing registers say so.
 */
void lpc_pirq_set(void *ctx, unsigned pirq, bool level);

/*
 * What firmware does to the bridge, for direct kernel boot, after each reset: the PM block at
 * pm_base, a multiple of 128, its interrupt at input PM_SCI_GSI, ACPI mode on, PIRQs to the PIC
 * inputs of pci_pirq_isa_irq(). No vCPU runs.
 */
void lpc_enable_pm(struct device *dev, uint16_t pm_base);

/* For rtc_on_alarm(): the clock's alarm is an event of ACPI's fixed hardware. Any thread, with the
 * clock's lock held. */
void lpc_rtc_alarm(void *dev);

/* Press the power button: ACPI's event where the guest listens to it. Any thread. */
void lpc_power_button(struct device *dev);

#endif
