// A residual sum and the layer normalisation of it, fused: what the block before has not yet added
// is added while the row is read; y is written as the next product takes it.
//
// Computes, of minisft/ops/layer_norm.py: (1), (2) of u = x + M * (more + bias), with M of
// minisft/ops/dropout.py, in residual_layer_norm_forward; residual + (3), which is the gradient of
// u and of x, M times that, which is the gradient of `more`, and each block's part of the sums over
// the tokens, (4) and the bias's, in residual_layer_norm_backward; column_sums.cu adds the parts.
// A block owns one row forward, `rows` rows backward; a thread owns four neighbouring channels, or
// several times four: one access of 16 bytes, one call of Philox.
// Shared memory: a few hundred bytes, one number a warp for each sum.
// Demands: contiguous arrays; WIDTH and THREADS (a multiple of 32) are -D options, so is FLOAT16
// = 1 or 0; float32 arrays aligned to 16 bytes, 16-bit ones to 8.
// Memory traffic: 14 bytes a number forward (x, more, u, y in 16 bits), 18 backward (dy, u,
// residual, dx, the copy in 16 bits); apart, sums, bias, dropout, norm and rounding take 46 and 50.

#define QUADS (((WIDTH + 3) / 4 + THREADS - 1) / THREADS)     // of a thread: four channels each

#define EVEN (WIDTH % (4 * THREADS) == 0)     // no thread has channels beyond the row

// Rows whose width is no multiple of four begin anywhere, and go number by number.
__device__ __forceinline__ void load_channels(float (&to)[4], const float* from, int c) {
    if (WIDTH % 4 == 0) load_four(to, from + c, EVEN || c < WIDTH ? 4 : 0);
    else for (int i = 0; i < 4; i++) to[i] = c + i < WIDTH ? from[c + i] : 0.0f;
}

__device__ __forceinline__ void store_channels(float* to, const float (&from)[4], int c) {
    if (WIDTH % 4 == 0) store_four(to + c, from, EVEN || c < WIDTH ? 4 : 0);
    else for (int i = 0; i < 4; i++) if (c + i < WIDTH) to[c + i] = from[i];
}

__device__ __forceinline__ void store_rounded(uint16_t* to, const float (&from)[4], int c) {
    if (WIDTH % 4 == 0) {
        if (EVEN || c < WIDTH)
            *(uint2*)(to + c) = make_uint2(pack_16_bits(from[0], from[1]),
                                           pack_16_bits(from[2], from[3]));
    } else {
        for (int i = 0; i < 4; i++) if (c + i < WIDTH) to[c + i] = to_16_bits(from[i]);
    }
}

// a *= M of four channels of a token
__device__ __forceinline__ void drop_four(float (&a)[4], uint32_t example_id, uint32_t position,
                                          int c, uint32_t threshold, float keep, uint32_t seed,
                                          uint32_t step, uint32_t site) {
    const Words words = philox(step, example_id, position, c / 4, seed, site);
    for (int i = 0; i < 4; i++) a[i] *= words.word[i] >= threshold ? keep : 0.0f;
}

// `more` may be null, and then u is: x is normalised as it is. `bias` may be null; without dropout
// example_ids are. Of y and low, its 16-bit form, one is null.
extern "C" __global__ void __launch_bounds__(THREADS) residual_layer_norm_forward(
        const float* __restrict__ x, const float* __restrict__ more,
        const float* __restrict__ bias, const uint32_t* __restrict__ example_ids,
        const uint32_t* __restrict__ positions, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, const float* __restrict__ w,
        const float* __restrict__ b, float* __restrict__ u, float* __restrict__ y,
        uint16_t* __restrict__ low, float* __restrict__ mean, float* __restrict__ rstd, float eps) {
    __shared__ float scratch[2][MOST_WARPS];
    const int row = blockIdx.x;
    const long long at = (long long)row * WIDTH;
    float kept[QUADS][4], scale[QUADS][4], shift[QUADS][4], sum = 0.0f, squares = 0.0f;
    #pragma unroll
    for (int quad = 0; quad < QUADS; quad++) {
        const int c = 4 * (threadIdx.x + quad * THREADS);
        load_channels(kept[quad], x + at, c);
        load_channels(scale[quad], w, c);     // on their way while the sums are made
        load_channels(shift[quad], b, c);
        if (more) {
            float a[4], added[4] = {};
            load_channels(a, more + at, c);
            if (bias) load_channels(added, bias, c);
            for (int i = 0; i < 4; i++) a[i] += added[i];
            if (example_ids)
                drop_four(a, example_ids[row], positions[row], c, threshold, keep, seed, *step,
                          site);
            for (int i = 0; i < 4; i++) kept[quad][i] += a[i];
            store_channels(u + at, kept[quad], c);
        }
        for (int i = 0; i < 4; i++) sum += kept[quad][i];
    }
    const float row_mean = block_sum(sum, scratch[0]) / WIDTH;
    #pragma unroll
    for (int quad = 0; quad < QUADS; quad++) {
        const int c = 4 * (threadIdx.x + quad * THREADS);
        for (int i = 0; i < 4; i++) {
            const float centred = c + i < WIDTH ? kept[quad][i] - row_mean : 0.0f;
            squares += centred * centred;
        }
    }
    const float row_rstd = 1.0f / sqrtf(block_sum(squares, scratch[1]) / WIDTH + eps);
    #pragma unroll
    for (int quad = 0; quad < QUADS; quad++) {
        const int c = 4 * (threadIdx.x + quad * THREADS);
        for (int i = 0; i < 4; i++)
            shift[quad][i] += (kept[quad][i] - row_mean) * row_rstd * scale[quad][i];    // (1), (2)
        if (low) store_rounded(low + at, shift[quad], c);
        else store_channels(y + at, shift[quad], c);
    }
    if (threadIdx.x == 0) {
        mean[row] = row_mean;
        rstd[row] = row_rstd;
    }
}

