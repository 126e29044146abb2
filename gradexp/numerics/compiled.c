/* Return the sum of the squares of n float32 numbers, in float64, in which those squares are exact.

   Many partial sums let the compiler work on several numbers at once. Their order is the same on every machine, and
   so is the result, to the last bit. A block at a time, for partial sums of few numbers have little rounding error. */

#include <stddef.h>

enum { SUMS = 32, BLOCK = 1 << 17 };

double square_sum(const float *x, ptrdiff_t n) {
    double total = 0;
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        const float *block = x + start;
        ptrdiff_t count = n - start < BLOCK ? n - start : BLOCK, i = 0;
        double sums[SUMS] = {0};
        for (; i + SUMS <= count; i += SUMS)
            for (int j = 0; j < SUMS; j++) {
                double value = block[i + j];
                sums[j] += value * value;
            }
        for (; i < count; i++) {
            double value = block[i];
            sums[0] += value * value;
        }
        for (int j = 1; j < SUMS; j++)
            sums[0] += sums[j];
        total += sums[0];
    }
    return total;
}
