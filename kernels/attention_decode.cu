// Attention of one new token a sequence over a cache of keys and values: a step of generation.
//
// Computes, of minisft/ops/attention.py for one query each: (1) to (3) in attention_decode and
// attention_decode_16_bits, which also put the new token's key and value into the cache. Where one
// block does not take all keys of a sequence, it leaves its share of (2) and (3) as a running
// softmax does, and attention_decode_join joins the shares.
// Grid: (chunks, heads, sequences), the same for every length up to the capacity of the cache: a
// block reads from the card's memory how many keys there are, so that one recorded launch serves
// all steps. A block owns a chunk of the keys of one head of one sequence; it returns at once where
// it has none. A few lanes side by side take a key, 16 bytes each, a warp several keys at once, and
// ROUNDS times as many before it looks at the first: what counts is that many loads are on their
// way. Scores never leave their lanes. What groups of lanes found is joined by shuffles, what warps
// found through shared memory.
// Shared memory: (4 D + 8) bytes for each of 16 warps.
// Demands: HEAD_WIDTH (a -D option) from 1 to 128; qkv (B, 3, H, D) float32; keys and values
// (B * capacity, H, D), float32, or bfloat16, or float16 with -D FLOAT16=1, aligned to 16 bytes;
// lengths (B,) of the keys in the cache before, below capacity; whole warps, at most 16.
// Memory traffic: each key and value once, 4 D bytes a key and head in 16 bits.

#define D HEAD_WIDTH
#define WARPS 16      // of a block at most
#define ROUNDS 4      // keys of a group of lanes that are on their way together

// -> the least power of two that is not below n, at most a warp
__device__ constexpr int lanes_for(int n) {
    int lanes = 1;
    while (lanes < n && lanes < WARP) lanes *= 2;
    return lanes;
}

// How the channels of a head lie on lanes: 16 bytes side by side on each, or one number where rows
// are no multiple of 16 bytes; as many lanes as that takes, and where a warp is too small PIECES.
template <typename NUMBER>
struct Head {
    static constexpr int WIDE = 16 / sizeof(NUMBER);
    static constexpr int AT_ONCE = D % WIDE ? 1 : WIDE;
    static constexpr int LANES = lanes_for((D + AT_ONCE - 1) / AT_ONCE);
    static constexpr int GROUPS = WARP / LANES;     // keys that a warp takes at once
    static constexpr int PIECES = (D + AT_ONCE * LANES - 1) / (AT_ONCE * LANES);
    static constexpr int NUMBERS = PIECES * AT_ONCE;

    // the channel of a lane's number i; D or more where it has none
    static __device__ __forceinline__ int channel(int i) {
        return (i / AT_ONCE * LANES + threadIdx.x % LANES) * AT_ONCE + i % AT_ONCE;
    }

    static __device__ __forceinline__ void load(float (&to)[NUMBERS], const NUMBER* row) {
#pragma unroll
        for (int piece = 0; piece < NUMBERS; piece += AT_ONCE) {
            const int c = channel(piece);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) to[piece + i] = 0.0f;
            if (c >= D) continue;
            if constexpr (AT_ONCE == 1) {
                to[piece] = number(row[c]);
            } else if constexpr (sizeof(NUMBER) == 4) {
                const float4 four = *(const float4*)(row + c);
                to[piece] = four.x, to[piece + 1] = four.y;
                to[piece + 2] = four.z, to[piece + 3] = four.w;
            } else {
                const uint4 words = *(const uint4*)(row + c);
                const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++)
                    to[piece + i] = number((uint16_t)(word[i / 2] >> i % 2 * 16));
            }
        }
    }

    // of a row of float32, as the cache holds it
    static __device__ __forceinline__ void load_rounded(float (&to)[NUMBERS], const float* row) {
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) {
            const float v = channel(i) < D ? row[channel(i)] : 0.0f;
            if constexpr (sizeof(NUMBER) == 4) to[i] = v;
            else to[i] = from_16_bits(to_16_bits(v));
        }
    }

    static __device__ __forceinline__ void store(NUMBER* row, const float (&from)[NUMBERS]) {
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) {
            if (channel(i) >= D) continue;
            if constexpr (sizeof(NUMBER) == 4) row[channel(i)] = from[i];
            else row[channel(i)] = to_16_bits(from[i]);
        }
    }

    // -> the product of a query and a key, in all lanes of the group
    static __device__ __forceinline__ float product(const float (&q)[NUMBERS],
                                                    const float (&k)[NUMBERS]) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) sum += q[i] * k[i];
