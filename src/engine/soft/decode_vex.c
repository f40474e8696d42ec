/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VEX coded instructions: AVX, AVX2, FMA, F16C, BMI (SDM vol. 2, tables ).
 */
#include "engine/soft/decode_table.h"

#define ALOAD         (ATTR_MEM_READ | ATTR_ALIGNED)
#define ASTORE        (ATTR_MEM_WRITE | ATTR_ALIGNED | ATTR_RM_IS_DST)
#define USTORE        (ATTR_MEM_WRITE | ATTR_RM_IS_DST)
#define FP            ATTR_FP
#define GREG          ATTR_GPR_REG
#define GRM           ATTR_GPR_RM
#define FLAGS_COMPARE WRITES(ARITH)

/* A vector whose width VEX.L says; a scalar, for which it does not matter. */
#define VEX_OP(NAME, OP, FEATURE, FORM, SIZE, WHEN, BITS, ...)                                     \
    ROW(NAME, OP, FORM, SIZE, WHEN, MODRM, FEAT(FEATURE), ATTR(ATTR_AVX | (BITS)), __VA_ARGS__)
#define VEX(NAME, FEATURE, FORM, WHEN, BITS, ...)                                                  \
    VEX_OP(NAME, VEC, FEATURE, FORM, X, WHEN, BITS, __VA_ARGS__)
#define VEXS(NAME, FEATURE, FORM, WHEN, BITS, ...)                                                 \
    VEX_OP(NAME, VEC, FEATURE, FORM, S, WHEN, BITS, __VA_ARGS__)
/* With a memory operand as wide as the vector. */
#define V3(NAME, FEATURE, WHEN, BITS)                                                              \
    VEX(NAME, FEATURE, REG_V_RM, WHEN, LOAD | (BITS), .mem = MEM_OP)
#define V2(NAME, FEATURE, WHEN, BITS) VEX(NAME, FEATURE, REG_RM, WHEN, LOAD | (BITS), .mem = MEM_OP)
#define V3I(NAME, FEATURE, WHEN, BITS)                                                             \
    VEX(NAME, FEATURE, REG_V_RM, WHEN, LOAD | (BITS), .imm = IMM_UB)
#define V2I(NAME, FEATURE, WHEN, BITS)                                                             \
    VEX(NAME, FEATURE, REG_RM, WHEN, LOAD | (BITS), .imm = IMM_UB)
#define VST(NAME, FEATURE, WHEN, BITS) VEX(NAME, FEATURE, RM_REG, WHEN, BITS, .mem = MEM_OP)

/* Packed and scalar, single and double; of one source the packed. */
#define VFP4(NAME)                                                                                 \
    ROWS(V3(NAME "ps", AVX, NP, FP), V3(NAME "pd", AVX, P66, FP),                                  \
         VEXS(NAME "ss", AVX, REG_V_RM, PF3, LOAD | FP, FIXED(4)),                                 \
         VEXS(NAME "sd", AVX, REG_V_RM, PF2, LOAD | FP, FIXED(8)))
#define VFP4_UNARY(NAME)                                                                           \
    ROWS(V2(NAME "ps", AVX, NP, FP), V2(NAME "pd", AVX, P66, FP),                                  \
         VEXS(NAME "ss", AVX, REG_V_RM, PF3, LOAD | FP, FIXED(4)),                                 \
         VEXS(NAME "sd", AVX, REG_V_RM, PF2, LOAD | FP, FIXED(8)))
#define VBITS2(NAME) ROWS(V3(NAME "ps", AVX, NP, 0), V3(NAME "pd", AVX, P66, 0))
/* Integers: of 256 bits only with AVX2. */
#define VINT(NAME)   ROWS(V3(NAME, AVX, P66 | L0, 0), V3(NAME, AVX2, P66 | L1, 0))
#define VINT1(NAME)  ROWS(V2(NAME, AVX, P66 | L0, 0), V2(NAME, AVX2, P66 | L1, 0))
#define VINT_I(NAME) ROWS(V3I(NAME, AVX, P66 | L0, 0), V3I(NAME, AVX2, P66 | L1, 0))
/* Shifts by a count in memory of 128 bits; by an immediate: vvvv is the destination. */
#define VSHIFT(NAME)                                                                               \
    ROWS(VEX(NAME, AVX, REG_V_RM, P66 | L0, LOAD, FIXED(16)),                                      \
         VEX(NAME, AVX2, REG_V_RM, P66 | L1, LOAD, FIXED(16)))
#define VSHIFT_IMM(N, NAME)                                                                        \
    VEX(NAME, AVX, V_RM, P66 | RR | REG(N) | L0, 0, .imm = IMM_UB, NOMEM),                         \
        VEX(NAME, AVX2, V_RM, P66 | RR | REG(N) | L1, 0, .imm = IMM_UB, NOMEM)

