/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/decode.h"

#include <stdlib.h>

#include "base/tap.h"
#include "engine/soft/cpu.h"

#define ALL_FEATURES (~0ULL)
#define BYTES_MAX    32

static const struct decode_mode mode64 = {64, true, ALL_FEATURES};
static const struct decode_mode mode32 = {32, true, ALL_FEATURES};
static const struct decode_mode mode16 = {16, false, ALL_FEATURES};

static const struct decode_mode *mode_of(unsigned bits)
{
    return bits == 64 ? &mode64 : bits == 32 ? &mode32 : &mode16;
}

/* "66 0f 6e c0" */
static size_t from_hex(const char *hex, uint8_t bytes[BYTES_MAX])
{
    size_t len = 0;
    char *end;
    for (; *hex && len < BYTES_MAX; hex = end) {
        bytes[len] = (uint8_t)strtoul(hex, &end, 16);
        if (end == hex)
            break;
        len++;
    }
    return len;
}

static enum decode_status decode_hex(struct insn *insn, unsigned bits, const char *hex)
{
    uint8_t bytes[BYTES_MAX] = {0};
    size_t len = from_hex(hex, bytes);
    return decode_insn(insn, bytes, len, mode_of(bits));
}

/* --- text: each class of operands, prefixes and traps --- */

