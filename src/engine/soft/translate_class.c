/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/translate_class.h"

/* --- an instruction's bytes --- */

static unsigned memory_operand_len(const uint8_t *modrm, unsigned addr_bytes)
{
    unsigned mod = *modrm >> 6, rm = *modrm & 7, len = 1;
    if (addr_bytes == 2)
        return len + (mod == 1 ? 1 : mod == 2 || (mod == 0 && rm == 6) ? 2 : 0);
    if (rm == 4) {
        len++;
        if (mod == 0 && (modrm[1] & 7) == 5)
            len += 4;
    } else if (mod == 0 && rm == 5) {
        len += 4;
    }
    return len + (mod == 1 ? 1 : mod == 2 ? 4 : 0);
}

void translate_lay_out(const struct insn *insn, struct layout *l)
{
    const uint8_t *b = insn->bytes;
    unsigned i = 0;
    *l = (struct layout){0};
    for (;; i++) {
        if (b[i] == 0x66 || b[i] == 0xf2 || b[i] == 0xf3 || b[i] == 0xf0) {
            if (!memchr(l->prefixes, b[i], l->prefix_count))
                l->prefixes[l->prefix_count++] = b[i];
        } else if (b[i] != 0x67 && b[i] != 0x2e && b[i] != 0x36 && b[i] != 0x3e && b[i] != 0x26 &&
                   b[i] != 0x64 && b[i] != 0x65 && (b[i] & 0xf0) != 0x40) {
            break;
        }
        /* Only right before the opcode it counts. */
        l->rex = (b[i] & 0xf0) == 0x40 ? b[i] : 0;
    }
    l->opcode_at = (uint8_t)i;
    if (b[i] == 0xc4) {
        l->has_vex = true;
        memcpy(l->vex, b + i, 3);
        i += 3;
        l->opcode[l->opcode_len++] = b[i++];
    } else if (b[i] == 0xc5) {
        l->has_vex = true;
        l->vex[0] = 0xc4;
        l->vex[1] = (uint8_t)((b[i + 1] & 0x80) | 0x61);
        l->vex[2] = b[i + 1] & 0x7f;
        i += 2;
        l->opcode[l->opcode_len++] = b[i++];
    } else {
        if (b[i] == 0x0f) {
            l->opcode[l->opcode_len++] = b[i++];
            if (b[i] == 0x38 || b[i] == 0x3a)
                l->opcode[l->opcode_len++] = b[i++];
        }
        l->opcode[l->opcode_len++] = b[i++];
    }
    l->tail_at = (uint8_t)(i + memory_operand_len(b + i, insn->addr_bytes));
}

/* --- classes --- */

/* Integer instructions that the host does as they are. */
static bool is_plain(const struct insn *insn)
{
    switch (insn->op) {
    case OP_BSF:
    case OP_BSR: /* with F3 the host may take it for TZCNT, LZCNT */
        return !(insn->prefixes & PREFIX_REP);
    case OP_BT:
    case OP_BTS:
    case OP_BTR:
    case OP_BTC: /* the register moves the address */
        return !insn->is_mem;
    case OP_ADD:
    case OP_OR:
    case OP_ADC:
    case OP_SBB:
    case OP_AND:
    case OP_SUB:
    case OP_XOR:
    case OP_CMP:
    case OP_TEST:
    case OP_INC:
    case OP_DEC:
    case OP_NEG:
    case OP_NOT:
    case OP_MUL:
    case OP_IMUL1:
    case OP_IMUL2:
    case OP_IMUL3:
    case OP_ROL:
    case OP_ROR:
    case OP_RCL:
    case OP_RCR:
    case OP_SHL:
    case OP_SHR:
    case OP_SAR:
    case OP_ROL_CL:
    case OP_ROR_CL:
    case OP_RCL_CL:
    case OP_RCR_CL:
    case OP_SHL_CL:
    case OP_SHR_CL:
    case OP_SAR_CL:
    case OP_SHLD:
    case OP_SHRD:
    case OP_SHLD_CL:
    case OP_SHRD_CL:
    case OP_BT_IMM:
    case OP_BTS_IMM:
    case OP_BTR_IMM:
    case OP_BTC_IMM:
    case OP_TZCNT:
    case OP_LZCNT:
    case OP_POPCNT:
    case OP_BSWAP:
    case OP_CRC32:
    case OP_MOVBE:
    case OP_ADCX:
    case OP_ADOX:
    case OP_ANDN:
    case OP_BEXTR:
    case OP_BLSI:
    case OP_BLSMSK:
    case OP_BLSR:
    case OP_BZHI:
    case OP_MULX:
    case OP_PDEP:
    case OP_PEXT:
    case OP_RORX:
    case OP_SARX:
    case OP_SHLX:
    case OP_SHRX:
    case OP_MOV:
    case OP_MOV_IMM:
    case OP_MOVZX8:
    case OP_MOVZX16:
    case OP_MOVSX8:
    case OP_MOVSX16:
    case OP_MOVSXD:
    case OP_MOVNTI:
    case OP_LEA:
    case OP_XCHG:
    case OP_XADD:
    case OP_CMPXCHG:
    case OP_CMPXCHG8B:
    case OP_CMPXCHG16B:
    case OP_CMOVCC:
    case OP_SETCC:
    case OP_CBW:
    case OP_CWD:
    case OP_LAHF:
    case OP_SAHF:
    case OP_CLC:
    case OP_STC:
    case OP_CMC:
    case OP_FENCE:
        return true;
    default:
        return false;
    }
}

