// Attention, fused, on tensor cores: what attention.cu does, with inputs, weights p and score
// gradients rounded to 16 bits and every sum in float32.
//
// Computes, of minisft/ops/attention.py: (1) to (3) in attention_tensor_cores_forward; (5) to (7)
// for dQ in _backward_queries; (4) to (7) for dK and dV in _backward_keys.
// Grid: (heads, tiles of 64 rows, sequences). A block owns 64 queries (or keys) of one head of one
// sequence, each of its four warps 16 of them, the rows of its fragments; the block walks over
// tiles of keys (or queries) in shared memory, of which there are two pairs by turns: while the
// warps multiply one, the next is on its way. So a tile takes one barrier.
// Shared memory: two pairs of tiles, 4 * TILE * PITCH * 2 bytes, at most 45,056; keys 1,024 more.
// Demands: 16-bit numbers as uint16, bfloat16 (sm_80) or with -D FLOAT16=1 float16 (sm_75); D =
// HEAD_WIDTH (a -D option), a multiple of 16 up to 128; -D DROPOUT=1 or 0; rows of q, k and v that
// begin at multiples of 16 bytes; scale > 0; no more queries than keys if causal. Gradients come
// out in float32 or, where the `low` pointers are given, in 16 bits.
//
// Two products do everything. `score` multiplies a warp's 16 rows, which it keeps as fragments, by
// the rows of a tile. `add_tile` multiplies what came of that, packed, by the tile's columns: the
// layout of a sum is the layout of the next product's left side, so no score leaves its lane.
// Scores are powers of two, exp(s) = 2^(s log2(e)), which the card has an instruction for.

#define D HEAD_WIDTH
#define THREADS 128
#define ROWS 16                      // of a warp
#define BLOCK_ROWS (ROWS * THREADS / WARP)
#define SWIZZLED (D % 64 == 0)
#define PITCH (SWIZZLED ? D : D + 8)
#define TILE (D <= 80 ? 64 : 32)     // rows of a tile, of which 48 KB hold four
#define STEP 32                      // rows of a tile that are multiplied at once
// Blocks that a multiprocessor is to hold at once: it bounds the registers of a thread.
#define FORWARD_BLOCKS (D > 64 ? 1 : DROPOUT ? 3 : 4)
#define BACKWARD_BLOCKS (D > 64 ? 1 : 3)
// The forward divides by 2^largest, and what it has added up is scaled down for a larger score only
// where that is so many powers of two above: weights up to 256 are as good in 16 bits as up to 1.
#define LAG 8

typedef uint32_t Fragments[D / 16][4];       // a warp's rows of q, k, v, y or dy
typedef float Sums[D / 8][4];                // rows of the warp, channels
typedef float Scores[STEP / 8][4];           // rows of the warp, rows of the tile
typedef uint16_t Row[PITCH];                 // of a tile

// As in attention.cu.
struct Part {
    int sequence, n_queries, n_keys, shift;
    long long first_query, first_key;
};

__device__ __forceinline__ Part part_of(int sequence, const int* cu_seqlens, const int* key_starts,
                                        const int* key_lengths, int from_start) {
    const int first = cu_seqlens[sequence], n_queries = cu_seqlens[sequence + 1] - first;
    const int n_keys = key_lengths[sequence];
    return {sequence, n_queries, n_keys, from_start ? 0 : n_keys - n_queries, first,
            key_starts[sequence]};
}

// Where a lane stands in a fragment: rows g and g + 8, columns 2 t and 2 t + 1 (device.cuh).
__device__ __forceinline__ int g_of_lane() { return threadIdx.x % WARP / 4; }
__device__ __forceinline__ int t_of_lane() { return threadIdx.x % 4; }

// -> over the four lanes that share a row
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 1));
    return fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 2));
}

// -> of the lane's sums in row g + 8 half number i, that of column 8 (i / 2) + 2 t + i % 2
template <int N>
__device__ __forceinline__ float& cell(float (&sums)[N][4], int half, int i) {
    return sums[i / 2][2 * half + i % 2];
}

