/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/pm.h"

#include <stddef.h>

#include "base/units.h"

/* PM1 status and enable (ACPI 6.4, 4.8.4.1). */
#define PM1_TIMER        (1u << 0)
#define PM1_GLOBAL       (1u << 5)
#define PM1_POWER_BUTTON (1u << 8)
#define PM1_RTC          (1u << 10)
#define PM1_PCIE_WAKE    (1u << 14)
#define PM1_ENABLE_BITS  (PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_RTC | PM1_PCIE_WAKE)
#define PM1_SCI_BITS     (PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON) /* and PM1_RTC, by itself */

/* PM1 control (4.8.4.2.1). */
#define PM1_CONTROL_SCI_EN     (1u << 0)
#define PM1_CONTROL_BM_RLD     (1u << 1)
#define PM1_CONTROL_SLP_TYP(c) (((c) >> 10) & 7)
#define PM1_CONTROL_SLP_EN     (1u << 13)
#define PM1_CONTROL_KEPT       (PM1_CONTROL_SCI_EN | PM1_CONTROL_BM_RLD | 7u << 10)

/* SMI control (ICH9, 13.8.3.7). APMC_EN tells firmware that SMM is set up already: there is none,
 * and nothing for it to do. BIOS_RLS hands the global lock to the operating system. */
#define SMI_ENABLE_RESET    (1u << 5)
#define SMI_ENABLE_BIOS_RLS (1u << 7)

#define OFFSET_SMI_ENABLE   0x30u
#define OFFSET_SMI_STATUS   0x34u

/* The status bit is set whenever the top bit of the timer changes (ACPI 6.4, 4.8.2.1). */
#define TIMER_HALF_BITS (PM_TIMER_BITS - 1)

static const struct state_field pm_fields[] = {
    STATE_U16(struct pm_state, pm1_status, 1, 0, "PM1 status register"),
    STATE_U16(struct pm_state, pm1_enable, 1, 0, "PM1 enable register"),
    STATE_U16(struct pm_state, pm1_control, 1, 0, "PM1 control register"),
    STATE_U8(struct pm_state, gpe0_status, 1, 0, "General-purpose event 0 status"),
    STATE_U8(struct pm_state, gpe0_enable, 1, 0, "General-purpose event 0 enable"),
    STATE_U8(struct pm_state, rtc_status, 1, 0, "PM1 status register, RTC alarm bit"),
    STATE_PAD(struct pm_state, pad_),
    STATE_U32(struct pm_state, smi_enable, 1, SMI_ENABLE_RESET, "SMI control and enable register"),
    STATE_U32(struct pm_state, smi_status, 1, 0, "SMI status register"),
    STATE_U64(struct pm_state, timer_offset, 1, 0, "PM timer ticks ahead of the host's clock"),
    STATE_U64(struct pm_state, timer_seen, 1, 0, "PM timer ticks when the status was last right"),
};
const struct state_table pm_state_table = STATE_TABLE("acpi-pm", struct pm_state, 1, pm_fields);

static uint64_t timer_ticks(const struct pm *pm)
{
    uint64_t now = device_now_ns(pm->dev);

    return now / NS_PER_SEC * PM_TIMER_HZ + now % NS_PER_SEC * PM_TIMER_HZ / NS_PER_SEC +
           pm->state->timer_offset;
}

static void timer_catch_up(struct pm *pm)
{
    uint64_t now = timer_ticks(pm);

    if (now >> TIMER_HALF_BITS != pm->state->timer_seen >> TIMER_HALF_BITS)
        pm->state->pm1_status |= PM1_TIMER;
    pm->state->timer_seen = now;
}

/* A host timer is needed only where the next overflow would raise the interrupt. */
static void timer_schedule(struct pm *pm)
{
    uint64_t seen = pm->state->timer_seen, left;

    if (!(pm->state->pm1_enable & PM1_TIMER) || (pm->state->pm1_status & PM1_TIMER)) {
        device_timer_cancel(&pm->timer);
        return;
    }
    left = (((seen >> TIMER_HALF_BITS) + 1) << TIMER_HALF_BITS) - seen;
    device_timer_arm(&pm->timer, device_now_ns(pm->dev) + left * NS_PER_SEC / PM_TIMER_HZ + 1);
}

