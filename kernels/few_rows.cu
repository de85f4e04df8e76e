// A linear map of a few rows in 16 bits, as generation has it: each weight is read once and meets
// all rows.
//
// Computes (1) of minisft/ops/linear.py, in few_rows.
// A block owns COLUMNS columns of all rows. Four lanes side by side take 16 bytes each of a row of
// w, so a warp takes eight rows of w at once, and AT_ONCE times as many before it looks at the
// first; the warps of a block take the next ones. What lanes found is added by shuffles, what warps
// found through shared memory, always in the same order.
// Shared memory: 128 ROWS bytes for each of 16 warps.
// Demands: ROWS (a -D option) from 1 to 8; x (ROWS, k) contiguous; w (k, m) whose rows lie `stride`
// numbers apart and begin at 16 bytes, m a multiple of 8; both bfloat16, or float16 with -D
// FLOAT16=1; blocks of 512 threads.
// Memory traffic: 2 bytes a weight.

#define WARPS 16
#define EIGHT 8
#define COLUMNS 32
#define LANES (COLUMNS / EIGHT)
#define DEPTH (WARP / LANES)     // rows of w that a warp takes at once
#define AT_ONCE (ROWS > 4 ? 3 : 6)     // with 16 warps: a half of GPT-2's 768, or all of them

// bias may be null; of y and low, its 16-bit form, one is.
extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1) few_rows(
        const uint16_t* __restrict__ x, const uint16_t* __restrict__ w,
        const float* __restrict__ bias, float* __restrict__ y, uint16_t* __restrict__ low, int k,
        int m, int stride) {
    __shared__ float sums[WARPS][ROWS][COLUMNS];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = blockIdx.x * COLUMNS, c = first + lane % LANES * EIGHT;
    float sum[ROWS][EIGHT] = {};
    for (int tile = warp * DEPTH; tile < k; tile += WARPS * DEPTH * AT_ONCE) {
        uint4 words[AT_ONCE];
        uint16_t factors[AT_ONCE][ROWS];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int row = tile + i * WARPS * DEPTH + lane / LANES;
            words[i] = row < k && c < m ? *(const uint4*)&w[(long long)row * stride + c]
                                        : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                factors[i][r] = row < k ? x[(long long)r * k + row] : (uint16_t)0;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const uint32_t word[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < EIGHT; j++)                                      // (1)
                    sum[r][j] += from_16_bits(factors[i][r]) *
                                 from_16_bits((uint16_t)(word[j / 2] >> j % 2 * 16));
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int j = 0; j < EIGHT; j++) {
#pragma unroll
            for (int bit = LANES; bit < WARP; bit *= 2)
                sum[r][j] += __shfl_xor_sync(ALL_LANES, sum[r][j], bit);
            if (lane < LANES) sums[warp][r][lane * EIGHT + j] = sum[r][j];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += WARPS * WARP) {
        const int r = i / COLUMNS, column = first + i % COLUMNS;
        if (column >= m) continue;
        float total = 0.0f;
        for (int part = 0; part < WARPS; part++) total += sums[part][r][i % COLUMNS];
        if (bias) total += bias[column];
        if (low) low[(long long)r * m + column] = to_16_bits(total);
        else y[(long long)r * m + column] = total;
    }
}
