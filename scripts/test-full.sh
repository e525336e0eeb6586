#!/usr/bin/env bash
# The long test: five seeds of the quickstart with UADT (c1) and without (none), the same seed twice, and a run
# that is killed five times. Prints a report in Markdown; exit status 1 if a promise is not kept.
#
#   scripts/test-full.sh            everything, into runs/full; started again, it goes on where it was
#
# SEEDS and KILLS are how many (5 each), RECIPE the recipe, OUT the folder of the runs, SETTINGS further
# key=value pairs, separated by spaces.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=${UADT_TRAIN:-bin/uadt-train}
recipe=${RECIPE:-configs/quickstart.yaml}
out=${OUT:-runs/full}
seeds=${SEEDS:-5}
kills=${KILLS:-5}
mkdir -p "$out"

settings=()
for setting in ${SETTINGS:-}; do settings+=(--set "$setting"); done

# run NAME SEED RULE: runs a recipe to its end; one that is complete is left as it is.
run() {
  echo "$(date -u +%H:%M:%S) $1" >&2
  "$program" --config "$recipe" --runs-dir "$out" --run "$1" --seed "$2" --set "uadt.rule=$3" "${settings[@]}" \
    >"$out/$1.txt" 2>"$out/$1.log" || { tail -n 5 "$out/$1.log" >&2; return 1; }
}

for ((seed = 1; seed <= seeds; seed++)); do
  for rule in c1 none; do
    run "$rule-$seed" "$seed" "$rule"
  done
done
run again-1 1 c1

# Lives of the killed run are drawn so that all together are shorter than an unbroken run: every kill hits.
if [ ! -e "$out/kills" ]; then
  rm -rf "$out/killed-1"
  length=$(python3 tests/python/full_report.py --seconds "$out/c1-1")
  struck=
  for ((kill = 1; kill <= kills; kill++)); do
    life=$(awk -v l="$length" -v k="$kills" -v r="$RANDOM" 'BEGIN { printf "%.2f", 0.3 + l / (k + 1) * (0.5 + r / 65536) }')
    "$program" --config "$recipe" --runs-dir "$out" --run killed-1 --seed 1 --set uadt.rule=c1 "${settings[@]}" \
      >/dev/null 2>>"$out/killed-1.log" &
    pid=$!
    sleep "$life"
    if kill -KILL "$pid" 2>/dev/null; then struck="$struck $life"; fi
    wait "$pid" 2>/dev/null || true
    echo "$(date -u +%H:%M:%S) killed after $life s" >&2
  done
  echo "$struck" >"$out/kills"
fi
run killed-1 1 c1

python3 tests/python/full_report.py --program "$program" --seeds "$seeds" "$out" | tee "$out/report.md"
exit "${PIPESTATUS[0]}"
