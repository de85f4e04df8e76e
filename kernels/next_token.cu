// The most probable next token of each sequence, chosen where the logits lie.
//
// Computes, of minisft/models/device_decoding.py: (1) and (2), in next_token.
// A block owns a row of logits; a thread takes four neighbouring ones at once, or one where rows do
// not begin at 16 bytes, and keeps the largest it has met and where that was. Of equal logits the
// one that comes first wins, as in numpy.argmax, whoever meets which.
// Shared memory: 12 bytes for each of 32 warps.
// Demands: float32 logits (B, V) whose rows lie `stride` numbers apart; -D WIDE=1 where all rows
// begin at 16 bytes, else 0; whole warps.
// Memory traffic: 4 bytes a logit.

// The largest logit so far and its token, and whether all were finite.
struct Best {
    float logit;
    int token, finite;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    const bool second = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    return {second ? b.logit : a.logit, second ? b.token : a.token, a.finite & b.finite};
}

__device__ __forceinline__ Best warp_best(Best a) {
    for (int bit = WARP / 2; bit > 0; bit /= 2)
        a = better(a, {__shfl_xor_sync(ALL_LANES, a.logit, bit),
                       __shfl_xor_sync(ALL_LANES, a.token, bit),
                       __shfl_xor_sync(ALL_LANES, a.finite, bit)});
    return a;
}

// `unused`: bit c % 32 of word c / 32 is set where no token has the id c; may be null. `ids` go
// into the next step, `chosen` to the CPU: -1 where a logit is not finite. `lengths`, which stay
// below `capacity`, may be null.
extern "C" __global__ void next_token(const float* __restrict__ logits,
                                      const uint32_t* __restrict__ unused, int* __restrict__ ids,
                                      int* __restrict__ chosen, int* __restrict__ lengths, int v,
                                      int stride, int capacity) {
    __shared__ Best scratch[MOST_WARPS];
    logits += (long long)blockIdx.x * stride;
    Best mine = {-INFINITY, 0, 1};
    const auto look = [&](float logit, int c) {
        const bool counts = !unused || !(unused[c / 32] >> c % 32 & 1);
        mine = better(mine, {counts ? logit : -INFINITY, c, fabsf(logit) < INFINITY});
    };
    int behind = 0;
#if WIDE
    behind = v / 4 * 4;
#pragma unroll 4
    for (int c = 4 * threadIdx.x; c < behind; c += 4 * blockDim.x) {
        const float4 four = *(const float4*)(logits + c);
        look(four.x, c);
        look(four.y, c + 1);
        look(four.z, c + 2);
        look(four.w, c + 3);
    }
#endif
    for (int c = behind + threadIdx.x; c < v; c += blockDim.x) look(logits[c], c);
    mine = warp_best(mine);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (lane == 0) scratch[warp] = mine;
    __syncthreads();
    if (warp > 0) return;
    const Best found = warp_best(lane < (int)blockDim.x / WARP ? scratch[lane]
                                                               : Best{-INFINITY, 0, 1});
    if (lane > 0) return;
    ids[blockIdx.x] = found.token;                                                   // (1)
    chosen[blockIdx.x] = found.finite ? found.token : -1;
    if (lengths) lengths[blockIdx.x] = min(lengths[blockIdx.x] + 1, capacity - 1);   // (2)
}
