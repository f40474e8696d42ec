/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers and memory for an instruction: operands in the arena, near the ends of its pages;
 * values that decide something. Then all memory that the instruction will touch is listed, from the
 * registers as they have come out, and a state that would touch anything else is not used.
 */
#include <string.h>

#include "engine/soft/diff/diff.h"
#include "engine/soft/exec_vec.h"
#include "engine/soft/exec_xsave.h"

#define TRIES      30
#define REPEAT_MAX 80

#ifdef __SANITIZE_THREAD__
#define AC_TESTED 0ULL /* its own handler of signals runs before ours, with AC as it was */
#else
#define AC_TESTED RFLAGS_AC
#endif

/* The selectors of the process, and those of the table that the native side makes: 7, 15, ... */
#define FLAT_DATA                                                                                  \
    {                                                                                              \
        .limit = UINT32_MAX, .selector = 0x2b, .wide = true                                        \
    }

const struct diff_mode diff_modes[DIFF_MODES] = {
    [DIFF_MODE_64] = {"64-bit",
                      64, {.limit = UINT32_MAX, .selector = 0x33, .wide = true},
                      FLAT_DATA,                                    FLAT_DATA,
                      FLAT_DATA                                        },
    [DIFF_MODE_32] = {"32-bit",
                      32, {.limit = UINT32_MAX, .selector = 0x23, .wide = true},
                      FLAT_DATA,                                    FLAT_DATA,
                      FLAT_DATA                                        },
    [DIFF_MODE_ES] = {"32-bit, other ES",
                      32, {.limit = UINT32_MAX, .selector = 0x23, .wide = true},
                      FLAT_DATA,                                    {DIFF_ARENA - 0x1230, 0xcfff, 0x0f, true, false},
                      FLAT_DATA                                        },
    [DIFF_MODE_LIMITS] = {"32-bit, limited",
                      32, {.limit = UINT32_MAX, .selector = 0x23, .wide = true},
                      {0, DIFF_ARENA + 0x9fff, 0x07, true, false},
                      {DIFF_ARENA - 0x1230, 0xcfff, 0x0f, true, false},
                      {DIFF_ARENA - 0x10000, 0x13fff, 0x17, true, true}},
    [DIFF_MODE_16] = {"16-bit",
                      16, {DIFF_CODE, UINT16_MAX, 0x1f, false, false},
                      {DIFF_ARENA, UINT16_MAX, 0x27, false, false},
                      {DIFF_ARENA, UINT16_MAX, 0x27, false, false},
                      {DIFF_ARENA, UINT16_MAX, 0x27, false, false}     },
};

/* W writable, R read-only, - missing: two of a kind beside each other, and every change. */
const char diff_page_kinds[DIFF_PAGES + 1] = "-WWRW-RRW-WWW-R-";

/* --- values --- */

static uint64_t random_value(struct diff_random *r)
{
    static const uint64_t special[] = {
        0,         1,          2,          0x7f,        0x80,       0xff,
        0x7fff,    0x8000,     0xffff,     0x7fffffff,  0x80000000, 0xffffffff,
        INT64_MAX, 1ULL << 63, UINT64_MAX, 0x100000000, 63,         31,
    };
    switch (diff_below(r, 5)) {
    case 0:
        return special[diff_below(r, sizeof(special) / sizeof(special[0]))];
    case 1:
        return diff_below(r, 256);
    case 2:
        return (uint64_t)((int64_t)diff_random(r) >> diff_below(r, 64));
    default:
        return diff_random(r);
    }
}

static uint32_t random_single(struct diff_random *r)
{
    static const uint32_t special[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000,
                                       0xff800000, 0x7fc00000, 0x7f800001, 0x00000001, 0x007fffff,
                                       0x00800000, 0x7f7fffff, 0x4f000000, 0x3fc00000};
    switch (diff_below(r, 4)) {
    case 0:
        return special[diff_below(r, sizeof(special) / sizeof(special[0]))];
    case 1: { /* of middling size */
        uint32_t bits = (uint32_t)diff_random(r);
        return (bits & 0x807fffff) | (112 + (bits >> 8 & 31)) << 23;
    }
    default:
        return (uint32_t)diff_random(r);
    }
}

