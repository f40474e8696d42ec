/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoder: prefixes, opcode, row, operands, immediate, checks; in the order of the bytes, so
 * that nothing is read that the processor would not fetch.
 */
#include "engine/soft/decode.h"

#include <string.h>

#include "engine/soft/decode_table.h"

enum { REX_B = 1, REX_X = 2, REX_R = 4, REX_W = 8 };

#define NO_SEGMENT 0xff

struct decoder {
    struct insn *insn;
    const struct decode_mode *mode;
    const uint8_t *bytes;
    uint8_t at, limit; /* offsets of the next byte, and of the first that may not be read */
    uint8_t rex;       /* REX or VEX: W R X B */
    uint8_t rep;       /* last of F2, F3 or 0 */
    bool rex_seen, opsize, addrsize, lock;
    uint8_t segment;      /* override, or NO_SEGMENT */
    bool vex, vex_bad;    /* vex_bad: prefixes that VEX does not bear */
    uint8_t vex_l, vex_v; /* vvvv uninverted */
    uint8_t pp;           /* what a row's P66, PF3, PF2 look at */
    uint8_t map;          /* enum decode_map */
    bool code64;
    uint8_t width; /* operand size by prefixes alone: 2, 4, 8 */
};

decode_lists *const decode_maps[MAP_COUNT] = {
    [MAP_BYTE] = &decode_map_byte,         [MAP_0F] = &decode_map_0f,
    [MAP_0F_VEC] = &decode_map_0f_vec,     [MAP_0F38] = &decode_map_0f38,
    [MAP_0F3A] = &decode_map_0f3a,         [MAP_VEX_0F] = &decode_map_vex_0f,
    [MAP_VEX_0F38] = &decode_map_vex_0f38, [MAP_VEX_0F3A] = &decode_map_vex_0f3a,
};

/* What undefined bytes decode to. */
static const struct decode_row undefined_row = {
    .opcode = {.name = "(bad)", .op = OP_UD, .attr = ATTR_BRANCH},
    .mem = MEM_NONE,
};

/* --- bytes --- */

static inline bool fetch8(struct decoder *d, uint8_t *value)
{
    if (d->at >= d->limit)
        return false;
    *value = d->bytes[d->at++];
    return true;
}

/* size bytes, little endian, sign extended. */
static bool fetch(struct decoder *d, unsigned size, int64_t *value)
{
    uint64_t bits = 0;
    if ((unsigned)(d->limit - d->at) < size)
        return d->at = d->limit, false;
    for (unsigned i = 0; i < size; i++)
        bits |= (uint64_t)d->bytes[d->at + i] << (8 * i);
    d->at += size;
    *value = (int64_t)(bits << (64 - 8 * size)) >> (64 - 8 * size);
    return true;
}

/* --- prefixes --- */

/* In 64-bit code the overrides of ES, CS, SS and DS do nothing: not even cancel FS or GS. */
static void set_segment(struct decoder *d, unsigned segment)
{
    if (!d->code64 || segment >= SEG_FS)
        d->segment = (uint8_t)segment;
}

/* Is byte a prefix? Notes it. A legacy prefix after REX makes the REX void. */
static bool take_prefix(struct decoder *d, uint8_t byte)
{
    switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
        set_segment(d, (byte >> 3) & 3);
        break;
    case 0x64:
    case 0x65:
        set_segment(d, byte == 0x64 ? SEG_FS : SEG_GS);
        break;
    case 0x66:
        d->opsize = true;
        break;
    case 0x67:
        d->addrsize = true;
        break;
    case 0xf0:
        d->lock = true;
        break;
    case 0xf2:
    case 0xf3:
        d->rep = byte;
        break;
    default:
        if (!d->code64 || (byte & 0xf0) != 0x40)
            return false;
        d->rex = byte & 15;
        d->rex_seen = true;
        return true;
    }
    d->rex = 0;
    d->rex_seen = false;
    return true;
}

/* --- opcode --- */

