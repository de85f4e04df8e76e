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

extern "C" __global__ void embedding_backward(const float* __restrict__ dy,
                                              const int* __restrict__ ids,
                                              const int* __restrict__ order,
                                              float* __restrict__ dw, int n, int width) {
    const int first = blockIdx.x, id = ids[order[first]];
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= width || (first > 0 && ids[order[first - 1]] == id)) return;
    float sum = 0.0f;
    for (int i = first; i < n && ids[order[i]] == id; i++)
        sum += dy[(long long)order[i] * width + c];
    dw[(long long)id * width + c] += sum;                                           // (2)
}