static const struct {
    uint8_t bits;
    const char *hex, *text;
} texts[] = {
  /* operand sizes and byte registers */
    {64, "00 d8",                            "add al, bl"                                         },
    {64, "00 e0",                            "add al, ah"                                         },
    {64, "40 00 e0",                         "add al, spl"                                        },
    {64, "01 d8",                            "add eax, ebx"                                       },
    {64, "66 01 d8",                         "add ax, bx"                                         },
    {64, "48 01 d8",                         "add rax, rbx"                                       },
    {64, "66 48 01 d8",                      "add rax, rbx"                                       },
    {64, "48 66 01 d8",                      "add ax, bx"                                         }, /* REX ahead of a prefix is void */
    {64, "48 41 01 d8",                      "add r8d, ebx"                                       }, /* the last REX counts */
    {64, "4d 01 f7",                         "add r15, r14"                                       },
    {32, "01 d8",                            "add eax, ebx"                                       },
    {16, "01 d8",                            "add ax, bx"                                         },
    {16, "66 01 d8",                         "add eax, ebx"                                       },
    {32, "48",                               "dec eax"                                            },
    {64, "83 c0 ff",                         "add eax, 0xffffffff"                                },
    {64, "48 81 c0 00 00 00 80",             "add rax, 0xffffffff80000000"                        },
    {64, "48 b8 88 77 66 55 44 33 22 11",    "mov rax, 0x1122334455667788"                        },
    {64, "b8 00 00 00 80",                   "mov eax, 0x80000000"                                },
    {64, "41 b7 12",                         "mov r15b, 0x12"                                     },
    {64, "48 c7 c0 ff ff ff ff",             "mov rax, 0xffffffffffffffff"                        },
    {32, "82 c0 01",                         "add al, 0x1"                                        },
    {64, "82 c0 01",                         "(bad) add al, 0x1"                                  },
 /* addressing */
    {64, "8b 04 88",                         "mov eax, dword ptr [rax+rcx*4]"                     },
    {64, "8b 44 88 10",                      "mov eax, dword ptr [rax+rcx*4+0x10]"                },
    {64, "8b 84 88 f0 ff ff ff",             "mov eax, dword ptr [rax+rcx*4-0x10]"                },
    {64, "8b 05 10 00 00 00",                "mov eax, dword ptr [rip+0x10]"                      },
    {64, "67 8b 05 10 00 00 00",             "mov eax, dword ptr [eip+0x10]"                      },
    {64, "8b 04 25 10 00 00 00",             "mov eax, dword ptr [0x10]"                          },
    {64, "8b 04 25 00 00 00 80",             "mov eax, dword ptr [0xffffffff80000000]"            },
    {64, "67 8b 04 25 00 00 00 80",          "mov eax, dword ptr [0x80000000]"                    },
    {64, "8b 04 24",                         "mov eax, dword ptr [rsp]"                           },
    {64, "42 8b 04 20",                      "mov eax, dword ptr [rax+r12*1]"                     },
    {64, "41 8b 45 00",                      "mov eax, dword ptr [r13]"                           },
    {64, "41 8b 04 24",                      "mov eax, dword ptr [r12]"                           },
    {64, "67 8b 00",                         "mov eax, dword ptr [eax]"                           },
    {64, "64 8b 00",                         "mov eax, dword ptr fs:[rax]"                        },
    {64, "64 2e 8b 00",                      "mov eax, dword ptr fs:[rax]"                        }, /* CS does not cancel FS */
    {64, "3e 8b 45 00",                      "mov eax, dword ptr [rbp]"                           },
    {32, "3e 8b 45 00",                      "mov eax, dword ptr ds:[ebp]"                        },
    {32, "8b 05 10 00 00 00",                "mov eax, dword ptr [0x10]"                          },
    {32, "26 8b 00",                         "mov eax, dword ptr es:[eax]"                        },
    {16, "8b 00",                            "mov ax, word ptr [bx+si]"                           },
    {16, "8b 46 fe",                         "mov ax, word ptr [bp-0x2]"                          },
    {16, "8b 06 34 12",                      "mov ax, word ptr [0x1234]"                          },
    {16, "8b 82 34 12",                      "mov ax, word ptr [bp+si+0x1234]"                    },
    {16, "8b 05",                            "mov ax, word ptr [di]"                              },
    {16, "67 8b 04 48",                      "mov ax, word ptr [eax+ecx*2]"                       },
    {16, "66 8b 07",                         "mov eax, dword ptr [bx]"                            },
 /* offsets */
    {64, "a1 88 77 66 55 44 33 22 11",       "mov eax, [0x1122334455667788]"                      },
    {64, "67 a1 44 33 22 11",                "mov eax, [0x11223344]"                              },
    {64, "64 48 a3 88 77 66 55 44 33 22 11", "mov fs:[0x1122334455667788], rax"                   },
    {32, "a0 44 33 22 11",                   "mov al, [0x11223344]"                               },
    {16, "a2 22 11",                         "mov [0x1122], al"                                   },
 /* NOP and its neighbours */
    {64, "90",                               "nop"                                                },
    {64, "f3 90",                            "pause"                                              },
    {64, "41 90",                            "xchg r8d, eax"                                      },
    {64, "49 90",                            "xchg r8, rax"                                       },
    {64, "48 90",                            "nop"                                                },
    {64, "87 d9",                            "xchg ecx, ebx"                                      },
    {64, "f3 0f 1e fa",                      "nop edx"                                            }, /* ENDBR64 */
    {64, "0f 1f 44 00 00",                   "nop [rax+rax*1]"                                    },
    {64, "0f 18 08",                         "prefetcht0 [rax]"                                   },
    {64, "0f 18 c8",                         "nop eax"                                            },
    {64, "0f 0d 08",                         "prefetchw [rax]"                                    },
    {64, "0f 0d 00",                         "nop [rax]"                                          },
 /* branches */
    {64, "eb fe",                            "jmp 0x1000"                                         },
    {64, "66 e9 00 00 00 00",                "jmp 0x1006"                                         }, /* 66 does nothing to a near branch */
    {32, "66 e9 00 00",                      "jmp 0x1004"                                         },
    {16, "e9 fd ef",                         "jmp 0x0"                                            },
    {64, "74 10",                            "je 0x1012"                                          },
    {64, "0f 84 10 00 00 00",                "je 0x1016"                                          },
    {64, "ff d0",                            "call rax"                                           },
    {64, "66 ff d0",                         "call rax"                                           },
    {32, "66 ff d0",                         "call ax"                                            },
    {64, "ff 18",                            "call fword ptr [rax]"                               },
    {64, "48 ff 28",                         "jmp tbyte ptr [rax]"                                },
    {64, "ff d8",                            "(bad)"                                              },
    {64, "ff f8",                            "(bad)"                                              },
    {32, "9a 44 33 22 11 66 55",             "call 0x5566:0x11223344"                             },
    {16, "ea 44 33 22 11",                   "jmp 0x1122:0x3344"                                  },
    {16, "66 ea 44 33 22 11 66 55",          "jmp 0x5566:0x11223344"                              },
    {64, "9a 44 33 22 11 66 55",             "(bad) call 0x5566:0x11223344"                       },
    {64, "e3 00",                            "jrcxz 0x1002"                                       },
    {64, "67 e3 00",                         "jecxz 0x1003"                                       },
    {32, "67 e3 00",                         "jcxz 0x1003"                                        },
    {64, "c2 34 12",                         "ret 0x1234"                                         },
    {64, "48 cb",                            "retf"                                               },
    {64, "48 cf",                            "iretq"                                              },
    {64, "cf",                               "iretd"                                              },
    {16, "cf",                               "iret"                                               },
 /* the stack */
    {64, "50",                               "push rax"                                           },
    {64, "66 50",                            "push ax"                                            },
    {64, "41 57",                            "push r15"                                           },
    {32, "50",                               "push eax"                                           },
    {64, "6a ff",                            "push 0xffffffffffffffff"                            },
    {64, "66 68 34 12",                      "push 0x1234"                                        },
    {64, "ff 30",                            "push qword ptr [rax]"                               },
    {64, "8f 00",                            "pop qword ptr [rax]"                                },
    {64, "8f c8",                            "(bad)"                                              }, /* XOP elsewhere */
    {64, "0f a0",                            "push fs"                                            },
    {32, "0e",                               "push cs"                                            },
    {64, "0e",                               "(bad) push cs"                                      },
    {64, "9c",                               "pushfq"                                             },
    {64, "66 9c",                            "pushf"                                              },
    {32, "9c",                               "pushfd"                                             },
    {64, "c8 10 00 01",                      "enter 0x10, 0x1"                                    },
    {32, "60",                               "pushad"                                             },
    {64, "60",                               "(bad) pushad"                                       },
 /* strings */
    {64, "a4",                               "movsb"                                              },
    {64, "f3 48 a5",                         "rep movsq"                                          },
    {64, "f2 a6",                            "repne cmpsb"                                        },
    {64, "f3 ae",                            "repe scasb"                                         },
    {64, "f2 f3 a4",                         "rep movsb"                                          }, /* the last counts */
    {64, "64 ac",                            "fs lodsb"                                           },
    {64, "2e ac",                            "lodsb"                                              },
    {32, "2e ac",                            "cs lodsb"                                           },
    {64, "48 6f",                            "outsd"                                              },
    {16, "6d",                               "insw"                                               },
    {64, "65 d7",                            "gs xlatb"                                           },
 /* ports */
    {64, "e4 60",                            "in al, 0x60"                                        },
    {64, "66 ed",                            "in ax, dx"                                          },
    {64, "48 ed",                            "in eax, dx"                                         },
    {64, "e7 80",                            "out 0x80, eax"                                      },
    {64, "ee",                               "out dx, al"                                         },
 /* groups and shifts, aliases */
    {64, "d0 e0",                            "shl al, 1"                                          },
    {64, "d0 f0",                            "shl al, 1"                                          },
    {64, "d3 f8",                            "sar eax, cl"                                        },
    {64, "c1 c8 05",                         "ror eax, 0x5"                                       },
    {64, "f6 c0 01",                         "test al, 0x1"                                       },
    {64, "f6 c8 01",                         "test al, 0x1"                                       },
    {64, "f7 c0 01 00 00 00",                "test eax, 0x1"                                      },
    {64, "f7 d0",                            "not eax"                                            },
    {64, "0f a4 c8 05",                      "shld eax, ecx, 0x5"                                 },
    {64, "0f ad c8",                         "shrd eax, ecx, cl"                                  },
    {64, "0f ba e0 05",                      "bt eax, 0x5"                                        },
    {64, "0f ba c0 05",                      "(bad)"                                              },
    {64, "fe d0",                            "(bad)"                                              },
    {64, "0f c8",                            "bswap eax"                                          },
    {64, "49 0f cf",                         "bswap r15"                                          },
    {64, "6b c0 ff",                         "imul eax, eax, 0xffffffff"                          },
    {64, "0f b6 c1",                         "movzx eax, cl"                                      },
    {64, "48 0f bf c1",                      "movsx rax, cx"                                      },
    {64, "48 63 c1",                         "movsxd rax, ecx"                                    },
    {64, "63 c1",                            "movsxd eax, ecx"                                    },
    {32, "63 c1",                            "arpl cx, ax"                                        },
    {16, "63 c1",                            "(bad) arpl cx, ax"                                  },
    {64, "98",                               "cwde"                                               },
    {64, "48 98",                            "cdqe"                                               },
    {64, "66 99",                            "cwd"                                                },
    {32, "d5 0a",                            "aad 0xa"                                            },
    {64, "d5 0a",                            "(bad) aad 0xa"                                      },
    {32, "d6",                               "salc"                                               },
    {32, "62 00",                            "bound eax, qword ptr [eax]"                         },
    {32, "62 c0",                            "(bad)"                                              },
    {64, "62 f1 7c 48 58 c0",                "(bad)"                                              }, /* EVEX */
    {32, "c4 00",                            "les eax, fword ptr [eax]"                           },
    {16, "c5 c0",                            "(bad)"                                              }, /* LDS with a register; VEX only in protected mode */
    {16, "c5 00",                            "lds ax, dword ptr [bx+si]"                          },
 /* LOCK */
    {64, "f0 01 00",                         "lock add dword ptr [rax], eax"                      },
    {64, "f0 01 c0",                         "(bad) lock add eax, eax"                            },
    {64, "f0 03 00",                         "(bad) lock add eax, dword ptr [rax]"                },
    {64, "f0 39 00",                         "(bad) lock cmp dword ptr [rax], eax"                },
    {64, "f0 80 38 00",                      "(bad) lock cmp byte ptr [rax], 0x0"                 },
    {64, "f0 f7 18",                         "lock neg dword ptr [rax]"                           },
    {64, "f0 f7 00 00 00 00 00",             "(bad) lock test dword ptr [rax], 0x0"               },
    {64, "f0 0f 20 c0",                      "(bad) lock mov rax, cr0"                            },
    {64, "f0 0f 22 c0",                      "(bad) lock mov cr0, rax"                            },
    {64, "f0 0f ab 00",                      "lock bts dword ptr [rax], eax"                      },
    {64, "f0 0f a3 00",                      "(bad) lock bt dword ptr [rax], eax"                 },
    {64, "f0 48 0f c7 08",                   "lock cmpxchg16b xmmword ptr [rax]"                  },
    {64, "f0 0f 20 c0",                      "(bad) lock mov rax, cr0"                            },
    {64, "f0 90",                            "(bad) lock nop"                                     },
 /* system */
    {64, "0f 20 d8",                         "mov rax, cr3"                                       },
    {64, "0f 20 18",                         "mov rax, cr3"                                       }, /* mod does not matter */
    {64, "44 0f 22 c0",                      "mov cr8, rax"                                       },
    {32, "0f 20 d8",                         "mov eax, cr3"                                       },
    {64, "0f 20 c8",                         "(bad) mov rax, cr1"                                 },
    {64, "44 0f 20 c8",                      "(bad) mov rax, cr9"                                 },
    {64, "0f 23 f8",                         "mov dr7, rax"                                       },
    {64, "44 0f 23 c0",                      "(bad) mov dr8, rax"                                 },
    {64, "8e d8",                            "mov ds, ax"                                         },
    {64, "44 8e d8",                         "mov ds, ax"                                         }, /* REX.R is ignored */
    {64, "8e c8",                            "(bad) mov cs, ax"                                   },
    {64, "8e f0",                            "(bad) mov ?, ax"                                    },
    {64, "8c d8",                            "mov eax, ds"                                        },
    {64, "48 8c 18",                         "mov word ptr [rax], ds"                             },
    {64, "0f 01 d0",                         "xgetbv"                                             },
    {64, "66 0f 01 d0",                      "(bad)"                                              },
    {64, "0f 01 f8",                         "swapgs"                                             },
    {32, "0f 01 f8",                         "(bad) swapgs"                                       },
    {64, "0f 01 10",                         "lgdt tbyte ptr [rax]"                               },
    {32, "0f 01 10",                         "lgdt fword ptr [eax]"                               },
    {64, "0f 01 e0",                         "smsw eax"                                           },
    {64, "0f 01 38",                         "invlpg [rax]"                                       },
    {64, "0f 00 d8",                         "ltr ax"                                             },
    {64, "0f 02 c1",                         "lar eax, cx"                                        },
    {64, "0f 05",                            "syscall"                                            },
    {64, "0f 0b",                            "ud2"                                                },
    {64, "0f b9 00",                         "ud1 eax, [rax]"                                     },
    {64, "0f ff c1",                         "ud0 eax, ecx"                                       },
    {64, "0f 04",                            "(bad)"                                              },
    {64, "0f aa",                            "rsm"                                                },
    {64, "f3 0f ae c0",                      "rdfsbase eax"                                       },
    {64, "f3 48 0f ae d8",                   "wrgsbase rax"                                       },
    {32, "f3 0f ae c0",                      "(bad) rdfsbase eax"                                 },
    {64, "0f ae e8",                         "lfence"                                             },
    {64, "0f ae 38",                         "clflush byte ptr [rax]"                             },
    {64, "66 0f ae 38",                      "clflushopt byte ptr [rax]"                          },
    {64, "48 0f ae 20",                      "xsave64 [rax]"                                      },
    {64, "0f c7 f0",                         "rdrand eax"                                         },
    {64, "f3 0f c7 f8",                      "rdpid rax"                                          },
    {64, "f3 0f c7 f0",                      "(bad)"                                              },
 /* mandatory prefixes */
    {64, "f3 0f bc c1",                      "tzcnt eax, ecx"                                     },
    {64, "66 f3 0f bc c1",                   "tzcnt ax, cx"                                       },
    {64, "f2 0f bc c1",                      "bsf eax, ecx"                                       },
    {64, "f3 0f b8 c1",                      "popcnt eax, ecx"                                    },
    {64, "0f b8 c1",                         "(bad)"                                              },
    {64, "0f 38 f0 00",                      "movbe eax, dword ptr [rax]"                         },
    {64, "66 0f 38 f0 00",                   "movbe ax, word ptr [rax]"                           },
    {64, "f2 0f 38 f0 c1",                   "crc32 eax, cl"                                      },
    {64, "66 f2 0f 38 f1 c1",                "crc32 eax, cx"                                      },
    {64, "f2 48 0f 38 f1 c1",                "crc32 rax, rcx"                                     },
    {64, "66 0f 38 f6 c1",                   "adcx eax, ecx"                                      },
    {64, "f3 48 0f 38 f6 c1",                "adox rax, rcx"                                      },
    {64, "0f c3 00",                         "movnti dword ptr [rax], eax"                        },
 /* x87 */
    {64, "d8 c1",                            "fadd st, st(1)"                                     },
    {64, "dc c1",                            "fadd st(1), st"                                     },
    {64, "dc d1",                            "fcom st(1)"                                         },
    {64, "dd 00",                            "fld qword ptr [rax]"                                },
    {64, "db 28",                            "fld tbyte ptr [rax]"                                },
    {64, "d9 e0",                            "fchs"                                               },
    {64, "d9 e2",                            "(bad)"                                              },
    {64, "df e0",                            "fnstsw ax"                                          },
    {64, "de d9",                            "fcompp"                                             },
    {64, "db f1",                            "fcomi st, st(1)"                                    },
    {64, "9b",                               "fwait"                                              },
 /* MMX, SSE */
    {64, "0f fc c1",                         "paddb mm0, mm1"                                     },
    {64, "45 0f fc c1",                      "paddb mm0, mm1"                                     }, /* REX adds no MMX register */
    {64, "66 45 0f fc c1",                   "paddb xmm8, xmm9"                                   },
    {64, "f3 0f fc c1",                      "(bad)"                                              },
    {64, "0f 58 00",                         "addps xmm0, xmmword ptr [rax]"                      },
    {64, "66 f2 0f 58 00",                   "addsd xmm0, qword ptr [rax]"                        }, /* F2 before 66 */
    {64, "f2 f3 0f 58 00",                   "addss xmm0, dword ptr [rax]"                        }, /* the last of F2, F3 */
    {64, "66 0f 6e c0",                      "movd xmm0, eax"                                     },
    {64, "66 48 0f 6e c0",                   "movq xmm0, rax"                                     },
    {64, "0f 7e c0",                         "movd eax, mm0"                                      },
    {64, "f3 0f 7e c1",                      "movq xmm0, xmm1"                                    },
    {64, "f3 48 0f 2a c1",                   "cvtsi2ss xmm0, rcx"                                 },
    {64, "f2 0f 2d c1",                      "cvtsd2si eax, xmm1"                                 },
    {64, "0f 12 c1",                         "movhlps xmm0, xmm1"                                 },
    {64, "0f 12 01",                         "movlps xmm0, qword ptr [rcx]"                       },
    {64, "66 0f 12 c1",                      "(bad)"                                              },
    {64, "0f 50 c1",                         "movmskps eax, xmm1"                                 },
    {64, "0f 50 01",                         "(bad)"                                              },
    {64, "66 0f 73 d9 04",                   "psrldq xmm1, 0x4"                                   },
    {64, "0f 73 d9 04",                      "(bad)"                                              },
    {64, "66 0f 38 10 c1",                   "pblendvb xmm0, xmm1, xmm0"                          },
    {64, "66 0f 3a 14 c1 05",                "pextrb ecx, xmm0, 0x5"                              },
    {64, "66 0f 3a 22 01 05",                "pinsrd xmm0, dword ptr [rcx], 0x5"                  },
    {64, "f2 0f 78 c1 05 06",                "insertq xmm0, xmm1, 0x5, 0x6"                       },
 /* VEX */
    {64, "c5 f8 58 c1",                      "vaddps xmm0, xmm0, xmm1"                            },
    {64, "c5 74 58 c2",                      "vaddps ymm8, ymm1, ymm2"                            },
    {64, "c4 c1 7c 58 c1",                   "vaddps ymm0, ymm0, ymm9"                            },
    {32, "c5 f8 58 c1",                      "vaddps xmm0, xmm0, xmm1"                            },
    {32, "c4 c1 38 58 c1",                   "vaddps xmm0, xmm0, xmm1"                            }, /* B and vvvv[3] are ignored */
    {64, "66 c5 f8 58 c1",                   "(bad) vaddps xmm0, xmm0, xmm1"                      },
    {64, "40 c5 f8 58 c1",                   "(bad) vaddps xmm0, xmm0, xmm1"                      },
    {64, "67 c5 f8 58 00",                   "vaddps xmm0, xmm0, xmmword ptr [eax]"               },
    {64, "c5 f8 28 c1",                      "vmovaps xmm0, xmm1"                                 },
    {64, "c5 f0 28 c1",                      "(bad) vmovaps xmm0, xmm1"                           }, /* vvvv is not used */
    {64, "c5 fa 10 c1",                      "vmovss xmm0, xmm0, xmm1"                            },
    {64, "c5 fa 10 01",                      "vmovss xmm0, dword ptr [rcx]"                       },
    {64, "c4 e2 71 98 c2",                   "vfmadd132ps xmm0, xmm1, xmm2"                       },
    {64, "c4 e2 f1 99 c2",                   "vfmadd132sd xmm0, xmm1, xmm2"                       },
    {64, "c4 e2 79 18 c1",                   "vbroadcastss xmm0, xmm1"                            },
    {64, "c4 e2 f9 18 c1",                   "(bad)"                                              }, /* W must be 0 */
    {64, "c4 e2 7d 19 01",                   "vbroadcastsd ymm0, qword ptr [rcx]"                 },
    {64, "c4 e2 79 19 01",                   "(bad)"                                              }, /* L must be 1 */
    {64, "c4 e3 71 4a c2 30",                "vblendvps xmm0, xmm1, xmm2, xmm3"                   },
    {64, "c4 e2 69 92 04 0b",                "vgatherdps xmm0, dword ptr [rbx+xmm1*1], xmm2"      },
    {64, "c4 e2 6d 93 04 0b",                "vgatherqps xmm0, dword ptr [rbx+ymm1*1], xmm2"      },
    {64, "c4 e2 ed 92 04 0b",                "vgatherdpd ymm0, qword ptr [rbx+xmm1*1], ymm2"      },
    {64, "c4 e2 69 92 04 03",                "(bad) vgatherdps xmm0, dword ptr [rbx+xmm0*1], xmm2"},
    {64, "c4 e2 69 92 03",                   "(bad) vgatherdps xmm0, dword ptr [rbx], xmm2"       },
    {64, "c4 e2 71 2e 02",                   "vmaskmovps xmmword ptr [rdx], xmm1, xmm0"           },
    {64, "c5 f1 73 dc 04",                   "vpsrldq xmm1, xmm4, 0x4"                            },
    {64, "c4 e3 7d 39 c1 01",                "vextracti128 xmm1, ymm0, 0x1"                       },
    {64, "c4 e2 7d 21 c1",                   "vpmovsxbd ymm0, xmm1"                               },
    {64, "c5 fd 5a c1",                      "vcvtpd2ps xmm0, ymm1"                               },
    {64, "c5 fc 77",                         "vzeroall"                                           },
    {64, "c4 e2 70 f2 c2",                   "andn eax, ecx, edx"                                 },
    {64, "c4 e2 f0 f2 c2",                   "andn rax, rcx, rdx"                                 },
    {32, "c4 e2 f0 f2 c2",                   "andn eax, ecx, edx"                                 }, /* W is ignored */
    {64, "c4 e2 74 f2 c2",                   "(bad)"                                              },
    {64, "c4 e2 70 f3 ca",                   "blsr ecx, edx"                                      },
    {64, "c4 e2 71 f7 c2",                   "shlx eax, edx, ecx"                                 },
    {64, "c4 e3 fb f0 c2 05",                "rorx rax, rdx, 0x5"                                 },
    {64, "c4 e4 71 98 c2",                   "(bad)"                                              }, /* no such map */
};

