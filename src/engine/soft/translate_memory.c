/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of operands, the look into the TLB, and instructions with their operand at (%r10). */
#include "engine/soft/translate_job.h"

#include "engine/soft/mmu_internal.h"

void load_guest(struct emit *e, unsigned to, unsigned guest)
{
    if (is_scratch(guest))
        emit_gs64(e, OP_LOAD, to, GS_GPR(guest));
    else
        emit_mov(e, to, guest);
}

void emit_mov32(struct emit *e, unsigned to, unsigned from)
{
    if (to >= 8 || from >= 8)
        emit8(e, rex_of(0, from, to));
    emit8(e, 0x89);
    emit8(e, 0xc0u | (from & 7) << 3 | (to & 7));
}

void emit_mov16(struct emit *e, unsigned to, unsigned from)
{
    if (to >= 8 || from >= 8)
        emit8(e, rex_of(0, to, from));
    emit8(e, 0x0f);
    emit8(e, 0xb7);
    emit8(e, 0xc0u | (to & 7) << 3 | (from & 7));
}

void emit_stack_top(struct job *job, unsigned reg)
{
    if (job->code16)
        emit_mov16(job->e, R10, reg);
    else if (job->code32)
        emit_mov32(job->e, R10, reg);
    else
        emit_mov(job->e, R10, reg);
}

/* The offset of a memory operand in its segment, and `by` more, where no register has a part in it;
 * else false. */
static bool is_known_offset(const struct job *job, const struct insn *insn, int32_t by,
                            uint64_t *offset)
{
    bool moffs = insn->op == OP_MOV_MOFFS_LOAD || insn->op == OP_MOV_MOFFS_STORE;
    *offset = (moffs ? insn->imm : (uint64_t)(int64_t)insn->disp) + (uint64_t)(int64_t)by;
    if (!moffs && insn->rip_relative)
        *offset += job->block->rip - job->block->offset + insn->next_offset;
    *offset &= insn_addr_mask(insn);
    return moffs || insn->rip_relative || (insn->base == GPR_ZERO && insn->index == GPR_ZERO);
}

void emit_offset(struct job *job, const struct insn *insn, int32_t by)
{
    struct emit *e = job->e;
    uint64_t known;
    if (is_known_offset(job, insn, by, &known)) {
        emit_mov_imm(e, R10, known);
    } else {
        int32_t disp = insn->disp + by;
        unsigned base = insn->base, index = insn->index;
        bool narrow = insn->addr_bytes < 8, alone = index == GPR_ZERO && base != GPR_ZERO;
        if (is_scratch(base))
            emit_gs64(e, OP_LOAD, base, GS_GPR(base));
        if (is_scratch(index) && index != base)
            emit_gs64(e, OP_LOAD, index, GS_GPR(index));
        if (alone && disp == 0 && !narrow) {
            emit_mov(e, R10, base);
        } else if (alone && disp == 0) {
            emit_mov32(e, R10, base);
        } else {
            /* lea disp(base, index, scale), %r10; of 32 bits where addresses are narrower */
            unsigned x = index == GPR_ZERO ? 4 : index, b = base == GPR_ZERO ? 5 : base;
            bool small = disp == (int8_t)disp && base != GPR_ZERO;
            unsigned mod = base == GPR_ZERO ? 0 : small ? 1 : 2;
            emit8(e, 0x44u | (narrow ? 0 : REX_W) | (x >> 3 & 1) << 1 | (b >> 3 & 1));
            emit8(e, 0x8d);
            emit8(e, mod << 6 | (R10 & 7) << 3 | 4);
            emit8(e, (unsigned)insn->scale << 6 | (x & 7) << 3 | (b & 7));
            if (small)
                emit8(e, (uint8_t)disp);
            else
                emit32(e, (uint32_t)disp);
        }
        if (insn->addr_bytes == 2)
            emit_mov16(e, R10, R10);
    }
}

