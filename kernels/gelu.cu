// GELU, fused with the bias of the linear map before it: the sum x + b is never written.
//
// Computes, of minisft/ops/gelu.py: (1), (2) or (4) in gelu_forward; (3) or (5) in gelu_backward,
// and each block's part of the bias's gradient; column_sums.cu adds the parts.
// A block owns blockDim.x columns of `rows` rows, a thread one column of them: neighbouring threads
// read neighbouring numbers, and a column's sum never leaves its thread.
// Shared memory: none.
// Demands: float32, contiguous; b may be null (no bias), then so is `parts`; form 0 is tanh, 1 erf.
// Memory traffic: 8 bytes a number forward, 12 backward; apart, bias and GELU take 16 and 16.

#define CUBIC 0.044715f
#define SLOPE 0.7978845608f            // sqrt(2 / pi)
#define ROOT_HALF 0.7071067812f        // 1 / sqrt(2)
#define DENSITY 0.3989422804f          // 1 / sqrt(2 pi)
enum { TANH, ERF };

extern "C" __global__ void gelu_forward(const float* __restrict__ x, const float* __restrict__ b,
                                        float* __restrict__ y, int n, int width, int rows,
                                        int form) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width) return;
    const float bias = b ? b[c] : 0.0f;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    for (int row = first; row < end; row++) {
        const long long at = (long long)row * width + c;
        const float v = x[at] + bias;
        if (form == TANH) {
            const float t = tanhf(SLOPE * (v + CUBIC * (v * v * v)));              // (1)
            y[at] = v / 2 * (1 + t);                                               // (2)
        } else {
            y[at] = v * ((1 + erff(v * ROOT_HALF)) / 2);                           // (4)
        }
    }
}

// parts (row blocks, width): each block's sum of dx over its rows
extern "C" __global__ void gelu_backward(const float* __restrict__ dy,
                                         const float* __restrict__ x, const float* __restrict__ b,
                                         float* __restrict__ dx, float* __restrict__ parts, int n,
                                         int width, int rows, int form) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width) return;
    const float bias = b ? b[c] : 0.0f;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    float sum = 0.0f;
    for (int row = first; row < end; row++) {
        const long long at = (long long)row * width + c;
        const float v = x[at] + bias;
        float slope;
        if (form == TANH) {
            const float t = tanhf(SLOPE * (v + CUBIC * (v * v * v)));
            const float du = SLOPE * (1 + 3 * CUBIC * (v * v));
            slope = (1 + t) / 2 + v / 2 * (1 - t * t) * du;                        // (3)
        } else {
            slope = (1 + erff(v * ROOT_HALF)) / 2 + v * (expf(-v * v / 2) * DENSITY);     // (5)
        }
        dx[at] = dy[at] * slope;
        sum += dx[at];
    }
    if (parts) parts[(long long)blockIdx.y * width + c] = sum;
}
