// AdamW over the flat buffers, in one pass, with the mean over the batch and the clipping of the
// gradient folded in.
//
// Computes (2), (4), (3) of minisft/training/optim.py in adamw_step; the squared norm of the
// gradient in adamw_squares (each block's part) and adamw_squares_sum.
// A thread owns one number of adamw_step; a block of adamw_squares owns `numbers` of them.
// Shared memory: one number a warp, for the sums.
// Demands: float32, contiguous values, gradients and both moments (n,), of one parameter group.
// Memory traffic: 28 bytes a number (four read, three written), and 4 for the norm.

// The gradient is multiplied by `scale`, and again so that its norm, sqrt(*squares) * scale, is at
// most `limit`; squares may be null. m_rate = lr / (1 - b1^t), v_root = 1 / sqrt(1 - b2^t),
// shrink = 1 - lr * decay; rest1 and rest2 are 1 - b1 and 1 - b2, which float32 would round off.
extern "C" __global__ void adamw_step(float* __restrict__ values, const float* __restrict__ grads,
                                      float* __restrict__ m, float* __restrict__ v,
                                      const float* __restrict__ squares, long long n, float scale,
                                      float limit, float shrink, float b1, float rest1, float b2,
                                      float rest2, float m_rate, float v_root, float eps) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float factor = scale;
    if (squares) factor *= fminf(1.0f, limit / (sqrtf(*squares) * scale));
    const float g = grads[i] * factor;
    const float first = b1 * m[i] + rest1 * g;                                      // (2)
    const float second = b2 * v[i] + rest2 * (g * g);
    m[i] = first;
    v[i] = second;
    values[i] = values[i] * shrink - m_rate * (first / (sqrtf(second) * v_root + eps));  // (4), (3)
}

extern "C" __global__ void adamw_squares(const float* __restrict__ grads,
                                         float* __restrict__ parts, long long n, int numbers) {
    __shared__ float scratch[MOST_WARPS];
    const long long first = (long long)blockIdx.x * numbers;
    const long long end = first + numbers < n ? first + numbers : n;
    float sum = 0.0f;
    for (long long i = first + threadIdx.x; i < end; i += blockDim.x) sum += grads[i] * grads[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void adamw_squares_sum(const float* __restrict__ parts,
                                             float* __restrict__ squares, int pieces) {
    __shared__ float scratch[MOST_WARPS];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < pieces; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *squares = sum;
}
