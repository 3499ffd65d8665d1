/* See neighbours.h. */
#include "neighbours.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static cpu_set_t allowed; /* as it was when first asked */

static const cpu_set_t *allowed_set(void)
{
    if (CPU_COUNT(&allowed) == 0 && sched_getaffinity(0, sizeof allowed, &allowed) < 0)
        CPU_SET(0, &allowed);
    return &allowed;
}

unsigned processors_allowed(void)
{
    return (unsigned)CPU_COUNT(allowed_set());
}

int processors_keep(unsigned count)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (count == 0 || count > processors_allowed())
        count = processors_allowed();
    for (int i = CPU_SETSIZE - 1; i >= 0 && count; i--)
        if (CPU_ISSET(i, allowed_set())) {
            CPU_SET(i, &set);
            count--;
        }
    return sched_setaffinity(0, sizeof set, &set) < 0 ? -errno : 0;
}

static _Noreturn void compute_forever(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
        _exit(1);
    for (volatile uint64_t n = 0;; n++)
        ;
}

int neighbours_start(struct neighbours *n, size_t count)
{
    pid_t parent = getpid();
    for (n->count = 0; n->count < count && n->count < sizeof n->pids / sizeof *n->pids; n->count++) {
        pid_t pid = fork();
        if (pid == 0)
            compute_forever(parent);
        if (pid < 0) {
            int code = -errno;
            neighbours_stop(n);
            return code;
        }
        n->pids[n->count] = pid;
    }
    usleep(20000); /* let the scheduler spread them */
    return 0;
}

void neighbours_stop(struct neighbours *n)
{
    for (size_t i = 0; i < n->count; i++)
        kill(n->pids[i], SIGKILL);
    for (size_t i = 0; i < n->count; i++)
        while (waitpid(n->pids[i], NULL, 0) < 0 && errno == EINTR)
            ;
    n->count = 0;
}