/* The VEX prefix behind byte C4 or C5: false where bytes are missing. `is`: it is one. */
static bool take_vex(struct decoder *d, uint8_t byte, uint8_t *opcode, bool *is)
{
    uint8_t first, second;
    if (d->at >= d->limit)
        return false;
    first = d->bytes[d->at];
    *is = d->code64 || (d->mode->vex && first >= 0xc0);
    if (!*is)
        return true;
    d->at++;
    d->vex = true;
    d->vex_bad = d->lock || d->opsize || d->rep || d->rex_seen;
    d->map = MAP_VEX_0F;
    second = first;
    d->rex = first & 0x80 ? 0 : REX_R;
    if (byte == 0xc4) {
        if (!fetch8(d, &second))
            return false;
        d->rex = (uint8_t)(~first >> 5 & (REX_R | REX_X | REX_B)) | (second & 0x80 ? REX_W : 0);
        d->map = (first & 31) == 1   ? MAP_VEX_0F
                 : (first & 31) == 2 ? MAP_VEX_0F38
                 : (first & 31) == 3 ? MAP_VEX_0F3A
                                     : MAP_COUNT;
    }
    d->vex_l = second >> 2 & 1;
    d->vex_v = ~second >> 3 & 15;
    /* Elsewhere there are 8 registers; what would name others is ignored, but for an unused vvvv.
     */
    if (!d->code64)
        d->rex &= REX_W;
    /* REX's order of 66, F3, F2 is VEX.pp's too. */
    d->pp = second & 3;
    return fetch8(d, opcode);
}

/* Prefixes and opcode; false where bytes are missing. */
static bool take_opcode(struct decoder *d, uint8_t *opcode)
{
    uint8_t byte;
    bool is_vex = false;
    do {
        if (!fetch8(d, &byte))
            return false;
    } while (take_prefix(d, byte));
    d->pp = d->rep == 0xf3 ? 2 : d->rep == 0xf2 ? 3 : d->opsize ? 1 : 0;
    d->map = MAP_BYTE;
    *opcode = byte;
    if (byte == 0xc4 || byte == 0xc5)
        return take_vex(d, byte, opcode, &is_vex);
    if (byte != 0x0f)
        return true;
    if (!fetch8(d, &byte))
        return false;
    *opcode = byte;
    d->map = MAP_0F;
    if (byte == 0x38 || byte == 0x3a) {
        d->map = byte == 0x38 ? MAP_0F38 : MAP_0F3A;
        return fetch8(d, opcode);
    }
    return true;
}

/* --- row --- */

static const struct decode_row *find_list(struct decoder *d, uint8_t opcode)
{
    const struct decode_row *list;
    if (d->map >= MAP_COUNT)
        return NULL;
    list = (*decode_maps[d->map])[opcode];
    if (!list && d->map == MAP_0F) {
        list = decode_map_0f_vec[opcode];
        d->map = list ? MAP_0F_VEC : MAP_0F;
    }
    return list;
}

static uint32_t make_key(const struct decoder *d)
{
    uint8_t modrm = d->insn->modrm;
    bool w = d->rex & REX_W;
    unsigned addr_shift = d->insn->addr_bytes == 2 ? 1 : d->insn->addr_bytes == 4 ? 2 : 3;
    unsigned op_shift = d->width == 2 ? 1 : d->width == 4 ? 2 : 3;
    return (uint32_t)d->pp << KEY_PP_SHIFT | (modrm >= 0xc0 ? KEY_MOD3 : 0) |
           (modrm >> 3 & 7u) << KEY_REG_SHIFT | (modrm & 7u) << KEY_RM_SHIFT | (w ? KEY_W : 0) |
           (w && d->code64 ? KEY_W64 : 0) | (d->vex_l ? KEY_L : 0) | (d->code64 ? KEY_64 : 0) |
           op_shift << KEY_OP_SHIFT | addr_shift << KEY_ADDR_SHIFT |
           (d->rex & REX_B ? KEY_REX_B : 0);
}

static bool has_feature(const struct decoder *d, const struct decode_row *row)
{
    insn_features need = 1ULL << row->opcode.feature;
    if (row->opcode.attr & ATTR_AVX)
        need |= FEATURE(AVX);
    return (need & ~d->mode->features & ~FEATURE(BASE)) == 0;
}

static const struct decode_row *find_row(const struct decoder *d, const struct decode_row *list)
{
    uint32_t key = make_key(d);
    for (const struct decode_row *row = list; row->opcode.name; row++) {
        if ((key ^ (uint32_t)row->when) & (uint32_t)(row->when >> 32))
            continue;
        if (!(row->flags & ROW_FALLBACK) || has_feature(d, row))
            return row;
    }
    return NULL;
}

/* --- sizes --- */

