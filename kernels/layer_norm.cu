// Layer normalisation, fused: a row is read once, and stays in registers while its mean and its
// variance are taken.
//
// Computes, of minisft/ops/layer_norm.py: (1), (2) in layer_norm_forward; (3) and each block's part
// of (4) in layer_norm_backward; column_sums.cu adds the parts, in the order of the blocks.
// A block owns one row forward, `rows` rows backward; a thread owns the channels threadIdx.x,
// threadIdx.x + THREADS, ..., so a channel's part of dw and db never leaves its thread.
// Shared memory: a few hundred bytes, one number a warp for each sum.
// Demands: float32, contiguous; WIDTH and THREADS (a multiple of 32) are -D options.
// Memory traffic: 8 bytes a number forward, 12 backward, and 8 / rows for the parts of dw and db.

#define COLUMNS ((WIDTH + THREADS - 1) / THREADS)     // channels of a thread

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward(
        const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
        float* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, float eps) {
    __shared__ float scratch[2][MOST_WARPS];
    const long long row = blockIdx.x;
    float kept[COLUMNS], sum = 0.0f, squares = 0.0f;
    for (int i = 0; i < COLUMNS; i++) {
        const int c = threadIdx.x + i * THREADS;
        kept[i] = c < WIDTH ? x[row * WIDTH + c] : 0.0f;
        sum += kept[i];
    }
    const float row_mean = block_sum(sum, scratch[0]) / WIDTH;
    for (int i = 0; i < COLUMNS; i++) {
        const float centred = threadIdx.x + i * THREADS < WIDTH ? kept[i] - row_mean : 0.0f;
        squares += centred * centred;
    }
    const float row_rstd = 1.0f / sqrtf(block_sum(squares, scratch[1]) / WIDTH + eps);
    for (int i = 0; i < COLUMNS; i++) {
        const int c = threadIdx.x + i * THREADS;
        if (c < WIDTH)
            y[row * WIDTH + c] = (kept[i] - row_mean) * row_rstd * w[c] + b[c];     // (1), (2)
    }
    if (threadIdx.x == 0) {
        mean[row] = row_mean;
        rstd[row] = row_rstd;
    }
}

// parts (blocks, 2, WIDTH): each block's dw and db
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward(
        const float* __restrict__ dy, const float* __restrict__ x, const float* __restrict__ w,
        const float* __restrict__ mean, const float* __restrict__ rstd, float* __restrict__ dx,
        float* __restrict__ parts, int n, int rows) {
    // two, by turns: a warp may be a row ahead of one that still reads
    __shared__ float2 scratch[2][MOST_WARPS];
    float weight[COLUMNS], dw[COLUMNS] = {}, db[COLUMNS] = {};
    for (int i = 0; i < COLUMNS; i++) {
        const int c = threadIdx.x + i * THREADS;
        weight[i] = c < WIDTH ? w[c] : 0.0f;
    }
    const int first = blockIdx.x * rows, end = min(n, first + rows);
    for (int row = first; row < end; row++) {
        const long long at = (long long)row * WIDTH;
        const float row_mean = mean[row], row_rstd = rstd[row];
        float normal[COLUMNS], g[COLUMNS], sum_g = 0.0f, sum_gn = 0.0f;
        for (int i = 0; i < COLUMNS; i++) {
            const int c = threadIdx.x + i * THREADS;
            const float up = c < WIDTH ? dy[at + c] : 0.0f;
            normal[i] = c < WIDTH ? (x[at + c] - row_mean) * row_rstd : 0.0f;
            g[i] = up * weight[i];
            sum_g += g[i];
            sum_gn += g[i] * normal[i];
            dw[i] += up * normal[i];                                               // (4)
            db[i] += up;
        }
        const float2 sums = block_sums(sum_g, sum_gn, scratch[row % 2]);
        for (int i = 0; i < COLUMNS; i++) {
            const int c = threadIdx.x + i * THREADS;
            if (c < WIDTH)
                dx[at + c] = row_rstd * (g[i] - sums.x / WIDTH
                                         - normal[i] * (sums.y / WIDTH));          // (3)
        }
    }
    for (int i = 0; i < COLUMNS; i++) {
        const int c = threadIdx.x + i * THREADS;
        if (c >= WIDTH) continue;
        parts[blockIdx.x * 2ll * WIDTH + c] = dw[i];
        parts[blockIdx.x * 2ll * WIDTH + WIDTH + c] = db[i];
    }
}