/* The slow path where the segment is not one of a mask, a byte at %gs:. */
static void emit_segment_check(struct job *job, const struct insn *insn, size_t mask)
{
    struct emit *e = job->e;
    emit8(e, 0x65); /* testb $, %gs: */
    emit8(e, 0xf6);
    emit_gs_operand(e, 0, mask);
    emit8(e, 1u << insn->seg);
    add_slow(job, emit_jcc(e, CONDITION_E), insn);
}

void emit_add_base(struct job *job, unsigned seg)
{
    struct emit *e = job->e;
    emit8(e, 0x65);
    emit8(e, rex_of(0, R10, 0));
    emit8(e, OP_ADD_R);
    emit_gs_operand(e, R10, offsetof(struct soft_cpu, seg_base) + 8 * (size_t)seg);
}

void emit_check_64k(struct job *job, const struct insn *insn, unsigned bytes)
{
    struct emit *e = job->e;
    if (bytes == 1)
        return;
    emit_bytes(e, (const uint8_t[]){0x41, 0x81, 0xfa}, 3); /* cmp $, %r10d */
    emit32(e, 0x10000 - bytes);
    add_slow(job, emit_jcc(e, CONDITION_A), insn);
}

void emit_segment(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    bool write = insn->opcode->attr & ATTR_MEM_WRITE, ss = insn->seg == SEG_SS;
    if (!job->code32) {
        if (insn->seg == SEG_FS || insn->seg == SEG_GS)
            emit_gs64(e, OP_ADD_R, R10,
                      offsetof(struct soft_cpu, seg_base) + 8 * (size_t)insn->seg);
        return;
    }
    if (!job->code16 && (ss || insn->seg == SEG_DS))
        return;
    if (job->code16 && insn->addr_bytes == 2) {
        if (!ss)
            emit_segment_check(job, insn, write ? GS(seg_64k_write) : GS(seg_64k));
        emit_check_64k(job, insn, insn->mem_bytes);
    } else {
        emit_segment_check(job, insn, write ? GS(seg_flat_write) : GS(seg_flat));
    }
    emit_add_base(job, insn->seg);
}

static size_t tag_in_entry(bool write)
{
    return write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag);
}

/* R11 becomes the place, in the TLB, of the entry for R10, a linear address. */
static void emit_entry(struct job *job)
{
    struct emit *e = job->e;
    if (job->t->bmi2) { /* rorx $7, %r10, %r11 */
        emit_bytes(e, (const uint8_t[]){0xc4, 0x43, 0xfb, 0xf0, 0xda, 7}, 6);
    } else {
        emit_mov(e, R11, R10);
        emit_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xeb, 7}, 4); /* shr $7, %r11 */
    }
    emit_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and $, %r11d */
    emit32(e, (TLB_ENTRIES - 1) << 5);
}

/* R10, a linear address, becomes the offset in its page, and R11 the place of the page's entry. */
static uint8_t *emit_find(struct job *job, unsigned size, bool write)
{
    struct emit *e = job->e;
    if (job->t->options.slow)
        return emit_jmp(e);
    emit_entry(job);
    emit_gs_r11(e, OP_SUB_R, R10, GS_CONTEXT(tlb) + tag_in_entry(write));
    emit_bytes(e, (const uint8_t[]){0x49, 0x81, 0xfa}, 3); /* cmp $, %r10 */
    emit32(e, 4096 - size);
    return emit_jcc(e, CONDITION_A);
}

uint8_t *emit_lookup(struct job *job, unsigned size, bool write)
{
    uint8_t *miss = emit_find(job, size, write);
    emit_gs_r11(job->e, OP_ADD_R, R10, GS_CONTEXT(tlb) + offsetof(struct tlb_entry, host));
    return miss;
}