#pragma unroll
        for (int bit = LANES / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, bit);
        return sum;
    }
};

// The shares that several had of a row: of each a running softmax, and the sum of its values times
// exp(score - largest) -> the same of the whole row, for channel c. Shares lie D numbers apart.
__device__ __forceinline__ float joined(Running& whole, const Running* running, const float* out,
                                        int n, int c) {
    whole = running_start();
    for (int i = 0; i < n; i++) whole.largest = fmaxf(whole.largest, running[i].largest);
    float sum = 0.0f;
    for (int i = 0; i < n; i++) {
        const float factor = exp_below(running[i].largest, whole.largest);
        whole.sum += factor * running[i].sum;
        sum += factor * out[(long long)i * D + c];
    }
    return sum;
}

// Of y and low, its 16-bit form, one is null.
__device__ __forceinline__ void store_output(float* y, uint16_t* low, long long at, float v) {
    if (low) low[at] = to_16_bits(v);
    else y[at] = v;
}

template <typename NUMBER>
__device__ __forceinline__ void decode(const float* qkv, NUMBER* keys, NUMBER* values,
                                       const int* lengths, float* y, uint16_t* low, float* outs,
                                       float* states, int capacity, int chunk, float scale,
                                       float (*out_of_warp)[D], Running* of_warp) {
    using H = Head<NUMBER>;
    const int sequence = blockIdx.z, head = blockIdx.y, heads = gridDim.y;
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int group = threadIdx.x % WARP / H::LANES;
    const int last = min(lengths[sequence], capacity - 1);     // the new token's key
    const int first = blockIdx.x * chunk, end = min(first + chunk, last);     // of earlier keys
    if (first > last) return;     // the whole block

    const long long stride = (long long)heads * D;
    qkv += (3ll * sequence * heads + head) * D;
    keys += ((long long)sequence * capacity * heads + head) * D;
    values += ((long long)sequence * capacity * heads + head) * D;
    float q[H::NUMBERS], out[H::NUMBERS] = {};
    H::load_rounded(q, qkv);
    Running mine = running_start();
    if (warp == 0 && last < first + chunk) {
        float k[H::NUMBERS], v[H::NUMBERS];
        H::load_rounded(k, qkv + stride);
        H::load_rounded(v, qkv + 2 * stride);
        const float s = H::product(q, k) * scale;                                    // (1)
        if (group == 0) {
            H::store(keys + last * stride, k);
            H::store(values + last * stride, v);
            mine = {s, 1.0f};
#pragma unroll
            for (int i = 0; i < H::NUMBERS; i++) out[i] = v[i];
        }
    }

    const int at_once = H::GROUPS * ROUNDS;     // keys of a warp
    for (int tile = first + warp * at_once; tile < end; tile += warps * at_once) {
        float s[ROUNDS], v[ROUNDS][H::NUMBERS], top = mine.largest;
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const int key = tile + r * H::GROUPS + group;
            const long long row = (key < end ? key : first) * stride;
            float k[H::NUMBERS];
            H::load(k, keys + row);
            H::load(v[r], values + row);
            s[r] = H::product(q, k) * scale;                                         // (1)
            if (key >= end) s[r] = -INFINITY;
            top = fmaxf(top, s[r]);
        }
        const float rescale = exp_below(mine.largest, top);
        mine = {top, mine.sum * rescale};
#pragma unroll
        for (int i = 0; i < H::NUMBERS; i++) out[i] *= rescale;
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const float p = exp_below(s[r], top);                                    // (2)
            mine.sum += p;
#pragma unroll
            for (int i = 0; i < H::NUMBERS; i++) out[i] += p * v[r][i];              // (3)
        }
    }

