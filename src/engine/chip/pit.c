/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/chip/pit.h"

#define PIT_HZ       1193182ULL
#define NS_PER_S     1000000000ULL
#define PORT_SPEAKER 0x61
#define PORT_CONTROL 0x43
#define SPEAKER_GATE 0x01
/* Counter 0 interrupts no more often than that: the host has other things to do. */
#define IRQ_MIN_NS   20000ULL
#define SPEAKER_MASK 0x0f  /* the NMI enables do nothing (ICH9 datasheet, 13.7.1) */
#define REFRESH_NS   15085 /* port 0x61 bit 4 toggles with the memory refresh of old */

static const struct state_field channel_fields[] = {
    STATE_U64(struct pit_channel, start_ns, 1, 0, "Time at which counting began"),
    STATE_U64(struct pit_channel, held_ticks, 1, 0, "Ticks since then, while the gate is low"),
    STATE_U32(struct pit_channel, reload, 1, 65536, "Count that was loaded"),
    STATE_U32(struct pit_channel, count, 1, 65536, "Count register"),
    STATE_U16(struct pit_channel, latch, 1, 0, "Latched count"),
    STATE_U8(struct pit_channel, latched, 1, 0, "Bytes of the latch still to be read"),
    STATE_U8(struct pit_channel, status, 1, 0, "Latched status"),
    STATE_U8(struct pit_channel, status_latched, 1, 0, "A status is latched"),
    STATE_U8(struct pit_channel, mode, 1, 3, "Mode, 0-5"),
    STATE_U8(struct pit_channel, access, 1, 3, "Access: 1 low byte, 2 high, 3 both"),
    STATE_U8(struct pit_channel, bcd, 1, 0, "Counts in BCD"),
    STATE_U8(struct pit_channel, write_low, 1, 0, "First of two bytes written"),
    STATE_U8(struct pit_channel, write_half, 1, 0, "The second byte is to be written"),
    STATE_U8(struct pit_channel, read_half, 1, 0, "The second byte is to be read"),
    STATE_U8(struct pit_channel, gate, 1, 1, "Gate input"),
    STATE_U8(struct pit_channel, written, 1, 0, "A count was written since the control word"),
    STATE_U8(struct pit_channel, null, 1, 1, "Null count: it has not been loaded yet"),
    STATE_U8(struct pit_channel, armed, 1, 0, "A count was loaded since the control word"),
    STATE_PAD(struct pit_channel, pad_),
};
static const struct state_table channel_table =
    STATE_TABLE("8254-counter", struct pit_channel, 1, channel_fields);

static const struct state_field pit_fields[] = {
    STATE_STRUCT(struct pit_state, channel, struct pit_channel, 1, &channel_table, "Counters"),
    STATE_U8(struct pit_state, speaker, 1, 0, "Port 0x61: speaker gate and data"),
    STATE_U8(struct pit_state, connected, 1, 1, "Counter 0 drives IRQ 0 (no HPET in its place)"),
    STATE_PAD(struct pit_state, pad_),
};
const struct state_table pit_table = STATE_TABLE("pit", struct pit_state, 1, pit_fields);

__extension__ typedef unsigned __int128 uint128;

static uint64_t ticks_of_ns(uint64_t ns)
{
    return (uint64_t)((uint128)ns * PIT_HZ / NS_PER_S);
}

/* The first nanosecond at which so many ticks have gone by. */
static uint64_t ns_of_ticks(uint64_t ticks)
{
    return (uint64_t)(((uint128)ticks * NS_PER_S + PIT_HZ - 1) / PIT_HZ);
}

/* Does a low gate stop the counter? In modes 1 and 5 it only triggers (table "Gate pin
 * operations"). */
static bool gate_counts(const struct pit_channel *c)
{
    return c->mode != 1 && c->mode != 5;
}

