/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/lpc.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/units.h"

#define LPC_PMBASE         0x40u /* 13.1.14 */
#define LPC_ACPI_CNTL      0x44u /* 13.1.15 */
#define ACPI_CNTL_ENABLE   0x80u
#define ACPI_CNTL_SCI_MASK 0x07u
#define LPC_PIRQ_A         0x60u /* 13.1.18 */
#define LPC_PIRQ_E         0x68u /* 13.1.20 */
#define PIRQ_ROUTE_OFF     0x80u
#define LPC_RCBA           0xf0u /* 13.1.37 */
#define RCBA_ENABLE        1u
#define RCBA_ADDRESS       0xffffc000u
#define RCBA_BYTES         0x4000u

/* Chipset configuration registers behind RCBA (10.1.75): the watchdog cannot reset the machine. */
#define RCBA_GCS              0x3410u
#define GCS_NO_REBOOT         0x20u

#define RESET_CONTROL_PORT    0xcf9u /* 13.7.5 */
#define RESET_CONTROL_RST_CPU 0x04u
#define RESET_CONTROL_BITS    0x0eu

#define PIRQ_COUNT            8
#define PIRQ_FIRST_GSI        16

/* Name, offset, width, value after reset, writable bits, bits cleared by 1. The bridge
 * always decodes and masters the bus (13.1.3). */
static const struct pci_register lpc_registers[] = {
    {"PCICMD",         0x04,          2, 0x0007,     0x0140,                     0},
    {"PMBASE",         LPC_PMBASE,    4, 1,          0xff80,                     0},
    {"ACPI_CNTL",      LPC_ACPI_CNTL, 1, 0,          0x87,                       0},
    {"GPIOBASE",       0x48,          4, 1,          0xffc0,                     0},
    {"GC",             0x4c,          1, 0,          0x11,                       0},
    {"PIRQ[A-D]_ROUT", LPC_PIRQ_A,    4, 0x80808080, 0x8f8f8f8f,                 0},
    {"SIRQ_CNTL",      0x64,          1, 0x10,       0xff,                       0},
    {"PIRQ[E-H]_ROUT", LPC_PIRQ_E,    4, 0x80808080, 0x8f8f8f8f,                 0},
    {"LPC_I/O_DEC",    0x80,          2, 0,          0x1377,                     0},
    {"LPC_EN",         0x82,          2, 0,          0x3f0f,                     0},
    {"GEN1_DEC",       0x84,          4, 0,          0x00fcfffd,                 0},
    {"GEN2_DEC",       0x88,          4, 0,          0x00fcfffd,                 0},
    {"GEN3_DEC",       0x8c,          4, 0,          0x00fcfffd,                 0},
    {"GEN4_DEC",       0x90,          4, 0,          0x00fcfffd,                 0},
    {"GEN_PMCON_1",    0xa0,          2, 0,          0x06bf,                     0},
    {"GEN_PMCON_3",    0xa4,          1, 0,          0xf9,                       0},
    {"BIOS_CNTL",      0xdc,          1, 0,          0x0d,                       0},
    {"RCBA",           LPC_RCBA,      4, 0,          RCBA_ADDRESS | RCBA_ENABLE, 0},
};

struct lpc_state {
    struct pci_state pci;
    struct pm_state pm;
    uint8_t reset_control;
    uint8_t apm_control;
    uint8_t apm_status;
    uint8_t pad_[5];
};

static const struct state_field lpc_fields[] = {
    STATE_STRUCT(struct lpc_state, pci, struct pci_state, 1, &pci_state_table,
                 "Configuration space of 00:1f.0"),
    STATE_STRUCT(struct lpc_state, pm, struct pm_state, 1, &pm_state_table, "ACPI block"),
    STATE_U8(struct lpc_state, reset_control, 1, 0, "Reset control register (port 0xcf9)"),
    STATE_U8(struct lpc_state, apm_control, 1, 0, "APM control port (0xb2)"),
    STATE_U8(struct lpc_state, apm_status, 1, 0, "APM status port (0xb3)"),
    STATE_PAD(struct lpc_state, pad_),
};
const struct state_table lpc_state_table = STATE_TABLE("ich9-lpc", struct lpc_state, 1, lpc_fields);

struct lpc {
    struct pci_function fn; /* first */
    struct lpc_state state;
    struct bus *bus;
    struct irq_router *irq;
    const struct dev_events *events;
    struct pm pm;
    struct bus_range apm, rcba, reset_control;

    /* PIRQs come in with the lock of the function that raises them held, so that this device's own
     * lock is not taken there. Below it in the lock order. */
    pthread_mutex_t route_lock;
    struct irq_line pirq[PIRQ_COUNT]; /* to the IOAPIC; the level is the PIRQ's */
    uint8_t pic_irq[PIRQ_COUNT];      /* where the PIC gets it; 0: nowhere */
};

/* --- PCI interrupts --- */