static void test_texts(void)
{
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct insn insn;
        char text[128] = "", what[128];
        const char *want = texts[i].text;
        enum decode_status status = decode_hex(&insn, texts[i].bits, texts[i].hex);
        if (status == DECODE_OK)
            decode_print(&insn, 0x1000, text, sizeof(text));
        (void)snprintf(what, sizeof(what), "%u bits: %s", texts[i].bits, texts[i].hex);
        is_str(text, want, what);
    }
}

/* --- fields --- */

static void test_fields(void)
{
    struct insn insn;
    uint8_t longest[15] = {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                           0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90};
    uint8_t too_long[16];

    decode_hex(&insn, 64, "48 8b 44 88 10");
    ok(insn.op == OP_MOV && insn.len == 5 && insn.is_mem && insn.op_bytes == 8 &&
           insn.mem_bytes == 8 && insn.base == 0 && insn.index == 1 && insn.scale == 2 &&
           insn.disp == 16 && insn.seg == SEG_DS && insn.addr_bytes == 8 &&
           insn_addr_mask(&insn) == ~0ULL && insn.modrm == 0x44 && insn.opcode_byte == 0x8b &&
           insn.prefixes == (PREFIX_REX | PREFIX_REX_W),
       "all fields of a load");
    ok(memcmp(insn.bytes, "\x48\x8b\x44\x88\x10\0", 6) == 0, "bytes as fetched, zeroes after");
    decode_hex(&insn, 64, "8b 45 f0");
    ok(insn.seg == SEG_SS && insn.disp == -16, "RBP is in SS");
    decode_hex(&insn, 64, "8b 04 24");
    ok(insn.seg == SEG_SS && insn.base == CPU_RSP && insn.index == GPR_ZERO, "RSP is in SS");
    decode_hex(&insn, 64, "41 8b 45 00");
    ok(insn.seg == SEG_DS && insn.base == 13, "R13 is in DS");
    decode_hex(&insn, 64, "42 8b 04 25 10 00 00 00");
    ok(insn.base == GPR_ZERO && insn.index == 12 && !insn.rip_relative, "R12 is an index");
    decode_hex(&insn, 64, "67 8b 05 10 00 00 00");
    ok(insn.rip_relative && insn.base == GPR_ZERO && insn_addr_mask(&insn) == 0xffffffff,
       "EIP-relative");
    decode_hex(&insn, 64, "c7 05 10 00 00 00 44 33 22 11");
    ok(insn.rip_relative && insn.disp == 16 && insn.imm == 0x11223344 && insn.len == 10,
       "RIP-relative with an immediate behind");
    decode_hex(&insn, 16, "8b 46 fe");
    ok(insn.seg == SEG_SS && insn_addr_mask(&insn) == 0xffff && insn.disp == -2, "BP is in SS");
    decode_hex(&insn, 16, "8b 42 02");
    ok(insn.seg == SEG_SS && insn.base == CPU_RBP && insn.index == CPU_RSI, "BP + SI too");
    decode_hex(&insn, 16, "8b 06 34 12");
    ok(insn.seg == SEG_DS && insn.base == GPR_ZERO, "a 16-bit displacement alone is in DS");
    decode_hex(&insn, 32, "2e d7");
    ok(insn.seg == SEG_CS && !insn.is_mem, "XLAT's segment");
    decode_hex(&insn, 64, "65 66 0f f7 c1");
    ok(insn.seg == SEG_GS && insn.op == OP_VEC_MASKMOVDQU && insn.mem_bytes == 16,
       "MASKMOVDQU's segment");
    decode_hex(&insn, 64, "0f a9");
    ok(insn.op == OP_POP_SEG && insn.reg == SEG_GS && insn.op_bytes == 8, "POP GS");
    decode_hex(&insn, 32, "1f");
    ok(insn.op == OP_POP_SEG && insn.reg == SEG_DS, "POP DS");
    decode_hex(&insn, 64, "c8 34 12 05");
    ok(insn.imm == 0x1234 && insn.imm2 == 5, "ENTER's two immediates");
    decode_hex(&insn, 32, "9a 44 33 22 f1 66 f5");
    ok(insn.imm == 0xf1223344 && insn.imm2 == 0xf566, "a far pointer is not sign extended");
    decode_hex(&insn, 64, "d1 e0");
    ok(insn.imm == 1 && insn.op == OP_SHL, "a shift by 1 has the immediate 1");
    decode_hex(&insn, 64, "f0 f3 01 00");
    ok(insn.prefixes == (PREFIX_LOCK | PREFIX_REP), "prefixes that are no part of the opcode");
    decode_hex(&insn, 64, "66 f3 0f b8 c1");
    ok(insn.prefixes == PREFIX_OPSIZE, "POPCNT's F3 is part of the opcode, 66 is not");
    decode_hex(&insn, 64, "66 0f 6f c1");
    ok(insn.prefixes == 0 && insn.op_bytes == 16, "MOVDQA's 66 is part of the opcode");
    decode_hex(&insn, 64, "c4 e2 fd 19 01");
    ok(insn.op == OP_UD, "VBROADCASTSD with W1");
    decode_hex(&insn, 32, "c4 e3 f1 22 c1 01");
    ok(!(insn.prefixes & PREFIX_REX_W) && insn.mem_bytes == 4,
       "VPINSRD's W outside of 64-bit code");
    decode_hex(&insn, 32, "c4 e2 f1 98 c2");
    ok((insn.prefixes & PREFIX_REX_W) && !strcmp(insn.opcode->name, "vfmadd132pd"),
       "VFMADD's W is part of the opcode");
    decode_hex(&insn, 32, "c4 e3 71 4a c2 f0");
    is_int(insn_imm_reg(&insn), 7, "outside of 64-bit code imm8[7] is no register bit");

    is_int(decode_insn(&insn, longest, 15, &mode64), DECODE_OK, "15 bytes");
    is_int(insn.len, 15, "15 bytes are used");
    is_int(decode_insn(&insn, longest, 14, &mode64), DECODE_MORE, "14 of 15 bytes");
    memset(too_long, 0x66, sizeof(too_long));
    is_int(decode_insn(&insn, too_long, 16, &mode64), DECODE_LONG, "16 prefixes");
    is_int(decode_insn(&insn, too_long, 0, &mode64), DECODE_MORE, "no byte at all");
}

