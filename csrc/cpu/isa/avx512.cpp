#include "cpu/isa/kernel_table.h"
