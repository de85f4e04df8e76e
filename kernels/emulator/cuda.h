// CUDA's words for a C++ compiler: put in front of a .cu, it makes the same file run on a CPU.
#pragma once
#include <cmath>
#include <type_traits>
#include <utility>
#include "block.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (emulator::now->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block)
#define gridDim (emulator::grid)

// Blocks run one after another, so shared memory is one static variable. All of it lies in one
// section and is filled with NaN before each block: a kernel that reads what it never wrote shows.
// The address sanitizer watches the ends of static arrays, but not in a section of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__APPLE__)
#define __shared__ static
static void emulator::poison_shared() {}
#else
#define __shared__ static __attribute__((section("emulator_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_emulator_shared[],
    __stop_emulator_shared[];
UNWATCHED static void emulator::poison_shared() {
    for (volatile char* c = __start_emulator_shared; c < __stop_emulator_shared; c++)
        *c = (char)0xff;
}
#endif

#define HERE (emulator::Place{__FILE__, __LINE__})
#define __syncthreads() emulator::sync_block(HERE)
#define __syncwarp(...) emulator::sync_warp(emulator::mask_of(__VA_ARGS__), HERE)
#define __shfl_sync(mask, v, lane) emulator::shuffle(mask, v, (lane) & 31, HERE)
#define __shfl_xor_sync(mask, v, bits) emulator::shuffle(mask, v, emulator::lane() ^ (bits), HERE)
#define __shfl_down_sync(mask, v, by) emulator::shuffle(mask, v, emulator::lane() + (by), HERE)
#define __shfl_up_sync(mask, v, by) emulator::shuffle(mask, v, emulator::lane() - (by), HERE)
#define __ballot_sync(mask, holds) emulator::ballot(mask, holds, HERE)

namespace emulator {

inline unsigned mask_of(unsigned mask = ~0u) { return mask; }
inline int lane() { return (int)now->lane; }

template <class T>
struct Shuffled {
    T given, got;
    int from;
};

// -> what lane `from` gives; a lane outside the warp leaves the caller its own value, and from a
// lane that does not take part comes what hardware leaves undefined: here NaN.
template <class T>
UNWATCHED T shuffle(unsigned mask, T value, int from, Place place) {
    Shuffled<T> mine{value, value, from};
    meet(mask, place, &mine, [](void** lanes) UNWATCHED {
        for (unsigned i = 0; i < LANES; i++) {
            auto* to = (Shuffled<T>*)lanes[i];
            if (!to || to->from < 0 || to->from >= (int)LANES) continue;
            if (lanes[to->from]) to->got = ((Shuffled<T>*)lanes[to->from])->given;
            else memset(&to->got, 0xff, sizeof(T));
        }
    });
    return mine.got;
}

UNWATCHED static unsigned ballot(unsigned mask, bool holds, Place place) {
    struct Vote { bool holds; unsigned result; } mine{holds, 0};
    meet(mask, place, &mine, [](void** lanes) UNWATCHED {
        unsigned result = 0;
        for (unsigned i = 0; i < LANES; i++)
            if (lanes[i] && ((Vote*)lanes[i])->holds) result |= 1u << i;
        for (unsigned i = 0; i < LANES; i++)
            if (lanes[i]) ((Vote*)lanes[i])->result = result;
    });
    return mine.result;
}

inline float from_bfloat16(uint16_t v) {
    const uint32_t bits = (uint32_t)v << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// IEEE 754's binary16, which C++17 has no type for.
inline float from_float16(uint16_t v) {
    const int exponent = v >> 10 & 31, fraction = v & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
        : exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
    return v >> 15 ? -size : size;
}

// To the nearest, ties to even.
inline uint16_t to_float16(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (x != x) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | (uint16_t)nearbyintf(ldexpf(size, 24));
    uint32_t bits;
    memcpy(&bits, &size, sizeof bits);
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112 << 10));
}

// What device.cuh says of mma_16_bits, lane by lane, for sums over DEPTH numbers. They are exact
// products added in float32 in the order of k; a card adds in an order of its own.
struct Product {
    const uint32_t *a, *b;
    float* c;
};

template <float (*widened)(uint16_t), int DEPTH>
UNWATCHED void mma(float* c, const uint32_t* a, const uint32_t* b, Place place) {
    Product mine{a, b, c};
    meet(~0u, place, &mine, [](void** lanes) UNWATCHED {
        float A[16][DEPTH], B[DEPTH][8];
        for (unsigned l = 0; l < LANES; l++) {
            const auto* p = (Product*)lanes[l];
            const int g = l / 4, t = l % 4;
            for (int word = 0; word < DEPTH / 4; word++)
                for (int i = 0; i < 2; i++)
                    A[g + word % 2 * 8][2 * t + i + word / 2 * 8] = widened(p->a[word] >> 16 * i);
            for (int word = 0; word < DEPTH / 8; word++)
                for (int i = 0; i < 2; i++)
                    B[2 * t + i + word * 8][g] = widened(p->b[word] >> 16 * i);
        }
        for (unsigned l = 0; l < LANES; l++) {
            float* sums = ((Product*)lanes[l])->c;
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < DEPTH; k++)
                    sums[i] += A[l / 4 + i / 2 * 8][k] * B[k][l % 4 * 2 + i % 2];
        }
    });
}