// What the backward reads of a row.
struct Row {
    float up[QUADS][4], u[QUADS][4], above[QUADS][4], mean, rstd;
};

__device__ __forceinline__ Row load_row(const float* dy, const float* u, const float* residual,
                                        const float* mean, const float* rstd, int row) {
    Row it;
    it.mean = mean[row], it.rstd = rstd[row];
    #pragma unroll
    for (int quad = 0; quad < QUADS; quad++) {
        const int c = 4 * (threadIdx.x + quad * THREADS);
        load_channels(it.up[quad], dy + (long long)row * WIDTH, c);
        load_channels(it.u[quad], u + (long long)row * WIDTH, c);
        if (residual) load_channels(it.above[quad], residual + (long long)row * WIDTH, c);
        else for (int i = 0; i < 4; i++) it.above[quad][i] = 0.0f;
    }
    return it;
}

// x is u of the forward. `residual` may be null. The gradient of `more` goes to `copy`, or rounded
// to `low`, or is not written where both are null. parts (blocks, sums, WIDTH): each block's dw, db
// and, with sums = 3, the bias's.
extern "C" __global__ void __launch_bounds__(THREADS) residual_layer_norm_backward(
        const float* __restrict__ dy, const float* __restrict__ x, const float* __restrict__ w,
        const float* __restrict__ mean, const float* __restrict__ rstd,
        const float* __restrict__ residual, const uint32_t* __restrict__ example_ids,
        const uint32_t* __restrict__ positions, uint32_t threshold, float keep, uint32_t seed,
        const uint32_t* __restrict__ step, uint32_t site, float* __restrict__ dx,
        float* __restrict__ copy, uint16_t* __restrict__ low, float* __restrict__ parts, int sums,
        int n, int rows) {
    // two, by turns: a warp may be a row ahead of one that still reads
    __shared__ float2 scratch[2][MOST_WARPS];
    float weight[QUADS][4], dw[QUADS][4] = {}, db[QUADS][4] = {}, dbias[QUADS][4] = {};
    #pragma unroll
    for (int quad = 0; quad < QUADS; quad++)
        load_channels(weight[quad], w, 4 * (threadIdx.x + quad * THREADS));
    const int first = blockIdx.x * rows, end = min(n, first + rows);
    Row next = load_row(dy, x, residual, mean, rstd, first);
    for (int row = first; row < end; row++) {
        const Row now = next;     // the next is on its way while this one's sums are waited for
        if (row + 1 < end) next = load_row(dy, x, residual, mean, rstd, row + 1);
        const long long at = (long long)row * WIDTH;
        float normal[QUADS][4], g[QUADS][4], sum_g = 0.0f, sum_gn = 0.0f;
        #pragma unroll
        for (int quad = 0; quad < QUADS; quad++) {
            const int c = 4 * (threadIdx.x + quad * THREADS);
            for (int i = 0; i < 4; i++) {
                const float up = now.up[quad][i];
                normal[quad][i] = c + i < WIDTH ? (now.u[quad][i] - now.mean) * now.rstd : 0.0f;
                g[quad][i] = up * weight[quad][i];
                sum_g += g[quad][i];
                sum_gn += g[quad][i] * normal[quad][i];
                dw[quad][i] += up * normal[quad][i];                               // (4)
                db[quad][i] += up;
            }
        }
        const float2 both = block_sums(sum_g, sum_gn, scratch[row % 2]);
        #pragma unroll
        for (int quad = 0; quad < QUADS; quad++) {
            const int c = 4 * (threadIdx.x + quad * THREADS);
            float d[4];
            for (int i = 0; i < 4; i++)
                d[i] = now.above[quad][i]                                          // (3)
                       + now.rstd * (g[quad][i] - both.x / WIDTH
                                     - normal[quad][i] * (both.y / WIDTH));
            store_channels(dx + at, d, c);
            if (example_ids)
                drop_four(d, example_ids[row], positions[row], c, threshold, keep, seed,
                          *step, site);
            if (low) store_rounded(low + at, d, c);
            else if (copy) store_channels(copy + at, d, c);
            for (int i = 0; i < 4; i++) dbias[quad][i] += d[i];
        }
    }
    parts += (long long)blockIdx.x * sums * WIDTH;
    #pragma unroll
    for (int quad = 0; quad < QUADS; quad++) {
        const int c = 4 * (threadIdx.x + quad * THREADS);
        store_channels(parts, dw[quad], c);
        store_channels(parts + WIDTH, db[quad], c);
        if (sums == 3) store_channels(parts + 2 * WIDTH, dbias[quad], c);
    }
}
