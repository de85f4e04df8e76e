// Sums of columns: the gradient of a bias, and the parts that the blocks of layer_norm_backward and
// gelu_backward leave.
//
// Computes (4) of minisft/ops/linear.py. With many rows there are two launches: the first sums
// pieces of them, the second the pieces. Always in the same order: equal inputs give equal bits.
// Grid: (groups of 32 columns, 64 in 16 bits, pieces of the rows). A lane owns a column or two, a
// warp every warps-th row of the piece: neighbouring lanes read neighbouring numbers, and many rows
// are on their way at once, where one thread a column would wait for each in turn.
// Shared memory: 4 KB, a number for each warp and column; 8 KB in 16 bits.
// Demands: float32, contiguous x (n, width), or in 16 bits an even width. The first `share` columns
// go to `out` (pieces, share), as many to `second` and to `third`, of which each may be null: then
// nobody wants these. With `add` what lies there is added to.
// Memory traffic: 4 bytes a number, 2 in 16 bits.

// Neighbouring columns that a lane owns
__device__ __forceinline__ void load(float (&to)[1], const float* from) { to[0] = *from; }
__device__ __forceinline__ void load(float (&to)[2], const uint16_t* from) {
    const uint32_t two = *(const uint32_t*)from;
    to[0] = from_16_bits((uint16_t)two);
    to[1] = from_16_bits(two >> 16);
}

template <int N, class T>
__device__ __forceinline__ void sum_columns(float (*scratch)[N * WARP], const T* x, float* out,
                                            float* second, float* third, int n, int width,
                                            int share, int rows, int add) {
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first_column = (blockIdx.x * WARP + lane) * N;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    float sums[N] = {};
    if (first_column < width) {
        #pragma unroll 8
        for (int row = first + warp; row < end; row += warps) {
            float v[N];
            load(v, &x[(long long)row * width + first_column]);
            for (int i = 0; i < N; i++) sums[i] += v[i];
        }
    }
    for (int i = 0; i < N; i++) scratch[warp][N * lane + i] = sums[i];
    __syncthreads();
    if (warp != 0 || first_column >= width) return;
    for (int i = 0; i < N; i++) {
        const int c = first_column + i;
        float sum = sums[i];
        for (int other = 1; other < warps; other++) sum += scratch[other][N * lane + i];
        float* to = c < share ? out : c < 2 * share ? second : third;
        if (!to) continue;
        to += (long long)blockIdx.y * share + c % share;
        *to = add ? *to + sum : sum;                                                // (4)
    }
}

extern "C" __global__ void __launch_bounds__(1024) column_sums(
        const float* __restrict__ x, float* __restrict__ out, float* __restrict__ second,
        float* __restrict__ third, int n, int width, int share, int rows, int add) {
    __shared__ float scratch[MOST_WARPS][WARP];
    sum_columns<1>(scratch, x, out, second, third, n, width, share, rows, add);
}

extern "C" __global__ void __launch_bounds__(1024) column_sums_16_bits(
        const uint16_t* __restrict__ x, float* __restrict__ out, float* __restrict__ second,
        float* __restrict__ third, int n, int width, int share, int rows, int add) {
    __shared__ float scratch[MOST_WARPS][2 * WARP];
    sum_columns<2>(scratch, x, out, second, third, n, width, share, rows, add);
}
