/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoder's tables, private to decode*.c: for each map of opcodes an array of 256 lists of
 * rows. The first row of a byte's list whose condition holds is the instruction; where none does it
 * is #UD. All rows of one list agree on whether a ModRM byte follows.
 */
#ifndef HULL_ENGINE_SOFT_DECODE_TABLE_H
#define HULL_ENGINE_SOFT_DECODE_TABLE_H

#include <stddef.h>

#include "engine/soft/cpu.h"
#include "engine/soft/insn.h"

/*
 * What a row is chosen by: the decoder packs what it has read into a key, a row names the bits it
 * wants and their values. KEY(mask, value) are or-ed together: P66 | MEM | REG(3).
 */
#define KEY_PP_SHIFT     0 /* 2 bits: 0 none, 1 66, 2 F3, 3 F2 (or VEX.pp) */
#define KEY_MOD3         (1u << 2)
#define KEY_REG_SHIFT    3          /* 3 bits, ModRM.reg without REX.R */
#define KEY_RM_SHIFT     6          /* 3 bits, ModRM.rm without REX.B */
#define KEY_W            (1u << 9)  /* REX.W, VEX.W */
#define KEY_W64          (1u << 10) /* the same in 64-bit code */
#define KEY_L            (1u << 11) /* VEX.L */
#define KEY_64           (1u << 12) /* 64-bit code */
#define KEY_OP_SHIFT     13         /* 2 bits: operand size 1 << n: 1, 2, 3 */
#define KEY_ADDR_SHIFT   15         /* 2 bits: address size, likewise */
#define KEY_REX_B        (1u << 17)

#define KEY(mask, value) ((uint64_t)(mask) << 32 | (value))
#define NP               KEY(3, 0) /* none of 66, F2, F3 */
#define P66              KEY(3, 1)
#define PF3              KEY(3, 2)
#define PF2              KEY(3, 3)
#define NFX              KEY(2, 0)               /* neither F2 nor F3; 66 is the operand size */
#define MEM              KEY(KEY_MOD3, 0)        /* r/m is memory */
#define RR               KEY(KEY_MOD3, KEY_MOD3) /* r/m is a register */
#define REG(n)           KEY(7u << KEY_REG_SHIFT, (n) << KEY_REG_SHIFT)
#define RM(n)            KEY(7u << KEY_RM_SHIFT, (n) << KEY_RM_SHIFT)
#define W0               KEY(KEY_W, 0)
#define W1               KEY(KEY_W, KEY_W)
#define Q0               KEY(KEY_W64, 0) /* a general operand of 32 bits, of 64 bits */
#define Q1               KEY(KEY_W64, KEY_W64)
#define L0               KEY(KEY_L, 0)
#define L1               KEY(KEY_L, KEY_L)
#define M64              KEY(KEY_64, KEY_64)
#define MLEG             KEY(KEY_64, 0)
#define O16              KEY(3u << KEY_OP_SHIFT, 1u << KEY_OP_SHIFT)
#define O32              KEY(3u << KEY_OP_SHIFT, 2u << KEY_OP_SHIFT)
#define O64              KEY(3u << KEY_OP_SHIFT, 3u << KEY_OP_SHIFT)
#define A16              KEY(3u << KEY_ADDR_SHIFT, 1u << KEY_ADDR_SHIFT)
#define A32              KEY(3u << KEY_ADDR_SHIFT, 2u << KEY_ADDR_SHIFT)
#define A64              KEY(3u << KEY_ADDR_SHIFT, 3u << KEY_ADDR_SHIFT)
#define REXB0            KEY(KEY_REX_B, 0)
#define ANY              0

/* insn.op_bytes */
enum row_size {
    SIZE_V, /* 2, 4, 8 by 66, REX.W and the row's ATTR_FORCE64, ATTR_DEFAULT64 */
    SIZE_0, /* no operand size: x87 */
    SIZE_B, /* 1 */
    SIZE_W, /* 2 */
    SIZE_D, /* 4 */
    SIZE_Q, /* 8; MMX */
    SIZE_Z, /* 2, 4: REX.W does nothing */
    SIZE_Y, /* 4, 8 by REX.W or VEX.W in 64-bit code: 66 does nothing */
    SIZE_N, /* 8 in 64-bit code, else 4 */
    SIZE_X, /* 16, 32 by VEX.L */
    SIZE_S, /* 16: VEX.L is ignored */
};

