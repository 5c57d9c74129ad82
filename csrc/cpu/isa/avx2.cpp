#define TNT_AT_MOST_AVX2
#include "cpu/isa/kernel_table.h"