uint8_t *emit_stack_lookup(struct job *job, unsigned size, bool write)
{
    struct emit *e = job->e;
    if (job->t->options.slow || job->code16 || job->by_tlb)
        return emit_lookup(job, size, write);
    _Static_assert(GROUP_BYTES_MAX <= 512, "there is a limit for whatever is looked for");
    size_t page = write ? GS_CONTEXT(stack_write) : GS_CONTEXT(stack_read);
    enum stack_size class = size <= 8 ? STACK_8 : size <= 64 ? STACK_64 : STACK_512;
    emit_gs64(e, OP_SUB_R, R10, page + offsetof(struct stack_page, tag));
    emit_gs64(e, 0x3b, R10, page + offsetof(struct stack_page, limits) + 8 * (size_t) class);
    uint8_t *other = emit_jcc(e, CONDITION_AE);
    emit_gs64(e, OP_ADD_R, R10, page + offsetof(struct stack_page, host));
    job->pending = (struct stub){.from = other,
                                 .look = write ? LOOK_WRITE : LOOK_READ,
                                 .look_limit = (uint16_t)(PAGE_BYTES - size),
                                 .found = e->at};
    return other;
}

/*
 * Is an operand's linear address, and `by` more, known, and so many bytes from there on are in one
 * page? In 64-bit code only FS and GS have a base, and in 32-bit code DS and SS have none for sure.
 * Vectors that are never aligned have no use for it.
 */
static bool is_known_address(const struct job *job, const struct insn *insn, int32_t by,
                             unsigned size, uint64_t *la)
{
    bool flat = job->code32 ? insn->seg == SEG_DS || insn->seg == SEG_SS
                            : insn->seg != SEG_FS && insn->seg != SEG_GS;
    if (job->code16 || !flat || !is_known_offset(job, insn, by, la) || !soft_canonical(*la))
        return false;
    if (translate_wants_alignment(insn) && (*la - (uint64_t)(int64_t)by) & (insn->mem_bytes - 1u))
        return false;
    return (*la & PAGE_OFFSET) + size <= PAGE_BYTES;
}

static bool is_on_stack(const struct insn *insn)
{
    return insn->base == CPU_RSP && insn->index == GPR_ZERO && insn->seg == SEG_SS;
}

struct look emit_look(struct job *job, const struct insn *insn, int32_t by, unsigned size,
                      bool write)
{
    struct emit *e = job->e;
    uint64_t la;
    if (job->t->options.slow || !is_known_address(job, insn, by, size, &la)) {
        emit_offset(job, insn, by);
        emit_segment(job, insn);
        return (struct look){.base = R10,
                             .miss = is_on_stack(insn) ? emit_stack_lookup(job, size, write)
                                                       : emit_lookup(job, size, write)};
    }
    size_t entry = GS_CONTEXT(tlb) + (la >> 12 & (TLB_ENTRIES - 1)) * sizeof(struct tlb_entry);
    emit8(e, 0x65); /* cmpl $, %gs: */
    emit8(e, 0x81);
    emit_gs_operand(e, 7, entry + tag_in_entry(write) + TLB_TAG_SHIFT / 8);
    emit32(e, (uint32_t)(la >> TLB_TAG_SHIFT));
    uint8_t *miss = emit_jcc(e, CONDITION_NE);
    emit_gs64(e, OP_LOAD, R10, entry + offsetof(struct tlb_entry, host));
    return (struct look){.base = R10, .miss = miss, .known = true, .offset = la & PAGE_OFFSET};
}

/* Is the operand's address that register and a constant? */
static bool is_off_one_register(const struct job *job, const struct insn *insn, unsigned reg)
{
    return !job->code32 && insn->is_mem && !insn->rip_relative && insn->addr_bytes == 8 &&
           insn->seg != SEG_FS && insn->seg != SEG_GS && insn->index == GPR_ZERO &&
           insn->base == reg && !is_scratch(reg);
}

/* op offset(%r11), reg; 64 bits. */
static void emit_r11_operand64(struct emit *e, unsigned opcode, unsigned reg, size_t offset)
{
    emit8(e, rex_of(REX_W, reg, R11));
    emit8(e, opcode);
    emit8(e, 0x40u | (reg & 7) << 3 | (R11 & 7));
    emit8(e, (uint8_t)offset);
}

/*
 * The look of emit_look_for_load() where the address is `reg` + distance: reg is free for the tag
 * until it gets its value back, so that R10 need not wait for that; and the context's address is
 * added to the entry's place, which is sooner done than an access with a base in GS.
 */
