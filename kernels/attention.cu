// Attention, fused (Dao et al. 2022, FlashAttention; Dao 2023, FlashAttention-2): the scores of a
// tile of queries and a tile of keys live in registers and shared memory and never reach the
// memory of the GPU. The backward needs only y and each row's log-sum-exp.
//
// Computes, of minisft/ops/attention.py: (1) to (3) in attention_forward; (5) to (7) for dQ in
// attention_backward_queries; (4) to (7) for dK and dV in attention_backward_keys, which reads what
// the one before it wrote to `delta`. Each computes its scores again; no sum needs atomics, so
// equal inputs give equal bits.
// Grid: (tiles, heads, sequences). A block of two warps owns some rows of one head of one sequence,
// queries, or keys in the last kernel, and walks over the others, its columns, tile by tile.
// A warp is four row groups times eight column groups: a lane holds ROWS x COLUMNS scores, and of
// the sums over the columns ROWS rows of a few channels. The larger this piece, the fewer numbers
// are loaded for a product. Shared memory hands out 32 numbers a cycle, 64 to lanes of which pairs
// read the same 16 bytes, while a multiprocessor multiplies 128 times. 6 x 4 scores take 10 numbers
// a channel: 5 cycles of shared memory for 6 of multiplying; 6 rows of 8 channels take 14 a column:
// 7 for 12.
// Shared memory with 64 channels: forward 28 KB, queries 40 KB, keys 36 KB; never more than 48 KB.
// Demands: float32; HEAD_WIDTH (a -D option) from 1 to 128; q, k, v (tokens, heads, D) whose rows
// may lie `stride` numbers apart, all else contiguous but for the gradients, which have strides,
// too; -D WIDE=1 where all rows begin at 16 bytes, else 0; -D DROPOUT=1 or 0; no more queries than
// keys if causal.

#define D HEAD_WIDTH
#define WARPS 2
#define THREADS (WARPS * WARP)
#define ROW_GROUPS 4
#define COLUMN_GROUPS 8
#define FOURS ((D + 3) / 4)                                          // of channels
#define CHUNKS ((FOURS + COLUMN_GROUPS - 1) / COLUMN_GROUPS)         // fours of a lane
// Fours of a row of a tile, so that eight lanes that read a four of a row each hit 32 banks: an odd
// number; or a multiple of 8, and each row has its fours in another order (`of_column`, `of_row`).
#define SWIZZLE (FOURS % 8 == 0)
#define PITCH (FOURS % 2 || SWIZZLE ? FOURS : FOURS + 1)
#if D <= 64
#define BLOCKS 6                           // of a multiprocessor: 168 registers a thread
#define FORWARD_ROWS 6                     // of a lane
#define FORWARD_COLUMNS 4
#define QUERIES_ROWS 6
#define QUERIES_COLUMNS 4
#define KEYS_ROWS 4
#define KEYS_COLUMNS 4
#else                                      // what 48 KB of shared memory allow
#define BLOCKS 4
#define FORWARD_ROWS 4
#define FORWARD_COLUMNS 4
#define QUERIES_ROWS 2
#define QUERIES_COLUMNS 4
#define KEYS_ROWS 3
#define KEYS_COLUMNS 2
#endif

// The larger one: room for two arrays that are never there at the same time.
__device__ constexpr int either(int a, int b) { return a > b ? a : b; }

// One head of one sequence. Query i stands at position i + shift and sees key j <= i + shift if
// causal, else all of them. Queries are a sequence's last or, with `from_start`, its first.
struct Part {
    int sequence, head, n_queries, n_keys, shift;
    long long first_query, first_key;
};

__device__ __forceinline__ Part part_of(int sequence, const int* cu_seqlens, const int* key_starts,
                                        const int* key_lengths, int from_start) {
    const int first = cu_seqlens[sequence], n_queries = cu_seqlens[sequence + 1] - first;
    const int n_keys = key_lengths[sequence];
    return {sequence, (int)blockIdx.y, n_queries, n_keys, from_start ? 0 : n_keys - n_queries,
            first, key_starts[sequence]};
}

// Which of the warp's groups a lane is. Lanes that differ in bit 0 have the same columns, those
// that differ in bit 1 the same rows: shared memory serves either pair at once.
__device__ __forceinline__ int row_group() {
    return (threadIdx.x & 1) | (threadIdx.x >> 3 & 2);
}

