// What all kernels share. The launcher pastes this file in front of each .cu, so no kernel includes
// anything. Only this file distinguishes between a GPU and the emulator.
//
// Words: a warp is 32 threads that the card schedules together, a lane is a thread's place in its
// warp. They need not run in step, since Volta each has a program counter of its own: lanes that
// exchange something meet, in a shuffle, in __syncwarp or in an instruction of the whole warp. A
// block is up to 1024 threads that share memory and can wait for each other; a grid is all blocks.

#ifndef EMULATOR
typedef unsigned int uint32_t;
typedef unsigned short uint16_t;
#define INFINITY __int_as_float(0x7f800000)     // NVRTC comes without <math.h>
#define NAN __int_as_float(0x7fffffff)
#define BEFORE_SM_80 (__CUDA_ARCH__ < 800)      // no bfloat16, no copies beside the threads
#elif !defined(BEFORE_SM_80)
#define BEFORE_SM_80 0                          // the emulator can be either
#endif

#define WARP 32
#define ALL_LANES 0xffffffffu
#define MOST_WARPS 32     // of a block

// -> the largest v of the warp, in every lane. Butterfly: each lane asks the lane whose number
// differs in one bit, bit by bit.
__device__ __forceinline__ float warp_max(float v) {
    for (int bit = WARP / 2; bit > 0; bit /= 2)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, bit));
    return v;
}

// -> the sum of v over the warp, in every lane; always added in the same order.
__device__ __forceinline__ float warp_sum(float v) {
    for (int bit = WARP / 2; bit > 0; bit /= 2)
        v += __shfl_xor_sync(ALL_LANES, v, bit);
    return v;
}

// -> the sum of v over the block, in every thread. `scratch` is shared memory for one float a warp;
// before it is used again, all threads must have read it.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / WARP ? scratch[lane] : 0.0f);
}

// -> the sums of a and of b over the block, by one wait; `scratch` as above, for two floats a warp.
__device__ __forceinline__ float2 block_sums(float a, float b, float2* scratch) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane == 0) scratch[warp] = make_float2(a, b);
    __syncthreads();
    const bool has = lane < (int)blockDim.x / WARP;
    a = warp_sum(has ? scratch[lane].x : 0.0f);
    b = warp_sum(has ? scratch[lane].y : 0.0f);
    return make_float2(a, b);
}

#define LOG2_E 1.44269504088896f     // exp(x) = 2^(x log2(e))

// 2^x, to two units in the last place; numbers below 1.2e-38 are zero.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef EMULATOR
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// -> 1 / x, to one unit in the last place; below 1.2e-38 it is zero.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef EMULATOR
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// A running softmax over a row that is read once (Milakov and Gimelshein 2018, algorithm 3):
// the largest score so far, and the sum of exp(score - largest).
struct Running {
    float largest, sum;
};

__device__ __forceinline__ Running running_start() { return {-INFINITY, 0.0f}; }

// exp(s - largest), 0 for a score of -inf, also where `largest` is -inf itself
__device__ __forceinline__ float exp_below(float s, float largest) {
    return s == -INFINITY ? 0.0f : expf(s - largest);
}

// The states of two parts of a row -> that of both: the sum of the part with the smaller maximum is
// scaled down.
__device__ __forceinline__ Running running_join(Running a, Running b) {
    const float largest = fmaxf(a.largest, b.largest);
    return {largest, a.sum * exp_below(a.largest, largest) + b.sum * exp_below(b.largest, largest)};
}

// One more score. The sum is scaled down only where the score is the largest so far.
__device__ __forceinline__ Running running_add(Running a, float s) {
    if (s <= a.largest) return {a.largest, a.sum + exp_below(s, a.largest)};
    return {s, a.sum * exp_below(a.largest, s) + 1.0f};
}

// Several more at once: one question and one rescaling for all of them.
template <int N>
__device__ __forceinline__ Running running_add(Running a, const float (&s)[N]) {
    float largest = a.largest;
    #pragma unroll
    for (int i = 0; i < N; i++) largest = fmaxf(largest, s[i]);
    const float base = largest == -INFINITY ? 0.0f : largest;     // then they add 2^-inf each
    float sum = a.sum * power_of_two(LOG2_E * (a.largest - base));
    #pragma unroll
    for (int i = 0; i < N; i++) sum += power_of_two(LOG2_E * (s[i] - base));
    return {largest, sum};
}

__device__ __forceinline__ Running warp_join(Running a) {
    for (int bit = WARP / 2; bit > 0; bit /= 2)
        a = running_join(a, {__shfl_xor_sync(ALL_LANES, a.largest, bit),
                             __shfl_xor_sync(ALL_LANES, a.sum, bit)});
    return a;
}

