/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What 16-bit software relies on: real mode, unreal mode, virtual-8086 mode under a small monitor,
 * call gates and hardware task switches. Prints on COM1 what every step gives: realmode.expected has
 * that text as real KVM gives it, with the meaning of each line.
 *
 * A flat Multiboot image, linked at 0x8000 and loaded at 1 MiB: the 32-bit entry copies it down, and
 * goes to real mode with all segments 0, so that a symbol is both an offset and a linear address.
 * Real mode's stack ends at 0x7c00; segments from 0x2000 to 0x4000 are scratch. Interrupts are off
 * except where a test wants them.
 */
#define MAGIC      0x1badb002
#define FLAGS      0x10000 /* the header has addresses */
#define LOADED     0x100000
#define LINKED     0x8000
#define LOW(label) (LOADED + (label) - _start)
#define COM1       0x3f8
#define EXIT_PORT  0xf4
#define STACK16    0x7c00
#define SCRATCH    0x6000 /* linear, below the stacks */
#define HIGH_MARK  0x200000

/* Selectors. */
#define CODE32 0x08
#define DATA32 0x10
#define CODE16 0x18
#define DATA16 0x20
#define USER_CODE 0x2b
#define USER_DATA 0x33
#define TSS_MAIN 0x38
#define TSS_B 0x40
#define GATE32 0x48
#define GATE_RING0 0x50
#define GATE_TASK 0x58
#define TSS_16 0x60
#define GATE16 0x68
#define ABSENT 0x70
#define CONFORMING 0x78

        .text
        .code32
        .globl _start
_start:
        .long MAGIC, FLAGS, -(MAGIC + FLAGS)
        .long LOADED                    /* where this header is loaded */
        .long LOADED, LOW(image_end), LOW(image_end), LOW(entry)

entry:
        cld
        mov $LOADED, %esi
        mov $LINKED, %edi
        mov $(image_end - _start), %ecx
        rep movsb
        movl $0x600dda7a, HIGH_MARK
        mov $STACK16, %esp
        lgdt gdt_pointer
        ljmp $CODE16, $leave_protected

/* --- output; all registers and flags stay --- */

        .code16
putc16:                                 /* AL */
        pushf
        push %ax
        push %dx
        push %ax
        mov $(COM1 + 5), %dx
1:      in %dx, %al
        test $0x20, %al
        jz 1b
        pop %ax
        mov $COM1, %dx
        out %al, %dx
        pop %dx
        pop %ax
        popf
        ret

puts16:                                 /* the text after the call */
        pushf
        push %bp
        push %si
        push %ax
        cld
        mov %sp, %bp
        mov 8(%bp), %si
1:      mov %cs:(%si), %al
        inc %si
        test %al, %al
        jz 2f
        call putc16
        jmp 1b
2:      mov %si, 8(%bp)
        pop %ax
        pop %si
        pop %bp
        popf
        ret

digit:                                  /* the digit of AL's low half into AL */
        and $15, %al
        add $'0', %al
        cmp $'9', %al
        jbe 1f
        add $('a' - '9' - 1), %al
1:      ret

puthex16:                               /* " xxxx" of the word pushed last, which is taken away */
        pushf
        push %bp
        push %ax
        push %cx
        mov %sp, %bp
        mov $' ', %al
        call putc16
        mov $4, %cx
1:      rolw $4, 10(%bp)
        mov 10(%bp), %al
        call digit
        call putc16
        loop 1b
        pop %cx
        pop %ax
        pop %bp
        popf
        ret $2

        .macro say text:vararg
        call puts16
        .asciz \text
        .endm
        .macro hex what:vararg
        pushw \what
        call puthex16
        .endm
        .macro hexflags mask            /* of the flags as they are; AX is lost */
        pushf
        pop %ax
        and $\mask, %ax
        hex %ax
        .endm
        .macro endline
        say "\n"
        .endm
        .macro vector16 number, segment, offset
        movw $(\offset), %cs:(4 * \number)
        movw $\segment, %cs:(4 * \number + 2)
        .endm

/* --- exceptions of real mode: noted, and the test goes on behind the instruction --- */

        .macro expect code:vararg       /* " vector offset", or " 00ff" of one that does nothing */
        movw $.Lbehind\@, %cs:resume
        movw $0xff, %cs:seen_vector
        movw $.Lstart\@, %cs:seen_start
.Lstart\@:
        \code
.Lbehind\@:
        call show_seen
        .endm

show_seen:
        pushf
        hex %cs:seen_vector
        cmpb $0xff, %cs:seen_vector
        je 1f
        push %ax
        mov %cs:seen_ip, %ax
        sub %cs:seen_start, %ax
        hex %ax
        pop %ax
1:      popf
        ret

        .balign 8
stubs16:
        .set number, 0
        .rept 32
        .balign 8
        push %bp
        mov $number, %bp
        jmp note16
        .set number, number + 1
        .endr
note16:                                 /* stack: BP, IP, CS, flags */
        mov %bp, %cs:seen_vector
        mov %sp, %bp
        push %ax
        mov 2(%bp), %ax
        mov %ax, %cs:seen_ip
        mov %cs:resume, %ax
        mov %ax, 2(%bp)
        pop %ax
        pop %bp
        iret