__device__ __forceinline__ int column_group() { return threadIdx.x >> 1 & 7; }

// -> the sum (the largest) over the lanes of a row group, in each of them
__device__ __forceinline__ float columns_sum(float v) {
#pragma unroll
    for (int bit = 2; bit < 16; bit *= 2) v += __shfl_xor_sync(ALL_LANES, v, bit);
    return v;
}

__device__ __forceinline__ float columns_max(float v) {
#pragma unroll
    for (int bit = 2; bit < 16; bit *= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, bit));
    return v;
}

// Columns of a lane: four neighbours, and the four 32 further on (two, if COLUMNS is 2).
template <int COLUMNS>
__device__ __forceinline__ int column_of(int i) {
    constexpr int SIDE = COLUMNS < 4 ? COLUMNS : 4;
    return (i / SIDE * COLUMN_GROUPS + column_group()) * SIDE + i % SIDE;
}

// Where a column lies in its tile: those that the lanes of a warp read at the same time lie side by
// side.
template <int COLUMNS>
__device__ __forceinline__ int row_of_tile(int column) {
    constexpr int SIDE = COLUMNS < 4 ? COLUMNS : 4;
    return column / SIDE % COLUMN_GROUPS + column % SIDE * COLUMN_GROUPS +
           column / (SIDE * COLUMN_GROUPS) * SIDE * COLUMN_GROUPS;
}

// Where a four lies among those of its row: eight columns, and two rows, must be apart.
__device__ __forceinline__ int of_column(int row, int four) {
    return SWIZZLE ? four ^ row % 8 : four;
}

__device__ __forceinline__ int of_row(int row, int four) {
    return SWIZZLE ? four ^ row % 2 : four;
}

// Four channels from c on, of a row that may not exist; past the end zeros.
__device__ __forceinline__ float4 load_channels(const float* row, int c, bool exists) {
#if WIDE
    return exists && c < D ? *(const float4*)&row[c] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#else
    float4 four;
    four.x = exists && c < D ? row[c] : 0.0f;
    four.y = exists && c + 1 < D ? row[c + 1] : 0.0f;
    four.z = exists && c + 2 < D ? row[c + 2] : 0.0f;
    four.w = exists && c + 3 < D ? row[c + 3] : 0.0f;
    return four;
#endif
}

__device__ __forceinline__ void store_channels(float* row, int c, const float (&four)[4]) {
#if WIDE
    if (c < D) *(float4*)&row[c] = make_float4(four[0], four[1], four[2], four[3]);
#else
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (c + i < D) row[c + i] = four[i];
#endif
}

// N rows of x from `first` on, of which there are n -> tile; past the end zeros. They are there
// after copies_wait and a barrier. COLUMNS: how many a lane has where they are columns, else 0;
// ALL: whether they all exist.
template <int N, int COLUMNS, bool ALL>
__device__ __forceinline__ void copy_tile(float4* tile, const float* x, int first, int n,
                                          int stride) {
    constexpr int AT_ONCE = THREADS / FOURS;
    const int begin = threadIdx.x / FOURS, four = threadIdx.x % FOURS;
    if (begin >= AT_ONCE) return;     // FOURS does not divide the threads: some are left over
    const float* from = &x[(long long)(first + begin) * stride];
#pragma unroll
    for (int i = 0; i < N; i += AT_ONCE, from += (long long)AT_ONCE * stride) {
        const int row = begin + i, place = COLUMNS ? row_of_tile<either(COLUMNS, 1)>(row) : row;
        if (N % AT_ONCE != 0 && row >= N) break;
        const bool exists = ALL || first + row < n;
        float4* to = &tile[place * PITCH + (COLUMNS ? of_column(place, four) : of_row(row, four))];
#if WIDE
        copy_ahead(to, exists ? &from[4 * four] : x, exists);
#else
        *to = load_channels(from, 4 * four, exists);
#endif
    }
}

template <int N, int COLUMNS = 0>
__device__ __forceinline__ void load_tile(float4* tile, const float* x, int first, int n,
                                          int stride) {
    if (first + N <= n)
        copy_tile<N, COLUMNS, true>(tile, x, first, n, stride);
    else
        copy_tile<N, COLUMNS, false>(tile, x, first, n, stride);
}

