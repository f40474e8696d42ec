/* SPDX-License-Identifier: Apache-2.0 */
/* The code of one instruction that is no branch. */
#include "engine/soft/translate_job.h"

#include "engine/soft/exec_int.h"

/* A guest register that is in memory to the host's of its name, before the instruction. */
static void emit_scratch_in(struct job *job, const struct insn *insn, unsigned reg)
{
    if (translate_names(insn, reg) && !translate_overwrites(insn, reg))
        emit_gs64(job->e, OP_LOAD, reg, GS_GPR(reg));
}

/* And back, behind it. */
static void emit_scratch_out(struct job *job, const struct insn *insn, unsigned reg)
{
    if (translate_changes(insn, reg))
        emit_gs64(job->e, OP_STORE, reg, GS_GPR(reg));
}

static void emit_copy(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    need_flags(job, i);
    emit_scratch_in(job, insn, R10);
    emit_scratch_in(job, insn, R11);
    if (job->code16) {
        struct layout l;
        translate_lay_out(insn, &l);
        emit_prefixes(job, insn, &l);
        emit_bytes(e, insn->bytes + l.opcode_at, insn->len - l.opcode_at);
    } else {
        emit_bytes(e, insn->bytes, insn->len);
    }
    emit_scratch_out(job, insn, R10);
    emit_scratch_out(job, insn, R11);
    note_flags_written(job, i);
}

static void emit_lea_constant(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    uint64_t value = (uint64_t)(int64_t)insn->disp;
    if (insn->rip_relative)
        value += job->block->rip - job->block->offset + insn->next_offset;
    value &= insn_addr_mask(insn);
    unsigned reg = is_scratch(insn->reg) ? R10 : insn->reg;
    if (insn->op_bytes == 2) { /* movw $, reg */
        if (is_scratch(insn->reg))
            emit_gs64(e, OP_LOAD, R10, GS_GPR(insn->reg));
        emit8(e, 0x66);
        if (reg >= 8)
            emit8(e, 0x41);
        emit8(e, 0xb8u | (reg & 7));
        emit16(e, (uint16_t)value);
    } else {
        emit_mov_imm(e, reg, insn->op_bytes == 4 ? (uint32_t)value : value);
    }
    if (is_scratch(insn->reg))
        emit_gs64(e, OP_STORE, R10, GS_GPR(insn->reg));
}

static void emit_lea_16(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    emit_offset(job, insn, 0);
    if (insn->op_bytes == 2)
        emit8(e, 0x66);
    emit8(e, rex_of(0, R10, insn->reg)); /* mov %r10, reg */
    emit8(e, OP_STORE);
    emit8(e, 0xc0u | (R10 & 7) << 3 | insn->reg);
}

/* xchg low, high: of a register's two lowest bytes; no flag changes. */
static void emit_swap_bytes(struct emit *e, unsigned reg)
{
    emit8(e, 0x86);
    emit8(e, 0xc0u | (reg + 4) << 3 | reg);
}

void emit_memory_at(struct job *job, const struct insn *insn, unsigned i, unsigned base,
                    unsigned offset)
{
    struct emit *e = job->e;
    enum insn_form form = insn->opcode->form;
    bool has_reg = form != FORM_RM && form != FORM_V_RM;
    unsigned reg = has_reg ? insn->reg : insn->modrm >> 3 & 7u;
    bool general = insn->op < OP_VEC_BASE || insn->opcode->attr & ATTR_GPR_REG;
    bool scratch = has_reg && general && is_scratch(reg);
    bool high = translate_has_high_byte(insn);
    need_flags(job, i);
    if (scratch && !translate_overwrites(insn, reg))
        emit_gs64(e, OP_LOAD, R11, GS_GPR(reg));
    if (high)
        emit_swap_bytes(e, reg -= 4);
    emit_at(job, insn, scratch ? R11 : reg, base, offset);
    if (high)
        emit_swap_bytes(e, reg);
    if (scratch && translate_changes(insn, reg))
        emit_gs64(e, OP_STORE, R11, GS_GPR(reg));
    note_flags_written(job, i);
}

