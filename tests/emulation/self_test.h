// Bodies that test the emulator itself.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulation {

// By name; each must end in a Fault when run with 64 bytes of shared memory.
std::map<std::string, void (*)()> misuses();

// What can be read within a distance of a guarded buffer, but for the buffer.
std::vector<std::string> neighbours(size_t distance);

bool shared_memory_works(const Launch& launch);

}  // namespace emulation
