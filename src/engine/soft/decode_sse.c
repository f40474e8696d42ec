/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MMX and SSE in the map 0F, and the maps 0F 38 and 0F 3A (SDM vol. 2, tables ).
 */
#include "engine/soft/decode_table.h"

#define ALOAD         (ATTR_MEM_READ | ATTR_ALIGNED)
#define ASTORE        (ATTR_MEM_WRITE | ATTR_ALIGNED | ATTR_RM_IS_DST)
#define USTORE        (ATTR_MEM_WRITE | ATTR_RM_IS_DST)
#define FP            ATTR_FP
#define MM_MM         (ATTR_MMX | ATTR_MMX_REG | ATTR_MMX_RM)
#define GREG          ATTR_GPR_REG
#define GRM           ATTR_GPR_RM
#define FLAGS_COMPARE WRITES(ARITH)

#define SSE_OP(NAME, OP, FEATURE, FORM, WHEN, BITS, ...)                                           \
    ROW(NAME, OP, FORM, X, WHEN, MODRM, FEAT(FEATURE), ATTR(ATTR_SSE | (BITS)), __VA_ARGS__)
#define SSE(NAME, FEATURE, FORM, WHEN, BITS, ...)                                                  \
    SSE_OP(NAME, VEC, FEATURE, FORM, WHEN, BITS, __VA_ARGS__)
/* With an aligned 16-byte operand; with one of BYTES. */
#define SSE16(NAME, FEATURE, WHEN, BITS)                                                           \
    SSE(NAME, FEATURE, REG_RM, WHEN, ALOAD | (BITS), .mem = MEM_OP)
#define SSEM(NAME, FEATURE, WHEN, BYTES, BITS)                                                     \
    SSE(NAME, FEATURE, REG_RM, WHEN, LOAD | (BITS), FIXED(BYTES))
#define MMX(NAME, FEATURE, FORM, WHEN, BITS, ...)                                                  \
    ROW(NAME, VEC, FORM, Q, WHEN, MODRM, FEAT(FEATURE), ATTR(ATTR_MMX | (BITS)), __VA_ARGS__)

/* Packed and scalar, single and double. */
#define FP4(NAME)                                                                                  \
    ROWS(SSE16(NAME "ps", SSE, NP, FP), SSE16(NAME "pd", SSE2, P66, FP),                           \
         SSEM(NAME "ss", SSE, PF3, 4, FP), SSEM(NAME "sd", SSE2, PF2, 8, FP))
/* Packed singles and doubles, without MXCSR. */
#define BITS2(NAME) ROWS(SSE16(NAME "ps", SSE, NP, 0), SSE16(NAME "pd", SSE2, P66, 0))
/* The same on MMX registers and on XMM registers. */
#define MX(NAME, MMX_FEATURE, SSE_FEATURE)                                                         \
    ROWS(MMX(NAME, MMX_FEATURE, REG_RM, NP, MM_MM | LOAD, .mem = MEM_OP),                          \
         SSE16(NAME, SSE_FEATURE, P66, 0))
#define MX_LOW(NAME)                                                                               \
    ROWS(MMX(NAME, MMX, REG_RM, NP, MM_MM | LOAD, FIXED(4)), SSE16(NAME, SSE2, P66, 0))
/* Shifts by an immediate: r/m is the destination. */
#define SHIFT_IMM(N, NAME)                                                                         \
    MMX(NAME, MMX, RM, NP | RR | REG(N), ATTR_MMX_RM | ATTR_RM_IS_DST, .imm = IMM_UB, NOMEM),      \
        SSE(NAME, SSE2, RM, P66 | RR | REG(N), ATTR_RM_IS_DST, .imm = IMM_UB, NOMEM)
#define SHIFT_IMM_X(N, NAME)                                                                       \
    SSE(NAME, SSE2, RM, P66 | RR | REG(N), ATTR_RM_IS_DST, .imm = IMM_UB, NOMEM)

