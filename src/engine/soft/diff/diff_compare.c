/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must be equal after an instruction. What need not be, each for a reason that is said here,
 * is made equal before.
 */
#include <stdio.h>
#include <string.h>

#include "engine/soft/diff/diff.h"
#include "engine/soft/exec_vec.h"

#define MXCSR_PE         (1u << 5)
#define MXCSR_MISALIGNED (1u << 17) /* APM vol. 2, 11.2.2 */
#define MXCSR_OVER       0x18u      /* overflow, underflow */
#define CHANGING_FLAGS   (RFLAGS_ARITH | RFLAGS_DF | RFLAGS_NT | RFLAGS_ID | RFLAGS_AC)
#define BEFORE           64u /* compared around an access */
#define AFTER            64u

/* --- what the manuals leave to the processor --- */

/* Its memory is accessed in several steps, in an order that is not said: which of them faults
 * first, and what a fault leaves done of the others. */
static bool in_steps(const struct insn *insn)
{
    switch (insn->op) {
    case OP_CMPS:
    case OP_PUSHA:
    case OP_POPA:
    case OP_VEC_MASKMOVDQU:
    case OP_X87_FLDENV:
    case OP_X87_FNSTENV:
    case OP_X87_FRSTOR:
    case OP_X87_FNSAVE:
    case OP_FXSAVE:
    case OP_FXRSTOR:
    case OP_XSAVE:
    case OP_XSAVEOPT:
    case OP_XSAVEC:
    case OP_XRSTOR:
        return true;
    default:
        return false;
    }
}

/* Both addresses lie in memory that the instruction accesses. */
static bool both_accessed(const struct diff_case *c, uint64_t one, uint64_t other)
{
    unsigned found = 0;
    for (unsigned i = 0; i < c->access_count; i++) {
        const struct diff_access *a = &c->accesses[i];
        found |= (one - a->la < a->len ? 1u : 0) | (other - a->la < a->len ? 2u : 0);
    }
    return found == 3;
}

/*
 * The host lets pass what the engine refuses, as the manuals do: AMD's processors read the operand
 * of a SHA instruction wherever it stands (SDM vol. 2, 2.4: exceptions of type 4), and have a bit
 * of MXCSR (misaligned SSE) that the models have not.
 */
static bool host_is_laxer(const struct diff_case *c, const struct diff_result *got,
                          const struct diff_result *want, const uint8_t *memory)
{
    const struct insn *insn = &c->d->insn;
    uint64_t la = c->access_count ? c->accesses[0].la : 0;
    uint32_t mxcsr = 0;
    if (got->vector != EXC_GP || want->vector == EXC_GP || c->access_count == 0)
        return false;
    if (strncmp(insn->opcode->name, "sha", 3) == 0 && (insn->opcode->attr & ATTR_SSE))
        return la % 16 != 0;
    if (insn->op == OP_FXRSTOR || insn->op == OP_XRSTOR)
        la += X87_MXCSR;
    else if (insn->op != OP_LDMXCSR)
        return false;
    if (la >= DIFF_ARENA && la <= DIFF_ARENA + DIFF_PAGES * DIFF_PAGE - 4)
        memcpy(&mxcsr, memory + (la - DIFF_ARENA), 4);
    return mxcsr & MXCSR_MISALIGNED;
}

/* Through GS, whose base is added in 64-bit code: AMD's processors refuse an offset that is not
 * canonical, though the sum is; to the manuals it is the sum that counts (APM vol. 2, 5.3.1). */
static bool offset_is_refused(const struct diff_case *c, const struct diff_result *got,
                              const struct diff_result *want)
{
    if (c->d->insn.seg != SEG_GS || c->d->mode->code_bits != 64 || want->vector != EXC_GP ||
        got->vector == EXC_GP)
        return false;
    for (unsigned i = 0; i < c->access_count; i++) {
        const struct diff_access *a = &c->accesses[i];
        if (!soft_canonical(a->la - DIFF_GS) || !soft_canonical(a->la - DIFF_GS + a->len - 1))
            return true;
    }
    return false;
}

/* --- flags --- */