bool translate_has_high_byte(const struct insn *insn)
{
    enum insn_form form = insn->opcode->form;
    /* CRC32's source alone is a byte. */
    return insn->op_bytes == 1 && insn->op != OP_CRC32 &&
           (form == FORM_REG_RM || form == FORM_RM_REG) && insn->reg >= 4 && insn->reg < 8 &&
           !(insn->prefixes & PREFIX_REX);
}

bool translate_has_vvvv(const struct insn *insn)
{
    enum insn_form form = insn->opcode->form;
    return form == FORM_REG_V_RM || form == FORM_V_RM || form == FORM_REG_RM_V ||
           form == FORM_RM_V_REG;
}

static enum way way_of_memory(const struct insn *insn)
{
    uint32_t attr = insn->opcode->attr;
    /* The accumulator is where the other register would be for a while. */
    if ((translate_has_high_byte(insn) && insn->op == OP_CMPXCHG) ||
        (translate_has_vvvv(insn) && is_scratch(insn->vvvv)) || insn->mem_bytes == 0 ||
        !(attr & (ATTR_MEM_READ | ATTR_MEM_WRITE)))
        return WAY_HANDLER;
    return WAY_MEMORY;
}

/* Vector instructions whose operands are all described, and none of them an MMX register. */
static bool is_vector(const struct insn *insn)
{
    uint32_t attr = insn->opcode->attr;
    if (insn->op != OP_VEC && insn->op != OP_VEC_FLAGS && insn->op != OP_VEC_STR &&
        insn->op != OP_VEC_ZERO)
        return false;
    if (attr & (ATTR_MMX | ATTR_MMX_REG | ATTR_MMX_RM | ATTR_X87 | ATTR_VSIB))
        return false;
    return !insn->is_mem || (insn->mem_bytes != 0 && attr & (ATTR_MEM_READ | ATTR_MEM_WRITE));
}

/*
 * Do the bytes of an instruction of 32-bit code mean something else in 64-bit code, though it is
 * the same operation? With VEX, bits that are ignored there name registers here.
 */
static bool differs_in_64(const struct insn *insn)
{
    struct layout l;
    uint32_t attr = insn->opcode->attr;
    bool general =
        insn->op < OP_VEC_BASE || insn->op == OP_VEC_STR || attr & (ATTR_GPR_REG | ATTR_GPR_RM);
    if (attr & ATTR_NO64 || insn->op == OP_VEC_ZERO)
        return true;
    if (attr & ATTR_IMM_REG && insn->bytes[insn->len - 1] & 0x80)
        return true;
    if (!(insn->prefixes & PREFIX_VEX))
        return false;
    translate_lay_out(insn, &l);
    return !(l.vex[1] & 0x20) || !(l.vex[2] & 0x40) || (general && l.vex[2] & 0x80);
}

static enum way way_of_lea(const struct insn *insn, unsigned bits)
{
    bool constant = insn->base == GPR_ZERO && insn->index == GPR_ZERO;
    if (insn->rip_relative || constant)
        return WAY_LEA;
    if (insn->addr_bytes == 2)
        return bits == 16 ? WAY_LEA_16 : WAY_HANDLER;
    return WAY_COPY;
}

static enum way way_of_string(const struct insn *insn, unsigned bits)
{
    bool flat = insn->seg != SEG_FS && insn->seg != SEG_GS;
    return bits == 64 && insn->addr_bytes == 8 && flat ? WAY_STRING : WAY_HANDLER;
}

static enum way way_of_bit(const struct insn *insn, unsigned bits)
{
    return bits == 64 && insn->addr_bytes == 8 && insn->op_bytes >= 4 ? WAY_BIT : WAY_HANDLER;
}

/* It must not fail, and in other code a segment that is not flat would have to be looked at. */
static enum way way_of_prefetch(const struct translator *t, const struct insn *insn, unsigned bits)
{
    bool flat = bits == 64 || (bits == 32 && (insn->seg == SEG_DS || insn->seg == SEG_SS));
    return flat && t->host >> insn->opcode->feature & 1 ? WAY_PREFETCH : WAY_NOTHING;
}

