/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The counter is not stepped: counter and counter_ns say what it was at some moment, and whatever
 * looks at it first catches up, which moves both on and finds the timers that matched in between. A
 * host timer runs only for the next match that would interrupt.
 */
#include "dev/hpet.h"

#include <errno.h>
#include <stdlib.h>

#include "base/units.h"

#define TICK_NS      10u
#define NS_TO_FS     1000000ULL
#define CAPABILITIES ((uint64_t)TICK_NS * NS_TO_FS << 32 | HPET_BLOCK_ID)

/* Registers (IA-PC HPET 1.0a, table 2). */
#define REG_CAPABILITIES 0x000u
#define REG_CONFIG       0x010u
#define REG_STATUS       0x020u
#define REG_COUNTER      0x0f0u
#define REG_TIMERS       0x100u
#define TIMER_BYTES      0x20u
#define TIMER_CONFIG     0x00u
#define TIMER_COMPARATOR 0x08u

#define CONFIG_ENABLE    (1u << 0)
#define CONFIG_LEGACY    (1u << 1)
#define CONFIG_BITS      (CONFIG_ENABLE | CONFIG_LEGACY)

/* Timer configuration and capabilities (2.3.8). */
#define TIMER_LEVEL       (1u << 1)
#define TIMER_INTERRUPT   (1u << 2)
#define TIMER_PERIODIC    (1u << 3)
#define TIMER_CAN_PERIOD  (1u << 4)
#define TIMER_CAN_64      (1u << 5)
#define TIMER_VALUE_SET   (1u << 6)
#define TIMER_32          (1u << 8)
#define TIMER_ROUTE_SHIFT 9
#define TIMER_ROUTE       (31u << TIMER_ROUTE_SHIFT)
#define TIMER_WRITABLE                                                                             \
    (TIMER_LEVEL | TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_VALUE_SET | TIMER_32 | TIMER_ROUTE)

/* The inputs that are the IOAPIC's alone: those below reach the PIC as well. */
#define ROUTES             0x00ff0000u
#define TIMER_CAPABILITIES ((uint64_t)ROUTES << 32 | TIMER_CAN_PERIOD | TIMER_CAN_64)

#define LEGACY_TIMERS      2
#define GSI_NONE           UINT32_MAX

#define MIN_PERIOD_NS      ((uint64_t)HPET_MIN_PERIOD_TICKS * TICK_NS)
/* What is farther off than a hundred years need not be waited for. */
#define WAIT_TICKS_MAX (1ULL << 58)

struct hpet_timer_state {
    uint64_t config;
    uint64_t comparator;
    uint64_t period;
};

struct hpet_state {
    uint64_t config;
    uint64_t status;
    uint64_t counter;
    uint64_t counter_ns;
    struct hpet_timer_state timer[HPET_TIMERS];
};

static const struct state_field timer_fields[] = {
    STATE_U64(struct hpet_timer_state, config, 1, 0, "Configuration, without capabilities"),
    STATE_U64(struct hpet_timer_state, comparator, 1, UINT64_MAX, "Comparator: the next match"),
    STATE_U64(struct hpet_timer_state, period, 1, 0, "Period: what was written to the comparator"),
};
static const struct state_table timer_table =
    STATE_TABLE("hpet-timer", struct hpet_timer_state, 1, timer_fields);

static const struct state_field hpet_fields[] = {
    STATE_U64(struct hpet_state, config, 1, 0, "General configuration register"),
    STATE_U64(struct hpet_state, status, 1, 0, "General interrupt status register"),
    STATE_U64(struct hpet_state, counter, 1, 0, "Main counter, when last looked at"),
    STATE_U64(struct hpet_state, counter_ns, 1, 0,
              "The machine's clock then; 0 while it is halted"),
    STATE_STRUCT(struct hpet_state, timer, struct hpet_timer_state, 1, &timer_table, "Timers"),
};
const struct state_table hpet_state_table = STATE_TABLE("hpet", struct hpet_state, 1, hpet_fields);

struct hpet {
    struct device dev; /* first */
    struct hpet_state state;
    struct bus *bus;
    struct irq_router *irq;
    struct bus_range range;
    struct device_timer timer;
    struct irq_line lines[HPET_TIMERS];
    uint32_t gsis[HPET_TIMERS]; /* where the lines lead; GSI_NONE: nowhere */
    bool replacing;             /* the PIT is disconnected */
};