// -> the products of a lane's rows with its columns; `rows` begins at the warp's first
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void products(float (&sum)[ROWS][COLUMNS], const float4* rows,
                                         const float4* columns) {
    rows += row_group() * PITCH;
    columns += column_group() * PITCH;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) sum[r][j] = 0.0f;
    // apart from its last bits, which differ in each lane, a place is the same for all
    const int of_columns = column_group() & 3, half = column_group() & 4, of_rows = row_group() & 1;
#pragma unroll 1
    for (int begin = 0; begin < FOURS; begin += 4) {
        const float4* column = columns + (SWIZZLE ? begin ^ half : begin);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (FOURS % 4 != 0 && begin + i >= FOURS) break;
            float4 y[COLUMNS];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                y[j] = column[(SWIZZLE ? i ^ of_columns : i) + j * COLUMN_GROUPS * PITCH];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float4 x = rows[begin + (SWIZZLE ? i ^ of_rows : i) + r * ROW_GROUPS * PITCH];
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) sum[r][j] += x.x * y[j].x;
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) sum[r][j] += x.y * y[j].y;
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) sum[r][j] += x.z * y[j].z;
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) sum[r][j] += x.w * y[j].w;
            }
        }
    }
}

// The weights of a warp's rows for the columns of a tile, where its lanes exchange them: in fours
// of columns, and two rows apart as above.
template <int ROWS, int COLUMNS>
struct Weights {
    static constexpr int WIDTH = COLUMNS * COLUMN_GROUPS / 4;     // fours of a row
    static constexpr int FOURS_OF_WARP = ROWS * ROW_GROUPS * WIDTH;
    float4* at;     // of the lane's first row

    __device__ __forceinline__ explicit Weights(float4* tile)
        : at(tile + threadIdx.x / WARP * FOURS_OF_WARP + row_group() * WIDTH) {}

    __device__ __forceinline__ int place(int r, int four) const {
        return r * ROW_GROUPS * WIDTH + (WIDTH < 8 ? four : four ^ row_group() % 2 * 4);
    }

    // What the lane's scores have become -> their places; for the warp after __syncwarp.
    __device__ __forceinline__ void store(const float (&w)[ROWS][COLUMNS]) const {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if constexpr (COLUMNS == 2) {
                *(float2*)((float*)&at[place(r, 0)] + column_of<COLUMNS>(0)) =
                    make_float2(w[r][0], w[r][1]);
            } else {
#pragma unroll
                for (int j = 0; j < COLUMNS; j += 4)
                    at[place(r, column_of<COLUMNS>(j) / 4)] =
                        make_float4(w[r][j], w[r][j + 1], w[r][j + 2], w[r][j + 3]);
            }
        }
    }

    // Adds the weighted sum of the tile's columns to each of the lane's rows of sums, its channels.
    __device__ __forceinline__ void add_to(float (&sum)[ROWS][CHUNKS][4],
                                           const float4* columns) const {
#pragma unroll 1
        for (int begin = 0; begin < WIDTH; begin += 4) {
            const float4* weights = at + place(0, begin);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = row_of_tile<COLUMNS>(4 * begin) + row_of_tile<COLUMNS>(4 * i);
                float4 x[4][CHUNKS];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int more = row_of_tile<COLUMNS>(j);
                    const float4* column = columns + (row + more) * PITCH +
                                           of_column(row + more % 8, column_group());
#pragma unroll
                    for (int n = 0; n < CHUNKS; n++) x[j][n] = column[channels_after(n)];
                }
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    const float4 w = weights[r * ROW_GROUPS * WIDTH + i];
                    add(sum[r], w.x, x[0]);
                    add(sum[r], w.y, x[1]);
                    add(sum[r], w.z, x[2]);
                    add(sum[r], w.w, x[3]);
                }
            }
        }
    }

    // How far the lane's n-th four of channels lies from its first; from one past the end back to
    // one that exists, for nobody to use.
    static __device__ __forceinline__ int channels_after(int n) {
        const int after = n * COLUMN_GROUPS;
        return FOURS % COLUMN_GROUPS == 0 ? after : min(after, FOURS - 1 - column_group());
    }

    static __device__ __forceinline__ void add(float (&sum)[CHUNKS][4], float w,
                                               const float4 (&x)[CHUNKS]) {
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
            sum[n][0] += w * x[n].x;
            sum[n][1] += w * x[n].y;
            sum[n][2] += w * x[n].z;
            sum[n][3] += w * x[n].w;
        }
    }
};

