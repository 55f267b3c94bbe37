//! From the PVH entry (32-bit protected mode, no paging) to Rust: long mode, the lowest 4 GiB mapped one to one, SSE on; and from
//! where a second processor starts (real mode). There is no interrupt table: interrupts stay off, and a fault is a triple
//! fault, which ends the machine.

core::arch::global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry

    .section .bss
    .balign 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
directories:
    .skip 4 * 4096
    .skip 64 * 1024
stack_top:
    .skip 64 * 1024
second_stack_top:

    .section .rodata
    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
gdt_pointer:
    .word 31
    .long gdt

    # Where the second processor starts: a copy of this at 0x8000.
    .code16
    .globl second_start, second_start_end
second_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + second_gdt_pointer - second_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $24, $second_entry
second_gdt_pointer:
    .word 31
    .long gdt
second_start_end:

    .section .text.entry, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    movl $stack_top, %esp
    movl $pdpt + 3, pml4
    movl $directories + 3, %eax
    movl $pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $0x83, %eax
    movl $directories, %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    xorl %esi, %esi
    jmp to_long_mode

second_entry:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $second_stack_top, %esp
    movl $1, %esi

to_long_mode:
    # PAE, OSFXSR, OSXMMEXCPT
    movl $0x620, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    # EFER.LME
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    # PG, ET, MP, PE
    movl $0x80000013, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $3f

    .code64
3:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %ebx, %edi
    xorl %ebp, %ebp
    testl %esi, %esi
    jnz 4f
    call guest_main
4:  call second_main
    cli
    hlt
    ud2

    # What the compiler calls by name; there is no C library.
    .globl memcpy, memmove, memset, memcmp, bcmp
memmove:
    movq %rdi, %rax
    subq %rsi, %rax
    cmpq %rdx, %rax
    jae memcpy
    movq %rdi, %rax
    movq %rdx, %rcx
    leaq -1(%rdi, %rdx), %rdi
    leaq -1(%rsi, %rdx), %rsi
    std
    rep movsb
    cld
    ret
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
bcmp:
memcmp:
    xorl %eax, %eax
    xorl %r8d, %r8d
5:  cmpq %rdx, %r8
    je 6f
    movzbl (%rdi, %r8), %eax
    movzbl (%rsi, %r8), %ecx
    incq %r8
    subl %ecx, %eax
    jz 5b
6:  ret
"#,
    options(att_syntax)
);
