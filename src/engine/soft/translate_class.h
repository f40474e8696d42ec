/* SPDX-License-Identifier: Apache-2.0 */
/* In which way an instruction is translated, and where its parts are. */
#ifndef HULL_ENGINE_SOFT_TRANSLATE_CLASS_H
#define HULL_ENGINE_SOFT_TRANSLATE_CLASS_H

#include "engine/soft/translate_internal.h"

enum way {
    WAY_HANDLER, /* by its handler */
    WAY_COPY,    /* as it is; R10 and R11 loaded before and stored behind it */
    WAY_LEA,     /* LEA of a constant */
    WAY_LEA_16,  /* LEA of a 16-bit address */
    WAY_STEP,    /* INC, DEC in one byte, which are REX in 64-bit code */
    WAY_NOTHING, /* no effect */
    WAY_PREFETCH,
    WAY_MEMORY, /* with its memory operand at (%r10) */
    WAY_MOFFS,  /* accumulator and memory at a constant address */
    WAY_DIVIDE, /* register or memory operand: where no overflow is possible */
    WAY_VECTOR, /* COPY or MEMORY, on the vector registers */
    WAY_X87,    /* on the x87 or MMX registers: translate_x87.c */
    WAY_PUSH,
    WAY_POP, /* register */
    WAY_POP_RSP,
    WAY_LEAVE,
    WAY_BIT,    /* BT and its like of memory, with the bit's number in a register */
    WAY_STRING, /* MOVS, STOS: translate_system.c */
    WAY_SYSTEM, /* so are these */
    WAY_JMP,
    WAY_JCC,
    WAY_LOOP, /* LOOP and JCXZ */
    WAY_CALL,
    WAY_RET,
    WAY_JMP_IND,
    WAY_CALL_IND,
    WAY_END, /* the block ends without a branch */
};

struct layout {
    uint8_t prefixes[4]; /* 66, F2, F3, F0 as far as they are there */
    uint8_t prefix_count;
    uint8_t rex;    /* 0: none */
    uint8_t vex[3]; /* as three bytes: C4, RXB and map, W vvvv L pp */
    bool has_vex;
    uint8_t opcode[3];
    uint8_t opcode_len;
    uint8_t opcode_at; /* in the instruction; not of VEX */
    uint8_t tail_at;   /* behind ModRM and displacement: the immediate */
};

/* tail_at: where a ModRM byte names memory. */
void translate_lay_out(const struct insn *insn, struct layout *l);

/* Of code of 64, 32 or 16 bits. */
enum way translate_way_of(const struct translator *t, const struct insn *insn, unsigned bits);

/* May a trace go on behind it (translate_trace.c)? Neither registers nor memory change. */
static inline bool translate_leads_on(enum way way)
{
    return way == WAY_JCC || way == WAY_JMP || way == WAY_END;
}

/* Must its memory operand be aligned? */
static inline bool translate_wants_alignment(const struct insn *insn)
{
    return insn->opcode->attr & ATTR_ALIGNED || insn->op == OP_CMPXCHG16B;
}

/* The registers that the instruction wants: enum vectors. */
unsigned translate_vectors_of(const struct insn *insn, enum way way);

/* Is its register field a byte register that REX turns into another? */
bool translate_has_high_byte(const struct insn *insn);

/* Is VEX.vvvv one of its operands? */
bool translate_has_vvvv(const struct insn *insn);

/* A register that translated code has no room for: it is in memory. */
static inline bool is_scratch(unsigned reg)
{
    return reg == R10 || reg == R11;
}

#endif
