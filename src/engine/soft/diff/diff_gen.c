/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows to instructions: the row's example with other prefixes, registers, addressing forms and
 * immediates, as long as it decodes to the same row.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/diff/diff.h"

#define TRIES 40

const char *const diff_group_names[DIFF_GROUPS] = {
    [DIFF_INT] = "int", [DIFF_STRING] = "string", [DIFF_FLOW] = "flow", [DIFF_VEC] = "vec",
    [DIFF_X87] = "x87", [DIFF_SAVE] = "save",     [DIFF_PRIV] = "priv",
};

/* --- which rows --- */

/* What cannot be compared, though it is no system instruction. */
static const char *int_reason(const struct opcode *o)
{
    switch (o->op) {
    case OP_RDRAND:
    case OP_RDSEED:
        return "random";
    case OP_MOVSXD:
        return o->mem_bytes == 2 ? "vendors differ" : NULL;
    default:
        return NULL;
    }
}

/* System instructions that are refused at CPL 3 whatever the operands. */
static bool is_refused(const struct opcode *o)
{
    if (o->attr & ATTR_PRIVILEGED)
        return true;
    switch (o->op) {
    case OP_CLI:
    case OP_STI:
    case OP_IN:
    case OP_OUT:
    case OP_INS:
    case OP_OUTS:
    case OP_CLAC:
    case OP_STAC:
    case OP_UD:
        return true;
    default:
        return false;
    }
}

static uint8_t vector_group(const struct opcode *o)
{
    if (o->op >= OP_FXSAVE)
        return DIFF_SAVE;
    return o->attr & ATTR_X87 || o->op == OP_FWAIT ? DIFF_X87 : DIFF_VEC;
}

static void classify(struct diff_row *row, insn_features features)
{
    const struct opcode *o = row->opcode;
    insn_features need = 1ULL << o->feature;
    if (o->attr & ATTR_AVX)
        need |= FEATURE(AVX);
    row->group = DIFF_NONE;
    if (is_refused(o)) {
        row->group = DIFF_PRIV;
    } else if (o->op >= OP_INT_END && o->op < OP_SYS_END) {
        row->why = "of the system's state";
        return;
    } else if (o->op < OP_INT_END) {
        row->why = int_reason(o);
        if (row->why)
            return;
        row->group = o->attr & ATTR_STRING   ? DIFF_STRING
                     : o->attr & ATTR_BRANCH ? DIFF_FLOW
                                             : DIFF_INT;
    } else {
        row->group = vector_group(o);
    }
    if (need & ~features & ~FEATURE(BASE)) {
        row->group = DIFF_NONE;
        row->why = "not in this host's processor";
    }
}

static struct diff_example make_example(size_t index, unsigned code_bits, insn_features features)
{
    const struct decode_mode mode = {.code_bits = code_bits, .vex = true, .features = features};
    struct diff_example example = {0};
    int modrm_at;
    example.len = (uint8_t)decode_opcode_example(index, &mode, example.bytes, &modrm_at);
    example.modrm_at = (int8_t)modrm_at;
    return example;
}

int diff_rows_init(struct diff_rows *rows, insn_features features)
{
    rows->count = decode_opcode_count();
    rows->rows = calloc(rows->count, sizeof(*rows->rows));
    if (!rows->rows)
        return -ENOMEM;
    for (size_t i = 0; i < rows->count; i++) {
        struct diff_row *row = &rows->rows[i];
        row->opcode = decode_opcode_at(i);
        row->example[0] = make_example(i, 64, features);
        row->example[1] = make_example(i, 32, features);
        row->example[2] = make_example(i, 16, features);
        classify(row, features);
    }
    return 0;
}

void diff_rows_free(struct diff_rows *rows)
{
    free(rows->rows);
    rows->rows = NULL;
    rows->count = 0;
}

/* --- bytes --- */