/* --- features --- */

static const struct opcode *without(unsigned bits, insn_features lacking, const char *hex,
                                    unsigned *op)
{
    struct decode_mode mode = *mode_of(bits);
    uint8_t bytes[BYTES_MAX] = {0};
    struct insn insn;
    mode.features = ALL_FEATURES & ~lacking;
    decode_insn(&insn, bytes, from_hex(hex, bytes), &mode);
    *op = insn.op;
    return insn.opcode;
}

static void test_features(void)
{
    unsigned op;
    is_str(without(64, FEATURE(LZCNT), "f3 0f bd c1", &op)->name, "bsr", "LZCNT becomes BSR");
    is_int(op, OP_BSR, "and runs");
    is_str(without(64, FEATURE(BMI1), "f3 0f bc c1", &op)->name, "bsf", "TZCNT becomes BSF");
    is_str(without(64, FEATURE(PREFETCHW), "0f 0d 08", &op)->name, "nop", "PREFETCHW a NOP");
    without(64, FEATURE(POPCNT), "f3 0f b8 c1", &op);
    is_int(op, OP_UD, "no POPCNT");
    without(64, FEATURE(AVX2), "c5 fd fc c1", &op);
    is_int(op, OP_UD, "no 256-bit VPADDB without AVX2");
    without(64, FEATURE(AVX2), "c5 f9 fc c1", &op);
    is_int(op, OP_VEC, "but the 128-bit one");
    without(64, FEATURE(AVX), "c4 e2 f9 98 c1", &op);
    is_int(op, OP_UD, "FMA needs AVX");
    without(64, FEATURE(AVX), "c4 e2 70 f2 c2", &op);
    is_int(op, OP_ANDN, "BMI does not");
    without(32, FEATURE(SYSCALL), "0f 05", &op);
    is_int(op, OP_UD, "no SYSCALL in 32-bit code");
    without(64, FEATURE(SYSCALL), "0f 05", &op);
    is_int(op, OP_SYSCALL, "but in 64-bit code");
    without(64, FEATURE(LAHF64), "9f", &op);
    is_int(op, OP_UD, "no LAHF in 64-bit code");
    without(32, FEATURE(LAHF64), "9f", &op);
    is_int(op, OP_LAHF, "but in 32-bit code");
    without(64, ALL_FEATURES, "89 c8", &op);
    is_int(op, OP_MOV, "the base needs none");
}