static uint64_t random_double(struct diff_random *r)
{
    static const uint64_t special[] = {
        0,
        1ULL << 63,
        0x3ff0000000000000,
        0x7ff0000000000000,
        0xfff0000000000000,
        0x7ff8000000000000,
        0x7ff0000000000001,
        1,
        0x000fffffffffffff,
        0x0010000000000000,
        0x7fefffffffffffff,
        0x41e0000000000000,
        0x43e0000000000000,
        0x36a0000000000000,
    };
    switch (diff_below(r, 4)) {
    case 0:
        return special[diff_below(r, sizeof(special) / sizeof(special[0]))];
    case 1: {
        uint64_t bits = diff_random(r);
        return (bits & 0x800fffffffffffff) | (1008 + (bits >> 8 & 31)) << 52;
    }
    default:
        return diff_random(r);
    }
}

/* 16 bytes of one kind. */
static void random_vector(struct diff_random *r, uint8_t to[16])
{
    uint64_t words[2];
    unsigned kind = diff_below(r, 4);
    for (unsigned i = 0; i < 2; i++) {
        words[i] = kind == 0   ? random_single(r) | (uint64_t)random_single(r) << 32
                   : kind == 1 ? random_double(r)
                   : kind == 2 ? (diff_random(r) & 0x8f8f8f8f8f8f8f8fULL)
                               : random_value(r);
    }
    memcpy(to, words, 16);
}

static void random_st(struct diff_random *r, uint8_t st[16])
{
    static const uint16_t exponents[] = {0, 1, 0x3fff, 0x4000, 0x7fff, 0x403e, 0x3f80, 0x43ff};
    uint64_t mantissa = diff_one_in(r, 4) ? 0 : diff_random(r);
    unsigned pick = diff_below(r, 12);
    uint16_t exponent = pick < 8 ? exponents[pick] : (uint16_t)(0x3feb + diff_below(r, 80));
    if (exponent && !diff_one_in(r, 8))
        mantissa |= 1ULL << 63;
    exponent |= (uint16_t)(diff_below(r, 2) << 15);
    memset(st, 0, 16);
    memcpy(st, &mantissa, 8);
    memcpy(st + 8, &exponent, 2);
}

/* All of it but the vector registers. */
static void random_control(struct diff_random *r, struct soft_fpu *f)
{
    bool masked = !diff_one_in(r, 4);
    uint32_t mxcsr = 0x1f80 | diff_below(r, 4) << 13 | (diff_one_in(r, 4) ? 1u << 15 : 0) |
                     (diff_one_in(r, 4) ? 1u << 6 : 0) |
                     (diff_one_in(r, 3) ? diff_below(r, 64) : 0);
    uint16_t fcw = (uint16_t)(0x7f | diff_below(r, 4) << 8 | diff_below(r, 4) << 10);
    uint16_t fsw = (uint16_t)(diff_below(r, 8) << 11 | (diff_random(r) & 0x4700));
    uint32_t mask = MXCSR_VALID;
    if (!masked) {
        fcw = (uint16_t)(fcw & ~diff_below(r, 64));
        mxcsr &= ~(diff_below(r, 64) << 7);
    }
    if ((fcw & 0x300) == 0x100) /* a precision that there is not */
        fcw |= 0x300;
    /* Now and then an exception is pending. */
    fsw |= (uint16_t)(diff_below(r, 64) & (diff_one_in(r, 16) ? 0x3f : fcw & 0x3f));
    if (fsw & ~fcw & 0x3f)
        fsw |= FSW_ES_B;
    memset(f, 0, offsetof(struct soft_fpu, st));
    memcpy(f->x87 + X87_FCW, &fcw, 2);
    memcpy(f->x87 + X87_FSW, &fsw, 2);
    f->x87[X87_TAGS] = (uint8_t)(diff_one_in(r, 3) ? diff_random(r) : 0xff);
    memcpy(f->x87 + X87_MXCSR, &mxcsr, 4);
    memcpy(f->x87 + X87_MXCSR_MASK, &mask, 4);
}