static void emit_memory(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    if (job->group) {
        emit_memory_at(job, insn, i, job->group_base, job->offset[i]);
        return;
    }
    give_up_flags(job, job->live[i]);
    struct look look =
        translate_overwrites(insn, insn->reg)
            ? emit_look_for_load(job, insn, 0, insn->mem_bytes, false, insn->reg)
            : emit_look(job, insn, 0, insn->mem_bytes, insn->opcode->attr & ATTR_MEM_WRITE);
    add_slow(job, look.miss, insn);
    if (translate_wants_alignment(insn) && !look.known) {
        emit_bytes(e, (const uint8_t[]){0x41, 0xf6, 0xc2}, 3); /* test $, %r10b */
        emit8(e, insn->mem_bytes - 1u);
        add_slow(job, emit_jcc(e, CONDITION_NE), insn);
    }
    emit_memory_at(job, insn, i, look.base, look.offset);
}

/* INC, DEC: FF /0, /1 */
static void emit_step(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    need_flags(job, i);
    if (insn->op_bytes == 2)
        emit8(e, 0x66);
    emit8(e, 0xff);
    emit8(e, 0xc0u | (insn->op == OP_DEC ? 1u : 0u) << 3 | insn->rm);
    note_flags_written(job, i);
}

/*
 * What is not in the TLB is not prefetched. Programs that prefetch (zstd, for one) are written for
 * it: without, each of their accesses waits for memory.
 */
static void emit_prefetch(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[i]);
    if (job->group)
        emit_gs64(e, OP_STORE, R10, GS(translated.target));
    struct look look = emit_look(job, insn, 0, 1, false);
    emit_at(job, insn, insn->modrm >> 3 & 7u, R10, look.offset);
    emit_lead(look.miss, e->at);
    if (job->group)
        emit_gs64(e, OP_LOAD, R10, GS(translated.target));
}

/*
 * BT, BTS, BTR, BTC of memory with a register that says how many bits from the operand's start on,
 * upwards or downwards: the look is for the word that has the bit, and the register's low bits are
 * those of a register operand.
 */
static void emit_bit(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool wide = insn->op_bytes == 8;
    give_up_flags(job, job->live[i]);
    emit_offset(job, insn, 0);
    load_guest(e, R11, insn->reg);
    if (!wide)
        emit_rr64(e, 0x63, R11, R11);                      /* movslq %r11d, %r11 */
    emit_bytes(e, (const uint8_t[]){0x49, 0xc1, 0xfb}, 3); /* sar $, %r11 */
    emit8(e, wide ? 6 : 5);
    emit_bytes(e, (const uint8_t[]){0x4f, 0x8d, 0x14}, 3); /* lea (%r10, %r11, bytes), %r10 */
    emit8(e, (wide ? 3u : 2u) << 6 | (R11 & 7) << 3 | (R10 & 7));
    emit_segment(job, insn);
    add_slow(job, emit_lookup(job, insn->op_bytes, insn->opcode->attr & ATTR_MEM_WRITE), insn);
    load_guest(e, R11, insn->reg);
    emit_bytes(e, (const uint8_t[]){0x41, 0x83, 0xe3}, 3); /* and $, %r11d */
    emit8(e, wide ? 63 : 31);
    emit_gs64(e, OP_STORE, R11, GS(translated.target));
    need_flags(job, i);
    emit_gs64(e, OP_LOAD, R11, GS(translated.target));
    emit_at(job, insn, R11, R10, 0);
    note_flags_written(job, i);
}

static void emit_moffs(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool write = insn->op == OP_MOV_MOFFS_STORE;
    unsigned bytes = insn->op_bytes;
    give_up_flags(job, job->live[i]);
    struct look look = emit_look(job, insn, 0, bytes, write);
    add_slow(job, look.miss, insn);
    if (bytes == 2)
        emit8(e, 0x66);
    emit8(e, rex_of(bytes == 8 ? REX_W : 0, CPU_RAX, R10)); /* mov offset(%r10), %rax, or back */
    emit8(e, (write ? OP_STORE : OP_LOAD) - (bytes == 1));
    emit_r10_operand(e, CPU_RAX, look.offset);
}

/* op reg, rm of the operand size. */
static void emit_sized(struct emit *e, unsigned bytes, unsigned opcode, unsigned reg, unsigned rm)
{
    emit8(e, rex_of(bytes == 8 ? REX_W : 0, reg, rm));
    emit8(e, opcode);
    emit8(e, 0xc0u | (reg & 7) << 3 | (rm & 7));
}

/*
 * The divisor in R11, which nobody can change between the check and the division: a quotient that
 * does not fit must not come to the host. DIV: it fits where the dividend's upper half is less than
 * the divisor. IDIV: only the usual case, a dividend of one register's width and a divisor that is
 * not 0 or -1. The flags are undefined behind it.
 */
