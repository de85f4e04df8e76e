// Attention, fused, on tensor cores: what attention.cu does, with inputs, weights p and score
// gradients rounded to 16 bits and every sum in float32.
//
// Computes, of minisft/ops/attention.py: (1) to (3) in attention_tensor_cores_forward; (5) to (7)
// for dQ in _backward_queries; (4) to (7) for dK and dV in _backward_keys.
// Grid: (tiles of 64 rows, heads, sequences). A block owns 64 queries (or keys) of one head of one
// sequence, each of its four warps 16 of them, the rows of its fragments; the block walks over
// tiles of keys (or queries) in shared memory, of which there are two by turns: while the warps
// multiply one, the next is on its way. So a tile takes one barrier.
// Shared memory: four tiles, 4 * TILE * (D + 8) * 2 bytes, at most 45,056; keys 512 more.
// Demands: 16-bit numbers as uint16, bfloat16 (sm_80) or with -D FLOAT16=1 float16 (sm_75); D =
// HEAD_WIDTH (a -D option), a multiple of 16 up to 128; -D DROPOUT=1 or 0; rows of q, k and v that
// begin at multiples of 16 bytes; scale > 0; no more queries than keys if causal. Gradients come
// out in float32.
//
// Two products do everything. `score` multiplies a warp's 16 rows, which it keeps as fragments, by
// the rows of a tile. `add_tile` multiplies what came of that, packed, by the tile's columns: the
// layout of a sum is the layout of the next product's left side, so no score leaves its lane.
// Scores are powers of two, exp(s) = 2^(s log2(e)), which the card has an instruction for.

#define D HEAD_WIDTH
#define THREADS 128
#define ROWS 16                      // of a warp
#define BLOCK_ROWS (ROWS * THREADS / WARP)
#define PITCH (D + 8)                // eight rows that begin in different banks
// Rows of a tile: what registers and 48 KB of shared memory allow.
#define FORWARD_TILE (D <= 80 ? 64 : 32)
#define QUERIES_TILE (D <= 64 ? 64 : 32)
#define KEYS_TILE 32
// Blocks that a multiprocessor is to hold at once: it bounds the registers of a thread.
#define FORWARD_BLOCKS (D > 64 ? 1 : DROPOUT ? 3 : 4)
#define BACKWARD_BLOCKS (D > 64 ? 1 : 3)

typedef uint32_t Fragments[D / 16][4];       // a warp's rows of q, k, v, y or dy
typedef float Sums[D / 8][4];                // rows of the warp, channels
typedef uint16_t Row[PITCH];                 // of a tile

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
#pragma unroll
    for (int piece = 0; piece < D / 16; piece++)
#pragma unroll
        for (int word = 0; word < 4; word++) {
            const int row = first + g_of_lane() + word % 2 * 8;
            const int c = 16 * piece + 2 * t_of_lane() + word / 2 * 8;
            rows[piece][word] = row < n ? *(const uint32_t*)&x[row * stride + c] : 0;
        }
}

// Sends rows [first, first + N) of x on their way; they are there after copies_wait and a barrier.
template <int N>
__device__ __forceinline__ void load_tile(Row* tile, const uint16_t* x, int first, int n,
                                          long long stride) {
#pragma unroll
    for (int i = threadIdx.x; i < N * D / 8; i += THREADS) {
        const int row = i / (D / 8), c = i % (D / 8) * 8;
        const bool exists = first + row < n;
        copy_ahead(&tile[row][c], &x[(exists ? first + row : 0) * stride + c], exists);
    }
}

// A tile's rows are the columns of the right side, so its 8 x 8 pieces are read as they lie.
template <int N>
__device__ __forceinline__ void score(float (&s)[N / 8][4], const Fragments& rows,
                                      const Row* tile) {
    const int lane = threadIdx.x % WARP;
    const uint16_t* from = &tile[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8];
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = s[n + 1][i] = 0.0f;
#pragma unroll
        for (int piece = 0; piece < D / 16; piece++) {
            uint32_t right[4];
            load_pieces(right, from + 8 * n * PITCH + 16 * piece);
            mma_16_bits(s[n], rows[piece], {right[0], right[1]});
            mma_16_bits(s[n + 1], rows[piece], {right[2], right[3]});
        }
    }
}

