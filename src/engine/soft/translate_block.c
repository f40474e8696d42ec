/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block's code. First each instruction is classed: copied with its operands in the same
 * registers, copied with its memory operand at (%r10) behind a look into the TLB, a branch, or one
 * for its handler; and blocks that follow are taken with it (translate_trace.c). Then, backwards,
 * which flags matter before each. Then the code, forwards:
 *
 *     indirect entry: is R10 the block's address? else it is looked for in the second table
 *     saved entry:    the flags are in memory
 *     entry:          instructions ...
 *                     branch: jumps within the page, jumps through the table of the context
 *     slow paths:     one for each access, and each handler
 *     links:          where jumps within the page lead at first
 *     stale:          where the entry leads when the page has changed
 */
#include "engine/soft/translate_job.h"

#include <assert.h>

/* --- stubs --- */

struct stub *add_stub(struct job *job, enum stub_kind kind, uint8_t *from)
{
    assert(job->stub_count < STUBS);
    struct stub *stub = &job->stubs[job->stub_count++];
    *stub = (struct stub){.kind = (uint8_t)kind,
                          .place = (uint8_t)job->current,
                          .from = from,
                          .saved = job->saved_valid,
                          .host = job->host_valid};
    if (job->pending.look && job->pending.from == from) {
        stub->look = job->pending.look;
        stub->look_limit = job->pending.look_limit;
        stub->found = job->pending.found;
        job->pending.look = LOOK_NONE;
    }
    return stub;
}

struct stub *add_slow(struct job *job, uint8_t *from, const struct insn *insn)
{
    struct stub *stub = add_stub(job, STUB_SLOW, from);
    stub->insn = insn;
    return stub;
}

/* instructions += n, by a register. */
static void emit_count(struct emit *e, unsigned reg, int n)
{
    emit_gs64(e, OP_LOAD, reg, GS(instructions));
    emit8(e, rex_of(REX_W, reg, reg)); /* lea n(reg), reg */
    emit8(e, 0x8d);
    emit8(e, 0x80u | (reg & 7) << 3 | (reg & 7));
    emit32(e, (uint32_t)n);
    emit_gs64(e, OP_STORE, reg, GS(instructions));
}

uint64_t rip_behind(const struct job *job, const struct insn *insn)
{
    uint64_t rip = job->block->rip - job->block->offset + insn->next_offset;
    return job->code32 ? (uint32_t)rip : rip;
}

void note_x87(struct job *job, unsigned before)
{
    for (unsigned i = before; i-- > 0 && job->way[i] != WAY_HANDLER;) {
        const struct insn *insn = job->insns[i];
        if (job->way[i] == WAY_X87 && translate_x87_is_noted(insn)) {
            translate_x87_note(job->e, job->cpu, insn, rip_behind(job, insn) - insn->len);
            return;
        }
    }
}

/* --- events --- */

static bool needs_poll(const struct job *job, unsigned i)
{
    const struct insn *insn = job->insns[i];
    uint64_t next = rip_behind(job, insn), target = target_of(job, insn);
    switch (job->way[i]) {
    case WAY_JMP:
    case WAY_CALL:
        return target < next || !in_page(job, target);
    case WAY_JCC:
    case WAY_LOOP:
        return target < next || !in_page(job, target) || !in_page(job, next);
    case WAY_END:
        return !in_page(job, next);
    case WAY_RET:
    case WAY_JMP_IND:
    case WAY_CALL_IND:
        return true;
    default:
        return false;
    }
}

/* Before which instruction: the last one up to this one where no flag is lost by it. */
static unsigned poll_place(const struct job *job, unsigned last)
{
    if (job->way[last] != WAY_JCC && job->way[last] != WAY_LOOP && job->way[last] != WAY_END &&
        job->way[last] != WAY_JMP)
        return last; /* flags go to memory there anyway */
    for (unsigned i = last + 1; i-- > 0;) {
        if (job->live[i] == 0)
            return i;
    }
    return 0;
}

/* One before the first branch that needs it is before all others as well, since a trace is entered
 * at its start alone. */