/* An instruction as it is put together. */
struct draft {
    struct diff_random *r;
    const struct decode_mode *mode;
    const struct opcode *opcode;
    const uint8_t *example;
    size_t example_len;
    int modrm_at; /* in the example, or -1 */
    size_t body;  /* where the example's escape byte, opcode or VEX is: behind its prefixes */
    uint8_t bytes[32];
    size_t len;
    size_t disp_at, disp_len;
};

static void put(struct draft *d, unsigned byte)
{
    d->bytes[d->len++] = (uint8_t)byte;
}

static bool is_legacy_prefix(uint8_t byte)
{
    switch (byte) {
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
        return true;
    default:
        return false;
    }
}

static bool is_rex(const struct draft *d, uint8_t byte)
{
    return d->mode->code_bits == 64 && (byte & 0xf0) == 0x40;
}

static bool is_vex(const struct draft *d)
{
    return d->example[d->body] == 0xc4 && d->opcode->op != OP_LES;
}

static void find_body(struct draft *d)
{
    d->body = 0;
    while (is_legacy_prefix(d->example[d->body]) || is_rex(d, d->example[d->body]))
        d->body++;
}

/* Segment overrides: FS is the host's own, GS has a base in 64-bit code only, and CS of 16-bit code
 * does not reach the arena. */
static void put_segment(struct draft *d)
{
    static const uint8_t prefixes[] = {0x26, 0x36, 0x3e, 0x2e};
    if (d->mode->code_bits == 64 && diff_one_in(d->r, 2))
        put(d, 0x65);
    else
        put(d, prefixes[diff_below(d->r, d->mode->code_bits == 16 ? 3 : 4)]);
}

static void put_prefixes(struct draft *d)
{
    bool string = d->opcode->attr & ATTR_STRING;
    if (diff_one_in(d->r, 8))
        put_segment(d);
    if (diff_one_in(d->r, 8))
        put(d, 0x67);
    /* Vendors differ in what the operand size does to near branches in 64-bit code, and to how much
     * MOVSXD reads. */
    bool differs =
        (d->opcode->attr & ATTR_BRANCH && d->mode->code_bits == 64) || d->opcode->op == OP_MOVSXD;
    if (diff_one_in(d->r, 6) && !differs)
        put(d, 0x66);
    /* Reserved before others; before LOOPE and LOOPNE AMD's processors take them for the condition.
     */
    bool loop = d->opcode->op == OP_LOOPE || d->opcode->op == OP_LOOPNE;
    if (!loop && diff_one_in(d->r, string ? 2 : 24))
        put(d, diff_one_in(d->r, 2) ? 0xf2 : 0xf3);
    if (diff_one_in(d->r, d->opcode->attr & ATTR_LOCKABLE ? 4 : 200))
        put(d, 0xf0);
    /* The row's own come last, so that they count. */
    for (size_t i = 0; i < d->body; i++) {
        if (is_legacy_prefix(d->example[i]))
            put(d, d->example[i]);
    }
}

static void put_rex(struct draft *d)
{
    unsigned rex = 0;
    for (size_t i = 0; i < d->body; i++) {
        if (is_rex(d, d->example[i]))
            rex = d->example[i];
    }
    if (d->mode->code_bits != 64 || is_vex(d))
        return;
    if (diff_one_in(d->r, 2))
        rex |= 0x40 | diff_below(d->r, 16);
    if (rex)
        put(d, rex);
}

/* VEX with other R, X, B, vvvv, L and W; the three-byte form. */
static void put_vex(struct draft *d)
{
    const uint8_t *vex = d->example + d->body;
    unsigned second = vex[1], third = vex[2], form = d->opcode->form;
    bool uses_v = form == FORM_REG_V_RM || form == FORM_V_RM || form == FORM_REG_RM_V ||
                  form == FORM_RM_V_REG;
    if (d->mode->code_bits == 64)
        second ^= diff_below(d->r, 8) << 5;
    if (uses_v || diff_one_in(d->r, 200))
        third = (third & ~0x78u) | diff_below(d->r, 16) << 3;
    if (diff_one_in(d->r, 2))
        third ^= diff_below(d->r, 2) << 2;
    if (diff_one_in(d->r, 4))
        third ^= 0x80;
    put(d, 0xc4);
    put(d, second);
    put(d, third);
}

