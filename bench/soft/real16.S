/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real mode at work, as firmware and boot loaders are: a sieve, a checksum that is called for each
 * byte, and copies by words between segments. A flat Multiboot image, linked at 0x8000 and loaded at 1
 * MiB; prints "begin" and "end" on COM1, and ends by the exit port where there is one.
 */
#define MAGIC      0x1badb002
#define FLAGS      0x10000
#define LOADED     0x100000
#define LINKED     0x8000
#define LOW(label) (LOADED + (label) - _start)
#define COM1       0x3f8
#define EXIT_PORT  0xf4
#define CODE16     0x08
#define DATA16     0x10
#ifndef ROUNDS
#define ROUNDS 3000
#endif

        .text
        .code32
        .globl _start
_start:
        .long MAGIC, FLAGS, -(MAGIC + FLAGS)
        .long LOADED, LOADED, LOW(image_end), LOW(image_end), LOW(entry)

entry:
        cld
        mov $LOADED, %esi
        mov $LINKED, %edi
        mov $(image_end - _start), %ecx
        rep movsb
        lgdt gdt_pointer
        ljmp $CODE16, $leave_protected

        .code16
leave_protected:
        mov $DATA16, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %ss
        mov %cr0, %eax
        and $~1, %al
        mov %eax, %cr0
        ljmp $0, $real
real:
        xor %ax, %ax
        mov %ax, %ds
        mov %ax, %ss
        mov $0x7c00, %sp
        mov $text_begin, %si
        call print
        mov $ROUNDS, %cx
1:      push %cx
        call sieve
        call checksum
        call copies
        pop %cx
        loop 1b
        mov $text_end, %si
        call print
        mov $EXIT_PORT, %dx
        xor %al, %al
        out %al, %dx
2:      hlt
        jmp 2b

print:
        mov $COM1, %dx
1:      lodsb
        test %al, %al
        jz 2f
        out %al, %dx
        jmp 1b
2:      ret

/* The primes below 60000 in a segment of their own; how many to BX. */
sieve:
        push %ds
        mov $0x2000, %ax
        mov %ax, %ds
        xor %di, %di
1:      movb $1, (%di)
        inc %di
        cmp $60000, %di
        jb 1b
        mov $2, %si
        xor %bx, %bx
2:      cmpb $0, (%si)
        je 4f
        inc %bx
        mov %si, %ax
        mul %si
        jc 4f
        cmp $60000, %ax
        jae 4f
        mov %ax, %di
3:      movb $0, (%di)
        add %si, %di
        jc 4f
        cmp $60000, %di
        jb 3b
4:      inc %si
        cmp $60000, %si
        jb 2b
        pop %ds
        ret

/* A function a byte, with a frame of its own. */
checksum:
        push %ds
        mov $0x2000, %ax
        mov %ax, %ds
        xor %si, %si
        xor %dx, %dx
1:      mov (%si), %al
        xor %ah, %ah
        push %ax
        call step
        add $2, %sp
        inc %si
        cmp $30000, %si
        jb 1b
        pop %ds
        ret

step:
        push %bp
        mov %sp, %bp
        mov 4(%bp), %ax
        add %ax, %dx
        rol $3, %dx
        xor %si, %dx
        pop %bp
        ret

copies:
        push %ds
        push %es
        mov $0x2000, %ax
        mov %ax, %ds
        mov $0x3000, %ax
        mov %ax, %es
        xor %si, %si
        xor %di, %di
        mov $15000, %cx
1:      mov (%si), %eax
        mov %eax, %es:(%di)
        add $4, %si
        add $4, %di
        loop 1b
        pop %es
        pop %ds
        ret

text_begin:
        .asciz "begin\n"
text_end:
        .asciz "end\n"

        .balign 8
gdt:
        .quad 0
        .quad 0x00009b000000ffff
        .quad 0x000093000000ffff
gdt_pointer:
        .word . - gdt - 1
        .long gdt
image_end:
