/*
 * Attributes of a process that the kernel passes on to its children and over an exec.
 *
 *   inheritance set PROGRAM [ARGUMENT]...   gives each an odd value, and executes the program
 *   inheritance report                      prints them, a line each: a name and a value
 *
 * What cannot be set here is reported by `set` on standard error, and left as it is.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const struct {
    const char *name;
    int resource;
} limits[] = {
    {"CPU", RLIMIT_CPU},         {"FSIZE", RLIMIT_FSIZE},   {"DATA", RLIMIT_DATA},
    {"STACK", RLIMIT_STACK},     {"CORE", RLIMIT_CORE},     {"RSS", RLIMIT_RSS},
    {"NPROC", RLIMIT_NPROC},     {"NOFILE", RLIMIT_NOFILE}, {"MEMLOCK", RLIMIT_MEMLOCK},
    {"AS", RLIMIT_AS},           {"LOCKS", RLIMIT_LOCKS},   {"SIGPENDING", RLIMIT_SIGPENDING},
    {"MSGQUEUE", RLIMIT_MSGQUEUE}, {"NICE", RLIMIT_NICE},   {"RTPRIO", RLIMIT_RTPRIO},
    {"RTTIME", RLIMIT_RTTIME},
};

static void attempt(const char *what, long result)
{
    if (result < 0)
        fprintf(stderr, "cannot set %s: %s\n", what, strerror(errno));
}

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    attempt(path, fd < 0 ? -1 : write(fd, text, strlen(text)));
    close(fd);
}

static void set(void)
{
    for (size_t i = 0; i < COUNT(limits); i++) {
        struct rlimit limit;
        getrlimit(limits[i].resource, &limit);
        /* Only the soft limit, so that no privilege is needed to set it back. */
        rlim_t odd = limits[i].resource == RLIMIT_NOFILE ? 777
                   : limits[i].resource == RLIMIT_CORE   ? 4096
                                                         : limit.rlim_max;
        if (limit.rlim_max == RLIM_INFINITY && limits[i].resource != RLIMIT_CORE)
            odd = (rlim_t)1 << 40;
        limit.rlim_cur = odd < limit.rlim_max ? odd : limit.rlim_max;
        attempt(limits[i].name, setrlimit(limits[i].resource, &limit));
    }
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    attempt("affinity", sched_setaffinity(0, sizeof one, &one));
    attempt("ioprio", syscall(SYS_ioprio_set, 1, 0, (2 << 13) | 7));
    attempt("nice", setpriority(PRIO_PROCESS, 0, 5));
    struct sched_param parameter = {0};
    attempt("policy", sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &parameter) < 0
                          ? -1
                          : sched_setscheduler(0, SCHED_BATCH, &parameter));
    attempt("timerslack", prctl(PR_SET_TIMERSLACK, 1234567, 0, 0, 0));
    attempt("thp", prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    attempt("ksm", prctl(67, 1, 0, 0, 0));
    attempt("mce", prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    attempt("io_flusher", prctl(57, 1, 0, 0, 0));
    attempt("speculation", prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0));
    attempt("subreaper", prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    attempt("keepcaps", prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    attempt("personality", personality(ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT));
    unsigned long node = 1;
    attempt("mempolicy", syscall(SYS_set_mempolicy, 1 /* MPOL_PREFERRED */, &node, 8));
    put("/proc/self/coredump_filter", "0x7f");
    put("/proc/self/oom_score_adj", "321");
    umask(0077);
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGCHLD);
    sigdelset(&all, SIGTERM);
    sigdelset(&all, SIGINT);
    sigprocmask(SIG_SETMASK, &all, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    /* A capability in the inheritable and ambient sets: CAP_NET_RAW. */
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522, 0};
    uint32_t data[6];
    if (syscall(SYS_capget, &header, data) == 0) {
        data[2] |= 1 << 13;
        attempt("inheritable", syscall(SYS_capset, &header, data));
        attempt("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 13, 0, 0));
    }
    attempt("keyring", syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, "cofferdam-agent"));
    attempt("key", syscall(SYS_add_key, "user", "cofferdam-secret", "secret", 6, -3 /* SESSION */));
    setenv("COFFERDAM_ODD", "leaked", 1);
    /* Descriptors that are not closed by an exec. */
    attempt("descriptor", dup2(open("/etc/passwd", O_RDONLY), 99));
    attempt("directory", chdir("/var"));
}

static void line_of(const char *file, const char *prefix)
{
    char text[4096];
    FILE *stream = fopen(file, "r");
    while (stream && fgets(text, sizeof text, stream))
        if (!strncmp(text, prefix, strlen(prefix)))
            for (char *c = text; *c; c++)
                putchar(*c == '\t' ? ' ' : *c);
    if (stream)
        fclose(stream);
}

static void whole(const char *name, const char *file)
{
    char text[4096] = "?";
    FILE *stream = fopen(file, "r");
    if (stream && !fgets(text, sizeof text, stream))
        strcpy(text, "empty");
    text[strcspn(text, "\n")] = 0;
    printf("%s %s\n", name, text);
    if (stream)
        fclose(stream);
}

static void report(void)
{
    for (size_t i = 0; i < COUNT(limits); i++) {
        struct rlimit limit;
        getrlimit(limits[i].resource, &limit);
        printf("limit.%s %lld %lld\n", limits[i].name, (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    printf("cpus %d\n", CPU_COUNT(&cpus));
    printf("ioprio %ld\n", syscall(SYS_ioprio_get, 1, 0));
    printf("nice %d\n", getpriority(PRIO_PROCESS, 0));
    printf("policy %d\n", sched_getscheduler(0));
    printf("timerslack %d\n", prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
    printf("thp_disable %d\n", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    printf("ksm %d\n", prctl(68, 0, 0, 0, 0));
    printf("mce %d\n", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
    printf("io_flusher %d\n", prctl(58, 0, 0, 0, 0));
    printf("speculation %d\n", prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0));
    int subreaper = -1;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0);
    printf("subreaper %d\n", subreaper);
    printf("dumpable %d\n", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
    printf("no_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    printf("securebits %d\n", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
    printf("personality %#x\n", personality(0xffffffff));
    int mode = -1;
    syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0);
    printf("mempolicy %d\n", mode);
    whole("coredump_filter", "/proc/self/coredump_filter");
    whole("oom_score_adj", "/proc/self/oom_score_adj");
    mode_t mask = umask(0);
    printf("umask %04o\n", mask);
    for (const char **name = (const char *[]){"SigBlk:", "SigIgn:", "CapInh:", "CapAmb:", "Seccomp:", NULL}; *name; name++)
        line_of("/proc/self/status", *name);
    char description[256] = "";
    long key = syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3, 0);
    syscall(SYS_keyctl, 6 /* DESCRIBE */, key, description, sizeof description);
    printf("keyring %s\n", strrchr(description, ';') ? strrchr(description, ';') + 1 : "?");
    printf("secret %s\n", syscall(SYS_keyctl, 10 /* SEARCH */, -3, "user", "cofferdam-secret", 0) < 0 ? "hidden" : "found");
    printf("environment %s\n", getenv("COFFERDAM_ODD") ?: "clean");
    for (int fd = 0; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            printf("descriptor %d\n", fd);
    printf("leader %d\n", getsid(0) == getpid());
    printf("terminal %d\n", open("/dev/tty", O_RDWR) >= 0);
    char directory[4096];
    printf("directory %s\n", getcwd(directory, sizeof directory) ?: "?");
}

int main(int count, char **arguments)
{
    if (count > 2 && !strcmp(arguments[1], "set")) {
        set();
        execv(arguments[2], arguments + 2);
        return 127;
    }
    report();
    return 0;
}
