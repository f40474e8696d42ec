/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest kernel there is, Multiboot 1 and PVH: writes a byte to COM1 and ends, in the way
 * that was chosen when it was assembled:
 *
 *     STUB_EXIT_PORT     0x2a to port 0xf4 (isa-debug-exit), and a triple fault where there is none
 *     STUB_TRIPLE_FAULT  an exception without an interrupt table
 *     STUB_HANG          a halt for ever
 *     STUB_CPU_ERROR     runs into memory that is not there: an error of the engine
 */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0
#define COM1            0x3f8
#define EXIT_PORT       0xf4
#define PHYS32_ENTRY    18 /* XEN_ELFNOTE_PHYS32_ENTRY */

        .code32
        .section .text
        .globl _start
        .balign 4
        .long MULTIBOOT_MAGIC
        .long MULTIBOOT_FLAGS
        .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

_start:
        mov $COM1, %dx
        mov $'!', %al
        out %al, %dx
        mov $'\n', %al
        out %al, %dx
#if defined(STUB_HANG)
        cli
1:      hlt
        jmp 1b
#elif defined(STUB_CPU_ERROR)
        mov $0xd0000000, %eax
        jmp *%eax
#else
#if defined(STUB_EXIT_PORT)
        mov $0x2a, %al
        out %al, $EXIT_PORT
#endif
        lidt no_idt
        ud2
        .balign 8
no_idt: .word 0
        .long 0
#endif

        .section .note.Xen, "a", @note
        .balign 4
        .long 4
        .long 4
        .long PHYS32_ENTRY
        .asciz "Xen"
        .long _start

        .section .note.GNU-stack, "", @progbits