static void emit_divide(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    unsigned bytes = insn->op_bytes;
    give_up_flags(job, job->live[i]);
    if (insn->is_mem) {
        struct look look = emit_look(job, insn, 0, insn->mem_bytes, false);
        add_slow(job, look.miss, insn);
        emit8(e, rex_of(bytes == 8 ? REX_W : 0, R11, R10)); /* mov offset(%r10), %r11 */
        emit8(e, OP_LOAD);
        emit_r10_operand(e, R11, look.offset);
    } else {
        load_guest(e, R11, insn->rm);
    }
    if (insn->op == OP_DIV) {
        emit_sized(e, bytes, 0x39, R11, CPU_RDX); /* cmp %r11, %rdx */
        add_slow(job, emit_jcc(e, CONDITION_AE), insn);
    } else {
        emit_bytes(e, (const uint8_t[]){bytes == 8 ? 0x4d : 0x45, 0x8d, 0x53, 1}, 4);
        /* lea 1(%r11), %r10; cmp $1, %r10 */
        emit_bytes(e, (const uint8_t[]){bytes == 8 ? 0x49 : 0x41, 0x83, 0xfa, 1}, 4);
        add_slow(job, emit_jcc(e, CONDITION_BE), insn);
        emit_sized(e, bytes, OP_STORE, CPU_RAX, R10);
        /* sar $, %r10 */
        emit_bytes(e, (const uint8_t[]){bytes == 8 ? 0x49 : 0x41, 0xc1, 0xfa}, 3);
        emit8(e, 8 * bytes - 1);
        emit_sized(e, bytes, 0x39, R10, CPU_RDX);
        add_slow(job, emit_jcc(e, CONDITION_NE), insn);
    }
    emit_sized(e, bytes, 0xf7, insn->op == OP_DIV ? 6 : 7, R11);
    note_flags_written(job, i);
}

uint8_t *emit_unless_loaded(struct emit *e, uint8_t wanted)
{
    emit8(e, 0x65); /* testb $, %gs:vectors */
    emit8(e, 0xf6);
    emit_gs_operand(e, 0, GS(translated.vectors));
    emit8(e, wanted);
    return emit_jcc(e, CONDITION_E);
}

uint8_t wanted_vectors(const struct job *job)
{
    return job->uses & VECTORS_AVX ? VECTORS_AVX : VECTORS_SSE;
}

/* Registers, one of enum vectors, must hold the guest's from here on: any slow path keeps it so. */
static void need_registers(struct job *job, const struct insn *insn, unsigned i, uint8_t wanted)
{
    give_up_flags(job, job->live[i]);
    struct stub *stub = add_slow(job, emit_unless_loaded(job->e, wanted), insn);
    stub->wanted = wanted;
    stub->resume = job->e->at;
}

void need_vectors(struct job *job, const struct insn *insn, unsigned i)
{
    if (!job->vectors)
        need_registers(job, insn, i, wanted_vectors(job));
    job->vectors = true;
}

void need_x87(struct job *job, const struct insn *insn, unsigned i)
{
    if (!job->x87)
        need_registers(job, insn, i, VECTORS_X87);
    job->x87 = true;
}

static void emit_vector(struct job *job, const struct insn *insn, unsigned i)
{
    need_vectors(job, insn, i);
    if (insn->is_mem)
        emit_memory(job, insn, i);
    else
        emit_copy(job, insn, i);
}

static void emit_x87_memory(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[i]);
    bool write = insn->opcode->attr & ATTR_MEM_WRITE;
    add_slow(job, emit_look_to_r10(job, insn, 0, insn->mem_bytes, write), insn);
    if (insn->opcode_byte == 0xd9 && (insn->modrm >> 3 & 7) == 5) {
        uint8_t *unmasks;
        translate_x87_fldcw(e, &unmasks);
        add_slow(job, unmasks, insn);
    } else {
        translate_x87_emit(e, insn);
    }
    if (translate_x87_is_noted(insn)) {
        emit_offset(job, insn, 0);
        translate_x87_note_operand(e, job->cpu, insn);
    }
}

