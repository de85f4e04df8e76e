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
// A lane has two roles: for scores it is a key, or two; for sums over keys (or queries) it is a
// channel, or several side by side. In both a thread holds ROWS x 2 sums or so in registers, and
// what it loads, four numbers at once, serves several of them: shared memory gives one warp 32
// numbers a cycle, while four warps multiply, so numbers loaded for one product each are too slow.
// Shared memory, bytes, with P = PITCH and K = FORWARD_KEYS: forward (QUERIES + 2 K) * 4 * P +
// 128 * QUERIES; backward (2 QUERIES + 64) * 4 * P + 256 * QUERIES at most; always below 48 KB.
// Demands: float32; HEAD_WIDTH (a -D option) from 1 to 128; q, k, v (tokens, heads, D) whose rows
// may lie `stride` numbers apart, all else contiguous but for the gradients, which have strides,
// too; -D WIDE=1 where all rows begin at 16 bytes, else 0; -D DROPOUT=1 or 0; no more queries than
// keys if causal.

#define D HEAD_WIDTH
#define THREADS 128
#define WARPS (THREADS / WARP)
#define KEYS WARP                          // keys of a tile of the backward: one a lane
#define COLUMNS ((D + WARP - 1) / WARP)    // channels of a lane
#define PIECE 16
// Distance of two rows of a tile: a multiple of four numbers, an odd one, so that eight lanes that
// load four numbers of a row each hit 32 banks.
#define FOURS ((D + 3) / 4)
#define PITCH (4 * (FOURS % 2 ? FOURS : FOURS + 1))
#if D <= 64
#define FORWARD_ROWS 8                     // queries of a warp
#define BACKWARD_ROWS 8
#define KEYS_OF_LANE 2                     // of the forward
#else                                      // what 48 KB of shared memory allow
#define FORWARD_ROWS 4
#define BACKWARD_ROWS 2
#define KEYS_OF_LANE 1
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
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * FOURS; i += THREADS) {
        const int row = i / FOURS, c = i % FOURS * 4;
        const bool exists = first + row < n;
        const float* from = &x[(exists ? first + row : 0) * stride + c];
#if WIDE
        float4 four = exists ? *(const float4*)from : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#else
        float4 four;
        four.x = exists ? from[0] : 0.0f;
        four.y = exists && c + 1 < D ? from[1] : 0.0f;
        four.z = exists && c + 2 < D ? from[2] : 0.0f;
        four.w = exists && c + 3 < D ? from[3] : 0.0f;
#endif
        *(float4*)&tile[row][c] = four;
    }
}

// -> the products of ROWS rows of a tile, the same for all lanes, with the lane's own rows, which
// lie WARP rows apart; summed in pieces of PIECE channels, so that rounding errors do not pile up
template <int ROWS, int OWN>
__device__ __forceinline__ void products(float (&sum)[OWN][ROWS], const float (*rows)[PITCH],
                                         const float (*own)[PITCH]) {
#pragma unroll
    for (int o = 0; o < OWN; o++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[o][r] = 0.0f;
#pragma unroll 1
    for (int piece = 0; piece < D; piece += PIECE) {
        float part[OWN][ROWS] = {};
#pragma unroll
        for (int i = 0; i < PIECE; i += 4) {
            if (piece + i >= D) continue;
            float4 x[OWN];
#pragma unroll
            for (int o = 0; o < OWN; o++) x[o] = *(const float4*)&own[WARP * o][piece + i];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float4 y = *(const float4*)&rows[r][piece + i];
#pragma unroll
                for (int o = 0; o < OWN; o++) {
                    part[o][r] += x[o].x * y.x;
                    part[o][r] += x[o].y * y.y;
                    part[o][r] += x[o].z * y.z;
                    part[o][r] += x[o].w * y.w;
                }
            }
        }
#pragma unroll
        for (int o = 0; o < OWN; o++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) sum[o][r] += part[o][r];
    }
}

// The lane's channel `column`, or past the last of them.
__device__ __forceinline__ int channel(int column) {
    return threadIdx.x % WARP * COLUMNS + column;
}