/*
 * In 16-bit code the prefix 66 stands for 32 bits, and in its translation for 16: it is put where
 * the operand size says so. These it would turn into other instructions, or they take no part in
 * what 16-bit code is about.
 */
static bool is_for_wider_code(const struct insn *insn)
{
    switch (insn->op) {
    case OP_ADCX:
    case OP_ADOX:
    case OP_FENCE:
    case OP_BSWAP:
    case OP_MOVNTI:
    case OP_CMPXCHG8B:
        return true;
    default:
        return insn->op >= OP_VEC_BASE || insn->prefixes & PREFIX_VEX || translate_x87_needs(insn);
    }
}

enum way translate_way_of(const struct translator *t, const struct insn *insn, unsigned bits)
{
    bool near = insn->op_bytes == bits / 8; /* branches and the stack */
    switch (insn->op) {
    case OP_FALL_THROUGH:
        return WAY_END;
    case OP_NOP:
        return WAY_NOTHING;
    case OP_PREFETCH:
        return way_of_prefetch(t, insn, bits);
    case OP_PUSH:
    case OP_PUSH_IMM:
        return near ? WAY_PUSH : WAY_HANDLER;
    case OP_POP:
        if (!near || insn->is_mem)
            return WAY_HANDLER;
        return insn->rm != CPU_RSP ? WAY_POP : bits == 64 ? WAY_POP_RSP : WAY_HANDLER;
    case OP_CLI:
    case OP_STI:
        return WAY_SYSTEM;
    case OP_SWAPGS:
    case OP_CLD:
    case OP_RDPKRU:
        return bits == 64 ? WAY_SYSTEM : WAY_HANDLER;
    case OP_CLAC:
    case OP_STAC:
        return bits == 64 && t->fsgsbase ? WAY_SYSTEM : WAY_HANDLER;
    case OP_PUSHF:
        return near && bits == 64 ? WAY_SYSTEM : WAY_HANDLER;
    case OP_MOVS:
    case OP_STOS:
        return way_of_string(insn, bits);
    case OP_BT:
    case OP_BTS:
    case OP_BTR:
    case OP_BTC:
        if (insn->is_mem)
            return way_of_bit(insn, bits);
        break;
    case OP_LEAVE:
        return near && bits != 16 ? WAY_LEAVE : WAY_HANDLER;
    case OP_MOV_MOFFS_LOAD:
    case OP_MOV_MOFFS_STORE:
        return WAY_MOFFS;
    case OP_JMP:
        return near ? WAY_JMP : WAY_HANDLER;
    case OP_JCC:
        return near ? WAY_JCC : WAY_HANDLER;
    case OP_LOOP:
    case OP_JCXZ:
        return near && bits != 64 ? WAY_LOOP : WAY_HANDLER;
    case OP_CALL:
        return near ? WAY_CALL : WAY_HANDLER;
    case OP_RET:
        return near ? WAY_RET : WAY_HANDLER;
    case OP_JMP_IND:
        return near ? WAY_JMP_IND : WAY_HANDLER;
    case OP_CALL_IND:
        return near && (insn->is_mem || insn->rm != CPU_RSP) ? WAY_CALL_IND : WAY_HANDLER;
    default:
        break;
    }
    if (bits != 64 && insn->opcode->form == FORM_OPREG &&
        (insn->op == OP_INC || insn->op == OP_DEC))
        return WAY_STEP;
    if ((bits != 64 && differs_in_64(insn)) || (bits == 16 && is_for_wider_code(insn)))
        return WAY_HANDLER;
    if (translate_x87_needs(insn) && t->host >> insn->opcode->feature & 1)
        return WAY_X87;
    if (insn->op >= OP_VEC_BASE && insn->op < OP_VEC_END)
        return is_vector(insn) && t->host >> insn->opcode->feature & 1 ? WAY_VECTOR : WAY_HANDLER;
    if (insn->op == OP_DIV || insn->op == OP_IDIV)
        return insn->op_bytes >= 4 ? WAY_DIVIDE : WAY_HANDLER;
    if (!is_plain(insn) ||
        (insn->opcode->feature != FEAT_BASE && !(t->host >> insn->opcode->feature & 1)))
        return WAY_HANDLER;
    if (insn->op == OP_LEA)
        return way_of_lea(insn, bits);
    if (insn->is_mem)
        return way_of_memory(insn);
    return WAY_COPY;
}

unsigned translate_vectors_of(const struct insn *insn, enum way way)
{
    if (way == WAY_X87)
        return translate_x87_needs(insn);
    if (way == WAY_VECTOR)
        return insn->opcode->attr & ATTR_AVX ? VECTORS_AVX : VECTORS_SSE;
    return 0;
}