/* insn.mem_bytes */
enum row_mem {
    MEM_OP,     /* that of the operand size */
    MEM_FIXED,  /* opcode.mem_bytes */
    MEM_SCALES, /* opcode.mem_bytes, doubled for VEX.L = 1 */
    MEM_NONE,   /* only the address counts, or not fixed, or more than fits: 0 */
    MEM_Y,      /* 4, 8 by REX.W or VEX.W in 64-bit code */
    MEM_FAR,    /* a far pointer: operand size + 2 */
    MEM_PAIR,   /* twice the operand size: BOUND */
    MEM_TABLE,  /* limit and base: 6, in 64-bit code 10 */
    MEM_ENV,    /* x87 environment: 14, 28 */
    MEM_STATE,  /* x87 state: 94, 108 */
};

/* insn.imm */
enum row_imm {
    IMM_NONE,
    IMM_B,     /* 8 bits, sign extended */
    IMM_UB,    /* 8 bits, zero extended */
    IMM_UW,    /* 16 bits, zero extended */
    IMM_Z,     /* 16, 32, 32 bits by the operand size, sign extended */
    IMM_V,     /* 8, 16, 32, 64 bits by the operand size, zero extended */
    IMM_MOFFS, /* an offset of the address size */
    IMM_FAR,   /* offset of the operand size, and selector */
    IMM_ENTER, /* 16 and 8 bits */
    IMM_BB,    /* two of 8 bits (EXTRQ, INSERTQ) */
    IMM_ONE,   /* none in the code: 1 (shifts) */
};

enum row_flag {
    ROW_MODRM = 1 << 0,    /* ModRM follows the opcode */
    ROW_FALLBACK = 1 << 1, /* without its feature the row does not count: look on */
    ROW_REG_MOD = 1 << 2,  /* ModRM.mod is ignored, r/m is a register (MOV to and from CR, DR) */
    ROW_REG_XMM = 1 << 3,  /* for the printer: `reg` is 128 bits wide though VEX.L = 1 */
    ROW_CL = 1 << 4,       /* for the printer: a last operand CL */
    ROW_ST_RM = 1 << 5,    /* for the printer: ST(0), ST(i); with ROW_ST_RM_DST: ST(i), ST(0) */
    ROW_ST_DST = 1 << 6,
    ROW_ST_ONE = 1 << 7, /* for the printer: ST(i) alone */
};

struct decode_row {
    struct opcode opcode;
    uint64_t when;
    uint8_t size;  /* enum row_size */
    uint8_t mem;   /* enum row_mem */
    uint8_t imm;   /* enum row_imm */
    uint8_t flags; /* enum row_flag */
};

/* A list of rows, ended by one without a name. */
#define END                                                                                        \
    {                                                                                              \
        .opcode.name = NULL                                                                        \
    }
#define ROWS(...)                                                                                  \
    (const struct decode_row[])                                                                    \
    {                                                                                              \
        __VA_ARGS__, END                                                                           \
    }
/* The same for eight bytes whose low bits are a register. */
#define EIGHT(FIRST, LIST)                                                                         \
    [(FIRST) + 0] = LIST, [(FIRST) + 1] = LIST, [(FIRST) + 2] = LIST, [(FIRST) + 3] = LIST,        \
               [(FIRST) + 4] = LIST, [(FIRST) + 5] = LIST, [(FIRST) + 6] = LIST,                   \
               [(FIRST) + 7] = LIST

#define ROW(NAME, OP, FORM, SIZE, WHEN, ...)                                                       \
    {                                                                                              \
        .opcode.name = NAME, .opcode.op = OP_##OP, .opcode.form = FORM_##FORM,                     \
        .size = SIZE_##SIZE, .when = WHEN, __VA_ARGS__                                             \
    }