static void random_fpu(struct diff_random *r, struct soft_fpu *f)
{
    random_control(r, f);
    memset(f->reserved, 0, sizeof(f->reserved));
    memset(f->header, 0, sizeof(f->header));
    f->header[0] = 7;
    f->pkru = 0;
    for (unsigned i = 0; i < 8; i++)
        random_st(r, f->st[i]);
    for (unsigned i = 0; i < 16; i++) {
        random_vector(r, f->xmm[i]);
        random_vector(r, f->ymm_hi[i]);
    }
}

/* --- places --- */

/* Where nothing can be accessed: in the gap of addresses that are not canonical, across one of its
 * ends, or across the end of all addresses. */
static uint64_t outside(struct diff_random *r, unsigned len)
{
    static const uint64_t ends[] = {DIFF_GAP, DIFF_GAP_END, 0};
    if (diff_one_in(r, 2))
        return (diff_random(r) & 0x0000ffffffffffffULL) | 0x5a5aULL << 48;
    return ends[diff_below(r, 3)] - diff_below(r, len + 4) +
           (diff_one_in(r, 4) ? diff_below(r, 16) : 0);
}

/* An address for an operand of len bytes. */
static uint64_t random_place(struct diff_random *r, const struct diff_insn *d, unsigned len)
{
    if (d->mode->code_bits == 64 && diff_one_in(r, 40))
        return outside(r, len);
    uint64_t page = DIFF_ARENA + (uint64_t)diff_below(r, DIFF_PAGES) * DIFF_PAGE;
    uint64_t place = page + diff_below(r, DIFF_PAGE);
    if (diff_one_in(r, 2)) { /* a page that is there */
        static const uint8_t good[] = {1, 2, 4, 8, 10, 11, 12};
        page = DIFF_ARENA + (uint64_t)good[diff_below(r, sizeof(good))] * DIFF_PAGE;
        place = page + diff_below(r, DIFF_PAGE - len % DIFF_PAGE);
    } else if (diff_one_in(r, 2)) {
        place = page + DIFF_PAGE - diff_below(r, len + 4);
    }
    unsigned align = d->insn.op >= OP_XSAVE && d->insn.op < OP_VEC_END ? 64
                     : d->insn.op >= OP_FXSAVE                         ? 16
                     : d->insn.opcode->attr & ATTR_ALIGNED             ? d->insn.mem_bytes
                                                                       : 1;
    if (align > 1 && !diff_one_in(r, 16))
        place &= ~(uint64_t)(align - 1);
    else if (diff_one_in(r, 2))
        place &= ~7ULL;
    return place;
}

/* Of the memory operand. */
static uint64_t segment_base(const struct diff_insn *d)
{
    return diff_base(d->mode, d->insn.seg);
}

static uint64_t linear_mask(bool code64)
{
    return code64 ? UINT64_MAX : UINT32_MAX;
}

static uint64_t stack_mask(const struct diff_mode *mode)
{
    return mode->code_bits == 64 ? UINT64_MAX : mode->ss.wide ? UINT32_MAX : UINT16_MAX;
}

/* The effective address with these registers. */
static uint64_t offset_of(const struct diff_insn *d, const uint64_t gpr[16])
{
    const struct insn *insn = &d->insn;
    uint64_t base = insn->base == GPR_ZERO ? 0 : gpr[insn->base];
    uint64_t index =
        insn->index == GPR_ZERO || insn->opcode->attr & ATTR_VSIB ? 0 : gpr[insn->index];
    uint64_t offset = base + (index << insn->scale) + (uint64_t)(int64_t)insn->disp;
    if (insn->rip_relative)
        offset += d->address + insn->len;
    return offset & insn_addr_mask(insn);
}