// -> `keep` where a bit is set, else 0; by whole words: 32 scores have more bits than a thread
// has predicates
__device__ __forceinline__ float factor(float keep, uint32_t kept, int bit) {
    return __uint_as_float(__float_as_uint(keep) & -(kept >> bit & 1));
}

// Which of a lane's scores dropout keeps, where rows are queries, the lane's first at `position`,
// and columns keys from `key` on: bit 4 r + i of kept[n] is that of row r and column 4 n + i. Four
// keys side by side share a draw. It comes before the scores: draws want registers, too.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void kept_queries(uint32_t (&kept)[COLUMNS / 4],
                                             const ScoreDropout& drop, uint32_t example_id,
                                             int position, int head, int key) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 4; n++) {
        kept[n] = 0;
#pragma unroll 4
        for (int r = 0; r < ROWS; r++)
            kept[n] |= four_kept(drop, example_id, position + r * ROW_GROUPS, head,
                                 (key + column_of<COLUMNS>(4 * n)) / 4) << 4 * r;
    }
}

// Scores whose row does not see their column, the key `first` and those after it, become `hidden`;
// the lane's first row sees the keys up to `last` if causal.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void mask(float (&s)[ROWS][COLUMNS], float hidden, int first, int n_keys,
                                     int causal, int last) {
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const int key = first + column_of<COLUMNS>(j);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (key >= n_keys || (causal && key > last + r * ROW_GROUPS)) s[r][j] = hidden;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_forward(
        const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
        float* __restrict__ y, float* __restrict__ lse, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int from_start) {
    constexpr int ROWS = FORWARD_ROWS, COLUMNS = FORWARD_COLUMNS;
    constexpr int OF_WARP = ROW_GROUPS * ROWS, QUERIES = WARPS * OF_WARP;
    constexpr int TILE = COLUMN_GROUPS * COLUMNS;
    using P = Weights<ROWS, COLUMNS>;
    __shared__ float4 q_tile[QUERIES * PITCH], v_tile[TILE * PITCH];
    __shared__ float4 k_tile[either(TILE * PITCH, WARPS * P::FOURS_OF_WARP)];     // and then P
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths,
                            DROPOUT && from_start);
    const int warp = threadIdx.x / WARP;
    // under a causal mask the last tiles have the most work: they start first
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, of_warp = first + warp * OF_WARP;
    if (first >= at.n_queries) return;     // the whole block: sequences differ in length

    q += at.first_query * q_stride + at.head * D;
    k += at.first_key * k_stride + at.head * D;
    v += at.first_key * v_stride + at.head * D;
    load_tile<QUERIES>(q_tile, q, first, at.n_queries, q_stride);
    const P p(k_tile);
    const float scale_2 = scale * LOG2_E;     // exp(s) = 2^(s log2(e))
    const int mine = of_warp + row_group();   // the first of the lane's rows
    float largest[ROWS], sum[ROWS], out[ROWS][CHUNKS][4] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) largest[r] = -INFINITY, sum[r] = 0.0f;
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    const int end = causal ? min(at.n_keys, first + QUERIES + at.shift) : at.n_keys;
    // a warp without a query, or whose queries see no key of a tile, lets it pass
    const int warp_end = of_warp >= at.n_queries ? 0 :
                         causal ? min(end, of_warp + OF_WARP + at.shift) : end;
    for (int tile = 0; tile < end; tile += TILE) {
        __syncthreads();     // all have done with the tiles before
        load_tile<TILE, COLUMNS>(k_tile, k, tile, at.n_keys, k_stride);
        load_tile<TILE, COLUMNS>(v_tile, v, tile, at.n_keys, v_stride);
        copies_wait();
        __syncthreads();     // and all of the new ones is there
        float s[ROWS][COLUMNS];
#if DROPOUT
        uint32_t kept[COLUMNS / 4];
        if (tile < warp_end)
            kept_queries<ROWS, COLUMNS>(kept, drop, example_id, mine + at.shift, at.head, tile);
#endif
        if (tile < warp_end) products<ROWS, COLUMNS>(s, q_tile + warp * OF_WARP * PITCH, k_tile);
        __syncthreads();     // P takes the place of the keys
        if (tile >= warp_end) continue;
        if (tile + TILE > at.n_keys || (causal && tile + TILE - 1 > of_warp + at.shift))
            mask<ROWS, COLUMNS>(s, -INFINITY, tile, at.n_keys, causal, mine + at.shift);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float top = largest[r];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) top = fmaxf(top, s[r][j]);
            top = columns_max(top);     // key 0 is seen by all: never -inf
            const float below = top * scale_2;
            const float rescale = power_of_two(largest[r] * scale_2 - below);
            largest[r] = top;
            sum[r] *= rescale;