/* Ticks since the count was loaded. */
static uint64_t elapsed(const struct pit *pit, const struct pit_channel *c)
{
    if (!c->armed)
        return 0;
    if (!c->gate && gate_counts(c))
        return c->held_ticks;
    return ticks_of_ns(chip_clock_now(pit->clock) - c->start_ns);
}

/* --- what a counter shows --- */

/* Ticks of the high half of mode 3: an odd count has the longer one. */
static uint64_t high_half(uint64_t reload)
{
    return (reload + 1) / 2;
}

static bool output(const struct pit_channel *c, uint64_t t)
{
    switch (c->mode) {
    case 0:
        return c->armed && t >= c->reload;
    case 1:
        return !c->armed || t >= c->reload;
    case 2:
        return !c->armed || !c->gate || t % c->reload != c->reload - 1;
    case 3:
        return !c->armed || !c->gate || t % c->reload < high_half(c->reload);
    default: /* a strobe of one tick */
        return !c->armed || t != c->reload;
    }
}

static uint16_t to_bcd(uint32_t value)
{
    value %= 10000;
    return (uint16_t)(value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 |
                      value / 1000 << 12);
}

static uint16_t count_now(const struct pit *pit, const struct pit_channel *c)
{
    uint64_t t = elapsed(pit, c), modulus = c->bcd ? 10000 : 65536, count;
    switch (c->mode) {
    case 2:
        count = c->reload - t % c->reload;
        break;
    case 3: /* counts by two, in each half */
        t %= c->reload;
        if (t >= high_half(c->reload))
            t -= high_half(c->reload);
        count = (c->reload & ~1ULL) - 2 * t;
        break;
    default:
        count = (c->reload + modulus - t % modulus) % modulus;
        break;
    }
    return c->bcd ? to_bcd((uint32_t)count) : (uint16_t)count;
}

/* --- loading --- */

static void start(struct pit *pit, struct pit_channel *c)
{
    c->reload = c->count;
    c->start_ns = chip_clock_now(pit->clock);
    c->held_ticks = 0;
    c->null = 0;
    c->armed = 1;
}

/* A running counter of modes 2 and 3 takes a new count when its period, or half period, ends. */
static bool load_waits(const struct pit_channel *c)
{
    return c->armed && c->null && c->gate && (c->mode == 2 || c->mode == 3);
}

/* The tick after t at which it does. */
static uint64_t load_tick(const struct pit_channel *c, uint64_t t)
{
    uint64_t period = t / c->reload * c->reload;
    if (c->mode == 3 && t - period < high_half(c->reload))
        return period + high_half(c->reload);
    return period + c->reload;
}

/* Has the moment come? */
static void settle(struct pit *pit, struct pit_channel *c)
{
    if (!load_waits(c))
        return;
    /* start_ns is that of the period in which the count was written. */
    uint64_t at = load_tick(c, c->held_ticks), t = elapsed(pit, c);
    if (t < at)
        return;
    bool low_half = c->mode == 3 && at < c->reload;
    c->start_ns += ns_of_ticks(at);
    c->reload = c->count;
    if (low_half)
        c->start_ns -= ns_of_ticks(high_half(c->reload));
    c->null = 0;
}

/* The next tick after t at which the output rises, or CHIP_NEVER. */
static uint64_t next_rise(const struct pit_channel *c, uint64_t t)
{
    switch (c->mode) {
    case 2:
    case 3:
        return (t / c->reload + 1) * c->reload;
    case 4:
    case 5: /* the end of the strobe */
        return t <= c->reload ? c->reload + 1 : CHIP_NEVER;
    default:
        return t < c->reload ? c->reload : CHIP_NEVER;
    }
}