static int find_poll(const struct job *job)
{
    if (job->t->count) /* each block looks at its start: emit_clock() */
        return -1;
    for (unsigned i = 0; i < job->count; i++) {
        if (!needs_poll(job, i))
            continue;
        unsigned place = poll_place(job, i);
        while (place > 0 && job->insns[place - 1]->op == OP_STI) /* not in its shadow */
            place--;
        return (int)place;
    }
    return -1;
}

void emit_attention(struct emit *e)
{
    emit8(e, 0x65);
    emit8(e, 0x83);
    emit_gs_operand(e, 7, GS(translated.attention));
    emit8(e, 0);
}

static void emit_poll(struct job *job, unsigned i)
{
    struct emit *e = job->e;
    const struct insn *insn = job->insns[i];
    give_up_flags(job, job->live[i]);
    emit_attention(e);
    struct stub *stub = add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_NE));
    stub->rip = rip_behind(job, insn) - insn->len;
}

/*
 * With a virtual clock: leave where a timer may be due or an event is pending, as the run loop
 * looks before each block, so that interrupts come at the same instruction whether code is
 * translated or not; count the block. Each part of a trace does so. R10 stays.
 */
static void emit_clock(struct job *job, unsigned i, const struct block *block)
{
    struct emit *e = job->e;
    job->current = i;
    give_up_flags(job, job->live[i]);
    emit_gs64(e, OP_LOAD, R11, GS(instructions));
    emit_gs64(e, 0x3b, R11, GS(clock_check)); /* cmp %gs:, %r11 */
    add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_AE))->rip = block->rip;
    emit_attention(e);
    add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_NE))->rip = block->rip;
    emit_count(e, R11, (int)translate_count_of(block));
}

/* Before an instruction with which another block begins. */
static void emit_border(struct job *job, unsigned i)
{
    const struct block *part = job->t->count ? part_at(job, i) : NULL;
    if (part)
        emit_clock(job, i, part);
}

/* --- the block --- */

void emit_insn(struct job *job, unsigned i)
{
    unsigned first = job->stub_count, kept = kept_flags(job, i);
    job->current = i;
    if (kept && !job->saved_valid)
        save_flags(job);
    if ((is_last(job, i) && job->way[i] != WAY_HANDLER) || job->way[i] == WAY_JCC)
        note_x87(job, i);
    emit_by_way(job, i);
    if (kept)
        keep_flags(job, kept);
    for (struct stub *stub = job->stubs + first; stub < job->stubs + job->stub_count; stub++) {
        if (!stub->resume)
            stub->resume = job->e->at; /* a branch's does not come back */
    }
}

/* --- groups --- */

/* Accesses that must be aligned are looked at one by one where one of them is not: the usual 16
 * bytes need one test for all that are as far from a multiple. known: R10 is a page's. */
static void emit_alignment(struct job *job, const struct translate_group *g, bool known)
{
    struct emit *e = job->e;
    unsigned checked = 0; /* bit n: that the stretch's start is n bytes behind a multiple of 16 */
    for (unsigned i = g->first; i <= g->last; i++) {
        const struct insn *insn = job->insns[i];
        if (!insn->is_mem || !translate_wants_alignment(insn) || job->way[i] == WAY_LEA)
            continue;
        unsigned mask = insn->mem_bytes - 1u, offset = job->offset[i] & mask;
        if ((mask == 15 && checked >> offset & 1) || (known && offset == 0))
            continue;
        if (mask == 15)
            checked |= 1u << offset;
        if (offset) { /* lea offset(%r10), %r11 */
            emit_bytes(e, (const uint8_t[]){0x4d, 0x8d, 0x5a}, 3);
            emit8(e, offset);
        }
        emit_bytes(e, (const uint8_t[]){0x41, 0xf6, offset ? 0xc3 : 0xc2}, 3); /* test $, %r11b */
        emit8(e, mask);
        struct stub *stub = add_stub(job, STUB_UNGROUPED, emit_jcc(e, CONDITION_NE));
        stub->group = g;
        stub->vectors_before = job->vectors;
        stub->x87_before = job->x87;
    }
}

/* Does an instruction of a group leave R11 alone? A look for events before it does: it is where no
 * flags matter. */
