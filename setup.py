"""Builds tnt_kernels/_C.abi3.so (CPU) and, where a fitting CUDA toolkit is found, _C_cuda.abi3.so.

Both are plain shared libraries on the LibTorch stable ABI: no Python symbols, nothing of one
torch release, so one binary serves every Python >= 3.10 and every torch >= 2.10. They are compiled
by one ninja file written here, since CPU kernels need flags per file: everything in csrc/cpu/isa
is compiled once per instruction set and chosen among at run time.

Environment:
    CXX, CXXFLAGS, LDFLAGS   the C++ compiler and further flags for it
    MAX_JOBS                 compile at most this many files at a time
    CUDA_HOME                the CUDA toolkit (default: that of the nvcc on PATH)
    FORCE_CUDA               1: no usable toolkit is an error; 0: no CUDA;
                             unset: CUDA if nvcc has the major version of torch's CUDA
    TORCH_CUDA_ARCH_LIST     such as "8.0;9.0+PTX" (default: of DEFAULT_CUDA_ARCHS those that the
                             GPUs of this machine run, or all where there is none)
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# Oldest torch that the binaries run on: 2.10, in the encoding of torch/headeronly/version.h.
TORCH_TARGET_VERSION = "0x020a000000000000"
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0;12.0+PTX"

CXX_FLAGS = ["-std=c++17", "-O2", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-DUSE_CUDA", "--expt-relaxed-constexpr"]
NVCC_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]

# Kernels: fuse a*b+c, and drop errno and trap semantics, which would block vectorisation. Neither
# touches NaN, infinity or signed zero, so non-finite values propagate as PyTorch's do.
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
KERNEL_FLAGS += ["-fno-exceptions"]  # no weak symbols of the C++ runtime either
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2_FLAGS]
AVX512_FLAGS += ["-mprefer-vector-width=512"]
AMX_FLAGS = [*AVX512_FLAGS, "-mavx512bf16", "-mavx512vbmi", "-mamx-tile", "-mamx-bf16"]
# Files csrc/cpu/isa/<isa>.cpp and csrc/cpu/isa/<isa>_<anything>.cpp get the flags of <isa>.
ISA_FLAGS = {"generic": [], "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS, "amx": AMX_FLAGS}


def glob_sources(*patterns: str) -> list[str]:
    """Files matching the patterns; relative, so that no path of this machine is built in."""
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def cpu_sources() -> list[str]:
    return glob_sources("csrc/*.cpp", "csrc/common/*.cpp", "csrc/cpu/*.cpp", "csrc/cpu/isa/*.cpp")


def cuda_sources() -> list[str]:
    own = glob_sources("csrc/cuda/**/*.cu", "csrc/cuda/**/*.cpp")
    return own + glob_sources("csrc/common/*.cpp") if own else []


def cxx() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def isa_of(source: str) -> str | None:
    """The instruction set that a source file is compiled for, or None for an ordinary file."""
    path = Path(source)
    if path.parent.name != "isa":
        return None
    isa = path.stem.split("_")[0]
    if isa not in ISA_FLAGS:
        raise SystemExit(f"setup.py: {source}: no flags for {isa!r}; known: {', '.join(ISA_FLAGS)}")
    return isa


def supported_isas() -> list[str]:
    """The instruction sets whose flags this compiler knows, for the machine it compiles for."""

    def compiles(flags: list[str]) -> bool:
        command = [*cxx(), *flags, "-Werror", "-fsyntax-only", "-x", "c++", os.devnull]
        return subprocess.run(command, capture_output=True).returncode == 0

    return [isa for isa, flags in ISA_FLAGS.items() if compiles(flags)]


# ---- CUDA ----------------------------------------------------------------------------------------


class CudaToolkit(NamedTuple):
    root: Path
    nvcc: str
    version: tuple[int, int]


def find_cuda_toolkit() -> CudaToolkit | str:
    """The toolkit of CUDA_HOME, else of the nvcc on PATH; or a sentence saying why none is."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    if nvcc is None:
        return f"CUDA_HOME={home} has no bin/nvcc" if home else "nvcc is not on PATH"
    # nvcc may be a wrapper script or a link, so the compiler itself is asked where its toolkit is.
    dryrun = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dryrun.stderr + dryrun.stdout, re.MULTILINE)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", version)
    if top is None or release is None:
        return f"{nvcc} does not answer as nvcc does"
    return CudaToolkit(Path(top[1].strip()).resolve(), nvcc, (int(release[1]), int(release[2])))


