#!/usr/bin/env bash
# Everything that docs/results/h100.md reports, measured on one GPU: correctness first, then times.
#
# usage: bench/h100.sh [--build DIR] [--out DIR] [--text DIR] [--python PYTHON] [--limit SECONDS] [PART...]
#
#   --build    where the programs are: a build folder of the preset `cuda`, or a folder that holds quaver, ops_tests, nn_tests and
#              train_tests side by side (default: build/cuda)
#   --out      where logs go (default: h100-results)
#   --text     text for the part `losses` (default: /usr/include)
#   --python   a Python with PyTorch for the part `pytorch` (default: python3)
#   --limit    seconds for all parts together: later ones get what is left, or are passed over (default: none)
#   PART       tests sanitizer kernels gemm small steps state crossover memory pytorch losses profile; default: all of these in this order
#
# DIR/report.md collects what the parts printed. Every part ends after a bounded time, whatever happens, and leaves its log in the folder; the exit status is the number of parts
# that failed. CUDA's libraries are looked for beside nvcc and in PyTorch's packages if the loader does not find them.
set -uo pipefail
cd "$(dirname "$0")/.."

build=build/cuda out=h100-results text=/usr/include python=python3 limit=1000000 parts=()
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --text) text=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    --limit) limit=$2; shift 2 ;;
    -*) echo "h100.sh: unknown option $1" >&2; exit 2 ;;
    *) parts+=("$1"); shift ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(tests sanitizer kernels gemm small steps state crossover memory pytorch losses profile)
mkdir -p "$out"

program() {  # the path of a program of the build
  for candidate in "$build/$1" "$build/tests/$1" "$build/bench/$1"; do
    [ -x "$candidate" ] && { realpath "$candidate"; return; }
  done
  echo "h100.sh: no $1 in $build: build it with cmake --preset cuda && cmake --build --preset cuda" >&2
  return 1
}
quaver=$(program quaver) || exit 2

if ! ldconfig -p | grep -q 'libcublasLt.so.13'; then
  libraries=$(ls -d /usr/local/cuda/lib64 /usr/local/lib/python3*/*-packages/nvidia/*/lib 2>/dev/null | tr '\n' ':')
  export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries"
fi
cuda='backend="cuda"'

# part NAME SECONDS COMMAND...: runs it, shows it and keeps it in NAME.log.
failures=0
part() {
  local name=$1 seconds=$2
  shift 2
  local left=$((limit - SECONDS))
  [ "$left" -lt "$seconds" ] && seconds=$left
  if [ "$seconds" -lt 5 ]; then
    echo "== $name: passed over, no time is left: $*" | tee -a "$out/$name.log"
    failures=$((failures + 1))
    return
  fi
  echo "== $name: $*"
  timeout "$seconds" "$@" 2>&1 | tee -a "$out/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" = 0 ] && return
  echo "== $name: status $status$([ "$status" = 124 ] && echo " (longer than $seconds s)")" | tee -a "$out/$name.log"
  failures=$((failures + 1))
}

step() {  # model, micro-batch, context, further arguments
  local model=$1 batch=$2 context=$3
  shift 3
  part "$name" 90 "$quaver" bench step "configs/$model.toml" "$cuda" "$@" --micro-batch "$batch" --context "$context" --steps 5
}