static void schedule(struct pit *pit)
{
    const struct pit_channel *c = &pit->s.channel[0];
    uint64_t next = CHIP_NEVER, load;
    if (c->armed)
        next = next_rise(c, elapsed(pit, c));
    pit->rise_due = true;
    if (load_waits(c) && (load = load_tick(c, c->held_ticks)) < next) {
        pit->rise_due = false;
        next = load;
    }
    uint64_t deadline = next == CHIP_NEVER ? CHIP_NEVER : c->start_ns + ns_of_ticks(next);
    if (next != CHIP_NEVER && pit->rise_due && ns_of_ticks(c->reload) < IRQ_MIN_NS &&
        (c->mode == 2 || c->mode == 3))
        deadline = chip_clock_now(pit->clock) + IRQ_MIN_NS;
    pit->deadline_ns = deadline;
    chip_timer_start(&pit->timer, deadline);
}

/* Counter 0 was programmed: drive IRQ 0. */
static void update_irq(struct pit *pit)
{
    const struct pit_channel *c = &pit->s.channel[0];
    pit->irq(pit->ctx, output(c, elapsed(pit, c)));
    schedule(pit);
}

/* The output has risen. The low phase before it, a microsecond in most modes, is made here: nobody
 * could wait for so short a time, and only the edge counts. */
void pit_tick(struct pit *pit)
{
    /* The guest has set or stopped it anew while this was on its way. */
    if (chip_clock_now(pit->clock) < pit->deadline_ns)
        return;
    settle(pit, &pit->s.channel[0]);
    if (pit->rise_due) {
        pit->irq(pit->ctx, false);
        pit->irq(pit->ctx, true);
    }
    schedule(pit);
}

/* --- ports --- */

static void load(struct pit *pit, struct pit_channel *c, uint16_t value)
{
    uint32_t count = value;
    if (c->bcd)
        count = (value & 15u) + (value >> 4 & 15u) * 10 + (value >> 8 & 15u) * 100 +
                (value >> 12 & 15u) * 1000;
    c->count = count ? count : c->bcd ? 10000 : 65536;
    if ((c->mode == 2 || c->mode == 3) && c->count == 1)
        c->count = 2; /* not allowed in these modes */
    c->written = 1;
    c->null = 1;
    if (c->mode == 1 || c->mode == 5)
        return; /* the gate's edge loads it */
    if (!c->armed || c->mode == 0 || c->mode == 4) {
        start(pit, c);
        return;
    }
    if (!c->gate)
        return;
    /* From now on start_ns is that of the running period, and held_ticks where in it we are. */
    uint64_t t = elapsed(pit, c);
    c->start_ns += ns_of_ticks(t - t % c->reload);
    c->held_ticks = t % c->reload;
}

static void write_count(struct pit *pit, struct pit_channel *c, uint8_t value)
{
    settle(pit, c);
    if (c->access == 1) {
        load(pit, c, value);
    } else if (c->access == 2) {
        load(pit, c, (uint16_t)(value << 8));
    } else {
        if (c->write_half)
            load(pit, c, (uint16_t)(c->write_low | value << 8));
        else if (c->mode == 0)
            c->armed = 0; /* the first byte stops the counter, with OUT low */
        c->write_low = value;
        c->write_half = !c->write_half;
    }
    if (c == &pit->s.channel[0])
        update_irq(pit);
}

static void latch_count(struct pit *pit, struct pit_channel *c)
{
    settle(pit, c);
    if (c->latched)
        return;
    c->latch = count_now(pit, c);
    c->latched = c->access == 3 ? 2 : 1;
}

static void latch_status(struct pit *pit, struct pit_channel *c)
{
    settle(pit, c);
    if (c->status_latched)
        return;
    bool out = output(c, elapsed(pit, c));
    c->status = (uint8_t)(out << 7 | c->null << 6 | c->access << 4 | c->mode << 1 | c->bcd);
    c->status_latched = 1;
}

