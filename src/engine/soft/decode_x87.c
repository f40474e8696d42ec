/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x87 instructions (SDM vol. 2, A.5), with the aliases that processors have run since the 8087.
 */
#include "engine/soft/decode_table.h"

#define X87_ATTR(more) .opcode.feature = FEAT_X87, .opcode.attr = ATTR_X87 | (more)
#define NOWAIT         ATTR_X87_NOWAIT

/* A memory operand of BYTES. */
#define M(N, NAME, BYTES, ACCESS)                                                                  \
    ROW(NAME, X87, RM, 0, MEM | REG(N), MODRM, FIXED(BYTES), X87_ATTR(ACCESS))
/* Registers: ST(0), ST(i); ST(i), ST(0); ST(i) alone; none. */
#define S0(N, NAME) ROW(NAME, X87, NONE, 0, RR | REG(N), MODRM_(ROW_ST_RM), NOMEM, X87_ATTR(0))
#define SI(N, NAME)                                                                                \
    ROW(NAME, X87, NONE, 0, RR | REG(N), MODRM_(ROW_ST_RM | ROW_ST_DST), NOMEM, X87_ATTR(0))
#define S1(N, NAME)   ROW(NAME, X87, NONE, 0, RR | REG(N), MODRM_(ROW_ST_ONE), NOMEM, X87_ATTR(0))
#define S(N, I, NAME) ROW(NAME, X87, NONE, 0, RR | REG(N) | RM(I), MODRM, NOMEM, X87_ATTR(0))
#define CONTROL(N, I, NAME)                                                                        \
    ROW(NAME, X87, NONE, 0, RR | REG(N) | RM(I), MODRM, NOMEM, X87_ATTR(NOWAIT))
#define FISTTP(BYTES)                                                                              \
    ROW("fisttp", X87, RM, 0, MEM | REG(1), MODRM, FIXED(BYTES), FEAT(SSE3), ATTR(ATTR_X87 | STORE))
/* RFLAGS in, RFLAGS out. */
#define FCMOV(N, NAME, BITS)                                                                       \
    ROW(NAME, X87_FLAGS, NONE, 0, RR | REG(N), MODRM_(ROW_ST_RM), NOMEM, FEAT(CMOV),               \
        ATTR(ATTR_X87), READS(BITS))
#define FCOMI(N, NAME)                                                                             \
    ROW(NAME, X87_FLAGS, NONE, 0, RR | REG(N), MODRM_(ROW_ST_RM), NOMEM, FEAT(CMOV),               \
        ATTR(ATTR_X87), WRITES(ARITH))

const struct decode_row decode_x87_d8[] = {M(0, "fadd", 4, LOAD),
                                           M(1, "fmul", 4, LOAD),
                                           M(2, "fcom", 4, LOAD),
                                           M(3, "fcomp", 4, LOAD),
                                           M(4, "fsub", 4, LOAD),
                                           M(5, "fsubr", 4, LOAD),
                                           M(6, "fdiv", 4, LOAD),
                                           M(7, "fdivr", 4, LOAD),
                                           S0(0, "fadd"),
                                           S0(1, "fmul"),
                                           S1(2, "fcom"),
                                           S1(3, "fcomp"),
                                           S0(4, "fsub"),
                                           S0(5, "fsubr"),
                                           S0(6, "fdiv"),
                                           S0(7, "fdivr"),
                                           END};

const struct decode_row decode_x87_d9[] = {
    M(0, "fld", 4, LOAD),
    M(2, "fst", 4, STORE),
    M(3, "fstp", 4, STORE),
    ROW("fldenv", X87_FLDENV, RM, Z, MEM | REG(4), MODRM, .mem = MEM_ENV, X87_ATTR(LOAD)),
    M(5, "fldcw", 2, LOAD),
    ROW("fnstenv", X87_FNSTENV, RM, Z, MEM | REG(6), MODRM, .mem = MEM_ENV,
        X87_ATTR(STORE | NOWAIT)),
    M(7, "fnstcw", 2, STORE | NOWAIT),
    S1(0, "fld"),
    S1(1, "fxch"),
    S(2, 0, "fnop"),
    S1(3, "fstp"), /* FSTP1 */
    S(4, 0, "fchs"),
    S(4, 1, "fabs"),
    S(4, 4, "ftst"),
    S(4, 5, "fxam"),
    S(5, 0, "fld1"),
    S(5, 1, "fldl2t"),
    S(5, 2, "fldl2e"),
    S(5, 3, "fldpi"),
    S(5, 4, "fldlg2"),
    S(5, 5, "fldln2"),
    S(5, 6, "fldz"),
    S(6, 0, "f2xm1"),
    S(6, 1, "fyl2x"),
    S(6, 2, "fptan"),
    S(6, 3, "fpatan"),
    S(6, 4, "fxtract"),
    S(6, 5, "fprem1"),
    S(6, 6, "fdecstp"),
    S(6, 7, "fincstp"),
    S(7, 0, "fprem"),
    S(7, 1, "fyl2xp1"),
    S(7, 2, "fsqrt"),
    S(7, 3, "fsincos"),
    S(7, 4, "frndint"),
    S(7, 5, "fscale"),
    S(7, 6, "fsin"),
    S(7, 7, "fcos"),
    END};

