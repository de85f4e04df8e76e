// The embedding, and its backward, summed in the order of the tokens: equal inputs give equal bits,
// unlike with atomics.
//
// Computes, of minisft/ops/embedding.py: (1) in embedding_forward, whose blocks own a token each;
// (2) in embedding_backward and embedding_backward_joined.
// `order` lists the tokens by id, equal ids in their order. A block owns PIECE tokens of that list,
// so that a word that is everywhere takes many blocks. It adds up each id's tokens among them, and
// what is a whole id goes into dw. An id may have begun in an earlier piece or go on in the next:
// these sums go to `parts` (pieces, 2, width), the first and the last of the piece, which
// embedding_backward_joined adds up in the order of the pieces.
// A thread owns four channels. Shared memory: none, lanes hand each other ids and tokens.
// Demands: float32 w, y, dy, dw, int32 ids (of each token) and order, contiguous; whole warps in a
// block; `aligned`: rows begin at 16 bytes. A row that the table has not is NaN. What dw holds is
// added to.
// Memory traffic: 8 bytes a number forward; backward 4 of dy, read once, and 8 a number of the rows
// of dw that occur.

#define PIECE 16
#define AT_ONCE 8     // rows that are on their way together

// Four channels of a row, or as many as there are.
__device__ __forceinline__ void load_channels(float (&to)[4], const float* row, int c, int width,
                                              int aligned) {
    if (aligned) load_four(to, row + c, 4);
    else for (int i = 0; i < 4; i++) to[i] = c + i < width ? row[c + i] : 0.0f;
}

__device__ __forceinline__ void store_channels(float* row, const float (&from)[4], int c, int width,
                                               int aligned) {
    if (aligned) store_four(row + c, from, 4);
    else for (int i = 0; i < 4; i++) if (c + i < width) row[c + i] = from[i];
}

__device__ __forceinline__ void add_channels(float* row, const float (&sum)[4], int c, int width,
                                             int aligned) {
    float there[4];
    load_channels(there, row, c, width, aligned);
    for (int i = 0; i < 4; i++) there[i] += sum[i];
    store_channels(row, there, c, width, aligned);                                  // (2)
}

extern "C" __global__ void embedding_forward(const float* __restrict__ w,
                                             const int* __restrict__ ids, float* __restrict__ y,
                                             int size, int width, int aligned) {
    const int id = ids[blockIdx.x];
    w += (long long)id * width;
    y += (long long)blockIdx.x * width;
    for (int c = 4 * threadIdx.x; c < width; c += 4 * blockDim.x) {
        float row[4] = {NAN, NAN, NAN, NAN};
        if (id >= 0 && id < size) load_channels(row, w, c, width, aligned);
        store_channels(y, row, c, width, aligned);                                  // (1)
    }
}

extern "C" __global__ void embedding_backward(const float* __restrict__ dy,
                                              const int* __restrict__ ids,
                                              const int* __restrict__ order,
                                              float* __restrict__ dw, float* __restrict__ parts,
                                              int n, int width, int aligned) {
    const int begin = blockIdx.x * PIECE, count = min(PIECE, n - begin), lane = threadIdx.x % WARP;
    const int c = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    // lane i has the token before the piece's token i, and that one's id; -1 where there is none
    const int at = begin + lane - 1;
    const int mine = lane < count + 2 && at >= 0 && at < n ? order[at] : -1;
    const int own_id = mine >= 0 ? ids[mine] : -1;
    const int before = __shfl_sync(ALL_LANES, own_id, 0);
    const int after = __shfl_sync(ALL_LANES, own_id, count + 1);
    parts += 2ll * blockIdx.x * width;
    float sum[4] = {};
    int id = before, from = 0;     // of the run, and where it begins in the piece
    for (int first = 0; first < count; first += AT_ONCE) {
        float row[AT_ONCE][4];
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int token = __shfl_sync(ALL_LANES, mine, min(first + i, count - 1) + 1);
            if (c < width) load_channels(row[i], dy + (long long)token * width, c, width, aligned);
        }
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int next = __shfl_sync(ALL_LANES, own_id, min(first + i, count - 1) + 1);
            if (first + i >= count || c >= width) continue;
            if (next != id && first + i > 0) {
                // the run is over: an id of an earlier piece, or a whole one
                if (from == 0 && id == before) store_channels(parts, sum, c, width, aligned);
                else add_channels(dw + (long long)id * width, sum, c, width, aligned);
                for (int j = 0; j < 4; j++) sum[j] = 0.0f;
                from = first + i;
            }
            id = next;
            for (int j = 0; j < 4; j++) sum[j] += row[i][j];
        }
    }
    if (c >= width) return;
    if (from == 0 && id == before) store_channels(parts, sum, c, width, aligned);
    else if (id == after) store_channels(parts + width, sum, c, width, aligned);
    else add_channels(dw + (long long)id * width, sum, c, width, aligned);
}

// The id that begins in a piece and goes on in the next.
extern "C" __global__ void embedding_backward_joined(const int* __restrict__ ids,
                                                     const int* __restrict__ order,
                                                     float* __restrict__ dw,
                                                     const float* __restrict__ parts, int n,
                                                     int width, int aligned) {
    const int end = (blockIdx.x + 1) * PIECE, begin = end - PIECE;
    const int c = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (end >= n || c >= width) return;
    const int id = ids[order[end - 1]];
    if (ids[order[end]] != id || (begin > 0 && ids[order[begin - 1]] == id)) return;
    float sum[4];
    load_channels(sum, parts + (2ll * blockIdx.x + 1) * width, c, width, aligned);
    for (int first = end, same = 1; same; first += AT_ONCE * PIECE) {
        float part[AT_ONCE][4];
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int start = first + i * PIECE;
            same = start < n && ids[order[start]] == id;
            if (same) load_channels(part[i], parts + 2ll * (start / PIECE) * width, c, width,
                                    aligned);
            else for (int j = 0; j < 4; j++) part[i][j] = 0.0f;
        }
        #pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < 4; j++) sum[j] += part[i][j];
    }
    add_channels(dw + (long long)id * width, sum, c, width, aligned);
}
