// Softmax over rows, the simple version: one thread computes one row.
//
// Computes (1) to (3) forward and (4) backward of minisft/ops/softmax.py.
// A block owns blockDim.x rows. Shared memory: none.
// Demands: float32, contiguous s, p, dp, ds (n, m).
//
// Why it is slow: neighbouring threads read addresses that lie m floats apart, so each load of a
// warp touches 32 different lines of memory, and the row is read three times.

extern "C" __global__ void softmax_naive_forward(const float* __restrict__ s,
                                                 float* __restrict__ p, int n, int m) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    s += (long long)row * m;
    p += (long long)row * m;
    float largest = -INFINITY, sum = 0.0f;
    for (int j = 0; j < m; j++) largest = fmaxf(largest, s[j]);           // (1)
    for (int j = 0; j < m; j++) sum += expf(s[j] - largest);              // (2)
    for (int j = 0; j < m; j++) p[j] = expf(s[j] - largest) / sum;        // (3)
}

extern "C" __global__ void softmax_naive_backward(const float* __restrict__ dp,
                                                  const float* __restrict__ p,
                                                  float* __restrict__ ds, int n, int m) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    dp += (long long)row * m;
    p += (long long)row * m;
    ds += (long long)row * m;
    float sum = 0.0f;
    for (int j = 0; j < m; j++) sum += dp[j] * p[j];
    for (int j = 0; j < m; j++) ds[j] = p[j] * (dp[j] - sum);             // (4)
}