// Here a tile's rows are what is summed over, so the pieces are read turned.
template <int N>
__device__ __forceinline__ void add_tile(Sums& sums, const float (&s)[N / 8][4], const Row* tile) {
    const int lane = threadIdx.x % WARP;
    const uint16_t* from = &tile[lane % 16][lane / 16 * 8];
#pragma unroll
    for (int piece = 0; piece < N / 16; piece++) {
        const float *low = s[2 * piece], *high = s[2 * piece + 1];
        const uint32_t left[4] = {pack_16_bits(low[0], low[1]), pack_16_bits(low[2], low[3]),
                                  pack_16_bits(high[0], high[1]), pack_16_bits(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t right[4];
            load_pieces_turned(right, from + 16 * piece * PITCH + 8 * n);
            mma_16_bits(sums[n], left, {right[0], right[1]});
            mma_16_bits(sums[n + 1], left, {right[2], right[3]});
        }
    }
}

// Which of a lane's scores dropout keeps: bit 4 n + i is that of s[n][i]. Four keys side by side
// share a draw, so each lane draws for four scores and the lanes exchange what they drew.
// Here rows are queries, at `position` and after, columns keys from `key` on: of two neighbouring
// lanes, which have the same two rows and four keys, one draws for the row g, one for g + 8.
template <int N>
__device__ __forceinline__ uint32_t kept_of_queries(const ScoreDropout& drop, uint32_t example_id,
                                                    int position, int head, int key) {
    const int t = t_of_lane(), row = position + g_of_lane() + t % 2 * 8;
    uint32_t mine = 0;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        mine |= four_kept(drop, example_id, row, head, key / 4 + 2 * n + t / 2) << 4 * n;
    const uint32_t other = __shfl_xor_sync(ALL_LANES, mine, 1);
    return t % 2 ? (mine & 0xccccccccu) | (other >> 2 & 0x33333333u)
                 : (mine & 0x33333333u) | (other & 0x33333333u) << 2;
}

// Here rows are keys, columns queries: four lanes below each other share two queries and eight
// keys, and draw one of the four pairs each.
template <int N>
__device__ __forceinline__ uint32_t kept_of_keys(const ScoreDropout& drop, uint32_t example_id,
                                                 int position, int head, int key) {
    const int lane = threadIdx.x % WARP, g = g_of_lane(), pair = g % 4;
    uint32_t mine = 0, kept = 0;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        mine |= four_kept(drop, example_id, position + 8 * n + 2 * t_of_lane() + pair % 2, head,
                          key / 4 + g / 4 + pair / 2 * 2) << 4 * n;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t drawn = __shfl_sync(ALL_LANES, mine, (lane & ~12) | i << 2);
        kept |= (drawn >> pair & 0x11111111u) << i;
    }
    return kept;
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS)
attention_tensor_cores_forward(
        const uint16_t* __restrict__ q, const uint16_t* __restrict__ k,
        const uint16_t* __restrict__ v, uint16_t* __restrict__ y, float* __restrict__ lse,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, int q_stride, int k_stride, int v_stride, int causal,
        float scale, const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep,
        uint32_t seed, const uint32_t* __restrict__ step, uint32_t site) {
    constexpr int TILE = FORWARD_TILE;
    __shared__ __align__(16) Row k_tile[2][TILE], v_tile[2][TILE];
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int head = blockIdx.y, heads = gridDim.y, g = g_of_lane(), t = t_of_lane();
    // under a causal mask the last tiles have the most work: they start first
    const int first = (gridDim.x - 1 - blockIdx.x) * BLOCK_ROWS;
    const int mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_queries) return;     // the whole block

    q += at.first_query * q_stride + head * D;
    k += at.first_key * k_stride + head * D;
    v += at.first_key * v_stride + head * D;
    const int end = causal ? min(at.n_keys, first + BLOCK_ROWS + at.shift) : at.n_keys;
    load_tile<TILE>(k_tile[0], k, 0, at.n_keys, k_stride);
    load_tile<TILE>(v_tile[0], v, 0, at.n_keys, v_stride);
    Fragments rows;
    load_rows(rows, q, mine, at.n_queries, q_stride);
    const float factor = scale * LOG2_E;
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};     // of rows g and g + 8
    Sums out = {};
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    for (int tile = 0, now = 0; tile < end; tile += TILE, now ^= 1) {
        copies_wait();
        __syncthreads();     // the tile is there, and all have done with the one before
        if (tile + TILE < end) {
            load_tile<TILE>(k_tile[now ^ 1], k, tile + TILE, at.n_keys, k_stride);
            load_tile<TILE>(v_tile[now ^ 1], v, tile + TILE, at.n_keys, v_stride);
        }
        const int last = mine + at.shift;     // key that the warp's first row sees, if causal
        if (mine >= at.n_queries || (causal && tile >= last + ROWS)) continue;
        float s[TILE / 8][4];
        score<TILE>(s, rows, k_tile[now]);
        if (tile + TILE > at.n_keys || (causal && tile + TILE - 1 > last))
#pragma unroll
            for (int i = 0; i < TILE / 2; i++) {
                const int key = tile + 8 * (i / 4) + 2 * t + i % 2;
                if (key >= at.n_keys || (causal && key > last + g + 8 * (i / 2 % 2)))
                    s[i / 4][i % 4] = -INFINITY;                                     // (1)
            }
#if DROPOUT
        const uint32_t kept = kept_of_queries<TILE>(drop, example_id, last, head, tile);
#endif
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // every row sees key 0, so `top` is a number from the first tile on
            float top = largest[half];
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) top = fmaxf(top, s[i / 2][2 * half + i % 2]);
            top = quad_max(top);
            const float rescale = power_of_two((largest[half] - top) * factor);
            largest[half] = top;
            sum[half] *= rescale;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) out[n][2 * half + i] *= rescale;
            const float below = top * factor;