// Rows [first, first + 16) of x, of which there are n; past the end zeros.
__device__ __forceinline__ void load_rows(Fragments& rows, const uint16_t* x, int first, int n,
                                          long long stride) {
#pragma unroll
    for (int piece = 0; piece < D / 16; piece++)
#pragma unroll
        for (int word = 0; word < 4; word++) {
            const int row = first + g_of_lane() + word % 2 * 8;
            const int c = 16 * piece + 2 * t_of_lane() + word / 2 * 8;
            rows[piece][word] = row < n ? *(const uint32_t*)&x[row * stride + c] : 0;
        }
}

// -> where eight numbers of a tile stand, those from column c of a row on. Rows that begin in the
// same bank have their eighths in different orders, so that a column of them is in all banks.
__device__ __forceinline__ int place(int row, int c) {
    return row * PITCH + (SWIZZLED ? c ^ row % 8 * 8 : c);
}

// place(row, c) -> place(row, c + more), for c < 16 and a multiple of 16
__device__ __forceinline__ int beside(int place, int more) {
    return SWIZZLED ? place ^ more : place + more;
}

// Two arrays whose rows are walked through together: k and v, or q and dy; n > 0 rows, which lie so
// many bytes apart.
struct Walked {
    const uint16_t *a, *b;
    int a_bytes, b_bytes, n;
};

// Sends rows [first, first + TILE) of both on their way; past the end the last row instead, again
// and again. They are there after copies_wait and a barrier.
__device__ __forceinline__ void load_tiles(Row (*tiles)[TILE], const Walked& from, int first) {
    constexpr int AT_ONCE = THREADS / (D / 8);     // rows
    const unsigned row = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8) * 8;
    const char *a = (const char*)&from.a[c], *b = (const char*)&from.b[c];
#pragma unroll 4
    for (int begin = 0; begin < TILE; begin += AT_ONCE) {
        if (THREADS % (D / 8) && row >= AT_ONCE || TILE % AT_ONCE && begin + row >= TILE) break;
        const long long there = min(first + begin + (int)row, from.n - 1);
        copy_ahead(&tiles[0][0][place(begin + row, c)], a + there * from.a_bytes, true);
        copy_ahead(&tiles[1][0][place(begin + row, c)], b + there * from.b_bytes, true);
    }
}

// A tile's rows are the columns of the right side, so its 8 x 8 pieces are read as they lie.
__device__ __forceinline__ void score(Scores& s, const Fragments& rows, const Row* tile) {
    const int lane = threadIdx.x % WARP;
    const int from = place(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8);
#pragma unroll
    for (int i = 0; i < STEP / 2; i++) s[i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int piece = 0; piece < D / 16; piece++)
#pragma unroll
        for (int n = 0; n < STEP / 8; n += 2) {
            uint32_t right[4];
            load_pieces(right, &tile[8 * n][beside(from, 16 * piece)]);
            mma_16_bits(s[n], rows[piece], {right[0], right[1]});
            mma_16_bits(s[n + 1], rows[piece], {right[2], right[3]});
        }
}

// Here a tile's rows are what is summed over, so the pieces are read turned.
__device__ __forceinline__ void add_tile(Sums& sums, const Scores& s, const Row* tile) {
    const int from = place(threadIdx.x % 16, threadIdx.x % WARP / 16 * 8);
#pragma unroll
    for (int piece = 0; piece < STEP / 16; piece++) {
        const float *low = s[2 * piece], *high = s[2 * piece + 1];
        const uint32_t left[4] = {pack_16_bits(low[0], low[1]), pack_16_bits(low[2], low[3]),
                                  pack_16_bits(high[0], high[1]), pack_16_bits(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t right[4];
            load_pieces_turned(right, &tile[16 * piece][beside(from, 8 * n)]);
            mma_16_bits(sums[n], left, {right[0], right[1]});
            mma_16_bits(sums[n + 1], left, {right[2], right[3]});
        }
    }
}

// Rows of scores are queries, columns keys from `key` on: no weight for those past the end, nor for
// those that a row does not see, of which the first sees keys up to `last`, each next one more.
__device__ __forceinline__ void hide_keys(Scores& s, int key, int n_keys, int last) {
    const int first = key + 2 * t_of_lane();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int most = min(n_keys - 1, last + g_of_lane() + 8 * half) - first;
#pragma unroll
        for (int i = 0; i < STEP / 4; i++)
            if (8 * (i / 2) + i % 2 > most) cell(s, half, i) = -INFINITY;
    }
}

