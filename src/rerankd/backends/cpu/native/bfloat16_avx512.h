/* bfloat16 values by AVX512-BF16. */
#ifndef RERANKD_BFLOAT16_H
#define RERANKD_BFLOAT16_H

INLINE vector load_values(const value *from)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

INLINE void store_values(value *to, vector x)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Store 64 bytes of a row. */
INLINE void store_block(value *to, const vector x[BLOCK_PARTS])
{
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
}

/* Add the products of 4 bytes of a row, a lane of a register, and a line of a panel to a register of sums. */
INLINE vector add_products(vector sums, integers row, int lane, integers line)
{
    (void)lane; /* all lanes are the same */
    return _mm512_dpbf16_ps(sums, (__m512bh)row, (__m512bh)line);
}

/* max(x, 0) - GELU(x) for |x| from 0 to 4.65, by a quadratic in |x| around each 31st of the range: the coefficients of 1, |x|
 * and x^2, which interpolate at Chebyshev's nodes. Around 0 the constant is 0, so that small values stay small; the last is 0.
 */
static const float BELOW[3][32] = {
    { 0.0f, 8.104536e-05f, 0.001470711f, 0.007230817f, 0.02132012f, 0.04724308f, 0.08676781f, 0.1390842f, 0.2006322f,
      0.2656305f, 0.3271404f, 0.3783698f, 0.4138888f, 0.4304833f, 0.4275011f, 0.4066818f, 0.3715863f, 0.3268084f,
      0.2771627f, 0.2270057f, 0.1797842f, 0.137832f, 0.1023853f, 0.07375057f, 0.0515513f, 0.0349888f, 0.02307123f,
      0.01478682f, 0.009215709f, 0.005587272f, 0.00329639f, 0.0f },
    { 0.5f, 0.4983083f, 0.4863859f, 0.4560226f, 0.4026095f, 0.3259534f, 0.2301827f, 0.1228216f, 0.01328665f,
      -0.0888327f, -0.1753427f, -0.2405732f, -0.2819119f, -0.2997399f, -0.2968875f, -0.277803f, -0.2476444f,
      -0.2114691f, -0.1736371f, -0.1374722f, -0.105164f, -0.07785745f, -0.05585624f, -0.03887167f, -0.02626376f,
      -0.01724068f, -0.01100243f, -0.006829447f, -0.004125147f, -0.002425604f, -0.001388914f, 0.0f },
    { -0.39863f, -0.3897751f, -0.363999f, -0.3238574f, -0.2731499f, -0.2164224f, -0.1583681f, -0.1032606f,
      -0.05450873f, -0.01438716f, 0.01603753f, 0.03680582f, 0.04883557f, 0.05362426f, 0.05294283f, 0.0485689f,
      0.04208931f, 0.03478239f, 0.02757454f, 0.02105508f, 0.01552859f, 0.01108496f, 0.007670854f, 0.00515217f,
      0.003361963f, 0.002132999f, 0.001316622f, 0.0007911081f, 0.0004629229f, 0.0002639035f, 0.0001466178f, 0.0f },
};

/* The value of a table of 32 at the lowest 5 bits of an index. */
INLINE vector looked_up(const float *table, integers index)
{
    return _mm512_permutex2var_ps(load(table), index, load(table + 16));
}

/* GELU with an absolute error of at most 1.4e-5. The table needs fewer multiply-adds than one polynomial over the range, and
 * the GEMM itself needs all multiply-adds that the vector unit can give. */
INLINE vector gelu(vector x)
{
    const vector near = smaller(all(4.65f), absolute(x));
    /* 1.5 * 2^23 rounds the sum to an integer, in the lowest bits. */
    const vector index = multiply_add(near, all(31 / 4.65f), all(12582912.0f));
    const integers i = as_bits(index);
    vector below = multiply_add(looked_up(BELOW[2], i), near, looked_up(BELOW[1], i));
    below = multiply_add(below, near, looked_up(BELOW[0], i));
    return subtract(larger(all(0.0f), x), below); /* this order of operands keeps NaN */
}

#endif
