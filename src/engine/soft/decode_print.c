/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instructions as text, Intel syntax.
 */
#include <stdarg.h>
#include <stdio.h>

#include "engine/soft/decode.h"
#include "engine/soft/decode_table.h"

void decode_text_add(struct decode_text *text, const char *format, ...)
{
    va_list args;
    int len;
    if (text->len >= text->size)
        return;
    va_start(args, format);
    len = vsnprintf(text->start + text->len, text->size - text->len, format, args);
    va_end(args);
    if (len > 0)
        text->len += (size_t)len;
}

/* --- registers --- */

static void add_gpr(struct decode_text *text, unsigned reg, unsigned bytes, bool rex)
{
    static const char *const names[8] = {"ax", "cx", "dx", "bx", "sp", "bp", "si", "di"};
    static const char *const bytes_rex[8] = {"al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"};
    static const char *const bytes_old[8] = {"al", "cl", "dl", "bl", "ah", "ch", "dh", "bh"};
    reg &= 15;
    if (reg >= 8)
        decode_text_add(text, "r%u%s", reg,
                        bytes == 1   ? "b"
                        : bytes == 2 ? "w"
                        : bytes == 4 ? "d"
                                     : "");
    else if (bytes == 1)
        decode_text_add(text, "%s", rex ? bytes_rex[reg] : bytes_old[reg]);
    else
        decode_text_add(text, "%s%s", bytes == 2 ? "" : bytes == 4 ? "e" : "r", names[reg]);
}

static void add_segment(struct decode_text *text, unsigned seg)
{
    static const char *const names[8] = {"es", "cs", "ss", "ds", "fs", "gs", "?", "?"};
    decode_text_add(text, "%s", names[seg & 7]);
}

static void add_vector(struct decode_text *text, unsigned reg, unsigned bytes)
{
    decode_text_add(text, "%cmm%u", bytes == 32 ? 'y' : 'x', reg);
}

/* --- what an operand is --- */

enum kind { KIND_GPR, KIND_MMX, KIND_VECTOR, KIND_SEGMENT, KIND_CR, KIND_DR };

static bool is_vector(const struct opcode *opcode)
{
    return opcode->attr & (ATTR_MMX | ATTR_SSE | ATTR_AVX);
}

static bool has_rex(const struct insn *insn)
{
    return insn->prefixes & (PREFIX_REX | PREFIX_VEX);
}

static void add_register(struct decode_text *text, const struct insn *insn, enum kind kind,
                         unsigned reg, unsigned bytes)
{
    switch (kind) {
    case KIND_GPR:
        add_gpr(text, reg, bytes, has_rex(insn));
        break;
    case KIND_MMX:
        decode_text_add(text, "mm%u", reg);
        break;
    case KIND_VECTOR:
        add_vector(text, reg, bytes);
        break;
    case KIND_SEGMENT:
        add_segment(text, reg);
        break;
    case KIND_CR:
    case KIND_DR:
        decode_text_add(text, kind == KIND_CR ? "cr%u" : "dr%u", reg);
        break;
    }
}

/* The width of a gather's destination and mask, and of its index. */
static unsigned gather_bytes(const struct insn *insn, bool of_index)
{
    bool qword_data = insn->prefixes & PREFIX_REX_W, qword_index = insn->opcode_byte & 1;
    /* The wider elements fill the vector, the narrower ones half of it. */
    return (of_index ? qword_index : qword_data) || qword_data == qword_index ? insn->op_bytes : 16;
}

