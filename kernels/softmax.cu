// Softmax over rows, fused: one warp computes a row; maximum and sum take one pass over it.
//
// Computes (1) to (3) forward and (4) backward of minisft/ops/softmax.py.
// A block owns blockDim.x / 32 rows, each warp one of them; no warp waits for another.
// Shared memory: none, lanes exchange values by shuffles.
// Demands: float32, contiguous s, p, dp, ds (n, m), whole warps in a block.
//
// Neighbouring lanes read neighbouring floats. The second reading of a row finds it in the cache,
// so memory sees one reading and one writing: 8 bytes a score forward, 12 backward.

#define AT_ONCE 8     // scores of a lane that are on their way together

extern "C" __global__ void softmax_forward(const float* __restrict__ s, float* __restrict__ p,
                                           int n, int m) {
    const int lane = threadIdx.x % WARP;
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= n) return;     // a whole warp: its lanes share the row
    s += (long long)row * m;
    p += (long long)row * m;
    Running mine = running_start();
    for (int first = lane; first < m; first += AT_ONCE * WARP) {
        float some[AT_ONCE];     // all on their way together
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            some[i] = first + i * WARP < m ? s[first + i * WARP] : -INFINITY;
        mine = running_add(mine, some);
    }
    const Running whole = warp_join(mine);                                // (1), (2)
    const float scale = 1.0f / whole.sum;
    #pragma unroll AT_ONCE
    for (int j = lane; j < m; j += WARP)
        p[j] = exp_below(s[j], whole.largest) * scale;                    // (3)
}

extern "C" __global__ void softmax_backward(const float* __restrict__ dp,
                                            const float* __restrict__ p, float* __restrict__ ds,
                                            int n, int m) {
    const int lane = threadIdx.x % WARP;
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= n) return;
    dp += (long long)row * m;
    p += (long long)row * m;
    ds += (long long)row * m;
    float mine = 0.0f;
    #pragma unroll AT_ONCE
    for (int j = lane; j < m; j += WARP) mine += dp[j] * p[j];
    const float sum = warp_sum(mine);
    #pragma unroll AT_ONCE
    for (int j = lane; j < m; j += WARP) ds[j] = p[j] * (dp[j] - sum);    // (4)
}