/* --- flags --- */

static struct insn_flags flags_of(const char *hex, int count)
{
    struct insn insn;
    decode_hex(&insn, 64, hex);
    return insn_flags(&insn, count);
}

static void test_flags(void)
{
    const unsigned arith = RFLAGS_ARITH, of = RFLAGS_OF, cf = RFLAGS_CF, af = RFLAGS_AF;
    struct insn_flags f = flags_of("01 c8", INSN_COUNT_UNKNOWN);
    ok(f.read == 0 && f.written == arith && f.undefined == 0, "ADD");
    f = flags_of("11 c8", INSN_COUNT_UNKNOWN);
    ok(f.read == cf && f.written == arith, "ADC");
    f = flags_of("c1 e0 00", INSN_COUNT_UNKNOWN);
    ok(f.read == 0 && f.written == 0 && f.undefined == 0, "SHL by 0");
    f = flags_of("c1 e0 20", INSN_COUNT_UNKNOWN);
    ok(f.written == 0, "SHL of 32 bits by 32 is by 0");
    f = flags_of("48 c1 e0 20", INSN_COUNT_UNKNOWN);
    ok(f.written == (arith & ~of & ~af) && f.undefined == (of | af), "SHL of 64 bits by 32");
    f = flags_of("c1 e0 01", INSN_COUNT_UNKNOWN);
    ok(f.written == (arith & ~af) && f.undefined == af, "SHL by an immediate 1 defines OF");
    f = flags_of("c0 e0 08", INSN_COUNT_UNKNOWN);
    ok(f.undefined & cf, "SHL of 8 bits by 8 leaves CF undefined");
    f = flags_of("66 0f a4 c8 11", INSN_COUNT_UNKNOWN);
    ok(f.written == 0 && f.undefined == arith, "SHLD of 16 bits by 17");
    f = flags_of("d3 e0", INSN_COUNT_UNKNOWN);
    ok(f.read == arith, "by CL all may remain");
    f = flags_of("d3 e0", 0);
    ok(f.read == 0 && f.written == 0, "by CL = 0 all remain");
    f = flags_of("d3 e0", 33);
    ok(f.read == 0 && (f.written & of), "by CL = 33 is by 1");
    f = flags_of("d3 d0", 3);
    ok(f.read == cf && f.written == cf && f.undefined == of, "RCL by 3");
    f = flags_of("f3 a6", INSN_COUNT_UNKNOWN);
    ok((f.read & arith) == arith, "REPE CMPS may not run at all");
    f = flags_of("76 00", INSN_COUNT_UNKNOWN);
    ok(f.read == (cf | RFLAGS_ZF) && f.written == 0, "JBE");
}