// What dropout leaves of numbers that lie as the scores do: bit 4 n + i says whether [n][i] stays.
struct Kept {
    uint32_t bits;
    float keep;

    __device__ __forceinline__ float of(float v, int half, int i) const {
        return bits >> (4 * (i / 2) + 2 * half + i % 2) & 1 ? v * keep : 0.0f;
    }
};

// Four keys side by side share a draw, so each lane draws for four scores and the lanes exchange
// what they drew. Here rows are queries, at `position` and after, columns keys from `key` on: of
// two neighbouring lanes, which have the same two rows and four keys, one draws for the row g, one
// for g + 8.
__device__ __forceinline__ Kept kept_of_queries(const ScoreDropout& drop, uint32_t example_id,
                                                int position, int head, int key) {
    const int t = t_of_lane(), row = position + g_of_lane() + t % 2 * 8;
    uint32_t mine = 0;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
        mine |= four_kept(drop, example_id, row, head, key / 4 + 2 * n + t / 2) << 4 * n;
    const uint32_t other = __shfl_xor_sync(ALL_LANES, mine, 1);
    return {t % 2 ? (mine & 0xccccccccu) | (other >> 2 & 0x33333333u)
                  : (mine & 0x33333333u) | (other & 0x33333333u) << 2, drop.keep};
}

// Here rows are keys, columns queries: four lanes below each other share two queries and eight
// keys, and draw one of the four pairs each.
__device__ __forceinline__ Kept kept_of_keys(const ScoreDropout& drop, uint32_t example_id,
                                             int position, int head, int key) {
    const int lane = threadIdx.x % WARP, g = g_of_lane(), pair = g % 4;
    uint32_t mine = 0, kept = 0;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
        mine |= four_kept(drop, example_id, position + 8 * n + 2 * t_of_lane() + pair % 2, head,
                          key / 4 + g / 4 + pair / 2 * 2) << 4 * n;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t drawn = __shfl_sync(ALL_LANES, mine, (lane & ~12) | i << 2);
        kept |= (drawn >> pair & 0x11111111u) << i;
    }
    return {kept, drop.keep};
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS)
attention_tensor_cores_forward(
        const uint16_t* __restrict__ q, const uint16_t* __restrict__ k,
        const uint16_t* __restrict__ v, uint16_t* __restrict__ y, float* __restrict__ lse,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, int q_stride, int k_stride, int v_stride, int causal,
        float scale, const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep,
        uint32_t seed, const uint32_t* __restrict__ step, uint32_t site, int from_start) {
    __shared__ __align__(128) Row tiles[2][2][TILE];     // of keys and of values
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths,
                            DROPOUT && from_start);
    const int head = blockIdx.x, heads = gridDim.x, g = g_of_lane(), t = t_of_lane();
    // under a causal mask the last tiles have the most work: they start first
    const int first = (gridDim.y - 1 - blockIdx.y) * BLOCK_ROWS;
    const int mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_queries) return;     // the whole block

    const Walked from = {k + at.first_key * k_stride + head * D,
                         v + at.first_key * v_stride + head * D, 2 * k_stride, 2 * v_stride,
                         at.n_keys};
    load_tiles(tiles[0], from, 0);
    Fragments rows;
    load_rows(rows, q + at.first_query * q_stride + head * D, mine, at.n_queries, q_stride);
    // the key up to which the warp's first row sees, each next row one more; unmasked, all
    const int last = mine + (causal ? at.shift : at.n_keys);
    const int end = min(at.n_keys, last - mine + first + BLOCK_ROWS);
    const int my_end = mine < at.n_queries ? min(at.n_keys, last + ROWS) : 0;
    const float factor = scale * LOG2_E;
    float largest[2], sum[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) largest[half] = -INFINITY;
    Sums out = {};
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = DROPOUT ? example_ids[at.sequence] : 0;

    for (int tile = 0, now = 0; tile < end; tile += TILE, now ^= 1) {
        copies_wait();
        __syncthreads();     // the tile is there, and all have done with the one before
        if (tile + TILE < end) load_tiles(tiles[now ^ 1], from, tile + TILE);
#pragma unroll
        for (int part = 0; part < TILE; part += STEP) {
            const int key = tile + part;
            if (key >= my_end) break;
            Scores s;
            score(s, rows, tiles[now][0] + part);
            if (key + STEP > min(at.n_keys, last + 1)) hide_keys(s, key, at.n_keys, last);   // (1)
            float top[2];     // every row sees key 0: numbers from the first tile on
            bool higher = false;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                top[half] = largest[half];
#pragma unroll
                for (int i = 0; i < STEP / 4; i++) top[half] = fmaxf(top[half], cell(s, half, i));
                top[half] = quad_max(top[half]);
                higher |= (top[half] - largest[half]) * factor > LAG;
            }
            if (higher)     // seldom after the first tile
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float rescale = power_of_two((largest[half] - top[half]) * factor);
                    largest[half] = top[half];
                    sum[half] *= rescale;
#pragma unroll
                    for (int i = 0; i < D / 4; i++) cell(out, half, i) *= rescale;
                }
            const Kept kept = DROPOUT ? kept_of_queries(drop, example_id, mine + at.shift, head,
                                                        key) : Kept();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float below = largest[half] * factor;
