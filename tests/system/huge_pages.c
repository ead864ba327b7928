/* Maps and uses huge pages of 2 MiB, one after the other, until that fails. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

int main(void) {
    for (int page = 1; page <= 8; page++) {
        char *mapped = mmap(0, 2 << 20, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT, -1, 0);
        if (mapped == MAP_FAILED) {
            puts(errno == ENOMEM ? "refused" : "failed");
            return 0;
        }
        *mapped = 1;
        printf("page %d\n", page);
    }
    return 0;
}