/* Set base and index so that the operand is at la. */
static void aim(struct diff_random *r, const struct diff_insn *d, uint64_t gpr[16], uint64_t la)
{
    const struct insn *insn = &d->insn;
    bool has_index = insn->index != GPR_ZERO && !(insn->opcode->attr & ATTR_VSIB);
    uint64_t offset = la - segment_base(d) - (uint64_t)(int64_t)insn->disp;
    uint64_t above = insn->addr_bytes == 8 ? 0 : diff_random(r) & ~insn_addr_mask(insn);
    if (insn->base == GPR_ZERO && !has_index)
        return;
    if (insn->base == GPR_ZERO) {
        gpr[insn->index] = (uint64_t)((int64_t)offset >> insn->scale);
    } else if (!has_index) {
        gpr[insn->base] = offset;
    } else if (insn->base == insn->index) {
        gpr[insn->base] = (uint64_t)((int64_t)offset / ((1 << insn->scale) + 1));
    } else {
        gpr[insn->base] = offset - (gpr[insn->index] << insn->scale);
    }
    /* What the address size cuts off does not count. */
    if (insn->base != GPR_ZERO && insn->base != insn->index)
        gpr[insn->base] = (gpr[insn->base] & insn_addr_mask(insn)) | above;
}

/* --- lists of accesses --- */

static void add_access(struct diff_case *c, uint64_t la, uint32_t len)
{
    if (len && c->access_count < DIFF_ACCESSES)
        c->accesses[c->access_count++] = (struct diff_access){la, len};
}

/* How much memory the r/m operand is. */
static unsigned operand_bytes(const struct insn *insn)
{
    if (insn->op == OP_FXSAVE || insn->op == OP_FXRSTOR)
        return 512;
    if (insn->op >= OP_XSAVE && insn->op < OP_VEC_END)
        return XSAVE_AVX_OFFSET + XSAVE_AVX_BYTES;
    if (insn->opcode->attr & ATTR_VSIB)
        return 0;
    return insn->mem_bytes ? insn->mem_bytes : insn->op_bytes;
}

/* Bit strings: how far from the operand BT with a register goes. */
static int64_t bit_displacement(const struct insn *insn, const uint64_t gpr[16])
{
    if (insn->op != OP_BT && insn->op != OP_BTS && insn->op != OP_BTR && insn->op != OP_BTC)
        return 0;
    unsigned shift = 64 - 8u * insn->op_bytes;
    int64_t offset = (int64_t)(gpr[insn->reg] << shift) >> shift;
    return (offset >> (insn->op_bytes == 2 ? 4 : insn->op_bytes == 4 ? 5 : 6)) * insn->op_bytes;
}

static void list_string(struct diff_case *c, bool code64)
{
    const struct insn *insn = &c->d->insn;
    const uint64_t *gpr = c->start.gpr;
    uint64_t count =
        insn->prefixes & (PREFIX_REP | PREFIX_REPNE) ? gpr[CPU_RCX] & insn_addr_mask(insn) : 1;
    uint64_t len = count * insn->op_bytes;
    bool down = c->start.rflags & RFLAGS_DF;
    uint64_t mask = linear_mask(code64);
    uint64_t back = down && count ? len - insn->op_bytes : 0;
    bool source = insn->op != OP_STOS && insn->op != OP_SCAS;
    bool destination = insn->op != OP_LODS;
    if (len > 1u << 16)
        len = UINT32_MAX; /* is refused */
    if (source)
        add_access(c, (segment_base(c->d) + (gpr[CPU_RSI] & insn_addr_mask(insn)) - back) & mask,
                   (uint32_t)len);
    if (destination)
        add_access(c,
                   (diff_base(c->d->mode, SEG_ES) + (gpr[CPU_RDI] & insn_addr_mask(insn)) - back) &
                       mask,
                   (uint32_t)len);
}

static void list_stack(struct diff_case *c)
{
    const struct insn *insn = &c->d->insn;
    uint64_t mask = stack_mask(c->d->mode), base = diff_base(c->d->mode, SEG_SS);
    uint64_t rsp = base + (c->start.gpr[CPU_RSP] & mask);
    uint64_t rbp = base + (c->start.gpr[CPU_RBP] & mask);
    if (mask == UINT16_MAX) { /* wraps, and is the arena */
        add_access(c, DIFF_ARENA, DIFF_PAGES * DIFF_PAGE);
    } else if (insn->op == OP_ENTER) {
        unsigned level = insn->imm2 & 31;
        add_access(c, rsp - 8 * (level + 2), 8 * (level + 2));
        add_access(c, rbp - 8 * (level + 1), 8 * (level + 2));
        /* And the new stack's end is looked at. */
        add_access(c, rsp - 8 * (level + 2) - (insn->imm & 0xffff), 8);
    } else if (insn->op == OP_LEAVE) {
        add_access(c, rbp, 8);
    } else {
        add_access(c, rsp - 40, 80);
    }
}