/* Parts of a row, for ROW's last arguments. */
#define MODRM           .flags = ROW_MODRM
#define MODRM_(more)    .flags = ROW_MODRM | (more)
#define ATTR(bits)      .opcode.attr = (bits)
#define FEAT(name)      .opcode.feature = FEAT_##name
#define READS(bits)     .opcode.flags_read = (bits)
#define WRITES(bits)    .opcode.flags_written = (bits)
#define UNDEFINES(bits) .opcode.flags_undefined = (bits)
#define FIXED(bytes)    .mem = MEM_FIXED, .opcode.mem_bytes = (bytes)
#define SCALES(bytes)   .mem = MEM_SCALES, .opcode.mem_bytes = (bytes)
#define NOMEM           .mem = MEM_NONE

/* An opcode that exists and is always #UD here. */
#define UNDEFINED(NAME, WHEN) ROW(NAME, UD, NONE, V, WHEN, ATTR(ATTR_BRANCH), NOMEM, MODRM)

/* Flags, by the names of the manual. */
#define CF    RFLAGS_CF
#define PF    RFLAGS_PF
#define AF    RFLAGS_AF
#define ZF    RFLAGS_ZF
#define SF    RFLAGS_SF
#define DF    RFLAGS_DF
#define OF    RFLAGS_OF
#define ARITH RFLAGS_ARITH

/* Attributes that go together. */
#define LOAD   ATTR_MEM_READ
#define STORE  ATTR_MEM_WRITE
#define RMW    (ATTR_MEM_READ | ATTR_MEM_WRITE)
#define LOCKED (ATTR_MEM_READ | ATTR_MEM_WRITE | ATTR_LOCKABLE)

/* What follows a condition code (opcode[3:0]) by its number: CONDITIONS(X) is X(n, name, flags). */
/* clang-format off */
#define CONDITIONS(X)                                                                              \
    X(0x0, "o", OF)       X(0x1, "no", OF)                                                         \
    X(0x2, "b", CF)       X(0x3, "ae", CF)                                                         \
    X(0x4, "e", ZF)       X(0x5, "ne", ZF)                                                         \
    X(0x6, "be", CF | ZF) X(0x7, "a", CF | ZF)                                                     \
    X(0x8, "s", SF)       X(0x9, "ns", SF)                                                         \
    X(0xa, "p", PF)       X(0xb, "np", PF)                                                         \
    X(0xc, "l", SF | OF)  X(0xd, "ge", SF | OF)                                                    \
    X(0xe, "le", ZF | SF | OF) X(0xf, "g", ZF | SF | OF)
/* clang-format on */

/* The maps. */
enum decode_map {
    MAP_BYTE,   /* one-byte opcodes, x87 too */
    MAP_0F,     /* general and system instructions */
    MAP_0F_VEC, /* MMX, SSE: disjoint from MAP_0F */
    MAP_0F38,
    MAP_0F3A,
    MAP_VEX_0F,
    MAP_VEX_0F38,
    MAP_VEX_0F3A,
    MAP_COUNT,
};

typedef const struct decode_row *const decode_lists[256];

extern decode_lists decode_map_byte, decode_map_0f, decode_map_0f_vec, decode_map_0f38,
    decode_map_0f3a, decode_map_vex_0f, decode_map_vex_0f38, decode_map_vex_0f3a;
/* All of them, by enum decode_map. decode.c */
extern decode_lists *const decode_maps[MAP_COUNT];
/* D8 to DF */
extern const struct decode_row decode_x87_d8[], decode_x87_d9[], decode_x87_da[], decode_x87_db[],
    decode_x87_dc[], decode_x87_dd[], decode_x87_de[], decode_x87_df[];

/* --- text, for people --- */

struct decode_text {
    char *start;
    size_t len, size;
};

/* Append: what does not fit is cut. decode_print.c */
void decode_text_add(struct decode_text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A row is its opcode: what insn->opcode points to. */
_Static_assert(offsetof(struct decode_row, opcode) == 0, "a row begins with its opcode");
static inline const struct decode_row *decode_row_of(const struct opcode *opcode)
{
    return (const struct decode_row *)(const void *)opcode;
}

#endif