__device__ __forceinline__ bool is_channel(int c) { return D % WARP == 0 || c < D; }

__device__ __forceinline__ void load_channels(float (&x)[COLUMNS], const float* row) {
#pragma unroll
    for (int column = 0; column < COLUMNS; column++)
        x[column] = is_channel(channel(column)) ? row[channel(column)] : 0.0f;
}

// Adds weights[r][j] * rows[j], for all keys j, to each of ROWS rows of sums, a lane's channels.
template <int ROWS>
__device__ __forceinline__ void add_weighted(float (&sum)[ROWS][COLUMNS],
                                             const float (*weights)[KEYS],
                                             const float (*rows)[PITCH]) {
#pragma unroll 2
    for (int j = 0; j < KEYS; j += 4) {
        float x[4][COLUMNS];
#pragma unroll
        for (int i = 0; i < 4; i++) load_channels(x[i], rows[j + i]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float4 w = *(const float4*)&weights[r][j];
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                sum[r][column] += w.x * x[0][column];
                sum[r][column] += w.y * x[1][column];
                sum[r][column] += w.z * x[2][column];
                sum[r][column] += w.w * x[3][column];
            }
        }
    }
}

// The same turned: rows are KEY_ROWS keys, weights[r] one query's of them.
__device__ __forceinline__ void add_weighted_row(float (&sum)[KEY_ROWS][COLUMNS],
                                                 const float* weights, const float* row) {
    float x[COLUMNS];
    load_channels(x, row);
#pragma unroll
    for (int r = 0; r < KEY_ROWS; r += 4) {
        const float4 w = *(const float4*)&weights[r];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            sum[r][column] += w.x * x[column];
            sum[r + 1][column] += w.y * x[column];
            sum[r + 2][column] += w.z * x[column];
            sum[r + 3][column] += w.w * x[column];
        }
    }
}

// Which of a warp's scores of ROWS queries, at `position` and after, dropout keeps: bit r is that
// of row r at this lane's key. Four keys side by side share a draw, so each of their lanes draws
// for every fourth row, and they exchange what they drew.
template <int ROWS>
__device__ __forceinline__ uint32_t kept_rows(const ScoreDropout& drop, uint32_t example_id,
                                              int position, int head, int key) {
    const int lane = threadIdx.x % WARP, turn = lane % 4;
    uint32_t mine = 0, kept = 0;
#pragma unroll
    for (int r = 0; r < ROWS; r += 4)
        if (r + turn < ROWS)
            mine |= four_kept(drop, example_id, position + r + turn, head, key / 4) << r;
#pragma unroll
    for (int i = 0; i < 4 && i < ROWS; i++) {
        const uint32_t drawn = __shfl_sync(ALL_LANES, mine, lane - turn + i);
        kept |= (drawn >> turn & 0x11111111u) << i;
    }
    return kept;
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
        const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
        float* __restrict__ y, float* __restrict__ lse, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site) {
    constexpr int ROWS = FORWARD_ROWS, QUERIES = WARPS * ROWS, OWN = KEYS_OF_LANE;
    constexpr int TILE = OWN * KEYS;
    __shared__ __align__(16) float q_tile[QUERIES][PITCH], k_tile[TILE][PITCH];
    __shared__ __align__(16) float v_tile[TILE][PITCH], p_tile[QUERIES][KEYS];
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
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    const int end = causal ? min(at.n_keys, first + QUERIES + at.shift) : at.n_keys;
    for (int tile = 0; tile < end; tile += TILE) {
        __syncthreads();     // all have done with the tiles before
        load_tile<TILE>(k_tile, k, tile, at.n_keys, k_stride);
        load_tile<TILE>(v_tile, v, tile, at.n_keys, v_stride);
        __syncthreads();     // and all of the new ones is there
        if (mine >= at.n_queries) continue;
        float s[OWN][ROWS];
        products<ROWS, OWN>(s, q_tile + warp * ROWS, k_tile + lane);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float before = largest[r];
            float top = -INFINITY;
#pragma unroll
            for (int o = 0; o < OWN; o++) {
                const int key = tile + WARP * o + lane;
                const bool seen = key < at.n_keys && (!causal || key <= mine + r + at.shift);
                s[o][r] = seen ? s[o][r] * scale : -INFINITY;                        // (1)
                top = fmaxf(top, s[o][r]);
            }
            largest[r] = fmaxf(before, warp_max(top));
            const float rescale = exp_below(before, largest[r]);
            sum[r] *= rescale;
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) out[r][column] *= rescale;
#pragma unroll
            for (int o = 0; o < OWN; o++) {
                s[o][r] = exp_below(s[o][r], largest[r]);                            // (2)
                sum[r] += s[o][r];     // of this lane's keys
            }
        }
