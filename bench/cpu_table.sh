#!/usr/bin/env bash
# Measures every row of docs/results/cpu.md, each beside its ceiling from the same run, and prints the file's tables in Markdown.
# Seven minutes on two quiet cores.
#
#   cmake --preset bench && cmake --build --preset bench --target quaver bench_gemm
#   bench/cpu_table.sh [THREADS] [PROGRAMS] [FOLDER] > tables.md
#
# THREADS: 0 = every processor (default). PROGRAMS: build/bench (default). FOLDER: receives what the programs print; default: a
# new one. With one thread, times are the thread's processor time: other programs then disturb less.
set -euo pipefail
cd "$(dirname "$0")/.."
threads=${1:-0}
programs=${2:-build/bench}
folder=${3:-$(mktemp -d)}
quaver=$programs/quaver
mkdir -p "$folder"
[[ $threads == 0 ]] && count=$(nproc) || count=$threads

# NAME COMMAND...: what the command prints goes to FOLDER/NAME, or nothing if it fails.
measure() {
  local name=$1 begin=$SECONDS
  shift
  "$@" >"$folder/$name" 2>"$folder/$name.log" || { echo "$*: failed, see $folder/$name.log" >&2; rm -f "$folder/$name"; }
  echo "$name: $((SECONDS - begin)) s" >&2
}
bench() {
  local name=$1 command=$2 model=$3
  shift 3
  measure "$name" "$quaver" bench "$command" "configs/$model.toml" threads="$threads" --json "$@"
}

{
  date -u +'%Y-%m-%d %H:%M UTC'
  grep -m1 'model name' /proc/cpuinfo | sed 's/.*: //' || uname -m
  echo "load before: $(cut -d' ' -f1 /proc/loadavg)"
} >"$folder/machine"

measure kernels "$quaver" bench kernels --tokens 4096 --rounds 5 --threads "$count" --json
bench step-124m-1 step gated-124m --micro-batch 1 --context 1024 --steps 5
bench step-124m-4 step gated-124m --micro-batch 4 --context 1024 --steps 2
bench step-320 step small-320 --steps 7
bench step-nano step nano --steps 30
bench generate generate gated-124m
bench memory memory gated-124m --micro-batch 4 --context 1024
bench profile-124m profile gated-124m --micro-batch 1 --context 1024 --steps 2
bench profile-320 profile small-320 --steps 5
bench profile-nano profile nano --steps 15
if [[ -x $programs/bench/bench_gemm ]]; then
  measure gemm "$programs/bench/bench_gemm" --threads "$threads" --shapes linear --rounds 3
  measure gemm-small "$programs/bench/bench_gemm" --threads "$threads" --shapes small --rounds 3
fi
echo "load after: $(cut -d' ' -f1 /proc/loadavg)" >>"$folder/machine"
python3 bench/cpu_table.py "$folder"
echo "measurements: $folder" >&2