// The same over the block, in every thread; `scratch` as for block_sum.
__device__ __forceinline__ Running block_join(Running a, Running* scratch) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    a = warp_join(a);
    if (lane == 0) scratch[warp] = a;
    __syncthreads();
    return warp_join(lane < (int)blockDim.x / WARP ? scratch[lane] : running_start());
}

// The first `count` of four neighbouring numbers; four of them, aligned, by one access of 16 bytes.
__device__ __forceinline__ void load_four(float (&to)[4], const float* from, int count) {
    if (count == 4) {
        const float4 four = *(const float4*)from;
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
        for (int i = 0; i < 4; i++) to[i] = i < count ? from[i] : 0.0f;
    }
}

__device__ __forceinline__ void store_four(float* to, const float (&from)[4], int count) {
    if (count == 4) {
        *(float4*)to = make_float4(from[0], from[1], from[2], from[3]);
    } else {
        for (int i = 0; i < 4; i++)
            if (i < count) to[i] = from[i];
    }
}

// Philox4x32-10 (Salmon et al. 2011): four words of counter and two of key -> four random words.
// The same numbers as minisft/backend/random.py.
struct Words {
    uint32_t word[4];
};

__device__ __forceinline__ Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                        uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        const unsigned long long product0 = 0xD2511F53ull * c0, product1 = 0xCD9E8D57ull * c2;
        const uint32_t high0 = product0 >> 32, low0 = (uint32_t)product0;
        const uint32_t high1 = product1 >> 32, low1 = (uint32_t)product1;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The random words of attention's dropout (minisft/backend/random.py, Stream.scores): `site` is the
// layer and the place in it, `threshold` the least word that is kept, `keep` what a kept weight is
// multiplied by; `example_ids` holds each sequence's id in the data set, null without dropout. A
// kernel gets the optimizer step by its address: a recorded launch finds the next step's there.
struct ScoreDropout {
    const uint32_t* example_ids;
    uint32_t threshold;
    float keep;
    uint32_t seed;
    const uint32_t* step;
    uint32_t site;
};

// -> M of minisft/ops/attention.py for one score: 0, or `keep`
__device__ __forceinline__ float score_mask(const ScoreDropout& drop, int sequence, int position,
                                            int head, int key) {
    if (!drop.example_ids) return 1.0f;
    const Words w = philox(*drop.step, drop.example_ids[sequence], position,
                           (uint32_t)head << 20 | (uint32_t)key / 4, drop.seed, drop.site);
    const uint32_t low = key & 1 ? w.word[1] : w.word[0], high = key & 1 ? w.word[3] : w.word[2];
    return (key & 2 ? high : low) >= drop.threshold ? drop.keep : 0.0f;
}

// -> the same for the four keys from 4 * `four` on, which share a draw: bit i is set where key i is
// kept
__device__ __forceinline__ uint32_t four_kept(const ScoreDropout& drop, uint32_t example_id,
                                              int position, int head, int four) {
    const Words w = philox(*drop.step, example_id, position, (uint32_t)head << 20 | (uint32_t)four,
                           drop.seed, drop.site);
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) kept |= (uint32_t)(w.word[i] >= drop.threshold) << i;
    return kept;
}

// bfloat16 is the upper half of a float32: the same range, eight bits of precision. Two of them
// share a word, the first in its lower half.
__device__ __forceinline__ float from_bfloat16(uint16_t v) {
    return __uint_as_float((uint32_t)v << 16);
}

// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ uint16_t to_bfloat16(float v) {
    const uint32_t bits = __float_as_uint(v);
    return v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// The 16-bit format of a kernel that is compiled for either: float16 with -DFLOAT16=1, else
// bfloat16.
#ifndef FLOAT16
#define FLOAT16 0
#endif

__device__ __forceinline__ uint16_t to_16_bits(float v) {
#if !FLOAT16
    return to_bfloat16(v);
#elif defined(EMULATOR)
    return emulator::to_float16(v);
#else
    uint16_t rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(v));
    return rounded;
#endif
}

__device__ __forceinline__ float from_16_bits(uint16_t v) {
#if !FLOAT16
    return from_bfloat16(v);
#elif defined(EMULATOR)
    return emulator::from_float16(v);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v));
    return wide;
#endif
}