decode_lists decode_map_vex_0f = {
    [0x10] = ROWS(V2("vmovups", AVX, NP, 0), V2("vmovupd", AVX, P66, 0),
                  VEXS("vmovss", AVX, REG_RM, PF3 | MEM, LOAD, FIXED(4)),
                  VEXS("vmovss", AVX, REG_V_RM, PF3 | RR, 0, NOMEM),
                  VEXS("vmovsd", AVX, REG_RM, PF2 | MEM, LOAD, FIXED(8)),
                  VEXS("vmovsd", AVX, REG_V_RM, PF2 | RR, 0, NOMEM)),
    [0x11] = ROWS(VST("vmovups", AVX, NP, USTORE), VST("vmovupd", AVX, P66, USTORE),
                  VEXS("vmovss", AVX, RM_REG, PF3 | MEM, USTORE, FIXED(4)),
                  VEXS("vmovss", AVX, RM_V_REG, PF3 | RR, ATTR_RM_IS_DST, NOMEM),
                  VEXS("vmovsd", AVX, RM_REG, PF2 | MEM, USTORE, FIXED(8)),
                  VEXS("vmovsd", AVX, RM_V_REG, PF2 | RR, ATTR_RM_IS_DST, NOMEM)),
    [0x12] = ROWS(
        VEX("vmovlps", AVX, REG_V_RM, NP | MEM | L0, LOAD, FIXED(8)),
        VEX("vmovhlps", AVX, REG_V_RM, NP | RR | L0, 0, NOMEM),
        VEX("vmovlpd", AVX, REG_V_RM, P66 | MEM | L0, LOAD, FIXED(8)), V2("vmovsldup", AVX, PF3, 0),
        VEX("vmovddup", AVX, REG_RM, PF2 | L0, LOAD, FIXED(8)), V2("vmovddup", AVX, PF2 | L1, 0)),
    [0x13] = ROWS(VEX("vmovlps", AVX, RM_REG, NP | MEM | L0, USTORE, FIXED(8)),
                  VEX("vmovlpd", AVX, RM_REG, P66 | MEM | L0, USTORE, FIXED(8))),
    [0x14] = VBITS2("vunpckl"),
    [0x15] = VBITS2("vunpckh"),
    [0x16] = ROWS(VEX("vmovhps", AVX, REG_V_RM, NP | MEM | L0, LOAD, FIXED(8)),
                  VEX("vmovlhps", AVX, REG_V_RM, NP | RR | L0, 0, NOMEM),
                  VEX("vmovhpd", AVX, REG_V_RM, P66 | MEM | L0, LOAD, FIXED(8)),
                  V2("vmovshdup", AVX, PF3, 0)),
    [0x17] = ROWS(VEX("vmovhps", AVX, RM_REG, NP | MEM | L0, USTORE, FIXED(8)),
                  VEX("vmovhpd", AVX, RM_REG, P66 | MEM | L0, USTORE, FIXED(8))),

    [0x28] = ROWS(V2("vmovaps", AVX, NP, ALOAD), V2("vmovapd", AVX, P66, ALOAD)),
    [0x29] = ROWS(VST("vmovaps", AVX, NP, ASTORE), VST("vmovapd", AVX, P66, ASTORE)),
    [0x2a] = ROWS(VEXS("vcvtsi2ss", AVX, REG_V_RM, PF3, LOAD | FP | GRM, .mem = MEM_Y),
                  VEXS("vcvtsi2sd", AVX, REG_V_RM, PF2, LOAD | FP | GRM, .mem = MEM_Y)),
    [0x2b] = ROWS(VST("vmovntps", AVX, NP | MEM, ASTORE), VST("vmovntpd", AVX, P66 | MEM, ASTORE)),
    [0x2c] = ROWS(VEXS("vcvttss2si", AVX, REG_RM, PF3, LOAD | FP | GREG, FIXED(4)),
                  VEXS("vcvttsd2si", AVX, REG_RM, PF2, LOAD | FP | GREG, FIXED(8))),
    [0x2d] = ROWS(VEXS("vcvtss2si", AVX, REG_RM, PF3, LOAD | FP | GREG, FIXED(4)),
                  VEXS("vcvtsd2si", AVX, REG_RM, PF2, LOAD | FP | GREG, FIXED(8))),
    [0x2e] = ROWS(VEX_OP("vucomiss", VEC_FLAGS, AVX, REG_RM, S, NP, LOAD | FP | ATTR_NO_DST,
                         FIXED(4), FLAGS_COMPARE),
                  VEX_OP("vucomisd", VEC_FLAGS, AVX, REG_RM, S, P66, LOAD | FP | ATTR_NO_DST,
                         FIXED(8), FLAGS_COMPARE)),
    [0x2f] = ROWS(VEX_OP("vcomiss", VEC_FLAGS, AVX, REG_RM, S, NP, LOAD | FP | ATTR_NO_DST,
                         FIXED(4), FLAGS_COMPARE),
                  VEX_OP("vcomisd", VEC_FLAGS, AVX, REG_RM, S, P66, LOAD | FP | ATTR_NO_DST,
                         FIXED(8), FLAGS_COMPARE)),

    [0x50] = ROWS(VEX("vmovmskps", AVX, REG_RM, NP | RR, GREG, NOMEM),
                  VEX("vmovmskpd", AVX, REG_RM, P66 | RR, GREG, NOMEM)),
    [0x51] = VFP4_UNARY("vsqrt"),
    [0x52] = ROWS(V2("vrsqrtps", AVX, NP, 0), VEXS("vrsqrtss", AVX, REG_V_RM, PF3, LOAD, FIXED(4))),
    [0x53] = ROWS(V2("vrcpps", AVX, NP, 0), VEXS("vrcpss", AVX, REG_V_RM, PF3, LOAD, FIXED(4))),
    [0x54] = VBITS2("vand"),
    [0x55] = VBITS2("vandn"),
    [0x56] = VBITS2("vor"),
    [0x57] = VBITS2("vxor"),
    [0x58] = VFP4("vadd"),
    [0x59] = VFP4("vmul"),
    [0x5a] = ROWS(VEX("vcvtps2pd", AVX, REG_RM, NP, LOAD | FP, SCALES(8)),
                  ROW("vcvtpd2ps", VEC, REG_RM, X, P66, MODRM_(ROW_REG_XMM), FEAT(AVX),
                      ATTR(ATTR_AVX | LOAD | FP)),
                  VEXS("vcvtss2sd", AVX, REG_V_RM, PF3, LOAD | FP, FIXED(4)),
                  VEXS("vcvtsd2ss", AVX, REG_V_RM, PF2, LOAD | FP, FIXED(8))),
    [0x5b] = ROWS(V2("vcvtdq2ps", AVX, NP, FP), V2("vcvtps2dq", AVX, P66, FP),
                  V2("vcvttps2dq", AVX, PF3, FP)),
    [0x5c] = VFP4("vsub"),
    [0x5d] = VFP4("vmin"),
    [0x5e] = VFP4("vdiv"),
    [0x5f] = VFP4("vmax"),

    [0x60] = VINT("vpunpcklbw"),
    [0x61] = VINT("vpunpcklwd"),
    [0x62] = VINT("vpunpckldq"),
    [0x63] = VINT("vpacksswb"),
    [0x64] = VINT("vpcmpgtb"),
    [0x65] = VINT("vpcmpgtw"),
    [0x66] = VINT("vpcmpgtd"),
    [0x67] = VINT("vpackuswb"),
    [0x68] = VINT("vpunpckhbw"),
    [0x69] = VINT("vpunpckhwd"),
    [0x6a] = VINT("vpunpckhdq"),
    [0x6b] = VINT("vpackssdw"),
    [0x6c] = VINT("vpunpcklqdq"),
    [0x6d] = VINT("vpunpckhqdq"),
    [0x6e] = ROWS(VEX("vmovd", AVX, REG_RM, P66 | L0 | Q0, LOAD | GRM, FIXED(4)),
                  VEX("vmovq", AVX, REG_RM, P66 | L0 | Q1, LOAD | GRM, FIXED(8))),
    [0x6f] = ROWS(V2("vmovdqa", AVX, P66, ALOAD), V2("vmovdqu", AVX, PF3, 0)),

    [0x70] = ROWS(V2I("vpshufd", AVX, P66 | L0, 0), V2I("vpshufd", AVX2, P66 | L1, 0),
                  V2I("vpshufhw", AVX, PF3 | L0, 0), V2I("vpshufhw", AVX2, PF3 | L1, 0),
                  V2I("vpshuflw", AVX, PF2 | L0, 0), V2I("vpshuflw", AVX2, PF2 | L1, 0)),
    [0x71] = ROWS(VSHIFT_IMM(2, "vpsrlw"), VSHIFT_IMM(4, "vpsraw"), VSHIFT_IMM(6, "vpsllw")),
    [0x72] = ROWS(VSHIFT_IMM(2, "vpsrld"), VSHIFT_IMM(4, "vpsrad"), VSHIFT_IMM(6, "vpslld")),
    [0x73] = ROWS(VSHIFT_IMM(2, "vpsrlq"), VSHIFT_IMM(3, "vpsrldq"), VSHIFT_IMM(6, "vpsllq"),
                  VSHIFT_IMM(7, "vpslldq")),
    [0x74] = VINT("vpcmpeqb"),
    [0x75] = VINT("vpcmpeqw"),
    [0x76] = VINT("vpcmpeqd"),
    [0x77] = ROWS(ROW("vzeroupper", VEC_ZERO, NONE, X, NP | L0, NOMEM, FEAT(AVX), ATTR(ATTR_AVX)),
                  ROW("vzeroall", VEC_ZERO, NONE, X, NP | L1, NOMEM, FEAT(AVX), ATTR(ATTR_AVX))),
    [0x7c] = ROWS(V3("vhaddpd", AVX, P66, FP), V3("vhaddps", AVX, PF2, FP)),
    [0x7d] = ROWS(V3("vhsubpd", AVX, P66, FP), V3("vhsubps", AVX, PF2, FP)),
    [0x7e] = ROWS(VEX("vmovd", AVX, RM_REG, P66 | L0 | Q0, USTORE | GRM, FIXED(4)),
                  VEX("vmovq", AVX, RM_REG, P66 | L0 | Q1, USTORE | GRM, FIXED(8)),
                  VEX("vmovq", AVX, REG_RM, PF3 | L0, LOAD, FIXED(8))),
    [0x7f] = ROWS(VST("vmovdqa", AVX, P66, ASTORE), VST("vmovdqu", AVX, PF3, USTORE)),

    [0xae] = ROWS(ROW("vldmxcsr", LDMXCSR, RM, D, NP | L0 | REG(2) | MEM, MODRM, FEAT(AVX),
                      ATTR(LOAD | ATTR_NO_DST | ATTR_AVX)),
                  ROW("vstmxcsr", STMXCSR, RM, D, NP | L0 | REG(3) | MEM, MODRM, FEAT(AVX),
                      ATTR(USTORE | ATTR_AVX))),
    [0xc2] = ROWS(V3I("vcmpps", AVX, NP, FP), V3I("vcmppd", AVX, P66, FP),
                  VEXS("vcmpss", AVX, REG_V_RM, PF3, LOAD | FP, FIXED(4), .imm = IMM_UB),
                  VEXS("vcmpsd", AVX, REG_V_RM, PF2, LOAD | FP, FIXED(8), .imm = IMM_UB)),
    [0xc4] = ROWS(VEX("vpinsrw", AVX, REG_V_RM, P66 | L0, LOAD | GRM, FIXED(2), .imm = IMM_UB)),
    [0xc5] = ROWS(VEX("vpextrw", AVX, REG_RM, P66 | RR | L0, GREG, NOMEM, .imm = IMM_UB)),
    [0xc6] = ROWS(V3I("vshufps", AVX, NP, 0), V3I("vshufpd", AVX, P66, 0)),

    [0xd0] = ROWS(V3("vaddsubpd", AVX, P66, FP), V3("vaddsubps", AVX, PF2, FP)),
    [0xd1] = VSHIFT("vpsrlw"),
    [0xd2] = VSHIFT("vpsrld"),
    [0xd3] = VSHIFT("vpsrlq"),
    [0xd4] = VINT("vpaddq"),
    [0xd5] = VINT("vpmullw"),
    [0xd6] = ROWS(VEX("vmovq", AVX, RM_REG, P66 | L0, USTORE, FIXED(8))),
    [0xd7] = ROWS(VEX("vpmovmskb", AVX, REG_RM, P66 | RR | L0, GREG, NOMEM),
                  VEX("vpmovmskb", AVX2, REG_RM, P66 | RR | L1, GREG, NOMEM)),
    [0xd8] = VINT("vpsubusb"),
    [0xd9] = VINT("vpsubusw"),
    [0xda] = VINT("vpminub"),
    [0xdb] = VINT("vpand"),
    [0xdc] = VINT("vpaddusb"),
    [0xdd] = VINT("vpaddusw"),
    [0xde] = VINT("vpmaxub"),
    [0xdf] = VINT("vpandn"),
    [0xe0] = VINT("vpavgb"),
    [0xe1] = VSHIFT("vpsraw"),
    [0xe2] = VSHIFT("vpsrad"),
    [0xe3] = VINT("vpavgw"),
    [0xe4] = VINT("vpmulhuw"),
    [0xe5] = VINT("vpmulhw"),
    [0xe6] = ROWS(ROW("vcvttpd2dq", VEC, REG_RM, X, P66, MODRM_(ROW_REG_XMM), FEAT(AVX),
                      ATTR(ATTR_AVX | LOAD | FP)),
                  VEX("vcvtdq2pd", AVX, REG_RM, PF3, LOAD, SCALES(8)),
                  ROW("vcvtpd2dq", VEC, REG_RM, X, PF2, MODRM_(ROW_REG_XMM), FEAT(AVX),
                      ATTR(ATTR_AVX | LOAD | FP))),
    [0xe7] = ROWS(VST("vmovntdq", AVX, P66 | MEM, ASTORE)),
    [0xe8] = VINT("vpsubsb"),
    [0xe9] = VINT("vpsubsw"),
    [0xea] = VINT("vpminsw"),
    [0xeb] = VINT("vpor"),
    [0xec] = VINT("vpaddsb"),
    [0xed] = VINT("vpaddsw"),
    [0xee] = VINT("vpmaxsw"),
    [0xef] = VINT("vpxor"),
    [0xf0] = ROWS(V2("vlddqu", AVX, PF2 | MEM, 0)),
    [0xf1] = VSHIFT("vpsllw"),
    [0xf2] = VSHIFT("vpslld"),
    [0xf3] = VSHIFT("vpsllq"),
    [0xf4] = VINT("vpmuludq"),
    [0xf5] = VINT("vpmaddwd"),
    [0xf6] = VINT("vpsadbw"),
    /* The destination is memory at DS:rDI (seg, addr_bytes). */
    [0xf7] = ROWS(VEX_OP("vmaskmovdqu", VEC_MASKMOVDQU, AVX, REG_RM, X, P66 | RR | L0, ATTR_NO_DST,
                         FIXED(16))),
    [0xf8] = VINT("vpsubb"),
    [0xf9] = VINT("vpsubw"),
    [0xfa] = VINT("vpsubd"),
    [0xfb] = VINT("vpsubq"),
    [0xfc] = VINT("vpaddb"),
    [0xfd] = VINT("vpaddw"),
    [0xfe] = VINT("vpaddd"),
};