#pragma unroll
        for (int o = 0; o < OWN; o++) {
#if DROPOUT
            const uint32_t kept = kept_rows<ROWS>(drop, example_id, mine + at.shift, at.head,
                                                  tile + WARP * o + lane);
#endif
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#if DROPOUT
                s[o][r] = kept >> r & 1 ? s[o][r] * keep : 0.0f;
#endif
                p_tile[warp * ROWS + r][lane] = s[o][r];
            }
            __syncwarp();     // every lane's p is there
            add_weighted<ROWS>(out, p_tile + warp * ROWS, v_tile + WARP * o);        // (3)
            if (o + 1 < OWN) __syncwarp();     // and may be written over
        }
        // no lane comes to the next p before the barriers above
    }

    for (int r = 0; r < ROWS; r++) {
        const float total = warp_sum(sum[r]);
        const long long row = (at.first_query + mine + r) * gridDim.y + at.head;
        if (mine + r >= at.n_queries) continue;
        for (int column = 0; column < COLUMNS; column++)
            if (const int c = channel(column); c < D) y[row * D + c] = out[r][column] / total;
        if (lane == 0) lse[row] = largest[r] + logf(total);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries(
        const float* __restrict__ dy, const float* __restrict__ q, const float* __restrict__ k,
        const float* __restrict__ v, const float* __restrict__ y, const float* __restrict__ lse,
        float* __restrict__ delta, float* __restrict__ dq, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int dq_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site) {
    constexpr int ROWS = BACKWARD_ROWS, QUERIES = WARPS * ROWS;
    __shared__ __align__(16) float q_tile[QUERIES][PITCH], dy_tile[QUERIES][PITCH];
    __shared__ __align__(16) float k_tile[KEYS][PITCH], v_tile[KEYS][PITCH];
    __shared__ __align__(16) float ds_tile[QUERIES][KEYS];
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, mine = first + warp * ROWS;
    if (first >= at.n_queries) return;

    const long long packed = at.first_query * gridDim.y + at.head;     // row of query 0
    q += at.first_query * q_stride + at.head * D;
    k += at.first_key * k_stride + at.head * D;
    v += at.first_key * v_stride + at.head * D;
    dq += at.first_query * dq_stride + at.head * D;
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
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    const int end = causal ? min(at.n_keys, first + QUERIES + at.shift) : at.n_keys;
    for (int tile = 0; tile < end; tile += KEYS) {
        __syncthreads();
        load_tile<KEYS>(k_tile, k, tile, at.n_keys, k_stride);
        load_tile<KEYS>(v_tile, v, tile, at.n_keys, v_stride);
        __syncthreads();
        if (mine >= at.n_queries) continue;
        const int key = tile + lane;
        float s[1][ROWS], dp[1][ROWS];
        products<ROWS, 1>(s, q_tile + warp * ROWS, k_tile + lane);
        products<ROWS, 1>(dp, dy_tile + warp * ROWS, v_tile + lane);
#if DROPOUT
        const uint32_t kept = kept_rows<ROWS>(drop, example_id, mine + at.shift, at.head, key);
#endif
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const bool seen = key < at.n_keys && (!causal || key <= mine + r + at.shift);
            const float p = seen ? expf(s[0][r] * scale - row_lse[r]) : 0.0f;        // (1), (2)
#if DROPOUT
            dp[0][r] = kept >> r & 1 ? dp[0][r] * keep : 0.0f;                       // (5)
#endif
            ds_tile[warp * ROWS + r][lane] = p * (dp[0][r] - row_delta[r]);          // (6)
        }
        __syncwarp();
        add_weighted<ROWS>(sum, ds_tile + warp * ROWS, k_tile);
    }

    for (int r = 0; r < ROWS; r++) {
        if (mine + r >= at.n_queries) continue;
        for (int column = 0; column < COLUMNS; column++)
            if (const int c = channel(column); c < D)
                dq[(long long)(mine + r) * dq_stride + c] = sum[r][column] * scale;  // (7)
    }
}