decode_lists decode_map_0f_vec = {
    [0x10] = ROWS(SSE("movups", SSE, REG_RM, NP, LOAD, .mem = MEM_OP),
                  SSE("movupd", SSE2, REG_RM, P66, LOAD, .mem = MEM_OP),
                  SSEM("movss", SSE, PF3, 4, 0), SSEM("movsd", SSE2, PF2, 8, 0)),
    [0x11] = ROWS(SSE("movups", SSE, RM_REG, NP, USTORE, .mem = MEM_OP),
                  SSE("movupd", SSE2, RM_REG, P66, USTORE, .mem = MEM_OP),
                  SSE("movss", SSE, RM_REG, PF3, USTORE, FIXED(4)),
                  SSE("movsd", SSE2, RM_REG, PF2, USTORE, FIXED(8))),
    [0x12] =
        ROWS(SSEM("movlps", SSE, NP | MEM, 8, 0), SSE("movhlps", SSE, REG_RM, NP | RR, 0, NOMEM),
             SSEM("movlpd", SSE2, P66 | MEM, 8, 0), SSE16("movsldup", SSE3, PF3, 0),
             SSEM("movddup", SSE3, PF2, 8, 0)),
    [0x13] = ROWS(SSE("movlps", SSE, RM_REG, NP | MEM, USTORE, FIXED(8)),
                  SSE("movlpd", SSE2, RM_REG, P66 | MEM, USTORE, FIXED(8))),
    [0x14] = BITS2("unpckl"),
    [0x15] = BITS2("unpckh"),
    [0x16] =
        ROWS(SSEM("movhps", SSE, NP | MEM, 8, 0), SSE("movlhps", SSE, REG_RM, NP | RR, 0, NOMEM),
             SSEM("movhpd", SSE2, P66 | MEM, 8, 0), SSE16("movshdup", SSE3, PF3, 0)),
    [0x17] = ROWS(SSE("movhps", SSE, RM_REG, NP | MEM, USTORE, FIXED(8)),
                  SSE("movhpd", SSE2, RM_REG, P66 | MEM, USTORE, FIXED(8))),

    [0x28] = ROWS(SSE16("movaps", SSE, NP, 0), SSE16("movapd", SSE2, P66, 0)),
    [0x29] = ROWS(SSE("movaps", SSE, RM_REG, NP, ASTORE, .mem = MEM_OP),
                  SSE("movapd", SSE2, RM_REG, P66, ASTORE, .mem = MEM_OP)),
    [0x2a] = ROWS(SSEM("cvtpi2ps", SSE, NP, 8, FP | ATTR_MMX | ATTR_MMX_RM),
                  SSEM("cvtpi2pd", SSE2, P66, 8, ATTR_MMX | ATTR_MMX_RM),
                  SSE("cvtsi2ss", SSE, REG_RM, PF3, LOAD | FP | GRM, .mem = MEM_Y),
                  SSE("cvtsi2sd", SSE2, REG_RM, PF2, LOAD | FP | GRM, .mem = MEM_Y)),
    [0x2b] = ROWS(SSE("movntps", SSE, RM_REG, NP | MEM, ASTORE, .mem = MEM_OP),
                  SSE("movntpd", SSE2, RM_REG, P66 | MEM, ASTORE, .mem = MEM_OP),
                  SSE("movntss", SSE4A, RM_REG, PF3 | MEM, USTORE, FIXED(4)),
                  SSE("movntsd", SSE4A, RM_REG, PF2 | MEM, USTORE, FIXED(8))),
    [0x2c] =
        ROWS(SSEM("cvttps2pi", SSE, NP, 8, FP | ATTR_MMX | ATTR_MMX_REG),
             SSE16("cvttpd2pi", SSE2, P66, FP | ATTR_MMX | ATTR_MMX_REG),
             SSEM("cvttss2si", SSE, PF3, 4, FP | GREG), SSEM("cvttsd2si", SSE2, PF2, 8, FP | GREG)),
    [0x2d] =
        ROWS(SSEM("cvtps2pi", SSE, NP, 8, FP | ATTR_MMX | ATTR_MMX_REG),
             SSE16("cvtpd2pi", SSE2, P66, FP | ATTR_MMX | ATTR_MMX_REG),
             SSEM("cvtss2si", SSE, PF3, 4, FP | GREG), SSEM("cvtsd2si", SSE2, PF2, 8, FP | GREG)),
    [0x2e] = ROWS(SSE_OP("ucomiss", VEC_FLAGS, SSE, REG_RM, NP, LOAD | FP | ATTR_NO_DST, FIXED(4),
                         FLAGS_COMPARE),
                  SSE_OP("ucomisd", VEC_FLAGS, SSE2, REG_RM, P66, LOAD | FP | ATTR_NO_DST, FIXED(8),
                         FLAGS_COMPARE)),
    [0x2f] = ROWS(SSE_OP("comiss", VEC_FLAGS, SSE, REG_RM, NP, LOAD | FP | ATTR_NO_DST, FIXED(4),
                         FLAGS_COMPARE),
                  SSE_OP("comisd", VEC_FLAGS, SSE2, REG_RM, P66, LOAD | FP | ATTR_NO_DST, FIXED(8),
                         FLAGS_COMPARE)),

    [0x50] = ROWS(SSE("movmskps", SSE, REG_RM, NP | RR, GREG, NOMEM),
                  SSE("movmskpd", SSE2, REG_RM, P66 | RR, GREG, NOMEM)),
    [0x51] = FP4("sqrt"),
    [0x52] = ROWS(SSE16("rsqrtps", SSE, NP, 0), SSEM("rsqrtss", SSE, PF3, 4, 0)),
    [0x53] = ROWS(SSE16("rcpps", SSE, NP, 0), SSEM("rcpss", SSE, PF3, 4, 0)),
    [0x54] = BITS2("and"),
    [0x55] = BITS2("andn"),
    [0x56] = BITS2("or"),
    [0x57] = BITS2("xor"),
    [0x58] = FP4("add"),
    [0x59] = FP4("mul"),
    [0x5a] = ROWS(SSEM("cvtps2pd", SSE2, NP, 8, FP), SSE16("cvtpd2ps", SSE2, P66, FP),
                  SSEM("cvtss2sd", SSE2, PF3, 4, FP), SSEM("cvtsd2ss", SSE2, PF2, 8, FP)),
    [0x5b] = ROWS(SSE16("cvtdq2ps", SSE2, NP, FP), SSE16("cvtps2dq", SSE2, P66, FP),
                  SSE16("cvttps2dq", SSE2, PF3, FP)),
    [0x5c] = FP4("sub"),
    [0x5d] = FP4("min"),
    [0x5e] = FP4("div"),
    [0x5f] = FP4("max"),

    [0x60] = MX_LOW("punpcklbw"),
    [0x61] = MX_LOW("punpcklwd"),
    [0x62] = MX_LOW("punpckldq"),
    [0x63] = MX("packsswb", MMX, SSE2),
    [0x64] = MX("pcmpgtb", MMX, SSE2),
    [0x65] = MX("pcmpgtw", MMX, SSE2),
    [0x66] = MX("pcmpgtd", MMX, SSE2),
    [0x67] = MX("packuswb", MMX, SSE2),
    [0x68] = MX("punpckhbw", MMX, SSE2),
    [0x69] = MX("punpckhwd", MMX, SSE2),
    [0x6a] = MX("punpckhdq", MMX, SSE2),
    [0x6b] = MX("packssdw", MMX, SSE2),
    [0x6c] = ROWS(SSE16("punpcklqdq", SSE2, P66, 0)),
    [0x6d] = ROWS(SSE16("punpckhqdq", SSE2, P66, 0)),
    [0x6e] = ROWS(MMX("movd", MMX, REG_RM, NP | Q0, ATTR_MMX_REG | GRM | LOAD, FIXED(4)),
                  MMX("movq", MMX, REG_RM, NP | Q1, ATTR_MMX_REG | GRM | LOAD, FIXED(8)),
                  SSEM("movd", SSE2, P66 | Q0, 4, GRM), SSEM("movq", SSE2, P66 | Q1, 8, GRM)),
    [0x6f] =
        ROWS(MMX("movq", MMX, REG_RM, NP, MM_MM | LOAD, .mem = MEM_OP),
             SSE16("movdqa", SSE2, P66, 0), SSE("movdqu", SSE2, REG_RM, PF3, LOAD, .mem = MEM_OP)),

    [0x70] = ROWS(MMX("pshufw", SSE, REG_RM, NP, MM_MM | LOAD, .imm = IMM_UB),
                  SSE("pshufd", SSE2, REG_RM, P66, ALOAD, .imm = IMM_UB),
                  SSE("pshufhw", SSE2, REG_RM, PF3, ALOAD, .imm = IMM_UB),
                  SSE("pshuflw", SSE2, REG_RM, PF2, ALOAD, .imm = IMM_UB)),
    [0x71] = ROWS(SHIFT_IMM(2, "psrlw"), SHIFT_IMM(4, "psraw"), SHIFT_IMM(6, "psllw")),
    [0x72] = ROWS(SHIFT_IMM(2, "psrld"), SHIFT_IMM(4, "psrad"), SHIFT_IMM(6, "pslld")),
    [0x73] = ROWS(SHIFT_IMM(2, "psrlq"), SHIFT_IMM_X(3, "psrldq"), SHIFT_IMM(6, "psllq"),
                  SHIFT_IMM_X(7, "pslldq")),
    [0x74] = MX("pcmpeqb", MMX, SSE2),
    [0x75] = MX("pcmpeqw", MMX, SSE2),
    [0x76] = MX("pcmpeqd", MMX, SSE2),
    [0x77] = ROWS(ROW("emms", EMMS, NONE, Q, NP, NOMEM, FEAT(MMX), ATTR(ATTR_MMX))),
    [0x78] = ROWS(SSE("extrq", SSE4A, RM, P66 | RR | REG(0), ATTR_RM_IS_DST, .imm = IMM_BB, NOMEM),
                  SSE("insertq", SSE4A, REG_RM, PF2 | RR, 0, .imm = IMM_BB, NOMEM)),
    [0x79] = ROWS(SSE("extrq", SSE4A, REG_RM, P66 | RR, 0, NOMEM),
                  SSE("insertq", SSE4A, REG_RM, PF2 | RR, 0, NOMEM)),
    [0x7c] = ROWS(SSE16("haddpd", SSE3, P66, FP), SSE16("haddps", SSE3, PF2, FP)),
    [0x7d] = ROWS(SSE16("hsubpd", SSE3, P66, FP), SSE16("hsubps", SSE3, PF2, FP)),
    [0x7e] = ROWS(MMX("movd", MMX, RM_REG, NP | Q0, ATTR_MMX_REG | GRM | USTORE, FIXED(4)),
                  MMX("movq", MMX, RM_REG, NP | Q1, ATTR_MMX_REG | GRM | USTORE, FIXED(8)),
                  SSE("movd", SSE2, RM_REG, P66 | Q0, GRM | USTORE, FIXED(4)),
                  SSE("movq", SSE2, RM_REG, P66 | Q1, GRM | USTORE, FIXED(8)),
                  SSEM("movq", SSE2, PF3, 8, 0)),
    [0x7f] = ROWS(MMX("movq", MMX, RM_REG, NP, MM_MM | USTORE, .mem = MEM_OP),
                  SSE("movdqa", SSE2, RM_REG, P66, ASTORE, .mem = MEM_OP),
                  SSE("movdqu", SSE2, RM_REG, PF3, USTORE, .mem = MEM_OP)),

    [0xc2] = ROWS(SSE("cmpps", SSE, REG_RM, NP, ALOAD | FP, .imm = IMM_UB),
                  SSE("cmppd", SSE2, REG_RM, P66, ALOAD | FP, .imm = IMM_UB),
                  SSE("cmpss", SSE, REG_RM, PF3, LOAD | FP, FIXED(4), .imm = IMM_UB),
                  SSE("cmpsd", SSE2, REG_RM, PF2, LOAD | FP, FIXED(8), .imm = IMM_UB)),
    [0xc4] =
        ROWS(MMX("pinsrw", SSE, REG_RM, NP, ATTR_MMX_REG | GRM | LOAD, FIXED(2), .imm = IMM_UB),
             SSE("pinsrw", SSE2, REG_RM, P66, GRM | LOAD, FIXED(2), .imm = IMM_UB)),
    [0xc5] = ROWS(MMX("pextrw", SSE, REG_RM, NP | RR, ATTR_MMX_RM | GREG, NOMEM, .imm = IMM_UB),
                  SSE("pextrw", SSE2, REG_RM, P66 | RR, GREG, NOMEM, .imm = IMM_UB)),
    [0xc6] = ROWS(SSE("shufps", SSE, REG_RM, NP, ALOAD, .imm = IMM_UB),
                  SSE("shufpd", SSE2, REG_RM, P66, ALOAD, .imm = IMM_UB)),

    [0xd0] = ROWS(SSE16("addsubpd", SSE3, P66, FP), SSE16("addsubps", SSE3, PF2, FP)),
    [0xd1] = MX("psrlw", MMX, SSE2),
    [0xd2] = MX("psrld", MMX, SSE2),
    [0xd3] = MX("psrlq", MMX, SSE2),
    [0xd4] = MX("paddq", SSE2, SSE2),
    [0xd5] = MX("pmullw", MMX, SSE2),
    [0xd6] = ROWS(SSE("movq", SSE2, RM_REG, P66, USTORE, FIXED(8)),
                  SSE("movq2dq", SSE2, REG_RM, PF3 | RR, ATTR_MMX | ATTR_MMX_RM, NOMEM),
                  SSE("movdq2q", SSE2, REG_RM, PF2 | RR, ATTR_MMX | ATTR_MMX_REG, NOMEM)),
    [0xd7] = ROWS(MMX("pmovmskb", SSE, REG_RM, NP | RR, ATTR_MMX_RM | GREG, NOMEM),
                  SSE("pmovmskb", SSE2, REG_RM, P66 | RR, GREG, NOMEM)),
    [0xd8] = MX("psubusb", MMX, SSE2),
    [0xd9] = MX("psubusw", MMX, SSE2),
    [0xda] = MX("pminub", SSE, SSE2),
    [0xdb] = MX("pand", MMX, SSE2),
    [0xdc] = MX("paddusb", MMX, SSE2),
    [0xdd] = MX("paddusw", MMX, SSE2),
    [0xde] = MX("pmaxub", SSE, SSE2),
    [0xdf] = MX("pandn", MMX, SSE2),
    [0xe0] = MX("pavgb", SSE, SSE2),
    [0xe1] = MX("psraw", MMX, SSE2),
    [0xe2] = MX("psrad", MMX, SSE2),
    [0xe3] = MX("pavgw", SSE, SSE2),
    [0xe4] = MX("pmulhuw", SSE, SSE2),
    [0xe5] = MX("pmulhw", MMX, SSE2),
    [0xe6] = ROWS(SSE16("cvttpd2dq", SSE2, P66, FP), SSEM("cvtdq2pd", SSE2, PF3, 8, 0),
                  SSE16("cvtpd2dq", SSE2, PF2, FP)),
    [0xe7] = ROWS(MMX("movntq", SSE, RM_REG, NP | MEM, MM_MM | USTORE, .mem = MEM_OP),
                  SSE("movntdq", SSE2, RM_REG, P66 | MEM, ASTORE, .mem = MEM_OP)),
    [0xe8] = MX("psubsb", MMX, SSE2),
    [0xe9] = MX("psubsw", MMX, SSE2),
    [0xea] = MX("pminsw", SSE, SSE2),
    [0xeb] = MX("por", MMX, SSE2),
    [0xec] = MX("paddsb", MMX, SSE2),
    [0xed] = MX("paddsw", MMX, SSE2),
    [0xee] = MX("pmaxsw", SSE, SSE2),
    [0xef] = MX("pxor", MMX, SSE2),
    [0xf0] = ROWS(SSE("lddqu", SSE3, REG_RM, PF2 | MEM, LOAD, .mem = MEM_OP)),
    [0xf1] = MX("psllw", MMX, SSE2),
    [0xf2] = MX("pslld", MMX, SSE2),
    [0xf3] = MX("psllq", MMX, SSE2),
    [0xf4] = MX("pmuludq", SSE2, SSE2),
    [0xf5] = MX("pmaddwd", MMX, SSE2),
    [0xf6] = MX("psadbw", SSE, SSE2),
    /* The destination is memory at DS:rDI (seg, addr_bytes). */
    [0xf7] =
        ROWS(ROW("maskmovq", VEC_MASKMOVDQU, REG_RM, Q, NP | RR, MODRM, FIXED(8), FEAT(SSE),
                 ATTR(MM_MM | ATTR_NO_DST)),
             SSE_OP("maskmovdqu", VEC_MASKMOVDQU, SSE2, REG_RM, P66 | RR, ATTR_NO_DST, FIXED(16))),
    [0xf8] = MX("psubb", MMX, SSE2),
    [0xf9] = MX("psubw", MMX, SSE2),
    [0xfa] = MX("psubd", MMX, SSE2),
    [0xfb] = MX("psubq", SSE2, SSE2),
    [0xfc] = MX("paddb", MMX, SSE2),
    [0xfd] = MX("paddw", MMX, SSE2),
    [0xfe] = MX("paddd", MMX, SSE2),
};

