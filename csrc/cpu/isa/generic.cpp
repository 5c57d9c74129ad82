#define TNT_AT_MOST_GENERIC
#include "cpu/isa/kernel_table.h"
