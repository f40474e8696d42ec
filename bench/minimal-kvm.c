/* SPDX-License-Identifier: Apache-2.0 */
/*
 * minimal-kvm FILE: about the least that runs a Multiboot kernel under KVM with the in-kernel
 * interrupt controllers, and prints what it writes to COM1. What a VMM cannot be faster than.
 */
#include <elf.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_BYTES (256UL << 20)
#define COM1      0x3f8
#define MAGIC     0x2badb002 /* what Multiboot 1 promises in EAX */

static void check(int ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    exit(1);
}

/* A 32-bit ELF file, its segments to where they want to be; the entry point. */
static uint32_t load(const char *path, uint8_t *ram)
{
    int fd = open(path, O_RDONLY);
    Elf32_Ehdr header;
    check(fd >= 0 && read(fd, &header, sizeof(header)) == sizeof(header), path);
    for (unsigned i = 0; i < header.e_phnum; i++) {
        Elf32_Phdr segment;
        check(pread(fd, &segment, sizeof(segment), header.e_phoff + i * sizeof(segment)) ==
                  sizeof(segment),
              "program header");
        if (segment.p_type == PT_LOAD)
            check((uint64_t)segment.p_paddr + segment.p_filesz <= RAM_BYTES &&
                      pread(fd, ram + segment.p_paddr, segment.p_filesz, segment.p_offset) ==
                          (ssize_t)segment.p_filesz,
                  "segment");
    }
    close(fd);
    return header.e_entry;
}

int main(int argc, char **argv)
{
    check(argc == 2, "usage: minimal-kvm FILE");
    int kvm = open("/dev/kvm", O_RDWR);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    check(vm >= 0, "KVM_CREATE_VM");
    check(ioctl(vm, KVM_SET_TSS_ADDR, 0xfeffd000) == 0, "KVM_SET_TSS_ADDR");
    check(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
    uint8_t *ram =
        mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(ram != MAP_FAILED, "mmap");
    struct kvm_userspace_memory_region region = {.memory_size = RAM_BYTES,
                                                 .userspace_addr = (uintptr_t)ram};
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    check(cpu >= 0, "KVM_CREATE_VCPU");
    struct kvm_run *run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
                               MAP_SHARED, cpu, 0);
    check(run != MAP_FAILED, "mmap of a vCPU");
    struct kvm_sregs s;
    check(ioctl(cpu, KVM_GET_SREGS, &s) == 0, "KVM_GET_SREGS");
    s.cs = (struct kvm_segment){
        .limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};
    s.ds = s.es = s.fs = s.gs = s.ss = (struct kvm_segment){
        .limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    s.cr0 |= 1;
    check(ioctl(cpu, KVM_SET_SREGS, &s) == 0, "KVM_SET_SREGS");
    struct kvm_regs r = {.rip = load(argv[1], ram), .rax = MAGIC, .rflags = 2};
    check(ioctl(cpu, KVM_SET_REGS, &r) == 0, "KVM_SET_REGS");
    while (ioctl(cpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO) {
        if (run->io.port == COM1 && run->io.direction == KVM_EXIT_IO_OUT)
            check(write(1, (char *)run + run->io.data_offset, run->io.size) > 0, "write");
    }
    return 0;
}
