/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock is not stepped: time registers are computed when they are read, and the flags of
 * register C when they are looked at, from what has passed since the last look. A host timer runs
 * only for an event that would raise the interrupt.
 */
#include "dev/rtc.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/units.h"

#define RTC_PORT 0x70u
#define RTC_IRQ  8u

/* Registers (MC146818A, figure 9; the century is where the PC has it). */
#define REG_SECONDS      0x00
#define REG_SECONDS_ALRM 0x01
#define REG_MINUTES      0x02
#define REG_MINUTES_ALRM 0x03
#define REG_HOURS        0x04
#define REG_HOURS_ALRM   0x05
#define REG_WEEKDAY      0x06
#define REG_DAY          0x07
#define REG_MONTH        0x08
#define REG_YEAR         0x09
#define REG_A            0x0a
#define REG_B            0x0b
#define REG_C            0x0c
#define REG_D            0x0d
#define REG_CENTURY      0x32

#define A_UIP            0x80u
#define A_DIVIDER        0x70u
#define A_DIVIDER_32K    0x20u /* others: held in reset, or wrong for the crystal */
#define A_RATE           0x0fu
#define A_RESET          0x26u /* 32.768 kHz, periodic rate 1024 Hz */

#define B_SET            0x80u
#define B_PIE            0x40u
#define B_AIE            0x20u
#define B_UIE            0x10u
#define B_SQWE           0x08u
#define B_BINARY         0x04u
#define B_24H            0x02u
#define B_RESET          B_24H

#define C_IRQF           0x80u
#define C_PF             0x40u
#define C_AF             0x20u
#define C_UF             0x10u

#define D_VALID          0x80u

#define HOURS_PM         0x80u
#define ALARM_ANY        0xc0u /* an alarm byte from here on matches everything */

/* UIP goes up 244 us before an update, which takes 1,984 us; ours takes place at its end. */
#define UIP_NS      2228000u
#define DAY_SECONDS 86400u
/* The first update after the divider's reset (MC146818A, "Divider control"). */
#define DIVIDER_START_NS (NS_PER_SEC / 2)
#define CRYSTAL_HZ       32768u

#define TIME_MAX_S       9000000000 /* the year 2255 */

#define CMOS_BYTES       128u

struct rtc_state {
    uint8_t index;
    uint8_t pad_[7];
    uint8_t cmos[CMOS_BYTES];
    uint64_t offset_ns;
    uint64_t seen_ns;
};

static const struct state_field rtc_fields[] = {
    STATE_U8(struct rtc_state, index, 1, 0, "Index register (port 0x70)"),
    STATE_PAD(struct rtc_state, pad_),
    STATE_U8(struct rtc_state, cmos, 1, 0, "Registers and CMOS RAM; the time while it is set"),
    STATE_U64(struct rtc_state, offset_ns, 1, 0, "Guest's clock less UTC, in nanoseconds"),
    STATE_U64(struct rtc_state, seen_ns, 1, 0, "Guest's clock when the flags were last right"),
};
const struct state_table rtc_state_table = STATE_TABLE("mc146818", struct rtc_state, 1, rtc_fields);

struct rtc {
    struct device dev; /* first */
    struct rtc_state state;
    struct rtc_state battery; /* what a reset brings back */
    struct bus *bus;
    struct bus_range range;
    struct irq_line irq;
    struct device_timer timer;
    void (*on_alarm)(void *ctx);
    void *alarm_ctx;
    bool alarmed; /* the alarm interrupts, and it has been told */
};

/* --- the clock --- */

/* The guest's clock: nanoseconds since 1970. */
static uint64_t guest_ns(const struct rtc *rtc)
{
    return device_date_ns(&rtc->dev) + rtc->state.offset_ns;
}

static void set_guest_ns(struct rtc *rtc, uint64_t ns)
{
    rtc->state.offset_ns = ns - device_date_ns(&rtc->dev);
    rtc->state.seen_ns = ns;
}

static bool divider_runs(const struct rtc *rtc)
{
    return (rtc->state.cmos[REG_A] & A_DIVIDER) == A_DIVIDER_32K;
}