/* Conversions that widen: VMOVSX and the like read half, a quarter, an eighth of a register. */
#define WIDEN(NAME, BYTES)    ROWS(SSEM(NAME, SSE41, P66, BYTES, 0))
#define P66_16(NAME, FEATURE) ROWS(SSE16(NAME, FEATURE, P66, 0))

#define FLAGS_ADCX            READS(CF), WRITES(CF)
#define FLAGS_ADOX            READS(OF), WRITES(OF)

decode_lists decode_map_0f38 = {
    [0x00] = MX("pshufb", SSSE3, SSSE3),
    [0x01] = MX("phaddw", SSSE3, SSSE3),
    [0x02] = MX("phaddd", SSSE3, SSSE3),
    [0x03] = MX("phaddsw", SSSE3, SSSE3),
    [0x04] = MX("pmaddubsw", SSSE3, SSSE3),
    [0x05] = MX("phsubw", SSSE3, SSSE3),
    [0x06] = MX("phsubd", SSSE3, SSSE3),
    [0x07] = MX("phsubsw", SSSE3, SSSE3),
    [0x08] = MX("psignb", SSSE3, SSSE3),
    [0x09] = MX("psignw", SSSE3, SSSE3),
    [0x0a] = MX("psignd", SSSE3, SSSE3),
    [0x0b] = MX("pmulhrsw", SSSE3, SSSE3),
    [0x10] = ROWS(SSE16("pblendvb", SSE41, P66, ATTR_XMM0)),
    [0x14] = ROWS(SSE16("blendvps", SSE41, P66, ATTR_XMM0)),
    [0x15] = ROWS(SSE16("blendvpd", SSE41, P66, ATTR_XMM0)),
    [0x17] =
        ROWS(SSE_OP("ptest", VEC_FLAGS, SSE41, REG_RM, P66, ALOAD | ATTR_NO_DST, FLAGS_COMPARE)),
    [0x1c] = MX("pabsb", SSSE3, SSSE3),
    [0x1d] = MX("pabsw", SSSE3, SSSE3),
    [0x1e] = MX("pabsd", SSSE3, SSSE3),
    [0x20] = WIDEN("pmovsxbw", 8),
    [0x21] = WIDEN("pmovsxbd", 4),
    [0x22] = WIDEN("pmovsxbq", 2),
    [0x23] = WIDEN("pmovsxwd", 8),
    [0x24] = WIDEN("pmovsxwq", 4),
    [0x25] = WIDEN("pmovsxdq", 8),
    [0x28] = P66_16("pmuldq", SSE41),
    [0x29] = P66_16("pcmpeqq", SSE41),
    [0x2a] = ROWS(SSE16("movntdqa", SSE41, P66 | MEM, 0)),
    [0x2b] = P66_16("packusdw", SSE41),
    [0x30] = WIDEN("pmovzxbw", 8),
    [0x31] = WIDEN("pmovzxbd", 4),
    [0x32] = WIDEN("pmovzxbq", 2),
    [0x33] = WIDEN("pmovzxwd", 8),
    [0x34] = WIDEN("pmovzxwq", 4),
    [0x35] = WIDEN("pmovzxdq", 8),
    [0x37] = P66_16("pcmpgtq", SSE42),
    [0x38] = P66_16("pminsb", SSE41),
    [0x39] = P66_16("pminsd", SSE41),
    [0x3a] = P66_16("pminuw", SSE41),
    [0x3b] = P66_16("pminud", SSE41),
    [0x3c] = P66_16("pmaxsb", SSE41),
    [0x3d] = P66_16("pmaxsd", SSE41),
    [0x3e] = P66_16("pmaxuw", SSE41),
    [0x3f] = P66_16("pmaxud", SSE41),
    [0x40] = P66_16("pmulld", SSE41),
    [0x41] = P66_16("phminposuw", SSE41),
    [0x82] = ROWS(ROW("invpcid", INVPCID, REG_RM, N, P66 | MEM, MODRM, FIXED(16), FEAT(INVPCID),
                      ATTR(LOAD | ATTR_PRIVILEGED | ATTR_NO_DST | ATTR_ENDS_BLOCK))),
    [0xc8] = ROWS(SSE16("sha1nexte", SHA, NP, 0)),
    [0xc9] = ROWS(SSE16("sha1msg1", SHA, NP, 0)),
    [0xca] = ROWS(SSE16("sha1msg2", SHA, NP, 0)),
    [0xcb] = ROWS(SSE16("sha256rnds2", SHA, NP, ATTR_XMM0)),
    [0xcc] = ROWS(SSE16("sha256msg1", SHA, NP, 0)),
    [0xcd] = ROWS(SSE16("sha256msg2", SHA, NP, 0)),
    [0xcf] = P66_16("gf2p8mulb", GFNI),
    [0xdb] = P66_16("aesimc", AES),
    [0xdc] = P66_16("aesenc", AES),
    [0xdd] = P66_16("aesenclast", AES),
    [0xde] = P66_16("aesdec", AES),
    [0xdf] = P66_16("aesdeclast", AES),
    [0xf0] = ROWS(ROW("movbe", MOVBE, REG_RM, V, NFX | MEM, MODRM, FEAT(MOVBE), ATTR(LOAD)),
                  ROW("crc32", CRC32, REG_RM, B, PF2, MODRM, FEAT(SSE42), ATTR(LOAD))),
    [0xf1] = ROWS(ROW("movbe", MOVBE, RM_REG, V, NFX | MEM, MODRM, FEAT(MOVBE), ATTR(STORE)),
                  ROW("crc32", CRC32, REG_RM, V, PF2, MODRM, FEAT(SSE42), ATTR(LOAD))),
    [0xf6] = ROWS(ROW("adcx", ADCX, REG_RM, Y, P66, MODRM, FEAT(ADX), ATTR(LOAD), FLAGS_ADCX),
                  ROW("adox", ADOX, REG_RM, Y, PF3, MODRM, FEAT(ADX), ATTR(LOAD), FLAGS_ADOX)),
    /* The destination's address, in ES, is the register. */
    [0xf8] = ROWS(ROW("movdir64b", MOVDIR64B, REG_RM, V, P66 | MEM, MODRM, FIXED(64),
                      FEAT(MOVDIR64B), ATTR(LOAD | ATTR_NO_DST))),
    [0xf9] = ROWS(ROW("movdiri", MOVDIRI, RM_REG, Y, NP | MEM, MODRM, FEAT(MOVDIRI), ATTR(STORE))),
};

