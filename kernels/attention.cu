// Attention, fused (Dao et al. 2022, FlashAttention; Dao 2023, FlashAttention-2): the scores of a
// tile of queries and a tile of keys live in registers and shared memory and never reach the
// memory of the GPU. The backward needs only y and each row's log-sum-exp.
//
// Computes, of minisft/ops/attention.py: (1) to (3) in attention_forward; (5) to (7) for dQ in
// attention_backward_queries; (4) to (7) for dK and dV in attention_backward_keys, which reads what
// the one before it wrote to `delta`. Each computes its scores again; no sum needs atomics, so
// equal inputs give equal bits.
// Grid: (tiles, heads, sequences). A block owns a tile of queries (or of keys) of one head of one
// sequence and walks over the tiles of keys (or queries); a warp owns ROWS of them.
// A lane has two roles: for scores it is a key; for sums over keys (or queries) it is a channel, or
// several channels 32 apart.
// Shared memory, bytes, D = HEAD_WIDTH: forward (QUERIES + 2 KEYS) * 4 * (D | 1) + 4 * QUERIES *
// KEYS; backward about 2 (QUERIES + KEYS) * 4 * (D | 1) + 8 * QUERIES * KEYS; always below 48 KB.
// Demands: float32; HEAD_WIDTH (a -D option) from 1 to 128; q, k, v (tokens, heads, D) whose rows
// may lie `stride` numbers apart, all else contiguous; no more queries than keys if causal.

#define D HEAD_WIDTH
#define THREADS 128
#define WARPS (THREADS / WARP)
#define KEYS WARP                          // keys of a tile: one a lane
#define COLUMNS ((D + WARP - 1) / WARP)    // channels of a lane
#define PIECE 16
#define PITCH (D | 1)                      // odd: lanes that read 32 rows hit 32 banks
#if D <= 64
#define FORWARD_ROWS 8                     // queries of a warp
#define BACKWARD_ROWS 8
#else                                      // what 48 KB of shared memory allow
#define FORWARD_ROWS 4
#define BACKWARD_ROWS 2
#endif
#define KEY_ROWS (KEYS / WARPS)            // keys of a warp

// One head of one sequence. Query i sees key j <= i + shift if causal, else all of them.
struct Part {
    int sequence, head, n_queries, n_keys, shift;
    long long first_query, first_key;
};

__device__ __forceinline__ Part part_of(int sequence, const int* cu_seqlens, const int* key_starts,
                                        const int* key_lengths) {
    const int first = cu_seqlens[sequence], n_queries = cu_seqlens[sequence + 1] - first;
    const int n_keys = key_lengths[sequence];
    return {sequence, (int)blockIdx.y, n_queries, n_keys, n_keys - n_queries, first,
            key_starts[sequence]};
}

// Rows [first, first + ROWS) of x, of which there are n -> tile; past the end zeros.
template <int ROWS>
__device__ __forceinline__ void load_tile(float (*tile)[PITCH], const float* x, int first, int n,
                                          long long stride) {
    for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
        const int row = i / D, c = i % D;
        tile[row][c] = first + row < n ? x[(first + row) * stride + c] : 0.0f;
    }
}

// -> the products of ROWS rows of a tile, the same for all lanes, with the lane's own row; summed
// in pieces of PIECE channels, which keeps rounding errors from piling up
template <int ROWS>
__device__ __forceinline__ void products(float (&sum)[ROWS], const float (*rows)[PITCH],
                                         const float* mine) {
    for (int r = 0; r < ROWS; r++) sum[r] = 0.0f;
    for (int piece = 0; piece < D; piece += PIECE) {
        float part[ROWS] = {};
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            if (piece + i >= D) continue;
            const float x = mine[piece + i];
            for (int r = 0; r < ROWS; r++) part[r] += rows[r][piece + i] * x;
        }
        for (int r = 0; r < ROWS; r++) sum[r] += part[r];
    }
}