static void list_gather(struct diff_case *c, bool code64)
{
    const struct insn *insn = &c->d->insn;
    unsigned index_bytes = insn->opcode_byte & 1 ? 8 : 4, size = insn->mem_bytes;
    unsigned count = insn->op_bytes / (size > index_bytes ? size : index_bytes);
    uint64_t start = offset_of(c->d, c->start.gpr);
    for (unsigned i = 0; i < count; i++) {
        unsigned at = i * index_bytes;
        const uint8_t *from = at < 16 ? c->start.fpu.xmm[insn->index] + at
                                      : c->start.fpu.ymm_hi[insn->index] + (at - 16);
        int64_t index = 0;
        int32_t narrow;
        memcpy(&narrow, from, 4);
        index = narrow;
        if (index_bytes == 8)
            memcpy(&index, from, 8);
        uint64_t offset = (start + ((uint64_t)index << insn->scale)) & insn_addr_mask(insn);
        add_access(c, (offset + segment_base(c->d)) & linear_mask(code64), size);
    }
}

static void list_accesses(struct diff_case *c, bool code64)
{
    const struct insn *insn = &c->d->insn;
    const uint64_t *gpr = c->start.gpr;
    uint64_t mask = linear_mask(code64), base = segment_base(c->d);
    uint32_t attr = insn->opcode->attr;
    c->access_count = 0;
    if (insn->op == OP_UD)
        return;
    if (insn->is_mem && attr & (ATTR_MEM_READ | ATTR_MEM_WRITE) && insn->op != OP_VEC_GATHER) {
        uint64_t la = base + offset_of(c->d, gpr) + (uint64_t)bit_displacement(insn, gpr);
        add_access(c, la & mask, operand_bytes(insn));
    }
    if (insn->op == OP_MOV_MOFFS_LOAD || insn->op == OP_MOV_MOFFS_STORE)
        add_access(c, (base + insn->imm) & mask, insn->op_bytes);
    if (insn->op == OP_XLAT)
        add_access(
            c, (base + ((gpr[CPU_RBX] + (uint8_t)gpr[CPU_RAX]) & insn_addr_mask(insn))) & mask, 1);
    if (insn->op == OP_VEC_MASKMOVDQU) {
        uint64_t offset = gpr[CPU_RDI] & insn_addr_mask(insn);
        add_access(c, (base + offset) & mask, 16);
        if (offset > insn_addr_mask(insn) - 16) /* its bytes go on at 0 */
            add_access(c, base & mask, 16);
    }
    if (insn->op == OP_MOVDIR64B)
        add_access(c,
                   (diff_base(c->d->mode, SEG_ES) + (gpr[insn->reg] & insn_addr_mask(insn))) & mask,
                   64);
    if (attr & ATTR_STRING)
        list_string(c, code64);
    if (attr & ATTR_STACK || insn->op == OP_CALL || insn->op == OP_CALL_IND)
        list_stack(c);
    if (insn->op == OP_VEC_GATHER)
        list_gather(c, code64);
}

/* Nothing of the process is there. */
static bool is_harmless(const struct diff_access *a)
{
    uint64_t last = a->la + a->len - 1;
    if (a->len > 1u << 16)
        return false;
    if (a->la < 0x10000 && last < 0x10000)
        return true;
    if (a->la >= DIFF_ARENA - DIFF_SPACE / 2 && last < DIFF_ARENA + DIFF_SPACE / 2)
        return true;
    /* The gap, and a page on either side of it: the lower one Linux never gives away. */
    if (a->la >= DIFF_GAP - DIFF_PAGE && last >= a->la && last < DIFF_GAP_END + DIFF_PAGE)
        return true;
    /* The last page of all and the first. */
    return a->la >= 0 - (uint64_t)DIFF_PAGE && (last >= a->la || last < 0x10000);
}

static bool all_harmless(const struct diff_case *c)
{
    for (unsigned i = 0; i < c->access_count; i++) {
        if (!is_harmless(&c->accesses[i]))
            return false;
    }
    return c->access_count < DIFF_ACCESSES;
}

