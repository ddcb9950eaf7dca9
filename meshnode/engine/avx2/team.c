/* Threads: those of the OpenMP that torch has loaded. A second pool would wait, spinning, on the processors of the first.

Its entry is the one that gcc calls for `#pragma omp parallel`; where no such library is in the process, one thread does it all. */

#include "kernels.h"
#ifdef MESHNODE_AVX2

#include <dlfcn.h>

static void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*member)(void), (*members)(void);

typedef struct {
    Part *part;
    void *what;
} Work;

static void one(void *work) {
    const Work *w = work;
    w->part(w->what, member(), members());
}

void in_team(Part *part, void *what, unsigned threads) {
    if (threads > 1 && !parallel) {
        *(void **)&member = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
        *(void **)&members = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
        if (member && members) *(void **)&parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    }
    if (threads < 2 || !parallel) {
        part(what, 0, 1);
        return;
    }
    Work work = {part, what};
    parallel(one, &work, threads, 0);
}

#endif