static unsigned random_disp8(struct draft *d)
{
    return (unsigned)diff_random(d->r) & 0xff;
}

static uint32_t random_disp32(struct draft *d)
{
    uint32_t value = (uint32_t)diff_random(d->r);
    return diff_one_in(d->r, 2) ? value : (uint32_t)((int32_t)value >> 20);
}

/* A place in the arena for an operand that no register moves. */
static uint32_t fixed_place(struct draft *d)
{
    uint32_t page = diff_below(d->r, DIFF_PAGES) * DIFF_PAGE;
    uint32_t offset = diff_one_in(d->r, 3) ? DIFF_PAGE - 1 - diff_below(d->r, 40)
                                           : diff_below(d->r, DIFF_PAGE) & ~31u;
    return (uint32_t)DIFF_ARENA + page + offset;
}

static void put_disp(struct draft *d, size_t len, uint32_t value)
{
    d->disp_at = d->len;
    d->disp_len = len;
    for (size_t i = 0; i < len; i++)
        put(d, value >> (8 * i) & 0xff);
}

/* ModRM and what belongs to it. keep_reg, keep_rm: those bits are the row's. */
static void put_modrm(struct draft *d, bool keep_reg, bool keep_rm)
{
    unsigned example = d->example[d->modrm_at];
    unsigned reg = keep_reg ? example >> 3 & 7 : diff_below(d->r, 8);
    bool memory = keep_rm ? example < 0xc0 : diff_below(d->r, 5) < 3;
    unsigned mod = memory ? diff_below(d->r, 3) : 3;
    unsigned rm = keep_rm && !memory ? example & 7 : diff_below(d->r, 8);
    bool narrow = d->mode->code_bits == 16; /* 16-bit forms */
    for (size_t i = 0; i < d->len && d->mode->code_bits != 64; i++)
        narrow ^= d->bytes[i] == 0x67 && !memchr(d->bytes, 0x67, i);
    if (d->opcode->attr & ATTR_VSIB)
        rm = 4;
    put(d, mod << 6 | reg << 3 | rm);
    if (!memory)
        return;
    if (narrow) {
        size_t len = mod == 1 ? 1 : mod == 2 || rm == 6 ? 2 : 0;
        put_disp(d, len, random_disp32(d));
        return;
    }
    if (rm == 4) {
        unsigned sib = (unsigned)diff_random(d->r) & 0xff;
        put(d, sib);
        rm = sib & 7;
    }
    if (mod == 1)
        put_disp(d, 1, random_disp8(d));
    else if (mod == 2)
        put_disp(d, 4, random_disp32(d));
    else if (rm == 5)
        put_disp(d, 4, fixed_place(d));
}

static void put_immediate(struct draft *d)
{
    uint64_t bits = diff_random(d->r);
    if (diff_one_in(d->r, 3))
        bits &= 0x3f;
    for (unsigned i = 0; i < 8; i++)
        put(d, bits >> (8 * i) & 0xff);
}

static void make_draft(struct draft *d, bool keep_reg, bool keep_rm)
{
    size_t opcode_end = d->modrm_at >= 0 ? (size_t)d->modrm_at : d->example_len;
    size_t from = d->body;
    d->len = 0;
    d->disp_len = 0;
    if (!is_vex(d) || diff_one_in(d->r, 30))
        put_prefixes(d);
    else if (diff_one_in(d->r, 4))
        put_segment(d);
    put_rex(d);
    if (is_vex(d)) {
        put_vex(d);
        from += 3;
    }
    for (; from < opcode_end; from++)
        put(d, d->example[from]);
    if (d->modrm_at < 0 && d->opcode->form == FORM_OPREG)
        d->bytes[d->len - 1] = (uint8_t)((d->bytes[d->len - 1] & ~7u) | diff_below(d->r, 8));
    if (d->modrm_at >= 0)
        put_modrm(d, keep_reg, keep_rm);
    put_immediate(d);
}

/* --- operands that are in the instruction itself --- */