/* Does the clock advance? Not while it is set or the divider is held in reset. */
static bool clock_runs(const struct rtc *rtc)
{
    return !(rtc->state.cmos[REG_B] & B_SET) && divider_runs(rtc);
}

static uint8_t encode(const struct rtc *rtc, unsigned value)
{
    if (rtc->state.cmos[REG_B] & B_BINARY)
        return (uint8_t)value;
    return (uint8_t)((value / 10 % 10) << 4 | value % 10);
}

static unsigned decode(const struct rtc *rtc, uint8_t byte)
{
    if (rtc->state.cmos[REG_B] & B_BINARY)
        return byte;
    return (byte >> 4) * 10u + (byte & 0x0f);
}

static uint8_t encode_hours(const struct rtc *rtc, unsigned hours)
{
    unsigned twelve = hours % 12 ? hours % 12 : 12;

    if (rtc->state.cmos[REG_B] & B_24H)
        return encode(rtc, hours);
    return encode(rtc, twelve) | (hours >= 12 ? HOURS_PM : 0);
}

static unsigned decode_hours(const struct rtc *rtc, uint8_t byte)
{
    if (rtc->state.cmos[REG_B] & B_24H)
        return decode(rtc, byte);
    return decode(rtc, byte & 0x7f) % 12 + (byte & HOURS_PM ? 12 : 0);
}

/* Put the running time into the registers. */
static void time_latch(struct rtc *rtc)
{
    uint8_t *cmos = rtc->state.cmos;
    time_t now = (time_t)(guest_ns(rtc) / NS_PER_SEC);
    struct tm tm;

    if (!gmtime_r(&now, &tm))
        return;
    cmos[REG_SECONDS] = encode(rtc, (unsigned)tm.tm_sec);
    cmos[REG_MINUTES] = encode(rtc, (unsigned)tm.tm_min);
    cmos[REG_HOURS] = encode_hours(rtc, (unsigned)tm.tm_hour);
    cmos[REG_WEEKDAY] = encode(rtc, (unsigned)tm.tm_wday + 1);
    cmos[REG_DAY] = encode(rtc, (unsigned)tm.tm_mday);
    cmos[REG_MONTH] = encode(rtc, (unsigned)tm.tm_mon + 1);
    cmos[REG_YEAR] = encode(rtc, (unsigned)(tm.tm_year + 1900) % 100);
    cmos[REG_CENTURY] = encode(rtc, (unsigned)(tm.tm_year + 1900) / 100);
}

/* Run on from what the registers say. Nonsense is normalised, as by timegm(). The divider does not
 * notice: the next update is when it would have been. */
static void time_apply(struct rtc *rtc)
{
    const uint8_t *cmos = rtc->state.cmos;
    struct tm tm = {
        .tm_sec = (int)decode(rtc, cmos[REG_SECONDS]),
        .tm_min = (int)decode(rtc, cmos[REG_MINUTES]),
        .tm_hour = (int)decode_hours(rtc, cmos[REG_HOURS]),
        .tm_mday = (int)decode(rtc, cmos[REG_DAY]),
        .tm_mon = (int)decode(rtc, cmos[REG_MONTH]) - 1,
        .tm_year = (int)(decode(rtc, cmos[REG_CENTURY]) * 100 + decode(rtc, cmos[REG_YEAR])) - 1900,
    };
    int64_t wanted = timegm(&tm);

    /* What 64 bits of nanoseconds since 1970 can say. */
    if (wanted < 0)
        wanted = 0;
    if (wanted > TIME_MAX_S)
        wanted = TIME_MAX_S;
    set_guest_ns(rtc, (uint64_t)wanted * NS_PER_SEC + guest_ns(rtc) % NS_PER_SEC);
}

/* --- flags and interrupt --- */

/* Is there a periodic interrupt, and of how many oscillations (a power of two: MC146818A, table 5)?
 */
