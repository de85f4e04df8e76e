// Cross-entropy, fused with the softmax: no probability is ever written, and the gradient may take
// the place of the logits.
//
// Computes, of minisft/ops/cross_entropy.py: (1), (2) and each row's part of (3) in
// cross_entropy_forward; the sums of (3) in cross_entropy_sum; (4) in cross_entropy_backward.
// cross_entropy_train is both for a step of a language model, without weights and smoothing: the
// gradient takes the logits' place in the same launch. A thread keeps what it has read of a row,
// HELD accesses of 16 bytes in registers and LAID in shared memory; what a row has beyond that is
// read again, out of the second-level cache. cross_entropy_train_16_bits does so where a product
// has stored the logits in 16 bits.
// A block owns one row of logits; cross_entropy_sum is one block.
// Shared memory: 512 bytes and less, a few numbers a warp; to train 40 KB more.
// Demands: float32 logits in rows `stride` numbers apart, int32 labels, contiguous; weights may be
// null; blockDim.x is a multiple of 32. A label that is neither `ignore` nor a class makes the loss
// and the row's gradient NaN.
// Memory traffic: 4 bytes a logit forward (the maximum and the sum take one reading), 8 backward;
// in one launch 8, or 4 in 16 bits.

#define AT_ONCE 8     // logits of a thread that are on their way together
#define HELD 8        // accesses of 16 bytes that a thread keeps in 32 of its registers
#define LAID 5        // and in shared memory: two blocks find room, each with 53,248 logits
#define TRAIN_THREADS 512

// The weight of the row's label: 0 where it is ignored, NaN where it is no class.
__device__ __forceinline__ float label_mass(int label, const float* weights, int k, int ignore) {
    if (label == ignore) return 0.0f;
    if (label < 0 || label >= k) return NAN;
    return weights ? weights[label] : 1.0f;
}

// Of each row: loss, mass (the weight of its label), total (of the target's mass), maximum, sum.
extern "C" __global__ void cross_entropy_forward(
        const float* __restrict__ z, const int* __restrict__ labels,
        const float* __restrict__ weights, float* __restrict__ losses, float* __restrict__ masses,
        float* __restrict__ totals, float* __restrict__ maxima, float* __restrict__ sums, int k,
        int stride, float smoothing, int ignore) {
    __shared__ Running scratch[MOST_WARPS];
    __shared__ float2 scratch_sums[MOST_WARPS];
    const int row = blockIdx.x;
    z += (long long)row * stride;
    Running mine = running_start();
    for (int first = threadIdx.x; first < k; first += AT_ONCE * blockDim.x) {
        float s[AT_ONCE];     // all on their way together
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int j = first + i * blockDim.x;
            s[i] = j < k ? z[j] : -INFINITY;
        }
        mine = running_add(mine, s);
    }
    const Running whole = block_join(mine, scratch);
    const float log_sum = logf(whole.sum);

    const int label = labels[row];
    const float mass = label_mass(label, weights, k, ignore);
    float total = (1.0f - smoothing) * mass, loss = total;                          // (2)
    if (total > 0) loss = -total * (z[label] - whole.largest - log_sum);            // (1), (3)
    if (smoothing > 0 && label != ignore) {
        float spread_loss = 0.0f, spread_mass = 0.0f;
        for (int j = threadIdx.x; j < k; j += blockDim.x) {
            const float spread = smoothing / k * (weights ? weights[j] : 1.0f);
            if (spread > 0) spread_loss -= spread * (z[j] - whole.largest - log_sum);
            spread_mass += spread;
        }
        const float2 of_all = block_sums(spread_loss, spread_mass, scratch_sums);
        loss += of_all.x;
        total += of_all.y;
    }
    if (threadIdx.x == 0) {
        losses[row] = loss;
        masses[row] = mass;
        totals[row] = total;
        maxima[row] = whole.largest;
        sums[row] = whole.sum;
    }
}

// out (2,): the sums of the losses and of the masses
extern "C" __global__ void cross_entropy_sum(const float* __restrict__ losses,
                                             const float* __restrict__ masses,
                                             float* __restrict__ out, int n) {
    __shared__ float2 scratch[MOST_WARPS];
    float loss = 0.0f, mass = 0.0f;
    for (int row = threadIdx.x; row < n; row += blockDim.x) {
        loss += losses[row];
        mass += masses[row];
    }
    const float2 whole = block_sums(loss, mass, scratch);                           // (3)
    if (threadIdx.x == 0) {
        out[0] = whole.x;
        out[1] = whole.y;
    }
}

// z and dz may be the same array: a thread reads a logit and writes its gradient in its place.
extern "C" __global__ void cross_entropy_backward(
        const float* z, float* dz, const int* __restrict__ labels,
        const float* __restrict__ weights, const float* __restrict__ totals,
        const float* __restrict__ maxima, const float* __restrict__ sums, int k, int stride,
        int dz_stride, float dloss, float smoothing, int ignore) {
    const int row = blockIdx.x, label = labels[row];
    z += (long long)row * stride;
    dz += (long long)row * dz_stride;
    const float on_label = dloss * (1.0f - smoothing) * label_mass(label, weights, k, ignore);
    const float scale = dloss * totals[row] / sums[row], largest = maxima[row];
    const float spread = label == ignore ? 0.0f : dloss * smoothing / k;
    for (int first = threadIdx.x; first < k; first += AT_ONCE * blockDim.x) {
        float s[AT_ONCE];     // read before the first is written, which the compiler must not do
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int j = first + i * blockDim.x;
            s[i] = j < k ? z[j] : 0.0f;
        }
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int j = first + i * blockDim.x;
            if (j >= k) break;
            const float target = spread * (weights ? weights[j] : 1.0f)
                                 + (j == label ? on_label : 0);
            dz[j] = power_of_two(LOG2_E * (s[i] - largest)) * scale - target;       // (4)
        }
    }
}