void lpc_pirq_set(void *ctx, unsigned pirq, bool level)
{
    struct device *dev = *(struct device **)ctx;
    struct lpc *lpc;

    if (!dev || pirq >= PIRQ_COUNT)
        return;
    lpc = CONTAINER_OF(dev, struct lpc, fn.dev);
    pthread_mutex_lock(&lpc->route_lock);
    if (lpc->pirq[pirq].level != level) {
        irq_line_set(&lpc->pirq[pirq], level);
        if (lpc->pic_irq[pirq])
            irq_pic_adjust(lpc->irq, lpc->pic_irq[pirq], level);
    }
    pthread_mutex_unlock(&lpc->route_lock);
}

/* IRQ 0, 1, 2, 8 and 13 are reserved in the routing registers. */
static uint8_t route_decode(uint8_t reg)
{
    const unsigned allowed = 0xdef8;
    unsigned irq = reg & 0x0f;

    return !(reg & PIRQ_ROUTE_OFF) && (allowed >> irq & 1) ? (uint8_t)irq : 0;
}

static void routes_update(struct lpc *lpc)
{
    pthread_mutex_lock(&lpc->route_lock);
    for (unsigned i = 0; i < PIRQ_COUNT; i++) {
        unsigned reg = i < 4 ? LPC_PIRQ_A + i : LPC_PIRQ_E + i - 4;
        uint8_t old = lpc->pic_irq[i], irq = route_decode(lpc->state.pci.config[reg]);

        if (irq == old)
            continue;
        lpc->pic_irq[i] = irq;
        if (lpc->pirq[i].level && old)
            irq_pic_adjust(lpc->irq, old, false);
        if (lpc->pirq[i].level && irq)
            irq_pic_adjust(lpc->irq, irq, true);
    }
    pthread_mutex_unlock(&lpc->route_lock);
}

/* --- placement of PM block and chipset registers --- */

static void pm_place_update(struct lpc *lpc)
{
    static const uint8_t sci_gsi[8] = {9, 10, 11, PM_SCI_GSI, 20, 21, PM_SCI_GSI, PM_SCI_GSI};
    uint8_t control = lpc->state.pci.config[LPC_ACPI_CNTL];
    uint16_t base = load_le16(&lpc->state.pci.config[LPC_PMBASE]) & 0xff80;

    pm_set_sci(&lpc->pm, sci_gsi[control & ACPI_CNTL_SCI_MASK]);
    pm_place(&lpc->pm, control & ACPI_CNTL_ENABLE ? base : 0);
}

static void rcba_update(struct lpc *lpc)
{
    uint32_t value = load_le32(&lpc->state.pci.config[LPC_RCBA]);
    uint32_t base = value & RCBA_ADDRESS;

    if (lpc->rcba.mapped && (value & RCBA_ENABLE) && lpc->rcba.base == base)
        return;
    bus_unmap(lpc->bus, &lpc->rcba);
    lpc->rcba.base = base;
    if ((value & RCBA_ENABLE) && bus_map(lpc->bus, &lpc->rcba) < 0)
        log_guest(&lpc->fn.dev.log_budget, lpc->fn.dev.name, "RCBA cannot be mapped at 0x%x", base);
}

static void lpc_config_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    struct lpc *lpc = CONTAINER_OF(fn, struct lpc, fn);

    (void)offset;
    (void)size;
    pm_place_update(lpc);
    routes_update(lpc);
    rcba_update(lpc);
}

/* --- ports --- */

/* What is not there reads zero. */
static uint64_t rcba_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    (void)range;
    for (unsigned i = 0; i < size; i++) {
        if (offset + i == RCBA_GCS)
            value |= (uint64_t)GCS_NO_REBOOT << (i * 8);
    }
    return value;
}

static const struct bus_range_ops rcba_ops = {.read = rcba_read, .max_size = 8};

/* A transition of RST_CPU from 0 to 1 resets; SYS_RST and FULL_RST choose how, which is all the
 * same here. */
static uint64_t reset_control_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    (void)offset;
    (void)size;
    return CONTAINER_OF(range, struct lpc, reset_control)->state.reset_control;
}

static void reset_control_write(struct bus_range *range, uint64_t offset, uint64_t value,
                                unsigned size)
{
    struct lpc *lpc = CONTAINER_OF(range, struct lpc, reset_control);
    bool was_set = lpc->state.reset_control & RESET_CONTROL_RST_CPU;

    (void)offset;
    (void)size;
    lpc->state.reset_control = value & RESET_CONTROL_BITS;
    if ((value & RESET_CONTROL_RST_CPU) && !was_set)
        lpc->events->reset(lpc->events->ctx);
}

static const struct bus_range_ops reset_control_ops = {
    .read = reset_control_read,
    .write = reset_control_write,
    .max_size = 1,
};

static uint64_t apm_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    const struct lpc_state *state = &CONTAINER_OF(range, struct lpc, apm)->state;

    (void)size;
    return offset == 0 ? state->apm_control : state->apm_status;
}

static void apm_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct lpc *lpc = CONTAINER_OF(range, struct lpc, apm);

    (void)size;
    if (offset != 0) {
        lpc->state.apm_status = (uint8_t)value;
        return;
    }
    lpc->state.apm_control = (uint8_t)value;
    if (value == LPC_SMI_ACPI_ENABLE || value == LPC_SMI_ACPI_DISABLE)
        pm_set_acpi(&lpc->pm, value == LPC_SMI_ACPI_ENABLE);
}