static bool periodic_shift(const struct rtc *rtc, unsigned *shift)
{
    unsigned rate = rtc->state.cmos[REG_A] & A_RATE;

    *shift = rate <= 2 ? rate + 6 : rate - 1;
    return rate != 0 && divider_runs(rtc);
}

/* Oscillations by then, and the first nanosecond of one. */
static uint64_t oscillations(uint64_t ns)
{
    return ns / NS_PER_SEC * CRYSTAL_HZ + ns % NS_PER_SEC * CRYSTAL_HZ / NS_PER_SEC;
}

static uint64_t oscillation_ns(uint64_t n)
{
    return n / CRYSTAL_HZ * NS_PER_SEC +
           (n % CRYSTAL_HZ * NS_PER_SEC + CRYSTAL_HZ - 1) / CRYSTAL_HZ;
}

static bool alarm_field(unsigned value, uint8_t alarm, unsigned decoded)
{
    return alarm >= ALARM_ANY || value == decoded;
}

/* The first second from `from` on that matches the alarm; false: there is none. */
static bool alarm_next(const struct rtc *rtc, uint64_t from, uint64_t *when)
{
    const uint8_t *cmos = rtc->state.cmos;
    uint8_t s_alarm = cmos[REG_SECONDS_ALRM], m_alarm = cmos[REG_MINUTES_ALRM],
            h_alarm = cmos[REG_HOURS_ALRM];
    unsigned s = decode(rtc, s_alarm), m = decode(rtc, m_alarm), h = decode_hours(rtc, h_alarm);
    uint64_t at = from;

    while (at <= from + DAY_SECONDS) {
        if (!alarm_field(at / 3600 % 24, h_alarm, h))
            at = (at / 3600 + 1) * 3600;
        else if (!alarm_field(at / 60 % 60, m_alarm, m))
            at = (at / 60 + 1) * 60;
        else if (!alarm_field(at % 60, s_alarm, s))
            at++;
        else {
            *when = at;
            return true;
        }
        /* A second that no minute has: do not try every minute of the day. */
        if (s_alarm < ALARM_ANY && s > 59)
            return false;
    }
    return false;
}

/* Set the flags of what happened since the last look. */
static void flags_catch_up(struct rtc *rtc)
{
    uint8_t *cmos = rtc->state.cmos;
    uint64_t now = guest_ns(rtc), seen = rtc->state.seen_ns, when;
    unsigned shift;

    rtc->state.seen_ns = now;
    if (now <= seen) /* the host's clock was set back */
        return;
    if (periodic_shift(rtc, &shift) && oscillations(now) >> shift != oscillations(seen) >> shift)
        cmos[REG_C] |= C_PF;
    if (!clock_runs(rtc) || now / NS_PER_SEC == seen / NS_PER_SEC)
        return;
    cmos[REG_C] |= C_UF;
    if (!(cmos[REG_C] & C_AF) && alarm_next(rtc, seen / NS_PER_SEC + 1, &when) &&
        when <= now / NS_PER_SEC)
        cmos[REG_C] |= C_AF;
}

/* Enabled events that have not happened yet decide when to look again. */
static void rtc_schedule(struct rtc *rtc)
{
    const uint8_t *cmos = rtc->state.cmos;
    uint8_t waiting = cmos[REG_B] & (uint8_t)~cmos[REG_C];
    uint64_t seen = rtc->state.seen_ns, next = UINT64_MAX, when;
    unsigned shift;

    if (periodic_shift(rtc, &shift) && (waiting & B_PIE))
        next = oscillation_ns(((oscillations(seen) >> shift) + 1) << shift);
    if ((waiting & B_UIE) && clock_runs(rtc) && (seen / NS_PER_SEC + 1) * NS_PER_SEC < next)
        next = (seen / NS_PER_SEC + 1) * NS_PER_SEC;
    if ((waiting & B_AIE) && clock_runs(rtc) && alarm_next(rtc, seen / NS_PER_SEC + 1, &when) &&
        when * NS_PER_SEC < next)
        next = when * NS_PER_SEC;
    if (next == UINT64_MAX)
        device_timer_cancel(&rtc->timer);
    else
        device_timer_arm(&rtc->timer, device_now_ns(&rtc->dev) + (next - seen));
}