/* --- from one mode to the other --- */

        .macro to_protected             /* 32 bits, flat segments, the same stack */
        lgdtl %cs:gdt_pointer
        lidtl %cs:idt_pointer
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        ljmpl $CODE32, $.Lprotected\@
        .code32
.Lprotected\@:
        mov $DATA32, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %fs
        mov %eax, %gs
        mov %eax, %ss
        mov $STACK16, %esp
        .endm

        .macro to_real                  /* with all segments 0 */
        ljmp $CODE16, $.Lsmall\@
        .code16
.Lsmall\@:
        mov $DATA16, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %fs
        mov %ax, %gs
        mov %ax, %ss
        mov %cr0, %eax
        and $~9, %al                    /* PE, and TS of task switches */
        mov %eax, %cr0
        ljmp $0, $.Lreal\@
.Lreal\@:
        xor %ax, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %fs
        mov %ax, %gs
        mov %ax, %ss
        mov $STACK16, %sp
        lidtl %cs:ivt_pointer
        .endm

/* ================ real mode ================ */

leave_protected:
        mov $DATA16, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %fs
        mov %ax, %gs
        mov %ax, %ss
        mov %cr0, %eax
        and $~1, %al
        mov %eax, %cr0
        ljmp $0, $real_mode
real_mode:
        xor %ax, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %fs
        mov %ax, %gs
        mov %ax, %ss
        mov $STACK16, %sp
        lidtl ivt_pointer
        mov $0xff, %al
        out %al, $0x21
        out %al, $0xa1
        /* Vectors 0 to 31. */
        xor %di, %di
        mov $stubs16, %ax
        mov $32, %cx
1:      stosw
        movw $0, (%di)
        inc %di
        inc %di
        add $8, %ax
        loop 1b

#ifdef LIMITS
/* What QEMU's TCG, and with it KVM in the testbed, does not do: limits of segments, and no trap
 * behind a load of SS. */
        say "limit: word"
        expect mov 0xffff, %ax
        say " long"
        expect mov 0xfffd, %eax
        say " byte"
        expect mov 0xffff, %al
        say " stack"
        mov $0xffff, %bp
        expect mov (%bp), %ax
        say " 32-bit offset"
        mov $0x10000, %ebx
        expect mov (%ebx), %al
        endline

        say "limit: movsw"
        mov $0x2000, %ax
        mov %ax, %es
        mov $0xffff, %si
        mov $0x1000, %di
        expect movsw
        hex %si
        hex %di
        say " rep stosw"
        mov $0xfffb, %di
        mov $8, %cx
        expect rep stosw
        hex %di
        hex %cx
        endline

        say "TF over SS:"
        vector16 1, 0, step16
        movw $0, steps
        movw $step_list, step_at
        movw $ss_start, step_base
        xor %bx, %bx
        pushf
        pop %ax
        or $1, %ah
        push %ax
        popf
ss_start:
        nop
        mov %bx, %ss
        nop
        nop
        pushf
        pop %ax
        and $~1, %ah
        push %ax
        popf
        call show_steps
        endline
        jmp finish
#else

        say "segments:"
        mov $0x600, %ax
        mov %ax, %ds
        movw $0x1234, 0x10
        mov $0x601, %ax
        mov %ax, %es
        mov %es:0, %ax
        hex %ax
        mov $0xffff, %ax
        mov %ax, %ds
        mov 0x10, %ax                   /* the image's first word, at 1 MiB */
        hex %ax
        xor %ax, %ax
        mov %ax, %ds
        mov %ax, %es
        movw $0x5678, 0xfff0
        mov $0xfff0, %bx
        mov $0xfff0, %si
        movw $0x9abc, 0xffe0
        mov (%bx, %si), %ax             /* the sum wraps at 64 KiB */
        hex %ax
        mov $0x10, %bp
        movw $0x4321, -0x20(%bp)        /* so does this, below 0 */
        hex 0xfff0
        endline

        say "unreal:"
        lgdtl gdt_pointer
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        mov $DATA32, %bx
        mov %bx, %fs
        and $~1, %al
        mov %eax, %cr0
        mov $HIGH_MARK, %ebx
        mov %fs:(%ebx), %ax
        hex %ax
        mov $0x100, %ax
        mov %ax, %fs                    /* a new base; the limit stays */
        mov %fs:-0x1000(%ebx), %eax
        shr $16, %eax
        hex %ax
        xor %ax, %ax
        mov %ax, %fs
        endline

        say "int:"
        vector16 0x40, 0, int40
        sti
        stc
        int $0x40
after_int40:
        hexflags 0x201
        cli
        vector16 0x41, 0x700, (int41 - 0x7000)
        int $0x41
        endline
        jmp after_int_tests
int40:                                  /* IP, CS and flags as pushed; IF as it is now */
        push %bp
        mov %sp, %bp
        mov 2(%bp), %ax
        sub $after_int40, %ax
        hex %ax
        hex 4(%bp)
        mov 6(%bp), %ax
        and $0x201, %ax
        hex %ax
        hexflags 0x200
        andw $~1, 6(%bp)                /* IRET brings the changed flags */
        pop %bp
        iret
int41:
        hex %cs
        call puts41
        iret
