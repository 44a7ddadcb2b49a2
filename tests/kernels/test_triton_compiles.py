"""Every Triton kernel compiled for every GPU it may meet, with no GPU at hand: registers, shared memory, spills.

``python -m tests.kernels.test_triton_compiles`` prints the table of benchmarks/results/triton-registers.md.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tamt_kernels.backend import dispatch  # noqa: E402
from tamt_kernels.triton_kernels import (  # noqa: E402
    binarize,
    common,
    cosine,
    gradient_norm,
    mask_adamw,
    mask_weight,
    mask_weights,
    masked_embedding,
    masked_linear,
    pack,
    pattern,
    pattern_adamw,
    prune,
    ste_backward,
    threshold,
)

MODULES = (
    binarize,
    common,
    cosine,
    mask_adamw,
    mask_weight,
    mask_weights,
    masked_embedding,
    masked_linear,
    pack,
    pattern,
    pattern_adamw,
    prune,
    ste_backward,
    threshold,
)
"""Those that start kernels."""
GPUS = (70, 75, 80, 90, 100)
TRIED = GPUS if "TAMT_SOAK" in os.environ else (80, 90)
"""GPUs that the test compiles for; 20 seconds each."""
soak = pytest.mark.skipif("TAMT_SOAK" not in os.environ, reason="each type and number of rows is there once")
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
KINDS = {int: "i32", float: "fp32"}


class Launch(NamedTuple):
    """What a launcher asked for: the kernel, its arguments, its constants and options."""

    name: str
    kernel: object
    arguments: tuple
    options: dict


class Usage(NamedTuple):
    registers: int
    stack: int
    local: int
    shared: int
    ptx: str


def launches(gpu=GPUS[-1]):
    """What the launchers start for the usual matrices on a GPU, recorded in place of being started."""
    recorded = []
    label = ""

    def record(kernel, grid, *arguments, **options):
        recorded.append(Launch(f"{kernel.__name__} {label}".strip(), kernel, arguments, options))

    real = [module.launch for module in MODULES]
    for module in MODULES:
        module.launch = record
    try:
        score, half = torch.zeros(96, 128), torch.zeros(96, 128, dtype=torch.float16)
        values, cuts = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            label = f"to {str(dtype).removeprefix('torch.')}"
            mask_weights.mask_weights([score] * 2, [score] * 2, values, cuts, dtype, pack=True)
        label = "to float16"
        mask_weight.mask_weight(score, score, values[0], cuts[0], torch.float16)
        ids = torch.zeros(40, dtype=torch.int64)
        masked_embedding.masked_embedding(ids, half.view(48, 256), score.view(48, 256), values[0], cuts[0])
        masked_embedding.masked_embedding_backward(half[:40], ids, half, None, torch.float32)
        label = ""
        # Hidden states under autocast: a layer norm's are float32, those of a teacher in a half type are not.
        cosine.cosine(half.view(16, 768), score.view(16, 768))
        cosine.cosine_backward(values, half.view(16, 768), score.view(16, 768))
        binarize.binarize(score, values[0], cuts[0])
        packed = pack.pack_mask(half > 0)
        pack.unpack_mask(packed, [96, 128])
        prune.prune_([score.clone()], [packed])
        ste_backward.ste_backward_all([half] * 2, [score] * 2, torch.float32)
        threshold.topk_threshold_unchecked([score] * 2, [5, 6])
        # A step with gradients in float32, in a half type, and without new masks. The search's own kernels are above;
        # two of them ask here whether the step is taken, and its window is around the last threshold.
        rates, masked = torch.ones(4), list(torch.zeros(2, 96, 128))
        own = {"norm_kernel", "adamw_kernel"}
        for grad, renew, kernels in (
            (score, True, own | {"addresses_kernel", "around_kernel", "ties_kernel", "remask_kernel"}),
            (half, True, own),
            (half, False, {"adamw_kernel"}),
        ):
            label = f"in a step, {str(grad.dtype).removeprefix('torch.')}{'' if renew else ', masks kept'}"
            before = len(recorded)
            gradient_norm.gradient_norm([grad] * 2, [score] * 2)
            lists = [[tensor] * 2 for tensor in (grad, score, score, score, score)]
            mask_adamw.mask_adamw(*lists, masked, values, cuts, [5, 6], rates, 0.9, 0.999, 1e-8, renew)
            some = {each.name: each for each in recorded[before:] if each.kernel.__name__ in kernels}
            recorded[before:] = some.values()
        for n, m in ((2, 4), (3, 10)):
            for grad in (score, half):
                label = f"{n}:{m}, {str(grad.dtype).removeprefix('torch.')}"
                lists = [[tensor] * 2 for tensor in (grad, score, score, score, score, half)]
                pattern_adamw.pattern_adamw(*lists, n, m, rates, 0.9, 0.999, 1e-8)
            label = f"{n}:{m}"
            pattern.pattern_mask(score, n, m)
            label = f"{n}:{m}, to float16"
            pattern.pattern_weight(score, score, n, m, torch.float16)
        label = ""
        # The forward reads W along its rows, the backward across them: BERT-base's FFN, of one token and of 64.
        products = gpu >= 10 * dispatch.OLDEST_GPU_FOR_PRODUCTS[0]
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if products else ():
            weight, score = torch.zeros(768, 3072, dtype=dtype), torch.zeros(768, 3072)
            for rows in (1, 64):
                label = f"{str(dtype).removeprefix('torch.')}, {rows} rows"
                x, grad = torch.zeros(rows, 3072, dtype=dtype), torch.zeros(rows, 768, dtype=dtype)
                masked_linear.masked_matmul(x, weight, score, values[0], cuts[0])
                label = f"of x, {label}"
                masked_linear.masked_matmul_backward_x(grad, weight, score, values[0], cuts[0])
            label = label.removeprefix("of x, ")
            masked_linear.masked_matmul_backward_score(grad, x, weight, torch.float32)
    finally:
        for module, launch in zip(MODULES, real, strict=True):
            module.launch = launch
    digits = (
        f"{each.name} digit {each.options['DIGIT']}" if "DIGIT" in each.options else each.name for each in recorded
    )
    # Of those that several launchers start alike one is enough.
    return list({name: each._replace(name=name) for each, name in zip(recorded, digits, strict=True)}.values())


def source(launch):
    """The kernel with the types and alignments of these very arguments, as Triton would specialise it."""
    options = dict(launch.options)
    compiler = {name: options.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in options}
    compiler |= common.COMPILER
    signature, attributes = {}, {}
    constants = dict(options)
    for position, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments, strict=False)):
        if value is None or (type(value) is int and value == 1):  # a stride of 1 is a constant to the compiler
            constants[name] = value
            continue
        parts = value if isinstance(value, tuple) else (value,)
        paths = [(position, i) for i in range(len(parts))] if isinstance(value, tuple) else [(position,)]
        types = tuple(KINDS[type(part)] if type(part) in KINDS else POINTERS[part.dtype] for part in parts)
        signature[name] = types if isinstance(value, tuple) else types[0]
        for path, part in zip(paths, parts, strict=True):
            address = part.data_ptr() if isinstance(part, torch.Tensor) else part
            if isinstance(address, int) and address % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
    signature = {name: signature.get(name, "constexpr") for name in launch.kernel.arg_names}
    return ASTSource(launch.kernel, signature, constants, attributes), compiler


def compiled(launch, gpu):
    """What one kernel takes on a GPU, or None where this Triton no longer builds for it."""
    kernel, options = source(launch)
    try:
        built = triton.compile(kernel, target=GPUTarget("cuda", gpu, 32), options=options)
    except Exception as error:
        if gpu < 75 and re.search(rf"sm_{gpu}|not (supported|defined)", str(error)):
            return None
        raise
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        lines = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", lines)}
    shared = built.metadata.shared
    return Usage(found["REG"], found["STACK"], found["LOCAL"], shared, built.asm["ptx"])


@pytest.fixture(autouse=True, scope="module")
def fresh_cache(tmp_path_factory):
    """What one test has compiled no other compiles again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("gpu", TRIED)
