/*
 * The lower bound ("floor"): the time that the kernel alone needs to create a container and to remove it.
 *
 *   floor [--cgroup2 DIR] [--cgroup1 DIR]... [--write FILE VALUE]... [--root ROOTFS SCRATCH]
 *
 * For each byte on its input it runs `busybox true` in a container, waits for its end, removes everything of it, and
 * prints the time in nanoseconds. It uses the cheapest known means: no helper process, no memory copied for the child,
 * the child is created in its v2 cgroup and joins those of v1 itself.
 *
 * With --root the container has mount and pid namespaces, an overlay over ROOTFS as its root, and /proc. Without, it is a
 * process of the host in a cgroup.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_GROUPS 16

static const char *unified, *legacy[MAX_GROUPS], *files[MAX_GROUPS], *values[MAX_GROUPS], *rootfs, *scratch;
static int legacy_count, write_count, tasks[MAX_GROUPS];
static char upper[4096], work[4096], merged[4096], options[3 * 4096];
static char stack[64 * 1024] __attribute__((aligned(16)));

static void die(const char *what, const char *of)
{
    fprintf(stderr, "floor: %s %s: %s\n", what, of, strerror(errno));
    exit(1);
}

/* Runs on `stack` in the memory of the parent, which sleeps until the exec. */
static void child(void)
{
    char *arguments[] = {"true", NULL}, *environment[] = {NULL};
    const char *program = rootfs ? "/bin/true" : "/bin/busybox";
    for (int i = 0; i < legacy_count; i++)
        if (write(tasks[i], "0", 1) != 1)
            _exit(101);
    if (rootfs) {
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
            _exit(102);
        if (mount("overlay", merged, "overlay", 0, options))
            _exit(103);
        if (chdir(merged) || mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
            _exit(104);
        if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
            _exit(105);
    }
    execve(program, arguments, environment);
    _exit(106);
}


/* clone3(2); the new process continues in child(). */
static long spawn(struct clone_args *args)
{
    long result = SYS_clone3;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call %P3\n\t"
                     "ud2\n"
                     "1:"
                     : "+a"(result)
                     : "D"(args), "S"(sizeof *args), "i"(child)
                     : "rcx", "r11", "memory");
    return result;
}

static void create_directory(const char *directory)
{
    if (mkdir(directory, 0755))
        die("cannot create", directory);
}

/* A cgroup stays busy for a short time after its last process was reaped. */
static void remove_directory(const char *directory)
{
    while (rmdir(directory))
        if (errno != EBUSY)
            die("cannot remove", directory);
}

static int open_file(const char *directory, const char *name, int flags)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s%s", directory, *name ? "/" : "", name);
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        die("cannot open", path);
    return fd;
}

static void container(void)
{
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)stack,
        .stack_size = sizeof stack,
    };
    int status, group = -1;

    if (rootfs) {
        args.flags |= CLONE_NEWNS | CLONE_NEWPID;
        create_directory(upper), create_directory(work), create_directory(merged);
    }
    if (unified) {
        create_directory(unified);
        group = open_file(unified, "", O_PATH | O_DIRECTORY);
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group;
    }
    for (int i = 0; i < legacy_count; i++) {
        create_directory(legacy[i]);
        tasks[i] = open_file(legacy[i], "tasks", O_WRONLY);
    }
    for (int i = 0; i < write_count; i++) {
        int fd = open_file(files[i], "", O_WRONLY);
        if (write(fd, values[i], strlen(values[i])) < 0)
            die("cannot write", files[i]);
        close(fd);
    }

    pid_t pid = spawn(&args);
    if (pid < 0) {
        errno = -pid;
        die("cannot clone", "");
    }
    if (waitpid(pid, &status, 0) != pid || status)
        fprintf(stderr, "floor: the container ended with status %#x\n", status), exit(1);

    if (unified)
        close(group), remove_directory(unified);
    for (int i = 0; i < legacy_count; i++)
        close(tasks[i]), remove_directory(legacy[i]);
    if (rootfs) {
        /* Files of the kernel in the work directory of a volatile overlay. */
        const char *left[] = {"/work/incompat/volatile", "/work/incompat", "/work"};
        char path[sizeof work + 64];
        snprintf(path, sizeof path, "%s/work/incompat/volatile/dirty", work);
        unlink(path);
        for (int i = 0; i < 3; i++)
            snprintf(path, sizeof path, "%s%s", work, left[i]), remove_directory(path);
        remove_directory(work), remove_directory(upper), remove_directory(merged);
    }
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc;) {
        const char *option = argv[i++];
        if (!strcmp(option, "--cgroup2") && i < argc)
            unified = argv[i++];
        else if (!strcmp(option, "--cgroup1") && i < argc && legacy_count < MAX_GROUPS)
            legacy[legacy_count++] = argv[i++];
        else if (!strcmp(option, "--write") && i + 1 < argc && write_count < MAX_GROUPS)
            files[write_count] = argv[i++], values[write_count++] = argv[i++];
        else if (!strcmp(option, "--root") && i + 1 < argc)
            rootfs = argv[i++], scratch = argv[i++];
        else
            errno = EINVAL, die("unknown option", option);
    }
    if (rootfs) {
        snprintf(upper, sizeof upper, "%s/upper", scratch);
        snprintf(work, sizeof work, "%s/work", scratch);
        snprintf(merged, sizeof merged, "%s/merged", scratch);
        snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s,volatile", rootfs, upper, work);
    }
    for (char byte; read(0, &byte, 1) == 1;) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        container();
        clock_gettime(CLOCK_MONOTONIC, &to);
        printf("%lld\n", (to.tv_sec - from.tv_sec) * 1000000000LL + (to.tv_nsec - from.tv_nsec));
        fflush(stdout);
    }
    return 0;
}
