/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoder's rows for tests and for people: all of them, where each stands, and bytes that
 * decode to it.
 */
#include <string.h>

#include "engine/soft/decode.h"
#include "engine/soft/decode_table.h"

struct place {
    unsigned map, byte;
    const struct decode_row *row;
};

/* The index-th row over all maps; row is NULL beyond the last. Returns how many there are before.
 */
static size_t find_place(size_t index, struct place *place)
{
    size_t at = 0;
    for (unsigned map = 0; map < MAP_COUNT; map++) {
        const struct decode_row *last = NULL;
        for (unsigned byte = 0; byte < 256; byte++) {
            const struct decode_row *list = (*decode_maps[map])[byte];
            /* Bytes that share their rows (a register in the low bits) count once. */
            if (!list || list == last)
                continue;
            last = list;
            for (const struct decode_row *row = list; row->opcode.name; row++, at++) {
                if (at == index) {
                    *place = (struct place){map, byte, row};
                    return at;
                }
            }
        }
    }
    *place = (struct place){0};
    return at;
}

size_t decode_opcode_count(void)
{
    struct place place;
    return find_place(SIZE_MAX, &place);
}

const struct opcode *decode_opcode_at(size_t index)
{
    struct place place;
    find_place(index, &place);
    return place.row ? &place.row->opcode : NULL;
}

/* --- conditions --- */

/* What the row asks of these bits of the key: the value, or -1 if it does not matter. */
static int wanted(const struct decode_row *row, uint32_t bits)
{
    uint32_t mask = (uint32_t)(row->when >> 32), value = (uint32_t)row->when;
    if ((mask & bits) == 0)
        return -1;
    return (int)((value & bits) >> __builtin_ctz(bits));
}

#define KEY_PP   (3u << KEY_PP_SHIFT)
#define KEY_REG  (7u << KEY_REG_SHIFT)
#define KEY_RM   (7u << KEY_RM_SHIFT)
#define KEY_OP   (3u << KEY_OP_SHIFT)
#define KEY_ADDR (3u << KEY_ADDR_SHIFT)

/* Does it ask for one of none, 66, F3, F2 (and not just for no F2 or F3)? */
static bool asks_prefix(const struct decode_row *row)
{
    return ((uint32_t)(row->when >> 32) & KEY_PP) == KEY_PP;
}

static bool is_vex(unsigned map)
{
    return map >= MAP_VEX_0F;
}

static const char *map_name(unsigned map)
{
    static const char *const names[MAP_COUNT] = {
        [MAP_BYTE] = "",          [MAP_0F] = "0f ",         [MAP_0F_VEC] = "0f ",
        [MAP_0F38] = "0f 38 ",    [MAP_0F3A] = "0f 3a ",    [MAP_VEX_0F] = "0f ",
        [MAP_VEX_0F38] = "0f38 ", [MAP_VEX_0F3A] = "0f3a ",
    };
    return names[map];
}

/* " /5", " /5/1" (and the r/m), " reg", " mem". */
static void place_modrm(struct decode_text *text, const struct decode_row *row)
{
    int reg = wanted(row, KEY_REG), rm = wanted(row, KEY_RM), mod3 = wanted(row, KEY_MOD3);
    if (reg >= 0)
        decode_text_add(text, " /%d", reg);
    if (rm >= 0)
        decode_text_add(text, "/%d", rm);
    if (mod3 >= 0)
        decode_text_add(text, mod3 ? " reg" : " mem");
}

void decode_opcode_place(size_t index, char *text, size_t text_len)
{
    static const char *const prefixes[4] = {"np", "66", "f3", "f2"};
    struct decode_text out = {.start = text, .size = text_len};
    struct place place;
    const struct decode_row *row;
    const char *gap;
    int pp, l, w, op, addr, code64;
    find_place(index, &place);
    row = place.row;
    if (!row) {
        decode_text_add(&out, "none");
        return;
    }
    gap = is_vex(place.map) ? "." : " ";
    pp = asks_prefix(row) ? wanted(row, KEY_PP) : -1;
    l = wanted(row, KEY_L);
    w = wanted(row, KEY_W) >= 0 ? wanted(row, KEY_W) : wanted(row, KEY_W64);
    op = wanted(row, KEY_OP);
    addr = wanted(row, KEY_ADDR);
    code64 = wanted(row, KEY_64);
    if (is_vex(place.map))
        decode_text_add(&out, "vex.");
    if (pp >= 0)
        decode_text_add(&out, "%s%s", prefixes[pp], gap);
    if (l >= 0)
        decode_text_add(&out, "l%d%s", l, gap);
    if (w >= 0)
        decode_text_add(&out, "w%d%s", w, gap);
    decode_text_add(&out, "%s%02x", map_name(place.map), place.byte);
    place_modrm(&out, row);
    if (op > 0)
        decode_text_add(&out, " o%d", 8 << op);
    if (addr > 0)
        decode_text_add(&out, " a%d", 8 << addr);
    if (code64 >= 0)
        decode_text_add(&out, code64 ? " 64" : " legacy");
    if (wanted(row, KEY_REX_B) == 0)
        decode_text_add(&out, " rex.b0");
}

