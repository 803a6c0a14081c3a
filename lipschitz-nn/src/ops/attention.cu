// Attention over tiles of queries and keys (Dao, *FlashAttention-2*, 2023): logits and probabilities are never
// in the GPU's memory. Threads are 16 × 16; of a tile, a thread has each sixteenth row and column.
//
// Compiled for tiles of ROWS queries and KEYS keys, of SIDE × SIDE for the gradient, and heads of up to WIDTH
// elements, all multiples of 16.

// A thread's share of the rows or columns of a tile.
#define OVER(i, n) UNROLL for (u32 i = 0; i < (n) / 16; i++)

// Rows of a tile have one element more, so that columns lie in different banks.
#define PITCH (WIDTH + 1)

typedef struct {
    u32 tokens, heads, groups, dim;
    u32 causal, window, biased, within;
    float scale, cap;
} Shape;

#define SHAPE                                                                                                     \
    u32 tokens, u32 heads, u32 groups, u32 dim, u32 causal, u32 window, u32 biased, u32 within, float scale,      \
        float cap
#define TAKE_SHAPE {tokens, heads, groups, dim, causal, window, biased, within, scale, cap}

// Whether a query sees a key; `start` is the first token of the query's document.
DEVICE int sees(const Shape *s, u32 query, u32 key, u32 start)
{
    u32 far = query > key ? query - key : key - query;
    return query < s->tokens && key < s->tokens && far < s->window && key >= start && !(s->causal && key > query);
}

// The first and the last + 1 of the keys that some of these queries see, or of the queries that see some of
// these keys, as far as mask and window say.
DEVICE u32 reach_back(u32 first, u32 window)
{
    return first + 1 > window ? first + 1 - window : 0;
}

DEVICE u32 reach_ahead(u32 end, u32 window, u32 tokens)
{
    return window >= tokens || end - 1 + window > tokens ? tokens : end - 1 + window;
}

// A logit from the product of query and key; `*slope` is its derivative by the product.
DEVICE float logit(const Shape *s, float product, float *slope)
{
    float x = s->scale * product;
    *slope = s->scale;
    if (s->cap > 0.0f) {
        float t = tanhf(x / s->cap);
        x = s->cap * t;
        *slope *= 1.0f - t * t;
    }
    return x;
}

// `count` rows of `row` elements apart, from token `first` on, zero where there is none.
DEVICE void load(float *to, const float *from, u32 first, u32 count, u32 tokens, u32 row, u32 dim)
{
    for (u32 i = threadIdx.x; i < count * WIDTH; i += THREADS) {
        u32 at = i / WIDTH, c = i % WIDTH;
        to[at * PITCH + c] = first + at < tokens && c < dim ? from[(size_t)(first + at) * row + c] : 0.0f;
    }
}

