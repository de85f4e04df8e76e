// Rounds a float32 array to bfloat16: the one pass over the weights of a step, and over what goes
// into a product. CuPy would take eight passes, one for each operation of the formula.
//
// Computes (1) of minisft/backend/bfloat16.py. A thread owns one number. Shared memory: none.
// Demands: float32 x and uint16 y of n numbers, contiguous.
// Memory traffic: 6 bytes a number.

extern "C" __global__ void bfloat16_round(const float* __restrict__ x, uint16_t* __restrict__ y,
                                          long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = to_bfloat16(x[i]);                                            // (1)
}
