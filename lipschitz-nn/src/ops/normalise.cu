// A block a row: μ and r = 1/√(mean (x−μ)² + ε), kept as `statistics`, and γ ∘ (x−μ)·r + β.
KERNEL norm_rows(const float *x, const float *gain, const float *bias, float *out, float *statistics, u32 dim,
            u32 centred, u32 shifted, float eps)
{
    SHARED float scratch[THREADS];
    const float *row = x + (size_t)blockIdx.x * dim;
    float mean = 0.0f, sum = 0.0f;
    if (centred) {
        for (u32 i = threadIdx.x; i < dim; i += THREADS)
            sum += row[i];
        mean = block_sum(sum, scratch) / dim;
    }
    sum = 0.0f;
    for (u32 i = threadIdx.x; i < dim; i += THREADS)
        sum += (row[i] - mean) * (row[i] - mean);
    float r = 1.0f / sqrtf(block_sum(sum, scratch) / dim + eps);
    for (u32 i = threadIdx.x; i < dim; i += THREADS)
        out[(size_t)blockIdx.x * dim + i] = (row[i] - mean) * r * gain[i] + (shifted ? bias[i] : 0.0f);
    if (threadIdx.x == 0) {
        statistics[2 * blockIdx.x] = mean;
        statistics[2 * blockIdx.x + 1] = r;
    }
}

// With h = γ ∘ grad and n = (x−μ)·r: dx = r·(h − mean(h)·[centred] − n·mean(h ∘ n)), a block a row.
KERNEL norm_gradient(const float *x, const float *gain, const float *statistics, const float *grad, float *dx,
                     u32 dim, u32 centred)
{
    SHARED float scratch[THREADS];
    size_t row = (size_t)blockIdx.x * dim;
    float mean = statistics[2 * blockIdx.x], r = statistics[2 * blockIdx.x + 1];
    float along = 0.0f, constant = 0.0f;
    for (u32 i = threadIdx.x; i < dim; i += THREADS) {
        float h = gain[i] * grad[row + i];
        along += h * (x[row + i] - mean) * r;
        constant += h;
    }
    along = block_sum(along, scratch) / dim;
    constant = centred ? block_sum(constant, scratch) / dim : 0.0f;
    for (u32 i = threadIdx.x; i < dim; i += THREADS) {
        float n = (x[row + i] - mean) * r;
        dx[row + i] = r * (gain[i] * grad[row + i] - constant - n * along);
    }
}

// dγ = Σ grad ∘ n and dβ = Σ grad over the rows blockIdx.y, blockIdx.y + gridDim.y, …: a thread an element.
KERNEL norm_parts(const float *x, const float *statistics, const float *grad, float *gains, float *biases,
                  u32 rows, u32 dim)
{
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= dim)
        return;
    float gain = 0.0f, bias = 0.0f;
    for (u32 row = blockIdx.y; row < rows; row += gridDim.y) {
        size_t at = (size_t)row * dim + i;
        gain += grad[at] * (x[at] - statistics[2 * row]) * statistics[2 * row + 1];
        bias += grad[at];
    }
    gains[blockIdx.y * dim + i] = gain;
    biases[blockIdx.y * dim + i] = bias;
}

// Sums of those parts.
KERNEL norm_sum(const float *parts, float *out, u32 count, u32 dim)
{
    for EACH (i, dim) {
        float sum = 0.0f;
        for (u32 part = 0; part < count; part++)
            sum += parts[part * dim + i];
        out[i] = sum;
    }
}