#define VWIDEN(NAME, BYTES)                                                                        \
    ROWS(VEX(NAME, AVX, REG_RM, P66 | L0, LOAD, SCALES(BYTES)),                                    \
         VEX(NAME, AVX2, REG_RM, P66 | L1, LOAD, SCALES(BYTES)))
#define VBROADCAST(NAME, FEATURE, WHEN, BYTES)                                                     \
    VEX(NAME, FEATURE, REG_RM, P66 | W0 | (WHEN), LOAD, FIXED(BYTES))
/* W says whether singles or doubles, dwords or qwords. */
#define FMA_PACKED(NAME) ROWS(V3(NAME "ps", FMA, P66 | W0, FP), V3(NAME "pd", FMA, P66 | W1, FP))
#define FMA_SCALAR(NAME)                                                                           \
    ROWS(VEXS(NAME "ss", FMA, REG_V_RM, P66 | W0, LOAD | FP, FIXED(4)),                            \
         VEXS(NAME "sd", FMA, REG_V_RM, P66 | W1, LOAD | FP, FIXED(8)))
#define FMA_FORM(FIRST, ORDER)                                                                     \
    [(FIRST) + 0x6] = FMA_PACKED("vfmaddsub" ORDER),                                               \
               [(FIRST) + 0x7] = FMA_PACKED("vfmsubadd" ORDER),                                    \
               [(FIRST) + 0x8] = FMA_PACKED("vfmadd" ORDER),                                       \
               [(FIRST) + 0x9] = FMA_SCALAR("vfmadd" ORDER),                                       \
               [(FIRST) + 0xa] = FMA_PACKED("vfmsub" ORDER),                                       \
               [(FIRST) + 0xb] = FMA_SCALAR("vfmsub" ORDER),                                       \
               [(FIRST) + 0xc] = FMA_PACKED("vfnmadd" ORDER),                                      \
               [(FIRST) + 0xd] = FMA_SCALAR("vfnmadd" ORDER),                                      \
               [(FIRST) + 0xe] = FMA_PACKED("vfnmsub" ORDER),                                      \
               [(FIRST) + 0xf] = FMA_SCALAR("vfnmsub" ORDER)
