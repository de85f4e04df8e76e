// One block of CUDA threads, each a fiber: who runs, who waits for whom, and what is refused.
//
// The blocks of a grid run one after another. Within a block a thread runs until it must wait: at
// __syncthreads for the whole block, in a shuffle or __syncwarp for the lanes of its mask. A kernel
// is right only when the order in which threads run changes nothing, so there are three orders.
#pragma once
#include <cstdint>
#include <cstdio>
#include "fibers.h"

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

namespace emulator {

constexpr unsigned MOST_THREADS = 1024, LANES = 32;

// AHEAD: a warp chosen at random runs as far as it can before any other, so that a missing barrier
// meets the largest distance between warps.
enum Order { FORWARD, REVERSE, AHEAD };
enum State { RUNNABLE, AT_BARRIER, IN_WARP, FINISHED };

struct Place {
    const char* file;
    int line;
};

struct Thread {
    Fiber fiber;
    uint3 index;                     // threadIdx
    unsigned number, lane, warp;
    State state;
    Place place;                     // where it waits
    void* exchange;                  // what it gives and gets in a shuffle
    int copies;                      // on their way to shared memory, not waited for
};

// Lanes of one warp that wait for each other; a warp has several when its masks do not overlap.
struct Meeting {
    unsigned mask, arrived;
    Place place;
};

static Thread threads[MOST_THREADS];
static Meeting meetings[MOST_THREADS / LANES][LANES];
static Fiber scheduler;
static Thread* now = nullptr;        // the thread that runs
static dim3 grid, block;
static uint3 block_index;
static unsigned count;               // threads of the block
static int order;
static uint64_t random_state;
static const char* kernel_name;
static void (*body)();               // calls the kernel with its arguments
static char error[512];

// What the thread sanitizer is told: a barrier orders all that was before it. Two keys by turns, or
// a thread that wakes late would also learn what others did after the barrier.
static char started, ended, at_barrier[2], in_warp[MOST_THREADS / LANES][2];
static unsigned barriers, warp_barriers[MOST_THREADS / LANES];

UNWATCHED static unsigned random_below(unsigned n) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (random_state >> 33) % n;
}

// The first failure is the one that is told.
UNWATCHED static void fail(const char* what, Place place) {
    if (error[0]) return;
    const uint3 none = {0, 0, 0}, t = now ? now->index : none;
    snprintf(error, sizeof error, "%s: %s:%d: %s; block (%u,%u,%u), thread (%u,%u,%u)", kernel_name,
             place.file, place.line, what, block_index.x, block_index.y, block_index.z, t.x, t.y,
             t.z);
}

UNWATCHED static void wait(State state, Place place) {
    now->state = state;
    now->place = place;
    hand_over(now->fiber, scheduler);
}

UNWATCHED static void sync_block(Place place) {
    void* key = &at_barrier[barriers % 2];
    (void)key;
    FOR_THREAD_SANITIZER(__tsan_release(key));
    wait(AT_BARRIER, place);
    FOR_THREAD_SANITIZER(__tsan_acquire(key));
}

// All lanes of the mask meet; the last to come calls exchange(their pointers, by lane) for all.
// Lanes that the block does not have are not waited for.
template <class Exchange>
UNWATCHED static void meet(unsigned mask, Place place, void* mine, Exchange exchange) {
    Thread* self = now;
    if (!(mask >> self->lane & 1)) {
        fail("a lane calls a shuffle or __syncwarp whose mask leaves it out", place);
        wait(IN_WARP, place);
    }
    const unsigned first = self->warp * LANES, present = count - first;
    const unsigned all = mask & (present >= LANES ? ~0u : (1u << present) - 1);
    Meeting *found = nullptr, *own = meetings[self->warp];
    for (unsigned i = 0; i < LANES && !found; i++)
        if (own[i].arrived && own[i].mask == mask) found = &own[i];
    for (unsigned i = 0; i < LANES && !found; i++)
        if (!own[i].arrived) *(found = &own[i]) = {mask, 0, place};
    if (found->place.line != place.line)
        fail("lanes of one mask meet at different lines", place);
    self->exchange = mine;
    found->arrived |= 1u << self->lane;
    if (found->arrived != all) {
        wait(IN_WARP, place);
        return;
    }
    void* given[LANES];
    for (unsigned lane = 0; lane < LANES; lane++)
        given[lane] = all >> lane & 1 ? threads[first + lane].exchange : nullptr;
    exchange(given);
    found->arrived = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
        if (given[lane]) threads[first + lane].state = RUNNABLE;
    if (order != FORWARD) hand_over(self->fiber, scheduler);     // else the last comer goes first
}

