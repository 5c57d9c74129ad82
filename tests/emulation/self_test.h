// Bodies that test the emulator itself.
#pragma once

#include <map>
#include <string>

#include "emulator.h"

namespace emulation {

// By name; each must end in a Fault when run with 64 bytes of shared memory.
std::map<std::string, void (*)()> misuses();

bool shared_memory_works(const Launch& launch);

}  // namespace emulation