/* The index is a vector register; vvvv is the mask, and cleared. mem_bytes: of an element. */
#define GATHER(NAME0, NAME1)                                                                       \
    ROWS(VEX_OP(NAME0, VEC_GATHER, AVX2, REG_RM_V, X, P66 | MEM | W0, LOAD | ATTR_VSIB, FIXED(4)), \
         VEX_OP(NAME1, VEC_GATHER, AVX2, REG_RM_V, X, P66 | MEM | W1, LOAD | ATTR_VSIB, FIXED(8)))
#define VAES(NAME) ROWS(V3(NAME, AES, P66 | L0, 0), V3(NAME, VAES, P66 | L1, 0))

/* General registers, with VEX.W as the operand size in 64-bit code. */
#define GPR3 (ATTR_GPR_REG | ATTR_GPR_RM | ATTR_GPR_V)
#define GPR2 (ATTR_GPR_REG | ATTR_GPR_RM)
#define BMI(NAME, OP, FEATURE, FORM, WHEN, BITS, ...)                                              \
    ROW(NAME, OP, FORM, Y, L0 | (WHEN), MODRM, FEAT(FEATURE), ATTR(LOAD | (BITS)), __VA_ARGS__)

decode_lists decode_map_vex_0f38 = {
    [0x00] = VINT("vpshufb"),
    [0x01] = VINT("vphaddw"),
    [0x02] = VINT("vphaddd"),
    [0x03] = VINT("vphaddsw"),
    [0x04] = VINT("vpmaddubsw"),
    [0x05] = VINT("vphsubw"),
    [0x06] = VINT("vphsubd"),
    [0x07] = VINT("vphsubsw"),
    [0x08] = VINT("vpsignb"),
    [0x09] = VINT("vpsignw"),
    [0x0a] = VINT("vpsignd"),
    [0x0b] = VINT("vpmulhrsw"),
    [0x0c] = ROWS(V3("vpermilps", AVX, P66 | W0, 0)),
    [0x0d] = ROWS(V3("vpermilpd", AVX, P66 | W0, 0)),
    [0x0e] = ROWS(
        VEX_OP("vtestps", VEC_FLAGS, AVX, REG_RM, X, P66 | W0, LOAD | ATTR_NO_DST, FLAGS_COMPARE)),
    [0x0f] = ROWS(
        VEX_OP("vtestpd", VEC_FLAGS, AVX, REG_RM, X, P66 | W0, LOAD | ATTR_NO_DST, FLAGS_COMPARE)),
    [0x13] = ROWS(VEX("vcvtph2ps", F16C, REG_RM, P66 | W0, LOAD | FP, SCALES(8))),
    [0x16] = ROWS(V3("vpermps", AVX2, P66 | W0 | L1, 0)),
    [0x17] =
        ROWS(VEX_OP("vptest", VEC_FLAGS, AVX, REG_RM, X, P66, LOAD | ATTR_NO_DST, FLAGS_COMPARE)),
    [0x18] = ROWS(VBROADCAST("vbroadcastss", AVX, MEM, 4), VBROADCAST("vbroadcastss", AVX2, RR, 4)),
    [0x19] = ROWS(VBROADCAST("vbroadcastsd", AVX, MEM | L1, 8),
                  VBROADCAST("vbroadcastsd", AVX2, RR | L1, 8)),
    [0x1a] = ROWS(VBROADCAST("vbroadcastf128", AVX, MEM | L1, 16)),
    [0x1c] = VINT1("vpabsb"),
    [0x1d] = VINT1("vpabsw"),
    [0x1e] = VINT1("vpabsd"),
    [0x20] = VWIDEN("vpmovsxbw", 8),
    [0x21] = VWIDEN("vpmovsxbd", 4),
    [0x22] = VWIDEN("vpmovsxbq", 2),
    [0x23] = VWIDEN("vpmovsxwd", 8),
    [0x24] = VWIDEN("vpmovsxwq", 4),
    [0x25] = VWIDEN("vpmovsxdq", 8),
    [0x28] = VINT("vpmuldq"),
    [0x29] = VINT("vpcmpeqq"),
    [0x2a] = ROWS(V2("vmovntdqa", AVX, P66 | MEM | L0, ALOAD),
                  V2("vmovntdqa", AVX2, P66 | MEM | L1, ALOAD)),
    [0x2b] = VINT("vpackusdw"),
    [0x2c] = ROWS(
        VEX_OP("vmaskmovps", VEC_MASKLOAD, AVX, REG_V_RM, X, P66 | MEM | W0, LOAD, .mem = MEM_OP)),
    [0x2d] = ROWS(
        VEX_OP("vmaskmovpd", VEC_MASKLOAD, AVX, REG_V_RM, X, P66 | MEM | W0, LOAD, .mem = MEM_OP)),
    [0x2e] = ROWS(VEX_OP("vmaskmovps", VEC_MASKSTORE, AVX, RM_V_REG, X, P66 | MEM | W0, USTORE,
                         .mem = MEM_OP)),
    [0x2f] = ROWS(VEX_OP("vmaskmovpd", VEC_MASKSTORE, AVX, RM_V_REG, X, P66 | MEM | W0, USTORE,
                         .mem = MEM_OP)),
    [0x30] = VWIDEN("vpmovzxbw", 8),
    [0x31] = VWIDEN("vpmovzxbd", 4),
    [0x32] = VWIDEN("vpmovzxbq", 2),
    [0x33] = VWIDEN("vpmovzxwd", 8),
    [0x34] = VWIDEN("vpmovzxwq", 4),
    [0x35] = VWIDEN("vpmovzxdq", 8),
    [0x36] = ROWS(V3("vpermd", AVX2, P66 | W0 | L1, 0)),
    [0x37] = VINT("vpcmpgtq"),
    [0x38] = VINT("vpminsb"),
    [0x39] = VINT("vpminsd"),
    [0x3a] = VINT("vpminuw"),
    [0x3b] = VINT("vpminud"),
    [0x3c] = VINT("vpmaxsb"),
    [0x3d] = VINT("vpmaxsd"),
    [0x3e] = VINT("vpmaxuw"),
    [0x3f] = VINT("vpmaxud"),
    [0x40] = VINT("vpmulld"),
    [0x41] = ROWS(V2("vphminposuw", AVX, P66 | L0, 0)),
    [0x45] = ROWS(V3("vpsrlvd", AVX2, P66 | W0, 0), V3("vpsrlvq", AVX2, P66 | W1, 0)),
    [0x46] = ROWS(V3("vpsravd", AVX2, P66 | W0, 0)),
    [0x47] = ROWS(V3("vpsllvd", AVX2, P66 | W0, 0), V3("vpsllvq", AVX2, P66 | W1, 0)),
    [0x58] = ROWS(VBROADCAST("vpbroadcastd", AVX2, ANY, 4)),
    [0x59] = ROWS(VBROADCAST("vpbroadcastq", AVX2, ANY, 8)),
    [0x5a] = ROWS(VBROADCAST("vbroadcasti128", AVX2, MEM | L1, 16)),
    [0x78] = ROWS(VBROADCAST("vpbroadcastb", AVX2, ANY, 1)),
    [0x79] = ROWS(VBROADCAST("vpbroadcastw", AVX2, ANY, 2)),
    [0x8c] = ROWS(
        VEX_OP("vpmaskmovd", VEC_MASKLOAD, AVX2, REG_V_RM, X, P66 | MEM | W0, LOAD, .mem = MEM_OP),
        VEX_OP("vpmaskmovq", VEC_MASKLOAD, AVX2, REG_V_RM, X, P66 | MEM | W1, LOAD, .mem = MEM_OP)),
    [0x8e] = ROWS(VEX_OP("vpmaskmovd", VEC_MASKSTORE, AVX2, RM_V_REG, X, P66 | MEM | W0, USTORE,
                         .mem = MEM_OP),
                  VEX_OP("vpmaskmovq", VEC_MASKSTORE, AVX2, RM_V_REG, X, P66 | MEM | W1, USTORE,
                         .mem = MEM_OP)),
    [0x90] = GATHER("vpgatherdd", "vpgatherdq"),
    [0x91] = GATHER("vpgatherqd", "vpgatherqq"),
    [0x92] = GATHER("vgatherdps", "vgatherdpd"),
    [0x93] = GATHER("vgatherqps", "vgatherqpd"),
    FMA_FORM(0x90, "132"),
    FMA_FORM(0xa0, "213"),
    FMA_FORM(0xb0, "231"),
    [0xcf] = ROWS(V3("vgf2p8mulb", GFNI, P66 | W0, 0)),
    [0xdb] = ROWS(V2("vaesimc", AES, P66 | L0, 0)),
    [0xdc] = VAES("vaesenc"),
    [0xdd] = VAES("vaesenclast"),
    [0xde] = VAES("vaesdec"),
    [0xdf] = VAES("vaesdeclast"),
    [0xf2] = ROWS(
        BMI("andn", ANDN, BMI1, REG_V_RM, NP, GPR3, WRITES(OF | SF | ZF | CF), UNDEFINES(AF | PF))),
    [0xf3] = ROWS(BMI("blsr", BLSR, BMI1, V_RM, NP | REG(1), ATTR_GPR_V | ATTR_GPR_RM,
                      WRITES(OF | SF | ZF | CF), UNDEFINES(AF | PF)),
                  BMI("blsmsk", BLSMSK, BMI1, V_RM, NP | REG(2), ATTR_GPR_V | ATTR_GPR_RM,
                      WRITES(OF | SF | ZF | CF), UNDEFINES(AF | PF)),
                  BMI("blsi", BLSI, BMI1, V_RM, NP | REG(3), ATTR_GPR_V | ATTR_GPR_RM,
                      WRITES(OF | SF | ZF | CF), UNDEFINES(AF | PF))),
    [0xf5] = ROWS(
        BMI("bzhi", BZHI, BMI2, REG_RM_V, NP, GPR3, WRITES(OF | SF | ZF | CF), UNDEFINES(AF | PF)),
        BMI("pext", PEXT, BMI2, REG_V_RM, PF3, GPR3, .mem = MEM_OP),
        BMI("pdep", PDEP, BMI2, REG_V_RM, PF2, GPR3, .mem = MEM_OP)),
    [0xf6] = ROWS(BMI("mulx", MULX, BMI2, REG_V_RM, PF2, GPR3, .mem = MEM_OP)),
    [0xf7] = ROWS(BMI("bextr", BEXTR, BMI1, REG_RM_V, NP, GPR3, WRITES(OF | ZF | CF),
                      UNDEFINES(AF | SF | PF)),
                  BMI("shlx", SHLX, BMI2, REG_RM_V, P66, GPR3, .mem = MEM_OP),
                  BMI("sarx", SARX, BMI2, REG_RM_V, PF3, GPR3, .mem = MEM_OP),
                  BMI("shrx", SHRX, BMI2, REG_RM_V, PF2, GPR3, .mem = MEM_OP)),
};