puts41: mov $'!', %al                   /* near calls are relative: they work at 700 too */
        mov $COM1, %dx
        out %al, %dx
        ret
after_int_tests:

        say "faults: int3"
        expect int3
        say " ud2"
        expect ud2
        say " div"
        xor %cx, %cx
        mov $0x1234, %ax
        expect div %cl
        mov $1, %cl
        expect div %cl
        mov $-1, %cx
        mov $0x8000, %ax
        cwd
        expect idiv %cx
        endline

        say "invalid: mov cs"
        expect .byte 0x8e, 0xc8
        say " lock"
        expect .byte 0xf0, 0x90
        say " arpl"
        expect arpl %ax, %bx
        say " str"
        expect str %ax
        say " lldt"
        expect lldt %ax
        say " lea"
        expect .byte 0x8d, 0xc0
        say " les"
        expect .byte 0xc4, 0xc0
        endline

        say "flags:"
        pushw $0x7ed5
        popf
        hexflags 0xffff
        pushw $0
        popf
        hexflags 0xffff
        pushl $0x00240002               /* ID and AC */
        popfl
        pushfl
        pop %ax
        pop %ax
        hex %ax
        pushl $2
        popfl
        pushw $0x7ed5
        pushw $0
        pushw $1f
        iret
1:      hexflags 0xffff
        pushw $2
        popf
        mov $0xd7, %ah
        sahf
        lahf
        mov %ah, %al
        hex %ax
        endline

        say "far:"
        mov %sp, %bx
        lcall $0x700, $(far1 - 0x7000)
        mov %sp, %ax
        sub %bx, %ax
        hex %ax
        lcall *far_pointer
        ljmp *far_pointer2
far1:   hex %cs
        mov %sp, %bp
        hex 2(%bp)
        lret
far2:   hex %cs
        lret
far3:   hex %cs
        ljmp $0, $far4
far4:   pushw $0x1111
        pushw $0x2222
        lcall $0x600, $(far5 - 0x6000)
        mov %sp, %ax
        sub %bx, %ax
        hex %ax
        lcalll $0, $far6
        jmp far7
far5:   hex %cs
        lret $4
far6:   mov %sp, %ax
        sub %bx, %ax
        hex %ax
        lretl
far7:   call 1f
        jmp 2f
1:      call puts_return
        ret
puts_return:
        pop %ax                         /* one level less */
        say " near"
        ret
2:      mov $1f, %ax
        call *%ax
        jmp 2f
1:      mov %sp, %ax
        sub %bx, %ax
        hex %ax
        ret
2:      endline

        say "wrap: movsb"
        mov $0x2000, %ax
        mov %ax, %ds
        mov %ax, %es
        cld
        movw $0x2211, 0xfffe
        movw $0x4433, 0x0000
        mov $0xfffe, %si
        mov $0x100, %di
        mov $4, %cx
        rep movsb
        hex 0x100
        hex 0x102
        hex %si
        hex %di
        hex %cx
        say " stosb"
        mov $0xfffd, %di
        mov $5, %cx
        mov $0x77, %al
        rep stosb
        hex 0xfffd
        hex 0x0000
        hex %di
        endline
        say "down: lodsb"
        std
        movb $0x99, 1
        mov $1, %si
        lodsb
        lodsb
        lodsb
        hex %ax
        hex %si
        say " movsw"
        movw $0xbeef, 0x0
        movw $0xcafe, 0xfffe
        mov $0, %si
        mov $0x202, %di
        mov $2, %cx
        rep movsw
        hex 0x200
        hex 0x202
        hex %si
        hex %di
        cld
        endline
        say "strings: scasb"
        movl $0x04030201, 0x300
        mov $0x300, %di
        mov $9, %cx
        mov $3, %al
        repne scasb
        hex %di
        hex %cx
        hexflags 0x40
        say " cmpsb"
        movl $0x04050201, 0x310
        mov $0x300, %si
        mov $0x310, %di
        mov $9, %cx
        repe cmpsb
        hex %si
        hex %cx
        hexflags 0xd5
        say " none"
        xor %cx, %cx
        mov $0x300, %di
        cmp %cx, %cx
        repne scasb
        hex %di
        hexflags 0x40
        say " 32-bit"
        mov $0x00010300, %esi
        mov $0x0310, %edi
        mov $0x10002, %ecx
        sub $0x10000, %esi
        sub $0x10000, %ecx
        addr32 rep movsb
        hex 0x310
        hex %cx
        say " fs"
        xor %ax, %ax
        mov %ax, %fs
        mov $0x320, %di
        mov $far_pointer, %si
        mov $2, %cx
        rep movsb %fs:(%si), %es:(%di)
        mov 0x320, %ax
        cmp %fs:far_pointer, %ax
        hexflags 0x40
        xor %ax, %ax
        mov %ax, %ds
        mov %ax, %es
        endline

        .macro bcd mask, code:vararg    /* a sum over AL, CF, AF; AH is 5. Flags: the defined ones */
        xor %di, %di
        xor %bx, %bx
1:      mov $bcd_flags, %si
2:      lodsw
        test %ax, %ax
        jz 3f
        push %ax
        mov %bl, %al
        mov $5, %ah
        popf
        \code
        pushf
        pop %cx
        and $\mask, %cx
        rol $1, %di
        add %ax, %di
        xor %cx, %di
        jmp 2b