static void patch(struct draft *d, size_t at, size_t len, uint64_t value)
{
    for (size_t i = 0; i < len; i++)
        d->bytes[at + i] = (uint8_t)(value >> (8 * i));
}

/* A branch lands between the instructions. */
static uint64_t random_target(struct diff_random *r, uint64_t address)
{
    uint64_t slot = address & ~(uint64_t)(DIFF_SLOT - 1);
    uint64_t from = address + 24;
    return from + diff_below(r, (unsigned)(slot + DIFF_SLOT - from));
}

/* A target that a displacement of 8 bits reaches. */
static uint64_t near_target(struct diff_random *r, uint64_t address)
{
    return address + 32 + diff_below(r, 90);
}

static void fix_branch(struct draft *d, struct diff_insn *out)
{
    const struct insn *insn = &out->insn;
    unsigned op = insn->op;
    size_t len = insn->len - d->len + 8; /* of the immediate: d->len counts eight bytes for it */
    uint64_t base = out->mode->cs.base, next = out->address - base + insn->len;
    bool relative = op == OP_JCC || op == OP_JMP || op == OP_CALL || op == OP_LOOP ||
                    op == OP_LOOPE || op == OP_LOOPNE || op == OP_JCXZ;
    if (!relative)
        return;
    out->target =
        (len == 1 ? near_target(d->r, out->address) : random_target(d->r, out->address)) - base;
    if (len == 2 && d->mode->code_bits == 32) {
        /* EIP keeps 16 bits: nothing is there. */
        out->target = (uint64_t)(uint16_t)diff_below(d->r, 0x8000);
    }
    patch(d, insn->len - len, len, out->target - next);
}

/* Offsets that are absolute, or from RIP. */
static void fix_place(struct draft *d, struct diff_insn *out)
{
    const struct insn *insn = &out->insn;
    uint64_t place = fixed_place(d) - diff_base(out->mode, insn->seg);
    bool absolute = insn->is_mem && insn->base == GPR_ZERO && insn->index == GPR_ZERO;
    if (insn->rip_relative)
        patch(d, d->disp_at, 4, place - (out->address + insn->len));
    else if (absolute && d->disp_len == 4)
        patch(d, d->disp_at, 4, place);
    if (insn->op == OP_MOV_MOFFS_LOAD || insn->op == OP_MOV_MOFFS_STORE)
        patch(d, insn->len - (size_t)insn->addr_bytes, insn->addr_bytes, place);
}

static bool decodes(struct draft *d, struct insn *insn, bool allow_undefined)
{
    return decode_insn(insn, d->bytes, d->len, d->mode) == DECODE_OK && insn->opcode == d->opcode &&
           (insn->op == d->opcode->op || allow_undefined);
}

static bool uses_fpu(const struct opcode *o)
{
    return o->op >= OP_VEC_BASE && o->op < OP_VEC_END;
}

bool diff_make_insn(struct diff_random *r, struct diff_insn *out, const struct diff_row *row,
                    const struct diff_mode *mode, const struct decode_mode *decode,
                    uint64_t address)
{
    const struct diff_example *example = diff_example_of(row, mode->code_bits);
    struct draft d = {
        .r = r,
        .mode = decode,
        .opcode = row->opcode,
        .example = example->bytes,
        .example_len = example->len,
        .modrm_at = example->modrm_at,
    };
    *out = (struct diff_insn){
        .address = address,
        .target = random_target(r, address) - mode->cs.base,
        .mode = mode,
        .uses_fpu = uses_fpu(row->opcode),
    };
    if (example->len == 0)
        return false;
    find_body(&d);
    for (unsigned i = 0; i < TRIES; i++) {
        make_draft(&d, i >= 8, i >= 16);
        if (!decodes(&d, &out->insn, diff_one_in(r, 64)))
            continue;
        fix_branch(&d, out);
        fix_place(&d, out);
        if (!decodes(&d, &out->insn, true))
            continue;
        out->insn.next_offset = out->insn.len;
        return true;
    }
    return false;
}
