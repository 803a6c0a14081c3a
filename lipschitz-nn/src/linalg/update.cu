// Elementwise updates of the first array in place.

// x ← a·x + b·y
KERNEL axpby(float *x, const float *y, u32 n, float a, float b)
{
    for EACH (i, n)
        x[i] = a * x[i] + b * y[i];
}

// v ← old·v + new·g²
KERNEL mean_square(float *v, const float *g, u32 n, float old, float new_)
{
    for EACH (i, n)
        v[i] = old * v[i] + new_ * (g[i] * g[i]);
}

// w ← keep·w − rate·(m·first) / (√(v·second) + ε)
KERNEL adam(float *w, const float *m, const float *v, u32 n, float keep, float rate, float eps, float first,
            float second)
{
    for EACH (i, n)
        w[i] = keep * w[i] - rate * (m[i] * first) / (sqrtf(v[i] * second) + eps);
}
