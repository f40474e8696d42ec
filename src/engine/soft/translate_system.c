/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a kernel does so often that handlers would be too slow: interrupts off and on, SWAPGS, STAC
 * and CLAC, at CPL 0 alone, where they are never refused; PUSHF, CLD, RDPKRU; MOVS and STOS within
 * a page, repeated or not.
 */
#include "engine/soft/translate_job.h"

#include "engine/soft/mmu_internal.h"

#define RFLAGS_BYTE_1 (GS(rflags) + 1) /* IF, DF and others */
#define RFLAGS_BYTE_2 (GS(rflags) + 2) /* AC and others */
#define CR4_BYTE_2    (GS(cr4) + 2)    /* PKE and others */

/* cmpb or testb, orb, andb $value, %gs:offset */
#define BYTE_CMP  0x80u, 7
#define BYTE_OR   0x80u, 1
#define BYTE_AND  0x80u, 4
#define BYTE_TEST 0xf6u, 0

static void emit_gs_byte(struct emit *e, unsigned opcode, unsigned reg, size_t offset,
                         unsigned value)
{
    emit8(e, 0x65);
    emit8(e, opcode);
    emit_gs_operand(e, reg, offset);
    emit8(e, value);
}

/* --- system instructions --- */

static void emit_unless_kernel(struct job *job, const struct insn *insn)
{
    emit_gs_byte(job->e, BYTE_CMP, GS(mode.cpl), 0);
    add_slow(job, emit_jcc(job->e, CONDITION_NE), insn);
}

/*
 * STI's shadow: nothing looks for events before the next instruction is done (find_poll()). Where
 * one is pending now its handler leaves; and where no instruction follows.
 */
static void emit_sti(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    if (is_last(job, i) || job->insns[i + 1]->op == OP_FALL_THROUGH) {
        emit_handler(job, insn);
        return;
    }
    give_up_flags(job, job->live[i]);
    emit_unless_kernel(job, insn);
    emit8(e, 0x65); /* cmpl $0, %gs:events */
    emit8(e, 0x83);
    emit_gs_operand(e, 7, GS(events));
    emit8(e, 0);
    add_slow(job, emit_jcc(e, CONDITION_NE), insn);
    emit_gs_byte(e, BYTE_OR, RFLAGS_BYTE_1, RFLAGS_IF >> 8);
}

static void emit_cli(struct job *job, const struct insn *insn, unsigned i)
{
    give_up_flags(job, job->live[i]);
    emit_unless_kernel(job, insn);
    emit_gs_byte(job->e, BYTE_AND, RFLAGS_BYTE_1, 0xffu & ~(unsigned)(RFLAGS_IF >> 8));
}

static void emit_swapgs(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[i]);
    emit_unless_kernel(job, insn);
    emit_gs64(e, OP_LOAD, R10, GS(seg[SEG_GS].base));
    emit_gs64(e, OP_LOAD, R11, GS(msr.kernel_gs_base));
    emit_gs64(e, OP_STORE, R10, GS(msr.kernel_gs_base));
    emit_gs64(e, OP_STORE, R11, GS(seg[SEG_GS].base));
    emit_gs64(e, OP_STORE, R11, GS(seg_base[SEG_GS]));
}

/* The context changes with AC, if it is known which: translate.c notices. */
static void emit_clac_stac(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool set = insn->op == OP_STAC;
    give_up_flags(job, job->live[i]);
    emit_unless_kernel(job, insn);
    emit_gs64(e, OP_LOAD, R10, GS_CONTEXT(by_ac) + (set ? sizeof(const uint8_t *) : 0));
    emit_rr64(e, 0x85, R10, R10); /* test %r10, %r10 */
    add_slow(job, emit_jcc(e, CONDITION_E), insn);
    if (set)
        emit_gs_byte(e, BYTE_OR, RFLAGS_BYTE_2, RFLAGS_AC >> 16);
    else
        emit_gs_byte(e, BYTE_AND, RFLAGS_BYTE_2, 0xffu & ~(unsigned)(RFLAGS_AC >> 16));
    emit_gs64(e, OP_STORE, R10, GS(translated.gs));
    emit_bytes(e, (const uint8_t[]){0xf3, 0x49, 0x0f, 0xae, 0xda}, 5); /* wrgsbase %r10 */
}

static void emit_cld(struct job *job, unsigned i)
{
    give_up_flags(job, job->live[i]);
    emit_gs_byte(job->e, BYTE_AND, RFLAGS_BYTE_1, 0xffu & ~(unsigned)(RFLAGS_DF >> 8));
}

static void emit_rdpkru(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    give_up_flags(job, job->live[i]);
    emit_gs_byte(e, BYTE_TEST, CR4_BYTE_2, CR4_PKE >> 16);
    add_slow(job, emit_jcc(e, CONDITION_E), insn);
    emit_bytes(e, (const uint8_t[]){0x85, 0xc9}, 2); /* test %ecx, %ecx */
    add_slow(job, emit_jcc(e, CONDITION_NE), insn);
    emit_bytes(e, (const uint8_t[]){0x65, OP_LOAD}, 2); /* mov %gs:, %eax */
    emit_gs_operand(e, CPU_RAX, GS(fpu.pkru));
    emit_mov_imm(e, CPU_RDX, 0);
}

/* movzbl %gs:offset, reg */
static void emit_load_byte(struct emit *e, unsigned reg, size_t offset)
{
    emit8(e, 0x65);
    emit8(e, rex_of(0, reg, 0));
    emit8(e, 0x0f);
    emit8(e, 0xb6);
    emit_gs_operand(e, reg, offset);
}

