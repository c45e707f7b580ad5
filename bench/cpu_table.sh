#!/usr/bin/env bash
# Every row of docs/results/cpu.md, each beside its ceiling from the same run. Takes about half an hour on two cores.
#
#   cmake --preset bench && cmake --build --preset bench
#   bench/cpu_table.sh [THREADS] [PROGRAMS]     THREADS: 0 = every processor (default); PROGRAMS: build/bench (default)
#
# With one thread, times are the thread's processor time: other programs then disturb less.
set -euo pipefail
cd "$(dirname "$0")/.."
threads=${1:-0}
programs=${2:-build/bench}
quaver=$programs/quaver

show() {
  printf '\n$ %s\n' "$*"
  "$@" 2>/dev/null
}

date -u +'%Y-%m-%d %H:%M UTC'
uptime
grep -m1 'model name' /proc/cpuinfo || true

show "$quaver" bench kernels --tokens 4096 --rounds 9
show "$programs/bench/bench_attention" --threads "$threads" --rounds 9
if [[ -x $programs/bench/bench_gemm ]]; then
  show "$programs/bench/bench_gemm" --threads "$threads" --shapes all --rounds 9
fi
show "$quaver" bench step configs/gated-124m.toml threads="$threads" --micro-batch 1 --context 1024 --steps 7
show "$quaver" bench step configs/gated-124m.toml threads="$threads" --micro-batch 4 --context 1024 --steps 3
show "$quaver" bench step configs/small-320.toml threads="$threads" --steps 9
show "$quaver" bench step configs/nano.toml threads="$threads" --steps 40
for model in 'gated-124m.toml --micro-batch 1 --context 1024 --steps 3' 'small-320.toml --steps 5' 'nano.toml --steps 15'; do
  read -ra arguments <<<"$model"
  show "$quaver" bench profile "configs/${arguments[0]}" threads="$threads" "${arguments[@]:1}"
done
show "$quaver" bench generate configs/gated-124m.toml threads="$threads"
show "$quaver" bench memory configs/gated-124m.toml threads="$threads" --micro-batch 4 --context 1024