for name in "${parts[@]}"; do
  : > "$out/$name.log"
  case $name in
    tests)
      part tests 150 "$(program ops_tests)" --gtest_brief=1 '--gtest_filter=*/cuda*:*Cuda*:*/*cuda'
      # These compare every backend with the reference, the device among them; some sizes.
      part tests 60 "$(program ops_tests)" --gtest_brief=1 '--gtest_filter=*Pointwise*/0:*Pointwise*/3:*Pointwise*/6:*Pointwise*/9'
      part tests 60 "$(program nn_tests)" --gtest_brief=1 '--gtest_filter=*/cuda*:*Cuda*'
      part tests 60 "$(program train_tests)" --gtest_brief=1 '--gtest_filter=*cuda*:*Device*:*Cuda*'
      ;;
    sanitizer)
      small='*LossOperation*/cuda:*OptimizerOperation*/cuda:*NormOperation*/cuda:*ScaleUpdate*/cuda:*CudaGemm*'
      for tool in memcheck racecheck; do
        part sanitizer 120 compute-sanitizer --tool "$tool" --error-exitcode 9 "$(program ops_tests)" --gtest_brief=1 "--gtest_filter=$small"
      done
      ;;
    kernels) part kernels 90 "$quaver" bench kernels --backend cuda --rounds 5 ;;
    gemm) part gemm 90 "$quaver" bench gemm configs/gated-1b.toml --backend cuda --micro-batch 12 --context 2048 --square 8192 ;;
    small)  # where launches count
      for model in gated-124m gated-1b; do
        part small 60 "$quaver" bench step "configs/$model.toml" "$cuda" --micro-batch 1 --context 512 --steps 15
        part small 60 "$quaver" bench step "configs/$model.toml" "$cuda" fp8.auto=true --micro-batch 1 --context 512 --steps 15
      done
      ;;
    steps)
      step gated-124m 12 1024
      step gated-350m 12 1024
      step gated-350m 32 1024
      step gated-1b 4 2048
      step gated-1b 12 2048
      ;;
    state)  # optimizer state in fewer bits, smoothed inputs
      for keys in "" optimizer.moments=bf16 optimizer.moments=fp8 optimizer.masters=bf16 \
        "optimizer.moments=fp8 optimizer.masters=bf16" fp8.smooth_swiglu=true; do
        # shellcheck disable=SC2086  # keys are words
        step gated-1b 12 2048 $keys
      done
      ;;
    crossover)
      part crossover 300 "$quaver" bench crossover configs/gated-124m.toml configs/gated-350m.toml configs/gated-1b.toml \
        --set "$cuda" --micro-batch 1 4 8 12 32 --context 512 2048 --steps 3
      ;;
    memory)
      for model in gated-124m gated-350m gated-1b; do
        part memory 60 "$quaver" bench memory "configs/$model.toml" "$cuda" --micro-batch 12 --context 2048
      done
      ;;
    pytorch)
      part pytorch 170 "$python" bench/pytorch_step.py --quaver "$quaver" --config configs/gated-1b.toml --micro-batch 12 --context 2048 \
        --rounds 2 --variants compiled --device cuda
      ;;
    losses)
      for precision in fp8 bf16; do
        rm -rf "$out/nano-$precision"
        part losses 120 "$quaver" train configs/nano.toml "$cuda" "data.path=$text" "precision=$precision" train.steps=500 \
          "run.dir=$out/nano-$precision"
        rm -rf "$out/124m-$precision"
        part losses 90 "$quaver" train configs/gated-124m.toml "$cuda" "data.path=$text" "precision=$precision" train.steps=500 \
          model.context=512 train.batch=8 train.accumulation=1 train.eval_every=250 train.eval_batches=10 "run.dir=$out/124m-$precision"
      done
      ;;
    profile)  # every kernel of a step; needs -DQUAVER_BUILD_BENCH=ON
      for precision in fp8 bf16; do
        part profile 120 env CUDA_INJECTION64_PATH="$(program libkernel_times.so)" KERNEL_TIMES="$out/$precision.tsv" \
          "$quaver" train configs/gated-1b.toml "$cuda" "data.path=$text" "precision=$precision" train.steps=7 train.batch=12 \
          train.accumulation=1 train.eval_every=0 train.save_every=0 "run.dir=$out/profile-$precision"
        part profile 30 "$python" bench/kernel_times.py "$out/$precision.tsv" --steps 2
      done
      ;;
    *) echo "h100.sh: unknown part $name" >&2; failures=$((failures + 1)) ;;
  esac
done
{
  echo "# Measured $(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
  for name in "${parts[@]}"; do
    printf '\n## %s\n\n' "$name"
    # Tables as they are, anything else as it was printed.
    if grep -q '^|' "$out/$name.log"; then grep '^|' "$out/$name.log"; else sed 's/^/    /' "$out/$name.log"; fi
  done
} > "$out/report.md"
echo "== $failures failed"
exit "$failures"