/* The alarm's status, less what is to be cleared, and what it does. */
static bool rtc_status(struct pm *pm, bool clear)
{
    const struct pm_state *state = pm->state;
    bool status;

    pthread_mutex_lock(&pm->rtc_lock);
    if (clear)
        pm->state->rtc_status = 0;
    status = state->rtc_status;
    pm->rtc_enabled = (state->pm1_enable & PM1_RTC) && (state->pm1_control & PM1_CONTROL_SCI_EN);
    irq_line_set(&pm->rtc_sci, status && pm->rtc_enabled);
    pthread_mutex_unlock(&pm->rtc_lock);
    return status;
}

void pm_rtc_alarm(struct pm *pm)
{
    pthread_mutex_lock(&pm->rtc_lock);
    pm->state->rtc_status = 1;
    irq_line_set(&pm->rtc_sci, pm->rtc_enabled);
    pthread_mutex_unlock(&pm->rtc_lock);
}

static void pm_update(struct pm *pm)
{
    const struct pm_state *state = pm->state;
    bool event;

    timer_catch_up(pm);
    event = state->pm1_status & state->pm1_enable & PM1_SCI_BITS;
    for (unsigned i = 0; i < sizeof(state->gpe0_status); i++)
        event = event || (state->gpe0_status[i] & state->gpe0_enable[i]);
    irq_line_set(&pm->sci, event && (state->pm1_control & PM1_CONTROL_SCI_EN));
    rtc_status(pm, false);
    timer_schedule(pm);
}

static void pm_timer_fired(struct device_timer *timer)
{
    pm_update(CONTAINER_OF(timer, struct pm, timer));
}

static void pm_sleep(struct pm *pm, unsigned type)
{
    if (type == PM_SLP_TYP_S5 || type == 0 || type == 7)
        pm->events->power_off(pm->events->ctx);
    else
        log_guest(&pm->dev->log_budget, pm->dev->name, "guest asks for unknown sleep type %u",
                  type);
}

/* --- registers --- */

static uint32_t read_doubleword(struct pm *pm, uint64_t offset)
{
    const struct pm_state *state = pm->state;

    switch (offset) {
    case PM_OFFSET_EVENT:
        timer_catch_up(pm);
        return state->pm1_status | (rtc_status(pm, false) ? PM1_RTC : 0) |
               (uint32_t)state->pm1_enable << 16;
    case PM_OFFSET_CONTROL:
        return state->pm1_control;
    case PM_OFFSET_TIMER:
        return (uint32_t)timer_ticks(pm);
    case PM_OFFSET_GPE0:
    case PM_OFFSET_GPE0 + 4:
        return load_le32(&state->gpe0_status[offset - PM_OFFSET_GPE0]);
    case PM_OFFSET_GPE0 + 8:
    case PM_OFFSET_GPE0 + 12:
        return load_le32(&state->gpe0_enable[offset - PM_OFFSET_GPE0 - 8]);
    case OFFSET_SMI_ENABLE:
        return state->smi_enable;
    case OFFSET_SMI_STATUS:
        return state->smi_status;
    default:
        return 0;
    }
}

static uint64_t pm_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct pm *pm = CONTAINER_OF(range, struct pm, range);
    uint64_t aligned = offset & ~3ULL, value = read_doubleword(pm, aligned);

    if (offset + size > aligned + 4)
        value |= (uint64_t)read_doubleword(pm, aligned + 4) << 32;
    return value >> ((offset - aligned) * 8);
}

/* Replace byte `index` of a register. */
static uint32_t with_byte(uint32_t value, uint64_t index, uint8_t byte)
{
    return (value & ~(0xffu << (index * 8))) | (uint32_t)byte << (index * 8);
}

