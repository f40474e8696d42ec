/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations that the interpreter tells apart: what several opcodes share once their operands
 * are decoded. Conditional ones (Jcc, SETcc, CMOVcc) take the condition from opcode_byte[3:0].
 */
#ifndef HULL_ENGINE_SOFT_OPS_H
#define HULL_ENGINE_SOFT_OPS_H

/* Lists that are read a line at a time. */
/* clang-format off */

/* OP(name): integer and control flow (exec_int.c, exec_string.c, exec_flow.c) */
#define OPS_INT(OP)                                                                                \
    OP(ADD)                                                                                        \
    OP(OR)                                                                                         \
    OP(ADC) OP(SBB) OP(AND) OP(SUB) OP(XOR) OP(CMP) OP(TEST) OP(INC) OP(DEC) OP(NEG) OP(NOT)       \
        OP(MUL) OP(IMUL1) OP(IMUL2) OP(IMUL3) OP(DIV) OP(IDIV) OP(ROL) OP(ROR) OP(RCL) OP(RCR)     \
            OP(SHL) OP(SHR) OP(SAR) /* by imm, 1 (imm = 1) */                                      \
        OP(ROL_CL) OP(ROR_CL) OP(RCL_CL) OP(RCR_CL) OP(SHL_CL) OP(SHR_CL) OP(SAR_CL) OP(SHLD) OP(  \
            SHRD) OP(SHLD_CL) OP(SHRD_CL) OP(BT) OP(BTS) OP(BTR) OP(BTC) OP(BT_IMM) OP(BTS_IMM)    \
            OP(BTR_IMM) OP(BTC_IMM) OP(BSF) OP(BSR) OP(TZCNT) OP(LZCNT) OP(POPCNT) OP(BSWAP) OP(   \
                CRC32) OP(MOVBE) OP(ADCX) OP(ADOX) OP(ANDN) OP(BEXTR) OP(BLSI) OP(BLSMSK) OP(BLSR) \
                OP(BZHI) OP(MULX) OP(PDEP) OP(PEXT) OP(RORX) OP(SARX) OP(SHLX) OP(SHRX) OP(MOV)    \
                    OP(MOV_IMM) OP(MOV_MOFFS_LOAD) OP(MOV_MOFFS_STORE) OP(MOVZX8) OP(MOVZX16)      \
                        OP(MOVSX8) OP(MOVSX16) OP(MOVSXD) OP(MOVNTI) OP(MOVDIRI) OP(MOVDIR64B)     \
                            OP(LEA) OP(XCHG) OP(XADD) OP(CMPXCHG) OP(CMPXCHG8B) OP(CMPXCHG16B) OP( \
                                CMOVCC) OP(SETCC) OP(PUSH) OP(PUSH_IMM) OP(POP) OP(PUSHA) OP(POPA) \
                                OP(PUSHF) OP(POPF) OP(ENTER) OP(LEAVE) OP(CBW) OP(CWD) OP(LAHF)    \
                                    OP(SAHF) OP(CLC) OP(STC) OP(CMC) OP(CLD) OP(STD) OP(DAA)       \
                                        OP(DAS) OP(AAA) OP(AAS)                                    \
                                            OP(AAM) OP(AAD) OP(SALC) OP(XLAT) OP(BOUND) OP(        \
                                                NOP) OP(PAUSE) OP(PREFETCH)                        \
                                                OP(FENCE) /* LFENCE, MFENCE, SFENCE */ OP(CLFLUSH) \
                                                    OP(MOVS) OP(CMPS) OP(STOS) OP(LODS) OP(SCAS)   \
                                                        OP(INS) OP(OUTS) OP(JCC) OP(JMP) OP(       \
                                                            JMP_IND) OP(CALL) OP(CALL_IND)         \
                                                            OP(RET) /* imm: bytes to drop, or 0 */ \
        OP(LOOP) OP(LOOPE) OP(LOOPNE) OP(JCXZ) OP(RDRAND) OP(RDSEED) OP(IN)                        \
            OP(OUT) /* IN, OUT: FORM_ACC with imm the port, or FORM_NONE: DX */