static uint64_t flags_mask(const struct diff_case *c, bool raised)
{
    const struct insn *insn = &c->d->insn;
    uint64_t mask = CHANGING_FLAGS;
    if (!raised && insn->op != OP_UD)
        mask &= ~(uint64_t)insn_flags(insn, (int)(c->start.gpr[CPU_RCX] & 0xff)).undefined;
    return mask;
}

/* --- vector and x87 state --- */

static void forget_pointers(uint8_t *image)
{
    memset(image + X87_FOP, 0, X87_MXCSR - X87_FOP);
    memset(image + X87_MXCSR_MASK, 0, 4);
}

/*
 * The pointers to the last x87 instruction: AMD's processors save them only when an exception is
 * pending, and the host's are those of the tester's code. MXCSR: beside an overflow or underflow
 * that is not masked the engine does not know whether the result is inexact, and not at which step
 * of a dot product the processor has stopped.
 */
static void forget_state(const struct diff_case *c, struct diff_result *got,
                         struct diff_result *want)
{
    uint32_t mxcsr, unknown = 0;
    forget_pointers(got->state.fpu.x87);
    forget_pointers(want->state.fpu.x87);
    memcpy(&mxcsr, want->state.fpu.x87 + X87_MXCSR, sizeof(mxcsr));
    if (want->vector == EXC_XM) {
        if (strstr(c->d->insn.opcode->name, "dpp"))
            unknown = MXCSR_FLAGS;
        else if (mxcsr & ~mxcsr >> MXCSR_MASK_SHIFT & MXCSR_OVER)
            unknown = MXCSR_PE;
    }
    got->state.fpu.x87[X87_MXCSR] |= (uint8_t)unknown;
    want->state.fpu.x87[X87_MXCSR] |= (uint8_t)unknown;
}

static const char *compare_fpu(const struct diff_case *c, const struct diff_result *got,
                               const struct diff_result *want)
{
    const struct soft_fpu *a = &got->state.fpu, *b = &want->state.fpu;
    if (memcmp(a->x87, b->x87, X87_MXCSR) != 0)
        return "x87 control state";
    if (memcmp(a->x87 + X87_MXCSR, b->x87 + X87_MXCSR, 4) != 0)
        return "MXCSR";
    for (unsigned i = 0; i < 8; i++) {
        if (memcmp(a->st[i], b->st[i], 10) != 0)
            return "x87 or MMX registers";
    }
    if (memcmp(a->xmm, b->xmm, sizeof(a->xmm)) != 0)
        return "XMM registers";
    if (c->d->mode->code_bits !=
        64) /* the host's other registers are cleared, which there are not */
        return memcmp(a->ymm_hi, b->ymm_hi, sizeof(a->ymm_hi) / 2) != 0 ? "upper halves" : NULL;
    return memcmp(a->ymm_hi, b->ymm_hi, sizeof(a->ymm_hi)) != 0 ? "upper halves" : NULL;
}

/* --- memory --- */

/* A piece of the arena: false where it lies outside. */
static bool clip(uint64_t la, uint64_t before, uint64_t len, size_t *at, size_t *count)
{
    uint64_t first = la - before, end = la + len, limit = DIFF_ARENA + DIFF_PAGES * DIFF_PAGE;
    if (la < DIFF_ARENA - DIFF_SPACE || la > limit + DIFF_SPACE)
        return false;
    first = first < DIFF_ARENA ? DIFF_ARENA : first;
    end = end > limit ? limit : end;
    if (first >= end)
        return false;
    *at = first - DIFF_ARENA;
    *count = end - first;
    return true;
}

static void clear(uint8_t *memory, uint64_t la, uint64_t len)
{
    size_t at, count;
    if (clip(la, 0, len, &at, &count))
        memset(memory + at, 0, count);
}