def test_no_kernel_spills(gpu):
    usage = {launch.name: compiled(launch, gpu) for launch in launches(gpu)}
    if None in usage.values():
        pytest.skip(f"Triton {triton.__version__} no longer builds for sm_{gpu}")
    assert {name: each for name, each in usage.items() if each.stack or each.local} == {}
    # Denormals are scores and weights like others: nothing may flush them to zero.
    assert [name for name, each in usage.items() if ".ftz" in each.ptx] == []
    # What every GPU has room for, and, of the products, those that they run on.
    room = {name: 96 * 1024 if "product_kernel" in name else 48 * 1024 for name in usage}
    assert [name for name, each in usage.items() if each.shared > room[name]] == []
    # Half-precision products are worth while on tensor cores alone.
    slow = [name for name, each in usage.items() if "product_kernel" in name and "mma" not in each.ptx]
    assert all("float32" in name for name in slow)


def test_a_spill_would_be_seen():
    launch = next(each for each in launches() if each.name == "window_kernel")
    usage = compiled(launch._replace(options=launch.options | {"maxnreg": 32}), 90)
    assert usage.stack or usage.local


def test_whole_tiles_are_read_16_bytes_at_a_time():
    loads = {"group_kernel to float16": 8, "window_kernel": 8, "adamw_kernel in a step, float32": 5}
    loads["pattern_adamw_kernel 2:4, float32"] = 5
    for launch in (each for each in launches() if each.name in loads):
        assert compiled(launch, 90).ptx.count("ld.global.v4.b32") >= loads[launch.name]