// Adds to each of ROWS rows of sums, a lane's channels of it: weight[r] * row, `apart` numbers
// between two weights.
template <int ROWS>
__device__ __forceinline__ void add_weighted(float (&sum)[ROWS][COLUMNS], const float* weight,
                                             int apart, const float* row) {
    const int lane = threadIdx.x % WARP;
    for (int column = 0; column < COLUMNS; column++) {
        const int c = lane + WARP * column;
        const float x = c < D ? row[c] : 0.0f;
        for (int r = 0; r < ROWS; r++) sum[r][column] += weight[r * apart] * x;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
        const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
        float* __restrict__ y, float* __restrict__ lse, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        uint32_t step, uint32_t site) {
    constexpr int ROWS = FORWARD_ROWS, QUERIES = WARPS * ROWS;
    __shared__ float q_tile[QUERIES][PITCH], k_tile[KEYS][PITCH], v_tile[KEYS][PITCH];
    __shared__ float p_tile[QUERIES][KEYS];
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // under a causal mask the last tiles have the most work: they start first
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, mine = first + warp * ROWS;
    if (first >= at.n_queries) return;     // the whole block: sequences differ in length

    q += at.first_query * q_stride + at.head * D;
    k += at.first_key * k_stride + at.head * D;
    v += at.first_key * v_stride + at.head * D;
    load_tile<QUERIES>(q_tile, q, first, at.n_queries, q_stride);
    float largest[ROWS], sum[ROWS], out[ROWS][COLUMNS] = {};
    for (int r = 0; r < ROWS; r++) largest[r] = -INFINITY, sum[r] = 0.0f;

    const int end = causal ? min(at.n_keys, first + QUERIES + at.shift) : at.n_keys;
    for (int tile = 0; tile < end; tile += KEYS) {
        __syncthreads();     // all have done with the tiles before
        load_tile<KEYS>(k_tile, k, tile, at.n_keys, k_stride);
        load_tile<KEYS>(v_tile, v, tile, at.n_keys, v_stride);
        __syncthreads();     // and all of the new ones is there
        if (mine >= at.n_queries) continue;
        const int key = tile + lane;
        float s[ROWS];
        products<ROWS>(s, q_tile + warp * ROWS, k_tile[lane]);
        for (int r = 0; r < ROWS; r++) {
            const bool seen = key < at.n_keys && (!causal || key <= mine + r + at.shift);
            s[r] = seen ? s[r] * scale : -INFINITY;                                  // (1)
            const float before = largest[r];
            largest[r] = fmaxf(before, warp_max(s[r]));
            const float rescale = exp_below(before, largest[r]);
            const float p = exp_below(s[r], largest[r]);                             // (2)
            sum[r] = sum[r] * rescale + p;     // of this lane's keys
            for (int column = 0; column < COLUMNS; column++) out[r][column] *= rescale;
            p_tile[warp * ROWS + r][lane] =
                p * score_mask(drop, at.sequence, mine + r + at.shift, at.head, key);
        }
        __syncwarp();     // every lane's p is there
        for (int j = 0; j < KEYS; j++)
            add_weighted<ROWS>(out, &p_tile[warp * ROWS][j], KEYS, v_tile[j]);       // (3)
        // no lane comes to the next p before the barriers above
    }

    for (int r = 0; r < ROWS; r++) {
        const float total = warp_sum(sum[r]);
        const long long row = (at.first_query + mine + r) * gridDim.y + at.head;
        if (mine + r >= at.n_queries) continue;
        for (int column = 0; column < COLUMNS; column++)
            if (const int c = lane + WARP * column; c < D) y[row * D + c] = out[r][column] / total;
        if (lane == 0) lse[row] = largest[r] + logf(total);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries(
        const float* __restrict__ dy, const float* __restrict__ q, const float* __restrict__ k,
        const float* __restrict__ v, const float* __restrict__ y, const float* __restrict__ lse,
        float* __restrict__ delta, float* __restrict__ dq, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        uint32_t step, uint32_t site) {
    constexpr int ROWS = BACKWARD_ROWS, QUERIES = WARPS * ROWS;
    __shared__ float q_tile[QUERIES][PITCH], dy_tile[QUERIES][PITCH];
    __shared__ float k_tile[KEYS][PITCH], v_tile[KEYS][PITCH], ds_tile[QUERIES][KEYS];
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, mine = first + warp * ROWS;
    if (first >= at.n_queries) return;

    const long long packed = at.first_query * gridDim.y + at.head;     // row of query 0
    q += at.first_query * q_stride + at.head * D;
    k += at.first_key * k_stride + at.head * D;
    v += at.first_key * v_stride + at.head * D;
    load_tile<QUERIES>(q_tile, q, first, at.n_queries, q_stride);
    load_tile<QUERIES>(dy_tile, dy + packed * D, first, at.n_queries, (long long)gridDim.y * D);
    // rowsum(dP * P) of (6) is rowsum(dY * Y): sum_j p_j m_j (dy . v_j) = dy . sum_j p_j m_j v_j
    float row_delta[ROWS], row_lse[ROWS], sum[ROWS][COLUMNS] = {};
    for (int r = 0; r < ROWS; r++) {
        const long long row = packed + (long long)(mine + r) * gridDim.y;
        const bool exists = mine + r < at.n_queries;
        float part = 0.0f;
        for (int c = lane; c < D && exists; c += WARP) part += dy[row * D + c] * y[row * D + c];
        row_delta[r] = warp_sum(part);
        row_lse[r] = exists ? lse[row] : 0.0f;
        if (exists && lane == 0) delta[row] = row_delta[r];
    }

    const int end = causal ? min(at.n_keys, first + QUERIES + at.shift) : at.n_keys;
    for (int tile = 0; tile < end; tile += KEYS) {
        __syncthreads();
        load_tile<KEYS>(k_tile, k, tile, at.n_keys, k_stride);
        load_tile<KEYS>(v_tile, v, tile, at.n_keys, v_stride);
        __syncthreads();
        if (mine >= at.n_queries) continue;
        const int key = tile + lane;
        float s[ROWS], dp[ROWS];
        products<ROWS>(s, q_tile + warp * ROWS, k_tile[lane]);
        products<ROWS>(dp, dy_tile + warp * ROWS, v_tile[lane]);
        for (int r = 0; r < ROWS; r++) {
            const bool seen = key < at.n_keys && (!causal || key <= mine + r + at.shift);
            const float p = seen ? expf(s[r] * scale - row_lse[r]) : 0.0f;           // (1), (2)
            const float m = score_mask(drop, at.sequence, mine + r + at.shift, at.head, key);
            ds_tile[warp * ROWS + r][lane] = p * (dp[r] * m - row_delta[r]);         // (5), (6)
        }
        __syncwarp();
        for (int j = 0; j < KEYS; j++)
            add_weighted<ROWS>(sum, &ds_tile[warp * ROWS][j], KEYS, k_tile[j]);
    }

    for (int r = 0; r < ROWS; r++) {
        const long long row = packed + (long long)(mine + r) * gridDim.y;
        if (mine + r >= at.n_queries) continue;
        for (int column = 0; column < COLUMNS; column++)
            if (const int c = lane + WARP * column; c < D)
                dq[row * D + c] = sum[r][column] * scale;                            // (7)
    }
}

// Adds to dk and dv: sequences may share keys; then the launcher sends one after another, from
// `first_sequence` on.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys(
        const float* __restrict__ dy, const float* __restrict__ q, const float* __restrict__ k,
        const float* __restrict__ v, const float* __restrict__ lse,
        const float* __restrict__ delta, float* __restrict__ dk, float* __restrict__ dv,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, int q_stride, int k_stride, int v_stride, int causal,
        float scale, const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep,
        uint32_t seed, uint32_t step, uint32_t site, int first_sequence) {
    constexpr int ROWS = BACKWARD_ROWS, QUERIES = WARPS * ROWS;
    __shared__ float q_tile[QUERIES][PITCH], dy_tile[QUERIES][PITCH];
    __shared__ float k_tile[KEYS][PITCH], v_tile[KEYS][PITCH];
    __shared__ float p_tile[QUERIES][KEYS], ds_tile[QUERIES][KEYS];
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const Part at = part_of(first_sequence + blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = blockIdx.x * KEYS, key = first + lane;
    if (first >= at.n_keys) return;

    const long long packed = at.first_query * gridDim.y + at.head;
    q += at.first_query * q_stride + at.head * D;
    k += at.first_key * k_stride + at.head * D;
    v += at.first_key * v_stride + at.head * D;
    load_tile<KEYS>(k_tile, k, first, at.n_keys, k_stride);
    load_tile<KEYS>(v_tile, v, first, at.n_keys, v_stride);
    float dk_sum[KEY_ROWS][COLUMNS] = {}, dv_sum[KEY_ROWS][COLUMNS] = {};

    const int start = causal ? max(0, first - at.shift) : 0;     // who sees the first key
    for (int tile = start; tile < at.n_queries; tile += QUERIES) {
        __syncthreads();
        load_tile<QUERIES>(q_tile, q, tile, at.n_queries, q_stride);
        load_tile<QUERIES>(dy_tile, dy + packed * D, tile, at.n_queries, (long long)gridDim.y * D);
        __syncthreads();
        float s[ROWS], dp[ROWS];
        products<ROWS>(s, q_tile + warp * ROWS, k_tile[lane]);
        products<ROWS>(dp, dy_tile + warp * ROWS, v_tile[lane]);
        for (int r = 0; r < ROWS; r++) {
            const int query = tile + warp * ROWS + r;
            const long long row = packed + (long long)query * gridDim.y;
            const bool exists = query < at.n_queries;
            const bool seen = exists && key < at.n_keys && (!causal || key <= query + at.shift);
            const float p = seen ? expf(s[r] * scale - lse[row]) : 0.0f;             // (1), (2)
            const float m = score_mask(drop, at.sequence, query + at.shift, at.head, key);
            p_tile[warp * ROWS + r][lane] = p * m;
            ds_tile[warp * ROWS + r][lane] =
                p * (dp[r] * m - (exists ? delta[row] : 0.0f));                      // (5), (6)
        }
        __syncthreads();     // a warp's keys need the scores that every warp made
        for (int i = 0; i < QUERIES; i++) {
            add_weighted<KEY_ROWS>(dv_sum, &p_tile[i][warp * KEY_ROWS], 1, dy_tile[i]);
            add_weighted<KEY_ROWS>(dk_sum, &ds_tile[i][warp * KEY_ROWS], 1, q_tile[i]);
        }
    }

    for (int r = 0; r < KEY_ROWS; r++) {
        const int j = first + warp * KEY_ROWS + r;
        const long long row = (at.first_key + j) * gridDim.y + at.head;
        if (j >= at.n_keys) continue;
        for (int column = 0; column < COLUMNS; column++) {
            const int c = lane + WARP * column;
            if (c >= D) continue;
            dv[row * D + c] += dv_sum[r][column];                                    // (4)
            dk[row * D + c] += dk_sum[r][column] * scale;                            // (7)
        }
    }
}