#pragma unroll
    for (int bit = H::LANES; bit < WARP; bit *= 2) {     // groups of lanes
        const Running other = {__shfl_xor_sync(ALL_LANES, mine.largest, bit),
                               __shfl_xor_sync(ALL_LANES, mine.sum, bit)};
        const Running both = running_join(mine, other);
        const float own = exp_below(mine.largest, both.largest);
        const float theirs = exp_below(other.largest, both.largest);
#pragma unroll
        for (int i = 0; i < H::NUMBERS; i++)
            out[i] = own * out[i] + theirs * __shfl_xor_sync(ALL_LANES, out[i], bit);
        mine = both;
    }
    if (group == 0) {
#pragma unroll
        for (int i = 0; i < H::NUMBERS; i++)
            if (H::channel(i) < D) out_of_warp[warp][H::channel(i)] = out[i];
        if (threadIdx.x % WARP == 0) of_warp[warp] = mine;
    }
    __syncthreads();
    const long long row = (long long)sequence * heads + head;
    const long long share = row * gridDim.x + blockIdx.x;
    for (int c = threadIdx.x; c < D; c += blockDim.x) {
        Running whole;
        const float sum = joined(whole, of_warp, out_of_warp[0], warps, c);
        if (!outs) store_output(y, low, row * D + c, sum / whole.sum);
        else outs[share * D + c] = sum;
        if (outs && c == 0) ((Running*)states)[share] = whole;
    }
}

// outs (B, H, chunks, D) and states (B, H, chunks, 2), what each block found, go to the kernel
// below; null where one block takes all keys.
extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1) attention_decode(
        const float* __restrict__ qkv, float* keys, float* values,
        const int* __restrict__ lengths, float* __restrict__ y, uint16_t* __restrict__ low,
        float* __restrict__ outs, float* __restrict__ states, int capacity, int chunk,
        float scale) {
    __shared__ float out_of_warp[WARPS][D];
    __shared__ Running of_warp[WARPS];
    decode(qkv, keys, values, lengths, y, low, outs, states, capacity, chunk, scale, out_of_warp,
           of_warp);
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1) attention_decode_16_bits(
        const float* __restrict__ qkv, uint16_t* keys, uint16_t* values,
        const int* __restrict__ lengths, float* __restrict__ y, uint16_t* __restrict__ low,
        float* __restrict__ outs, float* __restrict__ states, int capacity, int chunk,
        float scale) {
    __shared__ float out_of_warp[WARPS][D];
    __shared__ Running of_warp[WARPS];
    decode(qkv, keys, values, lengths, y, low, outs, states, capacity, chunk, scale, out_of_warp,
           of_warp);
}

// A block owns one head of one sequence, a thread a channel of it.
extern "C" __global__ void attention_decode_join(
        const float* __restrict__ outs, const float* __restrict__ states,
        const int* __restrict__ lengths, float* __restrict__ y, uint16_t* __restrict__ low,
        int chunks, int chunk) {
    const long long row = (long long)blockIdx.y * gridDim.x + blockIdx.x;
    const int n = min(lengths[blockIdx.y] / chunk + 1, chunks);     // those with a key
    for (int c = threadIdx.x; c < D; c += blockDim.x) {
        Running whole;
        const float sum = joined(whole, (const Running*)states + row * chunks,
                                 outs + row * chunks * D, n, c);
        store_output(y, low, row * D + c, sum / whole.sum);                          // (3)
    }
}