/* In 64-bit code: it is refused in virtual-8086 mode alone. */
static void emit_pushf(struct job *job, const struct insn *insn)
{
    struct emit *e = job->e;
    if (!job->saved_valid)
        save_flags(job);
    job->host_valid = false;
    emit_load_byte(e, R11, GS(translated.flags));          /* OF, */
    emit_bytes(e, (const uint8_t[]){0x41, 0xc1, 0xe3}, 3); /* shl $, %r11d */
    emit8(e, 11);
    emit_load_byte(e, R10, GS(translated.flags) + 1); /* and what LAHF knows, in its place */
    emit_rr64(e, 0x09, R10, R11);                     /* or %r10, %r11 */
    emit_gs64(e, OP_LOAD, R10, GS(rflags));
    emit_bytes(e, (const uint8_t[]){0x49, 0x81, 0xe2}, 3); /* and $, %r10 */
    emit32(e, ~(uint32_t)(ARITH | RFLAGS_RF));
    emit_bytes(e, (const uint8_t[]){0x49, 0x83, 0xca, RFLAGS_FIXED}, 4); /* or $, %r10 */
    emit_rr64(e, 0x09, R10, R11);
    emit_gs64(e, OP_STORE, R11, GS(translated.target));
    unsigned offset = emit_stack(job, insn, -(int)job->word, true);
    emit_gs64(e, OP_LOAD, R11, GS(translated.target));
    emit_word_r10(job, OP_STORE, R11, offset);
    emit_add_rsp(job, -(int32_t)job->word);
}

void emit_system(struct job *job, const struct insn *insn, unsigned i)
{
    switch (insn->op) {
    case OP_CLI:
        emit_cli(job, insn, i);
        break;
    case OP_STI:
        emit_sti(job, insn, i);
        break;
    case OP_SWAPGS:
        emit_swapgs(job, insn, i);
        break;
    case OP_CLAC:
    case OP_STAC:
        emit_clac_stac(job, insn, i);
        break;
    case OP_CLD:
        emit_cld(job, i);
        break;
    case OP_RDPKRU:
        emit_rdpkru(job, insn, i);
        break;
    default:
        emit_pushf(job, insn);
        break;
    }
}

/* --- strings --- */

/*
 * R10 to be the host address of the elements at the register, all of which lie in one page that the
 * TLB has; else to the slow path. R11 and the host's flags are lost.
 */
static void emit_span(struct job *job, const struct insn *insn, unsigned reg, bool write)
{
    struct emit *e = job->e;
    unsigned scale = (unsigned)__builtin_ctz(insn->op_bytes);
    emit_mov(e, R10, reg);
    add_slow(job, emit_lookup(job, insn->op_bytes, write), insn);
    if (!insn_is_repeated(insn))
        return;
    emit_mov32(e, R11, R10);
    emit_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and $, %r11d */
    emit32(e, PAGE_OFFSET);
    emit_bytes(e, (const uint8_t[]){0x4d, 0x8d, 0x1c}, 3); /* lea (%r11, %rcx, bytes), %r11 */
    emit8(e, scale << 6 | CPU_RCX << 3 | (R11 & 7));
    emit_bytes(e, (const uint8_t[]){0x49, 0x81, 0xfb}, 3); /* cmp $, %r11 */
    emit32(e, PAGE_BYTES);
    add_slow(job, emit_jcc(e, CONDITION_A), insn);
}

/* sub from, to; add from, to */
static void emit_sub(struct emit *e, unsigned to, unsigned from)
{
    emit_rr64(e, 0x29, from, to);
}

static void emit_add(struct emit *e, unsigned to, unsigned from)
{
    emit_rr64(e, 0x01, from, to);
}

/*
 * MOVS, STOS: the same instruction on host addresses, upwards, where it ends within the page; it
 * does to bytes that are in memory twice what it would do there. Host minus guest address goes from
 * the registers again.
 */
void emit_string(struct job *job, const struct insn *insn, unsigned i)
{
    struct emit *e = job->e;
    bool movs = insn->op == OP_MOVS, repeated = insn_is_repeated(insn);
    give_up_flags(job, job->live[i]);
    emit_gs_byte(e, BYTE_TEST, RFLAGS_BYTE_1, RFLAGS_DF >> 8);
    add_slow(job, emit_jcc(e, CONDITION_NE), insn);
    if (repeated) { /* more than none, and no more than a page has */
        emit_bytes(e, (const uint8_t[]){0x4c, 0x8d, 0x59, 0xff}, 4); /* lea -1(%rcx), %r11 */
        emit_bytes(e, (const uint8_t[]){0x49, 0x81, 0xfb}, 3);       /* cmp $, %r11 */
        emit32(e, (uint32_t)PAGE_BYTES / insn->op_bytes - 1);
        add_slow(job, emit_jcc(e, CONDITION_A), insn);
    }
    if (movs) {
        emit_span(job, insn, CPU_RSI, false);
        emit_gs64(e, OP_STORE, R10, GS(translated.target));
    }
    emit_span(job, insn, CPU_RDI, true);
    emit_mov(e, R11, CPU_RDI);
    emit_sub(e, R11, R10);
    emit_mov(e, CPU_RDI, R10);
    if (movs) {
        emit_mov(e, R10, CPU_RSI);
        emit_gs64(e, OP_LOAD, CPU_RSI, GS(translated.target));
        emit_sub(e, R10, CPU_RSI);
    }
    if (repeated)
        emit8(e, 0xf3);
    if (insn->op_bytes == 2)
        emit8(e, 0x66);
    if (insn->op_bytes == 8)
        emit8(e, rex_of(REX_W, 0, 0));
    emit8(e, (movs ? 0xa4u : 0xaau) + (insn->op_bytes > 1));
    emit_add(e, CPU_RDI, R11);
    if (movs)
        emit_add(e, CPU_RSI, R10);
}