3:      inc %bl
        jnz 1b
        hex %di
        .endm
        say "bcd: daa"
        bcd 0xd5, daa
        mov $0x79, %al
        add $0x35, %al
        daa
        hexflags 0x11
        mov $0x79, %al
        add $0x35, %al
        daa
        hex %ax
        say " das"
        bcd 0xd5, das
        say " aaa"
        bcd 0x11, aaa
        say " aas"
        bcd 0x11, aas
        say " aam"
        bcd 0xc4, aam
        bcd 0xc4, aam $16
        say " aad"
        bcd 0xc4, aad
        bcd 0xc4, aad $7
        say " aam 0"
        expect aam $0
        endline

        say "into:"
        mov $0x7f, %al
        inc %al
        expect into
        xor %al, %al
        expect into
        say " bound"
        mov $5, %ax
        expect bound %ax, limits
        mov $-3, %ax
        expect bound %ax, limits
        mov $6, %ax
        expect bound %ax, limits
        mov $-4, %ax
        expect bound %ax, limits
        endline

        say "misc: pusha"
        mov %sp, %bx
        mov $0xc0c0, %cx
        pusha
        mov %sp, %bp
        mov 6(%bp), %ax                 /* SP as it was */
        sub %bx, %ax
        hex %ax
        movw $0x1111, 6(%bp)            /* which POPA leaves alone */
        movw $0xcccc, 12(%bp)
        popa
        hex %cx
        say " push sp"
        push %sp
        pop %ax
        sub %sp, %ax
        hex %ax
        say " enter"
        mov $0x6000, %bp
        movw $0xaaaa, 0x5ffe
        enter $4, $2
        mov %sp, %ax
        sub %bx, %ax
        hex %ax
        hex -2(%bp)
        mov %bp, %ax
        sub %bx, %ax
        hex %ax
        leave
        hex %bp
        say " xlat"
        mov $bcd_flags, %bx
        mov $2, %al
        xlat
        mov $0, %ah
        hex %ax
        say " salc"
        stc
        .byte 0xd6
        hex %ax
        endline
        say "more: loop"
        xor %cx, %cx
        xor %ax, %ax
1:      inc %ax
        loop 1b
        hex %ax
        mov $0x10000, %ecx
        jcxz 1f
        say "wrong"
1:      jecxz 2f
        say " jecxz"
2:      say " shifts"
        mov $0x8001, %ax
        mov $0x21, %cl
        shl %cl, %ax
        hex %ax
        mov $0x8001, %ax
        mov $17, %cl
        stc
        rcl %cl, %ax
        hex %ax
        mov $0x1234, %ax
        mov $0xabcd, %dx
        shld $4, %dx, %ax
        hex %ax
        say " lds"
        lds far_pointer, %si
        mov %ds, %ax
        hex %ax
        xor %ax, %ax
        mov %ax, %ds
        lgs far_pointer2, %si
        mov %gs, %ax
        hex %ax
        say " smsw"
        smsw %ax
        and $1, %ax
        hex %ax
        say " push"
        pushw $-2
        pop %ax
        hex %ax
        pushl $-2
        pop %ax
        pop %ax
        hex %ax
        mov $0xfffff, %eax
        mov $0x12345678, %edx
        movw $0x9999, %dx
        shr $16, %edx
        hex %dx
        endline

        say "step:"
        vector16 1, 0, step16
        vector16 0x43, 0, int43
        movw $0, steps
        movw $step_list, step_at
        movw $step_start, step_base
        mov $0x6000, %si
        mov $0x6100, %di
        mov $2, %cx
        pushf
        pop %ax
        or $1, %ah
        push %ax
        popf
step_start:
        nop
        rep movsb
        int $0x43
        nop
        jmp 1f
        nop
1:      pushf
        pop %ax
        and $~1, %ah
        push %ax
        popf
        call show_steps
        mov %dr6, %eax
        and $0x4000, %ax
        hex %ax
        xor %eax, %eax
        mov %eax, %dr6
        endline

        say "irq: one shot"
        vector16 0x20, 0, tick16
        mov $0x11, %al
        out %al, $0x20
        mov $0x20, %al
        out %al, $0x21
        mov $4, %al
        out %al, $0x21
        mov $1, %al
        out %al, $0x21
        mov $0xfe, %al
        out %al, $0x21
        movw $0, ticks
        mov $0x30, %al                  /* counter 0, mode 0 */
        out %al, $0x43
        mov $0xe8, %al
        out %al, $0x40
        mov $0x03, %al
        out %al, $0x40
1:      mov $0x0a, %al
        out %al, $0x20
        in $0x20, %al
        test $1, %al                    /* waits in the IRR while IF is 0 */
        jz 1b
        hex ticks
        sti
        cli                             /* STI's shadow: not yet */
        hex ticks
        sti
        nop
        cli
        hex ticks
        hex in_service
        mov $0x0b, %al
        out %al, $0x20
        in $0x20, %al
        and $1, %ax
        hex %ax
        say " rate"
        movw $0, ticks
        mov $0x34, %al                  /* mode 2 */
        out %al, $0x43
        mov $0xa9, %al
        out %al, $0x40
        mov $0x04, %al
        out %al, $0x40
