/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x87 and MMX instructions in translated code: they run on the host's registers, which hold the
 * guest's while soft_translated.vectors says so: then all exceptions are masked, and none is ever
 * pending.
 *
 * The processor's own pointers to the last instruction would be those of this process. So the
 * guest's are kept in soft_cpu.fpu, and only there: the code writes FDP behind each instruction
 * that has an operand in memory, and FIP and FOP where it leaves the block, or goes to a handler,
 * for the last instruction before.
 */
#include "engine/soft/translate_internal.h"

#include "engine/soft/exec_vec.h"

#define FPU(offset) (GS(fpu.x87) + (offset))

/* FLDCW, FNSTCW, FNSTSW to memory, FNCLEX. FNINIT has the pointers forgotten, and the others are of
 * coprocessors. */
static bool is_plain_control(const struct insn *insn)
{
    return insn->is_mem || insn->modrm == 0xe2;
}

/* CVTPI2PS and CVTPI2PD from memory touch no MMX register, but not all processors agree. */
static bool is_plain_mmx(const struct insn *insn)
{
    uint32_t attr = insn->opcode->attr;
    if (!(attr & ATTR_MMX) || (insn->is_mem && !(attr & ATTR_MMX_REG)))
        return false;
    return !insn->is_mem || (insn->mem_bytes != 0 && attr & (ATTR_MEM_READ | ATTR_MEM_WRITE));
}

unsigned translate_x87_needs(const struct insn *insn)
{
    switch (insn->op) {
    case OP_X87:
        return !x87_is_control(insn) || is_plain_control(insn) ? VECTORS_X87 : 0;
    case OP_X87_FLAGS:
    case OP_X87_FNSTSW_AX:
    case OP_FWAIT:
    case OP_EMMS:
        return VECTORS_X87;
    case OP_VEC:
        if (!is_plain_mmx(insn))
            return 0;
        return VECTORS_X87 | (insn->opcode->attr & ATTR_SSE ? VECTORS_SSE : 0);
    default:
        return 0;
    }
}

bool translate_x87_is_noted(const struct insn *insn)
{
    return insn->op == OP_X87_FLAGS || (insn->op == OP_X87 && !x87_is_control(insn));
}

/* FWAIT does nothing where nothing is pending. */
void translate_x87_emit(struct emit *e, const struct insn *insn)
{
    if (insn->op == OP_FWAIT)
        return;
    if (insn->is_mem)
        emit8(e, 0x41);
    emit8(e, insn->opcode_byte);
    emit8(e, insn->is_mem ? (insn->modrm & 0x38u) | (R10 & 7) : insn->modrm);
}

void translate_x87_fldcw(struct emit *e, uint8_t **otherwise)
{
    emit_bytes(e, (const uint8_t[]){0x45, 0x0f, 0xb7, 0x1a}, 4); /* movzwl (%r10), %r11d */
    emit8(e, 0x65);                                              /* mov %r11w, %gs:control */
    emit8(e, 0x66);
    emit8(e, 0x44);
    emit8(e, OP_STORE);
    emit_gs_operand(e, R11, GS(translated.control));
    emit_bytes(e, (const uint8_t[]){0x41, 0x81, 0xe3}, 3); /* and $, %r11d */
    emit32(e, (uint16_t)~FCW_VALID | FCW_MASKS);
    emit_bytes(e, (const uint8_t[]){0x41, 0x83, 0xfb}, 3); /* cmp $, %r11d */
    emit8(e, FCW_FIXED | FCW_MASKS);
    *otherwise = emit_jcc(e, CONDITION_NE);
    emit8(e, 0x65); /* fldcw %gs:control */
    emit8(e, 0xd9);
    emit_gs_operand(e, 5, GS(translated.control));
}

/* --- pointers --- */

/* Outside of 64-bit code pointers have the selector above the offset. R11 is lost. */
static void emit_selector(struct emit *e, size_t pointer, unsigned seg)
{
    emit8(e, 0x65); /* movzwl %gs:selector, %r11d */
    emit8(e, 0x44);
    emit8(e, 0x0f);
    emit8(e, 0xb7);
    emit_gs_operand(e, R11,
                    GS(seg) + seg * sizeof(struct cpu_segment) +
                        offsetof(struct cpu_segment, selector));
    emit8(e, 0x65); /* mov %r11d, %gs:pointer + 4 */
    emit8(e, 0x44);
    emit8(e, OP_STORE);
    emit_gs_operand(e, R11, pointer + 4);
}

void translate_x87_note(struct emit *e, const struct soft_cpu *cpu, const struct insn *insn,
                        uint64_t rip)
{
    emit_gs_imm16(e, FPU(X87_FOP), (uint16_t)((insn->opcode_byte & 7) << 8 | insn->modrm));
    if (soft_code64(cpu)) {
        emit_gs_imm64(e, FPU(X87_FIP), rip);
    } else {
        emit_gs_imm32(e, FPU(X87_FIP), (uint32_t)rip);
        emit_selector(e, FPU(X87_FIP), SEG_CS);
    }
}

void translate_x87_note_operand(struct emit *e, const struct soft_cpu *cpu, const struct insn *insn)
{
    emit_gs64(e, OP_STORE, R10, FPU(X87_FDP));
    if (!soft_code64(cpu))
        emit_selector(e, FPU(X87_FDP), insn->seg);
}
