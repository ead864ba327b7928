// Runs in containers: shows what a process is, and what system calls return.
//
//   probe status NAME...          lines of /proc/self/status
//   probe call NUMBER [ARG...]    a system call of x86-64
//   probe call32 NUMBER [ARG...]  one of i386, by its interrupt
//   probe callx32 NUMBER [ARG...] one of x32
//
// Of a call, `ok`, or the number of the error. A second program can follow after `--`.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int status(int count, char **names) {
    char line[512];
    FILE *file = fopen("/proc/self/status", "r");
    if (!file) {
        perror("/proc/self/status");
        return 1;
    }
    while (fgets(line, sizeof line, file))
        for (int i = 0; i < count; i++)
            if (!strncmp(line, names[i], strlen(names[i])) && line[strlen(names[i])] == ':')
                fputs(line, stdout);
    return 0;
}

static long call64(const long *a) {
    long result;
    register long r10 __asm__("r10") = a[4], r8 __asm__("r8") = a[5], r9 __asm__("r9") = a[6];
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(a[0]), "D"(a[1]), "S"(a[2]), "d"(a[3]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long call32(const long *a) {
    int result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"((int)a[0]), "b"((int)a[1]), "c"((int)a[2]), "d"((int)a[3]), "S"((int)a[4]), "D"((int)a[5])
                     : "r8", "r9", "r10", "r11", "memory");
    return result;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    if (!strcmp(argv[1], "status"))
        return status(argc - 2, argv + 2);
    long arguments[7] = {0};
    for (int i = 2; i < argc && i < 9; i++)
        arguments[i - 2] = (long)strtoull(argv[i], NULL, 0);
    long result;
    if (!strcmp(argv[1], "call32")) {
        result = call32(arguments);
    } else {
        if (!strcmp(argv[1], "callx32"))
            arguments[0] |= 0x40000000;
        result = call64(arguments);
    }
    if (result < 0 && result > -4096)
        printf("%ld\n", -result);
    else
        puts("ok");
    return 0;
}