1:      sti
        hlt
        cli
        cmpw $3, ticks
        jb 1b
        say " 3 ticks"
        mov $0xff, %al
        out %al, $0x21
        endline

        say "a20: port 92"
        in $0x92, %al
        mov %al, %cl
        and $0xfc, %al
        out %al, $0x92
        in $0x92, %al
        and $2, %ax
        hex %ax
        mov %cl, %al
        or $2, %al
        and $0xfe, %al
        out %al, $0x92
        in $0x92, %al
        and $2, %ax
        hex %ax
        endline
        jmp protected_tests
#endif

int43:  nop                             /* not stepped through: INT clears TF */
        iret
tick16: push %ax
        incw %cs:ticks
        mov $0x0b, %al
        out %al, $0x20
        in $0x20, %al
        mov $0, %ah
        mov %ax, %cs:in_service
        mov $0x20, %al
        out %al, $0x20
        pop %ax
        iret

step16:                                 /* notes where it was, relative to step_base */
        push %bp
        mov %sp, %bp
        push %ax
        push %bx
        incw %cs:steps
        mov 2(%bp), %ax
        sub %cs:step_base, %ax
        mov %cs:step_at, %bx
        mov %ax, %cs:(%bx)
        addw $2, %cs:step_at
        pop %bx
        pop %ax
        pop %bp
        iret

show_steps:
        hex steps
        say ":"
        mov $step_list, %bx
1:      cmp step_at, %bx
        jae 2f
        hex (%bx)
        inc %bx
        inc %bx
        jmp 1b
2:      ret

finish:
        say "end\n"
        mov $0x2a, %al
        out %al, $EXIT_PORT
        cli
1:      hlt
        jmp 1b

#ifndef LIMITS
/* ================ protected mode ================ */

        .code32
putc32: push %eax
        push %edx
        push %eax
        mov $(COM1 + 5), %edx
1:      in %dx, %al
        test $0x20, %al
        jz 1b
        pop %eax
        mov $COM1, %edx
        out %al, %dx
        pop %edx
        pop %eax
        ret

puts32: pushf
        push %esi
        push %eax
        mov 12(%esp), %esi
1:      mov (%esi), %al
        inc %esi
        test %al, %al
        jz 2f
        call putc32
        jmp 1b
2:      mov %esi, 12(%esp)
        pop %eax
        pop %esi
        popf
        ret

puthex32:                               /* " xxxx" of the low word of what was pushed last */
        pushf
        push %eax
        push %ecx
        mov $' ', %al
        call putc32
        mov $4, %ecx
1:      rolw $4, 16(%esp)
        mov 16(%esp), %al
        and $15, %al
        add $'0', %al
        cmp $'9', %al
        jbe 2f
        add $('a' - '9' - 1), %al
2:      call putc32
        loop 1b
        pop %ecx
        pop %eax
        popf
        ret $4

        .macro say32 text:vararg
        call puts32
        .asciz \text
        .endm
        .macro hex32 what:vararg
        pushl \what
        call puthex32
        .endm
        .macro expect32 code:vararg     /* " vector offset error", or " 00ff" */
        movl $.Lbehind\@, resume32
        movl $0xff, seen_vector32
        movl $.Lstart\@, seen_start32
.Lstart\@:
        \code
.Lbehind\@:
        call show_seen32
        .endm

show_seen32:
        hex32 seen_vector32
        cmpl $0xff, seen_vector32
        je 1f
        mov seen_eip, %eax
        sub seen_start32, %eax
        hex32 %eax
        hex32 seen_error
1:      ret

        .balign 16
stubs32:
        .set number, 0
        .rept 32
        .balign 16
        .if number != 8 && (number < 10 || number > 14) && number != 17
        push $0
        .endif
        push $number
        jmp note32
        .set number, number + 1
        .endr

/* The frame of an exception, as note32 sees it. */
#define F_EAX 32
#define F_VECTOR 36
#define F_ERROR 40
#define F_EIP 44
#define F_CS 48
#define F_EFLAGS 52
#define F_ESP 56
#define F_SS 60

note32: pushal
        push %ds
        mov $DATA32, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %esp, %ebp
        mov F_VECTOR(%ebp), %eax
        testl $0x20000, F_EFLAGS(%ebp)
        jnz from_v86
        mov %eax, seen_vector32
        mov F_ERROR(%ebp), %eax
        mov %eax, seen_error
        mov F_EIP(%ebp), %eax
        mov %eax, seen_eip
        mov resume32, %eax
        mov %eax, F_EIP(%ebp)
return32:
        pop %ds
        popal
        add $8, %esp
        iret

/* --- the monitor of virtual-8086 mode: a letter for each thing that it does for its guest --- */

        .macro monitor letter, length
        mov $\letter, %al
        call putc32
        addl $\length, F_EIP(%ebp)
        .endm
        .macro guest_stack change       /* EBX: the linear address of the guest's stack */
        addw $\change, F_ESP(%ebp)
        movzwl F_SS(%ebp), %ebx
        shl $4, %ebx
        movzwl F_ESP(%ebp), %ecx
        add %ecx, %ebx
        .endm

