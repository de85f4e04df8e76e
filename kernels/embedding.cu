// The backward of the embedding, summed in the order of the tokens: equal inputs give equal bits,
// unlike with atomics.
//
// Computes (2) of minisft/ops/embedding.py. (1) is a plain copy of rows and needs no kernel.
// Grid: (tokens, pieces of the channels). `order` lists the tokens by id, equal ids in their order;
// the block of the first token of an id owns that row of dw and adds up all its tokens, the blocks
// of the others have nothing to do. A thread owns one channel. Shared memory: none.
// Demands: float32 dy, dw, int32 ids (of each token) and order, contiguous; what dw holds is added
// to.
// Memory traffic: 4 bytes a number of dy, read once, and 8 a number of the rows of dw that occur.

#define AT_ONCE 8     // tokens of an id

extern "C" __global__ void embedding_backward(const float* __restrict__ dy,
                                              const int* __restrict__ ids,
                                              const int* __restrict__ order,
                                              float* __restrict__ dw, int n, int width) {
    const int first = blockIdx.x, id = ids[order[first]];
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= width || (first > 0 && ids[order[first - 1]] == id)) return;
    float sum = 0.0f;
    // A few tokens at a time: to know an id, to know the next one, and to read each row are waits
    // that do not depend on each other.
    for (int i = first, same = 1; same; i += AT_ONCE) {
        int token[AT_ONCE];
        #pragma unroll
        for (int j = 0; j < AT_ONCE; j++) token[j] = i + j < n ? order[i + j] : -1;
        #pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (token[j] >= 0 && ids[token[j]] != id) token[j] = -1;
        float part[AT_ONCE];
        #pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            part[j] = token[j] >= 0 ? dy[(long long)token[j] * width + c] : 0.0f;
        #pragma unroll
        for (int j = 0; j < AT_ONCE; j++) sum += part[j];
        same = token[AT_ONCE - 1] >= 0;
    }
    dw[(long long)id * width + c] += sum;                                           // (2)
}
