// Attention, the simple version: one thread computes one number, and every score is written to
// memory, as in the equations.
//
// Computes, of minisft/ops/attention.py: (1), (2) in _probabilities; (3) in _output; (5), (6) in
// _score_gradients; (7) for dQ in _query_gradients; (4) and (7) for dK, dV in _key_gradients.
// Grid: (pieces of blockDim.x numbers, heads, sequences). A thread owns a row of scores, or one
// channel of a query or key. Shared memory: none.
// Demands: float32; q, k, v (tokens, heads, d) whose rows may lie `stride` numbers apart, all else
// contiguous. p and ds hold (heads, Tq, Tk) of each sequence, from offsets[sequence] on.
//
// Why it is slow: memory grows with the square of the length, each score goes through it eight
// times, and neighbouring threads read addresses far apart.

// One head of one sequence, and where it lies among the packed rows.
struct Part {
    int sequence, head, n_queries, n_keys, shift;     // as in attention.cu
    long long first_query, first_key, scores;
};

__device__ __forceinline__ Part part_of(const int* cu_seqlens, const int* key_starts,
                                        const int* key_lengths, const long long* offsets,
                                        int from_start = 0) {
    Part at;
    at.sequence = blockIdx.z;
    at.head = blockIdx.y;
    at.first_query = cu_seqlens[at.sequence];
    at.n_queries = cu_seqlens[at.sequence + 1] - cu_seqlens[at.sequence];
    at.first_key = key_starts[at.sequence];
    at.n_keys = key_lengths[at.sequence];
    at.shift = from_start ? 0 : at.n_keys - at.n_queries;
    at.scores = offsets[at.sequence] + (long long)at.head * at.n_queries * at.n_keys;
    return at;
}

extern "C" __global__ void attention_naive_probabilities(
        const float* __restrict__ q, const float* __restrict__ k, float* __restrict__ p,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, const long long* __restrict__ offsets, int d,
        int q_stride, int k_stride, int causal, float scale) {
    const Part at = part_of(cu_seqlens, key_starts, key_lengths, offsets);
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= at.n_queries) return;
    q += (at.first_query + i) * q_stride + at.head * d;
    k += at.first_key * k_stride + at.head * d;
    p += at.scores + (long long)i * at.n_keys;
    const int seen = causal ? i + at.shift + 1 : at.n_keys;
    float largest = -INFINITY, sum = 0.0f;
    for (int j = 0; j < seen; j++) {
        float s = 0.0f;
        for (int c = 0; c < d; c++) s += q[c] * k[(long long)j * k_stride + c];
        p[j] = s * scale;                                                           // (1)
        largest = fmaxf(largest, p[j]);
    }
    for (int j = 0; j < seen; j++) {
        p[j] = expf(p[j] - largest);
        sum += p[j];
    }
    for (int j = 0; j < at.n_keys; j++) p[j] = j < seen ? p[j] / sum : 0.0f;         // (2)
}

extern "C" __global__ void attention_naive_output(
        const float* __restrict__ p, const float* __restrict__ v, float* __restrict__ y,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, const long long* __restrict__ offsets, int d,
        int v_stride, const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep,
        uint32_t seed, const uint32_t* __restrict__ step, uint32_t site, int from_start) {
    const Part at = part_of(cu_seqlens, key_starts, key_lengths, offsets, from_start);
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) / d;
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) % d;
    if (i >= at.n_queries) return;
    v += at.first_key * v_stride + at.head * d;
    p += at.scores + (long long)i * at.n_keys;
    float sum = 0.0f;
    for (int j = 0; j < at.n_keys; j++)
        sum += p[j] * score_mask(drop, at.sequence, i + at.shift, at.head, j)
            * v[(long long)j * v_stride + c];
    y[((at.first_query + i) * gridDim.y + at.head) * d + c] = sum;                  // (3)
}