/* Pointers in an image that was saved, and MXCSR_MASK. */
static void forget_in_memory(const struct diff_case *c, uint8_t *memory)
{
    const struct insn *insn = &c->d->insn;
    if (c->access_count == 0)
        return;
    uint64_t la = c->accesses[0].la;
    if (insn->op == OP_FXSAVE || insn->op == OP_XSAVE || insn->op == OP_XSAVEOPT ||
        insn->op == OP_XSAVEC) {
        clear(memory, la + X87_FOP, X87_MXCSR - X87_FOP);
        clear(memory, la + X87_MXCSR_MASK, 4);
    }
    if (insn->op == OP_X87_FNSTENV || insn->op == OP_X87_FNSAVE)
        clear(memory, la + 3ULL * insn->op_bytes, 4ULL * insn->op_bytes);
}

static bool same_memory(const struct diff_case *c, const uint8_t *got, const uint8_t *want)
{
    for (unsigned i = 0; i < c->access_count; i++) {
        size_t at, count;
        const struct diff_access *a = &c->accesses[i];
        if (clip(a->la, BEFORE, a->len + AFTER, &at, &count) &&
            memcmp(got + at, want + at, count) != 0)
            return false;
    }
    return true;
}

/* --- all --- */

static bool is_of_memory(int vector)
{
    return vector == EXC_PF || vector == EXC_GP || vector == EXC_SS || vector == EXC_AC;
}

/* LOCK MOV CR0 is a MOV CR8 to AMD's processors (APM vol. 3, MOV CRn), which CPUID 80000001H, ECX
 * bit 4 says. The models have that bit clear, so there is no such instruction. */
static bool is_other_cr8(const struct insn *insn)
{
    unsigned op = insn->opcode->op;
    return (op == OP_MOV_FROM_CR || op == OP_MOV_TO_CR) && insn->prefixes & PREFIX_LOCK &&
           (insn->modrm >> 3 & 7) == 0;
}

/*
 * An access that nothing depends on may fault: that of MASKMOVDQU with an empty mask (SDM vol. 2),
 * and of parts of XRSTOR's area that are not restored. AMD's processors refuse VPINSRQ and VPEXTRQ
 * outside of 64-bit code, where they are VPINSRD and VPEXTRD to the SDM.
 */
static bool host_is_stricter(const struct diff_case *c, const struct diff_result *got,
                             const struct diff_result *want)
{
    const struct insn *insn = &c->d->insn;
    if (insn->op == OP_UD)
        return is_other_cr8(insn) && got->vector == EXC_UD && want->vector == EXC_GP;
    if (want->vector == EXC_UD)
        return c->d->mode->code_bits != 64 && (strcmp(insn->opcode->name, "vpinsrd") == 0 ||
                                               strcmp(insn->opcode->name, "vpextrd") == 0);
    return (insn->op == OP_VEC_MASKMOVDQU || insn->op == OP_XRSTOR) && got->vector < 0 &&
           is_of_memory(want->vector);
}

static bool is_allowed(const struct diff_mode *mode, unsigned seg, uint64_t la)
{
    const struct diff_segment *s = seg == SEG_ES   ? &mode->es
                                   : seg == SEG_SS ? &mode->ss
                                   : seg == SEG_CS ? &mode->cs
                                                   : &mode->ds;
    uint64_t offset = la - s->base;
    if (mode->code_bits == 64)
        return soft_canonical(la);
    return s->down ? offset > s->limit && offset <= UINT32_MAX : offset <= s->limit;
}

/* The operand begins at an address that can be, and ends at one that is not canonical or beyond the
 * segment's limit. */
static bool reaches_beyond(const struct diff_case *c)
{
    const struct diff_access *a = &c->accesses[0];
    const struct diff_mode *mode = c->d->mode;
    unsigned seg = c->d->insn.seg;
    return c->access_count && is_allowed(mode, seg, a->la) &&
           !is_allowed(mode, seg, a->la + a->len - 1);
}

/*
 * The step that faults first decides which exception it is. Operands of ten bytes and XSAVE's area
 * are accessed in steps where their end is no address that can be, and FXSAVE's where it is beyond
 * 16 bits: there the steps go on at 0. Otherwise, that the address is wrong in itself is found
 * before any step of saving and restoring; XRSTOR's header is one of its steps.
 */
