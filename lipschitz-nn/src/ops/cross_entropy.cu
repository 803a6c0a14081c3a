// A block a row of logits: the logarithm of its sum of exponentials, its loss, and 1 where the target wins,
// as the first of equals. A target beyond the classes has no loss: NaN.
KERNEL cross_entropy(const float *logits, const u32 *targets, float *sums, float *losses, float *hits, u32 classes)
{
    SHARED float scratch[THREADS];
    const float *row = logits + (size_t)blockIdx.x * classes;
    u32 target = targets[blockIdx.x];
    float own = target < classes ? row[target] : INFINITE - INFINITE;
    float top = -INFINITE, beaten = 0.0f, sum = 0.0f;
    for (u32 i = threadIdx.x; i < classes; i += THREADS) {
        top = fmaxf(top, row[i]);
        if (!(i < target ? row[i] < own : row[i] <= own))
            beaten = 1.0f;
    }
    top = block_max(top, scratch);
    beaten = block_sum(beaten, scratch);
    for (u32 i = threadIdx.x; i < classes; i += THREADS)
        sum += expf(row[i] - top);
    sum = top + logf(block_sum(sum, scratch));
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
        losses[blockIdx.x] = sum - own;
        hits[blockIdx.x] = beaten == 0.0f ? 1.0f : 0.0f;
    }
}

// The means of both, by one block.
KERNEL cross_entropy_means(const float *losses, const float *hits, float *out, u32 n)
{
    SHARED float scratch[THREADS];
    for (u32 which = 0; which < 2; which++) {
        const float *all = which ? hits : losses;
        double sum = 0.0;
        for (u32 i = threadIdx.x; i < n; i += THREADS)
            sum += all[i];
        float mean = block_sum((float)(sum / n), scratch);
        if (threadIdx.x == 0)
            out[which] = mean;
    }
}

// softmax(row) − [target], times the gradient of the mean loss over n.
KERNEL cross_entropy_gradient(const float *logits, const u32 *targets, const float *sums, const float *grad,
                              float *out, u32 classes)
{
    size_t row = (size_t)blockIdx.x * classes;
    float factor = grad[0] / gridDim.x, sum = sums[blockIdx.x];
    for (u32 i = threadIdx.x; i < classes; i += THREADS)
        out[row + i] = factor * (expf(logits[row + i] - sum) - (i == targets[blockIdx.x] ? 1.0f : 0.0f));
}