extern "C" __global__ void attention_naive_score_gradients(
        const float* __restrict__ dy, const float* __restrict__ v, const float* __restrict__ p,
        float* __restrict__ ds, const int* __restrict__ cu_seqlens,
        const int* __restrict__ key_starts, const int* __restrict__ key_lengths,
        const long long* __restrict__ offsets, int d, int v_stride,
        const uint32_t* __restrict__ example_ids, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, int from_start) {
    const Part at = part_of(cu_seqlens, key_starts, key_lengths, offsets, from_start);
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= at.n_queries) return;
    dy += ((at.first_query + i) * gridDim.y + at.head) * d;
    v += at.first_key * v_stride + at.head * d;
    p += at.scores + (long long)i * at.n_keys;
    ds += at.scores + (long long)i * at.n_keys;
    float sum = 0.0f;
    for (int j = 0; j < at.n_keys; j++) {
        float dp = 0.0f;
        for (int c = 0; c < d; c++) dp += dy[c] * v[(long long)j * v_stride + c];
        ds[j] = dp * score_mask(drop, at.sequence, i + at.shift, at.head, j);       // (5)
        sum += ds[j] * p[j];
    }
    for (int j = 0; j < at.n_keys; j++) ds[j] = p[j] * (ds[j] - sum);               // (6)
}

extern "C" __global__ void attention_naive_query_gradients(
        const float* __restrict__ ds, const float* __restrict__ k, float* __restrict__ dq,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, const long long* __restrict__ offsets, int d,
        int k_stride, float scale) {
    const Part at = part_of(cu_seqlens, key_starts, key_lengths, offsets);
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) / d;
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) % d;
    if (i >= at.n_queries) return;
    k += at.first_key * k_stride + at.head * d;
    ds += at.scores + (long long)i * at.n_keys;
    float sum = 0.0f;
    for (int j = 0; j < at.n_keys; j++) sum += ds[j] * k[(long long)j * k_stride + c];
    dq[((at.first_query + i) * gridDim.y + at.head) * d + c] = sum * scale;         // (7)
}

// Adds to dk and dv: sequences may share keys, then the launcher sends one after another, from
// `first_sequence` on.
extern "C" __global__ void attention_naive_key_gradients(
        const float* __restrict__ ds, const float* __restrict__ p, const float* __restrict__ q,
        const float* __restrict__ dy, float* __restrict__ dk, float* __restrict__ dv,
        const int* __restrict__ cu_seqlens, const int* __restrict__ key_starts,
        const int* __restrict__ key_lengths, const long long* __restrict__ offsets, int d,
        int q_stride, float scale, const uint32_t* __restrict__ example_ids, uint32_t threshold,
        float keep, uint32_t seed, const uint32_t* __restrict__ step, uint32_t site, int from_start,
        int first_sequence) {
    const Part at = part_of(cu_seqlens + first_sequence, key_starts + first_sequence,
                            key_lengths + first_sequence, offsets + first_sequence, from_start);
    const ScoreDropout drop = {example_ids, threshold, keep, seed, step, site};
    const int j = (blockIdx.x * blockDim.x + threadIdx.x) / d;
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) % d;
    if (j >= at.n_keys) return;
    float dk_sum = 0.0f, dv_sum = 0.0f;
    for (int i = 0; i < at.n_queries; i++) {
        const long long score = at.scores + (long long)i * at.n_keys + j;
        const float m = score_mask(drop, at.sequence + first_sequence, i + at.shift, at.head, j);
        dv_sum += p[score] * m * dy[((at.first_query + i) * gridDim.y + at.head) * d + c];
        dk_sum += ds[score] * q[(at.first_query + i) * q_stride + at.head * d + c];
    }
    const long long to = ((at.first_key + j) * gridDim.y + at.head) * d + c;
    dv[to] += dv_sum;                                                               // (4)
    dk[to] += dk_sum * scale;                                                       // (7)
}
