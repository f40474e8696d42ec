/* SPDX-License-Identifier: Apache-2.0 */
/* The IOAPIC against the 82093AA's data sheet, with a bus that accepts or does not. */
#include "engine/chip/ioapic.h"

#include "base/tap.h"

#define MASKED     0x10000u
#define LEVEL      0x08000u
#define REMOTE_IRR 0x04000u
#define LOGICAL    0x00800u

static struct ioapic ioapic;
static unsigned sent;
static uint64_t last_addr;
static uint32_t last_data;
static bool accepts = true;

static bool take_message(void *ctx, uint64_t addr, uint32_t data)
{
    (void)ctx;
    sent++;
    last_addr = addr;
    last_data = data;
    return accepts;
}

static uint32_t get(uint8_t index)
{
    ioapic_write(&ioapic, 0, index);
    return ioapic_read(&ioapic, 0x10);
}

static void set(uint8_t index, uint32_t value)
{
    ioapic_write(&ioapic, 0, index);
    ioapic_write(&ioapic, 0x10, value);
}

static void set_entry(unsigned pin, uint32_t low)
{
    set((uint8_t)(0x10 + 2 * pin), low);
}

static uint32_t entry(unsigned pin)
{
    return get((uint8_t)(0x10 + 2 * pin));
}

static void pulse(unsigned pin)
{
    ioapic_set(&ioapic, pin, true);
    ioapic_set(&ioapic, pin, false);
}

static void reset(void)
{
    ioapic_reset(&ioapic);
    sent = 0;
    accepts = true;
}

static void test_registers(void)
{
    char why[256] = "";
    state_table_check(&ioapic_table, why, sizeof(why));
    is_str(why, "", "the state table tiles the struct");
    reset();
    is_int(get(1), 0x00170011, "version 11h, 24 entries");
    set(0, 0xffffffff);
    is_int(get(0), 0x0f000000, "the ID is 4 bits");
    is_int(get(2), 0x0f000000, "and the arbitration ID");
    set(1, 0);
    is_int(get(1), 0x00170011, "the version is read-only");
    is_int(entry(23), MASKED, "entries are masked");
    set_entry(23, 0xffffffff);
    set(0x3f, 0xffffffff);
    is_int(entry(23), 0x1afff, "what can be written of one");
    is_int(get(0x3f), 0xff000000, "a destination of 8 bits");
    ok(get(0x40) == UINT32_MAX, "there is no entry 24");
    is_int(ioapic_read(&ioapic, 0), 0x40, "the index reads back");
    is_int(ioapic_read(&ioapic, 0x20), 0, "nothing else");
}

static void test_edge(void)
{
    reset();
    set(0x10 + 2 * 4 + 1, 0x03000000);
    pulse(4);
    is_int(sent, 0, "an edge on a masked pin is not sent");
    set_entry(4, 0x41);
    is_int(sent, 0, "not even when it is unmasked: it is lost");
    ioapic_set(&ioapic, 4, true);
    is_int(sent, 1, "an edge");
    is_int(last_addr, 0xfee03000, "to its destination");
    is_int(last_data, 0x41, "with its vector");
    ioapic_set(&ioapic, 4, true);
    ioapic_set(&ioapic, 4, false);
    is_int(sent, 1, "once");
    is_int(entry(4), 0x41, "without remote IRR");
    set_entry(4, 0x41 | LOGICAL | 1 << 8 | 1 << 13);
    pulse(4);
    is_int(last_addr, 0xfee03004, "logical destination");
    is_int(last_data, 0x141, "lowest priority; polarity is nobody's business");
    ioapic_eoi(&ioapic, 0x41);
    is_int(sent, 2, "an EOI means nothing to an edge");
}

static void test_level(void)
{
    reset();
    set_entry(16, LEVEL | 0x51);
    ioapic_set(&ioapic, 16, true);
    is_int(sent, 1, "a level");
    is_int(last_data, 0xc051, "says so");
    is_int(entry(16), REMOTE_IRR | LEVEL | 0x51, "remote IRR");
    ioapic_set(&ioapic, 16, false);
    ioapic_set(&ioapic, 16, true);
    is_int(sent, 1, "holds others back");
    ioapic_eoi(&ioapic, 0x52);
    is_int(sent, 1, "another vector's EOI is not its");
    ioapic_eoi(&ioapic, 0x51);
    is_int(sent, 2, "its own has the level sent again");
    ioapic_set(&ioapic, 16, false);
    ioapic_eoi(&ioapic, 0x51);
    is_int(sent, 2, "a low one is not");
    is_int(entry(16), LEVEL | 0x51, "remote IRR is clear");

    ioapic_set(&ioapic, 16, true);
    set_entry(16, MASKED | LEVEL | 0x51);
    is_int(entry(16), MASKED | REMOTE_IRR | LEVEL | 0x51, "masking keeps remote IRR");
    ioapic_eoi(&ioapic, 0x51);
    is_int(sent, 3, "masked, it is not sent again");
    set_entry(16, LEVEL | 0x51);
    is_int(sent, 4, "unmasked, it is");
    set_entry(16, 0x51);
    is_int(entry(16), 0x51, "made an edge, it has no remote IRR");
    set_entry(16, LEVEL | 0x51);
    is_int(sent, 5, "and starts over as a level");

    set_entry(17, LEVEL | 0x51);
    ioapic_set(&ioapic, 17, true);
    ioapic_eoi(&ioapic, 0x51);
    is_int(sent, 8, "an EOI is for all entries of the vector");
}

static void test_refused(void)
{
    reset();
    accepts = false;
    set_entry(18, LEVEL | 0x61);
    ioapic_set(&ioapic, 18, true);
    is_int(entry(18), LEVEL | 0x61, "what nobody accepts waits for no EOI");
    accepts = true;
    set_entry(18, LEVEL | 0x61);
    is_int(sent, 2, "and can be sent again");
    is_int(entry(18) & REMOTE_IRR, REMOTE_IRR, "accepted now");
    set_entry(19, LEVEL | 4 << 8);
    ioapic_set(&ioapic, 19, true);
    is_int(entry(19) & REMOTE_IRR, 0, "an NMI has no EOI to wait for");
}

int main(void)
{
    ioapic.send = take_message;
    test_registers();
    test_edge();
    test_level();
    test_refused();
    return tap_done();
}