static void add_reg(struct decode_text *text, const struct insn *insn)
{
    const struct opcode *opcode = insn->opcode;
    unsigned bytes = insn->op_bytes;
    enum kind kind = KIND_GPR;
    if (is_vector(opcode)) {
        kind = opcode->attr & ATTR_MMX_REG   ? KIND_MMX
               : opcode->attr & ATTR_GPR_REG ? KIND_GPR
                                             : KIND_VECTOR;
        if (kind == KIND_GPR)
            bytes = insn->prefixes & PREFIX_REX_W ? 8 : 4;
        else if (decode_row_of(opcode)->flags & ROW_REG_XMM)
            bytes = 16;
        else if (opcode->op == OP_VEC_GATHER)
            bytes = gather_bytes(insn, false);
    } else if (opcode->op == OP_MOV_TO_SEG || opcode->op == OP_MOV_FROM_SEG) {
        kind = KIND_SEGMENT;
    } else if (opcode->op == OP_MOV_TO_CR || opcode->op == OP_MOV_FROM_CR) {
        kind = KIND_CR;
    } else if (opcode->op == OP_MOV_TO_DR || opcode->op == OP_MOV_FROM_DR) {
        kind = KIND_DR;
    } else if (opcode->op == OP_CRC32) {
        bytes = insn->prefixes & PREFIX_REX_W ? 8 : 4;
    } else if (opcode->op == OP_MOVDIR64B) {
        bytes = insn->addr_bytes;
    }
    add_register(text, insn, kind, insn->reg, bytes);
}

/* r/m that is a register. */
static void add_rm_register(struct decode_text *text, const struct insn *insn)
{
    const struct opcode *opcode = insn->opcode;
    unsigned bytes = insn->op_bytes;
    enum kind kind = KIND_GPR;
    if (is_vector(opcode)) {
        kind = opcode->attr & ATTR_MMX_RM   ? KIND_MMX
               : opcode->attr & ATTR_GPR_RM ? KIND_GPR
                                            : KIND_VECTOR;
        if (kind == KIND_GPR)
            bytes = insn->mem_bytes == 8 ? 8 : 4;
        else if (insn->mem_bytes)
            bytes = insn->mem_bytes == 32 ? 32 : 16;
    } else if (opcode->form == FORM_REG_RM && insn->mem_bytes && insn->mem_bytes < bytes) {
        bytes = insn->mem_bytes; /* MOVZX, MOVSXD, LAR */
    }
    add_register(text, insn, kind, insn->rm, bytes);
}

/* --- memory --- */

static void add_number(struct decode_text *text, uint64_t value)
{
    decode_text_add(text, "0x%llx", (unsigned long long)value);
}

static void add_disp(struct decode_text *text, int32_t disp)
{
    decode_text_add(text, disp < 0 ? "-" : "+");
    add_number(text, disp < 0 ? -(uint64_t)disp : (uint64_t)disp);
}

static void add_size(struct decode_text *text, unsigned bytes)
{
    static const struct {
        uint8_t bytes;
        const char *name;
    } sizes[] = {
        {1,  "byte"   },
        {2,  "word"   },
        {4,  "dword"  },
        {6,  "fword"  },
        {8,  "qword"  },
        {10, "tbyte"  },
        {16, "xmmword"},
        {32, "ymmword"}
    };
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        if (sizes[i].bytes == bytes)
            decode_text_add(text, "%s ptr ", sizes[i].name);
}

static void add_memory(struct decode_text *text, const struct insn *insn)
{
    unsigned usual = insn->base == CPU_RSP || insn->base == CPU_RBP ? SEG_SS : SEG_DS;
    bool any = true;
    add_size(text, insn->mem_bytes);
    if (insn->seg != usual) {
        add_segment(text, insn->seg);
        decode_text_add(text, ":");
    }
    decode_text_add(text, "[");
    if (insn->rip_relative)
        decode_text_add(text, insn->addr_bytes == 8 ? "rip" : "eip");
    else if (insn->base != GPR_ZERO)
        add_gpr(text, insn->base, insn->addr_bytes, true);
    else
        any = false;
    if (insn->index != GPR_ZERO) {
        if (any)
            decode_text_add(text, "+");
        any = true;
        if (insn->opcode->attr & ATTR_VSIB)
            add_vector(text, insn->index, gather_bytes(insn, true));
        else
            add_gpr(text, insn->index, insn->addr_bytes, true);
        if (insn->addr_bytes != 2)
            decode_text_add(text, "*%u", 1u << insn->scale);
    }
    if (!any)
        add_number(text, (uint64_t)(int64_t)insn->disp & insn_addr_mask(insn));
    else if (insn->disp)
        add_disp(text, insn->disp);
    decode_text_add(text, "]");
}