#pragma unroll
            for (int n = 0; n < CHUNKS; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) out[r][n][i] *= rescale;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                s[r][j] = power_of_two(s[r][j] * scale_2 - below);                   // (1), (2)
                sum[r] += s[r][j];     // of this lane's keys
            }
#if DROPOUT
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                s[r][j] *= factor(keep, kept[j / 4], 4 * r + j % 4);
#endif
        }
        p.store(s);
        __syncwarp();     // every lane's p is there
        p.add_to(out, v_tile);                                                       // (3)
    }

#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float total = columns_sum(sum[r]), inverse = 1.0f / total;
        const int query = mine + r * ROW_GROUPS;
        const long long row = (at.first_query + query) * gridDim.y + at.head;
        if (query >= at.n_queries) continue;
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) out[r][n][i] *= inverse;
            store_channels(&y[row * D], 4 * (column_group() + n * COLUMN_GROUPS), out[r][n]);
        }
        if (column_group() == 0) lse[row] = largest[r] * scale + logf(total);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_backward_queries(
        const float* __restrict__ dy, const float* __restrict__ q, const float* __restrict__ k,
        const float* __restrict__ v, const float* __restrict__ y, const float* __restrict__ lse,
        float* __restrict__ delta, float* __restrict__ dq, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths, int q_stride,
        int k_stride, int v_stride, int dq_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int from_start) {
    constexpr int ROWS = QUERIES_ROWS, COLUMNS = QUERIES_COLUMNS;
    constexpr int OF_WARP = ROW_GROUPS * ROWS, QUERIES = WARPS * OF_WARP;
    constexpr int TILE = COLUMN_GROUPS * COLUMNS;
    using DS = Weights<ROWS, COLUMNS>;
    __shared__ float4 q_tile[QUERIES * PITCH], dy_tile[QUERIES * PITCH], k_tile[TILE * PITCH];
    __shared__ float4 v_tile[either(TILE * PITCH, WARPS * DS::FOURS_OF_WARP)];     // and then dS
#if D <= 64
    __shared__ float2 of_rows[QUERIES];     // lse and delta: registers are scarce
    float2* const known = of_rows + threadIdx.x / WARP * OF_WARP + row_group();
    constexpr int APART = ROW_GROUPS;
#else
    float2 known[ROWS];     // shared memory is
    constexpr int APART = 1;
#endif
    const Part at = part_of(blockIdx.z, cu_seqlens, key_starts, key_lengths,
                            DROPOUT && from_start);
    const int warp = threadIdx.x / WARP;
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, of_warp = first + warp * OF_WARP;
    if (first >= at.n_queries) return;

    const long long packed = at.first_query * gridDim.y + at.head;     // row of query 0
    q += at.first_query * q_stride + at.head * D;
    k += at.first_key * k_stride + at.head * D;
    v += at.first_key * v_stride + at.head * D;
    dq += at.first_query * dq_stride + at.head * D;
    load_tile<QUERIES>(q_tile, q, first, at.n_queries, q_stride);
    load_tile<QUERIES>(dy_tile, dy + packed * D, first, at.n_queries, gridDim.y * D);
    // rowsum(dP * P) of (6) is rowsum(dY * Y): sum_j p_j m_j (dy . v_j) = dy . sum_j p_j m_j v_j
    const int mine = of_warp + row_group();
    float sum[ROWS][CHUNKS][4] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int query = mine + r * ROW_GROUPS;
        const bool exists = query < at.n_queries;
        const long long row = packed + (exists ? (long long)query * gridDim.y : 0);
        float part = 0.0f;
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
            const int c = 4 * (column_group() + n * COLUMN_GROUPS);
            const float4 a = load_channels(&dy[row * D], c, exists);
            const float4 b = load_channels(&y[row * D], c, exists);
            part += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
        }
        part = columns_sum(part);
        if (D > 64 || column_group() == 0)
            known[r * APART] = make_float2(exists ? lse[row] * LOG2_E : 0.0f, part);
        if (exists && column_group() == 0) delta[row] = part;
    }
    const DS ds(v_tile);
    const float scale_2 = scale * LOG2_E;
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    const int end = causal ? min(at.n_keys, first + QUERIES + at.shift) : at.n_keys;
    const int warp_end = of_warp >= at.n_queries ? 0 :
                         causal ? min(end, of_warp + OF_WARP + at.shift) : end;
    for (int tile = 0; tile < end; tile += TILE) {
        __syncthreads();
        load_tile<TILE, COLUMNS>(k_tile, k, tile, at.n_keys, k_stride);
        load_tile<TILE, COLUMNS>(v_tile, v, tile, at.n_keys, v_stride);
        copies_wait();
        __syncthreads();
        float s[ROWS][COLUMNS], dp[ROWS][COLUMNS];
#if DROPOUT
        uint32_t kept[COLUMNS / 4];
        if (tile < warp_end)
            kept_queries<ROWS, COLUMNS>(kept, drop, example_id, mine + at.shift, at.head, tile);
#endif
        if (tile < warp_end) {
            products<ROWS, COLUMNS>(dp, dy_tile + warp * OF_WARP * PITCH, v_tile);
            products<ROWS, COLUMNS>(s, q_tile + warp * OF_WARP * PITCH, k_tile);
        }
        __syncthreads();     // dS takes the place of the values
        if (tile >= warp_end) continue;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float2 row = known[r * APART];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
#if DROPOUT
                dp[r][j] *= factor(keep, kept[j / 4], 4 * r + j % 4);                // (5)
#endif
                const float p = power_of_two(s[r][j] * scale_2 - row.x);             // (1), (2)
                s[r][j] = p * (dp[r][j] - row.y);                                    // (6)
            }
        }
        if (tile + TILE > at.n_keys || (causal && tile + TILE - 1 > of_warp + at.shift))
            mask<ROWS, COLUMNS>(s, 0.0f, tile, at.n_keys, causal, mine + at.shift);
        ds.store(s);
        __syncwarp();
        ds.add_to(sum, k_tile);
    }