#define VEX_STR(NAME)                                                                              \
    ROWS(VEX_OP(NAME, VEC_STR, AVX, REG_RM, X, P66 | L0, LOAD | ATTR_NO_DST, .imm = IMM_UB,        \
                WRITES(ARITH)))
#define LANE_IN(NAME, FEATURE)                                                                     \
    ROWS(VEX(NAME, FEATURE, REG_V_RM, P66 | W0 | L1, LOAD, FIXED(16), .imm = IMM_UB))
#define LANE_OUT(NAME, FEATURE)                                                                    \
    ROWS(VEX(NAME, FEATURE, RM_REG, P66 | W0 | L1, USTORE, FIXED(16), .imm = IMM_UB))
/* The mask is the register of imm8[7:4]. */
#define BLENDV(NAME, FEATURE, WHEN)                                                                \
    VEX(NAME, FEATURE, REG_V_RM, P66 | W0 | (WHEN), LOAD | ATTR_IMM_REG, .imm = IMM_UB)

decode_lists decode_map_vex_0f3a = {
    [0x00] = ROWS(V2I("vpermq", AVX2, P66 | W1 | L1, 0)),
    [0x01] = ROWS(V2I("vpermpd", AVX2, P66 | W1 | L1, 0)),
    [0x02] = ROWS(V3I("vpblendd", AVX2, P66 | W0, 0)),
    [0x04] = ROWS(V2I("vpermilps", AVX, P66 | W0, 0)),
    [0x05] = ROWS(V2I("vpermilpd", AVX, P66 | W0, 0)),
    [0x06] = ROWS(V3I("vperm2f128", AVX, P66 | W0 | L1, 0)),
    [0x08] = ROWS(V2I("vroundps", AVX, P66, FP)),
    [0x09] = ROWS(V2I("vroundpd", AVX, P66, FP)),
    [0x0a] = ROWS(VEXS("vroundss", AVX, REG_V_RM, P66, LOAD | FP, FIXED(4), .imm = IMM_UB)),
    [0x0b] = ROWS(VEXS("vroundsd", AVX, REG_V_RM, P66, LOAD | FP, FIXED(8), .imm = IMM_UB)),
    [0x0c] = ROWS(V3I("vblendps", AVX, P66, 0)),
    [0x0d] = ROWS(V3I("vblendpd", AVX, P66, 0)),
    [0x0e] = VINT_I("vpblendw"),
    [0x0f] = VINT_I("vpalignr"),
    [0x14] = ROWS(VEX("vpextrb", AVX, RM_REG, P66 | L0, USTORE | GRM, FIXED(1), .imm = IMM_UB)),
    [0x15] = ROWS(VEX("vpextrw", AVX, RM_REG, P66 | L0, USTORE | GRM, FIXED(2), .imm = IMM_UB)),
    [0x16] =
        ROWS(VEX("vpextrd", AVX, RM_REG, P66 | L0 | Q0, USTORE | GRM, FIXED(4), .imm = IMM_UB),
             VEX("vpextrq", AVX, RM_REG, P66 | L0 | Q1, USTORE | GRM, FIXED(8), .imm = IMM_UB)),
    [0x17] = ROWS(VEX("vextractps", AVX, RM_REG, P66 | L0, USTORE | GRM, FIXED(4), .imm = IMM_UB)),
    [0x18] = LANE_IN("vinsertf128", AVX),
    [0x19] = LANE_OUT("vextractf128", AVX),
    [0x1d] = ROWS(VEX("vcvtps2ph", F16C, RM_REG, P66 | W0, USTORE | FP, SCALES(8), .imm = IMM_UB)),
    [0x20] = ROWS(VEX("vpinsrb", AVX, REG_V_RM, P66 | L0, LOAD | GRM, FIXED(1), .imm = IMM_UB)),
    [0x21] = ROWS(VEX("vinsertps", AVX, REG_V_RM, P66 | L0, LOAD, FIXED(4), .imm = IMM_UB)),
    [0x22] =
        ROWS(VEX("vpinsrd", AVX, REG_V_RM, P66 | L0 | Q0, LOAD | GRM, FIXED(4), .imm = IMM_UB),
             VEX("vpinsrq", AVX, REG_V_RM, P66 | L0 | Q1, LOAD | GRM, FIXED(8), .imm = IMM_UB)),
    [0x38] = LANE_IN("vinserti128", AVX2),
    [0x39] = LANE_OUT("vextracti128", AVX2),
    [0x40] = ROWS(V3I("vdpps", AVX, P66, FP)),
    [0x41] = ROWS(V3I("vdppd", AVX, P66 | L0, FP)),
    [0x42] = VINT_I("vmpsadbw"),
    [0x44] = ROWS(V3I("vpclmulqdq", PCLMUL, P66 | L0, 0), V3I("vpclmulqdq", VPCLMUL, P66 | L1, 0)),
    [0x46] = ROWS(V3I("vperm2i128", AVX2, P66 | W0 | L1, 0)),
    [0x4a] = ROWS(BLENDV("vblendvps", AVX, ANY)),
    [0x4b] = ROWS(BLENDV("vblendvpd", AVX, ANY)),
    [0x4c] = ROWS(BLENDV("vpblendvb", AVX, L0), BLENDV("vpblendvb", AVX2, L1)),
    [0x60] = VEX_STR("vpcmpestrm"),
    [0x61] = VEX_STR("vpcmpestri"),
    [0x62] = VEX_STR("vpcmpistrm"),
    [0x63] = VEX_STR("vpcmpistri"),
    [0xce] = ROWS(V3I("vgf2p8affineqb", GFNI, P66 | W1, 0)),
    [0xcf] = ROWS(V3I("vgf2p8affineinvqb", GFNI, P66 | W1, 0)),
    [0xdf] = ROWS(V2I("vaeskeygenassist", AES, P66 | L0, 0)),
    [0xf0] = ROWS(BMI("rorx", RORX, BMI2, REG_RM, PF2, GPR2, .imm = IMM_UB)),
};
