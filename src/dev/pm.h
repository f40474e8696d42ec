/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI fixed hardware as the ICH9 has it (ACPI 6.4, 4.8; Intel ICH9 data sheet, 13.8.3): PM1 event
 * and control registers, PM timer, GPE0. A part of the LPC bridge, which places it and under whose
 * lock it works.
 *
 *     +0x00 PM1a event block (4 bytes)   +0x04 PM1a control (2)   +0x08 PM timer (4)
 *     +0x20 GPE0 block (16 bytes)        +0x30 SMI control
 */
#ifndef HULL_DEV_PM_H
#define HULL_DEV_PM_H

#include "dev/dev.h"

#define PM_BLOCK_BYTES    0x80u
#define PM_OFFSET_EVENT   0x00u
#define PM_OFFSET_CONTROL 0x04u
#define PM_OFFSET_TIMER   0x08u
#define PM_OFFSET_GPE0    0x20u
#define PM_GPE0_BYTES     16u

/* Where the SCI goes after reset. */
#define PM_SCI_GSI 9u

/*
 * The timer is 32 bits wide, which the FADT's TMR_VAL_EXT says, though the ICH9's has 24: those
 * wrap every 4.7 seconds, and there are guests that compare without a thought of it (memtest86+
 * waits for a million reads when it meets one). It begins at 0.
 */
#define PM_TIMER_BITS 32u
#define PM_TIMER_HZ   3579545u

/*
 * SLP_TYP of the S5 state, for \_S5. 0 and 7 power off as well: firmware built for the usual
 * virtual q35 writes 0, and 7 is what the ICH9 itself calls soft-off.
 */
#define PM_SLP_TYP_S5 5u

struct pm_state {
    uint16_t pm1_status;
    uint16_t pm1_enable;
    uint16_t pm1_control;
    uint8_t gpe0_status[8];
    uint8_t gpe0_enable[8];
    uint8_t rtc_status; /* PM1 status's RTC bit: of pm.rtc_lock, not of the device's */
    uint8_t pad_[1];
    uint32_t smi_enable;
    uint32_t smi_status;
    uint64_t timer_offset;
    uint64_t timer_seen;
};

extern const struct state_table pm_state_table;

struct pm {
    struct device *dev;
    struct pm_state *state;
    struct bus *bus;
    struct irq_router *irq;
    const struct dev_events *events;
    struct bus_range range;
    struct irq_line sci;
    struct device_timer timer;

    /* The clock's alarm comes in with the clock's lock held, so that this device's own is not taken
     * there. Below it in the lock order. */
    pthread_mutex_t rtc_lock;
    struct irq_line rtc_sci; /* shares the input with sci */
    bool rtc_enabled;        /* the alarm's status interrupts */
};

/* dev is initialised; state lies in its state struct. */
void pm_init(struct pm *pm, struct device *dev, struct pm_state *state, const struct dev_env *env);
void pm_fini(struct pm *pm);

/* The rest with dev's lock held. */

/* After dev's state was reset. The block stays where pm_place() put it. */
void pm_reset(struct pm *pm);
/* base 0: nowhere. */
void pm_place(struct pm *pm, uint16_t base);
void pm_set_sci(struct pm *pm, unsigned gsi);
/* ACPI mode, PM1 control's SCI_EN. */
void pm_set_acpi(struct pm *pm, bool on);
void pm_press_power_button(struct pm *pm);
/* Without dev's lock: the real-time clock's alarm has interrupted (ICH9 data sheet, 13.8.3.1). */
void pm_rtc_alarm(struct pm *pm);
/* Bit `gpe` (0-63) of the GPE0 status: a general-purpose event happened. */
void pm_raise_gpe(struct pm *pm, unsigned gpe);

#endif
