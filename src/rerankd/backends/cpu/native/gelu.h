/* GELU as a polynomial's power of 2. */
#ifndef RERANKD_GELU_H
#define RERANKD_GELU_H

/* GELU with an absolute error of 2e-7: max(x, 0) - |x| 2^p(|x|), where p, a polynomial of degree 7, is the logarithm of the
 * normal distribution's tail. Beyond 5.6 what is subtracted is below 6e-8. */
INLINE vector gelu(vector x)
{
    const vector near = smaller(all(5.6f), absolute(x));
    vector p = all(-1.990585030e-9f);
    p = multiply_add(p, near, all(3.452459714e-5f));
    p = multiply_add(p, near, all(-7.801153697e-4f));
    p = multiply_add(p, near, all(8.111906238e-3f));
    p = multiply_add(p, near, all(-5.345404893e-2f));
    p = multiply_add(p, near, all(-4.587438703e-1f));
    p = multiply_add(p, near, all(-1.151209354e0f));
    p = multiply_add(p, near, all(-9.999923706e-1f));
    return subtract_product(near, exp2_of(p), larger(all(0.0f), x)); /* this order of operands keeps NaN */
}

#endif