static uint8_t operand_bytes(const struct decoder *d, const struct decode_row *row)
{
    uint32_t attr = row->opcode.attr;
    switch ((enum row_size)row->size) {
    case SIZE_V:
        if (d->code64 && (attr & ATTR_FORCE64))
            return 8;
        if (d->code64 && (attr & ATTR_DEFAULT64))
            return d->width == 2 ? 2 : 8;
        return d->width;
    case SIZE_0:
        return 0;
    case SIZE_B:
        return 1;
    case SIZE_W:
        return 2;
    case SIZE_D:
        return 4;
    case SIZE_Q:
        return 8;
    case SIZE_Z:
        return d->width == 2 ? 2 : 4;
    case SIZE_Y:
        return d->code64 && (d->rex & REX_W) ? 8 : 4;
    case SIZE_N:
        return d->code64 ? 8 : 4;
    case SIZE_X:
        return d->vex_l ? 32 : 16;
    case SIZE_S:
        return 16;
    }
    return 0;
}

static uint8_t memory_bytes(const struct decoder *d, const struct decode_row *row)
{
    uint8_t op_bytes = d->insn->op_bytes;
    switch ((enum row_mem)row->mem) {
    case MEM_OP:
        return op_bytes;
    case MEM_FIXED:
        return (uint8_t)row->opcode.mem_bytes;
    case MEM_SCALES:
        return (uint8_t)(row->opcode.mem_bytes << d->vex_l);
    case MEM_NONE:
        return 0;
    case MEM_Y:
        return d->code64 && (d->rex & REX_W) ? 8 : 4;
    case MEM_FAR:
        return op_bytes + 2;
    case MEM_PAIR:
        return 2 * op_bytes;
    case MEM_TABLE:
        return d->code64 ? 10 : 6;
    case MEM_ENV:
        return op_bytes == 2 ? 14 : 28;
    case MEM_STATE:
        return op_bytes == 2 ? 94 : 108;
    }
    return 0;
}

/* --- addressing --- */

/* The 16-bit forms (SDM vol. 2, table 2-1). */
static bool take_address16(struct decoder *d)
{
    static const uint8_t base[8] = {CPU_RBX, CPU_RBX, CPU_RBP, CPU_RBP,
                                    CPU_RSI, CPU_RDI, CPU_RBP, CPU_RBX};
    static const uint8_t index[8] = {CPU_RSI,  CPU_RDI,  CPU_RSI,  CPU_RDI,
                                     GPR_ZERO, GPR_ZERO, GPR_ZERO, GPR_ZERO};
    struct insn *insn = d->insn;
    unsigned mod = insn->modrm >> 6, rm = insn->modrm & 7;
    unsigned disp_bytes = mod == 1 ? 1 : mod == 2 ? 2 : 0;
    int64_t disp = 0;
    insn->base = base[rm];
    insn->index = index[rm];
    if (mod == 0 && rm == 6) {
        insn->base = GPR_ZERO;
        disp_bytes = 2;
    }
    if (disp_bytes && !fetch(d, disp_bytes, &disp))
        return false;
    insn->disp = (int32_t)disp;
    insn->seg = insn->base == CPU_RBP ? SEG_SS : SEG_DS;
    return true;
}

/* The 32- and 64-bit forms (SDM vol. 2, tables 2-2, 2-3); a VSIB's index may be register 4. */
static bool take_address32(struct decoder *d, bool vsib)
{
    struct insn *insn = d->insn;
    unsigned mod = insn->modrm >> 6, low = insn->modrm & 7;
    unsigned disp_bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    unsigned high = d->rex & REX_B ? 8 : 0;
    int64_t disp = 0;
    if (low == 4) {
        uint8_t sib;
        unsigned index;
        if (!fetch8(d, &sib))
            return false;
        index = (sib >> 3 & 7) | (d->rex & REX_X ? 8 : 0);
        insn->index = (uint8_t)(index == 4 && !vsib ? GPR_ZERO : index);
        insn->scale = sib >> 6;
        low = sib & 7;
        if (low == 5 && mod == 0)
            disp_bytes = 4;
    } else if (low == 5 && mod == 0) {
        disp_bytes = 4;
        insn->rip_relative = d->code64;
    }
    insn->base = (uint8_t)(low == 5 && mod == 0 ? GPR_ZERO : low | high);
    if (disp_bytes && !fetch(d, disp_bytes, &disp))
        return false;
    insn->disp = (int32_t)disp;
    insn->seg = insn->base == CPU_RSP || insn->base == CPU_RBP ? SEG_SS : SEG_DS;
    return true;
}