from_v86:
        cmp $13, %eax
        jne v86_note
        movzwl F_CS(%ebp), %edi
        shl $4, %edi
        add F_EIP(%ebp), %edi
        mov (%edi), %al
        cmp $0xcd, %al
        je v86_int
        cmp $0xfa, %al
        je v86_cli
        cmp $0xfb, %al
        je v86_sti
        cmp $0x9c, %al
        je v86_pushf
        cmp $0x9d, %al
        je v86_popf
        cmp $0xcf, %al
        je v86_iret
        cmp $0xf4, %al
        je v86_hlt
        cmp $0xe6, %al
        je v86_out
        cmp $0xee, %al
        je v86_out_dx
        mov $13, %eax
v86_note:                               /* as the handlers of real mode do */
        mov %ax, seen_vector
        mov F_EIP(%ebp), %eax
        mov %ax, seen_ip
        movzwl resume, %eax
        mov %eax, F_EIP(%ebp)
        jmp return32
v86_cli:
        monitor 'c', 1
        jmp return32
v86_sti:
        monitor 's', 1
        jmp return32
v86_out:
        monitor 'o', 2
        jmp return32
v86_out_dx:
        monitor 'O', 1
        jmp return32
v86_pushf:
        monitor 'f', 1
        guest_stack -2
        mov F_EFLAGS(%ebp), %eax
        mov %ax, (%ebx)
        jmp return32
v86_popf:
        monitor 'F', 1
        guest_stack 0
        movzwl (%ebx), %eax
        guest_stack 2
v86_set_flags:
        and $0xcd5, %eax
        andl $~0xcd5, F_EFLAGS(%ebp)
        or %eax, F_EFLAGS(%ebp)
        jmp return32
v86_int:
        monitor 'i', 2
        guest_stack -6
        mov F_EIP(%ebp), %eax
        mov %ax, (%ebx)
        mov F_CS(%ebp), %eax
        mov %ax, 2(%ebx)
        mov F_EFLAGS(%ebp), %eax
        mov %ax, 4(%ebx)
        movzbl 1(%edi), %edi
        movzwl (, %edi, 4), %eax
        mov %eax, F_EIP(%ebp)
        movzwl 2(, %edi, 4), %eax
        mov %eax, F_CS(%ebp)
        jmp return32
v86_iret:
        monitor 'r', 0
        guest_stack 0
        movzwl (%ebx), %eax
        mov %eax, F_EIP(%ebp)
        movzwl 2(%ebx), %eax
        mov %eax, F_CS(%ebp)
        movzwl 4(%ebx), %eax
        addw $6, F_ESP(%ebp)
        jmp v86_set_flags
v86_hlt:
        mov $STACK16, %esp
        jmp *v86_end

direct40:                               /* INT 40 without the monitor, of a guest with IOPL 3 */
        push %eax
        push %ds
        mov $DATA32, %eax
        mov %eax, %ds
        mov $'D', %al
        call putc32
        pop %ds
        pop %eax
        iret

        .macro enter_v86 eflags, start, end
        movl $\end, v86_end
        pushl $0                        /* GS, FS, DS, ES */
        pushl $0
        pushl $0
        pushl $0
        pushl $0                        /* SS:ESP */
        pushl $0x6800
        pushl $\eflags
        pushl $0
        pushl $\start
        iret
        .endm

/* --- the tests --- */

        .code16
protected_tests:
        to_protected
        /* The interrupt table. */
        mov $idt, %edi
        mov $stubs32, %eax
        mov $32, %ecx
1:      mov %ax, (%edi)
        movw $CODE32, 2(%edi)
        movw $0x8e00, 4(%edi)
        movw $0, 6(%edi)
        add $8, %edi
        add $16, %eax
        loop 1b
        movl $(CODE32 << 16), %eax
        mov $ring0_back, %ax
        mov %eax, idt + 0x30 * 8
        movl $0xee00, idt + 0x30 * 8 + 4
        mov $direct40, %ax
        mov %eax, idt + 0x40 * 8
        movl $0xee00, idt + 0x40 * 8 + 4
        mov %eax, idt + 0x41 * 8
        movl $0x8e00, idt + 0x41 * 8 + 4
        movl $(TSS_B << 16), idt + 0x42 * 8
        movl $0xe500, idt + 0x42 * 8 + 4
        mov $TSS_MAIN, %eax
        ltr %ax

        say32 "protected: tr"
        str %eax
        hex32 %eax
        mov gdt + TSS_MAIN + 4, %eax    /* busy */
        shr $8, %eax
        hex32 %eax
        say32 " ud2"
        expect32 ud2
        say32 " gp"
        mov $0x1000, %eax
        expect32 mov %eax, %ds
        say32 " ltr"
        mov $TSS_MAIN, %eax
        expect32 ltr %ax
        say32 " np"
        mov $ABSENT, %eax
        expect32 mov %eax, %fs
        say32 " gate"
        expect32 int $0x50
        say32 "\n"

        say32 "ring 3:"
        pushl $USER_DATA
        pushl $0x7000
        pushl $0x3002                   /* IOPL 3: it may print */
        pushl $USER_CODE
        pushl $ring3
        iret