#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int query = mine + r * ROW_GROUPS;
        if (query >= at.n_queries) continue;
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[r][n][i] *= scale;                       // (7)
            store_channels(&dq[(long long)query * dq_stride],
                           4 * (column_group() + n * COLUMN_GROUPS), sum[r][n]);
        }
    }
}

// Which of a lane's scores dropout keeps, where rows are keys, the warp's first is `key`, and
// columns queries: bit 4 r + i of kept[j] is that of column j and row r of row group i. The four
// row groups share a draw: each draws for one column, or for none, and they exchange them.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void kept_keys(uint32_t (&kept)[COLUMNS], const ScoreDropout& drop,
                                          uint32_t example_id, int position, int head, int key) {
    const int turn = row_group();
    uint32_t mine = 0;
    if (turn < COLUMNS)
#pragma unroll 3
        for (int r = 0; r < ROWS; r++)
            mine |= four_kept(drop, example_id, position + column_of<COLUMNS>(turn), head,
                              key / 4 + r) << 4 * r;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        kept[j] = __shfl_sync(ALL_LANES, mine, (threadIdx.x & 14) | (j & 1) | (j & 2) << 3);
}

// Writes dk and dv, or adds to them with `add`: sequences may share keys; then the launcher sends
// one after another, from `first_sequence` on.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_backward_keys(
        const float* __restrict__ dy, const float* __restrict__ q, const float* __restrict__ k,
        const float* __restrict__ v, const float* __restrict__ lse,
        const float* __restrict__ delta, float* __restrict__ dk, float* __restrict__ dv,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, int q_stride, int k_stride, int v_stride,
        int dk_stride, int dv_stride, int causal, float scale,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int from_start, int first_sequence,
        int add) {
    constexpr int ROWS = KEYS_ROWS, COLUMNS = KEYS_COLUMNS;
    constexpr int OF_WARP = ROW_GROUPS * ROWS, KEYS = WARPS * OF_WARP;
    constexpr int TILE = COLUMN_GROUPS * COLUMNS;
    using W = Weights<ROWS, COLUMNS>;
    __shared__ float4 k_tile[KEYS * PITCH], v_tile[KEYS * PITCH];
    __shared__ float4 q_tile[TILE * PITCH], dy_tile[TILE * PITCH];
    __shared__ float4 w_tile[WARPS * W::FOURS_OF_WARP];     // first P, then dS
    __shared__ float2 of_columns[TILE];     // lse and delta
    const Part at = part_of(first_sequence + blockIdx.z, cu_seqlens, key_starts, key_lengths,
                            DROPOUT && from_start);
    const int warp = threadIdx.x / WARP;
    const int first = blockIdx.x * KEYS, of_warp = first + warp * OF_WARP;
    if (first >= at.n_keys) return;

    const long long packed = at.first_query * gridDim.y + at.head;
    q += at.first_query * q_stride + at.head * D;
    k += at.first_key * k_stride + at.head * D;
    v += at.first_key * v_stride + at.head * D;
    load_tile<KEYS>(k_tile, k, first, at.n_keys, k_stride);
    load_tile<KEYS>(v_tile, v, first, at.n_keys, v_stride);
    const W w(w_tile);
    const float scale_2 = scale * LOG2_E;
    const int mine = of_warp + row_group();
    float dk_sum[ROWS][CHUNKS][4] = {}, dv_sum[ROWS][CHUNKS][4] = {};
#if DROPOUT
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const uint32_t example_id = example_ids[at.sequence];
#endif

    const int start = causal ? max(0, first - at.shift) : 0;     // who sees the first key
    for (int tile = start; tile < at.n_queries; tile += TILE) {
        __syncthreads();
        load_tile<TILE, COLUMNS>(q_tile, q, tile, at.n_queries, q_stride);
        load_tile<TILE, COLUMNS>(dy_tile, dy + packed * D, tile, at.n_queries,
                              gridDim.y * D);
        if (threadIdx.x < TILE) {
            const int query = tile + threadIdx.x;
            const bool exists = query < at.n_queries;
            const long long row = packed + (exists ? (long long)query * gridDim.y : 0);
            of_columns[threadIdx.x] = exists ? make_float2(lse[row] * LOG2_E, delta[row]) :
                                      make_float2(0.0f, 0.0f);
        }
        copies_wait();
        __syncthreads();
        if (of_warp >= at.n_keys || (causal && tile + TILE - 1 + at.shift < of_warp)) continue;
#if DROPOUT
        uint32_t kept[COLUMNS];
        kept_keys<ROWS, COLUMNS>(kept, drop, example_id, tile + at.shift, at.head, of_warp);
#endif
        float s[ROWS][COLUMNS], dp[ROWS][COLUMNS];
        products<ROWS, COLUMNS>(s, k_tile + warp * OF_WARP * PITCH, q_tile);
        products<ROWS, COLUMNS>(dp, v_tile + warp * OF_WARP * PITCH, dy_tile);
        // what lies past the queries has dY = 0 and adds nothing, what lies past the keys is not
        // stored
        if (causal && of_warp + OF_WARP - 1 > tile + at.shift) {
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < COLUMNS; j++)
                    if (mine + r * ROW_GROUPS > tile + column_of<COLUMNS>(j) + at.shift)
                        s[r][j] = -INFINITY;
        }
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const float2 column = of_columns[column_of<COLUMNS>(j)];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float p = power_of_two(s[r][j] * scale_2 - column.x);          // (1), (2)
                s[r][j] = p;
#if DROPOUT
                const float m = factor(keep, kept[j] >> row_group(), 4 * r);
                s[r][j] = p * m;
                dp[r][j] *= m;                                                       // (5)
#endif
                dp[r][j] = p * (dp[r][j] - column.y);                                // (6)
            }
        }
        w.store(s);
        __syncwarp();
        w.add_to(dv_sum, dy_tile);                                                   // (4)
        __syncwarp();     // P has been read
        w.store(dp);
        __syncwarp();
        w.add_to(dk_sum, q_tile);
    }

#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int key = mine + r * ROW_GROUPS;
        if (key >= at.n_keys) continue;
        float* to_k = &dk[(at.first_key + key) * dk_stride + at.head * D];
        float* to_v = &dv[(at.first_key + key) * dv_stride + at.head * D];
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
            const int c = 4 * (column_group() + n * COLUMN_GROUPS);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                dk_sum[r][n][i] *= scale;                                            // (7)
                if (add && c + i < D)
                    dk_sum[r][n][i] += to_k[c + i], dv_sum[r][n][i] += to_v[c + i];
            }
            store_channels(to_k, c, dk_sum[r][n]);
            store_channels(to_v, c, dv_sum[r][n]);
        }
    }
}
