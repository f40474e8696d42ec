/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flags of an instruction, where the row alone cannot say: shifts, whose count decides, and
 * repeated comparisons.
 */
#include "engine/soft/decode_table.h"

/* Shifts by an immediate or 1, and by CL. */
static bool is_shift(unsigned op)
{
    return (op >= OP_ROL && op <= OP_SAR) || op == OP_SHLD || op == OP_SHRD;
}

static bool is_shift_cl(unsigned op)
{
    return (op >= OP_ROL_CL && op <= OP_SAR_CL) || op == OP_SHLD_CL || op == OP_SHRD_CL;
}

/* SDM vol. 2, "Flags Affected" of ROL, SHL, SHLD and their like. */
static struct insn_flags shift_flags(const struct insn *insn, unsigned count)
{
    unsigned op = insn->op, bits = 8u * insn->op_bytes;
    bool logical = op == OP_SHL || op == OP_SHR || op == OP_SHL_CL || op == OP_SHR_CL;
    bool through_carry = op == OP_RCL || op == OP_RCR || op == OP_RCL_CL || op == OP_RCR_CL;
    bool two = op == OP_SHLD || op == OP_SHRD || op == OP_SHLD_CL || op == OP_SHRD_CL;
    struct insn_flags flags = {
        .written = insn->opcode->flags_written,
        .undefined = insn->opcode->flags_undefined,
    };
    count &= insn->op_bytes == 8 ? 63 : 31;
    if (count == 0)
        return (struct insn_flags){0};
    if (through_carry)
        flags.read = CF;
    if (count == 1) {
        flags.written |= OF;
        flags.undefined &= (uint16_t)~OF;
    }
    if (two && count > bits) {
        flags.undefined |= flags.written;
        flags.written = 0;
    } else if (logical && count >= bits) {
        flags.undefined |= CF;
        flags.written &= (uint16_t)~CF;
    }
    return flags;
}

struct insn_flags insn_flags(const struct insn *insn, int count)
{
    const struct opcode *opcode = insn->opcode;
    struct insn_flags flags = {opcode->flags_read, opcode->flags_written, opcode->flags_undefined};
    bool repeated = insn_is_repeated(insn);
    if (is_shift(insn->op))
        return shift_flags(insn, (unsigned)insn->imm);
    if (is_shift_cl(insn->op) && count != INSN_COUNT_UNKNOWN)
        return shift_flags(insn, (unsigned)count);
    if ((opcode->attr & ATTR_STRING) && repeated && count == INSN_COUNT_UNKNOWN)
        flags.read |= flags.written;
    return flags;
}
