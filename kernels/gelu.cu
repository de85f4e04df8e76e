// GELU, fused with the bias of the linear map before it: the sum x + b is never written.
//
// Computes, of minisft/ops/gelu.py: (1), (2) or (4) in gelu_forward; (3) or (5) in gelu_backward,
// and each block's part of the bias's gradient; column_sums.cu adds the parts. In float32; between
// two products in 16 bits gelu_16_bits_forward and _backward, which read what the one has stored
// and write what the other takes.
// A block owns blockDim.x columns of `rows` rows, a thread one column of them, in 16 bits eight,
// which is one access of 16 bytes: neighbouring threads read neighbouring numbers, and a column's
// sum never leaves its thread.
// Shared memory: none.
// Demands: contiguous arrays; b may be null (no bias), then so is `parts`; form 0 is tanh, 1 erf.
// 16-bit arrays are bfloat16, or float16 with -DFLOAT16=1, aligned to 16 bytes.
// Memory traffic: 8 bytes a number forward, 12 backward, 4 and 6 in 16 bits; apart, bias and GELU
// take 16 and 16.

#define CUBIC 0.044715f
#define SLOPE 0.7978845608f            // sqrt(2 / pi)
#define ROOT_HALF 0.7071067812f        // 1 / sqrt(2)
#define DENSITY 0.3989422804f          // 1 / sqrt(2 pi)
enum { TANH, ERF };

__device__ __forceinline__ float gelu(float v, int form) {
    if (form == ERF) return v * ((1 + erff(v * ROOT_HALF)) / 2);                   // (4)
    const float t = tanhf(SLOPE * (v + CUBIC * (v * v * v)));                      // (1)
    return v / 2 * (1 + t);                                                        // (2)
}

__device__ __forceinline__ float gelu_slope(float v, int form) {
    if (form == ERF)
        return (1 + erff(v * ROOT_HALF)) / 2 + v * (expf(-v * v / 2) * DENSITY);   // (5)
    const float t = tanhf(SLOPE * (v + CUBIC * (v * v * v)));
    const float du = SLOPE * (1 + 3 * CUBIC * (v * v));
    return (1 + t) / 2 + v / 2 * (1 - t * t) * du;                                 // (3)
}

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
        y[at] = gelu(v, form);
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
        dx[at] = dy[at] * gelu_slope(v, form);
        sum += dx[at];
    }
    if (parts) parts[(long long)blockIdx.y * width + c] = sum;
}

#define EIGHT 8     // columns of a thread, where numbers have 16 bits

// The first `count` of eight neighbouring 16-bit numbers, at once where rows begin at 16 bytes.
__device__ __forceinline__ void load_eight(float (&to)[EIGHT], const uint16_t* from, int count,
                                           bool at_once) {
    if (at_once) {
        const uint4 words = *(const uint4*)from;
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
        #pragma unroll
        for (int i = 0; i < EIGHT; i++)
            to[i] = from_16_bits((uint16_t)(i % 2 ? word[i / 2] >> 16 : word[i / 2] & 0xffff));
    } else {
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) to[i] = i < count ? from_16_bits(from[i]) : 0.0f;
    }
}

__device__ __forceinline__ void store_eight(uint16_t* to, const float (&from)[EIGHT], int count,
                                            bool at_once) {
    if (at_once) {
        *(uint4*)to = make_uint4(pack_16_bits(from[0], from[1]), pack_16_bits(from[2], from[3]),
                                 pack_16_bits(from[4], from[5]), pack_16_bits(from[6], from[7]));
    } else {
        #pragma unroll
        for (int i = 0; i < EIGHT; i++)
            if (i < count) to[i] = to_16_bits(from[i]);
    }
}

extern "C" __global__ void gelu_16_bits_forward(const uint16_t* __restrict__ x,
                                                const float* __restrict__ b,
                                                uint16_t* __restrict__ y, int n, int width,
                                                int rows, int form) {
    const int c = EIGHT * (blockIdx.x * blockDim.x + threadIdx.x), count = min(EIGHT, width - c);
    if (count <= 0) return;
    const bool at_once = width % EIGHT == 0;
    float bias[EIGHT] = {};
    if (b)
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) bias[i] = i < count ? b[c + i] : 0.0f;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    for (int row = first; row < end; row++) {
        const long long at = (long long)row * width + c;
        float v[EIGHT];
        load_eight(v, x + at, count, at_once);
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) v[i] = gelu(v[i] + bias[i], form);
        store_eight(y + at, v, count, at_once);
    }
}

// The parts are sums of what is not yet rounded.
extern "C" __global__ void gelu_16_bits_backward(const uint16_t* __restrict__ dy,
                                                 const uint16_t* __restrict__ x,
                                                 const float* __restrict__ b,
                                                 uint16_t* __restrict__ dx,
                                                 float* __restrict__ parts, int n, int width,
                                                 int rows, int form) {
    const int c = EIGHT * (blockIdx.x * blockDim.x + threadIdx.x), count = min(EIGHT, width - c);
    if (count <= 0) return;
    const bool at_once = width % EIGHT == 0;
    float bias[EIGHT] = {}, sum[EIGHT] = {};
    if (b)
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) bias[i] = i < count ? b[c + i] : 0.0f;
    const int first = blockIdx.y * rows, end = min(n, first + rows);
    for (int row = first; row < end; row++) {
        const long long at = (long long)row * width + c;
        float v[EIGHT], d[EIGHT];
        load_eight(v, x + at, count, at_once);
        load_eight(d, dy + at, count, at_once);
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) {
            d[i] *= gelu_slope(v[i] + bias[i], form);
            sum[i] += d[i];
        }
        store_eight(dx + at, d, count, at_once);
    }
    if (!parts) return;
    #pragma unroll
    for (int i = 0; i < EIGHT; i++)
        if (i < count) parts[(long long)blockIdx.y * width + c + i] = sum[i];
}
