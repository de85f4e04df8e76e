// What every kernel shares. The loader pastes this file in front of each .cu, so no kernel includes
// anything; it is the only file that knows whether a GPU or the emulator runs the kernel.
//
// Words: a warp is 32 threads that run in step, a lane is a thread's place in its warp. A block is
// up to 1024 threads that share memory and can wait for each other; a grid is all blocks.

#ifndef EMULATOR
typedef unsigned int uint32_t;
#define INFINITY __int_as_float(0x7f800000)     // NVRTC comes without <math.h>
#define NAN __int_as_float(0x7fffffff)
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

// What two parts of a row found -> what the whole of it has: the sum of the part with the smaller
// maximum is scaled down.
__device__ __forceinline__ Running running_join(Running a, Running b) {
    const float largest = fmaxf(a.largest, b.largest);
    return {largest, a.sum * exp_below(a.largest, largest) + b.sum * exp_below(b.largest, largest)};
}

// One more score. The sum is scaled down only where the score is the largest so far.
__device__ __forceinline__ Running running_add(Running a, float s) {
    if (s <= a.largest) return {a.largest, a.sum + exp_below(s, a.largest)};
    return {s, a.sum * exp_below(a.largest, s) + 1.0f};
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

// -> the sum of column c over `pieces` rows that lie `apart` numbers apart, in their order
__device__ __forceinline__ float column_sum(const float* x, int c, int pieces, long long apart) {
    float sum = 0.0f;
    for (int i = 0; i < pieces; i++) sum += x[i * apart + c];
    return sum;
}

// Philox4x32-10 (Salmon et al. 2011): four words of counter and two of key -> four random words.
// The same numbers as minisft/random.py.
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

// The random words of attention's dropout (minisft/random.py, Stream.scores): `site` is the layer
// and the place in it, `threshold` the least word that is kept, `keep` what a kept weight is
// multiplied by. `text` is the number of the text; without dropout `texts` is null.
struct ScoreDropout {
    const uint32_t* texts;
    uint32_t threshold;
    float keep;
    uint32_t seed, step, site;
};

// -> M of minisft/ops/attention.py for one score: 0, or `keep`
__device__ __forceinline__ float score_mask(const ScoreDropout& drop, int sequence, int position,
                                            int head, int key) {
    if (!drop.texts) return 1.0f;
    const Words w = philox(drop.step, drop.texts[sequence], position,
                           (uint32_t)head << 20 | (uint32_t)key / 4, drop.seed, drop.site);
    const uint32_t low = key & 1 ? w.word[1] : w.word[0], high = key & 1 ? w.word[3] : w.word[2];
    return (key & 2 ? high : low) >= drop.threshold ? drop.keep : 0.0f;
}