// -> two numbers in a word, the first in its lower half
__device__ __forceinline__ uint32_t pack_16_bits(float first, float second) {
#if defined(EMULATOR) || BEFORE_SM_80
    return to_16_bits(first) | (uint32_t)to_16_bits(second) << 16;
#else
    uint32_t pair;
#if FLOAT16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#endif
    return pair;
#endif
}

// A number of either format, as float32.
__device__ __forceinline__ float number(float v) { return v; }
__device__ __forceinline__ float number(uint16_t v) { return from_16_bits(v); }
__device__ __forceinline__ void put(float* to, float v) { *to = v; }
__device__ __forceinline__ void put(uint16_t* to, float v) { *to = to_16_bits(v); }

// What one access of 16 bytes brings, as numbers and back: four of float32, eight of 16 bits.
__device__ __forceinline__ void unpack(float (&to)[4], const uint4& words) {
    to[0] = __uint_as_float(words.x), to[1] = __uint_as_float(words.y);
    to[2] = __uint_as_float(words.z), to[3] = __uint_as_float(words.w);
}

__device__ __forceinline__ void unpack(float (&to)[8], const uint4& words) {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    #pragma unroll
    for (int i = 0; i < 8; i++)
        to[i] = from_16_bits((uint16_t)(i % 2 ? word[i / 2] >> 16 : word[i / 2] & 0xffff));
}

__device__ __forceinline__ uint4 packed(const float (&from)[4]) {
    return make_uint4(__float_as_uint(from[0]), __float_as_uint(from[1]),
                      __float_as_uint(from[2]), __float_as_uint(from[3]));
}

__device__ __forceinline__ uint4 packed(const float (&from)[8]) {
    return make_uint4(pack_16_bits(from[0], from[1]), pack_16_bits(from[2], from[3]),
                      pack_16_bits(from[4], from[5]), pack_16_bits(from[6], from[7]));
}

// Tensor cores, one warp: C (16, 8) += A (16, 16) @ B (16, 8), A and B in 16 bits, C in float32.
// With g = lane / 4 and t = lane % 4 a lane holds, two numbers a word (PTX ISA, mma.m16n8k16):
//     a[0] A[g][2t, 2t+1]       a[1] A[g+8][2t, 2t+1]
//     a[2] A[g][2t+8, 2t+9]     a[3] A[g+8][2t+8, 2t+9]
//     b[0] B[2t, 2t+1][g]       b[1] B[2t+8, 2t+9][g]
//     c[0], c[1] C[g][2t, 2t+1] and c[2], c[3] C[g+8][2t, 2t+1]
// So the C of one product, packed, is the A of the next. Before sm_80 (float16 alone) an
// instruction sums over eight numbers: a[0], a[1] and b[0], then the rest.
__device__ __forceinline__ void mma_16_bits(float (&c)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
#ifdef EMULATOR
    constexpr int DEPTH = BEFORE_SM_80 ? 8 : 16;
    for (int half = 0; half < 16 / DEPTH; half++)
        emulator::mma<FLOAT16 ? emulator::from_float16 : emulator::from_bfloat16, DEPTH>(
            c, a + 2 * half, b + half, HERE);
#elif FLOAT16 && BEFORE_SM_80
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#else
#if FLOAT16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#endif
    asm volatile(MMA "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 pieces of 16-bit numbers out of shared memory, one warp: lanes 8 i to 8 i + 7 tell
// where the rows of piece i begin, 16 bytes each; out[i] is what the lane holds of it: columns 2t,
// 2t+1 of row g, or with `turned` rows 2t, 2t+1 of column g.
__device__ __forceinline__ void load_pieces(uint32_t (&out)[4], const uint16_t* row) {
#ifdef EMULATOR
    emulator::load_pieces(out, row, false, HERE);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
#endif
}

__device__ __forceinline__ void load_pieces_turned(uint32_t (&out)[4], const uint16_t* row) {
#ifdef EMULATOR
    emulator::load_pieces(out, row, true, HERE);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
#endif
}

// 16 bytes on their way to shared memory, zeros unless they `exist`. The thread goes on; they are
// there when it has passed copies_wait, for other threads when these have met it after that. Both
// places are multiples of 16 bytes. Before sm_80 the thread carries them itself.
__device__ __forceinline__ void copy_ahead(void* to, const void* from, bool exist) {
#if BEFORE_SM_80
    *(float4*)to = exist ? *(const float4*)from : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#elif defined(EMULATOR)
    emulator::copy_ahead(to, from, exist, HERE);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
                 "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(exist ? 16 : 0)
                 : "memory");
#endif
}

__device__ __forceinline__ void copies_wait() {
#if BEFORE_SM_80
#elif defined(EMULATOR)
    emulator::copies_wait();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