#pragma unroll
            for (int i = 0; i < TILE / 4; i++) {
                float& x = s[i / 2][2 * half + i % 2];
                x = power_of_two(x * factor - below);                                // (2)
                sum[half] += x;     // of this lane's keys
#if DROPOUT
                x = kept >> (4 * (i / 2) + 2 * half + i % 2) & 1 ? x * keep : 0.0f;
#endif
            }
        }
        add_tile<TILE>(out, s, v_tile[now]);                                         // (3)
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        const float total = quad_sum(sum[half]), inverse = 1.0f / total;
        if (query >= at.n_queries) continue;
        const long long row = (at.first_query + query) * heads + head;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(uint32_t*)&y[row * D + 8 * n + 2 * t] =
                pack_16_bits(out[n][2 * half] * inverse, out[n][2 * half + 1] * inverse);
        if (t == 0) lse[row] = largest[half] * scale + logf(total);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
attention_tensor_cores_backward_queries(
        const uint16_t* __restrict__ dy, const uint16_t* __restrict__ q,
        const uint16_t* __restrict__ k, const uint16_t* __restrict__ v,
        const uint16_t* __restrict__ y, const float* __restrict__ lse, float* __restrict__ delta,
        float* __restrict__ dq, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int dq_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site) {
    constexpr int TILE = QUERIES_TILE;
    __shared__ __align__(16) Row k_tile[2][TILE], v_tile[2][TILE];
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int head = blockIdx.y, heads = gridDim.y, g = g_of_lane(), t = t_of_lane();
    const int first = (gridDim.x - 1 - blockIdx.x) * BLOCK_ROWS;
    const int mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_queries) return;

    const long long packed = at.first_query * heads + head;     // row of query 0
    q += at.first_query * q_stride + head * D;
    k += at.first_key * k_stride + head * D;
    v += at.first_key * v_stride + head * D;
    dq += at.first_query * dq_stride + head * D;
    const int end = causal ? min(at.n_keys, first + BLOCK_ROWS + at.shift) : at.n_keys;
    load_tile<TILE>(k_tile[0], k, 0, at.n_keys, k_stride);
    load_tile<TILE>(v_tile[0], v, 0, at.n_keys, v_stride);
    Fragments rows, up;
    load_rows(rows, y + packed * D, mine, at.n_queries, (long long)heads * D);
    load_rows(up, dy + packed * D, mine, at.n_queries, (long long)heads * D);
    const float factor = scale * LOG2_E;
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        const long long row = packed + (long long)query * heads;
        const bool exists = query < at.n_queries;
        float part = 0.0f;     // rowsum(dP * P) of (6) is dY . Y, as in attention.cu
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const uint32_t a = rows[i / 2][half + i % 2 * 2], b = up[i / 2][half + i % 2 * 2];
            part += from_16_bits((uint16_t)a) * from_16_bits((uint16_t)b) +
                from_16_bits(a >> 16) * from_16_bits(b >> 16);
        }
        row_delta[half] = quad_sum(part);
        row_lse[half] = exists ? lse[row] * LOG2_E : 0.0f;
        if (exists && t == 0) delta[row] = row_delta[half];
    }
    load_rows(rows, q, mine, at.n_queries, q_stride);
    Sums sums = {};
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    for (int tile = 0, now = 0; tile < end; tile += TILE, now ^= 1) {
        copies_wait();
        __syncthreads();
        if (tile + TILE < end) {
            load_tile<TILE>(k_tile[now ^ 1], k, tile + TILE, at.n_keys, k_stride);
            load_tile<TILE>(v_tile[now ^ 1], v, tile + TILE, at.n_keys, v_stride);
        }
        const int last = mine + at.shift;
        if (mine >= at.n_queries || (causal && tile >= last + ROWS)) continue;
        float s[TILE / 8][4], dp[TILE / 8][4];
        score<TILE>(s, rows, k_tile[now]);
        score<TILE>(dp, up, v_tile[now]);
        const bool whole = tile + TILE <= at.n_keys && (!causal || tile + TILE - 1 <= last);
#if DROPOUT
        const uint32_t kept = kept_of_queries<TILE>(drop, example_id, last, head, tile);
#endif
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            const int half = i / 2 % 2, key = tile + 8 * (i / 4) + 2 * t + i % 2;
            float &x = s[i / 4][i % 4], up_there = dp[i / 4][i % 4];
            float p = power_of_two(x * factor - row_lse[half]);                      // (1), (2)
            if (!whole && (key >= at.n_keys || (causal && key > last + g + 8 * half))) p = 0.0f;
#if DROPOUT
            up_there = kept >> i & 1 ? up_there * keep : 0.0f;                       // (5)
#endif
            x = p * (up_there - row_delta[half]);                                    // (6)
        }
        add_tile<TILE>(sums, s, k_tile[now]);
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = mine + g + 8 * half;
        if (query >= at.n_queries) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(float2*)&dq[(long long)query * dq_stride + 8 * n + 2 * t] =
                make_float2(sums[n][2 * half] * scale, sums[n][2 * half + 1] * scale);     // (7)
    }
}