// What the gradients of a row need.
struct Row {
    float largest, scale, target;
    int label;
};

// Neighbouring logits from number `first` on -> their gradients.
template <int N>
__device__ __forceinline__ void gradients(float (&s)[N], int first, const Row& row) {
    #pragma unroll
    for (int i = 0; i < N; i++)
        s[i] = power_of_two(LOG2_E * (s[i] - row.largest)) * row.scale
               - (first + i == row.label ? row.target : 0.0f);                      // (4)
}

// A row: its loss and mass, and in the place of z its gradient. at_once: it begins at 16 bytes.
template <class T>
__device__ __forceinline__ void train_row(T* z, int label, float* loss, float* mass_out, int k,
                                          bool at_once, float dloss, int ignore) {
    __shared__ Running scratch[MOST_WARPS];
    __shared__ __align__(16) uint4 laid[LAID][TRAIN_THREADS];     // a thread's own are its alone
    constexpr int MANY = 16 / sizeof(T);
    const int threads = blockDim.x, chunks = at_once ? k / MANY : 0;
    const int beyond = threadIdx.x + (HELD + LAID) * threads;
    const float mass = label_mass(label, nullptr, k, ignore);
    const float on_label = mass > 0 ? number(z[label]) : 0.0f;     // before anybody writes
    uint4 *const words = (uint4*)z, held[HELD];
    #pragma unroll
    for (int n = 0; n < LAID; n++)
        if (const int i = threadIdx.x + (HELD + n) * threads; i < chunks)
            copy_ahead(&laid[n][threadIdx.x], words + i, true);
    #pragma unroll
    for (int n = 0; n < HELD; n++)
        if (const int i = threadIdx.x + n * threads; i < chunks) held[n] = words[i];
    float s[MANY];
    Running mine = running_start();
    #pragma unroll
    for (int n = 0; n < HELD; n++) {
        if ((int)threadIdx.x + n * threads >= chunks) break;
        unpack(s, held[n]);
        mine = running_add(mine, s);
    }
    copies_wait();
    #pragma unroll
    for (int n = 0; n < LAID; n++) {
        if ((int)threadIdx.x + (HELD + n) * threads >= chunks) break;
        unpack(s, laid[n][threadIdx.x]);
        mine = running_add(mine, s);
    }
    for (int i = beyond; i < chunks; i += threads) {
        unpack(s, words[i]);
        mine = running_add(mine, s);
    }
    for (int j = MANY * chunks + threadIdx.x; j < k; j += threads)
        mine = running_add(mine, number(z[j]));
    const Running whole = block_join(mine, scratch);
    if (threadIdx.x == 0) {
        *loss = mass > 0 ? -mass * (on_label - whole.largest - logf(whole.sum)) : mass;  // (1), (3)
        *mass_out = mass;
    }
    const Row row = {whole.largest, dloss * mass / whole.sum, dloss * mass, label};
    #pragma unroll
    for (int n = 0; n < HELD; n++) {
        const int i = threadIdx.x + n * threads;
        if (i >= chunks) break;
        unpack(s, held[n]);
        gradients(s, MANY * i, row);
        words[i] = packed(s);
    }
    #pragma unroll
    for (int n = 0; n < LAID; n++) {
        const int i = threadIdx.x + (HELD + n) * threads;
        if (i >= chunks) break;
        unpack(s, laid[n][threadIdx.x]);
        gradients(s, MANY * i, row);
        words[i] = packed(s);
    }
    for (int i = beyond; i < chunks; i += threads) {
        unpack(s, words[i]);
        gradients(s, MANY * i, row);
        words[i] = packed(s);
    }
    for (int j = MANY * chunks + threadIdx.x; j < k; j += threads) {
        float one[1] = {number(z[j])};
        gradients(one, j, row);
        put(&z[j], one[0]);
    }
}

extern "C" __global__ void __launch_bounds__(TRAIN_THREADS, 2) cross_entropy_train(
        float* z, const int* __restrict__ labels, float* __restrict__ losses,
        float* __restrict__ masses, int k, int stride, int at_once, float dloss, int ignore) {
    const int row = blockIdx.x;
    train_row(z + (long long)row * stride, labels[row], losses + row, masses + row, k, at_once,
              dloss, ignore);
}

extern "C" __global__ void __launch_bounds__(TRAIN_THREADS, 2) cross_entropy_train_16_bits(
        uint16_t* z, const int* __restrict__ labels, float* __restrict__ losses,
        float* __restrict__ masses, int k, int stride, int at_once, float dloss, int ignore) {
    const int row = blockIdx.x;
    train_row(z + (long long)row * stride, labels[row], losses + row, masses + row, k, at_once,
              dloss, ignore);
}