// softmax(cap(scale·q kᵀ) + bias) v for ROWS queries of one head; of each row of logits the largest, and 1 over the
// sum of the exponentials of what the others are below it. Of `kv`, [2, batch, tokens, groups, dim], the keys are the first half.
KERNEL attention(const float *q, const float *kv, const float *bias, const u32 *starts, float *out, float *rows,
                 SHAPE)
{
    SHARED float query[ROWS * PITCH], other[KEYS * PITCH], p[ROWS * (KEYS + 1)];
    SHARED float top[ROWS], sum[ROWS], shrink[ROWS];
    Shape s = TAKE_SHAPE;
    u32 head = blockIdx.x % heads, sequence = blockIdx.x / heads, group = head / (heads / groups);
    u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16, first = blockIdx.y * ROWS;
    u32 row = heads * dim, key_row = groups * dim;
    size_t at = ((size_t)sequence * tokens * heads + head) * dim;
    const float *k = kv + ((size_t)sequence * tokens * groups + group) * dim;
    const float *v = k + (size_t)(gridDim.x / heads) * tokens * groups * dim;
    float mixed[ROWS / 16][WIDTH / 16];
    OVER (i, ROWS)
        OVER (j, WIDTH)
            mixed[i][j] = 0.0f;
    load(query, q + at, first, ROWS, tokens, row, dim);
    for (u32 i = threadIdx.x; i < ROWS; i += THREADS) {
        top[i] = -INFINITE;
        sum[i] = 0.0f;
    }
    u32 last = first + ROWS < tokens ? first + ROWS : tokens;
    u32 end = causal ? last : reach_ahead(last, window, tokens);
    for (u32 from = reach_back(first, window) / KEYS * KEYS; from < end; from += KEYS) {
        __syncthreads();
        load(other, k, from, KEYS, tokens, key_row, dim);
        __syncthreads();
        float x[ROWS / 16][KEYS / 16];
        OVER (i, ROWS)
            OVER (j, KEYS)
                x[i][j] = 0.0f;
        for (u32 c = 0; c < dim; c++)
            OVER (i, ROWS)
                OVER (j, KEYS)
                    x[i][j] += query[(ty + 16 * i) * PITCH + c] * other[(tx + 16 * j) * PITCH + c];
        OVER (i, ROWS)
            OVER (j, KEYS) {
                u32 n = first + ty + 16 * i, m = from + tx + 16 * j;
                u32 start = within && n < tokens ? starts[(size_t)sequence * tokens + n] : 0;
                float slope;
                if (sees(&s, n, m, start)) {
                    x[i][j] = logit(&s, x[i][j], &slope);
                    if (biased)
                        x[i][j] += bias[(size_t)head * (2 * tokens - 1) + m + tokens - 1 - n];
                } else {
                    x[i][j] = -INFINITE;
                }
                p[(ty + 16 * i) * (KEYS + 1) + tx + 16 * j] = x[i][j];
            }
        __syncthreads();
        for (u32 i = threadIdx.x; i < ROWS; i += THREADS) {
            float most = top[i];
            for (u32 j = 0; j < KEYS; j++)
                most = fmaxf(most, p[i * (KEYS + 1) + j]);
            // Before a row has seen a key, there is nothing to shrink.
            shrink[i] = most == top[i] ? 1.0f : expf(top[i] - most);
            top[i] = most;
        }
        __syncthreads();
        load(other, v, from, KEYS, tokens, key_row, dim);
        OVER (i, ROWS)
            OVER (j, KEYS)
                p[(ty + 16 * i) * (KEYS + 1) + tx + 16 * j] =
                    x[i][j] == -INFINITE ? 0.0f : expf(x[i][j] - top[ty + 16 * i]);
        __syncthreads();
        for (u32 i = threadIdx.x; i < ROWS; i += THREADS) {
            float all = 0.0f;
            for (u32 j = 0; j < KEYS; j++)
                all += p[i * (KEYS + 1) + j];
            sum[i] = sum[i] * shrink[i] + all;
        }
        OVER (i, ROWS)
            OVER (j, WIDTH)
                mixed[i][j] *= shrink[ty + 16 * i];
        for (u32 key = 0; key < KEYS; key++)
            OVER (i, ROWS)
                OVER (j, WIDTH)
                    mixed[i][j] += p[(ty + 16 * i) * (KEYS + 1) + key] * other[key * PITCH + tx + 16 * j];
    }
    __syncthreads();
    OVER (i, ROWS)
        OVER (j, WIDTH) {
            u32 n = first + ty + 16 * i, c = tx + 16 * j;
            if (n < tokens && c < dim)
                out[at + (size_t)n * row + c] = mixed[i][j] / sum[ty + 16 * i];
        }
    for (u32 i = threadIdx.x; i < ROWS; i += THREADS)
        if (first + i < tokens) {
            float *of = rows + 2 * ((size_t)blockIdx.x * tokens + first + i);
            of[0] = top[i];
            of[1] = 1.0f / sum[i];
        }
}

// out·grad of each row, [batch, heads, tokens]: what its probabilities' gradients have as mean.
KERNEL attention_means(const float *out, const float *grad, float *means, u32 n, u32 tokens, u32 heads, u32 dim)
{
    for EACH (i, n) {
        u32 t = i % tokens, head = i / tokens % heads, sequence = i / tokens / heads;
        size_t at = (((size_t)sequence * tokens + t) * heads + head) * dim;
        float sum = 0.0f;
        for (u32 c = 0; c < dim; c++)
            sum += out[at + c] * grad[at + c];
        means[i] = sum;
    }
}