def choose_cuda(torch_cuda: str | None) -> CudaToolkit | None:
    """The toolkit to build with, if any. `torch_cuda` is torch.version.cuda (None: CPU-only)."""
    force = os.environ.get("FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        raise SystemExit(f"setup.py: FORCE_CUDA must be 0, 1 or unset, got {force!r}")
    if force == "0":
        return None
    toolkit = find_cuda_toolkit()
    if isinstance(toolkit, str):
        if force == "1":
            raise SystemExit(f"setup.py: FORCE_CUDA=1, but {toolkit}; set CUDA_HOME")
        print(f"setup.py: no CUDA: {toolkit}")
        return None
    if not force and (torch_cuda or "none").split(".")[0] != str(toolkit.version[0]):
        found = ".".join(map(str, toolkit.version))
        print(f"setup.py: no CUDA: nvcc is {found}, torch's CUDA is {torch_cuda or 'none'}")
        return None
    return toolkit


def cuda_arch_flags(toolkit: CudaToolkit, gpus: list[tuple[int, int]]) -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST, or for what `gpus` run of the default list.

    `gpus` are compute capabilities.
    """
    given = re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; ,"))
    archs = given if given != [""] else default_archs(toolkit, gpus)
    flags = []
    for arch in archs:
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", arch)
        if match is None:
            raise SystemExit(
                f"setup.py: TORCH_CUDA_ARCH_LIST: expected such as '8.0;9.0+PTX', got {arch!r}"
            )
        number = match[1] + match[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def nvcc_threads(cores: int, archs: int) -> int:
    """Architectures that one nvcc compiles at a time.

    Ninja fills the cores with files while there are files; on many cores the last, largest file
    would then go through its architectures one by one.
    """
    return max(1, min(archs, cores // 4))


def default_archs(toolkit: CudaToolkit, gpus: list[tuple[int, int]]) -> list[str]:
    """What nvcc knows of the default list and `gpus` run; all of it unless each runs some."""
    command = [toolkit.nvcc, "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    default = [arch.removesuffix("+PTX") for arch in DEFAULT_CUDA_ARCHS.split(";")]
    archs = [arch for arch in default if "compute_" + arch.replace(".", "") in known]
    if not archs:
        raise SystemExit(f"setup.py: {toolkit.nvcc} knows none of {DEFAULT_CUDA_ARCHS}")
    # a GPU runs the code of its own major version up to its minor version
    numbers = {arch: tuple(map(int, arch.split("."))) for arch in archs}
    runs = [[a for a in archs if (gpu[0], 0) <= numbers[a] <= gpu] for gpu in gpus]
    if gpus and all(runs):
        newest = {found[-1] for found in runs}
        archs = [arch for arch in archs if arch in newest]
    archs[-1] += "+PTX"  # later GPUs compile it when they load it
    return archs


def visible_gpus() -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs that torch can use."""
    import torch

    try:
        return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    except RuntimeError as error:  # a driver too old for this torch, a GPU that is taken
        print(f"setup.py: GPUs do not answer, so all architectures are built: {error}")
        return []


# ---- The build -----------------------------------------------------------------------------------


class NinjaFile:
    """Collects compile and link commands; ninja then runs those whose inputs changed."""

    def __init__(self, build_dir: Path):
        self.build_dir = build_dir
        self.lines = [f"builddir = {self.escape(build_dir)}"]
        for name, verb, deps in (("compile", "CXX", True), ("link", "LINK", False)):
            self.lines += [f"rule {name}", "  command = $run", f"  description = {verb} $out"]
            self.lines += ["  depfile = $out.d", "  deps = gcc"] if deps else []

    @staticmethod
    def escape(path: Path | str) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    def add(self, rule: str, output: Path, inputs: list, command: list) -> None:
        names = " ".join(map(self.escape, inputs))
        self.lines.append(f"build {self.escape(output)}: {rule} {names}")
        self.lines.append("  run = " + shlex.join(map(str, command)).replace("$", "$$"))

    def compile(self, source: str, library: str, command: list[str]) -> Path:
        obj = self.build_dir / library / (source + ".o")
        command = [*command, "-MD", "-MF", f"{obj}.d", "-c", source, "-o", obj]
        self.add("compile", obj, [source], command)
        return obj

    def link(self, output: Path, objects: list[Path], flags: list[str]) -> None:
        user = shlex.split(os.environ.get("LDFLAGS", ""))
        command = [*cxx(), "-shared", "-o", output, *objects, *flags, *user]
        self.add("link", output, objects, command)

    def run(self) -> None:
        path = self.build_dir / "build.ninja"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(self.lines) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        status = subprocess.run([find_ninja(), "-f", str(path), *jobs], cwd=ROOT).returncode
        if status:
            raise SystemExit(f"setup.py: the build failed (ninja exited with {status})")


def find_ninja() -> str:
    ninja = shutil.which("ninja")
    if ninja:
        return ninja
    try:
        from ninja import BIN_DIR  # installed in this environment, which need not be activated
    except ImportError:
        raise SystemExit("setup.py: ninja is missing; `pip install ninja`") from None
    return str(Path(BIN_DIR, "ninja"))


class BuildLibraries(build_ext):
    """build_ext that compiles with ninja, per-file flags and no Python headers."""

    def run(self):
        import torch

        self.torch_dir = Path(torch.__file__).parent
        self.cuda = choose_cuda(torch.version.cuda)
        if self.cuda is None:
            self.extensions = [e for e in self.extensions if e.name != "tnt_kernels._C_cuda"]
        # a library of an earlier build that this one leaves out must not live on beside it
        kept = [Path(self.get_ext_filename(e.name)).name for e in self.extensions]
        folders = [Path(self.build_lib, "tnt_kernels"), ROOT / "tnt_kernels"]
        for folder in folders if self.inplace else folders[:1]:
            for library in folder.glob("_C*.so"):
                if library.name not in kept:
                    library.unlink()
        super().run()

    def build_extensions(self):
        outputs = {e.name: Path(self.get_ext_fullpath(e.name)) for e in self.extensions}
        ninja = NinjaFile(Path(os.path.relpath(self.build_temp, ROOT)))
        for extension in self.extensions:
            add = self.add_cuda if extension.name.endswith("_cuda") else self.add_cpu
            add(ninja, extension.sources, outputs[extension.name].resolve())
        for output in outputs.values():
            output.parent.mkdir(parents=True, exist_ok=True)
        ninja.run()

    def common_flags(self) -> list[str]:
        return [
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
            f'-DTNT_KERNELS_VERSION="{self.distribution.get_version()}"',
            "-Icsrc",
            *("-isystem", str(self.torch_dir / "include")),
        ]

    def prefix_map(self) -> str:
        """Keeps __FILE__ in torch's error macros from naming a folder of this machine."""
        return f"-ffile-prefix-map={self.torch_dir}=torch"

    def cxx_command(self, *flags: str) -> list[str]:
        user = shlex.split(os.environ.get("CXXFLAGS", ""))  # last, to override what is ours
        return [*cxx(), *CXX_FLAGS, self.prefix_map(), *self.common_flags(), *flags, *user]

    def add_cpu(self, ninja: NinjaFile, sources: list[str], output: Path) -> None:
        isas = supported_isas()
        have = [f"-DTNT_HAVE_{isa.upper()}" for isa in isas]  # tells the dispatcher in csrc/cpu
        objects = []
        for source in sources:
            isa = isa_of(source)
            if isa is None:
                objects.append(ninja.compile(source, "_C", self.cxx_command(*have)))
            elif isa in isas:
                flags = self.cxx_command(*KERNEL_FLAGS, *ISA_FLAGS[isa])
                objects.append(ninja.compile(source, "_C", flags))
            else:
                print(f"setup.py: {source} is left out: {cxx()[0]} does not know its flags")
        ninja.link(output, objects, [f"-L{self.torch_dir / 'lib'}", "-ltorch_cpu"])

    def add_cuda(self, ninja: NinjaFile, sources: list[str], output: Path) -> None:
        root = self.cuda.root
        nvcc = [self.cuda.nvcc, *NVCC_FLAGS, "-Xcompiler", self.prefix_map()]
        archs = cuda_arch_flags(self.cuda, visible_gpus())
        nvcc += [*archs, f"--threads={nvcc_threads(os.cpu_count() or 1, len(archs))}"]
        nvcc += self.common_flags()
        nvcc += ["-ccbin", cxx()[0]] if "CXX" in os.environ else []
        host = self.cxx_command("-DUSE_CUDA", "-isystem", str(root / "include"))
        objects = [
            ninja.compile(source, "_C_cuda", nvcc if source.endswith(".cu") else host)
            for source in sources
        ]
        # libtorch pulls in libtorch_cuda where torch has it, and links against a CPU-only torch too
        flags = [f"-L{self.torch_dir / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]
        flags += [f"-L{root / sub}" for sub in ("lib64", "lib") if (root / sub).is_dir()]
        ninja.link(output, objects, [*flags, "-lcudart_static", "-lrt", "-ldl", "-lpthread"])


if __name__ == "__main__":
    extensions = [Extension("tnt_kernels._C", cpu_sources(), py_limited_api=True)]
    if cuda_sources():
        extensions.append(Extension("tnt_kernels._C_cuda", cuda_sources(), py_limited_api=True))
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": BuildLibraries},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