static void rtc_update(struct rtc *rtc)
{
    uint8_t *cmos = rtc->state.cmos;
    bool alarm;

    flags_catch_up(rtc);
    if (cmos[REG_B] & cmos[REG_C] & (C_PF | C_AF | C_UF))
        cmos[REG_C] |= C_IRQF;
    else
        cmos[REG_C] &= (uint8_t)~C_IRQF;
    irq_line_set(&rtc->irq, cmos[REG_C] & C_IRQF);
    alarm = cmos[REG_B] & cmos[REG_C] & C_AF;
    if (alarm && !rtc->alarmed && rtc->on_alarm)
        rtc->on_alarm(rtc->alarm_ctx);
    rtc->alarmed = alarm;
    rtc_schedule(rtc);
}

static void rtc_fired(struct device_timer *timer)
{
    rtc_update(CONTAINER_OF(timer, struct rtc, timer));
}

/* --- registers --- */

static bool is_time(unsigned index)
{
    return index == REG_SECONDS || index == REG_MINUTES || index == REG_HOURS ||
           (index >= REG_WEEKDAY && index <= REG_YEAR) || index == REG_CENTURY;
}

static uint8_t register_read(struct rtc *rtc, unsigned index)
{
    uint8_t *cmos = rtc->state.cmos;
    uint8_t value;

    if (is_time(index) && clock_runs(rtc))
        time_latch(rtc);
    switch (index) {
    case REG_A:
        value = cmos[REG_A];
        if (clock_runs(rtc) && guest_ns(rtc) % NS_PER_SEC >= NS_PER_SEC - UIP_NS)
            value |= A_UIP;
        return value;
    case REG_C:
        rtc_update(rtc);
        value = cmos[REG_C];
        cmos[REG_C] = 0;
        rtc_update(rtc);
        return value;
    case REG_D:
        return D_VALID;
    default:
        return cmos[index];
    }
}

/* The clock stops with the time in its registers, and goes on with what they say then. */
static void control_write(struct rtc *rtc, unsigned index, uint8_t value)
{
    bool ran = clock_runs(rtc), divided = divider_runs(rtc);
    uint64_t now = guest_ns(rtc);

    if (ran)
        time_latch(rtc);
    rtc->state.cmos[index] = value;
    if (!divided && divider_runs(rtc))
        set_guest_ns(rtc, now - now % NS_PER_SEC + DIVIDER_START_NS);
    if (!ran && clock_runs(rtc))
        time_apply(rtc);
}

static void register_write(struct rtc *rtc, unsigned index, uint8_t value)
{
    uint8_t *cmos = rtc->state.cmos;

    flags_catch_up(rtc);
    switch (index) {
    case REG_A:
        control_write(rtc, REG_A, value & (uint8_t)~A_UIP);
        break;
    case REG_B:
        /* Setting SET takes the update-ended interrupt away (MC146818A, register B). */
        control_write(rtc, REG_B, value & B_SET ? value & (uint8_t)~B_UIE : value);
        break;
    case REG_C:
    case REG_D:
        break; /* read-only */
    default:
        if (!is_time(index) || !clock_runs(rtc)) {
            cmos[index] = value;
            break;
        }
        time_latch(rtc);
        cmos[index] = value;
        time_apply(rtc);
        break;
    }
    rtc_update(rtc);
    rtc->battery = rtc->state;
}

static uint64_t rtc_read(struct bus_range *range, uint64_t offset, unsigned size)
{
    struct rtc *rtc = CONTAINER_OF(range, struct rtc, range);

    (void)size;
    return offset == 0 ? 0xff : register_read(rtc, rtc->state.index);
}

static void rtc_write(struct bus_range *range, uint64_t offset, uint64_t value, unsigned size)
{
    struct rtc *rtc = CONTAINER_OF(range, struct rtc, range);

    (void)size;
    if (offset == 0)
        rtc->state.index =
            value & (CMOS_BYTES - 1); /* bit 7 masks the NMI, of which there is none */
    else
        register_write(rtc, rtc->state.index, (uint8_t)value);
}