// Rows are keys here, so the scores stand transposed. Writes dk and dv, or adds to them with `add`,
// as in attention.cu.
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
attention_tensor_cores_backward_keys(
        const uint16_t* __restrict__ dy, const uint16_t* __restrict__ q,
        const uint16_t* __restrict__ k, const uint16_t* __restrict__ v,
        const float* __restrict__ lse, const float* __restrict__ delta, float* __restrict__ dk,
        float* __restrict__ dv, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int dk_stride, int dv_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int first_sequence, int add) {
    constexpr int TILE = KEYS_TILE;
    __shared__ __align__(16) Row q_tile[2][TILE], dy_tile[2][TILE];
    __shared__ float2 of_query[2][TILE];     // lse and delta
    const Part at = part_of(first_sequence + blockIdx.z, cu_seqlens, key_starts, key_lengths);
    const int head = blockIdx.y, heads = gridDim.y, g = g_of_lane(), t = t_of_lane();
    const int first = blockIdx.x * BLOCK_ROWS, mine = first + threadIdx.x / WARP * ROWS;
    if (first >= at.n_keys) return;

    const long long packed = at.first_query * heads + head;
    q += at.first_query * q_stride + head * D;
    dy += packed * D;
    k += at.first_key * k_stride + head * D;
    v += at.first_key * v_stride + head * D;
    const int start = causal ? max(0, first - at.shift) : 0;     // who sees the first key
    if (start < at.n_queries) {
        load_tile<TILE>(q_tile[0], q, start, at.n_queries, q_stride);
        load_tile<TILE>(dy_tile[0], dy, start, at.n_queries, (long long)heads * D);
    }
    float2 ahead = {};     // lse and delta of a query of the next tile, a lane of the first warp's
    const auto load_ahead = [&](int tile) {
        const int query = tile + threadIdx.x;
        const long long row = packed + (long long)query * heads;
        if (threadIdx.x < TILE && query < at.n_queries)
            ahead = make_float2(lse[row] * LOG2_E, delta[row]);
    };
    load_ahead(start);
    Fragments rows, values;
    load_rows(rows, k, mine, at.n_keys, k_stride);
    load_rows(values, v, mine, at.n_keys, v_stride);
    const float factor = scale * LOG2_E;
    Sums dk_sums = {}, dv_sums = {};
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    for (int tile = start, now = 0; tile < at.n_queries; tile += TILE, now ^= 1) {
        if (threadIdx.x < TILE) of_query[now][threadIdx.x] = ahead;
        copies_wait();
        __syncthreads();
        if (tile + TILE < at.n_queries) {
            load_tile<TILE>(q_tile[now ^ 1], q, tile + TILE, at.n_queries, q_stride);
            load_tile<TILE>(dy_tile[now ^ 1], dy, tile + TILE, at.n_queries, (long long)heads * D);
            load_ahead(tile + TILE);
        }
        const int last = tile + at.shift;     // key that the tile's first query sees, if causal
        if (mine >= at.n_keys || (causal && mine >= last + TILE)) continue;
        float p[TILE / 8][4], ds[TILE / 8][4];
        score<TILE>(p, rows, q_tile[now]);
        score<TILE>(ds, values, dy_tile[now]);
        const bool whole = tile + TILE <= at.n_queries && mine + ROWS <= at.n_keys &&
            (!causal || mine + ROWS - 1 <= last);
#if DROPOUT
        const uint32_t kept = kept_of_keys<TILE>(drop, example_id, last, head, mine);
#endif
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            const int key = mine + g + 8 * (i / 2 % 2), query = 8 * (i / 4) + 2 * t + i % 2;
            const float2 row = of_query[now][query];
            float &weight = p[i / 4][i % 4], &gradient = ds[i / 4][i % 4];
            float plain = power_of_two(weight * factor - row.x);                     // (1), (2)
            if (!whole && (tile + query >= at.n_queries || key >= at.n_keys ||
                           (causal && key > last + query))) plain = 0.0f;
            weight = plain;
#if DROPOUT
            weight = kept >> i & 1 ? plain * keep : 0.0f;
            gradient = kept >> i & 1 ? gradient * keep : 0.0f;                       // (5)
#endif
            gradient = plain * (gradient - row.y);                                   // (6)
        }
        add_tile<TILE>(dv_sums, p, dy_tile[now]);
        add_tile<TILE>(dk_sums, ds, q_tile[now]);
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int key = mine + g + 8 * half;
        if (key >= at.n_keys) continue;
        float* to_k = &dk[(at.first_key + key) * dk_stride + head * D + 2 * t];
        float* to_v = &dv[(at.first_key + key) * dv_stride + head * D + 2 * t];
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            float2 &ours_k = *(float2*)&to_k[8 * n], &ours_v = *(float2*)&to_v[8 * n];
            const float2 before_k = add ? ours_k : make_float2(0.0f, 0.0f);
            const float2 before_v = add ? ours_v : make_float2(0.0f, 0.0f);
            ours_v = make_float2(before_v.x + dv_sums[n][2 * half],                  // (4)
                                 before_v.y + dv_sums[n][2 * half + 1]);
            ours_k = make_float2(before_k.x + dk_sums[n][2 * half] * scale,          // (7)
                                 before_k.y + dk_sums[n][2 * half + 1] * scale);
        }
    }
}