static const struct bus_range_ops apm_ops = {
    .read = apm_read,
    .write = apm_write,
    .max_size = 1,
};

/* --- the device --- */

static void lpc_reset(struct device *dev)
{
    struct lpc *lpc = CONTAINER_OF(dev, struct lpc, fn.dev);

    pci_function_reset(&lpc->fn);
    pm_reset(&lpc->pm); /* first: moving the SCI looks at the timer */
    lpc_config_written(&lpc->fn, 0, 0);
}

static void lpc_fini(struct device *dev)
{
    struct lpc *lpc = CONTAINER_OF(dev, struct lpc, fn.dev);

    bus_unmap(lpc->bus, &lpc->apm);
    bus_unmap(lpc->bus, &lpc->rcba);
    if (lpc->fn.bus)
        pci_bus_set_reset_port(lpc->fn.bus, NULL);
    pm_fini(&lpc->pm);
    pci_function_fini(&lpc->fn);
    pthread_mutex_destroy(&lpc->route_lock);
    free(lpc);
}

static const struct device_ops lpc_ops = {
    .reset = lpc_reset,
    .fini = lpc_fini,
};

static void lpc_init(struct lpc *lpc, const struct dev_env *env)
{
    static const struct pci_identity identity = {
        .vendor_id = 0x8086,
        .device_id = 0x2918,
        .subsystem_vendor_id = 0x1af4,
        .subsystem_id = 0x1100,
        .class_code = 0x060100, /* ISA bridge */
        .revision = 2,
    };
    struct device *dev = &lpc->fn.dev;

    device_init(dev, &lpc_ops, &lpc_state_table, &lpc->state, env->loop, "lpc");
    pci_function_init(&lpc->fn, &lpc->state.pci, &identity);
    pci_registers_add(&lpc->fn, lpc_registers, ARRAY_LEN(lpc_registers));
    lpc->fn.config_written = lpc_config_written;
    lpc->bus = env->bus;
    lpc->irq = env->irq;
    lpc->events = env->events;
    pthread_mutex_init(&lpc->route_lock, NULL);
    for (unsigned i = 0; i < PIRQ_COUNT; i++)
        irq_line_init(&lpc->pirq[i], env->irq, PIRQ_FIRST_GSI + i);
    pm_init(&lpc->pm, dev, &lpc->state.pm, env);
    lpc->apm = (struct bus_range){.ops = &apm_ops, .dev = dev, .base = LPC_PORT_SMI_CMD, .len = 2};
    lpc->rcba =
        (struct bus_range){.ops = &rcba_ops, .dev = dev, .space = BUS_MMIO, .len = RCBA_BYTES};
    lpc->reset_control = (struct bus_range){
        .ops = &reset_control_ops, .dev = dev, .base = RESET_CONTROL_PORT, .len = 1};
}

int lpc_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    struct lpc *lpc = calloc(1, sizeof(*lpc));
    int rc;

    if (!lpc)
        return err_errno(err, ENOMEM, "cannot make the LPC bridge");
    lpc_init(lpc, env);
    rc = pci_bus_plug(env->pci, &lpc->fn, PCI_DEVFN(0x1f, 0), err);
    if (rc == 0) {
        rc = bus_map(env->bus, &lpc->apm);
        if (rc < 0)
            err_errno(err, rc, "cannot map the APM ports");
    }
    if (rc < 0) {
        device_fini(&lpc->fn.dev);
        return rc;
    }
    pci_bus_set_reset_port(env->pci, &lpc->reset_control);
    device_reset(&lpc->fn.dev);
    *dev = &lpc->fn.dev;
    return 0;
}

void lpc_enable_pm(struct device *dev, uint16_t pm_base)
{
    struct lpc *lpc = CONTAINER_OF(dev, struct lpc, fn.dev);
    uint8_t *config = lpc->state.pci.config;

    device_lock(dev);
    store_le16(&config[LPC_PMBASE], (uint16_t)((pm_base & 0xff80) | 1));
    config[LPC_ACPI_CNTL] = ACPI_CNTL_ENABLE; /* SCI at PM_SCI_GSI */
    for (unsigned i = 0; i < PIRQ_COUNT; i++)
        config[i < 4 ? LPC_PIRQ_A + i : LPC_PIRQ_E + i - 4] = (uint8_t)pci_pirq_isa_irq(i);
    lpc_config_written(&lpc->fn, 0, 0);
    pm_set_acpi(&lpc->pm, true);
    device_unlock(dev);
}

void lpc_rtc_alarm(void *dev)
{
    pm_rtc_alarm(&CONTAINER_OF(dev, struct lpc, fn.dev)->pm);
}

void lpc_power_button(struct device *dev)
{
    struct lpc *lpc = CONTAINER_OF(dev, struct lpc, fn.dev);

    device_lock(dev);
    pm_press_power_button(&lpc->pm);
    device_unlock(dev);
}
