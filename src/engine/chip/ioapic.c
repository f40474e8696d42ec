/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/chip/ioapic.h"

#define ENTRY_VECTOR     0xffULL
#define ENTRY_DELIVERY   0x600ULL /* 0: fixed or lowest priority, which end with an EOI */
#define ENTRY_LOGICAL    (1ULL << 11)
#define ENTRY_REMOTE_IRR (1ULL << 14)
#define ENTRY_LEVEL      (1ULL << 15)
#define ENTRY_MASKED     (1ULL << 16)
#define ENTRY_WRITABLE   0xff0000000001afffULL
#define ENTRY_WIDE_ID    0x00fe000000000000ULL
#define VERSION          (0x11u | (IOAPIC_PINS - 1) << 16)

#define REG_SELECT       0x00u
#define REG_WINDOW       0x10u

static const struct state_field ioapic_fields[] = {
    STATE_U64(struct ioapic_state, entry, 1, ENTRY_MASKED, "Redirection table"),
    STATE_U32(struct ioapic_state, id, 1, 0, "IOAPICID"),
    STATE_U32(struct ioapic_state, level, 1, 0, "Levels of the inputs"),
    STATE_U8(struct ioapic_state, index, 1, 0, "IOREGSEL"),
    STATE_PAD(struct ioapic_state, pad_),
};
const struct state_table ioapic_table =
    STATE_TABLE("ioapic", struct ioapic_state, 1, ioapic_fields);

/* The message that the entry stands for (SDM vol. 3, 10.11). */
static bool send(struct ioapic *ioapic, uint64_t entry)
{
    uint64_t addr = 0xfee00000ULL | (entry >> 56) << 12 | (entry & ENTRY_LOGICAL ? 4 : 0);
    addr |= (entry & ENTRY_WIDE_ID) >> 49 << 5;
    bool level = entry & ENTRY_LEVEL;
    uint32_t data = (uint32_t)(entry & 0x7ff) | (level ? 1u << 15 | 1u << 14 : 0);
    return ioapic->send(ioapic->ctx, addr, data);
}

/* Deliver the level of a pin, unless it has been accepted and not ended yet. Without anybody to
 * accept it, no EOI will come: then it is sent again with the next change. */
static void service_level(struct ioapic *ioapic, unsigned pin)
{
    uint64_t *entry = &ioapic->s.entry[pin], sent = *entry;
    if (sent & ENTRY_MASKED || !(sent & ENTRY_LEVEL) || sent & ENTRY_REMOTE_IRR ||
        !(ioapic->s.level >> pin & 1))
        return;
    if (send(ioapic, sent) && !(sent & ENTRY_DELIVERY))
        *entry |= ENTRY_REMOTE_IRR;
}

void ioapic_reset(struct ioapic *ioapic)
{
    state_reset(&ioapic_table, &ioapic->s);
}

void ioapic_set(struct ioapic *ioapic, unsigned pin, bool level)
{
    struct ioapic_state *s = &ioapic->s;
    uint32_t bit = 1u << pin;
    uint64_t entry = s->entry[pin];
    /* The inputs are active high here, whatever polarity the guest has been told of. */
    bool was = s->level & bit;
    s->level = level ? s->level | bit : s->level & ~bit;
    if (entry & ENTRY_LEVEL)
        service_level(ioapic, pin);
    else if (level && !was && !(entry & ENTRY_MASKED))
        send(ioapic, entry); /* an edge on a masked pin is lost (82093AA, 3.2.4) */
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t *entry = &ioapic->s.entry[pin];
        if ((*entry & ENTRY_VECTOR) != vector || !(*entry & ENTRY_LEVEL) ||
            !(*entry & ENTRY_REMOTE_IRR))
            continue;
        *entry &= ~ENTRY_REMOTE_IRR;
        service_level(ioapic, pin);
    }
}

static void write_entry(struct ioapic *ioapic, unsigned pin, bool high, uint32_t value)
{
    uint64_t *entry = &ioapic->s.entry[pin];
    uint64_t old = *entry;
    uint64_t fresh =
        high ? (old & 0xffffffffULL) | (uint64_t)value << 32 : (old & ~0xffffffffULL) | value;
    uint64_t writable = ENTRY_WRITABLE | (ioapic->wide_ids ? ENTRY_WIDE_ID : 0);
    *entry = (fresh & writable) | (old & ENTRY_REMOTE_IRR);
    /* Software that has no EOI register makes an entry edge triggered to clear remote IRR. */
    if (!(*entry & ENTRY_LEVEL))
        *entry &= ~ENTRY_REMOTE_IRR;
    service_level(ioapic, pin);
}

uint32_t ioapic_read(struct ioapic *ioapic, uint32_t offset)
{
    const struct ioapic_state *s = &ioapic->s;
    if (offset == REG_SELECT)
        return s->index;
    if (offset != REG_WINDOW)
        return 0;
    switch (s->index) {
    case 0:
    case 2: /* arbitration ID */
        return s->id;
    case 1:
        return VERSION;
    default:
        break;
    }
    unsigned pin = (s->index - 0x10u) / 2;
    if (s->index < 0x10 || pin >= IOAPIC_PINS)
        return UINT32_MAX;
    return (uint32_t)(s->index & 1 ? s->entry[pin] >> 32 : s->entry[pin]);
}

void ioapic_write(struct ioapic *ioapic, uint32_t offset, uint32_t value)
{
    struct ioapic_state *s = &ioapic->s;
    if (offset == REG_SELECT) {
        s->index = (uint8_t)value;
        return;
    }
    if (offset != REG_WINDOW)
        return;
    if (s->index == 0)
        s->id = value & 0x0f000000;
    unsigned pin = (s->index - 0x10u) / 2;
    if (s->index >= 0x10 && pin < IOAPIC_PINS)
        write_entry(ioapic, pin, s->index & 1, value);
}