// Of a tile of queries and keys, P and dS = P ∘ (do vᵀ − mean), before the slope of the logits and behind it;
// one of the last two may be left out.
DEVICE void tile(const Shape *s, const float *query, const float *key, const float *value, const float *grad,
                 const float *bias, const u32 *starts, const float *rows, const float *means, u32 first, u32 from,
                 float *p, float *biased, float *ds)
{
    u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float product[SIDE / 16][SIDE / 16], dp[SIDE / 16][SIDE / 16];
    OVER (i, SIDE)
        OVER (j, SIDE)
            product[i][j] = dp[i][j] = 0.0f;
    for (u32 c = 0; c < s->dim; c++)
        OVER (i, SIDE)
            OVER (j, SIDE) {
                product[i][j] += query[(ty + 16 * i) * PITCH + c] * key[(tx + 16 * j) * PITCH + c];
                dp[i][j] += grad[(ty + 16 * i) * PITCH + c] * value[(tx + 16 * j) * PITCH + c];
            }
    OVER (i, SIDE)
        OVER (j, SIDE) {
            u32 n = first + ty + 16 * i, m = from + tx + 16 * j, at = (ty + 16 * i) * (SIDE + 1) + tx + 16 * j;
            u32 start = s->within && n < s->tokens ? starts[n] : 0;
            float of = 0.0f, moved = 0.0f, slope = 0.0f;
            if (sees(s, n, m, start)) {
                float x = logit(s, product[i][j], &slope);
                if (s->biased)
                    x += bias[m + s->tokens - 1 - n];
                of = expf(x - rows[2 * n]) * rows[2 * n + 1];
                moved = of * (dp[i][j] - means[n]);
            }
            if (p)
                p[at] = of;
            if (biased)
                biased[at] = moved;
            ds[at] = moved * slope;
        }
}

// dq of one head, for the tiles of SIDE queries blockIdx.y, blockIdx.y + gridDim.y, …; and, if they are `summed`,
// the sums of dS for each distance over them, a row of `parts`.
KERNEL attention_queries(const float *q, const float *kv, const float *bias, const u32 *starts, const float *rows,
                         const float *means, const float *grad, float *dq, float *parts, u32 summed, SHAPE)
{
    SHARED float query[SIDE * PITCH], key[SIDE * PITCH], value[SIDE * PITCH], dout[SIDE * PITCH];
    SHARED float ds[SIDE * (SIDE + 1)], unscaled[SIDE * (SIDE + 1)];
    Shape s = TAKE_SHAPE;
    u32 head = blockIdx.x % heads, sequence = blockIdx.x / heads, group = head / (heads / groups);
    u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    u32 row = heads * dim, key_row = groups * dim, distances = 2 * tokens - 1;
    size_t at = ((size_t)sequence * tokens * heads + head) * dim;
    const float *k = kv + ((size_t)sequence * tokens * groups + group) * dim;
    const float *v = k + (size_t)(gridDim.x / heads) * tokens * groups * dim;
    float *part = parts + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * distances;
    if (summed)
        for (u32 i = threadIdx.x; i < distances; i += THREADS)
            part[i] = 0.0f;
    for (u32 first = blockIdx.y * SIDE; first < tokens; first += gridDim.y * SIDE) {
        float of[SIDE / 16][WIDTH / 16];
        OVER (i, SIDE)
            OVER (j, WIDTH)
                of[i][j] = 0.0f;
        __syncthreads();
        load(query, q + at, first, SIDE, tokens, row, dim);
        load(dout, grad + at, first, SIDE, tokens, row, dim);
        u32 last = first + SIDE < tokens ? first + SIDE : tokens;
        u32 end = causal ? last : reach_ahead(last, window, tokens);
        for (u32 from = reach_back(first, window) / SIDE * SIDE; from < end; from += SIDE) {
            __syncthreads();
            load(key, k, from, SIDE, tokens, key_row, dim);
            load(value, v, from, SIDE, tokens, key_row, dim);
            __syncthreads();
            tile(&s, query, key, value, dout, bias + (size_t)head * distances, starts + (size_t)sequence * tokens,
                 rows + 2 * (size_t)blockIdx.x * tokens, means + (size_t)blockIdx.x * tokens, first, from, 0, unscaled,
                 ds);
            __syncthreads();
            for (u32 j = 0; j < SIDE; j++)
                OVER (i, SIDE)
                    OVER (c, WIDTH)
                        of[i][c] += ds[(ty + 16 * i) * (SIDE + 1) + j] * key[j * PITCH + tx + 16 * c];
            // A thread a diagonal of the tile: key − query is j − (SIDE − 1) more than that of its corners.
            for (u32 j = threadIdx.x; summed && j < 2 * SIDE - 1; j += THREADS) {
                float sum = 0.0f;
                for (u32 i = 0; i < SIDE; i++)
                    if (i + j >= SIDE - 1 && i + j < 2 * SIDE - 1)
                        sum += unscaled[i * (SIDE + 1) + i + j - (SIDE - 1)];
                // In column distance + tokens − 1, where that is one.
                u32 to = from + j + tokens - 1;
                if (to >= first + SIDE - 1 && to - (first + SIDE - 1) < distances)
                    part[to - (first + SIDE - 1)] += sum;
            }
        }
        OVER (i, SIDE)
            OVER (j, WIDTH) {
                u32 n = first + ty + 16 * i, c = tx + 16 * j;
                if (n < tokens && c < dim)
                    dq[at + (size_t)n * row + c] = of[i][j];
            }
    }
}