static void add_rm(struct decode_text *text, const struct insn *insn)
{
    if (insn->is_mem)
        add_memory(text, insn);
    else
        add_rm_register(text, insn);
}

static void add_vvvv(struct decode_text *text, const struct insn *insn)
{
    if (insn->opcode->attr & ATTR_GPR_V)
        add_gpr(text, insn->vvvv, insn->op_bytes, true);
    else if (insn->opcode->op == OP_VEC_GATHER)
        add_vector(text, insn->vvvv, gather_bytes(insn, false));
    else
        add_vector(text, insn->vvvv, insn->op_bytes);
}

/* --- operands --- */

struct operands {
    struct decode_text *text;
    unsigned count;
};

/* Ahead of each operand: a space or a comma. */
static struct decode_text *next(struct operands *operands)
{
    decode_text_add(operands->text, operands->count++ ? ", " : " ");
    return operands->text;
}

/* All ones of an operand. */
static uint64_t size_mask(unsigned bytes)
{
    return bytes == 0 || bytes >= 8 ? ~0ULL : (1ULL << (8 * bytes)) - 1;
}

/* In, out and the moves of rAX to and from an offset name rAX first or last. */
static void add_accumulator(struct operands *operands, const struct insn *insn)
{
    bool last = insn->op == OP_OUT || insn->op == OP_MOV_MOFFS_STORE;
    bool offset = insn->op == OP_MOV_MOFFS_LOAD || insn->op == OP_MOV_MOFFS_STORE;
    if (!last)
        add_gpr(next(operands), CPU_RAX, insn->op_bytes, true);
    if (offset) {
        if (insn->seg != SEG_DS) {
            add_segment(next(operands), insn->seg);
            decode_text_add(operands->text, ":[");
        } else {
            decode_text_add(next(operands), "[");
        }
        add_number(operands->text, insn->imm);
        decode_text_add(operands->text, "]");
    } else if (insn->opcode->form == FORM_NONE) {
        decode_text_add(next(operands), "dx");
    } else {
        add_number(next(operands), insn->imm & size_mask(insn->op_bytes));
    }
    if (last)
        add_gpr(next(operands), CPU_RAX, insn->op_bytes, true);
}

static void add_form(struct operands *operands, const struct insn *insn)
{
    switch ((enum insn_form)insn->opcode->form) {
    case FORM_NONE:
    case FORM_ACC:
        break;
    case FORM_RM:
        add_rm(next(operands), insn);
        break;
    case FORM_RM_REG:
        add_rm(next(operands), insn);
        add_reg(next(operands), insn);
        break;
    case FORM_REG_RM:
        add_reg(next(operands), insn);
        add_rm(next(operands), insn);
        break;
    case FORM_OPREG:
        add_gpr(next(operands), insn->rm, insn->op_bytes, has_rex(insn));
        break;
    case FORM_REG_V_RM:
        add_reg(next(operands), insn);
        add_vvvv(next(operands), insn);
        add_rm(next(operands), insn);
        break;
    case FORM_V_RM:
        add_vvvv(next(operands), insn);
        add_rm(next(operands), insn);
        break;
    case FORM_REG_RM_V:
        add_reg(next(operands), insn);
        add_rm(next(operands), insn);
        add_vvvv(next(operands), insn);
        break;
    case FORM_RM_V_REG:
        add_rm(next(operands), insn);
        add_vvvv(next(operands), insn);
        add_reg(next(operands), insn);
        break;
    }
}