#pragma unroll
                for (int i = 0; i < STEP / 4; i++) {
                    float& x = cell(s, half, i);
                    x = power_of_two(x * factor - below);                                // (2)
                    sum[half] += x;     // of this lane's keys
                    if (DROPOUT) x = kept.of(x, half, i);
                }
            }
            add_tile(out, s, tiles[now][1] + part);                                      // (3)
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        const float total = quad_sum(sum[half]), inverse = 1.0f / total;
        if (query >= at.n_queries) continue;
        const long long row = (at.first_query + query) * heads + head;
#pragma unroll
        for (int i = 0; i < D / 4; i += 2)
            *(uint32_t*)&y[row * D + 4 * i + 2 * t] =
                pack_16_bits(cell(out, half, i) * inverse, cell(out, half, i + 1) * inverse);
        if (t == 0) lse[row] = largest[half] * scale + logf(total);
    }
}

// Two neighbouring numbers of a gradient, from place `there` on: rounded into `low`, or else into
// `wide`, where `add` adds to them.
__device__ __forceinline__ void store_two(float* wide, uint16_t* low, long long there, float first,
                                          float second, int add) {
    if (low) {
        *(uint32_t*)&low[there] = pack_16_bits(first, second);
        return;
    }
    float2& two = *(float2*)&wide[there];
    const float2 before = add ? two : make_float2(0.0f, 0.0f);
    two = make_float2(before.x + first, before.y + second);
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
attention_tensor_cores_backward_queries(
        const uint16_t* __restrict__ dy, const uint16_t* __restrict__ q,
        const uint16_t* __restrict__ k, const uint16_t* __restrict__ v,
        const uint16_t* __restrict__ y, const float* __restrict__ lse, float* __restrict__ delta,
        float* __restrict__ dq, uint16_t* __restrict__ dq_low, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int dq_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int from_start) {
    __shared__ __align__(128) Row tiles[2][2][TILE];     // of keys and of values
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths,
                            DROPOUT && from_start);
    const int head = blockIdx.x, heads = gridDim.x, g = g_of_lane(), t = t_of_lane();
    const int first = (gridDim.y - 1 - blockIdx.y) * BLOCK_ROWS;
    const int mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_queries) return;

    const Walked from = {k + at.first_key * k_stride + head * D,
                         v + at.first_key * v_stride + head * D, 2 * k_stride, 2 * v_stride,
                         at.n_keys};
    load_tiles(tiles[0], from, 0);
    const long long packed = at.first_query * heads + head;     // row of query 0
    Fragments rows, up;
    load_rows(rows, y + packed * D, mine, at.n_queries, (long long)heads * D);
    load_rows(up, dy + packed * D, mine, at.n_queries, (long long)heads * D);
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        const long long row = packed + (long long)query * heads;
        const bool exists = query < at.n_queries;
        float part = 0.0f;     // rowsum(dP * P) of (6) is dY . Y, as in attention.cu
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const uint32_t a = rows[i / 2][half + i % 2 * 2];
            const uint32_t b = up[i / 2][half + i % 2 * 2];
            part += from_16_bits((uint16_t)a) * from_16_bits((uint16_t)b) +
                from_16_bits(a >> 16) * from_16_bits(b >> 16);
        }
        row_delta[half] = quad_sum(part);
        row_lse[half] = exists ? lse[row] * LOG2_E : 0.0f;
        if (exists && t == 0) delta[row] = row_delta[half];
    }
    load_rows(rows, q + at.first_query * q_stride + head * D, mine, at.n_queries, q_stride);
    const int last = mine + (causal ? at.shift : at.n_keys);
    const int end = min(at.n_keys, last - mine + first + BLOCK_ROWS);
    const int my_end = mine < at.n_queries ? min(at.n_keys, last + ROWS) : 0;
    const float factor = scale * LOG2_E;
    Sums sums = {};
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = DROPOUT ? example_ids[at.sequence] : 0;

    for (int tile = 0, now = 0; tile < end; tile += TILE, now ^= 1) {
        copies_wait();
        __syncthreads();
        if (tile + TILE < end) load_tiles(tiles[now ^ 1], from, tile + TILE);
#pragma unroll
        for (int part = 0; part < TILE; part += STEP) {
            const int key = tile + part;
            if (key >= my_end) break;
            Scores s, dp;
            score(s, rows, tiles[now][0] + part);
            if (key + STEP > min(at.n_keys, last + 1)) hide_keys(s, key, at.n_keys, last);   // (1)
            score(dp, up, tiles[now][1] + part);
            const Kept kept = DROPOUT ? kept_of_queries(drop, example_id, mine + at.shift, head,
                                                        key) : Kept();
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < STEP / 4; i++) {
                    float &x = cell(s, half, i), gradient = cell(dp, half, i);
                    if (DROPOUT) gradient = kept.of(gradient, half, i);                     // (5)
                    x = power_of_two(x * factor - row_lse[half]) *                          // (2)
                        (gradient - row_delta[half]);                                       // (6)
                }
            add_tile(sums, s, tiles[now][0] + part);
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        if (query >= at.n_queries) continue;
        const long long row = (at.first_query + query) * dq_stride + head * D + 2 * t;
#pragma unroll
        for (int i = 0; i < D / 4; i += 2)
            store_two(dq, dq_low, row + 4 * i, cell(sums, half, i) * scale,
                      cell(sums, half, i + 1) * scale, false);                              // (7)
    }
}