static uint8_t *emit_quick_find(struct job *job, unsigned reg, int32_t distance, unsigned size,
                                bool write)
{
    struct emit *e = job->e;
    emit_entry(job);
    emit_gs64(e, OP_ADD_R, R11, GS_CONTEXT(self));
    if (distance)
        emit_mov(e, reg, R10);
    emit_r11_operand64(e, OP_SUB_R, reg, offsetof(struct soft_context, tlb) + tag_in_entry(write));
    emit8(e, rex_of(REX_W, 0, reg)); /* cmp $, reg */
    emit8(e, 0x81);
    emit8(e, 0xf8u | (reg & 7));
    emit32(e, 4096 - size);
    if (distance) { /* lea -distance(%r10), reg */
        emit8(e, rex_of(REX_W, reg, R10));
        emit8(e, 0x8d);
        emit8(e, 0x80u | (reg & 7) << 3 | (R10 & 7));
        emit32(e, (uint32_t)-distance);
    } else {
        emit_mov(e, reg, R10);
    }
    uint8_t *miss = emit_jcc(e, CONDITION_A);
    emit_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe2}, 3); /* and $, %r10d */
    emit32(e, PAGE_OFFSET);
    emit_r11_operand64(e, OP_LOAD, R11,
                       offsetof(struct soft_context, tlb) + offsetof(struct tlb_entry, host));
    return miss;
}

struct look emit_look_for_load(struct job *job, const struct insn *insn, int32_t by, unsigned size,
                               bool write, unsigned to)
{
    uint64_t la;
    if (is_on_stack(insn) || is_known_address(job, insn, by, size, &la))
        return emit_look(job, insn, by, size, write);
    int32_t distance = insn->disp + by;
    if (is_off_one_register(job, insn, to) && distance > INT32_MIN && !job->t->options.slow) {
        emit_offset(job, insn, by);
        uint8_t *miss = emit_quick_find(job, to, distance, size, write);
        return (struct look){.base = R10_R11, .miss = miss};
    }
    emit_offset(job, insn, by);
    emit_segment(job, insn);
    uint8_t *miss = emit_find(job, size, write);
    emit_gs_r11(job->e, OP_LOAD, R11, GS_CONTEXT(tlb) + offsetof(struct tlb_entry, host));
    return (struct look){.base = R10_R11, .miss = miss};
}

uint8_t *emit_look_to_r10(struct job *job, const struct insn *insn, int32_t by, unsigned size,
                          bool write)
{
    struct emit *e = job->e;
    struct look look = emit_look(job, insn, by, size, write);
    if (look.offset) { /* add $, %r10 */
        emit_bytes(e, (const uint8_t[]){0x49, 0x81, 0xc2}, 3);
        emit32(e, look.offset);
    }
    return look.miss;
}

void emit_stack_lea(struct job *job, unsigned to, unsigned base, int32_t bytes)
{
    struct emit *e = job->e;
    bool small = bytes == (int8_t)bytes;
    if (job->code16 && to == CPU_RSP)
        emit8(e, 0x66);
    if (!job->code32 || to >= 8)
        emit8(e, rex_of(job->code32 ? 0 : REX_W, to, base));
    emit8(e, 0x8d);
    emit8(e, (small ? 0x40u : 0x80u) | (to & 7) << 3 | (base & 7));
    if (base == CPU_RSP)
        emit8(e, 0x24);
    if (small)
        emit8(e, (uint8_t)bytes);
    else
        emit32(e, (uint32_t)bytes);
}

/* Does the next instruction move RSP too, without a look at it, and without a way out before it? */
static bool moves_rsp_next(const struct job *job)
{
    unsigned next = job->current + 1;
    if (!job->group || next > job->group->last || (int)next == job->poll ||
        (job->t->count && part_at(job, next)))
        return false;
    switch ((enum way)job->way[next]) {
    case WAY_PUSH:
    case WAY_POP:
        return !translate_names(job->insns[next], CPU_RSP);
    case WAY_CALL:
    case WAY_RET:
        return true;
    default:
        return false;
    }
}