static void write_control(struct pit *pit, uint8_t value)
{
    unsigned number = value >> 6;
    if (number == 3) { /* read-back */
        for (unsigned i = 0; i < 3; i++) {
            if (!(value >> (i + 1) & 1))
                continue;
            if (!(value & 0x20))
                latch_count(pit, &pit->s.channel[i]);
            if (!(value & 0x10))
                latch_status(pit, &pit->s.channel[i]);
        }
        return;
    }
    struct pit_channel *c = &pit->s.channel[number];
    if ((value >> 4 & 3) == 0) {
        latch_count(pit, c);
        return;
    }
    c->access = value >> 4 & 3;
    c->mode = value >> 1 & 7;
    if (c->mode > 5)
        c->mode &= 3; /* 6 and 7 are 2 and 3 */
    c->bcd = value & 1;
    c->armed = c->written = c->write_half = c->read_half = c->latched = c->status_latched = 0;
    c->null = 1;
    if (number == 0)
        update_irq(pit);
}

static uint8_t read_count(struct pit *pit, struct pit_channel *c)
{
    if (c->status_latched) {
        c->status_latched = 0;
        return c->status;
    }
    if (c->latched) {
        bool second = c->access == 2 || (c->access == 3 && c->latched == 1);
        c->latched--;
        return (uint8_t)(second ? c->latch >> 8 : c->latch);
    }
    settle(pit, c);
    uint16_t value = count_now(pit, c);
    bool high = c->access == 2;
    if (c->access == 3) {
        high = c->read_half;
        c->read_half = !c->read_half;
    }
    return (uint8_t)(high ? value >> 8 : value);
}

static void write_speaker(struct pit *pit, uint8_t value)
{
    struct pit_channel *c = &pit->s.channel[2];
    bool gate = value & SPEAKER_GATE;
    pit->s.speaker = value & SPEAKER_MASK;
    if (gate == c->gate)
        return;
    settle(pit, c);
    if (!gate) {
        c->held_ticks = elapsed(pit, c);
        c->gate = 0;
        return;
    }
    c->gate = 1;
    if (c->mode == 0 || c->mode == 4)
        c->start_ns = chip_clock_now(pit->clock) - ns_of_ticks(c->held_ticks);
    else if (c->written)
        start(pit, c); /* a trigger */
}

static uint8_t read_speaker(struct pit *pit)
{
    struct pit_channel *c = &pit->s.channel[2];
    uint64_t now = chip_clock_now(pit->clock);
    settle(pit, c);
    bool out = output(c, elapsed(pit, c));
    return (uint8_t)(pit->s.speaker | (now / REFRESH_NS & 1) << 4 | out << 5);
}

bool pit_read(struct pit *pit, uint16_t port, uint8_t *value)
{
    if (port == PORT_SPEAKER)
        *value = read_speaker(pit);
    else if (port >= 0x40 && port < PORT_CONTROL)
        *value = read_count(pit, &pit->s.channel[port - 0x40]);
    else if (port == PORT_CONTROL)
        *value = 0xff;
    else
        return false;
    return true;
}

bool pit_write(struct pit *pit, uint16_t port, uint8_t value)
{
    if (port == PORT_SPEAKER)
        write_speaker(pit, value);
    else if (port >= 0x40 && port < PORT_CONTROL)
        write_count(pit, &pit->s.channel[port - 0x40], value);
    else if (port == PORT_CONTROL)
        write_control(pit, value);
    else
        return false;
    return true;
}

void pit_init(struct pit *pit, struct chip_clock *clock, void (*tick)(void *ctx), void *tick_ctx)
{
    pit->clock = clock;
    chip_timer_init(&pit->timer, clock, tick, tick_ctx);
}

void pit_fini(struct pit *pit)
{
    chip_timer_stop(&pit->timer);
}

void pit_reset(struct pit *pit)
{
    pit->deadline_ns = CHIP_NEVER;
    chip_timer_start(&pit->timer, CHIP_NEVER);
    state_reset(&pit_table, &pit->s);
    pit->s.channel[2].gate = 0;
}