// dk and dv for SIDE keys of one group, from all heads that it serves.
KERNEL attention_keys(const float *q, const float *kv, const float *bias, const u32 *starts, const float *rows,
                      const float *means, const float *grad, float *dkv, SHAPE)
{
    SHARED float query[SIDE * PITCH], key[SIDE * PITCH], value[SIDE * PITCH], dout[SIDE * PITCH];
    SHARED float ds[SIDE * (SIDE + 1)], p[SIDE * (SIDE + 1)];
    Shape s = TAKE_SHAPE;
    u32 group = blockIdx.x % groups, sequence = blockIdx.x / groups, members = heads / groups;
    u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16, from = blockIdx.y * SIDE;
    u32 row = heads * dim, key_row = groups * dim;
    size_t at = ((size_t)sequence * tokens * groups + group) * dim;
    size_t half = (size_t)(gridDim.x / groups) * tokens * groups * dim;
    float dk[SIDE / 16][WIDTH / 16], dv[SIDE / 16][WIDTH / 16];
    OVER (i, SIDE)
        OVER (j, WIDTH)
            dk[i][j] = dv[i][j] = 0.0f;
    load(key, kv + at, from, SIDE, tokens, key_row, dim);
    load(value, kv + half + at, from, SIDE, tokens, key_row, dim);
    u32 last = from + SIDE < tokens ? from + SIDE : tokens;
    u32 end = reach_ahead(last, window, tokens), begin = causal ? from : reach_back(from, window);
    for (u32 head = group * members; head < (group + 1) * members; head++) {
        size_t own = (size_t)sequence * heads + head, here = ((size_t)sequence * tokens * heads + head) * dim;
        for (u32 first = begin / SIDE * SIDE; first < end; first += SIDE) {
            __syncthreads();
            load(query, q + here, first, SIDE, tokens, row, dim);
            load(dout, grad + here, first, SIDE, tokens, row, dim);
            __syncthreads();
            tile(&s, query, key, value, dout, bias + (size_t)head * (2 * tokens - 1),
                 starts + (size_t)sequence * tokens, rows + 2 * own * tokens, means + own * tokens, first, from, p, 0,
                 ds);
            __syncthreads();
            for (u32 i = 0; i < SIDE; i++)
                OVER (j, SIDE)
                    OVER (c, WIDTH) {
                        u32 to = i * (SIDE + 1) + ty + 16 * j, column = i * PITCH + tx + 16 * c;
                        dk[j][c] += ds[to] * query[column];
                        dv[j][c] += p[to] * dout[column];
                    }
        }
    }
    OVER (i, SIDE)
        OVER (j, WIDTH) {
            u32 m = from + ty + 16 * i, c = tx + 16 * j;
            if (m < tokens && c < dim) {
                dkv[at + (size_t)m * key_row + c] = dk[i][j];
                dkv[half + at + (size_t)m * key_row + c] = dv[i][j];
            }
        }
}

// The gradient of the bias, [heads, distances]: the sum of its parts, so many for each sequence and head.
KERNEL attention_bias(const float *parts, float *dbias, u32 batch, u32 heads, u32 each, u32 distances)
{
    for EACH (i, heads * distances) {
        u32 head = i / distances, at = i % distances;
        float sum = 0.0f;
        for (u32 sequence = 0; sequence < batch; sequence++)
            for (u32 j = 0; j < each; j++)
                sum += parts[(((size_t)sequence * heads + head) * each + j) * distances + at];
        dbias[i] = sum;
    }
}