/* System (exec_sys.c, seg.c, intr.c, msr.c) */
#define OPS_SYS(OP)                                                                                \
    OP(JMP_FAR)                                                                                    \
    OP(JMP_FAR_IND)                                                                                \
    OP(CALL_FAR) OP(CALL_FAR_IND) OP(RET_FAR) OP(IRET) OP(INT) OP(INT3) OP(INT1) OP(INTO)          \
        OP(UD) /* UD0, UD1, UD2, and all that is undefined */                                      \
        OP(MOV_TO_SEG) OP(MOV_FROM_SEG) OP(PUSH_SEG) OP(POP_SEG) OP(LDS) OP(LES) OP(LSS) OP(LFS)   \
            OP(LGS) OP(LGDT) OP(LIDT) OP(SGDT) OP(SIDT) OP(LLDT) OP(SLDT) OP(LTR) OP(STR) OP(LMSW) \
                OP(SMSW) OP(CLTS) OP(LAR) OP(LSL) OP(VERR) OP(VERW) OP(ARPL) OP(MOV_TO_CR)         \
                    OP(MOV_FROM_CR) OP(MOV_TO_DR) OP(MOV_FROM_DR) OP(INVLPG) OP(INVPCID) OP(INVD)  \
                        OP(WBINVD) OP(RDMSR) OP(WRMSR) OP(RDTSC) OP(RDTSCP) OP(RDPMC) OP(RDPID)    \
                            OP(CPUID) OP(SYSCALL) OP(SYSRET) OP(SYSENTER) OP(SYSEXIT) OP(SWAPGS)   \
                                OP(HLT) OP(CLI) OP(STI) OP(CLAC) OP(STAC) OP(RDFSBASE)             \
                                    OP(RDGSBASE) OP(WRFSBASE) OP(WRGSBASE) OP(XGETBV) OP(XSETBV)   \
                                        OP(MONITOR) OP(MWAIT) OP(VMCALL) OP(VMMCALL) OP(RDPKRU)    \
                                            OP(WRPKRU) OP(SERIALIZE)

/* x87, MMX, SSE, AVX: run by the host's own CPU (exec_vec.c, exec_x87.c). VEC and X87 are all those
 * whose operands are fully described by attr, form and mem_bytes; the rest need hands of their own.
 */
#define OPS_VEC(OP)                                                                                \
    OP(VEC)       /* registers and at most one memory operand of mem_bytes */                      \
    OP(VEC_FLAGS) /* the same, setting RFLAGS (COMISS, PTEST, VTESTPS) */                          \
    OP(VEC_STR)   /* PCMPESTRI/M, PCMPISTRI/M: RAX, RDX in, RCX or XMM0 and flags out */           \
    OP(VEC_GATHER)                                                                                 \
    OP(VEC_MASKLOAD)                                                                               \
    OP(VEC_MASKSTORE)      /* VPGATHER.., VMASKMOV.., VPMASKMOV.. */                               \
        OP(VEC_MASKMOVDQU) /* MASKMOVQ, (V)MASKMOVDQU: to DS:rDI */                                \
        OP(VEC_ZERO)       /* VZEROUPPER, VZEROALL */                                              \
        OP(EMMS) OP(LDMXCSR) OP(STMXCSR)                                                           \
            OP(X87)   /* no operand but the stack, or one memory operand of mem_bytes */           \
        OP(X87_FLAGS) /* FCOMI and the like set RFLAGS; FCMOV reads them */                        \
        OP(X87_FNSTSW_AX) OP(X87_FLDENV) OP(X87_FNSTENV) OP(X87_FRSTOR) OP(X87_FNSAVE) OP(FWAIT)   \
            OP(FXSAVE) OP(FXRSTOR) OP(XSAVE) OP(XSAVEOPT) OP(XSAVEC) OP(XSAVES) OP(XRSTOR)         \
                OP(XRSTORS)

/* clang-format on */

#define OP(name) OP_##name,
enum op {
    OPS_INT(OP) OP_INT_END, /* below: integer */
    OP_SYS_BASE = OP_INT_END,
    OPS_SYS(OP) OP_SYS_END,
    OP_VEC_BASE = OP_SYS_END,
    OPS_VEC(OP) OP_VEC_END,
    /* Made by block.c, not by the decoder: the end of a block that ends with no branch. */
    OP_FALL_THROUGH = OP_VEC_END,
    OP_COUNT,
};
#undef OP

#endif