/* --- memory that the instruction wants in a certain state --- */

static void set_poke(struct diff_case *c, uint64_t la, const void *bytes, uint32_t len)
{
    c->poke.la = la;
    c->poke.len = len;
    memcpy(c->poke.bytes, bytes, len);
}

/* The bytes that are at la now; zeroes outside of the arena. */
static uint64_t memory_at(const uint8_t *memory, uint64_t la, unsigned len)
{
    uint64_t value = 0;
    if (la >= DIFF_ARENA && la <= DIFF_ARENA + DIFF_PAGES * DIFF_PAGE - len)
        memcpy(&value, memory + (la - DIFF_ARENA), len);
    return value;
}

static uint64_t operand_la(const struct diff_case *c, bool code64)
{
    return (segment_base(c->d) + offset_of(c->d, c->start.gpr)) & linear_mask(code64);
}

/* Components of XSAVE that the host's processor has now and the engine's has not: AVX-512's, PKRU.
 */
static uint64_t components_of_host_alone(void)
{
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low | (uint64_t)high << 32) & ~7ULL;
}

/* An image that FXRSTOR and XRSTOR take, most of the time. */
static void poke_image(struct diff_random *r, struct diff_case *c, uint64_t la)
{
    struct soft_fpu f;
    uint64_t present = diff_below(r, 8), format = 0;
    random_fpu(r, &f);
    memset(f.header, 0, sizeof(f.header));
    if (diff_one_in(r, 2) && c->d->insn.op != OP_FXRSTOR)
        format = 1ULL << 63 | present | diff_below(r, 8);
    if (diff_one_in(r, 16))
        format ^= 1ULL << diff_below(r, 64);
    if (diff_one_in(r, 16))
        present |= 1ULL << (3 + diff_below(r, 6));
    present &= ~components_of_host_alone();
    format &= ~components_of_host_alone();
    memcpy(f.header, &present, 8);
    memcpy(f.header + 8, &format, 8);
    if (diff_one_in(r, 16))
        f.header[16 + diff_below(r, 48)] = 1;
    if (diff_one_in(r, 16))
        f.x87[X87_MXCSR + 3] = 1;
    set_poke(c, la, &f, XSAVE_AVX_OFFSET + XSAVE_AVX_BYTES);
}

/* What the stack holds: a place to return to, flags that do not stop the tester. */
static void poke_stack(struct diff_random *r, struct diff_case *c, const uint8_t *memory)
{
    const struct insn *insn = &c->d->insn;
    uint64_t rsp = diff_base(c->d->mode, SEG_SS) + (c->start.gpr[CPU_RSP] & stack_mask(c->d->mode));
    uint64_t value = c->d->target;
    if (insn->op == OP_POPF) {
        value = memory_at(memory, rsp, 8) & ~(RFLAGS_TF | (RFLAGS_AC & ~AC_TESTED));
        if (diff_one_in(r, 2))
            value &= ~(uint64_t)RFLAGS_NT;
    }
    if (insn->op == OP_POPF || insn->op == OP_RET)
        set_poke(c, rsp, &value, insn->op_bytes);
}

static void make_poke(struct diff_random *r, struct diff_case *c, const uint8_t *memory,
                      bool code64)
{
    const struct insn *insn = &c->d->insn;
    uint64_t value;
    c->poke.len = 0;
    switch (insn->op) {
    case OP_RET:
    case OP_POPF:
        poke_stack(r, c, memory);
        break;
    case OP_JMP_IND:
    case OP_CALL_IND:
        if (insn->is_mem)
            set_poke(c, operand_la(c, code64), &c->d->target, insn->op_bytes);
        break;
    case OP_LDMXCSR:
        value = diff_random(r) & (diff_one_in(r, 16) ? 0x4ffff : 0xffff);
        set_poke(c, operand_la(c, code64), &value, 4);
        break;
    case OP_FXRSTOR:
    case OP_XRSTOR:
        poke_image(r, c, operand_la(c, code64));
        break;
    default:
        break;
    }
}

/* --- registers that the instruction wants in a certain state --- */