// What device.cuh says of load_pieces. Each lane reads its own row, so that the sanitizers see it
// read; then the lanes exchange.
struct Pieces {
    uint32_t* out;
    uint16_t row[8];
    bool turned;
};

static void load_pieces(uint32_t* out, const uint16_t* row, bool turned, Place place) {
    if ((uintptr_t)row % 16) fail("ldmatrix of a row that does not begin at 16 bytes", place);
    Pieces mine{out, {}, turned};
    for (int i = 0; i < 8; i++) mine.row[i] = row[i];
    meet(~0u, place, &mine, [](void** lanes) UNWATCHED {
        for (unsigned l = 0; l < LANES; l++) {
            const int g = l / 4, t = l % 4;
            auto* to = (Pieces*)lanes[l];
            for (int piece = 0; piece < 4; piece++) {
                auto** rows = (Pieces**)lanes + 8 * piece;
                to->out[piece] = to->turned
                    ? rows[2 * t]->row[g] | (uint32_t)rows[2 * t + 1]->row[g] << 16
                    : rows[g]->row[2 * t] | (uint32_t)rows[g]->row[2 * t + 1] << 16;
            }
        }
    });
}

// cp.async: the copy happens when it is waited for, as late as a card may do it. Until then the
// place holds NaN. A thread may not end before it has waited.
struct Copy {
    void* to;
    const void* from;
    bool exist;
};
static Copy copies[MOST_THREADS][64];     // a thread may have so many on their way

static void copy_ahead(void* to, const void* from, bool exist, Place place) {
    constexpr int MOST = sizeof copies[0] / sizeof copies[0][0];
    if (((uintptr_t)to | (uintptr_t)from) % 16)
        fail("a copy from or to a place that is no multiple of 16 bytes", place);
    memset(to, 0xff, 16);
    now->place = place;
    if (now->copies == MOST) return fail("copies on their way that nobody waits for", place);
    copies[now->number][now->copies++] = {to, from, exist};
}

static void copies_wait() {
    for (int i = 0; i < now->copies; i++) {
        const Copy& copy = copies[now->number][i];
        if (copy.exist) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    now->copies = 0;
}

// A kernel and pointers to its arguments -> its call.
template <auto kernel, class... A, size_t... I>
void call(void (*)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[I]...);
}

static void** arguments;

template <auto kernel, class... A>
void call_kernel(void (*f)(A...)) {
    call<kernel>(f, arguments, std::index_sequence_for<A...>{});
}

template <auto kernel>
void call_body() {
    call_kernel<kernel>(kernel);
}

template <class... A>
unsigned long sizes(void (*)(A...), unsigned long* out) {
    const unsigned long each[] = {sizeof(A)..., 0};
    for (size_t i = 0; i < sizeof...(A); i++) out[i] = each[i];
    return sizeof...(A);
}

}  // namespace emulator

// What Python calls: the sizes of a kernel's arguments, and the launch.
#define EXPORTED extern "C" __attribute__((visibility("default")))
#define EXPORT_KERNEL(name)                                                                      \
    EXPORTED unsigned long emulator_sizes_##name(unsigned long* out) {                           \
        return emulator::sizes(&name, out);                                                      \
    }                                                                                            \
    EXPORTED int emulator_run_##name(void** given, const unsigned* grid_size,                    \
                                     const unsigned* block_size, int order, uint64_t seed,       \
                                     char* message) {                                            \
        emulator::arguments = given;                                                             \
        return emulator::run_grid(#name, emulator::call_body<&name>, grid_size, block_size,      \
                                  order, seed, message);                                         \
    }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

// A real atomic, so that the thread sanitizer takes it for one.
template <class T>
inline T atomicAdd(T* place, T value) {
    if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
    T seen, sum;
    __atomic_load(place, &seen, __ATOMIC_RELAXED);
    do sum = seen + value;
    while (!__atomic_compare_exchange(place, &seen, &sum, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
    return seen;
}

inline float __uint_as_float(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
inline uint32_t __float_as_uint(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

template <class T>
inline T __ldg(const T* place) { return *place; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T>
inline T min(T a, T b) { return b < a ? b : a; }
template <class T>
inline T max(T a, T b) { return a < b ? b : a; }