ring3:
        mov $USER_DATA, %eax
        mov %eax, %ds
        mov %eax, %es
        hex32 %cs
        hex32 %ss
        say32 " hlt"
        expect32 hlt
        say32 " ss"
        mov $DATA32, %eax
        expect32 mov %eax, %ss
        say32 " cs"
        expect32 ljmp $CODE32, $0
        say32 " int 41"
        expect32 int $0x41
        say32 " cr0"
        expect32 mov %cr0, %eax
        say32 "\n"
        say32 "selectors: lar"
        mov $USER_CODE, %eax
        lar %eax, %ebx
        shr $8, %ebx
        and $0xf0fe, %ebx               /* undefined bits; and "accessed", which TCG leaves */
        hex32 %ebx
        mov $CODE32, %eax               /* not for ring 3 */
        lar %eax, %ebx
        pushf
        pop %ebx
        and $0x40, %ebx
        hex32 %ebx
        say32 " lsl"
        mov $TSS_MAIN, %eax
        or $3, %eax
        lsl %eax, %ebx
        pushf
        pop %ebx
        and $0x40, %ebx
        hex32 %ebx
        mov $USER_DATA, %eax
        lsl %eax, %ebx
        hex32 %ebx
        say32 " verr"
        mov $USER_CODE, %eax
        verr %ax
        pushf
        pop %ebx
        and $0x40, %ebx
        hex32 %ebx
        say32 " verw"
        verw %ax
        pushf
        pop %ebx
        and $0x40, %ebx
        hex32 %ebx
        say32 " arpl"
        mov $0x10, %eax
        mov $0x23, %ebx
        arpl %bx, %ax
        hex32 %eax
        say32 " conforming"
        lcall $CONFORMING, $1f
        jmp 2f
1:      hex32 %cs
        lret
2:      say32 "\n"

        say32 "call gate:"
        pushl $0x1111
        pushl $0x2222
        mov %esp, user_esp
        lcall $(GATE32 | 3), $0xdead    /* the offset means nothing */
        mov %esp, %eax
        sub user_esp, %eax
        hex32 %eax
        hex32 %cs
        hex32 %ss
        say32 " privileged"
        expect32 lcall $(GATE_RING0 | 3), $0
        say32 " 16-bit"
        mov $0x4444, %ax
        push %ax
        mov $0x3333, %ax
        push %ax
        mov %esp, user_esp
        lcallw $(GATE16 | 3), $0
        mov %esp, %eax
        sub user_esp, %eax
        hex32 %eax
        say32 "\n"
        int $0x30

gate_target:                            /* parameters came from the other stack */
        mov $DATA32, %eax
        mov %eax, %ds
        hex32 %cs
        hex32 %ss
        mov 4(%esp), %eax
        hex32 %eax
        mov 8(%esp), %eax
        hex32 %eax
        mov 12(%esp), %eax
        hex32 %eax
        mov 16(%esp), %eax
        sub user_esp, %eax
        hex32 %eax
        mov 20(%esp), %eax
        hex32 %eax
        mov $USER_DATA, %eax
        mov %eax, %ds
        lret $8
gate16_target:
        mov $DATA32, %eax
        mov %eax, %ds
        movzwl 2(%esp), %eax
        hex32 %eax
        movzwl 4(%esp), %eax
        hex32 %eax
        movzwl 6(%esp), %eax
        hex32 %eax
        movzwl 10(%esp), %eax
        hex32 %eax
        mov $USER_DATA, %eax
        mov %eax, %ds
        lretw $4

ring0_back:
        mov $DATA32, %eax
        mov %eax, %ds
        mov %eax, %es
        mov $STACK16, %esp
        pushl $2
        popf
        say32 "tasks: jmp"
        movl $0x12345678, %edi
        ljmp $TSS_B, $0
        call show_task
        hex32 %edi                      /* registers came back */
        clts
        say32 " call"
        lcall $TSS_B, $0
        call show_task
        clts
        say32 " int"
        int $0x42
        call show_task
        clts
        say32 " gate"
        lcall $GATE_TASK, $0
        call show_task
        clts
        say32 "\n"
        say32 "tasks: busy"
        expect32 ljmp $TSS_MAIN, $0
        say32 " 16-bit"
        lcall $TSS_16, $0
        call show_task
        clts
        mov tss_16 + 14, %ax            /* its IP, saved */
        sub $task_16, %ax
        hex32 %eax
        say32 "\n"
        jmp v86_tests

show_task:                              /* TR, its descriptor's type, NT, TS */
        str %eax
        hex32 %eax
        mov gdt + 4(%eax), %eax
        shr $8, %eax
        and $0xff, %eax
        hex32 %eax
        pushf
        pop %eax
        and $0x4000, %eax
        hex32 %eax
        mov %cr0, %eax
        and $8, %eax
        hex32 %eax
        ret

task_b: say32 " ("
        call show_task
        movzwl tss_b, %eax              /* the link back */
        hex32 %eax
        hex32 %ebx                      /* out of the TSS */
        mov gdt + TSS_MAIN + 4, %eax
        shr $8, %eax
        and $0xff, %eax
        hex32 %eax
        say32 ")"
        clts
        ljmp $TSS_MAIN, $0
1:      say32 " ("
        call show_task
        movzwl tss_b, %eax
        hex32 %eax
        say32 ")"
        iret
        jmp 1b

        .code16
task_16:
        say " ("
        str %ax
        hex %ax
        hex %bx
        hex tss_16
        hexflags 0x4000
        say ")"
        iret

        .code32