static bool other_step_faults(const struct diff_case *c, const struct diff_result *got,
                              const struct diff_result *want)
{
    const struct insn *insn = &c->d->insn;
    bool saving = insn->op >= OP_FXSAVE && insn->op < OP_VEC_END;
    bool xsave = saving && insn->op != OP_FXSAVE && insn->op != OP_FXRSTOR;
    if (!is_of_memory(got->vector) || !is_of_memory(want->vector))
        return false;
    bool wraps = saving && insn->addr_bytes == 2;
    if ((xsave || wraps || insn->mem_bytes == 10) && reaches_beyond(c))
        return true;
    if (saving && insn->op != OP_XRSTOR && got->vector != want->vector)
        return false;
    return in_steps(insn) && (got->vector != want->vector || got->error != want->error);
}

/*
 * Where the vendors' processors differ the engine does as AMD's, and most of it is in faults. Of
 * two that such an instruction could raise, Intel's look for another one first, and for alignment
 * earlier. They leave behind what was done: elements that were gathered, the x87 unit made MMX's;
 * but give CMPS and SCAS the flags back that they began with (SDM vol. 2, REP).
 */
static bool faults_may_differ(const struct diff_case *c, const struct diff_result *got,
                              const struct diff_result *want)
{
    const struct insn *insn = &c->d->insn;
    switch (insn->op) {
    case OP_CMPS:
    case OP_SCAS:
    case OP_MOVDIR64B:
    case OP_SYSRET:
        return true;
    default:
        return insn->op >= OP_VEC_BASE || insn->opcode->attr & ATTR_X87 ||
               (got->vector != want->vector && (got->vector == EXC_AC || want->vector == EXC_AC));
    }
}

/*
 * With alignment checks Intel's processors want less than 16 bytes, or nothing, for vectors (SDM
 * vol. 3, 6.15) and what MOVDIR64B reads. They do not look at memory that XSAVE has nothing for,
 * nor at that of an x87 store which an exception stops. In these cases it is the engine alone that
 * raises something.
 */
static bool vendors_differ(const struct diff_case *c, const struct diff_result *got,
                           const struct diff_result *want)
{
    const struct insn *insn = &c->d->insn;
    if (__builtin_cpu_is("amd") || got->vector < 0)
        return false;
    if (want->vector >= 0)
        return faults_may_differ(c, got, want);
    if (got->vector == EXC_AC)
        return insn->op >= OP_VEC_BASE || insn->op == OP_MOVDIR64B || insn->opcode->attr & ATTR_X87;
    bool saving = insn->op >= OP_XSAVE && insn->op < OP_VEC_END;
    return is_of_memory(got->vector) && (saving || insn->opcode->attr & ATTR_X87);
}

/* Of general registers. With addresses of 32 bits Intel's processors cut RCX, RSI and RDI even
 * where there is nothing to repeat. */
static uint64_t compared_width(const struct diff_case *c)
{
    const struct insn *insn = &c->d->insn;
    bool cut = insn->opcode->attr & ATTR_STRING && insn->addr_bytes == 4;
    bool narrow = c->d->mode->code_bits != 64 || (cut && !__builtin_cpu_is("amd"));
    return narrow ? UINT32_MAX : UINT64_MAX;
}

static const char *compare_exception(const struct diff_case *c, const struct diff_result *got,
                                     const struct diff_result *want)
{
    if (got->vector != want->vector)
        return "exception";
    if (want->vector >= 0 && got->error != want->error)
        return "error code";
    if (want->vector == EXC_PF && got->address != want->address &&
        !(in_steps(&c->d->insn) && both_accessed(c, got->address, want->address)))
        return "faulting address";
    return NULL;
}