/* Products and quotients that fit, most of the time. */
static void prepare_divide(struct diff_random *r, struct diff_state *s, unsigned bytes)
{
    bool negative = diff_one_in(r, 4);
    if (diff_one_in(r, 3))
        return;
    if (bytes == 1)
        s->gpr[CPU_RAX] = (s->gpr[CPU_RAX] & ~0xffffULL) | diff_below(r, 0x300);
    else
        s->gpr[CPU_RDX] = negative ? UINT64_MAX : diff_below(r, 8);
}

static void prepare_string(struct diff_random *r, const struct diff_insn *d, struct diff_state *s)
{
    uint64_t above = d->insn.addr_bytes == 8 ? 0 : diff_random(r) & ~insn_addr_mask(&d->insn);
    uint64_t count = diff_below(r, REPEAT_MAX);
    uint64_t source = random_place(r, d, 16) - segment_base(d);
    uint64_t destination = random_place(r, d, 16) - diff_base(d->mode, SEG_ES);
    s->gpr[CPU_RCX] = count | above;
    s->gpr[CPU_RSI] = (source & insn_addr_mask(&d->insn)) | above;
    s->gpr[CPU_RDI] = (destination & insn_addr_mask(&d->insn)) | above;
    if (diff_one_in(r, 8)) /* they overlap */
        s->gpr[CPU_RDI] = s->gpr[CPU_RSI] + diff_below(r, 16) - 8;
}

/* Indices that stay in the arena: the operand's base is in its middle. */
static void prepare_gather(struct diff_random *r, const struct diff_insn *d, struct diff_state *s)
{
    const struct insn *insn = &d->insn;
    unsigned width = insn->opcode_byte & 1 ? 8 : 4;
    int range = (int)(diff_one_in(r, 2) ? 64 : 0x4000u >> insn->scale);
    for (unsigned at = 0; at < 32; at += width) {
        uint8_t *to =
            at < 16 ? s->fpu.xmm[insn->index] + at : s->fpu.ymm_hi[insn->index] + (at - 16);
        int64_t index = (int64_t)diff_below(r, (unsigned)range) - range / 2;
        memcpy(to, &index, width);
    }
}

static void prepare(struct diff_random *r, const struct diff_insn *d, struct diff_state *s)
{
    const struct insn *insn = &d->insn;
    switch (insn->op) {
    case OP_DIV:
    case OP_IDIV:
        prepare_divide(r, s, insn->op_bytes);
        break;
    case OP_BT:
    case OP_BTS:
    case OP_BTR:
    case OP_BTC:
        if (insn->is_mem)
            s->gpr[insn->reg] = (uint64_t)((int64_t)diff_below(r, 4000) - 2000);
        break;
    case OP_XLAT:
        s->gpr[CPU_RBX] = random_place(r, d, 1) - (uint8_t)s->gpr[CPU_RAX] - segment_base(d);
        break;
    case OP_VEC_MASKMOVDQU:
        s->gpr[CPU_RDI] = random_place(r, d, 16) - segment_base(d);
        break;
    case OP_MOVDIR64B:
        s->gpr[insn->reg] = (random_place(r, d, 64) & ~63ULL) - diff_base(d->mode, SEG_ES);
        break;
    case OP_VEC_GATHER:
        prepare_gather(r, d, s);
        break;
    case OP_LOOP:
    case OP_LOOPE:
    case OP_LOOPNE:
    case OP_JCXZ:
        if (diff_one_in(r, 2))
            s->gpr[CPU_RCX] &= ~insn_addr_mask(insn);
        break;
    case OP_JMP_IND:
    case OP_CALL_IND:
        if (!insn->is_mem)
            s->gpr[insn->rm] = d->target;
        break;
    case OP_VEC_STR:
        if (diff_one_in(r, 2))
            s->gpr[CPU_RAX] = diff_below(r, 40) - 20;
        if (diff_one_in(r, 2))
            s->gpr[CPU_RDX] = diff_below(r, 40) - 20;
        break;
    default:
        break;
    }
    if (insn->op >= OP_XSAVE && insn->op < OP_VEC_END)
        s->gpr[CPU_RAX] = diff_below(r, 8);
    if (insn->opcode->attr & ATTR_STRING)
        prepare_string(r, d, s);
}