static void emit_x87(struct job *job, const struct insn *insn, unsigned i)
{
    need_x87(job, insn, i);
    if (insn->opcode->attr & ATTR_MMX && insn->opcode->attr & ATTR_SSE)
        need_vectors(job, insn, i);
    if (!(insn->opcode->attr & ATTR_MMX) && insn->is_mem) {
        emit_x87_memory(job, insn, i);
    } else if (insn->is_mem) {
        emit_memory(job, insn, i);
    } else if (insn->opcode->attr & ATTR_MMX) {
        emit_copy(job, insn, i);
    } else {
        need_flags(job, i);
        translate_x87_emit(job->e, insn);
        note_flags_written(job, i);
    }
}

static void emit_push(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool copy = insn->op != OP_PUSH_IMM && insn->is_mem;
    unsigned reg = copy || is_scratch(insn->rm) ? R11 : insn->rm;
    if (!job->group)
        give_up_flags(job, job->live[i]);
    if (copy) {
        struct look look = emit_look(job, insn, 0, job->word, false);
        add_slow(job, look.miss, insn);
        emit_word_r10(job, OP_LOAD, R10, look.offset);
        emit_gs64(e, OP_STORE, R10, GS(translated.target));
    }
    unsigned offset = emit_stack(job, insn, -(int)job->word, true);
    if (insn->op == OP_PUSH_IMM) {
        emit_store_imm_r10(job, insn->imm, offset);
    } else {
        if (reg == R11)
            emit_gs64(e, OP_LOAD, R11, copy ? GS(translated.target) : GS_GPR(insn->rm));
        emit_word_r10(job, OP_STORE, reg, offset);
    }
    emit_add_rsp(job, -(int32_t)job->word);
}

static void emit_pop(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    unsigned reg = is_scratch(insn->rm) ? R11 : insn->rm;
    if (!job->group)
        give_up_flags(job, job->live[i]);
    emit_word_r10(job, OP_LOAD, reg, emit_stack(job, insn, 0, false));
    if (is_scratch(insn->rm))
        emit_gs64(e, OP_STORE, R11, GS_GPR(insn->rm));
    emit_add_rsp(job, (int32_t)job->word);
}

static void emit_pop_rsp(struct job *job, const struct insn *insn, unsigned i)
{
    give_up_flags(job, job->live[i]);
    emit_word_r10(job, OP_LOAD, CPU_RSP, emit_stack(job, insn, 0, false));
}

static void emit_leave(struct job *job, const struct insn *insn, unsigned i)
{
    give_up_flags(job, job->live[i]);
    emit_stack_top(job, CPU_RBP);
    add_slow(job, emit_lookup(job, job->word, false), insn);
    emit_stack_lea(job, CPU_RSP, CPU_RBP, (int32_t)job->word);
    emit_word_r10(job, OP_LOAD, CPU_RBP, 0);
}

void emit_handler(struct job *job, const struct insn *insn)
{
    add_slow(job, emit_jmp(job->e), insn);
    job->host_valid = job->saved_valid = true;
}

void emit_by_way(struct job *job, unsigned i)
{
    const struct insn *insn = job->insns[i];
    switch ((enum way)job->way[i]) {
    case WAY_HANDLER:
        emit_handler(job, insn);
        break;
    case WAY_COPY:
        emit_copy(job, insn, i);
        break;
    case WAY_LEA:
        emit_lea_constant(job, insn);
        break;
    case WAY_LEA_16:
        emit_lea_16(job, insn);
        break;
    case WAY_STEP:
        emit_step(job, insn, i);
        break;
    case WAY_NOTHING:
        break;
    case WAY_PREFETCH:
        emit_prefetch(job, insn, i);
        break;
    case WAY_MEMORY:
        emit_memory(job, insn, i);
        break;
    case WAY_MOFFS:
        emit_moffs(job, insn, i);
        break;
    case WAY_DIVIDE:
        emit_divide(job, insn, i);
        break;
    case WAY_VECTOR:
        emit_vector(job, insn, i);
        break;
    case WAY_X87:
        emit_x87(job, insn, i);
        break;
    case WAY_PUSH:
        emit_push(job, insn, i);
        break;
    case WAY_POP:
        emit_pop(job, insn, i);
        break;
    case WAY_POP_RSP:
        emit_pop_rsp(job, insn, i);
        break;
    case WAY_BIT:
        emit_bit(job, insn, i);
        break;
    case WAY_STRING:
        emit_string(job, insn, i);
        break;
    case WAY_SYSTEM:
        emit_system(job, insn, i);
        break;
    case WAY_LEAVE:
        emit_leave(job, insn, i);
        break;
    default:
        emit_branch(job, i);
        break;
    }
}
