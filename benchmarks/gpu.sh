#!/usr/bin/env bash
# Everything that needs a GPU, in one command. Each part is optional; where none is named, all are run:
#   benchmarks/gpu.sh [checks] [bench] [serve] [compare]
# checks   the tests that compute on a GPU: kernels, engine, models, memory
# bench    benchmarks.engine: the engine alone, beside the machine's limits and transformers
# serve    the whole stack: the demo model over HTTP, then benchmarks.gateway with a random model of SHAPE
# compare  the gateway beside the REST service of NeMo Export-Deploy, on the CPU: a GPU would make neither quicker
#
# It uses the environment it is started in, which has what pyproject.toml names. A machine without a network needs wheels
# of what it lacks, in WHEELS/engine, WHEELS/serving and WHEELS/reference: they go into environments of their own, which
# see the machine's packages too. Logs and results go to OUT. A summary is printed last; exits with 1 where a part failed.
set -uo pipefail
cd "$(dirname "$0")/.."

WHEELS=${WHEELS:-.whl}
OUT=${OUT:-$(mktemp -d /tmp/gpu-results.XXXXXX)}
SHAPE=${SHAPE:-3b}
CHECKS_SECONDS=${CHECKS_SECONDS:-300}
BENCH_SECONDS=${BENCH_SECONDS:-270}
SERVE_SECONDS=${SERVE_SECONDS:-300}
COMPARE_SECONDS=${COMPARE_SECONDS:-240}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
SUMMARY=()
FAILED=0

# environment NAME WHEEL...: makes it. The wheels go into its own site-packages: Triton's backend sees no PYTHONPATH.
environment() {
  local directory=$WORK/$1 packages
  shift
  python3 -m venv --without-pip "$directory" || return
  packages=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # What python3 sees comes after the wheels. It may be an environment itself: --system-site-packages would pass it over.
  python3 -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
    >"$packages/machine.pth"
  python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$packages" "$@"
}

# run SECONDS NAME ENVIRONMENT COMMAND...: with its output in OUT/NAME.log; notes how it ended.
run() {
  local seconds=$1 name=$2 path=$WORK/$3/bin:$PATH began=$SECONDS status
  shift 3
  echo "== $name: $*"
  PATH=$path timeout --kill-after 20 "$seconds" "$@" 2>&1 | tee "$OUT/$name.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) SUMMARY+=("$name: passed in $((SECONDS - began)) s") ;;
    124 | 137) SUMMARY+=("$name: FAILED, stopped after $seconds s") ;;
    *) SUMMARY+=("$name: FAILED with status $status after $((SECONDS - began)) s") ;;
  esac
  [ "$status" = 0 ] || FAILED=1
  return "$status"
}

checks() {
  local pytest=(python3 -m pytest -q -ra -p no:cacheprovider) side_by_side=()
  python3 -c 'import xdist' 2>/dev/null && side_by_side=(-n 8 --dist loadfile)
  run "$CHECKS_SECONDS" checks engine "${pytest[@]}" "${side_by_side[@]}" \
    tests/triton_worker/kernels tests/triton_worker/engine tests/triton_worker/models
  run "$CHECKS_SECONDS" checks-gpu engine "${pytest[@]}" tests/gpu # memory is measured: nothing beside it
}

bench() {
  run "$BENCH_SECONDS" bench engine python3 -m benchmarks.engine --shape "$SHAPE" --profile "$OUT/kernel_times.md"
}

serve() {
  local -x TEST_WORKER_FLAGS="--device cuda --params_dtype bfloat16"
  run "$SERVE_SECONDS" serve serving python3 -m pytest -q -ra -p no:cacheprovider tests/e2e/test_demo.py
  run "$SERVE_SECONDS" checkpoint engine python3 -m benchmarks.random_checkpoint "$SHAPE" "$WORK/checkpoint" || return
  local gateway=(python3 -m benchmarks.gateway --checkpoint "$WORK/checkpoint" --output_tokens 128 --rounds 3 --no-services)
  run "$SERVE_SECONDS" gateway-pictures serving "${gateway[@]}" --streams 1,64 --picture 1036x728
  run "$SERVE_SECONDS" gateway-text serving "${gateway[@]}" --streams 1,64
}

compare() {
  # Where there are wheels, benchmarks.gateway's own pip finds the release among them and asks no index.
  [ ! -d "$WHEELS/reference" ] || local -x PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS/reference
  run "$COMPARE_SECONDS" compare serving python3 -m benchmarks.gateway --no-engine --rounds 3
}

mkdir -p "$OUT"
[ $# -gt 0 ] || set -- checks bench serve compare
for part in "$@"; do
  case $part in
    checks | bench | serve | compare) ;;
    *) echo "error: $part is none of checks, bench, serve, compare" >&2 && exit 2 ;;
  esac
done
[ "$*" = compare ] || python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null ||
  { echo "error: PyTorch finds no GPU here" >&2 && exit 1; }
if [ -d "$WHEELS" ]; then
  environment engine "$WHEELS"/engine/*.whl || exit
  case " $* " in *" serve "* | *" compare "*) environment serving "$WHEELS"/{engine,serving}/*.whl || exit ;; esac
fi
for part in "$@"; do
  "$part"
done
printf '\nResults are in %s.\n' "$OUT"
printf '%s\n' "${SUMMARY[@]}"
exit "$FAILED"