static bool leaves_r11(const struct job *job, unsigned i)
{
    const struct insn *insn = job->insns[i];
    const struct insn_flags *f = &job->flags[i];
    switch ((enum way)job->way[i]) {
    case WAY_NOTHING:
    case WAY_LEA:
    case WAY_COPY:
    case WAY_STEP:
    case WAY_MEMORY:
        break;
    default:
        return false;
    }
    bool restores = f->read || (f->written && job->live[i + 1] & ~(unsigned)f->written);
    return !restores && !kept_flags(job, i) && !translate_wants_alignment(insn) &&
           !translate_names(insn, R10) && !translate_names(insn, R11);
}

/* A register that the group loads, best the one that its addresses are made of. GPR_ZERO: none, or
 * R11 cannot be a part of the address all the time. */
static unsigned loaded(const struct job *job, const struct translate_group *g)
{
    unsigned found = GPR_ZERO, base = job->insns[g->first]->base;
    for (unsigned i = g->first; i <= g->last; i++) {
        const struct insn *insn = job->insns[i];
        if (!leaves_r11(job, i))
            return GPR_ZERO;
        if (job->way[i] == WAY_MEMORY && translate_overwrites(insn, insn->reg) && found != base)
            found = insn->reg;
    }
    return found;
}

/* The look of one that does not begin on the stack. */
static struct look emit_look_for_group(struct job *job, const struct translate_group *g)
{
    const struct insn *insn = job->insns[g->first];
    unsigned to = loaded(job, g);
    assert(insn->is_mem);
    if (to == GPR_ZERO)
        return emit_look(job, insn, g->before, g->bytes, g->write);
    return emit_look_for_load(job, insn, g->before, g->bytes, g->write, to);
}

/* The look into the TLB for a whole group. */
static void emit_group_begin(struct job *job, const struct translate_group *g)
{
    const struct insn *insn = job->insns[g->first];
    job->current = g->first;
    if (g->vectors & VECTORS_X87)
        need_x87(job, insn, g->first);
    if (g->vectors & (VECTORS_SSE | VECTORS_AVX))
        need_vectors(job, insn, g->first);
    give_up_flags(job, job->live[g->first]);
    struct look look = {.base = R10};
    switch ((enum way)job->way[g->first]) {
    case WAY_PUSH:
    case WAY_CALL:
        emit_stack_lea(job, R10, CPU_RSP, g->before - (int)job->word);
        look.miss = emit_stack_lookup(job, g->bytes, g->write);
        break;
    case WAY_POP:
        emit_stack_lea(job, R10, CPU_RSP, g->before);
        look.miss = emit_stack_lookup(job, g->bytes, g->write);
        break;
    default:
        look = emit_look_for_group(job, g);
        break;
    }
    struct stub *stub = add_stub(job, STUB_UNGROUPED, look.miss);
    stub->group = g;
    stub->vectors_before = job->vectors;
    stub->x87_before = job->x87;
    for (unsigned i = g->first; i <= g->last; i++) /* from R10 on, which stays where it is */
        job->offset[i] = (uint16_t)(job->offset[i] + look.offset);
    emit_alignment(job, g, look.known);
    job->group = g;
    job->group_base = look.base;
}

static void emit_one(struct job *job, unsigned i)
{
    job->current = i;
    if ((int)i == job->poll)
        emit_poll(job, i);
    emit_insn(job, i);
    job->behind[i] = job->e->at;
}

/* Where the accesses of a group can look one by one, and then go on behind it. */
static void emit_ungrouped(struct job *job, const struct stub *stub)
{
    const struct translate_group *g = stub->group;
    struct emit *e = job->e;
    job->host_valid = false;
    job->saved_valid = stub->saved;
    job->vectors = stub->vectors_before;
    job->x87 = stub->x87_before;
    for (unsigned i = g->first; i <= g->last; i++) {
        if (i > g->first)
            emit_border(job, i);
        emit_one(job, i);
    }
    if (is_last(job, g->last))
        return;
    if (job->live[g->last + 1]) {
        if (stub->host_after && !job->host_valid)
            restore_flags(job);
        if (stub->saved_after && !job->saved_valid)
            save_flags(job);
    }
    emit_lead(emit_jmp(e), stub->resume);
}