/* CMPXCHG finds its value half of the time. */
static void prepare_exchange(struct diff_random *r, struct diff_case *c, const uint8_t *memory,
                             bool code64)
{
    const struct insn *insn = &c->d->insn;
    uint64_t *gpr = c->start.gpr;
    uint64_t la = operand_la(c, code64);
    if (diff_one_in(r, 2))
        return;
    bool used = insn->is_mem && (insn->base == CPU_RAX || insn->index == CPU_RAX ||
                                 insn->base == CPU_RDX || insn->index == CPU_RDX);
    if (used)
        return;
    if (insn->op == OP_CMPXCHG)
        gpr[CPU_RAX] = insn->is_mem ? memory_at(memory, la, insn->op_bytes) : gpr[insn->rm];
    if (insn->op == OP_CMPXCHG8B) {
        gpr[CPU_RAX] = memory_at(memory, la, 4);
        gpr[CPU_RDX] = memory_at(memory, la + 4, 4);
    }
    if (insn->op == OP_CMPXCHG16B) {
        gpr[CPU_RAX] = memory_at(memory, la, 8);
        gpr[CPU_RDX] = memory_at(memory, la + 8, 8);
    }
}

/* Asks for components that only the host's processor has. */
static bool saves_more(const struct diff_case *c)
{
    return c->d->insn.op >= OP_XSAVE && c->d->insn.op < OP_VEC_END &&
           (c->start.gpr[CPU_RAX] & components_of_host_alone()) != 0;
}

/* --- all together --- */

static void place_stack(struct diff_random *r, const struct diff_insn *d, struct diff_state *s,
                        bool code64)
{
    bool framed = d->insn.op == OP_ENTER || d->insn.op == OP_LEAVE;
    uint64_t base = diff_base(d->mode, SEG_SS);
    s->gpr[CPU_RSP] = random_place(r, d, 16) - base;
    if (framed)
        s->gpr[CPU_RBP] = random_place(r, d, 16) - base;
    if (framed && diff_one_in(r, 4)) /* frames that overlap */
        s->gpr[CPU_RBP] = s->gpr[CPU_RSP] + diff_below(r, 128) - 64;
    if (code64 && diff_one_in(r, 60))
        s->gpr[framed && diff_one_in(r, 2) ? CPU_RBP : CPU_RSP] = outside(r, 16);
}

static void try_state(struct diff_random *r, struct diff_case *c, const uint8_t *memory,
                      bool code64)
{
    const struct diff_insn *d = c->d;
    const struct insn *insn = &d->insn;
    struct diff_state *s = &c->start;
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = random_value(r);
    s->rip = d->address - d->mode->cs.base;
    s->rflags = RFLAGS_FIXED | RFLAGS_IF | (diff_random(r) & RFLAGS_ARITH) |
                (diff_one_in(r, 3) ? RFLAGS_DF : 0) | (diff_one_in(r, 8) ? AC_TESTED : 0);
    place_stack(r, d, s, code64);
    if (d->uses_fpu)
        random_fpu(r, &s->fpu);
    prepare(r, d, s);
    if (insn->is_mem) {
        uint64_t place = random_place(r, d, operand_bytes(insn));
        if (insn->op == OP_VEC_GATHER)
            place = DIFF_ARENA + DIFF_PAGES * DIFF_PAGE / 2 + diff_below(r, 64);
        aim(r, d, s->gpr, place);
    }
    if (insn->op == OP_CMPXCHG || insn->op == OP_CMPXCHG8B || insn->op == OP_CMPXCHG16B)
        prepare_exchange(r, c, memory, code64);
    if (!code64) {
        for (unsigned i = 0; i < 16; i++)
            s->gpr[i] = i < 8 ? (uint32_t)s->gpr[i] : 0;
    }
}

bool diff_make_state(struct diff_random *r, struct diff_case *c, const struct diff_insn *d,
                     const uint8_t *memory)
{
    bool code64 = d->mode->code_bits == 64;
    c->d = d;
    for (unsigned i = 0; i < TRIES; i++) {
        try_state(r, c, memory, code64);
        list_accesses(c, code64);
        if (!all_harmless(c) || saves_more(c))
            continue;
        make_poke(r, c, memory, code64);
        return true;
    }
    return false;
}
