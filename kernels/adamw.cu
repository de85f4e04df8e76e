// AdamW over the flat buffers, in one launch for all parameter groups, with the mean over the batch
// and the clipping of the gradient folded in; writes the values' 16-bit copy as well.
//
// Computes (2), (4), (3) of minisft/training/optim.py in adamw_step; the squared norm of the
// gradient in adamw_squares (each block's part) and adamw_squares_sum.
// A thread owns four neighbouring numbers of adamw_step, one load of 16 bytes from each array; a
// block of adamw_squares owns `numbers` of them.
// Shared memory: one number a warp, for the sums.
// Demands: float32 values, gradients and both moments (n,), contiguous and aligned to 16 bytes; the
// copy is bfloat16, or float16 with -DFLOAT16=1, and may be null.
// Memory traffic: 28 bytes a number (four read, three written), 2 for the copy, 4 for the norm.

// What a step multiplies by lies in memory and not among the arguments, so that a recorded launch
// finds what the step after it needs. numbers (2 + 2 * groups): scale, of the gradients; v_root =
// 1 / sqrt(1 - b2^t); of each group shrink = 1 - lr * decay, then of each m_rate = lr / (1 - b1^t).
// Group g ends before number ends[g]. rest1 and rest2 are 1 - b1 and 1 - b2, which float32 would
// round off.
// squares may be null. Where they are not finite the step is left out; else the gradient is
// multiplied once more so that its norm, sqrt(*squares) * scale, is at most `limit`, unless that
// is 0.
extern "C" __global__ void adamw_step(float* __restrict__ values, const float* __restrict__ grads,
                                      float* __restrict__ m, float* __restrict__ v,
                                      uint16_t* __restrict__ low,
                                      const long long* __restrict__ ends,
                                      const float* __restrict__ numbers,
                                      const float* __restrict__ squares, long long n, int groups,
                                      float limit, float b1, float rest1, float b2, float rest2,
                                      float eps) {
    const long long first = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (first >= n) return;
    const float scale = numbers[0], v_root = numbers[1];
    float factor = scale;
    if (squares) {
        if (!(*squares < INFINITY)) return;     // so it is for NaN
        if (limit > 0) factor *= fminf(1.0f, limit / (sqrtf(*squares) * scale));
    }
    int group = 0;
    for (int most = groups - 1; group < most;) {
        const int middle = (group + most) / 2;
        if (ends[middle] <= first) group = middle + 1;
        else most = middle;
    }
    const int count = n - first < 4 ? n - first : 4;
    float w[4], g[4], mean[4], square[4];
    load_four(w, values + first, count);
    load_four(g, grads + first, count);
    load_four(mean, m + first, count);
    load_four(square, v + first, count);
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        while (group < groups - 1 && ends[group] <= first + i) group++;
        const float shrink = numbers[2 + group], m_rate = numbers[2 + groups + group];
        g[i] *= factor;
        mean[i] = b1 * mean[i] + rest1 * g[i];                                      // (2)
        square[i] = b2 * square[i] + rest2 * (g[i] * g[i]);
        w[i] = w[i] * shrink - m_rate * (mean[i] / (sqrtf(square[i]) * v_root + eps));  // (4), (3)
    }
    store_four(values + first, w, count);
    store_four(m + first, mean, count);
    store_four(v + first, square, count);
    if (!low) return;
    if (count == 4) {
        *(uint2*)(low + first) = make_uint2(pack_16_bits(w[0], w[1]), pack_16_bits(w[2], w[3]));
    } else {
        for (int i = 0; i < 3; i++)
            if (i < count) low[first + i] = to_16_bits(w[i]);
    }
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