def test_a_pass_over_scores_meets_barriers_for_candidates_alone():
    """It is one warp, whose sums are taken without; a place for what lies inside the window is asked for in two."""
    for name, copies in (("window_kernel", 2), ("adamw_kernel in a step, float32", 1)):  # of the code for a part
        launch = next(each for each in launches() if each.name == name)
        assert launch.options["num_warps"] == 1
        assert compiled(launch, 90).ptx.count("bar.sync") <= 3 * copies


def test_look_ups_read_16_bytes_at_a_time():
    """Two loads of S and one of W a thread: for whole blocks of columns, with the condition on each id."""
    ptx = compiled(next(launch for launch in launches(90) if launch.name.startswith("lookup_kernel")), 90).ptx
    assert ptx.count("ld.global.v4.b32") == 3
    assert ptx.count("st.global.v4.b32") == 1


def test_products_read_16_bytes_at_a_time_ahead_of_their_use():
    some = [launch for launch in launches(90) if launch.name.startswith("product_kernel")]
    assert len(some) == 12
    for launch in some:
        ptx = compiled(launch, 90).ptx
        assert set(re.findall(r"cp\.async\.c[ag]\.shared\.global.*?, (\w+),", ptx)) == {"0x10"}
        assert len(re.findall(r"ld\.global", ptx)) == 2  # the threshold


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [
        (torch.float32, 3),
        (torch.bfloat16, 64),
        *(pytest.param(*other, marks=soak) for other in ((torch.float32, 64), (torch.bfloat16, 3))),
    ],
)
def test_products_of_awkward_weights_compile(dtype, rows, monkeypatch):
    recorded = []
    record = lambda kernel, grid, *arguments, **options: recorded.append(Launch("", kernel, arguments, options))  # noqa: E731
    monkeypatch.setattr(masked_linear, "launch", record)
    score, x = torch.zeros(96, 512), torch.zeros(rows, 512, dtype=dtype)
    threshold = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for weight in (torch.zeros(96, 512, dtype=dtype), torch.zeros(96, 512)):
        masked_linear.masked_matmul(x, weight, score, *threshold)
        masked_linear.masked_matmul(x, weight, score.t().contiguous().t(), *threshold)
        masked_linear.masked_matmul(x, weight.t().contiguous().t(), score, *threshold)
        masked_linear.masked_matmul(x, weight, torch.zeros(96 * 512 + 1)[1:].view(96, 512), *threshold)
        masked_linear.masked_matmul(x[:, 5:], weight[:, 5:], score[:, 5:], *threshold)
    for launch in recorded:
        usage = compiled(launch, 90)
        assert not usage.stack + usage.local


def test_the_step_rounds_as_the_definition():
    """Two fused multiply-adds an entry, in the code for whole tiles and for the rest, and nothing approximate."""
    launch = next(each for each in launches() if each.name == "adamw_kernel in a step, float32")
    ptx = compiled(launch, 90).ptx
    entries = launch.options["PART"] // (32 * launch.options["num_warps"])
    assert ptx.count("fma.rn.f32") == 2 * 2 * entries
    assert ptx.count("sqrt.rn.f32") == 2 * entries
    assert ptx.count("div.rn.f32") == 2 * 2 * entries
    assert not re.findall(r"(?:sqrt|div|rcp)\.(?:approx|full)", ptx)


def table():
    rows = ["| kernel | " + " | ".join(f"sm_{gpu}" for gpu in GPUS) + " |", "| --- |" + " --- |" * len(GPUS)]
    for launch in launches():
        cells = []
        for gpu in GPUS:
            picked = any(launch.name == each.name for each in launches(gpu))
            usage = compiled(launch, gpu) if picked else None
            cells.append(f"{usage.registers} / {usage.shared} / {usage.stack + usage.local}" if usage else "–")
        rows.append(f"| {launch.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