/* A group has ended: its stubs learn what comes behind it. */
static void emit_group_end(struct job *job)
{
    for (unsigned i = 0; i < job->stub_count; i++) {
        struct stub *stub = &job->stubs[i];
        if (stub->group != job->group)
            continue;
        stub->resume = job->e->at;
        stub->host_after = job->host_valid;
        stub->saved_after = job->saved_valid;
    }
    job->group = NULL;
}

static void emit_insns(struct job *job)
{
    const struct translate_group *next = job->groups, *end = next + job->group_count;
    for (unsigned i = 0; i < job->count; i++) {
        emit_border(job, i);
        if (next < end && i == next->first)
            emit_group_begin(job, next);
        emit_one(job, i);
        if (next < end && i == next->last) {
            emit_group_end(job);
            next++;
        }
    }
}

/*
 * Are the flags that the block is entered with, and that matter, first of all to be given up? Then
 * they had better be in memory.
 */
static bool wants_flags_saved(const struct job *job)
{
    if (job->live[0] && job->t->count) /* emit_clock() */
        return true;
    for (unsigned i = 0; i < job->count && job->live[i]; i++) {
        const struct insn *insn = job->insns[i];
        switch ((enum way)job->way[i]) {
        case WAY_NOTHING:
        case WAY_LEA:
        case WAY_LEA_16:
            break;
        case WAY_COPY:
        case WAY_STEP:
            if (job->flags[i].read || job->flags[i].written)
                return false;
            break;
        case WAY_VECTOR: /* it looks where its registers are */
        case WAY_X87:
            return true;
        case WAY_JMP:
        case WAY_END:
            if (is_last(job, i))
                return (int)i == job->poll;
            break;
        case WAY_JCC:
        case WAY_LOOP:
            return (int)i == job->poll;
        default:
            return insn->op != OP_FALL_THROUGH;
        }
        if ((int)i == job->poll)
            return true;
    }
    return false;
}

/* cmp $, %r10; R11 is lost. */
static void emit_compare_r10(struct emit *e, uint64_t value)
{
    if (is_imm32(value)) {
        emit_bytes(e, (const uint8_t[]){0x49, 0x81, 0xfa}, 3);
        emit32(e, (uint32_t)value);
    } else {
        emit_mov_imm(e, R11, value);
        emit_bytes(e, (const uint8_t[]){0x4d, 0x39, 0xda}, 3); /* cmp %r11, %r10 */
    }
}

/*
 * The three entries; of the indirect one the flags are in memory, as of the saved one. Where the
 * block wants them there, the entry with flags in the host's register saves them, and the others
 * jump behind that.
 */
static void emit_entries(struct job *job)
{
    struct emit *e = job->e;
    struct block *block = job->block;
    bool keep = wants_flags_saved(job);
    uint8_t *behind = NULL;
    job->host_valid = false;
    job->saved_valid = true;
    block->indirect = translate_executable(job->t, e->at);
    emit_compare_r10(e, block->rip | job->tag);
    add_stub(job, STUB_EXIT, emit_jcc(e, CONDITION_NE));
    block->saved = translate_executable(job->t, e->at);
    if (keep)
        behind = emit_jmp(e);
    else if (job->live[0])
        restore_flags(job);
    block->code = translate_executable(job->t, e->at);
    if (keep) {
        save_flags(job);
        emit_lead(behind, e->at);
    }
    job->host_valid = !keep;
    job->saved_valid = keep;
}

/*
 * Where jumps within the page lead. To an instruction that crosses into the next page they go
 * through the table, which forgets it when something else is mapped there.
 */
static void emit_link_entries(struct job *job)
{
    struct emit *e = job->e;
    struct block *block = job->block;
    block->link = block->code;
    block->link_saved = block->saved;
    if (!block->next_current)
        return;
    block->link = translate_executable(job->t, e->at);
    save_flags(job);
    block->link_saved = translate_executable(job->t, e->at);
    emit_through_table(job, block->rip);
}

/* lea displacement(%rip), %r11: where that is comes later. */
static uint8_t *emit_lea_r11(struct emit *e)
{
    emit_bytes(e, (const uint8_t[]){0x4c, 0x8d, 0x1d}, 3);
    emit32(e, 0);
    return e->at - 4;
}

/* The address is not in the page of the stack that is known: look for it in the TLB. What follows
 * is for where that does not have it either. */