const char *diff_compare(const struct diff_case *c, struct diff_result *got,
                         struct diff_result *want, uint8_t *got_memory, uint8_t *want_memory)
{
    unsigned registers = c->d->mode->code_bits == 64 ? 16 : 8;
    uint64_t width = compared_width(c);
    bool partial = want->vector >= 0 && in_steps(&c->d->insn);
    if (host_is_laxer(c, got, want, want_memory) || host_is_stricter(c, got, want) ||
        offset_is_refused(c, got, want) || other_step_faults(c, got, want) ||
        vendors_differ(c, got, want)) {
        memcpy(got_memory, want_memory, (size_t)DIFF_PAGES * DIFF_PAGE);
        return NULL;
    }
    const char *what = compare_exception(c, got, want);
    if (what)
        return what;
    if ((got->state.rflags ^ want->state.rflags) & flags_mask(c, want->vector >= 0))
        return "flags";
    if (got->state.rip != want->state.rip)
        return "RIP";
    for (unsigned i = 0; i < registers && !(partial && c->d->insn.op == OP_POPA); i++) {
        if ((got->state.gpr[i] ^ want->state.gpr[i]) & width)
            return "general registers";
    }
    forget_in_memory(c, got_memory);
    forget_in_memory(c, want_memory);
    if (partial)
        memcpy(got_memory, want_memory, (size_t)DIFF_PAGES * DIFF_PAGE);
    else if (!same_memory(c, got_memory, want_memory))
        return "memory";
    if (!c->d->uses_fpu)
        return NULL;
    forget_state(c, got, want);
    return compare_fpu(c, got, want);
}

/* --- report --- */

static void dump(const char *name, const uint8_t *start, const uint8_t *got, const uint8_t *want,
                 size_t len)
{
    for (size_t at = 0; at + 16 <= len; at += 16) {
        const uint8_t *rows[] = {start, got, want};
        static const char *const names[] = {"was", "got", "want"};
        if (memcmp(got + at, want + at, 16) == 0)
            continue;
        for (unsigned row = 0; row < 3; row++) {
            if (!rows[row])
                continue;
            printf("#   %s+%zu %-4s", name, at, names[row]);
            for (unsigned i = 0; i < 16; i++)
                printf(" %02x", rows[row][at + i]);
            printf("\n");
        }
    }
}

static void print_registers(const char *name, const uint64_t gpr[16])
{
    for (unsigned i = 0; i < 16; i++)
        printf("%s%016llx%s", i % 8 ? " " : "#   ", (unsigned long long)gpr[i],
               i == 7   ? "\n"
               : i < 15 ? ""
                        : " ");
    printf("%s\n", name);
}

static void print_result(const char *name, const struct diff_result *r)
{
    printf("#   %s: rip %llx flags %llx", name, (unsigned long long)r->state.rip,
           (unsigned long long)r->state.rflags);
    if (r->vector >= 0)
        printf(", exception %d error %x address %llx", r->vector, r->error,
               (unsigned long long)r->address);
    printf("\n");
}

void diff_report(const struct diff_case *c, const char *what, const struct diff_result *got,
                 const struct diff_result *want, const uint8_t *got_memory,
                 const uint8_t *want_memory)
{
    const struct insn *insn = &c->d->insn;
    char text[128];
    decode_print(insn, c->d->address, text, sizeof(text));
    printf("# %s %s: %s differ:", c->d->mode->name, text, what);
    for (unsigned i = 0; i < insn->len; i++)
        printf(" %02x", insn->bytes[i]);
    printf("%s\n", insn->op == OP_UD ? " (undefined)" : "");
    print_registers("was", c->start.gpr);
    print_registers("got", got->state.gpr);
    print_registers("want", want->state.gpr);
    printf("#   flags at start %llx\n", (unsigned long long)c->start.rflags);
    print_result("got", got);
    print_result("want", want);
    for (unsigned i = 0; i < c->access_count; i++) {
        size_t at, count;
        const struct diff_access *a = &c->accesses[i];
        printf("#   access %llx, %u bytes\n", (unsigned long long)a->la, a->len);
        if (clip(a->la, BEFORE, a->len + AFTER, &at, &count))
            dump("memory", NULL, got_memory + at, want_memory + at, count);
    }
    if (!c->d->uses_fpu)
        return;
    dump("legacy", c->start.fpu.x87, got->state.fpu.x87, want->state.fpu.x87, 416);
    dump("upper", c->start.fpu.ymm_hi[0], got->state.fpu.ymm_hi[0], want->state.fpu.ymm_hi[0], 256);
}
