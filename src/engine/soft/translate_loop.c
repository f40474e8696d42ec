/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block that leads to its own start: some rounds of it in a row. Accesses whose addresses change
 * from round to round by constants need one look into the TLB for all these rounds, since where
 * they will go is known at their start (translate_group.h: stretches).
 *
 *     head:   events pending, or vector registers not loaded? to plain
 *             each stretch: all of it in one page that the TLB has? else to plain
 *             round 1     ... and to what follows the loop where its condition ends it
 *             ...
 *             round n     ... to head
 *     plain:  one round as in any other block, to head
 *
 * A round that has to call a handler is finished in plain, too: the handler may have changed what
 * the head has found out.
 */
#include "engine/soft/translate_job.h"

#include <assert.h>

#include "engine/soft/mmu_internal.h"

/* Ways that a loop's instructions may have. */
static bool is_for_loops(const struct job *job, unsigned i)
{
    switch ((enum way)job->way[i]) {
    case WAY_COPY:
    case WAY_LEA:
    case WAY_NOTHING:
    case WAY_PREFETCH:
    case WAY_MEMORY:
    case WAY_DIVIDE:
    case WAY_VECTOR:
    case WAY_JCC:
    case WAY_JMP:
    case WAY_END:
        return true;
    default:
        return false;
    }
}

static unsigned saved_looks(const struct translate_loop *loop)
{
    unsigned uses = 0;
    for (unsigned n = 0; n < loop->count; n++)
        uses += loop->stretches[n].uses;
    return uses * loop->rounds - loop->count;
}

bool find_loop(struct job *job)
{
    const struct block *block = job->block;
    unsigned last = job->count - 1u;
    const struct insn *end = job->insns[last];
    job->loop.rounds = 0;
    if (job->code32 || job->t->count || job->t->options.slow || block->next_current || last == 0 ||
        job->live[0] || job->way[last] != WAY_JCC || target_of(job, end) != block->rip)
        return false;
    for (unsigned i = 0; i < last; i++) {
        if (!is_for_loops(job, i))
            return false;
    }
    struct translate_loop best = {.rounds = 0};
    for (unsigned rounds = LOOP_ROUNDS_MAX; rounds > 1; rounds /= 2) {
        struct translate_loop loop;
        if (rounds * last > LOOP_INSNS_MAX)
            continue;
        translate_find_stretches(job->insns, job->count, job->way, rounds, &loop);
        if (loop.rounds && (!best.rounds || saved_looks(&loop) > saved_looks(&best)))
            best = loop;
    }
    job->loop = best;
    job->t->stats.loops += best.rounds != 0;
    return best.rounds != 0;
}

/* Do R10 and R11 stay as they are in a round? */
static bool is_free_of_scratch(const struct job *job)
{
    for (unsigned i = 0; i + 1u < job->count; i++) {
        const struct insn *insn = job->insns[i];
        if (translate_leads_on((enum way)job->way[i]))
            continue;
        if (translate_names(insn, R10) || translate_names(insn, R11))
            return false;
    }
    return job->loop.all;
}

/*
 * Where the host addresses of stretches are: in memory, and in registers that nobody else uses. R11
 * is free then, since flags are never restored: none matter at the head, and nothing between those
 * that a round writes and where it reads them takes them away.
 */
struct residence {
    bool clean; /* R10 is that of the last one, */
    bool both;  /* and R11 that of the first one */
    unsigned last;
};

static unsigned emit_stretch(struct job *job, const struct residence *r, unsigned n)
{
    if (r->clean && n == r->last)
        return R10;
    unsigned reg = r->clean ? R11 : R10;
    if (!r->both)
        emit_gs64(job->e, OP_LOAD, reg, GS(translated.stretches) + 8 * (size_t)n);
    return reg;
}

static void emit_round(struct job *job, const struct residence *r, unsigned round)
{
    for (unsigned i = 0; i + 1u < job->count; i++) {
        const struct insn *insn = job->insns[i];
        unsigned n = job->loop.of[i];
        if (n) {
            int32_t offset = job->loop.offset[i] + (int32_t)round * job->loop.step[i];
            unsigned base = emit_stretch(job, r, n - 1);
            assert(offset >= 0 && offset < GROUP_BYTES_MAX);
            emit_memory_at(job, insn, i, base, (unsigned)offset);
            continue;
        }
        unsigned first = job->stub_count;
        emit_insn(job, i);
        for (; first < job->stub_count; first++)
            job->stubs[first].plain = true;
    }
}

void emit_loop(struct job *job)
{
    struct emit *e = job->e;
    const struct translate_loop *loop = &job->loop;
    uint8_t *plain[2 + 2 * SOFT_STRETCHES];
    unsigned count = 0;
    bool clean = is_free_of_scratch(job);
    const struct residence r = {
        .clean = clean, .both = clean && loop->count == 2, .last = loop->count - 1};
    int poll = job->poll;
    job->loop_head = e->at;
    emit_attention(e);
    plain[count++] = emit_jcc(e, CONDITION_NE);
    if (job->uses)
        plain[count++] = emit_unless_loaded(e, wanted_vectors(job));
    for (unsigned n = 0; n < loop->count; n++) {
        const struct translate_stretch *s = &loop->stretches[n];
        const struct insn *insn = job->insns[s->insn];
        job->by_tlb = true; /* stretches may be in several pages of the stack */
        plain[count++] = emit_look_to_r10(job, insn, s->before, s->bytes, s->write);
        job->by_tlb = false;
        if (s->align > 1) {
            emit_bytes(e, (const uint8_t[]){0x41, 0xf6, 0xc2}, 3); /* test $, %r10b */
            emit8(e, s->align - 1u);
            plain[count++] = emit_jcc(e, CONDITION_NE);
        }
        if (!r.clean || n != r.last)
            emit_gs64(e, OP_STORE, R10, GS(translated.stretches) + 8 * (size_t)n);
    }
    if (r.both)
        emit_gs64(e, OP_LOAD, R11, GS(translated.stretches));
    job->vectors = job->uses != 0;
    job->host_valid = job->saved_valid = false;
    job->poll = -1;
    for (unsigned round = 0; round < loop->rounds; round++) {
        emit_round(job, &r, round);
        emit_loop_end(job, round + 1 == loop->rounds);
    }
    job->vectors = false;
    job->host_valid = job->saved_valid = false;
    job->poll = poll;
    if (!loop->all)
        job->group_count = 0; /* a handler's round is finished at any place */
    for (unsigned n = 0; n < count; n++)
        emit_lead(plain[n], e->at);
}