/* --- all rows --- */

static bool has_vector_unit(const struct opcode *opcode)
{
    return opcode->attr & (ATTR_MMX | ATTR_SSE | ATTR_AVX);
}

/* What is wrong with the row in itself, or NULL. */
static const char *row_fault(const struct opcode *o)
{
    uint32_t access = o->attr & (ATTR_MEM_READ | ATTR_MEM_WRITE | ATTR_MEM_ADDR);
    bool has_rm = o->form != FORM_NONE && o->form != FORM_OPREG && o->form != FORM_ACC;
    bool rm_first = o->form == FORM_RM || o->form == FORM_RM_REG || o->form == FORM_RM_V_REG;
    bool is_vec = o->op >= OP_VEC && o->op <= OP_VEC_MASKMOVDQU;
    if (o->flags_written & o->flags_undefined)
        return "a flag both written and undefined";
    if ((o->flags_read | o->flags_written | o->flags_undefined) & ~(RFLAGS_ARITH | RFLAGS_DF))
        return "flags beyond arithmetic and DF";
    if ((o->attr & ATTR_NO64) && (o->attr & ATTR_ONLY64))
        return "in no mode";
    if ((o->attr & ATTR_LOCKABLE) && (access != (ATTR_MEM_READ | ATTR_MEM_WRITE) || !rm_first))
        return "LOCK without read and write";
    if ((access & ATTR_MEM_ADDR) && access != ATTR_MEM_ADDR)
        return "address only, and more";
    if (access && !has_rm && o->form != FORM_ACC)
        return "memory access without an operand";
    if (is_vec && !has_vector_unit(o))
        return "a vector operation without a unit";
    if (is_vec && rm_first != !!(o->attr & ATTR_RM_IS_DST))
        return "RM_IS_DST against the form";
    if ((o->attr & ATTR_ALIGNED) && o->mem_bytes != 0 && o->mem_bytes != 16)
        return "alignment of an odd size";
    if ((o->attr & ATTR_AVX) && (o->attr & (ATTR_SSE | ATTR_MMX)))
        return "VEX and legacy at once";
    if ((o->attr & ATTR_MMX_RM) && (o->attr & ATTR_GPR_RM))
        return "r/m is MMX and general";
    if ((o->attr & ATTR_MMX_REG) && (o->attr & ATTR_GPR_REG))
        return "reg is MMX and general";
    if ((o->attr & (ATTR_MMX_RM | ATTR_MMX_REG)) && !(o->attr & ATTR_MMX))
        return "MMX operands without the unit";
    if ((o->op == OP_X87 || o->op == OP_X87_FLAGS) != !!(o->attr & ATTR_X87) && o->op < OP_EMMS)
        return "x87 unit against the operation";
    if ((o->attr & ATTR_FORCE64) && (o->attr & ATTR_DEFAULT64))
        return "two ways of 64 bits";
    return NULL;
}