/* ModRM's operands, and what follows it up to the immediate. */
static bool take_operands(struct decoder *d, const struct decode_row *row)
{
    struct insn *insn = d->insn;
    uint32_t attr = row->opcode.attr;
    insn->reg = (insn->modrm >> 3 & 7) | (d->rex & REX_R ? 8 : 0);
    /* REX.R is nothing to MMX and segment registers. */
    if ((attr & ATTR_MMX_REG) || row->opcode.op == OP_MOV_TO_SEG ||
        row->opcode.op == OP_MOV_FROM_SEG)
        insn->reg &= 7;
    insn->is_mem = insn->modrm < 0xc0 && !(row->flags & ROW_REG_MOD);
    if (!insn->is_mem) {
        insn->rm = (insn->modrm & 7) | (d->rex & REX_B ? 8 : 0);
        if (attr & ATTR_MMX_RM)
            insn->rm &= 7;
        return true;
    }
    return insn->addr_bytes == 2 ? take_address16(d) : take_address32(d, attr & ATTR_VSIB);
}

/* --- immediate --- */

static bool take_immediate(struct decoder *d, const struct decode_row *row)
{
    struct insn *insn = d->insn;
    unsigned op_bytes = insn->op_bytes;
    int64_t value = 0, second = 0;
    bool enough = true;
    switch ((enum row_imm)row->imm) {
    case IMM_NONE:
        break;
    case IMM_B:
        enough = fetch(d, 1, &value);
        break;
    case IMM_UB:
        enough = fetch(d, 1, &value);
        value &= (row->opcode.attr & ATTR_IMM_REG) && !d->code64 ? 0x7f : 0xff;
        break;
    case IMM_UW:
        enough = fetch(d, 2, &value);
        value &= 0xffff;
        break;
    case IMM_Z:
        enough = fetch(d, op_bytes == 2 ? 2 : 4, &value);
        break;
    case IMM_V:
        enough = fetch(d, op_bytes, &value);
        if (op_bytes < 8)
            value &= (int64_t)((1ULL << (8 * op_bytes)) - 1);
        break;
    case IMM_MOFFS:
        enough = fetch(d, insn->addr_bytes, &value);
        value = (int64_t)((uint64_t)value & insn_addr_mask(insn));
        break;
    case IMM_FAR:
        enough = fetch(d, op_bytes, &value) && fetch(d, 2, &second);
        value = (int64_t)((uint64_t)value & (op_bytes == 2 ? 0xffff : 0xffffffff));
        insn->imm2 = (uint16_t)second;
        break;
    case IMM_ENTER:
        enough = fetch(d, 2, &value) && fetch(d, 1, &second);
        value &= 0xffff;
        insn->imm2 = (uint8_t)second;
        break;
    case IMM_BB:
        enough = fetch(d, 1, &value) && fetch(d, 1, &second);
        value &= 0xff;
        insn->imm2 = (uint8_t)second;
        break;
    case IMM_ONE:
        value = 1;
        break;
    }
    insn->imm = (uint64_t)value;
    return enough;
}

/* --- what is #UD though a row was found --- */

static bool uses_vvvv(uint8_t form)
{
    return form == FORM_REG_V_RM || form == FORM_V_RM || form == FORM_REG_RM_V ||
           form == FORM_RM_V_REG;
}

/* Registers that exist, registers that must differ. */
static bool operands_valid(const struct insn *insn, const struct decode_row *row)
{
    switch (row->opcode.op) {
    case OP_MOV_TO_CR:
    case OP_MOV_FROM_CR:
        return insn->reg <= 8 && (0x11d >> insn->reg & 1); /* 0, 2, 3, 4, 8 */
    case OP_MOV_TO_DR:
    case OP_MOV_FROM_DR:
        return insn->reg < 8;
    case OP_MOV_TO_SEG:
        return insn->reg < SEG_COUNT && insn->reg != SEG_CS;
    case OP_MOV_FROM_SEG:
        return insn->reg < SEG_COUNT;
    case OP_VEC_GATHER:
        return insn->addr_bytes != 2 && (insn->modrm & 7) == 4 && insn->reg != insn->index &&
               insn->reg != insn->vvvv && insn->index != insn->vvvv;
    default:
        return true;
    }
}

static bool row_valid(const struct decoder *d, const struct decode_row *row)
{
    const struct insn *insn = d->insn;
    uint32_t attr = row->opcode.attr;
    if (row->opcode.op == OP_UD || !has_feature(d, row))
        return false;
    if (attr & (d->code64 ? ATTR_NO64 : ATTR_ONLY64))
        return false;
    if ((attr & ATTR_PROTECTED) && !d->mode->vex)
        return false;
    if (d->lock && !((attr & ATTR_LOCKABLE) && insn->is_mem))
        return false;
    if (d->vex && (d->vex_bad || (d->vex_v != 0 && !uses_vvvv(row->opcode.form))))
        return false;
    return operands_valid(insn, row);
}