void emit_add_rsp(struct job *job, int32_t bytes)
{
    job->rsp_behind += bytes;
    if (moves_rsp_next(job))
        return;
    if (job->rsp_behind)
        emit_stack_lea(job, CPU_RSP, CPU_RSP, job->rsp_behind);
    job->rsp_behind = 0;
}

/* The operand offset(base), of R10, R11, or both. */
static void emit_based_operand(struct emit *e, unsigned reg, unsigned base, unsigned offset)
{
    unsigned mod = offset == 0 ? 0 : offset < 128 ? 1 : 2;
    if (base == R10_R11) {
        emit8(e, mod << 6 | (reg & 7) << 3 | 4);
        emit8(e, (R11 & 7) << 3 | (R10 & 7));
    } else {
        emit8(e, mod << 6 | (reg & 7) << 3 | (base & 7));
    }
    if (mod == 1)
        emit8(e, offset);
    else if (mod == 2)
        emit32(e, offset);
}

void emit_r10_operand(struct emit *e, unsigned reg, unsigned offset)
{
    emit_based_operand(e, reg, R10, offset);
}

void emit_prefixes(const struct job *job, const struct insn *insn, const struct layout *l)
{
    struct emit *e = job->e;
    for (unsigned i = 0; i < l->prefix_count; i++) {
        if (!job->code16 || l->prefixes[i] != 0x66)
            emit8(e, l->prefixes[i]);
    }
    if (job->code16 && insn->op_bytes == 2)
        emit8(e, 0x66);
}

void emit_at(const struct job *job, const struct insn *insn, unsigned reg, unsigned base,
             unsigned offset)
{
    struct emit *e = job->e;
    struct layout l;
    translate_lay_out(insn, &l);
    emit_prefixes(job, insn, &l);
    if (l.has_vex) {
        emit8(e, l.vex[0]);
        /* R, X and B say whether register, index and base are of the lower eight. */
        emit8(e, (l.vex[1] & 0x1fu) | (reg & 8 ? 0 : 0x80u) | (base == R10_R11 ? 0 : 0x40u));
        emit8(e, l.vex[2]);
    } else {
        emit8(e, 0x41u | (l.rex & 8u) | (reg >> 3 & 1) << 2 | (base == R10_R11 ? 2u : 0));
    }
    emit_bytes(e, l.opcode, l.opcode_len);
    emit_based_operand(e, reg, base, offset);
    emit_bytes(e, insn->bytes + l.tail_at, insn->len - l.tail_at);
}

void emit_word_r10(struct job *job, unsigned opcode, unsigned reg, unsigned offset)
{
    struct emit *e = job->e;
    if (job->code16)
        emit8(e, 0x66);
    emit8(e, rex_of(job->code32 ? 0 : REX_W, reg, R10));
    emit8(e, opcode);
    emit_r10_operand(e, reg, offset);
}

void emit_store_imm_r10(struct job *job, uint64_t value, unsigned offset)
{
    struct emit *e = job->e;
    if (job->code16)
        emit8(e, 0x66);
    emit8(e, rex_of(job->code32 ? 0 : REX_W, 0, R10));
    emit8(e, 0xc7);
    emit_r10_operand(e, 0, offset);
    if (job->code16)
        emit16(e, (uint16_t)value);
    else
        emit32(e, (uint32_t)value);
}

unsigned emit_stack(struct job *job, const struct insn *insn, int by, bool write)
{
    if (job->group)
        return job->offset[job->current];
    if (by)
        emit_stack_lea(job, R10, CPU_RSP, by);
    else
        emit_stack_top(job, CPU_RSP);
    if (job->code16) {
        if (by)
            emit_mov16(job->e, R10, R10);
        emit_check_64k(job, insn, job->word);
        emit_add_base(job, SEG_SS);
    }
    add_slow(job, emit_stack_lookup(job, job->word, write), insn);
    return 0;
}
