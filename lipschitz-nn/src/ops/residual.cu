KERNEL residual(const float *x, const float *y, float *out, u32 n, float skip, float branch)
{
    for EACH (i, n)
        out[i] = skip * x[i] + branch * y[i];
}

KERNEL scaled(const float *x, float *out, u32 n, float factor)
{
    for EACH (i, n)
        out[i] = factor * x[i];
}