static void write_byte(struct pm *pm, uint64_t offset, uint8_t byte)
{
    struct pm_state *state = pm->state;
    uint64_t index = offset % 4;
    uint32_t value;

    switch (offset - index) {
    case PM_OFFSET_EVENT:
        if (index < 2) {
            state->pm1_status &= (uint16_t) ~(byte << (index * 8));
            rtc_status(pm, byte << (index * 8) & PM1_RTC);
        } else {
            state->pm1_enable = with_byte(state->pm1_enable, index - 2, byte) & PM1_ENABLE_BITS;
        }
        break;
    case PM_OFFSET_CONTROL:
        if (index >= 2)
            break;
        value = with_byte(state->pm1_control, index, byte);
        state->pm1_control = value & PM1_CONTROL_KEPT;
        if (value & PM1_CONTROL_SLP_EN)
            pm_sleep(pm, PM1_CONTROL_SLP_TYP(value));
        break;
    case PM_OFFSET_GPE0:
    case PM_OFFSET_GPE0 + 4:
        state->gpe0_status[offset - PM_OFFSET_GPE0] &= (uint8_t)~byte;
        break;
    case PM_OFFSET_GPE0 + 8:
    case PM_OFFSET_GPE0 + 12:
        state->gpe0_enable[offset - PM_OFFSET_GPE0 - 8] = byte;
        break;
    case OFFSET_SMI_ENABLE:
        value = with_byte(state->smi_enable, index, byte);
        state->smi_enable = value & ~SMI_ENABLE_BIOS_RLS;
        if (value & SMI_ENABLE_BIOS_RLS)
            state->pm1_status |= PM1_GLOBAL;
        break;
    case OFFSET_SMI_STATUS:
        state->smi_status &= ~((uint32_t)byte << (index * 8));
        break;
    default:
        break;
    }
}

static void pm_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct pm *pm = CONTAINER_OF(range, struct pm, range);

    timer_catch_up(pm);
    for (unsigned i = 0; i < size; i++)
        write_byte(pm, offset + i, (uint8_t)(value >> (i * 8)));
    pm_update(pm);
}

static const struct bus_range_ops pm_range_ops = {
    .read = pm_read,
    .write = pm_write,
    .max_size = 4,
};

/* --- the bridge's side --- */

void pm_init(struct pm *pm, struct device *dev, struct pm_state *state, const struct dev_env *env)
{
    pm->dev = dev;
    pm->state = state;
    pm->bus = env->bus;
    pm->irq = env->irq;
    pm->events = env->events;
    pm->range = (struct bus_range){
        .ops = &pm_range_ops, .dev = dev, .space = BUS_PIO, .len = PM_BLOCK_BYTES};
    irq_line_init(&pm->sci, env->irq, PM_SCI_GSI);
    irq_line_init(&pm->rtc_sci, env->irq, PM_SCI_GSI);
    pthread_mutex_init(&pm->rtc_lock, NULL);
    device_timer_init(&pm->timer, dev, pm_timer_fired);
}

void pm_fini(struct pm *pm)
{
    bus_unmap(pm->bus, &pm->range);
    device_timer_cancel(&pm->timer);
    irq_line_set(&pm->sci, false);
    irq_line_set(&pm->rtc_sci, false);
    pthread_mutex_destroy(&pm->rtc_lock);
}

void pm_reset(struct pm *pm)
{
    pm->state->timer_offset -= timer_ticks(pm);
    pm->state->timer_seen = 0;
    pm_update(pm);
}

void pm_place(struct pm *pm, uint16_t base)
{
    if (pm->range.mapped && pm->range.base == base)
        return;
    bus_unmap(pm->bus, &pm->range);
    pm->range.base = base;
    if (base != 0 && bus_map(pm->bus, &pm->range) < 0)
        log_guest(&pm->dev->log_budget, pm->dev->name, "PM block cannot be mapped at port 0x%x",
                  base);
}

void pm_set_sci(struct pm *pm, unsigned gsi)
{
    if (pm->sci.gsi == gsi)
        return;
    irq_line_set(&pm->sci, false);
    irq_line_init(&pm->sci, pm->irq, gsi);
    pthread_mutex_lock(&pm->rtc_lock);
    irq_line_set(&pm->rtc_sci, false);
    irq_line_init(&pm->rtc_sci, pm->irq, gsi);
    pthread_mutex_unlock(&pm->rtc_lock);
    pm_update(pm);
}

void pm_set_acpi(struct pm *pm, bool on)
{
    if (on)
        pm->state->pm1_control |= PM1_CONTROL_SCI_EN;
    else
        pm->state->pm1_control &= (uint16_t)~PM1_CONTROL_SCI_EN;
    pm_update(pm);
}

void pm_press_power_button(struct pm *pm)
{
    pm->state->pm1_status |= PM1_POWER_BUTTON;
    pm_update(pm);
}

void pm_raise_gpe(struct pm *pm, unsigned gpe)
{
    if (gpe >= sizeof(pm->state->gpe0_status) * 8)
        return;
    pm->state->gpe0_status[gpe / 8] |= (uint8_t)(1u << (gpe % 8));
    pm_update(pm);
}