/* --- interrupts --- */

static bool is_enabled(const struct hpet *hpet)
{
    return hpet->state.config & CONFIG_ENABLE;
}

/* Both bits are needed (2.3.5). */
static bool is_legacy(const struct hpet *hpet)
{
    return (hpet->state.config & CONFIG_BITS) == CONFIG_BITS;
}

static uint32_t gsi_of(const struct hpet *hpet, unsigned n)
{
    static const uint32_t legacy[LEGACY_TIMERS] = {0, 8};
    unsigned route = (hpet->state.timer[n].config & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT;

    if (n < LEGACY_TIMERS && is_legacy(hpet))
        return legacy[n];
    return ROUTES >> route & 1 ? route : GSI_NONE;
}

static void set_line(struct hpet *hpet, unsigned n, bool level)
{
    if (hpet->gsis[n] != GSI_NONE)
        irq_line_set(&hpet->lines[n], level);
}

/* An edge. A legacy input stays high until the next one: the PIC forgets a request that goes before
 * it is acknowledged (8259A data sheet, "Edge and level triggered modes"). */
static void make_edge(struct hpet *hpet, unsigned n)
{
    set_line(hpet, n, false);
    set_line(hpet, n, true);
    if (hpet->gsis[n] != 0 && hpet->gsis[n] != 8)
        set_line(hpet, n, false);
}

static void connect_pit(struct hpet *hpet, bool on)
{
    struct engine_vm *vm = hpet->irq->vm;
    int code = vm->ops->pit_connect(vm, on);

    if (code < 0)
        log_warn(hpet->dev.name, "%s the interval timer: %s", on ? "connect" : "disconnect",
                 strerror(-code));
    hpet->replacing = !on;
}

/* Lines to where the registers say. */
static void update_routes(struct hpet *hpet)
{
    bool legacy = is_legacy(hpet);

    if (legacy && !hpet->replacing)
        connect_pit(hpet, false);
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        uint32_t gsi = gsi_of(hpet, n);
        struct irq_line *line = &hpet->lines[n];
        if (gsi == hpet->gsis[n])
            continue;
        set_line(hpet, n, false);
        if (hpet->gsis[n] != GSI_NONE)
            irq_line_restore(line);
        hpet->gsis[n] = gsi;
        if (gsi == GSI_NONE)
            continue;
        irq_line_init(line, hpet->irq, gsi);
        if (n < LEGACY_TIMERS && legacy)
            irq_line_replace(line);
    }
    if (!legacy && hpet->replacing)
        connect_pit(hpet, true);
}

static void update_lines(struct hpet *hpet)
{
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        uint64_t config = hpet->state.timer[n].config;
        bool on = is_enabled(hpet) && (config & TIMER_INTERRUPT);
        if (config & TIMER_LEVEL)
            set_line(hpet, n, on && (hpet->state.status >> n & 1));
        else if (!on)
            set_line(hpet, n, false);
    }
}

/* --- time --- */

static uint64_t width_mask(const struct hpet_timer_state *timer)
{
    return timer->config & TIMER_32 ? UINT32_MAX : UINT64_MAX;
}

/* Ticks after `counter` to the one before the next match, which is at least one tick away. */
static uint64_t ticks_before_match(const struct hpet_timer_state *timer, uint64_t counter)
{
    return (timer->comparator - counter - 1) & width_mask(timer);
}

/*
 * Did the timer match while the counter went on by so many ticks? A periodic timer then waits for
 * the next match that is still to come (2.3.9.2.2); those that went by unseen are one. A one-shot
 * timer keeps its comparator, and matches again when the counter has wrapped around (2.3.9.2.1).
 */
static bool timer_advance(struct hpet_timer_state *timer, uint64_t counter, uint64_t ticks)
{
    uint64_t before = ticks_before_match(timer, counter), mask = width_mask(timer);
    uint64_t period = timer->period & mask;

    if (ticks <= before)
        return false;
    if ((timer->config & TIMER_PERIODIC) && period) {
        uint64_t matches = 1 + (ticks - before - 1) / period;
        timer->comparator = (timer->comparator + matches * period) & mask;
    }
    return true;
}

