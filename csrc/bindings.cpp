// Anchor of the library tnt_kernels/_C. It holds no logic: schemas are defined in Python
// (tnt_kernels/library.py), and every csrc/cpu/<op>.cpp registers its own implementations with
// STABLE_TORCH_LIBRARY_IMPL when torch.ops.load_library loads this library.

// The version of the package this library was built from: tells a stale build from a fresh one.
extern "C" __attribute__((visibility("default"))) const char* tnt_kernels_version() {
  return TNT_KERNELS_VERSION;
}