static void test_rows(void)
{
    static const unsigned modes[3] = {64, 32, 16};
    size_t count = decode_opcode_count(), without_example = 0, faults = 0;
    uint8_t used[OP_COUNT] = {0};
    ok(count > 1400, "the tables have their rows");
    ok(decode_opcode_at(count) == NULL, "and no more");
    for (size_t i = 0; i < count; i++) {
        const struct opcode *o = decode_opcode_at(i);
        const char *fault = row_fault(o);
        char place[64];
        bool any = false;
        used[o->op] = 1;
        decode_opcode_place(i, place, sizeof(place));
        if (fault) {
            printf("# %s %s: %s\n", place, o->name, fault);
            faults++;
        }
        for (unsigned m = 0; m < 3; m++) {
            uint8_t bytes[8];
            int modrm_at;
            any |= decode_opcode_example(i, mode_of(modes[m]), bytes, &modrm_at) > 0;
        }
        if (!any) {
            printf("# %s %s: no example in any mode\n", place, o->name);
            without_example++;
        }
    }
    is_int(faults, 0, "no row contradicts itself");
    is_int(without_example, 0, "each row has an example that decodes to it");
    for (unsigned op = 0; op < OP_FALL_THROUGH; op++) {
        /* The ends of ops.h's groups are numbers of no operation. */
        if (used[op] || op == OP_INT_END || op == OP_SYS_END)
            continue;
        printf("# operation %u has no row\n", op);
        faults++;
    }
    is_int(faults, 0, "each operation has a row");
}

