// Dropout of token rows. The mask is drawn where it is used and never stored; the backward draws it
// again.
//
// Computes (1) with (2), or with (3), of minisft/ops/dropout.py, with the words of
// minisft/backend/random.py, Stream.tokens: counter (step, example id, position, channel / 4), key
// (seed, site).
// A block owns a token, a thread four channels of it, or several times four: one call of Philox and
// one access of 16 bytes, where rows begin so. Shared memory: none.
// Demands: float32, contiguous x, y (n, width); example_ids and positions (n,). `aligned`: each row
// begins at 16 bytes.
// Memory traffic: 8 bytes a number; with a stored mask 12 forward and 12 backward.

extern "C" __global__ void dropout_apply(const float* __restrict__ x, float* __restrict__ y,
                                         const uint32_t* __restrict__ example_ids,
                                         const uint32_t* __restrict__ positions, int width,
                                         uint32_t threshold, float keep, uint32_t seed,
                                         const uint32_t* __restrict__ step, uint32_t site,
                                         int aligned) {
    const int token = blockIdx.x;
    const long long at = (long long)token * width;
    const uint32_t example_id = example_ids[token], position = positions[token];
    for (int c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
        const Words words = philox(*step, example_id, position, c / 4, seed, site);
        float v[4];
        if (aligned) load_four(v, x + at + c, 4);
        else for (int j = 0; j < 4; j++) v[j] = c + j < width ? x[at + c + j] : 0.0f;
        #pragma unroll
        for (int j = 0; j < 4; j++) v[j] *= words.word[j] >= threshold ? keep : 0.0f;   // (1)
        if (aligned) store_four(y + at + c, v, 4);                                  // (2), (3)
        else for (int j = 0; j < 4; j++) if (c + j < width) y[at + c + j] = v[j];
    }
}
