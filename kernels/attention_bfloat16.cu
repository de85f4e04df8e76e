// Attention, fused, on tensor cores: what attention.cu does, with inputs, weights p and score
// gradients rounded to bfloat16 and every sum in float32.
//
// Computes, of minisft/ops/attention.py: (1) to (3) in attention_bfloat16_forward; (5) to (7) for
// dQ in _backward_queries; (4) to (7) for dK and dV in _backward_keys.
// Grid: (tiles of 64 rows, heads, sequences). A block owns 64 queries (or keys) of one head of one
// sequence, each of its four warps 16 of them, the rows of its fragments; the block walks over
// tiles of 32 keys (or queries) in shared memory.
// Shared memory: two tiles, 2 * 32 * (D + 8) * 2 bytes.
// Demands: sm_80; bfloat16 as uint16; D = HEAD_WIDTH (a -D option), a multiple of 16 up to 128;
// even strides of q, k, v; no more queries than keys if causal. Gradients come out in float32.
//
// Two products do everything. `score` multiplies a warp's 16 rows, which it keeps as fragments, by
// the rows of a tile. `add_tile` multiplies what came of that, packed, by the tile's columns: the
// layout of a sum is the layout of the next product's left side, so no score leaves its lane.

#define D HEAD_WIDTH
#define THREADS 128
#define ROWS 16                      // of a warp
#define BLOCK_ROWS (ROWS * THREADS / WARP)
#define TILE 32                      // rows of a tile
#define PITCH (D + 8)                // eight rows that begin in different banks

typedef uint32_t Fragments[D / 16][4];       // a warp's rows of q, k, v or dy
typedef float Scores[TILE / 8][4];           // rows of the warp, rows of a tile
typedef float Sums[D / 8][4];                // rows of the warp, channels
typedef uint16_t Tile[TILE][PITCH];

struct Part {
    int sequence, n_queries, n_keys, shift;
    long long first_query, first_key;
};