// Rows are keys here, so the scores stand transposed. Writes dk and dv, or adds to them with `add`,
// as in attention.cu.
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
attention_tensor_cores_backward_keys(
        const uint16_t* __restrict__ dy, const uint16_t* __restrict__ q,
        const uint16_t* __restrict__ k, const uint16_t* __restrict__ v,
        const float* __restrict__ lse, const float* __restrict__ delta, float* __restrict__ dk,
        float* __restrict__ dv, uint16_t* __restrict__ dk_low, uint16_t* __restrict__ dv_low,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, int q_stride, int k_stride, int v_stride,
        int dk_stride, int dv_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int from_start, int first_sequence,
        int add) {
    __shared__ __align__(128) Row tiles[2][2][TILE];     // of queries and of dy
    __shared__ float2 of_query[2][TILE];                 // lse and delta
    const Part at = part_of(first_sequence + blockIdx.z, cu_seqlens, key_starts, key_lengths,
                            DROPOUT && from_start);
    const int head = blockIdx.x, heads = gridDim.x, g = g_of_lane(), t = t_of_lane();
    const int first = blockIdx.y * BLOCK_ROWS, mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_keys) return;

    const long long packed = at.first_query * heads + head;     // row of query 0
    const Walked from = {q + at.first_query * q_stride + head * D, dy + packed * D, 2 * q_stride,
                         2 * heads * D, at.n_queries};
    // query 0 sees keys up to `shift`, each next one more; unmasked, all
    const int shift = causal ? at.shift : at.n_keys;
    const int start = max(0, first - shift);     // the first to see any of the block's
    float2 ahead;     // lse and delta of a query of the next tile, a lane of the first warps
    const auto load_ahead = [&](int tile) {
        const int query = tile + threadIdx.x;
        const long long row = packed + (long long)query * heads;
        ahead = threadIdx.x < TILE && query < at.n_queries ?
            make_float2(lse[row] * LOG2_E, delta[row]) :
            make_float2(INFINITY, 0.0f);     // past the end no key has a weight
    };
    if (start < at.n_queries) load_tiles(tiles[0], from, start);
    load_ahead(start);
    Fragments rows, values;
    load_rows(rows, k + at.first_key * k_stride + head * D, mine, at.n_keys, k_stride);
    load_rows(values, v + at.first_key * v_stride + head * D, mine, at.n_keys, v_stride);
    const float factor = scale * LOG2_E;
    Sums dk_sums = {}, dv_sums = {};
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = DROPOUT ? example_ids[at.sequence] : 0;

    for (int tile = start, now = 0; tile < at.n_queries; tile += TILE, now ^= 1) {
        if (threadIdx.x < TILE) of_query[now][threadIdx.x] = ahead;
        copies_wait();
        __syncthreads();
        if (tile + TILE < at.n_queries) {
            load_tiles(tiles[now ^ 1], from, tile + TILE);
            load_ahead(tile + TILE);
        }
        if (mine >= at.n_keys) continue;
#pragma unroll 1
        for (int part = 0; part < TILE; part += STEP) {
            const int last = tile + part + shift;     // key up to which the first of them sees
            if (tile + part >= at.n_queries) break;
            if (mine >= last + STEP) continue;
            Scores p, ds;
            score(p, rows, tiles[now][0] + part);
            if (mine + ROWS - 1 > last)                                                  // (1)
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int i = 0; i < STEP / 4; i++)
                        if (8 * (i / 2) + i % 2 < mine + g + 8 * half - last - 2 * t)
                            cell(p, half, i) = -INFINITY;
            score(ds, values, tiles[now][1] + part);
            const Kept kept = DROPOUT ? kept_of_keys(drop, example_id, tile + part + at.shift, head,
                                                     mine) : Kept();
#pragma unroll
            for (int i = 0; i < STEP / 4; i++) {
                const float2 row = of_query[now][part + 8 * (i / 2) + 2 * t + i % 2];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float &weight = cell(p, half, i), &gradient = cell(ds, half, i);
                    const float plain = power_of_two(weight * factor - row.x);           // (2)
                    weight = DROPOUT ? kept.of(plain, half, i) : plain;
                    if (DROPOUT) gradient = kept.of(gradient, half, i);                     // (5)
                    gradient = plain * (gradient - row.y);                               // (6)
                }
            }
            add_tile(dv_sums, p, tiles[now][1] + part);
            add_tile(dk_sums, ds, tiles[now][0] + part);
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int key = mine + g + 8 * half;
        if (key >= at.n_keys) continue;
        const long long of_k = (at.first_key + key) * dk_stride + head * D + 2 * t;
        const long long of_v = (at.first_key + key) * dv_stride + head * D + 2 * t;
#pragma unroll
        for (int i = 0; i < D / 4; i += 2) {
            store_two(dv, dv_low, of_v + 4 * i, cell(dv_sums, half, i), cell(dv_sums, half, i + 1),
                      add);                                                              // (4)
            store_two(dk, dk_low, of_k + 4 * i, cell(dk_sums, half, i) * scale,
                      cell(dk_sums, half, i + 1) * scale, add);                             // (7)
        }
    }
}