/* --- bytes that are missing, bytes that follow --- */

static uint32_t random_state = 1;

static uint8_t next_random(void)
{
    random_state = random_state * 1664525 + 1013904223;
    return (uint8_t)(random_state >> 24);
}

/* decode_insn() sets all of it, gaps included. */
static bool same(const struct insn *a, const struct insn *b)
{
    return memcmp((const uint8_t *)a, (const uint8_t *)b, sizeof(*a)) == 0;
}

/* A prefix of an instruction asks for more; what follows does not matter. */
static bool steady(const uint8_t bytes[BYTES_MAX], const struct decode_mode *mode)
{
    struct insn insn, other;
    uint8_t copy[BYTES_MAX];
    enum decode_status status = decode_insn(&insn, bytes, BYTES_MAX, mode);
    if (status != DECODE_OK)
        return status == DECODE_LONG;
    for (size_t len = 0; len < insn.len; len++)
        if (decode_insn(&other, bytes, len, mode) != DECODE_MORE)
            return false;
    memcpy(copy, bytes, BYTES_MAX);
    for (size_t i = insn.len; i < BYTES_MAX; i++)
        copy[i] = (uint8_t)~copy[i];
    return decode_insn(&other, copy, insn.len, mode) == DECODE_OK && same(&insn, &other) &&
           decode_insn(&other, copy, BYTES_MAX, mode) == DECODE_OK && same(&insn, &other);
}

static void test_steady(void)
{
    static const unsigned modes[3] = {64, 32, 16};
    size_t bad = 0, count = decode_opcode_count();
    for (unsigned m = 0; m < 3; m++) {
        const struct decode_mode *mode = mode_of(modes[m]);
        for (size_t i = 0; i < count; i++) {
            uint8_t bytes[BYTES_MAX];
            int modrm_at;
            size_t len;
            for (size_t b = 0; b < BYTES_MAX; b++)
                bytes[b] = next_random();
            len = decode_opcode_example(i, mode, bytes, &modrm_at);
            if (!len)
                continue;
            if (modrm_at >= 0)
                bytes[modrm_at] = (uint8_t)((bytes[modrm_at] & 0x38) | (next_random() & 0xc7));
            bad += !steady(bytes, mode);
        }
        for (unsigned i = 0; i < 100000; i++) {
            uint8_t bytes[BYTES_MAX];
            for (size_t b = 0; b < BYTES_MAX; b++)
                bytes[b] = next_random();
            bad += !steady(bytes, mode);
        }
    }
    is_int(bad, 0, "fewer bytes ask for more, further ones change nothing");
}

static void test_print_cut(void)
{
    struct insn insn;
    char text[8];
    decode_hex(&insn, 64, "48 81 84 88 10 00 00 00 44 33 22 11");
    memset(text, 'x', sizeof(text));
    decode_print(&insn, 0, text, sizeof(text));
    is_str(text, "add qwo", "text is cut to its room");
    decode_print(&insn, 0, text, 0);
    is_str(text, "add qwo", "none is none");
}

int main(void)
{
    test_texts();
    test_fields();
    test_features();
    test_flags();
    test_rows();
    test_steady();
    test_print_cut();
    return tap_done();
}