UNWATCHED static void sync_warp(unsigned mask, Place place) {
    const unsigned warp = now->warp;
    void* key = &in_warp[warp][warp_barriers[warp] % 2];
    int nothing = 0;
    (void)key;
    FOR_THREAD_SANITIZER(__tsan_release(key));
    meet(mask, place, &nothing, [](void**) UNWATCHED { warp_barriers[now->warp]++; });
    FOR_THREAD_SANITIZER(__tsan_acquire(key));
}

UNWATCHED static void thread_body() {
    fiber_arrived(scheduler);
    FOR_THREAD_SANITIZER(__tsan_acquire(&started));
    body();
    FOR_THREAD_SANITIZER(__tsan_release(&ended));
    if (now->copies) fail("returns while copies of it are on their way", now->place);
    now->state = FINISHED;
    hand_over(now->fiber, scheduler, true);
    abort();
}

// -> whether the thread could run
UNWATCHED static bool run(Thread& thread) {
    if (thread.state != RUNNABLE || error[0]) return false;
    now = &thread;
    hand_over(scheduler, thread.fiber);
    return true;
}

// -> whether any thread of the warp could run; each goes on until all of them wait.
UNWATCHED static bool run_warp(unsigned warp) {
    const unsigned first = warp * LANES, end = first + LANES < count ? first + LANES : count;
    bool any = false;
    for (bool more = true; more; any |= more) {
        more = false;
        const bool backwards = random_below(2);
        for (unsigned i = first; i < end; i++)
            more |= run(threads[backwards ? first + end - 1 - i : i]);
    }
    return any;
}

// One pass over the block -> whether any thread could run.
UNWATCHED static bool run_once() {
    bool any = false;
    if (order == AHEAD) {
        const unsigned warps = (count + LANES - 1) / LANES, shift = random_below(warps);
        for (unsigned i = 0; i < warps; i++) any |= run_warp((i + shift) % warps);
    } else {
        for (unsigned i = 0; i < count; i++)
            any |= run(threads[order == REVERSE ? count - 1 - i : i]);
    }
    return any;
}

// Nobody can run: opens the barrier, or says who waits in vain. -> whether the block is done
UNWATCHED static bool settle() {
    unsigned finished = 0, waiting = 0;
    for (unsigned i = 0; i < count; i++) {
        finished += threads[i].state == FINISHED;
        waiting += threads[i].state == AT_BARRIER;
    }
    if (finished == count) return true;
    for (unsigned i = 0; i < count && waiting == count; i++) {
        now = &threads[i];
        if (now->place.line != threads[0].place.line)
            fail("threads of one block wait at different __syncthreads", now->place);
    }
    for (unsigned i = 0; i < count && waiting < count; i++) {
        now = &threads[i];
        if (now->state == IN_WARP)
            fail("waits for lanes of its warp that never come", now->place);
        if (now->state == AT_BARRIER)
            fail(finished ? "waits at __syncthreads, but other threads have returned"
                          : "waits at __syncthreads, but other threads wait elsewhere", now->place);
    }
    if (error[0]) return true;
    barriers++;
    for (unsigned i = 0; i < count; i++) threads[i].state = RUNNABLE;
    return false;
}

static void poison_shared();

UNWATCHED static void run_block() {
    memset(meetings, 0, sizeof meetings);
    poison_shared();
    for (unsigned i = 0; i < count; i++) {
        Thread& t = threads[i];
        t.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        t.number = i, t.lane = i % LANES, t.warp = i / LANES, t.state = RUNNABLE;
        t.copies = 0;
        fiber_begin(t.fiber, thread_body);
    }
    FOR_THREAD_SANITIZER(__tsan_release(&started));
    do {
        while (run_once()) {}
    } while (!error[0] && !settle());
    FOR_THREAD_SANITIZER(__tsan_acquire(&ended));
    now = nullptr;
}

// Runs the whole grid -> whether it went well; otherwise `message` (512 bytes) says what did not.
UNWATCHED static int run_grid(const char* name, void (*kernel)(), const unsigned* g,
                              const unsigned* b, int thread_order, uint64_t seed, char* message) {
    kernel_name = name, body = kernel, order = thread_order, random_state = 2 * seed + 1;
    grid = {g[0], g[1], g[2]}, block = {b[0], b[1], b[2]}, count = b[0] * b[1] * b[2];
    error[0] = 0;
    FOR_THREAD_SANITIZER(scheduler.tsan = __tsan_get_current_fiber());
    const unsigned long blocks = (unsigned long)g[0] * g[1] * g[2];
    for (unsigned long k = 0; k < blocks && !error[0]; k++) {
        const unsigned long i = order == REVERSE ? blocks - 1 - k : k;
        block_index = {unsigned(i % g[0]), unsigned(i / g[0] % g[1]),
                       unsigned(i / ((unsigned long)g[0] * g[1]))};
        run_block();
    }
    memcpy(message, error, sizeof error);
    return error[0] == 0;
}

}  // namespace emulator