// Writes dk and dv, or adds to them with `add`: sequences may share keys; then the launcher sends
// one after another, from `first_sequence` on.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys(
        const float* __restrict__ dy, const float* __restrict__ q, const float* __restrict__ k,
        const float* __restrict__ v, const float* __restrict__ lse,
        const float* __restrict__ delta, float* __restrict__ dk, float* __restrict__ dv,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, int q_stride, int k_stride, int v_stride,
        int dk_stride, int dv_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int first_sequence, int add) {
    constexpr int ROWS = BACKWARD_ROWS, QUERIES = WARPS * ROWS;
    __shared__ __align__(16) float q_tile[QUERIES][PITCH], dy_tile[QUERIES][PITCH];
    __shared__ __align__(16) float k_tile[KEYS][PITCH], v_tile[KEYS][PITCH];
    __shared__ __align__(16) float p_tile[QUERIES][KEYS], ds_tile[QUERIES][KEYS];
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
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    const int start = causal ? max(0, first - at.shift) : 0;     // who sees the first key
    for (int tile = start; tile < at.n_queries; tile += QUERIES) {
        __syncthreads();
        load_tile<QUERIES>(q_tile, q, tile, at.n_queries, q_stride);
        load_tile<QUERIES>(dy_tile, dy + packed * D, tile, at.n_queries, (long long)gridDim.y * D);
        __syncthreads();
        const int mine = tile + warp * ROWS;
        float s[1][ROWS], dp[1][ROWS];
        products<ROWS, 1>(s, q_tile + warp * ROWS, k_tile + lane);
        products<ROWS, 1>(dp, dy_tile + warp * ROWS, v_tile + lane);
#if DROPOUT
        const uint32_t kept = kept_rows<ROWS>(drop, example_id, mine + at.shift, at.head, key);
#endif
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int query = mine + r;
            const long long row = packed + (long long)query * gridDim.y;
            const bool exists = query < at.n_queries;
            const bool seen = exists && key < at.n_keys && (!causal || key <= query + at.shift);
            const float p = seen ? expf(s[0][r] * scale - lse[row]) : 0.0f;          // (1), (2)
            float weight = p;
#if DROPOUT
            weight = kept >> r & 1 ? p * keep : 0.0f;
            dp[0][r] = kept >> r & 1 ? dp[0][r] * keep : 0.0f;                       // (5)
#endif
            p_tile[warp * ROWS + r][lane] = weight;
            ds_tile[warp * ROWS + r][lane] =
                p * (dp[0][r] - (exists ? delta[row] : 0.0f));                       // (6)
        }
        __syncthreads();     // a warp's keys need the scores that every warp made
#pragma unroll 4
        for (int i = 0; i < QUERIES; i++) {
            add_weighted_row(dv_sum, &p_tile[i][warp * KEY_ROWS], dy_tile[i]);
            add_weighted_row(dk_sum, &ds_tile[i][warp * KEY_ROWS], q_tile[i]);
        }
    }

    for (int r = 0; r < KEY_ROWS; r++) {
        const int j = first + warp * KEY_ROWS + r;
        if (j >= at.n_keys) continue;
        float* to_k = &dk[(at.first_key + j) * dk_stride + at.head * D];
        float* to_v = &dv[(at.first_key + j) * dv_stride + at.head * D];
        for (int column = 0; column < COLUMNS; column++) {
            const int c = channel(column);
            if (c >= D) continue;
            to_v[c] = (add ? to_v[c] : 0.0f) + dv_sum[r][column];                    // (4)
            to_k[c] = (add ? to_k[c] : 0.0f) + dk_sum[r][column] * scale;            // (7)
        }
    }
}