/* --- all together --- */

static void set_prefixes(const struct decoder *d, const struct decode_row *row)
{
    /* Of the prefixes the row asks for none is an override: it is part of the opcode. */
    unsigned pp_mask = (unsigned)(row->when >> 32) & 3;
    unsigned prefixes = 0;
    if (d->vex) {
        prefixes = PREFIX_VEX;
    } else {
        if (d->lock)
            prefixes |= PREFIX_LOCK;
        if (d->rep && !(pp_mask & 2))
            prefixes |= d->rep == 0xf3 ? PREFIX_REP : PREFIX_REPNE;
        if (d->opsize && !(pp_mask == 3 && d->pp == 1))
            prefixes |= PREFIX_OPSIZE;
        if (d->rex_seen)
            prefixes |= PREFIX_REX;
    }
    if (d->addrsize)
        prefixes |= PREFIX_ADDRSIZE;
    if ((d->rex & REX_W) && (d->code64 || (row->when >> 32 & KEY_W)))
        prefixes |= PREFIX_REX_W;
    d->insn->prefixes = (uint8_t)prefixes;
}

static void set_widths(struct decoder *d)
{
    struct insn *insn = d->insn;
    unsigned bits = d->mode->code_bits;
    if (d->code64) {
        d->width = d->rex & REX_W ? 8 : d->opsize && !d->vex ? 2 : 4;
        insn->addr_bytes = d->addrsize ? 4 : 8;
    } else {
        d->width = (bits == 16) != d->opsize ? 2 : 4;
        insn->addr_bytes = (bits == 16) != d->addrsize ? 2 : 4;
    }
}

/* What there is instead of ModRM operands. */
static void set_implied(struct decoder *d, const struct decode_row *row)
{
    struct insn *insn = d->insn;
    if (row->opcode.form == FORM_OPREG)
        insn->rm = (insn->opcode_byte & 7) | (d->rex & REX_B ? 8 : 0);
    if (row->opcode.op == OP_PUSH_SEG || row->opcode.op == OP_POP_SEG)
        insn->reg = insn->opcode_byte >> 3 & 7;
}

/* From the opcode on: the row, or NULL where bytes are missing. */
static const struct decode_row *decode_row(struct decoder *d)
{
    struct insn *insn = d->insn;
    const struct decode_row *list = find_list(d, insn->opcode_byte);
    const struct decode_row *row;
    if (!list)
        return &undefined_row;
    if ((list->flags & ROW_MODRM) && !fetch8(d, &insn->modrm))
        return NULL;
    row = find_row(d, list);
    if (!row)
        return &undefined_row;
    insn->op_bytes = operand_bytes(d, row);
    insn->mem_bytes = memory_bytes(d, row);
    if (!(row->flags & ROW_MODRM))
        set_implied(d, row);
    else if (!take_operands(d, row))
        return NULL;
    insn->vvvv = d->code64 ? d->vex_v : d->vex_v & 7;
    return take_immediate(d, row) ? row : NULL;
}

enum decode_status decode_insn(struct insn *insn, const uint8_t *bytes, size_t len,
                               const struct decode_mode *mode)
{
    struct decoder d = {
        .insn = insn,
        .mode = mode,
        .bytes = bytes,
        .limit = (uint8_t)(len < INSN_LEN_MAX ? len : INSN_LEN_MAX),
        .segment = NO_SEGMENT,
        .code64 = mode->code_bits == 64,
    };
    enum decode_status missing = len < INSN_LEN_MAX ? DECODE_MORE : DECODE_LONG;
    const struct decode_row *row;

    memset(insn, 0, sizeof(*insn));
    insn->base = insn->index = GPR_ZERO;
    insn->seg = SEG_DS;
    if (!take_opcode(&d, &insn->opcode_byte))
        return missing;
    set_widths(&d);
    row = decode_row(&d);
    if (!row)
        return missing;
    if (d.segment != NO_SEGMENT)
        insn->seg = d.segment;
    insn->opcode = &row->opcode;
    insn->op = row_valid(&d, row) ? row->opcode.op : OP_UD;
    insn->len = d.at;
    set_prefixes(&d, row);
    memcpy(insn->bytes, bytes, d.at);
    return DECODE_OK;
}