static const struct bus_range_ops rtc_range_ops = {
    .read = rtc_read,
    .write = rtc_write,
    .max_size = 1,
};

/* --- the device --- */

/* RESET# clears the interrupt enables and flags; the rest lives on the battery. */
static void rtc_reset(struct device *dev)
{
    struct rtc *rtc = CONTAINER_OF(dev, struct rtc, dev);
    uint8_t *cmos = rtc->state.cmos;

    rtc->state = rtc->battery;
    rtc->state.index = 0;
    cmos[REG_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE | B_SQWE);
    cmos[REG_C] = 0;
    rtc->state.seen_ns = guest_ns(rtc);
    rtc_update(rtc);
}

static void rtc_fini(struct device *dev)
{
    struct rtc *rtc = CONTAINER_OF(dev, struct rtc, dev);

    bus_unmap(rtc->bus, &rtc->range);
    device_timer_cancel(&rtc->timer);
    irq_line_set(&rtc->irq, false);
    free(rtc);
}

static const struct device_ops rtc_ops = {
    .reset = rtc_reset,
    .fini = rtc_fini,
};

int rtc_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    struct rtc *rtc = calloc(1, sizeof(*rtc));
    int rc;

    if (!rtc)
        return err_errno(err, ENOMEM, "cannot make the real-time clock");
    device_init(&rtc->dev, &rtc_ops, &rtc_state_table, &rtc->state, env->loop, "rtc");
    rtc->bus = env->bus;
    irq_line_init(&rtc->irq, env->irq, RTC_IRQ);
    device_timer_init(&rtc->timer, &rtc->dev, rtc_fired);
    rtc->range =
        (struct bus_range){.ops = &rtc_range_ops, .dev = &rtc->dev, .base = RTC_PORT, .len = 2};
    rtc->battery.cmos[REG_A] = A_RESET;
    rtc->battery.cmos[REG_B] = B_RESET;
    rc = bus_map(env->bus, &rtc->range);
    if (rc < 0) {
        device_fini(&rtc->dev);
        return err_errno(err, rc, "cannot map the ports of the real-time clock");
    }
    device_reset(&rtc->dev);
    *dev = &rtc->dev;
    return 0;
}

void rtc_on_alarm(struct device *dev, void (*fn)(void *ctx), void *ctx)
{
    struct rtc *rtc = CONTAINER_OF(dev, struct rtc, dev);

    rtc->alarm_ctx = ctx;
    rtc->on_alarm = fn;
}

static uint64_t units_capped(uint64_t bytes, uint64_t above, uint64_t unit, uint64_t max)
{
    uint64_t units = bytes > above ? (bytes - above) / unit : 0;

    return units < max ? units : max;
}

void rtc_set_memory(struct device *dev, uint64_t low_bytes, uint64_t high_bytes, unsigned cpus)
{
    struct rtc *rtc = CONTAINER_OF(dev, struct rtc, dev);
    uint8_t *cmos = rtc->state.cmos;
    uint64_t high = units_capped(high_bytes, 0, 64 * KIB, 0xffffff);

    device_lock(dev);
    cmos[0x14] = 0x02; /* equipment: FPU */
    store_le16(&cmos[0x15], (uint16_t)units_capped(low_bytes, 0, KIB, 640));
    store_le16(&cmos[0x17], (uint16_t)units_capped(low_bytes, MIB, KIB, 0xffff));
    store_le16(&cmos[0x30], load_le16(&cmos[0x17]));
    store_le16(&cmos[0x34], (uint16_t)units_capped(low_bytes, 16 * MIB, 64 * KIB, 0xffff));
    store_le16(&cmos[0x5b], (uint16_t)high);
    cmos[0x5d] = (uint8_t)(high >> 16);
    cmos[0x5f] = (uint8_t)(cpus - 1 < 0xff ? cpus - 1 : 0xff);
    rtc->battery = rtc->state;
    device_unlock(dev);
}
