/* Included before ggml-cpu.c, whose compute threads spin at a barrier after each operation of a graph.
 *
 * Where other processes use the cores too, the thread that the others wait for may not be running:
 * they then spin for whole time slices on the cores that it needs. So a thread that has waited
 * for longer than an even share of work explains sleeps for a moment: unlike one that spins or yields,
 * it is scheduled again as soon as it wakes.
 *
 * ggml-cpu.c defines ggml_thread_cpu_relax(void) and calls ggml_thread_cpu_relax(). The macro below
 * renames the definition to la_spin_void and the calls to la_spin_.
 */
#pragma once
#include <stdint.h>
#include <time.h>

static inline void la_spin_void(void);

static inline int64_t la_spin_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void la_spin_(void) {
    enum { SPINS_PER_LOOK = 64, NEW_WAIT_NS = 20000, PATIENCE_NS = 100000, NAP_NS = 20000 };
    static _Thread_local uint32_t spins;
    static _Thread_local int64_t began, seen;
    la_spin_void();
    if (++spins % SPINS_PER_LOOK != 0) {
        return;
    }
    const int64_t now = la_spin_now();
    if (now - seen > NEW_WAIT_NS) {
        began = now;  /* it has computed in between */
    }
    seen = now;
    if (now - began > PATIENCE_NS) {
        const struct timespec nap = {0, NAP_NS};
        nanosleep(&nap, NULL);
        seen = la_spin_now();
    }
}

#define ggml_thread_cpu_relax(...) la_spin_##__VA_ARGS__()