const struct decode_row decode_x87_da[] = {M(0, "fiadd", 4, LOAD),       M(1, "fimul", 4, LOAD),
                                           M(2, "ficom", 4, LOAD),       M(3, "ficomp", 4, LOAD),
                                           M(4, "fisub", 4, LOAD),       M(5, "fisubr", 4, LOAD),
                                           M(6, "fidiv", 4, LOAD),       M(7, "fidivr", 4, LOAD),
                                           FCMOV(0, "fcmovb", CF),       FCMOV(1, "fcmove", ZF),
                                           FCMOV(2, "fcmovbe", CF | ZF), FCMOV(3, "fcmovu", PF),
                                           S(5, 1, "fucompp"),           END};

const struct decode_row decode_x87_db[] = {M(0, "fild", 4, LOAD),
                                           FISTTP(4),
                                           M(2, "fist", 4, STORE),
                                           M(3, "fistp", 4, STORE),
                                           M(5, "fld", 10, LOAD),
                                           M(7, "fstp", 10, STORE),
                                           FCMOV(0, "fcmovnb", CF),
                                           FCMOV(1, "fcmovne", ZF),
                                           FCMOV(2, "fcmovnbe", CF | ZF),
                                           FCMOV(3, "fcmovnu", PF),
                                           CONTROL(4, 0, "fneni"),
                                           CONTROL(4, 1, "fndisi"), /* of the 8087 */
                                           CONTROL(4, 2, "fnclex"),
                                           CONTROL(4, 3, "fninit"),
                                           CONTROL(4, 4, "fnsetpm"), /* of the 80287 */
                                           FCOMI(5, "fucomi"),
                                           FCOMI(6, "fcomi"),
                                           END};

const struct decode_row decode_x87_dc[] = {M(0, "fadd", 8, LOAD),
                                           M(1, "fmul", 8, LOAD),
                                           M(2, "fcom", 8, LOAD),
                                           M(3, "fcomp", 8, LOAD),
                                           M(4, "fsub", 8, LOAD),
                                           M(5, "fsubr", 8, LOAD),
                                           M(6, "fdiv", 8, LOAD),
                                           M(7, "fdivr", 8, LOAD),
                                           SI(0, "fadd"),
                                           SI(1, "fmul"),
                                           S1(2, "fcom"),
                                           S1(3, "fcomp"), /* FCOM2, FCOMP3 */
                                           SI(4, "fsubr"),
                                           SI(5, "fsub"),
                                           SI(6, "fdivr"),
                                           SI(7, "fdiv"),
                                           END};

const struct decode_row decode_x87_dd[] = {
    M(0, "fld", 8, LOAD),
    FISTTP(8),
    M(2, "fst", 8, STORE),
    M(3, "fstp", 8, STORE),
    ROW("frstor", X87_FRSTOR, RM, Z, MEM | REG(4), MODRM, .mem = MEM_STATE, X87_ATTR(LOAD)),
    ROW("fnsave", X87_FNSAVE, RM, Z, MEM | REG(6), MODRM, .mem = MEM_STATE,
        X87_ATTR(STORE | NOWAIT)),
    M(7, "fnstsw", 2, STORE | NOWAIT),
    S1(0, "ffree"),
    S1(1, "fxch"), /* FXCH4 */
    S1(2, "fst"),
    S1(3, "fstp"),
    S1(4, "fucom"),
    S1(5, "fucomp"),
    END};

const struct decode_row decode_x87_de[] = {
    M(0, "fiadd", 2, LOAD),  M(1, "fimul", 2, LOAD),  M(2, "ficom", 2, LOAD),
    M(3, "ficomp", 2, LOAD), M(4, "fisub", 2, LOAD),  M(5, "fisubr", 2, LOAD),
    M(6, "fidiv", 2, LOAD),  M(7, "fidivr", 2, LOAD), SI(0, "faddp"),
    SI(1, "fmulp"),          S1(2, "fcomp"), /* FCOMP5 */
    S(3, 1, "fcompp"),       SI(4, "fsubrp"),         SI(5, "fsubp"),
    SI(6, "fdivrp"),         SI(7, "fdivp"),          END};

const struct decode_row decode_x87_df[] = {
    M(0, "fild", 2, LOAD),
    FISTTP(2),
    M(2, "fist", 2, STORE),
    M(3, "fistp", 2, STORE),
    M(4, "fbld", 10, LOAD),
    M(5, "fild", 8, LOAD),
    M(6, "fbstp", 10, STORE),
    M(7, "fistp", 8, STORE),
    S1(0, "ffreep"),
    S1(1, "fxch"), /* FXCH7 */
    S1(2, "fstp"),
    S1(3, "fstp"), /* FSTP8, FSTP9 */
    ROW("fnstsw", X87_FNSTSW_AX, NONE, W, RR | REG(4) | RM(0), MODRM, NOMEM, X87_ATTR(NOWAIT)),
    FCOMI(5, "fucomip"),
    FCOMI(6, "fcomip"),
    END};
