typedef unsigned int u32;

#define INFINITE (1.0f / 0.0f)

// All elements from this thread's first, in the strides of the whole grid.
#define EACH(i, n) (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)

// The sum over a block's threads, to all of them; always in the same order.
DEVICE float block_sum(float x, float *scratch)
{
    u32 t = threadIdx.x;
    scratch[t] = x;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half)
            scratch[t] += scratch[t + half];
        __syncthreads();
    }
    float all = scratch[0];
    __syncthreads();
    return all;
}

// The largest over a block's threads; it passes over a NaN.
DEVICE float block_max(float x, float *scratch)
{
    u32 t = threadIdx.x;
    scratch[t] = x;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half)
            scratch[t] = fmaxf(scratch[t], scratch[t + half]);
        __syncthreads();
    }
    float all = scratch[0];
    __syncthreads();
    return all;
}