/* --- examples --- */

struct example {
    uint8_t *bytes;
    size_t len;
    int modrm_at;
};

static void add(struct example *e, unsigned byte)
{
    e->bytes[e->len++] = (uint8_t)byte;
}

/* ModRM as the row wants it; a register where it may be, else [rBX], and [rBX + index 1] for VSIB.
 */
static void add_modrm(struct example *e, const struct place *place, bool is_memory)
{
    const struct decode_row *row = place->row;
    int reg = wanted(row, KEY_REG), rm = wanted(row, KEY_RM);
    unsigned low = rm >= 0 ? (unsigned)rm : is_memory && (row->opcode.attr & ATTR_VSIB) ? 4 : 3;
    e->modrm_at = (int)e->len;
    add(e, (is_memory ? 0u : 0xc0u) | (reg < 0 ? 0 : (unsigned)reg) << 3 | low);
    if (low == 4 && is_memory)
        add(e, 0x0b);
}

static void add_vex(struct example *e, const struct place *place, bool w)
{
    const struct decode_row *row = place->row;
    int pp = wanted(row, KEY_PP), l = wanted(row, KEY_L);
    uint8_t form = row->opcode.form;
    bool uses_v = form == FORM_REG_V_RM || form == FORM_V_RM || form == FORM_REG_RM_V ||
                  form == FORM_RM_V_REG;
    unsigned v = uses_v ? 5 : 0;
    add(e, 0xc4);
    add(e, 0xe0u | (place->map - MAP_VEX_0F + 1));
    add(e, (w ? 0x80u : 0) | (~v & 15) << 3 | (l > 0 ? 4u : 0) | (pp < 0 ? 0 : (unsigned)pp));
}

/* Legacy prefixes, REX and escape bytes. */
static void add_prefixes(struct example *e, const struct place *place,
                         const struct decode_mode *mode, bool w)
{
    static const uint8_t pp_bytes[4] = {0, 0x66, 0xf3, 0xf2};
    const struct decode_row *row = place->row;
    int pp = asks_prefix(row) ? wanted(row, KEY_PP) : 0, op = wanted(row, KEY_OP);
    bool op16 = op == 1, narrow = mode->code_bits == 16;
    if (pp > 0)
        add(e, pp_bytes[pp]);
    if ((op > 0 && op < 3 && op16 != narrow) && pp != 1)
        add(e, 0x66);
    if (w)
        add(e, 0x48);
    if (place->map != MAP_BYTE)
        add(e, 0x0f);
    if (place->map == MAP_0F38 || place->map == MAP_0F3A)
        add(e, place->map == MAP_0F38 ? 0x38 : 0x3a);
}

size_t decode_opcode_example(size_t index, const struct decode_mode *mode, uint8_t bytes[8],
                             int *modrm_at)
{
    struct place place;
    struct example e = {.bytes = bytes, .modrm_at = -1};
    uint8_t padded[32] = {0};
    struct insn insn;
    const struct decode_row *row;
    bool w;
    int addr;
    find_place(index, &place);
    row = place.row;
    *modrm_at = -1;
    if (!row)
        return 0;
    w = wanted(row, KEY_W) > 0 || wanted(row, KEY_W64) > 0 || wanted(row, KEY_OP) == 3;
    addr = wanted(row, KEY_ADDR);
    if (w && mode->code_bits != 64 && !is_vex(place.map))
        return 0;
    if ((addr >= 0 && 8 << addr != mode->code_bits) ||
        ((row->opcode.attr & ATTR_VSIB) && mode->code_bits == 16))
        add(&e, 0x67);
    if (is_vex(place.map))
        add_vex(&e, &place, w);
    else
        add_prefixes(&e, &place, mode, w);
    /* NOP's byte stands for XCHG only with REX.B. */
    if (row->opcode.op == OP_XCHG && place.map == MAP_BYTE && place.byte == 0x90)
        add(&e, 0x41);
    add(&e, place.byte);
    if (row->flags & ROW_MODRM)
        add_modrm(&e, &place, wanted(row, KEY_MOD3) == 0);
    memcpy(padded, bytes, e.len);
    if (decode_insn(&insn, padded, sizeof(padded), mode) != DECODE_OK ||
        insn.opcode != &row->opcode || (insn.op == OP_UD) != (row->opcode.op == OP_UD))
        return 0;
    *modrm_at = e.modrm_at;
    return e.len;
}
