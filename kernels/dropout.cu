// Dropout of token rows. The mask is drawn where it is used and never stored; the backward draws it
// again.
//
// Computes (1) with (2), or with (3), of minisft/ops/dropout.py, with the words of
// minisft/backend/random.py, Stream.tokens: counter (step, example id, position, channel / 4), key
// (seed, site).
// A thread owns four channels of one token: one call of Philox. Shared memory: none.
// Demands: float32, contiguous x, y (n, width); example_ids and positions (n,).
// Memory traffic: 8 bytes a number; with a stored mask 12 forward and 12 backward.

extern "C" __global__ void dropout_apply(const float* __restrict__ x, float* __restrict__ y,
                                         const uint32_t* __restrict__ example_ids,
                                         const uint32_t* __restrict__ positions, int n, int width,
                                         uint32_t threshold, float keep, uint32_t seed,
                                         const uint32_t* __restrict__ step, uint32_t site) {
    const int groups = (width + 3) / 4;
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)n * groups) return;
    const int token = i / groups, group = i % groups;
    const Words words = philox(*step, example_ids[token], positions[token], group, seed, site);
    for (int j = 0; j < 4; j++) {
        const int c = 4 * group + j;
        if (c >= width) continue;
        const float m = words.word[j] >= threshold ? keep : 0.0f;                   // (1)
        y[(long long)token * width + c] = x[(long long)token * width + c] * m;      // (2), (3)
    }
}