#define STR(NAME)                                                                                  \
    ROWS(SSE_OP(NAME, VEC_STR, SSE42, REG_RM, P66, LOAD | ATTR_NO_DST, .imm = IMM_UB,              \
                WRITES(ARITH)))
#define P66_16I(NAME, FEATURE, BITS)                                                               \
    ROWS(SSE(NAME, FEATURE, REG_RM, P66, ALOAD | (BITS), .imm = IMM_UB))

decode_lists decode_map_0f3a = {
    [0x08] = P66_16I("roundps", SSE41, FP),
    [0x09] = P66_16I("roundpd", SSE41, FP),
    [0x0a] = ROWS(SSE("roundss", SSE41, REG_RM, P66, LOAD | FP, FIXED(4), .imm = IMM_UB)),
    [0x0b] = ROWS(SSE("roundsd", SSE41, REG_RM, P66, LOAD | FP, FIXED(8), .imm = IMM_UB)),
    [0x0c] = P66_16I("blendps", SSE41, 0),
    [0x0d] = P66_16I("blendpd", SSE41, 0),
    [0x0e] = P66_16I("pblendw", SSE41, 0),
    [0x0f] = ROWS(MMX("palignr", SSSE3, REG_RM, NP, MM_MM | LOAD, .imm = IMM_UB),
                  SSE("palignr", SSSE3, REG_RM, P66, ALOAD, .imm = IMM_UB)),
    [0x14] = ROWS(SSE("pextrb", SSE41, RM_REG, P66, GRM | USTORE, FIXED(1), .imm = IMM_UB)),
    [0x15] = ROWS(SSE("pextrw", SSE41, RM_REG, P66, GRM | USTORE, FIXED(2), .imm = IMM_UB)),
    [0x16] = ROWS(SSE("pextrd", SSE41, RM_REG, P66 | Q0, GRM | USTORE, FIXED(4), .imm = IMM_UB),
                  SSE("pextrq", SSE41, RM_REG, P66 | Q1, GRM | USTORE, FIXED(8), .imm = IMM_UB)),
    [0x17] = ROWS(SSE("extractps", SSE41, RM_REG, P66, GRM | USTORE, FIXED(4), .imm = IMM_UB)),
    [0x20] = ROWS(SSE("pinsrb", SSE41, REG_RM, P66, GRM | LOAD, FIXED(1), .imm = IMM_UB)),
    [0x21] = ROWS(SSE("insertps", SSE41, REG_RM, P66, LOAD, FIXED(4), .imm = IMM_UB)),
    [0x22] = ROWS(SSE("pinsrd", SSE41, REG_RM, P66 | Q0, GRM | LOAD, FIXED(4), .imm = IMM_UB),
                  SSE("pinsrq", SSE41, REG_RM, P66 | Q1, GRM | LOAD, FIXED(8), .imm = IMM_UB)),
    [0x40] = P66_16I("dpps", SSE41, FP),
    [0x41] = P66_16I("dppd", SSE41, FP),
    [0x42] = P66_16I("mpsadbw", SSE41, 0),
    [0x44] = P66_16I("pclmulqdq", PCLMUL, 0),
    [0x60] = STR("pcmpestrm"),
    [0x61] = STR("pcmpestri"),
    [0x62] = STR("pcmpistrm"),
    [0x63] = STR("pcmpistri"),
    [0xcc] = ROWS(SSE("sha1rnds4", SHA, REG_RM, NP, ALOAD, .imm = IMM_UB)),
    [0xce] = P66_16I("gf2p8affineqb", GFNI, 0),
    [0xcf] = P66_16I("gf2p8affineinvqb", GFNI, 0),
    [0xdf] = P66_16I("aeskeygenassist", AES, 0),
};
