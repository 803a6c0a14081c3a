// φ at x and its slope there: `both` of activation.rs, in the same order, then the soft cap and the clip.
DEVICE float function(u32 which, float a, float x, float *slope)
{
    float e = expf(-fabsf(x)), s = x < 0.0f ? e / (1.0f + e) : 1.0f / (1.0f + e), t;
    switch (which) {
    case 0: // ReLU: NaN must not become 0.
        *slope = x > 0.0f ? 1.0f : 0.0f;
        return x <= 0.0f ? 0.0f : x;
    case 1: // |x|
        *slope = x < 0.0f ? -1.0f : 1.0f;
        return fabsf(x);
    case 2: // GELU by erf
        t = 0.5f * erfcf(-0.70710678f * x);
        *slope = t + 0.39894228f * x * expf(-0.5f * x * x);
        return x * t;
    case 3: // GELU by tanh
        t = tanhf(0.79788456f * x * (1.0f + 0.044715f * x * x));
        *slope = 0.5f * (1.0f + t)
            + 0.5f * x * (1.0f - t * t) * 0.79788456f * (1.0f + 3.0f * 0.044715f * x * x);
        return 0.5f * x * (1.0f + t);
    case 4: // SiLU
        *slope = s * (1.0f + x * (1.0f - s));
        return x * s;
    case 5: // tanh
        t = tanhf(x);
        *slope = 1.0f - t * t;
        return t;
    case 6: // sigmoid
        *slope = s * (1.0f - s);
        return s;
    case 7: // identity
        *slope = 1.0f;
        return x;
    case 8: // ReLU²
        *slope = x > 0.0f ? x + x : 0.0f;
        return x > 0.0f ? x * x : x <= 0.0f ? 0.0f : x;
    case 9: // leaky ReLU of slope a
        *slope = x > 0.0f ? 1.0f : a;
        return x > 0.0f ? x : a * x;
    case 10: // ELU
        t = x > 0.0f ? 1.0f : expf(x);
        *slope = x > 0.0f ? 1.0f : a * t;
        return x > 0.0f ? x : a * (t - 1.0f);
    case 11: // softplus
        *slope = s;
        return (x > 0.0f ? x : 0.0f) + logf(1.0f + e);
    case 12: // Mish: tanh(ln(1 + eˣ)) without overflow
        t = x < 0.0f ? e * (e + 2.0f) / (e * (e + 2.0f) + 2.0f)
                     : (1.0f + 2.0f * e) / (1.0f + 2.0f * e + 2.0f * e * e);
        *slope = t + x * (1.0f - t * t) * s;
        return x * t;
    case 13: // quick GELU
        t = 1.0f / (1.0f + expf(-1.702f * x));
        *slope = t * (1.0f + 1.702f * x * (1.0f - t));
        return x * t;
    case 14: // hard swish
        *slope = x >= 3.0f ? 1.0f : x <= -3.0f ? 0.0f : (x + x + 3.0f) / 6.0f;
        return x >= 3.0f ? x : x <= -3.0f ? 0.0f : x * (x + 3.0f) / 6.0f;
    case 15: // hard sigmoid
        *slope = x >= 3.0f || x <= -3.0f ? 0.0f : 1.0f / 6.0f;
        return x >= 3.0f ? 1.0f : x <= -3.0f ? 0.0f : (x + 3.0f) / 6.0f;
    case 16: // a·tanh(x/a)
        t = tanhf(x / a);
        *slope = 1.0f - t * t;
        return a * t;
    default: // x between −a and a
        *slope = x > a || x < -a ? 0.0f : 1.0f;
        return x > a ? a : x < -a ? -a : x;
    }
}

KERNEL map(const float *x, float *y, u32 n, u32 which, float a, float scale)
{
    for EACH (i, n) {
        float slope;
        y[i] = scale * function(which, a, x[i], &slope);
    }
}

KERNEL map_gradient(const float *x, const float *grad, float *dx, u32 n, u32 which, float a, float scale)
{
    for EACH (i, n) {
        float slope;
        function(which, a, x[i], &slope);
        dx[i] = scale * slope * grad[i];
    }
}