__device__ __forceinline__ Part part_of(int sequence, const int* cu_seqlens, const int* key_starts,
                                        const int* key_lengths) {
    const int first = cu_seqlens[sequence], n_queries = cu_seqlens[sequence + 1] - first;
    const int n_keys = key_lengths[sequence];
    return {sequence, n_queries, n_keys, n_keys - n_queries, first, key_starts[sequence]};
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

// Rows [first, first + 16) of x, of which there are n; past the end zeros.
__device__ __forceinline__ void load_rows(Fragments& rows, const uint16_t* x, int first, int n,
                                          long long stride) {
    for (int piece = 0; piece < D / 16; piece++)
        for (int word = 0; word < 4; word++) {
            const int row = first + g_of_lane() + word % 2 * 8;
            const int c = 16 * piece + 2 * t_of_lane() + word / 2 * 8;
            rows[piece][word] = row < n ? *(const uint32_t*)&x[row * stride + c] : 0;
        }
}

__device__ __forceinline__ void load_tile(Tile& tile, const uint16_t* x, int first, int n,
                                          long long stride) {
    for (int i = threadIdx.x; i < TILE * D / 2; i += THREADS) {
        const int row = i / (D / 2), c = i % (D / 2) * 2;
        *(uint32_t*)&tile[row][c] =
            first + row < n ? *(const uint32_t*)&x[(first + row) * stride + c] : 0;
    }
}

__device__ __forceinline__ void score(Scores& s, const Fragments& rows, const Tile& tile) {
    const int g = g_of_lane(), t = t_of_lane();
    for (int n = 0; n < TILE / 8; n++) {
        for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
        for (int piece = 0; piece < D / 16; piece++) {
            const uint16_t* row = &tile[8 * n + g][16 * piece + 2 * t];
            const uint32_t right[2] = {*(const uint32_t*)row, *(const uint32_t*)(row + 8)};
            mma_bfloat16(s[n], rows[piece], right);
        }
    }
}

__device__ __forceinline__ void add_tile(Sums& sums, const Scores& s, const Tile& tile) {
    const int g = g_of_lane(), t = t_of_lane();
    for (int piece = 0; piece < TILE / 16; piece++) {
        const float *low = s[2 * piece], *high = s[2 * piece + 1];
        const uint32_t left[4] = {pack_bfloat16(low[0], low[1]), pack_bfloat16(low[2], low[3]),
                                  pack_bfloat16(high[0], high[1]), pack_bfloat16(high[2], high[3])};
        for (int n = 0; n < D / 8; n++) {
            const uint16_t* column = &tile[16 * piece + 2 * t][8 * n + g];
            const uint32_t right[2] = {column[0] | (uint32_t)column[PITCH] << 16,
                                       column[8 * PITCH] | (uint32_t)column[9 * PITCH] << 16};
            mma_bfloat16(sums[n], left, right);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_bfloat16_forward(
        const uint16_t* __restrict__ q, const uint16_t* __restrict__ k,
        const uint16_t* __restrict__ v, uint16_t* __restrict__ y, float* __restrict__ lse,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, int q_stride, int k_stride, int v_stride, int causal,
        float scale, const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep,
        uint32_t seed, uint32_t step, uint32_t site) {
    __shared__ __align__(16) Tile k_tile, v_tile;
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int head = blockIdx.y, heads = gridDim.y, g = g_of_lane(), t = t_of_lane();
    const int first = (gridDim.x - 1 - blockIdx.x) * BLOCK_ROWS;
    const int mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_queries) return;     // the whole block

    q += at.first_query * q_stride + head * D;
    k += at.first_key * k_stride + head * D;
    v += at.first_key * v_stride + head * D;
    Fragments rows;
    load_rows(rows, q, mine, at.n_queries, q_stride);
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};     // of rows g and g + 8
    Sums out = {};

    const int end = causal ? min(at.n_keys, first + BLOCK_ROWS + at.shift) : at.n_keys;
    for (int tile = 0; tile < end; tile += TILE) {
        __syncthreads();
        load_tile(k_tile, k, tile, at.n_keys, k_stride);
        load_tile(v_tile, v, tile, at.n_keys, v_stride);
        __syncthreads();
        Scores s;
        score(s, rows, k_tile);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = mine + g + 8 * half;
            float top = largest[half];
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) {
                float& x = s[i / 2][2 * half + i % 2];
                const int key = tile + 8 * (i / 2) + 2 * t + i % 2;
                const bool seen = key < at.n_keys && (!causal || key <= query + at.shift);
                x = seen ? x * scale : -INFINITY;                                    // (1)
                top = fmaxf(top, x);
            }
            top = quad_max(top);
            const float rescale = exp_below(largest[half], top);
            largest[half] = top;
            sum[half] *= rescale;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                for (int i = 0; i < 2; i++) out[n][2 * half + i] *= rescale;
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) {
                float& x = s[i / 2][2 * half + i % 2];
                const int key = tile + 8 * (i / 2) + 2 * t + i % 2;
                const float p = exp_below(x, top);                                   // (2)
                sum[half] += p;     // of this lane's keys
                x = p * score_mask(drop, at.sequence, query + at.shift, head, key);
            }
        }
        add_tile(out, s, v_tile);                                                    // (3)
    }

    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        const float total = quad_sum(sum[half]);
        if (query >= at.n_queries) continue;
        const long long row = (at.first_query + query) * heads + head;
        for (int n = 0; n < D / 8; n++)
            *(uint32_t*)&y[row * D + 8 * n + 2 * t] =
                pack_bfloat16(out[n][2 * half] / total, out[n][2 * half + 1] / total);
        if (t == 0) lse[row] = largest[half] + logf(total);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_bfloat16_backward_queries(
        const uint16_t* __restrict__ dy, const uint16_t* __restrict__ q,
        const uint16_t* __restrict__ k, const uint16_t* __restrict__ v,
        const uint16_t* __restrict__ y, const float* __restrict__ lse, float* __restrict__ delta,
        float* __restrict__ dq, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        uint32_t step, uint32_t site) {
    __shared__ __align__(16) Tile k_tile, v_tile;
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int head = blockIdx.y, heads = gridDim.y, g = g_of_lane(), t = t_of_lane();
    const int first = (gridDim.x - 1 - blockIdx.x) * BLOCK_ROWS;
    const int mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_queries) return;

    const long long packed = at.first_query * heads + head;     // row of query 0
    q += at.first_query * q_stride + head * D;
    k += at.first_key * k_stride + head * D;
    v += at.first_key * v_stride + head * D;
    Fragments rows, up;
    load_rows(rows, q, mine, at.n_queries, q_stride);
    load_rows(up, dy + packed * D, mine, at.n_queries, (long long)heads * D);
    float row_lse[2], row_delta[2];
    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        const long long row = packed + (long long)query * heads;
        const bool exists = query < at.n_queries;
        float part = 0.0f;     // rowsum(dP * P) of (6) is dY . Y, as in attention.cu
        for (int c = t; c < D && exists; c += 4)
            part += from_bfloat16(dy[row * D + c]) * from_bfloat16(y[row * D + c]);
        row_delta[half] = quad_sum(part);
        row_lse[half] = exists ? lse[row] : 0.0f;
        if (exists && t == 0) delta[row] = row_delta[half];
    }
    Sums sums = {};

    const int end = causal ? min(at.n_keys, first + BLOCK_ROWS + at.shift) : at.n_keys;
    for (int tile = 0; tile < end; tile += TILE) {
        __syncthreads();
        load_tile(k_tile, k, tile, at.n_keys, k_stride);
        load_tile(v_tile, v, tile, at.n_keys, v_stride);
        __syncthreads();
        Scores s, dp;
        score(s, rows, k_tile);
        score(dp, up, v_tile);
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            const int half = i / 2 % 2, query = mine + g + 8 * half;
            const int key = tile + 8 * (i / 4) + 2 * t + i % 2;
            const bool seen = key < at.n_keys && (!causal || key <= query + at.shift);
            float& x = s[i / 4][i % 4];
            const float p = seen ? expf(x * scale - row_lse[half]) : 0.0f;           // (1), (2)
            const float m = score_mask(drop, at.sequence, query + at.shift, head, key);
            x = p * (dp[i / 4][i % 4] * m - row_delta[half]);                        // (5), (6)
        }
        add_tile(sums, s, k_tile);
    }

    for (int n = 0; n < D / 8; n++)
        for (int i = 0; i < 4; i++) {
            const int query = mine + g + 8 * (i / 2);
            if (query < at.n_queries)
                dq[(packed + (long long)query * heads) * D + 8 * n + 2 * t + i % 2] =
                    sums[n][i] * scale;                                              // (7)
        }
}

