/* Whether a matrix product that the tests may never have met on this processor gives what the plain one
 * gives. */
#ifndef LLMS_KERNELS_SELFCHECK_H
#define LLMS_KERNELS_SELFCHECK_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"

/* Small products of every quantised type with drawn weights, bit by bit; some milliseconds. *type: where not,
 * the first type that differs. */
bool selfcheck_matmul(void (*matmul)(const struct matmul *m, size_t row_begin, size_t row_end),
                      enum dtype *type);

#endif
