// GELU, fused with the bias of the linear map before it: the sum x + b is never written.
//
// Computes, of minisft/ops/gelu.py: (1), (2) or (4) in gelu_forward; (3) or (5) in gelu_backward,
// and each block's part of the bias's gradient; column_sums.cu adds the parts. In float32; between
// two products in 16 bits gelu_16_bits_forward and _backward, which read what the one has stored
// and write what the other takes.
// A thread owns as many neighbouring columns as lie in 16 bytes, four or in 16 bits eight, in a few
// rows: neighbouring threads read neighbouring numbers, and a column's sum never leaves its thread.
// Shared memory: none.
// Demands: contiguous arrays; b may be null (no bias), then so is `parts`. 16-bit arrays are
// bfloat16, or float16 with -DFLOAT16=1. More -D options: FORM, 0 is tanh, 1 erf; ALIGNED, 1 where
// every row of x, y, dy and dx begins at 16 bytes.
// Memory traffic: 8 bytes a number forward, 12 backward, 4 and 6 in 16 bits; apart, bias and GELU
// take 16 and 16.

#define CUBIC 0.044715f
#define SLOPE 0.7978845608f            // sqrt(2 / pi)
#define ROOT_HALF 0.7071067812f        // 1 / sqrt(2)
#define DENSITY 0.3989422804f          // 1 / sqrt(2 pi)
#define TANH (FORM == 0)

// -> (1 + t) / 2 with t of (1), which is 1 / (1 + exp(-2 u)): two instructions of the card, where
// tanhf takes twenty and more for digits of small t that the 1 drops.
__device__ __forceinline__ float gate(float v) {
    return reciprocal(1 + power_of_two(-2 * LOG2_E * SLOPE * (v + CUBIC * (v * v * v))));
}

__device__ __forceinline__ float gelu(float v) {
    if (TANH) return v * gate(v);                                                  // (2)
    return v * ((1 + erff(v * ROOT_HALF)) / 2);                                    // (4)
}

__device__ __forceinline__ float gelu_slope(float v) {
    if (TANH) {
        const float g = gate(v), du = SLOPE * (1 + 3 * CUBIC * (v * v));
        return g + v * (2 * g * (1 - g)) * du;     // (1 - t^2) / 2 = 2 g (1 - g)     (3)
    }
    return (1 + erff(v * ROOT_HALF)) / 2 + v * (expf(-v * v / 2) * DENSITY);       // (5)
}

// The first `count` of a thread's columns in a row.
template <class T, int N>
__device__ __forceinline__ void load(float (&to)[N], const T* from, int count) {
    if (ALIGNED) {
        unpack(to, *(const uint4*)from);
    } else {
        #pragma unroll
        for (int i = 0; i < N; i++) to[i] = i < count ? number(from[i]) : 0.0f;
    }
}

template <class T, int N>
__device__ __forceinline__ void store(T* to, const float (&from)[N], int count) {
    if (ALIGNED) {
        *(uint4*)to = packed(from);
    } else {
        #pragma unroll
        for (int i = 0; i < N; i++)
            if (i < count) put(&to[i], from[i]);
    }
}

template <class T>
__device__ __forceinline__ void forward_rows(const T* __restrict__ x, const float* __restrict__ b,
                                             T* __restrict__ y, int n, int width, int rows) {
    constexpr int MANY = 16 / sizeof(T);
    const int c = MANY * (blockIdx.x * blockDim.x + threadIdx.x), count = min(MANY, width - c);
    if (count <= 0) return;
    float bias[MANY] = {};
    if (b)
        #pragma unroll
        for (int i = 0; i < MANY; i++) bias[i] = i < count ? b[c + i] : 0.0f;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    #pragma unroll 2
    for (int row = first; row < end; row++) {
        const long long at = (long long)row * width + c;
        float v[MANY];
        load(v, x + at, count);
        #pragma unroll
        for (int i = 0; i < MANY; i++) v[i] = gelu(v[i] + bias[i]);
        store(y + at, v, count);
    }
}

// parts (row blocks, width): each block's sum of dx over its rows, before it is rounded
template <class T>
__device__ __forceinline__ void backward_rows(const T* __restrict__ dy, const T* __restrict__ x,
                                              const float* __restrict__ b, T* __restrict__ dx,
                                              float* __restrict__ parts, int n, int width,
                                              int rows) {
    constexpr int MANY = 16 / sizeof(T);
    const int c = MANY * (blockIdx.x * blockDim.x + threadIdx.x), count = min(MANY, width - c);
    if (count <= 0) return;
    float bias[MANY] = {}, sum[MANY] = {};
    if (b)
        #pragma unroll
        for (int i = 0; i < MANY; i++) bias[i] = i < count ? b[c + i] : 0.0f;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    #pragma unroll 2
    for (int row = first; row < end; row++) {
        const long long at = (long long)row * width + c;
        float v[MANY], d[MANY];
        load(v, x + at, count);
        load(d, dy + at, count);
        #pragma unroll
        for (int i = 0; i < MANY; i++) {
            d[i] *= gelu_slope(v[i] + bias[i]);
            sum[i] += d[i];
        }
        store(dx + at, d, count);
    }
    if (parts)
        #pragma unroll
        for (int i = 0; i < MANY; i++)
            if (i < count) parts[(long long)blockIdx.y * width + c + i] = sum[i];
}

extern "C" __global__ void gelu_forward(const float* __restrict__ x, const float* __restrict__ b,
                                        float* __restrict__ y, int n, int width, int rows) {
    forward_rows(x, b, y, n, width, rows);
}

extern "C" __global__ void gelu_16_bits_forward(const uint16_t* __restrict__ x,
                                                const float* __restrict__ b,
                                                uint16_t* __restrict__ y, int n, int width,
                                                int rows) {
    forward_rows(x, b, y, n, width, rows);
}

extern "C" __global__ void gelu_backward(const float* __restrict__ dy,
                                         const float* __restrict__ x, const float* __restrict__ b,
                                         float* __restrict__ dx, float* __restrict__ parts, int n,
                                         int width, int rows) {
    backward_rows(dy, x, b, dx, parts, n, width, rows);
}

extern "C" __global__ void gelu_16_bits_backward(const uint16_t* __restrict__ dy,
                                                 const uint16_t* __restrict__ x,
                                                 const float* __restrict__ b,
                                                 uint16_t* __restrict__ dx,
                                                 float* __restrict__ parts, int n, int width,
                                                 int rows) {
    backward_rows(dy, x, b, dx, parts, n, width, rows);
}
