/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which blocks become code together, and which flags matter in it.
 *
 * A block ends with a branch, and most are short. Where it goes on in the same page, the block that
 * is there is translated once more behind it: no jump between them, accesses share a look into the
 * TLB across the border, and flags that the second one writes need not be kept by the first. The
 * way that is not taken leaves by a link, as at a block's end.
 *
 * All parts lie in one page, whose translations go together (translate.c), so that nothing tells
 * of a trace but its first block. A part that is entered from elsewhere has code of its own.
 */
#include "engine/soft/translate_job.h"

/* --- flags that matter elsewhere --- */

static struct insn_flags flags_of(const struct insn *insn, enum way way)
{
    struct insn_flags f = {0};
    if (way == WAY_HANDLER)
        return (struct insn_flags){.read = ARITH};
    if (insn->op != OP_FALL_THROUGH)
        f = insn_flags(insn, INSN_COUNT_UNKNOWN);
    f.read &= ARITH;
    f.written = (f.written | f.undefined) & ARITH;
    return f;
}

static struct block *find(const struct job *job, uint64_t rip)
{
    if (!in_page(job, rip))
        return NULL;
    return block_lookup(job->cpu, job->block->gpa + (rip - job->block->rip), rip);
}

/* Flags that the block reads before it writes them: all that it may have been translated for, and
 * all that it ever will. */
static unsigned flags_into(const struct job *job, const struct block *b)
{
    unsigned read = 0, written = 0;
    if (b->code)
        return b->flags_in;
    for (unsigned i = 0; i < b->count && written != ARITH; i++) {
        enum way way = translate_way_of(job->t, &b->insns[i], job->cpu->mode.code_bits);
        const struct insn_flags f = flags_of(&b->insns[i], way);
        read |= (unsigned)f.read & ~written;
        written |= f.written;
    }
    return read | (ARITH & ~written);
}

/* Flags that matter where the code at rip is entered. */
static unsigned flags_wanted_at(const struct job *job, uint64_t rip)
{
    const struct block *b = job->t->options.exact ? NULL : find(job, rip);
    return b ? flags_into(job, b) : ARITH;
}

/* Flags that matter behind the last instruction. */
static unsigned flags_out(const struct job *job)
{
    const struct insn *last = job->insns[job->count - 1];
    switch ((enum way)job->way[job->count - 1]) {
    case WAY_JMP:
    case WAY_CALL:
        return flags_wanted_at(job, target_of(job, last));
    case WAY_JCC:
    case WAY_LOOP:
        return flags_wanted_at(job, target_of(job, last)) |
               flags_wanted_at(job, rip_behind(job, last));
    case WAY_END:
        return flags_wanted_at(job, rip_behind(job, last));
    default:
        return ARITH;
    }
}

/* Those that matter where a trace is left before its end. */
static unsigned flags_aside(const struct job *job, unsigned i)
{
    const struct insn *insn = job->insns[i];
    if (job->way[i] != WAY_JCC || is_last(job, i))
        return 0;
    return flags_wanted_at(job, job->inverted[i] ? rip_behind(job, insn) : target_of(job, insn));
}

static void find_flags(struct job *job)
{
    job->live[job->count] = (uint16_t)flags_out(job);
    for (unsigned i = job->count; i-- > 0;) {
        const struct insn_flags f = flags_of(job->insns[i], (enum way)job->way[i]);
        unsigned behind = job->live[i + 1] | flags_aside(job, i);
        job->flags[i] = f;
        job->live[i] = (uint16_t)((behind & ~(unsigned)f.written) | f.read);
        if (job->t->options.exact)
            job->live[i] = ARITH;
    }
    job->block->flags_in = job->live[0];
}

/* --- parts --- */

struct block *part_at(const struct job *job, unsigned i)
{
    for (unsigned n = 1; n < job->part_count; n++) {
        if (job->first[n] == i)
            return job->parts[n];
    }
    return NULL;
}

/* A branch out of the half of the address space that code is in raises #GP, before anything else
 * that it does. */
static bool leaves_half(const struct job *job, const struct insn *insn, enum way way)
{
    return (way == WAY_JMP || way == WAY_CALL || way == WAY_JCC) &&
           !soft_canonical(target_of(job, insn));
}

static void add_part(struct job *job, struct block *b)
{
    job->first[job->part_count] = (uint8_t)job->count;
    job->parts[job->part_count++] = b;
    for (unsigned i = 0; i < b->count; i++) {
        const struct insn *insn = &b->insns[i];
        enum way way = translate_way_of(job->t, insn, job->cpu->mode.code_bits);
        job->way[job->count] = (uint8_t)(leaves_half(job, insn, way) ? WAY_HANDLER : way);
        job->insns[job->count++] = insn;
    }
}

/* A block that may be a part, or NULL. */
static struct block *candidate(const struct job *job, uint64_t rip)
{
    struct block *b = find(job, rip);
    if (!b || b->next_current || b->runs == TRANSLATE_NEVER ||
        job->count + b->count > TRACE_INSNS_MAX)
        return NULL;
    for (unsigned n = 0; n < job->part_count; n++) {
        if (job->parts[n] == b)
            return NULL;
    }
    return b;
}

/* The block that the last one goes on with, or NULL. Not where a condition leads back: that is a
 * loop's end, and what follows it is another matter. */
static struct block *successor(struct job *job)
{
    unsigned i = job->count - 1;
    const struct insn *last = job->insns[i];
    uint64_t next = rip_behind(job, last), target = target_of(job, last);
    if (job->way[i] == WAY_END)
        return candidate(job, next);
    if (job->way[i] == WAY_JMP || job->way[i] == WAY_CALL)
        return candidate(job, target);
    if (job->way[i] != WAY_JCC || target < next || !in_page(job, target) || !in_page(job, next))
        return NULL;
    struct block *a = candidate(job, next), *b = candidate(job, target);
    job->inverted[i] = b && (!a || b->runs > a->runs);
    return job->inverted[i] ? b : a;
}

/* What the code behind a handler relies on (translate_step()) may be another part's. */
static void note_vectors(struct job *job)
{
    unsigned last = 0;
    for (unsigned i = 0; i < job->count; i++) {
        unsigned wanted = translate_vectors_of(job->insns[i], (enum way)job->way[i]);
        job->uses |= (uint8_t)wanted;
        last = wanted ? i : last;
    }
    if (!job->uses)
        return;
    for (unsigned n = 0; n < job->part_count; n++) {
        struct block *b = job->parts[n];
        unsigned here = last < job->first[n] ? 0 : last - job->first[n];
        b->vectors |= job->uses;
        if (b->last_vector < here)
            b->last_vector = (uint8_t)here;
    }
}

void find_trace(struct job *job)
{
    bool alone =
        job->code16 || job->block->next_current || job->cpu->blocks->insns_max < BLOCK_INSNS_MAX;
    add_part(job, job->block);
    while (!alone && job->part_count < TRACE_PARTS) {
        struct block *next = successor(job);
        if (!next)
            break;
        add_part(job, next);
    }
    job->inverted[job->count - 1] = false;
    job->t->stats.parts += job->part_count - 1;
    find_flags(job);
    note_vectors(job);
}
