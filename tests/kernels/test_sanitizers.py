"""The C++ kernels under AddressSanitizer and UBSan, which end the process at the first report.

With TAMT_SOAK=1 (`make sanitize`, `make soak`) the whole extension too, under the tests of the operations.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CXX") or "c++")
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# As setup.py, but for the time that it takes to compile.
FLAGS = "-std=c++17 -O0 -g1 -fno-trapping-math -ffp-contract=off"
TESTS = [
    "test_threshold", "test_masks", "test_mask_weights", "test_mask_adamw", "test_masked_layers", "test_modules",
    "test_operators", "test_cosine", "test_optim", "test_instruction_sets", "test_validation",
    "test_sparse", "test_sparse_layers",
]  # fmt: skip
"""Those that run the extension's operators in their own process."""


@pytest.fixture(scope="module", autouse=True)
def _sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where an empty program cannot be built with them."""
    if not shutil.which(COMPILER[0]):
        pytest.skip(f"no C++ compiler ({COMPILER[0]}) is found")
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.cpp").write_text("int main() {}\n")
    build = [*COMPILER, *SANITIZERS.split(), str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    if subprocess.run(build, capture_output=True, check=False).returncode:
        pytest.skip("the C++ compiler has no sanitizers (libasan, libubsan)")


def run(*command: object, folder: Path = ROOT, **environment: str) -> str:
    """What a command printed, which must not fail."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_kernel_leaves_its_memory(tmp_path: Path) -> None:
    kernels = sorted(ROOT.glob("csrc/cpu/*_kernel.cpp"))
    program = tmp_path / "sanitized_kernels"
    driver = ROOT / "tests/kernels/sanitized_kernels.cpp"
    run(*COMPILER, *SANITIZERS.split(), *FLAGS.split(), driver, *kernels, "-o", program)
    assert "every kernel as compiled for generic" in run(program)


@pytest.mark.skipif("TAMT_SOAK" not in os.environ, reason="ten minutes")
@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers are preloaded into Python")
def test_the_extension_passes_its_tests(tmp_path: Path) -> None:
    library = tmp_path / "library"
    run(
        *(sys.executable, "setup.py", "--quiet", "build", "--build-base", tmp_path / "objects"),
        *("--build-lib", library),
        TAMT_BUILD="cpu",
        CFLAGS=SANITIZERS,
        CXXFLAGS=SANITIZERS,
        LDFLAGS=SANITIZERS,
    )
    [extension] = library.glob("tamt_kernels/_C.*")
    assert b"__asan_init" in extension.read_bytes()
    preloaded = [run(*COMPILER, f"-print-file-name={name}").strip() for name in ("libasan.so", "libubsan.so")]
    shutil.copytree(ROOT / "tests", library / "tests")  # to import what is beside them
    said = run(
        # A report goes past Python: captured by pytest it would be lost with the process.
        *(sys.executable, "-m", "pytest", "-q", "--capture=sys", *(f"tests/kernels/{name}.py" for name in TESTS)),
        folder=library,
        PYTHONPATH=str(library),
        LD_PRELOAD=" ".join(preloaded),
        TAMT_KERNELS="cpp",
        OMP_NUM_THREADS="2",
        ASAN_OPTIONS="detect_leaks=0",  # Python and torch leave much to the end of the process
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    print(said.strip().splitlines()[-1])
