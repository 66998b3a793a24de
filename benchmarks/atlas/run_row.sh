#!/usr/bin/env bash
# Make the row of a public teacher on one GPU within some seconds, all parts at the same time:
#
#     bash benchmarks/atlas/run_row.sh SECONDS OUT
#
# OUT gets results.tar (curves and predictions so far, twice a minute at least) and logs.txt. Untar it in the working
# directory of make_row.py, which then writes the row. Variables of the environment: NAME of the row, DATA (directory of
# tokens.npz and training.json), WORK, DEVICE, GROUPS_OF_WIDTHS (one process each), OPTIONS (more of make_row.py),
# SERIAL=1 (one part after the other).
set -u
total=$1 out=$2 start=$(date +%s) NAME=${NAME:-smollm2}
DATA=${DATA:-$(dirname "$0")} WORK=${WORK:-$(mktemp -d)} DEVICE=${DEVICE:-cuda} SERIAL=${SERIAL:-} OPTIONS=${OPTIONS:-}
GROUPS_OF_WIDTHS=${GROUPS_OF_WIDTHS:-24,288 48,216 96,144}
export OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 HF_HUB_DISABLE_PROGRESS_BARS=1
mkdir -p "$out"; out=$(cd "$out" && pwd)
mkdir -p "$WORK/$NAME" "$WORK/logs"
cp -n "$DATA"/*.npz "$DATA"/training.json "$DATA"/*.jsonl.gz "$WORK/$NAME/" 2> /dev/null
stop_at=$((start + total - 12))  # the last points of the curves, and the end of the processes
ctl() { echo "$1" | timeout 10 nvidia-cuda-mps-control; }
if command -v nvidia-cuda-mps-control > /dev/null; then
  export CUDA_MPS_PIPE_DIRECTORY=$WORK/mps CUDA_MPS_LOG_DIRECTORY=$WORK/mps-log
  mkdir -p $CUDA_MPS_PIPE_DIRECTORY $CUDA_MPS_LOG_DIRECTORY
  nvidia-cuda-mps-control -d
  if timeout 30 python3 -c "import ctypes as c; g = c.CDLL('libcuda.so.1'); d, x = c.c_int(), c.c_void_p()
exit(bool(g.cuInit(0) or g.cuDeviceGet(c.byref(d), 0) or g.cuDevicePrimaryCtxRetain(c.byref(x), d)))"; then mps=1; echo "MPS"
  else ctl quit; unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY; mps=; echo "no MPS"; fi
else mps=; echo "no MPS"; fi
pids=()
part() {  # name, then options of make_row.py
  local log=$WORK/logs/$1.log; shift
  # shellcheck disable=SC2086
  set -- python3 benchmarks/atlas/make_row.py "$NAME" /nowhere "$WORK" --device "$DEVICE" $OPTIONS "$@"
  if [ "$SERIAL" ]; then "$@" > "$log" 2>&1; else "$@" > "$log" 2>&1 & pids+=($!); fi
}
collect() {  # what there is so far, in two small files
  (cd "$WORK" && find . -name student.json -o -name 'predictions-*.json' -o -name training.json |
    tar cf results.new -T - && mv results.new "$out/results.tar")
  tail -n +1 "$WORK"/logs/*.log > "$out/logs.txt"
}
all=$(echo "$GROUPS_OF_WIDTHS" | tr ' ' ',')
for widths in $GROUPS_OF_WIDTHS; do
  part "students-$widths" --only students --widths "$widths" --stop-at $stop_at
done
part last --only last --widths "$all"
part middle --only middle --widths "$all"
part head --only head --widths "$all"
while [ "${#pids[@]}" -gt 0 ] && [ $(($(date +%s) - start)) -lt "$total" ]; do
  alive=0; for pid in "${pids[@]}"; do kill -0 "$pid" 2> /dev/null && alive=1; done
  [ $alive = 1 ] || break
  sleep 2
  if [ $(( $(date +%s) % 20 )) -lt 2 ]; then
    collect
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader >> "$WORK/logs/gpu.log" 2> /dev/null
  fi
done
for pid in "${pids[@]:-}"; do kill -9 "$pid" 2> /dev/null && echo "killed $pid"; done
[ "$mps" ] && ctl quit
collect
grep -h "tokens/s" "$WORK"/logs/students-*.log | tail -n 6
echo "$(($(date +%s) - start)) s; $(tar tf "$out/results.tar" | sort | tr '\n' ' ')"