// Rows are keys here, so the scores stand transposed. Adds to dk and dv, as in attention.cu.
extern "C" __global__ void __launch_bounds__(THREADS) attention_bfloat16_backward_keys(
        const uint16_t* __restrict__ dy, const uint16_t* __restrict__ q,
        const uint16_t* __restrict__ k, const uint16_t* __restrict__ v,
        const float* __restrict__ lse, const float* __restrict__ delta, float* __restrict__ dk,
        float* __restrict__ dv, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        uint32_t step, uint32_t site,
        int first_sequence) {
    __shared__ __align__(16) Tile q_tile, dy_tile;
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const Part at = part_of(first_sequence + blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int head = blockIdx.y, heads = gridDim.y, g = g_of_lane(), t = t_of_lane();
    const int first = blockIdx.x * BLOCK_ROWS, mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_keys) return;

    const long long packed = at.first_query * heads + head;
    q += at.first_query * q_stride + head * D;
    k += at.first_key * k_stride + head * D;
    v += at.first_key * v_stride + head * D;
    Fragments rows, values;
    load_rows(rows, k, mine, at.n_keys, k_stride);
    load_rows(values, v, mine, at.n_keys, v_stride);
    Sums dk_sums = {}, dv_sums = {};

    const int start = causal ? max(0, first - at.shift) : 0;     // who sees the first key
    for (int tile = start; tile < at.n_queries; tile += TILE) {
        __syncthreads();
        load_tile(q_tile, q, tile, at.n_queries, q_stride);
        load_tile(dy_tile, dy + packed * D, tile, at.n_queries, (long long)heads * D);
        __syncthreads();
        Scores p, ds;
        score(p, rows, q_tile);
        score(ds, values, dy_tile);
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            const int key = mine + g + 8 * (i / 2 % 2);
            const int query = tile + 8 * (i / 4) + 2 * t + i % 2;
            const long long row = packed + (long long)query * heads;
            const bool seen = query < at.n_queries && key < at.n_keys &&
                (!causal || key <= query + at.shift);
            float &weight = p[i / 4][i % 4], &gradient = ds[i / 4][i % 4];
            const float plain = seen ? expf(weight * scale - lse[row]) : 0.0f;       // (1), (2)
            const float m = score_mask(drop, at.sequence, query + at.shift, head, key);
            weight = plain * m;
            gradient = seen ? plain * (gradient * m - delta[row]) : 0.0f;            // (5), (6)
        }
        add_tile(dv_sums, p, dy_tile);
        add_tile(dk_sums, ds, q_tile);
    }

#pragma unroll
    for (int n = 0; n < D / 8; n++)
        for (int i = 0; i < 4; i++) {
            const int key = mine + g + 8 * (i / 2);
            if (key >= at.n_keys) continue;
            const long long to =
                ((at.first_key + key) * heads + head) * D + 8 * n + 2 * t + i % 2;
            dv[to] += dv_sums[n][i];                                                 // (4)
            dk[to] += dk_sums[n][i] * scale;                                         // (7)
        }
}