/* The status bit is that of level-triggered timers, with or without their interrupt (2.3.6). */
static void catch_up(struct hpet *hpet)
{
    struct hpet_state *state = &hpet->state;
    uint64_t now, counter = state->counter, ticks;

    if (!is_enabled(hpet))
        return;
    now = device_now_ns(&hpet->dev);
    ticks = now > state->counter_ns ? (now - state->counter_ns) / TICK_NS : 0;
    state->counter += ticks;
    state->counter_ns += ticks * TICK_NS;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        struct hpet_timer_state *timer = &state->timer[n];
        if (!timer_advance(timer, counter, ticks))
            continue;
        if (timer->config & TIMER_LEVEL)
            state->status |= 1u << n;
        else if (timer->config & TIMER_INTERRUPT)
            make_edge(hpet, n);
    }
}

/* When to look next for a timer's sake, UINT64_MAX: never. */
static uint64_t timer_deadline(const struct hpet *hpet, unsigned n)
{
    const struct hpet_timer_state *timer = &hpet->state.timer[n];
    uint64_t period = timer->period & width_mask(timer), before, soonest;

    if (!(timer->config & TIMER_INTERRUPT) ||
        ((timer->config & TIMER_LEVEL) && (hpet->state.status >> n & 1)))
        return UINT64_MAX;
    before = ticks_before_match(timer, hpet->state.counter);
    if (before >= WAIT_TICKS_MAX)
        return UINT64_MAX;
    soonest = hpet->state.counter_ns + (before + 1) * TICK_NS;
    /* Nobody gets more than the host can give. */
    if ((timer->config & TIMER_PERIODIC) && period && period < HPET_MIN_PERIOD_TICKS &&
        soonest < hpet->state.counter_ns + MIN_PERIOD_NS)
        soonest = hpet->state.counter_ns + MIN_PERIOD_NS;
    return soonest;
}

static void schedule(struct hpet *hpet)
{
    uint64_t next = UINT64_MAX;

    for (unsigned n = 0; is_enabled(hpet) && n < HPET_TIMERS; n++) {
        uint64_t deadline = timer_deadline(hpet, n);
        next = deadline < next ? deadline : next;
    }
    device_timer_arm(&hpet->timer, next);
}

static void update(struct hpet *hpet)
{
    update_routes(hpet);
    update_lines(hpet);
    schedule(hpet);
}

static void hpet_fired(struct device_timer *timer)
{
    struct hpet *hpet = CONTAINER_OF(timer, struct hpet, timer);

    catch_up(hpet);
    update(hpet);
}

/* --- registers --- */

static uint64_t timer_read(const struct hpet_timer_state *timer, unsigned reg)
{
    switch (reg) {
    case TIMER_CONFIG:
        return timer->config | TIMER_CAPABILITIES;
    case TIMER_COMPARATOR:
        return timer->comparator;
    default: /* FSB route, and what is not there */
        return 0;
    }
}

/* One register, of 8 bytes. */
static uint64_t register_read(const struct hpet *hpet, unsigned reg)
{
    const struct hpet_state *state = &hpet->state;
    unsigned n = (reg - REG_TIMERS) / TIMER_BYTES;

    switch (reg) {
    case REG_CAPABILITIES:
        return CAPABILITIES;
    case REG_CONFIG:
        return state->config;
    case REG_STATUS:
        return state->status;
    case REG_COUNTER:
        return state->counter;
    default:
        if (reg >= REG_TIMERS && n < HPET_TIMERS)
            return timer_read(&state->timer[n], reg % TIMER_BYTES);
        return 0;
    }
}

static void write_config(struct hpet *hpet, uint64_t value)
{
    bool was_enabled = is_enabled(hpet);

    hpet->state.config = value & CONFIG_BITS;
    if (is_enabled(hpet) != was_enabled)
        hpet->state.counter_ns = was_enabled ? 0 : device_now_ns(&hpet->dev);
}