static void emit_stack_look(struct job *job, const struct stub *stub)
{
    struct emit *e = job->e;
    uint8_t *behind = emit_lea_r11(e);
    emit_jmp_gs(e,
                stub->look == LOOK_WRITE ? GS(translated.stack_write) : GS(translated.stack_read));
    emit16(e, stub->look_limit);
    emit_lead(behind, e->at);
    emit_lead(emit_jmp(e), stub->found);
}

static void emit_stub(struct job *job, struct stub *stub)
{
    struct emit *e = job->e;
    if (stub->from)
        emit_lead(stub->from, e->at);
    if (stub->look)
        emit_stack_look(job, stub);
    switch ((enum stub_kind)stub->kind) {
    case STUB_SLOW:
        note_x87(job, stub->place);
        emit_mov_imm(e, R10, block_insn_offset(job->cpu, stub->insn) | stub->wanted);
        emit_lead(emit_lea_r11(e), stub->plain ? job->behind[stub->place] : stub->resume);
        emit_jmp_gs(e, stub->saved ? GS(translated.slow_saved) : GS(translated.slow_host));
        break;
    case STUB_LINK:
        emit_mov_imm(e, R10, stub->rip);
        emit_lead(emit_lea_r11(e), stub->from);
        emit_jmp_gs(e, stub->host ? GS(translated.exit_link) : GS(translated.exit_link_saved));
        break;
    case STUB_EXIT:
        note_x87(job, stub->place);
        emit_mov_imm(e, R10, stub->rip);
        emit_jmp_gs(e, stub->saved ? GS(translated.exit_saved) : GS(translated.exit_host));
        break;
    case STUB_UNGROUPED:
        emit_ungrouped(job, stub);
        break;
    }
}

/* Is anything done without a handler, or is it one for a branch (IRET, for one), behind which
 * translated code goes on without the run loop? */
static bool is_worth(const struct job *job)
{
    if (job->insns[job->count - 1]->opcode->attr & ATTR_BRANCH)
        return true;
    for (unsigned i = 0; i < job->count; i++) {
        if (job->way[i] != WAY_HANDLER && job->way[i] != WAY_END)
            return true;
    }
    return false;
}

size_t translate_stub_bytes(void)
{
    return STUBS * sizeof(struct stub);
}

bool translate_emit_block(struct soft_cpu *cpu, struct block *block, struct emit *e)
{
    bool code32 = !soft_code64(cpu), code16 = cpu->mode.code_bits == 16;
    struct job job = {.cpu = cpu,
                      .t = cpu->blocks->translator,
                      .stubs = cpu->blocks->translator->stubs,
                      .block = block,
                      .e = e,
                      .code32 = code32,
                      .code16 = code16,
                      .start = code16 ? cpu->seg_base[SEG_CS] : 0,
                      .tag = cpu->code_tag,
                      .word = cpu->mode.code_bits / 8u};
    find_trace(&job);
    if (!is_worth(&job))
        return false;
    job.poll = find_poll(&job);
    if (!code16)
        job.group_count =
            translate_groups(job.insns, job.count, job.way, code32, job.groups, job.offset);
    bool loop = find_loop(&job);
    emit_entries(&job);
    bool keeps = job.saved_valid;
    const uint8_t *entry = translate_writable(job.t, block->code);
    if (job.t->count)
        emit_clock(&job, 0, block);
    if (loop)
        emit_loop(&job);
    emit_insns(&job);
    if (e->at < entry + 5) /* room for a jump */
        emit_bytes(e, (const uint8_t[]){0x90, 0x90, 0x90, 0x90, 0x90}, 5);
    /* The first one, that of the indirect entry, has R10 already. */
    emit_lead(job.stubs[0].from, e->at);
    emit_jmp_gs(e, GS(translated.second));
    for (unsigned i = 1; i < job.stub_count; i++) /* they become more */
        emit_stub(&job, &job.stubs[i]);
    emit_link_entries(&job);
    block->stale = e->at;
    emit_mov_imm(e, R10, block->rip);
    emit_jmp_gs(e, GS(translated.exit_host));
    block->stale_saved = NULL;
    if (keeps) {
        block->stale_saved = e->at;
        emit_mov_imm(e, R10, block->rip);
        emit_jmp_gs(e, GS(translated.exit_saved));
    }
    return true;
}