static void add_immediate(struct operands *operands, const struct insn *insn, uint64_t rip)
{
    const struct decode_row *row = decode_row_of(insn->opcode);
    switch ((enum row_imm)row->imm) {
    case IMM_NONE:
    case IMM_MOFFS:
        break;
    case IMM_B:
    case IMM_Z:
        if (row->opcode.attr & ATTR_BRANCH)
            add_number(next(operands), (rip + insn->len + insn->imm) & size_mask(insn->op_bytes));
        else
            add_number(next(operands), insn->imm & size_mask(insn->op_bytes));
        break;
    case IMM_UB:
        if (row->opcode.attr & ATTR_IMM_REG)
            add_vector(next(operands), insn_imm_reg(insn), insn->op_bytes);
        else
            add_number(next(operands), insn->imm);
        break;
    case IMM_UW:
    case IMM_V:
        add_number(next(operands), insn->imm);
        break;
    case IMM_FAR:
        add_number(next(operands), insn->imm2);
        decode_text_add(operands->text, ":");
        add_number(operands->text, insn->imm);
        break;
    case IMM_ENTER:
    case IMM_BB:
        add_number(next(operands), insn->imm);
        add_number(next(operands), insn->imm2);
        break;
    case IMM_ONE:
        decode_text_add(next(operands), "1");
        break;
    }
}

static void add_x87_registers(struct operands *operands, const struct insn *insn)
{
    uint8_t flags = decode_row_of(insn->opcode)->flags;
    unsigned i = insn->modrm & 7;
    if (flags & ROW_ST_ONE)
        decode_text_add(next(operands), "st(%u)", i);
    else if (flags & ROW_ST_DST)
        decode_text_add(next(operands), "st(%u), st", i);
    else if (flags & ROW_ST_RM)
        decode_text_add(next(operands), "st, st(%u)", i);
}

static void add_operands(struct decode_text *text, const struct insn *insn, uint64_t rip)
{
    struct operands operands = {.text = text};
    const struct opcode *opcode = insn->opcode;
    if (opcode->form == FORM_ACC || opcode->op == OP_IN || opcode->op == OP_OUT) {
        add_accumulator(&operands, insn);
        return;
    }
    if (opcode->op == OP_PUSH_SEG || opcode->op == OP_POP_SEG)
        add_segment(next(&operands), insn->reg);
    else if (opcode->op == OP_X87_FNSTSW_AX)
        decode_text_add(next(&operands), "ax");
    else if (opcode->attr & ATTR_X87)
        add_x87_registers(&operands, insn);
    add_form(&operands, insn);
    if (opcode->op == OP_XCHG && opcode->form == FORM_OPREG)
        add_gpr(next(&operands), CPU_RAX, insn->op_bytes, true);
    add_immediate(&operands, insn, rip);
    if (decode_row_of(opcode)->flags & ROW_CL)
        decode_text_add(next(&operands), "cl");
    if (opcode->attr & ATTR_XMM0)
        decode_text_add(next(&operands), "xmm0");
}

void decode_print(const struct insn *insn, uint64_t rip, char *text, size_t text_len)
{
    struct decode_text out = {.start = text, .size = text_len};
    const struct opcode *opcode = insn->opcode;
    if (text_len)
        text[0] = '\0';
    if (insn->op == OP_UD && opcode->op != OP_UD)
        decode_text_add(&out, "(bad) ");
    if (insn->prefixes & PREFIX_LOCK)
        decode_text_add(&out, "lock ");
    if (opcode->attr & ATTR_STRING) {
        bool compares = opcode->op == OP_CMPS || opcode->op == OP_SCAS;
        if (insn->prefixes & PREFIX_REP)
            decode_text_add(&out, compares ? "repe " : "rep ");
        else if (insn->prefixes & PREFIX_REPNE)
            decode_text_add(&out, "repne ");
    }
    /* A memory operand shows its segment itself. */
    if (!insn->is_mem && insn->seg != SEG_DS && opcode->form == FORM_NONE) {
        add_segment(&out, insn->seg);
        decode_text_add(&out, " ");
    }
    decode_text_add(&out, "%s", opcode->name);
    add_operands(&out, insn, rip);
}