static void write_timer_config(struct hpet *hpet, unsigned n, uint64_t value)
{
    struct hpet_timer_state *timer = &hpet->state.timer[n];
    unsigned route = (value & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT;

    /* An input that the timer cannot have does not read back as it was written (2.3.8). */
    if (!(ROUTES >> route & 1))
        value &= ~(uint64_t)TIMER_ROUTE;
    if (!(value & TIMER_LEVEL))
        hpet->state.status &= ~(1ULL << n);
    if ((value ^ timer->config) & TIMER_LEVEL)
        set_line(hpet, n, false);
    timer->config = value & TIMER_WRITABLE;
    timer->comparator &= width_mask(timer);
    timer->period &= width_mask(timer);
}

/* Bits of `bits` from value, the others from old. */
static uint64_t merge(uint64_t old, uint64_t value, uint64_t bits)
{
    return (old & ~bits) | (value & bits);
}

/* The period of a periodic timer, and the next match only where software asks for it (2.3.8,
 * Tn_VAL_SET_CNF). */
static void write_comparator(struct hpet_timer_state *timer, uint64_t value, uint64_t bits)
{
    if (!(timer->config & TIMER_PERIODIC) || (timer->config & TIMER_VALUE_SET))
        timer->comparator = merge(timer->comparator, value, bits) & width_mask(timer);
    timer->period = merge(timer->period, value, bits) & width_mask(timer);
    timer->config &= ~(uint64_t)TIMER_VALUE_SET;
}

/* The bits of a register that are written. */
static void register_write(struct hpet *hpet, unsigned reg, uint64_t value, uint64_t bits)
{
    struct hpet_state *state = &hpet->state;
    unsigned n = (reg - REG_TIMERS) / TIMER_BYTES;

    switch (reg) {
    case REG_CONFIG:
        write_config(hpet, merge(state->config, value, bits));
        return;
    case REG_STATUS:
        state->status &= ~(value & bits);
        return;
    case REG_COUNTER:
        state->counter = merge(state->counter, value, bits);
        return;
    default:
        break;
    }
    if (reg < REG_TIMERS || n >= HPET_TIMERS)
        return;
    if (reg % TIMER_BYTES == TIMER_CONFIG)
        write_timer_config(hpet, n, merge(state->timer[n].config, value, bits));
    else if (reg % TIMER_BYTES == TIMER_COMPARATOR)
        write_comparator(&state->timer[n], value, bits);
}

static uint64_t hpet_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct hpet *hpet = CONTAINER_OF(range, struct hpet, range);
    unsigned reg = (unsigned)offset & ~7u, shift = (offset & 7) * 8;
    uint64_t value;

    catch_up(hpet);
    update_lines(hpet);
    value = register_read(hpet, reg) >> shift;
    if ((offset & 7) + size > 8)
        value |= register_read(hpet, reg + 8) << (64 - shift);
    return value;
}

static void hpet_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct hpet *hpet = CONTAINER_OF(range, struct hpet, range);
    unsigned reg = (unsigned)offset & ~7u, shift = (offset & 7) * 8;
    uint64_t bits = size < 8 ? (1ULL << (size * 8)) - 1 : UINT64_MAX;

    catch_up(hpet);
    register_write(hpet, reg, value << shift, bits << shift);
    if ((offset & 7) + size > 8)
        register_write(hpet, reg + 8, value >> (64 - shift), bits >> (64 - shift));
    update(hpet);
}

static const struct bus_range_ops hpet_range_ops = {
    .read = hpet_read,
    .write = hpet_write,
    .max_size = 8,
};

/* --- the device --- */

static void hpet_reset(struct device *dev)
{
    update(CONTAINER_OF(dev, struct hpet, dev));
}

static void hpet_fini(struct device *dev)
{
    struct hpet *hpet = CONTAINER_OF(dev, struct hpet, dev);

    bus_unmap(hpet->bus, &hpet->range);
    hpet->state.config = 0;
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        hpet->state.timer[n].config = 0;
    update(hpet);
    free(hpet);
}

static const struct device_ops hpet_ops = {
    .reset = hpet_reset,
    .fini = hpet_fini,
};

int hpet_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    struct hpet *hpet = calloc(1, sizeof(*hpet));
    int rc;

    if (!hpet)
        return err_errno(err, ENOMEM, "cannot make the HPET");
    device_init(&hpet->dev, &hpet_ops, &hpet_state_table, &hpet->state, env->loop, "hpet");
    hpet->bus = env->bus;
    hpet->irq = env->irq;
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        hpet->gsis[n] = GSI_NONE;
    device_timer_init(&hpet->timer, &hpet->dev, hpet_fired);
    hpet->range = (struct bus_range){.ops = &hpet_range_ops,
                                     .dev = &hpet->dev,
                                     .space = BUS_MMIO,
                                     .base = HPET_BASE,
                                     .len = HPET_BYTES};
    rc = bus_map(env->bus, &hpet->range);
    if (rc < 0) {
        device_fini(&hpet->dev);
        return err_errno(err, rc, "cannot map the HPET");
    }
    *dev = &hpet->dev;
    return 0;
}
