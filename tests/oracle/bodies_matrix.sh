#!/bin/sh
# Function bodies of our operators on several versions of onnxruntime: a table of cases by version.
#
#   tests/oracle/bodies_matrix.sh MBQC PYTHON [VERSION ...]
#
# MBQC: the compiler. PYTHON: one with the packages of tests/requirements.txt; it makes the models and a throw-away environment for every version.
# Versions: 1.20, 1.22, 1.24 and the newest unless given. Exit code 1 when a case fails that is not known to (see KNOWN below) and whose float model this version loads.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mbqc=$1 python=$2
shift 2
[ $# -gt 0 ] || set -- 1.20 1.22 1.24 newest
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/models"

"$python" "$here/bodies.py" make "$work/models"
"$python" -c 'import json, sys
for c in json.load(open(sys.argv[1])): print(c["name"], c["fallback"], c["format"])' "$work/models/cases.json" |
    while read -r name fallback format; do
        "$mbqc" "$work/models/$name.onnx" -o "$work/models/$name.q.onnx" --format "$format" --head-format "$format" \
            --method rtn --fallback "$fallback" --quiet
    done
"$python" "$here/bodies.py" expect "$work/models"

for version in "$@"; do
    wanted="onnxruntime==$version.*"
    [ "$version" = newest ] && wanted=onnxruntime
    "$python" -m venv "$work/venv-$version"
    "$work/venv-$version/bin/pip" install --quiet --disable-pip-version-check "$wanted" numpy >/dev/null
    "$work/venv-$version/bin/python" "$here/run_ort.py" --version >"$work/$version.txt"
    "$work/venv-$version/bin/python" "$here/bodies.py" run "$work/models" "$work/$version.json"
    rm -rf "$work/venv-$version"
done

"$python" - "$work" "$@" <<'TABLE'
import json, pathlib, sys

work, versions = pathlib.Path(sys.argv[1]), sys.argv[2:]
# Missing there: Cast to uint4, which the body of standard operators needs
KNOWN = {"1.20": ["standard"], "1.22": ["standard"]}
failed = 0
print(f"{'onnxruntime':12} {'--fallback ort':>16} {'standard':>10} {'w8a8':>10} {'w4a8':>10}  worst f32  worst f16")
for version in versions:
    results = json.loads((work / f"{version}.json").read_text())
    tally = {}
    worst = {"f32": 0.0, "f16": 0.0}
    for r in results:
        body, _, kind, _ = r["name"].split("-")
        good = r["problem"] is None and r["error"] is not None and r["error"] < (1e-5 if kind == "f32" else 3e-3)
        passed, total = tally.get(body, (0, 0))
        tally[body] = (passed + good, total + 1)
        if good:
            worst[kind] = max(worst[kind], r["error"])
        else:
            why = "known" if any(r["name"].startswith(k) for k in KNOWN.get(version, ())) else "the float model is refused as well" if r.get("refused") else ""
            failed += not why
            problem = str(r["problem"] or r["error"])
            print(f"  {version} {r['name']}: {f'({why}) ' if why else ''}{problem[:160]}")
    named = (work / f"{version}.txt").read_text().split()[1]
    print(f"{named:12} {'%d of %d' % tally['ort']:>16} {'%d of %d' % tally['standard']:>10} {'%d of %d' % tally['w8a8']:>10} {'%d of %d' % tally['w4a8']:>10}  {worst['f32']:.1e}    {worst['f16']:.1e}")
sys.exit(failed > 0)
TABLE