v86_tests:
        say32 "v86, IOPL 0: "
        enter_v86 0x20202, v86_guest, 1f
1:      mov $DATA32, %eax
        mov %eax, %ds
        mov %eax, %es
        hex32 v86_result
        hex32 v86_result + 2
        hex32 v86_result + 4
        say32 "\n"
        say32 "v86, IOPL 3: "
        enter_v86 0x23202, v86_guest3, 1f
1:      mov $DATA32, %eax
        mov %eax, %ds
        mov %eax, %es
        to_real
        say "real again:"
        smsw %ax
        and $1, %ax
        hex %ax
        expect ud2
        endline
        jmp finish

        .code16
v86_guest:                              /* what it does is seen by the monitor's letters */
        mov $0x5f0, %ax
        mov %ax, %ds
        movw $0x7654, 0x100             /* segments as in real mode: linear 6000 */
        xor %ax, %ax
        mov %ax, %ds
        mov 0x6000, %ax
        mov %ax, v86_result
        cli
        sti
        stc
        pushf
        pop %ax
        and $0x3001, %ax                /* CF; IOPL 0 */
        mov %ax, v86_result + 2
        push %ax
        popf
        vector16 0x44, 0, v86_int44
        int $0x44
        mov %ax, v86_result + 4
        out %al, $0x80
        out %al, $0x81                  /* let through by the bitmap */
        mov $0x402, %dx                 /* behind its end */
        out %al, %dx
        hlt
v86_int44:
        mov $0x4444, %ax
        iret
v86_guest3:                             /* may do all that is not for ring 0 */
        cli
        sti
        pushf
        pop %ax
        and $0x3200, %ax
        hex %ax
        int $0x40                       /* through the IDT, no monitor */
        say " int 41"
        expect int $0x41
        say " ud2"
        expect ud2
        say " cr0"
        expect mov %cr0, %eax
        say " arpl"
        expect arpl %ax, %bx
        say " int3"
        expect int3
        say " div"
        xor %cx, %cx
        expect div %cx
        say " out "
        out %al, $0x80
        endline
        hlt

        .balign 8
tss_main:
        .long 0, 0x7800, DATA32         /* link, ESP0, SS0 */
        .skip 0x66 - 12
        .word tss_bitmap - tss_main
tss_bitmap:                             /* ports up to 3ff; 80 is not for the guest */
        .skip 0x10
        .byte 1
        .skip 0x80 - 0x11
        .byte 0xff
tss_main_end:
        .balign 8
tss_b:  .long 0, 0, 0, 0, 0, 0, 0
        .long 0                         /* CR3 */
        .long task_b, 2                 /* EIP, EFLAGS */
        .long 0, 0, 0, 0xbbbb, 0x7400, 0, 0, 0
        .long DATA32, CODE32, DATA32, DATA32, 0, 0
        .long 0                         /* LDT */
        .word 0, 104
tss_16: .word 0, 0x7400, DATA16, 0, 0, 0, 0
        .word task_16, 2
        .word 0, 0, 0, 0xb16, 0x7400, 0, 0, 0
        .word DATA16, CODE16, DATA16, DATA16
        .word 0
        .balign 4
resume32: .long 0
seen_vector32: .long 0
seen_start32: .long 0
seen_eip: .long 0
seen_error: .long 0
user_esp: .long 0
v86_end: .long 0
v86_result: .long 0, 0
        .code16
#endif

/* --- data --- */

        .balign 8
gdt:    .quad 0
        .quad 0x00cf9a000000ffff        /* CODE32 */
        .quad 0x00cf92000000ffff        /* DATA32 */
        .quad 0x00009a000000ffff        /* CODE16 */
        .quad 0x000092000000ffff        /* DATA16 */
        .quad 0x00cffa000000ffff        /* USER_CODE */
        .quad 0x00cff2000000ffff        /* USER_DATA */
#ifndef LIMITS
        .word tss_main_end - tss_main - 1, tss_main, 0x8900, 0
        .word 103, tss_b, 0x8900, 0
        .word gate_target, CODE32, 0xec02, 0
        .word gate_target, CODE32, 0x8c00, 0
        .word 0, TSS_B, 0x8500, 0
        .word 43, tss_16, 0x8100, 0
        .word gate16_target, CODE32, 0xe402, 0
        .quad 0x00cf12000000ffff        /* ABSENT */
        .quad 0x00cf9e000000ffff        /* CONFORMING */
#endif
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .long gdt
idt_pointer:
        .word 0x43 * 8 - 1
        .long idt
ivt_pointer:
        .word 0x3ff
        .long 0
        .balign 4
resume: .word 0
seen_vector: .word 0
seen_start: .word 0
seen_ip: .word 0
ticks:  .word 0
in_service: .word 0
steps:  .word 0
step_base: .word 0
step_at: .word 0
step_list: .skip 64
#ifndef LIMITS
far_pointer: .word far2 - 0x7800, 0x780
far_pointer2: .word far3 - 0x4000, 0x400
limits: .word -3, 5
bcd_flags: .word 2, 3, 0x12, 0x13, 0
#endif
        .balign 8
idt:    .skip 0x43 * 8
        .balign 16
image_end:
