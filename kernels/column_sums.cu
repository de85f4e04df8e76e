// Sums of columns: the gradient of a bias, and the parts that the blocks of layer_norm_backward and
// gelu_backward leave.
//
// Computes (4) of minisft/ops/linear.py. With many rows there are two launches: the first sums
// pieces of them, the second the pieces. Always in the same order: equal inputs give equal bits.
// Grid: (groups of 32 columns, pieces of the rows). A lane owns a column, a warp every warps-th row
// of the piece: neighbouring lanes read neighbouring numbers, and many rows are on their way at
// once, where one thread a column would wait for each in turn.
// Shared memory: 4 KB, a number for each warp and lane.
// Demands: float32, contiguous x (n, width). The first `share` columns go to `out` (pieces, share),
// as many to `second` and to `third`, of which each may be null: then nobody wants these. With
// `add` what lies there is added to.
// Memory traffic: 4 bytes a number.

extern "C" __global__ void __launch_bounds__(1024) column_sums(
        const float* __restrict__ x, float* __restrict__ out, float* __restrict__ second,
        float* __restrict__ third, int n, int width, int share, int rows, int add) {
    __shared__ float scratch[MOST_WARPS][WARP];
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int c = blockIdx.x * WARP + lane;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    float sum = 0.0f;
    if (c < width) {
        #pragma unroll 8
        for (int row = first + warp; row < end; row += warps) sum += x[(long long)row * width + c];
    }
    scratch[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= width) return;
    for (int i = 1; i < warps; i++) sum += scratch[i][lane];
    float* to = c < share ? out : c < 2 * share ? second : third;
    if (!to) return;
    to += (long long)blockIdx.y * share + c % share;
    *to = add ? *to + sum : sum;                                                    // (4)
}
